"""What is this person's neutral, and how far do their eyes and lips go? Running answers from the frames so far, never from later ones.

Knows measurements and time, not pictures. Nothing here jumps: what is learnt is eased in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from engine.drivers.measure import Measures, measure
from engine.drivers.rigid import PIVOT, Pose
from engine.pose import Float64Array, angles, rotation

NeutralState = Literal["searching", "set"]

FRONTAL = 12.0
"""Degrees of yaw or roll away from frontal, and of pitch away from the usual, that make a frame a poor neutral."""
STEADY, SLOW = 10.0, 20.0
"""Degrees a second that are the tracker's noise, and those beyond them that make a frame a poor neutral."""
LOWERED = 0.25
"""Share of the usual eye opening whose lack makes a frame a poor neutral."""
PARTED = 0.05
"""Lip gap in inter-ocular distances that makes a frame a poor neutral."""
USUAL_WIDTH, WIDTH_SPREAD = 0.82, 0.12
"""Width of a relaxed mouth in inter-ocular distances over people, and how far a smile or a pucker takes it."""
PRIOR = 0.7
"""s of this person's best frames that the prior (a head about upright that looks about at the camera) weighs as much as at first; it fades."""
UPRIGHT_YAW, UPRIGHT_ROLL = 6.0, 1.0
"""Degrees a first frame may show and still be taken for straight: faces differ from the mean face by as much in yaw, hardly in roll."""
SET_AFTER = 1.0
"""s of good frames after which the neutral counts as found."""
MEMORY = 30.0
"""s of good frames the running neutral remembers."""
EASE = 0.4
"""s: time constant with which a better neutral is eased in."""
CHOSEN_FRAMES = 8
"""Frames averaged for a neutral the person asks for."""
BLINK, CHOSEN_PATIENCE = 0.6, 15
"""Share of the usual opening under which lids count as a blink, and the frames to wait for its end before it is taken for the person's wish."""
CHOSEN_EASE = 0.15
"""s: time constant with which that neutral is eased in."""
LONGEST_STEP = 0.1
"""s a single frame counts at most."""


@dataclass(frozen=True, slots=True)
class Rest:
    """A neutral: where the head rests and what the face looks like there."""

    head: Float64Array  # [6] yaw, pitch, roll (degrees, absolute), x and y of the pivot (picture heights), log of the scale
    shape: Float64Array  # [478, 3] head frame, face widths
    measures: Measures  # of the shape

    @property
    def turn(self) -> Float64Array:
        """[3, 3] rotation head -> picture."""
        return rotation(*(float(a) for a in self.head[:3]))


def head_vector(pose: Pose) -> Float64Array:
    """Pose -> [6] as in `Rest.head`."""
    pivot = pose.apply(PIVOT[None])[0]
    return np.array([*angles(pose.turn), pivot[0], pivot[1], np.log(pose.scale)])


@dataclass(slots=True)
class RunningMean:
    """Mean of vectors weighted by how good they are, with a memory of MEMORY seconds of the best."""

    value: Float64Array
    weight: float = 0.0  # s of goodness
    best: float = 1e-6  # best goodness so far, 0..1

    def add(self, value: Float64Array, goodness: float, *, step: float) -> None:
        """One frame that stood for `step` s."""
        self.best = max(self.best, goodness)
        self.weight = min(self.weight + goodness * step, MEMORY * self.best)
        if self.weight > 0.0:
            self.value = self.value + (value - self.value) * min(1.0, goodness * step / self.weight)

    @property
    def seconds(self) -> float:
        """How much it has seen, in seconds of frames as good as the best."""
        return self.weight / self.best


