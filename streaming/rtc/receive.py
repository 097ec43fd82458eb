"""aiortc's receiver with the buffers, the repeated NACKs, the seeded estimate and the capture clock of this package.

Upstream's `_handle_rtp_packet` does the work still; its parts are exchanged (see jitter, nack, remb, decode) and what one arrival
completes beyond the first picture is passed on after it. The subclass bears its parent's name on purpose: Python's private
names (`__jitter_buffer`) then mean the parent's.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
import weakref
from collections import Counter
from typing import Any

import aiortc.rtcrtpreceiver as upstream
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcrtpparameters import RTCRtpReceiveParameters
from aiortc.rtp import AnyRtcpPacket, RtcpSrPacket, RtpPacket

from streaming.rtc.clock import WRAP, CaptureClock
from streaming.rtc.decode import AUDIO_LIMIT, VIDEO_LIMIT, DecoderQueue
from streaming.rtc.jitter import AudioBuffer, VideoBuffer
from streaming.rtc.nack import REPEAT, NackTracker
from streaming.rtc.readers import RemoteTrack
from streaming.rtc.remb import SeededEstimator
from streaming.rtc.settings import DEFAULTS, RtcSettings

VIDEO_RATE, AUDIO_RATE = 90_000, 48_000
PLI_WHILE_HEARD = 2.0
"""s after the last packet during which that goes on: a camera that was switched off is left alone."""
LOSSES_TO_RELEASE = 10
"""Packets asked for again after which the seeded estimate is not held any longer."""
PLI_SPACING = 0.3
"""s between two requests for a key picture while pictures are withheld."""
_receivers: weakref.WeakSet[RTCRtpReceiver] = weakref.WeakSet()


class Unwrapper:
    """RTP time -> pts that starts at 0 and never wraps. Upstream's takes every step back, also a restarted camera's, for a wrap of 2^32."""

    def __init__(self) -> None:
        self.origin: int | None = None
        self._last = 0

    def map(self, timestamp: int) -> int:
        """0..2^32-1 -> pts."""
        if self.origin is None:
            self.origin = self._last = timestamp
        self._last += ((timestamp - self._last + WRAP // 2) % WRAP) - WRAP // 2
        return self._last - self.origin

    def rtp(self, pts: int) -> int:
        """pts -> the RTP time as sent."""
        return (pts + (self.origin or 0)) % WRAP


class RTCRtpReceiver(upstream.RTCRtpReceiver):
    """aiortc's receiver with the mends."""

    def __init__(self, kind: str, transport: RTCDtlsTransport) -> None:
        self.__track: Any = None
        super().__init__(kind, transport)
        self.kind = kind
        self.times = Unwrapper()
        self.__timestamp_mapper: Any = self.times
        self.clock = CaptureClock(VIDEO_RATE if kind == "video" else AUDIO_RATE)
        self.sender: Any = None  # of the same transceiver: knows the round trip
        self.buffer: VideoBuffer | AudioBuffer
        if kind == "video":
            self.buffer = VideoBuffer(codec_of=lambda payload_type: self.__codecs[payload_type].name)
            self.nacks = NackTracker()
            self.__nack_generator: Any = self.nacks
        else:
            self.buffer = AudioBuffer()
        self.__jitter_buffer: Any = self.buffer
        self.waiting = DecoderQueue(VIDEO_LIMIT if kind == "video" else AUDIO_LIMIT, self._decoder_overflowed)
        self.__decoder_queue = self.waiting
        self.configure(DEFAULTS)
        self._repair_task: asyncio.Task[None] | None = None
        self._began = False
        self._media_ssrc: int | None = None
        self._pli_at = float("-inf")
        self._heard_at = float("-inf")
        _receivers.add(self)

    def configure(self, settings: RtcSettings) -> None:
        """Take the settings of the connection; before anything is received."""
        if self.kind == "video":
            self.estimator = SeededEstimator(settings.camera_start_bitrate)
            self.__remote_bitrate_estimator = self.estimator

    @property
    def _track(self) -> Any:
        """The received track; it knows its receiver, for capture times."""
        return self.__track

    @_track.setter
    def _track(self, track: Any) -> None:
        self.__track = track
        if track is not None:
            track.receiver = self

    def capture_time(self, pts: int) -> float | None:
        """When a frame of this track was captured, s on time.monotonic(), or None before the first packet."""
        # The smallest round trip, as the clock's offset is that of the luckiest packet: a queue in either direction is not in it.
        round_trip = self.sender.rate.rtt_min if self.sender is not None else math.inf
        return self.clock.capture(self.times.rtp(pts), time.monotonic(), round_trip if math.isfinite(round_trip) else 0.0)

    def losses(self) -> dict[str, int]:
        """What arrived, or should have, and was given up so far, by cause."""
        what = "camera" if self.kind == "video" else "mic"
        unread = self.__track.dropped if isinstance(self.__track, RemoteTrack) else 0
        return {
            f"{what}_gaps": self.buffer.given_up,  # packets that nobody repaired in time
            f"{what}_withheld": self.buffer.withheld,
            f"{what}_decoder": self.waiting.dropped,  # the decoder was too slow
            f"{what}_unread": unread,  # decoded, and nobody came for it
        }

    # -- packets -----------------------------------------------------------------------------------------------------------

    async def _handle_rtp_packet(self, packet: RtpPacket, arrival_time_ms: int) -> None:
        codec = self.__codecs.get(packet.payload_type)
        if codec is not None and codec.name.lower() != "rtx" and packet.payload:
            self.clock.packet(packet.timestamp, time.monotonic())
            self._media_ssrc = packet.ssrc
            self._heard_at = time.monotonic()
        elif codec is not None and self.kind == "video":
            self.nacks.repaired = True
        await super()._handle_rtp_packet(packet, arrival_time_ms)
        self._pass_on()

    def _pass_on(self) -> None:
        """Give the decoder every further picture that the last packet completed."""
        while (frame := self.buffer.pop()) is not None:
            if self.__decoder_thread:
                codec = self.__codecs[frame.payload_type]
                frame.timestamp = self.times.map(frame.timestamp)
                self.__decoder_queue.put((codec, frame))

    async def _handle_rtcp_packet(self, packet: AnyRtcpPacket) -> None:
        if isinstance(packet, RtcpSrPacket) and packet.ssrc == self._media_ssrc:
            self.clock.report(packet.sender_info.rtp_timestamp, time.monotonic())
        await super()._handle_rtcp_packet(packet)

    def _decoder_overflowed(self) -> None:
        if isinstance(self.buffer, VideoBuffer):
            self.buffer.want_key()

    # -- repair ------------------------------------------------------------------------------------------------------------

    async def receive(self, parameters: RTCRtpReceiveParameters) -> None:
        self._began = True
        await super().receive(parameters)
        if self.kind == "video" and self._repair_task is None:
            self._repair_task = asyncio.create_task(self._repair())

    async def stop(self) -> None:
        if self._repair_task is not None:
            self._repair_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._repair_task
            self._repair_task = None
        await super().stop()
        if isinstance(self.__track, RemoteTrack) and not self._began:
            # Upstream ends a track from its decoder thread alone: closed while still connecting, whoever reads it would wait for ever.
            self.__track.bounded.put_nowait(None)

    async def _repair(self) -> None:
        """Ask again for what is missing, give up what is too late, ask for a key picture while one is needed."""
        assert isinstance(self.buffer, VideoBuffer)
        while True:
            await asyncio.sleep(REPEAT)
            if self._media_ssrc is None or not self._enabled:
                continue
            gave_up = self.buffer.expire()
            self._pass_on()
            if self.buffer.first_missing is not None:
                self.nacks.forget_before(self.buffer.first_missing)
            due = self.nacks.due()
            if due:
                await self._send_rtcp_nack(self._media_ssrc, sorted(due))
            if self.nacks.requests > LOSSES_TO_RELEASE:
                self.estimator.release()
            now = time.monotonic()
            waiting = self.buffer.await_key and now - self._heard_at < PLI_WHILE_HEARD
            if gave_up or (waiting and now - self._pli_at > PLI_SPACING):
                await self._send_rtcp_pli(self._media_ssrc)

    async def _send_rtcp_pli(self, media_ssrc: int) -> None:
        self._pli_at = time.monotonic()
        await super()._send_rtcp_pli(media_ssrc)


def received_losses(transport: RTCDtlsTransport) -> Counter[str]:
    """What all receivers of one connection have given up so far, by cause. `transport`: the one they share, as browsers bundle everything."""
    losses: Counter[str] = Counter()
    for receiver in list(_receivers):
        if receiver.transport is transport:
            losses.update(receiver.losses())
    return losses
