"""InsightFace's residual networks (Deng et al. 2019, arXiv 1801.07698, after Han et al. 2017: normalise, convolve, normalise, PReLU, convolve,
normalise), built to fit a file of their weights (arcface_torch's backbone.pth): any depth, any length of vector."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.types import AvatarError

WIDTHS = (64, 64, 128, 256, 512)
"""Channels of the stem and of the four stages, each of which halves height and width: 112 px become 7."""
LAST = 7


class Block(nn.Module):
    """One residual block."""

    def __init__(self, fan_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(fan_in)
        self.conv1 = nn.Conv2d(fan_in, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.downsample = nn.Sequential(nn.Conv2d(fan_in, width, 1, stride, bias=False), nn.BatchNorm2d(width)) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C', H / stride, W / stride]"""
        y = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        total: Tensor = y + (x if self.downsample is None else self.downsample(x))
        return total


class IResNet(nn.Module):
    """Aligned faces [N, 3, 112, 112] -1..1 -> [N, D]"""

    def __init__(self, depths: tuple[int, ...], length: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=False)
        self.bn1, self.prelu = nn.BatchNorm2d(WIDTHS[0]), nn.PReLU(WIDTHS[0])
        for number, depth in enumerate(depths, 1):
            fan_in, width = WIDTHS[number - 1], WIDTHS[number]
            self.add_module(f"layer{number}", nn.Sequential(Block(fan_in, width, 2), *(Block(width, width, 1) for _ in range(depth - 1))))
        self.bn2 = nn.BatchNorm2d(WIDTHS[-1])
        self.fc = nn.Linear(WIDTHS[-1] * LAST**2, length)
        self.features = nn.BatchNorm1d(length)

    def forward(self, x: Tensor) -> Tensor:
        """As the class."""
        x = self.prelu(self.bn1(self.conv1(x)))
        for number in range(1, len(WIDTHS)):
            x = self.get_submodule(f"layer{number}")(x)
        vectors: Tensor = self.features(self.fc(self.bn2(x).flatten(1)))
        return vectors


def build(path: Path, state: Mapping[str, Tensor]) -> IResNet:
    """The network of these weights. Raises AvatarError where they are another's; `path` is named there."""
    depths = tuple(len({key.split(".")[1] for key in state if key.startswith(f"layer{number}.")}) for number in range(1, len(WIDTHS)))
    wrong = f"'{path}' does not hold the weights of an InsightFace iresnet; give its network as ONNX or TorchScript."
    if not all(depths) or "fc.weight" not in state:
        raise AvatarError(wrong)
    with torch.device("meta"):
        network = IResNet(depths, len(state["fc.weight"]))
    counters = {name: torch.zeros((), dtype=torch.int64) for name, _ in network.named_buffers() if name.endswith("num_batches_tracked")}
    try:
        network.load_state_dict({**counters, **{name: tensor.float() for name, tensor in state.items()}}, assign=True)
    except RuntimeError as error:
        raise AvatarError(wrong) from error
    return network


__all__ = ["IResNet", "build"]
