"""The benchmarks' own instruments are right: bar code, percentiles, pose, correlation, tables and the JSON lines' fields."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import barcode, measure, media
from benchmarks.common import Laps, Table, arguments, command, minus, percentiles, plain, report
from engine.pose import angles, rotation
from engine.types import AudioChunk, UInt8Array
from tests.conftest import require_for

numbers = st.integers(0, (1 << barcode.ID_BITS) - 1)


def picture(seed: int, height: int, width: int) -> UInt8Array:
    """Noise that no encoder likes, darkened and brightened by turns."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


@settings(max_examples=60, deadline=None)
@given(number=numbers, width=st.integers(barcode.LOWEST_WIDTH, 1280), seed=st.integers(0, 99))
def test_a_bar_code_reads_back(number: int, width: int, seed: int) -> None:
    rgb = picture(seed, 96, width)
    below = rgb[barcode.ROWS :].copy()
    barcode.draw(rgb, number)
    assert barcode.read(rgb) == number
    assert np.array_equal(rgb[barcode.ROWS :], below)


@settings(max_examples=60, deadline=None)
@given(number=numbers, width=st.integers(256, 640), to=st.integers(256, 640), quality=st.integers(30, 90))
def test_a_bar_code_survives_resizing_and_a_coarse_codec(number: int, width: int, to: int, quality: int) -> None:
    import cv2

    rgb = picture(number % 97, 128, width)
    barcode.draw(rgb, number)
    # What composite does with the strip: the driving picture's top rows, resized in width, over the avatar's.
    avatar = picture(number % 89, 128, to)
    avatar[: barcode.ROWS] = cv2.resize(rgb[: barcode.ROWS], (to, barcode.ROWS), interpolation=cv2.INTER_NEAREST)
    _, coded = cv2.imencode(".jpg", avatar, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert barcode.read(np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)) == number


@settings(max_examples=100, deadline=None)
@given(number=numbers, flips=st.sets(st.integers(2, barcode.CELLS - 3), min_size=1, max_size=3))
def test_a_damaged_bar_code_is_refused(number: int, flips: set[int]) -> None:
    row = barcode.cells(number)
    row[list(flips)] ^= 1
    rgb = np.repeat(np.repeat(row * np.uint8(255), 8)[None, :, None], barcode.ROWS, 0).repeat(3, 2)
    assert barcode.read(rgb) is None


def test_a_picture_without_a_bar_code_has_no_number() -> None:
    assert barcode.read(np.zeros((64, 512, 3), np.uint8)) is None
    assert barcode.read(np.full((64, 512, 3), 255, np.uint8)) is None
    assert sum(barcode.read(picture(seed, 64, 512)) is not None for seed in range(200)) == 0


@pytest.mark.parametrize("codec", ["libx264", "libvpx"])
def test_a_bar_code_survives_a_real_codec(codec: str) -> None:
    from fractions import Fraction

    import av

    encoder = av.VideoCodecContext.create(codec, "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt, encoder.bit_rate = 512, 512, "yuv420p", 500_000
    encoder.time_base = Fraction(1, 30)
    encoder.options = {"tune": "zerolatency", "preset": "superfast"} if codec == "libx264" else {"deadline": "realtime", "cpu-used": "6"}
    decoder = av.CodecContext.create("h264" if codec == "libx264" else "vp8", "r")
    assert isinstance(decoder, av.VideoCodecContext)
    sent: list[int] = []
    got: list[int | None] = []

    def seen(out: av.VideoFrame) -> int | None:
        return barcode.read(np.asarray(out.to_ndarray(format="rgb24"), np.uint8))

    background = picture(1, 512, 512) // 2 + 60
    for i in range(12):
        number = (i * 99_991 + 7) % (1 << barcode.ID_BITS)
        rgb = np.roll(background, 9 * i, axis=1)
        barcode.draw(rgb, number)
        sent.append(number)
        frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
        frame.pts = i
        got += [seen(out) for packet in encoder.encode(frame) for out in decoder.decode(packet)]
    got += [seen(out) for packet in encoder.encode(None) for out in decoder.decode(packet)]
    got += [seen(out) for out in decoder.decode(None)]
    assert got == sent


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200))
def test_percentiles_are_ordered_and_inside(values: list[float]) -> None:
    found = percentiles(values)
    p50, p95, p99 = (found[name] for name in ("p50", "p95", "p99"))
    assert p50 is not None
    assert p95 is not None
    assert p99 is not None
    assert min(values) - 1e-6 <= p50 <= p95 + 1e-6 <= p99 + 2e-6 <= max(values) + 3e-6


