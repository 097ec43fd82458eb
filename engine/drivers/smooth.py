"""One-euro filters: steady at rest, without lag in motion. Knows numbers and times, not faces."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

LONGEST_GAP = 0.5
"""s without a sample after which a filter starts afresh: easing from a value that old would be a lie."""


@dataclass(slots=True)
class OneEuro:
    """The 1 EUR filter on an array of channels (Casiez, Roussel, Vogel 2012, "1 EUR Filter", CHI, section 3 and algorithm 1).

    x' = a·x + (1-a)·x',  a = 1 / (1 + tau/dt),  tau = 1 / (2·pi·fc),  fc = min_cutoff + beta·|speed'|, the speed itself
    smoothed at `speed_cutoff`. Channels are independent; `min_cutoff`, `beta` and `calm` may be arrays that broadcast on them.

    Two changes against trackers whose noise flips from frame to frame (their crop depends on their last answer): the speed is
    taken over two samples, where such noise cancels, and speeds below `calm` count as rest.
    """

    min_cutoff: npt.ArrayLike = 1.0  # Hz at rest
    beta: npt.ArrayLike = 0.0  # Hz per unit/s of speed
    speed_cutoff: float = 1.0  # Hz
    calm: npt.ArrayLike = 0.0  # units/s
    _value: npt.NDArray[np.float64] | None = None
    _speed: npt.NDArray[np.float64] | None = None
    _seen: list[tuple[float, npt.NDArray[np.float64]]] = field(default_factory=list)  # the last two samples and their times

    def __call__(self, value: npt.ArrayLike, time: float) -> npt.NDArray[np.float64]:
        """The smoothed value at `time` s. A sample not later than the last one changes nothing and returns the last result."""
        x = np.array(value, np.float64)
        if self._value is None or self._speed is None or x.shape != self._value.shape or time - self._seen[-1][0] > LONGEST_GAP:
            self._value, self._speed, self._seen = x, np.zeros_like(x), [(time, x)]
            return x.copy()
        step = time - self._seen[-1][0]
        if step <= 0.0:
            return self._value.copy()
        then, before = self._seen[0]
        share = _weight(self.speed_cutoff, step)
        self._speed = share * (x - before) / (time - then) + (1.0 - share) * self._speed
        speed = np.maximum(0.0, np.abs(self._speed) - self.calm)
        share = _weight(np.asarray(self.min_cutoff) + np.asarray(self.beta) * speed, step)
        self._value = share * x + (1.0 - share) * self._value
        self._seen = [self._seen[-1], (time, x)]
        return self._value.copy()

    def reset(self) -> None:
        """Forget the past; the next sample is taken as it is."""
        self._value = self._speed = None
        self._seen = []


def _weight(cutoff: npt.ArrayLike, step: float) -> npt.NDArray[np.float64]:
    """Weight of a new sample of a first-order low pass of `cutoff` Hz after `step` s."""
    rate = 2.0 * np.pi * np.asarray(cutoff, np.float64) * step
    weight: npt.NDArray[np.float64] = rate / (rate + 1.0)
    return weight
