"""Idle motion and the mixer, in virtual time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.drivers.body import BodyReading
from engine.drivers.idle import IdleDriver
from engine.drivers.mix import EASE, HOLD, Mixer
from engine.drivers.speech import SpeechDriver, SpeechReading
from engine.types import FACE_POINTS, AudioChunk, Drive, FloatArray, Motion, Signal, still_motion

RATE = 16_000


def vowel(seconds: float, *, pitch: float = 120.0) -> FloatArray:
    """A buzz with formants of "ah" whose pitch and loudness wander as a voice's do."""
    t = np.arange(round(seconds * RATE)) / RATE
    glide = pitch * (t + 0.02 * np.sin(2 * np.pi * 2.1 * t) / (2 * np.pi * 2.1))
    sound = np.zeros(len(t))
    for k in range(1, 25):
        sound += np.exp(-((k * pitch - 750) ** 2) / 4e5) * np.sin(2 * np.pi * k * glide + k)
    voice: FloatArray = (0.2 * (0.7 + 0.3 * np.sin(2 * np.pi * 3 * t)) * sound / np.abs(sound).max()).astype(np.float32)
    return voice


class Voice(SpeechDriver):
    """A speech driver that says what it is told."""

    def __init__(self, gap: float = 0.0) -> None:
        super().__init__()
        self.gap = gap

    @property
    def heard_until(self) -> float:
        return float("inf")

    def at(self, time: float) -> SpeechReading:
        mouth = np.array([self.gap * (0.5 + 0.5 * np.sin(2 * np.pi * 3 * time)), 0, 0, 0], np.float32)
        return SpeechReading(np.zeros((16, 80), np.float32), np.zeros(2560, np.float32), mouth, float(self.gap > 0), self.gap)


def seen(yaw: float = 0.0, *, eyes: float = 1.0, gap: float = 0.1, mouth: float = 1.0, shape: float = 0.01) -> Motion:
    """A camera's motion."""
    return replace(
        still_motion(),
        head=np.array([yaw, yaw / 3, 0, 0, 0, 0], np.float32),
        eyes=np.full(2, eyes, np.float32),
        mouth=np.array([gap, 0.05, 0.1, 0.2], np.float32),
        expression=np.full((FACE_POINTS, 3), shape, np.float32),
        confidence=np.array([1, mouth, 0], np.float32),
    )


def landmarks() -> FloatArray:
    """Points whose height grows with their number; the corners of the eyes, the nose's tip and base where they belong."""
    face = np.zeros((FACE_POINTS, 3), np.float32)
    face[:, 1] = np.linspace(0.2, 0.9, FACE_POINTS)
    face[33], face[263], face[1], face[2] = (0.3, 0.4, 0), (0.7, 0.4, 0), (0.5, 0.6, 0), (0.5, 0.65, 0)
    return face


UNSEEN = still_motion()
FACE = landmarks()


class Story:
    """A mixer, its voice and the clock."""

    def __init__(self, *, seed: int = 3, gap: float = 0.0, start: float = 100.0) -> None:
        self.mixer, self.voice, self.time = Mixer(seed=seed), Voice(gap), start

    def play(
        self, motion: Motion | None, *, seconds: float, drive: Drive = "auto", step: float = 1 / 30, body: BodyReading | None = None
    ) -> list[Motion]:
        """Show one thing for a while -> the motions made."""
        made = []
        for _ in range(round(seconds / step)):
            self.time += step
            signal = Signal(self.time, motion=motion, face=FACE if motion is not None else None)
            if body is not None:
                body = replace(body, time=self.time)
            mixed = self.mixer.mix(signal, grid="camera", drive=drive, speech=self.voice, body=body)
            assert mixed.motion is not None
            made.append(mixed.motion)
        return made


def speeds(motions: list[Motion], step: float) -> dict[str, float]:
    """Fastest change a second of each channel."""
    fast = {
        name: float(np.abs(np.diff([getattr(m, name) for m in motions], axis=0)).max() / step)
        for name in ("head", "eyes", "gaze", "brows", "mouth", "body")
    }
    shapes = [np.zeros((FACE_POINTS, 3)) if m.expression is None else m.expression for m in motions]
    return {**fast, "expression": float(np.abs(np.diff(shapes, axis=0)).max() / step)}


# -- idle -------------------------------------------------------------------------------------------------------------


def test_idle_motion_is_a_function_of_seed_and_time() -> None:
    one, same, other = IdleDriver(5), IdleDriver(5), IdleDriver(6)
    assert all(np.array_equal(one.at(t).head, same.at(t).head) for t in (90.0, 3.0, 1e6))
    assert not np.array_equal(one.at(3.0).head, other.at(3.0).head)


