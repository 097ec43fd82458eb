"""A live clip: a rolling window with a known past, for networks that are not causal. Pure functions, through which gradients flow.

The networks see a whole window at once, every frame of it under the same noise. So a live step runs a window of which the first frames, the
past, are finished already, and only the last ones are new. At every one of few steps the past's clean latents are brought to the step's
level, the network answers for the whole window, and only the new frames go on. At the end they are past themselves.

- Every frame has one noise of its own, which it began from and is brought back to the levels with as long as it is seen: what has been
  finished then looks the same to the network in every window, and nothing flickers that stands still.
- The noises of a stream are as many as a window has frames, drawn once. A step gives those of the frames that have left to the new ones
  (`turned`): within a window all differ, as the networks were trained, and neither a draw nor a counter is part of a step.
- The levels are not those of the published samplers (`sampling.levels`, `vividpose_sampling.sigmas`): of few steps these visit the least
  noise, or begin there. Here they begin where the new frames begin and the last step leads to a clean picture. Given the published levels,
  `roll` without a past is the published sampler's only window, number by number.
- Where a clip begins the past is the portrait, standing still: what a stream begins with, and nothing that a network is not used to.

Guidance is no part of it: it is taught to the network that is to run live (distilled), or mixed by `Call` itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.generators.video import sampling
from engine.generators.video import vividpose_sampling as vividpose
from engine.generators.video.sampling import LEVELS, SEED, START_SHORT, Levels
from engine.generators.video.unianimate import VideoUNet
from engine.generators.video.vividpose import Denoiser, Read
from engine.types import AvatarError

Call = Callable[[int, Tensor], Tensor]
"""(step, latents of a whole window at its level [B, W, C, h, w] float32) -> the network's answer for them, float32."""


class Steps(Protocol):
    """A system's S noise levels, noisiest first, and the way from one to the next. Latents are [.., C, h, w] float32."""

    def __len__(self) -> int: ...

    def drawn(self, shape: tuple[int, ...], *, seed: int = SEED) -> Tensor:
        """Noise [F, C, h, w] of as many frames, of variance about 1; seeded, on the CPU."""
        ...

    def begun(self, portrait: Tensor, noise: Tensor) -> Tensor:
        """Where new frames begin: the portrait's clean latents and their noise -> latents at step 0's level."""
        ...

    def noised(self, step: int, clean: Tensor, noise: Tensor) -> Tensor:
        """Clean latents at a step's level."""
        ...

    def clean(self, step: int, x: Tensor, answer: Tensor) -> Tensor:
        """What the network's answer says that latents at a step's level are without noise."""
        ...

    def advance(self, step: int, x: Tensor, answer: Tensor) -> Tensor:
        """Latents at a step's level -> at that of the next one; clean at the end."""
        ...


@dataclass(frozen=True, slots=True)
class UniAnimateSteps:
    """The portrait under noise becomes the picture."""

    rows: tuple[tuple[float, float, float, float], ...]  # a step: alpha, sigma, and those that it leads to
    told: tuple[float, ...]  # [S] 0..999, what the network is told

    @classmethod
    def of(cls, at: Levels) -> UniAnimateSteps:
        """Of any levels: the published ones too."""
        columns = (each.tolist() for each in (at.alpha, at.sigma, at.next_alpha, at.next_sigma))
        return cls(tuple(zip(*columns, strict=True)), tuple(float(t) for t in at.t))

    @classmethod
    def few(cls, steps: int) -> UniAnimateSteps:
        """Evenly from where new frames begin to no noise. Raises AvatarError for none or too many."""
        _check(steps, START_SHORT)
        t = torch.linspace(START_SHORT, 0, steps + 1, dtype=torch.float64).round().long()[:-1]
        share = sampling.alphas()[t]
        alpha, sigma = share.sqrt(), (1 - share).sqrt()
        one = torch.ones(1, dtype=torch.float64)
        return cls.of(Levels(t, alpha, sigma, torch.cat([alpha[1:], one]), torch.cat([sigma[1:], 0 * one])))

    def __len__(self) -> int:
        return len(self.told)

    def drawn(self, shape: tuple[int, ...], *, seed: int = SEED) -> Tensor:
        """See `Steps`; with the part of it that is the same for a whole frame."""
        return sampling.drawn(shape, seed=seed)

    def begun(self, portrait: Tensor, noise: Tensor) -> Tensor:
        """See `Steps`."""
        return self.noised(0, portrait, noise)

    def noised(self, step: int, clean: Tensor, noise: Tensor) -> Tensor:
        """See `Steps`."""
        alpha, sigma = self.rows[step][:2]
        return alpha * clean + sigma * noise

    def clean(self, step: int, x: Tensor, answer: Tensor) -> Tensor:
        """See `Steps`."""
        alpha, sigma = self.rows[step][:2]
        return alpha * x - sigma * answer

    def advance(self, step: int, x: Tensor, answer: Tensor) -> Tensor:
        """See `Steps`."""
        return sampling.led(x, answer, *self.rows[step])


