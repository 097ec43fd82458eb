"""The personas that come with the program: a portrait, and the same person as a clip taught the puppet to show her.

The second one's folder is made by this project alone and can be made again: README, "The demo".
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.persona import ASSETS, Persona, make_persona
from engine.persona import BUILT_IN as NAMES
from engine.types import AvatarError, Generator, UInt8Array

DEMO, TAUGHT = NAMES


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """Files in `engine/assets`."""

    portrait: Path
    weights: Path | None  # a folder of weights, or of what goes with some


BUILT_IN = {
    DEMO: BuiltIn(ASSETS / "portrait.jpg", None),
    TAUGHT: BuiltIn(ASSETS / "taught" / "portrait.png", ASSETS / "taught" / "weights"),
}
"""By name, in the order they are offered; a kept persona of the same name is not seen."""


def portrait(name: str) -> UInt8Array:
    """[H, W, 3] RGB."""
    from engine.picture import read_picture

    return read_picture(BUILT_IN[name].portrait)


def make(generator: Generator, name: str) -> Persona:
    """Ready for a generator; kept nowhere. Raises AvatarError for weights that are not whole."""
    if name not in BUILT_IN:
        raise AvatarError(f"No persona called '{name}' comes with the program; choose one of: {', '.join(BUILT_IN)}.")
    return make_persona(generator, portrait(name), name=name, weights=BUILT_IN[name].weights)


__all__ = ["BUILT_IN", "DEMO", "TAUGHT", "BuiltIn", "make", "portrait"]
