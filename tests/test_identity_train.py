"""Training with a recogniser: what it takes part in, what it makes better, and what a run must have the same to go on."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.recogniser import MARKS, SIDE, TEMPLATE
from engine.types import AvatarError, FloatArray
from exporters.options import add_train
from tests.conftest import require
from tests.recognisers import onnx_file

pytestmark = pytest.mark.torch
for part in ("torch", "onnx", "onnxruntime", "diffusers"):
    require(part)

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from engine.generators.diffusion.autoencoder import to_pixels  # noqa: E402
from engine.generators.diffusion.trust import Trust  # noqa: E402
from exporters.data.dataset import Clip, Dataset  # noqa: E402
from exporters.training import command, runs  # noqa: E402
from exporters.training.batches import Batch, Batches, Pattern  # noqa: E402
from exporters.training.identity import IdentityLoss, align, whole  # noqa: E402
from exporters.training.judge import Figures, Judged, alikeness, held_out  # noqa: E402
from exporters.training.learner import Settings, Teach  # noqa: E402
from exporters.training.losses import Weights  # noqa: E402
from exporters.training.objectives import Appearance  # noqa: E402
from exporters.training.train import Budget, train  # noqa: E402
from tests.test_train import SIZE, networks, waves  # noqa: E402

FRAMES, TAUGHT = 40, 28
QUICK = Settings(preset="tiny", patterns=(Pattern(3, 1), Pattern(1, 4)), rate=3e-3, average=0.9, weights=Weights(critic=0.0))


def face(left: float, top: float, side: float) -> FloatArray:
    """Points [478, 2] px whose aligned square is there."""
    points = np.tile(np.array([left + side / 2, top + side / 2], np.float32), (478, 1))
    for marks, place in zip(MARKS, TEMPLATE, strict=True):
        points[list(marks)] = place * side / SIDE + (left, top)
    return points


def dataset(side: float = 24.0) -> Dataset:
    """A clip whose real face is another than the puppet's, in a square of `side` px in the middle of the picture."""
    coarse = np.stack([waves(t, 0.0) for t in range(FRAMES)])
    truth = np.stack([waves(t + 9, 60.0) for t in range(FRAMES)])
    speech = np.full((FRAMES, 16, 80), -10.0, np.float32)
    faces = np.stack([face((SIZE[1] - side) / 2, (SIZE[0] - side) / 2, side)] * FRAMES)
    motion = np.linspace(1, 2, FRAMES)[:, None].repeat(16, 1).astype(np.float32)
    spans: Any = [(0, TAUGHT)], [(TAUGHT + 4, FRAMES)]
    clip = Clip("waves", truth, coarse, np.zeros_like(coarse), faces, speech, motion, faces, np.ones(FRAMES, bool), *spans)
    return Dataset(Path("nowhere"), SIZE, 25, coarse[0], [(20.0, coarse[9])], [clip], {"key": "waves"})


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_file(tmp_path_factory.mktemp("recogniser") / "a.onnx")


def run(out: Path, updates: int, recogniser: Path | None, *, weight: float = 0.1) -> tuple[Judged, list[dict[str, float]]]:
    """Train for so many updates -> the figures, the log."""
    settings = replace(QUICK, weights=replace(QUICK.weights, identity=weight))
    judged = train(dataset(), out, budget=Budget(updates=updates), settings=settings, recogniser=recogniser, device="cpu")
    return judged, [json.loads(line) for line in (out / runs.LOG).read_text().splitlines()]


