"""Condition pictures: the published skeleton to the px, landmark maps, and a driver's points in the portrait's frame."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from engine.composite import frame_portrait
from engine.conditions.landmarks import GROUPS
from engine.conditions.own import own_body, own_face
from engine.conditions.place import Placed, place
from engine.conditions.skeleton import COLOURS, FINGERS, LIMBS, face_68, joints_of, paint_skeleton
from engine.drivers.face import FaceDriver
from engine.drivers.portrait import find_face
from engine.drivers.rigid import MEAN_RIGID, PIVOT, RIGID, fit_pose, metric
from engine.generators.diffusion.conditions import Anchor, Ease, anchor_of, painter
from engine.generators.diffusion.layout import Condition
from engine.generators.diffusion.presets import ANIMATE_ANYONE, PRESETS, TINY
from engine.persona import ASSETS
from engine.picture import read_picture
from engine.types import FloatArray, Motion, Signal, UInt8Array, VideoFrame, still_motion
from tests.conftest import require_for
from tests.faces import portrait, scene

SIZES = ((512, 512), (768, 512), (512, 768))
"""(H, W) px."""
BLACK, WHITE, BLUE = (0, 0, 0), (255, 255, 255), (0, 0, 255)


@pytest.fixture(scope="module")
def anchor() -> Anchor:
    return anchor_of(portrait())


def person(scale: float = 1.0) -> FloatArray:
    """[18, 3] joints of a whole person, px of a picture of 512 * scale, all seen."""
    at = [(256, 90), (256, 150), (190, 150), (150, 220), (140, 300), (322, 150), (362, 220), (372, 300), (220, 320), (215, 400)]
    at += [(210, 490), (292, 320), (297, 400), (302, 490), (240, 75), (272, 75), (215, 85), (297, 85)]
    return np.array([(x * scale, y * scale, 1.0) for x, y in at], np.float32)


def hand(x: float, y: float) -> FloatArray:
    """[21, 2] px: a wrist at (x, y) and five fingers upwards, 24 px a bone."""
    ends = [(x + 36 * (finger - 2), y - 24 * (joint + 1)) for finger in range(5) for joint in range(4)]
    return np.array([(x, y), *ends], np.float32)


def paint(signal: Signal, anchor: Anchor, size: tuple[int, int] = (512, 512), condition: Condition = "skeleton") -> UInt8Array:
    return painter(replace(ANIMATE_ANYONE, size=size, condition=condition))(signal, anchor, Ease())


def at(picture: UInt8Array, x: float, y: float) -> tuple[int, ...]:
    return tuple(int(value) for value in picture[int(y), int(x)])


def darker(colour: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(0.6 * value) for value in colour)


def painted(picture: UInt8Array, colour: tuple[int, ...]) -> Any:
    return (picture == np.array(colour)).all(-1)


def moved(**changes: Any) -> Motion:
    """A camera's motion: a face is seen, its expression is nothing."""
    seen = {"expression": np.zeros((478, 3), np.float32), "confidence": np.ones(3, np.float32)}
    return replace(still_motion(), **(seen | {name: np.asarray(value, np.float32) for name, value in changes.items()}))


def driver(anchor: Anchor, *, aspect: float = 4 / 3, scale: float = 0.6, shift: tuple[float, float] = (0.7, 0.3)) -> FloatArray:
    """[478, 3] in 0..1: the (square) portrait's own face in somebody's picture; `scale` and `shift` in heights of that picture."""
    face = anchor.face * scale + np.array((*shift, 0.0), np.float32)
    return (face / (aspect, 1.0, aspect)).astype(np.float32)


# -- the published skeleton --------------------------------------------------------------------------------------------


def test_limbs_have_the_published_colours_darkened_and_joints_the_full_ones() -> None:
    joints = person()
    picture = paint_skeleton((512, 512), joints, (), None)
    assert len(LIMBS) == 17
    for (a, b), colour in zip(LIMBS, COLOURS, strict=False):
        x, y, _ = (joints[a] + joints[b]) / 2
        assert at(picture, x, y) == darker(colour), (a, b)
    for joint, colour in zip(joints, COLOURS, strict=True):
        assert at(picture, joint[0], joint[1]) == colour
    assert COLOURS[0] == (255, 0, 0)
    assert COLOURS[17] == (255, 0, 85)
    assert LIMBS[:2] == ((1, 2), (1, 5)), "the neck to the person's right shoulder, which is at the picture's left, comes first"


