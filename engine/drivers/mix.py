"""Camera, voice and idle -> the one motion that the portrait makes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from engine.drivers.idle import IdleDriver
from engine.drivers.speech import SpeechDriver
from engine.types import Drive, Grid, Motion, Signal

if TYPE_CHECKING:
    from engine.drivers.body import BodyReading


class Mixer:
    """One a session; not thread-safe."""

    def __init__(self, *, seed: int = 0) -> None:
        self._idle = IdleDriver(seed)

    def mix(self, signal: Signal, *, grid: Grid, drive: Drive, speech: SpeechDriver, body: BodyReading | None) -> Signal:
        """The signal with its final motion, and the speech and samples where any were heard."""
        reading = speech.at(signal.time)
        heard = speech.heard_until > signal.time - 0.5
        idle = self._idle.at(signal.time, speaking=reading.voiced)
        camera = signal.motion
        if drive == "voice" or camera is None or float(camera.confidence[0]) < 0.5:
            mouth = reading.mouth if drive != "camera" else np.zeros(4, np.float32)
            motion: Motion = replace(idle, mouth=mouth, confidence=np.array([1, 1, 0], np.float32))
        else:
            motion = camera
        if body is not None and drive != "voice":
            motion = replace(motion, body=body.motion)
        return replace(signal, motion=motion, speech=reading.logmel if heard else None, pcm=reading.pcm if heard else None)
