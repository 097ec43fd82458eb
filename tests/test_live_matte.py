"""The matte of frames whose generator gives none: it follows the person, and costs nothing where no background asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import pytest

from engine.batch import Batch
from engine.composite import Scene, frame_portrait
from engine.config import Background, SessionSettings
from engine.drivers.live_matte import LiveMatte
from engine.drivers.matte import person_matte
from engine.persona import Persona
from engine.session import Session
from engine.types import GeneratorSpec, Identity, Signal, UInt8Array, VideoFrame
from tests.faces import portrait
from tests.fakes import FakeGenerator

GREEN = Background(kind="colour", colour=(0, 200, 0))
AWAY = 90
"""px of 512 that the person has moved to the right."""


def moved(rgb: UInt8Array, pixels: int) -> UInt8Array:
    """The picture shifted to the right, its edge repeated."""
    return np.ascontiguousarray(rgb[:, np.clip(np.arange(rgb.shape[1]) - pixels, 0, rgb.shape[1] - 1)])


@dataclass
class Shift(FakeGenerator):
    """Shows the portrait moved to the right, without a matte."""

    spec: GeneratorSpec = field(default_factory=lambda: GeneratorSpec("shift", (512, 512), fps=25))
    pixels: int = AWAY

    def step(self, state: Any, signals: Sequence[Sequence[Signal] | None]) -> list[list[VideoFrame] | None]:
        """See Generator."""
        rgb = moved(cv2.resize(portrait(), (512, 512), interpolation=cv2.INTER_AREA), self.pixels)
        return [None if chunk is None else [VideoFrame(rgb, signal.time, signal.id) for signal in chunk] for chunk in signals]


@pytest.fixture(scope="module")
def scene() -> Scene:
    return frame_portrait(portrait())[0]


def shown(scene: Scene, generator: Shift, background: Background) -> tuple[UInt8Array, Session]:
    persona = Persona("me", scene, Identity("me", scene.picture, (0, 0, 0)), {})
    session = Session(Batch(generator, rows=1), persona, settings=SessionSettings(background=background))
    output = session.push_signal(Signal(0.0))
    assert output is not None
    return output.frames[0].rgb, session


def test_a_person_who_moves_takes_the_matte_along(scene: Scene) -> None:
    rgb, session = shown(scene, Shift(), GREEN)
    there = person_matte(moved(scene.picture, AWAY))
    green = (np.abs(rgb.astype(int) - GREEN.colour) < 16).all(-1)
    person, wall = cv2.erode(there, np.ones((15, 15), np.uint8)) == 255, cv2.dilate(there, np.ones((25, 25), np.uint8)) == 0
    assert green[person].mean() < 0.005
    assert green[wall].mean() > 0.98
    # The still portrait's matte would have shown the wall where the person was, and cut the person off where they are.
    assert (scene.matte[person] < 128).mean() > 0.05
    assert (scene.matte[wall] > 128).mean() > 0.02
    session.close()
    assert session._matte is None


def test_the_portraits_own_background_costs_no_network(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LiveMatte, "__call__", lambda *_: pytest.fail("nobody asked"))
    shown(scene, Shift(), Background())[1].close()


def test_where_nobody_is_seen_the_portraits_matte_stays(scene: Scene) -> None:
    assert LiveMatte()(np.full((768, 512, 3), 120, np.uint8)) is None
    blank = Shift()
    blank.step = lambda state, signals: [[VideoFrame(np.full((512, 512, 3), 120, np.uint8), 0.0)]]  # type: ignore[method-assign]
    rgb, session = shown(scene, blank, GREEN)
    inside = cv2.erode(scene.matte, np.ones((9, 9), np.uint8)) == 255
    assert (rgb[inside] == 120).all(), "untrained weights paint into the portrait's outline"
    session.close()


@pytest.mark.parametrize("size", [(768, 512), (512, 768), (64, 48)])
def test_the_matte_is_as_large_as_its_frame(size: tuple[int, int]) -> None:
    matte = LiveMatte()
    picture = np.asarray(cv2.resize(frame_portrait(portrait(), size=size)[1], size[::-1], interpolation=cv2.INTER_AREA), np.uint8)
    found = matte(picture)
    assert found is not None
    assert found.shape == size
    assert found.dtype == np.uint8
    assert found[size[0] // 2, size[1] // 2] == 255
    assert found[2, 2] == 0
    matte.close()
    again = matte(picture)
    assert again is not None, "it starts again"
    np.testing.assert_array_equal(again, found)
    matte.close()
