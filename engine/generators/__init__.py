"""The registry of generators: a new one is one folder and one line here."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from engine.types import AvatarError, Generator

NAMES = {
    "puppet": "engine.generators.puppet.generator:Puppet",
}


def load(name: str, **options: Any) -> Generator:
    """A generator by name; `options` go to its constructor. Raises AvatarError for an unknown name."""
    if name not in NAMES:
        raise AvatarError(f"There is no generator called '{name}'; choose one of: {', '.join(sorted(NAMES))}.")
    module, _, attribute = NAMES[name].partition(":")
    generator: Generator = getattr(import_module(module), attribute)(**options)
    return generator
