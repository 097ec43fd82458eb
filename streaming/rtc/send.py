"""aiortc's sender with loss response, retransmission budget, pacing, encoders of its own and a known RTP timestamp.

Upstream (rtcrtpsender.py): encodes on the loop's default executor, follows REMB alone, answers every NACK from the last 128
packets, makes a key picture for every PLI, sends all packets of a picture at once, draws the RTP origin inside the sending
loop where nobody can read it, and gives the first sender report after half a second at the earliest. The sending loop
(`_run_rtp`, `_next_encoded_frame`, `_retransmit`) is replaced here; the RTCP loop and `stop` stay upstream's.

The subclass bears its parent's name on purpose: Python's private names (`__encoder`) then mean the parent's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import aiortc.rtcrtpsender as upstream
from aiortc import MediaStreamTrack, clock
from aiortc.codecs import get_encoder
from aiortc.mediastreams import VIDEO_CLOCK_RATE, MediaStreamError
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.rtcrtpsender import RTCEncodedFrame, random_sequence_number
from aiortc.rtp import (
    RTCP_PSFB_APP,
    RTCP_RTPFB_NACK,
    AnyRtcpPacket,
    RtcpPsfbPacket,
    RtcpRrPacket,
    RtcpRtpfbPacket,
    RtcpSrPacket,
    RtpPacket,
    compute_audio_level_dbov,
    unpack_remb_fci,
    wrap_rtx,
)
from aiortc.utils import random32, uint16_add, uint32_add
from av import AudioFrame, VideoFrame
from av.frame import Frame

from streaming.rtc.encoders import encode_pool, make_video_encoder
from streaming.rtc.opus import Opus
from streaming.rtc.rate import HISTORY, LOSS_HIGH, KeyRequests, Pacer, RateControl, ResendBudget
from streaming.rtc.settings import DEFAULTS, RtcSettings

logger = logging.getLogger(__name__)

LOSS_SCALE = 256  # fraction lost in a receiver report is in 1/256
NACK_WINDOW = 0.6  # s
NACK_TIMES = 3
SHORTEST_REPORT = 0.1  # s
SHORTEST_SLEEP = 0.002
"""s; pacing does not sleep for less, the loop is not that exact."""


@dataclass(frozen=True, slots=True)
class SenderStats:
    """What a sender is doing. Rates in bit/s."""

    target_bitrate: int
    loss: float  # 0..1, the last receiver report's
    rtt: float | None  # s
    frames_sent: int
    frames_skipped: int  # not encoded because the link was full
    packets_sent: int
    bytes_sent: int
    retransmitted: int
    retransmissions_refused: int
    keyframes: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """A picture encoded elsewhere, ready to send: what a track of `streaming.rtc.shared` yields."""

    payloads: list[bytes]  # RTP payloads
    timestamp: int  # pts in 1/90000 s
    keyframe: bool


class RTCRtpSender(upstream.RTCRtpSender):
    """aiortc's sender with the mends."""

    def __init__(self, trackOrKind: MediaStreamTrack | str, transport: RTCDtlsTransport) -> None:
        super().__init__(trackOrKind, transport)
        self.rtp_origin = random32()
        self.frames_sent = 0
        self.frames_skipped = 0
        self.budget = ResendBudget()
        self.keys = KeyRequests()
        self.pacer = Pacer()
        self._reported = (0, time.monotonic())
        self._recent: deque[tuple[int, float]] = deque(maxlen=HISTORY)  # sequence numbers and when they were sent
        self._asked: Counter[int] = Counter()
        self.configure(DEFAULTS)

    def configure(self, settings: RtcSettings) -> None:
        """Take the settings of the connection; before the sending starts."""
        self.settings = settings
        self.rate = RateControl(settings.start_bitrate, settings.min_bitrate, settings.max_bitrate)

    # -- what the other side reports -------------------------------------------------------------------------------------

    async def _handle_rtcp_packet(self, packet: AnyRtcpPacket) -> None:
        await super()._handle_rtcp_packet(packet)
        now = time.monotonic()
        if isinstance(packet, RtcpRtpfbPacket) and packet.fmt == RTCP_RTPFB_NACK:
            self._note_nack(packet.lost, now)
        if isinstance(packet, (RtcpRrPacket, RtcpSrPacket)):
            for report in packet.reports:
                if report.ssrc == self._ssrc:
                    self.rate.on_report(report.fraction_lost / LOSS_SCALE, now, sent=self._sent_since_report(now), rtt=self.__rtt)
                    if self.rate.loss > LOSS_HIGH:
                        self.pacer.forgive(self.rate.target)
        elif isinstance(packet, RtcpPsfbPacket) and packet.fmt == RTCP_PSFB_APP:
            try:
                bitrate, ssrcs = unpack_remb_fci(packet.fci)
            except ValueError:
                return
            if self._ssrc in ssrcs:
                self.rate.on_remb(bitrate)
        self._apply_rate()

    def _note_nack(self, lost: list[int], now: float) -> None:
        """Packets sent within the last NACK_WINDOW seconds and asked for NACK_TIMES are lost (a reordering link has them asked for once or twice)."""
        recent = [s for s, at in self._recent if now - at < NACK_WINDOW]
        known = set(recent)
        self._asked = Counter({s: n for s, n in self._asked.items() if s in known})
        self._asked.update(s for s in lost if s in known)
        if self.rate.on_nack(sum(n >= NACK_TIMES for n in self._asked.values()), len(recent), now):
            self.pacer.forgive(self.rate.target)

    def _sent_since_report(self, now: float) -> float:
        """bit/s between the last receiver report and this one."""
        octets, since = self._reported
        self._reported = (self.__octet_count, now)
        return 8 * (self.__octet_count - octets) / max(now - since, SHORTEST_REPORT)

    def _apply_rate(self) -> None:
        if self.kind == "video" and self.__encoder is not None:
            encoder: Any = self.__encoder
            encoder.target_bitrate = int(self.rate.target)
        note = getattr(self.__track, "note_target", None)
        if note is not None:
            note(self.rate.target)

    def _send_keyframe(self) -> None:
        self.keys.ask()
        request = getattr(self.__track, "request_keyframe", None)
        if request is not None:
            request()

    async def _retransmit(self, sequence_number: int) -> None:
        packet = self.__rtp_history.get(sequence_number % HISTORY)
        if packet is None or packet.sequence_number != sequence_number:
            return
        now, size = time.monotonic(), len(packet.payload)
        if not self.budget.allow(sequence_number, size, target=self.rate.target, rtt=self.__rtt, now=now):
            return
        self.pacer.add(size, target=self.rate.target, now=now)
        if self.__rtx_payload_type is not None:
            packet = wrap_rtx(packet, payload_type=self.__rtx_payload_type, sequence_number=self.__rtx_sequence_number, ssrc=self._rtx_ssrc)
            self.__rtx_sequence_number = uint16_add(self.__rtx_sequence_number, 1)
        await self.transport._send_rtp(packet.serialize(self.__rtp_header_extensions_map))

    # -- encoding --------------------------------------------------------------------------------------------------------

    async def _next_encoded_frame(self, codec: RTCRtpCodecParameters) -> RTCEncodedFrame | None:
        track: Any = self.__track
        data = await track.recv()
        if not self._enabled:
            return None
        if isinstance(data, Encoded):
            return self._pass_on(data)
        encoder: Any = self.__encoder
        if isinstance(data, VideoFrame) and self._link_full():
            self.frames_skipped += 1
            if encoder is not None:
                encoder.pace.see(data)
            return None
        if encoder is None:
            encoder = self.__encoder = self._make_encoder(codec)
            self._apply_rate()
        if not isinstance(data, Frame):
            return _encoded(*encoder.pack(data))
        audio_level = compute_audio_level_dbov(data) if isinstance(data, AudioFrame) else None
        key = isinstance(data, VideoFrame) and self._key_due()
        payloads, timestamp = await asyncio.get_running_loop().run_in_executor(encode_pool(), encoder.encode, data, key)
        return _encoded(payloads, timestamp, audio_level)

    def _make_encoder(self, codec: RTCRtpCodecParameters) -> Any:
        if self.kind == "video":
            return make_video_encoder(codec.name, self.settings)
        return Opus(self.settings.audio_bitrate) if codec.name.lower() == "opus" else get_encoder(codec)

    def _key_due(self) -> bool:
        """Whether this picture is a key picture: the first one always is."""
        if self.frames_sent == 0:
            self.keys.first()
            return True
        return self.keys.take(time.monotonic())

    def _link_full(self) -> bool:
        now = time.monotonic()
        return self.pacer.skip(target=self.rate.target, congested=self.rate.congested(now), now=now)

    def _pass_on(self, data: Encoded) -> RTCEncodedFrame | None:
        """A picture of the shared encoder; where the link is full this viewer waits for the next key picture."""
        if self._link_full():
            self.frames_skipped += 1
            fall_behind = getattr(self.__track, "fall_behind", None)
            if fall_behind is not None:
                fall_behind()
            return None
        if data.keyframe:
            self.keys.first()
        return _encoded(data.payloads, data.timestamp)

    # -- sending ---------------------------------------------------------------------------------------------------------

    async def _run_rtp(self, codec: RTCRtpCodecParameters) -> None:
        self.__rtp_started.set()
        self._sequence = random_sequence_number()
        payload_type = codec.payloadType
        assert payload_type is not None
        try:
            while True:
                if not self.__track:
                    await asyncio.sleep(0.02)
                    continue
                picture = await self._next_encoded_frame(codec)
                if picture is not None:
                    await self._send_picture(picture, payload_type)
        except (asyncio.CancelledError, ConnectionError, MediaStreamError):
            pass
        except Exception:
            # `stop` waits for __rtp_exited, so that nothing may leave this loop; the peer sees its track end.
            logger.exception("The %s sender stopped.", self.kind)
        if self.__track:
            self.__track.stop()
            self.__track = None
        self.__encoder = None
        self.__rtp_exited.set()

    async def _send_picture(self, picture: RTCEncodedFrame, payload_type: int) -> None:
        """Send one encoded picture or 20 ms of sound as RTP packets, spread in time where the link loses packets."""
        timestamp = uint32_add(self.rtp_origin, picture.timestamp)
        started, bits, last = time.monotonic(), 0, len(picture.payloads) - 1
        congested = self.kind == "video" and self.rate.congested(started)
        for index, payload in enumerate(picture.payloads):
            if congested:
                ahead = started + self.pacer.wait(bits, target=self.rate.target, congested=True) - time.monotonic()
                if ahead > SHORTEST_SLEEP:
                    await asyncio.sleep(ahead)
            packet = RtpPacket(payload_type=payload_type, sequence_number=self._sequence, timestamp=timestamp)
            packet.ssrc = self._ssrc
            packet.payload = payload
            packet.marker = int(index == last)
            packet.extensions.abs_send_time = (clock.current_ntp_time() >> 14) & 0x00FFFFFF
            packet.extensions.mid = self.__mid
            if picture.audio_level is not None:
                packet.extensions.audio_level = (False, -picture.audio_level)
            self.__rtp_history[self._sequence % HISTORY] = packet
            await self.transport._send_rtp(packet.serialize(self.__rtp_header_extensions_map))
            self._recent.append((self._sequence, time.monotonic()))
            self._sequence = uint16_add(self._sequence, 1)
            self.__ntp_timestamp = clock.current_ntp_time()
            self.__rtp_timestamp = timestamp
            self.__octet_count += len(payload)
            self.__packet_count += 1
            bits += 8 * len(payload)
        self.frames_sent += 1
        if self.kind == "video":
            self.pacer.add(bits // 8, target=self.rate.target, now=time.monotonic())

    def stats(self) -> SenderStats:
        """A snapshot."""
        return SenderStats(
            target_bitrate=int(self.rate.target) if self.kind == "video" else self.settings.audio_bitrate,
            loss=self.rate.loss,
            rtt=self.__rtt,
            frames_sent=self.frames_sent,
            frames_skipped=self.frames_skipped,
            packets_sent=self.__packet_count,
            bytes_sent=self.__octet_count,
            retransmitted=self.budget.sent,
            retransmissions_refused=self.budget.refused,
            keyframes=self.keys.sent,
        )


def _encoded(payloads: list[bytes], timestamp: int, audio_level: Any = None) -> RTCEncodedFrame | None:
    return RTCEncodedFrame(payloads, timestamp, audio_level) if payloads else None


def _ours(sender: upstream.RTCRtpSender) -> RTCRtpSender:
    if not isinstance(sender, RTCRtpSender):
        raise TypeError("This sender is aiortc's own: make the connection with make_peer_connection.")
    return sender


def outgoing_rtp(sender: upstream.RTCRtpSender, pts: int, time_base: Fraction) -> int:
    """The RTP timestamp (0..2^32-1) that a video frame of this pts carries: what requestVideoFrameCallback shows as rtpTimestamp."""
    return uint32_add(_ours(sender).rtp_origin, int(pts * time_base * VIDEO_CLOCK_RATE))


def sender_stats(sender: upstream.RTCRtpSender) -> SenderStats:
    """A snapshot for /stats."""
    return _ours(sender).stats()
