"""Two aiortc peers in one process: a sender with a cheap moving picture at 30 fps, a receiver that notes what comes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache

import av
import numpy as np
from aiortc import MediaStreamTrack
from aiortc.mediastreams import VIDEO_TIME_BASE, MediaStreamError

from streaming.rtc import LatestVideo, RtcSettings, SenderStats, outgoing_rtp, prefer_codecs, sender_stats
from streaming.rtc.connection import PeerConnection, make_peer_connection
from tests.shim import Link, Network

FPS = 30
PICTURES = 60
LOCAL = RtcSettings(interfaces="loopback", encoder="x264")


@cache
def pictures(size: int) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    """A texture that pans: yuv420p planes [size * 3 / 2, size], PICTURES of them."""
    rng = np.random.default_rng(7)
    coarse = rng.integers(40, 200, (size // 8 + 20, size // 8 + 20)).astype(np.uint8)
    texture = np.kron(coarse, np.ones((8, 8), np.uint8))
    texture += rng.integers(0, 40, texture.shape).astype(np.uint8)  # grain, so that every bit the encoder may spend is spent
    chroma = np.full((size // 2, size), 128, np.uint8)
    shifts = [int(30 + 30 * np.sin(2 * np.pi * i / PICTURES)) for i in range(PICTURES)]
    return [np.vstack([texture[s : s + size, 2 * s : 2 * s + size], chroma]) for s in shifts]


def frame_at(index: int, size: int = 256, fps: int = FPS) -> av.VideoFrame:
    """Picture number `index` of the moving texture, with its pts."""
    frame = av.VideoFrame.from_ndarray(pictures(size)[index % len(pictures(size))], format="yuv420p")
    frame.pts, frame.time_base = index * 90_000 // fps, VIDEO_TIME_BASE
    return frame


class Source(MediaStreamTrack):
    """A video track; remembers when each picture left, by pts."""

    kind = "video"

    def __init__(self, size: int = 256, fps: int = FPS) -> None:
        super().__init__()
        self.size, self.fps = size, fps
        self.left: dict[int, float] = {}
        self._started: float | None = None
        self._count = 0

    async def recv(self) -> av.VideoFrame:
        """The next picture, on time; a late reader gets the present one."""
        if self.readyState != "live":
            raise MediaStreamError
        now = time.monotonic()
        if self._started is None:
            self._started = now
        self._count = max(self._count + 1, int((now - self._started) * self.fps))
        await asyncio.sleep(max(0.0, self._started + self._count / self.fps - now))
        frame = av.VideoFrame.from_ndarray(pictures(self.size)[self._count % PICTURES], format="yuv420p")
        frame.pts, frame.time_base = self._count * 90_000 // self.fps, VIDEO_TIME_BASE
        self.left[frame.pts] = time.monotonic()
        return frame


@dataclass
class Seen:
    """What the receiver saw: per picture its arrival and its latency from the source's `recv`, s."""

    arrivals: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    capture_errors: list[float] = field(default_factory=list)  # estimated minus true capture time, s
    passed_over: int = 0  # pictures that came together with a newer one
    queued: int = 0  # the most packets or pictures that waited anywhere on the receiving side

    def since(self, start: float) -> list[float]:
        """Arrivals after `start`."""
        return [a for a in self.arrivals if a >= start]

    def longest_gap(self, start: float, end: float) -> float:
        """s without a picture between two times."""
        marks = [start, *(a for a in self.arrivals if start < a < end), end]
        return max(b - a for a, b in zip(marks, marks[1:], strict=False))


@dataclass
class Call:
    """A running connection."""

    sender: PeerConnection
    receiver: PeerConnection
    source: Source
    seen: Seen
    down: Link  # what the sender sends
    up: Link  # what the receiver sends

    def stats(self) -> SenderStats:
        """The sending side's."""
        return sender_stats(self.sender.getSenders()[0])


async def negotiate(a: PeerConnection, b: PeerConnection, network: Network | None = None) -> None:
    """a offers, b answers; with a network their sockets belong to the sides "a" and "b"."""
    with network.side("a") if network else contextlib.nullcontext():
        await a.setLocalDescription(await a.createOffer())
    await b.setRemoteDescription(a.localDescription)
    with network.side("b") if network else contextlib.nullcontext():
        await b.setLocalDescription(await b.createAnswer())
    await a.setRemoteDescription(b.localDescription)


async def connected(*pcs: PeerConnection, within: float = 5.0) -> None:
    """Wait until all are."""
    async with asyncio.timeout(within):
        while any(pc.connectionState != "connected" for pc in pcs):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def _watch(track: MediaStreamTrack, source: Source, sender: PeerConnection, receiver: PeerConnection, seen: Seen) -> None:
    reader = LatestVideo(track)
    rtp_sender, rtp_receiver = sender.getSenders()[0], receiver.getReceivers()[0]
    while True:
        try:
            got = await reader.read()
        except MediaStreamError:
            return
        seen.arrivals.append(got.arrival)
        seen.passed_over = reader.dropped
        left = {outgoing_rtp(rtp_sender, pts, Fraction(1, 90_000)): at for pts, at in list(source.left.items())[-300:]}
        if got.rtp in left:
            seen.latencies.append(got.arrival - left[got.rtp])
            seen.capture_errors.append(got.capture - left[got.rtp])
        waiting = (len(rtp_receiver.buffer), rtp_receiver.waiting.qsize(), track.bounded.qsize())  # type: ignore[attr-defined]
        seen.queued = max(seen.queued, *waiting)


@contextlib.asynccontextmanager
async def call(network: Network, *, codec: str = "H264", size: int = 256, fps: int = FPS, settings: RtcSettings = LOCAL) -> AsyncIterator[Call]:
    """A connected pair over the shim; pictures flow. Closed at the end."""
    a, b = make_peer_connection(settings), make_peer_connection(settings)
    source, seen = Source(size, fps), Seen()
    watchers: list[asyncio.Task[None]] = []
    b.on("track", lambda track: watchers.append(asyncio.ensure_future(_watch(track, source, a, b, seen))))
    a.addTrack(source)
    prefer_codecs(a, video=(codec,))
    try:
        await negotiate(a, b, network)
        await connected(a, b)
        yield Call(a, b, source, seen, network.links["a"], network.links["b"])
    finally:
        await asyncio.gather(a.close(), b.close())
        await asyncio.gather(*watchers)
