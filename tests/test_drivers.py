"""Camera drivers without a camera: a real face's mesh, moved by known amounts, must read back as these amounts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.drivers import body, replay
from engine.drivers.calibrate import SET_AFTER, Neutral
from engine.drivers.express import Expression
from engine.drivers.measure import INNER_LOWER, INNER_UPPER, IRISES, LIPS, LOWER_LIDS, MOUTH_CORNERS, UPPER_LIDS, measure
from engine.drivers.rigid import MEAN_RIGID, PIVOT, RIGID, Pose, fit_pose, metric
from engine.drivers.smooth import LONGEST_GAP, OneEuro
from engine.drivers.tracker import FaceTracker
from engine.pose import Float64Array, angles, rotation
from engine.types import AvatarError, FloatArray, Motion, Signal, VideoFrame, still_motion
from tests.faces import portrait

FPS = 30
FACE = 0.4  # picture heights a face width in these tests


@pytest.fixture(scope="module")
def rest() -> Float64Array:
    """A face at rest [478, 3] in the head frame: the built-in portrait's mesh with its smile's parted lips shut."""
    tracker = FaceTracker(still=True)
    found = tracker.detect(portrait())
    tracker.close()
    points = metric(found[0], 1.0)
    shape = fit_pose(MEAN_RIGID, points[RIGID]).undo(points)
    return shut(shape)


def shut(shape: Float64Array) -> Float64Array:
    """The same face with its inner lips together."""
    closed = shape.copy()
    upper = [191, 80, 81, 82, 13, 312, 311, 310, 415]
    lower = [95, 88, 178, 87, 14, 317, 402, 318, 324]
    closed[upper] = closed[lower] = (shape[upper] + shape[lower]) / 2
    return closed


def opened(shape: Float64Array, gap: float) -> Float64Array:
    """The same face with the lower lip `gap` inter-ocular distances down."""
    moved = shape.copy()
    moved[[95, 88, 178, 87, 14, 317, 402, 318, 324, 17, 84, 314, 181, 405, 152], 1] += gap * measure(shape).apart
    return moved


def blinked(shape: Float64Array, *, eyes: tuple[int, ...] = (0, 1), left_over: float = 0.2) -> Float64Array:
    """The same face with lids closed as far as the tracker shows it: a fifth of the opening stays."""
    moved = shape.copy()
    for eye in eyes:
        gap = moved[LOWER_LIDS[eye]] - moved[UPPER_LIDS[eye]]
        moved[UPPER_LIDS[eye]] += (1.0 - left_over) * gap
    return moved


def posed(shape: Float64Array, *, yaw: float = 0, pitch: float = 0, roll: float = 0, x: float = 0, y: float = 0, scale: float = 1) -> Float64Array:
    """The shape in a picture, turned about the pivot, moved by face widths."""
    size = FACE * scale
    turn = rotation(yaw, pitch, roll)
    pivot = np.array([0.6, 0.7, 0.0]) + np.array([x, y, 0.0]) * FACE
    return Pose(size, turn, pivot - size * turn @ PIVOT).apply(shape)


def play(person: Expression, frames: list[Float64Array], *, start: int = 0) -> list[Motion]:
    """Motion of frames at FPS."""
    return [person(points, (start + k) / FPS)[0] for k, points in enumerate(frames)]


def calibrated(rest: Float64Array, seconds: float = 3.0) -> tuple[Expression, int]:
    """Someone who has rested for a while, and the next frame's number."""
    person = Expression()
    frames = int(seconds * FPS)
    play(person, [posed(rest)] * frames)
    return person, frames


def settle(rest: Float64Array, points: Float64Array, frames: int = 12) -> Motion:
    """The motion after some frames of `points` by someone calibrated."""
    person, start = calibrated(rest)
    return play(person, [points] * frames, start=start)[-1]


def state(person: Expression) -> str:
    """Of the neutral: "searching" or "set"."""
    return person.neutral_state


