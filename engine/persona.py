"""A persona: a portrait, whose it is and with what consent, and what a generator computed from it once."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine.composite import Scene, frame_portrait
from engine.types import Generator, Identity, UInt8Array

ASSETS = Path(__file__).parent / "assets"
MANIFEST_VERSION = 1


@dataclass(frozen=True, slots=True, eq=False)
class Persona:
    """A portrait ready to be driven; immutable, shared by every session that shows it."""

    name: str
    scene: Scene
    identity: Identity
    manifest: dict[str, Any]
    folder: Path | None = None  # None: lives in memory only


def make_persona(generator: Generator, rgb: UInt8Array, *, name: str, consent: str | None = None, folder: Path | None = None) -> Persona:
    """Frame a portrait [H, W, 3] RGB and prepare it. Raises AvatarError where the portrait cannot be driven."""
    scene, crop = frame_portrait(rgb, size=generator.spec.size[0])
    identity = generator.prepare(crop)
    manifest = {
        "version": MANIFEST_VERSION,
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "generator": generator.spec.name,
        "consent": consent,
    }
    return Persona(name, scene, identity, manifest, folder)


def demo_portrait() -> UInt8Array:
    """The built-in portrait [768, 768, 3] RGB (public domain, see assets/SOURCE.md)."""
    from engine.picture import read_picture

    return read_picture(ASSETS / "portrait.jpg")
