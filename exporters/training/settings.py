"""What a training run is asked for: it goes on only with the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from engine.backends import pytorch  # noqa: F401  before torch: see there
from exporters.training.batches import PATTERNS, Chances, Pattern
from exporters.training.losses import Weights

Recipe = Literal["teacher", "appearance", "consistency", "matching"]
Learnt = Literal["all", "spatial", "temporal"]
"""Which part learns: what sees single pictures (Animate Anyone's first stage), what carries motion on (its second), or both."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Of a run; it goes on only with the same ones (but the budget)."""

    recipe: Recipe = "appearance"
    steps: int = 2  # of the student, a frame
    preset: str = "compact"
    rate: float = 5e-4  # at 2e-3 nothing is learnt
    average: float = 0.995  # of the weights' moving average, reached as (1 + n) / (10 + n)
    reference: bool = False  # whether the reference network learns; one person's portrait never changes, so that it costs and gives nothing
    clip: float = 1.0  # norm of the gradients
    decay: float = 0.01
    seed: int = 0
    precision: Literal["no", "bf16"] = "no"
    learn: Learnt = "all"
    accumulate: int = 1  # batches an update, one after another; each process has as many
    checkpointing: bool | None = None  # whether what is between is computed again on the way back, which takes less memory; None: where it is large
    weights: Weights = field(default_factory=Weights)
    chances: Chances = field(default_factory=Chances)
    patterns: tuple[Pattern, ...] = PATTERNS
    window: tuple[int, int] | None = None  # of whole clips: its frames, and how many of a stream's are past; None: what the system has


__all__ = ["Learnt", "Recipe", "Settings"]
