"""Identity systems that a user has imported (`avatar import instantid DIR`): where their files lie, as one JSON each beside the personas.

The files stay where they are; only their places and the sums that tell them from others are written down.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.persona import personas_folder
from engine.types import AvatarError

FOLDER = "systems"
"""Beside the personas' folder."""
PLACES = ("weights", "base", "unet", "image_encoder", "recogniser", "control")
"""Fields of `Installed` that are files or folders."""


@dataclass(frozen=True, slots=True)
class Installed:
    """An identity system with the user's files; one that has no `base` cannot make portraits until it is given one."""

    name: str  # of the system, as after --system
    variant: str  # what its files turned out to be
    families: tuple[str, ...]  # of bases that it fits: sd15, sdxl, ...
    together: bool  # whether it reads all photos of a person; else the best one
    prompt: str  # the one that it was published to be used with
    digest: str  # sha256 of the adapter's file
    weights: Path
    base: Path | None = None
    unet: Path | None = None
    image_encoder: Path | None = None
    recogniser: Path | None = None
    control: Path | None = None
    asked_variant: str | None = None  # what the user said where the files do not say it

    def pack(self) -> dict[str, Any]:
        """As JSON holds it; places become absolute."""
        told: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__ if name not in PLACES}
        return told | {name: str(place.absolute()) for name in PLACES if (place := getattr(self, name)) is not None}


def systems_folder() -> Path:
    """$AVATAR_HOME/systems, else beside the personas of the user's data folder."""
    return personas_folder().parent / FOLDER


def installed(*, folder: Path | None = None, damaged: Callable[[str], object] | None = None) -> tuple[Installed, ...]:
    """All of them, by name. Of a damaged one `damaged` hears a sentence, and the others are all the same; without it, raises AvatarError."""
    home, found = folder or systems_folder(), list[Installed]()
    for path in sorted(home.glob("*.json")) if home.is_dir() else ():
        try:
            found.append(_read(path))
        except AvatarError as error:
            if damaged is None:
                raise
            damaged(str(error))
    return tuple(found)


def find(name: str, *, folder: Path | None = None) -> Installed | None:
    """The one called so, if it was imported."""
    path = (folder or systems_folder()) / f"{name}.json"
    return _read(path) if path.is_file() else None


def keep(made: Installed, *, folder: Path | None = None) -> Path:
    """Write it down, in place of an older one of its name; -> the file."""
    home = folder or systems_folder()
    home.mkdir(parents=True, exist_ok=True)
    path = home / f"{made.name}.json"
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(made.pack(), indent=2, ensure_ascii=False))
    aside.replace(path)
    return path


def _read(path: Path) -> Installed:
    try:
        told = json.loads(path.read_text())
        values: dict[str, Any] = {name: Path(value) if name in PLACES else value for name, value in told.items()}
        return Installed(**{**values, "families": tuple(told["families"])})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise AvatarError(f"{path} is damaged; remove it and run `avatar import {path.stem} DIR` again.") from error


__all__ = ["Installed", "find", "installed", "keep", "systems_folder"]
