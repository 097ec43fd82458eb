"""A driver's pose with the proportions of whoever is shown: live, causal, calibrated on the first seconds. Knows joints, not pictures.

Three published ways, each a tree of bones that grows from the neck, p' = parent' + ratio · (p - parent):

- *musepose*: nine ratios, each a length in the reference / the same in the driver, the arms' and the legs' being means of both sides
  (MusePose, `pose_align.py`).
- *unianimate*: first the whole by one ratio across and one down (shoulders, trunk), then a ratio for each bone of the scaled driver
  (UniAnimate, `run_align_pose.py`).
- *shape*: the driver's pose with the reference's shape, in 3D: each bone points where the driver's does and is as long as the
  reference's. What Champ and ViViDPose do with SMPL's theta of the driver and beta of the reference, on joints with a depth.

The published ways measure one frame of the driver. Here every bone is measured over the first `Calibration.seconds` in which it is seen, by
its median; with `seconds` 0 that is its first frame, and the result the published one. Where joints are missing, the published ways compute
with their markers; here a bone that cannot be measured has the ratio 1, and what hangs on a joint that is not seen moves as the nearest
joint above it that is. Where the published ways do not draw the face and leave it behind, here it goes with the nose.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from engine.drivers.smooth import LONGEST_GAP
from engine.types import HAND_POINTS, AvatarError, FloatArray

Kind = Literal["musepose", "unianimate", "shape"]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

SEEN = 0.3
"""Score above which a point is believed, as in DWPose."""
JOINTS, FEET = 18, 2
"""OpenPose's joints; then the person's left and right foot."""
NOSE, NECK, RIGHT_WRIST, LEFT_WRIST = 0, 1, 4, 7
WRISTS = (LEFT_WRIST, RIGHT_WRIST)
"""Of `Skeleton.hands`."""
SECONDS = 2.0
"""s in which a bone must have been seen until its length is known."""
EASE = 0.4
"""s: time constant by which what is in force follows what is measured, until that is known."""
MOST = 3.0
"""A ratio beyond this, or under its inverse, is of a bone that was seen end on: it counts as 1."""
SETTLED = 1e-3
"""Difference (of a ratio, or of a share of the reference's size) under which what is in force has arrived."""
READINGS = 128
"""A bone is measured in at most so many frames."""
_LEAST = 1e-9  # a length under this is none

_LEFT_HAND, _RIGHT_HAND = JOINTS + FEET, JOINTS + FEET + HAND_POINTS
_HIPS, _SHOULDERS = _RIGHT_HAND + HAND_POINTS, _RIGHT_HAND + HAND_POINTS + 1  # the middle of both
_POINTS = _SHOULDERS + 1
PARENTS = (1, -1, 1, 2, 3, 1, 5, 6, 1, 8, 9, 1, 11, 12, 0, 0, 14, 15, 13, 10)
"""What each joint and foot hangs on; the neck on nothing."""
_ORDER = (1, 0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19)
_EDGES = tuple((parent, joint) for joint, parent in enumerate(PARENTS) if joint < JOINTS and parent >= 0)
_PALMS = tuple((hand, hand + root) for hand in (_LEFT_HAND, _RIGHT_HAND) for root in (1, 5, 9, 13, 17))
_SPANS = ((16, 17), (2, 5), (1, _HIPS), (_SHOULDERS, _HIPS))
_BONES = (*_EDGES, *_SPANS, *_PALMS)
_FROM, _TO = (np.array(ends) for ends in zip(*_BONES, strict=True))
_AT = {bone: at for at, bone in enumerate(_BONES)}
_SIDES = tuple((_AT[PARENTS[left], left], _AT[PARENTS[right], right]) for left, right in ((5, 2), (6, 3), (7, 4), (11, 8), (12, 9), (13, 10)))
_PALM_ROWS = [_AT[bone] for bone in _PALMS]
_MUSEPOSE: dict[tuple[int, ...], tuple[tuple[int, int], ...]] = {
    (0,): ((1, 0),),
    (14, 15, 16, 17): ((16, 17),),
    (2, 5): ((2, 5),),
    (3, 6): ((2, 3), (5, 6)),
    (4, 7): ((3, 4), (6, 7)),
    (8, 11): ((1, _HIPS),),
    (9, 12): ((8, 9), (11, 12)),
    (10, 13): ((9, 10), (12, 13)),
}
"""Joints -> the bones whose mean ratio is that of the bones above these joints: with the hands', the nine."""
_UNIANIMATE = (0, 2, 5, 3, 4, 6, 7, 14, 15, 16, 17, 9, 10, 12, 13)
"""Joints below bones with a ratio of their own; the hips and the feet go with what they hang on."""


@dataclass(frozen=True, slots=True, eq=False)
class Skeleton:
    """One person's joints in any unit that is the same along both axes. "Left" and "right" are the person's own."""

    joints: FloatArray  # [18, 3] OpenPose's: x, y, score 0..1
    hands: FloatArray = field(default_factory=lambda: np.zeros((2, HAND_POINTS, 3), np.float32))  # left, right: x, y, score
    face: FloatArray | None = None  # [N, 2 or more] any points of the face: x, y
    feet: FloatArray | None = None  # [2, 3] left, right: x, y, score
    depth: FloatArray | None = None  # [18] z of the joints in the unit of x; only "shape" reads it


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """Whom the driver is to resemble, measured once."""

    kind: Kind
    neck: Floats  # [2]; not finite where it is not seen
    bones: Floats  # [bones, 3] from end to end; not finite where they are not seen
    lengths: Floats  # [bones] of them; of "shape" the mean of both sides, as a body's shape is
    size: float  # the longest of them


@dataclass(slots=True, eq=False)
class _Plan:
    """What takes a driver's joints to the target's proportions; all of it is eased as one array."""

    values: Floats  # [5 + 20] ratio across and down, of the hands; shift x, y; ratio of each joint's bone
    known: Flags  # [5 + 20]


@dataclass(slots=True, eq=False)
class Calibration:
    """What one driver has shown of their proportions so far. Each bone is measured on its own, from when it is first seen."""

    seconds: float = SECONDS
    _bones: Floats = field(default_factory=lambda: np.full((READINGS, len(_BONES), 3), np.nan))
    _necks: Floats = field(default_factory=lambda: np.full((READINGS, 2), np.nan))
    _counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(_BONES) + 1, np.int64))  # the last one is the neck's
    _spans: Floats = field(default_factory=lambda: np.zeros(len(_BONES) + 1))  # s
    _time: float | None = None
    _measured: _Plan | None = None
    _applied: _Plan | None = None

    @property
    def whole(self) -> bool:
        """Whether whatever was seen at all has been seen for long enough."""
        return bool(self._counts.any()) and bool(self._known[self._counts > 0].all())

    @property
    def _known(self) -> Flags:
        return (self._counts > 0) & ((self._spans >= self.seconds) | (self._counts >= READINGS))

    def restart(self) -> None:
        """Measure anew (somebody else, or another neutral); what is in force stays until there is something new, and eases there."""
        self._bones[:], self._necks[:], self._counts[:], self._spans[:] = np.nan, np.nan, 0, 0.0
        self._measured = None

    def _learn(self, bones: Floats, neck: Floats, step: float) -> bool:
        """Note a frame's bones [bones, 3] and neck [2], those of them that are finite and not known yet -> whether there was one."""
        seen = np.append(np.isfinite(bones).all(1), np.isfinite(neck).all()) & ~self._known
        for at in np.flatnonzero(seen):
            if at == len(_BONES):
                self._necks[self._counts[at]] = neck
            else:
                self._bones[self._counts[at], at] = bones[at]
        self._spans[seen & (self._counts > 0)] += step
        self._counts[seen] += 1
        return bool(seen.any())


