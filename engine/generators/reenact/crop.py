"""Which square around a face the networks see, how open its eyes and lips are, and how what was painted goes back into the picture.

The published code measures on 203 landmarks of a network of its own; here the same places are taken from MediaPipe's mesh.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from engine.types import FloatArray, UInt8Array

# fmt: off
BOX = (70, 63, 105, 66, 107, 336, 296, 334, 293, 300,  # brows
       127, 234, 93, 132, 58, 172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397, 288, 361, 323, 454, 356)  # temple, chin, temple
# fmt: on
"""Points whose box is the face's: as far up as the brows, as are the landmarks it stands for."""
EYES = ((33, 159, 133, 145), (362, 386, 263, 374))
"""The left and the right eye of the picture: outer or inner corner, upper lid, the other corner, lower lid."""
INNER_LIPS, MOUTH_CORNERS = (13, 14), (61, 291)
SOURCE_SCALE, SOURCE_UP = 2.3, 0.125
"""Side of the portrait's square in sides of the face's box, and how far up it is moved, in its own."""
DRIVER_SCALE, DRIVER_UP = 2.2, 0.1
READ = 512
"""px of a crop as it is cut, before it is shrunk to what a network reads."""
FEATHER = 0.1
"""Soft rim of what is pasted back, as a share of the square's side: its middle, face and hair, is kept whole."""


@dataclass(frozen=True, slots=True)
class Square:
    """A square in a picture that may be turned."""

    centre: FloatArray  # [2] px
    side: float  # px
    turn: FloatArray  # [2, 2] its own right and down, in the picture

    @classmethod
    def around(cls, points: FloatArray, *, scale: float, up: float, upright: bool) -> Square:
        """Around a face mesh [478, 2] px. `upright`: turned so that the mouth is right below the eyes; else as the picture is."""
        turn = np.eye(2, dtype=np.float32)
        if upright:
            eyes = np.mean([points[list(eye)].mean(0) for eye in EYES], 0)
            down = points[list(MOUTH_CORNERS)].mean(0) - eyes
            down = down / max(float(np.hypot(*down)), 1e-6)
            turn = np.array([[down[1], -down[0]], down], np.float32)
        seen = points[list(BOX)] @ turn.T
        low, high = seen.min(0), seen.max(0)
        side = scale * float((high - low).max())
        middle = (low + high) / 2 - (0.0, up * side)
        return cls(np.asarray(middle @ turn, np.float32), side, turn)

    def matrix(self, px: int) -> FloatArray:
        """[2, 3] picture px -> px of the square when it is `px` across."""
        zoom = px / self.side * self.turn
        return np.column_stack([zoom, px / 2 - zoom @ self.centre]).astype(np.float32)

    def cut(self, rgb: UInt8Array, px: int) -> UInt8Array:
        """[px, px, 3] of a picture, whose edge is repeated outside."""
        crop = cv2.warpAffine(rgb, self.matrix(max(px, READ)), (max(px, READ),) * 2, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(cv2.resize(crop, (px, px), interpolation=cv2.INTER_AREA), np.uint8)

    def inside(self, points: FloatArray) -> FloatArray:
        """Points [N, 2] px -> in half sides from the square's middle, its own axes: the keypoints' units."""
        return np.asarray((points - self.centre) @ self.turn.T * (2 / self.side), np.float32)


def eye_ratios(points: FloatArray) -> FloatArray:
    """[2] opening of the left and the right eye over its width."""
    return np.array([_apart(points, upper, lower) / _apart(points, one, other) for one, upper, other, lower in EYES], np.float32)


def lip_ratio(points: FloatArray) -> float:
    """Opening of the lips over the mouth's width."""
    return _apart(points, *INNER_LIPS) / _apart(points, *MOUTH_CORNERS)


def mouth_width(points: FloatArray) -> float:
    """Of the mouth, in inter-ocular distances."""
    left, right = (points[[eye[0], eye[2]]].mean(0) for eye in EYES)
    return _apart(points, *MOUTH_CORNERS) / max(float(np.linalg.norm(right - left)), 1e-6)


def _apart(points: FloatArray, one: int, other: int) -> float:
    return max(float(np.linalg.norm(points[one] - points[other])), 1e-6)


@dataclass(frozen=True, slots=True, eq=False)
class Paste:
    """How a painted square goes back into frames of one size. Made once a portrait."""

    still: UInt8Array  # [H, W, 3] the frame where nothing is pasted
    matrix: FloatArray  # [2, 3] px of what was painted -> px of `box`
    box: tuple[int, int, int, int]  # x0, y0, x1, y1 in the frame
    shares: tuple[FloatArray, FloatArray]  # of the painted and of the still, [box]
    behind: UInt8Array  # the still in the box

    @classmethod
    def of(cls, still: UInt8Array, square: Square, squeeze: FloatArray, px: int) -> Paste:
        """`square` of the portrait, whose px times `squeeze` [2] are the frame's; what is painted is `px` across."""
        height, width = still.shape[:2]
        back = np.linalg.inv(np.vstack([square.matrix(px), (0, 0, 1)]))
        matrix = np.diag([*squeeze, 1.0]) @ back
        corners = np.array([[0, 0, 1], [px, 0, 1], [px, px, 1], [0, px, 1]]) @ matrix.T
        low = np.maximum(np.floor(corners[:, :2].min(0)), 0).astype(int)
        high = np.minimum(np.ceil(corners[:, :2].max(0)), (width, height)).astype(int)
        high = np.maximum(high, low + 1)
        matrix[:2, 2] = matrix[:2, 2] - low
        size = (int(high[0] - low[0]), int(high[1] - low[1]))
        share = cv2.warpAffine(_soft(px), matrix[:2], size, flags=cv2.INTER_LINEAR)
        behind = np.ascontiguousarray(still[low[1] : high[1], low[0] : high[0]])
        box = (int(low[0]), int(low[1]), int(high[0]), int(high[1]))
        return cls(still, matrix[:2].astype(np.float32), box, (share, 1 - share), behind)

    def __call__(self, painted: UInt8Array) -> UInt8Array:
        """[px, px, 3] -> the frame [H, W, 3]."""
        x0, y0, x1, y1 = self.box
        moved = cv2.warpAffine(painted, self.matrix, (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        frame = self.still.copy()
        frame[y0:y1, x0:x1] = cv2.blendLinear(moved, self.behind, *self.shares)
        return frame


def _soft(px: int) -> FloatArray:
    """[px, px] 1 in the middle, smoothly 0 at the rim."""
    at = (np.arange(px) + 0.5) / px
    t = np.clip(np.minimum(at, 1 - at) / FEATHER, 0.0, 1.0)
    ramp = t * t * (3 - 2 * t)
    return np.minimum.outer(ramp, ramp).astype(np.float32)


__all__ = ["DRIVER_SCALE", "DRIVER_UP", "SOURCE_SCALE", "SOURCE_UP", "Paste", "Square", "eye_ratios", "lip_ratio", "mouth_width"]
