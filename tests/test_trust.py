"""Where trained weights are not believed: a motion unlike the training shows the puppet's own mouth, eyes or picture. And the puppet's guide."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from engine.generators.diffusion.trust import KEPT, PARTS, Ask, Trust, blend, row
from engine.generators.puppet import topology
from engine.generators.puppet.generator import Puppet, State
from engine.persona import demo_portrait
from engine.types import AvatarError, FloatArray, Motion, Signal, UInt8Array, VideoFrame, still_motion


def moved(*, yaw: float = 0.0, gap: float = 0.0) -> Motion:
    """The neutral with a turned head or an open mouth."""
    still = still_motion()
    return replace(still, head=np.array([yaw, 0, 0, 0, 0, 0], np.float32), mouth=np.array([gap, 0, 0, 0], np.float32))


HEAD, EYES, MOUTH = (PARTS.index(part) for part in ("head", "eyes", "mouth"))


@pytest.fixture(scope="module")
def motions() -> FloatArray:
    """A minute of small movements: [N, 16]."""
    t = np.arange(1500) / 25
    seen = np.zeros((len(t), 16), np.float32)
    seen[:, 0], seen[:, 1] = 8 * np.sin(t), 4 * np.sin(1.3 * t)
    seen[:, 6:8] = (1 - 0.9 * (np.sin(1.7 * t) > 0.98))[:, None]
    seen[:, 12] = 0.1 * np.abs(np.sin(3 * t))
    return seen


def test_what_was_seen_is_believed_and_what_was_not_is_not(motions: FloatArray) -> None:
    trust = Trust.of(motions)
    assert len(trust.seen) <= KEPT
    for motion in motions[::97]:
        assert trust.confidence(motion).min() > 0.9
    wide, turned, shut = motions[100].copy(), motions[100].copy(), motions[100].copy()
    wide[12], turned[0], shut[6:8] = 0.6, 35.0, 1.9
    for motion, part in ((wide, MOUTH), (turned, HEAD), (shut, EYES)):
        confidence = trust.confidence(motion)
        assert confidence[part] == 0.0
        assert np.delete(confidence, part).min() > 0.9, "and nothing else is doubted"


def test_belief_fades_without_a_jump(motions: FloatArray) -> None:
    trust = Trust.of(motions)
    gaps = np.linspace(0.1, 0.6, 200)
    found = []
    for gap in gaps:
        motion = motions[100].copy()
        motion[12] = gap
        found.append(float(trust.confidence(motion)[MOUTH]))
    assert found[0] > 0.9
    assert found[-1] == 0.0
    assert np.abs(np.diff(found)).max() < 0.15


def test_it_survives_a_file_and_refuses_others(motions: FloatArray) -> None:
    trust = Trust.of(motions)
    again = Trust.unpack(trust.pack())
    assert np.array_equal(again.confidence(motions[7] + 0.3), trust.confidence(motions[7] + 0.3))
    with pytest.raises(AvatarError, match="cannot be read"):
        Trust.unpack({"seen": trust.seen})
    with pytest.raises(AvatarError, match="unknown shape"):
        Trust.unpack({**trust.pack(), "near": np.zeros(2, np.float32)})
    with pytest.raises(AvatarError, match="collect the data anew"):
        Trust.of(np.full((5, 16), np.nan, np.float32))


def test_a_row_has_the_data_set_s_order() -> None:
    motion = Motion(*(np.full(n, k, np.float32) for k, n in enumerate((6, 2, 2, 2, 4))))
    assert row(motion).tolist() == [0] * 6 + [1] * 2 + [2] * 2 + [3] * 2 + [4] * 4


# -- in the picture -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def puppet() -> Puppet:
    return Puppet((128, 128), respond=False)


@pytest.fixture(scope="module")
def state(puppet: Puppet) -> State:
    state = puppet.allocate(1)
    puppet.admit(state, 0, puppet.prepare(demo_portrait()))
    return state


def stepped(puppet: Puppet, state: State, motion: Motion) -> VideoFrame:
    """The row's frame."""
    made = puppet.step(state, [[Signal(0.0, motion=motion)]])[0]
    assert made is not None
    return made[0]


@pytest.mark.parametrize("doubted", [MOUTH, EYES])
def test_only_the_doubted_part_is_the_puppet_s(puppet: Puppet, state: State, doubted: int) -> None:
    frame = stepped(puppet, state, still_motion())
    points = puppet.points(state, 0)
    made: UInt8Array = np.asarray(255 - frame.rgb, np.uint8)
    confidence = np.ones(3, np.float32)
    confidence[doubted] = 0.0
    shown = blend(made, frame.rgb, points, confidence)
    mouth = points[list(topology.LIP_CORNERS[0] + topology.UPPER_LIP[0] + topology.LOWER_LIP[0])].mean(0).astype(int)
    eye = points[list(topology.UPPER_LID[0] + topology.LOWER_LID[0])].mean(0).astype(int)
    inside, outside = (mouth, eye) if doubted == MOUTH else (eye, mouth)
    assert np.array_equal(shown[inside[1], inside[0]], frame.rgb[inside[1], inside[0]])
    assert np.array_equal(shown[outside[1], outside[0]], made[outside[1], outside[0]])
    assert np.array_equal(shown[0, 0], made[0, 0])
    answered = Ask(frame, frame.rgb, points, confidence).answered(made)
    assert np.array_equal(answered.rgb, shown)
    assert answered.alpha is frame.alpha


def test_a_head_that_is_not_believed_is_the_puppet_s_whole(puppet: Puppet, state: State) -> None:
    frame = stepped(puppet, state, still_motion())
    made, points = np.asarray(255 - frame.rgb, np.uint8), puppet.points(state, 0)
    assert np.array_equal(blend(made, frame.rgb, points, np.array([0, 1, 1], np.float32)), frame.rgb)
    assert blend(made, frame.rgb, points, np.ones(3, np.float32)) is made, "what is believed costs nothing"


def test_the_guide_says_where_pixels_come_from(puppet: Puppet, state: State) -> None:
    frame = stepped(puppet, state, still_motion())
    assert frame.alpha is not None
    guide = puppet.guide(state, 0, frame)
    here = frame.alpha > 250
    y, x = np.mgrid[:128, :128]
    still = np.abs(guide[..., 0].astype(int) - 1 - x * 254 / 127)[here], np.abs(guide[..., 1].astype(int) - 1 - y * 254 / 127)[here]
    assert all(np.median(part) <= 2 for part in still), "a portrait at rest comes from where it is"
    assert not guide[frame.alpha == 0, :2].any()
    turned = stepped(puppet, state, moved(yaw=12.0))
    nose = puppet.points(state, 0)[4].astype(int)
    there = puppet.guide(state, 0, turned)[nose[1], nose[0], 0]
    assert there < guide[nose[1], nose[0], 0] - 4, "the nose has moved to the right, and comes from further left"


def test_the_landmark_map_follows_the_lips(puppet: Puppet, state: State) -> None:
    lips = list(topology.LIP_CORNERS[0] + topology.UPPER_LIP[0] + topology.LOWER_LIP[0])
    for motion in (still_motion(), moved(gap=0.4)):
        frame = stepped(puppet, state, motion)
        lines = puppet.guide(state, 0, frame)[..., 2]
        for x, y in np.rint(puppet.points(state, 0)[lips]).astype(int):
            assert lines[y, x] == 255
