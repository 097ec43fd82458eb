"""A painted skeleton with the portrait's proportions: whoever drives, the portrait's bones are drawn, and the head stays where it was."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from engine.conditions.align import Alignment, aligned
from engine.conditions.place import Placed, place
from engine.conditions.skeleton import FROM_BODY, joints_of
from engine.drivers.align import PARENTS, SECONDS, Kind
from engine.drivers.rigid import PIVOT
from engine.generators.diffusion.conditions import Anchor, Ease, anchor_of, painter
from engine.generators.diffusion.presets import ANIMATE_ANYONE
from engine.types import FloatArray, Signal, still_motion
from tests.faces import portrait

KINDS: tuple[Kind, ...] = get_args(Kind)
SIZE = (512, 512)
FPS = 25
CALIBRATED = round(3 * SECONDS * FPS)
"""Frames after which nothing is learnt or eased any more."""
BELOW = (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13)
SEEN = replace(still_motion(), expression=np.zeros((478, 3), np.float32), confidence=np.ones(3, np.float32))


@pytest.fixture(scope="module")
def anchor() -> Anchor:
    """The built-in portrait's face with a whole body below it that faces the camera."""
    body = np.zeros((33, 4), np.float32)
    body[:, 3] = 1.0
    middle = np.array([0.5, 0.6])
    for joint, (x, y) in {2: (-0.15, 0), 3: (-0.2, 0.1), 4: (-0.22, 0.2), 8: (-0.08, 0.2), 9: (-0.09, 0.29), 10: (-0.09, 0.37)}.items():
        body[FROM_BODY[joint], :2] = middle + (x, y)
        body[FROM_BODY[joint + 3], :2] = middle + (-x, y)
    return Anchor(anchor_of(portrait()).face, body)


def tall(anchor: Anchor, *, grown: float = 1.3) -> FloatArray:
    """[33, 4] the portrait's body with shoulders, trunk and limbs so much longer, and a longer neck."""
    body = anchor.body.copy()
    neck = body[[11, 12], :2].mean(0)
    body[:, :2] = neck + grown * (body[:, :2] - neck) + (0.02, 0.05)
    return body


def signal(anchor: Anchor, body: FloatArray | None, at: int, *, scale: float = 0.5, nearer: float = 1.0) -> Signal:
    """A driver who sits somewhere in a wide picture, so large, and so much nearer than at rest."""
    shift, aspect = np.array([0.4, 0.2]), 4 / 3
    unit, pivot = np.array([aspect, 1.0, aspect]), anchor.own(1.0).pose.apply(PIVOT[None])[0]

    def there(points: FloatArray) -> FloatArray:
        placed = scale * (pivot + nearer * (points - pivot)) + (*shift, 0.0)
        return np.asarray(placed / unit, np.float32)

    face = there(anchor.face)
    if body is not None:
        body = np.concatenate([there(body[:, :3]), body[:, 3:]], 1)
    head = np.array([0, 0, 0, 0, 0, np.log(nearer)], np.float32)
    return Signal(at / FPS, face=face, aspect=aspect, motion=replace(SEEN, head=head), body=body)


def follow(alignment: Alignment, kind: Kind, anchor: Anchor, given: Signal) -> tuple[Placed, Placed]:
    placed = place(given, anchor, SIZE)
    return placed, aligned(alignment, placed, given, anchor, kind=kind, size=SIZE)


