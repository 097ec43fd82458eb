"""Where the head is: a rigid fit to the points of a face that no expression moves. Knows points, not people or time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.pose import Float64Array, umeyama
from engine.types import FloatArray

_TABLE: dict[tuple[int, ...], tuple[float, float, float, float]] = {
    # points (one in the middle, or a left and a right one) -> x of the right one, y, z of a mean face, weight
    (10,): (0.0, -0.369, -0.084, 1.0),
    (151,): (0.0, -0.271, -0.114, 1.0),
    (9,): (0.0, -0.168, -0.141, 0.5),  # between the brows: a frown moves them a little
    (8,): (0.0, -0.110, -0.137, 0.5),
    (168,): (0.0, -0.057, -0.141, 1.5),  # the nose carries the depth that tells pitch and yaw from a shift
    (6,): (0.0, -0.007, -0.179, 1.5),
    (197,): (0.0, 0.040, -0.221, 1.5),
    (195,): (0.0, 0.083, -0.265, 1.5),
    (5,): (0.0, 0.130, -0.312, 1.5),
    (109, 338): (0.140, -0.364, -0.072, 1.0),
    (67, 297): (0.257, -0.340, -0.026, 1.0),
    (103, 332): (0.363, -0.291, 0.051, 1.0),
    (54, 284): (0.428, -0.219, 0.136, 1.0),
    (21, 251): (0.468, -0.133, 0.217, 1.0),
    (162, 389): (0.491, -0.040, 0.304, 1.0),
    (127, 356): (0.502, 0.070, 0.370, 1.0),
    (234, 454): (0.500, 0.171, 0.396, 0.5),  # at the ears: an open jaw pulls them a little
}
"""Forehead, temples, bridge of the nose; neither chin, brows, lids nor lips. The mean face is a public-domain portrait's mesh made
symmetrical, in face widths (points 234 to 454), origin between the eyes, upright: hairline over chin."""
_ROWS = [(index, ((2 * side - len(at) + 1) * x, y, z), weight) for at, (x, y, z, weight) in _TABLE.items() for side, index in enumerate(at)]

RIGID = np.array([row[0] for row in _ROWS])
RIGID_WEIGHTS = np.array([row[2] for row in _ROWS])
MEAN_RIGID = np.array([row[1] for row in _ROWS])
EYE_CORNERS = np.array([[33, 133], [362, 263]])
"""Left and right eye of the picture, each from the picture's left to its right."""
PIVOT = np.array([0.0, 0.8, 0.4])
"""What the head turns about, face widths from between the eyes: the height of the chin, the depth of the ears. Shifts are of this point."""
DEPTH_TRUST = 0.3
"""Weight of MediaPipe's z against its x and y. At 1 an open jaw reads as up to 6 degrees of pitch, at 0.3 as 3.5, and pitch jitters a fifth less."""
FIT_ROUNDS = 2
"""Gauss-Newton rounds after the closed form; a third changes angles by less than 0.01 degrees."""


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
    """Pose that takes the model's rigid points [len(RIGID), 3] (head) to the seen ones (picture).

    Weighted least squares, z weighted DEPTH_TRUST: Umeyama's closed form for equal axes, then Gauss-Newton on rotation vector, log
    scale and shift.
    """
    scale, turn, shift = umeyama(model, seen, RIGID_WEIGHTS)
    pose = Pose(scale, turn, shift)
    root = np.sqrt(RIGID_WEIGHTS)[:, None] * (1.0, 1.0, DEPTH_TRUST)
    for _ in range(FIT_ROUNDS):
        pose = _refine(pose, model, seen, root)
    return pose


def _refine(pose: Pose, model: Float64Array, seen: Float64Array, root: Float64Array) -> Pose:
    turned = pose.scale * model @ pose.turn.T
    slopes = np.zeros((len(model), 3, 7))
    x, y, z = turned.T
    slopes[:, 1, 0], slopes[:, 2, 0] = -z, y  # d/d rotation vector: v x turned
    slopes[:, 0, 1], slopes[:, 2, 1] = z, -x
    slopes[:, 0, 2], slopes[:, 1, 2] = -y, x
    slopes[:, :, 3] = turned
    slopes[:, (0, 1, 2), (4, 5, 6)] = 1.0
    left = (slopes * root[:, :, None]).reshape(-1, 7)
    right = ((seen - turned - pose.shift) * root).reshape(-1)
    step = np.linalg.lstsq(left, right, rcond=None)[0]
    return Pose(pose.scale * float(np.exp(step[3])), turn_by(step[:3]) @ pose.turn, pose.shift + step[4:])


def turn_by(vector: Float64Array) -> Float64Array:
    """Rotation [3, 3] of a rotation vector in radians (Rodrigues)."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    turn: Float64Array = np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * cross @ cross
    return turn
