"""A camera's pictures -> calibrated Signals of one person's face. Knows the order of things; its parts know how."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from engine.drivers.calibrate import NeutralState
from engine.drivers.express import Expression
from engine.drivers.follow import Follower
from engine.drivers.rigid import metric
from engine.drivers.sight import MouthSight, inside
from engine.drivers.tracker import FaceTracker
from engine.types import Signal, VideoFrame, still_motion

__all__ = ["FaceDriver", "FaceTracker"]


class FaceDriver:
    """One person's face in a camera -> calibrated Signals. One a session; not thread-safe."""

    def __init__(self) -> None:
        self._follower = Follower()
        self._person, self._sight = Expression(), MouthSight()
        self._size = (0, 0)

    def __call__(self, frame: VideoFrame) -> Signal:
        """A camera frame -> Signal; where no face is seen `face` is None and the motion's confidence 0."""
        height, width = frame.rgb.shape[:2]
        aspect = width / height
        if (height, width) != self._size:
            self._size = (height, width)
            self._person.new_geometry()
        face = self._follower(frame.rgb, frame.time)
        if face is None:
            return Signal(frame.time, frame.id, motion=still_motion(), aspect=aspect, confidence={"face": 0.0, "mouth": 0.0})
        if self._follower.newcomer:
            self._person, self._sight = Expression(), MouthSight()
        seen = inside(face)
        mouth = min(seen, self._sight(frame.rgb, face, frame.time))
        moved, head = self._person(metric(face, aspect), frame.time, mouth_seen=mouth)
        head[:3] *= height
        moved = replace(moved, confidence=np.array([seen, mouth, 0.0], np.float32))
        sure = {"face": seen, "mouth": mouth}
        return Signal(frame.time, frame.id, motion=moved, face=face, aspect=aspect, head=head.astype(np.float32), confidence=sure)

    @property
    def neutral_state(self) -> NeutralState:
        """Whether the neutral is still searched for or set."""
        return self._person.neutral_state

    def set_neutral(self) -> None:
        """Take the present face (the mean of the next few frames) as the neutral one."""
        self._person.set_neutral()

    def reset(self) -> None:
        """Forget the person."""
        self._person, self._sight = Expression(), MouthSight()
        self._follower.reset()

    def close(self) -> None:
        """Free the trackers. They start again on the next frame."""
        self._follower.close()
