"""Find the one face of a portrait, however small it is in the picture, or say in words why there is none to drive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from engine.drivers.face import FaceTracker
from engine.types import AvatarError, FloatArray, UInt8Array

TILE_SHARES = (1.0, 0.5, 0.3)
"""Windows the picture is searched in, as shares of its short side: the detector sees faces from about a fifth of its window."""
TILE_STEP = 0.5
"""Share of a window from one to the next, so that every face is whole in one of them."""
SMALLEST_FACE = 48
"""px across: below this a face has too little to be animated."""
RIVAL = 0.5
"""A second face at least this share as wide as the first makes the choice unclear."""
CUT_SHARE = 0.08
"""Largest share of a face's outline outside the picture that can be completed."""
SAME_FACE = 0.5
"""Two finds whose centres are closer than this many face widths are one face."""
CLOSE_UP = 2.5
"""Side of the second look at a find, in face widths: the mesh is sharpest where the face fills its window."""

# fmt: off
OVAL = (10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149, 150, 136, 172, 58, 132, 93,
        234, 127, 162, 21, 54, 103, 67, 109)
# fmt: on
"""Face mesh points around the face, from the top of the forehead clockwise in the picture."""


@dataclass(frozen=True, slots=True)
class Found:
    """A face in a picture."""

    points: FloatArray  # [478, 2] px of the picture
    center: tuple[float, float]  # px, middle of the face's outline
    width: float  # px across
    height: float  # px from the hairline to the chin

    @classmethod
    def of(cls, points: FloatArray) -> Found:
        """From mesh points [478, 2] in px."""
        low, high = points[list(OVAL)].min(0), points[list(OVAL)].max(0)
        middle = (low + high) / 2
        return cls(points, (float(middle[0]), float(middle[1])), float(high[0] - low[0]), float(high[1] - low[1]))

    def same(self, other: Found) -> bool:
        """Whether both are the same face."""
        apart = np.hypot(self.center[0] - other.center[0], self.center[1] - other.center[1])
        return bool(apart < SAME_FACE * max(self.width, other.width))


def find_face(rgb: UInt8Array) -> Found:
    """Picture [H, W, 3] RGB -> its face.

    Raises AvatarError where there is no face, where a second one is more than half as wide as the largest, where the face is
    cut by the picture's edge and where it is too small.
    """
    tracker = FaceTracker(still=True)
    try:
        faces = _search(tracker, rgb)
    finally:
        tracker.close()
    if not faces:
        raise AvatarError("No face was found in this picture; use one where a face looks towards the camera and is well lit.")
    face = faces[0]
    if len(faces) > 1 and faces[1].width > RIVAL * face.width:
        raise AvatarError("There is more than one face in this picture; crop it to the person who should move.")
    if _outside(face, rgb) > CUT_SHARE:
        raise AvatarError("The face is cut off by the edge of the picture; use one that shows the whole face.")
    if face.width < SMALLEST_FACE:
        raise AvatarError(f"The face is only {face.width:.0f} pixels wide; use a picture where it is at least {SMALLEST_FACE}.")
    return face


def _search(tracker: FaceTracker, rgb: UInt8Array) -> list[Found]:
    """Every face that matters, the widest first: finer windows only while a face worth half the widest could hide in them."""
    faces: list[Found] = []
    for share in TILE_SHARES:
        for x, y, side_x, side_y in _tiles(rgb.shape[1], rgb.shape[0], share):
            window = rgb[y : y + side_y, x : x + side_x]
            for points in tracker.detect(window):
                found = Found.of(points[:, :2] * np.array((side_x, side_y), np.float32) + np.array((x, y), np.float32))
                if not any(found.same(other) for other in faces):
                    faces.append(found)
        if faces:
            break
    faces = [_closer(tracker, rgb, face) for face in faces]
    return sorted(faces, key=lambda face: -face.width)


def _closer(tracker: FaceTracker, rgb: UInt8Array, face: Found) -> Found:
    """The same face, read again from a window around it."""
    half = CLOSE_UP / 2 * max(face.width, face.height)
    x0, y0 = (max(0, int(c - half)) for c in face.center)
    window = rgb[y0 : int(face.center[1] + half), x0 : int(face.center[0] + half)]
    size = np.array((window.shape[1], window.shape[0]), np.float32)
    again = [Found.of(points[:, :2] * size + np.array((x0, y0), np.float32)) for points in tracker.detect(window)]
    return next((found for found in again if found.same(face)), face)


def _tiles(width: int, height: int, share: float) -> Iterator[tuple[int, int, int, int]]:
    """(x, y, width, height) of the windows; the whole picture for share 1."""
    if share >= 1.0:
        yield 0, 0, width, height
        return
    side = max(1, round(share * min(width, height)))
    for y in _starts(height, side):
        for x in _starts(width, side):
            yield x, y, side, side


def _starts(length: int, side: int) -> Sequence[int]:
    count = 1 + int(np.ceil((length - side) / (TILE_STEP * side)))
    return [round(start) for start in np.linspace(0, length - side, count)]


def _outside(face: Found, rgb: UInt8Array) -> float:
    """Share of the face's outline that lies outside the picture."""
    height, width = rgb.shape[:2]
    outline = face.points[list(OVAL)]
    inside = (outline >= 0).all(1) & (outline[:, 0] < width) & (outline[:, 1] < height)
    return float(1.0 - inside.mean())
