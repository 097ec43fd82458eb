"""A hand that the tests draw themselves: nobody's, yet MediaPipe takes it for one."""

from __future__ import annotations

import cv2
import numpy as np

from engine.types import FloatArray, UInt8Array

SKIN, EDGE, BEHIND = (224, 172, 140), (150, 100, 80), (70, 80, 90)
MIDDLE = (0.5, 0.55)
# fmt: off
JOINTS = np.array([(.50, .95), (.36, .86), (.26, .74), (.19, .64), (.13, .55), (.38, .50), (.35, .34), (.33, .24), (.32, .15), (.49, .47),
                   (.49, .29), (.49, .18), (.49, .08), (.59, .49), (.62, .33), (.63, .23), (.64, .14), (.68, .55), (.74, .43), (.78, .35),
                   (.81, .28)], np.float32)
"""[21, 2] in MediaPipe's order: a palm towards the camera, fingers up, the thumb to the picture's left. Of somebody who faces the camera and
raises a hand that is their left one, which hangs from the arm on the picture's right."""
# fmt: on


def joints(x: int, y: int, side: int) -> FloatArray:
    """[21, 2] px of the hand drawn there."""
    placed: FloatArray = ((JOINTS - MIDDLE) * side + (x, y)).astype(np.float32)
    return placed


def hand(x: int, y: int, side: int = 220, *, size: tuple[int, int] = (480, 640)) -> UInt8Array:
    """A picture of `size` (H, W) px with that hand, its middle at (x, y) px, `side` px high (180 to 260 are found best), on its arm."""
    picture = np.full((*size, 3), BEHIND, np.uint8)
    at = joints(x, y, side)
    ball, heel = at[17] + _by(0.06, 0.1, side), _by(0.15, 0.0, side)
    palm = cv2.convexHull(np.stack([*at[[0, 1, 2, 5, 9, 13, 17]], at[0] + heel, at[0] - heel, ball]).astype(np.int32))
    for colour, rim in ((EDGE, 6), (SKIN, 0)):
        cv2.line(picture, _px(at[0]), (int(at[0, 0]), size[0]), colour, int(0.36 * side) + rim)
        cv2.polylines(picture, [palm], True, colour, int(0.14 * side) + rim)
        cv2.fillPoly(picture, [palm], colour)
        for base, width in zip((1, 5, 9, 13, 17), (0.115, 0.105, 0.105, 0.105, 0.094), strict=True):
            cv2.polylines(picture, [at[base : base + 4].astype(np.int32)], False, colour, int(width * side) + rim)
    crease = _by(0.05, 0.0, side)
    for base in (1, 5, 9, 13, 17):
        for joint in at[base + 1 : base + 3]:
            cv2.line(picture, _px(joint - crease), _px(joint + crease), EDGE, 2)
    # The lines of the palm, without which it might be a back: of life, head and heart.
    for middle, axes, turn, span in (
        ((0.33, 0.80), (0.16, 0.22), 0, (-75, 40)),
        ((0.47, 0.62), (0.16, 0.05), 15, (200, 340)),
        ((0.58, 0.60), (0.14, 0.06), -15, (20, 160)),
    ):
        place = _by(x, y, 1) + _by(middle[0] - MIDDLE[0], middle[1] - MIDDLE[1], side)
        cv2.ellipse(picture, _px(place), (int(axes[0] * side), int(axes[1] * side)), turn, *span, EDGE, 2)
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), 1.5), np.uint8)


def mirrored(picture: UInt8Array) -> UInt8Array:
    """The picture as a mirror shows it."""
    return np.ascontiguousarray(picture[:, ::-1])


def beside(left: UInt8Array, right: UInt8Array) -> UInt8Array:
    """The left half of one picture and the right half of another."""
    half = left.shape[1] // 2
    return np.concatenate([left[:, :half], right[:, half:]], axis=1)


def _by(across: float, down: float, side: int) -> FloatArray:
    return np.array([across * side, down * side], np.float32)


def _px(point: FloatArray) -> tuple[int, int]:
    return int(point[0]), int(point[1])
