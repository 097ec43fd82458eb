"""Pictures and sound for the benchmarks: read from files, or made here so that a bare clone can run every benchmark."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.types import AudioChunk, AvatarError, FloatArray, Motion, UInt8Array, still_motion

FPS = 30
"""Frames a second of the clips made here."""
CLIP_SECONDS = 10.0
"""Length of the driving clip made here."""
SPEECH_RATE = 16_000
"""Hz of the speech made here."""
VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".mjpeg", ".y4m")
CHARACTERS_PER_SECOND = 14.0
AH = ((750, 140, 1.0), (1250, 160, 0.6), (2500, 220, 0.3))
"""Formants of an open vowel: Hz, half width in Hz, level."""
SENTENCES = "Good morning. My name is Maya, and I move as you speak. Watch my lips: people move, papa bakes, and five vans wait outside."


@dataclass(frozen=True, slots=True)
class Clip:
    """A driving clip."""

    name: str
    pictures: Callable[[], Iterator[UInt8Array]]  # a new run through the frames [H, W, 3] RGB, in order
    fps: float


def read_clip(path: Path, *, limit: int | None = None) -> Clip:
    """A video file, at most `limit` frames, decoded anew on every run. Raises AvatarError where it has no picture."""
    from engine.media import probe, video_frames

    about = probe(path)
    if not about.has_video:
        raise AvatarError(f"'{path.name}' has no picture; give a video file.")
    return Clip(path.stem, lambda: (frame.rgb for frame in islice(video_frames(path), limit)), about.fps or float(FPS))


def read_sound(path: Path) -> AudioChunk:
    """A sound file as mono at SPEECH_RATE, from time 0. Raises AvatarError where it has no sound."""
    from engine.media import audio_samples

    return AudioChunk(audio_samples(path, rate=SPEECH_RATE), SPEECH_RATE, 0.0)


def read_picture(name: str) -> UInt8Array:
    """A portrait: a picture file, or a frame of a video as "clip.mp4@12"."""
    path, _, index = name.partition("@")
    if Path(path).suffix.lower() in VIDEO_SUFFIXES:
        for picture in islice(read_clip(Path(path)).pictures(), int(index or 0), None):
            return picture
        raise AvatarError(f"'{path}' has no frame {index}; choose a lower number.")
    from engine.picture import read_picture as read

    return read(path)


def script(seconds: float, *, fps: float = FPS) -> list[Motion]:
    """Known motion: turns, nods and tilts at their own rhythms, two blinks of each eye a few seconds, a talking mouth.

    Every channel starts near neutral, as a person in front of a camera does.
    """
    motions = []
    for i in range(round(seconds * fps)):
        t = i / fps
        ease = min(1.0, t / 1.0)
        head = np.array([12 * np.sin(1.3 * t), 7 * np.sin(1.9 * t + 0.4), 8 * np.sin(0.9 * t + 1.0), 0.02 * np.sin(t), 0.0, 0.0], np.float32)
        talk = max(0.0, np.sin(5.1 * t)) * (0.5 + 0.5 * np.sin(0.7 * t))
        eyes = np.array([1 - _blink(t, 2.3), 1 - _blink(t - 0.9 * (int(t / 2.3) % 2), 2.3)], np.float32)
        mouth = np.array([0.38 * talk, 0.06 * np.sin(2.2 * t), 0.0, 0.0], np.float32)
        gaze = np.array([0.12 * np.sin(0.8 * t), 0.0], np.float32)
        motion = replace(still_motion(), head=head * np.float32(ease), eyes=eyes, mouth=mouth * np.float32(ease), gaze=gaze)
        motions.append(replace(motion, confidence=np.ones(3, np.float32)))
    return motions


def _blink(t: float, period: float) -> float:
    """0..1 closure of a lid that shuts for a sixth of a second once a period, in its middle."""
    phase = (t % period) - period / 2
    return float(np.exp(-((phase / 0.085) ** 2)))


def moving_portrait(seconds: float, *, size: int = 512, portrait: UInt8Array | None = None) -> tuple[Clip, list[Motion]]:
    """The built-in portrait (or another) animated by the puppet along `script`: a driving clip of known motion."""
    from engine.generators import load
    from engine.persona import demo_portrait, make_persona
    from engine.types import Signal

    generator = load("puppet", size=(size, size))
    persona = make_persona(generator, demo_portrait() if portrait is None else portrait, name="benchmark driver")
    state = generator.allocate(1)
    generator.admit(state, 0, persona.identity)
    motions = script(seconds)
    pictures: list[UInt8Array] = []
    for i, motion in enumerate(motions):
        (frames,) = generator.step(state, [[Signal(i / FPS, i, motion=motion)]])
        if frames is None:
            raise RuntimeError("the generator left the only row idle")
        pictures.append(frames[0].rgb.copy())
    return Clip("moving portrait", lambda: iter(pictures), float(FPS)), motions


def speech(text: str = SENTENCES) -> tuple[AudioChunk, str]:
    """A spoken text from time 0, and what spoke it: the server's offline synthesiser, or (named so) babble where it cannot."""
    import asyncio

    from streaming.tts import make_synthesizer

    async def collect() -> list[tuple[FloatArray, int]]:
        synthesizer = make_synthesizer()
        try:
            return [(piece.pcm, piece.rate) async for piece in synthesizer.speak(text)]
        finally:
            await synthesizer.close()

    try:
        pieces = asyncio.run(collect())
    except AvatarError as error:
        print(f"No synthesiser ({error}) so the mouth is driven by babble.", file=sys.stderr)
        return babble(len(text) / CHARACTERS_PER_SECOND), "babble"
    return AudioChunk(np.concatenate([pcm for pcm, _ in pieces]), pieces[0][1], 0.0), "espeak-ng"