def test_a_limb_is_an_ellipse_of_the_published_width() -> None:
    joints = person()
    column = paint_skeleton((512, 512), joints, (), None)[130:180, (190 + 256) // 2].any(-1)
    assert np.flatnonzero(column).tolist() == list(range(16, 25)), "4 px to each side of the middle"
    joints[:, 2] = 0
    joints[2] = (100, 200, 1)
    dot = paint_skeleton((512, 512), joints, (), None).any(-1)
    expected = np.zeros((512, 512, 3), np.uint8)
    cv2.circle(expected, (100, 200), 4, (255, 170, 0), -1)
    np.testing.assert_array_equal(dot, expected.any(-1))


def test_later_limbs_lie_over_earlier_ones_and_joints_over_all() -> None:
    joints = person()
    joints[:, 2] = 0
    joints[2], joints[3], joints[5], joints[6] = (100, 100, 1), (300, 300, 1), (300, 100, 1), (100, 300, 1)
    picture = paint_skeleton((512, 512), joints, (), None)
    assert at(picture, 200, 200) == darker(COLOURS[4]), "limb 5-6 is painted after limb 2-3"
    joints[4] = (200, 200, 1)
    assert at(paint_skeleton((512, 512), joints, (), None), 200, 200) == COLOURS[4], "undarkened"
    over = paint_skeleton((512, 512), joints, (hand(200, 200),), np.array([(200, 200)], np.float32))
    assert at(over, 200, 200) == WHITE


def test_hands_are_a_rainbow_with_blue_joints() -> None:
    bones = hand(256, 400)
    picture = paint_skeleton((512, 512), np.zeros((18, 3), np.float32), (bones,), None)
    assert FINGERS[:6] == ((0, 1), (1, 2), (2, 3), (3, 4), (0, 5), (5, 6))
    assert len(FINGERS) == 20
    for i in (1, 2, 3, 5, 6, 11, 19):  # far enough from each other
        a, b = FINGERS[i]
        x, y = (bones[a] + bones[b]) / 2
        hsv = np.array([[[i / 20 * 360, 1.0, 1.0]]], np.float32)
        expected = 255 * cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]
        assert np.abs(np.array(at(picture, x, y)) - expected).max() <= 1.0, i
    for x, y in bones:
        assert at(picture, x, y) == BLUE
    assert at(picture, bones[4][0] + 4, bones[4][1]) == BLUE
    assert at(picture, bones[4][0] + 5, bones[4][1]) == BLACK


