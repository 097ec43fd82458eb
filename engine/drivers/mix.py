"""Camera, voice and idle -> the one motion that the portrait makes, without a seam where one gives way to another.

Face, lips and body each follow one source at a time. When a source changes, the difference to what was shown last is kept
and eased away over EASE seconds on top of the new source (inertialisation, Bollo, GDC 2018): the picture goes on from where it
was, whatever the new source does, and a change within a change needs no special case.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from engine.drivers.idle import IdleDriver, smoothstep
from engine.drivers.readings import BODY_FOLLOW, Ease, beside
from engine.drivers.speech import SpeechDriver, SpeechReading
from engine.types import Drive, FloatArray, Grid, Motion, Signal

if TYPE_CHECKING:
    from engine.drivers.body import BodyReading
    from engine.drivers.hands import HandsReading

EASE = 0.4
"""s in which one source gives way to another."""
HOLD = 0.12
"""s a face (or a mouth, or a voice in place of one) may be unseen before its motion is let go: a tracker misses a frame at times."""
SEEN, LOST = 0.6, 0.4
"""Confidences above which a part counts as seen and below which it counts as lost; between them it stays what it was."""
TELEPORT = np.array([450.0, 450.0, 450.0, 8.0, 8.0, 6.0])
"""Speeds of the head (degrees/s, face widths/s, log scale/s) that no neck has: the tracker took hold of somebody else, or anew."""
AFTER_BLINK = 1.0
"""s after a blink of the person before which the idle driver makes none."""
SPEECH_STALE = 0.5
"""s after the end of the sound at which a signal no longer carries it."""

_LONGEST_STEP = 1.0  # s that count between two signals
_SPEAKING, _STRESS_FAST, _STRESS_SLOW = 0.4, 0.15, 1.5  # s, time constants
_STRESS_GAIN = 1.6

Source = Literal["camera", "voice", "idle"]


@dataclass(slots=True)
class Channel:
    """One part of the face, its source, and what is left of the source before."""

    source: Source | None = None
    since: float = 0.0  # clock at which the source changed
    values: FloatArray = field(default_factory=lambda: np.zeros(0, np.float32))  # shown last
    shape: FloatArray | None = None  # [478, 3] expression shown last
    values_left: FloatArray | None = None  # difference to ease away
    shape_left: FloatArray | None = None

    def follow(self, source: Source, values: FloatArray, shape: FloatArray | None, *, before: float, clock: float, jumped: bool = False) -> None:
        """Show `values` and `shape` of a source; `before` and `clock` are the clock at the last signal and at this one."""
        if self.source is not None and (source != self.source or jumped):
            self.since = before
            self.values_left = self.values - values
            self.shape_left = _sum(self.shape, None if shape is None else -shape)
        self.source = source
        share = 1.0 - smoothstep((clock - self.since) / EASE)
        if share == 0.0:
            self.values_left = self.shape_left = None
        self.values = values if self.values_left is None else (values + share * self.values_left).astype(np.float32)
        self.shape = shape if self.shape_left is None else _sum(shape, np.float32(share) * self.shape_left)


@dataclass(slots=True)
class MixState:
    """What one session's mixer remembers."""

    clock: float = 0.0  # s of signals so far; never goes back, whatever the signals' times do
    time: float | None = None  # of the last signal
    face: Channel = field(default_factory=Channel)  # head 6, eyes 2, gaze 2, brows 2, expressed 1, confidence 1
    lips: Channel = field(default_factory=Channel)  # mouth 4, expressed 1, confidence 1
    body: Channel = field(default_factory=Channel)  # body 6, confidence 1
    camera: Motion | None = None  # the last one that was seen
    camera_time: float = float("-inf")  # clock of it
    mouth_seen: bool = False
    mouth_time: float = float("-inf")  # clock at which the mouth was last as `mouth_seen` says
    region: FloatArray | None = None  # [478, 1] 0..1: the points that go with the mouth
    body_motion: FloatArray | None = None  # [6] readings, smoothed
    points: Ease = field(default_factory=Ease)  # of body and hands
    no_blink_before: float = 0.0  # clock
    speaking: float = 0.0
    stress_fast: float = 0.0
    stress_slow: float = 0.0


