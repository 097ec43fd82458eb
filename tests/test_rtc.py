"""The mends of streaming/rtc: what of aiortc they lean on, negotiation, connections."""

from __future__ import annotations

import ast
import asyncio
import hashlib
import inspect
import subprocess
import sys
import threading
from typing import Any

import aioice.ice
import aiortc
import aiortc.codecs.h264
import aiortc.codecs.opus
import aiortc.codecs.vpx
import aiortc.jitterbuffer
import aiortc.rate
import aiortc.rtcpeerconnection
import aiortc.rtcrtpreceiver
import aiortc.rtcrtpsender
import pytest

from engine.types import AvatarError
from streaming import rtc
from streaming.rtc import connection
from streaming.rtc.settings import RtcSettings
from tests.peers import LOCAL, Source, connected
from tests.peers import negotiate as exchange

MODULES = (
    aioice.ice,
    aiortc.codecs.h264,
    aiortc.codecs.opus,
    aiortc.codecs.vpx,
    aiortc.jitterbuffer,
    aiortc.rate,
    aiortc.rtcpeerconnection,
    aiortc.rtcrtpreceiver,
    aiortc.rtcrtpsender,
)

UPSTREAM = {
    # what is replaced or leant on -> digest of its source in aiortc 1.16.0 and aioice 0.13.0
    "aioice.ice.get_host_addresses": "47c9b9a55061",
    "aioice.ice.Connection.gather_candidates": "b4d9173e6bc5",
    "aioice.ice.StunProtocol": "2dafce67da2e",
    "aiortc.codecs.h264.H264Encoder": "c7b0a3a6a4b3",
    "aiortc.codecs.opus.OpusEncoder": "c5bc46561955",
    "aiortc.codecs.vpx.Vp8Encoder": "51935e523876",
    "aiortc.jitterbuffer.JitterBuffer": "7ac35d859813",
    "aiortc.rate.RemoteBitrateEstimator": "934779accc05",
    "aiortc.rate.AimdRateControl": "7e2939eb883f",
    "aiortc.rtcpeerconnection.RTCPeerConnection.__createTransceiver": "d36d4c8a41a9",
    "aiortc.rtcpeerconnection.RTCPeerConnection.__createDtlsTransport": "6080bf61327e",
    "aiortc.rtcpeerconnection.RTCPeerConnection.setLocalDescription": "497cc94d06ca",
    "aiortc.rtcpeerconnection.RTCPeerConnection.setRemoteDescription": "0d61404f6235",
    "aiortc.rtcrtpreceiver.NackGenerator": "efd9cf18356d",
    "aiortc.rtcrtpreceiver.RTCRtpReceiver": "39c5730211cf",
    "aiortc.rtcrtpreceiver.RemoteStreamTrack": "99c9190c9569",
    "aiortc.rtcrtpreceiver.TimestampMapper": "bcb807ba056b",
    "aiortc.rtcrtpreceiver.decoder_worker": "d4d16e2781aa",
    "aiortc.rtcrtpsender.RTCRtpSender": "1dd03398e10e",
}


@pytest.mark.parametrize("name", UPSTREAM)
def test_upstream_is_the_one_that_was_mended(name: str) -> None:
    assert _digest(name) == UPSTREAM[name], f"{name} has changed: read it again beside the mend in streaming/rtc, then put the new digest here."


def _digest(name: str) -> str:
    """Of the source text of module.Class.function, whatever has been put in its place at run time."""
    module = next(m for m in MODULES if name.startswith(m.__name__ + "."))
    text = inspect.getsource(module)
    node: Any = ast.parse(text)
    for part in name.removeprefix(module.__name__ + ".").split("."):
        node = next(n for n in node.body if getattr(n, "name", None) == part)
    return hashlib.sha256((ast.get_source_segment(text, node) or "").encode()).hexdigest()[:12]


def test_the_mends_are_in_place() -> None:
    rtc.install()
    rtc.install()
    for module, name, mend in connection.MENDS:
        assert getattr(module, name) is mend


def test_all_names_are_there() -> None:
    assert rtc.__all__ == sorted(rtc.__all__)
    assert all(hasattr(rtc, name) for name in rtc.__all__)


# -- negotiation -------------------------------------------------------------------------------------------------------------

ANSWER = """v=0
o=- 1 1 IN IP4 0.0.0.0
s=-
m=audio 9 UDP/TLS/RTP/SAVPF 111
a=rtpmap:111 opus/48000/2
a=fmtp:111 minptime=10
m=video 9 UDP/TLS/RTP/SAVPF 96 97 98
a=rtpmap:96 H264/90000
a=fmtp:96 packetization-mode=1
a=rtpmap:97 rtx/90000
a=fmtp:97 apt=96
a=rtpmap:98 VP8/90000
"""


def test_the_answer_asks_for_a_start_rate_on_every_video_format() -> None:
    lines = rtc.tune_answer(ANSWER, start_bitrate=2_000_000, max_bitrate=4_000_000).splitlines()
    extra = "x-google-start-bitrate=2000;x-google-max-bitrate=4000"
    assert f"a=fmtp:96 packetization-mode=1;{extra}" in lines
    assert f"a=fmtp:98 {extra}" in lines
    assert "a=fmtp:97 apt=96" in lines
    assert "a=fmtp:111 minptime=10" in lines
    assert rtc.tune_answer("\r\n".join(lines)).splitlines() == lines  # once is enough
    assert "x-google-max" not in rtc.tune_answer(ANSWER, max_bitrate=None)


