"""One motion becomes the places of all vertices: limits, expression, lids, lips, head and shoulders."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from engine.generators.puppet import body, eyes, mouth, response, topology
from engine.generators.puppet.assets import drives
from engine.generators.puppet.features import Features
from engine.generators.puppet.mesh import turn_about
from engine.generators.puppet.refine import apply
from engine.pose import angles, rotation
from engine.types import FACE_POINTS, FloatArray, Motion

LIMITS = {
    "yaw": 28.0,  # degrees
    "pitch": 20.0,
    "roll": 30.0,
    "shift": 0.45,  # face widths
    "scale": 0.28,  # log
    "lean": 9.0,  # degrees
    "twist": 20.0,
    "sway": 0.2,  # shoulder widths
    "shrug": 0.14,
    "gap": 0.70,  # ocular distances
}
"""Soft limits: a motion comes as near to them as it likes and never beyond."""
KNEE = 0.65
"""Motion is untouched up to this part of its limit and compressed beyond."""
ASIDE, ASIDE_SHARE = 8.0, 0.75
"""A portrait that itself looks aside by more than ASIDE degrees turns less far: by this share of what it is more."""
RIM_FROM, RIM_TO = 0.04, 0.30
"""How much more a piece of skin must face the camera (cosine) before its sampling starts to slide inwards, and when it has done so."""
WIDEST_EYE = 1.5
"""Apertures beyond this would show what no portrait has."""
EXPRESSION_LIMIT = 0.3
"""No point of the face leaves its place by more than this, face widths."""
CREASE_SHARE = 0.3
"""Share of the driver's expression that reaches the creases around the eyes; the lids themselves follow the apertures alone."""


STILL = np.eye(3, dtype=np.float32)
"""No turn."""


@dataclass(frozen=True, slots=True)
class Pose:
    """Where everything is in one frame."""

    points: FloatArray  # [N, 3] px and depth
    uv: FloatArray  # [N, 2] texture px
    skull: FloatArray  # [478, 2] px the face at rest, turned with the head: where what rides the skull is
    jaw: FloatArray  # [2] px how far the jaw has gone in the picture
    fresh: float  # 0..1 how far the lips are from the portrait's own


def soft(value: float, limit: float) -> float:
    """`value` held within +-limit without a corner."""
    knee = KNEE * limit
    over = abs(value) - knee
    if over <= 0:
        return value
    return float(np.sign(value)) * (knee + (limit - knee) * float(np.tanh(over / (limit - knee))))


def finite(values: FloatArray) -> FloatArray:
    """A copy whose values that are no numbers are 0 (np.nan_to_num takes ten times as long on a few values)."""
    kept: FloatArray = np.where(np.isfinite(values), values, 0).astype(np.float32, copy=False)
    return kept


def corrected(features: Features, motion: Motion) -> Motion:
    """The motion that a tracker will read as the given one on this portrait. Values that are no numbers count as 0."""
    parts = (motion.head, motion.mouth, motion.eyes, motion.brows)
    head, lips, lids, brows = (finite(part) for part in parts)
    wanted, company = np.array([*head[:3], lips[0], *(lids - 1.0)], np.float32), np.array([brows.mean(), lips[3]], np.float32)
    made = response.correct(features.response, features.coupling, wanted, company)
    head[:3], lips[0] = made[:3], made[3]
    sane = {name: finite(getattr(motion, name)) for name in ("gaze", "expressed", "body", "confidence")}
    return replace(motion, head=head, mouth=lips, eyes=np.maximum(made[4:] + 1.0, 0.0), brows=brows, **sane)


