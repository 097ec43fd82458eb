"""The hands: whose they are, how they are followed, held and let go; when they are looked for; what a recording keeps of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import av
import numpy as np
import pytest

from engine.batch import Batch
from engine.config import BODY_EVERY, HANDS_EVERY, SessionSettings
from engine.drivers import hands as module
from engine.drivers import replay
from engine.drivers.body import BodyReading
from engine.drivers.hands import BELIEVED, Found, HandsDriver, HandsReading
from engine.drivers.mix import Mixer
from engine.drivers.outlines import OVAL
from engine.drivers.readings import HANDS_FADE, HANDS_HOLD, STALE, beside, hands_at
from engine.drivers.speech import SpeechDriver
from engine.offline import render
from engine.session import Session
from engine.types import BODY_POINTS, FACE_POINTS, HAND_POINTS, Drive, FloatArray, GeneratorSpec, Signal, VideoFrame, still_motion
from streaming.ladder import RUNGS, Ladder
from streaming.rtc import ReceivedVideo
from streaming.stats import Stats
from streaming.tracking import Tracking
from tests import drawn
from tests.conftest import require_for
from tests.fakes import SIDE, FakeBody, FakeFace, FakeGenerator, fake_persona

LOOK = 1 / 15
"""s between two looks."""
LEFT, RIGHT = 0, 1
BLACK = np.zeros((480, 640, 3), np.uint8)


def hand(x: float, y: float = 0.5, *, size: float = 0.2) -> FloatArray:
    """[21, 3] a hand around (x, y), 0..1 of a picture."""
    points = np.zeros((HAND_POINTS, 3), np.float32)
    points[:, :2] = (drawn.JOINTS - 0.5) * size + (x, y)
    return points


class Look:
    """A driver whose tracker sees what it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.driver, self.time = HandsDriver(), 100.0
        self.found: list[Found] = []
        self.let_go = 0
        monkeypatch.setattr(self.driver, "_detect", lambda _: self.found)
        monkeypatch.setattr(self.driver, "_let_go", lambda: setattr(self, "let_go", self.let_go + 1))

    def at(self, *found: tuple[FloatArray, float], looks: int = 1, step: float = LOOK, **known: Any) -> HandsReading:
        """Look some times at (points, how left it looks) -> the last reading."""
        self.found = [Found(points, left) for points, left in found]
        for _ in range(looks):
            self.time += step
            reading = self.driver(VideoFrame(BLACK, self.time), **known)
        return reading


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Look:
    return Look(monkeypatch)


def told(reading: HandsReading) -> list[bool]:
    """Which slots have a hand."""
    return [bool(points.any()) for points in reading.landmarks]


def x_of(reading: HandsReading, slot: int) -> float:
    """Where a hand is, 0..1 of the width."""
    assert reading.landmarks[slot].any()
    return float(reading.landmarks[slot, :, 0].mean())


# -- whose hand ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def driver() -> Iterator[HandsDriver]:
    made = HandsDriver()
    yield made
    made.close()


def test_a_drawn_hand_is_found_on_its_own_side_mirrored_or_not_and_wherever_it_is(driver: HandsDriver) -> None:
    """With MediaPipe itself. The palm that is drawn, its thumb to the picture's left, is the hand of the arm on the picture's right."""
    here, crossed = drawn.hand(470, 220), drawn.hand(170, 220)
    scenes = {
        "raised": (here, RIGHT, drawn.joints(470, 220, 220)),
        "in a mirror": (drawn.mirrored(here), LEFT, (640, 0) + drawn.joints(470, 220, 220) * (-1, 1)),
        "crossed over": (crossed, RIGHT, drawn.joints(170, 220, 220)),
    }
    for name, (picture, slot, joints) in scenes.items():
        driver.reset()
        for k in range(BELIEVED + 1):
            reading = driver(VideoFrame(picture, k * LOOK))
        assert told(reading) == [slot == LEFT, slot == RIGHT], name
        assert reading.confidence[slot] == 1.0
        apart = np.linalg.norm(reading.landmarks[slot, :, :2] * (640, 480) - joints, axis=1)
        assert apart.max() < 0.1 * 220, f"{name}: point {apart.argmax()} is {apart.max():.0f} px off"
    both = drawn.beside(drawn.mirrored(here), here)
    driver.reset()
    for k in range(BELIEVED + 1):
        reading = driver(VideoFrame(both, k * LOOK))
    assert told(reading) == [True, True]
    assert x_of(reading, LEFT) == pytest.approx(170 / 640, abs=0.03)
    assert x_of(reading, RIGHT) == pytest.approx(470 / 640, abs=0.03)


