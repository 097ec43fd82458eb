"""Short-time bands of the sound -> a mouth, without trained weights.

What the spectrum tells, and how it is read here (for the facts: Stevens, "Acoustic Phonetics", 1998, chapters 3 and 6 to 9):
- Whether somebody speaks: periodicity (autocorrelation of a windowed frame over that of its window, Boersma 1993) of sound that
  stands out of the room's noise (minimum statistics, Martin 2001, IEEE TSAP 9(5), with a fixed bias). Hiss, fans, hum and
  clicks hardly ever have both for long; fricatives and stops are taken for speech next to a voice.
- How far the lips part: loudness within the speaker's running range, times the jaw.
- Jaw: centroid of the amplitude spectrum from 200 to 1100 Hz, which follows the first formant, within the speaker's range.
- Round or spread: centroid from 900 to 3200 Hz, which follows the second formant, against what this jaw would have at rest.
- Lips shut: a murmur, strong below 400 Hz, without a second formant in the middle, quieter than its surroundings.
- Teeth together: no voice and energy above 3.8 kHz; the lips round for "sh" and nearly close for "f".
Weak where the signal is: n against m in some voices, b, d and g inside a word, whispering (which is not taken for speech).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from engine.drivers.resample import RATE
from engine.types import MEL_BANDS, FloatArray

Float64Array = npt.NDArray[np.float64]

FRAME = 512
"""Samples (32 ms) that `analyse` reads: its row's window and the 7 ms before, so that a low voice shows three periods."""
CHANNELS = 9
"""Of one row, before the gate: gap of parted lips, width, round, smile; then 0..1: a murmur behind shut lips if others are louder,
voice here, voice here or just before, loudness, the most lately."""
REACH = 0.06
"""s on either side of an instant that `blend` reads: 2.5 of the narrow Gaussian's deviations."""

ROW = 0.01  # s
WIDEST_GAP = 0.30  # inner lip opening of a loud "ah", in inter-ocular distances (a jaw of 17 to 19 mm)
TEETH_GAP = 0.05  # of an "s"
LIP_GAP = 0.02  # of an "f"

_FFT = 2 * FRAME
_PITCH = (36, 214)  # samples: 444 to 75 Hz
_LOUD_SPAN = 27.0  # dB below the speaker's loud end at which the lips meet
_NOISE_BIAS = 3.2  # mean over minimum of the smoothed noise power, measured with white noise
_NOISE_BLOCK, _NOISE_BLOCKS = 20, 8  # rows; the floor is the minimum of the last 1.4 to 1.6 s
_QUIET_ROOM = 10 ** (-70 / 10)  # mean square of noise taken for granted before any was heard
_STILLNESS = 10 ** (-84 / 10)  # mean square below which no microphone goes: keeps digital silence from making all else loud
_HOLD, _RELEASE = 0.14, 0.10  # s that speech counts as going on after the last voiced row, then fades
_ONSET = 4  # rows of evidence that begin speech: a knock has fewer
_STILL, _MACHINE = 0.5, 100  # dB of change; rows without it that no voice lasts
_GROUP_EDGES = (200, 320, 450, 600, 800, 1100, 1500, 2100, 2800, 3600)  # Hz
_NARROW, _WIDE = 0.024, 0.036  # s, Gaussian deviations: of the gap, which must reach closures, and of the rest
_SAME, _QUIETER = 0.13, 0.30  # loudness by which a murmur behind shut lips lies under the vowels around it: none at 4 dB, all at 8
_BITE = 1.3  # how far the smoothed closure overshoots, so that one of 60 ms closes wholly


def _mel_edges() -> Float64Array:
    """Hz [82]: edges of librosa's 80 Slaney triangles from 0 to 8 kHz (linear to 1 kHz, then 27 steps for a factor of 6.4)."""
    top = 15 + 27 * np.log(RATE / 2 / 1000) / np.log(6.4)
    mels = np.linspace(0, top, MEL_BANDS + 2)
    return np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) * np.log(6.4) / 27))


