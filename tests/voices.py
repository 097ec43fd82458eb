"""Sound that tests make themselves: noises, vowels, and sentences spoken by espeak-ng."""

from __future__ import annotations

import asyncio
from functools import lru_cache

import numpy as np
from scipy.signal import lfilter

from engine.types import AudioChunk, FloatArray
from streaming.pacing import BLOCK
from streaming.pacing import RATE as SENT_RATE
from streaming.tts import Piece, TtsSettings, make_synthesizer

RATE = 16_000
START = 1000.0
"""s: sessions begin somewhere on the clock, never at zero."""
SENTENCES = "My mother bought a big brown pump. See the moon over the blue lagoon. Father parked the car far apart. Five fat frogs fish for shoes."
FORMANTS = {"a": (750, 1200, 2500), "e": (500, 1850, 2500), "i": (290, 2300, 3000), "o": (480, 850, 2500), "u": (310, 750, 2300)}
"""Hz of a man's, Peterson and Barney 1952, rounded."""


@lru_cache(maxsize=8)
def spoken(voice: str = "en-us", text: str = SENTENCES) -> tuple[FloatArray, int]:
    """(samples, rate) of a text."""

    async def speak() -> list[Piece]:
        synthesizer = make_synthesizer(TtsSettings())
        return [piece async for piece in synthesizer.speak(text, voice=voice)]

    pieces = asyncio.run(speak())
    return np.concatenate([piece.pcm for piece in pieces]), pieces[0].rate


def vowel(name: str, *, pitch: float, seconds: float, size: float = 1.0, seed: int = 0) -> FloatArray:
    """A vowel held as people hold it: the pitch drifts and jitters. `size` scales the formants (1.15 a woman, 1.3 a child)."""
    rng = np.random.default_rng(seed)
    count = round(seconds * RATE)
    pulses = np.zeros(count)
    time = 0.0
    while time < seconds - 0.02:
        pulses[int(time * RATE)] += 1 + 0.04 * rng.standard_normal()
        drift = 1 + 0.01 * np.sin(2 * np.pi * 0.7 * time) + 0.005 * np.sin(2 * np.pi * 4.3 * time) + 0.006 * rng.standard_normal()
        time += 1 / (pitch * drift)
    sound = lfilter([1.0], [1.0, -0.97], pulses) + 0.003 * rng.standard_normal(count)
    for formant, width in zip(FORMANTS[name], (80, 90, 120), strict=True):
        radius = np.exp(-np.pi * width / RATE)
        sound = lfilter([1 - radius], [1, -2 * radius * np.cos(2 * np.pi * formant * size / RATE), radius**2], sound)
    edge = np.minimum(1, np.minimum(np.arange(count), np.arange(count)[::-1]) / 800)
    shaped: FloatArray = (0.3 * edge * sound / np.abs(sound).max()).astype(np.float32)
    return shaped


def noise(kind: str, seconds: float, *, decibels: float, seed: int = 0) -> FloatArray:
    """Room noise of an RMS level (dB of full scale): white, pink, brown, hum50, hum120, fan or keys."""
    rng = np.random.default_rng(seed)
    count = round(seconds * RATE)
    t = np.arange(count) / RATE

    def coloured(slope: float) -> FloatArray:
        hz = np.maximum(np.fft.rfftfreq(count, 1 / RATE), 20)
        sound = np.fft.irfft(np.fft.rfft(rng.standard_normal(count)) / hz**slope, count)
        made: FloatArray = (sound / sound.std()).astype(np.float32)
        return made

    def harmonics(pitch: float, slope: float, number: int) -> FloatArray:
        sound = np.zeros(count)
        for k in range(1, number):
            sound += np.sin(2 * np.pi * pitch * k * t + k * k) / k**slope
        made: FloatArray = (sound / sound.std()).astype(np.float32)
        return made

    def keys() -> FloatArray:
        sound = np.zeros(count)
        for start in rng.integers(0, count - 400, round(7 * seconds)):
            sound[start : start + 300] += rng.standard_normal(300) * np.exp(-np.arange(300) / 60)
        return sound.astype(np.float32)

    sound = {
        "white": lambda: coloured(0.0),
        "pink": lambda: coloured(0.5),
        "brown": lambda: coloured(1.0),
        "hum50": lambda: harmonics(50, 1.5, 12),
        "hum120": lambda: harmonics(120, 1.0, 12),
        "fan": lambda: 0.5 * harmonics(118, 1.5, 4) + coloured(0.8),
        "keys": keys,
    }[kind]()
    made: FloatArray = (sound / sound.std() * 10 ** (decibels / 20)).astype(np.float32)
    return made


def packets(seconds: float, *, delay: float, drift: float = 0.0, start: float = START, tone: float = 300.0) -> list[tuple[float, AudioChunk]]:
    """Microphone packets with their arrival; `drift`: how much faster the sender's clock runs."""
    made = []
    for k in range(round(seconds / 0.02)):
        captured = start + 0.02 * k / (1 + drift)
        t = (k * BLOCK + np.arange(BLOCK)) / SENT_RATE
        made.append((captured + 0.02 + delay, AudioChunk(0.5 * np.sin(2 * np.pi * tone * t).astype(np.float32), SENT_RATE, captured)))
    return made
