"""What a clip teaches the puppet: the place behind the person is found, a known bulge is learnt, and what does not help is left out."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import pytest

from engine.composite import frame_portrait
from engine.drivers.matte import person_matte
from engine.generators.puppet import assets as puppet_assets
from engine.generators.puppet.assets import DRIVES, HEAD_DRIVES, NODES, PuppetAssets, drives, splines, spread
from engine.generators.puppet.find import find_face
from engine.generators.puppet.generator import Puppet
from engine.persona import demo_portrait
from engine.types import AvatarError, FloatArray, Identity, Motion, Signal, UInt8Array, still_motion
from exporters.data import alignment, plates
from exporters.data.alignment import Observed, fit
from exporters.data.plates import Lesson
from exporters.data.regions import regions

SIDE = 192
FRAMES, FEW = 24, 12
BULGE = 0.02
"""Picture widths that the crown really lies further aside for 10 degrees of yaw, and lower for as much pitch."""
CROWN, WIDE = (0.5, 0.12), 0.16
"""Where, and how widely, in shares of the picture."""


def texture(seed: int = 0) -> UInt8Array:
    """[SIDE, SIDE, 3] a wallpaper with detail of a few px, lit from one side."""
    rng = np.random.default_rng(seed)
    fine, coarse = (cv2.GaussianBlur(rng.normal(0, 1, (SIDE, SIDE, 3)), (0, 0), sigma) * sigma for sigma in (2.0, 9.0))
    return np.asarray(np.clip(150 + 25 * fine + 40 * coarse + np.linspace(-30, 30, SIDE)[:, None], 0, 255), np.uint8)


def bulge() -> FloatArray:
    """[NODES, NODES, 2, 8] the map that is to be found."""
    at = np.arange(NODES) - 1.0
    x, y = np.meshgrid(at * puppet_assets.STEP - puppet_assets.REACH, at * puppet_assets.STEP - puppet_assets.REACH)
    there = BULGE * np.exp(-((x - CROWN[0]) ** 2 + (y - CROWN[1]) ** 2) / (2 * WIDE**2))
    rim = np.zeros((NODES, NODES, 2, HEAD_DRIVES), np.float32)
    rim[..., 0, 0], rim[..., 1, 1] = there, there
    return rim


def acting(k: int) -> Motion:
    """Turns and nods that between them look everywhere."""
    return replace(still_motion(), head=np.array([13 * np.sin(0.9 * k), 7 * np.sin(0.53 * k + 1), 4 * np.sin(0.37 * k), 0, 0, 0], np.float32))


def frames(puppet: Puppet, identity: Identity, motions: Sequence[Motion]) -> list[UInt8Array]:
    state = puppet.allocate(1)
    puppet.admit(state, 0, identity)
    made = puppet.step(state, [[Signal(0.0, motion=motion) for motion in motions]])[0]
    assert made is not None
    return [frame.rgb for frame in made]


@dataclass
class Clip:
    """A person with a bulge before a wallpaper."""

    portrait: UInt8Array
    wall: UInt8Array
    truth: PuppetAssets
    motions: list[Motion]
    pictures: list[UInt8Array]
    puppet: Puppet


@pytest.fixture(scope="module")
def clip() -> Clip:
    crop = frame_portrait(demo_portrait(), size=(SIDE, SIDE))[1]
    person = np.asarray(cv2.resize(crop, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8)
    wall, share = texture(), person_matte(person)[..., None] / 255.0
    portrait = np.asarray(person * share + wall * (1 - share), np.uint8)
    truth = replace(plates.unmoved(wall), rim=bulge(), low=np.full(len(DRIVES), -9, np.float32), high=np.full(len(DRIVES), 9, np.float32))
    puppet = Puppet((SIDE, SIDE))
    motions = [still_motion(), *(acting(k) for k in range(1, FRAMES))]
    return Clip(portrait, wall, truth, motions, frames(puppet, puppet.prepare(portrait, truth), motions), puppet)


def lesson(clip: Clip, pictures: Sequence[UInt8Array], motions: Sequence[Motion | None], plain: Sequence[UInt8Array]) -> Lesson:
    """The head never moves far, so that the portrait's face says well enough where mouth and eyes are."""
    faces = np.tile(find_face(clip.portrait)[:, :2], (len(pictures), 1, 1)).astype(np.float32)
    return Lesson(pictures, motions, faces, lambda k: plain[k])


@pytest.fixture(scope="module")
def plain(clip: Clip) -> list[UInt8Array]:
    """What the puppet makes of the clip's motions without assets."""
    return frames(clip.puppet, clip.puppet.prepare(clip.portrait), clip.motions)


@pytest.fixture(scope="module")
def learnt(clip: Clip, plain: list[UInt8Array]) -> PuppetAssets:
    found = plates.learn(clip.portrait, lesson(clip, clip.pictures, clip.motions, plain))
    assert found is not None
    return found


