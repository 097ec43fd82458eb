"""The registry of generators: a new one is one folder and one line here."""

from __future__ import annotations

from importlib import import_module
from inspect import signature
from typing import Any

from engine.types import AvatarError, Generator

NAMES = {
    "diffusion": "engine.generators.diffusion.generator:Diffusion",
    "lipsync": "engine.generators.lipsync.generator:Lipsync",
    "puppet": "engine.generators.puppet.generator:Puppet",
    "reenact": "engine.generators.reenact.generator:Reenact",
    "video": "engine.generators.video.generator:Video",
}


def load(name: str, **options: Any) -> Generator:
    """A generator by name; `options` go to its constructor. Raises AvatarError for a name or an option that does not exist."""
    make = _class(name)
    if strange := sorted(set(options) - takes(name)):
        option = strange[0].replace("_", "-")  # as on the command line
        raise AvatarError(f"The generator '{name}' takes no option '{option}'; leave it out, or choose a generator that does.")
    generator: Generator = make(**options)
    return generator


def takes(name: str) -> set[str]:
    """The options of a generator's constructor. Raises AvatarError for a name that does not exist."""
    return set(signature(_class(name)).parameters)


def _class(name: str) -> Any:
    if name not in NAMES:
        raise AvatarError(f"There is no generator called '{name}'; choose one of: {', '.join(sorted(NAMES))}.")
    module, _, attribute = NAMES[name].partition(":")
    return getattr(import_module(module), attribute)
