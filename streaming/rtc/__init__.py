"""What aiortc lacks, one file a mend; see each file for what upstream does, what that costs and what is changed.

pc = make_peer_connection(RtcSettings(...))          # mends installed on first use
pc.addTrack(video); pc.addTrack(voice); prefer_codecs(pc)
await take_offer(pc, sdp)                            # AvatarError where it makes no sense
answer = tune_answer(pc.localDescription.sdp)
camera = LatestVideo(track)                          # in on_track; `await camera.read()` -> ReceivedVideo
voice = BoundedAudio(track)                          # `await voice.read()` -> AudioChunk on the session clock
outgoing_rtp(sender, frame.pts, frame.time_base)     # the RTP timestamp a frame will carry
await close_all()                                    # on shutdown

jitter     pictures leave at the marker, sound at once; a gap is given up in time
nack       lost packets are asked for again
remb       the camera's uplink starts where the answer asks
decode     bounded, survives empty packets, ends with the program
clock      capture times of received frames on this machine's clock
readers    newest picture wins, sound is bounded
encoders   x264, VP8, NVENC whose rate moves without key pictures
opus       one voice, mono, with error correction
rate       loss response, retransmission budget, pacing, key pictures
negotiate  codecs, start rates, candidates
shared     one encode for all viewers
send, receive, connection: aiortc's classes with these parts in them

Upstream is aiortc 1.16 and aioice 0.13; tests/test_rtc.py holds digests of everything leant on, so that an upgrade is noticed.
"""

from __future__ import annotations

from streaming.rtc.connection import PeerConnection, close_all, install, make_peer_connection
from streaming.rtc.negotiate import assert_codecs, clean_offer, negotiated_codecs, prefer_codecs, take_offer, tune_answer
from streaming.rtc.readers import BoundedAudio, LatestVideo, ReceivedVideo, TrackEnded
from streaming.rtc.send import SenderStats, outgoing_rtp, sender_stats
from streaming.rtc.settings import RtcSettings
from streaming.rtc.shared import SharedEncoder

__all__ = [
    "BoundedAudio",
    "LatestVideo",
    "PeerConnection",
    "ReceivedVideo",
    "RtcSettings",
    "SenderStats",
    "SharedEncoder",
    "TrackEnded",
    "assert_codecs",
    "clean_offer",
    "close_all",
    "install",
    "make_peer_connection",
    "negotiated_codecs",
    "outgoing_rtp",
    "prefer_codecs",
    "sender_stats",
    "take_offer",
    "tune_answer",
]
