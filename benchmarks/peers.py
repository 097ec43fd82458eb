"""The server under test in its own process, and a caller that sends it a camera and a microphone and notes what comes back.

Pictures are stamped with their number in a bar code and the instant they were taken; what comes back is read by the number.
Sound is noted as it arrives, packet by packet, before any jitter buffer: a player delays it and then lines it up with the
pictures by the sender's clock, so what counts is when each left.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import av
import numpy as np
import numpy.typing as npt
import psutil
from aiortc import MediaStreamTrack, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

from benchmarks import barcode
from benchmarks.common import ROOT
from benchmarks.delivery import Seen, envelope
from engine.types import AvatarError, FloatArray, UInt8Array
from streaming.rtc import make_peer_connection, prefer_codecs

if TYPE_CHECKING:
    from benchmarks.media import Clip

FPS = 30
SOUND_RATE = 48_000
PACKET = SOUND_RATE // 50
"""Samples of one packet: 20 ms."""
RTP_WRAP = 1 << 32
PLAYOUT_PACKETS = 151
"""Packets of the running median: 3 s."""
STRETCH_PACKETS = 3000
"""Packets decoded at a time: a minute."""
VIDEO_CLOCK = Fraction(1, 90_000)
CAMERA_SIZE = (480, 640)
"""(H, W) px of the camera."""
START_TIMEOUT = 90.0
"""s a server may take to come up: the first start compiles."""
FIRST_FRAME_TIMEOUT = 20.0
CHROMA_GREY = 128
LUMA_BLACK, LUMA_WHITE = 16, 235


@dataclass(slots=True)
class Server:
    """`avatar serve` in a process of its own on 127.0.0.1."""

    process: subprocess.Popen[bytes]
    port: int

    @classmethod
    def start(cls, *, sessions: int, options: Sequence[str] = (), log: Path | None = None) -> Server:
        """Start one with the bar code's strip carried and echo allowed; returns at once, see `ready`."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        words = [sys.executable, str(ROOT / "avatar.py"), "serve", "--port", str(port), "--max-sessions", str(sessions)]
        words += ["--carry-strip", str(barcode.ROWS), "--allow-echo", *options]
        with open(os.devnull if log is None else log, "wb") as out:
            process = subprocess.Popen(words, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
        return cls(process, port)

    @property
    def url(self) -> str:
        """The address."""
        return f"http://127.0.0.1:{self.port}"

    async def ready(self, http: aiohttp.ClientSession) -> None:
        """Wait until it answers. Raises AvatarError where it ends or takes too long."""
        until = time.monotonic() + START_TIMEOUT
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise AvatarError(f"The server ended with status {self.process.returncode}; run `avatar serve` to see why.")
            try:
                async with http.get(f"{self.url}/healthz") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)
        raise AvatarError(f"The server did not answer within {START_TIMEOUT:.0f} s; run `avatar serve` to see why.")

    def usage(self) -> tuple[float, float]:
        """(CPU seconds so far, resident MB) of the server and the processes it started."""
        everyone = [psutil.Process(self.process.pid)]
        everyone += everyone[0].children(recursive=True)
        cpu = memory = 0.0
        for process in everyone:
            try:
                times = process.cpu_times()
                cpu += times.user + times.system
                memory += process.memory_info().rss / 1e6
            except psutil.NoSuchProcess:
                continue
        return cpu, memory

    def stop(self) -> None:
        """Ask it to end, then insist."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)


def camera_loop(clip: Clip, *, limit: int = 150, size: tuple[int, int] = CAMERA_SIZE) -> list[UInt8Array]:
    """Frames [H * 3 / 2, W] in yuv420p: a clip forwards, then backwards, so that it repeats without a jump."""
    import cv2

    height, width = size
    frames: list[UInt8Array] = []
    for i, rgb in enumerate(clip.pictures()):
        if i >= limit:
            break
        scale = min(height / rgb.shape[0], width / rgb.shape[1])
        small = cv2.resize(rgb, (round(rgb.shape[1] * scale), round(rgb.shape[0] * scale)), interpolation=cv2.INTER_AREA)
        top, left = (height - small.shape[0]) // 2, (width - small.shape[1]) // 2
        sides = (top, height - small.shape[0] - top, left, width - small.shape[1] - left)
        whole = cv2.copyMakeBorder(small, *sides, cv2.BORDER_REPLICATE)
        picture = av.VideoFrame.from_ndarray(np.asarray(whole, np.uint8), format="rgb24").reformat(format="yuv420p")
        frames.append(np.asarray(picture.to_ndarray(), np.uint8))
    return frames + frames[-2:0:-1]


def stamp(picture: UInt8Array, number: int, *, height: int) -> UInt8Array:
    """A copy of a yuv420p picture [H * 3 / 2, W] with the number over its top rows."""
    out = picture.copy()
    width = out.shape[1]
    row = barcode.cells(number)[np.minimum(np.arange(width) * barcode.CELLS // width, barcode.CELLS - 1)]
    out[: barcode.ROWS] = np.where(row == 1, LUMA_WHITE, LUMA_BLACK).astype(np.uint8)
    quarter = barcode.ROWS // 4  # chroma planes lie behind the luma, half as high and wide: two chroma rows in one row here
    out[height : height + quarter] = CHROMA_GREY
    out[height + height // 4 : height + height // 4 + quarter] = CHROMA_GREY
    return out


class Camera(MediaStreamTrack):
    """30 pictures a second in real time, numbered; `taken[number]` is the instant."""

    kind = "video"

    def __init__(self, pictures: Sequence[UInt8Array], *, size: tuple[int, int] = CAMERA_SIZE, first: int = 1) -> None:
        super().__init__()
        self.taken: dict[int, float] = {}
        self._pictures = pictures
        self._height = size[0]
        self._first = first
        self._start: float | None = None
        self._count = 0

    async def recv(self) -> av.VideoFrame:
        """The next picture, at its time; one that is overdue by more than an interval is skipped, as a camera does."""
        if self.readyState != "live":
            raise MediaStreamError
        now = time.monotonic()
        if self._start is None:
            self._start = now
        self._count = max(self._count, int((now - self._start) * FPS))
        due = self._start + self._count / FPS
        if due > now:
            await asyncio.sleep(due - now)
        taken = time.monotonic()
        number = (self._first + self._count) % (1 << barcode.ID_BITS)
        self.taken[number] = taken
        frame = av.VideoFrame.from_ndarray(stamp(self._pictures[self._count % len(self._pictures)], number, height=self._height), format="yuv420p")
        frame.pts, frame.time_base = round((taken - self._start) / VIDEO_CLOCK), VIDEO_CLOCK
        self._count += 1
        return frame


class Microphone(MediaStreamTrack):
    """Sound in real time. `source(first sample, count)` -> [count] -1..1; sample 0 was heard at `start`."""

    kind = "audio"

    def __init__(self, source: Callable[[int, int], FloatArray]) -> None:
        super().__init__()
        self.start: float | None = None
        self._source = source
        self._sample = 0

    async def recv(self) -> av.AudioFrame:
        """The next 20 ms, once they are over."""
        if self.readyState != "live":
            raise MediaStreamError
        if self.start is None:
            self.start = time.monotonic()
        over = self.start + (self._sample + PACKET) / SOUND_RATE
        if (wait := over - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        pcm = self._source(self._sample, PACKET)
        frame = av.AudioFrame.from_ndarray((np.clip(pcm, -1, 1) * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = SOUND_RATE, self._sample, Fraction(1, SOUND_RATE)
        self._sample += PACKET
        return frame


@dataclass(slots=True)
class Call:
    """One connection to the server. `async with Call(...)`: connected inside, closed after."""

    http: aiohttp.ClientSession
    url: str
    camera: Camera
    microphone: Microphone
    offer: dict[str, Any] = field(default_factory=dict)  # further fields of the offer: drive, generator
    look: Callable[[av.VideoFrame, float], None] | None = None  # is shown every returned picture
    seen: list[Seen] = field(default_factory=list)
    packets: list[tuple[float, int, bytes]] = field(default_factory=list)  # arrival s, RTP time, Opus payload
    first_frame_s: float | None = None
    session: str = ""
    _pc: Any = None
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _first: asyncio.Event = field(default_factory=asyncio.Event)
    _started: float = 0.0

    async def __aenter__(self) -> Call:
        self._started = time.monotonic()
        self._pc = pc = make_peer_connection()
        try:
            await self._connect(pc)
        except BaseException:
            await pc.close()
            raise
        return self

    async def _connect(self, pc: Any) -> None:
        pc.addTrack(self.microphone)
        pc.addTrack(self.camera)
        prefer_codecs(pc)
        channel = pc.createDataChannel("avatar")
        channel.on("open", lambda: channel.send('{"type":"set","return_voice":true}'))
        pc.on("track", self._on_track)
        await pc.setLocalDescription(await pc.createOffer())
        body = {"sdp": pc.localDescription.sdp, "type": "offer", **self.offer}
        async with self.http.post(f"{self.url}/offer", json=body) as answer:
            if answer.status != 200:
                raise AvatarError(f"The server refused the call with status {answer.status}: {(await answer.text())[:200]}")
            said = await answer.json()
        self.session = str(said["sessionid"])
        await pc.setRemoteDescription(RTCSessionDescription(said["sdp"], said["type"]))
        self._tasks.append(asyncio.create_task(self._heartbeat(channel)))
        try:
            await asyncio.wait_for(self._first.wait(), FIRST_FRAME_TIMEOUT)
        except TimeoutError:
            raise AvatarError(f"No picture came back within {FIRST_FRAME_TIMEOUT:.0f} s of the call.") from None

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._pc.close()

    async def _heartbeat(self, channel: Any) -> None:
        count = 0
        while True:
            await asyncio.sleep(1.0)
            if channel.readyState == "open":
                channel.send(f'{{"type":"ping","t":{count}}}')
            count += 1

    def _on_track(self, track: MediaStreamTrack) -> None:
        if track.kind == "video":
            self._tasks.append(asyncio.create_task(self._watch(track)))
            return
        self._tasks.append(asyncio.create_task(_drain(track)))
        receiver = next(t.receiver for t in self._pc.getTransceivers() if t.receiver.track is track)
        handle = receiver._handle_rtp_packet

        async def noted(packet: Any, arrival_time_ms: int) -> None:
            self.packets.append((time.monotonic(), packet.timestamp, packet.payload))
            await handle(packet, arrival_time_ms)

        receiver._handle_rtp_packet = noted

    async def _watch(self, track: MediaStreamTrack) -> None:
        while True:
            try:
                frame = await track.recv()
            except MediaStreamError:
                return
            now = time.monotonic()
            assert isinstance(frame, av.VideoFrame)
            self.seen.append(Seen(now, barcode.read(luma(frame, barcode.ROWS))))
            if self.first_frame_s is None:
                self.first_frame_s = now - self._started
                self._first.set()
            if self.look is not None:
                self.look(frame, now)


async def _drain(track: MediaStreamTrack) -> None:
    while True:
        try:
            await track.recv()
        except MediaStreamError:
            return


def luma(frame: av.VideoFrame, rows: int | None = None) -> UInt8Array:
    """[rows, W] of a yuv420p picture's luma, without conversion of the rest."""
    plane = frame.planes[0]
    whole: UInt8Array = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]
    return whole[:rows]