def unlike(ones: Sequence[UInt8Array], others: Sequence[UInt8Array]) -> float:
    return float(np.mean([((a.astype(np.float32) - b) ** 2).mean() for a, b in zip(ones, others, strict=True)]))


# -- what is learnt ----------------------------------------------------------------------------------------------------


def test_the_place_behind_is_found_where_it_was_seen(clip: Clip) -> None:
    brighter = [np.clip(picture * (1 + 0.1 * np.sin(k)), 0, 255).astype(np.uint8) for k, picture in enumerate(clip.pictures)]
    behind = plates.background(clip.portrait, brighter, [person_matte(picture) for picture in clip.pictures])
    wrong = np.abs(behind.plate.astype(np.float32) - clip.wall).max(2)[behind.seen]
    assert 0.3 < behind.seen.mean() < 0.9
    assert wrong.mean() < 2.0
    assert np.percentile(wrong, 95) < 6.0
    assert behind.plate[~behind.seen].std() > 1.0


def test_a_known_bulge_is_learnt_and_shows_in_poses_that_were_not_seen(clip: Clip, learnt: PuppetAssets) -> None:
    crown = np.array([[CROWN[0] + dx, CROWN[1] + dy] for dx in (-0.08, 0, 0.08) for dy in (-0.02, 0.03, 0.08)], np.float32) * SIDE
    wanted, found = (spread(assets, crown, (SIDE, SIDE))[:, :, :2] for assets in (clip.truth, learnt))
    for axis in range(2):
        assert np.abs(found[axis, :, axis] - wanted[axis, :, axis]).mean() < 0.3 * np.abs(wanted[axis, :, axis]).mean()
    unseen = [acting(k) for k in range(FRAMES, FRAMES + 8)]
    real = frames(clip.puppet, clip.puppet.prepare(clip.portrait, clip.truth), unseen)
    plain, known, taught = (
        frames(clip.puppet, clip.puppet.prepare(clip.portrait, assets), unseen) for assets in (None, plates.unmoved(learnt.plate), learnt)
    )
    assert unlike(known, real) < unlike(plain, real)
    assert unlike(taught, real) < 0.5 * unlike(known, real)


def test_where_maps_do_not_help_only_the_place_behind_is_kept(clip: Clip, plain: list[UInt8Array], monkeypatch: pytest.MonkeyPatch) -> None:
    real = frames(clip.puppet, clip.puppet.prepare(clip.portrait, plates.unmoved(clip.wall)), clip.motions[:FEW])
    monkeypatch.setattr(plates, "_fitted", lambda actor, seen, plate: replace(clip.truth, plate=plate))
    found = plates.learn(clip.portrait, lesson(clip, real, clip.motions[:FEW], plain))
    assert found is not None
    assert not found.rim.any()
    assert not found.torso.any()
    assert not np.array_equal(found.plate, clip.portrait)


def test_what_makes_frames_less_like_is_left_out(clip: Clip, plain: list[UInt8Array], monkeypatch: pytest.MonkeyPatch) -> None:
    """Than the puppet alone does: whole, or at mouth and eyes only."""
    few = lesson(clip, clip.pictures[:FEW], clip.motions[:FEW], plain)
    monkeypatch.setattr(plates, "_fitted", lambda actor, seen, plate: replace(clip.truth, plate=plate))
    taught = plates.learn(clip.portrait, few)
    assert taught is not None
    assert taught.rim.any()
    assert plates.learn(clip.portrait, replace(few, plain=lambda k: clip.pictures[k])) is None

    def only_features(k: int) -> UInt8Array:
        inside = regions(few.faces[k], (SIDE, SIDE))[0][..., None] > 0
        return np.where(inside, clip.pictures[k], clip.portrait.mean((0, 1))).astype(np.uint8)

    assert plates.learn(clip.portrait, replace(few, plain=only_features)) is None


def test_the_fit_finds_the_maps_that_made_the_offsets() -> None:
    rng = np.random.default_rng(0)
    flat = (rng.random((900, 2)) * SIDE).astype(np.float32)
    none = plates.unmoved(texture())
    torso = rng.normal(0, 0.01, (1, 1, 2, len(DRIVES) - HEAD_DRIVES)).astype(np.float32) * np.ones((NODES, NODES, 1, 1), np.float32)
    truth = replace(none, rim=bulge(), torso=torso)
    asked = rng.normal(0, 1, (30, len(DRIVES)))
    offsets = np.einsum("ani,ti->tna", spread(truth, flat, (SIDE, SIDE)), asked).astype(np.float32)
    found = fit(Observed(asked, offsets, np.ones(offsets.shape[:2], np.float32)), flat, (SIDE, SIDE), none.plate)
    np.testing.assert_allclose(spread(found, flat, (SIDE, SIDE)), spread(truth, flat, (SIDE, SIDE)), atol=0.05)
    np.testing.assert_allclose(found.high, asked.max(0) + alignment.MARGIN, rtol=1e-5)


