"""Settings a person or an operator can choose: frozen dataclasses, changed with `dataclasses.replace`, which refuses unknown names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.types import Drive, UInt8Array

BackgroundKind = Literal["keep", "blur", "colour", "picture"]

BODY_EVERY = 5
"""Camera frames that one reading of the shoulders serves: they move slowly, and a reading costs more than three of the face's.
`drivers.readings` fills the steps between."""
HANDS_EVERY = 2
"""Camera frames that one reading of the hands serves while there is one in view; looking for one is done every BODY_EVERY."""


@dataclass(frozen=True, slots=True)
class Background:
    """What stands behind the person."""

    kind: BackgroundKind = "keep"
    colour: tuple[int, int, int] = (0, 177, 64)  # RGB, a chroma-key green
    picture: UInt8Array | None = None  # [H, W, 3] RGB, any size; needed for kind "picture"


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What may change while a session runs."""

    drive: Drive = "camera"
    background: Background = Background()
    track_body: bool = True
    track_every: int = 1  # face tracking on every n-th camera frame (the ladder raises it when the machine falls behind)
    output_scale: float = 1.0  # picture size relative to the persona's (the ladder lowers it)


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """What only the operator may choose; no client can change these."""

    badge: bool = False  # a visible "AI" mark in every frame
    carry_strip: int = 0  # rows of the camera picture's top that are copied into the avatar's (benchmarks read their bar code there)
