"""The mouth's outside: which points the lips, corners and jaw carry along, and where they go for a given motion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.generators.puppet import topology
from engine.generators.puppet.features import Features
from engine.generators.puppet.mesh import Head, smoothstep
from engine.types import FloatArray

CLOSED = 0.03
"""A portrait whose lips are nearer than this (ocular distances) has them closed."""
RELAXED_WIDTH, RELAXED_LIFT = 0.82, 0.02
"""Outer width of a relaxed mouth and lift of its corners, ocular distances; more is a smile."""
UPPER_SHARE = 0.35
"""Share of a closing gap that the upper lip takes; the lower lip takes the rest."""
RELAX = 1.2
"""How much of the portrait's own smile is taken back at rest; a little more than all of it, for its cheeks go on smiling."""
FRESH = 0.035
"""Change of the lip gap, ocular distances, from which on the inside of the mouth is wholly painted."""
SMILES = 0.05
"""A lift of the corners, ocular distances, that is a smile and not the line of a mouth."""
CORNER_DROP = 0.42
"""Share of the jaw's way that the corners of the mouth go down."""
ROUND_NARROWS = 0.06
"""A pucker draws in the corners by this part of the mouth's width, beside what the motion's own width says."""
OPEN_NARROWS = 0.22
"""An open mouth is narrower by this part of its opening."""
JAW_SHARE = 0.9
"""Share of an opening mouth that the jaw makes; lips do the rest."""
CHIN_SHARE, LIPS_ALONE = 0.7, 0.15
"""A gap beyond LIPS_ALONE, ocular distances, takes the chin down by at least this share of it."""
LIP_OVER_TEETH = 0.06
"""The lower lip leaves the lower teeth behind by no more than this, ocular distances."""
BOW = (0.12, 0.50)
"""How much narrower the lower lip gets, per ocular distance of lip gap beyond LIPS_ALONE: for a said and for a wholly expressed mouth."""
PROFILE = np.sqrt(1.0 - np.linspace(-0.82, 0.82, 9, dtype=np.float32) ** 2)
"""An opening mouth's gap by column, 1 in the middle."""
JAW_BACK = 0.30
"""The chin swings back by this much of its way down (the jaw turns about the ears)."""


@dataclass(frozen=True, slots=True)
class MouthWeights:
    """See the fields of the same names in Features."""

    jaw: FloatArray
    upper: FloatArray
    lower: FloatArray
    lip_gap: FloatArray
    corners: FloatArray
    spread: FloatArray
    pucker: FloatArray
    smile_rest: FloatArray
    straighten: FloatArray


def _columns(u: FloatArray, knots: FloatArray, edge: float) -> FloatArray:
    """[N, K] hat functions over the knots; beyond the outer knots they fade to 0 at +-edge."""
    full = np.concatenate([[-edge], knots, [edge]])
    hats = np.stack([np.interp(u, full, np.eye(len(full))[i + 1]) for i in range(len(knots))], 1)
    found: FloatArray = hats.astype(np.float32)
    return found


