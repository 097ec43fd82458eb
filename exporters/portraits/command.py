"""`avatar persona create NAME --photos A B`: photos of a person -> a persona, with what was done written beside it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine import persona as personas
from engine.persona import Persona
from engine.types import Generator
from exporters.portraits.finish import finish
from exporters.portraits.photos import Photo, read_photos

Tell = Callable[[str], None]


def create(args: argparse.Namespace, generator: Generator, *, weights: Path | None, tell: Tell) -> Persona:
    """The persona that the command line asks for, kept. Raises AvatarError, one sentence, where none of the photos can be used."""
    home = personas.personas_folder()
    personas.check_new(args.name, args.consent, folder=home)
    photos, refused = read_photos(args.photos, tell=tell)
    return _from_photo(args, photos, refused, generator, weights, tell)


def _from_photo(args: argparse.Namespace, photos: list[Photo], refused: list[str], generator: Generator, weights: Path | None, tell: Tell) -> Persona:
    """The best photo as it is."""
    best = photos[0]
    tell(f"No identity system was asked for, so the portrait is the photo itself: {best.name}{_choice(photos)}.")
    for warning in best.marks.warnings:
        tell(f"In this photo {warning}; use another one if you can.")
    height, width = generator.spec.size
    finished = finish(best.rgb, best.face, relight=not args.no_relight, cut=width >= height)
    done = (*best.notes, *finished.done)
    tell(f"It was {', '.join(done)}." if done else "Nothing had to be done to it.")
    made = personas.make_persona(
        generator,
        finished.rgb,
        name=args.name,
        consent=args.consent,
        source=best.name,
        folder=personas.personas_folder(),
        weights=weights,
        provenance=provenance(photos, refused, system=None, done=done),
    )
    tell("The person was matted from the background.")
    return made


def provenance(photos: list[Photo], refused: list[str], *, system: dict[str, Any] | None, done: tuple[str, ...]) -> dict[str, Any]:
    """What the manifest says about how a portrait was made. `system`: what an identity system was given; None: it is the first photo."""
    listed = [{"file": photo.name, "sha256": photo.sha256, "mark": round(photo.marks.whole, 3)} for photo in photos]
    return {
        "photos": listed,
        "left_out": refused,
        "used": [photo.name for photo in (photos if system else photos[:1])],
        "system": system,
        "done": done,
    }


def _choice(photos: list[Photo]) -> str:
    if len(photos) == 1:
        return ""
    others = ", ".join(f"{photo.name} {photo.marks.whole:.2f}" for photo in photos[1:])
    return f", the best of {len(photos)} for driving (marked {photos[0].marks.whole:.2f}; {others})"


__all__ = ["create", "provenance"]
