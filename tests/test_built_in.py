"""The personas that come with the program."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import pytest

from engine import built_in
from engine.built_in import BUILT_IN, DEMO, TAUGHT
from engine.drivers.outlines import LIPS
from engine.drivers.portrait import find_face
from engine.generators import load
from engine.persona import ASSETS
from engine.serving import choose
from engine.types import AvatarError, Generator, Identity, Motion, Signal, UInt8Array, still_motion
from tests.conftest import require

BYTES = 25_000_000
"""That files of the demo may have together."""


@pytest.fixture(scope="module")
def puppet() -> Generator:
    return load("puppet", size=(256, 256))


def frame_of(generator: Generator, identity: Identity, motion: Motion) -> UInt8Array:
    state = generator.allocate(1)
    generator.admit(state, 0, identity)
    frames = generator.step(state, [[Signal(0.0, motion=motion)]])[0]
    assert frames is not None
    return frames[0].rgb


def face(generator: Generator, name: str, yaw: float) -> UInt8Array:
    """The middle of a face that is turned."""
    motion = replace(still_motion(), head=np.array([yaw, 0, 0, 0, 0, 0], np.float32))
    return frame_of(generator, built_in.make(generator, name).identity, motion)[70:130, 100:150]


def test_the_taught_one_is_lit_by_where_she_turns_and_the_other_is_not(puppet: Generator) -> None:
    """The light of her footage came from the picture's left."""
    shade = {name: face(puppet, name, -11.0).mean() / face(puppet, name, 11.0).mean() for name in BUILT_IN}
    assert shade[TAUGHT] > shade[DEMO] + 0.03


def test_the_puppet_shows_both_and_a_network_the_second_where_it_can() -> None:
    assert choose(None, {}, persona=DEMO).generator == "puppet"
    for name in BUILT_IN:
        assert choose("puppet", {}, persona=name).generator == "puppet"
    without = importlib.util.find_spec("torch") is None
    chosen = choose(None, {}, persona=TAUGHT)
    assert chosen.generator == ("puppet" if without else "diffusion")
    assert chosen.told, "what was chosen is told"


@pytest.mark.torch
def test_her_network_changes_her_mouth_and_not_the_room() -> None:
    """Beside the puppet that is its condition, where she speaks."""
    require("torch")
    require("diffusers")
    weights = BUILT_IN[TAUGHT].weights
    her = load("diffusion", weights=weights)
    assert her.spec.notice == "", "trained for so few steps, there is nothing to warn of"
    motion = replace(still_motion(), mouth=np.array([0.4, 0.1, 0.0, 0.6], np.float32))
    puppet = load("puppet", size=her.spec.size)
    shown = [frame_of(generator, built_in.make(generator, TAUGHT).identity, motion).astype(int) for generator in (her, puppet)]
    apart = np.abs(shown[0] - shown[1]).mean(2)
    lips = find_face(shown[1].astype(np.uint8)).points[list(LIPS)].astype(int)
    (left, top), (right, bottom) = lips.min(0), lips.max(0)
    assert apart[top:bottom, left:right].mean() > 1.5
    assert apart[:, :40].mean() < 0.5


def test_there_are_no_others(puppet: Generator) -> None:
    with pytest.raises(AvatarError, match="demo, demo taught"):
        built_in.make(puppet, "nobody")


def test_the_files_are_few_and_small() -> None:
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) < BYTES
