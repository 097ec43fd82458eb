"""Offline rendering: the same session as live, fed from a file as fast as it goes, with the sound kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from engine.batch import Batch
from engine.config import OperatorSettings, SessionSettings
from engine.media import Clip, Writer, audio_samples, probe, video_frames
from engine.persona import Persona
from engine.session import Session
from engine.types import AudioChunk, AvatarError, Generator, VideoFrame

SOUND_RATE = 48_000
"""Hz of the rendered file's sound."""
SOUND_STEP = SOUND_RATE // 50
"""Samples a push: 20 ms, as a live microphone would."""

Progress = Callable[[int, int], None]
"""(frames done, frames expected) after every frame."""


def render(
    generator: Generator,
    persona: Persona,
    drive: str | Path,
    out: str | Path,
    *,
    settings: SessionSettings | None = None,
    operator: OperatorSettings | None = None,
    progress: Progress | None = None,
) -> int:
    """Drive a persona with a clip or a sound file and write the result -> number of frames.

    A file with video drives with its camera unless `settings.drive` is "voice"; a sound file drives with its voice. Raises
    AvatarError for a file that cannot drive, before anything is written.
    """
    clip = probe(drive)
    settings = settings or SessionSettings(drive="camera" if clip.has_video else "voice")
    if settings.drive != "voice" and not clip.has_video:
        raise AvatarError(f"'{clip.path.name}' has no video; drive with the voice instead (--drive-mode voice).")
    sound = audio_samples(drive, rate=SOUND_RATE) if clip.has_audio else np.zeros(0, np.float32)
    if settings.drive == "voice" and not np.any(np.abs(sound) > 1e-4):
        raise AvatarError(f"'{clip.path.name}' is silent, so there is nothing for the lips to say; choose a file with speech.")
    session = Session(Batch(generator, rows=1), persona, settings=settings, operator=operator)
    try:
        with Writer(out, audio_rate=SOUND_RATE if len(sound) else None) as writer:
            source = _voice(session, sound) if settings.drive == "voice" else _camera(session, clip, sound)
            expected = round(len(sound) / SOUND_RATE * generator.spec.fps) if settings.drive == "voice" else clip.frames
            done = 0
            for frame in source:
                writer.write_frame(frame)
                done += 1
                if progress is not None:
                    progress(done, max(expected, done))
            for chunk in _chunks(sound):
                writer.write_audio(chunk)
        return done
    finally:
        session.close()


def _chunks(sound: np.ndarray[tuple[int], np.dtype[np.float32]]) -> Iterator[AudioChunk]:
    for start in range(0, len(sound), SOUND_STEP):
        yield AudioChunk(sound[start : start + SOUND_STEP], SOUND_RATE, start / SOUND_RATE)


def _voice(session: Session, sound: np.ndarray[tuple[int], np.dtype[np.float32]]) -> Iterator[VideoFrame]:
    # Half a second of silence at the end lets the look-ahead run out and the lips close.
    tail = np.zeros(SOUND_RATE // 2, np.float32)
    length = len(sound) / SOUND_RATE
    for chunk in _chunks(np.concatenate([sound, tail])):
        for output in session.push_audio(chunk):
            yield from (frame for frame in output.frames if 0.0 <= frame.time < length)


def _camera(session: Session, clip: Clip, sound: np.ndarray[tuple[int], np.dtype[np.float32]]) -> Iterator[VideoFrame]:
    chunks = _chunks(sound)
    heard = 0.0
    for number, frame in enumerate(video_frames(clip.path)):
        while session.settings.drive == "auto" and heard < frame.time + session.window.look_ahead:
            chunk = next(chunks, None)
            if chunk is None:
                break
            session.hear(chunk)
            heard = chunk.time + chunk.duration
        if session.settings.track_body and number % BODY_EVERY == 0:
            session.track_body(frame)
        output = session.push_video(frame)
        if output is not None:
            yield from output.frames


BODY_EVERY = 3
"""Camera frames a body reading serves: shoulders move slowly, and the pose landmarks cost five times the face mesh."""