@dataclass(frozen=True, slots=True)
class _Bands:
    """Constants of the analysis."""

    centre: Float64Array  # [80] Hz
    unit: Float64Array  # [80] mel power of a row -> mean square of the signal in that band
    pitch_window: Float64Array  # [512]
    pitch_weight: Float64Array  # [513]
    pitch_scale: Float64Array  # [lags] 1 / autocorrelation of the window
    groups: npt.NDArray[np.intp]  # first bands of the groups of `_change`
    voice: slice  # of the bands, by their centres: 300 to 3500 Hz, what a room's noise must leave standing
    level: slice  # 250 to 5000 Hz
    jaw: slice  # 200 to 1100 Hz
    front: slice  # 900 to 3200 Hz
    murmur: slice  # 150 to 400 Hz
    above: slice  # 500 to 4000 Hz
    hush: slice  # 1900 to 3600 Hz
    sharp: slice  # 4200 to 8000 Hz
    hiss: slice  # 3800 to 8000 Hz


@lru_cache(maxsize=1)
def _bands() -> _Bands:
    edges = _mel_edges()
    hann_energy = 150.0  # sum of the squared 400-sample Hann window
    unit = (edges[2:] - edges[:-2]) / 2 * 2 / (FRAME * hann_energy)  # the triangles have unit area; one-sided spectrum
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / FRAME)
    hz = np.fft.rfftfreq(_FFT, 1 / RATE)
    # Above 450 Hz only, and rising: the tones of fans and mains stay below, and coloured noise looks white.
    weight = np.clip((hz - 450) / 150, 0, 1) * np.clip((3500 - hz) / 1000, 0, 1) * (hz / 500) ** 2
    own = np.fft.irfft(np.abs(np.fft.rfft(window, _FFT)) ** 2)
    centre = edges[1:-1]

    def between(low: float, high: float) -> slice:
        first, last = np.searchsorted(centre, (low, high))
        return slice(int(first), int(last))

    return _Bands(
        centre=centre,
        unit=unit,
        pitch_window=window,
        pitch_weight=weight,
        pitch_scale=own[0] / own[_PITCH[0] : _PITCH[1]],
        groups=np.searchsorted(centre, _GROUP_EDGES),
        voice=between(300, 3500),
        level=between(250, 5000),
        jaw=between(200, 1100),
        front=between(900, 3200),
        murmur=between(150, 400),
        above=between(500, 4000),
        hush=between(1900, 3600),
        sharp=between(4200, 8000),
        hiss=between(3800, 8000),
    )


@dataclass(slots=True)
class _Range:
    """Running percentiles of one quantity over the rows that were voiced, the old ones fading."""

    low: float
    step: float
    counts: Float64Array
    fade: float  # factor a row

    @classmethod
    def around(cls, low: float, high: float, *, guesses: tuple[float, ...], weight: float, memory: float) -> _Range:
        """`guesses` count as `weight` rows until rows are seen; `memory` in seconds of voice."""
        step = (high - low) / 64
        counts = np.zeros(64)
        for guess in guesses:
            counts[int((guess - low) / step)] += weight / len(guesses)
        return cls(low, step, counts, 1 - ROW / memory)

    def add(self, value: float) -> None:
        """One more row."""
        self.counts *= self.fade
        self.counts[min(63, max(0, int((value - self.low) / self.step)))] += 1

    def at(self, *shares: float) -> list[float]:
        """The values below which these shares (0..1) of the rows lie."""
        total = np.cumsum(self.counts)
        places = np.interp(np.array(shares) * total[-1], np.concatenate([[0], total]), np.arange(65))
        return [float(self.low + self.step * place) for place in places]


@dataclass(slots=True)
class VisemeState:
    """What is remembered of the speaker and of the room."""

    smooth: Float64Array | None = None  # [80] mean square of each band over the last 30 ms
    minima: Float64Array = field(default_factory=lambda: np.full((_NOISE_BLOCKS, MEL_BANDS), _QUIET_ROOM / MEL_BANDS))
    rows: int = 0  # heard without a voice
    noise: Float64Array = field(default_factory=lambda: np.full(MEL_BANDS, _NOISE_BIAS * _QUIET_ROOM / MEL_BANDS))  # mean square of each band
    still: int = 0  # rows in a row without change
    evidence: list[float] = field(default_factory=lambda: [0.0] * _ONSET)  # 0..1 of the last rows
    groups: list[Float64Array] = field(default_factory=list)  # dB [_GROUPS] of the last rows
    held: float = 0.0  # > 1 while the hold lasts
    peak: float = -90.0  # dB, level of the loudest row lately
    loud: _Range = field(default_factory=lambda: _Range.around(-90, 6, guesses=(-44, -34, -28), weight=12, memory=8))
    jaw: _Range = field(default_factory=lambda: _Range.around(200, 1100, guesses=(340, 380, 500, 640, 720), weight=120, memory=12))
    front: _Range = field(default_factory=lambda: _Range.around(900, 3300, guesses=(1250, 1500, 1900, 2500), weight=120, memory=12))


