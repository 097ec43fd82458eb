"""Paints a face as Moore-AnimateAnyone's reenactment reads it: 68 points as small dots on black, in two pictures that say different things.

*upper*: all dots where they are, but the lower part of the picture is black: how the head is held, brows, lids and gaze. *mouth*: the dots of the
lips alone, moved by what takes the middle of all points into the middle of the picture: what the mouth does, wherever the head is.

The points are those of the tracker that the published weights learnt from (OpenSeeFace, github.com/emilianavt/OpenSeeFace): iBUG's 68 with one
point instead of two in each corner of the mouth, and two pupils. Which mesh point each of them is was chosen beside what its quick model sees on
three clips of three people: they lie 6 % of the distance between the eyes apart (2 to 13 % by point; its outline lies furthest from the mesh's).
"""

from __future__ import annotations

import cv2
import numpy as np

from engine.conditions.skeleton import face_68
from engine.pose import Float64Array
from engine.types import FloatArray, UInt8Array

PUBLISHED_SIDE, DOT = 512, 1
"""px of the picture's shorter side, and the radius of a dot there."""
UPPER_SHARE = 0.55
"""Of the picture's height that the upper part takes; the published script calls 0.55 to 0.6 good."""
FACE_COLOUR, PUPIL_COLOUR = (0, 255, 0), (255, 255, 0)
CHIN, CHIN_AT = (138, 136, 150, 140, 175, 369, 379, 365, 367), slice(4, 13)
"""Mesh points of the outline's lower part, which that tracker sees further in than iBUG's, and which points they are."""
WINGS, WINGS_AT = (75, 305), [31, 35]
"""Likewise the wings of the nose."""
LIPS = (39, 37, 0, 267, 269, 321, 405, 17, 181, 91, 61, 81, 13, 311, 291, 402, 14, 178)
"""Outer edge above and below, a corner, inner edge above, a corner, inner edge below: from the picture's left above, from its right below."""
PUPILS = (468, 473)
LIPS_AT, PUPILS_AT = slice(48, 66), slice(66, 68)


def face_dots(face: FloatArray) -> FloatArray:
    """Face [478, 2] -> [68, 2] the points in OpenSeeFace's order: outline, brows, nose, eyes, lips, pupils."""
    first = face_68(face)[: LIPS_AT.start]
    first[CHIN_AT], first[WINGS_AT] = face[list(CHIN)], face[list(WINGS)]
    return np.asarray(np.concatenate([first, face[[*LIPS, *PUPILS]]]), np.float32)


def paint_dots(size: tuple[int, int], points: FloatArray) -> UInt8Array:
    """A picture [H, W, 6] of `size` (H, W), upper part and then mouth, from points [68, 2] in px as `face_dots` orders them."""
    height, width = size
    dot = max(1, round(DOT * min(size) / PUBLISHED_SIDE))
    upper, mouth = (np.zeros((height, width, 3), np.uint8) for _ in range(2))
    # Column by column and then in double precision, as published: dots are cut to whole px, so that the last digit shows.
    off = [float(column.mean()) - side // 2 for column, side in zip(points.T, (width, height), strict=True)]
    _dots(upper, points[: PUPILS_AT.start], FACE_COLOUR, dot)
    _dots(upper, points[PUPILS_AT], PUPIL_COLOUR, dot)
    upper[int(height * UPPER_SHARE) :] = 0
    _dots(mouth, points[LIPS_AT] - np.array(off), FACE_COLOUR, dot)
    return np.concatenate([upper, mouth], 2)


def _dots(canvas: UInt8Array, points: FloatArray | Float64Array, colour: tuple[int, int, int], radius: int) -> None:
    for x, y in points:
        cv2.circle(canvas, (int(float(x) + 0.5), int(float(y) + 0.5)), radius, colour, thickness=-1)


__all__ = ["face_dots", "paint_dots"]
