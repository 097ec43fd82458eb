"""A clip on the grid, what is broken in it, whether its camera moved, and which frames are good enough to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest

from engine.types import AvatarError, Motion, UInt8Array, VideoFrame, still_motion
from exporters.data import filters
from exporters.data.camera import Places
from exporters.data.damage import damaged
from exporters.data.filters import REASONS, judge, notices, runs, split
from exporters.data.footage import FPS, Footage, gridded, listen, pictures, watch
from exporters.data.motions import steady
from exporters.data.pairs import Source
from tests.test_media import tone, write_clip, write_offset_clip


class _Blind:
    """Instead of every tracker: sees nobody, at once."""

    def __init__(self, **options: Any) -> None:
        pass

    def __call__(self, *picture: Any) -> None:
        return None

    def detect(self, rgb: UInt8Array) -> list[Any]:
        return []

    def close(self) -> None:
        pass


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Follower", "BodyDriver", "FaceTracker"):
        monkeypatch.setattr(f"exporters.data.footage.{name}", _Blind)


# -- the grid ---------------------------------------------------------------------------------------------------------------


def _ids(times: Sequence[float]) -> list[int]:
    blank = np.zeros((2, 2, 3), np.uint8)
    rows = list(gridded(VideoFrame(blank, time, number) for number, time in enumerate(times, 1)))
    assert [number for number, _ in rows] == list(range(len(rows)))
    return [0 if frame is None else frame.id for _, frame in rows]


def test_thirty_pictures_a_second_become_the_nearest_of_twenty_five() -> None:
    ids = _ids([k / 30 for k in range(60)])
    assert len(ids) == 50
    assert all(abs((number - 1) / 30 - k / FPS) <= 1 / 60 + 1e-9 for k, number in enumerate(ids))


def test_a_slow_camera_stands_twice_and_a_gap_is_missing() -> None:
    assert _ids([k / 12.5 for k in range(4)]) == [1, 1, 2, 2, 3, 3, 4] or _ids([k / 12.5 for k in range(4)]) == [1, 2, 2, 3, 3, 4, 4]
    ids = _ids([0.0, 0.04, 0.08, 0.60, 0.64])
    assert ids[:4] == [1, 2, 3, 3]
    assert ids[4:14] == [0] * 10
    assert ids[14:] == [4, 4, 5]


def test_irregular_times_that_stand_still_or_go_back_do_no_harm() -> None:
    assert _ids([0.0, 0.0, 0.04, 0.03, 0.08]) == [1, 3, 5]
    assert _ids([]) == []


def test_a_clock_that_jumps_is_told() -> None:
    with pytest.raises(AvatarError, match="jump by 36000 s"):
        _ids([0.0, 0.04, 36_000.0])


# -- what is broken -----------------------------------------------------------------------------------------------------------


def _noisy(path: Path, count: int, *, keys: int) -> Path:
    """A clip that changes in every frame, a key frame every so many."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"g": str(keys), "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        noise = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
        for k in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(noise, 3 * k, 1), format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.usefixtures("blind")
def test_a_broken_stretch_is_found_up_to_the_next_key_frame_and_not_looked_at(tmp_path: Path) -> None:
    path = _noisy(tmp_path / "x.mp4", 30, keys=10)
    assert damaged(path) == []
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packet = [p for p in container.demux(video=0) if p.size][14]
        assert packet.pos is not None
        at, length = packet.pos, packet.size
    data[at + 8 : at + length] = np.random.default_rng(1).integers(0, 255, length - 8, np.uint8).tobytes()
    path.write_bytes(data)
    ((start, end),) = damaged(path)
    assert 0.3 <= start <= 0.56
    assert end == pytest.approx(0.8, abs=0.01)
    lost = (watch(path).shown == 0).nonzero()[0].tolist()
    assert lost == list(range(lost[0], 20))
    assert lost[0] == pytest.approx(start * FPS, abs=1)


@pytest.mark.usefixtures("blind")
def test_what_is_cut_off_is_told_and_the_rest_is_used(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "x.webm", times=[k / FPS for k in range(100)])
    cut = tmp_path / "cut.webm"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    footage = watch(cut)
    assert 5 < len(footage) < 95
    assert any("the file is damaged" in sentence for sentence in notices(replace(footage, duration=np.array(4.0)), {}))


