"""Camera picture -> face landmarks -> Signal, with MediaPipe's face mesh. The only file that knows which tracker it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np

from engine.drivers.calibrate import NeutralState
from engine.drivers.express import Expression
from engine.drivers.quiet import quiet
from engine.drivers.rigid import metric
from engine.types import FACE_POINTS, AvatarError, FloatArray, Signal, UInt8Array, VideoFrame, still_motion

LONGEST_SIDE = 960
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
        self._warm = False

    def detect(self, rgb: UInt8Array) -> list[FloatArray]:
        """Picture [H, W, 3] uint8 RGB -> [478, 3] for each face: x, y 0..1, z on the scale of x. Empty where there is none."""
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
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
        """Forget where the face was."""
        if self._mesh is not None:
            self._mesh.reset()

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
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)


class FaceDriver:
    """One person's face in a camera -> calibrated Signals. One a session; not thread-safe."""

    def __init__(self) -> None:
        self._tracker = FaceTracker()
        self._person = Expression()

    def __call__(self, frame: VideoFrame) -> Signal:
        """A camera frame -> Signal; where no face is seen `face` is None and the motion's confidence 0."""
        height, width = frame.rgb.shape[:2]
        aspect = width / max(1, height)
        faces = self._tracker.detect(frame.rgb)
        if not faces:
            return Signal(frame.time, frame.id, motion=replace(still_motion()), aspect=aspect, confidence={"face": 0.0, "mouth": 0.0})
        moved, head = self._person(metric(faces[0], aspect), frame.time)
        head[:3] *= height
        return Signal(
            frame.time, frame.id, motion=moved, face=faces[0], aspect=aspect, head=head.astype(np.float32), confidence={"face": 1.0, "mouth": 1.0}
        )

    @property
    def neutral_state(self) -> NeutralState:
        """Whether the neutral is still searched for or set."""
        return self._person.neutral_state

    def set_neutral(self) -> None:
        """Take the present face (the mean of the next few frames) as the neutral one."""
        self._person.set_neutral()

    def reset(self) -> None:
        """Forget the person."""
        self._person = Expression()
        self._tracker.reset()

    def close(self) -> None:
        """Free the tracker."""
        self._tracker.close()
