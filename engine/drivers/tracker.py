"""MediaPipe's face mesh behind a small interface: the only file that knows which tracker finds the landmarks."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from engine.drivers.quiet import quiet
from engine.types import FACE_POINTS, AvatarError, FloatArray, UInt8Array

BLACK_SIDE = 64
"""px of the picture that shows the tracker nothing."""
LONGEST_SIDE = 640
"""px: larger pictures are shrunk before tracking; the mesh itself looks at 192 x 192 px of face."""


class FaceTracker:
    """Finds faces in pictures. Not thread-safe."""

    def __init__(self, *, still: bool = False, faces: int = 0) -> None:
        """`still`: every picture stands alone (portraits); otherwise pictures follow each other (a camera).

        `faces`: the most faces to look for; 0 means 4 in stills and 1 in a stream.
        """
        self._still = still
        self._faces = faces or (4 if still else 1)
        self._mesh: Any = None
        self._warm = False  # whether the graph has said all that it says once

    def detect(self, rgb: UInt8Array) -> list[FloatArray]:
        """Picture [H, W, 3] uint8 RGB -> [478, 3] for each face: x, y 0..1, z on the scale of x. Empty where there is none."""
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or rgb.size == 0:
            raise AvatarError(f"The tracker needs RGB pictures [H, W, 3] of uint8; it was given {rgb.shape} of {rgb.dtype}.")
        picture = shrink(rgb)
        if self._warm:
            return self._process(picture)
        with quiet():
            faces = self._process(picture)
        self._warm = bool(faces)
        return faces

    def _process(self, picture: UInt8Array) -> list[FloatArray]:
        if self._mesh is None:
            from mediapipe.python.solutions.face_mesh import FaceMesh

            self._mesh = FaceMesh(static_image_mode=self._still, max_num_faces=self._faces, refine_landmarks=True)
        found = self._mesh.process(picture).multi_face_landmarks or ()
        faces = (np.array([(p.x, p.y, p.z) for p in face.landmark], np.float32) for face in found)
        return [face for face in faces if face.shape == (FACE_POINTS, 3) and np.isfinite(face).all()]

    def reset(self) -> None:
        """Forget where the face was. A black picture does that for a tenth of what starting the graph again costs."""
        if self._mesh is not None and not self._still:
            self._process(np.zeros((BLACK_SIDE, BLACK_SIDE, 3), np.uint8))

    def close(self) -> None:
        """Free the tracker. It starts again on the next `detect`."""
        if self._mesh is not None:
            self._mesh.close()
            self._mesh = None
            self._warm = False


def shrink(rgb: UInt8Array) -> UInt8Array:
    """The picture, contiguous, with no side longer than LONGEST_SIDE."""
    height, width = rgb.shape[:2]
    factor = LONGEST_SIDE / max(height, width)
    if factor >= 1.0:
        return np.ascontiguousarray(rgb)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    how = cv2.INTER_AREA if factor <= 0.5 else cv2.INTER_LINEAR  # as sharp above a half, and three times as fast
    return np.asarray(cv2.resize(rgb, size, interpolation=how), np.uint8)
