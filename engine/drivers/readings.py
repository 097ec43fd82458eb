"""Shoulders and hands are read on some of the camera's frames, on a thread of their own: what of that is known at a signal's instant.

A signal that brings its own (a recording's) keeps them where there is no reading. Knows readings and times, not pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from engine.types import FloatArray, Signal, still_motion

if TYPE_CHECKING:
    from engine.drivers.body import BodyReading
    from engine.drivers.hands import HandsReading

STALE = 1.2
"""s after which a reading no longer counts: on the ladder's lower rungs there is one a second."""
HANDS_HOLD, HANDS_FADE = 0.2, 0.2
"""s that a hand which is no longer seen stays as it was, and s in which its confidence then goes to 0."""
HAND_LEAST = 0.3
"""Confidence under which a hand is not told: beside a surer one nobody could see that it is a guess."""
BODY_FOLLOW, HANDS_FOLLOW = 0.08, 0.03
"""s: time constants that fill the steps between two readings."""
HAND_JUMP = 0.5
"""Of its own size: what a hand may be away from where it was shown and still be eased there; further is another hand."""


def beside(signal: Signal, *, body: BodyReading | None, hands: HandsReading | None) -> Signal:
    """The signal with the landmarks of body and hands, the shoulders' motion and the confidences, of readings that are fresh at its time."""
    if body is not None and abs(signal.time - body.time) <= STALE:
        motion = signal.motion or still_motion()
        sure = np.array([*motion.confidence[:2], body.confidence], np.float32)
        signal = replace(signal, body=body.landmarks, motion=replace(motion, body=body.motion, confidence=sure))
    if hands is not None and abs(signal.time - hands.time) <= STALE:
        shown, certainty = hands_at(hands, signal.time)
        signal = replace(signal, hands=shown, confidence={**signal.confidence, "hands": certainty})
    return signal


def hands_at(reading: HandsReading, time: float) -> tuple[FloatArray | None, float]:
    """(hands [2, 21, 3], all zero for one that is not there, or None for neither; confidence 0..1 of the surer one) at `time` s.

    A hand the reading has not seen is held for HANDS_HOLD after it was seen last and fades in HANDS_FADE.
    """
    gone = np.where(reading.seen < reading.time, (time - reading.seen - HANDS_HOLD) / HANDS_FADE, 0.0)
    sure = reading.confidence * (1.0 - np.clip(gone, 0.0, 1.0))
    there = sure >= HAND_LEAST
    if not there.any():
        return None, 0.0
    return np.where(there[:, None, None], reading.landmarks, np.float32(0.0)), float(sure.max())


@dataclass(slots=True)
class Ease:
    """What was shown last of points that come in steps."""

    body: FloatArray | None = None  # [33, 4]
    hands: FloatArray | None = None  # [2, 21, 3]

    def __call__(self, signal: Signal, step: float) -> Signal:
        """The signal `step` s after the last one, its body and hands on the way to where they were read."""
        body, hands = signal.body, signal.hands
        if body is not None and self.body is not None:
            body = _towards(self.body, body, step / BODY_FOLLOW)
        if hands is not None and self.hands is not None:
            pairs = zip(self.hands, hands, strict=True)
            hands = np.stack([_towards(before, now, step / HANDS_FOLLOW) if same_hand(before, now) else now for before, now in pairs])
        self.body, self.hands = body, hands
        return replace(signal, body=body, hands=hands)


def _towards(before: FloatArray, now: FloatArray, elapsed: float) -> FloatArray:
    """On the way from one to the other, after so many time constants."""
    return (before + np.float32(1.0 - np.exp(-elapsed)) * (now - before)).astype(np.float32)


def same_hand(before: FloatArray, now: FloatArray) -> bool:
    """Whether a hand [21, 3] is the one that was shown; not where either is none."""
    if not (before.any() and now.any()):
        return False
    size = float(np.hypot(*np.ptp(now[:, :2], axis=0)))
    return float(np.linalg.norm(before[:, :2] - now[:, :2], axis=1).mean()) <= HAND_JUMP * size