class Mixer:
    """One a session; not thread-safe."""

    def __init__(self, *, seed: int = 0) -> None:
        self._idle = IdleDriver(seed)
        self.state = MixState()

    def mix(
        self,
        signal: Signal,
        *,
        grid: Grid,
        drive: Drive,
        speech: SpeechDriver,
        body: BodyReading | None,
        hands: HandsReading | None = None,
        listening: bool = False,
    ) -> Signal:
        """The signal with its final motion, and with speech and samples where sound was heard lately and may move the lips.

        `signal.motion` is the camera's or None; `grid` says what paced the signal (the mix itself depends on times only). `listening`: the
        generator makes lips of the sound itself, whoever moves the face, so that it gets speech and samples in a camera drive too.
        """
        signal = beside(signal, body=body, hands=hands if drive != "voice" else None)
        state = self.state
        before = state.clock
        step = 0.0 if state.time is None else float(np.clip(signal.time - state.time, 0.0, _LONGEST_STEP))
        state.clock, state.time = before + step, signal.time
        heard = (listening or drive != "camera") and signal.time - speech.heard_until < SPEECH_STALE
        told = speech.at(signal.time) if heard else None
        reading = told if drive != "camera" else None
        camera, jumped = _camera(state, signal, drive, step)
        lips: Source = _lips(state, camera, drive)
        _listen(state, reading if lips == "voice" else None, step)
        if camera is None and state.face.source == "camera":
            state.no_blink_before = max(state.no_blink_before, before + EASE)
        stress = float(np.clip(_STRESS_GAIN * (state.stress_fast - state.stress_slow), -1.0, 1.0))
        idle = self._idle.at(state.clock, speaking=state.speaking, stress=stress, no_blink_before=state.no_blink_before)
        _follow(state, camera, idle, lips, reading, before=before, jumped=jumped)
        _follow_body(state, signal.motion if drive != "voice" else None, idle, before=before, step=step)
        return replace(
            state.points(signal, step),
            motion=_shown(state),
            speech=told.logmel if told else None,
            pcm=told.pcm if told else None,
        )


def _camera(state: MixState, signal: Signal, drive: Drive, step: float) -> tuple[Motion | None, bool]:
    """(the camera's motion if it is to be followed, perhaps held for a moment; whether it jumped as no head does)."""
    motion = signal.motion
    if drive == "voice":
        state.camera = None
        return None, False
    bar = LOST if state.camera is not None else SEEN
    if motion is None or float(motion.confidence[0]) < bar:
        if state.clock - state.camera_time > HOLD:
            state.camera = None
        return state.camera, False
    jumped = False
    if state.camera is None:
        state.region = _mouth_region(signal)
    else:
        jumped = bool((np.abs(motion.head - state.camera.head) > TELEPORT * max(step, 1 / 60)).any())
    state.camera, state.camera_time = motion, state.clock
    if float(motion.eyes.min()) < 0.4:
        state.no_blink_before = state.clock + AFTER_BLINK
    return motion, jumped


def _lips(state: MixState, camera: Motion | None, drive: Drive) -> Source:
    """Who moves the lips. In "auto" the voice takes over from a hidden mouth, and gives it back, after HOLD."""
    if drive == "voice":
        return "voice"
    if camera is None:
        state.mouth_seen = False
        return "voice" if drive == "auto" else "idle"
    if drive == "camera":
        return "camera"
    confidence = float(camera.confidence[1])
    seen = confidence > LOST if state.mouth_seen else confidence >= SEEN
    if seen == state.mouth_seen:
        state.mouth_time = state.clock
    elif state.clock - state.mouth_time > HOLD or state.lips.source is None:
        state.mouth_seen = seen
    return "camera" if state.mouth_seen else "voice"


def _listen(state: MixState, reading: SpeechReading | None, step: float) -> None:
    """Follow how much is spoken, and where the stress lies: short-term loudness over long-term loudness."""
    voiced, loudness = (reading.voiced, reading.loudness) if reading else (0.0, 0.0)
    state.speaking += (voiced - state.speaking) * (1 - np.exp(-step / _SPEAKING))
    state.stress_fast += (loudness - state.stress_fast) * (1 - np.exp(-step / _STRESS_FAST))
    state.stress_slow += (loudness - state.stress_slow) * (1 - np.exp(-step / _STRESS_SLOW))


