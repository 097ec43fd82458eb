"""DPM-Solver++ on Karras' noise levels, as k-diffusion walks them (Lu et al. 2022, arXiv 2211.01095; Karras et al. 2022, arXiv 2206.00364).

diffusers' own schedulers do not take the same path; PuLID v1.1 was published with this one. It answers to the calls of a diffusers scheduler
that `pipeline.Maker` makes, for a denoiser that predicts noise on Stable Diffusion's schedule.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

TRAINED = 1000
"""Steps of the schedule that Stable Diffusion was trained on."""
BETAS = (0.00085, 0.012)
RHO = 7.0
"""Of Karras' spacing."""


def trained_sigmas() -> Tensor:
    """[1000] noise levels of Stable Diffusion's scaled-linear schedule, rising."""
    roots = torch.linspace(BETAS[0] ** 0.5, BETAS[1] ** 0.5, TRAINED, dtype=torch.float64)
    kept = torch.cumprod(1.0 - roots**2, 0).float()
    return ((1 - kept) / kept) ** 0.5


def karras(steps: int, low: float, high: float) -> list[float]:
    """Noise levels from `high` to `low`, and 0."""
    along = np.linspace(0.0, 1.0, steps)
    levels = (high ** (1 / RHO) + along * (low ** (1 / RHO) - high ** (1 / RHO))) ** RHO
    return [*(float(level) for level in levels), 0.0]


class DpmPlusPlus:
    """2M, and `stochastic` SDE, which calls the denoiser twice a step (but the last) and adds noise between."""

    def __init__(self, *, stochastic: bool) -> None:
        self._stochastic = stochastic
        self._trained = trained_sigmas()
        self._levels: list[float] = []  # one for each call of the denoiser, and 0
        self.timesteps = torch.empty(0, dtype=torch.int64)
        self.init_noise_sigma = float(self._trained[-1])
        self._call = 0
        self._before: list[Tensor] = []

    def set_timesteps(self, steps: int, device: Any = None) -> None:
        """Begin a walk."""
        levels = karras(steps, float(self._trained[0]), float(self._trained[-1]))
        if self._stochastic:
            middles = [(a * b) ** 0.5 for a, b in zip(levels[:-2], levels[1:-1], strict=True)]
            levels = [level for pair in zip(levels[:-2], middles, strict=True) for level in pair] + levels[-2:]
        self._levels, self._call, self._before = levels, 0, []
        logs = torch.tensor(levels[:-1]).log()
        self.timesteps = (logs[None] - self._trained.log()[:, None]).abs().argmin(0).to(device)

    def scale_model_input(self, x: Tensor, t: Any) -> Tensor:
        """What the denoiser reads."""
        made: Tensor = x / (self._levels[self._call] ** 2 + 1.0) ** 0.5
        return made

    def step(self, noise: Tensor, t: Any, x: Tensor, *, generator: torch.Generator | None = None, return_dict: bool = False) -> tuple[Tensor]:
        """What the denoiser takes for noise -> the next x."""
        call, levels = self._call, self._levels
        self._call += 1
        clean = x - noise * levels[call]
        if levels[call + 1] == 0.0:
            return (clean,)
        return (self._two_halves(clean, x, generator) if self._stochastic else self._two_steps(clean, x),)

    def _two_steps(self, clean: Tensor, x: Tensor) -> Tensor:
        """2M: what the step before saw is extrapolated."""
        here, there = self._levels[self._call - 1 : self._call + 1]
        aim = clean
        if self._before:
            ratio = np.log(self._levels[self._call - 2] / here) / np.log(here / there)
            aim = clean + (clean - self._before[0]) / (2 * ratio)
        self._before = [clean]
        share = there / here
        return share * x + (1 - share) * aim

    def _two_halves(self, clean: Tensor, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """SDE: half a step to look ahead, then the whole one from where it began, on one path of noise."""
        call = self._call - 1
        drawn = torch.randn(x.shape, generator=generator, dtype=torch.float32).to(x.device, x.dtype)
        if call % 2 == 0:
            here, middle = self._levels[call : call + 2]
            self._before = [x, drawn]
            return _ancestral(x, clean, here, middle, drawn)
        start, earlier = self._before
        here, middle, there = self._levels[call - 1 : call + 2]
        whole = ((here - middle) ** 0.5 * earlier + (middle - there) ** 0.5 * drawn) / (here - there) ** 0.5
        return _ancestral(start, clean, here, there, whole)


def _ancestral(x: Tensor, clean: Tensor, here: float, there: float, drawn: Tensor) -> Tensor:
    """From a noise level to below another, and up to it with fresh noise."""
    up = min(there, (there**2 * (here**2 - there**2) / here**2) ** 0.5)
    share = (there**2 - up**2) ** 0.5 / here
    return share * x + (1 - share) * clean + up * drawn


__all__ = ["DpmPlusPlus", "karras", "trained_sigmas"]