@dataclass(slots=True)
class Neutral:
    """The running neutral of one person. `rest` is what to measure against; None before the first frame."""

    rest: Rest | None = None
    state: NeutralState = "searching"
    _head: RunningMean | None = None
    _shape: RunningMean | None = None
    _last: tuple[float, Float64Array] | None = None  # time, head vector
    _chosen: list[tuple[Float64Array, Float64Array]] | None = None  # frames of a neutral being taken
    _waited: int = 0  # frames passed over because the person blinked
    _prior: Float64Array | None = None  # the head vector to start from
    _locked: bool = False
    _ease: float = EASE

    def choose(self) -> None:
        """Take the next few frames as the neutral and keep it until the person is forgotten."""
        self._chosen, self._waited = [], 0

    def see(
        self, head: Float64Array, shape: Float64Array, measures: Measures, *, time: float, opening: Float64Array, mouth_seen: float = 1.0
    ) -> Rest:
        """A frame: head vector [6], shape [478, 3] in the head frame of the mean face, its measures -> the neutral to measure against.

        `opening` [2]: the lids' usual opening. `mouth_seen` 0..1: what a hidden mouth looks like is not learnt.
        """
        step = 0.0 if self._last is None else float(np.clip(time - self._last[0], 0.0, LONGEST_STEP))
        speed = 0.0 if self._last is None or step == 0.0 else float(np.abs(head[:3] - self._last[1][:3]).max()) / step
        self._last = (time, head)
        if self.rest is None or self._head is None or self._shape is None:
            return self._start(head, shape)
        if self._chosen is not None:
            self._take(head, shape, measures, opening)
        elif not self._locked:
            self._weigh(head, shape, measures, step=step, speed=speed, opening=opening, mouth_seen=mouth_seen)
        self._approach(step)
        return self.rest

    def rebase(self, before: Float64Array, after: Float64Array) -> None:
        """The picture's geometry changed (another resolution, a turned phone): keep place and size relative to the neutral.

        `before`, `after`: head vectors of the last frame of the old and the first of the new geometry.
        """
        if self.rest is None or self._head is None:
            return
        grown = after[5] - before[5]

        def moved(head: Float64Array) -> Float64Array:
            return np.concatenate([head[:3], after[3:5] - (before[3:5] - head[3:5]) * np.exp(grown), head[5:] + grown])

        self.rest = Rest(moved(self.rest.head), self.rest.shape, self.rest.measures)
        self._head.value = moved(self._head.value)
        self._prior = None if self._prior is None else moved(self._prior)
        self._last = None

    def _start(self, head: Float64Array, shape: Float64Array) -> Rest:
        upright = head.copy()
        upright[0] = np.clip(head[0], -UPRIGHT_YAW, UPRIGHT_YAW)
        upright[2] = np.clip(head[2], -UPRIGHT_ROLL, UPRIGHT_ROLL)
        self._prior = upright
        self._head, self._shape = RunningMean(upright), RunningMean(shape)
        self.rest = Rest(upright, shape, measure(shape))
        return self.rest

    def _weigh(
        self, head: Float64Array, shape: Float64Array, measures: Measures, *, step: float, speed: float, opening: Float64Array, mouth_seen: float
    ) -> None:
        assert self._head is not None
        assert self._shape is not None
        known = self._head.seconds / (self._head.seconds + SET_AFTER)
        usual = (head[1] - self._head.value[1]) / FRONTAL * known
        pose_cost = float(((head[[0, 2]] / FRONTAL) ** 2).sum() + usual**2 + (max(0.0, speed - STEADY) / SLOW) ** 2)
        lids = np.maximum(0.0, 1.0 - measures.lids / opening) / LOWERED
        face_cost = float((lids**2).sum() + (measures.gap / PARTED) ** 2 + ((measures.width - USUAL_WIDTH) / WIDTH_SPREAD) ** 2)
        self._head.add(head, 1.0 / (1.0 + pose_cost) ** 2, step=step)
        self._shape.add(shape, mouth_seen**2 / (1.0 + pose_cost + face_cost) ** 2, step=step)
        if min(self._head.seconds, self._shape.seconds) >= SET_AFTER:
            self.state = "set"

    def _take(self, head: Float64Array, shape: Float64Array, measures: Measures, opening: Float64Array) -> None:
        assert self._chosen is not None
        if bool((measures.lids < BLINK * opening).any()) and self._waited < CHOSEN_PATIENCE:
            self._waited += 1
            return
        self._chosen.append((head, shape))
        if len(self._chosen) < CHOSEN_FRAMES:
            return
        self._head = RunningMean(np.mean([frame[0] for frame in self._chosen], 0), MEMORY, 1.0)
        self._shape = RunningMean(np.mean([frame[1] for frame in self._chosen], 0), MEMORY, 1.0)
        self._chosen, self._locked, self._ease, self.state = None, True, CHOSEN_EASE, "set"

    def _target(self) -> tuple[Float64Array, Float64Array]:
        assert self._head is not None
        assert self._shape is not None
        assert self._prior is not None
        prior = PRIOR * float(np.exp(-self._head.seconds / SET_AFTER))
        share = self._head.seconds / (self._head.seconds + prior)
        return self._prior + share * (self._head.value - self._prior), self._shape.value

    def _approach(self, step: float) -> None:
        assert self.rest is not None
        head, shape = self._target()
        share = 1.0 - float(np.exp(-step / self._ease))
        rest = self.rest
        shape = rest.shape + share * (shape - rest.shape)
        self.rest = Rest(rest.head + share * (head - rest.head), shape, measure(shape))


