"""What a network of whole clips is taught: to denoise a window (the teacher), and to make new frames in a few steps as they are streamed.

The student rolls as `engine.generators.video.rolling` streams: a window of which the first frames are past and only the last are new. Its own
steps lead to what it is judged by, and gradients pass through the last of them alone (Self-Forcing, arXiv 2506.08009; the exit step is drawn
evenly). The past is what the student made of the chunks before, without gradients, and behind that the truth; or the portrait standing still,
which a stream begins with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from engine.generators.video.rolling import Call, Steps, moved_on, roll, turned
from engine.generators.video.sampling import SEED
from exporters.training.batches import Batch
from exporters.training.losses import Weights, weigh
from exporters.training.objectives import Show, Terms, seeded
from exporters.training.whole.pupils import DROPPED, Pupil, goal
from exporters.training.whole.windows import Reference

BEGINNING = 0.25
"""Share of a student's updates that are the beginning of a stream."""
OWN = 3
"""Chunks at most that a student makes without gradients before the one that it learns from."""


@dataclass(slots=True)
class Desk:
    """What the objectives of one run share."""

    pupil: Pupil
    references: Sequence[Reference]  # by the batch's view
    kept: dict[int, Any]  # by the view: see `Pupil.kept`

    def told(self, networks: Any, batch: Batch, generator: torch.Generator | None = None) -> Any:
        """What every call knows of the batch's portrait."""
        return self.pupil.told(networks, self.references[batch.view], self.kept[batch.view], generator=generator)

    def truth(self, networks: Any, batch: Batch) -> Tensor:
        """Clean latents [B, F, C, h, w], in fp32 whatever the precision around it is."""
        with torch.no_grad(), torch.autocast(batch.truth.device.type, enabled=False):
            return self.pupil.encode(networks, batch.truth).unflatten(0, (batch.rows, batch.frames))

    def still(self, batch: Batch, frames: int) -> Tensor:
        """What so many frames of a portrait that stands still are driven by, before the batch begins [B, F, H, W, K]."""
        first = _conditions(batch)[:, :1]
        own = torch.from_numpy(self.references[batch.view].condition.copy()).to(first.device)
        return self.pupil.rest(own.expand_as(first), first).expand(-1, frames, -1, -1, -1)


