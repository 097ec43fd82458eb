"""Any rate -> 16 kHz as sound arrives, with next to no delay.

A polyphase windowed sinc (Smith, "Digital audio resampling", 2002) instead of libsoxr: soxr's streaming mode is exact too,
but holds 20 to 115 ms of sound back (measured, "LQ" to "HQ", 8 to 96 kHz), which the lips' look-ahead cannot spare.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from math import gcd

import numpy as np
import numpy.typing as npt

from engine.types import AvatarError, FloatArray

RATE = 16_000
"""Hz of everything that listens to speech."""
LOWEST_RATE, HIGHEST_RATE = 8_000, 192_000
"""Hz accepted."""

_CROSSINGS = 32  # zero crossings of the sinc on each side, at the lower of the two rates: 2 ms at 16 kHz
_BETA = 7.0  # Kaiser: 70 dB stop band; with 32 crossings the transition is 0.135 of the lower rate's half band
_EDGE = 0.93  # cutoff as a share of the lower Nyquist frequency, so that the transition ends there
_PHASES = 640  # most sub-sample phases in a table: exact for every common rate (11 025 Hz needs 640), nearest phase otherwise
_SLICE = 1_600  # output samples computed at once, which bounds the memory of a long chunk

Int64Array = npt.NDArray[np.int64]


@lru_cache(maxsize=8)
def _table(rate: int) -> FloatArray:
    """[phases, taps] filters of the sub-sample positions, each of unit gain at 0 Hz."""
    phases = min(RATE // gcd(rate, RATE), _PHASES)
    stretch = max(1.0, rate / RATE)  # input samples per zero crossing
    taps = 2 * round(_CROSSINGS * stretch)
    offset = np.arange(taps) + 1 - taps / 2 - (np.arange(phases) / phases)[:, None]
    window = np.i0(_BETA * np.sqrt(np.clip(1 - (offset / (taps / 2)) ** 2, 0, 1)))
    weights = np.sinc(offset * _EDGE / stretch) * window
    return np.ascontiguousarray(weights / weights.sum(1, keepdims=True), np.float32)


@dataclass(slots=True)
class Resampler:
    """Streaming state of one rate. Strictly causal: output sample n depends on input up to n/16000 s, delayed by `delay`.

    The output is the same, bit for bit, however the input is cut into chunks.
    """

    rate: int  # Hz of the input
    heard: int = 0  # input samples so far
    made: int = 0  # output samples so far
    _past: FloatArray = field(default_factory=lambda: np.zeros(0, np.float32))

    def __post_init__(self) -> None:
        """Raises AvatarError for a rate nobody records speech at."""
        if not LOWEST_RATE <= self.rate <= HIGHEST_RATE:
            raise AvatarError(f"Sound at {self.rate} Hz cannot be used; send it at {LOWEST_RATE} to {HIGHEST_RATE} Hz.")
        if self.rate != RATE:
            self._past = np.zeros(_table(self.rate).shape[1] - 1, np.float32)

    @property
    def delay(self) -> float:
        """Seconds by which the output lags: half the filter, 2 ms (4 ms at 8 kHz), 0 at 16 kHz."""
        return 0.0 if self.rate == RATE else (len(self._past) + 1) / 2 / self.rate

    def push(self, pcm: FloatArray) -> FloatArray:
        """Input samples [N] -> the output samples [M] they complete."""
        if self.rate == RATE or not len(pcm):
            self.heard += len(pcm)
            self.made += len(pcm)
            return np.asarray(pcm, np.float32)
        table = _table(self.rate)
        sound = np.concatenate([self._past, pcm])
        first = self.heard
        self.heard += len(pcm)
        end = -(-self.heard * RATE // self.rate)  # every n with floor(n * rate / 16000) < heard
        pieces = [np.zeros(0, np.float32)]
        windows = np.lib.stride_tricks.sliding_window_view(sound, table.shape[1])
        while self.made < end:
            n: Int64Array = np.arange(self.made, min(end, self.made + _SLICE), dtype=np.int64) * self.rate
            phase = (n % RATE) * len(table) // RATE
            pieces.append((windows[n // RATE - first] * table[phase]).sum(1, dtype=np.float32))
            self.made += len(n)
        self._past = sound[len(sound) - len(self._past) :]
        return np.concatenate(pieces)

    def forget(self) -> None:
        """Take the input so far for silence."""
        self._past = np.zeros_like(self._past)
