"""Painted conditions while one source gives way to another: nothing jumps, and what is left of the change is gone after EASE seconds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine.composite import frame_portrait
from engine.conditions.ease import eased
from engine.conditions.place import Placed, place
from engine.drivers.body import BodyReading
from engine.drivers.mix import EASE, Mixer
from engine.drivers.speech import SpeechDriver
from engine.generators.diffusion.conditions import Anchor, Ease, anchor_of, painter
from engine.generators.diffusion.presets import PRESETS, TINY
from engine.types import Drive, FloatArray, Grid, Signal, still_motion
from tests.conftest import require_for
from tests.faces import portrait

SIZE = (768, 512)
FPS = 25
ASPECT = 4 / 3
CALM = 0.2
"""Largest share of a change that one frame may take: of one that is eased over EASE, the fastest frame takes 1.5 / (EASE * FPS)."""
SEEN = 20.0
"""px: a jump that would be seen."""


@pytest.fixture(scope="module")
def anchor() -> Anchor:
    return anchor_of(frame_portrait(portrait(), size=SIZE)[1])


def somebody(anchor: Anchor) -> FloatArray:
    """[478, 3] a driver's face in a picture of ASPECT: longer than the portrait's, turned a little, and elsewhere."""
    face = anchor.face * (0.5, 0.9, 0.5) + (0.05, 0.1, 0.0)
    face[:, 0] += 0.2 * face[:, 1]
    return np.asarray(face, np.float32)


def reading(time: float) -> BodyReading:
    """Shoulders and arms, far from where the portrait has its own."""
    body = np.zeros((33, 4), np.float32)
    body[11:17] = [(0.75, 0.75, 0, 1), (0.15, 0.75, 0, 1), (0.9, 0.85, 0, 1), (0.05, 0.85, 0, 1), (0.8, 0.6, 0, 1), (0.1, 0.6, 0, 1)]
    return BodyReading(time, body, np.zeros(6, np.float32), 1.0)


def drive(anchor: Anchor, plan: list[tuple[Drive, int]], *, hidden: range = range(0)) -> list[Signal]:
    """What a session's mixer makes of a camera and of silence. `hidden`: frames in which the tracker misses the face."""
    mixer, speech = Mixer(), SpeechDriver()
    seen = replace(still_motion(), expression=np.zeros((478, 3), np.float32), confidence=np.ones(3, np.float32))
    signals: list[Signal] = []
    for source in [source for source, count in plan for _ in range(count)]:
        time = len(signals) / FPS
        signal = Signal(time)
        grid: Grid = "voice"
        if source != "voice":
            grid = "camera"
            face = None if len(signals) in hidden else somebody(anchor)
            motion = replace(seen, confidence=np.zeros(3, np.float32)) if face is None else seen
            signal = Signal(time, face=face, aspect=ASPECT, motion=motion)
        signals.append(mixer.mix(signal, grid=grid, drive=source, speech=speech, body=None if source == "voice" else reading(time)))
    return signals


def follow(signals: list[Signal], anchor: Anchor) -> tuple[list[Placed], list[Placed]]:
    """(the points as the rules say, the points as they are painted)."""
    ease = Ease()
    plain = [place(signal, anchor, SIZE) for signal in signals]
    return plain, [eased(ease, placed, signal.time) for placed, signal in zip(plain, signals, strict=True)]


def jumps(shown: list[Placed], part: str) -> FloatArray:
    """[frames - 1] px: the largest way of any point that is seen before and after."""
    ways = []
    for one, other in zip(shown, shown[1:], strict=False):
        a, b = getattr(one, part), getattr(other, part)
        both = np.ones(len(a), bool) if part == "face" else (a[:, 2] > 0.3) & (b[:, 2] > 0.3)
        ways.append(np.hypot(*(a - b)[both, :2].T).max(initial=0.0))
    return np.array(ways, np.float32)


def test_camera_voice_camera_does_not_jump(anchor: Anchor) -> None:
    signals = drive(anchor, [("camera", 20), ("voice", 25), ("camera", 35)])
    plain, shown = follow(signals, anchor)
    assert {placed.face_from for placed in plain} == {"driver", "portrait"}
    assert {placed.body_from for placed in plain} == {"head", "shoulders", "portrait"}
    for part in ("face", "body"):
        assert jumps(plain, part).max() > SEEN
        assert jumps(shown, part).max() < CALM * jumps(plain, part).max()
    for one, other in zip((plain[15], plain[19 + 15], plain[79]), (shown[15], shown[19 + 15], shown[79]), strict=True):
        np.testing.assert_allclose(one.face, other.face, atol=1e-3, err_msg="nothing of it stays")
        np.testing.assert_allclose(one.body, other.body, atol=1e-3)


