"""What a training picture is judged by: pixels, edges and detail at several sizes, and a small critic. None needs downloaded weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from exporters.data.regions import psnr, regions


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each term counts. Pictures are -1..1."""

    regions: tuple[float, float] = (10.0, 2.0)  # mouth with eyes, and face, over the rest
    absolute: float = 0.01  # more of these three would keep the puppet as it is: their gradients do not shrink with the error
    edges: float = 0.01
    detail: float = 0.005  # the bands of a Laplacian pyramid
    critic: float = 0.02  # 0 for none
    identity: float = 0.1  # where a recogniser is given; as beside a square error of 1 in pSp (Richardson et al. 2021, arXiv 2008.00951)


def weigh(areas: Tensor, weights: Weights) -> Tensor:
    """areas [N, 2, H, W] -> [N, 1, H, W] with mean 1."""
    inside, face = areas[:, :1], areas[:, 1:]
    weight = 1.0 + (weights.regions[1] - 1.0) * face + (weights.regions[0] - weights.regions[1]) * inside
    return weight / weight.mean((1, 2, 3), keepdim=True)


def even(weight: Tensor, coarse: Tensor, truth: Tensor) -> Tensor:
    """The weights [N, 1, H, W] with those pictures lowered whose condition [N, 3, H, W] is further off the truth than the middle one's.

    Where the puppet was held still its picture lacks ten times as much as elsewhere, and little else would be learnt.
    """
    off = (weight * (coarse - truth).square()).mean((1, 2, 3))
    share = (off.median() / off.clamp(min=1e-12)).clamp(max=1.0)
    return weight * share.view(-1, 1, 1, 1)


def pictures(made: Tensor, truth: Tensor, weight: Tensor, weights: Weights) -> dict[str, Tensor]:
    """made and truth [N, 3, H, W] -1..1, weight [N, 1, H, W] -> the terms, already weighed against each other."""
    apart = made - truth
    across, down = apart.diff(dim=3).abs(), apart.diff(dim=2).abs()
    return {
        "square": (weight * apart.square()).mean(),
        "absolute": weights.absolute * (weight * apart.abs()).mean(),
        "edges": weights.edges * ((weight[..., 1:] * across).mean() + (weight[..., 1:, :] * down).mean()),
        "detail": weights.detail * sum((weight_at * band.abs()).mean() for band, weight_at in _bands(apart, weight)),
    }


def _bands(picture: Tensor, weight: Tensor, levels: int = 3) -> list[tuple[Tensor, Tensor]]:
    """Laplacian pyramid (Burt and Adelson 1983), finest first, each with the weight at its size."""
    bands = []
    for _ in range(levels):
        small = functional.avg_pool2d(picture, 2)
        bands.append((picture - functional.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False), weight))
        picture, weight = small, functional.avg_pool2d(weight, 2)
    return bands


class Critic(nn.Module):
    """Tells real patches from made ones, given the puppet's picture beside them (a conditional patch discriminator, Isola et al. 2017,
    with spectral normalisation, Miyato et al. 2018)."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()

        def layer(fan_in: int, fan_out: int, stride: int) -> nn.Module:
            return spectral_norm(nn.Conv2d(fan_in, fan_out, 4, stride, 1))

        self.layers = nn.ModuleList([layer(6, width, 2), layer(width, 2 * width, 2), layer(2 * width, 4 * width, 1), layer(4 * width, 1, 1)])

    def forward(self, picture: Tensor, coarse: Tensor) -> tuple[Tensor, list[Tensor]]:
        """[N, 3, H, W] each, -1..1 -> (scores [N, 1, h, w], > 0 for real; the features on the way)."""
        x, features = torch.cat([picture, coarse], 1), []
        for layer in self.layers[:-1]:
            x = functional.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.layers[-1](x), features

    def judge(self, made: Tensor, truth: Tensor, coarse: Tensor) -> Tensor:
        """What the critic itself is trained on: the hinge loss."""
        real, fake = self(truth, coarse)[0], self(made.detach(), coarse)[0]
        loss: Tensor = functional.relu(1 - real).mean() + functional.relu(1 + fake).mean()
        return loss

    def please(self, made: Tensor, truth: Tensor, coarse: Tensor) -> Tensor:
        """What the generator is trained on: to pass for real, and to look alike from inside (feature matching)."""
        score, features = self(made, coarse)
        with torch.no_grad():
            wanted = self(truth, coarse)[1]
        alike = sum((a - b).abs().mean() for a, b in zip(features, wanted, strict=True))
        loss: Tensor = alike - 0.1 * score.mean()
        return loss


def sharpness(picture: npt.NDArray[np.uint8], where: npt.NDArray[np.float32]) -> float:
    """High-frequency energy of pictures [N, H, W, 3] inside `where` [N, H, W]: mean square of what a small blur takes away."""
    import cv2

    grey = picture.astype(np.float32).mean(-1)
    high = np.stack([one - cv2.GaussianBlur(one, (0, 0), 1.5) for one in grey])
    return float((high**2 * where).sum() / max(float(where.sum()), 1e-6))


__all__ = ["Critic", "Weights", "even", "pictures", "psnr", "regions", "sharpness", "weigh"]