@pytest.mark.parametrize("seed", range(4))
def test_blinks_come_every_two_to_six_seconds_close_fully_and_are_short(seed: int) -> None:
    rate = 250
    idle = IdleDriver(seed)
    apertures = np.array([idle.at(1e5 + k / rate).eyes[0] for k in range(120 * rate)])
    shut = apertures < 0.5
    starts = np.flatnonzero(shut[1:] & ~shut[:-1]) / rate
    ends = np.flatnonzero(~shut[1:] & shut[:-1]) / rate
    lengths = ends - starts[: len(ends)]
    gaps = np.diff(starts)
    single = gaps[gaps > 0.6]
    assert apertures.min() == 0.0
    assert lengths.min() > 0.05
    assert lengths.max() < 0.25
    assert single.min() > 1.5
    assert single.max() < 6.0
    assert 20 < len(starts) < 50
    # A lid falls faster than it rises.
    first = int(starts[0] * rate)
    around = np.diff(apertures[first - 30 : first + 80])
    assert -around.min() > around.max()


def test_idle_is_never_frozen_and_never_nervous() -> None:
    for speaking in (0.0, 1.0):
        idle = IdleDriver(1)
        motions = [idle.at(k / 60, speaking=speaking) for k in range(60 * 60)]
        heads = np.array([m.head[:3] for m in motions])
        moved = [np.ptp(heads[a : a + 120], axis=0).max() for a in range(0, len(heads) - 120, 60)]
        assert min(moved) > 0.15  # degrees within any two seconds
        assert np.abs(heads).max() < 8.0
        fast = speeds(motions, 1 / 60)
        assert fast["head"] < 15.0
        assert fast["gaze"] < 2.5
        assert fast["eyes"] < 30.0
        assert fast["body"] < 2.0


def test_idle_breathes() -> None:
    shrugs = np.array([IdleDriver(2).at(k / 10).body[4] for k in range(600)])
    crossings = int((np.diff(np.sign(shrugs)) > 0).sum())
    assert 12 <= crossings <= 16  # breaths a minute


def test_speaking_is_livelier_and_stress_nods() -> None:
    idle = IdleDriver(1)
    calm, lively = (np.std([idle.at(k / 30, speaking=s).head[:3] for k in range(1800)], axis=0) for s in (0.0, 1.0))
    assert (lively > calm).all()
    assert idle.at(5.0, speaking=1.0, stress=1.0).head[1] > idle.at(5.0, speaking=1.0).head[1] + 1.0
    assert idle.at(5.0, speaking=1.0, stress=1.0).brows[0] > 0.02


# -- mixer ------------------------------------------------------------------------------------------------------------


def test_the_camera_passes_unchanged() -> None:
    made = Story().play(seen(12.0), seconds=1.0, drive="camera")
    assert np.array_equal(made[0].head, seen(12.0).head)
    assert np.allclose(made[-1].mouth, seen().mouth)
    assert made[-1].expression is not None
    assert np.allclose(made[-1].expression, 0.01)
    assert np.array_equal(made[-1].expressed, [1, 1])


def test_a_missed_frame_is_held() -> None:
    story = Story()
    story.play(seen(20.0), seconds=0.5)
    held = story.play(UNSEEN, seconds=HOLD - 0.03)
    assert np.array_equal(held[-1].head, seen(20.0).head)


def test_a_face_that_is_elsewhere_after_a_missed_frame_is_eased_to() -> None:
    story = Story()
    motions = story.play(seen(-30.0), seconds=0.3) + story.play(UNSEEN, seconds=HOLD - 0.03) + story.play(seen(30.0), seconds=0.5)
    assert speeds(motions, 1 / 30)["head"] < 1.6 * 60 / EASE


def test_a_lost_face_eases_to_idle_and_comes_back_eased_from_far_away() -> None:
    story = Story()
    before = story.play(seen(25.0), seconds=0.5)
    away = story.play(UNSEEN, seconds=2.0)
    back = story.play(seen(-25.0), seconds=1.0)
    motions = before + away + back
    yaw = np.array([m.head[0] for m in motions])
    assert abs(away[-1].head[0]) < 8.0
    assert away[-1].expression is None
    assert np.allclose(back[-1].head, seen(-25.0).head)
    fast = speeds(motions, 1 / 30)
    assert fast["head"] < 1.6 * 30 / EASE
    assert fast["expression"] < 0.06
    gone = yaw[len(before) :]
    settled = int(np.argmax(np.abs(gone) < 8.0)) / 30
    assert 0.1 < settled < HOLD + EASE