def weigh(head: Head) -> MouthWeights:
    """Everything about the mouth that depends only on the portrait."""
    points = head.points
    origin = points[list(topology.LIP_CORNERS[0])].mean(0)
    local = head.local(origin)
    u, v = local[:, 0], local[:, 1]
    upper_line, lower_line = local[list(topology.UPPER_LIP[0])], local[list(topology.LOWER_LIP[0])]
    knots = ((upper_line + lower_line) / 2)[:, 0]
    inner_edge = float(np.abs(u[list(topology.LIP_CORNERS[0])]).mean())
    outer_edge = float(np.abs(u[list(topology.LIP_CORNERS[3])]).mean())
    corners_v = v[list(topology.LIP_CORNERS[0])]
    xs = np.concatenate([[-inner_edge], knots, [inner_edge]])
    top = np.interp(u, xs, np.concatenate([corners_v[:1], upper_line[:, 1], corners_v[1:]]))
    bottom = np.interp(u, xs, np.concatenate([corners_v[:1], lower_line[:, 1], corners_v[1:]]))
    middle = (top + bottom) / 2
    above, below = np.zeros(len(u), bool), np.zeros(len(u), bool)
    above[v < middle] = True
    below[v >= middle] = True
    for ring_upper, ring_lower in zip(topology.UPPER_LIP, topology.LOWER_LIP, strict=True):
        above[list(ring_upper)], below[list(ring_upper)] = True, False
        above[list(ring_lower)], below[list(ring_lower)] = False, True
    hats = _columns(u, knots, outer_edge * 1.25)
    upper = hats * (above * np.exp(-((np.minimum(v - top, 0) / 0.20) ** 2)))[:, None]
    lower = hats * (below * np.exp(-((np.maximum(v - bottom, 0) / 0.26) ** 2)))[:, None]

    jaw = _jaw(u, v, below, middle, inner_edge)
    corners = np.stack([np.exp(-(((u - s * inner_edge) / 0.26) ** 2) - ((v - corners_v.mean()) / 0.26) ** 2) for s in (-1, 1)], 1)
    inside = np.clip(u / outer_edge, -1, 1)
    spread = inside * np.exp(-((np.maximum(np.abs(u) - outer_edge, 0) / 0.25) ** 2) - (v / 0.40) ** 2)
    pucker = np.exp(-((u / (outer_edge * 1.1)) ** 2) - (v / 0.28) ** 2)

    gap = lower_line[:, 1] - upper_line[:, 1]
    lips = (local[13, 1] + local[14, 1]) / 2
    lift = max(0.0, float(lips - v[list(topology.LIP_CORNERS[3])].mean()) - RELAXED_LIFT)
    wide = max(0.0, 2 * outer_edge - RELAXED_WIDTH)
    jaw, upper, lower, gap, corners, spread, pucker = (a.astype(np.float32) for a in (jaw, upper, lower, gap, corners, spread, pucker))
    straighten = _straighten(upper_line[:, 1], gap, corners[list(topology.UPPER_LIP[0])], lift)
    return MouthWeights(jaw, upper, lower, gap, corners, spread, pucker, np.array([lift, wide], np.float32), straighten)


def _jaw(u: FloatArray, v: FloatArray, below: npt.NDArray[np.bool_], middle: FloatArray, edge: float) -> FloatArray:
    """[478] share of the jaw's way: the lower lip and the chin go with it, the corners half, the upper lip's sides a little."""
    across = np.clip(np.abs(u) / edge, 0, 1) ** 2.2
    lateral = 1.0 - smoothstep(np.abs(u), 0.32, 1.10)
    level = smoothstep(v - middle, -0.32, 0.32)
    lip = np.where(below, 1.0 - (1.0 - CORNER_DROP) * across, CORNER_DROP * across * np.exp(-((np.minimum(v - middle, 0) / 0.22) ** 2)))
    # Outside the corners a cheek goes with the jaw by its height alone; below the lips everything does.
    beyond = smoothstep(np.abs(u), edge, edge * 1.35)
    chin = smoothstep(v - middle, 0.10, 0.40)
    share = np.maximum(lip * (1 - beyond) + np.maximum(level, CORNER_DROP * np.exp(-(((v - middle) / 0.25) ** 2))) * level * beyond, chin)
    jaw: FloatArray = lateral * share
    return jaw


def freshness(features: Features, face: FloatArray) -> float:
    """0 where the lips of `face` [478, 3] are as the portrait's own, so that what they show is the portrait's too; 1 from FRESH on."""
    down = features.frame[:, 1]
    gap = (face[list(topology.LOWER_LIP[0])] - face[list(topology.UPPER_LIP[0])]) @ down / features.ocular
    change = float(np.abs(gap - features.lip_gap).max())
    return min(1.0, change / FRESH)