# -- pose -----------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.floats(-35, 35), st.floats(-30, 30), st.floats(-40, 40), st.floats(0.1, 0.8))
def test_fit_finds_any_pose(yaw: float, pitch: float, roll: float, scale: float) -> None:
    pose = Pose(scale, rotation(yaw, pitch, roll), np.array([0.5, 0.4, 0.1]))
    found = fit_pose(MEAN_RIGID, pose.apply(MEAN_RIGID))
    assert np.allclose(angles(found.turn), (yaw, pitch, roll), atol=1e-3)
    assert np.isclose(found.scale, scale)
    assert np.allclose(found.undo(pose.apply(MEAN_RIGID)), MEAN_RIGID, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "channel", "amount"),
    [({"yaw": 15.0}, 0, 15.0), ({"pitch": 10.0}, 1, 10.0), ({"roll": -12.0}, 2, -12.0), ({"x": 0.2}, 3, 0.2), ({"y": -0.1}, 4, -0.1)],
)
def test_head_motion_reads_back(rest: Float64Array, change: dict[str, float], channel: int, amount: float) -> None:
    moved = settle(rest, posed(rest, **change))
    expected = np.zeros(6)
    expected[channel] = amount
    assert np.allclose(moved.head[:3], expected[:3], atol=0.6)
    assert np.allclose(moved.head[3:], expected[3:], atol=0.02)
    assert moved.expression is not None
    assert np.abs(moved.expression).max() < 0.01, "a turned head is not an expression"
    assert np.allclose(moved.eyes, 1.0, atol=0.05)
    assert moved.mouth[0] == 0.0


def test_signs_are_those_of_the_picture(rest: Float64Array) -> None:
    nose = 1
    assert posed(rest, yaw=15)[nose, 0] > posed(rest)[nose, 0]
    assert settle(rest, posed(rest, yaw=15)).head[0] > 0
    assert posed(rest, pitch=15)[nose, 1] > posed(rest)[nose, 1]
    assert settle(rest, posed(rest, pitch=15)).head[1] > 0
    clockwise = posed(rest, roll=15)
    assert clockwise[263, 1] > clockwise[33, 1]
    assert settle(rest, clockwise).head[2] > 0
    assert np.isclose(settle(rest, posed(rest, scale=1.1)).head[5], np.log(1.1), atol=0.01)


def test_nod_stays_a_nod_when_the_camera_stands_aside(rest: Float64Array) -> None:
    aside = rotation(35, 0, 0)

    def seen(pitch: float) -> Float64Array:
        turn = aside @ rotation(0, pitch, 0)
        return Pose(FACE, turn, np.array([0.6, 0.5, 0.0])).apply(rest)

    person = Expression()
    person.set_neutral()
    play(person, [seen(0)] * 60)
    moved = play(person, [seen(10)] * 12, start=60)[-1]
    assert np.allclose(moved.head[:3], (0, 10, 0), atol=2.0)


# -- expression -----------------------------------------------------------------------------------------------------------


def test_expression_is_the_same_in_any_pose(rest: Float64Array) -> None:
    smiling = rest.copy()
    smiling[MOUTH_CORNERS] += np.array([[-0.02, -0.03, 0.0], [0.02, -0.03, 0.0]])
    front, turned = settle(rest, posed(smiling)), settle(rest, posed(smiling, yaw=20, pitch=-8, roll=10))
    assert front.expression is not None
    assert turned.expression is not None
    assert np.allclose(front.expression[MOUTH_CORNERS], (smiling - rest)[MOUTH_CORNERS], atol=0.006)
    assert np.allclose(front.expression, turned.expression, atol=0.01)
    assert front.mouth[3] > 0.4, "a smile"
    assert front.mouth[1] > 0.03, "and a wider mouth"
    frown = rest.copy()
    frown[MOUTH_CORNERS, 1] += 0.03
    assert settle(rest, posed(frown)).mouth[3] < -0.4


def test_skull_carries_no_expression(rest: Float64Array) -> None:
    wobbly = rest.copy()
    wobbly[[109, 338, 67, 297]] += 0.02
    moved = settle(rest, posed(wobbly))
    assert moved.expression is not None
    assert np.abs(moved.expression[[109, 338, 67, 297]]).max() < 0.25 * 0.02