def test_no_hand_is_a_reading_without_one(driver: HandsDriver, capfd: pytest.CaptureFixture[str]) -> None:
    for size in ((1, 1), (17, 33), (480, 640)):
        reading = driver(VideoFrame(np.zeros((*size, 3), np.uint8), 10.0))
        assert told(reading) == [False, False]
        assert not reading.followed
    driver.close()
    assert told(driver(VideoFrame(BLACK, 11.0))) == [False, False], "it starts again after close"
    assert capfd.readouterr().err == ""


def test_labels_choose_the_slots_and_one_wrong_label_changes_nothing(look: Look) -> None:
    reading = look.at((hand(0.7), 0.9), (hand(0.3), 0.1), looks=4)
    assert (x_of(reading, LEFT), x_of(reading, RIGHT)) == pytest.approx((0.7, 0.3), abs=0.02), "crossed arms"
    reading = look.at((hand(0.3), 0.9), (hand(0.7), 0.1))
    assert x_of(reading, LEFT) == pytest.approx(0.7, abs=0.02)
    reading = look.at((hand(0.3), 0.9), (hand(0.7), 0.1), looks=15)
    assert x_of(reading, LEFT) == pytest.approx(0.3, abs=0.02), "but what is said again and again is believed"


def test_two_hands_of_one_label_share_the_slots_by_which_is_the_surer(look: Look) -> None:
    reading = look.at((hand(0.3), 0.7), (hand(0.7), 0.95), looks=3)
    assert (x_of(reading, LEFT), x_of(reading, RIGHT)) == pytest.approx((0.7, 0.3), abs=0.02)
    reading = look.at((hand(0.3), 0.95), (hand(0.7), 0.7), looks=15)
    assert x_of(reading, LEFT) == pytest.approx(0.7, abs=0.02), "and keep them where neither is much surer"


def test_a_hand_is_told_from_its_second_look_on_and_one_found_twice_is_one(look: Look) -> None:
    reading = look.at((hand(0.3), 0.9))
    assert told(reading) == [False, False]
    assert reading.followed, "it is looked after all the same"
    assert told(look.at((hand(0.3), 0.9))) == [True, False]
    assert told(look.at((hand(0.3), 0.9), (hand(0.31), 0.2), looks=3)) == [True, False]


def test_pursed_lips_are_no_hand_but_a_hand_over_the_lips_is(look: Look) -> None:
    face = np.zeros((FACE_POINTS, 3), np.float32)
    turn = np.linspace(0, 2 * np.pi, len(OVAL), endpoint=False)
    face[list(OVAL), :2] = np.stack([0.5 + 0.15 * np.sin(turn), 0.4 - 0.25 * np.cos(turn)], 1)
    lips, aside = hand(0.5, 0.45, size=0.12), hand(0.8, 0.7)
    assert told(look.at((lips, 0.9), (aside, 0.1), looks=5, face=face, mouth=1.0)) == [False, True]
    assert look.let_go == 6, "once at the start, and at every look, or the tracker goes on following the lips"
    assert told(look.at((lips, 0.9), (aside, 0.1), looks=5, face=face, mouth=0.1)) == [True, True]


# -- smooth, held, let go -----------------------------------------------------------------------------------------------


def test_a_still_hand_is_steadier_than_its_tracker_and_a_moving_one_not_late(look: Look) -> None:
    rng = np.random.default_rng(0)
    noise = 0.002
    still = [look.at((hand(0.3) + rng.normal(0, noise, (21, 3)).astype(np.float32), 0.9)).landmarks[LEFT] for _ in range(40)]
    shimmer = np.abs(np.diff(still[10:], axis=0)[..., :2]).mean()
    assert shimmer < 0.4 * noise * np.sqrt(4 / np.pi), "of the tracker's own"
    speed = 0.6  # picture widths a second: across the picture in less than two
    late = []
    for k in range(12):
        x = 0.3 + speed * LOOK * (k + 1)
        late.append((x - x_of(look.at((hand(x), 0.9)), LEFT)) / speed)
    assert max(late[4:]) < 0.02, "s"