def test_percentiles_of_a_hundred_and_one_numbers() -> None:
    assert percentiles(range(101)) == {"p50": 50.0, "p95": 95.0, "p99": 99.0}
    assert percentiles([float("nan"), 3.0, float("inf")]) == {"p50": 3.0, "p95": 3.0, "p99": 3.0}
    assert percentiles([]) == {"p50": None, "p95": None, "p99": None}
    assert minus(percentiles([5.0]), percentiles([])) == {"p50": None, "p95": None, "p99": None}


def a_face(rng: np.random.Generator) -> measure.Float64Array:
    """A made-up head: points on half an ellipsoid, with eyes, lips, forehead and chin where the mesh has them."""
    points = rng.normal(0, 1, (478, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    points[:, 2] = -np.abs(points[:, 2])
    points *= (70, 95, 60)
    fixed = {
        10: (0, -90, -20),
        152: (0, 92, -15),
        2: (0, 25, -20),
        33: (-45, -20, -20),
        133: (-15, -20, -25),
        362: (15, -20, -25),
        263: (45, -20, -20),
    }
    for name, pairs in measure.LIDS.items():
        middle = -30 if name == "eye_left" else 30
        for k, (upper, lower) in enumerate(pairs):
            fixed[upper], fixed[lower] = (middle + 5 * k - 5, -25, -28), (middle + 5 * k - 5, -15, -28)
    for k, (upper, lower) in enumerate(measure.INNER_LIPS):
        fixed[upper], fixed[lower] = (10 * k - 10, 50, -30), (10 * k - 10, 50, -30)
    for index, value in fixed.items():
        points[index] = value
    return points


def test_pose_and_apertures_of_a_known_face_come_back() -> None:
    rng = np.random.default_rng(3)
    shape = a_face(rng)
    n = 60
    t = np.arange(n) / 30
    yaw, pitch, roll, gap = 12 * np.sin(3 * t), 6 * np.sin(5 * t), 9 * np.cos(4 * t), 15 * (1 + np.sin(6 * t))
    lid = 5 + 4 * np.cos(7 * t)
    points, turns = np.empty((n, 478, 3)), np.empty((n, 3, 3))
    portrait = rotation(8, -12, 5)  # a portrait's own pose must not matter
    for i in range(n):
        face = shape.copy()
        for upper, lower in measure.INNER_LIPS:
            face[upper, 1] -= gap[i] / 2
            face[lower, 1] += gap[i] / 2
        face[measure.CHIN, 1] += gap[i]  # the jaw must not read as pitch
        for upper, lower in measure.LIDS["eye_left"]:
            face[upper, 1], face[lower, 1] = -20 - lid[i] / 2, -20 + lid[i] / 2
        turns[i] = rotation(yaw[i], pitch[i], roll[i])
        points[i] = 1.3 * face @ portrait.T @ turns[i].T + (250, 240, 0) + rng.normal(0, 0.05, (478, 3))
    points[17] = np.nan
    series = measure.measure(points)
    assert series.lost == 1
    seen = np.isfinite(series.yaw)
    middle = measure.mean_rotation(turns[seen])
    truth = np.array([angles(turn @ middle.T) for turn in turns])
    for k, name in enumerate(("yaw", "pitch", "roll")):
        assert np.abs(series.channel(name) - truth[:, k])[seen].max() < 0.2, name
    height = 182 + float(np.median(gap))
    assert np.allclose(series.jaw[seen], gap[seen] / height, atol=0.01)
    assert np.allclose(series.eye_left[seen], lid[seen] / 30, atol=0.02)
    assert np.nanstd(series.eye_right) < 0.01


@given(lag=st.integers(-4, 4))
def test_a_known_lag_is_found(lag: int) -> None:
    wave = np.random.default_rng(0).normal(size=300).cumsum()
    driver, output = wave[10:200], 0.5 * wave[10 - lag : 200 - lag] + 3
    assert measure.best_lag([driver], [output]) == lag
    assert measure.correlation(driver, output, lag) == pytest.approx(1.0)


def test_a_channel_that_does_not_move_is_not_judged() -> None:
    rng = np.random.default_rng(1)
    still, moving = np.zeros(50), 10 * np.sin(np.arange(50) / 3)
    driver = measure.Series(moving, still + rng.normal(0, 0.1, 50), still, still, still, still, 0)
    output = measure.Series(0.7 * moving, rng.normal(0, 5, 50), still, still, still, still, 0)
    found = measure.follow(driver, output)
    assert found.lag_frames == 0
    assert found.correlation["yaw"] == pytest.approx(1.0)
    assert found.gain["yaw"] == pytest.approx(0.7)
    assert [found.correlation[name] for name in measure.CHANNELS if name != "yaw"] == [None] * 5


def test_psnr_counts_only_the_mask() -> None:
    a = np.zeros((8, 8, 3), np.uint8)
    b = a.copy()
    b[:4] = 255
    b[4:] = 16
    mask = np.zeros((8, 8), bool)
    mask[4:] = True
    assert measure.psnr(a, b, mask) == pytest.approx(20 * np.log10(255 / 16))
    assert measure.psnr(a, a, mask) == 99.0


def test_the_envelope_sits_on_its_sound() -> None:
    pcm = np.zeros(16_000, np.float32)
    pcm[8000:9600] = 0.5
    times = np.arange(30) / 30
    loud = media.envelope(AudioChunk(pcm, 16_000, 0.0), times, span=1 / 30)
    centre = float((loud * (times + 1 / 60)).sum() / loud.sum())
    assert centre == pytest.approx(0.55, abs=0.02)
    babble = media.babble(3.0)
    assert babble.duration == pytest.approx(3.0)
    assert 0.1 < float(np.abs(babble.pcm).max()) <= 1.0


def test_a_benchmark_ends_in_one_json_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    target = tmp_path / "deep" / "line.json"
    options = arguments("latency", None).parse_args(["--json", str(target)])
    laps = Laps()
    with laps:
        sum(range(1000))
    table = Table(("what", "ms"), title="a title")
    table.add("sum", laps.wall_ms[0])
    table.add("nothing", None)
    report("latency", ["--size", "256"], {"a": np.float32(0.123456), "b": float("nan"), "c": [np.int64(3)]}, tables=[table], json_file=options.json)
    printed = capsys.readouterr().out.rstrip("\n").split("\n")
    line = json.loads(printed[-1])
    assert line["a"] == 0.1235
    assert line["b"] is None
    assert line["c"] == [3]
    assert {"machine", "commit", "command", "benchmark"} <= set(line)
    assert line["command"] == "python avatar.py bench latency --size 256"
    assert json.loads(target.read_text()) == line
    assert any("n/a" in row for row in printed)
    with pytest.raises(ValueError, match="3 cells"):
        table.add(1, 2, 3)


def test_numbers_are_made_plain_for_json() -> None:
    assert plain({"x": (1, 2.00004, True, None, "s", np.float64(1234567.0))}) == {"x": [1, 2.0, True, None, "s", 1235000.0]}
    assert command("quality", ["--portrait", "a b.jpg"]) == "python avatar.py bench quality --portrait 'a b.jpg'"


@pytest.mark.torch
def test_the_floor_counts_what_a_step_multiplies() -> None:
    """Against the counter on a step that really runs, with attention spelled out: PyTorch does not count the fused one on a CPU."""
    require_for("diffusion")
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks import bare, floor
    from engine.generators.diffusion.presets import preset

    made = preset("tiny")
    one = bare.bare(bare.random_networks(made, precision="fp32", device="cpu"), steps=2, precision="fp32", device="cpu")
    counter = FlopCounterMode(display=False)
    with counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        picture = one.step()
    found = floor.work(made, steps=2, precision="fp32")
    assert found.gflop == pytest.approx(counter.get_total_flops() / 1e9, rel=1e-6)
    assert picture.shape == (1, 1, *made.size, 3)
    assert picture.float().std() > 1
    twice = floor.work(made, steps=2, precision="fp32", rows=2)
    assert twice.gflop == pytest.approx(2 * found.gflop)
    assert found.mbytes < twice.mbytes < 2 * found.mbytes  # the weights are read once
    assert floor.work(made, steps=2, precision="bf16").mbytes < 0.55 * found.mbytes


@pytest.mark.torch
def test_the_floor_is_below_a_step() -> None:
    require_for("diffusion")
    from benchmarks import bare, floor
    from engine.generators.diffusion.presets import preset

    made = preset("compact")
    one = bare.bare(bare.random_networks(made, precision="fp32", device="cpu"), steps=1, precision="fp32", device="cpu")
    one.step()
    laps = Laps()
    for _ in range(3):
        with laps:
            one.step()
    rates = floor.rates("cpu", "fp32")
    assert 0 < rates.floor_ms(floor.work(made, steps=1, precision="fp32")) < min(laps.cpu_ms)
    work = floor.Work(gflop=2.0, mbytes=500.0)
    assert floor.Rates("cpu", "fp32", gflop_s=100.0, gbyte_s=10.0).floor_ms(work) == pytest.approx(50.0)
    assert floor.Rates("cpu", "fp32", gflop_s=10.0, gbyte_s=10.0).floor_ms(work) == pytest.approx(200.0)


def test_a_stream_is_compared_with_its_beginning() -> None:
    from benchmarks import window
    from engine.types import AvatarError

    calls = []
    found = window.growth(lambda: calls.append(sum(range(20_000))), 40, device="cpu", warm_up=3)
    assert len(calls) == 43
    assert found["frames"] == 40
    assert 0.2 < found["ratio"] < 5
    with pytest.raises(AvatarError, match="--stream-frames"):
        window.growth(lambda: None, 1, device="cpu")


@pytest.mark.torch
def test_the_gpu_benchmark_runs_on_a_cpu_without_the_rest_of_the_house(tmp_path: Path) -> None:
    """In a process of its own, to see what it imports."""
    require_for("diffusion")
    words = "--preset tiny --device cpu --steps 1 --sessions 1 2 --modes eager cudagraph --frames 3 --seconds 1 --alone --json"
    target = tmp_path / "line.json"
    code = f"""
import sys, torch
torch.set_num_threads(1)
from benchmarks import gpu
status = gpu.main({words.split()!r} + [{str(target)!r}])
print(status, sorted({{"av", "cv2", "mediapipe", "transformers", "aiortc", "numba", "scipy", "psutil", "engine.persona"}} & set(sys.modules)))
"""
    out = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True)
    assert out.stdout.rstrip().split("\n")[-1].startswith("0 [")
    loaded = set(ast.literal_eval(out.stdout.rstrip().split("\n")[-1].partition(" ")[2]))
    assert loaded <= {"transformers", "scipy"}, "which diffusers itself imports where they are installed"
    line = json.loads(target.read_text())
    assert line["command"].startswith("python -m benchmarks.gpu --preset tiny")
    assert [(row["mode"], row["sessions"], row["error"] is None) for row in line["rows"]] == [
        ("eager", 1, True),
        ("eager", 2, True),
        ("cudagraph", 1, False),
    ]
    assert all(row["fps"] > 0 and row["ms"]["p50"] > 0 and row["floor_ms"] > 0 and row["session_mb"] > 0 for row in line["rows"][:2])
    assert line["caches"]["window"] > 1
    assert line["caches"]["reference"] > 1
    assert line["left_out"] == []
