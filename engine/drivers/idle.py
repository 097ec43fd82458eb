"""What a person does while doing nothing: blinks, breathing, a little motion of head and eyes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from engine.types import Motion, still_motion


class IdleDriver:
    """Motion as a function of time: the same seed and times give the same motion."""

    def __init__(self, seed: int = 0) -> None:
        self._phase = np.random.default_rng(seed).uniform(0, 2 * np.pi, 4)

    def at(self, time: float, *, speaking: float = 0.0) -> Motion:
        """The idle motion at `time` s; `speaking` 0..1 makes it livelier."""
        turn = np.sin(2 * np.pi * np.array([0.11, 0.07, 0.05, 0.25]) * time + self._phase)
        blink = 1.0 - max(0.0, 1 - abs((time + self._phase[0]) % 4.0 - 0.1) / 0.1)
        return replace(
            still_motion(),
            head=np.array([1.5 * turn[0], 1.0 * turn[1], 0.8 * turn[2], 0, 0.004 * turn[3], 0], np.float32),
            eyes=np.full(2, blink, np.float32),
        )