@pytest.mark.usefixtures("blind")
def test_a_phone_held_upright_is_tracked_upright(tmp_path: Path) -> None:
    import struct

    path = write_clip(tmp_path / "x.mp4", times=[0.0, 0.04, 0.08], size=(96, 128))
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 36  # the display matrix, ISO 14496-12, 8.3.2
    struct.pack_into(">9i", data, at, 0, 0x10000, 0, -0x10000, 0, 0, 96 << 16, 0, 0x40000000)
    path.write_bytes(data)
    assert watch(path).size.tolist() == [128, 96]


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_an_hdr_video_is_refused_in_a_sentence(tmp_path: Path, transfer: int, name: str) -> None:
    path = tmp_path / "x.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p10le"
        stream.codec_context.color_trc = transfer
        for k in range(3):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 60 * k, np.uint8), format="rgb24").reformat(format="yuv420p10le")
            picture.color_trc = transfer
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    with pytest.raises(AvatarError, match=rf"HDR video \({name}\)"):
        watch(path)


@pytest.mark.usefixtures("blind")
def test_a_resolution_that_changes_leaves_the_first_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "x.mp4", times=[k / FPS for k in range(6)])

    def switching(path: Path) -> Any:
        yield from (VideoFrame(np.zeros((96, 128, 3) if k < 3 else (64, 64, 3), np.uint8), k / FPS, k + 1) for k in range(6))

    monkeypatch.setattr("exporters.data.footage.video_frames", switching)
    assert watch(path).shown.tolist() == [1, 2, 3, 0, 0, 0]
    assert len(list(pictures(path))) == 6


def test_sound_that_begins_after_the_picture_keeps_its_place(tmp_path: Path) -> None:
    path = write_offset_clip(tmp_path / "x.mp4", picture_at=0.0, sound=[(0.48, tone(0.5))])
    times = np.arange(24, dtype=np.float32) / FPS
    rows, heard = listen(path, times)
    assert heard
    loud = rows[:, 7].max(1) > -2.0  # the row 80 ms before the last one is that of the frame
    assert int(np.argmax(loud)) / FPS == pytest.approx(0.48, abs=0.05)


# -- smoothing without lag ----------------------------------------------------------------------------------------------------


def test_a_recording_run_backwards_is_smoothed_alike() -> None:
    times = np.arange(60, dtype=np.float32) / FPS
    head = np.cumsum(np.random.default_rng(0).normal(0, 1, (60, 6)), 0)
    head[20:23] = np.nan
    smooth = steady(head, times)
    assert np.allclose(steady(head[::-1].copy(), times[-1] - times[::-1])[::-1], smooth, atol=1e-6, equal_nan=True)
    assert np.isnan(smooth[20:23]).all()
    assert np.abs(np.diff(smooth[30:], axis=0)).mean() < 0.95 * np.abs(np.diff(head[30:], axis=0)).mean()


def test_nothing_is_smoothed_across_a_cut() -> None:
    step = np.repeat([[0.0] * 6, [10.0] * 6], 10, 0)
    times = np.arange(20, dtype=np.float32) / FPS
    source = Source(Path("x.mp4"), "x", replace(_footage(20), time=times, change=np.where(np.arange(20) == 10, 60.0, 1.0)))
    assert np.array_equal(steady(step, source.clock()), step)
    assert not np.array_equal(steady(step, times), step)


# -- the camera ---------------------------------------------------------------------------------------------------------------


def _wall(seed: int = 0) -> UInt8Array:
    """A textured wall, larger than what is seen of it."""
    noise = np.random.default_rng(seed).integers(0, 255, (60, 80, 3), np.uint8)
    return np.asarray(cv2.resize(noise, (480, 360), interpolation=cv2.INTER_CUBIC), np.uint8)


def _look(places: Places, wall: UInt8Array, x: float = 0.0, y: float = 0.0, *, change: float = 0.0) -> tuple[int, npt.NDArray[np.float64]]:
    shift = np.array([[1.0, 0.0, x - 80], [0.0, 1.0, y - 60]])
    seen = np.asarray(cv2.warpAffine(wall, shift, (320, 240)), np.uint8)
    return places.find(seen, np.asarray(cv2.cvtColor(seen, cv2.COLOR_RGB2GRAY), np.uint8), change=change)


def test_the_camera_s_motion_is_read_from_the_background() -> None:
    places, wall = Places(), _wall()
    assert _look(places, wall)[0] == 0
    place, moved = _look(places, wall)
    assert place == 0
    assert np.abs(moved).max() < 1e-3
    place, moved = _look(places, wall, 6.0, -3.0)
    assert place == 0
    assert moved == pytest.approx([6 / 240, -3 / 240, 0, 0], abs=2e-3)


def test_another_room_is_another_place_and_the_first_is_known_again() -> None:
    places = Places()
    seen = [_look(places, _wall(seed), change=40.0)[0] for seed in (0, 1, 0, 1)]
    assert seen == [0, 1, 0, 1]


