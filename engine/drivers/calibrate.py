"""Landmarks -> calibrated motion: pose and expression apart, relative to a neutral. Knows points, not pictures."""

from __future__ import annotations

import numpy as np

from engine.pose import Float64Array, angles, umeyama
from engine.types import FloatArray, Motion

RIGID = np.array([10, 151, 9, 8, 168, 6, 197, 195, 109, 338, 67, 297, 103, 332, 54, 284, 21, 251, 127, 356, 133, 362, 33, 263])
"""Forehead, nose bridge, temples, eye corners: what neither jaw, brows nor lips move."""


def metric(face: FloatArray, aspect: float) -> Float64Array:
    """[478, 3] 0..1 -> [478, 3] in picture heights, all three axes on one scale."""
    return np.asarray(face, np.float64) * (aspect, 1.0, aspect)


def face_width(points: Float64Array) -> float:
    """Distance of the face's two sides at the ears (points 234 and 454)."""
    return float(np.linalg.norm(points[454] - points[234]))


def eye_distance(points: Float64Array) -> float:
    """Inter-ocular distance: between the centres of the eyes, each the middle of its corners."""
    return float(np.linalg.norm((points[263] + points[362]) / 2 - (points[33] + points[133]) / 2))


def lid_gaps(points: Float64Array) -> Float64Array:
    """[2] opening of the left and right eye, lids against corners."""
    left = np.linalg.norm(points[159] - points[145]) / np.linalg.norm(points[33] - points[133])
    right = np.linalg.norm(points[386] - points[374]) / np.linalg.norm(points[263] - points[362])
    return np.array([left, right])


def motion(points: Float64Array, neutral: Float64Array) -> Motion:
    """Motion of metric points relative to metric neutral points."""
    width, apart = face_width(neutral), eye_distance(neutral)
    scale, turn, shift = umeyama(neutral[RIGID], points[RIGID])
    head = np.array([*angles(turn), 0.0, 0.0, np.log(scale)])
    head[3:5] = (points[RIGID] - neutral[RIGID]).mean(0)[:2] / width
    still = (points - shift) @ turn / scale
    shape = (still - neutral) / width
    eyes = np.clip(lid_gaps(still) / lid_gaps(neutral), 0.0, 1.6)
    gap = max(0.0, float(np.linalg.norm(still[13] - still[14])) / apart - 0.02)
    wider = float(np.linalg.norm(still[291] - still[61]) / np.linalg.norm(neutral[291] - neutral[61])) - 1.0
    gaze = np.stack(
        [
            (still[468] - neutral[468])[:2] / np.linalg.norm(neutral[33] - neutral[133]),
            (still[473] - neutral[473])[:2] / np.linalg.norm(neutral[263] - neutral[362]),
        ]
    ).mean(0)
    brows = np.array([neutral[105, 1] - still[105, 1], neutral[334, 1] - still[334, 1]]) / apart
    smile = float(np.clip(-((still[[61, 291], 1] - neutral[[61, 291], 1]).mean()) / apart * 5.0, -1.0, 1.0))
    return Motion(
        head=head.astype(np.float32),
        eyes=eyes.astype(np.float32),
        gaze=gaze.astype(np.float32),
        brows=brows.astype(np.float32),
        mouth=np.array([gap, wider, max(0.0, -wider), smile], np.float32),
        expression=shape.astype(np.float32),
        confidence=np.array([1.0, 1.0, 0.0], np.float32),
    )
