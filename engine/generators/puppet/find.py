"""Find the face of a portrait, also in paintings and drawings where a tracker needs a second look."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from engine.drivers.face import FaceTracker
from engine.types import AvatarError, FloatArray, UInt8Array

ENLARGED = 1.6
"""Factor of a second look: the detector prefers faces of a certain size."""


def find_face(rgb: UInt8Array) -> FloatArray:
    """Picture [H, W, 3] -> [478, 3] px (z on the scale of x) of the widest face. Raises AvatarError where no face is found."""
    height, width = rgb.shape[:2]
    tracker = FaceTracker(still=True)
    try:
        for look in _looks(rgb):
            faces = tracker.detect(look)
            if faces:
                widest = max(faces, key=lambda face: float(np.ptp(face[:, 0])))
                points: FloatArray = (widest * (width, height, width)).astype(np.float32)
                return points
    finally:
        tracker.close()
    raise AvatarError("No face was found in the portrait; choose a picture where a whole face looks towards the camera.")


def _looks(rgb: UInt8Array) -> Iterator[UInt8Array]:
    """The picture as it is, then with more contrast, larger, smaller, and both."""
    yield rgb
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)
    lab[..., 0] = cv2.createCLAHE(clipLimit=3.0, tileGridSize=(4, 4)).apply(lab[..., 0])
    clear = np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), np.uint8)
    yield clear
    for picture in (rgb, clear):
        for factor in (ENLARGED, 1 / ENLARGED, 1 / ENLARGED**2):
            how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
            yield np.asarray(cv2.resize(picture, None, fx=factor, fy=factor, interpolation=how), np.uint8)
    yield np.asarray(cv2.GaussianBlur(rgb, (0, 0), 1.5), np.uint8)
