"""The sending side."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import aiortc.rtcrtpsender as upstream


@dataclass(frozen=True, slots=True)
class SenderStats:
    """What a sender is doing. Rates in bit/s."""

    target_bitrate: int
    loss: float  # 0..1, the last receiver report's
    rtt: float | None  # s
    frames_sent: int
    frames_skipped: int  # not encoded because the link was full
    packets_sent: int
    retransmitted: int
    retransmissions_refused: int
    keyframes: int


class RTCRtpSender(upstream.RTCRtpSender):
    """aiortc's sender with the mends."""


def outgoing_rtp(sender: upstream.RTCRtpSender, pts: int, time_base: Fraction) -> int | None:
    """The RTP timestamp (0..2^32-1) that a frame with this pts carries or will carry; None before the sender has started."""
    return None


def sender_stats(sender: upstream.RTCRtpSender) -> SenderStats:
    """A snapshot for /stats."""
    return SenderStats(0, 0.0, None, 0, 0, 0, 0, 0, 0)