def test_a_lost_hand_is_held_then_fades_then_goes(look: Look) -> None:
    seen = look.at((hand(0.3), 0.9), looks=4)
    gone = look.at()
    assert hands_at(seen, look.time)[1] == 1.0
    for age, certainty in ((HANDS_HOLD / 2, 1.0), (HANDS_HOLD + HANDS_FADE / 2, 0.5)):
        shown, sure = hands_at(gone, seen.time + age)
        assert shown is not None
        assert sure == pytest.approx(certainty, abs=0.01)
        np.testing.assert_array_equal(shown[LEFT], seen.landmarks[LEFT])
        assert not shown[RIGHT].any()
    assert hands_at(gone, seen.time + HANDS_HOLD + HANDS_FADE) == (None, 0.0)
    back = look.at((hand(0.32), 0.9))
    assert x_of(back, LEFT) == pytest.approx(0.32, abs=0.02), "it need not be believed anew"
    assert told(look.at(looks=8)) == [False, False]
    assert not look.at().followed


def test_one_hand_fades_beside_another_that_stays(look: Look) -> None:
    both = look.at((hand(0.3), 0.9), (hand(0.7), 0.1), looks=3)
    one = look.at((hand(0.7), 0.1), looks=5)
    shown, sure = hands_at(one, both.time + HANDS_HOLD + 0.8 * HANDS_FADE)
    assert shown is not None
    assert sure == 1.0
    assert [bool(points.any()) for points in shown] == [False, True]


def test_a_hand_elsewhere_takes_the_place_of_the_one_that_is_lost(look: Look) -> None:
    look.at((hand(0.2), 0.9), looks=4)
    reading = look.at((hand(0.8, 0.8), 0.9), looks=2)
    assert told(reading) == [True, False], "never the other slot's"
    assert x_of(reading, LEFT) == pytest.approx(0.8, abs=0.02), "at once, not on the way"


def test_a_hand_half_out_of_the_picture_is_half_believed(look: Look) -> None:
    assert look.at((hand(0.99), 0.1), looks=3).confidence[RIGHT] < 0.6
    assert look.at((hand(0.5), 0.1), looks=3).confidence[RIGHT] == 1.0


def test_another_picture_size_forgets_the_hands(look: Look) -> None:
    look.at((hand(0.3), 0.9), looks=3)
    assert told(look.driver(VideoFrame(BLACK.transpose(1, 0, 2), look.time + LOOK))) == [False, False]


# -- on the way to the generator ----------------------------------------------------------------------------------------


def reading_at(time: float, x: float = 0.3) -> HandsReading:
    """Both hands, mirror images, seen at `time` s."""
    return HandsReading(time, np.stack([hand(x), hand(1 - x)]), np.ones(2, np.float32), np.full(2, time), True)


def shoulders_at(time: float, lean: float = 5.0) -> BodyReading:
    """A body that leans."""
    return BodyReading(time, np.full((BODY_POINTS, 4), 0.5, np.float32), np.array([lean, 0, 0, 0, 0, 0], np.float32), 1.0)


def test_fresh_readings_are_put_beside_a_signal_and_stale_ones_not() -> None:
    seen = Signal(10.0, motion=replace(still_motion(), confidence=np.array([1, 0.8, 0], np.float32)), confidence={"face": 1.0})
    full = beside(seen, body=shoulders_at(9.9), hands=reading_at(9.9))
    assert full.body is not None
    assert full.hands is not None
    assert full.motion is not None
    assert full.motion.body[0] == 5.0
    assert full.motion.confidence.tolist() == pytest.approx([1, 0.8, 1])
    assert full.confidence == {"face": 1.0, "hands": 1.0}
    assert beside(seen, body=shoulders_at(10 - STALE - 0.1), hands=reading_at(10 - STALE - 0.1)) is seen
    assert beside(full, body=None, hands=None) is full, "a recording's own stay"