LEVELS_SECONDS = 30.0
"""s of lids and lips the ranges are read from."""
LEVELS_FRAMES = 900
"""Frames kept at most: LEVELS_SECONDS at 30 a second."""
OPEN_QUANTILE, CLOSED_QUANTILE, SHUT_QUANTILE = 0.85, 0.02, 0.25
"""Quantiles of the lids' opening that count as usual and as closed, and of the lip gap that counts as shut."""
OPEN_RANGE = (0.17, 0.5)
"""Plausible usual openings of lids, in eye widths."""
CLOSED_SHARE = 0.3
"""Opening the tracker reads on a closed eye as a share of the usual one, before a blink was seen."""
CLOSED_MARGIN = 1.12
"""A blink reads a little differently each time; so much above the least one seen still counts as closed."""
CLOSED_RANGE = (0.16, 0.42)
"""Bounds of the closed reading as shares of the usual opening."""
SHUT_MARGIN, SHUT_RANGE = 0.014, (0.024, 0.045)
"""Inter-ocular distances: what is added to the shut lips' reading, and its bounds. What lies below is a gap of exactly 0."""
LOWER_EASE = 8.0
"""s: time constant with which the usual opening falls: eyes that look down for a while have not become small."""
LEARN_EVERY = 5
"""Frames from one reading of the quantiles to the next."""


@dataclass(slots=True)
class Levels:
    """Running ranges of one person's lids and lips."""

    opening: Float64Array = field(default_factory=lambda: np.full(2, 0.3))  # [2] usual opening of the lids, eye widths
    closed: Float64Array = field(default_factory=lambda: np.full(2, 0.3 * CLOSED_SHARE))  # [2] reading of closed lids
    shut: float = 0.03  # reading of shut lips, inter-ocular distances
    _seen: list[tuple[float, float, float, float]] = field(default_factory=list)  # time, left, right, gap
    _frames: int = 0

    def see(self, measures: Measures, *, time: float, mouth_seen: float = 1.0) -> None:
        """A frame's measures; learn every few frames and ease towards what was learnt. A mouth seen less than half is passed over."""
        first = not self._seen
        gap = measures.gap if mouth_seen > 0.5 else self.shut - SHUT_MARGIN
        self._seen.append((time, float(measures.lids[0]), float(measures.lids[1]), gap))
        self._frames += 1
        if self._frames % LEARN_EVERY and not first:
            return
        while self._seen and (self._seen[0][0] < time - LEVELS_SECONDS or len(self._seen) > LEVELS_FRAMES):
            self._seen.pop(0)
        table = np.array(self._seen)
        opening = np.clip(np.quantile(table[:, 1:3], OPEN_QUANTILE, axis=0), *OPEN_RANGE)
        least = np.quantile(table[:, 1:3], CLOSED_QUANTILE, axis=0)
        low, high = CLOSED_RANGE
        closed = np.where(least < high * opening, np.clip(least * CLOSED_MARGIN, low * opening, high * opening), CLOSED_SHARE * opening)
        shut = float(np.clip(np.quantile(table[:, 3], SHUT_QUANTILE) + SHUT_MARGIN, *SHUT_RANGE))
        span = (
            LEARN_EVERY / 30.0 if len(self._seen) < 2 else min(LONGEST_STEP * LEARN_EVERY, (time - self._seen[0][0]) / len(self._seen) * LEARN_EVERY)
        )
        share = 1.0 if first else 1.0 - float(np.exp(-span / EASE))
        lower = share if first else 1.0 - float(np.exp(-span / LOWER_EASE))
        self.opening = self.opening + np.where(opening < self.opening, lower, share) * (opening - self.opening)
        self.closed = self.closed + share * (closed - self.closed)
        self.shut += share * (shut - self.shut)