def test_the_face_may_come_and_go_without_a_jump() -> None:
    story = Story()
    motions = []
    for k in range(12):
        motions += story.play(seen(20.0 if k % 3 else -20.0) if k % 2 else UNSEEN, seconds=0.2)
    assert speeds(motions, 1 / 30)["head"] < 1.6 * 45 / EASE


def test_another_person_in_the_picture_is_eased_to() -> None:
    story = Story()
    motions = story.play(seen(25.0), seconds=0.5) + story.play(seen(-25.0), seconds=1.0)
    assert speeds(motions, 1 / 30)["head"] < 1.6 * 50 / EASE
    assert np.allclose(motions[-1].head, seen(-25.0).head)


def test_the_voice_takes_the_lips_of_a_hidden_mouth_and_the_head_stays_the_camera_s() -> None:
    story = Story(gap=0.2)
    story.play(seen(10.0), seconds=0.5)
    hidden = story.play(seen(10.0, mouth=0.0), seconds=1.5)
    assert np.array_equal(hidden[-1].head, seen(10.0).head)
    late = np.array([m.mouth[0] for m in hidden[-20:]])
    assert np.ptp(late) > 0.15
    expression = hidden[-1].expression
    assert expression is not None
    assert np.allclose(expression[FACE[:, 1] > 0.66], 0)  # below the nose the face no longer comes from the camera
    assert np.allclose(expression[(FACE[:, 1] < 0.55)], 0.01)
    assert np.array_equal(hidden[-1].expressed, [1, 0])
    back = story.play(seen(10.0), seconds=1.0)
    assert np.allclose(back[-1].mouth, seen().mouth)
    assert np.array_equal(back[-1].expressed, [1, 1])
    assert speeds(hidden + back, 1 / 30)["mouth"] < 4.0


def test_only_auto_gives_a_hidden_mouth_to_the_voice() -> None:
    made = Story(gap=0.2).play(seen(0.0, mouth=0.0), seconds=1.0, drive="camera")
    assert np.allclose(made[-1].mouth, seen().mouth)


def test_a_lost_face_speaks_in_auto_and_rests_in_camera() -> None:
    cases: tuple[tuple[Drive, bool], ...] = (("auto", True), ("camera", False))
    for drive, speaks in cases:
        story = Story(gap=0.2)
        story.play(seen(), seconds=0.5, drive=drive)
        made = story.play(UNSEEN, seconds=1.5, drive=drive)
        assert (max(m.mouth[0] for m in made[-20:]) > 0.15) == speaks
        if not speaks:
            assert made[-1].mouth[0] == 0.0


def test_the_voice_drives_alone() -> None:
    made = Story(gap=0.2).play(seen(30.0), seconds=1.0, drive="voice")
    assert abs(made[-1].head[0]) < 8.0
    assert made[-1].expression is None
    assert max(m.mouth[0] for m in made) > 0.15


def test_changing_the_drive_is_eased() -> None:
    story = Story(gap=0.2)
    motions = story.play(seen(25.0), seconds=0.5, drive="camera") + story.play(seen(25.0), seconds=1.0, drive="voice")
    motions += story.play(seen(25.0), seconds=0.2, drive="auto") + story.play(seen(25.0), seconds=1.0, drive="camera")
    assert speeds(motions, 1 / 30)["head"] < 1.6 * 35 / EASE
    assert np.allclose(motions[-1].head, seen(25.0).head)


def test_the_idle_blink_does_not_double_the_person_s() -> None:
    starts = [IdleDriver(3).blink(t).start for t in np.arange(2.0, 200.0, 1.0)]
    blink = starts[10]
    for lead in (0.05, 0.3, 0.6):  # the person blinks and is lost this long before the idle driver's blink
        story = Story(start=0.0)
        story.play(seen(), seconds=blink - lead - 0.4, drive="auto")
        story.play(seen(eyes=0.0), seconds=0.2, drive="auto")
        story.play(seen(), seconds=0.2, drive="auto")
        gone = story.play(UNSEEN, seconds=1.0, drive="auto")
        assert min(m.eyes.min() for m in gone) > 0.85


def test_a_face_lost_in_the_middle_of_the_idle_driver_s_blink_keeps_its_eyes_as_they_are() -> None:
    blink = IdleDriver(3).blink(20.0).start
    for into in (0.0, 0.05, 0.1):
        story = Story(start=0.0)
        story.play(seen(), seconds=blink + into - HOLD)
        gone = np.array([m.eyes[0] for m in story.play(UNSEEN, seconds=HOLD + EASE)])
        assert gone.min() > 0.85
        assert gone.max() < 1.15


