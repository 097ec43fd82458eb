"""Framing a portrait, and the picture that leaves: paste-back, backgrounds, badge, strip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.badge import badge
from engine.composite import LONGEST_SIDE, Fit, Scene, compose, frame_portrait
from engine.config import Background, BackgroundKind, OperatorSettings, SessionSettings
from engine.drivers.body import BodyReading
from engine.drivers.figure import figure_of
from engine.drivers.matte import _with_wisps, clean_plate, person_matte
from engine.drivers.portrait import Found, find_face
from engine.picture import read_picture
from engine.types import AvatarError, UInt8Array, VideoFrame

ASSETS = Path(__file__).parent.parent / "engine" / "assets"
PORTRAIT = read_picture(ASSETS / "portrait.jpg")
WIDE = read_picture(ASSETS / "portrait_wide.jpg")
OPERATOR = OperatorSettings()
MAGENTA = (255, 0, 255)
GREEN = Background(kind="colour", colour=(0, 200, 0))


@pytest.fixture(scope="module")
def whole() -> tuple[Scene, UInt8Array]:
    return frame_portrait(PORTRAIT)


@pytest.fixture(scope="module")
def wide() -> tuple[Scene, UInt8Array]:
    return frame_portrait(WIDE)


def frame_of(crop: UInt8Array, *, alpha: bool = True, size: int = 512) -> VideoFrame:
    """What a generator makes of a portrait at rest."""
    rgb = np.asarray(cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA), np.uint8)
    return VideoFrame(rgb, 1.5, 7, person_matte(rgb) if alpha else None)


def canvas(height: int, width: int) -> UInt8Array:
    """A wall with soft blotches."""
    blotches = np.random.default_rng(3).integers(90, 150, (height // 60 + 2, width // 60 + 2, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(blotches, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def hang(wall: UInt8Array, x: int, y: int, side: int) -> UInt8Array:
    """The built-in portrait on a wall."""
    picture = wall.copy()
    picture[y : y + side, x : x + side] = cv2.resize(PORTRAIT, (side, side), interpolation=cv2.INTER_AREA)
    return picture


# -- find the face and frame it -------------------------------------------------------------------------------------------


def test_a_head_and_shoulders_picture_is_driven_whole(whole: tuple[Scene, UInt8Array]) -> None:
    scene, crop = whole
    assert scene.fit.exact
    assert scene.size == (512, 512)
    assert crop.shape == PORTRAIT.shape


def test_a_wide_picture_is_cropped_around_the_face(wide: tuple[Scene, UInt8Array]) -> None:
    scene, crop = wide
    x, y, side, down = scene.fit.rect
    assert not scene.fit.whole
    assert crop.shape[0] == crop.shape[1]
    assert side == down
    assert x < 224 < x + side  # the nose
    assert y < 120 < y + side
    assert 250 < side < 400
    face = find_face(crop)
    assert 0.2 < face.width / crop.shape[1] < 0.4


@pytest.mark.parametrize(("height", "width", "side"), [(1500, 2000, 400), (900, 1600, 600), (1800, 1000, 300)])
def test_small_faces_are_found(height: int, width: int, side: int) -> None:
    face = find_face(hang(canvas(height, width), width // 2, height // 3, side))
    expected = (width // 2 + 382 / 768 * side, height // 3 + 313 / 768 * side)
    assert np.hypot(face.center[0] - expected[0], face.center[1] - expected[1]) < 0.05 * side


def test_a_tight_portrait_is_extended_not_cut() -> None:
    scene, crop = frame_portrait(np.ascontiguousarray(PORTRAIT[20:640]))
    assert crop.shape == (768, 768, 3)
    assert scene.fit.whole
    assert scene.size[0] % 2 == 0
    assert scene.size[1] == 512


def test_large_pictures_are_bounded_and_small_ones_enlarged() -> None:
    scene, _ = frame_portrait(hang(canvas(1800, 1203), 300, 200, 500))
    assert max(scene.size) == LONGEST_SIDE
    assert all(length % 2 == 0 for length in scene.size)
    small, _ = frame_portrait(np.asarray(cv2.resize(PORTRAIT, (201, 201), interpolation=cv2.INTER_AREA), np.uint8))
    assert small.size == (512, 512)


BAD = {
    "no face": (canvas(400, 500), "No face was found"),
    "two faces": (hang(hang(canvas(600, 1200), 0, 0, 560), 600, 40, 520), "more than one face"),
    "cut at the side": (PORTRAIT[:, 320:], "cut off"),
    "cut at the chin": (PORTRAIT[:400], "cut off"),
    "tiny": (cv2.resize(PORTRAIT, (120, 120), interpolation=cv2.INTER_AREA), "only 3. pixels wide"),
    "on its side": (np.rot90(PORTRAIT), "turn the picture upright"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_driven_is_said_in_one_sentence(name: str) -> None:
    picture, says = BAD[name]
    with pytest.raises(AvatarError, match=says) as caught:
        frame_portrait(np.ascontiguousarray(picture))
    assert str(caught.value).endswith(".")


def test_a_pencil_drawing_has_a_face_too() -> None:
    drawing, _ = cv2.pencilSketch(PORTRAIT, sigma_s=60, sigma_r=0.07, shade_factor=0.05)
    face = find_face(np.repeat(drawing[..., None], 3, 2))
    assert np.hypot(face.center[0] - 382, face.center[1] - 313) < 40


def test_a_small_face_in_the_back_is_no_rival() -> None:
    face = find_face(hang(hang(canvas(700, 1300), 0, 0, 640), 900, 100, 240))
    assert face.center[0] < 640


# -- where the rectangle lies ----------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    *(st.integers(60, 900), st.integers(60, 900)),
    *(st.integers(40, 1000), st.sampled_from([1.0, 1.5, 2 / 3, 1.37])),
    *(st.integers(-300, 900), st.integers(-300, 900)),
    st.floats(0.2, 1.6),
)
def test_a_scaled_fit_still_reaches_the_edges_it_reached(height: int, width: int, across: int, tall: float, x: int, y: int, scale: float) -> None:
    down = round(across * tall)
    x, y = min(max(x, 20 - across), width - 20), min(max(y, 20 - down), height - 20)
    fit = Fit.of((x, y, across, down), (height, width))
    to = (max(2, round(height * scale)), max(2, round(width * scale)))
    scaled = fit.scaled((height, width), to)
    assert scaled.whole == fit.whole or not fit.whole
    x0, y0, x1, y1 = scaled.box
    assert (x0 == 0) >= (fit.box[0] == 0)
    assert (y1 == to[0]) >= (fit.box[3] == height)
    assert scaled.feather.shape == (y1 - y0, x1 - x0)
    left, top = scaled.inset
    assert left >= 0
    assert top >= 0
    assert left + x1 - x0 <= scaled.rect[2]
    assert top + y1 - y0 <= scaled.rect[3]
    assert scaled.rect[3] == pytest.approx(tall * scaled.rect[2], abs=2.0 + 0.6 * scale * tall)


@pytest.mark.parametrize(
    ("rect", "size"),
    [
        ((0, 0, 512, 512), (512, 512)),
        ((0, -16, 512, 512), (480, 512)),
        ((0, 40, 201, 201), (300, 201)),
        ((0, 0, 512, 768), (768, 512)),
        ((-3, 0, 342, 513), (513, 336)),
        ((0, 40, 201, 133), (300, 201)),
    ],
)
def test_a_frame_as_wide_as_the_picture_stays_so_at_every_size(rect: tuple[int, int, int, int], size: tuple[int, int]) -> None:
    fit = Fit.of(rect, size)
    for percent in range(20, 130):
        to = (2 * round(size[0] * percent / 200), 2 * round(size[1] * percent / 200))
        scaled = fit.scaled(size, to)
        assert scaled.box[0] == 0, percent
        assert scaled.box[2] == to[1], percent
        assert scaled.whole == fit.whole, percent


# -- frames that are not square --------------------------------------------------------------------------------------------

TALL = (768, 512)


@pytest.fixture(scope="module")
def tall() -> tuple[Scene, UInt8Array]:
    return frame_portrait(WIDE, size=TALL)


def test_square_crops_lie_where_they_always_lay(whole: tuple[Scene, UInt8Array], wide: tuple[Scene, UInt8Array]) -> None:
    assert whole[0].fit.rect == (0, 0, 512, 512)
    assert wide[0].fit.rect == (54, 0, 342, 342)


def test_a_tall_crop_shows_the_head_and_the_body_to_the_pictures_edge(tall: tuple[Scene, UInt8Array]) -> None:
    scene, crop = tall
    assert crop.shape[0] == pytest.approx(1.5 * crop.shape[1], abs=1)
    assert scene.fit.box[3] == scene.size[0]
    assert scene.body_share == 1.0, "no seam lies below the body"
    face = find_face(crop)
    assert face.center[1] + face.height < 0.5 * crop.shape[0]
    assert face.center[1] - 0.8 * face.height > 0, "the hair"
    expected = (find_face(WIDE), scene.fit.rect)
    assert face.center[0] == pytest.approx(expected[0].center[0] - expected[1][0], abs=4.0), "nothing is squeezed"
    assert face.width == pytest.approx(expected[0].width, rel=0.05)
    assert face.height == pytest.approx(expected[0].height, rel=0.05)


def test_a_wide_crop_shows_head_and_shoulders_and_more_beside() -> None:
    scene, crop = frame_portrait(WIDE, size=(512, 768))
    assert crop.shape[1] == pytest.approx(1.5 * crop.shape[0], abs=1)
    assert 0.2 < find_face(crop).width / crop.shape[0] < 0.4
    assert scene.fit.size[0] < scene.size[0]


def test_a_person_who_stands_is_cropped_from_hair_to_feet(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = hang(canvas(1100, 1600), 700, 60, 220)
    person = (640.0, 70.0, 960.0, 1010.0)
    monkeypatch.setattr("engine.drivers.figure.figure_of", lambda *_: person)
    scene, crop = frame_portrait(picture, size=TALL)
    scale = scene.size[0] / 1100
    x, y, across, down = (length / scale for length in scene.fit.rect)
    assert x < person[0]
    assert y < person[1] + 2
    assert x + across > person[2]
    assert y + down > person[3] - 2
    assert down < 1000, "and not much more"
    assert crop.shape[0] == pytest.approx(1.5 * crop.shape[1], abs=1)
    square, _ = frame_portrait(picture)
    assert square.fit.size[0] / scale < 400, "a square frame is of head and shoulders"


def landmarks(picture: UInt8Array, joints: dict[int, tuple[float, float, float]]) -> Any:
    """A body driver that sees these joints: (x, y, in px of the picture, visibility)."""

    class Driver:
        def __call__(self, frame: VideoFrame) -> BodyReading:
            # `figure_of` looks at a part of the picture: its first px tells where that lies.
            y, x = np.argwhere((picture == frame.rgb[0, 0]).all(-1))[0]
            found = np.zeros((33, 4), np.float32)
            for at, (across, down, seen) in joints.items():
                found[at] = ((across - x) / frame.rgb.shape[1], (down - y) / frame.rgb.shape[0], 0.0, seen)
            return BodyReading(0.0, found, np.zeros(6, np.float32), 1.0)

        def close(self) -> None:
            pass

    return Driver


def test_a_figure_reaches_as_far_as_its_seen_joints(monkeypatch: pytest.MonkeyPatch) -> None:
    # Every px has a colour of its own, so that a part of the picture can be found in it.
    at = np.arange(1000 * 800, dtype=np.uint32).reshape(1000, 800)
    picture = np.stack([at & 255, at >> 8 & 255, at >> 16], 2).astype(np.uint8)
    face = Found(np.zeros((478, 2), np.float32), (400.0, 150.0), 60.0, 80.0)
    head = (400.0 - 45, 150.0 - 66, 400.0 + 45, 150.0 + 45)

    def box(joints: dict[int, tuple[float, float, float]]) -> tuple[float, float, float, float]:
        monkeypatch.setattr("engine.drivers.figure.BodyDriver", landmarks(picture, joints))
        return figure_of(picture, face)

    nose = {0: (400.0, 150.0, 1.0)}
    assert box(nose) == pytest.approx(head)
    standing = nose | {11: (470.0, 260.0, 0.9), 12: (330.0, 260.0, 0.9), 15: (520.0, 500.0, 0.9), 28: (380.0, 820.0, 0.8)}
    assert box(standing) == pytest.approx((330 - 36, head[1], 520 + 36, 820 + 36), abs=0.1)
    assert box(standing | {28: (380.0, 820.0, 0.3)})[3] == pytest.approx(500 + 36, abs=0.1), "a guess does not count"
    assert box(standing | {28: (380.0, 920.0, 0.9)})[3] == 1000.0, "a hand's breadth from the edge is the edge"
    assert box(standing | {0: (600.0, 150.0, 1.0)}) == pytest.approx(head), "somebody else's body"


def test_tall_paste_back_is_seamless_at_rest_and_changes_the_inside_only(tall: tuple[Scene, UInt8Array]) -> None:
    scene, crop = tall
    rgb = np.asarray(cv2.resize(crop, TALL[::-1], interpolation=cv2.INTER_CUBIC), np.uint8)
    made = compose(scene, VideoFrame(rgb, 0.0), SessionSettings(), OPERATOR).rgb.astype(int)
    assert np.abs(made - scene.picture).mean() < 2.0
    x0, y0, x1, y1 = scene.fit.box
    made = compose(scene, VideoFrame(np.full((*TALL, 3), MAGENTA, np.uint8), 0.0), SessionSettings(), OPERATOR).rgb
    assert tuple(made[(y0 + y1) // 2, (x0 + x1) // 2]) == MAGENTA
    outside = np.ones(scene.size, bool)
    outside[y0:y1, x0:x1] = False
    assert outside.any()
    assert np.array_equal(made[outside], scene.picture[outside])
    share = scene.fit.feather[(y1 - y0) // 2].astype(int)
    assert max(share[0], share[-1]) < 8
    assert np.abs(np.diff(share)).max() < 30


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.31])
@pytest.mark.parametrize("background", [Background(), GREEN])
@pytest.mark.parametrize("size", [TALL, (512, 768), (96, 64), (1536, 1024)])
def test_a_circle_stays_one(size: tuple[int, int], background: Background, scale: float) -> None:
    """In a frame of any shape and size, pasted into any picture."""
    wall = canvas(600, 700)
    height, width = size
    rect = (150, -20, 300 * width // min(size), 300 * height // min(size))
    scene = Scene(wall, np.full((600, 700), 255, np.uint8), wall, Fit.of(rect, (600, 700)))
    frame = np.zeros((*size, 3), np.uint8)
    radius = min(size) / 4
    cv2.circle(frame, (width // 2, height // 2), round(radius), (255, 255, 255), -1)
    made = compose(scene, VideoFrame(frame, 0.0), SessionSettings(background=background, output_scale=scale), OPERATOR).rgb
    ys, xs = np.nonzero((made > 240).all(-1))
    assert np.ptp(xs) == pytest.approx(150 * scale, abs=4)
    assert np.ptp(ys) == pytest.approx(150 * scale, abs=4)
    assert (xs.min() + xs.max()) / 2 == pytest.approx(scale * (rect[0] + rect[2] / 2), abs=2)
    assert (ys.min() + ys.max()) / 2 == pytest.approx(scale * (rect[1] + rect[3] / 2), abs=2)


def test_a_picture_of_the_frames_own_shape_is_driven_whole() -> None:
    picture = np.ascontiguousarray(WIDE[:, 40:380])
    scene, crop = frame_portrait(picture, size=(768, 510))
    assert scene.fit.exact
    assert scene.size == (512, 340)
    assert np.array_equal(crop, picture)
    frame = VideoFrame(crop, 1.5, 7)
    assert np.array_equal(compose(scene, frame, SessionSettings(), OPERATOR).rgb, crop)
    made = compose(scene, frame, SessionSettings(background=GREEN), OPERATOR).rgb
    assert tuple(made[30, 330]) == GREEN.colour
    assert np.array_equal(made[100:140, 170:200], crop[100:140, 170:200]), "the face"


# -- compose --------------------------------------------------------------------------------------------------------------


def test_a_whole_frame_passes_untouched(whole: tuple[Scene, UInt8Array]) -> None:
    frame = frame_of(whole[1])
    made = compose(whole[0], frame, SessionSettings(), OPERATOR)
    assert np.array_equal(made.rgb, frame.rgb)
    assert not np.shares_memory(made.rgb, frame.rgb)  # a generator may use its buffer again
    assert (made.time, made.id, made.alpha) == (1.5, 7, None)


def test_paste_back_is_seamless_at_rest(wide: tuple[Scene, UInt8Array]) -> None:
    scene, crop = wide
    made = compose(scene, frame_of(crop), SessionSettings(), OPERATOR).rgb.astype(int)
    assert np.abs(made - scene.picture).mean() < 2.0


def test_paste_back_changes_the_inside_only_and_softly(wide: tuple[Scene, UInt8Array]) -> None:
    scene, _ = wide
    x0, y0, x1, y1 = scene.fit.box
    made = compose(scene, VideoFrame(np.full((512, 512, 3), MAGENTA, np.uint8), 0.0), SessionSettings(), OPERATOR).rgb
    middle = made[(y0 + y1) // 2, (x0 + x1) // 2]
    assert tuple(middle) == MAGENTA
    outside = np.ones(scene.size, bool)
    outside[y0:y1, x0:x1] = False
    assert np.array_equal(made[outside], scene.picture[outside])
    assert scene.body_share < 1.0 == frame_portrait(PORTRAIT)[0].body_share  # the body goes on below
    share = scene.fit.feather[:, (x1 - x0) // 2].astype(int)
    assert share[-1] < 8  # the lower rim meets the rest of the picture
    assert np.abs(np.diff(share)).max() < 30


@pytest.mark.parametrize("scale", [1.0, 0.77, 0.5, 0.31])
@pytest.mark.parametrize("kind", ["keep", "blur", "colour", "picture"])
def test_every_background_at_every_size(wide: tuple[Scene, UInt8Array], whole: tuple[Scene, UInt8Array], kind: BackgroundKind, scale: float) -> None:
    background = Background(kind=kind, picture=canvas(301, 777) if kind == "picture" else None)
    for scene, crop in (wide, whole):
        frame = frame_of(crop)
        before = frame.rgb.copy()
        made = compose(scene, frame, SessionSettings(background=background, output_scale=scale), OPERATOR)
        height, width = made.rgb.shape[:2]
        assert height % 2 == 0
        assert width % 2 == 0
        assert abs(height - scene.size[0] * scale) <= 1
        assert np.array_equal(frame.rgb, before)


@pytest.mark.parametrize("alpha", [True, False])
def test_colour_background_keeps_the_person_and_leaves_no_halo(whole: tuple[Scene, UInt8Array], alpha: bool) -> None:
    scene, crop = whole
    frame = frame_of(crop, alpha=alpha)
    made = compose(scene, frame, SessionSettings(background=GREEN), OPERATOR).rgb
    assert tuple(made[5, 5]) == GREEN.colour
    assert np.array_equal(made[150:250, 215:300], frame.rgb[150:250, 215:300])  # the face
    # The wall was light: just outside the hair nothing may stay lighter than the new background.
    matte = scene.matte
    rim = (cv2.dilate(matte, np.ones((9, 9), np.uint8)) > 0) & (matte < 40)
    excess = made[rim].astype(int).sum(1) - sum(GREEN.colour)
    assert np.percentile(excess, 90) < 60


def test_the_matte_moves_with_the_frame(whole: tuple[Scene, UInt8Array]) -> None:
    scene, crop = whole
    frame = frame_of(crop)
    assert frame.alpha is not None
    moved = VideoFrame(np.roll(frame.rgb, 40, 1), 0.0, 0, np.roll(frame.alpha, 40, 1))
    made = compose(scene, moved, SessionSettings(background=GREEN), OPERATOR).rgb
    assert np.array_equal(made[250, 250 + 40], frame.rgb[250, 250])
    assert tuple(made[100, 60]) == GREEN.colour


def test_rim_takes_the_old_background_out_of_the_hair() -> None:
    """Half transparent red over white, exactly known: on green it must become red and green, without white."""
    white, red = np.full((64, 64, 3), 255, np.uint8), np.array((200, 0, 0))
    matte = np.full((64, 64), 128, np.uint8)
    rgb = np.asarray(np.round((red * 128 + 255.0 * 127) / 255), np.uint8)[None, None].repeat(64, 0).repeat(64, 1)
    scene = Scene(white, matte, white, Fit.of((0, 0, 64, 64), (64, 64)))
    made = compose(scene, VideoFrame(rgb, 0.0, 0, matte), SessionSettings(background=GREEN), OPERATOR).rgb[32, 32].astype(int)
    ideal = np.round((red * 128 + np.array(GREEN.colour) * 127) / 255)
    plain = np.round((rgb[0, 0].astype(int) * 128 + np.array(GREEN.colour) * 127) / 255)
    assert np.abs(made - ideal).max() <= 2
    assert np.abs(plain - ideal).max() > 50


def test_blur_holds_no_trace_of_the_person(whole: tuple[Scene, UInt8Array]) -> None:
    scene, crop = whole
    made = compose(scene, frame_of(crop), SessionSettings(background=Background(kind="blur")), OPERATOR).rgb
    beside = made[60:200, 20:90].reshape(-1, 3).astype(int)  # wall beside the hair: grey before, grey after
    assert np.ptp(beside.mean(0)) < 25
    assert cv2.Laplacian(made[10:150, 10:90], cv2.CV_32F).std() < 0.5 * cv2.Laplacian(scene.picture[10:150, 10:90], cv2.CV_32F).std()


def test_picture_background_without_a_picture_says_so(whole: tuple[Scene, UInt8Array]) -> None:
    with pytest.raises(AvatarError, match="choose a picture"):
        compose(whole[0], frame_of(whole[1]), SessionSettings(background=Background(kind="picture")), OPERATOR)


def test_a_background_is_prepared_once_and_few_are_kept(whole: tuple[Scene, UInt8Array]) -> None:
    scene = whole[0]
    first = scene.stages.get(scene, GREEN, 1.0)
    assert scene.stages.get(scene, Background(kind="colour", colour=GREEN.colour), 1.0) is first
    for level in range(20):
        scene.stages.get(scene, Background(kind="colour", colour=(level, 0, 0)), 1.0)
    assert scene.stages.get(scene, GREEN, 1.0) is not first


def test_badge_is_in_the_corner_legible_and_only_by_the_operator(wide: tuple[Scene, UInt8Array]) -> None:
    scene, crop = wide
    frame = frame_of(crop)
    plain = compose(scene, frame, SessionSettings(), OPERATOR).rgb.astype(int)
    marked = compose(scene, frame, SessionSettings(), OperatorSettings(badge=True)).rgb.astype(int)
    rows, columns = np.nonzero(np.abs(marked - plain).sum(2))
    assert rows.min() > 0.85 * 512
    assert columns.min() > 0.8 * 512
    corner = marked[rows.min() : rows.max(), columns.min() : columns.max()].mean(2)
    assert np.percentile(corner, 98) > 200  # letters
    assert np.percentile(corner, 30) < 120  # on a dark pill
    assert badge(20) is badge(20)


def test_badge_survives_a_tiny_picture(whole: tuple[Scene, UInt8Array]) -> None:
    made = compose(whole[0], frame_of(whole[1]), SessionSettings(output_scale=0.05), OperatorSettings(badge=True))
    assert made.rgb.shape == (26, 26, 3)


def test_strip_of_the_driving_picture_is_carried(wide: tuple[Scene, UInt8Array]) -> None:
    scene, crop = wide
    driving = np.zeros((480, 640, 3), np.uint8)
    driving[:, :320] = 255
    made = compose(scene, frame_of(crop), SessionSettings(), OperatorSettings(carry_strip=24), driving=driving).rgb
    assert (made[:24, :250] == 255).all()
    assert (made[:24, 262:] == 0).all()
    assert np.array_equal(made[24:], compose(scene, frame_of(crop), SessionSettings(), OPERATOR).rgb[24:])
    assert np.array_equal(compose(scene, frame_of(crop), SessionSettings(), OperatorSettings(carry_strip=24)).rgb[24:], made[24:])


# -- the matte ------------------------------------------------------------------------------------------------------------


def test_matte_holds_the_person_and_not_the_wall() -> None:
    matte = person_matte(PORTRAIT)
    assert matte.shape == PORTRAIT.shape[:2]
    assert matte[320, 382] == 255  # nose
    assert matte[720, 330] == 255  # chest
    assert matte[100, 100] == 0
    assert matte[300, 650] == 0
    assert 0.4 < (matte > 127).mean() < 0.6
    assert ((matte > 20) & (matte < 235)).mean() < 0.03  # soft at the rim only


def test_nobody_gives_an_empty_matte() -> None:
    assert not person_matte(canvas(300, 400)).any()


def test_clean_plate_keeps_the_wall_and_fills_the_hole() -> None:
    wall = canvas(200, 300)
    matte = np.zeros((200, 300), np.uint8)
    matte[60:160, 100:180] = 255
    picture = wall.copy()
    picture[matte > 0] = MAGENTA
    plate = clean_plate(picture, matte)
    far = cv2.dilate(matte, np.ones((15, 15), np.uint8)) == 0
    assert np.abs(plate[far].astype(int) - wall[far]).max() <= 1
    assert np.abs(plate[matte > 0].astype(int) - wall[matte > 0]).mean() < 25  # no magenta
    assert (clean_plate(picture, np.full_like(matte, 255)) == picture.reshape(-1, 3).mean(0).round()).mean() > 0.9


def test_strands_before_a_plain_wall_join_the_matte_and_gaps_open() -> None:
    colour = np.full((256, 256, 3), 200, np.uint8)
    colour[:, :128] = 40  # dark hair
    strand, gap = (slice(100, 103), slice(128, 136)), (slice(160, 180), slice(122, 128))
    colour[strand] = 40
    colour[gap] = 200
    answer = np.zeros((256, 256), np.float32)
    answer[:, :128] = 1.0
    answer[:, 118:138] = 0.5  # the network is in doubt
    hard = np.zeros_like(answer)
    hard[:, :128] = 1.0
    depth = np.broadcast_to(127.5 - np.arange(256, dtype=np.float32), (256, 256))
    made = _with_wisps(colour, answer, hard, depth)
    assert made[101, 131] > 0.9
    assert made[90, 131] < 0.1
    assert made[170, 124] < 0.1
    assert made[120, 124] > 0.9
    busy = np.random.default_rng(0).integers(0, 255, colour.shape, dtype=np.uint8)
    busy[:, :128] = colour[:, :128]
    busy[strand] = 40
    assert np.abs(_with_wisps(busy, answer, hard, depth) - hard)[95:110, 129:140].mean() < 0.2  # a busy wall says nothing
