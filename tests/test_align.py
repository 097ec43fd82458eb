"""A driver's skeleton with another's proportions: the published formulas, known bone lengths, still drivers, missing limbs, causality."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest

from engine.drivers.align import PARENTS, SECONDS, Calibration, Kind, Skeleton, align, target_of
from engine.types import AvatarError

KINDS: tuple[Kind, ...] = get_args(Kind)
FLAT: tuple[Kind, ...] = ("musepose", "unianimate")
STEP = 0.04
"""s between two frames."""
Points = npt.NDArray[np.float64]
# fmt: off
STANDING = np.array([(256, 90), (256, 150), (190, 150), (150, 220), (140, 300), (322, 150), (362, 220), (372, 300), (220, 320), (215, 400),
                     (210, 490), (292, 320), (297, 400), (302, 490), (240, 75), (272, 75), (215, 85), (297, 85), (315, 510), (197, 510)]) / 512.0
# fmt: on
"""18 joints and two feet, picture heights."""
BONES = [(joint, parent) for joint, parent in enumerate(PARENTS) if parent >= 0 and joint < 18]


def someone(rng: np.random.Generator, *, size: float = 1.0, wild: float = 0.01) -> tuple[Points, Points]:
    """Joints and feet [20, 2] and hands [2, 21, 2] of a person in some pose."""
    body = 0.5 + size * (STANDING + rng.normal(0.0, wild, STANDING.shape) - 0.5)
    fan = np.stack(np.meshgrid(np.linspace(-0.03, 0.03, 7), np.linspace(0.01, 0.05, 3)), -1).reshape(21, 2)
    hands = np.stack([body[wrist] + size * (fan + rng.normal(0.0, 0.001, fan.shape)) for wrist in (7, 4)])
    return body.astype(np.float32).astype(np.float64), hands.astype(np.float32).astype(np.float64)


def skeleton(body: Points, hands: Points | None = None, *, unseen: tuple[int, ...] = (), depth: Points | None = None) -> Skeleton:
    scored = np.concatenate([body, np.ones((len(body), 1))], 1).astype(np.float32)
    scored[list(unseen), 2] = 0.1
    palms = np.zeros((2, 21, 3), np.float32)
    if hands is not None:
        palms[:] = np.concatenate([hands, np.ones((2, 21, 1))], 2)
    return Skeleton(scored[:18], palms, feet=scored[18:] if len(scored) > 18 else None, depth=None if depth is None else depth.astype(np.float32))


def grown(rng: np.random.Generator, lengths: Any, *, turn: float = 0.4) -> tuple[Points, Points]:
    """Joints [18, 2] and depths [18] of a person whose bones are so long (a number for each joint, its bone upwards), turned at random in 3D."""
    points = np.zeros((18, 3))
    points[1] = (0.5, 0.3, 0.0)
    for joint in (0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17):
        rest = np.append(STANDING[joint] - STANDING[PARENTS[joint]], 0.0)
        way = rest / np.linalg.norm(rest) + rng.normal(0.0, turn, 3)
        points[joint] = points[PARENTS[joint]] + lengths[joint] * way / np.linalg.norm(way)
    return points[:, :2], points[:, 2]


def length(points: Any, a: int, b: int) -> float:
    return float(np.hypot(*(np.asarray(points)[a, :2] - np.asarray(points)[b, :2])))


def settled(kind: Kind, reference: Skeleton, driver: Skeleton, *, seconds: float = 0.0) -> tuple[Any, Calibration]:
    target, calibration = target_of(kind, reference), Calibration(seconds)
    return align(target, calibration, driver, time=0.0), calibration


def published_nine(ref: tuple[Points, Points], first: tuple[Points, Points], now: tuple[Points, Points]) -> tuple[Points, Points]:
    """MusePose's alignment, written from its description: the nine ratios of the first frame, then one scaling after another."""

    def ratio(*pairs: tuple[int, int]) -> float:
        return float(np.mean([length(ref[0], a, b) / length(first[0], a, b) for a, b in pairs]))

    def trunk(body: Points) -> float:
        return float(np.hypot(*(body[1] - (body[8] + body[11]) / 2)))

    neck, face, shoulder = ratio((0, 1)), ratio((16, 17)), ratio((2, 5))
    upper, lower = ratio((2, 3), (5, 6)), ratio((3, 4), (6, 7))
    palm = np.mean([length(ref[1][h], 0, k) / length(first[1][h], 0, k) for h in (0, 1) for k in (1, 5, 9, 13, 17)])
    hand, leg_upper, leg_lower = (palm + upper + lower) / 3, ratio((8, 9), (11, 12)), ratio((9, 10), (12, 13))
    old, p, hands = now[0], now[0][:18].copy(), now[1].copy()
    p[0] = p[1] + neck * (old[0] - old[1])
    for ear in (14, 15, 16, 17):
        p[ear] = p[0] + face * (old[ear] - old[0])
    for chain, wrist, which in (((2, 3, 4), 4, 1), ((5, 6, 7), 7, 0)):
        p[chain[0]] = p[1] + shoulder * (old[chain[0]] - old[1])
        p[chain[1]] = p[chain[0]] + upper * (old[chain[1]] - old[chain[0]])
        p[chain[2]] = p[chain[1]] + lower * (old[chain[2]] - old[chain[1]])
        hands[which] = p[wrist] + hand * (now[1][which] - old[wrist])
    for hip, knee, ankle in ((8, 9, 10), (11, 12, 13)):
        p[hip] = p[1] + trunk(ref[0]) / trunk(first[0]) * (old[hip] - old[1])
        p[knee] = p[hip] + leg_upper * (old[knee] - old[hip])
        p[ankle] = p[knee] + leg_lower * (old[ankle] - old[knee])
    shift = ref[0][1] - first[0][1]
    return p + shift, hands + shift


