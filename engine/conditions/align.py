"""The driver's body with the portrait's proportions, in a skeleton that lies in the portrait's frame already (`engine.conditions.place`).

The head keeps its place: rule 1 has brought it onto the portrait's, at the portrait's size. What is aligned is the body below it, by the
ways of `engine.drivers.align`, and the hands with it: at rest the neck lies where the portrait's does, and every bone is as long as the
portrait's. A body that is the portrait's own (rule 3) is left as it is. A driver who chooses another neutral, or another driver, is
measured anew: then the way from the driving picture into the frame is another one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from engine.conditions.place import Anchor, Placed, Similarity
from engine.conditions.skeleton import FROM_BODY, NECK, joints_of
from engine.drivers.align import JOINTS, PARENTS, Calibration, Kind, Skeleton, Target, align, target_of
from engine.drivers.body import TWIST_TRUST
from engine.drivers.rigid import metric
from engine.pose import Float64Array
from engine.types import FloatArray, Signal

OTHER_SIZE, OTHER_PLACE = 0.05, 0.05
"""Share of its scale, and frame heights, by which the way into the frame must change until it is of another neutral."""
DEPTH_TRUST = 0.5
"""Share of MediaPipe's z that is believed of trunk and limbs: with all of it, the two forearms of people painted from the side differ in
length by a half and more, with this by a tenth. Of the line of shoulders or hips it is TWIST_TRUST."""
WRISTS = (7, 4)
"""Joints that a left and a right hand of a `Skeleton` hang on."""


@dataclass(slots=True)
class Alignment:
    """What one session has learnt of its driver's proportions, by each way that a body is brought into the frame."""

    target: Target | None = None
    head: Calibration = field(default_factory=Calibration)
    shoulders: Calibration = field(default_factory=Calibration)
    way: Similarity | None = None  # of the head, when its calibration began

    def calibration(self, placed: Placed, middle: Float64Array) -> Calibration:
        """The one that goes with the way of the body. `middle` [2]: of the driving picture, picture heights."""
        if placed.body_from == "shoulders" or placed.way is None:
            return self.shoulders
        if self.way is None:
            self.way = placed.way
        elif _other(self.way, placed.way, middle):
            self.head.restart()
            self.way = placed.way
        return self.head


def aligned(alignment: Alignment, placed: Placed, signal: Signal, anchor: Anchor, *, kind: Kind, size: tuple[int, int]) -> Placed:
    """The points of `signal` in a frame of `size` (H, W), with the body's proportions the portrait's; `alignment` goes on."""
    if placed.body_from == "portrait" or placed.way is None or signal.body is None:
        return placed
    if alignment.target is None:
        alignment.target = target_of(kind, _reference(anchor, size))
    depth = placed.way.scale * size[0] * metric(signal.body[:, :3], signal.aspect)[:, 2]
    slots = [_slot(hand, placed.body) for hand in placed.hands]
    driver = _skeleton(placed.face, placed.body, depth)
    for hand, slot in zip(placed.hands, slots, strict=True):
        driver.hands[slot, :, :2], driver.hands[slot, :, 2] = hand, 1.0
    nearer = 1.0 if signal.motion is None or placed.body_from == "shoulders" else float(np.exp(np.nan_to_num(signal.motion.head[5])))
    calibration = alignment.calibration(placed, np.array([signal.aspect, 1.0]) / 2.0)
    made = align(alignment.target, calibration, driver, time=signal.time, nearer=nearer)
    # Where the shoulders are those of the portrait, moved, they are in their place already.
    back = driver.joints[NECK, :2] - made.joints[NECK, :2] if placed.body_from == "shoulders" else np.zeros(2, np.float32)
    body = placed.body.copy()
    body[list(FROM_BODY.values()), :2] = made.joints[list(FROM_BODY), :2] + back
    return replace(placed, body=body, hands=tuple(made.hands[slot, :, :2] + back for slot in slots))


def _reference(anchor: Anchor, size: tuple[int, int]) -> Skeleton:
    """The portrait's own skeleton, px."""
    height, width = size
    own = anchor.own(width / height)
    body = np.concatenate([height * own.body, own.sure[:, None]], 1).astype(np.float32)
    face = (height * own.pose.apply(own.shape)[:, :2]).astype(np.float32)
    return _skeleton(face, body, height * metric(anchor.body[:, :3], width / height)[:, 2])


def _skeleton(face: FloatArray, body: FloatArray, depth: Float64Array) -> Skeleton:
    """Face [478, 2], body [33, 3] and its depth [33] as the tracker tells it, px -> 18 joints, the head's as deep as the neck."""
    told, z = np.zeros(JOINTS), np.zeros(JOINTS)
    told[list(FROM_BODY)] = depth[list(FROM_BODY.values())]
    shoulders, hips = told[[2, 5]].mean(), told[[8, 11]].mean()
    z[[2, 5]] = TWIST_TRUST * (told[[2, 5]] - shoulders)
    z[[8, 11]] = DEPTH_TRUST * (hips - shoulders) + TWIST_TRUST * (told[[8, 11]] - hips)
    for joint in (3, 4, 6, 7, 9, 10, 12, 13):
        z[joint] = z[PARENTS[joint]] + DEPTH_TRUST * (told[joint] - told[PARENTS[joint]])
    return Skeleton(joints_of(face, body), depth=z.astype(np.float32))


def _slot(hand: FloatArray, body: FloatArray) -> int:
    """Whose hand [21, 2] it is, 0 left and 1 right: the nearer wrist's."""
    wrists = body[[FROM_BODY[wrist] for wrist in WRISTS], :2]
    return int(np.hypot(*(wrists - hand[0]).T).argmin())


def _other(before: Similarity, now: Similarity, middle: Float64Array) -> bool:
    """Whether the way into the frame is that of another neutral."""
    moved = float(np.hypot(*(now(middle[None]) - before(middle[None]))[0]))
    return abs(float(np.log(now.scale / before.scale))) > OTHER_SIZE or moved > OTHER_PLACE


__all__ = ["Alignment", "aligned"]
