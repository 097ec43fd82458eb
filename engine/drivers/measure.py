"""A face with the head pose removed -> a few numbers with a meaning, and numbers -> Motion. Knows one frame and one neutral."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.drivers import outlines
from engine.drivers.rigid import EYE_CORNERS, eye_distance
from engine.pose import Float64Array

UPPER_LIDS = np.array([[160, 159, 158], [385, 386, 387]])
LOWER_LIDS = np.array([[144, 145, 153], [380, 374, 373]])
"""Three pairs of facing points on the lids of the left and right eye; their mean is steadier than the middle pair alone."""
IRISES = np.array([468, 473])
BROWS = np.array([[70, 63, 105, 66, 107], [300, 293, 334, 296, 336]])
INNER_UPPER, INNER_LOWER = np.array([82, 13, 312]), np.array([87, 14, 317])
MOUTH_CORNERS = np.array([61, 291])
UPPER_LIP = np.array([0, 13])
LIPS = np.array(outlines.LIPS)
"""The outer edge of the lips."""


@dataclass(frozen=True, slots=True)
class Measures:
    """Lengths in inter-ocular distances where nothing else is said."""

    lids: Float64Array  # [2] opening of the left and right eye, eye widths
    gaze: Float64Array  # [2, 2] iris from the middle of the corners, per eye, x right and y down, eye widths
    brows: Float64Array  # [2] height over the line between the eyes
    gap: float  # inner lip opening as tracked (not 0 on shut lips)
    width: float  # between the corners of the mouth
    corners: float  # height of the corners over the middle of the upper lip
    apart: float  # inter-ocular distance, face widths


def measure(shape: Float64Array) -> Measures:
    """Points [478, 3] in the head frame -> Measures."""
    apart = eye_distance(shape)
    corners = shape[EYE_CORNERS]
    axes = corners[:, 1] - corners[:, 0]
    widths = np.linalg.norm(axes, axis=1)
    right = axes[:, :2] / np.linalg.norm(axes[:, :2], axis=1, keepdims=True)
    down = np.stack([-right[:, 1], right[:, 0]], 1)
    iris = (shape[IRISES] - corners.mean(1))[:, :2]
    gaze = np.stack([(iris * right).sum(1), (iris * down).sum(1)], 1) / widths[:, None]
    return Measures(
        lids=np.linalg.norm(shape[UPPER_LIDS] - shape[LOWER_LIDS], axis=2).mean(1) / widths,
        gaze=gaze,
        brows=(corners.mean((0, 1))[1] - shape[BROWS, 1].mean(1)) / apart,
        gap=float(np.linalg.norm(shape[INNER_UPPER] - shape[INNER_LOWER], axis=1).mean()) / apart,
        width=float(np.linalg.norm(shape[MOUTH_CORNERS[1]] - shape[MOUTH_CORNERS[0]])) / apart,
        corners=float(shape[UPPER_LIP, 1].mean() - shape[MOUTH_CORNERS, 1].mean()) / apart,
        apart=apart,
    )
