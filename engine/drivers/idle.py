"""What a person does while doing nothing: blinks, breathing, a little motion of head and eyes. A pure function of time and seed.

Rates and sizes are those of people at rest or talking: 15 to 20 blinks a minute of 150 to 300 ms, faster to close than to
open (Evinger 1991, Invest. Ophthalmol. 32(2)); 14 breaths a minute; saccades of 50 ms between fixations of one to three seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.types import Motion

BLINK_EVERY, BLINK_JITTER = 4.0, 2.0
"""s between blinks on the mean, and how far an interval strays: 2 to 6 s."""
DOUBLE_BLINKS = 0.15
"""Share of blinks followed at once by a second one."""
BREATH = 0.235
"""Hz."""

_FIXATION, _FIXATION_JITTER = 1.9, 0.9  # s between saccades, and how far that strays
_SACCADE = 0.07  # s; two frames at 30 fps
_GLANCE = np.array([0.045, 0.02])  # eye widths: deviation of a fixation from straight ahead, x and y
_STEADY_EYES = np.array([0.0065, 0.0075])  # eye widths a degree of yaw and of pitch: the eyes stay on the viewer as the head moves
_SWAY_HZ = np.array([0.043, 0.071, 0.113, 0.167, 0.229, 0.311])  # incommensurate: no period that anybody could see
_LIVELY_HZ = np.array([0.37, 0.53, 0.71, 0.97])
_SWAY = np.array([2.1, 1.1, 0.9])  # degrees of yaw, pitch, roll: standard deviation at rest, about
_LIVELY = np.array([1.3, 1.1, 0.8])  # degrees added while speaking
_NOD = 2.2  # degrees of pitch at full stress
_STRESS_BROWS = 0.05  # inter-ocular distances the brows rise at full stress

Float64Array = npt.NDArray[np.float64]


def chance(seed: int, kind: int, number: int) -> float:
    """A random number 0..1 for the `number`-th event of a kind (SplitMix64, Steele 2014): no state, so any time can be asked for."""
    mask = (1 << 64) - 1
    x = (seed * 0x9E3779B97F4A7C15 + kind * 0xD1B54A32D192ED03 + number * 0x8CB92BA72F3D8DD7) & mask
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = ((x ^ (x >> shift)) * factor) & mask
    return ((x ^ (x >> 31)) >> 11) / (1 << 53)


def smoothstep(x: float) -> float:
    """0 to 1 with no speed at either end."""
    x = min(1.0, max(0.0, x))
    return x * x * (3 - 2 * x)


@dataclass(frozen=True, slots=True)
class Blink:
    """One blink, perhaps with a second at its heels."""

    start: float  # s
    closing: float  # s
    shut: float  # s that it stays closed
    opening: float  # s
    again: float  # s after `start` at which a second one begins; 0 for none

    def aperture(self, time: float) -> float:
        """1 open, 0 closed."""
        one = self._one(time - self.start)
        return min(one, self._one(time - self.start - self.again)) if self.again else one

    def _one(self, since: float) -> float:
        return 1 - smoothstep(since / self.closing) + smoothstep((since - self.closing - self.shut) / self.opening)


class IdleDriver:
    """Idle motion of one person; the seed makes the person."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        rng = np.random.default_rng(seed)
        self._sway, self._lively = (self._waves(rng, hz) for hz in (_SWAY_HZ, _LIVELY_HZ))
        self._breath = rng.uniform(0, 1)

    @staticmethod
    def _waves(rng: np.random.Generator, hz: Float64Array) -> tuple[Float64Array, Float64Array]:
        """(weights [3, N] of unit power with the slow waves the larger, phases [3, N]) for yaw, pitch and roll."""
        weights = rng.uniform(0.5, 1.0, (3, len(hz))) / np.sqrt(hz)
        return weights / np.sqrt((weights**2).sum(1, keepdims=True) / 2), rng.uniform(0, 2 * np.pi, (3, len(hz)))

    def at(self, time: float, *, speaking: float = 0.0, stress: float = 0.0, no_blink_before: float = float("-inf")) -> Motion:
        """The motion at `time` s. `speaking` 0..1 makes it livelier, `stress` -1..1 nods and lifts the brows with the voice's emphasis.

        Both must change smoothly. A blink that would begin before `no_blink_before` s is left out whole.
        """
        turn = _SWAY * self._wave(self._sway, _SWAY_HZ, time) + speaking * _LIVELY * self._wave(self._lively, _LIVELY_HZ, time)
        turn[1] += _NOD * speaking * stress
        rise = self._breathing(time)
        # The neck carries the head: it shifts a little the way it turns, and with the breath.
        head = [*turn, 0.004 * turn[0], 0.003 * turn[1] - 0.004 * rise, 0.002 * rise]
        blink = self.blink(time)
        aperture = blink.aperture(time) if blink.start >= no_blink_before else 1.0
        gaze = self._gaze(time) * (1 - 0.4 * speaking) - _STEADY_EYES * turn[:2]
        lids = aperture * (1 + 0.02 * float(turn[1] - _NOD * speaking * stress) / _SWAY[1])
        brow = _STRESS_BROWS * speaking * max(0.0, stress)
        body = [0.25 * turn[2], 0.15 * turn[0], 0.003 * turn[0], -0.006 * rise, 0.012 * rise, 0.012 * rise]
        return Motion(
            head=np.array(head, np.float32),
            eyes=np.full(2, lids, np.float32),
            gaze=gaze.astype(np.float32),
            brows=np.full(2, brow, np.float32),
            mouth=np.zeros(4, np.float32),
            body=np.array(body, np.float32),
        )

    def blink(self, time: float) -> Blink:
        """The latest blink that has begun by `time`."""
        slot = int(np.floor(time / BLINK_EVERY))
        blink = self._blink(slot)
        return blink if blink.start <= time else self._blink(slot - 1)

    def _blink(self, slot: int) -> Blink:
        """The blink of one slot of BLINK_EVERY s; it begins in the first half, so that neighbours are 2 to 6 s apart."""
        dice = [chance(self._seed, 1 + kind, slot) for kind in range(5)]
        closing, shut, opening = 0.055 + 0.035 * dice[1], 0.02 + 0.03 * dice[2], 0.09 + 0.08 * dice[3]
        again = closing + shut + opening + 0.04 if dice[4] < DOUBLE_BLINKS else 0.0
        return Blink(slot * BLINK_EVERY + BLINK_JITTER * dice[0], closing, shut, opening, again)

    def _wave(self, waves: tuple[Float64Array, Float64Array], hz: Float64Array, time: float) -> Float64Array:
        weights, phases = waves
        total: Float64Array = (weights * np.sin(2 * np.pi * hz * time + phases)).sum(1) / np.sqrt(2)
        return total

    def _breathing(self, time: float) -> float:
        """-1..1: in for two fifths of a breath, out for three."""
        share = (time * BREATH + self._breath) % 1.0
        return float(-np.cos(np.pi * share / 0.4) if share < 0.4 else np.cos(np.pi * (share - 0.4) / 0.6))

    def _gaze(self, time: float) -> Float64Array:
        """Fixations joined by saccades, eye widths."""
        slot = int(np.floor(time / _FIXATION))
        start = self._fixation_start(slot)
        if start > time:
            slot, start = slot - 1, self._fixation_start(slot - 1)
        before, after = self._fixation(slot - 1), self._fixation(slot)
        rest: Float64Array = before + (after - before) * smoothstep((time - start) / _SACCADE)
        return rest

    def _fixation_start(self, slot: int) -> float:
        return slot * _FIXATION + _FIXATION_JITTER * chance(self._seed, 11, slot)

    def _fixation(self, slot: int) -> Float64Array:
        """Where the eyes rest, eye widths; every second time back at the viewer."""
        if chance(self._seed, 12, slot) < 0.5:
            return np.zeros(2)
        glance: Float64Array = _GLANCE * (2 * np.array([chance(self._seed, 13, slot), chance(self._seed, 14, slot)]) - 1)
        return glance
