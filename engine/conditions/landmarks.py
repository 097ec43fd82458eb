"""Paints a face landmark map: MediaPipe's own contours as coloured lines on black, and says which points those contours are.

Colours (RGB) of the outline, the outer lips, eyes, brows and irises are those of the MediaPipe face annotator of ControlNet
(CrucibleAI); the inner lips and the nose, which it lacks, have colours of this project's own. "Left" is the picture's left.
"""

from __future__ import annotations

import cv2
import numpy as np

from engine.drivers.outlines import OVAL
from engine.types import FloatArray, UInt8Array

PUBLISHED_SIDE, LINE = 512, 2
"""px of the picture's shorter side, and the width of a line there."""

# fmt: off
LIP_CORNERS = ((61, 291), (78, 308))
UPPER_LIP = ((185, 40, 39, 37, 0, 267, 269, 270, 409), (191, 80, 81, 82, 13, 312, 311, 310, 415))
LOWER_LIP = ((146, 91, 181, 84, 17, 314, 405, 321, 375), (95, 88, 178, 87, 14, 317, 402, 318, 324))
"""Outer and inner edge, from the left to the right."""
EYE_CORNERS = ((33, 133), (362, 263))
UPPER_LID = ((246, 161, 160, 159, 158, 157, 173), (398, 384, 385, 386, 387, 388, 466))
LOWER_LID = ((7, 163, 144, 145, 153, 154, 155), (382, 381, 380, 374, 373, 390, 249))
"""Left and right eye, from the left to the right: each point of the upper lid faces that of the lower one."""
IRIS = ((469, 470, 471, 472), (474, 475, 476, 477))
BROWS = (((46, 53, 52, 65, 55), (70, 63, 105, 66, 107)), ((285, 295, 282, 283, 276), (336, 296, 334, 293, 300)))
"""Lower and upper edge of the left and right brow, from the left to the right."""
NOSE = ((168, 6, 197, 195, 5, 4, 1, 19, 94, 2), (4, 45, 220, 115, 48, 64, 98, 97, 2, 326, 327, 294, 278, 344, 440, 275, 4))
"""The bridge down to the lip; the tip and the wings."""
# fmt: on


def _ring(corners: tuple[int, int], upper: tuple[int, ...], lower: tuple[int, ...]) -> tuple[int, ...]:
    return (corners[0], *upper, corners[1], *lower[::-1])


GROUPS: tuple[tuple[str, tuple[int, int, int], bool, tuple[tuple[int, ...], ...]], ...] = (
    ("outline", (10, 200, 10), True, (OVAL,)),
    ("nose", (200, 200, 200), False, NOSE),
    ("left brow", (180, 220, 10), False, BROWS[0]),
    ("right brow", (10, 220, 180), False, BROWS[1]),
    ("left eye", (180, 200, 10), True, (_ring(EYE_CORNERS[0], UPPER_LID[0], LOWER_LID[0]),)),
    ("right eye", (10, 200, 180), True, (_ring(EYE_CORNERS[1], UPPER_LID[1], LOWER_LID[1]),)),
    ("left iris", (250, 200, 10), True, (IRIS[0],)),
    ("right iris", (10, 200, 250), True, (IRIS[1],)),
    ("outer lips", (10, 180, 10), True, (_ring(LIP_CORNERS[0], UPPER_LIP[0], LOWER_LIP[0]),)),
    ("inner lips", (220, 40, 40), True, (_ring(LIP_CORNERS[1], UPPER_LIP[1], LOWER_LIP[1]),)),
)
"""(name, RGB, whether its lines are closed, lines of face mesh points), in the order of painting."""


def paint_landmarks(size: tuple[int, int], face: FloatArray) -> UInt8Array:
    """A picture of `size` (H, W) from a face [478, 2] in px."""
    canvas = np.zeros((*size, 3), np.uint8)
    line = max(1, round(LINE * min(size) / PUBLISHED_SIDE))
    points = np.round(face).astype(np.int32)
    for _, colour, closed, lines in GROUPS:
        cv2.polylines(canvas, [points[list(at)] for at in lines], closed, colour, thickness=line)
    return canvas


FEATURES = ("left eye", "right eye", "left brow", "right brow")
"""Groups of EchoMimic's map, which has no outline, irises or lips ..."""
SWAPPED = {"left": "right", "right": "left"}
"""... and names sides as the person in the picture does, so that their colours are the other side's."""
DOTS = ((468, (10, 200, 250)), (473, (250, 200, 10)), (4, (200, 200, 200)))
"""(point, RGB) of the squares over both pupils and the tip of the nose."""
DOT = 3
"""px from the middle of a square to its edge, where a line is LINE px wide."""


def paint_features(size: tuple[int, int], face: FloatArray) -> UInt8Array:
    """EchoMimic's map of eyes, brows, pupils and nose as a picture of `size` (H, W), from a face [478, 2] in px."""
    canvas = np.zeros((*size, 3), np.uint8)
    scale = min(size) / PUBLISHED_SIDE
    line, half = max(1, round(LINE * scale)), max(1, round(DOT * scale))
    points = np.round(face).astype(np.int32)
    groups = {name: (colour, closed, lines) for name, colour, closed, lines in GROUPS}
    for name in FEATURES:
        side, _, part = name.partition(" ")
        _, closed, lines = groups[name]
        cv2.polylines(canvas, [points[list(at)] for at in lines], closed, groups[f"{SWAPPED[side]} {part}"][0], thickness=line)
    for point, colour in DOTS:
        x, y = points[point]
        canvas[max(0, y - half) : max(0, y + half), max(0, x - half) : max(0, x + half)] = colour
    return canvas


__all__ = ["BROWS", "GROUPS", "paint_features", "paint_landmarks"]
