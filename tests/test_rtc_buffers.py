"""The receiving buffers of streaming/rtc: pictures at the marker, sound at once, gaps given up in time."""

from __future__ import annotations

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
from aiortc.rtp import RtpPacket
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.rtc import jitter


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
    assert buffer.withheld == 1, "the whole picture before the key picture"


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
