"""Layers that the networks share. Attributes carry the published names, so that published keys fit as they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

SLOPE = 0.2
"""Of the decoder's leaky ReLUs; the warping module's have PyTorch's 0.01."""


class Same(nn.Module):
    """Convolution, batch norm, (leaky) ReLU; the size stays."""

    def __init__(self, width_in: int, width: int, *, leaky: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.LeakyReLU() if leaky else nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] -> [N, C', h, w]."""
        return self.act(self.norm(self.conv(x)))


class Down(nn.Module):
    """The same, then means of 2 x 2 (in a volume of 1 x 2 x 2)."""

    def __init__(self, width_in: int, width: int, *, volume: bool = False) -> None:
        super().__init__()
        self.conv = (nn.Conv3d if volume else nn.Conv2d)(width_in, width, 3, padding=1)
        self.norm = (nn.BatchNorm3d if volume else nn.BatchNorm2d)(width)
        self.pool = nn.AvgPool3d((1, 2, 2)) if volume else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, (D,) h, w] -> [N, C', (D,) h / 2, w / 2]."""
        return self.pool(functional.relu(self.norm(self.conv(x))))


class Up3d(nn.Module):
    """A volume's height and width doubled, then convolution, batch norm, ReLU."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(width_in, width, 3, padding=1)
        self.norm = nn.BatchNorm3d(width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, D, h, w] -> [N, C', D, 2h, 2w]."""
        n, c, d, h, w = x.shape
        # Depth folded into the channels, so that every runtime can repeat the pixels of what it takes for pictures.
        grown = functional.interpolate(x.reshape(n, c * d, h, w), scale_factor=2.0, mode="nearest").reshape(n, c, d, 2 * h, 2 * w)
        return functional.relu(self.norm(self.conv(grown)))


class Residual3d(nn.Module):
    """Batch norm, ReLU and convolution, twice, added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm3d(width), nn.BatchNorm3d(width)
        self.conv1, self.conv2 = nn.Conv3d(width, width, 3, padding=1), nn.Conv3d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, D, h, w] -> the same."""
        made = self.conv1(functional.relu(self.norm1(x)))
        return x + self.conv2(functional.relu(self.norm2(made)))


class Hourglass(nn.Module):
    """Down by `levels` halvings of height and width and up again, with everything from the way down laid beside."""

    def __init__(self, width_in: int, width: int, *, levels: int, widest: int) -> None:
        super().__init__()
        widths = [width_in, *(min(widest, width * 2 ** (i + 1)) for i in range(levels))]
        self.encoder, self.decoder = nn.Module(), nn.Module()
        self.encoder.down_blocks = nn.ModuleList(Down(a, b, volume=True) for a, b in zip(widths, widths[1:], strict=False))
        ups = []
        for i in reversed(range(levels)):
            beside = widths[i + 1] if i < levels - 1 else 0
            ups.append(Up3d(widths[i + 1] + beside, min(widest, width * 2**i)))
        self.decoder.up_blocks = nn.ModuleList(ups)
        self.width = width + width_in
        self.decoder.conv = nn.Conv3d(self.width, self.width, 3, padding=1)
        self.decoder.norm = nn.BatchNorm3d(self.width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, D, h, w] -> [N, `width`, D, h, w]."""
        kept = [x]
        for down in self.encoder.down_blocks:
            kept.append(down(kept[-1]))
        made = kept.pop()
        for up in self.decoder.up_blocks:
            made = torch.cat([up(made), kept.pop()], 1)
        return functional.relu(self.decoder.norm(self.decoder.conv(made)))


def enlarged(x: Tensor, weight: Tensor, bias: Tensor, factor: int) -> Tensor:
    """A 3 x 3 convolution (padding 1) of x [N, C, h, w] with every pixel repeated `factor` times each way, at a fraction of its cost.

    Of the repeated pixels a kernel sees two or one each way, and always the same for the same place within a pixel: so its taps on one pixel
    are added up, and each kind of place is computed once, on the pixels that are not repeated. Rectified: what repeats is computed once.
    """
    if factor == 1:
        return functional.relu(functional.conv2d(x, weight, bias, padding=1))
    n, _, h, w = x.shape
    padded = functional.pad(x, (1, 1, 1, 1))
    made: dict[tuple[int, int], Tensor] = {}
    kinds = [0, *[1] * (factor - 2), 2]  # of places within a pixel: at its start, inside, at its end
    for i in sorted(set(kinds)):
        rows = _summed(weight, i, 2)
        for j in sorted(set(kinds)):
            taps = _summed(rows, j, 3)
            top, left = int(i > 0), int(j > 0)
            seen = padded[:, :, top : top + h + taps.shape[2] - 1, left : left + w + taps.shape[3] - 1]
            made[i, j] = functional.relu(functional.conv2d(seen, taps, bias))
    lines = [torch.stack([made[i, j] for j in kinds], 4).reshape(n, -1, h, factor * w) for i in kinds]
    return torch.stack(lines, 3).reshape(n, -1, factor * h, factor * w)


def _summed(weight: Tensor, kind: int, side: int) -> Tensor:
    """The three taps along a side as they fall on the pixels that are not repeated."""
    first, middle, last = weight.split(1, side)
    if kind == 1:
        return first + middle + last
    return torch.cat([first, middle + last] if kind == 0 else [first + middle, last], side)


class Modulation(nn.Module):
    """SPADE (Park et al. 2019, arXiv 1903.07291): every channel evened out, then scaled and moved pixel by pixel as a map says."""

    def __init__(self, width: int, told: int, shared: int) -> None:
        super().__init__()
        self.even = nn.InstanceNorm2d(width, affine=False)
        self.mlp_shared = nn.Sequential(nn.Conv2d(told, shared, 3, padding=1), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(shared, width, 3, padding=1)
        self.mlp_beta = nn.Conv2d(shared, width, 3, padding=1)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """[N, C, h, w] and a map [N, T, h / r, w / r] -> [N, C, h, w]."""
        read = enlarged(told, self.mlp_shared[0].weight, self.mlp_shared[0].bias, x.shape[2] // told.shape[2])
        return self.even(x) * (1 + self.mlp_gamma(read)) + self.mlp_beta(read)


class Modulated(nn.Module):
    """A residual block whose norms are modulations. Published with spectral norm, which an import folds into the weights."""

    def __init__(self, width_in: int, width: int, *, told: int, shared: int) -> None:
        super().__init__()
        middle = min(width_in, width)
        self.conv_0, self.conv_1 = nn.Conv2d(width_in, middle, 3, padding=1), nn.Conv2d(middle, width, 3, padding=1)
        self.norm_0, self.norm_1 = Modulation(width_in, told, shared), Modulation(middle, told, shared)
        self.learned = width_in != width
        if self.learned:
            self.conv_s = nn.Conv2d(width_in, width, 1, bias=False)
            self.norm_s = Modulation(width_in, told, shared)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """[N, C, h, w] and a map [N, T, h / r, w / r] -> [N, C', h, w]."""
        made = self.conv_0(functional.leaky_relu(self.norm_0(x, told), SLOPE))
        made = self.conv_1(functional.leaky_relu(self.norm_1(made, told), SLOPE))
        return made + (self.conv_s(self.norm_s(x, told)) if self.learned else x)


__all__ = ["SLOPE", "Down", "Hourglass", "Modulated", "Modulation", "Residual3d", "Same", "Up3d", "enlarged"]