def target_of(kind: Kind, reference: Skeleton) -> Target:
    """The proportions to take on. Raises AvatarError for "shape" without a depth."""
    points, seen = _points(reference, deep=kind == "shape")
    bones = _bones(points, seen)
    lengths = np.linalg.norm(bones, axis=1)
    if kind == "shape":
        for left, right in _SIDES:
            lengths[[left, right]] = _mean(lengths[[left, right]])
    size = float(lengths[np.isfinite(lengths)].max(initial=0.0))
    return Target(kind, points[NECK, :2] if seen[NECK] else np.full(2, np.nan), bones, lengths, size)


def align(target: Target, calibration: Calibration, driver: Skeleton, *, time: float, nearer: float = 1.0) -> Skeleton:
    """The driver's skeleton at `time` s with the target's proportions, its neck at rest where the target's is; `calibration` goes on.

    `nearer`: how much larger the driver is now than at rest, because of the way to the camera. Scores stay, and so do points that are no
    numbers or -1, -1. Times must go forward; a frame that does not is aligned and teaches nothing.
    """
    deep = target.kind == "shape"
    points, seen = _points(driver, deep=deep)
    bones = _bones(points, seen)
    last = calibration._time
    step = 0.0 if last is None else min(time - last, LONGEST_GAP)
    if step > 0.0 or last is None:
        calibration._time = time
        if calibration._learn(bones / nearer, points[NECK, :2] if seen[NECK] else np.full(2, np.nan), step):
            calibration._measured = None
    plan = _in_force(target, calibration, step)
    stretch, hand, shift, ratios = plan.values[:2], plan.values[2], plan.values[3:5], plan.values[5:].copy()
    if deep:
        rows = np.array([_AT[edge] for edge in _EDGES])
        long = _ratio(nearer * target.lengths[rows], np.linalg.norm(bones[rows], axis=1))
        ratios[[joint for _, joint in _EDGES]] = np.where(np.isfinite(long), np.clip(long, 1.0 / MOST, MOST), 1.0)
    return _grown(driver, points[:, :2] * stretch, seen, ratios, hand=hand, stretch=stretch, shift=shift)