def playout(packets: Sequence[tuple[float, int, bytes]]) -> npt.NDArray[np.float64]:
    """When a player starts each packet [N], s: its RTP time, put on the arrivals' clock by their running median.

    That is the clock of a jitter buffer without its constant depth: packets that come in bunches play in a row.
    """
    from scipy.ndimage import median_filter

    arrivals = np.array([arrival for arrival, _, _ in packets])
    stamps = np.array([stamp for _, stamp, _ in packets], np.int64)
    steps = (np.diff(stamps, prepend=stamps[:1]) + RTP_WRAP // 2) % RTP_WRAP - RTP_WRAP // 2
    media = np.cumsum(steps) / SOUND_RATE
    times: npt.NDArray[np.float64] = media + median_filter(arrivals - media, PLAYOUT_PACKETS, mode="mirror")
    return times


def sound_of(packets: Sequence[tuple[float, int, bytes]]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(s, level) every 2 ms of the sound in noted packets, see `delivery.envelope`; decoded in stretches, so that hours fit."""
    packets = [packet for packet in packets if packet[2]]
    if not packets:
        return np.zeros(0), np.zeros(0)
    decoder = av.CodecContext.create("opus", "r")
    assert isinstance(decoder, av.AudioCodecContext)
    starts = playout(packets)
    times: list[npt.NDArray[np.float64]] = []
    levels: list[npt.NDArray[np.float64]] = []
    for first in range(0, len(packets), STRETCH_PACKETS):
        clock: list[npt.NDArray[np.float64]] = []
        samples: list[FloatArray] = []
        for start, (_, _, payload) in zip(starts[first : first + STRETCH_PACKETS], packets[first : first + STRETCH_PACKETS], strict=True):
            for frame in decoder.decode(av.Packet(payload)):
                samples.append(_mono(frame))
                clock.append(start + np.arange(len(samples[-1])) / frame.sample_rate)
        if samples:
            t, level = envelope(np.concatenate(clock), np.concatenate(samples))
            times.append(t)
            levels.append(level)
    return np.concatenate(times), np.concatenate(levels)


def _mono(frame: av.AudioFrame) -> FloatArray:
    pcm = frame.to_ndarray().astype(np.float32)
    if frame.format.name.startswith("s16"):
        pcm /= np.float32(32768)
    mixed = pcm.mean(0) if frame.format.is_planar else pcm.reshape(-1, len(frame.layout.channels)).mean(1)
    return np.asarray(mixed, np.float32)
