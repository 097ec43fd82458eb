"""The camera drivers on pictures: the built-in portrait stands in for a person in front of a camera."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from engine.drivers.body import BodyDriver
from engine.drivers.face import FaceDriver, FaceTracker
from engine.drivers.follow import GONE
from engine.drivers.measure import LIPS
from engine.drivers.quiet import quiet
from engine.drivers.sight import AROUND, MouthSight
from engine.types import AvatarError, FloatArray, Signal, UInt8Array, VideoFrame
from tests.faces import portrait, scene

FPS = 30
HEAD = 420  # px side of the portrait in a scene: a face of 130 px in 640 x 480


class Camera:
    """Feeds pictures to a driver at FPS."""

    def __init__(self) -> None:
        self.driver = FaceDriver()
        self.time = 100.0

    @property
    def state(self) -> str:
        """Of the neutral: "searching" or "set"."""
        return self.driver.neutral_state

    def show(self, rgb: UInt8Array, frames: int = 1) -> Signal:
        """The signal after some frames of one picture."""
        for _ in range(frames):
            self.time += 1 / FPS
            signal = self.driver(VideoFrame(rgb, self.time))
        return signal


@pytest.fixture
def camera() -> Iterator[Camera]:
    made = Camera()
    yield made
    made.driver.close()


def x_of(signal: Signal) -> float:
    """Where the face stands, 0..1 of the width."""
    assert signal.face is not None
    return float(signal.face[:, 0].mean())


def test_tracker_finds_the_portrait() -> None:
    tracker = FaceTracker(still=True)
    (face,) = tracker.detect(portrait())
    assert face.shape == (478, 3)
    assert face.dtype == np.float32
    assert face[33, 0] < face[263, 0], "point 33 is on the picture's left"
    assert 0.3 < face[1, 0] < 0.7
    assert 0.3 < face[1, 1] < 0.7
    assert tracker.detect(np.zeros((64, 64, 3), np.uint8)) == []
    tracker.close()
    assert len(tracker.detect(portrait())) == 1, "it starts again after close"
    tracker.close()


@pytest.mark.parametrize(
    "bad", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((0, 8, 3), np.uint8)]
)
def test_tracker_refuses_what_is_no_picture(bad: UInt8Array) -> None:
    with pytest.raises(AvatarError, match="RGB pictures"):
        FaceTracker().detect(bad)


def test_signal_says_where_the_head_is(camera: Camera) -> None:
    signal = camera.show(scene((320, 240, HEAD)), 10)
    assert signal.face is not None
    assert signal.motion is not None
    assert signal.head is not None
    assert signal.aspect == pytest.approx(640 / 480)
    assert signal.confidence == pytest.approx({"face": 1.0, "mouth": 1.0}, abs=0.05)
    assert signal.motion.confidence[:2].min() > 0.95
    between_eyes = signal.head @ (0, 0, 0, 1)
    corners = signal.face[[33, 133, 362, 263], :2].mean(0) * (640, 480)
    assert np.allclose(between_eyes[:2], corners, atol=6)
    width = np.linalg.norm(signal.head[:3, 0])
    assert width == pytest.approx(np.ptp(signal.face[:, 0]) * 640, rel=0.15)


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (17, 33), (480, 640)])
def test_no_face_is_a_signal_without_confidence(camera: Camera, size: tuple[int, int]) -> None:
    signal = camera.show(np.zeros((*size, 3), np.uint8))
    assert signal.face is None
    assert signal.motion is not None
    assert (signal.motion.confidence == 0).all()
    assert signal.confidence == {"face": 0.0, "mouth": 0.0}


def test_known_motion_of_a_picture_reads_back(camera: Camera) -> None:
    picture = scene((320, 240, HEAD))
    camera.show(picture, 60)
    turned = cv2.warpAffine(picture, cv2.getRotationMatrix2D((320, 240), -10, 1.0), (640, 480), borderValue=(90, 90, 90))  # OpenCV: < 0 is clockwise
    moved = camera.show(np.asarray(turned, np.uint8), 10).motion
    assert moved is not None
    assert moved.head[2] == pytest.approx(10, abs=1.0)
    assert np.abs(moved.head[:2]).max() < 3.0
    nearer = camera.show(scene((320, 240, round(1.15 * HEAD))), 12).motion
    assert nearer is not None
    assert nearer.head[5] == pytest.approx(np.log(1.15), abs=0.03)
    aside = camera.show(scene((350, 240, HEAD)), 12).motion
    assert aside is not None
    assert aside.head[3] == pytest.approx(30 / (0.31 * HEAD), abs=0.05)
    assert np.abs(aside.head[:3]).max() < 3.0


def test_still_camera_with_noise_does_not_shimmer(camera: Camera) -> None:
    rng = np.random.default_rng(0)
    picture = scene((320, 240, HEAD)).astype(np.int16)
    motions = []
    for _ in range(60):
        motions.append(camera.show(np.clip(picture + rng.normal(0, 2, picture.shape), 0, 255).astype(np.uint8)).motion)
    heads = np.array([m.head for m in motions[30:] if m])
    shapes = np.array([m.expression for m in motions[30:] if m and m.expression is not None])
    assert np.abs(np.diff(heads[:, :3], axis=0)).mean() < 0.04, "degrees a frame, of 0.34 that the tracker reads"
    assert np.abs(np.diff(heads[:, 3:], axis=0)).mean() < 0.0008, "face widths, of 0.003"
    assert np.abs(np.diff(shapes, axis=0)).mean() < 0.0003, "face widths a frame: 0.03 px of a face of 100 px"


def test_second_face_is_ignored_even_when_larger(camera: Camera) -> None:
    alone = camera.show(scene((150, 240, 300)), 8)
    both = camera.show(scene((150, 240, 300), (470, 250, 460)), 15)
    assert x_of(both) == pytest.approx(x_of(alone), abs=0.01)
    moved = [camera.show(scene((150 + 4 * k, 240, 300), (520, 250, 300))) for k in range(15)]
    assert x_of(moved[-1]) == pytest.approx(x_of(alone) + 56 / 640, abs=0.02)
    assert camera.state == "searching" or moved[-1].motion is not None


def test_another_person_takes_over_only_when_the_first_is_gone(camera: Camera) -> None:
    camera.show(scene((130, 240, 300)), 75)
    assert camera.state == "set"
    other = scene((520, 240, 300))
    assert camera.show(other, int((GONE - 0.3) * FPS)).face is None
    assert camera.state == "set", "until then the calibration is kept"
    taken = camera.show(other, int(0.6 * FPS))
    assert x_of(taken) > 0.7
    assert camera.state == "searching", "with a calibration of their own"


def test_person_who_comes_back_in_time_keeps_the_calibration(camera: Camera) -> None:
    camera.show(scene((320, 240, HEAD)), 50)
    grey = np.full((480, 640, 3), 90, np.uint8)
    assert camera.show(grey, 20).face is None
    back = camera.show(scene((330, 240, HEAD)), 3)
    assert back.face is not None
    assert camera.state == "set"


def test_among_two_the_person_is_found_again_and_held(camera: Camera, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (150, 240, 400), (480, 240, 520)  # faces of 125 and 160 px: both are tracked in the whole picture
    camera.show(scene(first), 10)
    camera.show(scene(second), 20)
    both = scene(first, second)
    assert x_of(camera.show(both, 4)) < 0.4

    def no_search(_: UInt8Array) -> list[FloatArray]:
        raise AssertionError("the streaming tracker has no hold of the person")

    monkeypatch.setattr(camera.driver._follower._search, "detect", no_search)
    assert x_of(camera.show(both, 5)) < 0.4


def test_resolution_and_orientation_may_change_midstream(camera: Camera) -> None:
    before = camera.show(scene((320, 240, HEAD)), 40)
    for size, head in (
        ((720, 960), (480, 360, 630)),
        ((640, 480), (240, 320, HEAD)),
        ((481, 641), (320, 240, HEAD)),
        ((240, 320), (160, 120, HEAD // 2)),
    ):
        after = camera.show(scene(head, size=size), 8)
        assert after.motion is not None
        assert before.motion is not None
        assert after.confidence["face"] > 0.9, size
        assert np.abs(after.motion.head[:3] - before.motion.head[:3]).max() < 2.5, size
        assert np.abs(after.motion.head[3:] - before.motion.head[3:]).max() < 0.08, size


def test_large_pictures_are_as_good_as_small_ones(camera: Camera) -> None:
    small = camera.show(scene((320, 240, HEAD)), 5)
    camera.driver.reset()
    large = camera.show(np.asarray(cv2.resize(scene((320, 240, HEAD)), (3840, 2880)), np.uint8), 3)
    assert large.face is not None
    assert small.face is not None
    assert np.abs(large.face[:, :2] - small.face[:, :2]).max() < 0.01


def test_small_face_in_a_large_picture_is_found_and_followed(camera: Camera) -> None:
    found = camera.show(scene((250, 200, 200), size=(720, 1280)), 40)  # a face of 62 px
    assert found.face is not None
    last = [camera.show(scene((250 + 3 * k, 200, 200), size=(720, 1280))) for k in range(60)][-1]
    assert x_of(last) == pytest.approx(x_of(found) + 177 / 1280, abs=0.01)


def test_black_and_white_and_half_a_face(camera: Camera) -> None:
    grey = cv2.cvtColor(cv2.cvtColor(scene((320, 240, HEAD)), cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    signal = camera.show(np.asarray(grey, np.uint8), 5)
    assert signal.confidence["face"] == 1.0
    assert signal.confidence["mouth"] > 0.95, "without colour nothing can be said about lips, so they are believed"
    camera.driver.reset()
    camera.show(scene((320, 240, HEAD)), 5)
    for x in range(320, 660, 12):
        signal = camera.show(scene((x, 240, HEAD)))
    assert signal.confidence["face"] < 0.8


@pytest.mark.parametrize("cover", ["hand", "mask", "phone"])
def test_covered_mouth_loses_confidence_and_rests(camera: Camera, cover: str) -> None:
    picture = scene((320, 240, HEAD))
    seen = camera.show(picture, 50)
    assert seen.face is not None
    assert seen.confidence["mouth"] > 0.95
    around = (seen.face[AROUND, :2] * (640, 480)).astype(int)
    skin = np.median(picture[around[:, 1], around[:, 0]], axis=0)
    colour = {"hand": 0.9 * skin, "mask": np.array([150, 190, 210]), "phone": np.array([25, 25, 28])}[cover]
    lips = (seen.face[LIPS, :2] * (640, 480)).astype(int)
    (x0, y0), (x1, y1) = lips.min(0) - 14, lips.max(0) + 14
    covered = picture.copy()
    covered[y0:y1, x0:x1] = np.clip(colour + np.random.default_rng(0).normal(0, 3, (y1 - y0, x1 - x0, 3)), 0, 255)
    hidden = camera.show(covered, 10)
    assert hidden.motion is not None
    assert hidden.confidence["mouth"] < 0.2
    assert hidden.confidence["face"] > 0.9
    assert np.abs(hidden.motion.mouth).max() < 0.2
    assert camera.show(picture, 15).confidence["mouth"] > 0.8


def test_open_mouth_is_not_a_hidden_one() -> None:
    face = np.full((478, 3), 0.5, np.float32)
    face[:, 1] += np.linspace(-0.2, 0.2, 478, dtype=np.float32)
    face[[33, 133, 362, 263], 0] = 0.36, 0.44, 0.56, 0.64
    face[[33, 133, 362, 263], 1] = 0.45
    face[[82, 13, 312], 1], face[[87, 14, 317], 1] = 0.6, 0.66
    skin = np.full((100, 100, 3), (200, 150, 130), np.uint8)
    sight = MouthSight()
    assert [sight(skin, face, k / FPS) for k in range(10)][-1] > 0.9
    face[[87, 14, 317], 1] = 0.601
    assert [sight(skin, face, 1 + k / FPS) for k in range(20)][-1] < 0.2


def test_body_driver_on_pictures() -> None:
    driver = BodyDriver()
    black = np.zeros((240, 320, 3), np.uint8)
    assert driver(VideoFrame(black, 0.0)) is None
    assert driver(VideoFrame(np.zeros((1, 1, 3), np.uint8), 0.1)) is None
    picture = scene((320, 260, 440))
    readings = [driver(VideoFrame(picture, 1 + k / 10)) for k in range(6)]
    assert readings[-1] is not None
    assert readings[-1].landmarks.shape == (33, 4)
    assert np.abs(readings[-1].motion).max() < 3.0
    assert driver(VideoFrame(scene((240, 320, 440), size=(640, 480)), 2.0)) is not None, "a turned phone"
    driver.close()


def test_terminal_stays_clean() -> None:
    script = (
        "import numpy as np, cv2\n"
        "from tests.faces import scene\n"
        "from engine.drivers.face import FaceDriver\n"
        "from engine.drivers.body import BodyDriver\n"
        "from engine.types import VideoFrame\n"
        "face, body = FaceDriver(), BodyDriver()\n"
        "for k, picture in enumerate([np.zeros((9, 9, 3), np.uint8), scene((320, 240, 420)), scene((320, 240, 420)), scene((150, 240, 300))]):\n"
        "    face(VideoFrame(picture, k / 30)); body(VideoFrame(picture, k / 30))\n"
        "face.reset(); face(VideoFrame(scene((320, 240, 420)), 1.0)); face.close(); body.close()\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == ""
    assert ran.stderr == ""


def test_quiet_hides_noise_and_nothing_else(capfd: pytest.CaptureFixture[str]) -> None:
    import os

    with quiet():
        os.write(2, b"W0000 inference_feedback_manager.cc:114] Feedback manager\n")
        os.write(2, b"E0000 a real error\n")
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "E0000 a real error\nafterwards\n"


def test_engine_import_loads_no_tracker() -> None:
    script = "import sys, engine, engine.drivers.face, engine.drivers.body\nassert not any(name.startswith('mediapipe') for name in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