def test_blink_reaches_zero_within_two_frames(rest: Float64Array) -> None:
    person, start = calibrated(rest)
    blink = play(person, [posed(blinked(rest))] * 3, start=start)
    assert (blink[1].eyes == 0.0).all()
    again = play(person, [posed(rest)] * 3, start=start + 3)
    assert (again[1].eyes > 0.8).all()


def test_wink_closes_one_eye(rest: Float64Array) -> None:
    moved = settle(rest, posed(blinked(rest, eyes=(1,))))
    assert moved.eyes[1] == 0.0
    assert moved.eyes[0] > 0.9


def test_half_open_lies_between_and_wide_goes_above_one(rest: Float64Array) -> None:
    assert 0.2 < settle(rest, posed(blinked(rest, left_over=0.6))).eyes.mean() < 0.7
    assert 1.1 < settle(rest, posed(blinked(rest, left_over=1.3))).eyes.mean() <= 1.6


def test_closed_reading_is_learnt_from_a_tracker_that_shows_much_of_a_closed_eye(rest: Float64Array) -> None:
    person, frame = calibrated(rest)
    for _ in range(5):
        play(person, [posed(blinked(rest, left_over=0.36))] * 5, start=frame)
        play(person, [posed(rest)] * 25, start=frame + 5)
        frame += 30
    blink = play(person, [posed(blinked(rest, left_over=0.36))] * 3, start=frame)
    assert (blink[-1].eyes == 0.0).all()


def test_shut_lips_are_exactly_zero_under_tracker_noise_and_a_gap_is_absolute(rest: Float64Array) -> None:
    rng = np.random.default_rng(0)
    person, start = calibrated(opened(rest, 0.015))  # what a tracker reads on shut lips
    noisy = [posed(opened(rest, 0.015) + 0.001 * rng.standard_normal(rest.shape)) for _ in range(60)]
    assert all(motion.mouth[0] == 0.0 for motion in play(person, noisy, start=start))
    assert np.isclose(settle(rest, posed(opened(rest, 0.4))).mouth[0], 0.4, atol=0.04)
    rested_open, start = calibrated(opened(rest, 0.4))
    assert play(rested_open, [posed(opened(rest, 0.4))] * 5, start=start)[-1].mouth[0] > 0.35, "not relative to the neutral"


def test_jaw_is_not_a_frown_and_pucker_is_round(rest: Float64Array) -> None:
    jaw = opened(rest, 0.4)
    assert abs(settle(rest, posed(jaw)).head[1]) < 1.0, "the chin is not a rigid point"
    narrow = rest.copy()
    narrow[LIPS, 0] *= 0.75
    moved = settle(rest, posed(narrow))
    assert moved.mouth[2] > 0.6
    assert moved.mouth[1] < -0.15


def test_gaze_follows_the_irises_and_holds_through_a_blink(rest: Float64Array) -> None:
    right = rest.copy()
    width = float(np.linalg.norm(rest[33] - rest[133]))
    right[IRISES] += (0.15 * width, 0.05 * width, 0.0)
    assert np.allclose(settle(rest, posed(right)).gaze, (0.15, 0.05), atol=0.02)
    assert np.allclose(settle(rest, posed(right, yaw=15)).gaze, (0.15, 0.05), atol=0.03)
    person, start = calibrated(rest)
    play(person, [posed(right)] * 12, start=start)
    jumpy = blinked(right)
    jumpy[IRISES, 0] -= 0.4 * width  # where the tracker puts irises that it cannot see
    assert play(person, [posed(jumpy)] * 3, start=start + 12)[-1].gaze[0] > 0.1


def test_brows_rise(rest: Float64Array) -> None:
    raised = rest.copy()
    raised[[70, 63, 105, 66, 107], 1] -= 0.1 * measure(rest).apart
    moved = settle(rest, posed(raised))
    assert np.allclose(moved.brows, (0.1, 0.0), atol=0.02)


