"""How looks change with the motion: learnt from a clip where that helps, and moved with the portrait's pixels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from engine.composite import frame_portrait
from engine.generators.diffusion import taught as taught_file
from engine.generators.diffusion.taught import Taught
from engine.generators.diffusion.trust import Trust
from engine.generators.diffusion.trust import row as trusted_row
from engine.generators.puppet import look
from engine.generators.puppet.assets import PuppetAssets, pack, unpack
from engine.generators.puppet.generator import Puppet
from engine.generators.puppet.raster import OUTSIDE
from engine.persona import demo_portrait, load_persona, make_persona
from engine.types import AvatarError, FloatArray, Motion, Signal, UInt8Array, still_motion
from exporters.data import look as looks
from exporters.data.plates import unmoved

SIDE, FRAMES = 48, 120
GAP = 12  # place of the lip gap in `look.values`


def acted(k: int) -> Motion:
    """One of FRAMES motions: a head that turns and a mouth that opens, out of step."""
    still = still_motion()
    head = np.array([9 * np.sin(k / 7), 0, 0, 0, 0, 0], np.float32)
    return replace(still, head=head, mouth=np.array([0.15 + 0.15 * np.sin(k / 3.1), 0, 0, 0], np.float32))


def made(k: int) -> tuple[UInt8Array, UInt8Array, FloatArray]:
    """A grey picture with a pattern that is moved sideways by the yaw, which is the person all over, and where its pixels come from."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    at = np.stack([x - 0.4 * acted(k).head[0], y], 2)
    pattern = (110 + 30 * np.sin(x / 4)).astype(np.float32)
    moved = cv2.remap(pattern, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.repeat(np.rint(moved)[..., None], 3, 2).astype(np.uint8), np.full((SIDE, SIDE), 255, np.uint8), at


def real(k: int) -> UInt8Array:
    """The same, and a spot on it that gets brighter as the mouth opens, and moves along."""
    picture, _, at = made(k)
    spot = np.exp(-((at[..., 0] - 24) ** 2 + (at[..., 1] - 30) ** 2) / 40)[..., None]
    shown: UInt8Array = np.clip(picture + 200 * float(acted(k).mouth[0]) * spot, 0, 255).astype(np.uint8)
    return shown


def study(truth: Any, frames: int = FRAMES) -> looks.Study:
    """Of a clip whose real frames are `truth(k)`."""
    face = np.random.default_rng(0).uniform(12, 36, (478, 2)).astype(np.float32)
    return looks.Study([acted(k) for k in range(frames)], [truth(k) for k in range(frames)], np.tile(face, (frames, 1, 1)), made)


@pytest.fixture(scope="module")
def bare() -> PuppetAssets:
    return unmoved(np.zeros((SIDE, SIDE, 3), np.uint8))


@pytest.fixture(scope="module")
def taught(bare: PuppetAssets) -> PuppetAssets:
    return looks.learn(bare, study(real)).assets


def test_what_changes_with_the_motion_is_learnt_and_moves_along(taught: PuppetAssets) -> None:
    basis = taught.look.astype(np.float32)
    before, after = [], []
    for k in range(FRAMES, FRAMES + 40):  # never seen
        picture, alpha, at = made(k)
        before.append(np.abs(real(k).astype(int) - picture).mean())
        look.apply(picture, alpha, look.change(basis, taught.look_range, acted(k)), at)
        after.append(np.abs(real(k).astype(int) - picture).mean())
    assert np.mean(after) < 0.35 * np.mean(before)


def test_a_part_s_own_look_is_learnt_from_the_others_alone(bare: PuppetAssets) -> None:
    """What a network that learns over the puppet sees of a part must not know the part."""
    first, last = FRAMES // looks.BLOCKS + looks.APART, 2 * FRAMES // looks.BLOCKS - looks.APART

    def other(k: int) -> UInt8Array:
        return np.minimum(real(k), 250) + np.uint8(5) if first <= k < last else real(k)

    found, changed = looks.learn(bare, study(real)), looks.learn(bare, study(other))
    assert [start for start, _ in found.apart] == [k * FRAMES // looks.BLOCKS for k in range(looks.BLOCKS)]
    assert not np.array_equal(found.assets.look, changed.assets.look)
    same = [np.array_equal(a, b) for (_, a), (_, b) in zip(found.apart, changed.apart, strict=True)]
    assert same == [False, True, False, False]


def test_what_has_nothing_to_do_with_the_motion_is_not(bare: PuppetAssets) -> None:
    noise = np.random.default_rng(3).normal(0, 12, (FRAMES, SIDE, SIDE, 1))

    def truth(k: int) -> UInt8Array:
        shown: UInt8Array = np.clip(made(k)[0] + noise[k], 0, 255).astype(np.uint8)
        return shown

    assert not len(looks.learn(bare, study(truth)).assets.look)


def test_motions_beyond_the_clip_change_nothing_further(taught: PuppetAssets) -> None:
    basis = taught.look.astype(np.float32)
    wide, wider = (replace(still_motion(), mouth=np.array([gap, 0, 0, 0], np.float32)) for gap in (0.8, 3.0))
    assert np.array_equal(look.change(basis, taught.look_range, wide), look.change(basis, taught.look_range, wider))


def test_what_stands_behind_is_never_changed(bare: PuppetAssets) -> None:
    """Else a head that moves elsewhere leaves a ghost where the clip's head was."""
    behind = np.zeros((SIDE, SIDE), bool)
    behind[:, :12] = True

    def seen(k: int) -> tuple[UInt8Array, UInt8Array, FloatArray]:
        picture, alpha, at = made(k)
        alpha[behind], at[behind] = 0, OUTSIDE
        return picture, alpha, at

    def flickering(k: int) -> UInt8Array:
        shown = real(k)
        shown[behind] = np.clip(90 + 300 * acted(k).mouth[0], 0, 255)
        return shown

    taught = looks.learn(bare, replace(study(flickering), made=seen)).assets
    picture, alpha, at = seen(FRAMES + 3)
    before = picture.copy()
    look.apply(picture, alpha, look.change(taught.look.astype(np.float32), taught.look_range, acted(FRAMES + 3)), at)
    assert np.array_equal(picture[:, :11], before[:, :11]), "all but the pixel that the rim spreads over"
    assert not np.array_equal(picture[~behind], before[~behind])


@pytest.mark.parametrize("side", [256, 512])
def test_where_the_person_ends_the_change_ends_softly(side: int) -> None:
    """A change that all of one pixel has and none of the next shows as a staircase. At every size the rim is as wide a part of the picture."""
    edge, pixel = side // 2, side // 256
    alpha = np.zeros((side, side), np.uint8)
    alpha[:, edge:] = 255
    alpha[:, edge : edge + 2 * pixel] = 40
    at = np.stack(np.meshgrid(np.arange(side), np.arange(side)), 2).astype(np.float32)
    at[:, :edge] = OUTSIDE
    rgb = np.full((side, side, 3), 200, np.uint8)
    look.apply(rgb, alpha, np.full((256, 256, 3), -100.0, np.float32), at)
    row = rgb[side // 2, :, 0].astype(int)
    steps = np.abs(np.diff(row))
    assert (row[: edge - 2 * pixel] == 200).all(), "behind it"
    assert (row[edge + 2 * pixel :] == 100).all(), "the person"
    assert steps.max() <= 100 * 0.6 / pixel
    assert (np.diff(row) <= 0).all()


def test_all_values_together_go_no_further_than_they_do_in_a_clip() -> None:
    ranges = np.stack([np.zeros(look.VALUES), np.ones(look.VALUES), np.full(look.VALUES, -2.0), np.full(look.VALUES, 2.0)]).astype(np.float32)
    far = look.terms(np.full(look.VALUES, 5.0, np.float32), ranges)[1 : 1 + look.VALUES]
    assert np.linalg.norm(far) == pytest.approx(look.TOGETHER * np.sqrt(look.VALUES), rel=1e-5)
    assert np.ptp(far) == 0, "in the direction they had"
    near = np.linspace(-1, 1, look.VALUES).astype(np.float32)
    assert np.array_equal(look.terms(near, ranges)[1 : 1 + look.VALUES], near)


def test_a_frame_s_pixels_come_from_the_portrait_or_from_nowhere() -> None:
    sampling = np.full((4, 6, 2), 2.0, np.float32)
    sampling[0, 0], sampling[3, 5] = 0.0, 99.0
    alpha = np.full((4, 6), 255, np.uint8)
    alpha[2] = 0
    at = look.origins(sampling, alpha, 1.0)
    assert (at[2] == OUTSIDE).all()
    assert at[0, 0].tolist() == [0, 0]
    assert at[3, 5].tolist() == [5, 3]
    assert at[1, 1].tolist() == [1, 1]


def test_what_is_no_number_counts_as_nothing() -> None:
    broken = replace(still_motion(), mouth=np.array([np.nan, 0.1, np.inf, 0], np.float32))
    assert np.isfinite(look.values(broken)).all()
    assert np.isfinite(trusted_row(broken)).all()
    assert look.values(broken)[GAP + 1] == np.float32(0.1)


def test_it_survives_a_file_and_refuses_others(taught: PuppetAssets) -> None:
    again = unpack(pack(taught))
    assert np.array_equal(again.look, taught.look)
    with pytest.raises(AvatarError, match="learn them from the clip again"):
        unpack({**pack(taught), "look": taught.look[:5]})
    with pytest.raises(AvatarError, match="another version"):
        unpack({**pack(taught), "version": np.array("1")})


def test_the_puppet_shows_it_where_the_skin_has_gone() -> None:
    """A look that reddens the nose with the open mouth: the red is where the nose is, in a turned head too, and survives the persona's cache."""
    side = 96
    puppet = Puppet((side, side), respond=False)
    plain = puppet.prepare(demo_portrait())
    state = puppet.allocate(1)
    puppet.admit(state, 0, plain)
    puppet.step(state, [[Signal(0.0, motion=still_motion())]])
    x, y = puppet.points(state, 0)[4]
    basis = np.zeros((look.TERMS, side, side, 3), np.float16)
    cv2.circle(red := np.zeros((side, side), np.float32), (round(float(x)), round(float(y))), 4, 90.0, -1)
    basis[1 + GAP, ..., 0] = red
    ranges = np.stack([np.zeros(look.VALUES), np.ones(look.VALUES), np.full(look.VALUES, -2), np.full(look.VALUES, 2)]).astype(np.float32)
    behind = np.asarray(cv2.resize(demo_portrait(), (side, side)), np.uint8)
    identity = puppet.prepare(demo_portrait(), replace(unmoved(behind), look=basis, look_range=ranges))
    kept = puppet.unpack(identity.portrait, puppet.pack(identity))
    motion = replace(still_motion(), head=np.array([12, 0, 0, 0, 0, 0], np.float32), mouth=np.array([0.5, 0, 0, 0], np.float32))
    without = puppet.prepare(demo_portrait(), unmoved(behind))
    shown = []
    for who in (without, identity, kept):
        puppet.admit(state, 0, who)
        frames = puppet.step(state, [[Signal(0.0, motion=motion)]])[0]
        assert frames is not None
        shown.append(frames[0].rgb.astype(int))
    nose = puppet.points(state, 0)[4]
    assert nose[0] > x + 1, "the head has turned"
    redder = (shown[1] - shown[0])[..., 0]
    down, across = np.nonzero(redder > 20)
    assert (across.mean(), down.mean()) == pytest.approx((nose[0], nose[1]), abs=2.0)
    assert np.abs(shown[2] - shown[1]).max() <= 1


def test_a_persona_with_weights_shows_it_without_pytorch(tmp_path: Path) -> None:
    """What the clip taught the puppet lies beside the weights; the puppet alone uses it, at its own size, and so does the kept cache."""
    puppet = Puppet((96, 96), respond=False)
    crop = frame_portrait(demo_portrait(), size=(48, 48))[1]
    basis = np.zeros((look.TERMS, 48, 48, 3), np.float16)
    basis[0, ..., 2] = 60.0
    ranges = np.ones((4, look.VALUES), np.float32)
    assets = replace(unmoved(crop), look=basis, look_range=ranges)
    weights = tmp_path / "made"
    weights.mkdir()
    told = taught_file.write(weights, Taught(crop, pack(assets), Trust.of(np.zeros((30, 16), np.float32))))
    (weights / taught_file.WEIGHTS).write_text(json.dumps({"preset": "compact", "sha256": {}, "origin": {}, "assets": told}))
    plain = make_persona(puppet, demo_portrait(), name="plain", folder=tmp_path)
    for persona in (
        make_persona(puppet, demo_portrait(), name="taught", folder=tmp_path, weights=weights),
        load_persona(puppet, "taught", folder=tmp_path),
    ):
        shown = []
        for identity in (plain.identity, persona.identity):
            state = puppet.allocate(1)
            puppet.admit(state, 0, identity)
            frames = puppet.step(state, [[Signal(0.0, motion=still_motion())]])[0]
            assert frames is not None
            shown.append(frames[0].rgb.astype(int))
        assert np.median((shown[1] - shown[0])[20:40, 40:60, 2]) > 30, "bluer"
    (weights / "assets.npz").unlink()
    with pytest.raises(AvatarError, match="missing"):
        make_persona(puppet, demo_portrait(), name="lost", weights=weights)
