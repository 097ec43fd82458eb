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
}

WHOLE = {"video": "engine.generators.video.generator:Video"}
"""Those that render whole clips and nothing live (`engine.whole`)."""
WHY = {"video": "every frame sees 13 to 31 after it (0.9 to 2.1 s at 15 a second), in 25 to 31 steps of two calls each"}
"""Why, from their declared figures: windows, steps and guidance."""


def load(name: str, **options: Any) -> Generator:
    """A generator by name; `options` go to its constructor. Raises AvatarError for a name or an option that does not exist."""
    if name in WHOLE:
        how = f"use it with avatar render --offline; {WHY[name]}"
        raise AvatarError(f"The generator '{name}' renders whole clips and nothing live; {how}.")
    generator: Generator = load_whole(name, **options)
    return generator


def load_whole(name: str, **options: Any) -> Any:
    """As `load`, of those in WHOLE too, which have a spec, `prepare` and `at_leisure` alone."""
    make = _class(name)
    if strange := sorted(set(options) - takes(name)):
        option = strange[0].replace("_", "-")  # as on the command line
        raise AvatarError(f"The generator '{name}' takes no option '{option}'; leave it out, or choose a generator that does.")
    return make(**options)


def takes(name: str) -> set[str]:
    """The options of a generator's constructor. Raises AvatarError for a name that does not exist."""
    return set(signature(_class(name)).parameters)


def _class(name: str) -> Any:
    known = NAMES | WHOLE
    if name not in known:
        raise AvatarError(f"There is no generator called '{name}'; choose one of: {', '.join(sorted(NAMES))}.")
    module, _, attribute = known[name].partition(":")
    return getattr(import_module(module), attribute)
