"""What a diffusion generator says of itself, and what it hears of a signal without a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from engine.generators.diffusion.presets import Preset, check
from engine.types import MEL_BANDS, MEL_ROWS, AvatarError, Signal

if TYPE_CHECKING:
    from engine.generators.diffusion.networks import Networks

SILENCE = -10.0
"""Log-mel of nothing heard."""
MANY_STEPS = "These weights were made for {}; in {} the picture is soft until they are distilled."
NO_GUIDANCE = "These weights were made for {}; a live stream has no guidance, so the picture is paler and less like the portrait than published ones."


def notice(networks: Networks, steps: int) -> str:
    """What whoever watches must be told of trained weights at so many steps; empty where there is nothing."""
    if not networks.made_for:
        return ""
    enough = 0 < networks.made_steps <= steps
    return NO_GUIDANCE.format(networks.made_for) if enough else MANY_STEPS.format(networks.made_for, steps)


def needs_of(made: Preset, *, listens: bool) -> tuple[str, ...]:
    """Fields of a signal that a preset reads."""
    if made.condition == "mask":
        return ("pcm",)
    painted = () if made.condition == "puppet" else ("face", "body", "hands")
    return ("motion", "pcm" if listens else "speech", *painted)


def resized(made: Preset, size: tuple[int, int]) -> Preset:
    """The preset at another size: no weight depends on it. Raises AvatarError where it does not fit."""
    if min(size) < 1:
        raise AvatarError(f"A picture of {size[0]} x {size[1]} px cannot be made; give a height and a width above 0.")
    other = replace(made, size=size)
    check(other)
    return other


def log_mel(chunk: Sequence[Signal]) -> npt.NDArray[np.float32]:
    """[c, 16, 80] log-mel."""
    quiet = np.full((MEL_ROWS, MEL_BANDS), SILENCE, np.float32)
    return np.stack([quiet if signal.speech is None else signal.speech for signal in chunk])


__all__ = ["log_mel", "needs_of", "notice", "resized"]