def test_hidden_mouth_rests_and_teaches_nothing(rest: Float64Array) -> None:
    person, start = calibrated(rest)
    before = person.neutral.rest
    hidden = rest.copy()
    hidden[LIPS, 1] += 0.08
    frames = [person(posed(hidden), (start + k) / FPS, mouth_seen=0.0)[0] for k in range(150)]
    after = person.neutral.rest
    assert before is not None
    assert after is not None
    assert np.abs(after.shape[LIPS] - before.shape[LIPS]).max() < 0.005
    assert (frames[-1].mouth == 0.0).all()
    assert frames[-1].expression is not None
    assert np.abs(frames[-1].expression[LIPS]).max() < 0.03


# -- the neutral ----------------------------------------------------------------------------------------------------------


def heads(person: Expression, frames: list[Float64Array], *, start: int = 0) -> Float64Array:
    """The running neutral's head and lips after each frame."""
    rows = []
    for k, points in enumerate(frames):
        person(points, (start + k) / FPS)
        assert person.neutral.rest is not None
        rows.append([*person.neutral.rest.head, *(10 * person.neutral.rest.shape[MOUTH_CORNERS].ravel())])
    return np.array(rows)


def test_neutral_is_chosen_not_the_first_frame(rest: Float64Array) -> None:
    grimace = opened(blinked(rest), 0.3)
    grimace[MOUTH_CORNERS] += np.array([[-0.04, -0.04, 0.0], [0.04, -0.04, 0.0]])
    person = Expression()
    assert state(person) == "searching"
    track = heads(person, [posed(grimace, yaw=25, roll=12)] * 20 + [posed(rest)] * 60)
    assert state(person) == "set"
    assert np.abs(track[-1, :3]).max() < 2.0
    assert person.neutral.rest is not None
    assert np.abs(person.neutral.rest.shape[MOUTH_CORNERS] - rest[MOUTH_CORNERS]).max() < 0.006
    assert np.abs(np.diff(track[:, :3], axis=0)).max() < 1.5, "degrees a frame: eased"
    assert np.abs(np.diff(track[:, 6:], axis=0)).max() < 0.06, "a hundredth of 0.06 face widths a frame"


def test_neutral_comes_to_someone_who_never_faces_the_camera(rest: Float64Array) -> None:
    person = Expression()
    moved = play(person, [posed(rest, yaw=25)] * 150)
    assert abs(moved[-1].head[0]) < 3.0
    assert abs(moved[0].head[0]) > 15.0, "until then the head is turned, as it seems"


def test_neutral_stays_while_someone_looks_down_for_a_while(rest: Float64Array) -> None:
    person, start = calibrated(rest, 10.0)
    moved = play(person, [posed(rest, pitch=20)] * (5 * FPS), start=start)
    assert moved[-1].head[1] > 17.0


def test_neutral_is_causal(rest: Float64Array) -> None:
    rng = np.random.default_rng(3)
    frames = [posed(rest, yaw=20 * np.sin(k / 9), pitch=float(rng.normal())) for k in range(60)]
    first, second = Expression(), Expression()
    a = play(first, frames[:40] + [posed(opened(rest, 0.5), yaw=-30)] * 20)
    b = play(second, frames)
    assert all((x.head == y.head).all() and (x.eyes == y.eyes).all() for x, y in zip(a[:40], b[:40], strict=True))


def test_set_neutral_takes_the_present_face_eased_and_for_good(rest: Float64Array) -> None:
    person, start = calibrated(rest)
    asked = posed(rest, yaw=18, pitch=6)
    play(person, [asked] * 15, start=start)
    person.set_neutral()
    moved = play(person, [asked] * 45, start=start + 15)
    yaws = np.array([motion.head[0] for motion in moved])
    assert yaws[0] > 15.0
    assert abs(yaws[-1]) < 1.0
    assert np.abs(np.diff(yaws)).max() < 5.0
    assert state(person) == "set"
    late = play(person, [posed(rest)] * (20 * FPS), start=start + 60)
    assert late[-1].head[0] < -16.0, "it does not drift back"


