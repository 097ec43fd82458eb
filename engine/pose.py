"""Rotations between angles and matrices, in one place, so that every driver and generator means the same by "yaw"."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]


def rotation(yaw: float, pitch: float, roll: float) -> Float64Array:
    """[3, 3] that turns head vectors (x right, y down, z away): roll after pitch after yaw.

    Degrees. yaw > 0 moves the nose to the picture's right, pitch > 0 moves it down, roll > 0 turns clockwise in the picture.
    """
    a, b, c = np.radians((-yaw, pitch, roll))
    about_y = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    product: Float64Array = about_z @ about_x @ about_y
    return product


def angles(matrix: Float64Array) -> tuple[float, float, float]:
    """(yaw, pitch, roll) in degrees of a rotation: the inverse of `rotation` for |pitch| < 90."""
    pitch = np.degrees(np.arcsin(np.clip(matrix[2, 1], -1.0, 1.0)))
    yaw = np.degrees(np.arctan2(matrix[2, 0], matrix[2, 2]))
    roll = np.degrees(np.arctan2(-matrix[0, 1], matrix[1, 1]))
    return float(yaw), float(pitch), float(roll)


def umeyama(source: npt.ArrayLike, target: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> tuple[float, Float64Array, Float64Array]:
    """Similarity (scale, rotation [3, 3], translation [3]) with target ~ scale * rotation @ source + translation.

    Points [N, 3]; weights [N]. Umeyama 1991, IEEE PAMI 13(4), equations 40-42.
    """
    a, b = np.asarray(source, np.float64), np.asarray(target, np.float64)
    w = np.ones(len(a)) if weights is None else np.asarray(weights, np.float64)
    w = w / w.sum()
    mean_a, mean_b = w @ a, w @ b
    da, db = a - mean_a, b - mean_b
    u, s, vt = np.linalg.svd((db * w[:, None]).T @ da)
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    turn: Float64Array = (u * sign) @ vt
    scale = float((s * sign).sum() / (w @ (da**2).sum(1)))
    return scale, turn, mean_b - scale * turn @ mean_a