def ramp(value: float, zero: float, one: float) -> float:
    """0 at `zero`, 1 at `one` (on either side of it), linear between."""
    return min(1.0, max(0.0, (value - zero) / (one - zero)))


def decibels(power: float) -> float:
    """10 log10, with a floor far under any sound."""
    return 10 * math.log10(power + 1e-12)


def _hear_room(state: VisemeState, power: Float64Array, voice: float) -> None:
    """Follow the noise floor: bias times the least smoothed power of the last seconds without a voice."""
    state.smooth = power if state.smooth is None else 0.7 * state.smooth + 0.3 * power
    if voice > 0.5:
        return
    block = state.rows // _NOISE_BLOCK % _NOISE_BLOCKS
    if state.rows % _NOISE_BLOCK == 0:
        state.minima[block] = state.smooth
    else:
        np.minimum(state.minima[block], state.smooth, out=state.minima[block])
    state.rows += 1
    state.noise = np.maximum(_NOISE_BIAS * state.minima.min(0), _STILLNESS / MEL_BANDS)


def _voice(state: VisemeState, evidence: float, change: float) -> float:
    """Whether this row is voice, 0..1. It begins with rows in a row that are periodic and change, and goes on while they are periodic.

    A knock has too few such rows, a hum does not change; a hum that sets in under a voice is found out after a second.
    """
    state.evidence = [*state.evidence[1:], evidence * ramp(change, 0.5, 0.9)]
    state.still = state.still + 1 if change < _STILL else 0
    goes_on = evidence if state.held > 0.5 else min(state.evidence)
    voice = 0.0 if state.still > _MACHINE else goes_on
    state.held = max(state.held - ROW / _RELEASE, voice * (1 + _HOLD / _RELEASE))
    return voice


def _change(state: VisemeState, power: Float64Array) -> float:
    """Mean change in dB of the groups of bands: about 0 for what hums, over 1 for nine voiced rows in ten.

    Against 20 or 30 ms ago, whichever is less: one period of 50 Hz and nearly two of 60 Hz, so that a hum stands still.
    """
    groups = 10 * np.log10(np.add.reduceat(power, _bands().groups)[:-1] + _STILLNESS)
    state.groups = [*state.groups[-3:], groups]
    return min(float(np.abs(groups - before).sum()) for before in state.groups[:2]) / len(groups)


def periodicity(frame: FloatArray) -> float:
    """Highest normalised autocorrelation of the 450 to 3500 Hz band at a lag of a human pitch; about 0.3 for noise, to 1 for a voice."""
    bands = _bands()
    spectrum = np.fft.rfft(frame * bands.pitch_window, _FFT)
    lags = np.fft.irfft((spectrum.real**2 + spectrum.imag**2) * bands.pitch_weight)
    return float((lags[_PITCH[0] : _PITCH[1]] * bands.pitch_scale).max() / (lags[0] + 1e-12))


def _centroid(amplitude: Float64Array, place: slice, scale: Float64Array) -> float:
    part = amplitude[place]
    return float(part @ scale[place] / (part.sum() + 1e-12))


def analyse(state: VisemeState, power: FloatArray, frame: FloatArray) -> FloatArray:
    """Mel power [80] of a row and the samples [512] that end with it -> its targets [CHANNELS]."""
    bands = _bands()
    whole = power * bands.unit
    noise = state.noise
    clean = np.maximum(whole - noise, 0)
    middle = bands.voice
    pitch = periodicity(frame)
    stands_out = decibels(clean[middle].sum()) - decibels(noise[middle].sum())
    voice = _voice(state, ramp(pitch, 0.45, 0.65) * ramp(stands_out, 0, 6), _change(state, whole))
    _hear_room(state, whole, voice)
    level = decibels(clean[bands.level].sum())
    amplitude = np.sqrt(clean * bands.centre)  # 6 dB an octave against the voice's own slope
    jaw = _centroid(amplitude, bands.jaw, bands.centre)
    front = _centroid(amplitude, bands.front, bands.centre)
    if voice > 0.5:
        for seen, value in ((state.loud, level), (state.jaw, jaw), (state.front, front)):
            seen.add(value)
    loud = state.loud.at(0.85)[0]
    floor = max(loud - _LOUD_SPAN, decibels(noise.sum()))
    state.peak = max(state.peak - 30 * ROW, level, loud - 5)
    openness = ramp(level, floor, max(loud, floor + 6))
    mouth = _mouth(state, bands, clean, openness=openness, level=level, jaw=jaw, front=front, pitch=pitch)
    peak = ramp(state.peak, floor, max(loud, floor + 6))
    return np.array([*mouth, voice, min(1.0, state.held), openness, peak], np.float32)


