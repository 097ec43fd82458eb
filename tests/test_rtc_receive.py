"""The receiving side of streaming/rtc, part by part: repair, decoding, capture times, readers."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

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

from streaming import rtc
from streaming.rtc import clock, decode, encoders, jitter, nack, readers, remb
from streaming.rtc.receive import RTCRtpReceiver, Unwrapper, received_losses
from tests.peers import LOCAL, frame_at
from tests.test_rtc_buffers import Time, packet, sound

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
    payloads, _ = encoder.encode(frame_at(index), index == 0)
    return b"".join(aiortc.codecs.h264.h264_depayload(p) for p in payloads)


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
            await track._queue.put(frame_at(i))
        assert track._queue.qsize() == readers.VIDEO_QUEUE
        reader = rtc.LatestVideo(track)
        got = await reader.read()
        assert got.frame.pts == 49 * 3000
        assert (track.dropped, reader.dropped, reader.received) == (42, 7, 1)
        await track._queue.put(frame_at(50))
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


def test_what_a_receiver_gives_up_is_told_by_its_cause() -> None:
    async def main() -> None:
        transport: Any = SimpleNamespace(state="connected")
        elsewhere: Any = SimpleNamespace(state="connected")
        video, audio, other = RTCRtpReceiver("video", transport), RTCRtpReceiver("audio", transport), RTCRtpReceiver("video", elsewhere)
        track = readers.RemoteTrack("video")
        video._track = track
        for k in range(readers.VIDEO_QUEUE + 3):
            await track._queue.put(frame_at(k))
        for receiver, limit in ((video, decode.VIDEO_LIMIT), (audio, decode.AUDIO_LIMIT), (other, decode.VIDEO_LIMIT)):
            for k in range(limit + 1):
                receiver.waiting.put(k)
        losses = received_losses(transport)
        assert {cause: count for cause, count in losses.items() if count} == {
            "camera_unread": 3,
            "camera_decoder": decode.VIDEO_LIMIT + 1,
            "mic_decoder": decode.AUDIO_LIMIT + 1,
        }

    asyncio.run(main())