def _straighten(upper: FloatArray, gap: FloatArray, corners: FloatArray, lift: float) -> FloatArray:
    """[9] ocular distances: how far each column of a smile's curved line must go down for the lips to meet in a straight one.

    upper [9] height of the upper lip's columns, gap [9] under them, corners [9, 2] the corners' shares of them; lift of the smile.
    """
    line = upper + UPPER_SHARE * gap
    curve = line - np.linspace(line[0], line[-1], len(line))
    ends = corners.sum(1)
    sag = max(float(curve[3:6].mean()), 0.0) * min(1.0, lift / SMILES)
    # The corners' own way down (see `move`) already carries the outer columns; the rest of the curve is taken out here.
    inner = np.clip(1.0 - ends - 0.5 * np.abs(np.linspace(-1, 1, len(line))) ** 4, 0, 1)
    flat: FloatArray = (sag * inner * (1 - curve / max(float(curve.max()), 1e-4))).astype(np.float32)
    return flat


def move(features: Features, points: FloatArray, mouth: FloatArray, *, expressed: float, rest: bool) -> float:
    """Bring the mouth of `points` [478, 3] (camera space, changed in place) to the motion's mouth [4].

    `expressed` 0..1: how much of it the points already carry from the driver's expression; the lip gap is always corrected.
    -> the way down in px of what rides the jaw inside the mouth.
    """
    right, down, away = features.frame.T
    ocular = float(features.ocular)
    gap, width, rounded, smile = (float(x) for x in mouth)
    if rest:
        lift, wide = (RELAX * features.smile_rest * ocular).tolist()
        points += features.corners.sum(1)[:, None] * (down * lift) - features.spread[:, None] * (right * (wide / 2))
    if expressed < 1.0:
        width, rounded, smile = (x * (1.0 - expressed) for x in (width, rounded, smile))
        said = gap * (1.0 - expressed)
        left_corner, right_corner = points[list(topology.LIP_CORNERS[3])]
        half = float((right_corner - left_corner) @ right) / 2
        points += features.spread[:, None] * (right * (half * (width - ROUND_NARROWS * rounded - OPEN_NARROWS * said)))
        points += features.corners.sum(1)[:, None] * (-down * (0.10 * ocular * smile))
        points += (features.corners[:, 1] - features.corners[:, 0])[:, None] * (right * (0.06 * ocular * max(smile, 0.0)))
        points += features.pucker[:, None] * (-away * (0.10 * ocular * rounded))
    own = features.lip_gap
    upper, lower = list(topology.UPPER_LIP[0]), list(topology.LOWER_LIP[0])
    if rest:
        shift = features.straighten * (RELAX * ocular)
        points += ((features.upper + features.lower) @ shift)[:, None] * down
    target = gap * PROFILE + (0.0 if rest and own[4] >= CLOSED else own)
    present = (points[lower] - points[upper]) @ down / ocular
    chin = float((points[topology.CHIN] - features.rest[topology.CHIN]) @ down) / ocular
    lacking = max(JAW_SHARE * float((target - present)[3:6].mean()), CHIN_SHARE * (gap - LIPS_ALONE) - chin, 0.0)
    drop = (1.0 - expressed) * JAW_SHARE * gap + expressed * lacking
    points += features.jaw[:, None] * ((down + JAW_BACK * away) * (drop * ocular))
    present = (points[lower] - points[upper]) @ down / ocular
    change = (target - present) * ocular
    points += (features.lower @ (change * (1 - UPPER_SHARE)))[:, None] * down - (features.upper @ (change * UPPER_SHARE))[:, None] * down
    # An open mouth's lower lip is a bow: its sides come in with the jaw.
    across = (points[lower] - points[lower[4]]) @ right
    points -= (features.lower @ (across * ((BOW[0] + (BOW[1] - BOW[0]) * expressed) * max(gap - LIPS_ALONE, 0.0))))[:, None] * right
    closed = (features.rest[13] + down * (UPPER_SHARE * max(float(own[4]), 0.0) * ocular)) @ down
    chin, lip = float((points[topology.CHIN] - features.rest[topology.CHIN]) @ down), float(points[14] @ down - closed)
    return max(chin, lip - LIP_OVER_TEETH * ocular)
