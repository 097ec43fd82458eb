"""One-euro filters: steady at rest, without lag in motion. Knows numbers and times, not faces."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LONGEST_GAP = 0.5
"""s without a sample after which a filter starts afresh: easing from a value that old would be a lie."""


@dataclass(slots=True)
class OneEuro:
    """The 1 EUR filter on an array of channels (Casiez, Roussel, Vogel 2012, "1 EUR Filter", CHI, section 3 and algorithm 1).

    x' = a·x + (1-a)·x',  a = 1 / (1 + tau/dt),  tau = 1 / (2·pi·fc),  fc = min_cutoff + beta·|speed'|, the speed itself
    smoothed at `speed_cutoff`. Channels are independent; `min_cutoff` and `beta` may be arrays that broadcast on them.
    """

    min_cutoff: npt.ArrayLike = 1.0  # Hz at rest
    beta: npt.ArrayLike = 0.0  # Hz per unit/s of speed
    speed_cutoff: float = 1.0  # Hz
    _value: npt.NDArray[np.float64] | None = None
    _speed: npt.NDArray[np.float64] | None = None
    _time: float = 0.0

    def __call__(self, value: npt.ArrayLike, time: float) -> npt.NDArray[np.float64]:
        """The smoothed value at `time` s. A sample not later than the last one replaces nothing and returns the last result."""
        x = np.array(value, np.float64)
        if self._value is None or self._speed is None or x.shape != self._value.shape or time - self._time > LONGEST_GAP:
            self._value, self._speed, self._time = x, np.zeros_like(x), time
            return x.copy()
        step = time - self._time
        if step <= 0.0:
            return self._value.copy()
        weight = _weight(self.speed_cutoff, step)
        self._speed = weight * (x - self._value) / step + (1.0 - weight) * self._speed
        weight = _weight(np.asarray(self.min_cutoff) + np.asarray(self.beta) * np.abs(self._speed), step)
        self._value = weight * x + (1.0 - weight) * self._value
        self._time = time
        return self._value.copy()

    def reset(self) -> None:
        """Forget the past; the next sample is taken as it is."""
        self._value = self._speed = None


def _weight(cutoff: npt.ArrayLike, step: float) -> npt.NDArray[np.float64]:
    """Weight of a new sample of a first-order low pass of `cutoff` Hz after `step` s."""
    rate = 2.0 * np.pi * np.asarray(cutoff, np.float64) * step
    weight: npt.NDArray[np.float64] = rate / (rate + 1.0)
    return weight
