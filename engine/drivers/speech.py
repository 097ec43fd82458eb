"""Sound as it arrives -> log-mel rows, 16 kHz samples and a mouth, at any instant the frame grid asks for.

log-mel: row = log10(max(M |DFT(hann(400) * x, 512)|^2, 1e-10)), x at 16 kHz, 10 ms a row, M [80, 257] librosa's
Slaney-style triangles from 0 to 8 kHz (`librosa.filters.mel(sr=16000, n_fft=512, n_mels=80)`), no normalisation over the
clip, so that a row never depends on later sound. Row r covers samples 160 r to 160 r + 400.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from engine.drivers.resample import RATE, Resampler
from engine.drivers.visemes import CHANNELS, FRAME, REACH, VisemeState, analyse, blend
from engine.types import MEL_BANDS, MEL_ROWS, AudioChunk, AvatarError, FloatArray

LOOK_AHEAD = 0.08
"""s of sound after an instant that its features and its mouth may depend on."""
RING = 2.0
"""s of sound kept."""
HOP = RATE // 100  # samples: 10 ms
WINDOW = RATE // 40  # samples: 25 ms
FFT = 512
SPAN = MEL_ROWS * HOP  # samples of `SpeechReading.pcm`: 160 ms
POWER_FLOOR = 1e-10
LOG_FLOOR = -10.0  # log10 of it: what silence reads

JITTER = 0.015
"""s by which a chunk's time may miss the end of the one before and still count as contiguous."""
BRIDGE = 0.3
"""s of gap filled with silence (or of overlap cut away); a larger jump starts afresh."""
LATE = 0.12
"""s over which the mouth closes where the sound stops coming."""
_FADE = 0.005  # s over which sound is faded out where it is cleared, against a click
_SNAP = 2  # samples within which a span continues the one taken before


@dataclass(frozen=True, slots=True)
class SpeechReading:
    """What is known of the sound at one instant."""

    logmel: FloatArray  # [16, 80] log10 power, 10 ms a row; the last row ends at the instant + LOOK_AHEAD (within a hop)
    pcm: FloatArray  # [2560] the 160 ms at 16 kHz that end at the instant + LOOK_AHEAD
    mouth: FloatArray  # [4] gap, width, round, smile as in Motion.mouth
    voiced: float  # 0..1: speech rather than silence or noise
    loudness: float  # 0..1 within the speaker's running range


@lru_cache(maxsize=1)
def _tables() -> tuple[FloatArray, FloatArray]:
    """(Hann window [400], mel filters [80, 257])."""
    from librosa.filters import mel

    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)  # periodic, as librosa's
    return hann.astype(np.float32), mel(sr=RATE, n_fft=FFT, n_mels=MEL_BANDS)


def warm_up() -> None:
    """Load librosa and make the tables now (about 2 s of CPU) rather than under the first chunk of sound."""
    _tables()


class _Ring:
    """The newest rows of an endless array, addressed by absolute index; rows outside read as `fill`."""

    def __init__(self, keep: int, *, row: tuple[int, ...] = (), fill: float = 0.0) -> None:
        self._data = np.full((2 * keep, *row), fill, np.float32)
        self._keep, self._fill = keep, fill
        self._base = 0  # absolute index of _data[0]
        self.end = 0  # absolute index after the newest row

    @property
    def start(self) -> int:
        """Absolute index of the oldest row kept."""
        return max(self._base, self.end - self._keep)

    def append(self, rows: FloatArray) -> None:
        """Add rows [N, ...] at the end."""
        if len(rows) > self._keep:
            self.end += len(rows) - self._keep
            self._base, rows = self.end, rows[-self._keep :]
        used = self.end - self._base
        if used + len(rows) > len(self._data):
            kept = min(self._keep, used)
            self._data[:kept] = self._data[used - kept : used]
            self._base, used = self.end - kept, kept
        self._data[used : used + len(rows)] = rows
        self.end += len(rows)

    def read(self, start: int, stop: int) -> FloatArray:
        """A copy of rows start..stop."""
        out = np.full((max(0, stop - start), *self._data.shape[1:]), self._fill, np.float32)
        a, b = max(start, self.start), min(stop, self.end)
        if a < b:
            out[a - start : b - start] = self._data[a - self._base : b - self._base]
        return out

    def mute(self, start: int, fade: int = 0) -> None:
        """Turn rows from `start` on into `fill`, the first `fade` of them gradually."""
        a = max(start, self.start) - self._base
        tail = self._data[a : self.end - self._base]
        fade = min(fade, len(tail))
        ramp = np.linspace(1, 0, fade + 1, dtype=np.float32)[:-1]
        tail[:fade] = self._fill + (tail[:fade] - self._fill) * ramp.reshape(-1, *[1] * (tail.ndim - 1))
        tail[fade:] = self._fill