def _mouth(
    state: VisemeState, bands: _Bands, clean: Float64Array, *, openness: float, level: float, jaw: float, front: float, pitch: float
) -> tuple[float, float, float, float, float]:
    """(gap, width, round, smile, shut) of a row that is speech."""
    jaw_low, jaw_high = state.jaw.at(0.12, 0.9)
    front_low, front_high = state.front.at(0.12, 0.92)
    drop = ramp(jaw, jaw_low, max(jaw_high, jaw_low + 120))
    # Where the second formant would lie with lips at rest: high for a raised jaw, low for a dropped one; spread above, round below.
    rest = front_low + (0.62 - 0.54 * drop) * (front_high - front_low)
    voiced = ramp(openness, 0.05, 0.4)
    spread = ramp(front, rest + 50, front_high - 100) * voiced
    rounded = ramp(front, rest, rest - 240) * ramp(drop, 1.0, 0.75) * voiced

    high = decibels(clean[bands.hiss].sum()) - level
    murmur = decibels(clean[bands.above].sum()) - decibels(clean[bands.murmur].sum())
    shut = ramp(murmur, 0, -5) * ramp(front, 1800, 1450)
    hiss = ramp(high, -13, -5) * ramp(pitch, 0.75, 0.5)
    hush = hiss * ramp(decibels(clean[bands.hush].sum()) - decibels(clean[bands.sharp].sum()), -3, 3)

    gap = WIDEST_GAP * openness**0.85 * (0.28 + 0.72 * drop)
    sibilant = ramp(level, state.peak - 32, state.peak - 20)
    gap += hiss * (min(gap, LIP_GAP + (TEETH_GAP - LIP_GAP) * sibilant) - gap)
    width = (0.20 * spread - 0.22 * rounded) * (1 - hiss) + 0.08 * (hiss - 2 * hush) * sibilant
    protrusion = 0.9 * rounded * (1 - hiss) + 0.6 * hush * sibilant
    return gap, width, protrusion, 0.2 * spread * (1 - hiss), shut * (1 - hiss)


def blend(rows: FloatArray, centres: Float64Array) -> tuple[FloatArray, float, float]:
    """Rows [N, CHANNELS] at `centres` [N] s from the instant (oldest first) -> (mouth [4], voiced, loudness)."""
    # A fricative before its voice is speech too, the more so the nearer the voice comes.
    near = np.clip((REACH - centres) / (REACH - 0.02), 0, 1)
    coming = np.maximum.accumulate((rows[:, 5] * near)[::-1])[::-1]
    gate = np.maximum(rows[:, 6], coming)
    gated = rows * gate[:, None]
    shut = gated[:, 4] * np.clip((np.maximum(rows[:, 7].max(), rows[:, 8]) - rows[:, 7] - _SAME) / (_QUIETER - _SAME), 0, 1)
    within = np.abs(centres) <= REACH
    narrow = np.exp(-0.5 * (centres / _NARROW) ** 2) * within
    wide = np.exp(-0.5 * (centres / _WIDE) ** 2) * within
    narrow, wide = narrow / narrow.sum(), wide / wide.sum()
    mouth = wide @ gated[:, :4]
    # Closures are as short as the smoothing: multiplied instead of averaged in, they still close.
    parted = 1 - min(1.0, _BITE * float(narrow @ shut))
    mouth[0] = (narrow @ gated[:, 0]) * parted
    mouth[2] *= parted
    mouth[np.abs(mouth) < 1e-3] = 0.0  # closed means closed
    return mouth.astype(np.float32), float(wide @ gate), float(narrow @ gated[:, 7])
