"""Where the head is: a rigid fit to the points of a face that no expression moves. Knows points, not people or time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.pose import Float64Array, umeyama
from engine.types import FloatArray

_TABLE: dict[tuple[int, ...], tuple[float, float, float, float]] = {
    # points (one in the middle, or a left and a right one) -> x of the right one, y, z of a mean face, weight
    (10,): (0.0, -0.369, -0.084, 0.3),  # the hairline: what is left of a forehead without brows
    (168,): (0.0, -0.057, -0.141, 1.5),  # the nose carries the depth that tells pitch and yaw from a shift
    (6,): (0.0, -0.007, -0.179, 1.5),
    (197,): (0.0, 0.040, -0.221, 1.5),
    (195,): (0.0, 0.083, -0.265, 1.5),
    (5,): (0.0, 0.130, -0.312, 1.5),
    (33, 263): (0.333, -0.006, 0.020, 0.7),
    (133, 362): (0.130, 0.006, -0.020, 0.7),
    (54, 284): (0.428, -0.219, 0.136, 1.0),
    (21, 251): (0.468, -0.133, 0.217, 1.0),
    (162, 389): (0.491, -0.040, 0.304, 1.0),
    (127, 356): (0.502, 0.070, 0.370, 1.0),
    (234, 454): (0.500, 0.171, 0.396, 0.5),  # at the ears: an open jaw pulls them a little
}
"""Bridge of the nose, corners of the eyes, temples; neither chin, lips and brows nor the forehead, which the tracker lifts with them: on
renders of a head held still, raised brows read as 1.2 degrees of pitch instead of 2.3 and a wide jaw as 1.8 instead of 3.7. The mean face
is a public-domain portrait's mesh made symmetrical, in face widths (points 234 to 454), origin between the eyes, upright: hairline over chin."""
_ROWS = [(index, ((2 * side - len(at) + 1) * x, y, z), weight) for at, (x, y, z, weight) in _TABLE.items() for side, index in enumerate(at)]

RIGID = np.array([row[0] for row in _ROWS])
RIGID_WEIGHTS = np.array([row[2] for row in _ROWS])
MEAN_RIGID = np.array([row[1] for row in _ROWS])
EYE_CORNERS = np.array([[33, 133], [362, 263]])
"""Left and right eye of the picture, each from the picture's left to its right."""
PIVOT = np.array([0.0, 0.8, 0.4])
"""What the head turns about, face widths from between the eyes: the height of the chin, the depth of the ears. Shifts are of this point."""


@dataclass(frozen=True, slots=True)
class Pose:
    """A similarity: head (face widths, origin between the eyes) -> picture (heights of the picture)."""

    scale: float  # picture heights a face width
    turn: Float64Array  # [3, 3] rotation
    shift: Float64Array  # [3]

    def apply(self, points: Float64Array) -> Float64Array:
        """Head points [N, 3] -> picture."""
        moved: Float64Array = self.scale * points @ self.turn.T + self.shift
        return moved

    def undo(self, points: Float64Array) -> Float64Array:
        """Picture points [N, 3] -> head."""
        moved: Float64Array = (points - self.shift) @ self.turn / self.scale
        return moved


def metric(face: FloatArray, aspect: float) -> Float64Array:
    """Landmarks [N, 3] in 0..1 -> the same in picture heights, all three axes on one scale. `aspect`: width / height."""
    return np.asarray(face, np.float64) * (aspect, 1.0, aspect)


def face_width(points: Float64Array) -> float:
    """Distance of the face's two sides at the ears (points 234 and 454)."""
    return float(np.linalg.norm(points[454] - points[234]))


def eye_distance(points: Float64Array) -> float:
    """Inter-ocular distance: between the centres of the eyes, each the middle of its corners."""
    left, right = points[EYE_CORNERS].mean(1)
    return float(np.linalg.norm(right - left))


def fit_pose(model: Float64Array, seen: Float64Array) -> Pose:
    """Pose that takes the model's rigid points [len(RIGID), 3] (head) to the seen ones (picture), weighted by RIGID_WEIGHTS.

    z counts as much as x and y: noisy as it is, renders of known pitch read back within a tenth with it and a quarter too small
    without, and it adds no jitter that the filters do not take.
    """
    return Pose(*umeyama(model, seen, RIGID_WEIGHTS))
