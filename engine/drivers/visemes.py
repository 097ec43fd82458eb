"""Short-time bands of the sound -> a mouth, without trained weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.types import FloatArray

CHANNELS = 6
"""Of one row: gap, width, round, smile, voiced, loudness."""

_SIGMA = 0.028  # s, Gaussian


@dataclass(slots=True)
class VisemeState:
    """What is remembered of the speaker and the room."""

    loud: float = -30.0  # dB
    floor: float = -60.0  # dB


def analyse(state: VisemeState, power: FloatArray, frame: FloatArray) -> FloatArray:
    """Mel power [80] and the 25 ms [400] it came from -> [6] targets of one row."""
    level = 10 * np.log10(float(power[6:60].sum()) + 1e-9)
    state.floor += (0.05 if level > state.floor else 0.5) * np.clip(level - state.floor, -3, 1)
    state.loud += 0.05 * max(0.0, level - state.loud) - 0.005
    speech = float(np.clip((level - state.floor - 9) / 10, 0, 1))
    openness = float(np.clip((level - state.loud + 25) / 25, 0, 1)) * speech
    return np.array([0.25 * openness, 0, 0, 0, speech, openness], np.float32)


def blend(rows: FloatArray, centres: FloatArray) -> tuple[FloatArray, float, float]:
    """Rows [N, 6] at `centres` [N] s from the instant -> (mouth [4], voiced, loudness)."""
    weights = np.exp(-0.5 * (centres / _SIGMA) ** 2)
    mean = weights @ rows / weights.sum()
    return mean[:4].astype(np.float32), float(mean[4]), float(mean[5])
