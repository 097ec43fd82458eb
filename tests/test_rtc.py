"""Each mend of streaming/rtc on its own, and what of aiortc they lean on."""

from __future__ import annotations

import ast
import asyncio
import hashlib
import inspect
import itertools
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from types import SimpleNamespace
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
import av
import numpy as np
import pytest
from aiortc.mediastreams import VIDEO_TIME_BASE, MediaStreamError
from aiortc.rtp import RtpPacket
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.types import AvatarError
from streaming import rtc
from streaming.rtc import clock, connection, decode, encoders, jitter, nack, opus, rate, readers, remb
from streaming.rtc.receive import Unwrapper
from streaming.rtc.settings import RtcSettings
from tests.peers import FPS, LOCAL, Source, connected, pictures
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

asyncio.run(main())
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


# -- jitter buffers ------------------------------------------------------------------------------------------------------------


class Time:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


KEY = b"\x00\x00\x00\x01\x67sps"
DELTA = b"\x00\x00\x00\x01\x41"


def packet(sequence: int, timestamp: int, data: bytes, *, marker: bool = False) -> RtpPacket:
    p = RtpPacket(payload_type=96, marker=int(marker), sequence_number=sequence & 0xFFFF, timestamp=timestamp & 0xFFFFFFFF, payload=data)
    p._data = data  # type: ignore[attr-defined]
    return p


def picture(index: int, first: int, parts: int = 3, *, key: bool = False) -> list[RtpPacket]:
    head = (KEY if key else DELTA) + bytes([index])
    return [packet(first + k, 3000 * index, head if k == 0 else b"%d" % k, marker=k == parts - 1) for k in range(parts)]


def video(now: Time | None = None) -> jitter.VideoBuffer:
    return jitter.VideoBuffer(codec_of=lambda _: "H264", now=now or Time())


def feed(buffer: jitter.VideoBuffer | jitter.AudioBuffer, packets: list[RtpPacket]) -> list[jitter.Frame]:
    out = []
    for p in packets:
        _, frame = buffer.add(p)
        while frame is not None:
            out.append(frame)
            frame = buffer.pop()
    return out


def test_a_picture_leaves_at_its_marker() -> None:
    buffer = video()
    first = picture(0, 10, key=True)
    assert feed(buffer, first[:2]) == []
    (frame,) = feed(buffer, first[2:])
    assert frame.data == KEY + b"\x0012"
    assert frame.timestamp == 0
    assert len(feed(buffer, picture(1, 13))) == 1


def test_upstream_still_waits_for_the_next_picture() -> None:
    """The reason for the mend; once this fails the mend may go."""
    upstream = aiortc.jitterbuffer.JitterBuffer(capacity=512, is_video=True)
    assert [upstream.add(p)[1] for p in picture(0, 10, key=True)] == [None] * 3


def test_padding_probes_never_become_a_picture() -> None:
    buffer = video()
    probes = [packet(13 + k, 0, b"") for k in range(3)]
    frames = feed(buffer, picture(0, 10, key=True) + probes + picture(1, 16) + [packet(19, 3000, b"", marker=True)] + picture(2, 20))
    assert [f.timestamp for f in frames] == [0, 3000, 6000]
    assert all(f.data for f in frames)


def test_a_repaired_loss_releases_everything_at_once() -> None:
    buffer = video()
    feed(buffer, picture(0, 10, key=True))
    late, *rest = [p for i in range(1, 5) for p in picture(i, 10 + 3 * i)]
    assert feed(buffer, rest) == []
    assert [f.timestamp for f in feed(buffer, [late])] == [3000, 6000, 9000, 12000]


