"""What one row has heard: its samples by absolute index, and whether somebody speaks at a frame.

Signals carry 160 ms of sound each and overlap. A later one is right where both tell of a sample: on the camera's grid the sound of a frame's
own instant has not arrived yet when the frame is due, and reads as silence until a later signal carries it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from engine.drivers.resample import RATE
from engine.drivers.speech import LOOK_AHEAD
from engine.drivers.visemes import CHANNELS, FRAME, REACH, VisemeState, analyse, blend
from engine.types import MEL_BANDS, FloatArray, Signal

KEPT = 3.0
"""s of sound kept."""
JUMP = 1.0
"""s between signals above which, or back by more than a sample of overlap, the sound begins anew."""
NUDGES = (0, -1, 1, -2, 2)
"""Samples that the end of a signal's sound may miss its time by: both are rounded to whole ones."""

ROW = RATE // 100  # samples: 10 ms
WINDOW = RATE // 40  # samples of a row: 25 ms
FFT = 512
SPREAD = LOOK_AHEAD  # s after a frame that the newest of the rows judged for it may reach


@lru_cache(maxsize=1)
def _tables() -> tuple[FloatArray, FloatArray]:
    """(Hann window [400], mel filters [80, 257]) of the rows that voices are told by: those of `engine.drivers.speech`."""
    from librosa.filters import mel

    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    return hann.astype(np.float32), mel(sr=RATE, n_fft=FFT, n_mels=MEL_BANDS)


@dataclass(slots=True)
class Sound:
    """One row's sound. Sample 0 is heard at `origin`."""

    origin: float | None = None  # s, time of the first signal
    end: int = 0  # index after the newest sample
    samples: FloatArray = field(default_factory=lambda: np.zeros(round(KEPT * RATE), np.float32))  # the newest ones
    rows: FloatArray = field(default_factory=lambda: np.zeros((round(KEPT * RATE) // ROW, CHANNELS), np.float32))  # the newest ones
    judged: int = 0  # index after the newest row; row r begins with sample 160 r
    audible: int = 0  # index after the newest sample that was brought by a signal
    visemes: VisemeState = field(default_factory=VisemeState)

    def hear(self, signal: Signal) -> None:
        """The next signal, in the order of time. One without sound is silence."""
        if self.origin is None or not -LOOK_AHEAD < signal.time - self._now(self.origin) < JUMP:
            self._begin(signal.time)
        assert self.origin is not None
        end = round((signal.time + LOOK_AHEAD - self.origin) * RATE)
        if signal.pcm is None:
            self._reach(end)
        else:
            self._write(end, signal.pcm)
        self._judge(round((signal.time - self.origin) * RATE))

    def read(self, start: int, stop: int) -> FloatArray:
        """Samples start..stop; what was not heard, or not any more, is silence."""
        out = np.zeros(stop - start, np.float32)
        first = self.end - len(self.samples)
        a, b = max(start, first), min(stop, self.end)
        if a < b:
            out[a - start : b - start] = self.samples[a - first : b - first]
        return out

    def seconds(self, time: float) -> float:
        """s since sample 0."""
        return time - (time if self.origin is None else self.origin)

    def voiced(self, time: float) -> float:
        """0..1: how much of the sound around an instant is speech."""
        last = (int(np.floor((self.seconds(time) + SPREAD) * RATE + 1e-6)) - WINDOW) // ROW
        first = last - 2 * round(REACH * RATE) // ROW
        index = np.arange(first, last + 1) - (self.judged - len(self.rows))
        inside = (index >= 0) & (index < len(self.rows))
        rows = np.where(inside[:, None], self.rows[np.clip(index, 0, len(self.rows) - 1)], 0).astype(np.float32)
        centres = (np.arange(first, last + 1) * ROW + WINDOW / 2) / RATE - self.seconds(time)
        return blend(rows, centres)[1]

    def _now(self, origin: float) -> float:
        return origin + self.end / RATE - LOOK_AHEAD

    def _begin(self, time: float) -> None:
        self.origin, self.end, self.judged, self.audible = time, 0, 0, 0
        self.samples[:], self.rows[:] = 0, 0
        self.visemes = VisemeState()

    def _reach(self, end: int) -> None:
        """Silence up to `end`."""
        new = end - self.end
        if new <= 0:
            return
        if new < len(self.samples):
            self.samples[:-new] = self.samples[new:]
        self.samples[-new:] = 0
        self.end = end

    def _write(self, end: int, pcm: FloatArray) -> None:
        """Sound that ends at about `end`."""
        first = self.end - len(self.samples)

        def fits(nudge: int) -> bool:
            start = end + nudge - len(pcm)
            known = self.samples[max(0, start - first) : start - first + ROW]
            return start >= first and start + ROW <= self.end and np.array_equal(known, pcm[:ROW])

        end += next((nudge for nudge in NUDGES if fits(nudge)), 0)
        self._reach(end)
        first = self.end - len(self.samples)
        self.samples[end - len(pcm) - first : end - first] = pcm
        self.audible = end

    def _judge(self, until: int) -> None:
        """Every row whose window ends by sample `until`: by then all of it has been heard."""
        hann, filters = _tables()
        while (start := self.judged * ROW) + WINDOW <= until:
            row = np.zeros(CHANNELS, np.float32)
            if start < self.audible:
                frame = self.read(start + WINDOW - FRAME, start + WINDOW)
                spectrum = np.fft.rfft(frame[FRAME - WINDOW :] * hann, FFT)
                # einsum and not @: BLAS would wake its threads for 20 000 products, which takes longer than they do.
                power = np.einsum("bf,f->b", filters, (spectrum.real**2 + spectrum.imag**2).astype(np.float32))
                row = analyse(self.visemes, power, frame)
            self.rows[:-1] = self.rows[1:]
            self.rows[-1] = row
            self.judged += 1


__all__ = ["KEPT", "Sound"]
