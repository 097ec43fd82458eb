"""Where a signal's points lie in the frame of the portrait. The rule is written in `conditions`; there is no memory here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import cv2
import numpy as np

from engine.conditions.own import SHOULDERS, Own, own_body, own_face
from engine.conditions.skeleton import SEEN
from engine.drivers.body import BodyDriver
from engine.drivers.portrait import Found, find_face
from engine.drivers.rigid import MEAN_RIGID, PIVOT, RIGID, RIGID_WEIGHTS, Pose, fit_pose, metric
from engine.drivers.tracker import FaceTracker
from engine.pose import Float64Array, rotation
from engine.types import BODY_POINTS, AvatarError, FloatArray, Motion, Signal, UInt8Array, VideoFrame, still_motion

CLOSE_UPS = (2.2, 3.2, 1.7)
"""Sides of the windows in which a portrait's face is read, in its own widths: the first that shows it again counts."""
SOFTER = 0.006
"""Standard deviation of the softened picture for a second look, as a share of its longest side: strokes of paint mislead the tracker."""
OUTSIDE = 0.1
"""Picture widths and heights: joints further out of the picture are guesses, however sure the tracker is of them."""
CENTRE = RIGID_WEIGHTS @ MEAN_RIGID / RIGID_WEIGHTS.sum()
"""[3] the point of the mean head that a rigid fit places best: its own weighted middle, on the bridge of the nose."""


@dataclass(frozen=True, slots=True, eq=False)
class Anchor:
    """Where a portrait has its face and shoulders. Immutable but for what it has worked out already."""

    face: FloatArray  # [478, 3] x, y 0..1 of the portrait, z on the scale of x
    body: FloatArray  # [33, 4] x, y 0..1 of the portrait, z, visibility; all zero where no body was found
    _own: dict[float, Own] = field(default_factory=dict, repr=False)

    def own(self, aspect: float) -> Own:
        """What does not change from frame to frame, for frames of this width / height; worked out once."""
        if aspect not in self._own:
            self._own[aspect] = Own.of(metric(self.face, aspect), metric(self.body[:, :3], aspect)[:, :2], visibility(self.body))
        return self._own[aspect]


FaceFrom = Literal["driver", "portrait"]
"""Whose face is painted: rule 1, or rule 2."""
BodyFrom = Literal["head", "shoulders", "portrait"]
"""Whose body: the driver's, by the way of the head (rule 1) or of the shoulders, or the portrait's own (both rule 3)."""


@dataclass(frozen=True, slots=True)
class Similarity:
    """Driving picture -> frame, both in their heights."""

    scale: float
    shift: Float64Array  # [2]

    def __call__(self, points: Float64Array) -> Float64Array:
        """Points [N, 2 or more], of which x and y are taken -> [N, 2]."""
        moved: Float64Array = self.scale * points[:, :2] + self.shift
        return moved


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """A signal's points in px of the frame."""

    face: FloatArray  # [478, 2]
    body: FloatArray  # [33, 3] x, y, visibility 0..1
    hands: tuple[FloatArray, ...]  # of [21, 2]
    face_from: FaceFrom
    body_from: BodyFrom
    way: Similarity | None = None  # by which the driver's points came; None where there are none


def anchor_of(portrait: UInt8Array) -> Anchor:
    """Portrait [H, W, 3] RGB -> its Anchor. Slow. Raises AvatarError where no face is found that can be driven."""
    found = find_face(portrait)
    driver = BodyDriver()
    try:
        reading = driver(VideoFrame(portrait, 0.0))
    finally:
        driver.close()
    body = np.zeros((BODY_POINTS, 4), np.float32) if reading is None else reading.landmarks
    return Anchor(_read(portrait, found), body)


def _read(portrait: UInt8Array, found: Found) -> FloatArray:
    """[478, 3] as in `Anchor.face`: what `find_face` found, once more with its depth."""
    height, width = portrait.shape[:2]
    tracker = FaceTracker(still=True)
    try:
        for picture, (x0, y0, x1, y1) in _views(portrait, found):
            start, size = np.array((x0, y0, 0), np.float32), np.array((x1 - x0, y1 - y0, x1 - x0), np.float32)
            for points in tracker.detect(picture[y0:y1, x0:x1]):
                face = points * size + start
                if Found.of(face[:, :2]).same(found):
                    return (face / (width, height, width)).astype(np.float32)
    finally:
        tracker.close()
    raise AvatarError("The face in this picture cannot be read from close by; use one that is sharper or larger.")


