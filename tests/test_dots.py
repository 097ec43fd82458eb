"""The dots of a face and of its mouth: as the published script draws them, of the points that it means, and in the portrait's place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.conditions.dots import FACE_COLOUR, LIPS_AT, PUPIL_COLOUR, PUPILS_AT, face_dots, paint_dots
from engine.generators.diffusion.conditions import Anchor, Ease, anchor_of, painter
from engine.generators.diffusion.presets import ANIMATE_ANYONE_FACE
from engine.types import FloatArray, Signal, UInt8Array, still_motion
from tests.faces import portrait

KEPT = Path(__file__).parent / "golden" / "dots.npz"
"""68 made-up points and what Moore-AnimateAnyone's script (a914ef3) drew of them, 96 x 96 px."""


@pytest.fixture(scope="module")
def anchor() -> Anchor:
    return anchor_of(portrait())


def test_the_dots_are_the_published_ones_to_the_px() -> None:
    with np.load(KEPT) as kept:
        points, packed = kept["points"], kept["picture"]
    wanted = 255 * np.unpackbits(packed)[: 96 * 96 * 6].reshape(96, 96, 6)
    assert wanted[..., :3].any()
    assert wanted[..., 3:].any()
    np.testing.assert_array_equal(paint_dots((96, 96), points), wanted)


def test_the_mouth_lies_about_the_middle_of_a_picture_that_is_not_square() -> None:
    points = np.full((68, 2), (40.0, 20.0), np.float32)
    for size in ((64, 128), (128, 64)):
        ys, xs = np.nonzero(paint_dots(size, points)[..., 3:].any(-1))
        assert (ys.mean(), xs.mean()) == (size[0] // 2, size[1] // 2)


def test_every_point_is_the_part_of_the_face_that_it_is_called(anchor: Anchor) -> None:
    points = face_dots(anchor.face[:, :2] * 512)
    assert points.shape == (68, 2)
    outline, brows, nose, eyes, lips, pupils = (points[a:b] for a, b in ((0, 17), (17, 27), (27, 36), (36, 48), (48, 66), (66, 68)))
    assert (np.diff(outline[:, 0]) > 0).all(), "from the picture's left"
    assert outline[8, 1] == outline[:, 1].max(), "the chin"
    assert brows[:, 1].max() < eyes[:, 1].min() < nose[3:, 1].min() < nose[:, 1].max() < lips[:, 1].min() < lips[:, 1].max() < outline[8, 1]
    for pupil, eye in zip(pupils, (eyes[:6], eyes[6:]), strict=True):
        assert (eye.min(0) < pupil).all()
        assert (pupil < eye.max(0)).all()
    upper, below, left, inner_upper, right, inner_below = lips[:5], lips[5:10], lips[10], lips[11:14], lips[14], lips[15:]
    assert (np.diff(upper[:, 0]) > 0).all()
    assert (np.diff(inner_upper[:, 0]) > 0).all()
    assert (np.diff(below[:, 0]) < 0).all()
    assert (np.diff(inner_below[:, 0]) < 0).all()
    assert left[0] == lips[:, 0].min()
    assert right[0] == lips[:, 0].max()
    assert upper[2, 1] < inner_upper[1, 1] < inner_below[1, 1] < below[2, 1]


def colours(picture: UInt8Array) -> set[tuple[int, ...]]:
    return {tuple(int(value) for value in pixel) for pixel in picture.reshape(-1, 3)}


def test_a_still_driver_s_dots_lie_on_the_portrait(anchor: Anchor) -> None:
    made = ANIMATE_ANYONE_FACE
    picture = painter(made)(Signal(0.0, motion=still_motion()), anchor, Ease())
    assert picture.shape == (*made.size, made.channels) == (512, 512, 6)
    upper, mouth = picture[..., :3], picture[..., 3:]
    assert colours(upper) == {(0, 0, 0), FACE_COLOUR, PUPIL_COLOUR}
    assert colours(mouth) == {(0, 0, 0), FACE_COLOUR}
    points = np.round(face_dots(anchor.face[:, :2] * 512)).astype(int)
    assert all(tuple(upper[y - 2 : y + 3, x - 2 : x + 3].max((0, 1))) == PUPIL_COLOUR for x, y in points[PUPILS_AT])
    assert not upper[int(0.55 * 512) :].any()


def test_the_mouth_stays_where_it_is_while_the_head_moves() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(200, 300, (68, 2)).astype(np.float32)
    lower, moved = points.copy(), points + np.array([40, -25], np.float32)
    lower[LIPS_AT, 1] += 9
    here, there, open_ = (paint_dots((512, 512), one) for one in (points, moved, lower))
    np.testing.assert_array_equal(here[..., 3:], there[..., 3:])
    assert (here[..., :3] != there[..., :3]).any()
    assert (here[..., 3:] != open_[..., 3:]).any()


def test_a_smaller_picture_has_dots_that_are_seen(anchor: Anchor) -> None:
    face: FloatArray = anchor.face[:, :2]
    small, large = (paint_dots((side, side), face_dots(face * side)) for side in (96, 1536))
    assert small.any()
    assert large[..., 3:].any(-1).sum() > 4 * paint_dots((512, 512), face_dots(face * 512))[..., 3:].any(-1).sum()


def test_the_preset_asks_for_no_more_than_a_face() -> None:
    assert "body" not in ANIMATE_ANYONE_FACE.needs
    assert "face" in ANIMATE_ANYONE_FACE.needs
    assert "body" in replace(ANIMATE_ANYONE_FACE, condition="skeleton", guider_each=False).needs
