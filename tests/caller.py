"""A person at the other end of a server: an aiortc peer with a fake camera and microphone, and whatever came back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import av
import numpy as np
from aiohttp import web
from aiortc import MediaStreamTrack, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

from streaming.rtc import PeerConnection, RtcSettings, make_peer_connection, prefer_codecs
from streaming.server import make_app
from streaming.settings import ServerSettings
from streaming.studio import Studio
from tests.fakes import COLOURS, Camera, Voice, fake_studio

SETTINGS = ServerSettings(max_sessions=2, workers=1, trackers=1)
LOCAL = RtcSettings(interfaces="loopback", encoder="x264")


@dataclass
class Caller:
    """`await connect()`; then look at `frames`, `messages`, `levels`."""

    http: aiohttp.ClientSession
    url: str
    camera: MediaStreamTrack | None = field(default_factory=Camera)
    voice: MediaStreamTrack | None = field(default_factory=Voice)
    offer: dict[str, Any] = field(default_factory=dict)
    frames: list[tuple[float, np.ndarray[Any, Any]]] = field(default_factory=list)  # (arrival, mean colour of the picture)
    pictures: list[av.VideoFrame] = field(default_factory=list)  # the last few
    levels: list[tuple[float, float]] = field(default_factory=list)  # (arrival, RMS of the packet)
    messages: list[dict[str, Any]] = field(default_factory=list)
    answer: dict[str, Any] = field(default_factory=dict)
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    pc: PeerConnection = field(default_factory=lambda: make_peer_connection(LOCAL))
    channel: Any = None
    _tasks: list[asyncio.Future[None]] = field(default_factory=list)

    async def connect(self) -> Caller:
        """Send the offer; where it was refused, `status` and `answer` say why."""
        pc = self.pc
        if self.camera is not None:
            pc.addTrack(self.camera)
        else:
            pc.addTransceiver("video", direction="recvonly")
        if self.voice is not None:
            pc.addTrack(self.voice)
        prefer_codecs(pc)
        self.channel = pc.createDataChannel("avatar")
        self.channel.on("message", lambda data: self.messages.append(json.loads(data)))
        pc.on("track", lambda track: self._tasks.append(asyncio.ensure_future(self._watch(track))))
        await pc.setLocalDescription(await pc.createOffer())
        body = {"sdp": pc.localDescription.sdp, "type": "offer", **self.offer}
        async with self.http.post(f"{self.url}/offer", json=body) as response:
            self.status, self.answer = response.status, await response.json()
            self.headers = dict(response.headers)
        if self.status == 200:
            await pc.setRemoteDescription(RTCSessionDescription(self.answer["sdp"], "answer"))
        return self

    @property
    def session(self) -> str:
        """The session's id."""
        return str(self.answer["sessionid"])

    def send(self, **message: Any) -> None:
        """A message on the data channel."""
        self.channel.send(json.dumps(message))

    def heard(self, kind: str) -> list[dict[str, Any]]:
        """Messages of a type."""
        return [message for message in self.messages if message["type"] == kind]

    def loud(self, since: float = 0.0) -> list[float]:
        """Arrivals of packets that were not silent."""
        return [at for at, level in self.levels if level > 0.02 and at >= since]

    async def post(self, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
        """A JSON request."""
        async with self.http.post(f"{self.url}{path}", json=body) as response:
            return response.status, await response.json()

    async def get(self, path: str) -> Any:
        """A JSON answer."""
        async with self.http.get(f"{self.url}{path}") as response:
            return await response.json()

    async def stats(self) -> dict[str, Any]:
        """This session's figures."""
        return dict((await self.get("/stats"))["sessions"][self.session[:8]])

    async def close(self) -> None:
        """Hang up."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.pc.close()

    def vanish(self) -> None:
        """Be gone without a word."""
        vanish(self.pc)

    async def _watch(self, track: MediaStreamTrack) -> None:
        while True:
            try:
                frame = await track.recv()
            except MediaStreamError:
                return
            now = time.monotonic()
            if isinstance(frame, av.VideoFrame):
                self.frames.append((now, frame.to_ndarray(format="rgb24").mean(axis=(0, 1))))
                self.pictures = [*self.pictures[-4:], frame]
            else:
                assert isinstance(frame, av.AudioFrame)
                pcm = frame.to_ndarray().astype(np.float64) / 32768
                self.levels.append((now, float(np.sqrt(np.mean(pcm**2)))))


def vanish(pc: PeerConnection) -> None:
    """From now on this connection neither sends nor answers anything."""
    for transceiver in pc.getTransceivers():
        for protocol in transceiver.sender.transport.transport._connection._protocols:
            for place, name in ((protocol.transport, "sendto"), (protocol, "datagram_received")):
                setattr(place, name, lambda *_: None)


async def until(condition: Callable[[], Any], *, seconds: float = 8.0) -> None:
    """Wait until something is so; AssertionError where it does not come about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        await asyncio.sleep(0.01)


def live(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a story on a loop of its own."""

    async def run() -> None:
        async with asyncio.timeout(40):
            await story()

    asyncio.run(run())


@dataclass
class House:
    """A server on a free port."""

    app: web.Application
    studio: Studio
    url: str
    http: aiohttp.ClientSession
    callers: list[Caller] = field(default_factory=list)

    async def call(self, **options: Any) -> Caller:
        """Somebody connects, and is seen off at the end."""
        caller = await Caller(self.http, self.url, **options).connect()
        self.callers.append(caller)
        return caller


@contextlib.asynccontextmanager
async def house(settings: ServerSettings | None = None, *, studio: Studio | None = None) -> AsyncIterator[House]:
    """A server of fakes."""
    settings = settings or SETTINGS
    studio = studio or fake_studio(settings)
    app = make_app(settings, studio=studio)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    async with aiohttp.ClientSession() as http:
        home = House(app, studio, f"http://127.0.0.1:{runner.addresses[0][1]}", http)
        try:
            yield home
        finally:
            for caller in home.callers:
                await caller.close()
            await runner.cleanup()


async def ask(home: House, method: str, path: str, **options: Any) -> tuple[int, Any, Any]:
    """(status, headers, JSON or text)."""
    async with home.http.request(method, home.url + path, **options) as response:
        body = await (response.json() if "json" in response.content_type else response.text())
        return response.status, response.headers, body


def form(data: bytes | None, *, name: str = "picture", **texts: str) -> aiohttp.FormData:
    """A multipart form."""
    made = aiohttp.FormData()
    for key, value in texts.items():
        made.add_field(key, value)
    if data is not None:
        made.add_field(name, data, filename="../../evil.png")
    return made


def colour_of(caller: Caller) -> tuple[int, ...]:
    """The last picture's mean colour."""
    return tuple(int(v) for v in caller.frames[-1][1])


def near(colour: tuple[int, ...], name: str) -> bool:
    """Whether a colour is a fake persona's."""
    return max(abs(a - b) for a, b in zip(colour, COLOURS[name], strict=True)) < 20
