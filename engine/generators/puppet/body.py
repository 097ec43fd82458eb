"""Shoulders: which vertices they carry along, and where they go."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.generators.puppet import topology
from engine.generators.puppet.features import Features
from engine.generators.puppet.mesh import Head, smoothstep
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


def displace(features: Features, flat: FloatArray, body: FloatArray) -> FloatArray:
    """[N, 2] px: how far every vertex goes with the shoulders' motion [6]."""
    middle, span = features.shoulders[:2], float(features.shoulders[2])
    lean, twist, x, y, left, right = (float(b) for b in body)
    base = middle + (0.0, 0.45 * span)
    angle = np.radians(lean)
    arm = flat - base
    moved = np.empty_like(flat)
    moved[:, 0] = (np.cos(angle) - 1) * arm[:, 0] - np.sin(angle) * arm[:, 1] + x * span
    moved[:, 1] = np.sin(angle) * arm[:, 0] + (np.cos(angle) - 1) * arm[:, 1] + y * span
    moved[:, 0] += (np.cos(np.radians(twist)) - 1) * (flat[:, 0] - middle[0]) + np.sin(np.radians(twist)) * 0.10 * span
    moved *= features.body[:, None]
    moved[:, 1] -= span * (left * features.shrug[0] + right * features.shrug[1])
    return moved