def square(said: Tensor, wanted: Tensor, areas: Tensor, weights: Weights) -> Tensor:
    """Mean of the squares of latents or velocities [B, F, C, h, w], where `areas` [B, F, 2, H, W] say how much each place counts."""
    h = said.shape[-2]
    weight = weigh(functional.avg_pool2d(areas.flatten(0, 1), areas.shape[-2] // h), weights).unflatten(0, said.shape[:2])
    return (weight * (said.float() - wanted).square()).mean()


def _areas(batch: Batch) -> Tensor:
    return batch.areas.unflatten(0, (batch.rows, batch.frames))


def _conditions(batch: Batch) -> Tensor:
    return batch.coarse.unflatten(0, (batch.rows, batch.frames))


@dataclass(frozen=True, slots=True)
class Denoise:
    """The teacher: any noise level, drawn anew for every batch, all frames of a window under the same."""

    desk: Desk
    weights: Weights
    seed: int

    def loss(self, networks: Any, batch: Batch, step: int) -> tuple[Terms, Show]:
        """As `objectives.Objective`."""
        generator, pupil = seeded(self.seed, step), self.desk.pupil
        dropped = float(torch.rand((), generator=generator)) < DROPPED
        level = pupil.drawn(generator)
        clean = self.desk.truth(networks, batch)
        noise = torch.stack([pupil.noise(tuple(clean.shape[1:]), generator) for _ in range(batch.rows)]).to(clean)
        x = level.noised(0, clean, noise)
        call = pupil.call(networks, self.desk.told(networks, batch, generator), level, _conditions(batch), dropped=dropped)
        said = call(0, x)
        wanted = goal(level, 0, x, clean)
        return {"latents": square(said, wanted, _areas(batch), self.weights)}, lambda: _shown(pupil, networks, level.clean(0, x, said))


@dataclass(frozen=True, slots=True)
class Rolled:
    """New frames of a student, as a stream shows them."""

    found: Tensor  # [B, N, C, h, w] clean latents, with gradients of the last step
    truth: Tensor  # [B, N, C, h, w] what they are of
    past: Tensor  # [B, P, C, h, w] what lies behind them
    conditions: Tensor  # [B, W, H, W', K] of all of these
    at: slice  # where they lie in the batch


@dataclass(frozen=True, slots=True)
class Rolls:
    """How a student streams: `new` frames a step, in `steps` steps, behind `past` of them."""

    desk: Desk
    steps: int
    past: int
    new: int
    seed: int

    @property
    def chunks(self) -> int:
        """Chunks at most that a student makes before the one that it learns from, as many as fill what is past."""
        return min(OWN, -(-self.past // self.new))

    @property
    def frames(self) -> int:
        """Of a row of a batch."""
        return self.past + (self.chunks + 1) * self.new

    def __call__(self, networks: Any, batch: Batch, step: int, *, exit: int | None = None) -> Rolled:
        """The last chunk of some, or the first of a stream; drawn by the step's number. `exit` None: drawn, too."""
        generator, pupil, past, new = seeded(self.seed, step), self.desk.pupil, self.past, self.new
        drawn = int(torch.randint(self.steps, (), generator=generator))
        begins = float(torch.rand((), generator=generator)) < BEGINNING
        own = min(self.chunks, 1 + int(torch.randint(max(1, self.chunks), (), generator=generator))) if not begins else 0
        steps, told = pupil.few(self.steps), self.desk.told(networks, batch)
        truth, conditions = self.desk.truth(networks, batch), _conditions(batch)
        portrait = self.desk.kept[batch.view].latents.to(truth)
        gone = int(torch.randint(past + new, (), generator=generator)) * new
        noise = noises(steps, truth, past + new, turns=0 if begins else gone)
        first = truth[:, :past]
        if begins:
            first, conditions = portrait.expand_as(first), torch.cat([self.desk.still(batch, past), conditions], 1)
        for chunk in range(own):
            with torch.no_grad():
                call = pupil.call(networks, told, steps, conditions[:, chunk * new : chunk * new + past + new])
                made = rolled(steps, call, first, portrait, noise, new)
            first, noise = moved_on(first, made), turned(noise, new)
        window = conditions[:, own * new : own * new + past + new]
        at = slice(0, new) if begins else slice(past + own * new, past + (own + 1) * new)
        exit = drawn if exit is None else exit
        found = rolled(steps, last_alone(pupil.call(networks, told, steps, window), exit), first, portrait, noise, new, exit=exit)
        return Rolled(found, truth[:, at], first, window, at)


@dataclass(frozen=True, slots=True)
class Appearance:
    """The student, whose teacher is the truth."""

    rolls: Rolls
    weights: Weights

    def loss(self, networks: Any, batch: Batch, step: int) -> tuple[Terms, Show]:
        """As `objectives.Objective`."""
        made, pupil = self.rolls(networks, batch, step), self.rolls.desk.pupil
        loss = square(made.found, made.truth, _areas(batch)[:, made.at], self.weights)
        return {"latents": loss}, lambda: shown_among(pupil, networks, batch, made)


def shown_among(pupil: Pupil, networks: Any, batch: Batch, rolled: Rolled) -> Tensor:
    """A batch's pictures with those that were made, whose faces alone are to be compared from now on."""
    made, at = _shown(pupil, networks, rolled.found), rolled.at
    pictures, fits = batch.truth.unflatten(0, (batch.rows, batch.frames)).to(made).clone(), torch.full_like(batch.fits, torch.nan)
    pictures[:, at] = made.unflatten(0, (batch.rows, -1))
    fits.unflatten(0, (batch.rows, batch.frames))[:, at] = batch.fits.unflatten(0, (batch.rows, batch.frames))[:, at]
    batch.fits = fits
    return pictures.flatten(0, 1)


def last_alone(call: Call, exit: int) -> Call:
    """The same, with gradients in step `exit` alone."""

    def quiet(step: int, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and step == exit):
            return call(step, x if step < exit else x.detach())

    return quiet


def noises(steps: Steps, like: Tensor, window: int, *, turns: int = 0) -> Tensor:
    """Those of a stream's window [B, W, C, h, w], after so many frames have gone through it."""
    drawn = steps.drawn((window, *like.shape[2:]), seed=SEED).to(like)
    return turned(drawn[None], turns % window).expand(len(like), -1, -1, -1, -1)


def rolled(steps: Steps, call: Call, past: Tensor, portrait: Tensor, noise: Tensor, new: int, *, exit: int | None = None) -> Tensor:
    """One step of a stream: past latents [B, P, C, h, w], the portrait's [C, h, w] and the window's noises -> `new` clean frames."""
    kept = past.shape[1]
    begun = steps.begun(portrait, noise[:, kept : kept + new])
    return roll(steps, call, past=past, noise=noise[:, :kept], begun=begun, exit=exit)


@torch.no_grad()
def streamed(desk: Desk, networks: Any, batch: Batch, *, steps: int, past: int, new: int) -> Tensor:
    """A run of frames as a stream makes them, from its beginning -> clean latents [F', C, h, w] of whole chunks."""
    pupil, told = desk.pupil, desk.told(networks, batch)
    at, conditions = pupil.few(steps), _conditions(batch)
    portrait = desk.kept[batch.view].latents.float().to(batch.truth.device)
    behind = portrait.expand(batch.rows, past, -1, -1, -1)
    noise, chunks = noises(at, behind, past + new), []
    more = -batch.frames % new  # the last chunk is filled up with its last pose
    poses = torch.cat([desk.still(batch, past), conditions, conditions[:, -1:].expand(-1, more, -1, -1, -1)], 1)
    for start in range(0, batch.frames, new):
        call = pupil.call(networks, told, at, poses[:, start : start + past + new])
        chunks.append(rolled(at, call, behind, portrait, noise, new))
        behind, noise = moved_on(behind, chunks[-1]), turned(noise, new)
    return torch.cat(chunks, 1)[0]


def _shown(pupil: Pupil, networks: Any, clean: Tensor) -> Tensor:
    """Clean latents [B, F, C, h, w] as pictures [N, 3, H, W]."""
    return pupil.decode(networks, clean.flatten(0, 1))


__all__ = ["Appearance", "Denoise", "Desk", "Rolled", "Rolls", "last_alone", "noises", "rolled", "shown_among", "square", "streamed"]
