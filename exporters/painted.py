"""Painted conditions of a data set: a skeleton, a landmark map or dots over every real picture, of the points that were tracked in it.

A live session brings the driver's points into the portrait's frame (`conditions.place`, rule 1). A clip's crop is chosen so that its neutral head
lies where the portrait's does and is as large, so that the clip's own points in its own crop are the same, and lie on the picture to the pixel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.conditions.place import visibility
from engine.generators.diffusion.conditions import Placed, draw
from engine.generators.diffusion.layout import PAINTED, Condition
from engine.types import BODY_POINTS, FloatArray, UInt8Array

LOOKED_AT = 32
"""Frames that the crop is found from: it is the same in all."""


def body_of(track: Mapping[str, npt.NDArray[Any]], face: FloatArray, kept: npt.NDArray[np.bool_]) -> FloatArray:
    """The pose landmarks of a clip in px of its crop, and how well they are seen [N, 33, 3]; 0 where they are not.

    `track`: what was seen of the whole pictures (`footage.Footage`); `face` [N, 478, 2]: the face's points in px of the crop, which tell where that
    lies in the whole picture, and `kept` [N] where there are some.
    """
    height, width = (int(side) for side in track["size"])
    body = np.zeros((len(face), BODY_POINTS, 3), np.float32)
    frames = np.flatnonzero(kept)[:: max(1, int(kept.sum()) // LOOKED_AT)]
    unit = np.array([width, height], np.float32)
    whole, crop = (track["face"][frames, :, :2] * unit).astype(np.float64), face[frames].astype(np.float64)
    seen = track["body"][: len(face)]
    known = np.isfinite(seen[:, :, :2]).all((1, 2))
    if not len(frames) or not known.any():
        return body
    for axis in range(2):
        scale, shift = np.polyfit(whole[..., axis].ravel(), crop[..., axis].ravel(), 1)
        body[known, :, axis] = seen[known][..., axis] * unit[axis] * scale + shift
    body[known, :, 2] = [visibility(one) for one in seen[known]]
    return body


def painted(condition: Condition, face: FloatArray, body: FloatArray | None, size: tuple[int, int]) -> UInt8Array:
    """Points [F, 478, 2] and pose landmarks [F, 33, 3] (None: nobody looked) in px -> condition pictures [F, H, W, K], black without a face."""
    unseen = np.zeros((BODY_POINTS, 3), np.float32)
    pictures = np.zeros((len(face), *size, 3 * len(PAINTED.get(condition, ("",)))), np.uint8)
    for k, points in enumerate(face):
        if np.isfinite(points).all():
            placed = Placed(points, unseen if body is None else body[k], (), "driver", "head")
            pictures[k] = draw(condition, placed, size)
    return pictures


__all__ = ["body_of", "painted"]
