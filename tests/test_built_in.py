"""The personas that come with the program."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from engine import built_in
from engine.built_in import BUILT_IN, DEMO, TAUGHT
from engine.generators import load
from engine.persona import ASSETS
from engine.serving import choose
from engine.types import AvatarError, Generator, Signal, UInt8Array, still_motion

BYTES = 25_000_000
"""That files of the demo may have together."""


@pytest.fixture(scope="module")
def puppet() -> Generator:
    return load("puppet", size=(256, 256))


def face(generator: Generator, name: str, yaw: float) -> UInt8Array:
    """The middle of a face that is turned."""
    persona = built_in.make(generator, name)
    state = generator.allocate(1)
    generator.admit(state, 0, persona.identity)
    motion = replace(still_motion(), head=np.array([yaw, 0, 0, 0, 0, 0], np.float32))
    frames = generator.step(state, [[Signal(0.0, motion=motion)]])[0]
    assert frames is not None
    return frames[0].rgb[70:130, 100:150]


def test_the_taught_one_is_lit_by_where_she_turns_and_the_other_is_not(puppet: Generator) -> None:
    """The light of her footage came from the picture's left."""
    shade = {name: face(puppet, name, -11.0).mean() / face(puppet, name, 11.0).mean() for name in BUILT_IN}
    assert shade[TAUGHT] > shade[DEMO] + 0.03


def test_the_puppet_shows_both() -> None:
    for name in BUILT_IN:
        assert choose(None, {}, persona=name).generator == "puppet"


def test_there_are_no_others(puppet: Generator) -> None:
    with pytest.raises(AvatarError, match="demo, demo taught"):
        built_in.make(puppet, "nobody")


def test_the_files_are_few_and_small() -> None:
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) < BYTES
