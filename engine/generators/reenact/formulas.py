"""Keypoints from poses and expressions, and a driver's motion on another face (Guo et al. 2024, arXiv 2407.03168). NumPy only.

Points are rows, x right, y down, z away, in half sides of the crop: a rotation stands on their right. Angles are degrees, of which
pitch > 0 looks down and yaw < 0 to the picture's right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from engine.types import AvatarError, FloatArray

BINS, BIN_DEGREES, FIRST_BIN = 66, 3.0, -97.5
"""An angle is the mean of these bins' degrees, weighted by what the network gives each."""
LIPS = (6, 12, 14, 17, 19, 20)
EYES = (11, 13, 15, 16, 18)
"""Keypoints that follow the lips and the eyes."""
DRIVEN: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((1, 2, 6, *range(11, 21)), (0, 1, 2)),
    ((3, 4), (1,)),
    ((5, 8), (2,)),
    ((9,), (1, 2)),
)
"""Keypoints and axes of an expression that absolute motion takes from the driver; the rest is the portrait's own shape."""

Region = Literal["all", "exp", "pose", "lip", "eyes"]
"""What of a driver's motion is taken: everything, the expression, the pose of the head, or only lips or eyes."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the motion extractor says of one face in its crop."""

    kp: FloatArray  # [21, 3] the face without pose or expression
    pitch: float  # degrees
    yaw: float
    roll: float
    t: FloatArray  # [3] shift; of its z nothing is used
    exp: FloatArray  # [21, 3] what the expression adds, in the face's own size
    scale: float

    @classmethod
    def of(cls, said: Mapping[str, Any], row: int = 0) -> Reading:
        """From the outputs of the graph `motion` (`graphs.motion_spec`)."""
        pitch, yaw, roll = (float(x) for x in said["pose"][row])
        return cls(
            kp=np.asarray(said["kp"][row], np.float32),
            pitch=pitch,
            yaw=yaw,
            roll=roll,
            t=np.asarray(said["t"][row], np.float32),
            exp=np.asarray(said["exp"][row], np.float32),
            scale=float(said["scale"][row][0]),
        )

    @property
    def turn(self) -> FloatArray:
        """[3, 3] of the head, for rows."""
        return rotation(self.pitch, self.yaw, self.roll)

    @property
    def points(self) -> FloatArray:
        """[21, 3] keypoints as they are in the picture."""
        return placed(self.kp, self.turn, self.exp, self.scale, self.t)


def degrees(said: npt.ArrayLike) -> FloatArray:
    """[..., 66] before the softmax -> [...] degrees."""
    x = np.asarray(said, np.float64)
    share = np.exp(x - x.max(-1, keepdims=True))
    bins = FIRST_BIN + BIN_DEGREES * np.arange(BINS)
    return np.asarray((share * bins).sum(-1) / share.sum(-1), np.float32)


def rotation(pitch: float, yaw: float, roll: float) -> FloatArray:
    """[3, 3] for rows: the transpose of Rz(roll) Ry(yaw) Rx(pitch)."""
    (a, b, c), (u, v, w) = np.cos(np.radians((pitch, yaw, roll))), np.sin(np.radians((pitch, yaw, roll)))
    about_x = np.array([[1, 0, 0], [0, a, -u], [0, u, a]])
    about_y = np.array([[b, 0, v], [0, 1, 0], [-v, 0, b]])
    about_z = np.array([[c, -w, 0], [w, c, 0], [0, 0, 1]])
    return np.asarray((about_z @ about_y @ about_x).T, np.float32)


def placed(kp: FloatArray, turn: FloatArray, exp: FloatArray, scale: float, t: FloatArray) -> FloatArray:
    """scale · (kp · turn + exp) + t, [21, 3]; t's z is left out."""
    made = scale * (kp @ turn + exp)
    return np.asarray(made + np.array([t[0], t[1], 0.0], np.float32), np.float32)


def relative(source: Reading, driver: Reading, neutral: Reading, *, region: Region = "all") -> FloatArray:
    """Keypoints [21, 3] of the portrait after the driver's change from their neutral."""
    turn, exp, scale, t = source.turn, source.exp, source.scale, source.t
    if region in ("all", "pose"):
        turn = driver.turn @ neutral.turn.T @ turn
        t = t + (driver.t - neutral.t)
    if region == "all":
        scale = scale * (driver.scale / neutral.scale)
    exp = _in_region(exp, exp + (driver.exp - neutral.exp), region)
    return placed(source.kp, turn, exp, scale, t)


def absolute(source: Reading, driver: Reading, *, region: Region = "all") -> FloatArray:
    """Keypoints [21, 3] of the portrait in the driver's own pose and expression, at the portrait's size."""
    turn, t = (driver.turn, driver.t) if region in ("all", "pose") else (source.turn, source.t)
    taken = source.exp.copy()
    for points, axes in DRIVEN:
        at = np.ix_(points, axes)
        taken[at] = driver.exp[at]
    wanted = taken if region in ("all", "exp") else driver.exp
    return placed(source.kp, turn, _in_region(source.exp, wanted, region), source.scale, t)


def _in_region(own: FloatArray, wanted: FloatArray, region: Region) -> FloatArray:
    """An expression [21, 3] that is the wanted one where the region is, else the portrait's own."""
    if region in ("all", "exp"):
        return wanted
    points = {"lip": LIPS, "eyes": EYES}.get(region, ())
    made = own.copy()
    made[list(points)] = wanted[list(points)]
    return made


def check_region(region: str) -> None:
    """Raise AvatarError for a region that does not exist."""
    if region not in get_args(Region):
        raise AvatarError(f"There is no region called '{region}'; choose one of: {', '.join(get_args(Region))}.")


def multiplier(source: FloatArray, first: FloatArray) -> float:
    """How much larger the portrait's motion is to be than that of the first driven keypoints [21, 3]: by the roots of both hulls' volumes.

    For relative motion, whose first keypoints are the portrait's own, it is 1.
    """
    from scipy.spatial import ConvexHull

    return float(np.sqrt(ConvexHull(source).volume) / np.sqrt(ConvexHull(first).volume))


def friendly(points: FloatArray, first: FloatArray, source: FloatArray, factor: float) -> FloatArray:
    """Driven keypoints [21, 3] whose change from the first ones is laid on the portrait's, larger by `multiplier`."""
    return np.asarray((points - first) * factor + source, np.float32)


def beside(source: FloatArray, told: npt.ArrayLike) -> FloatArray:
    """Keypoints [N, 21, 3] and what is told beside them [N, K] or [N, 21, 3] -> [N, 63 + ..], what stitching and retargeting read."""
    n = len(source)
    return np.concatenate([np.reshape(source, (n, -1)), np.reshape(np.asarray(told, np.float32), (n, -1))], 1)


def stitched(points: FloatArray, said: FloatArray) -> FloatArray:
    """Keypoints [N, 21, 3] and what the stitching network says [N, 65] -> keypoints, each moved, and all of them in x and y."""
    n, count = points.shape[:2]
    moved = points + said[:, : 3 * count].reshape(n, count, 3)
    moved[..., :2] += said[:, None, 3 * count :]
    return np.asarray(moved, np.float32)


__all__ = [
    "BINS",
    "DRIVEN",
    "EYES",
    "LIPS",
    "Reading",
    "Region",
    "absolute",
    "beside",
    "check_region",
    "degrees",
    "friendly",
    "multiplier",
    "placed",
    "relative",
    "rotation",
    "stitched",
]
