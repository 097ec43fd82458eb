"""Pictures with faces that the tests make themselves, from the built-in portrait."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import cv2
import numpy as np

import engine
from engine.types import UInt8Array

GREY = 90


@cache
def portrait() -> UInt8Array:
    """The built-in portrait [768, 768, 3] RGB."""
    file = Path(engine.__file__).parent / "assets" / "portrait.jpg"
    picture = np.asarray(cv2.imread(str(file)), np.uint8)
    return np.ascontiguousarray(picture[..., ::-1])


def scene(*heads: tuple[int, int, int], size: tuple[int, int] = (480, 640)) -> UInt8Array:
    """A grey picture of size (H, W) px with the portrait at each (x, y, side) px: its middle and its side; the face is 0.31 of the side."""
    height, width = size
    picture = np.full((height, width, 3), GREY, np.uint8)
    for x, y, side in heads:
        head = np.asarray(cv2.resize(portrait(), (side, side), interpolation=cv2.INTER_AREA), np.uint8)
        left, top = x - side // 2, y - side // 2
        x0, y0, x1, y1 = max(0, left), max(0, top), min(width, left + side), min(height, top + side)
        if x0 < x1 and y0 < y1:
            picture[y0:y1, x0:x1] = head[y0 - top : y1 - top, x0 - left : x1 - left]
    return picture
