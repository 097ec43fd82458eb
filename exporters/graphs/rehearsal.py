"""The built-in portrait, moved by the puppet and speaking in a voice that is made here: what generators which remember nothing are shown where
an export needs inputs as real use has them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from engine.drivers.speech import LOOK_AHEAD
from engine.types import FloatArray, Motion, Signal, UInt8Array, still_motion

SEEN = "the built-in portrait, moved by the puppet, and a made voice"
FPS = 25
SIZE = (512, 512)  # (H, W) px
RATE = 16_000  # Hz
HEARD = 0.16  # s of sound that a signal carries, of which LOOK_AHEAD comes after its time
PITCH = 120.0  # Hz
FORMANTS = ((750.0, 290.0), (1200.0, 2300.0), (2500.0, 3000.0))
"""Hz of an open and of a close vowel, between which the voice glides."""
BANDWIDTH = 90.0  # Hz
SYLLABLES = 3.5  # a second
LOUD = 0.3  # peak
HARMONICS = 30


@dataclass(frozen=True, slots=True)
class Moment:
    """A frame of it."""

    signal: Signal  # with `image`, `face`, `motion` and `pcm`
    points: FloatArray  # [478, 2] px: the face mesh in `image`

    @property
    def rgb(self) -> UInt8Array:
        """[H, W, 3]."""
        assert self.signal.image is not None
        return self.signal.image


def rehearsal() -> Iterator[Moment]:
    """Moment after moment, FPS a second, without end; the same every time."""
    from engine.generators import load
    from engine.persona import demo_portrait

    puppet: Any = load("puppet", size=SIZE)
    state = puppet.allocate(1)
    puppet.admit(state, 0, puppet.prepare(demo_portrait()))
    number = 0
    while True:
        time = number / FPS
        motion = moved(time)
        ((frame,),) = puppet.step(state, [[Signal(time, motion=motion)]])
        points = puppet.points(state, 0).copy()
        face = np.concatenate([points / (SIZE[1], SIZE[0]), np.zeros((len(points), 1))], 1).astype(np.float32)
        heard = voice(time + LOOK_AHEAD - HEARD, HEARD)
        yield Moment(Signal(time, id=number + 1, motion=motion, face=face, image=frame.rgb.copy(), pcm=heard), points)
        number += 1


def moved(time: float) -> Motion:
    """The motion at an instant, s: every part of it at a pace of its own, from rest."""
    sway = np.sin(time * np.array([2.1, 2.9, 1.7, 1.3, 1.9, 1.1])).astype(np.float32)
    lids = np.float32(1.0 - 0.9 * max(0.0, np.sin(5.3 * time) - 0.8) / 0.2)
    talk = float(np.sin(np.pi * SYLLABLES * time) ** 2)
    return replace(
        still_motion(),
        head=sway * np.array([14, 8, 6, 0.05, 0.04, 0.05], np.float32),
        eyes=np.array([lids, lids], np.float32),
        gaze=0.1 * sway[3:5],
        brows=0.03 * sway[1:3],
        mouth=np.array([0.35 * talk, 0.05 * sway[2], 0.3 * talk, 0.2 * sway[0]], np.float32),
        confidence=np.ones(3, np.float32),
    )


def voice(start: float, seconds: float) -> FloatArray:
    """[N] samples from `start` s on, at RATE: the harmonics of a pitch through gliding formants, in syllables; silence before 0."""
    time = start + np.arange(round(seconds * RATE)) / RATE
    glide = 0.5 - 0.5 * np.cos(np.pi * SYLLABLES * time / 2)
    sound = np.zeros_like(time)
    for number in range(1, HARMONICS + 1):
        hz = number * PITCH
        gain = sum(1 / (1 + ((hz - (a + (b - a) * glide)) / BANDWIDTH) ** 2) for a, b in FORMANTS)
        sound += gain * np.sin(2 * np.pi * hz * time) / number**0.5
    loud = np.sin(np.pi * SYLLABLES * time) ** 2 * (time >= 0)
    made: FloatArray = (LOUD * loud * np.tanh(sound)).astype(np.float32)
    return made


__all__ = ["FPS", "SEEN", "Moment", "moved", "rehearsal", "voice"]
