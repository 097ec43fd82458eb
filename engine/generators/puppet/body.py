"""Shoulders: which vertices they carry along, and where they go."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.generators.puppet import topology
from engine.generators.puppet.mesh import Head, smoothstep
from engine.generators.puppet.raster import kernel
from engine.types import FloatArray, Motion

SHOULDER_WIDTH = 2.6
"""Width of the shoulders, face widths."""
PIN, PINNED = 0.22, 0.5
"""The body's motion fades to PINNED of itself over this part of the picture's height above its lower edge."""
FACE_TO_SHOULDERS = 1.0 / SHOULDER_WIDTH
SHIFT_SHARE, LEAN_SHARE, TWIST_SHARE = 0.40, 0.12, 0.25
"""Where the shoulders are not seen, they go along with this much of the head's shift, roll and yaw."""


@dataclass(frozen=True, slots=True)
class BodyWeights:
    """See the fields of the same names in Features."""

    body: FloatArray
    shrug: FloatArray
    shoulders: FloatArray


def weigh(flat: FloatArray, landmarks: FloatArray, head: Head, size: tuple[int, int]) -> BodyWeights:
    """flat [N, 2] vertices in picture px -> how much each belongs to the shoulders."""
    height = size[0]
    chin = landmarks[topology.CHIN, :2]
    middle = np.array([landmarks[list(topology.CHEEKS), 0].mean(), min(chin[1] + 0.62 * head.height, height * 1.05)], np.float32)
    span = SHOULDER_WIDTH * head.width
    hold = PINNED + (1.0 - PINNED) * smoothstep((height - flat[:, 1]) / height, 0.0, PIN)
    level = ((flat[:, 1] - middle[1]) / (0.45 * head.height)) ** 2
    shrug = np.stack([np.exp(-(((flat[:, 0] - middle[0] - side * 0.36 * span) / (0.24 * span)) ** 2) - level) for side in (-1, 1)])
    return BodyWeights(hold, (shrug * hold).astype(np.float32), np.array([*middle, span], np.float32))


def follow(motion: Motion) -> FloatArray:
    """[6] the shoulders' motion: as seen, and as far as they are not seen, a little of the head's."""
    unseen = 1.0 - float(np.clip(motion.confidence[2], 0.0, 1.0))
    head = motion.head
    alone = np.zeros(6, np.float32)
    alone[0], alone[1] = LEAN_SHARE * head[2], TWIST_SHARE * head[0]
    alone[2:4] = SHIFT_SHARE * FACE_TO_SHOULDERS * head[3:5]
    moved: FloatArray = np.asarray(motion.body, np.float32) + unseen * alone
    return moved


@kernel
def displace(
    points: FloatArray, still: FloatArray, hold: FloatArray, share: FloatArray, shrug: FloatArray, shoulders: FloatArray, body: FloatArray
) -> None:
    """Blend the head's places with the body's, which go with the shoulders' motion.

    points [N, 3] px, as the head has them, are overwritten; still [N, 3] px before anything moved; hold [N] the head's share of each;
    share [N], shrug [2, N] and shoulders [3] as in Features; body [6] as in `Motion.body`.
    """
    middle_x, middle_y, span = shoulders[0], shoulders[1], shoulders[2]
    base_y = middle_y + np.float32(0.45) * span
    lean, twist = np.radians(body[0]), np.radians(body[1])
    cosine, sine = np.cos(lean) - np.float32(1.0), np.sin(lean)
    narrow, aside = np.cos(twist) - np.float32(1.0), np.sin(twist) * np.float32(0.10) * span + body[2] * span
    down = body[3] * span
    for i in range(points.shape[0]):
        x, y = still[i, 0], still[i, 1]
        arm_x, arm_y = x - middle_x, y - base_y
        x += share[i] * ((cosine + narrow) * arm_x - sine * arm_y + aside)
        y += share[i] * (sine * arm_x + cosine * arm_y + down) - span * (body[4] * shrug[0, i] + body[5] * shrug[1, i])
        points[i, 0] = hold[i] * points[i, 0] + (np.float32(1.0) - hold[i]) * x
        points[i, 1] = hold[i] * points[i, 1] + (np.float32(1.0) - hold[i]) * y