def test_a_face_that_is_missed_for_a_moment_makes_no_jerk(anchor: Anchor) -> None:
    signals = drive(anchor, [("camera", 40)], hidden=range(12, 14))
    plain, shown = follow(signals, anchor)
    assert [placed.face_from for placed in plain[11:15]] == ["driver", "portrait", "portrait", "driver"]
    assert jumps(plain, "face").max() > SEEN
    assert jumps(shown, "face").max() < CALM * jumps(plain, "face").max()


def test_a_joint_comes_from_nowhere_at_its_own_place(anchor: Anchor) -> None:
    """One that was not seen before, or is not any more, has no difference to ease."""
    there = place(drive(anchor, [("camera", 1)])[0], anchor, SIZE)
    unseen = np.where(np.arange(33)[:, None] == 16, 0.0, there.body).astype(np.float32)
    blind = replace(there, body=unseen, body_from="portrait")
    ease = Ease()
    eased(ease, blind, 0.0)
    shifted = replace(there, body=there.body + np.array([100, 0, 0], np.float32))
    shown = eased(ease, shifted, 0.04)
    np.testing.assert_array_equal(shown.body[16], shifted.body[16])
    assert shown.body[15, 0] < shifted.body[15, 0] - 90.0


def test_a_hand_hangs_on_its_wrist(anchor: Anchor) -> None:
    there = place(drive(anchor, [("camera", 1)])[0], anchor, SIZE)
    hand = (there.body[15, :2] + np.arange(21)[:, None] * (2, -3)).astype(np.float32)
    ease = Ease()
    eased(ease, replace(there, body_from="portrait"), 0.0)
    shown = eased(ease, replace(there, body=there.body + np.array([80, 0, 0], np.float32), hands=(hand + (80, 0),)), 0.04)
    np.testing.assert_allclose(shown.hands[0][0], shown.body[15, :2], atol=1e-3)
    np.testing.assert_allclose(shown.hands[0] - shown.hands[0][0], hand - hand[0], atol=1e-3)


def test_time_that_goes_back_or_leaps_breaks_nothing(anchor: Anchor) -> None:
    """The grids have clocks of their own."""
    one, other = (replace(s, time=0.0) for s in (drive(anchor, [("camera", 1)])[0], drive(anchor, [("voice", 1)])[0]))
    ease = Ease()
    eased(ease, place(one, anchor, SIZE), 100.0)
    plain = place(other, anchor, SIZE)
    first = eased(ease, plain, 99.9)
    assert np.abs(first.face - plain.face).max() > SEEN
    last = eased(ease, plain, 5000.0)
    np.testing.assert_allclose(last.face, plain.face)
    assert ease.clock <= 1.0 + EASE


@pytest.mark.torch
def test_a_generator_eases_each_row_and_forgets_with_it(anchor: Anchor, monkeypatch: pytest.MonkeyPatch) -> None:
    require_for("diffusion")
    from engine.generators import load

    made = replace(TINY, name="painted", condition="landmarks", size=(96, 64))
    monkeypatch.setitem(PRESETS, "painted", made)
    generator: Any = load("diffusion", preset="painted", mode="eager")
    identity = generator.prepare(portrait())
    own = identity.features.anchor
    state = generator.allocate(2)
    for row in range(2):
        generator.admit(state, row, identity)
    camera, voice = (replace(signal, id=0) for signal in (drive(own, [("camera", 1)])[0], drive(own, [("voice", 1)])[0]))
    late = replace(voice, time=1 / FPS)
    generator.step(state, [[camera], [voice]])
    generator.step(state, [[late], [late]])
    paint = painter(made)
    ease = Ease()
    expected = [paint(signal, own, ease) for signal in (camera, late)]
    plain = paint(late, own, Ease())
    assert not np.array_equal(expected[1], plain)
    np.testing.assert_array_equal(state.stream.condition[0, 0].numpy(), expected[1])
    np.testing.assert_array_equal(state.stream.condition[1, 0].numpy(), plain)
    generator.reset(state, 0)
    generator.step(state, [[late], None])
    np.testing.assert_array_equal(state.stream.condition[0, 0].numpy(), plain)
    generator.evict(state, 0)
    assert list(state.eases) == [1]
