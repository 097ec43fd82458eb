"""The footage that the demo persona learns from shows what the puppet's own frames lack."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.drivers.resample import RATE
from engine.generators.puppet.generator import Puppet
from engine.media import probe, video_frames
from engine.persona import demo_portrait
from engine.types import Identity, Motion, Signal, UInt8Array, still_motion
from exporters.training import demo
from exporters.training.demo import SIDE, Look


@pytest.fixture(scope="module")
def puppet() -> tuple[Puppet, Identity]:
    """With her in it."""
    puppet = Puppet((SIDE, SIDE), respond=False)
    return puppet, puppet.prepare(demo_portrait())


def shown(of: tuple[Puppet, Identity], motion: Motion) -> tuple[UInt8Array, UInt8Array, UInt8Array]:
    """(the puppet's frame, its alpha, the footage's)."""
    puppet, identity = of
    state = puppet.allocate(1)
    puppet.admit(state, 0, identity)
    made = puppet.step(state, [[Signal(0.0, motion=motion)]])[0]
    assert made is not None
    assert made[0].alpha is not None
    return made[0].rgb, made[0].alpha, Look(puppet, state).frame(0.0, motion)


def turned(yaw: float) -> Motion:
    """A head turned by so many degrees."""
    return replace(still_motion(), head=np.array([yaw, 0, 0, 0, 0, 0], np.float32))


def test_another_place_is_behind_her(puppet: tuple[Puppet, Identity]) -> None:
    frame, alpha, film = shown(puppet, still_motion())
    assert np.abs(film.astype(int) - frame)[alpha == 0].mean() > 20


def test_the_light_stays_in_the_room(puppet: tuple[Puppet, Identity]) -> None:
    """Turned to the light (the picture's left) her face is brighter than turned away."""
    shades = {}
    for yaw in (-14.0, 14.0):
        frame, alpha, film = shown(puppet, turned(yaw))
        face = np.s_[150:260, 200:300]
        shades[yaw] = film[face].mean() / frame[face].mean()
    assert shades[-14.0] > shades[14.0] + 0.05


def test_lids_are_made_up(puppet: tuple[Puppet, Identity]) -> None:
    change = {}
    for opening in (1.0, 0.0):
        frame, _, film = shown(puppet, replace(still_motion(), eyes=np.full(2, opening, np.float32)))
        eyes = np.s_[160:200, 190:310]
        change[opening] = float(np.abs(film[eyes].astype(int) - frame[eyes]).mean())
    assert change[0.0] > change[1.0] + 1.0


def test_she_acts_and_speaks_in_turns_and_every_gesture_comes() -> None:
    quiet = np.zeros(round(demo.SECONDS * RATE), np.float32)
    told = [motion for _, motion in demo.motions(quiet)]
    assert len(told) == round(demo.SECONDS * demo.FPS)
    table = np.stack([[*motion.head[:3], *motion.eyes, *motion.brows, *motion.mouth] for motion in told])
    low, high = table.min(0), table.max(0)
    assert (low[0], high[0]) == pytest.approx((-14, 14), abs=6)
    assert high[7] == pytest.approx(0.45, abs=0.02), "a mouth wide open"
    assert low[3] < 0.1, "shut eyes"
    assert high[3] > 1.3, "and wide ones"
    assert np.abs(np.diff(table[:, 7])).max() < 0.1, "nothing jumps"


def test_the_film_has_picture_and_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SECONDS", 0.8)
    demo.film(tmp_path / "demo.mp4")
    assert len(list(video_frames(tmp_path / "demo.mp4"))) == 20
    assert probe(tmp_path / "demo.mp4").has_audio
