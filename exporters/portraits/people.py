"""Several people in one picture: the others' photos beside the person's, and what is made cut to the person who is to be driven.

The engine drives one face. So the whole picture is kept beside the portrait, and the portrait is the part of it around the face that is most like
the person's photos.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.drivers.portrait import Found, find_faces
from engine.types import AvatarError, UInt8Array
from exporters.portraits.contract import Attachment, IdentityTokens, Several, System
from exporters.portraits.photos import Photo, read_photos

if TYPE_CHECKING:
    from exporters.portraits.pipeline import Maker

AROUND, ABOVE = 3.2, 0.45
"""Side of what is cut out, in face widths, and where the middle of the face is in it from the top."""
ALONE = "a person"
"""In a system's own prompt, what several people take the place of."""


class Together:
    """A system that has been told the other people: for whoever uses it, one like any other."""

    def __init__(self, system: System, several: Several, photos: Sequence[Photo], others: Sequence[tuple[list[Photo], list[str]]]) -> None:
        self.name, self.variant, self.families, self.together = system.name, system.variant, system.families, system.together
        self.digest, self.unet = system.digest, system.unet
        self.defaults = replace(system.defaults, prompt=system.defaults.prompt.replace(ALONE, f"{len(others) + 1} people"))
        self.others = others  # of each the photos, the best first, and a sentence for each that was left out
        self.photos = photos
        self.several, self._system = several, system

    def encode(self, photos: Sequence[Photo]) -> IdentityTokens:
        """Of the person's photos and of the others'."""
        return self.several.encode_people([photos, *(others for others, _ in self.others)])

    def attach(self, base: Any, tokens: IdentityTokens, *, scale: float, size: tuple[int, int]) -> Attachment:
        """As the system itself."""
        return self._system.attach(base, tokens, scale=scale, size=size)


def together(system: System, photos: Sequence[Photo], also: Sequence[Sequence[Path]] | None, *, tell: Callable[[str], None]) -> System:
    """The system, for one person or for several. `also`: the photo files of each of the others; None: there are none.

    Raises AvatarError where the system shows one person alone, a photo is given for two, or none of a person's can be used.
    """
    if not also:
        return system
    if not isinstance(system, Several):
        raise AvatarError(f"{system.name} shows one person; leave --also out, or use --system uniportrait.")
    people = [read_photos(files, tell=tell) for files in also]
    seen = {photo.sha256: photo.name for photo in photos}
    for others, _ in people:
        twice = next((photo.name for photo in others if photo.sha256 in seen), None)
        if twice:
            raise AvatarError(f"{twice} is given for two people; give each person's own photos.")
        seen |= {photo.sha256: photo.name for photo in others}
    names = "; ".join(", ".join(photo.name for photo in others) for others, _ in people)
    tell(f"Beside the person there will be {len(people)} more ({names}); the consent must be everybody's.")
    return Together(system, system, photos, people)


def asked(system: System) -> dict[str, Any]:
    """What portraits depend on beside what they depend on of one person."""
    return {"also": [[photo.sha256 for photo in photos] for photos, _ in system.others]} if isinstance(system, Together) else {}


def provenance(system: System) -> dict[str, Any]:
    """What the manifest says of the others."""
    if not isinstance(system, Together):
        return {}
    listed = [([{"file": photo.name, "sha256": photo.sha256} for photo in photos], refused) for photos, refused in system.others]
    return {"also": [{"photos": photos, "left_out": refused} for photos, refused in listed]}


def cut(maker: Maker, system: System, folder: Path) -> Any:
    """The maker, or for several people one that keeps the whole picture in the folder and gives the person's part."""
    return Cutting(maker, system, folder) if isinstance(system, Together) else maker


class Cutting:
    """A maker whose portraits are cut to one person."""

    def __init__(self, maker: Maker, system: Together, folder: Path) -> None:
        self._maker, self._system, self._folder = maker, system, folder

    def make(self, seed: int, **how: Any) -> UInt8Array:
        """As the maker's; a picture without a face is given whole."""
        from PIL import Image

        whole: UInt8Array = self._maker.make(seed, **how)
        path = self._folder / f"whole-{seed}.png"
        aside = path.with_name(f".{path.name}")
        Image.fromarray(whole).save(aside, "PNG", compress_level=3)
        aside.replace(path)
        faces = find_faces(whole)
        if not faces:
            return whole
        alike = self._system.several.likeness(self._system.photos, whole, faces)
        return around(whole, faces, int(np.argmax(alike)))


def around(rgb: UInt8Array, faces: Sequence[Found], which: int) -> UInt8Array:
    """A picture [H, W, 3] -> the part around one of its faces [h, w, 3], which ends half way to the others."""
    face, (height, width) = faces[which], rgb.shape[:2]
    side = AROUND * face.width
    (x, y), ends = face.center, [0.0, 0.0, float(width), float(height)]
    ends = [max(ends[0], x - side / 2), max(ends[1], y - ABOVE * side), min(ends[2], x + side / 2), min(ends[3], y + (1 - ABOVE) * side)]
    for other in (other for k, other in enumerate(faces) if k != which):
        gaps = (
            abs(other.center[0] - x) - (other.width + face.width) / 2,
            abs(other.center[1] - y) - (other.height + face.height) / 2,
        )
        axis = int(np.argmax(gaps))  # the side on which they are furthest apart
        half = (face.width, face.height)[axis] / 2 + max(gaps[axis], 0.0) / 2
        if other.center[axis] < face.center[axis]:
            ends[axis] = max(ends[axis], face.center[axis] - half)
        else:
            ends[axis + 2] = min(ends[axis + 2], face.center[axis] + half)
    x0, y0, x1, y1 = (round(end) for end in ends)
    return np.ascontiguousarray(rgb[y0:y1, x0:x1])


__all__ = ["Cutting", "Together", "around", "asked", "cut", "provenance", "together"]
