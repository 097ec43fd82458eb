"""The portrait's own face and shoulders, moved by a Motion. Knows points in heights of the frame, not signals or pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.conditions.landmarks import BROWS, EYE_CORNERS, IRIS, LIP_CORNERS, LOWER_LID, LOWER_LIP, UPPER_LID, UPPER_LIP
from engine.drivers.express import BROAD_SMILE, WIDE_GAP
from engine.drivers.measure import measure
from engine.drivers.outlines import OVAL
from engine.drivers.rigid import MEAN_RIGID, PIVOT, RIGID, Pose, fit_pose
from engine.pose import Float64Array, rotation
from engine.types import FloatArray, Motion

SHUT = 0.03
"""Lip gap in inter-ocular distances that the tracker reads on shut lips."""
UPPER_SHARE = 0.2
"""How much of the gap the upper lip opens; the lower one does the rest."""
CHIN_SHARE = 0.7
"""How far the chin sinks, per way of the lower lip: the skin between them stretches."""
ARMS = np.arange(11, 23)
"""MediaPipe's pose landmarks that move with the shoulders: shoulders, arms, hands."""
SHOULDERS = np.array([12, 11])
"""Left and right of the picture; all even numbers of ARMS are on its left, the odd ones on its right."""
UPPER, LOWER = (np.ravel(arcs) for arcs in (UPPER_LIP, LOWER_LIP))
LIPS = np.concatenate([UPPER, LOWER, np.ravel(LIP_CORNERS)])
IRISES = np.array([(468, *IRIS[0]), (473, *IRIS[1])])
LIDS = np.concatenate([np.ravel(UPPER_LID), np.ravel(LOWER_LID), IRISES.ravel()])


@dataclass(frozen=True, slots=True, eq=False)
class Own:
    """What a portrait's own face and shoulders are at rest: all that no signal changes."""

    pose: Pose  # of the head, in frame heights
    shape: Float64Array  # [478, 3] the face in the head's frame, face widths
    apart: float  # inter-ocular distance, face widths
    body: Float64Array  # [33, 2] pose landmarks in frame heights
    sure: FloatArray  # [33] their visibility, 0..1; 0 for those outside the portrait

    @classmethod
    def of(cls, face: Float64Array, body: Float64Array, sure: FloatArray) -> Own:
        """Face [478, 3] and pose landmarks [33, 2] in frame heights (`rigid.metric`)."""
        pose = fit_pose(MEAN_RIGID, face[RIGID])
        shape = pose.undo(face)
        return cls(pose, shape, measure(shape).apart, body, sure)


def own_face(own: Own, motion: Motion) -> Float64Array:
    """[478, 3] frame heights: the portrait's face, moved; seen from far away, so that depth only turns."""
    pose = own.pose
    shape = expressed(own, motion)
    yaw, pitch, roll, x, y, nearer = (float(a) for a in np.nan_to_num(motion.head))
    pivot = pose.apply(PIVOT[None])[0] + pose.scale * np.array([x, y, 0.0])
    moved: Float64Array = pose.scale * np.exp(nearer) * (shape - PIVOT) @ (rotation(yaw, pitch, roll) @ pose.turn).T + pivot
    return moved


def expressed(own: Own, motion: Motion) -> Float64Array:
    """[478, 3] the portrait's shape (head frame, face widths) with the motion's features: the expression where it is given, the scalars
    for lids, irises and lip gap, and for whatever the expression does not carry."""
    shape = own.shape.copy()
    brows_left, mouth_left = 1.0, 1.0
    if motion.expression is not None:
        moved = np.nan_to_num(motion.expression).astype(np.float64)
        moved[LIDS] = 0.0
        shape += moved
        brows_left, mouth_left = (1.0 - float(share) for share in motion.expressed)
    _lids(shape, np.nan_to_num(motion.eyes), np.nan_to_num(motion.gaze))
    for brow, lift in zip(BROWS, np.nan_to_num(motion.brows), strict=True):
        shape[np.ravel(brow), 1] -= brows_left * float(lift) * own.apart
    _lips(shape, np.nan_to_num(motion.mouth), mouth_left)
    return shape


def _lids(shape: Float64Array, eyes: FloatArray, gaze: FloatArray) -> None:
    for corners, upper, lower, iris, aperture in zip(EYE_CORNERS, UPPER_LID, LOWER_LID, IRISES, eyes, strict=True):
        width = np.linalg.norm(shape[corners[1]] - shape[corners[0]])
        shape[iris, :2] += width * gaze
        low = shape[list(lower)]
        shape[list(upper)] = low + max(0.0, float(aperture)) * (shape[list(upper)] - low)


def _lips(shape: Float64Array, mouth: FloatArray, left: float) -> None:
    """Width and smile as far as they are `left` to the scalars, then the gap, which is absolute: a portrait's parted lips close."""
    gap, wider, _, smile = (float(value) for value in mouth)
    middle = shape[LIPS].mean(0)
    half = max(1e-6, float(np.abs(shape[LIPS, 0] - middle[0]).max()))
    side = np.clip(np.abs(shape[:, 0] - middle[0]) / half, 0.0, 1.0)
    apart = measure(shape).apart
    shape[LIPS, 0] += left * wider * (shape[LIPS, 0] - middle[0])
    shape[LIPS, 1] -= left * smile * BROAD_SMILE * apart * side[LIPS] ** 2
    # The tracker's reading of lips that are `gap` apart: the inverse of the driver's.
    way = (SHUT + gap * (WIDE_GAP - SHUT) / WIDE_GAP - measure(shape).gap) * apart
    if gap <= 0.0 and way > 0.0:
        return
    arch = (1.0 - side**2)[:, None]
    down = np.array([0.0, 1.0, 0.0])
    shape[UPPER] -= UPPER_SHARE * way * arch[UPPER] * down
    shape[LOWER] += (1.0 - UPPER_SHARE) * way * arch[LOWER] * down
    jaw = np.array([at for at in OVAL if shape[at, 1] > middle[1]])
    reach = max(1e-6, float(np.abs(shape[jaw, 0] - middle[0]).max()))
    bow = 1.0 - np.clip(np.abs(shape[jaw, 0] - middle[0]) / reach, 0.0, 1.0) ** 2
    shape[jaw, 1] += CHIN_SHARE * (1.0 - UPPER_SHARE) * way * bow


def own_body(body: Float64Array, motion: FloatArray) -> Float64Array:
    """The portrait's pose landmarks [33, 2] in frame heights, moved by `Motion.body`: shoulders and arms as one piece, legs stay."""
    lean, twist, x, y, left, right = (float(value) for value in np.nan_to_num(motion))
    middle = body[SHOULDERS].mean(0)
    width = float(np.hypot(*(body[SHOULDERS[1]] - body[SHOULDERS[0]])))
    moved = body.copy()
    turn = rotation(0.0, 0.0, lean)[:2, :2]
    moved[ARMS] = middle + width * np.array([x, y]) + (body[ARMS] - middle) * (np.cos(np.radians(twist)), 1.0) @ turn.T
    moved[ARMS, 1] -= width * np.where(ARMS % 2 == 0, left, right)
    return moved


__all__ = ["SHOULDERS", "Own", "expressed", "own_body", "own_face"]
