"""What a clip taught the puppet travels with the weights: hashed, kept in a persona's cache, and used for its own portrait only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pytest

from engine.composite import frame_portrait
from engine.generators.puppet import assets as puppet_assets
from engine.persona import demo_portrait, load_persona, make_persona
from engine.types import AvatarError, Identity, Signal, UInt8Array, still_motion
from exporters.data import plates
from tests.conftest import require

pytestmark = pytest.mark.torch
require("torch")
require("diffusers")

from engine.generators import load  # noqa: E402
from engine.generators.diffusion import networks as weights_of  # noqa: E402
from engine.generators.diffusion import presets  # noqa: E402
from engine.generators.diffusion.taught import FILE, Taught  # noqa: E402
from engine.generators.diffusion.trust import Trust  # noqa: E402

WALL = (10, 200, 30)


@pytest.fixture(scope="module")
def crop() -> UInt8Array:
    return frame_portrait(demo_portrait(), size=presets.TINY.size)[1]


@pytest.fixture(scope="module")
def taught(crop: UInt8Array) -> Taught:
    """Of a data set's portrait, which is smaller than what comes live."""
    portrait = np.asarray(cv2.resize(crop, (128, 128), interpolation=cv2.INTER_AREA), np.uint8)
    wall = np.broadcast_to(np.array(WALL, np.uint8), portrait.shape).copy()
    return Taught(portrait, puppet_assets.pack(plates.unmoved(wall)), Trust.of(np.zeros((30, 16), np.float32)))


@pytest.fixture(scope="module")
def weights(taught: Taught, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    weights_of.save(weights_of.build(presets.TINY), folder, origin={}, taught=taught)
    return folder


def known(identity: Identity) -> bool:
    """Whether the puppet below stands before the wall."""
    features = cast(Any, identity.features).base.features
    return bool(features.known) and bool(np.abs(features.plate[-1, features.plate.shape[1] // 2].astype(int) - WALL).max() < 2)


def test_the_portrait_that_was_trained_on_gets_what_was_taught_and_another_does_not(
    weights: Path, crop: UInt8Array, taught: Taught, caplog: pytest.LogCaptureFixture
) -> None:
    generator = load("diffusion", weights=weights)
    again = np.asarray(cv2.imdecode(cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, 92])[1], cv2.IMREAD_COLOR), np.uint8)
    for portrait in (crop, taught.portrait, again):
        assert known(generator.prepare(portrait))
    assert not caplog.records
    mirrored = np.ascontiguousarray(crop[:, ::-1])
    identity = generator.prepare(mirrored)
    assert not known(identity)
    assert "another portrait" in caplog.text
    plain = cast(Any, load("puppet", size=presets.TINY.size)).prepare(mirrored)
    assert cast(Any, identity.features).base.key == plain.key


def test_another_frame_of_the_clip_is_another_portrait(crop: UInt8Array, taught: Taught) -> None:
    puppet = load("puppet", size=(256, 256), respond=False)
    state = puppet.allocate(1)
    puppet.admit(state, 0, puppet.prepare(crop))
    turned = replace(still_motion(), head=np.array([4, 0, 0, 0.03, 0, 0], np.float32))
    still, moved = ((puppet.step(state, [[Signal(0.0, motion=motion)]])[0] or [])[0].rgb for motion in (still_motion(), turned))
    assert taught.suits(still)
    assert not taught.suits(moved)


def test_weights_without_it_have_none(tmp_path: Path, crop: UInt8Array) -> None:
    weights_of.save(weights_of.build(presets.TINY), tmp_path, origin={})
    assert not (tmp_path / FILE).exists()
    assert not known(load("diffusion", weights=tmp_path).prepare(crop))


def test_the_manifest_names_it_and_another_file_is_refused(weights: Path, taught: Taught, tmp_path: Path) -> None:
    told = json.loads((weights / weights_of.MANIFEST).read_text())["assets"]
    assert set(told) == {"sha256", "portrait"}
    assert np.array_equal(cast(Taught, weights_of.load(weights).taught).portrait, taught.portrait)
    weights_of.save(weights_of.build(presets.TINY), tmp_path, origin={}, taught=taught)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-1])
    with pytest.raises(AvatarError, match="is not the file that the weights"):
        weights_of.load(tmp_path)
    (tmp_path / FILE).unlink()
    with pytest.raises(AvatarError, match="is missing"):
        weights_of.load(tmp_path)


def test_a_persona_keeps_it_in_its_cache(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = load("diffusion", weights=weights)
    made = make_persona(generator, demo_portrait(), name="Eileen", folder=tmp_path)
    assert known(made.identity)
    base = cast(Any, generator)._base

    def anew(*arguments: Any) -> Any:
        raise AssertionError("it is prepared already")

    monkeypatch.setattr(base, "prepare", anew)
    found = load_persona(generator, "Eileen", folder=tmp_path)
    assert known(found.identity)
    assert np.array_equal(shown(generator, found.identity), shown(generator, made.identity))


def shown(generator: Any, identity: Identity) -> Sequence[UInt8Array]:
    """A chunk of the puppet's frames below."""
    base, state = generator._base, generator._base.allocate(1)
    base.admit(state, 0, cast(Any, identity.features).base)
    return [frame.rgb for frame in base.step(state, [[Signal(0.0, motion=still_motion())]])[0]]
