"""How far the person of a portrait reaches: the head, and the joints that MediaPipe's pose sees. For set-up, not for every frame."""

from __future__ import annotations

import numpy as np

from engine.drivers.body import BodyDriver
from engine.drivers.portrait import Found
from engine.types import UInt8Array, VideoFrame

SEEN = 0.5
"""Visibility from which a joint counts; those beyond the picture's edge are guesses and do not."""
JOINTS = np.arange(11, 33)
"""MediaPipe's pose landmarks below the head."""
ABOVE_FACE, BESIDE_FACE = 1.1, 0.75
"""Face widths from the middle of the face to above the hair, and to beside it."""
AROUND_JOINT = 0.6
"""Face widths by which clothes and hands reach beyond the outermost joints."""
REACH = (6.0, 2.5, 14.0)
"""Face widths to the sides of, above and below the middle of the face in which a standing person has their body."""
NEAR_EDGE = 1.0
"""Face widths from the picture's lower edge within which a figure counts as reaching it: a seam there would show for nothing."""
SAME_HEAD = 1.0
"""Face widths between the face and a body's nose within which both are one person's."""
NOSE = 0


def figure_of(rgb: UInt8Array, face: Found) -> tuple[float, float, float, float]:
    """Picture [H, W, 3] RGB and its face -> x0, y0, x1, y1 px around the head and the joints seen, inside the picture. About 0.1 s."""
    height, width = rgb.shape[:2]
    (x, y), unit = face.center, face.width
    beside, above, below = (reach * unit for reach in REACH)
    left, top = max(0, int(x - beside)), max(0, int(y - above))
    near = np.ascontiguousarray(rgb[top : min(height, int(y + below) + 1), left : min(width, int(x + beside) + 1)])
    low = np.array([x - BESIDE_FACE * unit, y - ABOVE_FACE * unit])
    high = np.array([x + BESIDE_FACE * unit, y + max(BESIDE_FACE * unit, face.height / 2)])
    driver = BodyDriver()
    try:
        reading = driver(VideoFrame(near, 0.0))
    finally:
        driver.close()
    if reading is not None:
        points = reading.landmarks[:, :2] * (near.shape[1], near.shape[0]) + (left, top)
        inside = (reading.landmarks[:, :2] > 0.0).all(1) & (reading.landmarks[:, :2] < 1.0).all(1)
        joints = points[JOINTS[(inside & (reading.landmarks[:, 3] >= SEEN))[JOINTS]]]
        if len(joints) and np.hypot(*(points[NOSE] - (x, y))) < SAME_HEAD * unit:
            low = np.minimum(low, joints.min(0) - AROUND_JOINT * unit)
            high = np.maximum(high, joints.max(0) + AROUND_JOINT * unit)
    x0, y0, x1, y1 = np.clip([*low, *high], 0, [width, height, width, height]).tolist()
    return x0, y0, x1, float(height) if height - y1 < NEAR_EDGE * unit else y1


__all__ = ["figure_of"]
