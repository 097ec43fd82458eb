"""A student of whole clips that a teacher's distribution draws (DMD2, Yin et al. 2024, arXiv 2405.14867, as Self-Forcing rolls it,
arXiv 2506.08009): as `exporters.training.objectives.Matching`, of the new frames of a stream's window."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.generators.video.rolling import Steps
from exporters.training.batches import Batch
from exporters.training.objectives import Show, Terms, matching_gradient, seeded
from exporters.training.whole.objectives import Rolled, Rolls, shown_among
from exporters.training.whole.pupils import goal

LEARN = ("denoiser", "reference")
"""Parts of the follower that learn, where there are such."""


class Matching(nn.Module):
    """Teacher and follower see the student's window under one noise, the past too; its new frames are compared."""

    def __init__(self, teacher: Any, rolls: Rolls) -> None:
        """`teacher`: networks of the student's system."""
        super().__init__()
        self.teacher = teacher.eval().requires_grad_(False)
        learns = [part for name, part in teacher.named_children() if name in LEARN]
        own = {id(one) for part in learns for one in part.parameters()}
        shared = {id(one): one for one in teacher.parameters() if id(one) not in own}
        self.follower = copy.deepcopy(teacher, shared).train()
        for name, part in self.follower.named_children():
            part.requires_grad_(name in LEARN)
        self.rolls = rolls

    def loss(self, networks: Any, batch: Batch, step: int) -> tuple[Terms, Show]:
        """As `objectives.Objective`."""
        made, pupil = self.rolls(networks, batch, step), self.rolls.desk.pupil
        mine = made.found.detach()
        with torch.no_grad():
            level, x, _ = self._noisy(made, batch, step)
            said = [self._said(self.teacher, batch, made, level, x, guidance=pupil.guidance), self._said(self.follower, batch, made, level, x)]
            theirs, followed = (level.clean(0, x, one)[:, -self.rolls.new :].flatten(0, 1) for one in said)
            push = matching_gradient(mine.flatten(0, 1), theirs, followed).view_as(mine)
        loss = 0.5 * functional.mse_loss(made.found, mine - push)
        return {"matching": loss}, lambda: shown_among(pupil, networks, batch, made)

    def follow(self, networks: Any, batch: Batch, step: int) -> Tensor:
        """What the follower learns from: to denoise what the student makes."""
        with torch.no_grad():
            made = self.rolls(networks, batch, step, exit=self.rolls.steps - 1)
        level, x, clean = self._noisy(made, batch, step)
        said, new = self._said(self.follower, batch, made, level, x), self.rolls.new
        return functional.mse_loss(said[:, -new:], goal(level, 0, x, clean)[:, -new:])

    def _noisy(self, made: Rolled, batch: Batch, step: int) -> tuple[Steps, Tensor, Tensor]:
        """(a level, a window at it, the window without noise)"""
        generator, pupil = seeded(self.rolls.seed + 1, step), self.rolls.desk.pupil
        level, clean = pupil.drawn(generator, inner=True), torch.cat([made.past, made.found.detach()], 1)
        noise = torch.stack([pupil.noise(tuple(clean.shape[1:]), generator) for _ in range(batch.rows)]).to(clean)
        return level, level.noised(0, clean, noise), clean

    def _said(self, networks: Any, batch: Batch, made: Rolled, level: Steps, x: Tensor, *, guidance: float = 1.0) -> Tensor:
        """The answer for a window."""
        pupil, told = self.rolls.desk.pupil, self.rolls.desk.told(networks, batch)
        said = pupil.call(networks, told, level, made.conditions)(0, x)
        if guidance == 1.0:
            return said
        blind = pupil.call(networks, told, level, made.conditions, dropped=True)(0, x)
        return blind + guidance * (said - blind)


__all__ = ["Matching"]
