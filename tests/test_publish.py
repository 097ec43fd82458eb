"""What a training run leaves for others: weights that land whole and say their steps, and a folder that is one run's alone."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.types import AvatarError
from tests.conftest import require

pytestmark = pytest.mark.torch
require("torch")
require("diffusers")
require("accelerate")

from engine import serving  # noqa: E402
from engine.backends import engines  # noqa: E402
from engine.generators.diffusion import networks as weights_of  # noqa: E402
from engine.generators.diffusion import presets  # noqa: E402
from exporters import options  # noqa: E402
from exporters.data import storage  # noqa: E402
from exporters.training import command, runs, train  # noqa: E402
from tests.test_train import QUICK  # noqa: E402
from tests.test_train import data as waves  # noqa: E402


def written(folder: Path, seed: int = 0, *, origin: dict[str, str] | None = None) -> None:
    weights_of.save(weights_of.build(presets.TINY, seed=seed), folder, origin={"made_by": "test", **(origin or {})})


@pytest.mark.parametrize(
    ("origin", "steps"),
    [({}, presets.TINY.steps), ({"steps": "1"}, 1), ({"steps": "4"}, 4), ({"steps": "20", "made_for": "20 steps"}, presets.TINY.steps)],
    ids=["unknown", "student of 1", "student of 4", "teacher"],
)
def test_a_student_takes_the_steps_it_was_trained_for(origin: dict[str, str], steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself, everywhere: in the generator, in an export, and where an engine is looked for. A teacher's are too many to live by."""
    from engine.generators import load
    from exporters.graphs.subject_diffusion import recipe_of

    written(tmp_path / "w", origin=origin)
    assert load("diffusion", weights=tmp_path / "w").steps == steps  # type: ignore[attr-defined]
    assert len(recipe_of(tmp_path / "w")[0].levels) == steps
    asked = list[int]()

    def find(weights: Path, name: str, *, steps: int, **told: Any) -> engines.Search:
        asked.append(steps)
        return engines.Search(weights, name, steps, None, ())

    monkeypatch.setattr(serving, "_cuda", lambda: True)
    monkeypatch.setattr(engines, "find", find)
    serving.choose("diffusion", {"weights": tmp_path / "w"})
    assert asked == [steps]


def failing(after: Callable[[Path], None]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        after(folder)
        raise OSError(28, "No space left on device")

    return write


def test_weights_land_whole_or_the_earlier_ones_stay(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    train._publish(weights, lambda folder: written(folder, 1))
    first = engines.origin_of(weights)
    with pytest.raises(AvatarError, match="the checkpoint is kept: make room"):
        train._publish(weights, failing(lambda folder: written(folder, 2)))
    assert engines.origin_of(weights) == first
    assert weights_of.load(weights).origin == first
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_engines_of_the_same_weights_stay_beside_them_and_others_go(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    train._publish(weights, lambda folder: written(folder, 1))
    (weights / engines.HOME / "openvino-1").mkdir(parents=True)
    train._publish(weights, lambda folder: written(folder, 1))
    assert (weights / engines.HOME / "openvino-1").is_dir()
    train._publish(weights, lambda folder: written(folder, 2))
    assert not (weights / engines.HOME).exists()


def test_a_run_has_its_folder_for_itself(tmp_path: Path) -> None:
    with (
        storage.alone(tmp_path / "run", doing="training in"),
        pytest.raises(AvatarError, match="Something else is training in"),
        storage.alone(tmp_path / "run", doing="training in"),
    ):
        pass
    with storage.alone(tmp_path / "run", doing="training in"):
        pass


def test_the_log_is_there_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = runs.Log(tmp_path, updates=0)
    for update in range(4):
        log(update, loss=1.0)

    def full(self: Path, *given: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        runs.Log(tmp_path, updates=2)
    assert [json.loads(line)["update"] for line in (tmp_path / runs.LOG).read_text().splitlines()] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["--recipe", "matching"], "learns from a teacher"),
        (["--recipe", "consistency", "--teacher", "nowhere"], "holds no weights of this engine"),
        (["--start", "{w}", "--preset", "compact"], "are for the preset 'tiny', not 'compact'"),
        (["--steps", "0"], "1 to 1000 denoising steps"),
        (["--rate", "nan"], "learning rate must be above 0"),
        (["--device", "abacus"], "abacus"),
        (["--learn", "temporal", "--longest", "1"], "give --longest 2 or more"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_what_cannot_be_trained_is_said_before_a_clip_is_opened(given: list[str], complaint: str, tmp_path: Path) -> None:
    written(tmp_path / "w")
    parser = argparse.ArgumentParser()
    options.add_train(parser)
    asked = parser.parse_args(["--video", "none.mp4", "--out", str(tmp_path / "out"), *(one.format(w=tmp_path / "w") for one in given)])
    with pytest.raises(AvatarError, match=complaint):
        command.teach(asked.video, asked.out, asked, tell=lambda text: None)
    assert not (tmp_path / "out").exists()


def test_the_critic_stays_once_it_has_joined(tmp_path: Path) -> None:
    """However much longer the run is made afterwards."""
    data = waves.__wrapped__()  # type: ignore[attr-defined]
    for updates, budget in ((7, 10), (9, 15)):

        def stop(report: train.Report, last: int = updates) -> None:
            if report.updates == last:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train.train(data, tmp_path, budget=train.Budget(updates=budget), settings=QUICK, device="cpu", progress=stop)
    log = [json.loads(line) for line in (tmp_path / runs.LOG).read_text().splitlines()]
    assert [line["update"] for line in log if "critic" in line] == [6, 7, 8]


def test_a_run_that_loses_its_numbers_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And keeps its last good checkpoint."""
    data = waves.__wrapped__()  # type: ignore[attr-defined]
    train.train(data, tmp_path, budget=train.Budget(updates=2), settings=QUICK, device="cpu")
    before = (tmp_path / runs.CHECKPOINT).read_bytes()
    monkeypatch.setattr("accelerate.Accelerator.clip_grad_norm_", lambda self, parameters, norm: float("nan"))
    with pytest.raises(AvatarError, match="The loss is no number any more at update 2; remove .* train again with a lower --rate than 0.003"):
        train.train(data, tmp_path, budget=train.Budget(updates=4), settings=QUICK, device="cpu")
    assert (tmp_path / runs.CHECKPOINT).read_bytes() == before
