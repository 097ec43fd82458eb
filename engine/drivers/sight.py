"""How well is a face, and its mouth, really seen? The tracker draws a mouth behind a hand, too.

What it can do: a hand, a mask, a cup or a microphone over the lips takes their colour away, and the mesh then reads a mouth that
rests. What it cannot: tell anything in a picture without colour, or of lips that have the skin's very colour; see a mask with
lips printed on it; or miss lips that were hidden before they were once seen while they are as pale as the hidden ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.drivers.measure import LIPS, measure
from engine.drivers.rigid import metric
from engine.pose import Float64Array
from engine.types import FloatArray, UInt8Array

LIPS_INSIDE = np.array([78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 95, 88, 178, 87, 14, 317, 402, 318, 324])
"""The inner edge of the lips, in the order of LIPS (around the mouth from its left corner over the top)."""
AROUND = np.array([164, 167, 393, 18, 200, 199, 83, 313, 182, 406, 57, 287, 186, 410, 43, 273, 202, 422])
"""Skin around the mouth."""
UPPER_FACE = np.array([50, 280, 101, 330, 117, 346, 151, 9, 108, 337])
"""Skin of cheeks and forehead."""
SPOT = 0.012
"""Face heights between the nine pixels that are averaged at a point."""
COLOURLESS = 0.015
"""Red less green of the skin (shares of r + g + b) below which a picture is taken for black and white. Skin: 0.04 to 0.15."""
DARK = 30.0
"""Added to r + g + b, so that near-black pixels count as colourless instead of as noise."""
USUAL = 0.03
"""Distance in chromaticity of lips and skin before this person's is known. Measured on three people: 0.025 to 0.07, hidden 0.003."""
USUAL_RANGE = (0.012, 0.06)
HIDDEN, SEEN = 0.2, 0.45
"""Shares of the usual distance at which the lips are certainly hidden and certainly seen."""
OPEN = (0.06, 0.15)
"""Tracked lip gap, inter-ocular distances, at which a mouth may be and is seen: a hidden one is drawn shut."""
LEARN = 2.0
"""s: time constant of this person's usual distance, learnt while the lips are seen."""
FALL, RISE = 0.1, 0.2
"""s: time constants of the confidence."""
INSIDE = (0.6, 0.9)
"""Shares of points inside the picture between which confidence goes from 0 to 1."""
LONGEST_STEP = 0.1
"""s a single frame counts at most."""


def inside(face: FloatArray) -> float:
    """0..1 by how much of a face (or a part of it) [N, 3] lies in the picture."""
    share = float(((face[:, :2] >= 0.0) & (face[:, :2] <= 1.0)).all(1).mean())
    return float(np.clip((share - INSIDE[0]) / (INSIDE[1] - INSIDE[0]), 0.0, 1.0))


@dataclass(slots=True)
class MouthSight:
    """Confidence that one person's lips are seen."""

    usual: float = USUAL  # distance in chromaticity of this person's lips and skin
    confidence: float = 1.0
    _time: float | None = None

    def __call__(self, rgb: UInt8Array, face: FloatArray, time: float) -> float:
        """Picture [H, W, 3], landmarks [478, 3] in 0..1 -> confidence 0..1, eased over some frames."""
        step = LONGEST_STEP if self._time is None else float(np.clip(time - self._time, 0.0, LONGEST_STEP))
        self._time = time
        seen, distance = self._judge(rgb, face)
        if distance is not None and seen > 0.5:
            usual = float(np.clip(distance, *USUAL_RANGE))
            self.usual += (1.0 - float(np.exp(-step / LEARN))) * (usual - self.usual)
        seen *= inside(face[LIPS])
        share = 1.0 - float(np.exp(-step / (FALL if seen < self.confidence else RISE)))
        self.confidence += share * (seen - self.confidence)
        return self.confidence

    def still(self, rgb: UInt8Array, face: FloatArray) -> float:
        """The same of a picture that stands alone: its confidence 0..1, not eased. What is known of the person stays as it is."""
        return self._judge(rgb, face)[0] * inside(face[LIPS])

    def _judge(self, rgb: UInt8Array, face: FloatArray) -> tuple[float, float | None]:
        """Confidence of this frame alone, and the distance in chromaticity (None where the picture has no colour)."""
        middle = (face[LIPS] + face[LIPS_INSIDE]) / 2
        spot = SPOT * float(np.ptp(face[:, 1])) * rgb.shape[0]
        lips, around, upper = (np.median(chromaticity(rgb, points, spot=spot), axis=0) for points in (middle, face[AROUND], face[UPPER_FACE]))
        if upper[0] - upper[1] < COLOURLESS:
            return 1.0, None
        distance = float(np.linalg.norm(lips - around))
        by_colour = (distance / self.usual - HIDDEN) / (SEEN - HIDDEN)
        by_gap = (measure(metric(face, rgb.shape[1] / rgb.shape[0])).gap - OPEN[0]) / (OPEN[1] - OPEN[0])
        return float(np.clip(max(by_colour, by_gap), 0.0, 1.0)), distance


def chromaticity(rgb: UInt8Array, points: FloatArray, *, spot: float) -> Float64Array:
    """[N, 2] red and green as shares of r + g + b at points [N, >= 2] in 0..1, each the mean of 3 x 3 pixels `spot` px apart."""
    height, width = rgb.shape[:2]
    offset = np.array([-1, 0, 1]) * max(1, round(spot))
    x = np.clip((points[:, 0] * width).astype(np.int64)[:, None] + offset, 0, width - 1)
    y = np.clip((points[:, 1] * height).astype(np.int64)[:, None] + offset, 0, height - 1)
    colour = rgb[y[:, :, None], x[:, None, :]].astype(np.float64).mean((1, 2))
    shares: Float64Array = colour[:, :2] / (colour.sum(1, keepdims=True) + DARK)
    return shares