def test_the_offer_loses_local_names_tcp_and_surplus_candidates() -> None:
    def line(i: int, host: str, protocol: str = "udp") -> str:
        return f"a=candidate:{i} 1 {protocol} 2113937151 {host} {40000 + i} typ host"

    good = [line(i, f"192.0.2.{i}") for i in range(1, 40)]
    offer = "\r\n".join(
        ["v=0", "m=video 9 UDP/TLS/RTP/SAVPF 96", line(0, "3f1c.local"), line(1, "192.0.2.9", "tcp"), "a=candidate:x", *good, "a=mid:0"]
    )
    assert rtc.clean_offer(offer, max_candidates=32).splitlines() == ["v=0", "m=video 9 UDP/TLS/RTP/SAVPF 96", *good[:32], "a=mid:0"]


def test_codec_preferences_hold_and_are_checked() -> None:
    async def main() -> None:
        a, b = rtc.make_peer_connection(LOCAL), rtc.make_peer_connection(LOCAL)
        a.addTrack(Source())
        await a.setLocalDescription(await a.createOffer())  # VP8 first, as aiortc offers it
        b.addTransceiver("video")
        rtc.prefer_codecs(b)
        await b.setRemoteDescription(a.localDescription)
        assert rtc.assert_codecs(b) == {"0": "H264"}
        with pytest.raises(AvatarError, match="VP9"):
            rtc.assert_codecs(b, video=("VP9",))
        with pytest.raises(RuntimeError, match="before"):
            rtc.prefer_codecs(b)
        await asyncio.gather(a.close(), b.close())

    asyncio.run(main())


# -- connections -------------------------------------------------------------------------------------------------------------


def test_nothing_but_the_configured_servers_is_asked() -> None:
    async def main() -> None:
        pc = rtc.make_peer_connection(LOCAL)
        pc.createDataChannel("x")
        gatherer = _gatherer(pc)
        assert gatherer._connection.stun_server is None
        assert gatherer._connection.turn_server is None
        await pc.setLocalDescription(await pc.createOffer())
        assert {c.ip for c in gatherer.getLocalCandidates()} == {"127.0.0.1"}
        await pc.close()
        both = rtc.make_peer_connection(RtcSettings(interfaces="both"))
        both.createDataChannel("x")
        await both.setLocalDescription(await both.createOffer())
        hosts = {c.ip for c in _gatherer(both).getLocalCandidates()}
        assert hosts == {"127.0.0.1", *connection._upstream_addresses(use_ipv4=True, use_ipv6=True)}
        await both.close()

    asyncio.run(main())


def _gatherer(pc: rtc.PeerConnection) -> Any:
    sctp: Any = pc.sctp
    return sctp.transport.transport.iceGatherer


def test_close_all_closes_everything() -> None:
    async def main() -> None:
        a, b = rtc.make_peer_connection(LOCAL), rtc.make_peer_connection(LOCAL)
        a.addTrack(Source())
        await exchange(a, b)
        await connected(a, b)
        await rtc.close_all()
        assert {a.connectionState, b.connectionState} == {"closed"}
        assert not [t.name for t in threading.enumerate() if t.name.endswith("-decoder")]

    asyncio.run(main())


def test_a_track_ends_also_where_its_connection_never_came_up() -> None:
    """Plain aiortc leaves its reader waiting for ever."""

    async def main() -> None:
        a, b = rtc.make_peer_connection(LOCAL), rtc.make_peer_connection(LOCAL)
        a.addTrack(Source())
        tracks: list[Any] = []
        b.on("track", tracks.append)
        await a.setLocalDescription(await a.createOffer())
        await b.setRemoteDescription(a.localDescription)
        reading = asyncio.create_task(rtc.LatestVideo(tracks[0]).read())
        await asyncio.sleep(0)
        await asyncio.gather(a.close(), b.close())
        with pytest.raises(rtc.TrackEnded):
            await asyncio.wait_for(reading, 2)

    asyncio.run(main())


ENDS_WITHOUT_CLOSING = """
import asyncio
from streaming import rtc
from tests.peers import LOCAL, Source, connected, negotiate

async def main():
    a, b = rtc.make_peer_connection(LOCAL), rtc.make_peer_connection(LOCAL)
    a.addTrack(Source())
    await negotiate(a, b)
    await connected(a, b)
    await asyncio.sleep(0.3)

asyncio.new_event_loop().run_until_complete(main())
"""


def test_a_program_that_forgets_to_close_still_ends() -> None:
    """Plain aiortc hangs here for ever: its decoder thread is not a daemon and nobody tells it."""
    done = subprocess.run([sys.executable, "-c", ENDS_WITHOUT_CLOSING], timeout=20, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_settings_reach_senders_and_receivers() -> None:
    async def main() -> None:
        pc = rtc.make_peer_connection(RtcSettings(interfaces="loopback", start_bitrate=700_000, camera_start_bitrate=900_000))
        pc.addTrack(Source())
        sender, receiver = pc.getSenders()[0], pc.getReceivers()[0]
        assert rtc.sender_stats(sender).target_bitrate == 700_000
        assert receiver.estimator.rate_control.current_bitrate == 900_000  # type: ignore[attr-defined]
        assert receiver.sender is sender  # type: ignore[attr-defined]
        await pc.close()

    asyncio.run(main())
