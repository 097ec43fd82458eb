"""Where a student of whole clips is led: towards its teacher, and by the poses of the very frames that it is compared with."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import require

pytestmark = pytest.mark.torch
require("torch")
require("diffusers")
require("transformers")
require("accelerate")
require("onnxruntime")

import torch  # noqa: E402

from exporters.data.dataset import Dataset  # noqa: E402
from exporters.training.identity import IdentityLoss  # noqa: E402
from exporters.training.learner import Learner  # noqa: E402
from exporters.training.losses import Weights  # noqa: E402
from exporters.training.objectives import matching_gradient  # noqa: E402
from exporters.training.whole import objectives  # noqa: E402
from exporters.training.whole.matching import Matching  # noqa: E402
from exporters.training.whole.pupils import goal  # noqa: E402
from tests.recognisers import onnx_file  # noqa: E402
from tests.test_identity_train import face  # noqa: E402
from tests.test_train_whole import CASES, QUICK, SIZE, data, learner  # noqa: E402, F401


@pytest.mark.parametrize("system", CASES)
def test_a_chunk_is_compared_with_the_frames_of_its_poses(data: Dataset, system: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    made, batches = learner(data, **CASES[system], recipe="appearance", steps=1)
    lesson: Any = made.lesson
    rolls, networks, calls, roll = lesson.rolls, made.networks, list[None](), objectives.rolled

    def counted(*given: Any, **more: Any) -> Any:
        calls.append(None)
        return roll(*given, **more)

    monkeypatch.setattr(objectives, "rolled", counted)
    past, new, seen = rolls.past, rolls.new, set[int]()
    for step in range(8):
        calls.clear()
        batch = batches.at(step)
        lesson.read(batch)
        with torch.no_grad():
            one = rolls(networks, batch, step)
        own, start = len(calls) - 1, one.at.start
        seen.add(own)
        poses = batch.coarse.numpy()[None]
        assert (start, one.at.stop - start) == (past + own * new if own else 0, new)
        assert torch.equal(one.truth, lesson.desk.truth(networks, batch)[:, one.at])
        assert np.array_equal(one.conditions[:, past:], poses[:, one.at])
        before = poses[:, start - past : start]
        if not own:  # the portrait, standing still
            still = lesson.desk.references[batch.view].condition
            still = still if system == "unianimate" else np.concatenate([still[..., :3], poses[0, 0, ..., 3:]], 2)
            before = np.broadcast_to(still, (1, past, *still.shape))
        assert np.array_equal(one.conditions[:, :past], before)
    assert 0 in seen
    assert len(seen) > 1


def test_matching_leads_from_the_follower_to_the_teacher() -> None:
    mine = torch.zeros(2, 3, 4, 4)
    assert (mine - matching_gradient(mine, mine + 0.5, mine - 0.5) > 0).all()


class Fixed:
    """Rolls that made one and the same chunk."""

    def __init__(self, rolls: Any, made: Any) -> None:
        self.desk, self.new, self.seed, self._made = rolls.desk, rolls.new, rolls.seed, made

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self._made


@pytest.mark.parametrize("system", CASES)
def test_a_student_goes_where_its_teacher_is_and_its_follower_is_not(data: Dataset, system: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    made, batches = learner(data, **CASES[system], recipe="appearance", steps=1)
    lesson: Any = made.lesson
    batch = batches.at(0)
    lesson.read(batch)
    chunk = lesson.rolls(made.networks, batch, 0)
    found = chunk.found.detach().requires_grad_()
    fixed: Any = Fixed(lesson.rolls, objectives.Rolled(found, chunk.truth, chunk.past, chunk.conditions, chunk.at))
    judge = Matching(copy.deepcopy(made.networks), fixed)

    def said(networks: Any, batch: Any, made: Any, level: Any, x: Any, **_: Any) -> Any:
        off = 0.5 if networks is judge.teacher else -0.5
        return goal(level, 0, x, torch.cat([made.past, found.detach() + off], 1))

    monkeypatch.setattr(judge, "_said", said)
    judge.loss(made.networks, batch, 0)[0]["matching"].backward()
    assert found.grad is not None
    assert (found.grad < 0).all(), "a step down the gradient is a step towards the teacher"


@pytest.mark.parametrize("system", CASES)
def test_a_follower_that_knows_what_the_student_makes_has_learnt_all(data: Dataset, system: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    made, batches = learner(data, **CASES[system], recipe="appearance", steps=1)
    lesson: Any = made.lesson
    batch = batches.at(0)
    lesson.read(batch)
    judge, losses = Matching(copy.deepcopy(made.networks), lesson.rolls), list[float]()
    for off in (0.0, 1.0):

        def said(networks: Any, batch: Any, made: Any, level: Any, x: Any, off: float = off, **_: Any) -> Any:
            assert networks is judge.follower
            return goal(level, 0, x, torch.cat([made.past, made.found + off], 1))

        monkeypatch.setattr(judge, "_said", said)
        losses.append(float(judge.follow(made.networks, batch, 3)))
    assert losses[0] < 1e-9
    assert losses[1] > 1e-3


@pytest.mark.parametrize("recipe", ["teacher", "appearance"])
@pytest.mark.parametrize("system", CASES)
def test_the_faces_that_were_made_are_judged_and_no_others(data: Dataset, system: str, recipe: Any, tmp_path: Path, monkeypatch: Any) -> None:  # noqa: F811
    (clip,) = data.clips
    faced = replace(data, clips=[replace(clip, face=np.stack([face(8, 2, 28)] * len(clip.face)))])
    settings = replace(QUICK, **CASES[system], recipe=recipe, steps=1, weights=Weights(identity=0.5))
    made = Learner(settings, SIZE, start=None, teacher=None, device="cpu", recogniser=onnx_file(tmp_path / "faces.onnx", length=512))
    lesson: Any = made.lesson
    batches, judged, before = lesson.batches(faced), list[Any](), IdentityLoss.__call__

    def spy(self: IdentityLoss, *given: Any) -> Any:
        judged.append(given)
        return before(self, *given)

    monkeypatch.setattr(IdentityLoss, "__call__", spy)
    batch = batches.at(1)
    told = made._backward(batch, 1, 1.0, texture=False)
    assert told["identity"] > 0
    ((shown, truth, fits),) = judged
    changed = (shown.detach() != truth).flatten(1).any(1)
    new = batch.frames if recipe == "teacher" else lesson.rolls.new
    assert changed.sum() == new
    assert torch.equal(torch.isfinite(fits).flatten(1).all(1), changed)
    assert bool(shown.requires_grad)
