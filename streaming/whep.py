"""Viewers of a session over WHEP (draft-ietf-wish-whep): one encode for all of them, sound to each, nothing from them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

from engine.types import AvatarError, FloatArray
from streaming.live import Live
from streaming.pacing import Picture
from streaming.pulse import Pulse
from streaming.rtc import PeerConnection, RtcSettings, SharedEncoder, make_peer_connection, prefer_codecs, take_offer
from streaming.studio import Full
from streaming.tracks import VIDEO_BASE, VIDEO_CLOCK, AvatarVoice, video_frame

CODEC = "H264"
WATCH_SECONDS = 1.0


class Broadcast:
    """A session's viewers. A sink of its pictures; the encoder works only while somebody watches."""

    def __init__(self, live: Live, *, rtc: RtcSettings) -> None:
        self.live = live
        self.rtc = rtc
        self.viewers: dict[str, tuple[PeerConnection, AvatarVoice]] = {}
        self._encoder = SharedEncoder(codec=CODEC, settings=rtc, on_drop=live.stats.drop)
        self._slot: tuple[Picture, float] | None = None
        self._there = asyncio.Event()
        self._origin: float | None = None
        self._pulses: dict[str, Pulse] = {}
        self._tasks = [asyncio.ensure_future(self._push()), asyncio.ensure_future(self._watch())]

    # -- the sink ------------------------------------------------------------------------------------------------------

    def picture(self, picture: Picture, *, now: float) -> None:
        """See tracks.Sink."""
        if self._slot is not None:
            self.live.stats.drop("viewer_encoder")
        self._slot = (picture, now)
        self._there.set()

    def sound(self, block: FloatArray, *, time: float) -> None:
        """See tracks.Sink; every viewer's voice is a sink of its own."""

    async def _push(self) -> None:
        while True:
            await self._there.wait()
            self._there.clear()
            if self._slot is None:
                continue
            (picture, now), self._slot = self._slot, None
            if self._origin is None:
                self._origin = now
            frame = video_frame(picture)
            frame.pts, frame.time_base = round((now - self._origin) * VIDEO_CLOCK), VIDEO_BASE
            await self._encoder.push(frame)

    # -- viewers -------------------------------------------------------------------------------------------------------

    async def admit(self, sdp: str, *, caller: str | None = None) -> tuple[str, str]:
        """A viewer's offer -> (viewer id, answer). Raises Full where too many watch, AvatarError for a bad offer."""
        limit = self.live.settings.limits.viewers
        if len(self.viewers) >= limit:
            raise Full(f"All {limit} places to watch are taken; try again later.")
        pc = make_peer_connection(self.rtc)
        voice = AvatarVoice(on_drop=lambda: self.live.stats.drop("viewer_voice"), with_mic=lambda: True)
        viewer = secrets.token_hex(8)
        self.viewers[viewer] = (pc, voice)
        self.live.outlet.sinks.add(self)
        sender = pc.addTrack(self._encoder.track())
        pc.addTrack(voice)
        prefer_codecs(pc, video=(CODEC,))
        pc.on("connectionstatechange", self._on_state(viewer, pc))
        try:
            await take_offer(pc, sdp, video=(CODEC,), caller=caller)
        except BaseException:
            await self.dismiss(viewer)
            raise
        senders = [t.sender for t in pc.getTransceivers()]
        if sender not in senders:
            await self.dismiss(viewer)
            raise AvatarError("The offer has no place for the avatar's picture: add a video transceiver.")
        if any(s.track is voice for s in senders):
            self.live.outlet.sinks.add(voice)
        settings = self.live.settings
        self._pulses[viewer] = Pulse(pc, sender, silence=settings.silence_limit, connect=settings.limits.connect_seconds)
        return viewer, pc.localDescription.sdp

    async def dismiss(self, viewer: str) -> None:
        """A viewer leaves; harmless twice."""
        pc, voice = self.viewers.pop(viewer, (None, None))
        self._pulses.pop(viewer, None)
        if voice is not None:
            self.live.outlet.sinks.discard(voice)
        if not self.viewers:
            self.live.outlet.sinks.discard(self)
        if pc is not None:
            await pc.close()

    def _on_state(self, viewer: str, pc: PeerConnection) -> Callable[[], object]:
        async def changed() -> None:
            if pc.connectionState in ("failed", "closed"):
                await self.dismiss(viewer)

        return changed

    async def _watch(self) -> None:
        """Viewers that have gone without a word give their places back."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            for viewer, pulse in list(self._pulses.items()):
                if not await pulse.beats():
                    await self.dismiss(viewer)

    async def close(self) -> None:
        """Everyone leaves."""
        self.live.outlet.sinks.discard(self)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *(self.dismiss(viewer) for viewer in list(self.viewers)), return_exceptions=True)
        self._encoder.close()