def lengths(placed: Placed) -> FloatArray:
    joints = joints_of(placed.face, placed.body)[:, :2]
    return np.array([np.hypot(*(joints[joint] - joints[PARENTS[joint]])) for joint in BELOW], np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tall_driver_is_drawn_with_the_portraits_bones_in_the_portraits_place(kind: Kind, anchor: Anchor) -> None:
    home = place(signal(anchor, anchor.body, 0), anchor, SIZE)
    alignment = Alignment()
    for at in range(CALIBRATED):
        placed, made = follow(alignment, kind, anchor, signal(anchor, tall(anchor), at))
    assert (lengths(placed) / lengths(home) > 1.2).all(), "without it they are the driver's"
    np.testing.assert_allclose(lengths(made), lengths(home), rtol=0.01)
    at_home = [FROM_BODY[joint] for joint in BELOW]
    np.testing.assert_allclose(made.body[at_home, :2], home.body[at_home, :2], atol=1.5)
    np.testing.assert_array_equal(made.face, placed.face)


@pytest.mark.parametrize("kind", KINDS)
def test_who_comes_nearer_grows_and_whose_arm_moves_moves_it(kind: Kind, anchor: Anchor) -> None:
    alignment = Alignment()
    for at in range(CALIBRATED):
        still = follow(alignment, kind, anchor, signal(anchor, tall(anchor), at))[1]
    near = follow(alignment, kind, anchor, signal(anchor, tall(anchor), CALIBRATED, nearer=1.2))[1]
    np.testing.assert_allclose(lengths(near), 1.2 * lengths(still), rtol=0.01)
    waves = tall(anchor)
    waves[FROM_BODY[4], :2] = waves[FROM_BODY[3], :2] + (0.0, -0.12)
    up = follow(alignment, kind, anchor, signal(anchor, waves, CALIBRATED + 1))[1]
    assert up.body[FROM_BODY[4], 1] < up.body[FROM_BODY[3], 1] - 20, "px: the wrist is over the elbow"
    rest = [FROM_BODY[joint] for joint in BELOW if joint != 4]
    np.testing.assert_allclose(up.body[rest], still.body[rest], atol=0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_hand_goes_with_its_wrist(kind: Kind, anchor: Anchor) -> None:
    alignment, body = Alignment(), tall(anchor)
    fan = np.stack(np.meshgrid(np.linspace(-0.03, 0.03, 7), np.linspace(0.0, 0.05, 3)), -1).reshape(21, 2)
    for at in range(CALIBRATED):
        given = signal(anchor, body, at)
        assert given.body is not None
        hands = np.zeros((2, 21, 3), np.float32)
        hands[0, :, :2] = given.body[FROM_BODY[4], :2] + fan - fan[0]
        placed, made = follow(alignment, kind, anchor, replace(given, hands=hands))
    assert len(made.hands) == 1
    np.testing.assert_allclose(made.hands[0][0], made.body[FROM_BODY[4], :2], atol=1e-2)
    ratio = np.ptp(made.hands[0][:, 0]) / np.ptp(placed.hands[0][:, 0])
    assert ratio == pytest.approx(1 / 1.3, rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_each_hand_goes_with_the_wrist_that_it_is_at(kind: Kind, anchor: Anchor) -> None:
    """Of a driver whose arms hang further apart: here the way of one wrist is not the other's."""
    alignment, body = Alignment(), tall(anchor)
    body[[11, 13, 15], 0] += 0.08
    for at in range(CALIBRATED):
        given = signal(anchor, body, at)
        assert given.body is not None
        hands = np.zeros((2, 21, 3), np.float32)
        hands[:, :, :2] = given.body[[FROM_BODY[4], FROM_BODY[7]], None, :2]
        made = follow(alignment, kind, anchor, replace(given, hands=hands))[1]
    for hand, joint in zip(made.hands, (4, 7), strict=True):
        np.testing.assert_allclose(hand[0], made.body[FROM_BODY[joint], :2], atol=1e-2)


def test_a_body_that_is_the_portraits_own_is_left_alone(anchor: Anchor) -> None:
    placed, made = follow(Alignment(), "musepose", anchor, signal(anchor, None, 0))
    assert placed.body_from == "portrait"
    np.testing.assert_array_equal(made.body, placed.body)


def test_under_the_portraits_own_face_the_shoulders_stay_where_the_rule_puts_them(anchor: Anchor) -> None:
    """Rule 3: a voice moves the lips, the driver's body is brought by its shoulders; its arms become the portrait's."""
    alignment, leaning = Alignment(), replace(SEEN, expressed=np.zeros(2, np.float32), body=np.array([0, 0, 0.2, 0.1, 0, 0], np.float32))
    longer = anchor.body.copy()
    for shoulder, arm in ((12, (14, 16)), (11, (13, 15))):
        longer[list(arm), :2] = longer[shoulder, :2] + 1.4 * (longer[list(arm), :2] - longer[shoulder, :2])
    for at in range(CALIBRATED):
        given = signal(anchor, longer, at)
        voiced = replace(given, motion=leaning)
        placed, made = follow(alignment, "musepose", anchor, voiced)
    assert placed.body_from == "shoulders"
    np.testing.assert_allclose(made.body[[11, 12]], placed.body[[11, 12]], atol=0.1)
    home = place(replace(signal(anchor, anchor.body, 0), motion=leaning), anchor, SIZE)
    np.testing.assert_allclose(made.body[[13, 14, 15, 16], :2], home.body[[13, 14, 15, 16], :2], atol=1.0)


def test_another_neutral_is_measured_anew(anchor: Anchor) -> None:
    """The driver moves their chair and says so: the way into the frame is another one, and after a while all fits again."""
    home = place(signal(anchor, anchor.body, 0), anchor, SIZE)
    at_home = [FROM_BODY[joint] for joint in BELOW]
    alignment = Alignment()
    for at in range(CALIBRATED):
        follow(alignment, "musepose", anchor, signal(anchor, tall(anchor, grown=1.3), at))
    for at in range(CALIBRATED, 2 * CALIBRATED):  # somebody else, even
        made = follow(alignment, "musepose", anchor, signal(anchor, tall(anchor, grown=0.8), at, scale=0.7))[1]
    np.testing.assert_allclose(made.body[at_home, :2], home.body[at_home, :2], atol=1.5)


def test_a_preset_chooses_it_and_what_is_there_today_is_the_default(anchor: Anchor) -> None:
    given = signal(anchor, tall(anchor), 0)
    plain = painter(ANIMATE_ANYONE)(given, anchor, Ease())
    home = painter(ANIMATE_ANYONE)(signal(anchor, anchor.body, 0), anchor, Ease())
    chosen = painter(replace(ANIMATE_ANYONE, alignment="musepose"))(given, anchor, Ease())
    assert ANIMATE_ANYONE.alignment == "own"
    assert (plain != home).any(-1).mean() > 0.02
    assert (chosen != home).any(-1).mean() < 0.005, "the portrait's skeleton, to some px on the edges"
    dots = replace(ANIMATE_ANYONE, condition="landmarks")
    np.testing.assert_array_equal(painter(replace(dots, alignment="musepose"))(given, anchor, Ease()), painter(dots)(given, anchor, Ease()))
