"""The trunk of a denoiser that must be quick on a CPU: convolutions without norms, skips that are added, one attention at the bottom.

Normalisation is what a picture of a few thousand cells spends its time on: without, and with fewer blocks, a live step takes half as long, and a
part of a picture is seen as it is seen in the whole one. Blocks begin as the identity (Zhang, Dauphin and Ma 2019, arXiv 1901.09321), which is what
normalisation would otherwise be needed for.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from engine.generators.diffusion.attention import Sources
from engine.generators.diffusion.temporal import Window


class PlainBlock(nn.Module):
    """x + conv(silu(conv(silu(x)) + noise level)); at first x itself."""

    def __init__(self, width: int, time_dim: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_dim, width)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """x [N, C, h, w], embedded noise level [N, T] -> [N, C, h, w]"""
        inner = self.conv1(functional.silu(x)) + self.time_emb_proj(functional.silu(level))[:, :, None, None]
        made: Tensor = x + self.conv2(functional.silu(inner))
        return made


class PlainDown(nn.Module):
    """A level on the way down: a block, and half the size in the next level's width. It attends to nothing, so `sources` and `window` pass by."""

    def __init__(self, width: int, below: int | None, time_dim: int) -> None:
        super().__init__()
        self.block = PlainBlock(width, time_dim)
        self.narrow = None if below is None else nn.Conv2d(width, below, 3, stride=2, padding=1)

    def forward(self, x: Tensor, level: Tensor, sources: Sources, window: Window | None, skips: list[Tensor]) -> Tensor:
        """[N, C, h, w] -> [N, C', h / 2, w / 2], or the same size at the bottom; what it saw goes onto `skips` where the way up needs it."""
        x = self.block(x, level)
        if self.narrow is None:
            return x
        skips.append(x)
        made: Tensor = self.narrow(x)
        return made


class PlainUp(nn.Module):
    """A level on the way up: twice the size, what was there on the way down is added, a block."""

    def __init__(self, below: int, width: int, time_dim: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(below, width, 1)
        self.block = PlainBlock(width, time_dim)

    def forward(self, x: Tensor, level: Tensor, sources: Sources, window: Window | None, skips: list[Tensor]) -> Tensor:
        """[N, C', h / 2, w / 2] -> [N, C, h, w]"""
        grown = functional.interpolate(self.widen(x), scale_factor=2.0, mode="bilinear", align_corners=False)
        made: Tensor = self.block(grown + skips.pop(), level)
        return made


__all__ = ["PlainBlock", "PlainDown", "PlainUp"]