def babble(seconds: float, *, rate: int = SPEECH_RATE, seed: int = 0) -> AudioChunk:
    """Syllables of a source-filter voice with pauses between words: not words, but the envelope and formants of speech."""
    rng = np.random.default_rng(seed)
    n = round(seconds * rate)
    t = np.arange(n) / rate
    pitch = 120 * (1 + 0.08 * np.sin(2 * np.pi * 0.7 * t))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    envelope = np.zeros(n)
    formants = np.zeros((n, 3))
    start = 0.2
    while start < seconds - 0.5:
        length = rng.uniform(0.12, 0.28)
        a, b = int(start * rate), min(n, int((start + length) * rate))
        envelope[a:b] = np.sin(np.linspace(0, np.pi, b - a)) * rng.uniform(0.5, 1.0)
        formants[a:b] = ((750, 1250, 2500), (320, 2200, 2900), (350, 850, 2400), (500, 1700, 2500))[rng.integers(4)]
        start += length + (rng.uniform(0.3, 0.6) if rng.random() < 0.2 else 0.03)
    wave: npt.NDArray[np.float64] = np.zeros(n)
    for k in range(1, 30):
        frequency = k * pitch
        weight = sum(np.exp(-(((frequency - formants[:, j]) / 140) ** 2)) / (j + 1) for j in range(3))
        wave += weight * np.sin(k * phase) * (frequency < rate / 2)
    wave *= envelope
    pcm: FloatArray = (0.4 * wave / max(1e-9, float(np.abs(wave).max()))).astype(np.float32)
    return AudioChunk(pcm, rate, 0.0)


def vowel(seconds: float, *, rate: int, attack: float, pitch: float = 120.0) -> FloatArray:
    """An "ah" [N] that rises and falls within `attack` seconds: harmonics of `pitch` Hz under three formants."""
    t = np.arange(round(seconds * rate)) / rate
    wave = np.zeros(len(t))
    for k in range(1, int(4000 / pitch)):
        frequency = k * pitch
        weight = sum(
            np.exp(-(((frequency - formant) / width) ** 2)) * level for formant, width, level in ((750, 140, 1.0), (1250, 160, 0.6), (2500, 220, 0.3))
        )
        wave += weight * np.sin(2 * np.pi * frequency * t)
    ramp = np.clip(np.minimum(t, seconds - t) / attack, 0, 1)
    sound: FloatArray = (0.5 * wave / np.abs(wave).max() * ramp).astype(np.float32)
    return sound


def room(seconds: float, *, loudness: float, rate: int = SPEECH_RATE, seed: int = 0) -> AudioChunk:
    """Half digital silence, half white noise of the given root mean square: a microphone where nobody speaks."""
    half = round(seconds * rate / 2)
    noise = np.random.default_rng(seed).normal(0, loudness, half)
    return AudioChunk(np.concatenate([np.zeros(half), noise]).astype(np.float32), rate, 0.0)


def envelope(sound: AudioChunk, times: npt.ArrayLike, *, span: float) -> npt.NDArray[np.float64]:
    """Loudness (root mean square) of the sound in [t, t + span] for each time, smoothed by a Gaussian of one span.

    The smoothing is that of a mouth, which cannot follow single periods of the voice.
    """
    from scipy.ndimage import gaussian_filter1d

    squares = np.concatenate([[0.0], np.cumsum(sound.pcm.astype(np.float64) ** 2)])
    starts = np.clip(np.round((np.asarray(times) - sound.time) * sound.rate).astype(int), 0, len(sound.pcm))
    ends = np.clip(starts + round(span * sound.rate), 0, len(sound.pcm))
    power = (squares[ends] - squares[starts]) / np.maximum(1, ends - starts)
    smooth: npt.NDArray[np.float64] = gaussian_filter1d(np.sqrt(power), 1.0, mode="nearest")
    return smooth


def demo() -> UInt8Array:
    """The built-in portrait."""
    from engine.persona import demo_portrait

    return demo_portrait()