def test_a_clip_with_too_few_faces_or_other_crops_is_refused(clip: Clip) -> None:
    with pytest.raises(AvatarError, match="Only 3 frames"):
        plates.learn(clip.portrait, lesson(clip, clip.pictures, [*clip.motions[:3], *[None] * (FRAMES - 3)], []))
    with pytest.raises(AvatarError, match=f"{SIDE} x {SIDE}"):
        plates.learn(clip.portrait, lesson(clip, [picture[:-2] for picture in clip.pictures], clip.motions, []))


# -- what the puppet does with it ---------------------------------------------------------------------------------------


def test_maps_reach_no_further_than_the_clip_did(clip: Clip) -> None:
    short = replace(clip.truth, low=np.full(len(DRIVES), -0.5, np.float32), high=np.full(len(DRIVES), 0.5, np.float32))
    state = clip.puppet.allocate(2)
    clip.puppet.admit(state, 0, clip.puppet.prepare(clip.portrait, short))
    clip.puppet.admit(state, 1, clip.puppet.prepare(clip.portrait, plates.unmoved(clip.wall)))
    motion = replace(still_motion(), head=np.array([15, 0, 0, 0, 0, 0], np.float32))
    clip.puppet.step(state, [[Signal(0.0, motion=motion)]] * 2)
    poses = [row.pose for row in state.rows if row is not None]
    assert poses[0] is not None
    assert poses[1] is not None
    moved = (poses[0].points - poses[1].points)[:, :2]
    assert np.abs(moved[:, 1]).max() < 1e-3
    assert moved[:, 0].max() == pytest.approx(0.5 * BULGE * SIDE, rel=0.1)
    skull = poses[0].skull - poses[1].skull
    np.testing.assert_allclose(skull, moved[: len(skull)], atol=1e-3)  # eyes and teeth go along with their lids and lips


def test_at_rest_the_person_is_as_in_the_portrait_before_the_known_wall(clip: Clip) -> None:
    puppet = Puppet((SIDE, SIDE), rest=False)
    (made,) = frames(puppet, puppet.prepare(clip.portrait, clip.truth), [still_motion()])
    assert unlike([made], [clip.portrait]) < 6.0


def test_assets_come_back_from_the_disk_and_from_a_persona_s_cache(clip: Clip, learnt: PuppetAssets) -> None:
    out = io.BytesIO()
    np.savez(out, **puppet_assets.pack(learnt))
    with np.load(io.BytesIO(out.getvalue())) as arrays:
        again = Puppet.read_assets(dict(arrays))
    identity = clip.puppet.prepare(clip.portrait, again)
    assert identity.key == clip.puppet.prepare(clip.portrait, learnt).key
    kept = clip.puppet.unpack(identity.portrait, clip.puppet.pack(identity))
    motions = [acting(5)]
    assert np.array_equal(frames(clip.puppet, kept, motions), frames(clip.puppet, identity, motions))
    assert not np.array_equal(frames(clip.puppet, kept, motions), frames(clip.puppet, clip.puppet.prepare(clip.portrait), motions))


def test_without_assets_nothing_is_added(clip: Clip) -> None:
    plain = Puppet((SIDE, SIDE), respond=False).prepare(clip.portrait)
    assert plain.features.offsets.size == 0
    assert not plain.features.known
    keys = {plain.key, *(clip.puppet.prepare(clip.portrait, a).key for a in (clip.truth, plates.unmoved(clip.wall)))}
    assert len(keys) == 3


def test_splines_are_whole_everywhere_and_drives_are_in_order() -> None:
    points = np.array([[-30, -30], [0, 0], [100, 40], [127.9, 95.9], [170, 130]], np.float32)
    np.testing.assert_allclose(splines(points, (96, 128)).sum(1), 1.0, rtol=1e-5)
    motion = replace(
        still_motion(),
        head=np.array([10, 20, 30, 0.4, 0.5, 0.6], np.float32),
        mouth=np.array([3.5, 9, 9, 9], np.float32),
        brows=np.array([0.7, 0.9], np.float32),
        body=np.array([45, 50, 1.1, 1.2, 1.2, 1.4], np.float32),
    )
    np.testing.assert_allclose(drives(motion), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13], rtol=1e-5)


@pytest.mark.parametrize("change", ["missing", "shape", "number", "version"])
def test_other_arrays_are_no_assets(change: str) -> None:
    arrays = puppet_assets.pack(plates.unmoved(texture()))
    if change == "missing":
        del arrays["rim"]
    elif change == "version":
        arrays["version"] = np.array("0")
    else:
        arrays["low"] = np.zeros(3, np.float32) if change == "shape" else np.full(len(DRIVES), np.nan, np.float32)
    with pytest.raises(AvatarError, match="learn them from the clip again"):
        Puppet.read_assets(arrays)
