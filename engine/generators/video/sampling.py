"""How UniAnimate's latents come to be: its noise levels, its own DDIM, guidance, windows over long clips. Nothing counts or remembers.

Wang et al. 2024 (arXiv 2406.01188). What differs from the common samplers: the levels are 1, 34, .. 991 for 30 steps asked for (31 of them,
and the noisiest is never visited), the last step leads to level 0 and not to a clean picture, and the first latents hold the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.generators.video.unianimate import VideoUNet
from engine.types import AvatarError

LEVELS = 1000
BETA_FIRST, BETA_LAST = 0.00085, 0.012
STEPS, GUIDANCE = 30, 2.5
"""That the published configuration asks for."""
SIZE, OVERLAP = 32, 8
"""Frames of a window, and how many of them the next one shares."""
OFFSET = 0.1
"""Strength of the noise that is the same for a whole frame and channel."""
START_SHORT, START_LONG = 949, 939
"""Noise level of the reference in the first latents, for a clip of one window and for a longer one."""
SEED = 11
COLOURS = 255.0

Progress = Callable[[int, int], None]
"""(calls done, calls in all): a call is one window at one noise level."""


@dataclass(frozen=True, slots=True)
class Levels:
    """The S steps, noisiest first; float64 on the CPU. Latents at a level are alpha · clean + sigma · noise."""

    t: Tensor  # [S] int64 0..999, what the network is told
    alpha: Tensor  # [S]
    sigma: Tensor  # [S]
    next_alpha: Tensor  # [S] of the level that a step leads to
    next_sigma: Tensor  # [S]

    def __len__(self) -> int:
        return len(self.t)


@dataclass(frozen=True, slots=True)
class Given:
    """What every call knows of the reference; one clip."""

    latents: Tensor  # [C, h, w] of the portrait, scaled
    guided: Tensor  # [1, L, D] tokens
    unguided: Tensor  # [1, L, D]
    first: Tensor  # [1, C', h, w] channels of frame 0

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Given:
        """The same elsewhere."""
        return Given(*(each.to(device, dtype) for each in (self.latents, self.guided, self.unguided, self.first)))


@dataclass(frozen=True, slots=True)
class Half:
    """A clip in the middle of its sampling: enough to go on from."""

    step: int  # that is being done
    window: int  # of this step, the next to be asked
    x: Tensor  # [F, C, h, w] float32, at the entry of the step
    said: Tensor  # [2 or 1, F, C, h, w] sums of the windows so far: guided, and unguided where there is guidance


def alphas() -> Tensor:
    """[1000] float64: share of the signal's variance at every level; 0 at the last (Lin et al. 2023, arXiv 2305.08891, section 3.1)."""
    betas = torch.linspace(BETA_FIRST**0.5, BETA_LAST**0.5, LEVELS, dtype=torch.float64) ** 2
    root = (1.0 - betas).cumprod(0).sqrt()
    return ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2


def levels(steps: int = STEPS) -> Levels:
    """A sampler that is asked for `steps`; it may take one more. Raises AvatarError for none or too many."""
    if not 1 <= steps <= LEVELS:
        raise AvatarError(f"A clip takes 1 to {LEVELS} denoising steps, not {steps}.")
    stride = LEVELS // steps
    t = (1 + torch.arange(0, LEVELS, stride)).clamp(max=LEVELS - 1).flip(0)
    share, later = (alphas()[at] for at in (t, (t - stride).clamp(min=0)))
    return Levels(t, share.sqrt(), (1 - share).sqrt(), later.sqrt(), (1 - later).sqrt())


def advance(at: Levels, step: int, x: Tensor, velocity: Tensor) -> Tensor:
    """Latents and the predicted velocity at a step, float32 -> latents at the next."""
    return led(x, velocity, *(float(each[step]) for each in (at.alpha, at.sigma, at.next_alpha, at.next_sigma)))


def led(x: Tensor, velocity: Tensor, alpha: float, sigma: float, next_alpha: float, next_sigma: float) -> Tensor:
    """Latents of a level, and the predicted velocity, as latents of another."""
    clean, noise = alpha * x - sigma * velocity, alpha * velocity + sigma * x
    return next_alpha * clean + next_sigma * noise


def noised(latents: Tensor, noise: Tensor, level: int) -> Tensor:
    """Clean latents at a level 0..999."""
    share = float(alphas()[level])
    return share**0.5 * latents + (1.0 - share) ** 0.5 * noise


def first_latents(latents: Tensor, frames: int, *, seed: int = SEED, size: int = SIZE) -> Tensor:
    """The portrait's latents [C, h, w] -> where a clip starts, [F, C, h, w] float32: the portrait in every frame under much noise.

    A clip of one window has the offset noise among the noise, a longer one on top; as published. Seeded on the CPU.
    """
    noise, offset = _drawn((frames, *latents.shape), seed)
    clean = latents.float().cpu()
    if frames <= size:
        return noised(clean, noise + offset, START_SHORT)
    return noised(clean, noise, START_LONG) + offset