@pytest.mark.parametrize(("drive", "kept"), [("camera", True), ("auto", True), ("voice", False)])
def test_the_mixer_passes_hands_on_unless_the_voice_drives(drive: Drive, kept: bool) -> None:
    mixed = Mixer().mix(Signal(1.0), grid="camera", drive=drive, speech=SpeechDriver(), body=None, hands=reading_at(1.0))
    assert (mixed.hands is not None) == kept


def test_steps_between_readings_are_filled_and_another_hand_is_not_slid_to() -> None:
    mixer, speech = Mixer(), SpeechDriver()

    def shown(time: float, x: float) -> float:
        mixed = mixer.mix(Signal(time), grid="camera", drive="camera", speech=speech, body=None, hands=reading_at(time, x))
        assert mixed.hands is not None
        return float(mixed.hands[LEFT, 0, 0])  # the wrist, which is in the hand's middle

    shown(0.0, 0.30)
    on_the_way = [shown(k / 30, 0.34) for k in range(1, 5)]
    assert 0.31 < on_the_way[0] < on_the_way[1] < 0.34 + 1e-6
    assert on_the_way[-1] == pytest.approx(0.34, abs=0.001)
    assert shown(5 / 30, 0.49) == pytest.approx(0.49, abs=1e-3), "too far for the same hand"


# -- when they are looked for -------------------------------------------------------------------------------------------


@dataclass
class FakeHands:
    """Has a hand on the picture's left that moves with the time, unless told otherwise; a stand-in for the driver."""

    asked: list[int] = field(default_factory=list)  # ids of the pictures it was shown
    known: list[tuple[FloatArray | None, float]] = field(default_factory=list)
    there: Callable[[VideoFrame], bool] = lambda _: True
    closed: int = 0

    def __call__(self, frame: VideoFrame, *, face: FloatArray | None = None, mouth: float = 1.0) -> HandsReading:
        """See HandsDriver."""
        self.asked.append(frame.id)
        self.known.append((face, mouth))
        landmarks, there = np.zeros((2, HAND_POINTS, 3), np.float32), self.there(frame)
        if there:
            landmarks[LEFT] = hand(0.3 + 0.1 * frame.time)
        sure = np.array([float(there), 0.0], np.float32)
        return HandsReading(frame.time, landmarks, sure, np.where(sure > 0, frame.time, -np.inf), there)

    def close(self) -> None:
        """See HandsDriver."""
        self.closed += 1


class FakeShoulders(FakeBody):
    """Sees somebody who leans."""

    asked = 0

    def __call__(self, frame: VideoFrame) -> BodyReading:  # type: ignore[override]
        """See BodyDriver."""
        self.asked += 1
        return shoulders_at(frame.time)


@dataclass
class Shown(FakeGenerator):
    """Remembers the signals it was asked to show."""

    signals: list[Signal] = field(default_factory=list)

    def step(self, state: Any, signals: Sequence[Sequence[Signal] | None]) -> list[list[VideoFrame] | None]:
        """See Generator."""
        self.signals += [signal for row in signals if row is not None for signal in row]
        return super().step(state, signals)


PAINTED = GeneratorSpec("fake", (SIDE, SIDE), fps=30, needs=("motion", "speech", "face", "body", "hands"))
PLAIN = GeneratorSpec("fake", (SIDE, SIDE), fps=30)


def session(generator: FakeGenerator, **options: Any) -> Session:
    """With fakes for everything that would look at a picture."""
    drivers = {"face": FakeFace(), "body": FakeShoulders(), "hands": FakeHands()}
    return Session(Batch(generator, rows=1), fake_persona(generator, "red"), **{**drivers, **options})


class Here:
    """A pool that does what it is given at once."""

    def submit(self, job: Callable[[], None]) -> None:
        """See Pool."""
        job()


def stream(watched: Session, pictures: int, *, rung: int = 0) -> Stats:
    """A camera's pictures through a server's tracking, without its threads."""
    stats, here = Stats(), cast(Any, Here())
    live = SimpleNamespace(
        session=watched,
        stats=stats,
        ladder=Ladder(rung),
        closed=False,
        settings=SimpleNamespace(limits=SimpleNamespace(camera_pixels=10_000)),
        stepper=SimpleNamespace(wake=lambda: None),
        post=lambda *_: None,
        tracked=None,
        failed=lambda error: pytest.fail(repr(error)),
    )
    tracking = Tracking(cast(Any, live), faces=here, bodies=here)
    picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 128, np.uint8), format="rgb24")
    for k in range(pictures):
        tracking.bring(ReceivedVideo(picture, 50 + k / 30, 0, 50 + k / 30))
    with tracking.idle():
        pass  # every lock was given back
    return stats


