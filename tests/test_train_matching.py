"""Matching, frame by frame: a student goes where its teacher is and its follower is not."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import require

pytestmark = pytest.mark.torch
require("torch")
require("diffusers")


from engine.generators.diffusion.sampler import LEVELS, levels  # noqa: E402
from exporters.data.dataset import Dataset  # noqa: E402
from exporters.training import objectives  # noqa: E402
from exporters.training.batches import Batches  # noqa: E402
from tests.test_train import data, networks  # noqa: E402, F401


def test_a_student_is_led_from_its_follower_to_its_teacher(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    student, batch = networks(), Batches(data, seed=0, depth=8).take(0, 0, 2)
    judge, mine = objectives.Matching(networks(), steps=2, seed=0), objectives.encode(student, batch).requires_grad_()
    path = levels(student.preset.noise, LEVELS)

    def answer(one: Any, view: Any, x: Any, t: Any) -> Any:
        """The velocity that says that the latents are the student's, moved up by the teacher and down by the follower."""
        index = (t[:, None] - path.t).abs().argmin(1)
        alpha, sigma = (share[index].view(-1, 1, 1, 1) for share in (path.alpha, path.sigma))
        clean = mine.detach() + (0.5 if one is judge.teacher else -0.5)
        return (alpha * x - clean) / sigma

    assert student.preset.noise.prediction == "v"
    monkeypatch.setattr(objectives, "rollout", lambda *_, **__: mine)
    monkeypatch.setattr(objectives, "scene", lambda *_: None)
    monkeypatch.setattr(objectives, "answer", answer)
    judge.loss(student, batch, 0)[0]["matching"].backward()
    assert mine.grad is not None
    assert (mine.grad < 0).all()
    assert float(judge.follow(student, batch, 0).detach()) == pytest.approx(0.25, rel=1e-3), "the square of what the follower's answer is off by"