def test_set_neutral_passes_over_a_blink(rest: Float64Array) -> None:
    person, start = calibrated(rest)
    person.set_neutral()
    play(person, [posed(blinked(rest))] * 4 + [posed(rest)] * 60, start=start)
    assert person.neutral.rest is not None
    assert np.allclose(person.neutral.rest.measures.lids, measure(rest).lids, rtol=0.05)


def test_another_resolution_moves_nothing(rest: Float64Array) -> None:
    person, start = calibrated(rest)
    before = play(person, [posed(rest, x=0.1, y=0.05)] * 15, start=start)[-1]
    person.new_geometry()
    after = play(person, [1.4 * posed(rest, x=0.1, y=0.05) + 0.2] * 15, start=start + 15)
    assert np.allclose(after[0].head, before.head, atol=0.02)
    assert np.allclose(after[-1].head, before.head, atol=0.05)


def test_searching_lasts_as_long_as_it_says(rest: Float64Array) -> None:
    person = Expression()
    play(person, [posed(rest)] * int(SET_AFTER * FPS - 2))
    assert state(person) == "searching"
    play(person, [posed(rest)] * 5, start=int(SET_AFTER * FPS - 2))
    assert state(person) == "set"
    assert Neutral().state == "searching"


# -- smoothing ------------------------------------------------------------------------------------------------------------


def test_one_euro_is_steady_at_rest_and_quick_in_motion(rest: Float64Array) -> None:
    rng = np.random.default_rng(5)
    person, start = calibrated(rest)
    noise = [posed(rest) + 0.0006 * rng.standard_normal(rest.shape) for _ in range(60)]
    still = np.array([motion.head[:3] for motion in play(person, noise, start=start)])
    assert np.abs(np.diff(still[10:], axis=0)).mean() < 0.06
    swing = [posed(rest, yaw=15 * np.sin(2 * np.pi * k / FPS)) for k in range(60)]
    yaws = np.array([motion.head[0] for motion in play(person, swing, start=start + 60)])
    truth = np.array([15 * np.sin(2 * np.pi * k / FPS) for k in range(60)])
    lags = {lag: np.corrcoef(yaws[20:], truth[20 - lag : 60 - lag])[0, 1] for lag in range(4)}
    assert max(lags, key=lambda lag: lags[lag]) <= 1, "a head that swings once a second lags at most a frame"


def test_one_euro_follows_its_formulas() -> None:
    smooth = OneEuro(min_cutoff=1.0, beta=0.5, speed_cutoff=2.0, calm=3.0)
    assert smooth(1.0, 0.0) == 1.0
    step = 0.04

    def weight(cutoff: float) -> float:
        return 1.0 / (1.0 + (1.0 / (2 * np.pi * cutoff)) / step)

    speed = weight(2.0) * (3.0 - 1.0) / step
    share = weight(1.0 + 0.5 * (speed - 3.0))
    first = share * 3.0 + (1 - share) * 1.0
    assert np.isclose(smooth(3.0, step), first)
    assert np.isclose(smooth(9.0, step), first), "time stood still"
    speed = weight(2.0) * (1.5 - 1.0) / (2 * step) + (1 - weight(2.0)) * speed
    share = weight(1.0 + 0.5 * max(0.0, speed - 3.0))
    assert np.isclose(smooth(1.5, 2 * step), share * 1.5 + (1 - share) * first), "the speed over two samples"
    assert smooth(7.0, 2 * step + LONGEST_GAP + 0.01) == 7.0, "a gap starts afresh"
    smooth.reset()
    assert smooth(-2.0, 100.0) == -2.0
    assert smooth(np.zeros(3), 100.1).shape == (3,)


def test_noise_that_flips_from_frame_to_frame_is_no_speed() -> None:
    quick, flipping = OneEuro(1.0, 10.0, 3.0), [5.0 + (-1) ** k for k in range(60)]
    assert np.abs(np.diff([float(quick(x, k / FPS)) for k, x in enumerate(flipping)][10:])).max() < 0.5


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30), st.floats(0.01, 20), st.floats(0, 5))
def test_one_euro_stays_within_what_it_has_seen(values: list[float], cutoff: float, beta: float) -> None:
    smooth = OneEuro(cutoff, beta)
    for k, value in enumerate(values):
        out = float(smooth(value, k / FPS))
        assert min(values[: k + 1]) - 1e-9 <= out <= max(values[: k + 1]) + 1e-9