def test_a_gap_is_given_up_and_the_stream_goes_on_at_a_key_picture() -> None:
    now = Time()
    buffer = video(now)
    feed(buffer, picture(0, 10, key=True))
    feed(buffer, picture(1, 13)[1:])
    assert not buffer.expire()
    now.now += jitter.GIVE_UP + 0.01
    assert buffer.expire()
    assert buffer.await_key
    assert feed(buffer, picture(2, 16)) == []
    assert [f.timestamp for f in feed(buffer, picture(3, 19, key=True) + picture(4, 22))] == [9000, 12000]
    assert buffer.given_up == 1


def test_a_key_picture_behind_a_gap_is_enough() -> None:
    now = Time()
    buffer = video(now)
    feed(buffer, picture(0, 10, key=True) + picture(1, 13)[1:] + picture(2, 16, key=True))
    now.now += jitter.GIVE_UP + 0.01
    assert not buffer.expire()
    frame = buffer.pop()
    assert frame is not None
    assert frame.timestamp == 6000


def test_after_an_outage_the_past_is_not_waited_for() -> None:
    buffer = video()
    feed(buffer, picture(0, 10, key=True) + picture(1, 13))
    lost, frame = buffer.add(picture(95, 300)[0])
    lost = lost or buffer.add(picture(95, 300)[1])[0]
    assert lost
    assert frame is None


def test_a_stream_that_starts_anew_is_followed() -> None:
    buffer = video()
    feed(buffer, picture(0, 30_000, key=True))
    assert [f.timestamp for f in feed(buffer, picture(7, 10, key=True) + picture(8, 13))] == [21000, 24000]


def test_unrecognisable_key_pictures_are_passed_on_in_the_end() -> None:
    now = Time()
    buffer = video(now)
    for i in range(60):
        feed(buffer, picture(i, 10 + 3 * i))
    now.now += jitter.KEY_PATIENCE + 0.1
    assert feed(buffer, picture(60, 190))


@pytest.mark.parametrize(
    ("codec", "payload", "data", "key"),
    [
        ("VP8", b"\x90\x80\x01", b"\x10", True),
        ("VP8", b"\x90\x80\x01", b"\x11", False),
        ("VP8", b"\x80\x80\x01", b"\x10", False),
        ("H264", b"-", b"\x00\x00\x00\x01\x65", True),
        ("H264", b"-", b"\x00\x00\x00\x01\x09\x00\x00\x00\x01\x67", True),
        ("H264", b"-", b"\x00\x00\x00\x01\x41", False),
        ("H264", b"-", b"\x65\x65", False),
        ("H264", b"-", b"", False),
    ],
)
def test_key_pictures_are_told_by_their_first_packet(codec: str, payload: bytes, data: bytes, key: bool) -> None:
    p = packet(1, 0, data)
    p.payload = payload
    assert jitter.starts_key_picture(p, codec) is key


@given(order=st.permutations(range(24)), start=st.integers(0, 0xFFFF), twice=st.sets(st.integers(0, 23)), padding=st.sets(st.integers(1, 7)))
@settings(max_examples=60, deadline=None)
def test_any_order_gives_the_same_pictures(order: list[int], start: int, twice: set[int], padding: set[int]) -> None:
    """Packets shuffled within 24, doubled, with padding between, across the wrap of sequence numbers."""
    packets: list[RtpPacket] = []
    for i in range(8):
        if i in padding:
            packets.append(packet(start + len(packets), 3000 * (i - 1), b""))
        packets += picture(i, start + len(packets), key=i == 0)
    shuffled = [packets[k] for k in order if k < len(packets)] + packets[24:]
    frames = feed(video(), [p for k, p in enumerate(shuffled) for _ in range(2 if k in twice else 1)])
    assert [f.timestamp for f in frames] == [3000 * i for i in range(8)]


def sound(sequence: int) -> RtpPacket:
    return packet(sequence, 960 * sequence, b"o%d" % (sequence % 10))


def test_sound_leaves_at_once_and_a_lost_packet_leaves_no_backlog() -> None:
    buffer = jitter.AudioBuffer(now=Time())
    counts = [len(feed(buffer, [sound(i)])) for i in range(50) if i != 10]
    assert counts[:10] == [1] * 10
    assert counts[10:13] == [0, 0, 3]  # packets 11 and 12 waited for 10
    assert counts[13:] == [1] * 36
    assert len(buffer) == 0