def _in_force(target: Target, calibration: Calibration, step: float) -> _Plan:
    """What is measured, eased: at once where nothing was known before."""
    if calibration._measured is None:
        calibration._measured = _plan(target, calibration)
    wanted, before = calibration._measured, calibration._applied
    if before is None:
        now = wanted.values.copy()
        known = wanted.known.copy()
    else:
        share = 1.0 - float(np.exp(-max(0.0, step) / EASE))
        way = np.where(wanted.known, wanted.values - before.values, 0.0)
        unit = np.ones(len(way))
        unit[3:5] = max(target.size, _LEAST)
        there = (np.abs(way) < SETTLED * unit) | (wanted.known & ~before.known)
        now = before.values + np.where(there, 1.0, share) * way
        known = wanted.known | before.known
    calibration._applied = _Plan(now, known)
    return calibration._applied


def _plan(target: Target, calibration: Calibration) -> _Plan:
    """What the bones measured so far ask for."""
    drawn = calibration._bones[: max(1, int(calibration._counts.max()))]
    values, known = np.ones(5 + len(PARENTS)), np.zeros(5 + len(PARENTS), bool)
    values[3:5] = 0.0
    ratios = values[5:], known[5:]
    if target.kind == "musepose":
        _nine(_ratio(target.lengths, _median(np.linalg.norm(drawn, axis=2))), values, known)
    elif target.kind == "unianimate":
        across, down = (_AT[2, 5], 0), (_AT[_SHOULDERS, _HIPS], 1)
        found = np.array([_ratio(target.bones[at], _median(drawn[:, at[0], at[1]])) for at in (across, down)], np.float64).ravel()
        # One of them alone is taken for both, which keeps the angles.
        found = np.where(np.isfinite(found), found, found[::-1])
        values[:2], known[:2] = np.where(np.isfinite(found), found, 1.0), np.isfinite(found)
        own = _ratio(target.lengths, _median(np.linalg.norm(drawn[..., :2] * values[:2], axis=2)))
        for joint in _UNIANIMATE:
            _set(ratios, [joint], own[_AT[PARENTS[joint], joint]])
    else:
        own = _ratio(target.lengths, _median(np.linalg.norm(drawn, axis=2)))
        hand = _mean(own[_PALM_ROWS])
        _set((values, known), [2], hand if np.isfinite(hand) else _mean(own[[_AT[3, 4], _AT[6, 7]]]))
    shift = target.neck - values[:2] * _median(calibration._necks)
    if np.isfinite(shift).all():
        values[3:5], known[3:5] = shift, True
    return _Plan(values, known)


def _nine(own: Floats, values: Floats, known: Flags) -> None:
    means = {joints: _mean(own[[_AT[bone] for bone in bones]]) for joints, bones in _MUSEPOSE.items()}
    for joints, ratio in means.items():
        _set((values[5:], known[5:]), list(joints), ratio)
    _set((values, known), [2], _mean(np.array([_mean(own[_PALM_ROWS]), means[3, 6], means[4, 7]])))


def _set(into: tuple[Floats, Flags], at: list[int], ratio: float) -> None:
    if np.isfinite(ratio):
        into[0][at], into[1][at] = ratio, True


def _ratio(reference: npt.ArrayLike, driver: npt.ArrayLike) -> Floats:
    """Element by element; not a number where either is not seen or the two cannot be the same bone seen alike."""
    above, below = np.asarray(reference, np.float64), np.asarray(driver, np.float64)
    found = above / np.where(np.abs(below) > _LEAST, below, np.nan)
    return np.where((found >= 1.0 / MOST) & (found <= MOST), found, np.nan)


