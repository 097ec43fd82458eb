"""Video clips of a moving, speaking person that the tests make themselves: the built-in portrait, moved by the puppet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from engine.generators import load
from engine.media import Writer
from engine.types import AudioChunk, Motion, Signal, UInt8Array, VideoFrame, still_motion
from tests.faces import portrait

RATE = 48_000


def acting(time: float) -> Motion:
    """Turns, nods, speaks and blinks; a still start."""
    awake = float(np.clip(time - 0.4, 0.0, 0.4) / 0.4)
    still = still_motion()
    return replace(
        still,
        head=np.array([12 * np.sin(4.0 * time), 5 * np.sin(2.7 * time), 3 * np.sin(3.3 * time), 0.05 * np.sin(2.0 * time), 0, 0], np.float32) * awake,
        mouth=np.array([0.25 * awake * max(0.0, np.sin(9.0 * time)), 0, 0, 0], np.float32),
        eyes=np.full(2, 0.0 if 0.1 < time % 1.3 - 0.8 < 0.2 else 1.0, np.float32),
    )


def person(*, size: tuple[int, int] = (256, 256), count: int, fps: float = 25.0, act: Callable[[float], Motion] = acting) -> list[VideoFrame]:
    """Frames of the built-in portrait at `size` (H, W)."""
    puppet = load("puppet", size=size, respond=False)
    state = puppet.allocate(1)
    puppet.admit(state, 0, puppet.prepare(portrait()))
    made = puppet.step(state, [[Signal(k / fps, motion=act(k / fps)) for k in range(count)]])[0]
    assert made is not None
    return made


def film(path: Path, frames: list[VideoFrame], *, sound: bool = True, change: Callable[[UInt8Array, int], UInt8Array] | None = None) -> Path:
    """Write a clip, each picture changed by (picture, number), with a voice-like sound of the same length."""
    with Writer(path, audio_rate=RATE if sound else None) as writer:
        for number, frame in enumerate(frames):
            writer.write_frame(frame if change is None else replace(frame, rgb=change(frame.rgb, number)))
        if sound:
            at = np.arange(round(frames[-1].time * RATE)) / RATE
            voice = 0.3 * np.sin(2 * np.pi * 180 * at) * np.maximum(0.0, np.sin(9.0 * at))
            writer.write_audio(AudioChunk(voice.astype(np.float32), RATE, 0.0))
    return path
