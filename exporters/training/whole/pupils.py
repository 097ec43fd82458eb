"""What training asks of a system whose networks see whole clips; all that differs between UniAnimate and VividPose stands here.

Levels and windows are those of the live mode (`rolling.Steps`, `rolling.Call`), so that a student sees what streaming shows it; a teacher's
level is a `Steps` of one.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from engine.generators.video.rolling import Call, Steps
from engine.types import UInt8Array
from exporters.data.dataset import Clip
from exporters.training.settings import Settings
from exporters.training.whole.windows import Reference

DROPPED = 0.1
"""Share of a teacher's updates that see no reference, which is what guidance compares with: neither paper tells it; that of Stable Video
Diffusion (Blattmann et al. 2023, arXiv 2311.15127, appendix D) and of most others."""


class Pupil(Protocol):
    """One system's networks, how they are taught and how they are looked at. Latents are [B, F, C, h, w], conditions uint8 [B, F, H, W, K]."""

    networks: Any  # nn.Module with `made`
    name: str  # of the preset
    size: tuple[int, int]  # (H, W) px
    depth: int  # px that the sides must be multiples of
    frames: int  # of a window, as the weights were trained
    guidance: float  # of a teacher that a student is drawn by
    blocks: tuple[type[nn.Module], ...]  # that can be computed again on the way back

    def choose(self, settings: Settings) -> None:
        """Which of the parameters learn."""

    def paint(self, clip: Clip, frame: int) -> UInt8Array:
        """The condition of a frame [H, W, K], as an offline rendering has it."""
        ...

    def rest(self, own: Tensor, first: Tensor) -> Tensor:
        """The condition of a portrait that stands still until a stream begins: of its own and of the first frame, both [.., K]."""
        ...

    def drawn(self, generator: torch.Generator, *, inner: bool = False) -> Steps:
        """A noise level, as the teacher meets them. `inner`: none so near to an end that comparing two answers there says little."""
        ...

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Noise [F, C, h, w] as the teacher meets it, on the CPU."""
        ...

    def few(self, steps: int) -> Steps:
        """The levels of a student. Raises AvatarError for a number that cannot be."""
        ...

    def kept(self, networks: Any, reference: Reference) -> Any:
        """What parts that never change make of a reference, once."""
        ...

    def told(self, networks: Any, reference: Reference, kept: Any, *, generator: torch.Generator | None = None) -> Any:
        """What every call knows of a reference, with gradients. `generator`: of what is drawn anew in a teacher's updates; None: as rendered."""
        ...

    def call(self, networks: Any, told: Any, steps: Steps, condition: Tensor, *, dropped: bool = False) -> Call:
        """The denoiser for a window. `dropped`: as guidance's unguided half."""
        ...

    def encode(self, networks: Any, pictures: Tensor) -> Tensor:
        """[N, 3, H, W] -1..1 -> clean latents [N, C, h, w]: the middle of what the autoencoder answers."""
        ...

    def decode(self, networks: Any, latents: Tensor) -> Tensor:
        """[N, C, h, w] -> [N, 3, H, W] about -1..1, with gradients."""
        ...

    def render(self, networks: Any, told: Any, condition: Tensor, steps: int, *, window: int) -> Tensor:
        """A teacher's clip by the published sampler, with guidance, in windows of so many: uint8 [F, H, W, K] -> clean latents [F, C, h, w]."""
        ...

    def save(self, networks: Any, folder: Any, *, origin: dict[str, str]) -> None:
        """Write the weights."""


def goal(steps: Steps, step: int, x: Tensor, clean: Tensor) -> Tensor:
    """The answer that says that latents `x` of a level are `clean`: what is said of them depends on the answer evenly."""
    nothing = torch.zeros_like(x)
    share = steps.clean(step, nothing[:1, :1, :1, :1, :1], nothing[:1, :1, :1, :1, :1] + 1.0)
    return (clean - steps.clean(step, x, nothing)) / share


__all__ = ["DROPPED", "Pupil", "goal"]