def test_a_part_of_a_picture_knows_where_its_face_lies() -> None:
    """And whose face a part has cut off is not judged there."""
    for side, seen in ((12.0, {True, False}), (24.0, {False})):
        found = []
        for step in range(8):
            full, part = (Batches(dataset(side), seed=0, depth=8, patterns=(Pattern(6, 1, halved=half),)).at(step) for half in (False, True))
            assert whole(full.fits, SIZE).all()
            inside = whole(part.fits, (SIZE[0] // 2, SIZE[1] // 2))
            assert torch.allclose(align(part.truth, part.fits)[inside], align(full.truth, full.fits)[inside], atol=0.1)
            found += inside.tolist()
        assert set(found) == seen


def test_a_frame_without_a_face_is_not_judged() -> None:
    data = dataset()
    data.clips[0].face[3] = np.nan
    batch = Batches(data, seed=0, depth=8).take(0, 2, 5)
    assert whole(batch.fits, SIZE).tolist() == [True, False, True]


def test_the_loss_is_one_of_the_terms_and_reaches_what_was_made(recogniser: Path) -> None:
    """Beside whatever else is taught, by its weight; without a weight it costs no picture."""
    batch = Batches(dataset(), seed=0, depth=8).take(0, 0, 2)
    made, shown = torch.zeros_like(batch.truth, requires_grad=True), list[bool]()

    class Nothing:
        def loss(self, networks: Any, batch: Batch, step: int) -> Any:
            def show() -> Tensor:
                shown.append(True)
                return made

            return {}, show

    identity = IdentityLoss(recogniser)
    taught = Teach(networks(), Nothing(), Weights(critic=0.0, identity=0.5), seed=0, identity=identity)
    terms, judged = taught(batch, 0, texture=True)
    assert judged is None
    assert float(terms["identity"].detach()) == pytest.approx(0.5 * float(identity(made, batch.truth, batch.fits).detach()))
    terms["identity"].backward()
    assert made.grad is not None
    assert (made.grad.abs().sum((1, 2, 3)) > 0).all()
    assert not any(name.startswith("_identity") for name in taught.state_dict())
    shown.clear()
    assert Teach(networks(), Nothing(), Weights(critic=0.0, identity=0.0), seed=0, identity=identity)(batch, 0, texture=True) == ({}, None)
    assert not shown


def test_a_network_learns_from_it_alone(recogniser: Path) -> None:
    """A short overfit of one batch, with no other term."""
    batch = Batches(dataset(), seed=0, depth=8).take(0, 0, 2)
    whole_loss = Appearance(1, QUICK.weights, 0)

    class Only:
        def loss(self, networks: Any, batch: Batch, step: int) -> Any:
            return {}, whole_loss.loss(networks, batch, step)[1]

    taught = Teach(networks().requires_grad_(True), Only(), Weights(critic=0.0, identity=1.0), seed=0, identity=IdentityLoss(recogniser))
    optimiser = torch.optim.Adam(taught.parameters(), 3e-3)
    told = []
    for step in range(12):
        loss = taught(batch, step, texture=False)[0]["identity"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        told.append(float(loss.detach()))
    assert told[-1] < 0.5 * told[0]


def test_a_run_measures_by_it_and_learns_from_it_by_its_weight(recogniser: Path, tmp_path: Path) -> None:
    learnt, log = run(tmp_path / "learnt", 2, recogniser, weight=0.5)
    measured, plain = run(tmp_path / "measured", 2, recogniser, weight=0.0)
    assert log[0]["identity"] > 0
    assert "identity" not in plain[0]
    for judged in (learnt, measured):
        assert judged.puppet.identity is not None
        assert judged.puppet.identity == measured.puppet.identity
        assert all(one.identity is not None and -1 <= one.identity <= 1 for one in judged.made.values())
    assert learnt.made[2].identity != measured.made[2].identity


def test_figures_are_of_the_faces(recogniser: Path) -> None:
    """The truth itself is the person; a picture that is right around the face alone is not."""
    held = held_out(Batches(dataset(), seed=0, depth=8), Trust.of(dataset().clips[0].motion))
    truth = [to_pixels(one.batch.truth).numpy() for one in held]
    around = [pictures.copy() for pictures in truth]
    for pictures in around:
        pictures[:, 4:28, 12:36] = pictures[:, 4:28, 12:36, ::-1]
    right, wrong = alikeness([truth, around], held, IdentityLoss(recogniser))
    assert right == pytest.approx(1.0, abs=1e-3)
    assert wrong is not None
    assert wrong < 0.99


def test_without_a_recogniser_nothing_is_said_of_it(tmp_path: Path) -> None:
    judged, log = run(tmp_path, 1, None)
    assert judged.puppet.identity is None
    assert "identity" not in log[0]


def test_a_run_goes_on_with_the_same_recogniser_alone(recogniser: Path, tmp_path: Path) -> None:
    _, whole_log = run(tmp_path / "whole", 2, recogniser)
    run(tmp_path / "parts", 1, recogniser)
    moved = tmp_path / "moved.onnx"
    moved.write_bytes(recogniser.read_bytes())
    for other in (onnx_file(tmp_path / "b.onnx", 1), None):
        with pytest.raises(AvatarError, match="other settings .*recogniser"):
            run(tmp_path / "parts", 2, other)
    _, log = run(tmp_path / "parts", 2, moved)
    assert [one["loss"] for one in log] == [one["loss"] for one in whole_log]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--identity", "0.1"], "needs a recogniser and a weight"),
        (["--recogniser", "a.onnx", "--identity", "-1"], "needs a recogniser and a weight"),
        (["--recogniser", "none.onnx"], "recogniser 'none.onnx' cannot be read"),
    ],
)
def test_the_command_refuses_before_it_collects(given: list[str], said: str, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_train(parser)
    options = parser.parse_args(["--video", "none.mp4", "--out", str(tmp_path / "out"), *given])
    with pytest.raises(AvatarError, match=said):
        command.teach(options.video, options.out, options, tell=lambda text: None)
    assert not (tmp_path / "out").exists()


def test_the_command_says_how_like_the_faces_are() -> None:
    puppet = Figures(20.0, 20.0, 25.0, 1.0, 0.61)
    said = command._recognised(Judged(puppet, {2: replace(puppet, identity=0.755), 1: replace(puppet, identity=0.7)}))
    assert said == "Held-out faces to the recogniser, 1 for the person: puppet 0.610, 1 step 0.700, 2 steps 0.755."
    none = replace(puppet, identity=None)
    assert "no whole face" in command._recognised(Judged(none, {1: none}))