@dataclass(slots=True)
class _Take:
    """Sound of one rate without a break: the original samples and their way to 16 kHz."""

    time: float  # s of sample 0
    rate: int
    resampler: Resampler
    sound: _Ring
    given: int = 0  # samples handed out so far

    @property
    def end(self) -> float:
        """Time after the newest sample."""
        return self.time + self.sound.end / self.rate


@dataclass(slots=True)
class _Track:
    """Everything that starts afresh when the sound jumps in time."""

    time: float  # s of 16 kHz sample 0
    pcm: _Ring = field(default_factory=lambda: _Ring(round((RING + 0.1) * RATE)))
    mel: _Ring = field(default_factory=lambda: _Ring(round((RING + 0.1) * RATE) // HOP, row=(MEL_BANDS,), fill=LOG_FLOOR))
    mouth: _Ring = field(default_factory=lambda: _Ring(round((RING + 0.1) * RATE) // HOP, row=(CHANNELS,)))
    takes: deque[_Take] = field(default_factory=deque)


class SpeechDriver:
    """Hears sound on one thread, answers for any instant of the last two seconds on another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._track: _Track | None = None
        self._visemes = VisemeState()
        self._shown = float("-inf")  # the latest instant whose sound or mouth was asked for

    @property
    def heard_until(self) -> float:
        """Session time at which the sound heard so far ends; -inf before any."""
        with self._lock:
            return self._end()

    def hear(self, chunk: AudioChunk, *, read: bool = True) -> None:
        """Sound arrives: mono, 8 to 192 kHz, -1..1, contiguous in time (see JITTER and BRIDGE for when it is not).

        Chunks of 10 to 100 ms are best; of a chunk longer than RING only the end is kept. `read`: where False nobody's lips follow the
        sound; it is kept for `sound`, but reads as silence, which costs nothing. Raises AvatarError for anything else.
        """
        pcm = np.asarray(chunk.pcm)
        if pcm.ndim != 1 or pcm.dtype.kind != "f":
            raise AvatarError(f"Sound must be a one-dimensional array of floats from -1 to 1, not {pcm.dtype} of shape {pcm.shape}.")
        if not (np.isfinite(pcm).all() and np.isfinite(chunk.time)):
            raise AvatarError("Sound must be finite numbers at a finite time; this chunk has a NaN or an infinity.")
        pcm = pcm.astype(np.float32, copy=False)
        _tables()  # outside the lock: the first call loads librosa
        with self._lock:
            gap = chunk.time - self._end()
            if self._track is None or abs(gap) > BRIDGE:
                resampler = Resampler(chunk.rate)  # raises before anything has changed
                self._track, self._shown = _Track(chunk.time), float("-inf")
                self._open(chunk.time, chunk.rate, resampler)
            elif self._track.takes[-1].rate != chunk.rate:
                self._open(self._end(), chunk.rate, Resampler(chunk.rate))
            if JITTER < gap <= BRIDGE:
                self._add(np.zeros(round(gap * chunk.rate), np.float32), read=read)
            elif -BRIDGE <= gap < -JITTER:
                pcm = pcm[round(-gap * chunk.rate) :]
            self._add(pcm, read=read)

    def at(self, time: float) -> SpeechReading:
        """The reading at an instant, from sound up to `time` + LOOK_AHEAD; what was not heard, or not any more, is silence."""
        with self._lock:
            self._shown = max(self._shown, min(time, self._end()))
            track = self._track
            if track is None:
                return _silence()
            end = int(np.floor((time + LOOK_AHEAD - track.time) * RATE + 1e-6))
            last = (end - WINDOW) // HOP  # newest row whose window is over by then
            first = last - 2 * round(REACH * RATE) // HOP
            rows = track.mouth.read(first, last + 1)
            late = np.arange(first, last + 1) - track.mouth.end + 1  # rows after the newest one
            if late[-1] > 0:  # the sound is late: hold what was heard last, and close
                rows[late > 0] = track.mouth.read(track.mouth.end - 1, track.mouth.end)
                rows[:, :4] *= np.clip(1 - late * HOP / RATE / LATE, 0, 1)[:, None]
            centres = (np.arange(first, last + 1) * HOP + WINDOW / 2) / RATE + track.time - time
            mouth, voiced, loudness = blend(rows, centres)
            return SpeechReading(track.mel.read(last + 1 - MEL_ROWS, last + 1), track.pcm.read(end - SPAN, end), mouth, voiced, loudness)

    def sound(self, start: float, end: float) -> list[AudioChunk]:
        """The original sound from start to end, one chunk a rate; consecutive spans join without a sample lost or doubled.

        What was never heard, or is older than RING, is left out.
        """
        chunks: list[AudioChunk] = []
        with self._lock:
            self._shown = max(self._shown, min(end, self._end()))
            for take in self._track.takes if self._track else ():
                a, b = round((start - take.time) * take.rate), round((end - take.time) * take.rate)
                if abs(a - take.given) <= _SNAP:
                    a = take.given
                a, b = max(a, take.sound.start), min(b, take.sound.end)
                if a < b:
                    chunks.append(AudioChunk(take.sound.read(a, b), take.rate, take.time + a / take.rate))
                    take.given = b
        return chunks

    def clear(self) -> None:
        """Forget the sound that was heard but not yet shown: it turns to silence in place, so that the clock runs on."""
        with self._lock:
            track = self._track
            if track is None:
                return
            shown = max(self._shown, track.time)
            cut = round((shown - track.time) * RATE)
            row = max(0, cut - WINDOW // 2) // HOP
            track.pcm.mute(cut, round(_FADE * RATE))
            track.mel.mute(row)
            track.mouth.mute(row)
            for take in track.takes:
                take.sound.mute(max(take.given, round((shown - take.time) * take.rate)), round(_FADE * take.rate))
            track.takes[-1].resampler.forget()

    # -- under the lock -----------------------------------------------------------------------------------------------

    def _end(self) -> float:
        return self._track.takes[-1].end if self._track else float("-inf")

    def _open(self, time: float, rate: int, resampler: Resampler) -> None:
        """A new rate from here on."""
        assert self._track is not None
        self._track.takes.append(_Take(time, rate, resampler, _Ring(round((RING + 0.1) * rate))))

    def _add(self, pcm: FloatArray, *, read: bool) -> None:
        """Sound at the end of the newest take -> samples, rows and mouths at the end of the track."""
        track = self._track
        assert track is not None
        take = track.takes[-1]
        take.sound.append(pcm)
        made = take.resampler.push(pcm)
        # A new take starts between two 16 kHz samples; the rounding is made good here, so that it cannot add up.
        missing = round((take.time - track.time) * RATE) + take.resampler.made - len(made) - track.pcm.end
        if missing > 0:
            track.pcm.append(np.zeros(missing, np.float32))
        track.pcm.append(made[max(0, -missing) :])
        if read:
            self._analyse(track)
        elif (unread := (track.pcm.end - WINDOW) // HOP + 1 - track.mel.end) > 0:
            track.mel.append(np.full((unread, MEL_BANDS), LOG_FLOOR, np.float32))
            track.mouth.append(np.zeros((unread, CHANNELS), np.float32))
        while len(track.takes) > 1 and track.takes[0].end < take.end - RING:
            track.takes.popleft()

    def _analyse(self, track: _Track) -> None:
        """Every row whose window is complete, one at a time, so that the result does not depend on the chunks."""
        hann, filters = _tables()
        while (start := track.mel.end * HOP) + WINDOW <= track.pcm.end:
            frame = track.pcm.read(start + WINDOW - FRAME, start + WINDOW)
            spectrum = np.fft.rfft(frame[FRAME - WINDOW :] * hann, FFT)
            # einsum and not @: BLAS would wake its threads for 20 000 products, which takes longer than they do.
            power = np.einsum("bf,f->b", filters, (spectrum.real**2 + spectrum.imag**2).astype(np.float32))
            track.mel.append(np.log10(np.maximum(power, POWER_FLOOR))[None])
            track.mouth.append(analyse(self._visemes, power, frame)[None])


def _silence() -> SpeechReading:
    zero = np.zeros
    return SpeechReading(np.full((MEL_ROWS, MEL_BANDS), LOG_FLOOR, np.float32), zero(SPAN, np.float32), zero(4, np.float32), 0.0, 0.0)
