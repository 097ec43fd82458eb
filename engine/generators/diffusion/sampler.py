"""Noise levels and the steps between them: levels are tensors, nothing counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from engine.generators.diffusion.layout import Prediction, Stepper
from engine.generators.diffusion.presets import Noise
from engine.types import AvatarError

LEVELS = 1000
"""Noise levels of training."""
BETA_FIRST, BETA_LAST = 0.00085, 0.012
DATA_DEVIATION, LCM_SCALING = 0.5, 10.0
"""Of the boundary condition of consistency models (Luo et al. 2023, arXiv 2310.04378, equation 9 and appendix)."""


@dataclass(frozen=True, slots=True)
class Levels:
    """The S steps of a sampler, noisiest first. A picture at a level is alpha · clean + sigma · noise."""

    t: Tensor  # [S] 0..999, what the network is told
    alpha: Tensor  # [S]
    sigma: Tensor  # [S]
    next_alpha: Tensor  # [S] of the level that a step leads to; 1 at the end
    next_sigma: Tensor  # [S]; 0 at the end
    skip: Tensor  # [S] share of the noisy picture in a consistency model's answer
    out: Tensor  # [S] share of the network's own answer
    prediction: Prediction
    stepper: Stepper

    def __len__(self) -> int:
        return len(self.t)

    def to(self, device: torch.device | str) -> Levels:
        """The same on a device."""
        names = ("t", "alpha", "sigma", "next_alpha", "next_sigma", "skip", "out")
        t, alpha, sigma, next_alpha, next_sigma, skip, out = (getattr(self, name).to(device) for name in names)
        return Levels(t, alpha, sigma, next_alpha, next_sigma, skip, out, self.prediction, self.stepper)


def alphas(noise: Noise) -> Tensor:
    """[1000] float64: share of the signal's variance at every level."""
    if noise.betas == "linear":
        betas = torch.linspace(BETA_FIRST, BETA_LAST, LEVELS, dtype=torch.float64)
    else:
        betas = torch.linspace(BETA_FIRST**0.5, BETA_LAST**0.5, LEVELS, dtype=torch.float64) ** 2
    root = (1.0 - betas).cumprod(0).sqrt()
    if noise.zero_snr:  # shifted so that the last is 0, scaled so that the first stays
        root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    return root**2


def levels(noise: Noise, steps: int) -> Levels:
    """A sampler of so many steps. Raises AvatarError where the schedule has no meaning."""
    if not 1 <= steps <= LEVELS:
        raise AvatarError(f"A frame takes 1 to {LEVELS} denoising steps, not {steps}.")
    if noise.prediction == "flow":
        t = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)
        alpha, sigma = 1.0 - t, t
        at = t[:-1] * LEVELS
        parts = (at, alpha[:-1], sigma[:-1], alpha[1:], sigma[1:])
    else:
        if steps < noise.least:
            raise AvatarError("One step of 'leading' spacing would begin where a picture is almost clean; use trailing spacing, or more steps.")
        every = alphas(noise)
        if noise.spacing == "trailing":
            at = (torch.arange(steps, dtype=torch.float64) * (-LEVELS / steps) + LEVELS).round() - 1
        else:
            at = (torch.arange(steps, dtype=torch.float64) * (LEVELS // steps)).flip(0) + 1  # steps_offset 1, as Stable Diffusion
        index = at.long().clamp(0, LEVELS - 1)
        after = index - LEVELS // steps
        share, later = every[index], torch.where(after >= 0, every[after.clamp(min=0)], torch.ones((), dtype=torch.float64))
        parts = (index.double(), share.sqrt(), (1 - share).sqrt(), later.sqrt(), (1 - later).sqrt())
    if noise.prediction == "epsilon" and bool((parts[1] == 0).any()):
        raise AvatarError("A network that predicts noise says nothing about a picture that is only noise; use v or x0 with zero_snr, or turn it off.")
    scaled = LCM_SCALING * parts[0]
    skip = DATA_DEVIATION**2 / (scaled**2 + DATA_DEVIATION**2)
    out = scaled / (scaled**2 + DATA_DEVIATION**2).sqrt()
    t, alpha, sigma, next_alpha, next_sigma, skip, out = (x.float() for x in (*parts, skip, out))
    return Levels(t, alpha, sigma, next_alpha, next_sigma, skip, out, noise.prediction, noise.stepper)


Step: TypeAlias = int | Tensor
"""One level for all pictures, or [N] one for each."""


def _of(values: Tensor, step: Step) -> Tensor:
    """A coefficient that multiplies pictures [N, C, h, w]."""
    return values[step] if isinstance(step, int) else values[step].view(-1, 1, 1, 1)


def clean_and_noise(at: Levels, step: Step, x: Tensor, answer: Tensor) -> tuple[Tensor, Tensor]:
    """What a network's answer says of the noisy x: (clean, noise), both of x's shape."""
    alpha, sigma = _of(at.alpha, step), _of(at.sigma, step)
    if at.prediction == "epsilon":
        return (x - sigma * answer) / alpha, answer
    if at.prediction == "v":
        return alpha * x - sigma * answer, alpha * answer + sigma * x
    if at.prediction == "x0":
        return answer, (x - alpha * answer) / sigma
    return x - sigma * answer, x + alpha * answer


def advance(at: Levels, step: Step, x: Tensor, answer: Tensor, noise: Tensor) -> Tensor:
    """x at level `step` -> x at the next: along the predicted noise (Euler, which is DDIM without randomness), or with the stream's own
    fixed `noise` again (a consistency model's)."""
    kind, x, answer, noise = x.dtype, x.float(), answer.float(), noise.float()  # differences of near values: halves would lose them
    clean, found = clean_and_noise(at, step, x, answer)
    if at.stepper == "lcm":
        clean, found = _of(at.skip, step) * x + _of(at.out, step) * clean, noise
    return (_of(at.next_alpha, step) * clean + _of(at.next_sigma, step) * found).to(kind)


def noised(at: Levels, step: Step, clean: Tensor, noise: Tensor) -> Tensor:
    """A clean picture at a level."""
    return _of(at.alpha, step) * clean + _of(at.sigma, step) * noise


__all__ = ["LEVELS", "Levels", "Step", "advance", "alphas", "clean_and_noise", "levels", "noised"]