def test_the_face_is_68_white_dots() -> None:
    grid = np.array([(20 + 40 * (i % 12), 20 + 40 * (i // 12)) for i in range(68)], np.float32)
    picture = paint_skeleton((512, 512), np.zeros((18, 3), np.float32), (), grid)
    count, _, boxes, _ = cv2.connectedComponentsWithStats(painted(picture, WHITE).astype(np.uint8))
    assert count == 69
    assert (boxes[1:, 2:4] == 7).all(), "radius 3"
    assert set(np.unique(picture)) == {0, 255}, "nothing is anti-aliased"


def test_the_68_points_are_where_ibug_has_them(anchor: Anchor) -> None:
    face = face_68(anchor.face[:, :2])
    assert face.shape == (68, 2)
    jaw, brows, nose, eyes, lips = np.split(face, [17, 27, 36, 48])
    assert (np.diff(jaw[1:16, 0]) > 0).all()
    assert jaw[:, 1].argmax() == 8
    assert (np.diff(brows[:, 0]) > 0).all()
    assert brows[:, 1].max() < eyes[:, 1].min()
    assert (np.diff(nose[:4, 1]) > 0).all()
    assert (np.diff(nose[4:, 0]) > 0).all()
    for ring in (eyes[:6], eyes[6:], lips[:12], lips[12:]):
        assert cv2.contourArea(ring, oriented=True) > 0, "clockwise in the picture"
        assert ring[:, 0].argmin() == 0
    steps = np.hypot(*np.diff(jaw, axis=0).T)
    assert steps.max() < 1.25 * steps.min()


def test_widths_scale_with_the_shorter_side() -> None:
    for scale in (2, 0.5):
        side = int(512 * scale)
        for size in ((side, side), (side, 2 * side), (2 * side, side)):
            picture = paint_skeleton(size, person(scale), (), None)
            column = np.flatnonzero(picture[int(130 * scale) : int(180 * scale), int(223 * scale)].any(-1))
            assert len(column) == pytest.approx(1 + 8 * scale, abs=1.01)
    tiny = paint_skeleton((32, 32), person(1 / 16), (), None)
    assert tiny.any()


@pytest.mark.parametrize("joint", range(18))
def test_a_joint_under_the_threshold_takes_its_limbs_with_it(joint: int) -> None:
    joints = person()
    joints[joint, 2] = 0.29
    picture = paint_skeleton((512, 512), joints, (), None)
    assert not painted(picture, COLOURS[joint]).any()
    for i, limb in enumerate(LIMBS):
        assert painted(picture, darker(COLOURS[i])).any() == (joint not in limb)


def test_mediapipes_points_become_openposes(anchor: Anchor) -> None:
    face = 512 * anchor.face[:, :2]
    body = np.array([(10 * i, 100 + i, 0.31 + i / 100) for i in range(33)], np.float32)
    joints = joints_of(face, body)
    np.testing.assert_allclose(joints[1], [115, 111.5, 0.42], rtol=1e-5)
    for joint, landmark in ((2, 12), (3, 14), (4, 16), (5, 11), (6, 13), (7, 15), (8, 24), (10, 28), (11, 23), (13, 27)):
        np.testing.assert_array_equal(joints[joint], body[landmark])
    assert joints[16, 0] < joints[14, 0] < joints[0, 0] < joints[15, 0] < joints[17, 0], "the person's right is the picture's left"
    aside = face.copy()
    aside[234] = face[133]
    assert joints[16, 2] == 1.0
    assert joints_of(aside, body)[16, 2] == 0.0, "an ear behind the turned cheek"


# -- in the portrait's frame -------------------------------------------------------------------------------------------


def middle(placed: Placed) -> FloatArray:
    """[2] px, middle of the outer corners of the eyes and the tip of the nose."""
    return np.asarray(placed.face[[33, 263, 1]].mean(0), np.float32)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("aspect", [1.0, 16 / 9])
def test_the_drivers_neutral_lies_over_the_portrait(anchor: Anchor, size: tuple[int, int], aspect: float) -> None:
    """The portrait (stretched to the frame) drives itself from somewhere in another picture."""
    height, width = size
    here = metric(anchor.face, width / height)
    there = (0.5 * here + (0.9, 0.3, 0.0)) / (aspect, 1.0, aspect)
    placed = place(Signal(0.0, face=there.astype(np.float32), aspect=aspect, motion=moved()), anchor, size)
    np.testing.assert_allclose(placed.face, anchor.face[:, :2] * (width, height), atol=0.1)


def test_a_tracked_driver_lies_over_the_portrait(anchor: Anchor) -> None:
    frame = scene((200, 220, 300))
    tracked = FaceDriver()
    signal = tracked(VideoFrame(frame, 0.0))
    for i in range(1, 16):
        right = tracked(VideoFrame(scene((200 + min(30, 3 * i), 220, 300)), i / 25))
    tracked.close()
    still = place(signal, anchor, (512, 512))
    assert np.abs(still.face - 512 * anchor.face[:, :2]).max() < 6.0
    way = middle(place(right, anchor, (512, 512))) - middle(still)
    width = fit_pose(MEAN_RIGID, metric(anchor.face, 1.0)[RIGID]).scale * 512
    assert right.motion is not None
    assert float(right.motion.head[3]) > 0.2, "the head has moved by 0.32 face widths; the neutral has followed a little"
    assert way[0] == pytest.approx(float(right.motion.head[3]) * width, abs=3.0)
    assert abs(way[1]) < 3.0


@pytest.mark.parametrize("size", SIZES)
def test_a_shift_of_the_driver_is_as_many_of_the_portraits_face_widths(anchor: Anchor, size: tuple[int, int]) -> None:
    height, width = size
    portrait_face = fit_pose(MEAN_RIGID, metric(anchor.face, width / height)[RIGID]).scale * height
    face = driver(anchor)
    at_rest = place(Signal(0.0, face=face, aspect=4 / 3, motion=moved()), anchor, size)
    drivers_face = fit_pose(MEAN_RIGID, metric(face, 4 / 3)[RIGID]).scale
    there = face + np.array((0.3 * drivers_face / (4 / 3), -0.2 * drivers_face, 0.0), np.float32)
    placed = place(Signal(0.0, face=there, aspect=4 / 3, motion=moved(head=[0, 0, 0, 0.3, -0.2, 0])), anchor, size)
    np.testing.assert_allclose(placed.face - at_rest.face, np.tile((0.3 * portrait_face, -0.2 * portrait_face), (478, 1)), atol=0.1)


def test_a_driver_who_comes_nearer_is_as_much_larger(anchor: Anchor) -> None:
    """Nearer by 20 %, about the same place of the driving picture: the pivot of the head moves by a little, which the motion says too."""
    face, near = driver(anchor), driver(anchor, scale=0.6 * 1.2)
    now, then = (fit_pose(MEAN_RIGID, metric(points, 4 / 3)[RIGID]) for points in (near, face))
    shift = (now.apply(PIVOT[None]) - then.apply(PIVOT[None]))[0, :2] / then.scale
    placed = place(Signal(0.0, face=near, aspect=4 / 3, motion=moved(head=[0, 0, 0, *shift, np.log(1.2)])), anchor, (512, 512))
    still = place(Signal(0.0, face=face, aspect=4 / 3, motion=moved()), anchor, (512, 512))
    assert np.ptp(placed.face[:, 0]) == pytest.approx(1.2 * np.ptp(still.face[:, 0]), rel=1e-3)


@pytest.mark.parametrize(("head", "way"), [([20, 0, 0], (1, 0)), ([-20, 0, 0], (-1, 0)), ([0, 15, 0], (0, 1)), ([0, -15, 0], (0, -1))])
def test_a_driver_who_turns_has_a_neutral_that_does_not(anchor: Anchor, head: list[float], way: tuple[int, int]) -> None:
    """The driver is the portrait turned about its pivot: so painted, it lies where the portrait's own turned face lies."""
    motion = moved(head=[*head, 0, 0, 0])
    turned = own_face(anchor.own(1.0), motion)
    face = ((0.6 * turned + (0.7, 0.3, 0.0)) / (4 / 3, 1.0, 4 / 3)).astype(np.float32)
    placed = place(Signal(0.0, face=face, aspect=4 / 3, motion=motion), anchor, (512, 512))
    np.testing.assert_allclose(placed.face, 512 * turned[:, :2], atol=0.1)
    rest = 512 * anchor.face[:, :2]
    nose = (placed.face[1] - placed.face[[234, 454]].mean(0)) - (rest[1] - rest[[234, 454]].mean(0))
    assert float(nose @ np.array(way)) > 10.0


@pytest.mark.parametrize("size", [(768, 512), (512, 768)])
def test_on_a_crop_of_the_frames_shape_points_lie_where_the_face_is_and_circles_stay_circles(size: tuple[int, int]) -> None:
    """From the picture that a person brings to the px of the condition: the portrait at rest, and a driver who has the same face."""
    height, width = size
    _, crop = frame_portrait(read_picture(ASSETS / "portrait_wide.jpg"), size=size)
    own = anchor_of(crop)
    found = find_face(crop)
    rest = place(Signal(0.0, motion=still_motion()), own, size)
    outside = [10, 33, 263, 1, 168, 234, 454]
    np.testing.assert_allclose(rest.face[outside], found.points[outside] * (height / crop.shape[0]), atol=0.01 * min(size))
    there = own.face * (crop.shape[1], crop.shape[0], crop.shape[1]) * 0.001  # heights of a picture of 16:9 that shows it smaller
    face = ((there + (0.6, 0.2, 0.0)) / (16 / 9, 1.0, 16 / 9)).astype(np.float32)
    driven = place(Signal(0.0, face=face, aspect=16 / 9, motion=moved()), own, size)
    np.testing.assert_allclose(driven.face, own.face[:, :2] * (width, height), atol=0.5)
    for placed in (rest, driven):
        iris = placed.face[469:473]
        across, down = np.hypot(*(iris[0] - iris[2])), np.hypot(*(iris[1] - iris[3]))
        assert across == pytest.approx(down, rel=0.2), "as round as the tracker reads it; squeezed into the frame it would be 1.5"
    shoulders = rest.body[[12, 11]]
    assert shoulders[0, 0] < placed.face[1, 0] < shoulders[1, 0]
    assert (shoulders[:, 1] > placed.face[152, 1]).all()


def test_what_only_the_portrait_decides_is_worked_out_once(anchor: Anchor, monkeypatch: pytest.MonkeyPatch) -> None:
    fits = []

    def counted(*args: Any) -> Any:
        fits.append(1)
        return fit_pose(*args)

    monkeypatch.setattr("engine.conditions.own.fit_pose", counted)
    fresh = Anchor(anchor.face, anchor.body)
    for size in ((512, 512), (512, 512), (768, 512), (768, 512), (256, 256)):
        place(Signal(0.0, motion=moved(head=[5, 0, 0, 0, 0, 0])), fresh, size)
        place(Signal(0.0, face=driver(anchor), aspect=4 / 3, motion=moved()), fresh, size)
    assert len(fits) == 2, "once for every shape of the frame"


def test_body_and_hands_follow_the_similarity_of_the_head(anchor: Anchor) -> None:
    aspect = 4 / 3
    body = np.zeros((33, 4), np.float32)
    body[11:17] = [(0.75, 0.7, 0, 1), (0.65, 0.7, 0, 1), (0.8, 0.9, 0, 1), (0.6, 0.9, 0, 0.2), (0.8, 0.95, 0, 1), (0.6, 0.95, 0, 1)]
    hands = np.zeros((2, 21, 3), np.float32)
    hands[0, :, :2] = 0.7
    signal = Signal(0.0, face=driver(anchor), aspect=aspect, motion=moved(), body=body, hands=hands)
    placed = place(signal, anchor, (512, 512))
    expected = (metric(body[:, :3], aspect)[:, :2] - (0.7, 0.3)) / 0.6 * 512
    np.testing.assert_allclose(placed.body[11:17, :2], expected[11:17], atol=0.1)
    np.testing.assert_array_equal(placed.body[:, 2], body[:, 3])
    assert len(placed.hands) == 1, "a hand of zeros is not there"
    np.testing.assert_allclose(placed.hands[0], (np.array([(0.7 * aspect, 0.7)] * 21) - (0.7, 0.3)) / 0.6 * 512, atol=0.1)
    picture = paint(signal, anchor)
    assert painted(picture, BLUE).any()
    assert painted(picture, darker(COLOURS[1])).any(), "the picture's right shoulder"
    assert not painted(picture, COLOURS[3]).any(), "the elbow at the left is seen too badly"
    assert not place(replace(signal, confidence={"hands": 0.2}), anchor, (512, 512)).hands
    outside = body.copy()
    outside[13, :2] = (0.8, 1.2)
    assert place(replace(signal, body=outside), anchor, (512, 512)).body[13, 2] == 0.0
    hidden = replace(signal, body=np.concatenate([body[:, :3], 0.1 * body[:, 3:]], 1))
    np.testing.assert_allclose(place(hidden, anchor, (512, 512)).body[:, :2], 512 * anchor.body[:, :2], atol=0.01)


# -- nobody in front of a camera ---------------------------------------------------------------------------------------


def test_a_voice_moves_the_portraits_own_landmarks(anchor: Anchor) -> None:
    size = (512, 512)
    shut = place(Signal(0.0, motion=still_motion()), anchor, size)
    outside = [10, 33, 263, 159, 145, 1, 4, 168, 105, 334, 234, 454, 468, 473]
    np.testing.assert_allclose(shut.face[outside], 512 * anchor.face[outside, :2], atol=0.1)
    open_ = place(Signal(0.0, motion=replace(still_motion(), mouth=np.array([0.4, 0, 0, 0], np.float32))), anchor, size)
    eyes = 512 * np.hypot(*(anchor.face[[33, 133], :2].mean(0) - anchor.face[[362, 263], :2].mean(0)))
    assert open_.face[14, 1] - open_.face[13, 1] == pytest.approx(0.4 * eyes, rel=0.25)
    assert shut.face[14, 1] - shut.face[13, 1] < 0.06 * eyes, "a portrait that smiles with open lips shuts them"
    assert open_.face[152, 1] > shut.face[152, 1] + 5.0
    np.testing.assert_allclose(open_.face[[33, 263, 1, 234]], shut.face[[33, 263, 1, 234]], atol=0.01)
    blink = place(Signal(0.0, motion=replace(still_motion(), eyes=np.array([0.0, 1.0], np.float32))), anchor, size)
    assert abs(blink.face[159, 1] - blink.face[145, 1]) < 0.1
    np.testing.assert_allclose(blink.face[386], shut.face[386], atol=0.01)
    away = place(Signal(0.0, motion=replace(still_motion(), head=np.array([0, 0, 0, 0.1, 0, 0], np.float32))), anchor, size)
    width = fit_pose(MEAN_RIGID, metric(anchor.face, 1.0)[RIGID]).scale * 512
    np.testing.assert_allclose(away.face - shut.face, np.tile((0.1 * width, 0.0), (478, 1)), atol=0.01)
    np.testing.assert_allclose(shut.body[:, :2], 512 * anchor.body[:, :2], atol=0.01)


@pytest.mark.parametrize(
    "change",
    [
        {"motion": still_motion()},  # voice drive in front of a camera
        {"motion": moved(expressed=[1, 0])},  # the voice moves the lips
        {"confidence": {"face": 0.1}},
        {"face": np.full((478, 3), np.nan, np.float32)},
    ],
)
def test_the_camera_is_not_believed_where_it_drives_nothing(anchor: Anchor, change: dict[str, Any]) -> None:
    face = driver(anchor)
    face[:, 1] += 0.1 * face[:, 1] ** 2
    camera = Signal(0.0, face=face, aspect=4 / 3, motion=moved())
    own = place(Signal(0.0, motion=still_motion()), anchor, (512, 512))
    assert np.abs(place(camera, anchor, (512, 512)).face - own.face).max() > 3.0
    np.testing.assert_allclose(place(replace(camera, **change), anchor, (512, 512)).face, own.face, atol=0.01)


def test_a_body_without_a_face_is_brought_to_the_portraits_shoulders(anchor: Anchor) -> None:
    body = np.zeros((33, 4), np.float32)
    body[11:15] = [(0.6, 0.5, 0, 1), (0.4, 0.5, 0, 1), (0.65, 0.8, 0, 1), (0.35, 0.8, 0, 1)]
    placed = place(Signal(0.0, body=body, motion=still_motion(), aspect=1.0), anchor, (512, 512))
    own = 512 * anchor.body[[11, 12], :2]
    np.testing.assert_allclose(placed.body[[11, 12], :2].mean(0), own.mean(0), atol=0.1)
    assert np.hypot(*(placed.body[11] - placed.body[12])[:2]) == pytest.approx(np.hypot(*(own[0] - own[1])), rel=1e-3)


def test_shoulders_lean_shift_and_shrug() -> None:
    body = np.zeros((33, 2))
    body[11], body[12], body[23] = (0.7, 0.6), (0.3, 0.6), (0.6, 0.9)
    leaning = own_body(body, np.array([10, 0, 0, 0, 0, 0], np.float32))
    assert leaning[11, 1] > 0.6 > leaning[12, 1], "clockwise"
    shifted = own_body(body, np.array([0, 0, 0.5, 0.25, 0, 0], np.float32))
    np.testing.assert_allclose(shifted[11], (0.9, 0.7))
    np.testing.assert_allclose(shifted[23], body[23], err_msg="hips stay")
    np.testing.assert_allclose(own_body(body, np.array([0, 0, 0, 0, 0.25, 0], np.float32))[[12, 11], 1], (0.5, 0.6))


# -- pictures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("condition", ["skeleton", "landmarks"])
def test_a_painter_paints_over_the_face(anchor: Anchor, size: tuple[int, int], condition: Condition) -> None:
    picture = paint(Signal(0.0, motion=still_motion()), anchor, size, condition)
    assert picture.shape == (*size, 3)
    assert picture.dtype == np.uint8
    if condition == "landmarks":
        ys, xs = np.nonzero(picture.any(-1))
        face = anchor.face[:468, :2] * (size[1], size[0])
        assert np.abs(np.array((xs.min(), ys.min(), xs.max(), ys.max())) - (*face.min(0), *face.max(0))).max() < 8.0
    else:
        for joint in (0, 14, 15, 16, 17):
            assert painted(picture, COLOURS[joint]).any(), joint


def test_every_landmark_group_has_its_colour(anchor: Anchor) -> None:
    picture = paint(Signal(0.0, motion=still_motion()), anchor, condition="landmarks")
    assert len({colour for _, colour, _, _ in GROUPS}) == len(GROUPS) == 10
    half = picture.shape[1] * anchor.face[168, 0]
    for name, colour, _, _ in GROUPS:
        assert painted(picture, colour).any(), name
        xs = np.nonzero(painted(picture, colour))[1]
        if name.startswith("left"):
            assert xs.max() < half
        if name.startswith("right"):
            assert xs.min() > half
    assert {tuple(p) for p in picture.reshape(-1, 3)} == {BLACK, *(colour for _, colour, _, _ in GROUPS)}, "nothing is anti-aliased"


def test_the_landmark_groups_are_mediapipes() -> None:
    from mediapipe.python.solutions import face_mesh_connections as published

    names = ("FACE_OVAL", "NOSE", "RIGHT_EYEBROW", "LEFT_EYEBROW", "RIGHT_EYE", "LEFT_EYE", "RIGHT_IRIS", "LEFT_IRIS")
    groups = {name: (closed, lines) for name, _, closed, lines in GROUPS}
    ours = ("outline", "nose", "left brow", "right brow", "left eye", "right eye", "left iris", "right iris")
    lips = groups["outer lips"][1] + groups["inner lips"][1]
    for name, (closed, lines) in [*((n, groups[o]) for n, o in zip(names, ours, strict=True)), ("LIPS", (True, lips))]:
        edges = {frozenset(pair) for line in lines for pair in zip(line, line[1:] + (line[:1] if closed else ()), strict=False)}
        theirs = {frozenset(pair) for pair in getattr(published, f"FACEMESH_{name}")}
        assert edges == theirs, name


# -- in the generator --------------------------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize("condition", ["skeleton", "landmarks", "dots"])
def test_the_generator_paints_its_conditions_and_keeps_the_anchor(anchor: Anchor, condition: Condition, monkeypatch: pytest.MonkeyPatch) -> None:
    require_for("diffusion")
    from engine.generators import load

    monkeypatch.setitem(PRESETS, "painted", replace(TINY, name="painted", condition=condition))
    generator: Any = load("diffusion", preset="painted", mode="eager")
    identity = generator.prepare(portrait())
    for name in ("face", "body"):
        np.testing.assert_array_equal(getattr(identity.features.anchor, name), getattr(anchor, name))
    kept = generator.unpack(identity.portrait, generator.pack(identity))
    for name in ("face", "body"):
        np.testing.assert_array_equal(getattr(kept.features.anchor, name), getattr(anchor, name))
    state = generator.allocate(1)
    generator.admit(state, 0, kept)
    signal = Signal(0.0, face=driver(anchor), aspect=4 / 3, motion=moved())
    frames = generator.step(state, [[signal]])
    assert frames[0][0].rgb.shape == (*TINY.size, 3)
    np.testing.assert_array_equal(state.stream.condition[0, 0].numpy(), paint(signal, anchor, TINY.size, condition))
