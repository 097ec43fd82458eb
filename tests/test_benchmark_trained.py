"""What a trained network gains, as a table: the puppet beside teacher and student, on frames that no step saw."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from engine.types import AvatarError, UInt8Array
from tests.conftest import require

pytestmark = pytest.mark.torch
require("torch")
require("diffusers")
require("accelerate")

from benchmarks import trained  # noqa: E402
from engine.generators.diffusion import networks as weights_of  # noqa: E402
from engine.generators.diffusion import presets  # noqa: E402
from engine.picture import read_picture  # noqa: E402
from exporters.data.regions import psnr  # noqa: E402
from exporters.training.batches import SILENCE, Batches  # noqa: E402
from exporters.training.judge import held_out, real  # noqa: E402
from exporters.training.keep import seen_by  # noqa: E402
from tests.test_train import data as waves  # noqa: E402
from tests.test_train import networks  # noqa: E402


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    weights_of.save(networks(), tmp_path / "w", origin={"steps": "2"})
    return tmp_path / "w"


def test_every_contender_has_its_row_and_the_puppets_is_the_puppets(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = waves.__wrapped__()  # type: ignore[attr-defined]
    monkeypatch.setattr(trained, "open_dataset", lambda folder: data)
    words = ["nowhere", "--weights", str(weights), "--teacher", str(weights), "--teacher-steps", "3", "--steps", "1", "2"]
    assert trained.main([*words, "--strip", str(tmp_path / "strip.png"), "--json", str(tmp_path / "made.json")]) == 0
    rows = json.loads((tmp_path / "made.json").read_text())["rows"]
    assert [(row["name"], row["evaluations"]) for row in rows] == [
        ("puppet", 0),
        ("teacher, 3 steps", 3),
        ("student, 1 step", 1),
        ("student, 2 steps", 2),
    ]
    runs = held_out(Batches(data, seed=0, channels=3, depth=8), seen_by(data), all_of_it=True)
    puppet = psnr(runs[0].puppet, real(runs))
    assert rows[0]["crop_db"] == pytest.approx(puppet, abs=0.01)
    assert rows[1]["crop_db"] < puppet, "random weights only spoil it"
    assert (rows[0]["flicker"], rows[0]["lips_off"]) == (0, None), "no tracker sees a face in waves"
    assert read_picture(tmp_path / "strip.png").shape == (5 * trained.TILE, (len(trained.JAWS) + 2) * trained.TILE, 3)


def test_a_drive_that_holds_still_has_nothing_of_the_clips_motion(weights: Path) -> None:
    data = waves.__wrapped__()  # type: ignore[attr-defined]
    run = held_out(Batches(data, seed=0, channels=3, depth=8), seen_by(data), all_of_it=True)[0]
    still = trained._held_still(run)
    pictures: UInt8Array = still.puppet
    assert len(pictures) == len(still.batch.coarse) == trained.STILL
    assert (pictures == run.puppet[:1]).all()
    assert (still.batch.coarse.numpy() == run.puppet[:1]).all()
    assert float(still.batch.speech.max()) == SILENCE


def test_weights_of_another_size_are_refused(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = waves.__wrapped__()  # type: ignore[attr-defined]
    monkeypatch.setattr(trained, "open_dataset", lambda folder: replace(data, size=(64, 64)))
    monkeypatch.setattr(trained, "held_out", lambda *given, **more: held_out(Batches(data, seed=0, depth=8), seen_by(data), all_of_it=True))
    with pytest.raises(AvatarError, match="another size"):
        trained.main(["nowhere", "--weights", str(weights)])
    assert presets.TINY.size != (64, 64)
