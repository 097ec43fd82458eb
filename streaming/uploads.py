"""Pictures that people send: decoded safely off the loop, kept in memory under ids of our own, never under their names."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from engine.persona import Persona, make_persona
from engine.picture import PictureLimits, decode_picture
from engine.types import AvatarError, Generator, UInt8Array
from streaming.settings import MIB, Limits
from streaming.shelf import Room, Shelf, size_of
from streaming.studio import Full

CONSENT_CHARS = 1000


@dataclass(frozen=True, slots=True)
class Upload:
    """One picture."""

    rgb: UInt8Array  # [H, W, 3]
    persona: Persona | None = None  # of a portrait


class Uploads:
    """The newest pictures within `Limits.uploads` and `uploads_bytes`; the oldest that nobody shows gives way to a new one."""

    def __init__(self, limits: Limits, *, used: Callable[[Upload], bool] = lambda _: False) -> None:
        """`used`: whether a session shows a picture now."""
        self.limits = limits
        self._kept: Shelf[Upload] = Shelf(Room(limits.uploads, limits.uploads_bytes), used=lambda _, upload: used(upload))

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, upload: Upload) -> str:
        """Keep a picture -> its id. Raises Full where every place is taken by a picture that is shown, AvatarError where it is too large itself."""
        key = secrets.token_hex(12)
        room = self._kept.room
        if (size := size_of(upload)) > room.bytes:
            raise AvatarError(f"That picture takes {size / MIB:.0f} MB here, and this server keeps {room.bytes / MIB:.0f} MB; send a smaller one.")
        if not self._kept.put(key, upload):
            raise Full(
                f"This server keeps {room.count} pictures or {room.bytes / MIB:.0f} MB of them, and those there are being shown; "
                "try again when a session has ended."
            )
        return key

    def get(self, key: object) -> Upload:
        """A picture by id. Raises AvatarError."""
        upload = self._kept.get(key) if isinstance(key, str) else None
        if upload is None:
            raise AvatarError("That picture is not here any more; upload it again.")
        return upload

    def persona(self, key: object) -> Persona:
        """The persona made of an uploaded portrait. Raises AvatarError."""
        persona = self.get(key).persona
        if persona is None:
            raise AvatarError("That picture was uploaded as a background; upload it as a portrait.")
        return persona


def decode_upload(data: bytes, *, kind: str, consent: str | None, generator: Generator, limits: Limits) -> Upload:
    """Bytes -> a picture, with its persona where `kind` is "portrait". Slow: a worker thread's job. Raises AvatarError."""
    if kind not in ("portrait", "background"):
        raise AvatarError("'kind' is one of: portrait, background.")
    if kind == "portrait" and not (consent or "").strip():
        raise AvatarError("A portrait needs a statement of consent: say that the person it shows agrees.")
    rgb = decode_picture(data, limits=PictureLimits(max_bytes=limits.upload_bytes, max_pixels=limits.upload_pixels))
    if kind == "background":
        return Upload(rgb)
    return Upload(rgb, make_persona(generator, rgb, name="upload", consent=(consent or "").strip()[:CONSENT_CHARS]))
