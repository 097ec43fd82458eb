"""A person who does what the recording page asks: the built-in portrait, moved by the puppet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import cv2
import numpy as np

from engine.types import Motion, UInt8Array, still_motion
from tests.clips import person

FPS = 15
"""Pictures a second that are made; a fake camera plays each of them twice."""
SIZE = (480, 640)
"""(H, W) px of the camera."""
# fmt: off
ACTS: tuple[tuple[float, dict[str, tuple[float, ...]]], ...] = (
    (2.6, {}), (2.4, {"head": (24, 0, 0, 0, 0, 0)}), (1.2, {"head": (-24, 0, 0, 0, 0, 0)}), (1.2, {"head": (0, -16, 0, 0, 0, 0)}),
    (1.2, {"head": (0, 16, 0, 0, 0, 0)}), (1.2, {"mouth": (0.7, 0, 0, 0)}), (1.4, {"mouth": (0.1, 0.3, 0, 0.6)}), (1.0, {"eyes": (1.6, 1.6)}),
    (1.0, {"brows": (0.14, 0.14)}),
)
# fmt: on
"""(s, what is different from rest) in the order they are done; then it talks and blinks."""
TALK_SECONDS = 4.0
EASE = 0.25
"""s from one act to the next."""


def acting(time: float, *, acts: int = len(ACTS)) -> Motion:
    """What the person does at a time, s from 0, with only so many of the ACTS."""
    start, before = 0.0, dict[str, tuple[float, ...]]()
    for seconds, act in ACTS[:acts]:
        if time < start + seconds:
            share = min(1.0, (time - start) / EASE)
            rest = still_motion()
            made = {}
            for name in {*before, *act}:
                usual = getattr(rest, name)
                old, new = (np.array(one[name]) if name in one else usual for one in (before, act))
                made[name] = (old + share * (new - old)).astype(np.float32)
            return replace(rest, **made)
        start, before = start + seconds, act
    talk = time - start
    gap = 0.22 * max(0.0, float(np.sin(9.0 * talk)))
    eyes = 0.0 if talk % 0.75 > 0.5 else 1.0
    return replace(still_motion(), mouth=np.array([gap, 0, 0, 0], np.float32), eyes=np.full(2, eyes, np.float32))


def camera(*, acts: int = len(ACTS)) -> Iterator[UInt8Array]:
    """Pictures of SIZE, 30 a second, that begin at rest; with only so many of the ACTS."""
    height, width = SIZE
    left = (width - height) // 2
    seconds = sum(seconds for seconds, _ in ACTS[:acts]) + TALK_SECONDS
    for frame in person(size=(256, 256), count=round(seconds * FPS), fps=FPS, act=partial(acting, acts=acts)):
        picture = np.full((height, width, 3), 90, np.uint8)
        picture[:, left : left + height] = cv2.resize(frame.rgb, (height, height), interpolation=cv2.INTER_CUBIC)
        yield picture
        yield picture
