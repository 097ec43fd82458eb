"""What aiortc lacks, one file a mend; see each file for what upstream does, what that costs and what is changed.

pc = make_peer_connection(RtcSettings(...))          # mends installed on first use
pc.addTrack(video); pc.addTrack(voice); prefer_codecs(pc)
await pc.setRemoteDescription(RTCSessionDescription(clean_offer(sdp), "offer"))
await pc.setLocalDescription(await pc.createAnswer()); assert_codecs(pc)
answer = tune_answer(pc.localDescription.sdp)
camera = LatestVideo(track)                          # in on_track; `await camera.read()` -> ReceivedVideo
voice = BoundedAudio(track)                          # `await voice.read()` -> AudioChunk on the session clock
outgoing_rtp(sender, frame.pts, frame.time_base)     # the RTP timestamp a frame will carry
await close_all()                                    # on shutdown
"""

from __future__ import annotations

from streaming.rtc.connection import PeerConnection, close_all, install, make_peer_connection
from streaming.rtc.negotiate import assert_codecs, clean_offer, negotiated_codecs, prefer_codecs, tune_answer
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
    "tune_answer",
]