def _mean(values: Floats) -> float:
    """Of those that are numbers."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")


def _median(values: Floats) -> Floats:
    """[K, ...] -> [...] over those of K that are numbers."""
    ordered = np.sort(values, axis=0)  # numbers first
    count = np.isfinite(values).sum(0)
    low, high = (np.take_along_axis(ordered, np.maximum(at, 0)[None], 0)[0] for at in ((count - 1) // 2, count // 2 * (count > 0)))
    return np.asarray(np.where(count > 0, (low + high) / 2.0, np.nan), np.float64)


def _points(skeleton: Skeleton, *, deep: bool) -> tuple[Floats, Flags]:
    """Everything that is measured [points, 3] (z 0 unless `deep`), not a number where it is not seen, and whether it is."""
    points, score = np.full((_POINTS, 3), np.nan), np.zeros(_POINTS)
    for start, part in ((0, skeleton.joints), (JOINTS, skeleton.feet), (_LEFT_HAND, skeleton.hands.reshape(-1, 3))):
        if part is not None:
            points[start : start + len(part), :2], score[start : start + len(part)] = part[:, :2], part[:, 2]
    points[:, 2] = 0.0
    if deep:
        if skeleton.depth is None:
            raise AvatarError("The alignment 'shape' needs joints with a depth, which this tracker does not give; choose musepose or unianimate.")
        points[:JOINTS, 2] = skeleton.depth
    score[np.isnan(points).any(1) | (points[:, :2] == -1.0).all(1)] = 0.0
    for middle, (a, b) in ((_HIPS, (8, 11)), (_SHOULDERS, (2, 5))):
        points[middle], score[middle] = (points[a] + points[b]) / 2.0, min(score[a], score[b])
    seen = score > SEEN
    points[~seen] = np.nan
    return points, seen


def _bones(points: Floats, seen: Flags) -> Floats:
    """[bones, 3] from end to end; not a number where either end is not seen."""
    return np.where((seen[_FROM] & seen[_TO])[:, None], points[_TO] - points[_FROM], np.nan)


def _grown(driver: Skeleton, points: Floats, seen: Flags, ratios: Floats, *, hand: float, stretch: Floats, shift: Floats) -> Skeleton:
    """The driver with each bone at its ratio. `points`: those that are seen, stretched already."""
    moved, ways = points.copy(), np.zeros((len(PARENTS), 2))  # how far each joint has moved, or what it hangs on has
    for joint in _ORDER:
        parent = PARENTS[joint]
        if parent >= 0:
            ways[joint] = ways[parent]
            if seen[joint] and seen[parent]:
                moved[joint] = moved[parent] + ratios[joint] * (points[joint] - points[parent])
                ways[joint] = moved[joint] - points[joint]
    every = np.concatenate([driver.joints, np.zeros((FEET, 3)) if driver.feet is None else driver.feet]).astype(np.float64)
    every[:, :2] = _but_missing(every[:, :2], every[:, :2] * stretch + ways + shift)
    hands = driver.hands.astype(np.float64)
    for part, wrist in zip(hands, WRISTS, strict=True):
        centre = points[wrist] if seen[wrist] else part[0, :2] * stretch
        part[:, :2] = _but_missing(part[:, :2], centre + hand * (part[:, :2] * stretch - centre) + ways[wrist] + shift)
    face = driver.face
    if face is not None:
        where = face[:, :2].astype(np.float64) * stretch
        centre = points[NOSE] if seen[NOSE] else where.mean(0)
        face = face.copy()
        face[:, :2] = centre + ratios[14] * (where - centre) + ways[NOSE] + shift
    joints, feet = every[:JOINTS].astype(np.float32), every[JOINTS:].astype(np.float32)
    return replace(driver, joints=joints, hands=hands.astype(np.float32), face=face, feet=None if driver.feet is None else feet)


def _but_missing(before: Floats, after: Floats) -> Floats:
    """`after` [N, 2], but as it was where it is no number or -1, -1."""
    missing = ~np.isfinite(before).all(1) | (before == -1.0).all(1)
    return np.where(missing[:, None], before, after)


__all__ = ["JOINTS", "NECK", "PARENTS", "SEEN", "Calibration", "Kind", "Skeleton", "Target", "align", "target_of"]