def test_a_server_looks_for_hands_only_where_the_generator_shows_them() -> None:
    painted, plain = session(Shown(PAINTED)), session(Shown(PLAIN))
    stats = stream(painted, 30)
    assert len(painted.hands.asked) == 30 // HANDS_EVERY
    assert len(stats.stages["hands"]) == 30 // HANDS_EVERY
    assert painted.hands.known[-1] == (None, 1.0)
    assert painted.body.asked == 30 // BODY_EVERY
    stats = stream(plain, 30)
    assert plain.hands.asked == []
    assert not stats.stages["hands"]
    assert plain.body.asked == 30 // BODY_EVERY


def test_the_puppets_session_makes_no_hands_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.generators.puppet.generator import Puppet

    assert "hands" not in Puppet().spec.needs
    monkeypatch.setattr(module, "HandsDriver", lambda: pytest.fail("made for nothing"))
    plain = session(Shown(replace(PLAIN, needs=Puppet().spec.needs)), hands=None)
    stream(plain, 12)
    plain.close()


def test_without_a_hand_in_view_the_looks_are_few() -> None:
    painted = session(Shown(PAINTED), hands=FakeHands(there=lambda frame: frame.id > 30))
    stream(painted, 60)
    assert np.diff([k for k in painted.hands.asked if k <= 31]).tolist() == [BODY_EVERY] * 6
    assert set(np.diff([k for k in painted.hands.asked if k >= 31]).tolist()) == {HANDS_EVERY}


@pytest.mark.parametrize("rung", range(len(RUNGS)))
def test_the_ladder_slows_the_hands_as_much_as_the_body(rung: int) -> None:
    painted = session(Shown(PAINTED))
    stream(painted, 121, rung=rung)
    assert np.diff(painted.hands.asked).mean() == pytest.approx(HANDS_EVERY * RUNGS[rung].body_every / BODY_EVERY, abs=1.0)


def test_a_face_that_is_seen_is_told_to_the_hands_driver() -> None:
    face = np.full((FACE_POINTS, 3), 0.5, np.float32)
    watched = session(Shown(PAINTED), face=lambda frame: Signal(frame.time, frame.id, motion=still_motion(), face=face, confidence={"mouth": 0.7}))
    frame = VideoFrame(BLACK, 1.0, 1)
    watched.track_hands(frame)
    watched.track(frame)
    watched.track_hands(frame)
    assert watched.hands.known == [(None, 1.0), (face, 0.7)]


def test_points_are_there_for_who_needs_them_also_where_the_shoulders_are_to_be_still() -> None:
    for spec, points in ((PAINTED, True), (PLAIN, False)):
        generator = Shown(spec)
        watched = session(generator, settings=SessionSettings(track_body=False))
        assert watched.wants("body") == points
        for k in range(20):
            frame = VideoFrame(np.full((32, 32, 3), 128, np.uint8), k / 30, k + 1)
            if watched.wants("body"):
                watched.track_body(frame)
            watched.push_video(frame)
        assert (generator.signals[-1].body is not None) == points
        motion = generator.signals[-1].motion
        assert motion is not None
        assert abs(motion.body[0]) < 1.0, "the breath alone"


def test_the_hands_driver_is_closed_with_the_session() -> None:
    watched = session(Shown(PAINTED))
    made = watched.hands
    watched.close()
    assert made.closed == 1


# -- recordings ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> FakeHands:
    """Files are 24 grey pictures a second long, in which fakes see a face, shoulders and, but at the end, a hand."""
    grey = np.full((32, 32, 3), 128, np.uint8)
    seen = FakeHands(there=lambda frame: frame.time < 0.7)
    clip = SimpleNamespace(frames=24, fps=24.0, has_audio=False, has_video=True)
    monkeypatch.setattr("engine.offline.probe", lambda _: clip)
    monkeypatch.setattr("engine.offline.video_frames", lambda _: (VideoFrame(grey, k / 24, k + 1) for k in range(24)))
    monkeypatch.setattr("engine.drivers.face.FaceDriver", FakeFace)
    monkeypatch.setattr("engine.drivers.body.BodyDriver", FakeShoulders)
    monkeypatch.setattr("engine.drivers.hands.HandsDriver", lambda: seen)
    return seen