@dataclass(frozen=True, slots=True)
class VividPoseSteps:
    """Noise becomes the picture."""

    sigmas: tuple[float, ...]  # [S + 1], the last is 0

    @classmethod
    def of(cls, sigmas: Tensor) -> VividPoseSteps:
        """Of any levels: the published ones too."""
        return cls(tuple(sigmas.tolist()))

    @classmethod
    def few(cls, steps: int) -> VividPoseSteps:
        """The published way from the most noise to the least in as many even parts, and none instead of the least. Raises AvatarError for no
        steps or too many."""
        _check(steps, LEVELS)
        return cls((*vividpose.sigmas(steps + 1).tolist()[:-2], 0.0))

    def __len__(self) -> int:
        return len(self.sigmas) - 1

    def drawn(self, shape: tuple[int, ...], *, seed: int = SEED) -> Tensor:
        """See `Steps`."""
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def begun(self, portrait: Tensor, noise: Tensor) -> Tensor:
        """See `Steps`; the portrait is not in it."""
        return noise * float((self.sigmas[0] ** 2 + 1) ** 0.5)

    def noised(self, step: int, clean: Tensor, noise: Tensor) -> Tensor:
        """See `Steps`."""
        return clean + self.sigmas[step] * noise

    def clean(self, step: int, x: Tensor, answer: Tensor) -> Tensor:
        """See `Steps`."""
        return vividpose.clean(x, answer, sigma=self.sigmas[step])

    def advance(self, step: int, x: Tensor, answer: Tensor) -> Tensor:
        """See `Steps`."""
        return vividpose.advance(x, answer, sigma=self.sigmas[step], after=self.sigmas[step + 1])

    @property
    def told(self) -> tuple[float, ...]:
        """[S] what the network is told."""
        return tuple(float(torch.tensor([sigma]).log() * 0.25) for sigma in self.sigmas[:-1])


def _check(steps: int, most: int) -> None:
    if not 1 <= steps <= most:
        raise AvatarError(f"A frame takes 1 to {most} denoising steps, not {steps}; give another --steps.")


def unianimate_call(network: VideoUNet, steps: UniAnimateSteps, *, tokens: Tensor, first: Tensor, poses: Tensor) -> Call:
    """UniAnimate's network for a window: `tokens` [B, L, D], `first` [B, C', h, w] of `reference`, `poses` [B, W, C, h, w] of `poses`."""

    def call(step: int, x: Tensor) -> Tensor:
        level = poses.new_full((len(x),), steps.told[step], dtype=torch.float32)
        return network(x.to(poses.dtype), level, tokens, first=first, poses=poses).float()

    return call


def vividpose_call(network: Denoiser, steps: VividPoseSteps, *, context: Tensor, image: Tensor, ids: Tensor, read: Read, poses: Tensor) -> Call:
    """VividPose's for a window: `context` [B, 1, D], `image` [B, 4, h, w], `ids` [B, 3], `read` of B rows, `poses` [B, W, C, h, w] of `poses`."""
    told = steps.told

    def call(step: int, x: Tensor) -> Tensor:
        level = poses.new_full((len(x),), told[step], dtype=torch.float32)
        beside = image[:, None].expand(-1, x.shape[1], -1, -1, -1)
        noisy = torch.cat([vividpose.scaled(x, steps.sigmas[step]).to(poses.dtype), beside], 2)
        return network(noisy, level, context, ids, poses=poses, read=read).float()

    return call


def roll(steps: Steps, call: Call, *, past: Tensor, noise: Tensor, begun: Tensor, exit: int | None = None) -> Tensor:
    """One window: the past's clean latents [B, P, C, h, w] and its noise of the same shape, and where N new frames begin [B, N, C, h, w] ->
    the new frames' clean latents, all float32. P may be 0.

    `exit`: the step after which it is left; what its answer says of the clean frames is what comes back. Gradients flow through all steps; a
    `call` may keep them from some.
    """
    last, kept = len(steps) - 1 if exit is None else exit, past.shape[1]
    x = begun
    for step in range(last + 1):
        answer = call(step, torch.cat([steps.noised(step, past, noise), x], 1) if kept else x)[:, kept:]
        x = steps.advance(step, x, answer) if exit is None or step < last else steps.clean(step, x, answer)
    return x


def moved_on(past: Tensor, new: Tensor) -> Tensor:
    """What is past [B, P, ...] after a step that made `new` [B, N, ...]; as long as before, whichever is longer."""
    return torch.cat([past, new], 1)[:, new.shape[1] :]


def turned(noise: Tensor, new: int) -> Tensor:
    """The noises of a window [B, P + N, ...], in the order of its frames, for the window after it: those of the frames that leave come last."""
    return noise.roll(-new, 1)


__all__ = ["Call", "Steps", "UniAnimateSteps", "VividPoseSteps", "moved_on", "roll", "turned", "unianimate_call", "vividpose_call"]
