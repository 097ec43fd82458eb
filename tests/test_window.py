"""The window puts irregular signals on the generator's grid; virtual time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.pose import angles, rotation, umeyama
from engine.types import Signal
from engine.window import CAMERA_GONE, RE_ANCHOR, Window

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
