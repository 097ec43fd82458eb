"""The session's picture and sound as tracks of a connection. A track holds one picture, or three packets of sound; no more."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from fractions import Fraction
from time import monotonic
from typing import Any, Protocol

import av
import numpy as np
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError

from engine.types import FloatArray
from streaming.pacing import BLOCK, RATE, Picture

VIDEO_CLOCK = 90_000
VIDEO_BASE = Fraction(1, VIDEO_CLOCK)
AUDIO_BASE = Fraction(1, RATE)
AUDIO_PACKETS = 3
"""Packets of 20 ms a track holds while the connection is busy; the oldest goes."""


class Sink(Protocol):
    """Whoever takes what leaves a session; both calls return at once and come on the event loop."""

    def picture(self, picture: Picture, *, now: float) -> None:
        """A picture leaves at `now` (s, session clock)."""
        ...

    def sound(self, block: FloatArray, *, time: float) -> None:
        """[2, BLOCK] of sound (microphone, utterances) leaves at `time`: a multiple of 20 ms after the first."""
        ...


def video_frame(picture: Picture) -> av.VideoFrame:
    """The picture as PyAV wants it, with even sides (4:2:0 needs them)."""
    if picture.raw is not None:
        raw: av.VideoFrame = picture.raw
        return raw
    rgb = picture.rgb
    assert rgb is not None
    height, width = rgb.shape[0] & ~1, rgb.shape[1] & ~1
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb[:height, :width]), format="rgb24")


class AvatarVideo(MediaStreamTrack):
    """The avatar's pictures; a picture that the encoder did not fetch in time gives way to the next and is counted.

    `busy`: s in which whoever fetches was at work so far, from a picture to the wish for the next one: encoding, above all.
    """

    kind = "video"

    def __init__(self, *, on_drop: Callable[[], None], on_sent: Callable[[Picture, int, float], None] | None = None) -> None:
        """`on_sent(picture, pts, now)` is called as a picture goes to the encoder; pts in units of VIDEO_BASE."""
        super().__init__()
        self._on_drop = on_drop
        self._on_sent = on_sent
        self.busy = 0.0
        self._slot: tuple[Picture, float] | None = None
        self._there = asyncio.Event()
        self._origin: float | None = None
        self._last_pts = -1
        self._fetched: float | None = None  # when the last picture was handed over

    def picture(self, picture: Picture, *, now: float) -> None:
        """See Sink."""
        if self._slot is not None and self._origin is not None:  # before the first fetch nobody is connected
            self._on_drop()
        self._slot = (picture, now)
        self._there.set()

    def sound(self, block: FloatArray, *, time: float) -> None:
        """See Sink; this track has no sound."""

    async def recv(self) -> av.VideoFrame:
        """The next picture, stamped with the instant at which it left the pacer."""
        if self.readyState != "live":
            raise MediaStreamError
        if self._fetched is not None:
            self.busy += monotonic() - self._fetched
            self._fetched = None
        await self._there.wait()
        if self._slot is None:  # stopped
            raise MediaStreamError
        picture, now = self._slot
        self._slot = None
        self._there.clear()
        frame = video_frame(picture)
        if self._origin is None:
            self._origin = now
        pts = max(self._last_pts + 1, round((now - self._origin) * VIDEO_CLOCK))
        self._last_pts = pts
        frame.pts, frame.time_base = pts, VIDEO_BASE
        if self._on_sent is not None:
            self._on_sent(picture, pts, now)
        self._fetched = monotonic()
        return frame

    def stop(self) -> None:
        """End the track; a waiting reader is woken."""
        super().stop()
        self._slot = None
        self._there.set()


class AvatarVoice(MediaStreamTrack):
    """The session's sound: the avatar's utterances, and the microphone where `with_mic()` says so."""

    kind = "audio"

    def __init__(self, *, on_drop: Callable[[], None], with_mic: Callable[[], bool]) -> None:
        super().__init__()
        self._on_drop = on_drop
        self._with_mic = with_mic
        self._packets: deque[tuple[FloatArray, float]] = deque()
        self._there = asyncio.Event()
        self._origin: float | None = None
        self._gain = 0.0  # of the microphone; moves in steps of a block, so that switching does not click

    def picture(self, picture: Picture, *, now: float) -> None:
        """See Sink; this track has no picture."""

    def sound(self, block: FloatArray, *, time: float) -> None:
        """See Sink."""
        if len(self._packets) >= AUDIO_PACKETS:
            self._packets.popleft()
            if self._origin is not None:
                self._on_drop()
        self._packets.append((block, time))
        self._there.set()

    async def recv(self) -> av.AudioFrame:
        """20 ms of mono s16 at 48 kHz, stamped from the clock."""
        if self.readyState != "live":
            raise MediaStreamError
        while not self._packets:
            self._there.clear()
            await self._there.wait()
            if self.readyState != "live":
                raise MediaStreamError
        block, time = self._packets.popleft()
        if self._origin is None:
            self._origin = time
        wanted = 1.0 if self._with_mic() else 0.0
        ramp = np.linspace(self._gain, wanted, BLOCK, dtype=np.float32)
        self._gain = wanted
        frame = audio_frame(block[0] * ramp + block[1])
        frame.pts, frame.time_base = round((time - self._origin) * RATE), AUDIO_BASE
        return frame

    def stop(self) -> None:
        """End the track; a waiting reader is woken."""
        super().stop()
        self._there.set()


def audio_frame(pcm: np.ndarray[Any, np.dtype[np.float32]]) -> av.AudioFrame:
    """[N] -1..1 at 48 kHz -> a mono s16 frame; too loud is clipped."""
    samples = (np.clip(pcm, -1.0, 1.0) * 32767.0).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
    frame.sample_rate = RATE
    return frame
