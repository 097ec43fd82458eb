"""Painted points without a seam where the driver's give way to the portrait's own, or back: the memory of painted conditions.

The mixer has eased the *motion* already (`engine.drivers.mix`); but a face that the camera sees is painted with the driver's own points,
and one that it does not see with the portrait's. So where the points change hands, the difference to what was painted last is kept and
eased away over EASE seconds, face and body each on its own, as the mixer does it (inertialisation, Bollo, GDC 2018).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from engine.conditions.align import Alignment
from engine.conditions.place import Placed
from engine.conditions.skeleton import SEEN
from engine.drivers.idle import smoothstep
from engine.drivers.mix import EASE
from engine.types import FloatArray

WRISTS = np.array([15, 16])
"""MediaPipe's pose landmarks that a hand hangs on."""
_LONGEST_STEP = 1.0  # s that count between two signals


@dataclass(slots=True)
class Part:
    """A face or a body, whose points it is made of, and what is left of those before."""

    source: str | None = None
    since: float = 0.0  # clock at which the source changed
    points: FloatArray = field(default_factory=lambda: np.zeros((0, 2), np.float32))  # [N, 2] px, painted last
    seen: FloatArray = field(default_factory=lambda: np.zeros(0, np.float32))  # [N] 1 where they were painted, else 0
    left: FloatArray | None = None  # [N, 2] px, difference to ease away

    def follow(self, source: str, points: FloatArray, seen: FloatArray, *, before: float, clock: float) -> FloatArray:
        """Points [N, 2] of a source, and which are seen [N] (1 or 0) -> what to paint; `before`, `clock`: s at the last signal and this one."""
        if self.source is not None and source != self.source:
            self.since = before
            # A joint that either of them lacks has no place to come from.
            self.left = (self.points - points) * (self.seen * seen)[:, None]
        self.source, self.seen = source, seen
        share = 1.0 - smoothstep((clock - self.since) / EASE)
        if share == 0.0:
            self.left = None
        self.points = points if self.left is None else (points + np.float32(share) * self.left).astype(np.float32)
        return self.points


@dataclass(slots=True)
class Ease:
    """What one session's painted condition remembers."""

    clock: float = 0.0  # s of signals so far; never goes back, whatever the signals' times do
    time: float | None = None  # of the last signal
    face: Part = field(default_factory=Part)
    body: Part = field(default_factory=Part)
    alignment: Alignment = field(default_factory=Alignment)


def eased(ease: Ease, placed: Placed, time: float) -> Placed:
    """The points of the signal of `time` (s) as they are painted; `ease` goes on. A hand moves with the wrist that is nearest to it."""
    before = ease.clock
    step = 0.0 if ease.time is None else float(np.clip(time - ease.time, 0.0, _LONGEST_STEP))
    ease.clock, ease.time = before + step, time
    all_of_it = np.ones(len(placed.face), np.float32)
    face = ease.face.follow(placed.face_from, placed.face, all_of_it, before=before, clock=ease.clock)
    joints, seen = placed.body[:, :2], (placed.body[:, 2] > SEEN).astype(np.float32)
    body = ease.body.follow(placed.body_from, joints, seen, before=before, clock=ease.clock)
    hands = []
    for hand in placed.hands:
        wrist = WRISTS[np.hypot(*(joints[WRISTS] - hand[0]).T).argmin()]
        hands.append(hand + body[wrist] - joints[wrist])
    return replace(placed, face=face, body=np.concatenate([body, placed.body[:, 2:]], 1), hands=tuple(hands))


__all__ = ["Ease", "eased"]
