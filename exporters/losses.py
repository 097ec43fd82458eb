"""What a training picture is judged by: pixels, edges and detail at several sizes, and a small critic. None needs downloaded weights."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from engine.types import FloatArray

MOUTH = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)
"""Outer lips, around."""
EYES = (
    (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246),
    (362, 382, 381, 380, 374, 373, 390, 249, 263, 466, 388, 387, 386, 385, 384, 398),
)
OVAL = (
    *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377),
    *(152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
)
EYE_CORNERS = (33, 263)
GROWN = 0.18
"""Inter-ocular distances that mouth and eye regions reach beyond their outlines: where the puppet's errors spread to."""


def regions(face: FloatArray, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Face points [478, 2] px -> [2, H, W] 0..1: mouth with eyes, and the whole face; all 0 where the face is unknown (NaN)."""
    masks = np.zeros((2, *size), np.uint8)
    if not np.isfinite(face).all():
        return masks.astype(np.float32)
    grown = max(1, round(GROWN * float(np.linalg.norm(face[EYE_CORNERS[0]] - face[EYE_CORNERS[1]]))))
    for outline in (MOUTH, *EYES):
        cv2.fillConvexPoly(masks[0], cv2.convexHull(np.rint(face[list(outline)]).astype(np.int32)), (255,))
    masks[0] = cv2.dilate(masks[0], cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * grown + 1, 2 * grown + 1)))
    cv2.fillConvexPoly(masks[1], cv2.convexHull(np.rint(face[list(OVAL)]).astype(np.int32)), (255,))
    return np.asarray(np.stack([cv2.GaussianBlur(mask, (0, 0), grown / 3) for mask in masks]) / 255, np.float32)


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each term counts. Pictures are -1..1."""

    regions: tuple[float, float] = (10.0, 2.0)  # mouth with eyes, and face, over the rest
    absolute: float = 0.05
    edges: float = 0.1
    detail: float = 0.05  # the bands of a Laplacian pyramid
    critic: float = 0.02  # 0 for none


def weigh(areas: Tensor, weights: Weights) -> Tensor:
    """areas [N, 2, H, W] -> [N, 1, H, W] with mean 1."""
    inside, face = areas[:, :1], areas[:, 1:]
    weight = 1.0 + (weights.regions[1] - 1.0) * face + (weights.regions[0] - weights.regions[1]) * inside
    return weight / weight.mean((1, 2, 3), keepdim=True)


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


def psnr(made: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8], where: npt.NDArray[np.float32] | None = None) -> float:
    """dB between pictures [.., H, W, 3] 0..255, over the pixels that `where` [.., H, W] weighs."""
    square = ((made.astype(np.float32) - truth.astype(np.float32)) ** 2).mean(-1)
    error = square.mean() if where is None else (square * where).sum() / max(float(where.sum()), 1e-6)
    return float(10 * np.log10(255.0**2 / max(float(error), 1e-6)))


def sharpness(picture: npt.NDArray[np.uint8], where: npt.NDArray[np.float32]) -> float:
    """High-frequency energy of pictures [N, H, W, 3] inside `where` [N, H, W]: mean square of what a small blur takes away."""
    grey = picture.astype(np.float32).mean(-1)
    high = np.stack([one - cv2.GaussianBlur(one, (0, 0), 1.5) for one in grey])
    return float((high**2 * where).sum() / max(float(where.sum()), 1e-6))


__all__ = ["Critic", "Weights", "pictures", "psnr", "regions", "sharpness", "weigh"]
