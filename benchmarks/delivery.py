"""What arrived, turned into figures: delays by bar code, stalls, onsets of sound and mouth, offsets and their drift. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import MS

Float64Array = npt.NDArray[np.float64]

STALL = 1.5
"""Intervals without a new picture that count as a stall."""
HOUR = 3600.0
ENVELOPE_HOP = 0.002
"""s between values of a sound's envelope."""
ENVELOPE_SPAN = 0.010
"""s over which it is averaged: more than a period of the lowest voice would blur the onset, less would ripple."""
HALF = 0.5
"""Share of its rise at which an event is said to happen, in sound and in picture alike."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One returned picture."""

    time: float  # s, when it was decoded here
    number: int | None  # of its bar code


def delays(seen: Sequence[Seen], taken: Mapping[int, float], *, since: float, until: float) -> list[float]:
    """Motion-to-photon in ms: for each picture taken in [since, until], the first sight of its number minus its time."""
    first: dict[int, float] = {}
    for one in seen:
        if one.number is not None:
            first.setdefault(one.number, one.time)
    return [(time - taken[n]) * MS for n, time in first.items() if n in taken and since <= taken[n] <= until]


def intervals(seen: Sequence[Seen], *, since: float, until: float) -> list[float]:
    """s between pictures that show something new, in [since, until]; a repeated number is nothing new.

    The last value is the time from the last picture to `until` where that is longer than all: a stream that died is not smooth.
    """
    times: list[float] = []
    last: int | None = -1
    for one in seen:
        if since <= one.time <= until and (one.number is None or one.number != last):
            times.append(one.time)
            last = one.number
    if not times:
        return [until - since]
    gaps = np.diff(times).tolist()
    tail = until - times[-1]
    return [*gaps, tail] if not gaps or tail > max(gaps) else gaps


def stall_ratio(gaps: Sequence[float], *, fps: float) -> float:
    """Share of intervals longer than 1.5 nominal ones."""
    return float(np.mean(np.asarray(gaps) > STALL / fps)) if gaps else 1.0


def envelope(times: Float64Array, samples: npt.NDArray[np.floating[Any]]) -> tuple[Float64Array, Float64Array]:
    """(s, root mean square) of sound whose samples have times, every ENVELOPE_HOP; missing stretches read 0."""
    if not len(times):
        return np.zeros(0), np.zeros(0)
    start, bins = float(times[0]), int((times[-1] - times[0]) / ENVELOPE_HOP) + 1
    index = np.clip(((times - start) / ENVELOPE_HOP).astype(int), 0, bins - 1)
    power = np.bincount(index, np.asarray(samples, np.float64) ** 2, bins)
    count = np.bincount(index, minlength=bins).astype(np.float64)
    kernel = np.ones(max(1, round(ENVELOPE_SPAN / ENVELOPE_HOP)))
    mean = np.convolve(power, kernel, "same") / np.maximum(1.0, np.convolve(count, kernel, "same"))
    return start + (np.arange(bins) + 0.5) * ENVELOPE_HOP, np.sqrt(mean)


def rise(times: Float64Array, values: Float64Array, *, since: float, until: float, least: float) -> float | None:
    """When a signal rises in [since, until]: the first crossing of half its way from rest (its value at `since`) to its peak.

    Linear between samples. None where it rises by less than `least`.
    """
    a, b = np.searchsorted(times, (since, until))
    if b - a < 3:
        return None
    window, t = values[a:b], times[a:b]
    if not np.isfinite(window).any():
        return None
    first = window[: max(2, len(window) // 20)]
    rest = float(np.nanmin(first)) if np.isfinite(first).any() else float(np.nanmin(window))
    peak = float(np.nanmax(window))
    if not peak - rest >= least:
        return None
    level = rest + HALF * (peak - rest)
    above = np.flatnonzero(window >= level)
    k = int(above[0])
    if k == 0 or not np.isfinite(window[k - 1]):
        return float(t[k])
    share = (level - window[k - 1]) / (window[k] - window[k - 1])
    return float(t[k - 1] + share * (t[k] - t[k - 1]))


def slope(times: Sequence[float], values: Sequence[float]) -> tuple[float | None, float | None]:
    """(change of `values` per hour, its standard error) of the least-squares line; None where there are under 4 points."""
    if len(times) < 4:
        return None, None
    x = (np.asarray(times) - np.mean(times)) / HOUR
    y = np.asarray(values) - np.mean(values)
    spread = float((x**2).sum())
    if spread <= 0:
        return None, None
    per_hour = float((x * y).sum() / spread)
    rest = y - per_hour * x
    return per_hour, float(np.sqrt((rest**2).sum() / (len(x) - 2) / spread))
