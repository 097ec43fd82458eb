"""Received tracks read with a bound: the newest camera picture, the last seconds of sound.

aiortc: `RemoteStreamTrack._queue` has no bound, so a reader slower than the camera lags ever more (measured: 60 ms of work
a frame at 30 fps gave 5.4 s after 15 s and a queue of 221 pictures; with latest-wins 134 ms, stable).
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from aiortc.rtcrtpreceiver import RemoteStreamTrack
from av import AudioFrame, VideoFrame
from av.frame import Frame

from engine.types import AudioChunk

TrackEnded = MediaStreamError
"""Raised by the readers when the other side has ended the track or the connection is closed."""

VIDEO_QUEUE = 8
"""Pictures a received video track holds for a reader that is briefly away; the oldest gives way."""
AUDIO_QUEUE = 100
"""Packets of 20 ms: 2 s."""


class DroppingQueue(asyncio.Queue[Frame | None]):
    """Never full: the oldest entry gives way and is counted. The end mark (None) is never dropped."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.dropped = 0

    def _put(self, item: Frame | None) -> None:
        while self.qsize() >= self.limit and item is not None:
            self._get()
            self.dropped += 1
        super()._put(item)


class RemoteTrack(RemoteStreamTrack):
    """aiortc's received track with a bounded queue."""

    def __init__(self, kind: str, id: str | None = None) -> None:
        super().__init__(kind, id)
        self.receiver: Any = None  # streaming.rtc.receive.RTCRtpReceiver, once it has one
        self.bounded = DroppingQueue(VIDEO_QUEUE if kind == "video" else AUDIO_QUEUE)
        self._queue = self.bounded

    @property
    def dropped(self) -> int:
        """Frames that were decoded but given up because nobody read them."""
        return self.bounded.dropped


@dataclass(frozen=True, slots=True)
class ReceivedVideo:
    """A camera picture and its times."""

    frame: VideoFrame
    capture: float  # s, time.monotonic() of this machine: when the camera took it, as well as can be known
    rtp: int  # RTP timestamp as the other side sent it, 0..2^32-1
    arrival: float  # s, time.monotonic(): when it was read here


class LatestVideo:
    """Reads a received video track, newest picture wins."""

    def __init__(self, track: MediaStreamTrack) -> None:
        self.track = track
        self.received = 0
        self.dropped = 0  # pictures passed over because a newer one was there

    async def read(self) -> ReceivedVideo:
        """Wait for the newest picture. Raises TrackEnded."""
        frame = await self.track.recv()
        queue = self.track.bounded if isinstance(self.track, RemoteTrack) else None
        while queue is not None and not queue.empty():
            newer = queue.get_nowait()
            if newer is None:
                queue.put_nowait(None)
                break
            frame = newer
            self.dropped += 1
        assert isinstance(frame, VideoFrame)
        self.received += 1
        now = time.monotonic()
        capture, rtp = _times(self.track, frame, now)
        return ReceivedVideo(frame, capture, rtp, now)


class BoundedAudio:
    """Reads a received audio track as mono chunks on the session clock."""

    def __init__(self, track: MediaStreamTrack) -> None:
        self.track = track
        self.received = 0

    @property
    def dropped(self) -> int:
        """Packets given up because nobody read them."""
        return self.track.dropped if isinstance(self.track, RemoteTrack) else 0

    async def read(self) -> AudioChunk:
        """The next 20 ms or so: mono, -1..1, `time` = capture time of its first sample. Raises TrackEnded."""
        frame = await self.track.recv()
        assert isinstance(frame, AudioFrame)
        self.received += 1
        pcm = mono(frame)
        capture, _ = _times(self.track, frame, time.monotonic() - len(pcm) / frame.sample_rate)
        return AudioChunk(pcm, frame.sample_rate, capture)


def _times(track: MediaStreamTrack, frame: Frame, otherwise: float) -> tuple[float, int]:
    """(capture time, RTP time) of a received frame; a track that is not a received one captures `otherwise`."""
    pts = int(frame.pts or 0)
    receiver = getattr(track, "receiver", None)
    if receiver is None:
        return otherwise, pts & 0xFFFFFFFF
    capture = receiver.capture_time(pts)
    return otherwise if capture is None else capture, receiver.times.rtp(pts)


def mono(frame: AudioFrame) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """[N] float32 -1..1 of an s16 frame, packed or planar, channels averaged."""
    samples = frame.to_ndarray().astype(np.float32) / 32768.0
    channels = len(frame.layout.channels)
    if not frame.format.is_planar:
        samples = samples.reshape(-1, channels).T
    return np.ascontiguousarray(samples.mean(axis=0), dtype=np.float32)