def published_bones(ref: tuple[Points, Points], first: tuple[Points, Points], now: tuple[Points, Points]) -> tuple[Points, Points]:
    """UniAnimate's alignment, written from its description: two global ratios, then bone by bone with all that hangs on it."""
    hips, shoulders = ([body[list(pair)].mean(0) for body in (ref[0], first[0])] for pair in ((8, 11), (2, 5)))
    across = (ref[0][5, 0] - ref[0][2, 0]) / (first[0][5, 0] - first[0][2, 0])
    down = (hips[0][1] - shoulders[0][1]) / (hips[1][1] - shoulders[1][1])
    start, p, hands = first[0] * (across, down), now[0] * (across, down), now[1] * (across, down)
    moves: tuple[tuple[int, int, tuple[int, ...], int | None], ...] = (
        (0, 1, (0, 14, 15, 16, 17), None),
        (2, 1, (2, 3, 4), 1),
        (5, 1, (5, 6, 7), 0),
        (3, 2, (3, 4), 1),
        (4, 3, (4,), 1),
        (6, 5, (6, 7), 0),
        (7, 6, (7,), 0),
        (14, 0, (14, 16), None),
        (15, 0, (15, 17), None),
        (16, 14, (16,), None),
        (17, 15, (17,), None),
        (9, 8, (9, 10, 19), None),
        (10, 9, (10, 19), None),
        (12, 11, (12, 13, 18), None),
        (13, 12, (13, 18), None),
    )
    for joint, parent, along, which in moves:
        way = (p[parent] - p[joint]) * (1.0 - length(ref[0], joint, parent) / length(start, joint, parent))
        p[list(along)] += way
        if which is not None:
            hands[which] += way
    shift = ref[0][1] - start[1]
    return p + shift, hands + shift


