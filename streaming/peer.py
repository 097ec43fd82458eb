"""One person's connection: camera and microphone in, avatar out, a data channel beside them. All on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from aiortc import MediaStreamTrack, RTCDataChannel, RTCRtpSender

from engine.types import AudioChunk, AvatarError
from streaming.channel import Channel
from streaming.live import Live
from streaming.pacing import Picture
from streaming.pulse import Pulse
from streaming.rtc import (
    BoundedAudio,
    LatestVideo,
    PeerConnection,
    RtcSettings,
    TrackEnded,
    make_peer_connection,
    outgoing_rtp,
    prefer_codecs,
    sender_stats,
    take_offer,
    tune_answer,
)
from streaming.tracks import VIDEO_BASE, AvatarVideo, AvatarVoice
from streaming.uploads import Uploads

WATCH_SECONDS = 1.0
"""s between two looks at whether the other side is still there."""


class Peer:
    """`answer` an offer once; `on_gone(peer, ended)` is called when the connection is over, `ended` where the person closed it."""

    def __init__(self, live: Live, *, rtc: RtcSettings, uploads: Uploads, on_gone: Callable[[Peer, bool], Awaitable[None]]) -> None:
        self.live = live
        self.rtc = rtc
        self.channel = Channel(live, uploads=uploads)
        self.channel.on_bye = lambda: self._start(self._leave(ended=True))
        self._on_gone = on_gone
        self._pc: PeerConnection = make_peer_connection(rtc)
        self._pumps: set[asyncio.Task[None]] = set()
        self._gone = False
        self._sender: RTCRtpSender | None = None
        self.video = AvatarVideo(on_drop=lambda: live.stats.drop("encoder"), on_sent=self._sent)
        self.voice = AvatarVoice(on_drop=lambda: live.stats.drop("voice"), with_mic=lambda: live.return_voice or live.echo)
        self._pc.on("track", self._on_track)
        self._pc.on("datachannel", self._on_channel)
        self._pc.on("connectionstatechange", self._on_state)

    # -- set up --------------------------------------------------------------------------------------------------------

    async def answer(self, sdp: str, *, caller: str | None = None) -> str:
        """Offer (that came from the address `caller`) -> answer. Raises AvatarError where the offer makes no sense."""
        pc = self._pc
        self._sender = pc.addTrack(self.video)
        pc.addTrack(self.voice)
        prefer_codecs(pc)
        await take_offer(pc, sdp, caller=caller)
        taken = pc.getTransceivers()
        if not any(t.sender is self._sender for t in taken):
            raise AvatarError("The offer has no place for the avatar's picture: add a video transceiver.")
        self.live.outlet.sinks.add(self.video)
        if any(t.sender.track is self.voice for t in taken):
            self.live.outlet.sinks.add(self.voice)
        self.live.on_event = self.channel.send
        self.live.link = self._link
        self.live.connected = True
        self._start(self._watch())
        return tune_answer(pc.localDescription.sdp, start_bitrate=self.rtc.camera_start_bitrate, max_bitrate=self.rtc.camera_max_bitrate)

    async def close(self, reason: str | None = None) -> None:
        """Say why and hang up; the session itself goes on."""
        if reason is not None:
            await self.channel.bye(reason)
        self._gone = True
        self.live.outlet.sinks -= {self.video, self.voice}
        if self.live.on_event == self.channel.send:  # nobody has taken over yet
            self.live.connected = False
        self.channel.close()
        pumps = [pump for pump in self._pumps if pump is not asyncio.current_task()]
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        await self._pc.close()

    # -- events --------------------------------------------------------------------------------------------------------

    def _on_track(self, track: MediaStreamTrack) -> None:
        self._start(self._camera(track) if track.kind == "video" else self._mic(track))

    def _on_channel(self, channel: RTCDataChannel) -> None:
        if channel.label == "avatar":
            self.channel.open(channel)

    async def _on_state(self) -> None:
        state = self._pc.connectionState
        if state in ("failed", "closed"):
            await self._leave(ended=state == "closed")

    async def _leave(self, *, ended: bool) -> None:
        if not self._gone:
            self._gone = True
            await self._on_gone(self, ended)

    def _link(self) -> dict[str, Any]:
        return {} if self._sender is None or self._gone else asdict(sender_stats(self._sender))

    def _sent(self, picture: Picture, pts: int, now: float) -> None:
        if self._sender is not None and (rtp := outgoing_rtp(self._sender, pts, VIDEO_BASE)) is not None:
            self.channel.pair(rtp, picture.motion_time, now)

    # -- pumps ---------------------------------------------------------------------------------------------------------

    def _start(self, coroutine: Any) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(coroutine)
        self._pumps.add(task)
        task.add_done_callback(self._pumps.discard)

    async def _camera(self, track: MediaStreamTrack) -> None:
        reader = LatestVideo(track)
        dropped = 0
        while True:
            try:
                received = await reader.read()
            except TrackEnded:
                return
            self.live.stats.drop("camera", reader.dropped - dropped)
            dropped = reader.dropped
            self.live.camera(received)

    async def _mic(self, track: MediaStreamTrack) -> None:
        reader = BoundedAudio(track)
        while True:
            try:
                chunk = await reader.read()
            except TrackEnded:
                return
            # Arrivals and sender reports bound the instant a packet was sent, and it was sent when its last sample had been captured.
            self.live.mic(AudioChunk(chunk.pcm, chunk.rate, chunk.time - chunk.duration))

    async def _watch(self) -> None:
        """Free a peer that has gone without a word; give the others their figures."""
        assert self._sender is not None
        settings = self.live.settings
        pulse = Pulse(self._pc, self._sender, silence=settings.silence_limit, connect=settings.limits.connect_seconds)
        came_up = False
        while await pulse.beats():
            came_up = came_up or self._pc.connectionState == "connected"
            self.live.judge()
            self.channel.second()
            await asyncio.sleep(WATCH_SECONDS)
        await self._leave(ended=not came_up)  # who was never there does not come back