def _follow(
    state: MixState, camera: Motion | None, idle: Motion, lips: Source, reading: SpeechReading | None, *, before: float, jumped: bool
) -> None:
    """Bring face and lips to their sources."""
    motion, source = (idle, "idle") if camera is None else (camera, "camera")
    face_shape, lips_shape, expressed = None, None, (0.0, 0.0)
    if motion.expression is not None:
        expressed = (float(motion.expressed[0]), float(motion.expressed[1]))
        region = np.zeros((len(motion.expression), 1), np.float32) if state.region is None else state.region
        face_shape, lips_shape = motion.expression * (1 - region), motion.expression * region
    values = np.array(
        [*motion.head, *motion.eyes, *motion.gaze, *motion.brows, expressed[0], 0.0 if camera is None else motion.confidence[0]], np.float32
    )
    state.face.follow("camera" if source == "camera" else "idle", values, face_shape, before=before, clock=state.clock, jumped=jumped)

    if lips == "camera" and camera is not None:
        mouth = np.array([*camera.mouth, expressed[1], camera.confidence[1]], np.float32)
    elif lips == "voice" and reading is not None:
        mouth = np.array([*reading.mouth, 0.0, reading.voiced], np.float32)
    else:
        mouth = np.zeros(6, np.float32)
    state.lips.follow(lips, mouth, lips_shape if lips == "camera" else None, before=before, clock=state.clock, jumped=jumped and lips == "camera")


def _follow_body(state: MixState, seen: Motion | None, idle: Motion, *, before: float, step: float) -> None:
    """Bring the shoulders to the camera's while they are seen, else to the breath."""
    bar = LOST if state.body.source == "camera" else SEEN
    if seen is None or float(seen.confidence[2]) < bar:
        state.body_motion = None
        state.body.follow("idle", np.array([*idle.body, 0.0], np.float32), None, before=before, clock=state.clock)
        return
    reached = seen.body if state.body_motion is None else state.body_motion
    state.body_motion = reached + (seen.body - reached) * np.float32(1 - np.exp(-step / BODY_FOLLOW))
    values = np.array([*state.body_motion, seen.confidence[2]], np.float32)
    state.body.follow("camera", values, None, before=before, clock=state.clock)


def _shown(state: MixState) -> Motion:
    """The channels as one motion, within the ranges that `Motion` states."""
    face, lips, body = state.face.values, state.lips.values, state.body.values
    mouth = lips[:4].copy()
    mouth[0], mouth[2] = max(0.0, float(mouth[0])), float(np.clip(mouth[2], 0, 1))
    return Motion(
        head=face[:6].copy(),
        eyes=np.clip(face[6:8], 0.0, 1.6),
        gaze=face[8:10].copy(),
        brows=face[10:12].copy(),
        mouth=mouth,
        expression=_sum(state.face.shape, state.lips.shape),
        expressed=np.clip([face[12], lips[4]], 0.0, 1.0).astype(np.float32),
        body=body[:6].copy(),
        confidence=np.clip([face[13], lips[5], body[6]], 0.0, 1.0).astype(np.float32),
    )


def _sum(one: FloatArray | None, other: FloatArray | None) -> FloatArray | None:
    """The sum of two expressions of which None is nothing."""
    if one is None or other is None:
        return other if one is None else one
    return one + other


def _mouth_region(signal: Signal) -> FloatArray | None:
    """[478, 1] 0..1: 0 down to the tip of the nose, 1 from its base to the chin. None without landmarks: then nothing is told apart."""
    if signal.face is None:
        return None
    points = signal.face[:, :2] * np.array([signal.aspect, 1.0], np.float32)
    eyes = points[[33, 263]]  # outer corners, left and right of the picture
    across = (eyes[1] - eyes[0]) / max(float(np.linalg.norm(eyes[1] - eyes[0])), 1e-6)
    height = (points - eyes.mean(0)) @ np.array([-across[1], across[0]])
    tip, base = float(height[1]), float(height[2])
    base = max(base, tip + 0.05 * float(np.linalg.norm(eyes[1] - eyes[0])))
    share = np.clip((height - tip) / (base - tip), 0, 1)
    region: FloatArray = (share * share * (3 - 2 * share))[:, None].astype(np.float32)
    return region
