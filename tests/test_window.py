"""The window puts irregular signals on the generator's grid; virtual time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batch import Batch
from engine.config import SessionSettings
from engine.pose import angles, rotation, umeyama
from engine.session import Session
from engine.types import AudioChunk, GeneratorSpec, Signal
from engine.window import CAMERA_GONE, RE_ANCHOR, Cadence, Window
from tests.fakes import SIDE, FakeBody, FakeFace, FakeGenerator, fake_persona

NEVER = float("-inf")


def test_a_camera_signal_is_due_at_once_and_only_once() -> None:
    window = Window(fps=30)
    window.see(Signal(time=1.0, id=7), now=1.01)
    due = window.due(now=1.01, heard_until=NEVER, drive="camera")
    assert due is not None
    assert due.grid == "camera"
    assert [s.id for s in due.signals] == [7]
    assert window.due(now=1.02, heard_until=NEVER, drive="camera") is None


def test_the_newest_camera_signal_wins_and_the_drop_is_counted() -> None:
    window = Window(fps=30)
    for k in range(5):
        window.see(Signal(time=k / 30, id=k), now=k / 30)
    due = window.due(now=0.15, heard_until=NEVER, drive="auto")
    assert due is not None
    assert [s.id for s in due.signals] == [4]
    assert window.dropped == 4


def test_a_chunk_waits_until_it_is_full_and_keeps_order() -> None:
    window = Window(fps=25, chunk=3)
    for k in range(2):
        window.see(Signal(time=k / 25, id=k), now=k / 25)
        assert window.due(now=k / 25, heard_until=NEVER, drive="camera") is None
    window.see(Signal(time=2 / 25, id=2), now=2 / 25)
    due = window.due(now=2 / 25, heard_until=NEVER, drive="camera")
    assert due is not None
    assert [s.id for s in due.signals] == [0, 1, 2]


@given(st.lists(st.floats(0.001, 0.08), min_size=20, max_size=200), st.sampled_from([1, 2, 3]), st.sampled_from([24.0, 25.0, 30.0]))
def test_voice_frames_are_evenly_spaced_and_never_before_their_sound(steps: list[float], chunk: int, fps: float) -> None:
    window = Window(fps=fps, chunk=chunk, look_ahead=0.08)
    now, times = 10.0, []
    for step in steps:
        now += step
        while (due := window.due(now=now, heard_until=now, drive="voice")) is not None:
            assert due.grid == "voice"
            assert len(due.signals) == chunk
            assert due.signals[-1].time + 1 / fps + 0.08 <= now + 1e-6, "sound of the frame not heard yet"
            times += [s.time for s in due.signals]
    np.testing.assert_allclose(np.diff(times), 1 / fps, atol=1e-6)
    if times:
        assert now - times[-1] < 0.08 + (chunk + 1) / fps + 0.09


def test_the_portrait_never_freezes_without_camera_and_sound() -> None:
    window = Window(fps=30)
    made = sum(window.due(now=5 + k / 100, heard_until=NEVER, drive="camera") is not None for k in range(300))
    assert 87 <= made <= 91


def test_the_grid_changes_when_the_camera_goes_and_comes() -> None:
    window = Window(fps=30, look_ahead=0.08)
    window.see(Signal(time=0.0), now=0.0)
    due = window.due(now=0.0, heard_until=0.0, drive="auto")
    assert due is not None
    assert due.grid == "camera"
    grids = [due.grid for k in range(60) if (due := window.due(now=k / 100, heard_until=k / 100, drive="auto"))]
    assert grids
    assert set(grids) == {"voice"}
    assert not window.camera_alive(CAMERA_GONE)
    window.see(Signal(time=0.6), now=0.6)
    due = window.due(now=0.6, heard_until=0.6, drive="auto")
    assert due is not None
    assert due.grid == "camera"


def test_after_a_stall_the_voice_grid_jumps_to_the_present() -> None:
    window = Window(fps=25, look_ahead=0.0)
    window.due(now=1.0, heard_until=1.0, drive="voice")
    first = window.due(now=1.1, heard_until=1.1, drive="voice")
    assert first is not None
    late = 1.1 + RE_ANCHOR + 1.0
    window.due(now=late, heard_until=late, drive="voice")
    due = window.due(now=late + 0.05, heard_until=late + 0.05, drive="voice")
    assert due is not None
    assert due.signals[0].time == pytest.approx(late, abs=0.05)


# -- a camera that is faster than the generator ---------------------------------------------------------------------------


def asked(window: Window, times: list[float]) -> list[int]:
    """Numbers of the camera frames that the generator is asked for, when each is looked at as it arrives."""
    taken: list[int] = []
    for k, time in enumerate(times):
        window.see(Signal(time=time, id=k), now=time)
        while (due := window.due(now=time, heard_until=NEVER, drive="camera")) is not None:
            assert due.grid == "camera"
            taken += [signal.id for signal in due.signals]
    return taken


def jittered(rate: float, seconds: float, *, jitter: float = 0.0, seed: int = 0) -> list[float]:
    """Arrivals of a camera of `rate` a second from 5 s on, each up to `jitter` s early or late."""
    rng = np.random.default_rng(seed)
    return sorted(5.0 + k / rate + rng.uniform(-jitter, jitter) for k in range(round(rate * seconds)))


@pytest.mark.parametrize(
    ("camera", "fps", "steps"), [(30, 25, {1, 2}), (60, 25, {2, 3}), (50, 25, {2}), (60, 30, {2}), (30, 24, {1, 2}), (120, 25, {4, 5})]
)
def test_of_a_fast_camera_as_many_frames_are_asked_as_the_generator_is_made_for_and_evenly(camera: int, fps: int, steps: set[int]) -> None:
    """Never the 15 of 30 that waiting for a whole interval would leave for 25, nor one in a row more or less than even."""
    window = Window(fps=fps)
    taken = asked(window, jittered(camera, 20.0))
    assert len(taken) == pytest.approx(fps * 20, abs=1)
    assert set(np.diff(taken)) == steps
    ideal = np.arange(len(taken)) * camera / fps
    assert np.ptp((np.array(taken) - ideal)[1:]) <= 1.0 + 1e-6, "the phase is kept: nothing drifts, nothing beats"
    assert window.thinned == 20 * camera - len(taken)
    assert window.dropped == 0


@pytest.mark.parametrize(("camera", "fps"), [(25, 25), (30, 30), (24, 25), (15, 25), (29.97, 30)])
def test_a_camera_that_is_no_faster_loses_hardly_a_frame_to_its_jitter(camera: float, fps: int) -> None:
    times = jittered(camera, 30.0, jitter=0.3 / camera)
    assert len(times) - len(asked(Window(fps=fps), times)) <= 1


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from([24.0, 30.0, 50.0, 60.0]),
    st.sampled_from([24, 25, 30]),
    st.floats(0.0, 0.012),
    st.lists(st.tuples(st.integers(0, 240), st.floats(0.0, 0.4)), max_size=4),
    st.sampled_from([1, 2, 4]),
    st.integers(0, 99),
)
def test_no_camera_has_the_generator_asked_more_often_than_it_is_made_for(
    camera: float, fps: int, jitter: float, stalls: list[tuple[int, float]], chunk: int, seed: int
) -> None:
    times = np.array(jittered(camera, 4.0, jitter=jitter, seed=seed))
    for at, stall in stalls:  # the pictures of a stall arrive together at its end
        start = times[min(at, len(times) - 1)]
        times = np.where((times > start) & (times < start + stall), start + stall, times)
    window = Window(fps=fps, chunk=chunk)
    taken = times[asked(window, list(times))]
    for first in range(len(taken)):
        span = taken[first:] - taken[first]
        assert (np.arange(len(span)) <= span * fps + 2 + 1e-6).all(), "one for the jitter and one that was saved up"
    assert len(taken) + window.thinned + len(window._pending) == len(times)


def test_a_newer_frame_takes_the_place_of_one_that_still_waits_for_the_generator() -> None:
    window = Window(fps=25)
    for k in range(3):  # the third comes before its turn
        window.see(Signal(time=k / 30, id=k), now=k / 30)
    assert (window.dropped, window.thinned) == (1, 1)
    due = window.due(now=0.09, heard_until=NEVER, drive="camera")
    assert due is not None
    assert [signal.id for signal in due.signals] == [2]
    filling = Window(fps=25, chunk=3)
    taken = asked(filling, jittered(30, 1.0))
    assert 2 not in taken, "in a chunk that is still filling the frames stay evenly spaced"


def test_a_generator_whose_rate_is_lowered_is_asked_less_at_once() -> None:
    window = Window(fps=25)
    before = asked(window, [5 + k / 30 for k in range(60)])
    window.fps = 12.0
    after = asked(window, [7 + k / 30 for k in range(60)])
    assert len(before) == pytest.approx(50, abs=1)
    assert len(after) == pytest.approx(24, abs=2)


def test_a_clock_that_starts_anew_stops_no_camera() -> None:
    cadence = Cadence(25.0)
    assert [cadence.admits(time) for time in (100.0, 100.04, 3.0, 3.01, 3.04, 50.0)] == [True, True, True, False, True, True]


@given(st.floats(-80, 80), st.floats(-80, 80), st.floats(-170, 170))
def test_angles_invert_rotation(yaw: float, pitch: float, roll: float) -> None:
    assert angles(rotation(yaw, pitch, roll)) == pytest.approx((yaw, pitch, roll), abs=1e-6)


def test_signs_of_the_angles() -> None:
    nose = np.array([0.0, 0.0, -1.0])
    assert (rotation(20, 0, 0) @ nose)[0] > 0, "yaw > 0: nose to the picture's right"
    assert (rotation(0, 20, 0) @ nose)[1] > 0, "pitch > 0: nose down"
    assert (rotation(0, 0, 20) @ np.array([1.0, 0, 0]))[1] > 0, "roll > 0: clockwise"


@given(st.integers(0, 10_000))
def test_umeyama_finds_the_similarity(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(12, 3))
    turn = rotation(*rng.uniform(-60, 60, 3))
    scale, shift = rng.uniform(0.2, 5), rng.normal(size=3)
    got_scale, got_turn, got_shift = umeyama(points, scale * points @ turn.T + shift, rng.uniform(0.1, 1, 12))
    assert got_scale == pytest.approx(scale, rel=1e-6)
    np.testing.assert_allclose(got_turn, turn, atol=1e-6)
    np.testing.assert_allclose(got_shift, shift, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("fps", [25.0, 12.0], ids=["own", "slower"])
def test_the_sound_beside_the_frames_is_whole_at_every_rate(fps: float, chunk: int) -> None:
    """Also where a session was told to make fewer frames a second than its generator is made for."""
    generator = FakeGenerator(GeneratorSpec("fake", (SIDE, SIDE), fps=25, chunk=chunk))
    session = Session(
        Batch(generator, rows=1), fake_persona(generator, "red"), settings=SessionSettings(drive="voice"), face=FakeFace(), body=FakeBody()
    )
    session.window.fps = fps
    rate = 16_000
    said = np.sin(np.arange(2 * rate) / 9).astype(np.float32)
    made = session.push_audio(AudioChunk(said, rate, 0.0))
    session.close()
    times = [frame.time for output in made for frame in output.frames]
    assert np.diff(times) == pytest.approx(1.0 / fps)
    heard = [chunk for output in made for chunk in output.audio]
    first, last = heard[0], heard[-1]
    whole = np.concatenate([chunk.pcm for chunk in heard])
    start = round(first.time * rate)
    assert last.time + last.duration == pytest.approx(times[-1] + 1.0 / fps, abs=2 / rate)
    assert np.array_equal(whole, said[start : start + len(whole)])
