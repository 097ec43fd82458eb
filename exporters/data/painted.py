"""Painted conditions of a data set: a skeleton, a landmark map or dots over every real picture, of the points that were tracked in it.

A live session brings the driver's points into the portrait's frame (`conditions.place`, rule 1). A clip's crop is chosen so that its neutral head
lies where the portrait's does and is as large, so that the clip's own points in its own crop are the same, and lie on the picture to the pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from engine.conditions.place import visibility
from engine.generators.diffusion.conditions import Placed, draw
from engine.generators.diffusion.layout import PAINTED, Condition
from engine.types import BODY_POINTS, FloatArray, UInt8Array

if TYPE_CHECKING:
    from exporters.data.dataset import Clip

LOOKED_AT = 32
"""Frames that the crop is found from: it is the same in all."""


Way = Callable[[FloatArray], FloatArray]
"""Points [.., 2], x, y 0..1 of the whole picture -> px of the crop."""


def into_crop(track: Mapping[str, npt.NDArray[Any]], face: FloatArray, kept: npt.NDArray[np.bool_]) -> Way | None:
    """Where the crop of a clip lies in its whole pictures; None where no face tells. See `body_of`."""
    frames = np.flatnonzero(kept)[:: max(1, int(kept.sum()) // LOOKED_AT)]
    if not len(frames):
        return None
    unit = np.array(track["size"][::-1], np.float64)
    whole, crop = track["face"][frames, :, :2] * unit, face[frames].astype(np.float64)
    fits = np.array([np.polyfit(whole[..., axis].ravel(), crop[..., axis].ravel(), 1) for axis in range(2)])
    return lambda points: (points * unit * fits[:, 0] + fits[:, 1]).astype(np.float32)


def body_of(track: Mapping[str, npt.NDArray[Any]], face: FloatArray, kept: npt.NDArray[np.bool_]) -> FloatArray:
    """The pose landmarks of a clip in px of its crop, and how well they are seen [N, 33, 3]; 0 where they are not.

    `track`: what was seen of the whole pictures (`footage.Footage`); `face` [N, 478, 2]: the face's points in px of the crop, which tell where that
    lies in the whole picture, and `kept` [N] where there are some.
    """
    body = np.zeros((len(face), BODY_POINTS, 3), np.float32)
    seen, way = track["body"][: len(face)], into_crop(track, face, kept)
    known = np.isfinite(seen[:, :, :2]).all((1, 2))
    if way is None or not known.any():
        return body
    body[known, :, :2] = way(seen[known][..., :2])
    body[known, :, 2] = [visibility(one) for one in seen[known]]
    return body


def placed(clip: Clip, frame: int) -> Placed:
    """The points of a frame that was kept, in its crop."""
    body = np.zeros((BODY_POINTS, 3), np.float32) if clip.body is None else clip.body[frame]
    hands = () if clip.hands is None else tuple(hand for hand in clip.hands[frame] if np.isfinite(hand).all())
    return Placed(clip.face[frame], body, hands, "driver", "head")


def painted(condition: Condition, clip: Clip, frames: range, size: tuple[int, int], *, face: bool = True) -> UInt8Array:
    """Condition pictures [F, H, W, K] of a clip's frames, black without a face. `face`: whether a skeleton shows its face's points."""
    pictures = np.zeros((len(frames), *size, 3 * len(PAINTED.get(condition, ("",)))), np.uint8)
    for k, frame in enumerate(frames):
        if np.isfinite(clip.face[frame]).all():
            pictures[k] = draw(condition, placed(clip, frame), size, face=face)
    return pictures


__all__ = ["Way", "body_of", "into_crop", "painted", "placed"]
