"""Camera picture -> the person's hands, with MediaPipe's. Slow: meant for one frame in `config.HANDS_EVERY` while there is a hand, fewer while not.

*Whose hand*: slot 0 is the hand of the arm on the picture's left of a person who faces the camera, wherever the hand has gone. MediaPipe
names hands for pictures that are mirrored like a selfie's, so that in a picture as a camera takes it its "Left" is the person's right
hand, which is the picture's left one; and in a mirrored picture its "Left" is the person's left hand, which is there on the picture's left.
So its label is the slot, mirrored or not. One label alone may be wrong: each hand is followed, its labels are averaged, and two hands of
the same label share the slots by which is the surer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from engine.drivers.outlines import OVAL
from engine.drivers.quiet import quiet
from engine.drivers.readings import HANDS_FADE, HANDS_HOLD
from engine.drivers.sight import inside
from engine.drivers.smooth import OneEuro
from engine.drivers.tracker import BLACK_SIDE, shrink
from engine.types import HAND_POINTS, FloatArray, UInt8Array, VideoFrame

MOST = 2
"""Hands: the left one and the right one."""
COMPLEXITY = 0
"""MediaPipe's smaller network: half the time of the larger one, and no worse on what it was tried on."""
CUTOFF, BETA = 1.5, 20.0
"""One-euro parameters of the points: Hz at rest, Hz per picture height/s. A still hand's points move by 0.5 % of a palm from look to look."""
NEAR, SPEED = 0.7, 4.0
"""Hand sizes a hand may have moved between two looks and still be the same one: at once, and more per second in between."""
OTHER_LABEL = 0.5
"""Hand sizes that a label of the other side counts as, where two hands come near each other."""
TWICE = 0.3
"""Hand sizes between two found hands under which they are one, found twice."""
LEARN = 0.4
"""s: time constant of a hand's label."""
STAY = 0.3
"""Certainty (0..1) by which a hand's label must speak for the other slot before it changes."""
BELIEVED = 2
"""Looks in which a hand must have been seen before it is told: a ghost seldom lasts."""
FACE_SHARE, MOUTH_SEEN = 0.85, 0.5
"""A hand with more than this share of its points on the face, whose lips are seen with this confidence, is the face: the tracker takes
pursed lips and chins for hands at times (measured: 2 to 6 % of the frames of people who grimace)."""


@dataclass(frozen=True, slots=True)
class HandsReading:
    """Both hands at one instant."""

    time: float  # s, of the camera frame
    landmarks: FloatArray  # [2, 21, 3] left, right hand of the picture, x, y 0..1, z on the scale of x; all zero where there is none
    confidence: FloatArray  # [2] 0..1, of when it was last seen
    seen: FloatArray  # [2] s (float64), when each was last seen; -inf for never
    followed: bool = False  # whether there is a hand to look after, told or not yet


@dataclass(frozen=True, slots=True)
class Found:
    """A hand in one picture."""

    points: FloatArray  # [21, 3] x, y 0..1 of the picture, z on the scale of x
    left: float  # 0..1: how much it looks like the hand of the picture's left


@dataclass(slots=True)
class _Hand:
    """One hand that is followed."""

    points: FloatArray  # [21, 3] as last seen, smoothed
    left: float  # as in Found, averaged
    seen: float  # s
    confidence: float = 0.0
    looks: int = 0  # in which it was seen
    slot: int | None = None
    smooth: OneEuro = field(default_factory=lambda: OneEuro(CUTOFF, BETA))


