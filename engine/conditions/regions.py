"""Where a portrait has its face and lips, as masks: what audio-driven denoisers are told instead of a pose.

Boxes around points of the face mesh, made larger; for the branches of speech softened on a grid of 64 x 64 cells and brought to the size of
every level, by the steps (and the rounding to whole greys between them) of the published preparation (Hallo).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from engine.drivers.outlines import LIPS, OVAL
from engine.types import FloatArray, UInt8Array

FACE_RATIO, LIPS_RATIO = 1.2, 2.0
"""Sides of the boxes, in sides of what they are around."""
GRID = 64
"""Cells a side that masks are softened on."""
FACE_BLUR, LIPS_BLUR = 51, 31
"""Cells a side of the Gaussian kernels."""
WHITE = 255


def box(points: FloatArray, size: tuple[int, int], ratio: float) -> UInt8Array:
    """Points [N, 2] px in a picture of `size` (H, W) -> [H, W] 255 in a box around them whose sides are `ratio` times theirs, else 0.

    A box that reaches beyond an edge is moved in, and cut where it is larger than the picture.
    """
    height, width = size
    low, high = np.round(points.min(0)), np.round(points.max(0))
    spans = []
    for first, last, edge in ((low[1], high[1], height), (low[0], high[0], width)):
        middle, half = (first + last) // 2, (last - first) * ratio // 2
        start, stop = middle - half, middle + half
        if start < 0:
            start, stop = 0.0, stop - start
        if stop > edge:
            start, stop = start - (stop - edge), float(edge)
        spans.append(slice(max(0, round(float(start))), round(float(stop))))
    mask = np.zeros(size, np.uint8)
    mask[spans[0], spans[1]] = WHITE
    return mask


def face_mask(face: FloatArray, size: tuple[int, int]) -> UInt8Array:
    """Face points [478, 2] px -> [H, W]"""
    return box(face[list(OVAL)], size, FACE_RATIO)


def _soft(mask: UInt8Array, kernel: int) -> UInt8Array:
    """[H, W] -> [64, 64], the whole range from black to white."""
    blurred = cv2.GaussianBlur(cv2.resize(mask, (GRID, GRID)), (kernel, kernel), 0)
    return np.asarray(cv2.normalize(blurred, blurred, 0, WHITE, cv2.NORM_MINMAX), np.uint8)


def branches(face: FloatArray, size: tuple[int, int]) -> list[UInt8Array]:
    """Face points [478, 2] px -> [64, 64] each: what surrounds the face, the face without its lips, the lips."""
    whole, lips = _soft(face_mask(face, size), FACE_BLUR), _soft(box(face[list(LIPS)], size, LIPS_RATIO), LIPS_BLUR)
    around = ((1.0 - whole / WHITE) * WHITE).astype(np.uint8)
    return [around, np.asarray(cv2.subtract(whole, lips), np.uint8), lips]


def regions(face: FloatArray, size: tuple[int, int], levels: Sequence[tuple[int, int]]) -> FloatArray:
    """Face points [478, 2] px of a portrait of `size` (H, W) -> [3, R] 0..1, the cells of all `levels` (h, w) one after the other."""
    from PIL import Image

    rows = []
    for mask in branches(face, size):
        picture = Image.fromarray(mask)
        scaled = [picture if level == mask.shape else picture.resize(level[::-1], Image.Resampling.BILINEAR) for level in levels]
        rows.append(np.concatenate([np.asarray(each, np.float32).ravel() / WHITE for each in scaled]))
    return np.stack(rows)


__all__ = ["FACE_RATIO", "LIPS_RATIO", "box", "branches", "face_mask", "regions"]
