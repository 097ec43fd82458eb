"""Training of the generator `video`, whose networks see a whole window of frames at once: UniAnimate and VividPose. Here what needs no PyTorch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from engine.backends.engines import WEIGHTS
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


def chosen(name: str | None, weights: Sequence[Path]) -> UniAnimate | VividPose:
    """The size that is taught: of a name, or the first weights'. Raises AvatarError for weights that are for another."""
    theirs = [str(json.loads((folder / WEIGHTS).read_text()).get("preset")) for folder in weights]
    made = PRESETS.get(theirs[0] if name is None else name)
    for other, folder in zip(theirs, weights, strict=True):
        if made is None or other not in PRESETS or not _same(made, PRESETS[other]):
            wanted = "a preset that there is" if made is None else f"'{made.name}'"
            raise AvatarError(f"The weights in {folder} are for the preset '{other}', not for {wanted}; leave --preset out, or give others.")
    assert made is not None
    return made


def _same(made: UniAnimate | VividPose, other: UniAnimate | VividPose) -> bool:
    """Whether two sizes take the same weights."""
    apart = {"name", "size", "frames"}
    return type(made) is type(other) and all(getattr(made, one.name) == getattr(other, one.name) for one in fields(made) if one.name not in apart)


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


def shows_hands(made: Preset | UniAnimate | VividPose) -> bool:
    """Whether the pictures that a size of any generator is driven by have painted hands."""
    return not isinstance(made, Preset) or made.condition == "skeleton"


__all__ = ["PRESETS", "RECIPES", "check", "chosen", "maps_of", "shows_hands"]