def _views(portrait: UInt8Array, found: Found) -> Iterator[tuple[UInt8Array, tuple[int, int, int, int]]]:
    """(picture, window x0, y0, x1, y1 in px) of the portrait as it is and softened, around its face."""
    height, width = portrait.shape[:2]
    soft = np.asarray(cv2.GaussianBlur(portrait, (0, 0), SOFTER * max(height, width)), np.uint8)
    x, y = found.center
    for picture in (portrait, soft):
        for side in CLOSE_UPS:
            half = side / 2 * max(found.width, found.height)
            yield picture, (max(0, int(x - half)), max(0, int(y - half)), min(width, int(x + half) + 1), min(height, int(y + half) + 1))


def place(signal: Signal, anchor: Anchor, size: tuple[int, int]) -> Placed:
    """The points of a signal in a frame of `size` (H, W)."""
    height, width = size
    motion = still_motion() if signal.motion is None else signal.motion
    own = anchor.own(width / height)
    own_landmarks = own_body(own.body, motion.body)
    seen_body = None if signal.body is None else metric(signal.body[:, :3], signal.aspect)
    way: Similarity | None
    face_from: FaceFrom = "portrait"
    body_from: BodyFrom = "portrait"
    if signal.face is not None and drives(signal):
        points = metric(signal.face, signal.aspect)
        way = head_onto(points, np.nan_to_num(motion.head), own.pose)
        face, face_from = way(points), "driver"
    else:
        face = own_face(own, motion)[:, :2]
        way = _shoulders_onto(seen_body, signal.body, own_landmarks, own)
    body, sure = own_landmarks, own.sure
    if seen_body is not None and signal.body is not None and way is not None and float(visibility(signal.body)[SHOULDERS].max()) >= SEEN:
        body, sure, body_from = way(seen_body), visibility(signal.body), "head" if face_from == "driver" else "shoulders"
    hands = tuple(way(hand) * height for hand in _hands(signal)) if way is not None else ()
    return Placed(
        face=(face * height).astype(np.float32),
        body=np.concatenate([np.nan_to_num(body * height), sure[:, None]], 1).astype(np.float32),
        hands=tuple(hand.astype(np.float32) for hand in hands),
        face_from=face_from,
        body_from=body_from,
        way=way,
    )


def drives(signal: Signal) -> bool:
    """Whether the signal's own face is what is to be shown: seen, moved by nobody else, its lips included."""
    if signal.face is None or signal.confidence.get("face", 1.0) < SEEN or not np.isfinite(signal.face).all():
        return False
    motion: Motion | None = signal.motion
    if motion is None:
        return True
    return motion.expression is not None and float(motion.confidence[0]) >= SEEN and float(motion.expressed[1]) >= 0.5


def head_onto(points: Float64Array, head: FloatArray, home: Pose) -> Similarity:
    """The way that takes the driver's neutral head onto the portrait's, `home` (frame heights).

    `points` [478, 3]: the driver's face now, in picture heights. `head` [6]: how it differs from the neutral, as in `Motion.head`:
    the differences undone give the neutral's scale, turn and pivot, and these the place of the neutral's CENTRE.
    """
    now = fit_pose(MEAN_RIGID, points[RIGID])
    scale = now.scale / float(np.exp(head[5]))
    turn = rotation(*(float(a) for a in head[:3])).T @ now.turn
    pivot = now.apply(PIVOT[None])[0, :2] - scale * head[3:5]
    centre = pivot + scale * (turn @ (CENTRE - PIVOT))[:2]
    grown = home.scale / scale
    return Similarity(grown, home.apply(CENTRE[None])[0, :2] - grown * centre)


def _shoulders_onto(seen: Float64Array | None, body: FloatArray | None, moved: Float64Array, own: Own) -> Similarity | None:
    """The way that takes the driver's shoulders onto the portrait's `moved` ones, where both are seen."""
    if seen is None or body is None or min(visibility(body)[SHOULDERS].min(), own.sure[SHOULDERS].min()) < SEEN:
        return None
    there, here = seen[SHOULDERS, :2], moved[SHOULDERS]
    grown = float(np.hypot(*(here[1] - here[0])) / max(1e-6, np.hypot(*(there[1] - there[0]))))
    return Similarity(grown, here.mean(0) - grown * there.mean(0))


def visibility(body: FloatArray) -> FloatArray:
    """[33] visibility of the pose landmarks [33, 4]; 0 for those that lie outside their picture or are no numbers."""
    inside = ((body[:, :2] > -OUTSIDE) & (body[:, :2] < 1.0 + OUTSIDE)).all(1)
    return np.where(inside, body[:, 3], 0.0).astype(np.float32)


def _hands(signal: Signal) -> list[Float64Array]:
    """The hands that are seen, each [21, 2] in picture heights. A hand that is not there is all zero, or no numbers."""
    if signal.hands is None or signal.confidence.get("hands", 1.0) < SEEN:
        return []
    return [metric(hand, signal.aspect)[:, :2] for hand in signal.hands if np.isfinite(hand).all() and hand[:, :2].any()]


__all__ = ["Anchor", "Placed", "Similarity", "anchor_of", "place", "visibility"]
