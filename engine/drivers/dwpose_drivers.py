"""DWPose where MediaPipe's body and hands stand: the same calls, neutral and smoothing, other points. The face stays MediaPipe's, whose 478 points
and expressions everything else is made of."""

from __future__ import annotations

import numpy as np

from engine.drivers.body import BodyDriver
from engine.drivers.dwpose import FROM_COCO, LEFT_HAND, RIGHT_HAND, SCORED, DWPose, Whole, skeleton_scores
from engine.drivers.hands import Found, HandsDriver
from engine.types import BODY_POINTS, FloatArray, UInt8Array

MEDIAPIPE = {0: 0, 2: 1, 5: 2, 7: 3, 8: 4, 11: 5, 12: 6, 13: 7, 14: 8, 15: 9, 16: 10, 23: 11, 24: 12, 25: 13, 26: 14, 27: 15, 28: 16, 29: 19, 30: 22}
"""MediaPipe's pose landmark -> COCO-WholeBody's point: nose, eyes, ears, shoulders, arms, hips, legs, heels."""
TOES = {31: (17, 18), 32: (20, 21)}
"""MediaPipe's tip of a foot -> the two toes it lies between."""
LEAST = 0.3
"""Mean score of OpenPose's joints under which nobody is seen."""


class DWPoseBody(BodyDriver):
    """One person's shoulders and limbs. See `BodyDriver`; z is 0, so a turn of the trunk is not read."""

    def __init__(self, networks: DWPose) -> None:
        self._networks = networks
        super().__init__()

    def _detect(self, rgb: UInt8Array) -> FloatArray | None:
        whole = self._networks(rgb)
        joints = skeleton_scores(whole)[[joint for joint, at in enumerate(FROM_COCO) if at in (0, 1, 2, 5, 6)]]
        return landmarks_of(whole, rgb.shape[:2]) if float(joints.mean()) > LEAST else None


class DWPoseHands(HandsDriver):
    """One person's hands. See `HandsDriver`; the networks know whose hand is which."""

    def __init__(self, networks: DWPose) -> None:
        self._networks = networks
        super().__init__()

    def _detect(self, rgb: UInt8Array) -> list[Found]:
        return hands_of(self._networks(rgb), rgb.shape[:2])


def landmarks_of(whole: Whole, size: tuple[int, ...]) -> FloatArray:
    """[33, 4] as MediaPipe tells them in a picture of `size` (H, W): x, y 0..1, z 0, visibility; 0 for what DWPose does not read."""
    unit = np.array([size[1], size[0]], np.float32)
    landmarks = np.zeros((BODY_POINTS, 4), np.float32)
    for at, point in MEDIAPIPE.items():
        landmarks[at] = (*(whole.points[point] / unit), 0.0, np.clip(whole.scores[point], 0.0, 1.0))
    for at, toes in TOES.items():
        landmarks[at] = (*(whole.points[list(toes)].mean(0) / unit), 0.0, np.clip(whole.scores[list(toes)].min(), 0.0, 1.0))
    return landmarks


def hands_of(whole: Whole, size: tuple[int, ...]) -> list[Found]:
    """The hands that are seen. The right hand of a person who faces the camera is the picture's left one."""
    unit = np.array([size[1], size[0]], np.float32)
    found = []
    for part, left in ((LEFT_HAND, 0.0), (RIGHT_HAND, 1.0)):
        if float(np.mean(whole.scores[part])) > SCORED:
            points = np.concatenate([whole.points[part] / unit, np.zeros((len(whole.points[part]), 1))], 1)
            found.append(Found(points.astype(np.float32), left))
    return found


__all__ = ["DWPoseBody", "DWPoseHands", "hands_of", "landmarks_of"]
