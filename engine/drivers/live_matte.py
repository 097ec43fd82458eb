"""Who is the person in every frame, for generators that do not say it: one look of MediaPipe's selfie segmentation, made crisp.

The portrait's own matte would stay where the portrait was: of a head that moves away it cuts one side off and leaves the old wall at the
other. This one follows, 3 ms a frame on one core; fine strands of hair, which `engine.drivers.matte` finds in 0.1 s, it does not have.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from engine.drivers.quiet import quiet
from engine.types import UInt8Array

NETWORK_SIDE = 256
"""px: what the network looks at, whatever the picture's shape."""
STRETCH = (0.4, 0.9)
"""Answers that become 0 and 1: the network's edges are wider than a person's."""
SURE = 0.9
"""Answer above which a point is believed to be the person's."""
SMALLEST = 0.01
"""Share of the picture that a person covers at least."""


class LiveMatte:
    """One a session; not thread-safe. The network starts on the first call (0.1 s)."""

    def __init__(self) -> None:
        self._network: Any = None

    def __call__(self, rgb: UInt8Array) -> UInt8Array | None:
        """Picture [H, W, 3] RGB -> [H, W], 255 where the person is; None where the network sees nobody."""
        small = np.asarray(cv2.resize(rgb, (NETWORK_SIDE, NETWORK_SIDE), interpolation=cv2.INTER_AREA), np.uint8)
        if self._network is None:
            from mediapipe.python.solutions.selfie_segmentation import SelfieSegmentation

            with quiet():
                self._network = SelfieSegmentation(model_selection=0)
                answer = self._network.process(small).segmentation_mask
        else:
            answer = self._network.process(small).segmentation_mask
        if float((answer > SURE).mean()) < SMALLEST:
            return None
        low, high = STRETCH
        crisp = np.clip((answer - low) * (255.0 / (high - low)), 0.0, 255.0) + 0.5
        return np.asarray(cv2.resize(crisp.astype(np.uint8), (rgb.shape[1], rgb.shape[0]), interpolation=cv2.INTER_LINEAR), np.uint8)

    def close(self) -> None:
        """Free the network. It starts again on the next call."""
        if self._network is not None:
            self._network.close()
            self._network = None


__all__ = ["LiveMatte"]
