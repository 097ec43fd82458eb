"""Portraits that a system made of a person, one file a seed in a folder of their own: what is there already is not made again.

A folder's name is made of all that its portraits depend on, so that another prompt, base or photo begins another one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.drivers.portrait import Found, find_face
from engine.picture import read_picture
from engine.types import AvatarError, UInt8Array
from exporters.portraits.contract import IdentityTokens, System
from exporters.portraits.photos import Marks, Photo, judge

if TYPE_CHECKING:
    from exporters.portraits.pipeline import Maker

TOKENS, ASKED = "identity.npz", "asked.json"
KEY_LETTERS = 12
WEIGHTS = (".safetensors", ".bin")


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A portrait that was made."""

    seed: int
    path: Path
    rgb: UInt8Array  # [H, W, 3]
    face: Found | None  # None: it cannot be driven
    marks: Marks | None
    complaint: str  # why not; empty where it can

    @property
    def facts(self) -> dict[str, Any]:
        """For a program."""
        mark, warnings = (None, ()) if self.marks is None else (round(self.marks.whole, 3), self.marks.warnings)
        return {"seed": self.seed, "path": str(self.path), "mark": mark, "warnings": list(warnings), "complaint": self.complaint}

    @property
    def said(self) -> str:
        """A line for a person."""
        if self.marks is None:
            return f"{self.path} cannot be driven: {self.complaint}"
        wrong = "".join(f"; {warning}" for warning in self.marks.warnings)
        return f"{self.path} marked {self.marks.whole:.2f} for driving{wrong}"


def folder_of(home: Path, asked: dict[str, Any]) -> Path:
    """The folder for what was asked, in `home`; made, with what was asked written in it."""
    text = json.dumps(asked, indent=2, sort_keys=True, ensure_ascii=False)
    folder = home / hashlib.sha256(text.encode()).hexdigest()[:KEY_LETTERS]
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / ASKED, text.encode())
    return folder


def base_digest(place: Path) -> str:
    """sha256 of a base's configurations and of its files' names and sizes: their gigabytes are not read for it. `place`: a folder, or a file."""
    digest, folder = hashlib.sha256(), place.parent if place.is_file() else place
    for path in [place] if place.is_file() else sorted(folder.rglob("*")):
        if path.suffix == ".json":
            digest.update(path.read_bytes())
        elif path.suffix in WEIGHTS:
            digest.update(f"{path.relative_to(folder)} {path.stat().st_size}".encode())
    return digest.hexdigest()


def tokens_of(folder: Path, system: System, photos: Sequence[Photo]) -> IdentityTokens:
    """The kept tokens of these photos, else computed and kept."""
    path = folder / TOKENS
    if path.is_file():
        kept = IdentityTokens.unpack(path.read_bytes())
        if (kept.system, kept.variant, kept.weights) == (system.name, system.variant, system.digest):
            return kept
    made = system.encode(photos)
    _write(path, made.pack())
    return made


def missing(folder: Path, seeds: Sequence[int]) -> list[int]:
    """The seeds that no portrait is there of."""
    return [seed for seed in seeds if not _path(folder, seed).is_file()]


def make(
    folder: Path,
    maker: Maker,
    seeds: Sequence[int],
    *,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    appeared: Callable[[Candidate], None] = lambda candidate: None,
) -> None:
    """Make and keep a portrait of each seed, one after another; `appeared` is told each at once. Raises pipeline.Cancelled."""
    from PIL import Image

    for k, seed in enumerate(seeds):
        done: Callable[[int, int], None] | None = None
        if progress:
            done = lambda step, steps, k=k: progress(k * steps + step, len(seeds) * steps)  # noqa: E731
        rgb = maker.make(seed, progress=done, cancelled=cancelled)
        path = _path(folder, seed)
        aside = path.with_name(f".{path.name}")
        Image.fromarray(rgb).save(aside, "PNG", compress_level=3)
        aside.replace(path)
        appeared(look(folder, seed))


def look(folder: Path, seed: int) -> Candidate:
    """A portrait that is there, judged for driving."""
    path = _path(folder, seed)
    rgb = np.asarray(read_picture(path), np.uint8)
    try:
        face = find_face(rgb)
        return Candidate(seed, path, rgb, face, judge(rgb, face), "")
    except AvatarError as error:
        return Candidate(seed, path, rgb, None, None, str(error))


def best(candidates: Sequence[Candidate], *, picked: bool) -> Candidate:
    """The best for driving; of one that was picked, that one. Raises AvatarError where there is none that can be driven."""
    if picked and candidates[0].marks is None:
        raise AvatarError(f"The portrait of seed {candidates[0].seed} cannot be driven: {candidates[0].complaint}")
    fit = [candidate for candidate in candidates if candidate.marks is not None]
    if not fit:
        raise AvatarError(f"None of the portraits in {candidates[0].path.parent} can be driven; try other seeds (--seed) or another --prompt.")
    return max(fit, key=lambda candidate: candidate.marks.whole if candidate.marks else 0.0)


def _path(folder: Path, seed: int) -> Path:
    return folder / f"seed-{seed}.png"


def _write(path: Path, data: bytes) -> None:
    aside = path.with_name(f".{path.name}")
    aside.write_bytes(data)
    aside.replace(path)


__all__ = ["TOKENS", "Candidate", "base_digest", "best", "folder_of", "look", "make", "missing", "tokens_of"]
