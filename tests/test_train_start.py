"""What a run of training begins with and learns from: weights that belong together, in whatever precision they lie on the disk."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import avatar
from tests.conftest import require
from tests.test_train import QUICK, SIZE, data  # noqa: F401

pytestmark = pytest.mark.torch
require("torch")
require("diffusers")
require("transformers")
require("accelerate")


from engine.generators.diffusion import networks as weights_of  # noqa: E402
from engine.generators.diffusion.presets import preset  # noqa: E402
from exporters.data.dataset import Dataset  # noqa: E402
from exporters.training.batches import Batches  # noqa: E402
from exporters.training.learner import Learner  # noqa: E402
from tests.networks import seeded  # noqa: E402


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the tiny preset, with and without a face's tokens."""
    root = tmp_path_factory.mktemp("weights")
    for name in ("tiny", "tiny+faceid"):
        weights_of.save(seeded(preset(name)), root / name, origin={})
    return root


REFUSED = {
    "nothing": (["--preset", "animate_anyone_face"], "goes on from imported weights, whose autoencoder it keeps: give their folder with --start"),
    "face": (["--preset", "unianimate+faceid"], r"'unianimate' is of whole clips, and reads no face's tokens but its own; leave \+faceid out"),
    "unknown": (["--preset", "huge"], "no preset called 'huge'; choose one of: animate_anyone, .*, tiny, .*, vividpose_xt"),
    "teacher": (
        ["--start", "{}/tiny", "--recipe", "consistency", "--teacher", "{}/tiny+faceid"],
        r"for the preset 'tiny\+faceid', not 'tiny'; give others",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_belong_together_is_one_sentence(name: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, told = REFUSED[name]
    assert avatar.main(["train", "--video", "x.mp4", "--out", str(tmp_path / "out"), *[word.format(weights) for word in words]]) == 2
    said = capsys.readouterr().err
    assert re.search(told, said)
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("recipe", ["consistency", "matching"])
def test_a_teacher_in_half_precision_teaches_as_any_other(data: Dataset, weights: Path, tmp_path: Path, recipe: Any) -> None:  # noqa: F811
    """As `avatar import --precision fp16` writes them."""
    weights_of.save(weights_of.load(weights / "tiny").half(), tmp_path, origin={})
    settings = replace(QUICK, recipe=recipe, steps=2)
    taught = Learner(settings, SIZE, start=weights / "tiny", teacher=tmp_path, device="cpu")
    told = taught.update([(0, Batches(data, seed=0, depth=8, patterns=settings.patterns).at(0))], 0, texture=False)
    assert all(math.isfinite(one) for one in told.values())
