"""What is heard of a signal without a network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from engine.types import MEL_BANDS, MEL_ROWS, Signal

SILENCE = -10.0
"""Log-mel of nothing heard."""


def log_mel(chunk: Sequence[Signal]) -> npt.NDArray[np.float32]:
    """[c, 16, 80] log-mel."""
    quiet = np.full((MEL_ROWS, MEL_BANDS), SILENCE, np.float32)
    return np.stack([quiet if signal.speech is None else signal.speech for signal in chunk])


__all__ = ["log_mel"]