def place(features: Features, motion: Motion, *, rest: bool) -> Pose:
    """A corrected motion -> Pose. `rest`: the portrait's own smile and open lips give way."""
    face, jaw_way = _face(features, motion, rest=rest)
    everything = features.rest.copy()
    everything[:FACE_POINTS] = face
    fine = FACE_POINTS + len(features.parents)
    everything[FACE_POINTS:fine] = apply(features.parents, features.weights, face)
    everything[fine:] += features.follow @ (face - features.rest[:FACE_POINTS])[list(topology.OVAL)]

    width = float(features.width)
    turn = _turn(features, motion.head)
    matrix = turn * np.float32(np.exp(soft(float(motion.head[5]), LIMITS["scale"])))
    shift = np.array([*(soft(float(way), LIMITS["shift"]) * width for way in motion.head[3:5]), 0.0], np.float32)
    points, still, skull = np.empty_like(everything), np.empty_like(everything), np.empty_like(face)
    turn_about(everything, features.pivot, width, matrix, shift, points)
    turn_about(everything, features.pivot, width, STILL, np.zeros(3, np.float32), still)
    turn_about(features.rest[:FACE_POINTS], features.pivot, width, matrix, shift, skull)
    shoulders = _limited(body.follow(motion))
    body.displace(points, still, features.head_weight, features.body, features.shrug, features.shoulders, shoulders)
    if features.offsets.size:
        asked = np.clip(drives(motion), *features.driven)
        for axis in range(2):
            off = features.offsets[axis] @ asked
            points[:, axis] += off
            skull[:, axis] += off[:FACE_POINTS]
    fresh = mouth.freshness(features, face)
    return Pose(points, _slide_rim(features, turn), skull[:, :2], (matrix @ (features.frame[:, 1] * jaw_way))[:2], fresh)


def _face(features: Features, motion: Motion, *, rest: bool) -> tuple[FloatArray, float]:
    """-> ([478, 3] camera space before the head turns, the jaw's way down in px)."""
    face = features.rest[:FACE_POINTS].copy()
    brows_expressed, mouth_expressed = (0.0, 0.0) if motion.expression is None else (float(x) for x in motion.expressed)
    if motion.expression is not None:
        face += gate(features, motion.expression)
    eyes.move(features, face, np.clip(motion.eyes, 0.0, WIDEST_EYE), motion.brows, expressed=brows_expressed)
    lips = np.array(motion.mouth, np.float32)
    lips[0] = max(0.0, soft(float(lips[0]), LIMITS["gap"]))
    lips[1:] = np.clip(lips[1:], (-0.5, 0.0, -1.0), (0.5, 1.0, 1.0))
    jaw_way = mouth.move(features, face, lips, expressed=mouth_expressed, rest=rest)
    return face, jaw_way


def gate(features: Features, expression: FloatArray) -> FloatArray:
    """[478, 3] px in camera space: the driver's expression as far as it may move this portrait."""
    held = finite(expression) * features.width
    size = np.linalg.norm(held, axis=1, keepdims=True)
    limit = EXPRESSION_LIMIT * float(features.width)
    held = held * (limit * np.tanh(size / limit) / np.maximum(size, 1e-6))
    for side in range(2):
        held[[*topology.UPPER_LID[side], *topology.LOWER_LID[side], *topology.EYE_CORNERS[side], *topology.IRIS[side]]] = 0.0
        held[[*topology.UPPER_CREASE[side], *topology.LOWER_CREASE[side]]] *= CREASE_SHARE
    moved: FloatArray = (held @ features.turn.T).astype(np.float32)
    return moved


def _turn(features: Features, head: FloatArray) -> FloatArray:
    """[3, 3] the head's turn from rest, within its limits."""
    aside = max(0.0, abs(angles(features.turn.astype(np.float64))[0]) - ASIDE)
    most = (LIMITS["yaw"] - min(ASIDE_SHARE * aside, LIMITS["yaw"] / 2), LIMITS["pitch"], LIMITS["roll"])
    turn: FloatArray = rotation(*(soft(float(way), limit) for way, limit in zip(head[:3], most, strict=True))).astype(np.float32)
    return turn


def _slide_rim(features: Features, turn: FloatArray) -> FloatArray:
    """[N, 2] sampling. Where the face's edge turns into view it samples skin from further inside: nothing else of that cheek was seen."""
    before, after = -features.rim_normal[:, 2], -(features.rim_normal @ turn[2])
    share = np.clip((after - np.maximum(before, 0.0) - RIM_FROM) / (RIM_TO - RIM_FROM), 0.0, 1.0)
    uv = features.uv.copy()
    uv[features.rim_index] += features.rim_shift * share[:, None]
    return uv


def _limited(shoulders: FloatArray) -> FloatArray:
    names = ("lean", "twist", "sway", "sway", "shrug", "shrug")
    return np.array([soft(float(way), LIMITS[name]) for way, name in zip(shoulders, names, strict=True)], np.float32)
