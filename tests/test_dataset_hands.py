"""Hands of a data set's clips: looked for as a live session does, kept beside what was collected before, and painted where a live one paints them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.conditions.place import Anchor, place
from engine.config import BODY_EVERY, HANDS_EVERY
from engine.drivers.hands import BELIEVED, Found, HandsDriver
from engine.drivers.readings import HANDS_HOLD
from engine.pose import rotation
from engine.types import FACE_POINTS, AvatarError, FloatArray, Signal, UInt8Array
from exporters.data import hands
from exporters.data.dataset import Clip, collect, open_dataset
from exporters.data.footage import FPS
from exporters.data.painted import painted, placed
from tests.test_dataset_maps import KEPT, RECT, SIZE, WHOLE, written
from tests.test_hands import hand
from tests.test_media import write_clip

COUNT = 40
GONE = range(24, 34)
"""Frames in which the hand is not seen."""


def track(count: int = COUNT, *, repeats: int = 1) -> dict[str, Any]:
    """What was seen else of a clip with a picture for every frame, or for so many of them."""
    shown = (np.arange(count) + repeats // 2) // repeats + 1
    return {
        "size": np.array((96, 128)),
        "shown": shown,
        "time": ((shown - 1) * repeats / FPS).astype(np.float32),
        "face": np.full((count, FACE_POINTS, 3), np.nan, np.float32),
        "mouth": np.ones(count, np.float32),
    }


class Looks:
    """A tracker that sees one hand, which goes to the right by 1 % of the picture every frame, and notes when it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times = list[float]()
        call = HandsDriver.__call__

        def noted(driver: HandsDriver, frame: Any, **known: Any) -> Any:
            self.times.append(frame.time)
            return call(driver, frame, **known)

        def seen(driver: HandsDriver, rgb: UInt8Array) -> Sequence[Found]:
            number = round(self.times[-1] * FPS)
            return [] if number in GONE else [Found(hand(0.2 + number / 100), 1.0)]

        monkeypatch.setattr(HandsDriver, "__call__", noted)
        monkeypatch.setattr(HandsDriver, "_detect", seen)

    @property
    def frames(self) -> list[int]:
        return [round(time * FPS) for time in self.times]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    return Looks(monkeypatch)


def middles(found: FloatArray) -> FloatArray:
    """[N] x of the picture's left hand, NaN where it is not seen."""
    seen = found[:, 0].any((1, 2))
    return np.where(seen, found[:, 0, :, 0].mean(1), np.nan)


def test_they_are_looked_for_as_often_as_live_and_lie_between_the_looks(looks: Looks, tmp_path: Path) -> None:
    video = write_clip(tmp_path / "x.mp4", times=[k / FPS for k in range(COUNT)])
    found = hands.watch(video, track(), lambda done, total: None)
    often = list(range(0, GONE.start + 1, HANDS_EVERY))
    assert looks.frames[: len(often)] == often
    seldom = [k for k in looks.frames if GONE.start + (HANDS_HOLD + 0.3) * FPS < k]
    assert (np.diff(seldom)[:1] == BODY_EVERY).all()
    x = middles(found)
    first = HANDS_EVERY * (BELIEVED - 1)
    assert np.isnan(x[:first]).all(), "a ghost seldom lasts"
    assert not found[:, 1].any(), "the other hand"
    steps = np.diff(x[first : GONE.start - 1])
    assert (steps > 0).all(), "between two looks it is on its way"
    assert steps.mean() == pytest.approx(0.01, abs=0.001)
    held = GONE.start + int(HANDS_HOLD * FPS)
    assert np.isfinite(x[GONE.start : held - 1]).all()
    assert np.isnan(x[held + 4 : GONE.stop]).all(), "no longer than live"
    assert np.isfinite(x[-1])


