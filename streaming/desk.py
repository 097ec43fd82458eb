"""Who is connected to what: takes offers, keeps a lost session for its person, lets viewers in, ends everything."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from aiortc import RTCIceServer

from engine.types import AvatarError, Drive
from streaming.live import Live
from streaming.peer import Peer
from streaming.recordings import Recordings
from streaming.rtc import RtcSettings, close_all
from streaming.settings import ServerSettings
from streaming.studio import Studio
from streaming.uploads import Uploads
from streaming.virtual_camera import VirtualCamera, open_camera
from streaming.whep import Broadcast

T = TypeVar("T")
CLOSE_SECONDS = 2.0
"""s a shutdown waits for connections to say goodbye."""


class Unknown(AvatarError):
    """A session that is not there."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a client asks for; the fields of POST /offer."""

    sdp: str
    caller: str | None = None  # the address it came from
    persona: str | None = None
    portrait_upload: str | None = None  # id of an upload, instead of a persona
    drive: Drive = "camera"
    generator: str | None = None
    resume: str | None = None  # the token of a session that was lost


class Desk:
    """Made on the event loop."""

    def __init__(self, settings: ServerSettings, studio: Studio, *, peers: dict[str, Peer] | None = None) -> None:
        """`peers`: session id -> connection; a dict to keep them in, where others want to look at it."""
        self.settings = settings
        self.studio = studio
        self.uploads = Uploads(settings.limits, used=lambda upload: studio.shows(upload.rgb) or studio.shows(upload.persona))
        self.peers: dict[str, Peer] = {} if peers is None else peers
        self.broadcasts: dict[str, Broadcast] = {}
        self.recordings = Recordings(settings.limits)
        self.rtc = RtcSettings(ice_servers=tuple(ice_server(url) for url in settings.ice_servers))
        self.open_camera: Callable[[], Any] = open_camera
        self._shown: Live | None = None  # whom the virtual camera shows, or is being opened for
        self._camera: VirtualCamera | None = None
        self._kept: dict[str, asyncio.TimerHandle] = {}  # sessions without a peer -> when they end
        self._endings: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        studio.on_ended = self._session_ended

    # -- offers --------------------------------------------------------------------------------------------------------

    async def offer(self, offer: Offer) -> tuple[str, Live]:
        """Connect a person -> (the answer's SDP, their session). Raises Full, AvatarError."""
        resumed = self._resumed(offer)
        live = resumed or await self._open(offer)
        peer = Peer(live, rtc=self.rtc, uploads=self.uploads, on_gone=self._gone)
        peer.channel.on_record = lambda on: self._spawn(self._record(live, on))
        try:
            answer = await peer.answer(offer.sdp, caller=offer.caller)
        except BaseException:
            await peer.close()
            if resumed is None:
                await self.end(live)
            raise
        if resumed is not None:
            await self._replace(live, offer.drive)
        self.peers[live.id] = peer
        if self.settings.virtual_camera and self._shown is None:
            self._shown = live
            self._spawn(self._show(live))
        return answer, live

    def _resumed(self, offer: Offer) -> Live | None:
        """The session that a resume token belongs to, or None where it has ended."""
        if not offer.resume:
            return None
        token = offer.resume.encode("utf-8", "surrogatepass")
        return next((live for live in self._alive() if hmac.compare_digest(live.resume_token.encode(), token)), None)

    def _alive(self) -> list[Live]:
        return [live for live in self.studio.sessions.values() if live.id not in self._endings]

    async def _replace(self, live: Live, drive: Drive) -> None:
        """A new connection that stands takes over from the old one; last wins."""
        if (timer := self._kept.pop(live.id, None)) is not None:
            timer.cancel()
        if (old := self.peers.pop(live.id, None)) is not None:
            await old.close("This session was taken over by another connection.")
        live.session.configure(drive=drive)

    async def _open(self, offer: Offer) -> Live:
        studio, settings = self.studio, self.settings
        echo = offer.generator == "echo"
        if echo and not settings.allow_echo:
            raise AvatarError("This server gives nobody their own picture back; start it with --allow-echo.")
        if offer.generator not in (None, "", "echo", settings.generator):
            raise AvatarError(f"This server runs the generator '{settings.generator}'; leave 'generator' out or name that one.")
        await studio.ready()
        if offer.portrait_upload:
            persona = self.uploads.persona(offer.portrait_upload)
        else:
            persona = await studio.persona(offer.persona or settings.persona)
        if studio.full and self._endings:  # Stop and Start again: the seat is about to be free
            await asyncio.wait(self._endings.values(), timeout=CLOSE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        waiting = [live for live in self._alive() if live.id in self._kept]
        if studio.full and waiting:
            await self.end(waiting[0])  # whoever waits goes before whoever may come back
        return await studio.open(persona, drive=offer.drive, echo=echo)

    async def _gone(self, peer: Peer, ended: bool) -> None:
        """A connection is over: free the session, or keep it where the person may come back."""
        live = peer.live
        if self.peers.get(live.id) is not peer or live.closed or live not in self._alive():
            await peer.close()  # taken over, or ending already
        elif ended or self.settings.resume_seconds <= 0:
            await self.end(live)
        else:
            del self.peers[live.id]
            loop = asyncio.get_running_loop()
            self._kept[live.id] = loop.call_later(self.settings.resume_seconds, lambda: self._spawn(self.end(live)))
            await peer.close()

    async def _show(self, live: Live) -> None:
        """Make a session the virtual camera's; where the device has gone, its person is told and goes on without."""
        try:
            camera = VirtualCamera(await self._aside(self.open_camera))
        except AvatarError as error:
            self._shown = None
            live.tell(str(error), "error")
            return
        if live not in self._alive():
            await self._aside(camera.close)
            return
        self._camera = camera
        live.outlet.sinks.add(camera)

    # -- sessions ------------------------------------------------------------------------------------------------------

    def live(self, session: Any) -> Live:
        """A session by id. Raises Unknown."""
        live = self.studio.sessions.get(session) if isinstance(session, str) else None
        if live is None or live.id in self._endings:
            raise Unknown("There is no session with that id; it may have ended. Start a new one.")
        return live

    def watched(self, name: Any) -> Live:
        """The session that a viewer names by its `view_id`, which opens nothing else, or by its id. Raises Unknown."""
        named = [live.id for live in self._alive() if live.view_id == name]
        return self.live(named[0] if named else name)

    async def end(self, live: Live, reason: str | None = None) -> None:
        """Free everything of a session: its peer, its viewers, its row, its trackers. Harmless twice."""
        if live.id not in self._endings:
            task = self._endings[live.id] = asyncio.ensure_future(self._end(live, reason))
            task.add_done_callback(lambda _: self._endings.pop(live.id))
        await asyncio.shield(self._endings[live.id])

    async def _end(self, live: Live, reason: str | None) -> None:
        if (timer := self._kept.pop(live.id, None)) is not None:
            timer.cancel()
        async with contextlib.AsyncExitStack() as steps:  # every step is taken, whatever another raises; the last one named is the first
            steps.push_async_callback(self.studio.end, live)
            if (peer := self.peers.pop(live.id, None)) is not None:
                steps.push_async_callback(peer.close, reason)
            if (broadcast := self.broadcasts.pop(live.id, None)) is not None:
                steps.push_async_callback(broadcast.close)
            if self._shown is live:
                camera, self._camera, self._shown = self._camera, None, None
                if camera is not None:
                    live.outlet.sinks.discard(camera)
                    steps.push_async_callback(self._aside, camera.close)
            try:
                await self.recordings.finish(live)
            except AvatarError as error:
                live.tell(str(error), "error")

    async def _aside(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.studio.executor, work)

    async def _record(self, live: Live, on: bool) -> None:
        """The data channel's switch."""
        try:
            if on:
                self.recordings.start(live)
            elif await self.recordings.finish(live):
                live.on_event({"type": "recorded", "url": f"/record/{live.id}"})
        except AvatarError as error:
            live.tell(str(error), "error")

    def _session_ended(self, live: Live, reason: str) -> None:
        """The session died of itself."""
        self._spawn(self.end(live, reason))

    # -- viewers -------------------------------------------------------------------------------------------------------

    async def watch(self, live: Live, sdp: str, *, caller: str | None = None) -> tuple[str, str]:
        """Let a viewer in -> (viewer id, the answer's SDP). Raises Full, AvatarError."""
        broadcast = self.broadcasts.get(live.id)
        if broadcast is None:
            broadcast = self.broadcasts[live.id] = Broadcast(live, rtc=self.rtc)
        return await broadcast.admit(sdp, caller=caller)

    async def unwatch(self, viewer: str) -> None:
        """A viewer leaves. Raises Unknown."""
        for broadcast in self.broadcasts.values():
            if viewer in broadcast.viewers:
                await broadcast.dismiss(viewer)
                return
        raise Unknown("There is no viewer with that id; it may have left already.")

    def snapshot(self) -> dict[str, Any]:
        """The server as a whole, for /stats and /metrics."""
        import psutil

        process = psutil.Process()
        cpu = process.cpu_times()
        return {
            "uptime_s": round(time.monotonic() - self.studio.started, 1),
            "ready": self.studio.loaded,
            "generator": self.settings.generator,
            "backend": getattr(self.studio.generator, "backend", "cpu") if self.studio.loaded else None,
            "chosen": list(self.settings.generator_told),
            "lora": list(getattr(self.studio.generator, "adapters", ())) if self.studio.loaded else [],
            "sessions": len(self.studio.sessions),
            "max_sessions": self.settings.max_sessions,
            "waiting_for_return": len(self._kept),
            "viewers": sum(len(broadcast.viewers) for broadcast in self.broadcasts.values()),
            "refused_total": self.studio.refused,
            "rss_mb": round(process.memory_info().rss / 1e6, 1),
            "cpu_seconds_total": round(cpu.user + cpu.system, 2),
            "threads": process.num_threads(),
            **{f"busy_{name}_seconds_total": round(busy, 2) for name, busy in self.studio.load().items()},
        }

    # -- end -----------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Tell everyone, close every connection, free everything."""
        ends = [self.end(live, "The server is shutting down; come back when it runs again.") for live in list(self.studio.sessions.values())]
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await asyncio.gather(*ends)
        except TimeoutError:
            pass  # close_all below does not ask anyone
        await close_all()
        for task in self._tasks:
            task.cancel()
        await self.studio.close()
        self.recordings.close()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def ice_server(url: str) -> RTCIceServer:
    """ "stun:host:port" or "turn:user:password@host:port" -> what aiortc takes."""
    scheme, _, rest = url.partition(":")
    credentials, at, address = rest.rpartition("@")
    if not at:
        return RTCIceServer(urls=url)
    user, _, password = credentials.partition(":")
    return RTCIceServer(urls=f"{scheme}:{address}", username=user, credential=password)
