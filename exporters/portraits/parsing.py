"""Which pixels of an aligned face are skin, eyes, hair and so on: BiSeNet (Yu et al. 2018, arXiv 1808.00897) on ResNet-18, of facexlib's file.

The 19 labels are CelebAMask-HQ's, in the order of face-parsing.PyTorch; the network has the same keys there (79999_iter.pth).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.types import AvatarError, UInt8Array
from exporters import files
from exporters.portraits.projectors import loaded

STEMS = ("parsing_bisenet",)
LABELS = 19
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels, by channel."""
STAGES = (64, 128, 256, 512)
"""Channels of ResNet-18's stages."""
COUNTED = "num_batches_tracked"

Held = Mapping[str, Tensor]


class Conv(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


class Residual(nn.Module):
    """ResNet's basic block."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        made = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(self.downsample(x) + made)


class ResNet(nn.Module):
    """ResNet-18 without its end: pictures -> features at an eighth, a sixteenth and a thirty-second of their size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, STAGES[0], 7, 2, 3, bias=False), nn.BatchNorm2d(STAGES[0])
        for i, width in enumerate(STAGES):
            before, stride = (STAGES[i - 1], 2) if i else (width, 1)
            self.add_module(f"layer{i + 1}", nn.Sequential(Residual(before, width, stride), Residual(width, width, 1)))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        made = []
        for i in range(len(STAGES)):
            x = self.get_submodule(f"layer{i + 1}")(x)
            made.append(x)
        return made[1:]


class Refined(nn.Module):
    """Features weighted by what the whole picture shows."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = Conv(inputs, outputs)
        self.conv_atten, self.bn_atten = nn.Conv2d(outputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        weight = torch.sigmoid(self.bn_atten(self.conv_atten(x.mean((2, 3), keepdim=True))))
        return x * weight


class Context(nn.Module):
    """Pictures -> features at an eighth of their size: (the ResNet's own, those that have seen the whole)."""

    def __init__(self) -> None:
        super().__init__()
        self.resnet = ResNet()
        self.arm16, self.arm32 = Refined(256, 128), Refined(512, 128)
        self.conv_head16, self.conv_head32, self.conv_avg = Conv(128, 128), Conv(128, 128), Conv(512, 128, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        eighth, sixteenth, last = self.resnet(x)
        whole = self.conv_avg(last.mean((2, 3), keepdim=True))
        up = self.conv_head32(functional.interpolate(self.arm32(last) + whole, sixteenth.shape[2:], mode="nearest"))
        up = self.conv_head16(functional.interpolate(self.arm16(sixteenth) + up, eighth.shape[2:], mode="nearest"))
        return eighth, up


class Fusion(nn.Module):
    """Both of them together."""

    def __init__(self) -> None:
        super().__init__()
        self.convblk = Conv(256, 256, 1)
        self.conv1, self.conv2 = nn.Conv2d(256, 64, 1, bias=False), nn.Conv2d(64, 256, 1, bias=False)

    def forward(self, some: Tensor, others: Tensor) -> Tensor:
        x = self.convblk(torch.cat([some, others], 1))
        weight = torch.sigmoid(self.conv2(functional.relu(self.conv1(x.mean((2, 3), keepdim=True)))))
        made: Tensor = x * weight + x
        return made


class Output(nn.Module):
    """Features -> a number for each label."""

    def __init__(self, inputs: int, inner: int) -> None:
        super().__init__()
        self.conv, self.conv_out = Conv(inputs, inner), nn.Conv2d(inner, LABELS, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.conv_out(self.conv(x))
        return made


class BiSeNet(nn.Module):
    """Pictures [B, 3, H, W] -> [B, 19, H, W]. `conv_out16` and `conv_out32` served training, and are there for the file's sake."""

    def __init__(self) -> None:
        super().__init__()
        self.cp, self.ffm = Context(), Fusion()
        self.conv_out, self.conv_out16, self.conv_out32 = Output(256, 256), Output(128, 64), Output(128, 64)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = functional.interpolate(self.conv_out(self.ffm(*self.cp(x))), x.shape[2:], mode="bilinear", align_corners=True)
        return made


def open_parser(path: Path, *, device: str = "cpu") -> BiSeNet:
    """The network of a file. Raises AvatarError where it is another's."""
    held = files.read(path)
    made = BiSeNet()
    # What counts the batches of training is in some files and not in others, and nothing reads it.
    wanted = {key: value for key, value in made.state_dict().items() if key.endswith(COUNTED)}
    if "cp.resnet.conv1.weight" not in held:
        raise AvatarError(f"{path} is no face parsing; give facexlib's {STEMS[0]}.pth.")
    end = ("cp.resnet.fc.weight", "cp.resnet.fc.bias")
    network: BiSeNet = loaded(made, {**wanted, **{key: value for key, value in held.items() if key not in end}}, path.name).to(device)
    return network


@torch.no_grad()
def labels(network: BiSeNet, picture: UInt8Array) -> Tensor:
    """[H, W, 3] RGB -> [H, W] the likeliest label of each pixel."""
    weight = network.ffm.conv1.weight
    mean, deviation = (torch.tensor(values, device=weight.device) for values in (MEAN, DEVIATION))
    pixels = (torch.from_numpy(picture).to(weight.device).float() / 255.0 - mean) / deviation
    return network(pixels.permute(2, 0, 1)[None])[0].argmax(0)


__all__ = ["LABELS", "STEMS", "BiSeNet", "labels", "open_parser"]