def test_the_body_is_followed_held_and_let_go() -> None:
    reading = BodyReading(0.0, np.zeros((33, 4), np.float32), np.array([5, 0, 0.1, 0, 0, 0], np.float32), 1.0)
    story = Story()
    led = story.play(seen(), seconds=1.0, body=reading)
    assert np.allclose(led[-1].body, reading.motion, atol=0.01)
    unsure = story.play(seen(), seconds=1.0, body=replace(reading, confidence=0.1))
    assert abs(unsure[-1].body[0]) < 1.0
    again = story.play(seen(), seconds=1.0, body=reading)
    assert speeds(led[3:] + unsure + again, 1 / 30)["body"] < 1.7 * 5 / EASE
    spoken = story.play(seen(), seconds=1.0, body=reading, drive="voice")
    assert abs(spoken[-1].body[0]) < 1.0


def test_signals_carry_the_sound_once_there_is_some() -> None:
    mixer, speech = Mixer(), SpeechDriver()
    bare = mixer.mix(Signal(1.0), grid="voice", drive="voice", speech=speech, body=None)
    assert bare.speech is None
    assert bare.pcm is None
    speech.hear(AudioChunk(vowel(1.0), RATE, 1.0))
    full = mixer.mix(Signal(1.6), grid="voice", drive="voice", speech=speech, body=None)
    assert full.speech is not None
    assert full.pcm is not None
    assert full.speech.shape == (16, 80)
    assert full.pcm.shape == (2560,)
    assert full.motion is not None
    assert full.motion.mouth[0] > 0.05
    later = mixer.mix(Signal(4.0), grid="voice", drive="voice", speech=speech, body=None)
    assert later.speech is None


def test_a_generator_that_listens_gets_the_sound_of_a_camera_drive_and_the_face_stays_the_camera_s() -> None:
    deaf, listening = Mixer(seed=1), Mixer(seed=1)
    for k in range(6):
        signal = Signal(1.0 + k / 30, motion=seen(4.0 * k), face=FACE)
        mixed = {"grid": "camera", "drive": "camera", "speech": Voice(0.5), "body": None}
        plain = deaf.mix(signal, **mixed)  # type: ignore[arg-type]
        heard = listening.mix(signal, **mixed, listening=True)  # type: ignore[arg-type]
        assert plain.pcm is None
        assert heard.pcm is not None
        assert plain.motion is not None
        assert heard.motion is not None
        for name in ("head", "mouth", "eyes", "expression"):
            assert np.array_equal(getattr(heard.motion, name), getattr(plain.motion, name)), name


def test_time_that_runs_back_or_leaps_does_no_harm() -> None:
    story = Story()
    story.play(seen(20.0), seconds=0.3)
    story.time -= 5.0
    back = story.play(UNSEEN, seconds=1.0)
    story.time += 3600.0
    on = story.play(seen(-20.0), seconds=1.0)
    assert speeds(back, 1 / 30)["head"] < 1.6 * 25 / EASE
    assert np.isfinite(on[-1].head).all()


STEPS = st.tuples(
    st.sampled_from(["seen", "hidden", "lost", "none"]),
    st.sampled_from(["camera", "voice", "auto"]),
    st.integers(1, 12),  # frames
    st.sampled_from([1 / 60, 1 / 30, 0.05, 0.1]),
    st.sampled_from([-30.0, 30.0]),  # apart enough that no head goes from one to the other between two frames
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, min_size=2, max_size=14), st.integers(0, 1000))
def test_no_sequence_of_sights_and_drives_makes_a_jump(steps: list[tuple[str, Drive, int, float, float]], seed: int) -> None:
    story = Story(seed=seed, gap=0.2)
    bounds = {"head": 1.6 * 65 / EASE, "eyes": 30.0, "gaze": 5.0, "brows": 2.0, "mouth": 6.0, "body": 20.0, "expression": 0.2}
    last: Motion | None = None
    for kind, drive, frames, step, yaw in steps:
        motion = {"seen": seen(yaw), "hidden": seen(yaw, mouth=0.0), "lost": UNSEEN, "none": None}[kind]
        made = story.play(motion, seconds=frames * step, drive=drive, step=step)
        for name, fastest in speeds([m for m in (last, *made) if m is not None], step).items() if last or frames > 1 else ():
            assert fastest < bounds[name], name
        last = made[-1]
        assert (last.eyes >= 0).all()
        assert last.mouth[0] >= 0
