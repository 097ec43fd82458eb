"""The benchmarks run, short and against fakes where that will do, and their JSON lines have the fields that others rely on."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import av
import numpy as np
import pytest
from aiohttp import web
from aiortc import MediaStreamTrack, RTCSessionDescription
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import barcode, blocks, delivery, latency, loopback, media, peers, quality, stage, throughput
from benchmarks.delivery import Seen
from engine.types import GeneratorSpec, Identity, Signal, UInt8Array, VideoFrame
from streaming.rtc import make_peer_connection
from tests.conftest import require_for

P = {"p50", "p95", "p99"}


def shape(value: Any) -> Any:
    """The names of a JSON value, without its numbers."""
    return {name: shape(inner) for name, inner in value.items()} if isinstance(value, dict) else None


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(capsys.readouterr().out.rstrip("\n").split("\n")[-1])
    assert {"machine", "commit", "command"} <= set(line)
    return line


# -- what arrived -------------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0.005, 0.2), min_size=1, max_size=40))
def test_delays_are_those_of_the_first_sight(late: list[float]) -> None:
    taken = {n: 10 + n / 30 for n in range(len(late))}
    seen = [Seen(taken[n] + d, n) for n, d in enumerate(late)]
    seen += [Seen(one.time + 0.3, one.number) for one in seen] + [Seen(99.0, 12345), Seen(99.0, None)]
    assert delivery.delays(seen, taken, since=0, until=99) == pytest.approx([1000 * d for d in late])
    assert delivery.delays(seen, taken, since=10 + 1e-6, until=99) == pytest.approx([1000 * d for d in late[1:]])


def test_stalls_and_repeats() -> None:
    steady = [Seen(n / 30, n) for n in range(61)]
    gaps = delivery.intervals(steady, since=0, until=2)
    assert len(gaps) == 60
    assert delivery.stall_ratio(gaps, fps=30) == 0
    frozen = [Seen(n / 30, min(n, 20)) for n in range(61)]
    assert max(delivery.intervals(frozen, since=0, until=2)) == pytest.approx(4 / 3)
    gone = steady[:31]
    assert delivery.intervals(gone, since=0, until=2)[-1] == pytest.approx(1.0)
    assert delivery.intervals([], since=0, until=2) == [2]
    one_lost = [one for one in steady if one.number != 7]
    assert delivery.stall_ratio(delivery.intervals(one_lost, since=0, until=2), fps=30) == pytest.approx(1 / 59)


@given(st.floats(0.1, 0.6), st.floats(0.01, 0.2))
def test_a_rise_is_timed_at_its_half(start: float, attack: float) -> None:
    times = np.arange(0, 1.5, 1 / 30)
    values = 0.02 + 0.3 * np.clip((times - start) / attack, 0, 1)
    found = delivery.rise(times, values, since=0.0, until=1.4, least=0.05)
    assert found == pytest.approx(start + attack / 2, abs=1 / 50)
    assert delivery.rise(times, values, since=0.0, until=1.4, least=0.5) is None
    assert delivery.rise(times, np.full(len(times), np.nan), since=0.0, until=1.4, least=0.1) is None


def test_a_drift_and_its_error_come_back() -> None:
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, 1800, 1000))
    found, error = delivery.slope(times.tolist(), (20 + 60 * times / 3600 + rng.normal(0, 8, 1000)).tolist())
    assert found is not None
    assert error is not None
    assert error == pytest.approx(8 / np.sqrt(1000) / 0.5 * np.sqrt(12), rel=0.15)
    assert found == pytest.approx(60, abs=4 * error)
    assert delivery.slope([1.0], [1.0]) == (None, None)


def test_sound_is_timed_by_the_arrival_of_its_packet() -> None:
    from fractions import Fraction

    encoder = av.AudioCodecContext.create("libopus", "w")
    assert isinstance(encoder, av.AudioCodecContext)
    encoder.sample_rate, encoder.layout, encoder.format, encoder.bit_rate = 48_000, "mono", av.AudioFormat("s16"), 40_000
    packets = []
    for k in range(60):
        block = (blocks.clicks(k * 960 - 28_800, 960) * 32767).astype(np.int16)  # the click starts at packet 30
        frame = av.AudioFrame.from_ndarray(block[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, k * 960, Fraction(1, 48_000)
        packets += [(5.0 + k * 0.02, k * 960, bytes(packet)) for packet in encoder.encode(frame)]
    times, level = peers.sound_of(packets)
    found = delivery.rise(times, level, since=5.2, until=6.1, least=blocks.LEAST_SOUND)
    assert found == pytest.approx(5.6 + 0.0065, abs=0.012)  # 6.5 ms is the codec's own look-ahead


def test_packets_in_bunches_play_in_a_row() -> None:
    rng = np.random.default_rng(2)
    stamps = [(2**32 - 40_000 + 960 * k) % 2**32 for k in range(400)]  # the 32-bit clock wraps
    held = [7.0 + 0.02 * (k // 5 * 5 + 4) + 0.001 * (k % 5) + rng.uniform(0, 0.002) for k in range(400)]  # five at a time
    played = peers.playout([(arrival, stamp, b"x") for arrival, stamp in zip(held, stamps, strict=True)])
    assert np.allclose(np.diff(played), 0.02, atol=0.003)
    assert abs(float(np.mean(played - held))) < 0.01


def test_bursts_are_where_they_are_said_to_be() -> None:
    bursts = blocks.Bursts.make()
    onsets = bursts.onsets(100.0, 100.0 + 70.0)
    assert len(onsets) > 40
    pcm = np.concatenate([bursts.source(k * 960, 960) for k in range(70 * 50)])
    times, level = delivery.envelope(100.0 + np.arange(len(pcm)) / 48_000, pcm)
    for onset in onsets:
        found = delivery.rise(times, level, since=onset - 0.05, until=onset + 0.3, least=0.05)
        assert found == pytest.approx(onset, abs=0.012)


# -- real peers, a fake server ------------------------------------------------------------------------------------------------


class OtherSide:
    """Answers calls and sends every track back, pictures late by a known time."""

    def __init__(self, late: float) -> None:
        self.late = late
        self.url = ""
        self.pcs: list[Any] = []
        self.offers: list[dict[str, Any]] = []

    def usage(self) -> tuple[float, float]:
        return time.monotonic() * 0.5, 123.0

    async def offer(self, request: web.Request) -> web.Response:
        said = await request.json()
        self.offers.append(said)
        pc = make_peer_connection()
        self.pcs.append(pc)
        pc.on("track", lambda track: pc.addTrack(Late(track, self.late) if track.kind == "video" else track))
        await pc.setRemoteDescription(RTCSessionDescription(said["sdp"], said["type"]))
        await pc.setLocalDescription(await pc.createAnswer())
        return web.json_response({"sdp": pc.localDescription.sdp, "type": "answer", "sessionid": "abcdefgh12345678"})

    async def stats(self, _: web.Request) -> web.Response:
        return web.json_response({"sessions": {"abcdefgh": {"fps": 30}}})


class Late(MediaStreamTrack):
    kind = "video"

    def __init__(self, source: MediaStreamTrack, late: float) -> None:
        super().__init__()
        self.source, self.late = source, late

    async def recv(self) -> Any:
        frame = await self.source.recv()
        await asyncio.sleep(self.late)
        return frame


@asynccontextmanager
async def other_side(late: float) -> AsyncIterator[OtherSide]:
    side = OtherSide(late)
    app = web.Application()
    app.router.add_post("/offer", side.offer)
    app.router.add_get("/stats", side.stats)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    side.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield side
    finally:
        await asyncio.gather(*(pc.close() for pc in side.pcs))
        await runner.cleanup()


def pictures() -> list[UInt8Array]:
    """A quarter of a second of camera, small."""
    grey = np.add.outer(np.arange(160), np.arange(256)).astype(np.uint8) // 2
    red = np.stack([grey, grey // 2, grey // 4], axis=2)
    clip = media.Clip("red", lambda: (np.roll(red, k, 1) for k in range(8)), 30.0)
    return peers.camera_loop(clip, size=(160, 256))


def test_a_block_measures_a_known_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "SETTLE", 1.0)
    monkeypatch.setattr(blocks, "CAMERA_SIZE", (160, 256))

    async def go() -> tuple[blocks.Block, list[dict[str, Any]]]:
        async with other_side(0.0) as side, aiohttp.ClientSession() as http:
            block = await blocks.camera_block(http, side, pictures(), echo=True, seconds=2.0)  # type: ignore[arg-type]
            return block, side.offers

    block, offers = asyncio.run(go())
    assert offers[0]["generator"] == "echo"
    assert offers[0]["drive"] == "camera"
    assert len(block.delays) >= 30
    assert 0 < float(np.median(block.delays)) < 500
    assert block.cpu_cores == pytest.approx(0.5, abs=0.1)
    assert block.stages == {"fps": 30}
    assert block.first_frame_s < 10
    assert block.offsets


def test_a_caller_of_the_capacity_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    np.save(tmp_path / "camera.npy", np.stack(pictures()))
    monkeypatch.setattr(throughput, "CAMERA_SIZE", (160, 256))

    async def go() -> throughput.Caller:
        async with other_side(0.0) as side:
            return await throughput._call(side.url, str(tmp_path / "camera.npy"), 0.0, 1.0, 0.5)

    seen = asyncio.run(go())
    assert sum(seen.gaps) <= 1.1
    assert seen.delays


def test_a_stamp_reads_back_and_spares_the_picture() -> None:
    whole = pictures()[0]
    stamped = peers.stamp(whole, 77_777, height=160)
    frame = av.VideoFrame.from_ndarray(stamped, format="yuv420p")
    assert barcode.read(peers.luma(frame, barcode.ROWS)) == 77_777
    assert np.array_equal(stamped[barcode.ROWS : 160], whole[barcode.ROWS : 160])
    rgb = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    assert barcode.read(rgb) == 77_777
    assert np.ptp(rgb[: barcode.ROWS - 2].astype(int), axis=2).max() <= 3, "the strip is grey, so that no codec bleeds colour into it"


# -- the fields that others rely on -------------------------------------------------------------------------------------------


def test_the_loopback_line() -> None:
    block = blocks.Block(False, [50.0, 60.0], [1 / 30] * 10, 30.0, 0.4, [(1.0, 12.0)], 0.7)
    echo = blocks.Block(True, [10.0, 12.0], [1 / 30] * 10, 30.0, 0.3, [], 0.3)
    voice = blocks.Voice([200.0], [(float(t), 5.0 + t / 3600) for t in range(10)], 10, [1 / 30] * 10)
    meter = loopback.Meter(None)  # type: ignore[arg-type]
    meter.times, meter.rss = [float(t) for t in range(40)], [900.0] * 8 + [500 + t / 3600 for t in range(32)]
    result = loopback.summary([block, echo], [voice], meter)
    fixed = {name: dict.fromkeys(P) for name in ("motion_to_photon_ms", "echo_ms", "added_ms", "mic_to_photon_ms")}
    for name, inner in fixed.items():
        assert shape(result[name]) == inner
    assert {"fps", "stall_ratio", "start_to_first_frame_s", "rss_mb", "cpu_cores"} <= set(result)
    assert {"p50", "drift_per_hour"} <= set(result["av_offset_ms"])
    assert result["added_ms"]["p50"] == pytest.approx(44.0)
    assert result["av_offset_ms"]["drift_per_hour"] == pytest.approx(1.0)
    assert result["fps"] == pytest.approx(30.0)
    assert result["rss_mb"] == 900
    assert result["rss_growth_mb_per_hour"] == pytest.approx(1.0)
    assert loopback._tables(loopback.summary([], [], meter))


def test_the_capacity_line() -> None:
    def loads(*late: int) -> list[throughput.Load]:
        gaps = [[1 / 30] * (100 - n) + [0.1] * n for n in late]
        return [throughput.Load(k + 1, [throughput.Caller(g, [40.0], 30.0)], 0.5, 300.0) for k, g in enumerate(gaps)]

    result = throughput.summary(loads(0, 1, 5))
    assert result["sessions"] == 2
    assert result["fps"] == pytest.approx(100 / (99 / 30 + 0.1))
    assert throughput.summary(loads(30, 0))["sessions"] == 0
    assert throughput.summary(loads(30))["fps"] is None


@dataclass
class Still:
    """A generator that shows the portrait."""

    size: tuple[int, int] = (512, 512)
    spec: GeneratorSpec = GeneratorSpec("still", (512, 512), 30)

    def __post_init__(self) -> None:
        self.spec = GeneratorSpec("still", self.size, 30)

    def prepare(self, portrait: UInt8Array) -> Identity:
        return Identity("still", np.zeros((*self.size, 3), np.uint8), None)

    def allocate(self, rows: int) -> list[Identity | None]:
        return [None] * rows

    def admit(self, state: list[Identity | None], row: int, identity: Identity) -> None:
        state[row] = identity

    def reset(self, state: list[Identity | None], row: int) -> None:
        """Nothing to forget."""

    def evict(self, state: list[Identity | None], row: int) -> None:
        state[row] = None

    def step(self, state: list[Identity | None], signals: Sequence[Sequence[Signal] | None]) -> list[list[VideoFrame] | None]:
        def show(identity: Identity | None, row: Sequence[Signal]) -> list[VideoFrame]:
            assert identity is not None
            return [VideoFrame(identity.portrait, s.time, s.id) for s in row]

        return [None if row is None else show(identity, row) for identity, row in zip(state, signals, strict=True)]


def a_clip(path: Path, frames: int = 12) -> Path:
    from engine.media import Writer

    with Writer(path) as writer:
        for i in range(frames):
            writer.write_frame(VideoFrame(np.full((96, 128, 3), 90 + 5 * i, np.uint8), i / 30, i))
    return path


def test_latency_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from engine import generators

    monkeypatch.setitem(generators.NAMES, "still", f"{__name__}:Still")
    clip = a_clip(tmp_path / "clip.mp4")
    words = ["--generator", "still", "--size", "128", "512", "--frames", "4", "--clip", str(clip), "--plot", str(tmp_path / "plot.png")]
    assert latency.main(words) == 0
    line = last_line(capsys)
    assert [row["size"] for row in line["rows"]] == [[128, 128], [512, 512]]
    names = {"generator", "preset", "backend", "precision", "size", "steps", "laps", "step_ms", "cpu_ms", "floor_ms"}
    for row in line["rows"]:
        assert names <= set(row)
        assert set(row["step_ms"]) == set(row["cpu_ms"]) == P
        assert (row["steps"], row["laps"]) == (1, 4)
        assert row["floor_ms"] > 0
    assert set(line["drivers"]) == {"face", "body", "speech"}
    assert all(set(driver["cpu_ms"]) == P for driver in line["drivers"].values())
    assert line["ratios"]
    assert (tmp_path / "plot.png").stat().st_size > 1000


@pytest.mark.torch
def test_latency_measures_the_diffusion_generator(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    require_for("diffusion")
    clip = a_clip(tmp_path / "clip.mp4")
    monkeypatch.setattr(latency, "driver_times", lambda clip, count: {})
    asked = ["--preset", "tiny", "--size", "64", "--steps", "1", "2", "--rows", "2", "--mode", "eager", "--device", "cpu"]
    words = ["--generator", "diffusion", *asked, "--frames", "4", "--stream-frames", "6", "--clip", str(clip)]
    assert latency.main(words) == 0
    line = last_line(capsys)
    assert [(row["size"], row["steps"], row["rows"]) for row in line["rows"]] == [([64, 64], steps, 2) for steps in (1, 2)]
    for row in line["rows"]:
        assert (row["preset"], row["backend"], row["precision"], row["device"]) == ("tiny", "pytorch eager", "fp32", "cpu")
        assert all(0 < row[name] < np.inf for name in ("gflop", "mbytes", "floor_ms", "over_floor"))
    assert line["rows"][1]["gflop"] > 1.5 * line["rows"][0]["gflop"]
    assert line["rates"]["gflop_s"] > 0
    assert line["rates"]["gbyte_s"] > 0
    assert line["stream"]["frames"] == 6
    assert 0 < line["stream"]["ratio"] < 10
    assert np.isfinite(line["stream"]["rss_growth_mb"])
    assert (line["caches"]["preset"], line["caches"]["size"], line["caches"]["frames"]) == ("tiny", [64, 64], 6)
    assert line["ratios"]["window"] > 1
    assert line["ratios"]["reference"] > 1
    assert line["ratios"]["generator_share"] > 0
    assert line["chain"]["diffusion"]["size"] == [64, 64]


def test_latency_says_what_it_leaves_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from engine import generators

    monkeypatch.setattr(generators, "NAMES", {"diffusion": "nowhere:Diffusion", "still": f"{__name__}:Still"})
    monkeypatch.setattr(latency, "missing", lambda name: "PyTorch is not installed." if name == "diffusion" else None)
    monkeypatch.setattr(latency, "driver_times", lambda clip, count: {})
    assert latency.main(["--size", "512", "--frames", "2", "--clip", str(a_clip(tmp_path / "clip.mp4"))]) == 0
    line = last_line(capsys)
    assert line["notes"] == ["Left out: diffusion. PyTorch is not installed."]
    assert [row["generator"] for row in line["rows"]] == ["still"]


def test_quality_runs_and_finds_that_the_puppet_follows(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from engine.media import Writer
    from engine.types import AudioChunk

    speech = media.babble(2.0)
    with Writer(tmp_path / "speech.mp4", audio_rate=speech.rate) as writer:
        for i in range(60):
            writer.write_frame(VideoFrame(np.zeros((64, 64, 3), np.uint8), i / 30, i))
        writer.write_audio(AudioChunk(speech.pcm, speech.rate, 0.0))
    sound = media.read_sound(tmp_path / "speech.mp4")
    assert sound.duration == pytest.approx(2.0, abs=0.1)
    words = [
        "--limit",
        "45",
        "--size",
        "256",
        "--no-body",
        "--skip",
        "speech",
        "still",
        "--sheet",
        str(tmp_path / "s.png"),
        "--plot",
        str(tmp_path / "p.png"),
    ]
    assert quality.main(words) == 0
    line = last_line(capsys)
    assert set(line["correlation"]) == {"yaw", "pitch", "roll", "jaw", "eye_left", "eye_right"}
    assert {"lag_frames", "neutral_psnr_db", "shimmer", "speech_correlation", "speech_lag_frames"} <= set(line)
    assert line["correlation"]["yaw"] > 0.9
    assert abs(line["lag_frames"]) <= 1
    assert line["shimmer"] is None
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("s.png", "p.png"))


def test_a_voice_and_a_still_driver_are_measured() -> None:
    staged = stage.Stage("puppet", media.demo(), name="built-in", size=256, body=False)
    said = stage.drive_with_speech(staged, media.babble(2.5), name="babble", silence=1.0)
    assert len(said.times) == len(said.opening) == len(said.envelope)
    assert said.correlation > 0.3
    assert said.silence_gap < 0.05
    found = stage.neutral_psnr(staged)
    assert found is not None
    assert found > 35
    assert 0 <= stage.still(staged, media.demo(), noise=0.0, seconds=0.8, warm=0.4) < 5


def test_a_generator_is_driven_with_what_it_needs() -> None:
    from benchmarks.signals import signals

    clip, motions = media.moving_portrait(0.4, size=192)
    plain = signals(("motion",), motions, clip)
    assert [signal.motion for signal in plain] == motions
    assert all(signal.image is None and signal.pcm is None and signal.speech is None for signal in plain)
    seen = signals(("motion", "image", "face"), motions, clip)
    assert [(signal.time, signal.id, signal.motion) for signal in seen] == [(signal.time, signal.id, signal.motion) for signal in plain]
    assert all(signal.face is not None and signal.image is not None and signal.image.shape == (192, 192, 3) for signal in seen)
    heard = [signal.pcm for signal in signals(("pcm",), motions * 4, clip) if signal.pcm is not None]
    assert [len(pcm) for pcm in heard] == [2560] * 4 * len(motions)
    assert max(float(np.abs(pcm).max()) for pcm in heard) > 0.1, "somebody babbles"


@pytest.mark.torch
@pytest.mark.parametrize(
    ("words", "preset"), [(["reenact", "--preset", "tiny"], "tiny"), (["lipsync", "--option", "model=musetalk_tiny"], "musetalk_tiny")]
)
def test_latency_measures_whatever_has_networks(
    words: list[str], preset: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    require_for("diffusion")
    monkeypatch.setattr(latency, "driver_times", lambda clip, count: {})
    monkeypatch.setattr(latency, "FRAMES", 4)
    assert latency.main(["--generator", *words, "--backend", "pytorch", "openvino", "--frames", "4"]) == 0
    line = last_line(capsys)
    assert [(row["preset"], row["size"]) for row in line["rows"]] == [(preset, line["rows"][0]["size"])] * 2
    assert [row["backend"].split()[0] for row in line["rows"]] == ["pytorch", "openvino"]
    assert all(row["laps"] == 4 and row["cpu_ms"]["p50"] > 0 and row["floor_ms"] is None for row in line["rows"])
    assert line["chain"][words[0]]["chain"]["cpu_ms"]["p50"] > 0


def test_an_option_that_is_none_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        latency.main(["--option", "model"])
    assert "'model' is no option; write NAME=VALUE" in capsys.readouterr().err