# -- the body -------------------------------------------------------------------------------------------------------------


def torso(*, lean: float = 0.0, x: float = 0.0, y: float = 0.0, shrug: float = 0.0, twist: float = 0.0, nod: float = 0.0) -> FloatArray:
    """[33, 4] a person 0.4 picture heights across the shoulders; lengths in shoulder widths, degrees."""
    points = np.zeros((33, 4), np.float32)
    points[:, 3] = 1.0
    across = 0.2 * np.array([np.cos(np.radians(lean)), np.sin(np.radians(lean)), np.sin(np.radians(twist))])
    middle = np.array([0.5 + 0.4 * x, 0.7 + 0.4 * (y - shrug), 0.0])
    points[12, :3], points[11, :3] = middle - across, middle + across
    points[[7, 8], 1] = 0.7 + 0.4 * (y - 0.9 + nod)
    points[[7, 8], 0] = 0.5 + 0.4 * x
    return points


@pytest.mark.parametrize(("change", "channel", "amount"), [({"lean": 8.0}, 0, 8.0), ({"x": 0.1}, 2, 0.1), ({"y": -0.1}, 3, -0.1)])
def test_body_motion_reads_back(monkeypatch: pytest.MonkeyPatch, change: dict[str, float], channel: int, amount: float) -> None:
    reading = _read_bodies(monkeypatch, [torso()] * 30 + [torso(**change)] * 12)[-1]
    expected = np.zeros(6)
    expected[channel] = amount
    assert reading is not None
    assert (np.abs(reading.motion - expected) < (0.8, 0.5, 0.02, 0.02, 0.02, 0.02)).all()
    assert reading.confidence > 0.9