def test_a_plain_wall_tells_nothing() -> None:
    noise = np.random.default_rng(0)
    places = Places()
    for _ in range(3):
        assert _look(places, (140 + noise.normal(0, 2, (360, 480, 3))).astype(np.uint8))[0] == -1


# -- which frames are good --------------------------------------------------------------------------------------------------


def _footage(count: int = 40, **other: Any) -> Footage:
    """Frames that nothing is wrong with, but for what is given."""
    rows = {
        "size": np.array([480, 640]),
        "shown": np.arange(1, count + 1),
        "time": np.arange(count, dtype=np.float32) / FPS,
        "face": np.full((count, 478, 3), 0.5, np.float32),
        "mouth": np.ones(count, np.float32),
        "body": np.full((count, 33, 4), np.nan, np.float32),
        "crowd": np.zeros(count, np.float32),
        "sharp": np.full(count, 20.0, np.float32),
        "change": np.full(count, 1.0, np.float32),
        "place": np.zeros(count, np.int64),
        "moved": np.zeros((count, 4), np.float32),
        "speech": np.full((count, 16, 80), -10.0, np.float32),
        "duration": np.array(count / FPS),
        "heard": np.array(True),
    }
    for name, value in other.items():
        rows[name] = rows[name].copy()
        rows[name][7] = value
    return Footage(**rows)


def _judged(footage: Footage, made: list[Motion | None] | None = None) -> dict[int, str]:
    motions = made or [still_motion()] * len(footage)
    verdict = judge(footage, np.full((len(footage), 478, 2), 0.5, np.float32), list(motions), 0)
    return {int(k): REASONS[verdict.reason[k] - 1] for k in np.flatnonzero(~verdict.kept)}


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"shown": 0}, "no whole picture"),
        ({"crowd": 0.8}, "two faces"),
        ({"face": 1.2}, "cut off"),
        ({"sharp": 9.0}, "blurred"),
        ({"change": 60.0}, "scene cut"),
        ({"moved": [0.02, 0, 0, 0]}, "camera moved"),
        ({"moved": [0, 0, 0.02, 0]}, "camera moved"),
        ({"place": 1}, "camera moved"),
        ({"mouth": 0.1}, "mouth covered"),
    ],
)
def test_each_fault_has_its_reason(wrong: dict[str, Any], reason: str) -> None:
    assert _judged(_footage()) == {}
    assert _judged(_footage(**wrong)) == {7: reason}


@pytest.mark.parametrize("head", [[35, 0, 0, 0, 0, 0], [0, -25, 0, 0, 0, 0], [0, 0, 40, 0, 0, 0], [0, 0, 0, 0.7, 0, 0], [0, 0, 0, 0, 0, -0.4]])
def test_a_head_out_of_the_puppet_s_reach_is_dropped_and_so_is_no_head(head: list[float]) -> None:
    made: list[Motion | None] = [still_motion()] * 40
    made[7] = replace(still_motion(), head=np.array(head, np.float32))
    made[9] = None
    assert _judged(_footage(), made) == {7: "extreme pose", 9: "no face"}


def test_a_fast_clip_has_no_cuts_and_a_plain_background_no_camera() -> None:
    footage = replace(_footage(), change=np.full(40, 25.0, np.float32))
    assert _judged(footage) == {}
    plain = replace(_footage(), place=np.full(40, -1), moved=np.full((40, 4), 9.0, np.float32))
    assert _judged(plain) == {}


def test_the_split_leaves_a_window_and_counts_only_kept_frames() -> None:
    kept = np.ones(200, bool)
    kept[60:70] = kept[150:160] = False
    train, held_out = split(kept)
    assert sum(b - a for a, b in held_out) == round(0.2 * kept.sum())
    assert held_out == [(164, 200)]
    assert train == [(0, 60), (70, 148)]
    assert split(np.zeros(10, bool)) == ([], [])
    assert runs(np.array([True, False, True, True])) == [(0, 1), (2, 4)]


def test_a_person_is_told_what_makes_a_clip_worth_less() -> None:
    shaky = list(notices(_footage(), {"camera moved": 10}))
    assert any("stands still" in sentence for sentence in shaky)
    slow = replace(_footage(), shown=np.repeat(np.arange(1, 21), 2), heard=np.array(False), place=np.full(40, -1))
    told = " ".join(notices(slow, {}))
    for word in ("12 pictures a second", "no sound", "too plain"):
        assert word in told
    assert list(notices(_footage(), {})) == []
    assert filters.why({"blurred": 3}) == " (dropped: 3 blurred)"
