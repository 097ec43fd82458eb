"""Looking up a volume at places between its cells, in forms that every runtime has.

Places are x, y, z in -1..1. The grids of the published networks are made as if -1 and 1 were the centres of the outermost cells and read as
if they were their outer edges (`align_corners` true, then false), and the weights have learnt that; so do we. Outside there is zero.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.types import AvatarError

Form = Literal["native", "gather"]
"""`grid_sample` of five dimensions where the runtime has it, or the same in plain gathers, products and sums (ONNX below opset 20, OpenVINO)."""


def check(form: str) -> None:
    """Raise AvatarError for a form that does not exist."""
    if form not in get_args(Form):
        raise AvatarError(f"There is no form of sampling called '{form}'; choose one of: {', '.join(get_args(Form))}.")


def axis(cells: int) -> Tensor:
    """[cells] places of the cells along an axis, as grids are made."""
    return 2 * torch.arange(cells, dtype=torch.float32, device="cpu") / (cells - 1) - 1


def identity_grid(depth: int, height: int, width: int) -> Tensor:
    """[1, D, H, W, 3] x, y, z: every cell looks at itself, as grids are made."""
    z, y, x = torch.meshgrid(axis(depth), axis(height), axis(width), indexing="ij")
    return torch.stack([x, y, z], 3)[None]


def cell(place: Tensor, cells: int) -> Tensor:
    """Places -> numbers of cells with their fractions, as grids are read."""
    return ((place + 1) * cells - 1) / 2


def sampled(volume: Tensor, grid: Tensor, *, form: Form) -> Tensor:
    """[N, C, D, H, W] looked up at grid [N, d, h, w, 3] -> [N, C, d, h, w], trilinear."""
    if form == "native":
        return functional.grid_sample(volume, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    n, channels, *sizes = volume.shape
    # A row of the table holds all channels of a cell, so that every look-up reads what lies together.
    table = volume.permute(0, 2, 3, 4, 1).reshape(-1, channels)
    first = torch.arange(n, device=volume.device).reshape(n, 1, 1, 1) * (sizes[0] * sizes[1] * sizes[2])
    corners = [_corners(grid[..., i], cells) for i, cells in enumerate(reversed(sizes))]  # x, y, z
    made: Tensor | None = None
    for z, share_z in corners[2]:
        for y, share_y in corners[1]:
            for x, share_x in corners[0]:
                row = first + (z * sizes[1] + y) * sizes[2] + x
                found = table[row] * (share_z * share_y * share_x)[..., None]
                made = found if made is None else made + found
    assert made is not None
    return made.permute(0, 4, 1, 2, 3)


def _corners(place: Tensor, cells: int) -> list[tuple[Tensor, Tensor]]:
    """The two cells that places of one axis lie between, and the share of each: none for one that is outside."""
    at = cell(place, cells)
    low = torch.floor(at)
    share = at - low
    pairs = ((low, 1 - share), (low + 1, share))
    return [(k.clamp(0, cells - 1).long(), part * ((k >= 0) & (k <= cells - 1)).to(part.dtype)) for k, part in pairs]


class Shifts(nn.Module):
    """Look-ups at the identity grid of [D, H, W] cells, moved as a whole.

    Such a grid is the same along every row, so a look-up is three small matrix products, one an axis, whose rows hold the shares of the two
    nearest cells; no sampling is needed.
    """

    def __init__(self, sizes: tuple[int, int, int]) -> None:
        super().__init__()
        for name, cells in zip("zyx", sizes, strict=True):
            # On the CPU also where the rest is made without values: no file keeps these.
            self.register_buffer(f"{name}_at", axis(cells), persistent=False)
            self.register_buffer(f"{name}_cells", torch.arange(cells, dtype=torch.float32, device="cpu"), persistent=False)

    def forward(self, volume: Tensor, shifts: Tensor) -> Tensor:
        """Volume [N, C, D, H, W], shifts [N, K, 3] -> [N, K, C, D, H, W]."""
        n, channels, depth, height, width = volume.shape
        count = shifts.shape[1]
        x, y, z = (self._shares(name, shifts[..., i]).to(volume.dtype) for i, name in enumerate("xyz"))
        made = volume.reshape(n, 1, channels * depth, height, width) @ x.transpose(2, 3).reshape(n, count, 1, width, width)
        made = y.reshape(n, count, 1, height, height) @ made
        made = z.reshape(n, count, 1, depth, depth) @ made.reshape(n, count, channels, depth, height * width)
        return made.reshape(n, count, channels, depth, height, width)

    def bumps(self, centres: Tensor, variance: float) -> Tensor:
        """Centres [N, K, 3] -> [N, K, D, H, W], normal densities about them without their factor, as the product of three of one axis."""
        x, y, z = (torch.exp(-0.5 * (self._named(f"{name}_at") - centres[..., i, None]) ** 2 / variance) for i, name in enumerate("xyz"))
        return z[..., :, None, None] * y[..., None, :, None] * x[..., None, None, :]

    def _shares(self, name: str, shift: Tensor) -> Tensor:
        """[N, K] -> [N, K, cells, cells]: how much of every cell (last) each moved one (before it) reads."""
        numbers = self._named(f"{name}_cells")
        at = cell(self._named(f"{name}_at") + shift[..., None], len(numbers))
        return (1 - (at[..., None] - numbers).abs()).clamp(min=0)

    def _named(self, name: str) -> Tensor:
        return getattr(self, name)


__all__ = ["Form", "Shifts", "axis", "cell", "check", "identity_grid", "sampled"]