class HandsDriver:
    """One person's hands. One a session; not thread-safe, but may run on a thread of its own beside the face driver."""

    def __init__(self) -> None:
        self._graph: Any = None
        self._warm = False
        self._size = (0, 0)
        self._hands: list[_Hand] = []

    def reset(self) -> None:
        """Forget the hands."""
        self._hands = []
        self._let_go()

    def close(self) -> None:
        """Free the tracker. It starts again on the next call."""
        self._hands = []
        if self._graph is not None:
            self._graph.close()
            self._graph, self._warm = None, False

    def __call__(self, frame: VideoFrame, *, face: FloatArray | None = None, mouth: float = 1.0) -> HandsReading:
        """A camera frame -> reading, also where there is no hand.

        `face` [478, 3]: where the face was lately, x, y 0..1 of the picture, and `mouth`: the confidence 0..1 that its lips are seen.
        """
        size = (frame.rgb.shape[0], frame.rgb.shape[1])
        if size != self._size:
            self._size = size
            self.reset()
        found = self._detect(frame.rgb)
        real = [hand for hand in found if face is None or mouth < MOUTH_SEEN or not _on(hand.points, face)]
        if len(real) < len(found):
            self._let_go()  # or the tracker goes on following a face, and has one place less for a hand
        self._follow(_apart(real, self._aspect), frame.time)
        return self._reading(frame.time)

    @property
    def _aspect(self) -> float:
        return self._size[1] / self._size[0]

    def _let_go(self) -> None:
        """Let the tracker forget where it saw hands. A black picture does that for less than starting the graph again costs."""
        if self._graph is not None:
            self._process(np.zeros((BLACK_SIDE, BLACK_SIDE, 3), np.uint8))

    def _detect(self, rgb: UInt8Array) -> list[Found]:
        picture = shrink(rgb)
        if self._warm:
            return self._process(picture)
        with quiet():
            if self._graph is None:
                from mediapipe.python.solutions.hands import Hands

                self._graph = Hands(max_num_hands=MOST, model_complexity=COMPLEXITY)
            found = self._process(picture)
        self._warm = bool(found)
        return found

    def _process(self, picture: UInt8Array) -> list[Found]:
        answer = self._graph.process(picture)
        found = []
        for marks, named in zip(answer.multi_hand_landmarks or (), answer.multi_handedness or (), strict=True):
            points = np.array([(p.x, p.y, p.z) for p in marks.landmark], np.float32)
            label = named.classification[0]
            if points.shape == (HAND_POINTS, 3) and np.isfinite(points).all():
                found.append(Found(points, label.score if label.label == "Left" else 1.0 - label.score))
        return found

    def _follow(self, found: Sequence[Found], time: float) -> None:
        """Continue the hands that were there, begin new ones, let go of those that are gone."""
        left_over = list(range(len(found)))
        kept = list(self._hands)
        scale = np.array([self._aspect, 1.0], np.float32)
        pairs = sorted((_distance(hand, found[k], time, scale), i, k) for i, hand in enumerate(kept) for k in left_over)
        taken: set[int] = set()
        for distance, i, k in pairs:
            if distance < 1.0 and i not in taken and k in left_over:
                taken.add(i)
                left_over.remove(k)
                self._see(kept[i], found[k], time)
        for k in left_over:
            side = 0 if found[k].left > 0.5 else 1
            lost = [hand for hand in self._hands if hand.seen < time]
            # What is seen goes before what is held: first where both want one slot, then the one that was lost first.
            lost.sort(key=lambda hand: (hand.slot != side, hand.seen))
            if lost and (lost[0].slot == side or len(self._hands) >= MOST):
                self._hands.remove(lost[0])
            self._hands.append(_Hand(found[k].points, found[k].left, time))
            self._see(self._hands[-1], found[k], time)
        self._hands = [hand for hand in self._hands if time - hand.seen <= HANDS_HOLD + HANDS_FADE]
        _arrange(self._hands)

    def _see(self, hand: _Hand, found: Found, time: float) -> None:
        scale = np.array([self._aspect, 1.0, self._aspect])
        hand.left += (1.0 - float(np.exp(-(time - hand.seen) / LEARN))) * (found.left - hand.left)
        hand.points = (hand.smooth(found.points * scale, time) / scale).astype(np.float32)
        hand.confidence, hand.seen, hand.looks = inside(found.points), time, hand.looks + 1

    def _reading(self, time: float) -> HandsReading:
        landmarks, confidence = np.zeros((MOST, HAND_POINTS, 3), np.float32), np.zeros(MOST, np.float32)
        seen = np.full(MOST, -np.inf)
        for hand in self._hands:
            if hand.looks >= BELIEVED and hand.slot is not None:
                landmarks[hand.slot], confidence[hand.slot], seen[hand.slot] = hand.points, hand.confidence, hand.seen
        return HandsReading(time, landmarks, confidence, seen, bool(self._hands))


def _distance(hand: _Hand, found: Found, time: float, scale: FloatArray) -> float:
    """Between a followed hand and a found one; under 1 they can be the same."""
    apart = float(np.linalg.norm((hand.points[:, :2] - found.points[:, :2]) * scale, axis=1).mean()) / _size(hand.points, scale)
    return (apart + OTHER_LABEL * abs(hand.left - found.left)) / (NEAR + SPEED * max(0.0, time - hand.seen) + OTHER_LABEL)


def _size(points: FloatArray, scale: FloatArray) -> float:
    """Diagonal of a hand's box, picture heights."""
    return max(1e-6, float(np.hypot(*(np.ptp(points[:, :2], axis=0) * scale))))


def _apart(found: Sequence[Found], aspect: float) -> list[Found]:
    """The found hands, none twice."""
    scale = np.array([aspect, 1.0], np.float32)
    kept: list[Found] = []
    for hand in found:
        size = _size(hand.points, scale)
        if all(np.linalg.norm((hand.points[:, :2] - other.points[:, :2]) * scale, axis=1).mean() > TWICE * size for other in kept):
            kept.append(hand)
    return kept[:MOST]


def _arrange(hands: list[_Hand]) -> None:
    """Give each hand its slot: the surer ones first, and none changes it for little."""

    def leftness(hand: _Hand) -> float:
        return hand.left + {None: 0.0, 0: STAY, 1: -STAY}[hand.slot]

    if len(hands) == 1:
        hands[0].slot = 0 if leftness(hands[0]) > 0.5 else 1
    for slot, hand in enumerate(sorted(hands, key=leftness, reverse=True) if len(hands) == MOST else ()):
        hand.slot = slot


def _on(points: FloatArray, face: FloatArray) -> bool:
    """Whether a hand [21, 3] lies on the face [478, 3]."""
    oval = np.ascontiguousarray(face[list(OVAL), :2], np.float32)
    share = np.mean([cv2.pointPolygonTest(oval, (float(x), float(y)), False) >= 0 for x, y in points[:, :2]])
    return float(share) > FACE_SHARE