@pytest.mark.parametrize("kind", FLAT)
@pytest.mark.parametrize("seed", range(5))
def test_calibrated_on_the_first_frame_it_is_the_published_formula(kind: Kind, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ref = someone(rng, size=0.7, wild=0.004)
    frames = [someone(rng, wild=0.004), *[someone(rng, wild=0.03) for _ in range(4)]]
    target, calibration = target_of(kind, skeleton(*ref)), Calibration(seconds=0.0)
    formula = published_nine if kind == "musepose" else published_bones
    for at, frame in enumerate(frames):
        made = align(target, calibration, skeleton(*frame), time=at * STEP)
        body, hands = formula(ref, frames[0], frame)
        np.testing.assert_allclose(made.joints[:, :2], body[:18], atol=1e-6)
        np.testing.assert_allclose(made.hands[..., :2], hands, atol=1e-6)
        if kind == "unianimate" and made.feet is not None:
            np.testing.assert_allclose(made.feet[:, :2], body[18:], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_bones_come_out_with_the_references_lengths(kind: Kind) -> None:
    """A tall driver, whose bones are as long as they are in whatever pose, and a child with a large head and short limbs."""
    rng = np.random.default_rng(0)
    tall, child = ({joint: length(STANDING, joint, PARENTS[joint]) * k for joint in range(18) if joint != 1} for k in (1.0, 0.6))
    for joint in (0, 14, 15, 16, 17):
        child[joint] *= 1.4
    for joint in (9, 10, 12, 13):
        child[joint] *= 0.8
    flat = kind != "shape"
    reference, there = grown(rng, child, turn=0.0)
    driver, depth = grown(rng, tall, turn=0.0)
    target, calibration = target_of(kind, skeleton(reference, depth=there)), Calibration()
    align(target, calibration, skeleton(driver, depth=depth), time=0.0)
    for at in range(1, 100):
        driver, depth = grown(rng, tall, turn=0.0) if flat else grown(rng, tall)
        made = align(target, calibration, skeleton(driver, depth=depth), time=at * STEP)
        for joint, parent in BONES:
            drawn, drives = length(made.joints, joint, parent), length(driver, joint, parent)
            foreshortened = 1.0 if flat else drives / tall[joint]
            if foreshortened > 0.1:
                assert drawn == pytest.approx(child[joint] * foreshortened, rel=0.01), (joint, at)
                way = (made.joints[joint, :2] - made.joints[parent, :2]) / drawn - (driver[joint] - driver[parent]) / drives
                assert np.abs(way).max() < (0.05 if kind == "unianimate" else 1e-3), "it points where the driver's does"


@pytest.mark.parametrize("kind", FLAT)
def test_the_lengths_stay_the_references_in_every_pose_that_turns_in_the_picture(kind: Kind) -> None:
    """Bones that turn in the picture's plane keep their lengths: after the calibration they are the reference's, within 1 %."""
    rng = np.random.default_rng(1)
    lengths = {joint: length(STANDING, joint, PARENTS[joint]) for joint in range(18) if joint != 1}
    target, calibration = target_of(kind, skeleton(STANDING * 0.6)), Calibration()
    body = STANDING
    for at in range(100):
        made = align(target, calibration, skeleton(body), time=at * STEP)
        if calibration.whole and at > 75:
            body = body.copy()
            for elbow, wrist in ((3, 4), (6, 7)):
                angle = rng.uniform(0.0, 2 * np.pi)
                body[wrist] = body[elbow] + lengths[wrist] * np.array([np.cos(angle), np.sin(angle)])
    for joint in (4, 7):
        assert length(made.joints, joint, PARENTS[joint]) == pytest.approx(0.6 * lengths[joint], rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_a_still_driver_gives_a_still_pose(kind: Kind) -> None:
    reference, driver = (skeleton(*someone(np.random.default_rng(k)), depth=np.zeros(18)) for k in (1, 2))
    target, calibration = target_of(kind, reference), Calibration()
    made = [align(target, calibration, driver, time=at * STEP).joints for at in range(100)]
    for frame in made[1:]:
        np.testing.assert_array_equal(frame, made[0])
    np.testing.assert_allclose(made[0][1, :2], reference.joints[1, :2], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limb", [(2, 3, 4), (5, 6, 7), (9, 10), (12, 13), (3,), (9,), (16, 17), (0,)])
def test_a_limb_that_is_lost_does_not_move_the_others(kind: Kind, limb: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    reference = skeleton(*someone(rng, size=0.7), depth=np.zeros(18))
    target, calibration, other = target_of(kind, reference), Calibration(), Calibration()
    hangs = {joint for joint in range(20) if set(limb) & set(_above(joint))}
    for at in range(90):
        body, hands = someone(rng, wild=0.02)
        whole = align(target, calibration, skeleton(body, hands, depth=np.zeros(18)), time=at * STEP)
        if at >= 75:
            body = body.copy()
            body[list(limb)] = (-1.0, -1.0) if at % 2 else (np.nan, np.nan)
        less = align(target, other, skeleton(body, hands, unseen=limb if at >= 75 else (), depth=np.zeros(18)), time=at * STEP)
    stay = [joint for joint in range(18) if joint not in hangs]
    np.testing.assert_allclose(less.joints[stay], whole.joints[stay], atol=1e-6)
    free = [joint for joint in range(18) if joint not in limb]
    assert np.isfinite(less.joints[free]).all()
    assert np.isfinite(less.hands).all()
    assert np.abs(less.joints[free, :2] - whole.joints[free, :2]).max() < 0.2, "what hangs on it stays near"
    np.testing.assert_array_equal(less.joints[list(limb), :2], body[list(limb)].astype(np.float32))


def _above(joint: int) -> list[int]:
    chain = [joint]
    while PARENTS[chain[-1]] >= 0:
        chain.append(PARENTS[chain[-1]])
    return chain


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_measured_keeps_the_drivers_length(kind: Kind) -> None:
    """The reference is a bust: its legs are the driver's own. And nobody at all gives nothing that is no number."""
    below = (8, 9, 10, 11, 12, 13)
    reference = skeleton(STANDING * 0.6 + 0.2, unseen=below, depth=np.zeros(18))
    made, _ = settled(kind, reference, skeleton(STANDING, depth=np.zeros(18)))
    grown_by = 0.6 if kind == "unianimate" else 1.0  # which scales the whole, and measures no trunk
    assert length(made.joints, 9, 8) == pytest.approx(grown_by * length(STANDING, 9, 8), rel=1e-4)
    assert length(made.joints, 3, 2) == pytest.approx(0.6 * length(STANDING, 3, 2), rel=1e-4)
    nobody = skeleton(np.full((20, 2), np.nan), unseen=tuple(range(20)), depth=np.full(18, np.nan))
    target, calibration = target_of(kind, nobody), Calibration()
    np.testing.assert_allclose(align(target, calibration, skeleton(STANDING, depth=np.zeros(18)), time=0.0).joints[:, :2], STANDING[:18], atol=1e-6)
    assert np.isnan(align(target_of(kind, reference), Calibration(), nobody, time=0.0).joints[:, :2]).all()


def test_a_bone_seen_end_on_is_not_blown_up() -> None:
    arms_at_the_camera = STANDING.copy()
    arms_at_the_camera[[3, 6]] = STANDING[[2, 5]] + 0.002
    made, calibration = settled("musepose", skeleton(STANDING), skeleton(arms_at_the_camera))
    hanging = align(target_of("musepose", skeleton(STANDING)), calibration, skeleton(STANDING), time=STEP)
    assert length(made.joints, 3, 2) < 0.01
    assert length(hanging.joints, 3, 2) == pytest.approx(length(STANDING, 3, 2), rel=1e-4)


def test_it_is_causal_learns_for_its_seconds_and_never_after() -> None:
    rng = np.random.default_rng(4)
    frames = [someone(rng, wild=0.02)[0] for _ in range(120)]
    target = target_of("musepose", skeleton(*someone(rng, size=0.7)))
    known = round(SECONDS / STEP)

    def run(poses: list[Points]) -> tuple[list[Any], list[bool]]:
        calibration = Calibration()
        made = [(align(target, calibration, skeleton(pose), time=at * STEP).joints, calibration.whole) for at, pose in enumerate(poses)]
        return [joints for joints, _ in made], [whole for _, whole in made]

    made, whole = run(frames)
    np.testing.assert_array_equal(made[:60], run(frames[:60])[0])  # what comes later changes nothing
    assert whole.index(True) == known
    later = [*frames[: known + 1], *[STANDING] * 60]
    one, other = run([*later, STANDING])[0][-1], run([*later, 1.3 * STANDING])[0][-1]
    for joint, parent in BONES:  # a driver who comes nearer is larger by as much: no ratio is measured any more
        assert length(other, joint, parent) == pytest.approx(1.3 * length(one, joint, parent), rel=1e-4)


def test_until_it_is_known_it_eases() -> None:
    """A first frame that misleads is corrected without a jump; a robust median does not follow one wild frame."""
    misled = STANDING.copy()
    misled[[4, 7]] = misled[[3, 6]] + 0.6 * (misled[[4, 7]] - misled[[3, 6]])
    target, calibration = target_of("musepose", skeleton(STANDING)), Calibration()
    made = [align(target, calibration, skeleton(misled if at < 2 else STANDING), time=at * STEP).joints for at in range(90)]
    arms = np.array([length(joints, 4, 3) for joints in made])
    truth = length(STANDING, 4, 3)
    assert arms[2] == pytest.approx(truth / 0.6, rel=0.02)
    assert arms[-1] == pytest.approx(truth, rel=1e-3)
    assert np.abs(np.diff(arms[2:])).max() < 0.1 * truth
    wild = Calibration()
    for at in range(90):
        last = align(target, wild, skeleton(1.8 * STANDING if at == 20 else STANDING), time=at * STEP).joints
    np.testing.assert_allclose(last[:, :2], STANDING[:18], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_who_comes_nearer_while_calibrating_is_measured_at_rest(kind: Kind) -> None:
    target, calibration = target_of(kind, skeleton(STANDING * 0.6, depth=np.zeros(18))), Calibration()
    for at in range(90):
        nearer = 1.0 + 0.3 * np.sin(at / 5.0)
        made = align(target, calibration, skeleton(STANDING * nearer, depth=np.zeros(18)), time=at * STEP, nearer=nearer)
        assert length(made.joints, 3, 2) == pytest.approx(0.6 * nearer * length(STANDING, 3, 2), rel=0.01), "and comes nearer all the same"


def test_starting_again_keeps_what_is_in_force_until_there_is_more() -> None:
    target, calibration = target_of("musepose", skeleton(STANDING * 0.6)), Calibration(0.0)
    before = align(target, calibration, skeleton(STANDING), time=0.0).joints
    calibration.restart()
    np.testing.assert_array_equal(align(target, calibration, skeleton(STANDING), time=0.0).joints, before)  # a time that stands teaches nothing
    steps = [length(align(target, calibration, skeleton(STANDING * 0.5), time=at * STEP).joints, 3, 2) for at in range(1, 90)]
    assert steps[0] == pytest.approx(0.5 * length(before, 3, 2), rel=0.15)
    assert steps[-1] == pytest.approx(length(before, 3, 2), rel=0.01)


def test_the_face_goes_with_the_nose_and_shape_needs_a_depth() -> None:
    body = skeleton(STANDING)
    face = np.array([STANDING[0], STANDING[16]], np.float32)
    driver = Skeleton(body.joints, face=face)
    made = align(target_of("musepose", skeleton(STANDING * 0.6)), Calibration(), driver, time=0.0)
    assert made.face is not None
    np.testing.assert_allclose(made.face, made.joints[[0, 16], :2], atol=1e-6)
    with pytest.raises(AvatarError, match="depth"):
        target_of("shape", body)
