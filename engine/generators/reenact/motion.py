"""The motion extractor: ConvNeXt V2 (Woo et al. 2023, arXiv 2301.00808) with a head for every part of a motion."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.generators.reenact.formulas import BINS
from engine.generators.reenact.presets import KEYPOINTS, Preset

EPSILON = 1e-6


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of pictures."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] -> the same."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Response(nn.Module):
    """Global response norm: channels that answer more than the others in the whole picture count more."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.zeros(1, 1, 1, width)), nn.Parameter(torch.zeros(1, 1, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        """[N, h, w, C] -> the same."""
        size = x.square().sum((1, 2), keepdim=True).sqrt()
        return self.gamma * (x * (size / (size.mean(3, keepdim=True) + EPSILON))) + self.beta + x


class Block(nn.Module):
    """7 x 7 px a channel, then two layers a pixel, added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.grn = Response(4 * width)
        self.pwconv2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] -> the same."""
        made = self.pwconv1(self.norm(self.dwconv(x).permute(0, 2, 3, 1)))
        return x + self.pwconv2(self.grn(functional.gelu(made))).permute(0, 3, 1, 2)


class Extractor(nn.Module):
    """Picture -> canonical keypoints, pose and expression, as the network says them; `formulas.Reading` makes sense of it."""

    def __init__(self, made: Preset) -> None:
        super().__init__()
        widths = made.widths
        stem = nn.Sequential(nn.Conv2d(3, widths[0], 4, stride=4), ChannelNorm(widths[0], eps=EPSILON))
        halvings = [nn.Sequential(ChannelNorm(a, eps=EPSILON), nn.Conv2d(a, b, 2, stride=2)) for a, b in zip(widths, widths[1:], strict=False)]
        self.downsample_layers = nn.ModuleList([stem, *halvings])
        self.stages = nn.ModuleList(nn.Sequential(*(Block(width) for _ in range(depth))) for width, depth in zip(widths, made.depths, strict=True))
        self.norm = nn.LayerNorm(widths[-1], eps=EPSILON)
        self.fc_kp, self.fc_exp = nn.Linear(widths[-1], 3 * KEYPOINTS), nn.Linear(widths[-1], 3 * KEYPOINTS)
        self.fc_pitch, self.fc_yaw, self.fc_roll = (nn.Linear(widths[-1], BINS) for _ in range(3))
        self.fc_t, self.fc_scale = nn.Linear(widths[-1], 3), nn.Linear(widths[-1], 1)

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        """[N, 3, side, side] 0..1 -> keypoints [N, 63]; pitch, yaw and roll [N, 66] before their softmax; shift [N, 3]; expression [N, 63];
        scale [N, 1]."""
        x = picture
        for halving, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(halving(x))
        x = self.norm(x.mean((2, 3)))
        return tuple(head(x) for head in (self.fc_kp, self.fc_pitch, self.fc_yaw, self.fc_roll, self.fc_t, self.fc_exp, self.fc_scale))


__all__ = ["Extractor"]