def played(generator: Shown, drive: Path, out: Path, **options: Any) -> list[Signal]:
    """The signals that a rendering shows."""
    generator.signals.clear()
    assert render(generator, fake_persona(generator, "red"), drive, out, **options) == 24
    return list(generator.signals)


def test_a_recording_keeps_hands_and_shoulders_and_shows_them_as_the_clip_did(camera: FakeHands, tmp_path: Path) -> None:
    generator = Shown(PAINTED)
    first = played(generator, tmp_path / "clip.mp4", tmp_path / "a.mp4", record=tmp_path / "s.npz")
    asked = len(camera.asked)
    assert asked in (11, 12), "every second picture, fewer once the hand is gone"
    again = played(generator, tmp_path / "s.npz", tmp_path / "b.mp4")
    assert len(camera.asked) == asked, "a recording is not looked at"
    assert sum(signal.hands is not None for signal in first) > 15
    assert first[-1].hands is None
    for one, other in zip(first, again, strict=True):
        assert (one.hands is None) == (other.hands is None)
        assert one.confidence["hands"] == pytest.approx(other.confidence["hands"], abs=1e-6)
        if one.hands is not None and other.hands is not None:
            np.testing.assert_allclose(one.hands, other.hands, atol=1e-6)
        assert one.body is not None
        assert other.body is not None
        np.testing.assert_allclose(one.body, other.body, atol=1e-6)
        assert one.motion is not None
        assert other.motion is not None
        np.testing.assert_allclose(one.motion.body, other.motion.body, atol=1e-5)
    still = played(generator, tmp_path / "s.npz", tmp_path / "c.mp4", settings=SessionSettings(track_body=False))
    assert max(abs(float(signal.motion.body[0])) for signal in still if signal.motion is not None) < 1.0


def test_a_recording_from_a_plain_generator_has_no_hands(camera: FakeHands, tmp_path: Path) -> None:
    played(Shown(PLAIN), tmp_path / "clip.mp4", tmp_path / "a.mp4", record=tmp_path / "s.npz")
    assert camera.asked == []
    assert all(signal.hands is None and "hands" not in signal.confidence for signal in replay.load(tmp_path / "s.npz"))


@pytest.mark.torch
def test_a_painted_skeleton_shows_the_recorded_hands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_for("diffusion")
    from engine.conditions.skeleton import paint_skeleton
    from engine.generators import load
    from engine.generators.diffusion.presets import PRESETS, TINY
    from engine.persona import demo_portrait, make_persona

    monkeypatch.setitem(PRESETS, "painted", replace(TINY, name="painted", condition="skeleton"))
    painted: list[int] = []

    def spy(size: tuple[int, int], joints: FloatArray, hands: Sequence[FloatArray], face: FloatArray | None) -> Any:
        painted.append(len(hands))
        return paint_skeleton(size, joints, hands, face)

    monkeypatch.setattr("engine.generators.diffusion.conditions.paint_skeleton", spy)
    generator = load("diffusion", preset="painted", mode="eager")
    assert {"hands", "body"} <= set(generator.spec.needs)
    signals = []
    for k in range(6):
        body = np.zeros((BODY_POINTS, 4), np.float32)
        body[11:13] = (0.8, 0.9, 0, 1), (0.2, 0.9, 0, 1)
        both = reading_at(k / 24).landmarks
        signals.append(Signal(k / 24, k + 1, motion=still_motion(), body=body, hands=both if k < 3 else None, confidence={"hands": float(k < 3)}))
    replay.save(tmp_path / "s.npz", signals)
    monkeypatch.setattr("engine.offline._judge", lambda *_, **__: None)  # they are signals without a face
    assert render(generator, make_persona(generator, demo_portrait(), name="me"), tmp_path / "s.npz", tmp_path / "out.mp4") == 6
    assert painted == [2, 2, 2, 0, 0, 0]
