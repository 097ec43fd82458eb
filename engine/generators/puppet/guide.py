"""What a network that mends the puppet's frame is told beside it: where every pixel comes from, and where lips, lids and brows lie."""

from __future__ import annotations

import cv2
import numpy as np

from engine.generators.puppet import topology
from engine.generators.puppet.raster import OUTSIDE, kernel
from engine.types import FloatArray, UInt8Array

LINE = 512
"""px of the picture's shorter side at which a line is 2 px wide."""
_Lines = tuple[tuple[int, ...], ...]


def _rings(corners: tuple[int, int], upper: tuple[int, ...], lower: tuple[int, ...]) -> tuple[int, ...]:
    return (corners[0], *upper, corners[1], *lower[::-1])


GROUPS: tuple[tuple[int, bool, _Lines], ...] = (
    (60, True, (topology.OVAL,)),
    (100, False, tuple(topology.BROWS)),
    (160, True, tuple(_rings(topology.EYE_CORNERS[k], topology.UPPER_LID[k], topology.LOWER_LID[k]) for k in range(2))),
    (200, True, (_rings(topology.LIP_CORNERS[3], topology.UPPER_LIP[3], topology.LOWER_LIP[3]),)),
    (255, True, (_rings(topology.LIP_CORNERS[0], topology.UPPER_LIP[0], topology.LOWER_LIP[0]),)),
)
"""(grey level, whether the lines are closed, face mesh points), in the order of painting: outline, brows, eyes, outer and inner lips."""


def draw(points: FloatArray, sampling: FloatArray, alpha: UInt8Array, pad: float) -> UInt8Array:
    """-> guide [H, W, 3] uint8: x and y in the portrait of what is seen here, 1..255 over its width and height and 0 where the person is not;
    and the landmark map.

    points [N, 2 or 3] px of the moved face mesh; sampling [H, W, 2] and `pad` as in `raster.blend`; alpha [H, W].
    """
    height, width = alpha.shape
    guide = np.zeros((height, width, 3), np.uint8)
    _trace(sampling, alpha, pad, guide)
    lines = np.zeros((height, width), np.uint8)
    thick = max(1, round(2 * min(height, width) / LINE))
    at = np.round(points[:, :2]).astype(np.int32)
    for level, closed, group in GROUPS:
        cv2.polylines(lines, [at[list(line)] for line in group], closed, level, thickness=thick)
    guide[..., 2] = lines
    return guide


@kernel
def _trace(sampling: FloatArray, alpha: UInt8Array, pad: float, guide: UInt8Array) -> None:
    height, width = alpha.shape
    for y in range(height):
        for x in range(width):
            if alpha[y, x] == 0 or sampling[y, x, 0] == np.float32(OUTSIDE):
                continue
            u = (sampling[y, x, 0] - pad) * 254.0 / (width - 1)
            v = (sampling[y, x, 1] - pad) * 254.0 / (height - 1)
            guide[y, x, 0] = np.uint8(1.0 + min(max(u, 0.0), 254.0))
            guide[y, x, 1] = np.uint8(1.0 + min(max(v, 0.0), 254.0))


__all__ = ["draw"]