def test_shrug_is_not_a_nod_or_a_stretch(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = {
        name: _read_bodies(monkeypatch, [torso()] * 30 + [torso(**change)] * 10)[-1]
        for name, change in {
            "shrug": {"shrug": 0.2},
            "nod": {"nod": 0.2},
            "stretch": {"y": -0.2},
            "nod and rise a little": {"nod": 0.2, "y": -0.03},
            "bow": {"nod": 0.2, "y": 0.2},
        }.items()
    }
    shrug = {name: 0.0 if reading is None else float(reading.motion[4]) for name, reading in readings.items()}
    assert shrug["shrug"] > 0.12
    assert all(abs(amount) < 0.03 for name, amount in shrug.items() if name != "shrug"), shrug


def test_another_body_is_passed_over_until_the_first_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    other = torso(x=1.2)
    readings = _read_bodies(monkeypatch, [torso()] * 10 + [other] * 25)
    assert readings[12] is None
    assert readings[-1] is not None
    assert np.abs(readings[-1].motion).max() < 0.1, "then with a neutral of its own"


def test_body_neutral_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = _read_bodies(monkeypatch, [torso()] * 30 + [torso(lean=6)] * 30, ask_at=32)
    assert readings[31] is not None
    assert readings[31].motion[0] > 2.0
    assert readings[-1] is not None
    assert abs(readings[-1].motion[0]) < 0.5


def test_shoulders_out_of_the_picture_are_not_believed() -> None:
    assert body.confidence_of(torso(y=0.0)) == 1.0
    below, unseen = torso(y=1.2), torso()
    unseen[11, 3] = 0.1
    assert body.confidence_of(below) == 0.0
    assert body.confidence_of(unseen) == 0.0


def _read_bodies(monkeypatch: pytest.MonkeyPatch, landmarks: list[FloatArray], *, ask_at: int = -1) -> list[body.BodyReading | None]:
    driver = body.BodyDriver()
    waiting = iter(landmarks)
    monkeypatch.setattr(driver, "_detect", lambda _: next(waiting))
    black = np.zeros((48, 48, 3), np.uint8)
    readings = []
    for k in range(len(landmarks)):
        if k == ask_at:
            driver.set_neutral()
        readings.append(driver(VideoFrame(black, k / 10)))
    return readings


# -- recordings -----------------------------------------------------------------------------------------------------------


def signals(count: int = 5) -> list[Signal]:
    rng = np.random.default_rng(0)
    some = []
    for k in range(count):
        motion = replace(still_motion(), head=np.full(6, k, np.float32), expression=rng.random((478, 3), np.float32) if k != 1 else None)
        some.append(
            Signal(10 + k / FPS, k, motion=motion, face=rng.random((478, 3), np.float32) if k else None, aspect=1.5, confidence={"face": k / 10})
        )
    some[2] = replace(some[2], motion=None, pcm=np.zeros(2560, np.float32), confidence={"mouth": 0.5})
    return some


def same(a: FloatArray | None, b: FloatArray | None) -> bool:
    """Whether both are None or equal."""
    return (a is None and b is None) or (a is not None and b is not None and np.array_equal(a, b))


def test_recording_comes_back_the_same(tmp_path: Path) -> None:
    path = tmp_path / "drive.npz"
    replay.save(path, signals())
    back = replay.load(path)
    for a, b in zip(signals(), back, strict=True):
        assert (a.time, a.id, a.aspect, a.confidence) == (b.time, b.id, b.aspect, b.confidence)
        assert same(a.face, b.face)
        assert same(a.pcm, b.pcm)
        assert (a.motion is None) == (b.motion is None)
        if a.motion is not None and b.motion is not None:
            assert same(a.motion.head, b.motion.head)
            assert same(a.motion.expression, b.motion.expression)
            assert same(a.motion.expressed, b.motion.expressed)
    with np.load(path, allow_pickle=False) as archive:
        assert all(archive[name].dtype != object for name in archive.files)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda p: p.write_bytes(b""),
        lambda p: p.write_text("not a recording"),
        lambda p: p.write_bytes(p.read_bytes()[:400]),
        lambda p: np.savez(p, other=np.zeros(3)),
        lambda p: np.savez(p, format=np.array(99)),
        lambda p: np.savez(p, format=np.array(1), time=np.zeros(3)),
        lambda p: np.savez(p, format=np.array([object()])),
        lambda p: p.unlink(),
    ],
)
def test_bad_recording_is_one_sentence(tmp_path: Path, break_it: Callable[[Path], object]) -> None:
    path = tmp_path / "drive.npz"
    replay.save(path, signals())
    break_it(path)
    with pytest.raises(AvatarError, match=r"recording.*[.]$"):
        replay.load(path)


def test_what_cannot_be_read_back_is_not_written(tmp_path: Path) -> None:
    mixed = [replace(s, image=np.zeros((4 + k, 4, 3), np.uint8)) for k, s in enumerate(signals())]
    with pytest.raises(AvatarError, match="image changes its shape"):
        replay.save(tmp_path / "drive.npz", mixed)
    replay.save(tmp_path / "none.npz", [])
    with pytest.raises(AvatarError, match="no signals"):
        replay.ReplayDriver(tmp_path / "none.npz")


def test_replay_keeps_the_camera_time_and_loops(tmp_path: Path) -> None:
    path = tmp_path / "drive.npz"
    replay.save(path, signals())
    black = np.zeros((8, 8, 3), np.uint8)
    driver = replay.ReplayDriver(path)
    played = [driver(VideoFrame(black, 100 + k / FPS, 7 + k)) for k in range(7)]
    assert [s.motion.head[0] for s in played if s.motion] == [0, 1, 0, 3, 4, 0, 1]  # frame 2 has no motion: the neutral
    assert played[3].time == 100 + 3 / FPS
    assert played[3].id == 10
    once = replay.ReplayDriver(path, loop=False)
    assert [s.motion.head[0] for k in range(7) if (s := once(VideoFrame(black, k / FPS))).motion][-1] == 4
    once.reset()
    assert once(VideoFrame(black, 50.0)).id == 0
    assert driver.neutral_state == "set"


def test_lip_pairs_face_each_other(rest: Float64Array) -> None:
    assert np.allclose(rest[INNER_UPPER], rest[INNER_LOWER])
