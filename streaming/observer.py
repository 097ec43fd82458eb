"""Pictures of a person who is recorded -> Readings, with the trackers of the live avatar. Knows pictures, not what they are asked to show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from engine.types import UInt8Array, VideoFrame
from streaming.guide import Reading

CROWD_SECONDS = 0.5
"""s from one look for other faces to the next: it costs as much as following one."""


class Observer:
    """One a recording; not thread-safe. About 12 ms of a core a picture of 640 px, and again as much every CROWD_SECONDS."""

    def __init__(self, face: Callable[[], Any], *, crowd: Callable[[], Any] | None = None) -> None:
        """`face`: makes the face driver; `crowd`: makes what finds all faces of a picture, the usual tracker where it is None."""
        from engine.drivers.tracker import FaceTracker

        self._face = face()
        self._crowd = FaceTracker(still=True) if crowd is None else crowd()
        self._crowd_at = float("-inf")
        self._others = 0.0
        self._count = 0
        self._warm_up()

    def _warm_up(self) -> None:
        """Load the trackers' networks now, not while somebody is waiting to be seen."""
        from engine.persona import demo_portrait

        self._face(VideoFrame(demo_portrait(), 0.0, 0))
        self._face.reset()
        self._crowd.detect(demo_portrait())

    def __call__(self, rgb: UInt8Array, *, time: float, loud: float, width: int) -> Reading:
        """A picture [H, W, 3] of `time` s; `loud`: RMS 0..1 since the one before; `width`: px of the recorded picture, which may be larger."""
        from engine.drivers import quality

        self._count += 1
        signal = self._face(VideoFrame(rgb, time, self._count))
        face, motion = signal.face, signal.motion
        if time - self._crowd_at >= CROWD_SECONDS:
            self._crowd_at = time
            self._others = quality.others(self._crowd.detect(rgb), face)
        if face is None or motion is None:
            return Reading(time, face=False, light=quality.light(rgb), loud=loud)
        yaw, pitch, roll = (float(angle) for angle in motion.head[:3])
        return Reading(
            time,
            width=float(np.ptp(face[:, 0])) * width,
            head=(yaw, pitch, roll),
            eyes=float(motion.eyes.mean()),
            brows=float(motion.brows.mean()),
            gap=float(motion.mouth[0]),
            wider=float(motion.mouth[1]),
            mouth=float(signal.confidence.get("mouth", 1.0)),
            outside=quality.outside(face),
            others=self._others,
            sharp=quality.sharpness(rgb, face),
            light=quality.light(rgb, face),
            loud=loud,
        )

    def close(self) -> None:
        """Free the trackers."""
        self._face.close()
        self._crowd.close()
