"""A generator, drivers, personas and speech that cost nothing, so that streaming is tested without MediaPipe and models."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import av
import numpy as np
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError

from engine.composite import Fit, Scene
from engine.persona import Persona
from engine.types import AvatarError, Generator, GeneratorSpec, Identity, Signal, UInt8Array, VideoFrame, still_motion
from streaming.settings import ServerSettings
from streaming.studio import Studio
from streaming.tts import Piece

SIDE = 64
"""px of the fake avatar."""
COLOURS = {"demo": (60, 120, 60), "red": (200, 40, 40), "blue": (40, 40, 200)}
"""What the fake personas look like."""


@dataclass
class FakeState:
    """What a row shows."""

    colours: list[tuple[int, int, int] | None]
    steps: int = 0


@dataclass
class FakeGenerator:
    """Plain pictures in the persona's colour, a white bar as long as the mouth is open. `work`: s of CPU a step."""

    spec: GeneratorSpec = field(default_factory=lambda: GeneratorSpec("fake", (SIDE, SIDE), fps=30))
    work: float = 0.0
    threads: set[int] = field(default_factory=set)  # that have stepped
    states: list[FakeState] = field(default_factory=list)
    fail_on: tuple[int, int, int] | None = None  # stepping a row of this colour raises
    ticks: Callable[[], int] = lambda: 0  # something that counts elsewhere ...
    moved: list[int] = field(default_factory=list)  # ... and how far it got during each step

    def prepare(self, portrait: UInt8Array) -> Identity:
        """See Generator."""
        return Identity("fake", portrait, tuple(int(v) for v in portrait[0, 0]))

    def allocate(self, rows: int) -> FakeState:
        """See Generator."""
        self.states.append(FakeState([None] * rows))
        return self.states[-1]

    def admit(self, state: FakeState, row: int, identity: Identity) -> None:
        """See Generator."""
        state.colours[row] = identity.features

    def reset(self, state: FakeState, row: int) -> None:
        """See Generator."""

    def evict(self, state: FakeState, row: int) -> None:
        """See Generator."""
        state.colours[row] = None

    def step(self, state: FakeState, signals: Sequence[Sequence[Signal] | None]) -> list[list[VideoFrame] | None]:
        """See Generator."""
        self.threads.add(threading.get_ident())
        state.steps += 1
        before = self.ticks()
        if self.work:
            time.sleep(self.work)
        self.moved.append(self.ticks() - before)
        return [None if row is None else [self._picture(state, k, signal) for signal in row] for k, row in enumerate(signals)]

    def _picture(self, state: FakeState, row: int, signal: Signal) -> VideoFrame:
        colour = state.colours[row]
        assert colour is not None, "an idle row was stepped"
        if colour == self.fail_on:
            raise RuntimeError("the fake was told to fail")
        rgb = np.full((SIDE, SIDE, 3), colour, np.uint8)
        gap = 0.0 if signal.motion is None else float(signal.motion.mouth[0])
        rgb[SIDE // 2 : SIDE // 2 + 8, : int(min(1.0, 2 * gap) * SIDE)] = 255
        return VideoFrame(rgb, signal.time, signal.id)

    @property
    def seated(self) -> int:
        """Rows that show somebody."""
        return sum(colour is not None for state in self.states for colour in state.colours)


@dataclass
class Seen:
    """What all fake faces of a studio were shown and told."""

    sizes: list[tuple[int, ...]] = field(default_factory=list)
    neutral: int = 0


@dataclass
class FakeFace:
    """Sees a face in every picture that is not black. `work`: s a picture."""

    seen: Seen = field(default_factory=Seen)
    work: float = 0.0
    closed: bool = False

    def __call__(self, frame: VideoFrame) -> Signal:
        """See FaceDriver."""
        assert not self.closed, "used after it was closed"
        if self.work:
            time.sleep(self.work)
        self.seen.sizes.append(frame.rgb.shape[:2])
        seen = float(frame.rgb.mean() > 20)
        return Signal(frame.time, frame.id, motion=replace(still_motion(), confidence=np.full(3, seen, np.float32)))

    @property
    def neutral_state(self) -> str:
        """See FaceDriver."""
        return "set" if self.seen.sizes else "searching"

    def set_neutral(self) -> None:
        """See FaceDriver."""
        self.seen.neutral += 1

    def reset(self) -> None:
        """See FaceDriver."""

    def close(self) -> None:
        """See FaceDriver."""
        self.closed = True


@dataclass
class FakeBody:
    """Sees nobody."""

    def __call__(self, frame: VideoFrame) -> None:
        """See BodyDriver."""

    def set_neutral(self) -> None:
        """See BodyDriver."""

    def close(self) -> None:
        """See BodyDriver."""


@dataclass
class FakeSpeech:
    """A tone as long as the text; `slow`: s before each piece of 100 ms."""

    slow: float = 0.0
    spoken: list[str] = field(default_factory=list)
    broken: bool = False

    async def speak(self, text: str, *, voice: str | None = None) -> AsyncGenerator[Piece, None]:
        """See Synthesizer."""
        if self.broken:
            raise AvatarError("Speech is broken; mend it.")
        self.spoken.append(text)
        for k in range(max(1, len(text) // 2)):
            await asyncio.sleep(self.slow)
            t = (np.arange(1600) + 1600 * k) / 16000
            yield Piece((0.4 * np.sin(2 * np.pi * 220 * t)).astype(np.float32), 16000)

    async def close(self) -> None:
        """See Synthesizer."""


def fake_persona(generator: Generator, name: str) -> Persona:
    """A plain picture of the name's colour. Raises AvatarError for an unknown name."""
    if name not in COLOURS:
        raise AvatarError(f"There is no persona called '{name}'; GET /personas lists the ones there are.")
    rgb = np.full((SIDE, SIDE, 3), COLOURS[name], np.uint8)
    scene = Scene(rgb, np.zeros((SIDE, SIDE), np.uint8), rgb, Fit.of((0, 0, SIDE, SIDE), (SIDE, SIDE)))
    return Persona(name, scene, generator.prepare(rgb), {})


def fake_studio(
    settings: ServerSettings, *, generator: FakeGenerator | None = None, face: Callable[[], Any] = FakeFace, speech: FakeSpeech | None = None
) -> Studio:
    """A studio of fakes."""
    made = generator or FakeGenerator()
    return Studio(settings, generator=lambda: made, face=face, body=FakeBody, synthesizer=speech or FakeSpeech(), persona=fake_persona)


class Camera(MediaStreamTrack):
    """Grey pictures in real time. `size`, `fps` and `level` may change on the way."""

    kind = "video"

    def __init__(self, *, size: tuple[int, int] = (120, 160), fps: float = 30.0, level: int = 128) -> None:
        super().__init__()
        self.size, self.fps, self.level = size, fps, level
        self.sent = 0
        self._start: float | None = None
        self._next = 0.0

    async def recv(self) -> av.VideoFrame:
        """The next picture; late ones are skipped."""
        if self.readyState != "live":
            raise MediaStreamError
        now = time.monotonic()
        if self._start is None:
            self._start = self._next = now
        self._next = max(self._next + 1 / self.fps, now - 0.1)
        await asyncio.sleep(max(0.0, self._next - now))
        frame = av.VideoFrame.from_ndarray(np.full((*self.size, 3), self.level, np.uint8), format="rgb24")
        frame.pts, frame.time_base = round((time.monotonic() - self._start) * 90_000), Fraction(1, 90_000)
        self.sent += 1
        return frame


class Voice(MediaStreamTrack):
    """A tone of `level` in real time, 20 ms a packet."""

    kind = "audio"

    def __init__(self, *, level: float = 0.0) -> None:
        super().__init__()
        self.level = level
        self._start: float | None = None
        self._count = 0

    async def recv(self) -> av.AudioFrame:
        """The next 20 ms."""
        if self.readyState != "live":
            raise MediaStreamError
        now = time.monotonic()
        if self._start is None:
            self._start = now
        self._count += 1
        await asyncio.sleep(max(0.0, self._start + 0.02 * self._count - now))
        t = (np.arange(960) + 960 * self._count) / 48_000
        tone = sum(np.sin(2 * np.pi * 140 * k * t) / k for k in range(1, 8))
        frame = av.AudioFrame.from_ndarray((self.level * 12_000 * tone).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, 960 * self._count, Fraction(1, 48_000)
        return frame
