"""DWPose's points from files with its inputs and outputs: boxes, crops, bins and joints as published, and sentences for other files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import cv2
import numpy as np
import pytest

import avatar
from engine.drivers.dwpose import DETECTOR, POSE, DWPose, Whole, cut_out, decoded, letterbox, people_in, skeleton_of
from engine.drivers.dwpose_drivers import DWPoseBody, DWPoseHands, hands_of, landmarks_of
from engine.driving import dwpose_makers
from engine.types import AvatarError, UInt8Array, VideoFrame
from streaming.settings import ServerSettings
from streaming.studio import Studio
from streaming.tracking import Tracking
from tests.clips import film, person
from tests.dwpose_files import SIDE, SIZE, told, write_detector, write_pose

PICTURE = (720, 1200)
"""(H, W) px: wider than high, and neither the networks' size."""
RATIO = SIDE / PICTURE[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks that see one person at 200, 60 to 320, 340 of the picture, and a dog."""
    made = tmp_path_factory.mktemp("dwpose")
    person = tuple(RATIO * edge for edge in (200.0, 60.0, 320.0, 340.0))
    write_detector(made, told((*person, 0.9, 0), (10.0, 10.0, 300.0, 300.0, 0.95, 16)))  # type: ignore[arg-type]
    write_pose(made)
    return made


@pytest.fixture(scope="module")
def networks(folder: Path) -> DWPose:
    return DWPose(folder, threads=1)


def dots(*at: tuple[int, int], size: tuple[int, int] = PICTURE) -> UInt8Array:
    """A black picture with a soft blue, green and red dot (the network's colours 0, 1, 2, as pictures go in as BGR)."""
    picture = np.zeros((*size, 3), np.float32)
    for channel, (x, y) in zip((2, 1, 0), at, strict=True):
        picture[y, x, channel] = 255.0
    spread = cv2.GaussianBlur(picture, (0, 0), 4.0)
    return np.asarray(np.clip(spread / spread.max() * 255.0, 0, 255), np.uint8)


def whole(seed: int = 0) -> Whole:
    rng = np.random.default_rng(seed)
    return Whole(rng.uniform(0, 300, (133, 2)).astype(np.float32), rng.uniform(0.4, 1.0, 133).astype(np.float32))


def test_points_come_back_where_they_are_in_the_picture(networks: DWPose) -> None:
    at = ((240, 100), (300, 200), (220, 320))
    answer = networks(dots(*at))
    for k, point in enumerate(at):
        assert np.abs(answer.points[k::3] - point).max() <= 1.0, "px: a bin is 0.6 px of this picture"
    assert (answer.scores > 0.3).all()


def test_who_is_out_of_the_box_is_not_read(networks: DWPose) -> None:
    inside, outside = (260, 200), (590, 20)
    assert np.abs(networks(dots(inside, outside, inside)).points[1] - outside).max() > 100


def test_without_a_person_the_whole_picture_is_read(tmp_path: Path) -> None:
    write_detector(tmp_path, told())
    write_pose(tmp_path)
    at = ((590, 20), (10, 350), (300, 180))
    answer = DWPose(tmp_path, threads=1)(dots(*at))
    for k, point in enumerate(at):
        assert np.abs(answer.points[k] - point).max() <= 4.0


def test_of_several_people_the_best_seen_is_taken(tmp_path: Path) -> None:
    left, right = ([RATIO * edge for edge in box] for box in ((680.0, 60.0, 800.0, 340.0), (400.0, 60.0, 520.0, 340.0)))
    write_detector(tmp_path, told((*left, 0.6, 0), (*right, 0.9, 0)))  # type: ignore[arg-type]
    write_pose(tmp_path)
    networks = DWPose(tmp_path, threads=1)
    bright = np.asarray(dots((740, 200), (740, 200), (740, 200)) // 2 + dots((460, 200), (460, 200), (460, 200)), np.uint8)
    assert len(networks.people(bright)) == 2
    assert abs(networks(bright).points[0, 0] - 460) < 2
    assert abs(networks(np.ascontiguousarray(bright[:, ::-1])).points[0, 0] - (PICTURE[1] - 1 - 460)) < 2


def test_boxes_that_overlap_are_one_and_weak_ones_none() -> None:
    boxes = people_in(told((100, 100, 300, 500, 0.8, 0), (110, 110, 310, 510, 0.9, 0), (400, 100, 500, 400, 0.25, 0)), (SIDE, SIDE))
    np.testing.assert_allclose(boxes, [(110, 110, 310, 510)], atol=1e-3)
    two = people_in(told((100, 100, 300, 500, 0.8, 0), (240, 110, 440, 510, 0.9, 0), (50, 50, 600, 600, 0.95, 1)), (SIDE, SIDE))
    np.testing.assert_allclose(two, [(240, 110, 440, 510), (100, 100, 300, 500)], atol=1e-3)


def test_the_picture_goes_into_the_corner_of_grey() -> None:
    picture = np.full((*PICTURE, 3), 7, np.uint8)
    padded, ratio = letterbox(picture, (SIDE, SIDE))
    assert padded.shape == (1, 3, SIDE, SIDE)
    assert ratio == pytest.approx(RATIO)
    assert (padded[:, :, : int(PICTURE[0] * ratio)] == 7).all()
    assert (padded[:, :, int(PICTURE[0] * ratio) :] == 114).all()


@pytest.mark.parametrize("box", [(200.0, 60.0, 320.0, 340.0), (0.0, 0.0, 1200.0, 720.0), (-30.0, 200.0, 90.0, 500.0)])
def test_the_crop_has_a_margin_the_networks_aspect_and_its_normalisation(box: tuple[float, ...]) -> None:
    ramp = np.zeros((*PICTURE, 3), np.uint8)
    ramp[..., 0] = (np.arange(PICTURE[1]) // 5)[None]
    cut, centre, extent = cut_out(ramp, np.array(box), SIZE)
    assert cut.shape == (1, 3, *SIZE)
    assert extent[0] / extent[1] == pytest.approx(SIZE[1] / SIZE[0])
    assert min(extent / (np.array(box[2:]) - box[:2])) == pytest.approx(1.25)
    np.testing.assert_allclose(centre, ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))
    told_back = cut[0, 0, SIZE[0] // 2, SIZE[1] // 2] * 58.395 + 123.675
    assert told_back == pytest.approx(centre[0] / 5, abs=1.0)
    assert cut[0, 2, 0, 0] == pytest.approx(-103.53 / 57.375)


def test_a_bin_is_half_a_px_and_a_score_the_worse_of_both() -> None:
    across, down = np.zeros((2, 576), np.float32), np.zeros((2, 768), np.float32)
    across[0, 101], down[0, 300] = 0.9, 0.6
    points, scores = decoded(across, down)
    np.testing.assert_allclose(points, [(50.5, 150.0), (-0.5, -0.5)])
    np.testing.assert_allclose(scores, [0.6, 0.0])


def test_133_points_become_18_joints_hands_feet_and_a_face() -> None:
    seen = whole()
    made = skeleton_of(seen)
    np.testing.assert_allclose(made.joints[1, :2], (seen.points[5] + seen.points[6]) / 2)
    for joint, point in {0: 0, 2: 6, 3: 8, 4: 10, 5: 5, 6: 7, 7: 9, 8: 12, 9: 14, 10: 16, 11: 11, 12: 13, 13: 15, 14: 2, 15: 1, 16: 4, 17: 3}.items():
        np.testing.assert_array_equal(made.joints[joint], (*seen.points[point], seen.scores[point]))
    np.testing.assert_array_equal(made.hands[0, :, :2], seen.points[91:112])
    np.testing.assert_array_equal(made.hands[1, :, :2], seen.points[112:])
    assert made.face is not None
    assert made.feet is not None
    np.testing.assert_array_equal(made.face[:, :2], seen.points[23:91])
    np.testing.assert_allclose(made.feet[0, :2], (seen.points[17] + seen.points[18]) / 2)
    assert made.joints[1, 2] == 1.0
    hidden = Whole(seen.points, np.where(np.arange(133) == 6, np.float32(0.2), seen.scores))
    assert skeleton_of(hidden).joints[1, 2] == 0.0


def test_it_stands_where_mediapipes_body_and_hands_do(networks: DWPose) -> None:
    seen = whole()
    marks = landmarks_of(seen, PICTURE)
    np.testing.assert_allclose(marks[11, :2] * PICTURE[::-1], seen.points[5], rtol=1e-5)  # the person's left shoulder
    np.testing.assert_allclose(marks[28, :2] * PICTURE[::-1], seen.points[16], rtol=1e-5)
    assert marks[17:23, 3].max() == 0.0
    left, right = hands_of(seen, PICTURE)
    assert (left.left, right.left) == (0.0, 1.0)  # the person's right hand is the picture's left one
    np.testing.assert_allclose(right.points[:, :2] * PICTURE[::-1], seen.points[112:], rtol=1e-5)
    picture = dots((240, 100), (300, 200), (220, 320))
    body, hands = DWPoseBody(networks), DWPoseHands(networks)
    for at in range(3):
        frame = VideoFrame(picture, at / 25, at)
        reading, held = body(frame), hands(frame)
    assert reading is not None
    assert reading.confidence > 0.0
    np.testing.assert_allclose(reading.landmarks[11, :2] * PICTURE[::-1], networks(picture).points[5], rtol=1e-4)
    assert (held.confidence > 0.0).any()
    dark = DWPoseBody(networks)
    assert dark(VideoFrame(np.zeros((*PICTURE, 3), np.uint8), 0.0)) is None


def test_one_frame_costs_one_run(networks: DWPose, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[UInt8Array] = []
    people = networks.people

    def counted(rgb: UInt8Array) -> list[Whole]:
        runs.append(rgb)
        return people(rgb)

    monkeypatch.setattr(networks, "people", counted)
    frame = VideoFrame(dots((240, 100), (300, 200), (220, 320)), 0.0)
    DWPoseBody(networks)(frame)
    DWPoseHands(networks)(frame)
    assert len(runs) == 1
    networks(frame.rgb.copy())
    assert len(runs) == 2


def test_files_that_are_not_there_or_others_are_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(AvatarError, match=rf"There is no {DETECTOR} and no {POSE} in"):
        DWPose(tmp_path)
    write_detector(tmp_path, told())
    with pytest.raises(AvatarError, match=rf"There is no {POSE} in .*give a folder"):
        DWPose(tmp_path)
    (tmp_path / POSE).write_bytes(b"no network")
    with pytest.raises(AvatarError, match="cannot load"):
        DWPose(tmp_path)
    write_pose(tmp_path, points=17)
    with pytest.raises(AvatarError, match=r"gives any x 17 x 576 and any x 17 x 768 and not 1 x 133 x 576"):
        DWPose(tmp_path)
    (tmp_path / POSE).write_bytes((tmp_path / DETECTOR).read_bytes())
    with pytest.raises(AvatarError, match="so it is not DWPose's"):
        DWPose(tmp_path)
    write_pose(tmp_path)
    write_detector(tmp_path, told(), side=416)
    with pytest.raises(AvatarError, match="gives 1 x 8400 x 85 and not 1 x 3549"):
        DWPose(tmp_path)


def test_makers_load_the_networks_once_and_only_when_a_driver_is_made(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Any] = []
    made = DWPose.__init__

    def counted(self: DWPose, where: Path) -> None:
        loads.append(where)
        made(self, where, threads=1)

    monkeypatch.setattr(DWPose, "__init__", counted)
    assert dwpose_makers(None) == {}
    with pytest.raises(AvatarError, match="There is no"):
        dwpose_makers(tmp_path)
    others = Studio(ServerSettings(dwpose=folder))
    assert loads == []
    drivers, more = others._others(), others._others()
    assert loads == [folder]
    assert isinstance(drivers["body"], DWPoseBody)
    assert isinstance(more["hands"], DWPoseHands)
    assert Studio(ServerSettings())._others() == {}


@pytest.mark.parametrize(
    ("dwpose", "does"), [("folder", "use a GPU for DWPose, or start the server without --dwpose"), (None, "use a faster machine")]
)
def test_a_body_that_is_always_read_too_late_is_told_once(dwpose: str | None, does: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of such readings counts, and the shoulders would rest without a word."""
    clock, said = [100.0], list[tuple[str, str]]()
    monkeypatch.setattr("streaming.tracking.time", SimpleNamespace(monotonic=lambda: clock[0]))
    live = SimpleNamespace(
        closed=False,
        stats=SimpleNamespace(stage=lambda *_: None),
        settings=SimpleNamespace(dwpose=dwpose),
        post=lambda function, *args: function(*args),
        tell=lambda text, level: said.append((text, level)),
        failed=lambda error: pytest.fail(repr(error)),
    )

    def reading(took: float) -> Callable[[VideoFrame], None]:
        def track(frame: VideoFrame) -> None:
            clock[0] += took

        return track

    nowhere = cast(Any, None)
    tracking = Tracking(cast(Any, live), faces=nowhere, bodies=nowhere)
    for took in (5.0, 0.3, 5.0, 12.2, 5.0, 5.0):
        assert tracking._body_lock.acquire(blocking=False)
        tracking._job("body", reading(took), cast(Any, None), tracking._body_lock)
        assert bool(said) == (clock[0] > 115.0), "one slow reading is a busy moment"
    ((text, level),) = said
    assert level == "error"
    assert text.startswith("The body cannot be followed: reading it takes 12.2 s a picture here")
    assert does in text


def test_render_reads_the_shoulders_with_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = film(tmp_path / "me.mp4", person(count=11), sound=False)
    read: list[Any] = []
    people = DWPose.people

    def counted(self: DWPose, rgb: UInt8Array) -> list[Whole]:
        read.append(rgb.shape)
        return people(self, rgb)

    monkeypatch.setattr(DWPose, "people", counted)
    assert avatar.main(["render", "--drive", str(clip), "-o", str(tmp_path / "out.mp4"), "--dwpose", str(folder)]) == 0
    assert read == [(*SIZE, 3), *[(256, 256, 3)] * 3], "once when they are loaded, then every fifth of eleven frames"
    assert avatar.main(["render", "--drive", str(clip), "-o", str(tmp_path / "out.mp4"), "--dwpose", str(tmp_path)]) == 2
    assert "There is no yolox_l.onnx" in capsys.readouterr().err
