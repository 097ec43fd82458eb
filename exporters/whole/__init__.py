"""Training of the generator `video`, whose networks see a whole window of frames at once: UniAnimate and VividPose. Here what needs no PyTorch."""

from __future__ import annotations

from engine.generators.diffusion.presets import Preset
from engine.generators.video import presets, vividpose_presets
from engine.generators.video.presets import UniAnimate
from engine.generators.video.vividpose_presets import VividPose
from engine.types import AvatarError

PRESETS: dict[str, UniAnimate | VividPose] = {**presets.PRESETS, **vividpose_presets.PRESETS}
"""Every size, by name."""
RECIPES = ("teacher", "appearance", "matching")
TINY = "tiny_"
"""What the names of presets for tests begin with, which alone can begin from nothing."""


def check(preset: str, recipe: str, *, started: bool, taught: bool) -> None:
    """Raise AvatarError for what is not offered. `started`, `taught`: whether there are weights to go on from, and a teacher."""
    if recipe not in RECIPES:
        raise AvatarError(f"'{preset}' is taught by --recipe teacher, appearance or matching, not '{recipe}'; give one of these.")
    if taught != (recipe == "matching"):
        told = "give its weights with --teacher" if not taught else "leave --teacher out, and give the weights to go on from with --start"
        raise AvatarError(f"The recipe '{recipe}' learns from {'no' if taught else 'a'} teacher; {told}.")
    if not started and not preset.startswith(TINY):
        raise AvatarError(f"'{preset}' goes on from imported weights, whose autoencoder and image encoder it keeps: give their folder with --start.")


def maps_of(made: Preset | UniAnimate | VividPose) -> tuple[str, ...]:
    """Condition pictures that a size of any generator is driven by, by name."""
    if isinstance(made, Preset):
        return made.maps
    return ("smplx",) if isinstance(made, VividPose) else ()


__all__ = ["PRESETS", "RECIPES", "check", "maps_of"]
