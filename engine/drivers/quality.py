"""How good a picture of a face is, in numbers that do not depend on the camera's size: its sharpness, its light, who else is there."""

from __future__ import annotations

import cv2
import numpy as np

from engine.drivers.portrait import RIVAL
from engine.types import FloatArray, UInt8Array

FACE_SIDE = 96
"""px to which the face is brought before its sharpness is measured: sharpness then does not depend on its size."""


def cut_out(rgb: UInt8Array, face: FloatArray) -> UInt8Array:
    """[h, w, 3]: the part of a picture [H, W, 3] that a face [478, >= 2] in 0..1 takes, at least 2 px each way."""
    size = np.array([rgb.shape[1], rgb.shape[0]])
    low = np.clip(face[:, :2].min(0) * size, 0, size - 2).astype(int)
    high = np.clip(face[:, :2].max(0) * size, low + 2, size).astype(int)
    return np.ascontiguousarray(rgb[low[1] : high[1], low[0] : high[0]])


def sharpness(rgb: UInt8Array, face: FloatArray) -> float:
    """Deviation, in grey levels, of the Laplacian of the face brought to FACE_SIDE px."""
    near = cv2.cvtColor(cut_out(rgb, face), cv2.COLOR_RGB2GRAY)
    near = cv2.resize(near, (FACE_SIDE, FACE_SIDE), interpolation=cv2.INTER_AREA if near.shape[0] > FACE_SIDE else cv2.INTER_LINEAR)
    return float(cv2.Laplacian(near, cv2.CV_32F).std())


def light(rgb: UInt8Array, face: FloatArray | None = None) -> float:
    """Mean grey level 0..255 of the face, or of the whole picture where there is none."""
    return float(cv2.cvtColor(rgb if face is None else cut_out(rgb, face), cv2.COLOR_RGB2GRAY).mean())


def outside(face: FloatArray) -> float:
    """Share of the points [478, >= 2] that lie outside 0..1: 0 for a face that is whole in the picture."""
    return float(1.0 - ((face[:, :2] >= 0.0) & (face[:, :2] <= 1.0)).all(1).mean())


def others(faces: list[FloatArray], face: FloatArray | None) -> float:
    """Width of the widest other face as a share of the followed one's (of the widest where none is followed)."""
    boxes = sorted(((float(np.ptp(f[:, 0])), f[:, :2].mean(0)) for f in faces), key=lambda box: -box[0])
    if not boxes:
        return 0.0
    width, middle = boxes[0] if face is None else (float(np.ptp(face[:, 0])), face[:, :2].mean(0))
    rest = [w for w, m in boxes if float(np.linalg.norm(m - middle)) > RIVAL * width]
    return max(rest, default=0.0) / max(width, 1e-6)


__all__ = ["cut_out", "light", "others", "outside", "sharpness"]
