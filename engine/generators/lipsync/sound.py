"""How much the lips are the network's while somebody speaks; what a row has heard is `engine.drivers.sound`'s."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.drivers.sound import KEPT, Sound

OPENING = 0.08
"""s in which the lips become the network's once somebody speaks."""
HELD = 0.12
"""s they stay the network's after the last word: time for it to close them."""
CLOSING = 0.24
"""s of the way back to the picture's own lips."""
SURE = 0.5
"""Share of speech around a frame from which it is wholly spoken."""
LONGEST_STEP = 0.2
"""s that count between two frames."""


@dataclass(slots=True)
class Gate:
    """How much the lips are the network's, 0..1: at once where somebody speaks, softly back where nobody does any more."""

    open: float = 0.0
    time: float | None = None  # s, of the last frame
    spoken: float = float("inf")  # s since the last speech

    def __call__(self, time: float, voiced: float) -> float:
        """The next frame's; `voiced` 0..1."""
        step = 0.0 if self.time is None else float(np.clip(time - self.time, 0.0, LONGEST_STEP))
        self.time = time
        wanted = min(1.0, voiced / SURE)
        self.spoken = 0.0 if wanted > 0 else self.spoken + step
        if wanted >= self.open:
            self.open = min(wanted, self.open + step / OPENING)
        elif self.spoken > HELD:
            self.open = max(wanted, self.open - step / CLOSING)
        return self.open * self.open * (3 - 2 * self.open)


__all__ = ["CLOSING", "HELD", "KEPT", "OPENING", "Gate", "Sound"]
