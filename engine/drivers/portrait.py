"""Find the one face of a portrait, however small it is in the picture, or say in words why there is none to drive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from engine.drivers.outlines import OVAL
from engine.drivers.tracker import FaceTracker
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
SEEN_FROM = 0.15
"""A face at least this share of its window wide is found in it."""
CLOSE_UPS = (3.2, 2.2)
"""Sides of the windows for a second look at a find, in its own widths. What is not seen again in each of them, in the same place and
size, was a shadow or a pattern; the last look is the sharpest."""
AGREES = (0.2, 1.3)
"""Largest shift, in widths, and change of width between two looks at one face."""
SOFTER = 0.006
"""Standard deviation of the softened picture that is searched when the picture itself shows no face, as a share of its longest side."""
UPRIGHT = 50.0
"""Degrees a head may be tilted."""
FRONTAL = 0.22
"""Smallest ratio of the two halves of a face, split at the nose: about 45 degrees of turn."""
LEFT_EYE, RIGHT_EYE, NOSE, LEFT_CHEEK, RIGHT_CHEEK = 33, 263, 1, 234, 454
"""Face mesh points: outer eye corners, tip of the nose, and the outline beside it."""


class NoFaceError(AvatarError):
    """A picture without a face."""


class FaceLiesError(AvatarError):
    """A picture whose face lies on its side or upside down."""


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

    Raises AvatarError where there is no face, where a second one is more than half as wide as the largest, and where the face is cut by
    the picture's edge, lies on its side, looks away or is too small.
    """
    faces = find_faces(rgb)
    if not faces:
        raise NoFaceError("No face was found in this picture; use one where a face looks towards the camera and is well lit.")
    face = faces[0]
    if len(faces) > 1 and faces[1].width > RIVAL * face.width:
        raise AvatarError("There is more than one face in this picture; crop it to the person who should move.")
    if _outside(face, rgb) > CUT_SHARE:
        raise AvatarError("The face is cut off by the edge of the picture; use one that shows the whole face.")
    if face.width < SMALLEST_FACE:
        raise AvatarError(f"The face is only {face.width:.0f} pixels wide; use a picture where it is at least {SMALLEST_FACE}.")
    tilt, frontal = attitude(face)
    if tilt > UPRIGHT:
        raise FaceLiesError("The face lies on its side or upside down; turn the picture upright.")
    if frontal < FRONTAL:
        raise AvatarError("The face looks too far to the side; use a picture where it looks towards the camera.")
    return face


def find_faces(rgb: UInt8Array) -> list[Found]:
    """Picture [H, W, 3] RGB -> every face that matters in it, the widest first."""
    tracker = FaceTracker(still=True)
    try:
        return next((faces for look in _looks(rgb) if (faces := _search(tracker, look))), [])
    finally:
        tracker.close()


def _looks(rgb: UInt8Array) -> Iterator[UInt8Array]:
    """The picture as it is; softened, since the detector stumbles over noise, pencil strokes and cracked paint; and with more contrast."""
    yield rgb
    soft = np.asarray(cv2.GaussianBlur(rgb, (0, 0), SOFTER * max(rgb.shape[:2])), np.uint8)
    yield soft
    lab = cv2.cvtColor(soft, cv2.COLOR_RGB2LAB)
    lab[..., 0] = cv2.createCLAHE(clipLimit=3.0, tileGridSize=(4, 4)).apply(lab[..., 0])
    yield np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), np.uint8)


def _search(tracker: FaceTracker, rgb: UInt8Array) -> list[Found]:
    """Every face that matters, the widest first: finer windows only while a face worth RIVAL of the widest could hide in them."""
    faces: list[Found] = []
    for share in TILE_SHARES:
        window = max(rgb.shape[:2]) if share == 1.0 else share * min(rgb.shape[:2])
        for x, y, side_x, side_y in _tiles(rgb.shape[1], rgb.shape[0], share):
            for found in _look(tracker, rgb, (x, y, x + side_x, y + side_y)):
                if not any(found.same(other) for other in faces) and (sure := _look_again(tracker, rgb, found)) is not None:
                    faces.append(sure)
        if faces and RIVAL * max(face.width for face in faces) >= SEEN_FROM * window:
            break
    return sorted(faces, key=lambda face: -face.width)


def _look(tracker: FaceTracker, rgb: UInt8Array, box: tuple[int, int, int, int]) -> list[Found]:
    """The faces in a window x0, y0, x1, y1, in px of the picture."""
    x0, y0, x1, y1 = max(0, box[0]), max(0, box[1]), min(rgb.shape[1], box[2]), min(rgb.shape[0], box[3])
    size, start = np.array((x1 - x0, y1 - y0), np.float32), np.array((x0, y0), np.float32)
    return [Found.of(points[:, :2] * size + start) for points in tracker.detect(rgb[y0:y1, x0:x1])]


def _look_again(tracker: FaceTracker, rgb: UInt8Array, face: Found) -> Found | None:
    """The same face as seen from close by, or None where it is not there any more."""
    seen: Found | None = face
    for close_up in CLOSE_UPS:
        assert seen is not None
        half = close_up / 2 * max(seen.width, seen.height)
        x, y = seen.center
        finds = _look(tracker, rgb, (int(x - half), int(y - half), int(x + half) + 1, int(y + half) + 1))
        seen = next((found for found in finds if _agree(found, face)), None)
        if seen is None:
            return None
    return seen


def _agree(one: Found, other: Found) -> bool:
    shift, change = AGREES
    apart = np.hypot(one.center[0] - other.center[0], one.center[1] - other.center[1])
    return bool(apart < shift * other.width and 1 / change < one.width / other.width < change)


def attitude(face: Found) -> tuple[float, float]:
    """(degrees of tilt in the picture, ratio of the narrower to the wider half of the face, 1 from the front)."""
    across = face.points[RIGHT_EYE] - face.points[LEFT_EYE]
    tilt = abs(float(np.degrees(np.arctan2(across[1], across[0]))))
    along = across / max(float(np.hypot(*across)), 1e-6)
    left = float((face.points[NOSE] - face.points[LEFT_CHEEK]) @ along)
    right = float((face.points[RIGHT_CHEEK] - face.points[NOSE]) @ along)
    return tilt, max(min(left, right), 0.0) / max(left, right, 1e-6)


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