def test_upstream_still_keeps_sound_back_after_a_loss() -> None:
    """aiortc issue 543: 16 packets, 320 ms, for ever. Once this fails the mend may go."""
    upstream = aiortc.jitterbuffer.JitterBuffer(capacity=16, prefetch=4)
    released = [upstream.add(sound(i))[1] for i in range(200) if i != 10]
    held = 198 - sum(frame is not None for frame in released)
    assert held >= 12


def test_sound_out_of_order_is_put_right() -> None:
    frames = feed(jitter.AudioBuffer(now=Time()), [sound(i) for i in (0, 2, 1, 3, 5, 4, 4)])
    assert [f.timestamp // 960 for f in frames] == list(range(6))


# -- repair ----------------------------------------------------------------------------------------------------------------------


def test_missing_packets_are_asked_for_again_but_not_for_ever() -> None:
    now = Time()
    tracker = nack.NackTracker(now)
    assert not tracker.add(sound(10))
    assert tracker.add(sound(13))
    assert tracker.missing == {11, 12}
    assert tracker.due() == set()
    now.now += nack.REPEAT + 0.001
    tracker.repaired = True
    assert not tracker.add(sound(12))
    asked = 0
    for _ in range(50):
        asked += len(tracker.due())
        now.now += nack.REPEAT + 0.001
    assert asked == nack.TRIES - 1
    assert tracker.due() == set()


def test_an_outage_is_not_asked_for() -> None:
    tracker = nack.NackTracker(Time())
    tracker.add(sound(1))
    assert not tracker.add(sound(2 + nack.LARGEST_GAP + 1))
    assert tracker.due() == set()


def test_a_reordering_link_is_given_time() -> None:
    now = Time()
    tracker = nack.NackTracker(now)
    tracker.add(sound(1))
    assert tracker.add(sound(3))
    tracker.add(sound(2))  # by itself
    assert not tracker.add(sound(5))
    assert tracker.due() == {4}


def test_missing_packets_across_the_wrap() -> None:
    tracker = nack.NackTracker(Time())
    tracker.add(packet(0xFFFE, 0, b"x"))
    tracker.add(packet(1, 0, b"x"))
    tracker.forget_before(0)
    assert tracker.due() == {0}


def test_resending_has_a_budget_and_a_spacing() -> None:
    budget = rate.ResendBudget()
    ask = {"target": 1e6, "rtt": 0.1}
    assert budget.allow(1, 1200, now=0.0, **ask)
    assert not budget.allow(1, 1200, now=0.09, **ask)  # the first answer is under way
    assert budget.allow(1, 1200, now=0.11, **ask)
    sent = sum(budget.allow(100 + i, 1200, now=0.2 + i / 100, **ask) for i in range(500))
    share = sent * 1200 * 8 / 5.0
    assert 0.25e6 < share < 0.36e6
    assert budget.refused >= 500 - sent


def test_the_target_follows_loss_and_estimate() -> None:
    control = rate.RateControl(1e6, 150e3, 4e6)
    control.on_report(0.2, 0.0, sent=1e6)
    assert control.target == pytest.approx(0.9e6)
    assert control.congested(5.0)
    control.on_report(0.05, 1.0, sent=1e6)
    assert control.target == pytest.approx(0.9e6)  # between the thresholds: hold
    for second in range(2, 12):
        control.on_report(0.0, float(second), sent=control.target)
    assert 1.8e6 < control.target < 2.1e6
    control.on_remb(500e3)
    assert control.target == 500e3
    control.on_remb(50e3)
    assert control.target == 150e3  # the floor


def test_a_heavy_loss_falls_to_what_got_through_and_is_won_back_fast() -> None:
    control = rate.RateControl(2e6, 150e3, 4e6)
    control.on_report(0.8, 0.0, sent=2e6)
    assert control.target == pytest.approx(0.9 * 0.2 * 2e6)
    for second in (1, 2):
        control.on_report(0.0, float(second), sent=control.target)
    assert control.target == pytest.approx(1e6)  # half of what it was, in two reports


def test_an_unused_link_is_not_credited() -> None:
    control = rate.RateControl(1e6, 150e3, 4e6)
    for second in range(20):
        control.on_report(0.0, float(second), sent=300e3)
    assert control.target == 1e6


def test_the_target_waits_while_a_queue_fills() -> None:
    control = rate.RateControl(1e6, 150e3, 4e6)
    control.on_report(0.0, 0.0, sent=1e6, rtt=0.03)
    grown = control.target
    control.on_report(0.0, 1.0, sent=2e6, rtt=0.2)
    assert control.target == grown


def test_nacks_show_a_narrow_link_before_any_report() -> None:
    control = rate.RateControl(1e6, 150e3, 4e6)
    assert not control.on_nack(3, 30, 0.0)
    assert control.on_nack(20, 30, 0.1)
    assert control.target < 0.4e6
    assert not control.on_nack(20, 30, 0.2)


def test_key_pictures_come_once_a_second() -> None:
    keys = rate.KeyRequests()
    keys.first()
    given = 0
    for frame in range(90):
        keys.ask()
        given += keys.take(frame / 30)
    assert given == 3
    assert not rate.KeyRequests().take(0.0)


def test_a_clear_link_is_neither_paced_nor_skipped() -> None:
    pacer = rate.Pacer()
    pacer.add(20_000, target=1e6, now=0.0)
    assert pacer.wait(160_000, target=1e6, congested=False) == 0
    assert not pacer.skip(target=1e6, congested=False, now=0.0)
    assert pacer.wait(160_000, target=1e6, congested=True) == pytest.approx((160_000 - 40_000) / 1.5e6)
    pacer.add(20_000, target=1e6, now=0.0)
    assert pacer.skip(target=1e6, congested=True, now=0.0)
    assert not pacer.skip(target=1e6, congested=True, now=0.2)


def test_the_estimate_starts_where_the_answer_asks_and_is_held_until_packets_are_lost() -> None:
    def told(estimator: remb.SeededEstimator, start_ms: int) -> list[int]:
        """Packets that come ever later than they were sent: an overuse, true or false."""
        out = []
        for k in range(300):
            arrival = start_ms + 10 * k + k * k // 40
            answer = estimator.add(arrival, (10 * k * (1 << 18) // 1000) & 0xFFFFFF, 500, 1)
            out += [answer[0]] if answer else []
        return out

    held = told(remb.SeededEstimator(2_000_000), 0)
    assert held[0] == pytest.approx(2_000_000, rel=0.01)
    assert min(held[:5]) >= 2_000_000
    estimator = remb.SeededEstimator(2_000_000)
    estimator.add(0, 0, 500, 1)
    estimator.release()
    freed = told(estimator, 10)
    assert remb.FLOOR <= min(freed) < 1_000_000


# -- decoding --------------------------------------------------------------------------------------------------------------------


def test_the_decoder_survives_an_empty_packet() -> None:
    """Plain FFmpeg: an empty packet flushes the decoder and every later one raises EOFError."""
    encoder = encoders.H264(LOCAL)
    encoded = [_annexb(encoder, i) for i in range(4)]
    frames = _decode([encoded[0], b"", encoded[1], encoded[2], encoded[3]])
    assert len(frames) == 4


def _annexb(encoder: encoders.H264, index: int) -> bytes:
    payloads, _ = encoder.encode(_frame(index), index == 0)
    return b"".join(aiortc.codecs.h264.h264_depayload(p) for p in payloads)


def _frame(index: int, size: int = 256, fps: int = FPS) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(pictures(size)[index % len(pictures(size))], format="yuv420p")
    frame.pts, frame.time_base = index * 90_000 // fps, VIDEO_TIME_BASE
    return frame


def _decode(data: list[bytes]) -> list[Any]:
    codec = SimpleNamespace(name="H264", mimeType="video/H264")
    tasks: queue.Queue[Any] = queue.Queue()
    for k, d in enumerate(data):
        tasks.put((codec, jitter.Frame(d, 3000 * k, 96)))
    tasks.put(None)

    async def main() -> list[Any]:
        out: asyncio.Queue[Any] = asyncio.Queue()
        await asyncio.to_thread(decode.decoder_worker, asyncio.get_running_loop(), tasks, out, threading.Event())
        frames = []
        while (frame := await out.get()) is not None:
            frames.append(frame)
        return frames

    return asyncio.run(main())


def test_a_slow_decoder_drops_the_past_and_asks_for_a_key_picture() -> None:
    overflows: list[int] = []
    waiting = decode.DecoderQueue(4, lambda: overflows.append(1))
    for k in range(5):
        waiting.put(k)
    assert overflows == [1]
    assert waiting.dropped == 5
    assert waiting.qsize() == 0
    for _ in range(6):
        waiting.put(None)
    assert waiting.qsize() == 6


# -- encoders ----------------------------------------------------------------------------------------------------------------------


def _sizes(encoder: encoders.VideoEncoder, plan: dict[int, int], count: int, *, fps: int = FPS, size: int = 256) -> list[int]:
    sizes = []
    for i in range(count):
        if i in plan:
            encoder.target_bitrate = plan[i]
        payloads, _ = encoder.encode(_frame(i, size, fps), i == 0)
        sizes.append(8 * sum(map(len, payloads)))
    return sizes


def test_h264_moves_its_rate_without_being_rebuilt() -> None:
    encoder = encoders.H264(LOCAL)
    sizes = _sizes(encoder, {0: 800_000, 60: 300_000, 120: 800_000}, 180)
    high, low, again = sum(sizes[30:60]), sum(sizes[90:120]), sum(sizes[150:180])
    assert 200_000 < low < 380_000
    assert high > 1.5 * low
    assert again > 1.5 * low
    assert encoder.opened == 1


def test_upstream_still_rebuilds_its_encoder() -> None:
    """The reason for the mend; once this fails the mend may go."""
    encoder = aiortc.codecs.h264.H264Encoder()
    encoder.encode(_frame(0))
    before = encoder.codec
    encoder.target_bitrate = 600_000
    encoder.encode(_frame(1))
    assert encoder.codec is not before


def test_h264_makes_key_pictures_on_request_only() -> None:
    encoder = encoders.H264(LOCAL)
    kinds = []
    for i in range(300):
        payloads, _ = encoder.encode(_frame(i * (7 if i == 100 else 1)), i in (0, 200))
        data = b"".join(aiortc.codecs.h264.h264_depayload(p) for p in payloads)
        if i == 0:
            assert data[4:7] == bytes([0x67, 66, 0xC0])  # baseline with the constraints of constrained baseline
        kinds.append(any(part[0] & 31 == 5 for part in data.split(b"\x00\x00\x00\x01")[1:]))
    assert [i for i, key in enumerate(kinds) if key] == [0, 200]


def test_h264_rate_counts_real_time_at_15_fps() -> None:
    sizes = _sizes(encoders.H264(LOCAL), {0: 300_000}, 75, fps=15)
    assert 200_000 < sum(sizes[30:75]) / 3 < 380_000


def test_h264_takes_odd_sizes_rgb_and_a_change_of_size() -> None:
    encoder = encoders.H264(LOCAL)
    for index, (height, width) in enumerate([(101, 67), (101, 67), (240, 320)]):
        frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 90, np.uint8), format="rgb24")
        frame.pts, frame.time_base = 3000 * index, VIDEO_TIME_BASE
        payloads, timestamp = encoder.encode(frame)
        assert payloads
        assert timestamp == 3000 * index
    assert encoder.opened == 2


def test_vp8_is_rebuilt_only_for_a_far_target() -> None:
    encoder = encoders.Vp8(LOCAL)
    sizes = _sizes(encoder, {0: 600_000, 30: 560_000, 60: 700_000, 90: 300_000}, 150)
    assert encoder.opened == 2
    assert 240_000 < sum(sizes[120:150]) < 360_000
    assert encoder.encode(_frame(150))[1] == 150 * 3000


def test_nvenc_is_probed_and_never_silently_replaced() -> None:
    works = encoders.nvenc_works()
    assert encoders.h264_name(RtcSettings(encoder="auto")) == ("h264_nvenc" if works else "libx264")
    if not works:
        with pytest.raises(AvatarError, match="x264"):
            encoders.make_video_encoder("H264", RtcSettings(encoder="nvenc"))
    with pytest.raises(AvatarError, match="VP9"):
        encoders.make_video_encoder("VP9")


def test_the_voice_is_mono_at_its_rate_and_keeps_time() -> None:
    encoder = opus.Opus(40_000)
    t = np.arange(960) / 48_000
    sizes, stamps = [], []
    for i in range(100):
        tone = (8000 * np.sin(2 * np.pi * (200 + 3 * i) * t) * (0.5 + 0.5 * np.sin(i))).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, 960 * i, Fraction(1, 48_000)
        payloads, timestamp = encoder.encode(frame)
        if payloads:
            sizes += [len(p) for p in payloads]
            stamps.append(timestamp)
    assert stamps == [960 * i for i in range(len(stamps))]
    assert len(sizes) >= 98
    assert 20_000 < 8 * 50 * np.mean(sizes) < 56_000
    assert encoder.codec.layout.name == "mono"


# -- the capture clock -----------------------------------------------------------------------------------------------------------


def _stream(seconds: float, *, drift: float = 0.0, start: int = 0, jitter_s: float = 0.03, sent: float = 0.02) -> Iterator[tuple[int, float, float]]:
    """(rtp, captured, arrival) at 30 fps: `sent` s from capture to the wire, 5 ms and 0..jitter on it."""
    for i in range(int(seconds * 30)):
        captured = 50.0 + i / 30
        rtp = (start + round((captured - 50.0) * (1 + drift) * 90_000)) % (1 << 32)
        yield rtp, captured, captured + sent + 0.005 + jitter_s * (i * 0.618 % 1)


def _errors(stream: Iterator[tuple[int, float, float]], *, reports: bool, round_trip: float = 0.01) -> list[float]:
    mapped = clock.CaptureClock(90_000)
    errors = []
    for i, (rtp, captured, arrival) in enumerate(stream):
        mapped.packet(rtp, arrival)
        if reports and i % 30 == 15:  # a report carries the RTP time of the moment it is sent
            mapped.report((rtp + round((arrival - 0.005 - captured) * 90_000)) % (1 << 32), arrival)
        capture = mapped.capture(rtp, arrival, round_trip)
        assert capture is not None
        assert capture <= arrival
        errors.append(capture - captured)
    return errors


def test_capture_times_from_arrivals_alone_contain_only_the_fixed_delay() -> None:
    errors = _errors(_stream(10), reports=False)
    assert all(abs(e - 0.020) < 0.002 for e in errors[60:])


def test_sender_reports_take_the_encoder_out() -> None:
    errors = _errors(_stream(20), reports=True)
    assert all(abs(e) < 0.002 for e in errors[150:])


def test_capture_times_hold_with_drift_and_wrap() -> None:
    errors = _errors(_stream(120, drift=100e-6, start=(1 << 32) - 90_000 * 40), reports=True)
    assert all(abs(e) < 0.006 for e in errors[150:])


def test_capture_times_never_run_backwards() -> None:
    mapped = clock.CaptureClock(90_000)
    last = 0.0
    for i, (rtp, _, arrival) in enumerate(_stream(10)):
        mapped.packet(rtp, arrival)
        if i == 40:
            mapped.report(rtp + 9000, arrival)  # the estimate falls by 50 ms and more
        capture = mapped.capture(rtp, arrival)
        assert capture is not None
        assert capture > last
        last = capture


def test_a_camera_that_starts_anew_is_followed() -> None:
    mapped = clock.CaptureClock(90_000)
    for rtp, _, arrival in _stream(3):
        mapped.packet(rtp, arrival)
    capture = None
    for i in range(60):
        mapped.packet(5_000_000 + 3000 * i, 60.0 + i / 30)
        capture = mapped.capture(5_000_000 + 3000 * i, 60.0 + i / 30)
    assert capture == pytest.approx(60.0 + 59 / 30, abs=0.01)


def test_rtp_times_are_unwrapped_both_ways() -> None:
    times = Unwrapper()
    stamps = [0xFFFFFF00, 0x100, 0x80, 0x40000000, 0x90000000, 0x10]
    pts = [times.map(s) for s in stamps]
    assert pts[:3] == [0, 0x200, 0x180]
    assert pts == sorted(pts[:1]) + pts[1:]
    assert pts[-1] > 1 << 32
    assert [times.rtp(p) for p in pts] == stamps


# -- readers -----------------------------------------------------------------------------------------------------------------------


def test_a_slow_reader_gets_the_newest_picture_and_the_end() -> None:
    async def main() -> None:
        track = readers.RemoteTrack("video")
        for i in range(50):
            await track._queue.put(_frame(i))
        assert track._queue.qsize() == readers.VIDEO_QUEUE
        reader = rtc.LatestVideo(track)
        got = await reader.read()
        assert got.frame.pts == 49 * 3000
        assert (track.dropped, reader.dropped, reader.received) == (42, 7, 1)
        await track._queue.put(_frame(50))
        await track._queue.put(None)
        assert (await reader.read()).frame.pts == 50 * 3000
        with pytest.raises(rtc.TrackEnded):
            await reader.read()

    asyncio.run(main())


def test_received_sound_is_bounded_and_mono() -> None:
    async def main() -> None:
        track = readers.RemoteTrack("audio")
        stereo = np.stack([np.full(960, 16384, np.int16), np.zeros(960, np.int16)], axis=1).reshape(1, -1)
        for i in range(300):
            frame = av.AudioFrame.from_ndarray(stereo, format="s16", layout="stereo")
            frame.sample_rate, frame.pts = 48_000, 960 * i
            await track._queue.put(frame)
        reader = rtc.BoundedAudio(track)
        chunk = await reader.read()
        assert reader.dropped == 300 - readers.AUDIO_QUEUE
        assert chunk.pcm.shape == (960,)
        assert chunk.pcm.dtype == np.float32
        assert np.allclose(chunk.pcm, 0.25)
        assert chunk.rate == 48_000

    asyncio.run(main())


# -- whole connections -------------------------------------------------------------------------------------------------------------


def test_outgoing_rtp_is_what_arrives_also_across_the_wrap() -> None:
    async def main() -> None:
        a, b = rtc.make_peer_connection(LOCAL), rtc.make_peer_connection(LOCAL)
        source = Source()
        sender: Any = a.addTrack(source)
        sender.rtp_origin = (1 << 32) - 20_000  # wraps after 0.2 s
        rtc.prefer_codecs(a)
        got: list[rtc.ReceivedVideo] = []
        done = asyncio.Event()

        async def watch(track: Any) -> None:
            reader = rtc.LatestVideo(track)
            while len(got) < 15:
                got.append(await reader.read())
            done.set()

        tasks: list[Any] = []
        b.on("track", lambda track: tasks.append(asyncio.ensure_future(watch(track))))
        await exchange(a, b)
        async with asyncio.timeout(5):
            await done.wait()
        sent = {rtc.outgoing_rtp(sender, pts, VIDEO_TIME_BASE): at for pts, at in source.left.items()}
        assert all(g.rtp in sent for g in got)
        assert got[0].rtp > got[-1].rtp
        pts = [int(g.frame.pts or 0) for g in got]
        assert pts == sorted(pts)
        errors = [g.capture - sent[g.rtp] for g in got]
        assert abs(float(np.median(errors))) < 0.05
        assert rtc.sender_stats(sender).keyframes == 1
        await asyncio.gather(a.close(), b.close(), *tasks)

    asyncio.run(main())


def test_one_encode_serves_all_viewers() -> None:
    async def main() -> None:
        shared = rtc.SharedEncoder(settings=LOCAL)
        source = Source()
        seen: dict[str, list[float]] = {"early": [], "late": []}
        tasks: list[Any] = []
        pcs: list[Any] = []

        async def pump() -> None:
            while True:
                await shared.push(await source.recv())

        async def join(name: str) -> Any:
            a, b = rtc.make_peer_connection(LOCAL), rtc.make_peer_connection(LOCAL)
            pcs.extend((a, b))

            async def watch(track: Any) -> None:
                reader = rtc.LatestVideo(track)
                while True:
                    try:
                        seen[name].append((await reader.read()).arrival)
                    except MediaStreamError:
                        return

            b.on("track", lambda track: tasks.append(asyncio.ensure_future(watch(track))))
            a.addTrack(shared.track())
            rtc.prefer_codecs(a, video=("H264",))
            await exchange(a, b)
            await connected(a, b)
            return a

        pumping = asyncio.ensure_future(pump())
        await join("early")
        await _until(lambda: len(seen["early"]) > 10)
        second = await join("late")
        await _until(lambda: len(seen["late"]) > 10)
        assert shared.viewers == 2
        assert shared.keyframes <= 4
        assert shared.encoded <= len(source.left)
        await second.close()
        assert shared.viewers == 1
        start = len(seen["early"])
        await _until(lambda: len(seen["early"]) > start + 5)
        shared.close()
        assert shared.viewers == 0
        pumping.cancel()
        await asyncio.gather(*(pc.close() for pc in pcs), return_exceptions=False)
        await asyncio.gather(*tasks)

    asyncio.run(main())


async def _until(done: Callable[[], bool], within: float = 5.0) -> None:
    async with asyncio.timeout(within):
        while not done():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_a_viewer_with_a_full_link_rests_without_slowing_the_others() -> None:
    async def main() -> None:
        shared = rtc.SharedEncoder(settings=LOCAL)
        quick: Any = shared.track()
        slow: Any = shared.track()
        for i in range(30):
            await shared.push(_frame(i))
            await quick.recv()
        assert slow.skipped >= 20  # never read: its queue was cleared, then it waits for a key picture
        slow.fall_behind()
        before = slow.skipped
        await shared.push(_frame(31))
        assert slow.skipped == before + 1
        assert shared.keyframes <= 2
        shared.close()
        with pytest.raises(MediaStreamError):
            while True:
                await quick.recv()

    asyncio.run(main())


def test_malformed_packets_and_reports_change_nothing() -> None:
    """RTCP and RTP of nonsense go through the whole receiving path."""

    async def main() -> None:
        a, b = rtc.make_peer_connection(LOCAL), rtc.make_peer_connection(LOCAL)
        a.addTrack(Source())
        await exchange(a, b)
        await connected(a, b)
        transport: Any = b.getReceivers()[0].transport
        rng = np.random.default_rng(3)
        for length in itertools.chain(range(60), (200, 1200)):
            junk = bytes([0x80]) + rng.bytes(length)
            await transport._handle_rtp_data(junk, 0)
            await transport._handle_rtcp_data(junk)
        assert b.connectionState == "connected"
        await asyncio.gather(a.close(), b.close())

    asyncio.run(main())