def test_a_slower_camera_s_picture_is_looked_at_once_and_stands_still(looks: Looks, tmp_path: Path) -> None:
    video = write_clip(tmp_path / "x.mp4", times=[3 * k / FPS for k in range(7)])
    found = hands.watch(video, track(20, repeats=3), lambda done, total: None)
    assert looks.frames == [0, 3, 6, 9, 12, 15, 18], "frames of their times"
    x = middles(found)
    for middle in (6, 9, 12, 15):
        assert np.isfinite(x[middle])
        assert np.array_equal(x[middle - 1 : middle + 2], x[[middle] * 3])


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The videos that were looked at, in which the right hand is at the same place in every frame but the first."""
    asked = list[str]()

    def watch(video: Path, track: Any, tick: Any) -> FloatArray:
        asked.append(video.name)
        found = np.zeros((len(KEPT), 2, 21, 3), np.float32)
        found[1:, 1] = hand(0.5)
        return found

    monkeypatch.setattr(hands, "watch", watch)
    return asked


def test_a_set_from_before_gets_them_when_it_is_asked_for_them(seen: list[str], tmp_path: Path) -> None:
    one = written(tmp_path, "a", "b")
    assert [clip.hands for clip in collect(one.videos, one.folder, size=SIZE, least=1.0).clips] == [None, None]
    for _ in range(2):
        data = collect(one.videos, one.folder, size=SIZE, least=1.0, hands=True)
    assert seen == ["a.mp4", "b.mp4"], "once"
    expected = hand(0.5)[:, :2] * WHOLE[::-1] - RECT[:2]
    for clip in (*data.clips, *open_dataset(one.folder).clips):
        assert clip.hands is not None
        assert np.isnan(clip.hands[0]).all()
        assert np.isnan(clip.hands[:, 0]).all()
        assert clip.hands[3, 1] == pytest.approx(expected, abs=1e-3), "px of the crop"
    (one.folder / "clips" / "a" / hands.FILE).write_bytes(b"half")
    with pytest.raises(AvatarError, match="is damaged"):
        open_dataset(one.folder)


def test_killed_between_two_clips_it_goes_on(seen: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, watch = written(tmp_path, "a", "b"), hands.watch

    def dying(video: Path, *rest: Any) -> FloatArray:
        if video.name == "b.mp4":
            raise KeyboardInterrupt
        return watch(video, *rest)

    with monkeypatch.context() as until:
        until.setattr(hands, "watch", dying)
        with pytest.raises(KeyboardInterrupt):
            collect(one.videos, one.folder, size=SIZE, least=1.0, hands=True)
    assert [clip.hands is None for clip in open_dataset(one.folder).clips] == [False, True]
    assert all(clip.hands is not None for clip in collect(one.videos, one.folder, size=SIZE, least=1.0, hands=True).clips)
    assert seen == ["a.mp4", "b.mp4"]


def clip_of(faces: FloatArray, found: FloatArray | None) -> Clip:
    """Points alone."""
    none, unmoved, count = np.zeros((len(faces), 0), np.uint8), np.zeros((len(faces), 0), np.float32), len(faces)
    return Clip("points", none, none, none, faces, unmoved, unmoved, faces, np.ones(count, bool), [(0, count)], [], hands=found)


def test_they_are_painted_where_a_live_session_paints_them() -> None:
    """The clip's crop of a larger camera picture, whose neutral head is the portrait's."""
    from engine.drivers.rigid import MEAN_RIGID, RIGID

    side, (width, height), corner, larger = 64, (320, 240), np.array([70.0, 40.0]), 2.0
    points = np.random.default_rng(3).normal(0, 0.2, (FACE_POINTS, 3))
    points[RIGID] = MEAN_RIGID
    face = (26 * (points @ rotation(0, 4, 0).T)[:, :2] + (32, 26)).astype(np.float32)
    own = np.stack([np.full((21, 2), np.nan), side * hand(0.2, 0.8, size=0.25)[:, :2]]).astype(np.float32)
    clip = clip_of(face[None], own[None])
    unit = np.array([width, height])
    whole = np.concatenate([(face * larger + corner) / unit, np.zeros((FACE_POINTS, 1))], 1).astype(np.float32)
    shown = np.zeros((2, 21, 3), np.float32)
    shown[1, :, :2] = (own[1] * larger + corner) / unit
    anchor = Anchor(np.concatenate([face / side, np.zeros((FACE_POINTS, 1), np.float32)], 1), np.zeros((33, 4), np.float32))
    live = place(Signal(0.0, face=whole, hands=shown, aspect=width / height), anchor, (side, side))
    taught = placed(clip, 0)
    assert len(live.hands) == len(taught.hands) == 1
    assert live.hands[0] == pytest.approx(taught.hands[0], abs=0.5)
    bare = painted("skeleton", replace(clip, hands=None), range(1), (side, side))
    more = (painted("skeleton", clip, range(1), (side, side)) != bare).any(-1)
    x, y = own[1, 8].astype(int)
    assert more[0, y, x], "the tip of a finger"
    faceless = painted("skeleton", clip, range(1), (side, side), face=False)
    assert (bare == 255).all(-1).any()
    assert not (faceless == 255).all(-1).any(), "as presets whose skeletons have no face show it live"
    marked, without = (painted("landmarks", one, range(1), (side, side)) for one in (clip, replace(clip, hands=None)))
    assert np.array_equal(marked, without)