def drawn(shape: tuple[int, ...], *, seed: int = SEED) -> Tensor:
    """Noise [F, C, h, w] as a clip of one window starts with."""
    noise, offset = _drawn(shape, seed)
    return noise + offset


def _drawn(shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    """Noise of a shape [F, C, h, w], and what is the same for a whole frame and channel."""
    frames, channels, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(channels, frames, height, width, generator=generator).transpose(0, 1)
    return noise, OFFSET * torch.randn(channels, frames, 1, 1, generator=generator).transpose(0, 1)


def windows(frames: int, *, size: int = SIZE, overlap: int = OVERLAP) -> list[list[int]]:
    """Frame numbers of every window over a clip, in order; the last one is the last `size` frames. A clip that fits is one window.

    Raises AvatarError where windows would not go forward.
    """
    if not 0 <= overlap < size:
        raise AvatarError(f"Windows of {size} frames cannot share {overlap}; share fewer.")
    if frames <= size:
        return [list(range(frames))]
    starts = list(range(0, frames - overlap, size - overlap))
    starts[-1] = frames - size
    return [list(range(start, start + size)) for start in starts]


@torch.no_grad()
def sample(
    network: VideoUNet,
    given: Given,
    poses: Tensor,
    *,
    guidance: float = GUIDANCE,
    steps: int = STEPS,
    size: int = SIZE,
    overlap: int = OVERLAP,
    start: Tensor | None = None,
    half: Half | None = None,
    keep: Callable[[Half], None] | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Pictures of the poses uint8 [F, H, W, 3] -> latents [F, C, h, w] float32. `guidance` 1 is none, and half the work.

    `start` [F, C, h, w]: of `first_latents` where it is not given. `half`: a clip that was begun with the same arguments goes on; `keep` is
    told after every call of the network where it is, and copies what it does not write at once. What windows say of a frame is averaged,
    then guided: u + g · (c - u).
    """
    at, frames = levels(steps), len(poses)
    if not frames:
        raise AvatarError("There is nothing to render: the clip has no frames.")
    weight = next(network.parameters())
    given, spans = given.to(weight.device, weight.dtype), windows(frames, size=size, overlap=overlap)
    seen = torch.zeros(frames, 1, 1, 1)
    for span in spans:
        seen[span] += 1
    seen = seen.to(weight.device)
    if half is None:
        x = (first_latents(given.latents, frames, size=size) if start is None else start.float()).to(weight.device)
        half = Half(0, 0, x, x.new_zeros(1 if guidance == 1.0 else 2, *x.shape))
    x, said = half.x.to(weight.device), half.said.to(weight.device, copy=True)
    channels = _Poses(network, poses, spans)
    for step in range(half.step, len(at)):
        level = at.t[step].to(weight.device)[None]
        for w in range(half.window if step == half.step else 0, len(spans)):
            span = spans[w]
            noisy = x[span][None].to(weight.dtype)
            said[0, span] += network(noisy, level, given.guided, first=given.first, poses=channels(w))[0].float()
            if guidance != 1.0:
                said[1, span] += network(noisy, level, given.unguided)[0].float()
            if keep is not None and (step, w) != (len(at) - 1, len(spans) - 1):
                keep(Half(step, w + 1, x, said))
            if progress is not None:
                progress(step * len(spans) + w + 1, len(at) * len(spans))
        mean = said / seen
        x = advance(at, step, x, mean[0] if guidance == 1.0 else mean[1] + guidance * (mean[0] - mean[1]))
        said = torch.zeros_like(said)
    return x


class _Poses:
    """Channels of every window's poses, which no noise level changes: made when first asked for."""

    def __init__(self, network: VideoUNet, pictures: Tensor, spans: Sequence[Sequence[int]]) -> None:
        self._network, self._pictures, self._spans = network, pictures, spans
        self._made: dict[int, Tensor] = {}

    def __call__(self, window: int) -> Tensor:
        """[1, F, C, h, w]"""
        if window not in self._made:
            weight = next(self._network.parameters())
            pictures = self._pictures[list(self._spans[window])].to(weight.device).permute(0, 3, 1, 2).to(weight.dtype) / COLOURS
            self._made[window] = self._network.poses(pictures[None], self._network.made.latent_size)
        return self._made[window]


__all__ = [
    "COLOURS",
    "GUIDANCE",
    "OVERLAP",
    "SEED",
    "SIZE",
    "STEPS",
    "Given",
    "Half",
    "Levels",
    "Progress",
    "advance",
    "alphas",
    "drawn",
    "first_latents",
    "led",
    "levels",
    "noised",
    "sample",
    "windows",
]
