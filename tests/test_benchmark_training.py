"""The training benchmark: what it times, and whether the memory that it reckons is the memory that is taken."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.generators.diffusion.presets import ANIMATE_ANYONE, TINY, Preset
from tests.conftest import require

pytestmark = pytest.mark.torch
require("torch")
require("diffusers")
require("accelerate")

import torch  # noqa: E402

from benchmarks import training, training_room  # noqa: E402
from exporters.training import memory  # noqa: E402
from exporters.training.batches import PATTERNS, Pattern  # noqa: E402
from exporters.training.learner import Learner, Settings  # noqa: E402
from exporters.training.lesson import chosen  # noqa: E402
from exporters.training.objectives import Denoise  # noqa: E402

ROOT = Path(__file__).parent.parent
UNINSTALLED = ("cv2", "av", "mediapipe", "numba", "transformers", "librosa", "onnxruntime", "matplotlib")
LAYOUT = replace(ANIMATE_ANYONE, size=(192, 192), unet=replace(ANIMATE_ANYONE.unet, channels=(64, 64, 128, 128)))
"""Of the published weights, a fifth as wide at the top and a tenth below."""
SETTINGS = Settings(recipe="teacher", reference=True)


def taken(made: Preset, pattern: Pattern, settings: Settings, *, again: bool) -> float:
    """Bytes at the highest of one batch, at full width and size."""
    networks = chosen(training_room.trainable(made, "cpu"), settings)
    if made.latent != "pixel":
        networks.autoencoder = memory.Shrink(made)
    memory.recomputed(networks, again)
    batch, objective = training_room.random_batch(made, pattern, "cpu"), Denoise(settings.weights, 0)
    return float(training_room._peak(lambda: sum(objective.loss(networks, batch, 0)[0].values()), settings, networks))


def test_a_batch_takes_what_was_reckoned_from_a_narrow_and_small_one() -> None:
    """Twice as many cells, 8 times as many channels. What is computed again takes less, and so does bf16."""
    pattern = Pattern(1, 2)
    kept, again = (training_room.through_networks(LAYOUT, SETTINGS, pattern, again=again) for again in (False, True))
    assert kept == pytest.approx(taken(LAYOUT, pattern, SETTINGS, again=False), rel=0.2)
    assert again == pytest.approx(taken(LAYOUT, pattern, SETTINGS, again=True), rel=0.2)
    assert again < 0.5 * kept
    assert training_room.through_networks(LAYOUT, replace(SETTINGS, precision="bf16"), pattern, again=False) < 0.8 * kept


def test_a_small_preset_is_reckoned_at_its_own_width() -> None:
    made, pattern = replace(TINY, size=(96, 96)), Pattern(2, 2)
    reckoned = training_room.through_networks(made, SETTINGS, pattern, again=False)
    assert reckoned == pytest.approx(taken(made, pattern, SETTINGS, again=False), rel=0.1)


def test_what_stays_is_counted() -> None:
    """Of the published layout: two networks of 860 million parameters, 454 million of motion, and encoders that do not learn."""
    rooms = {}
    for learn in ("all", "temporal"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training_room, "through_networks", lambda *args, **more: 0.0)
            rooms[learn] = training_room.room(ANIMATE_ANYONE, replace(SETTINGS, learn=learn), Pattern(1, 1))
    every, motion = rooms["all"], rooms["temporal"]
    assert every.weights / 4e9 == pytest.approx(0.8595 + 0.8595 + 0.4544 + 0.0011 + 0.0837 + 0.3040, rel=0.005)
    assert motion.weights == every.weights
    assert motion.gradients / 4 == pytest.approx(454.4e6, rel=0.005)
    assert every.gradients / 4 == pytest.approx(2 * 859.5e6 + 454.4e6 + 1.1e6, rel=0.005)
    assert (motion.adam, motion.average) == (2 * motion.gradients, motion.gradients)


def test_tensors_that_are_gone_do_not_count() -> None:
    with memory.Peak() as peak:
        for _ in range(5):
            held = torch.zeros(1000)
        assert held.numel() == 1000
    assert 4000 <= peak.most <= 8000
    assert peak.now == 4000


def test_the_benchmark_times_every_kind_of_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--preset", "tiny", "--device", "cpu", "--longest", "2", "--precisions", "no", "--seconds", "0", "--json", str(tmp_path / "made.json")]
    assert training.main(words) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    told = json.loads(line)
    assert told == json.loads((tmp_path / "made.json").read_text())
    assert [way["recipe"] for way in told["ways"]] == ["teacher", "appearance"]
    assert all(way["updates_s"] > 0 and way["peak_gb"] > 0.05 for way in told["ways"])
    rows = [row for row in told["rows"] if row["recipe"] == "teacher"]
    assert {row["critic"] for row in rows} == {True, False}
    assert {(row["rows"], row["frames"]) for row in rows} == {(one.rows, min(one.frames, 2)) for one in PATTERNS}
    slowest, fastest = (pick(1 / row["seconds"] for row in rows) for pick in (min, max))
    assert slowest <= told["ways"][0]["updates_s"] * 1.01
    assert told["ways"][0]["updates_s"] <= fastest * 1.01


def test_a_kind_that_does_not_fit_leaves_the_others(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    whole = Learner.update

    def update(self: Learner, parts: Any, number: int, *, texture: bool) -> dict[str, float]:
        if parts[0][1].rows == PATTERNS[0].rows:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(self, parts, number, texture=texture)

    monkeypatch.setattr(Learner, "update", update)
    words = ["--preset", "tiny", "--device", "cpu", "--longest", "1", "--precisions", "no", "--seconds", "0", "--recipes", "teacher"]
    assert training.main(words) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {row["error"] for row in told["rows"]} == {None, "CUDA out of memory."}
    assert told["ways"][0]["updates_s"] is None


def test_it_needs_no_camera_no_tracker_and_no_video() -> None:
    blocked = f"import sys; sys.modules.update(dict.fromkeys({UNINSTALLED}, None)); import benchmarks.training"
    made = subprocess.run([sys.executable, "-c", blocked], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
