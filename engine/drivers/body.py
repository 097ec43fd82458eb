"""Camera picture -> how the shoulders move, with MediaPipe's pose. Slow: meant for one frame in `config.BODY_EVERY`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from engine.drivers.calibrate import EASE, RunningMean
from engine.drivers.quiet import quiet
from engine.drivers.smooth import OneEuro
from engine.pose import Float64Array
from engine.types import BODY_POINTS, FloatArray, UInt8Array, VideoFrame

LONGEST_SIDE = 512
"""px: larger pictures are shrunk first; the network itself looks at 256 x 256 px of person."""
EARS = np.array([8, 7])
SHOULDERS = np.array([12, 11])
"""Left and right of the picture, of a person who faces the camera."""
SEEN = (0.4, 0.85)
"""MediaPipe's visibility of the worse shoulder between which confidence goes from 0 to 1."""
BELOW = (1.0, 1.12)
"""Picture heights between which a shoulder that is guessed below the lower edge loses all confidence."""
JUMP = 0.8
"""Shoulder widths a person cannot move between two readings: it is somebody else."""
FORGET = 2.0
"""s without the person after which somebody else is followed, with a neutral of their own."""
LEANING, MOVED = 2.0, 0.06
"""Degrees of lean, and shoulder widths of shift, that make a reading a poor neutral."""
PRIOR = 0.5
"""s of readings the first one weighs as much as in the neutral."""
CHOSEN_READINGS = 4
"""Readings averaged for a neutral the person asks for."""
TWIST_TRUST, TWIST_MOST = 0.25, 10.0
"""Share of the twist in MediaPipe's z that is believed, and its limit in degrees: where only the head turns it says 1.2 times the head's yaw."""
SHRUG_REST = 0.02
"""Shoulder widths of shrug below which it is noise."""
LONGEST_STEP = 0.2
"""s a single reading counts at most."""
CONFIDENCE_CUTOFF = 0.5
"""Hz: visibility flickers where a shoulder lies on the picture's edge."""
CUTOFF = np.array([0.8, 0.4, 0.8, 0.8, 0.8])
BETA = np.array([0.15, 0.02, 6.0, 6.0, 6.0])
"""One-euro parameters of lean, twist (Hz, Hz per degree/s), x, y, shrug (Hz, Hz per shoulder width/s)."""


@dataclass(frozen=True, slots=True)
class BodyReading:
    """The upper body at one instant."""

    time: float  # s, of the camera frame
    landmarks: FloatArray  # [33, 4] x, y 0..1 of the picture, z on the scale of x, visibility 0..1
    motion: FloatArray  # [6] as in `Motion.body`
    confidence: float  # 0..1


class BodyDriver:
    """One person's shoulders. One a session; not thread-safe, but may run on a thread of its own beside the face driver."""

    def __init__(self) -> None:
        self._graph: Any = None
        self._warm = False
        self._size = (0, 0)
        self.reset()

    def reset(self) -> None:
        """Forget the person and the neutral."""
        self._mean: RunningMean | None = None
        self._neutral: Float64Array | None = None
        self._chosen: list[Float64Array] | None = None
        self._locked = False
        self._last: Float64Array | None = None
        self._seen = float("-inf")
        self._filter, self._steady = OneEuro(CUTOFF, BETA), OneEuro(CONFIDENCE_CUTOFF)

    def set_neutral(self) -> None:
        """Take the next few readings as the neutral and keep it until the person is forgotten."""
        self._chosen = []

    def close(self) -> None:
        """Free the tracker. It starts again on the next call."""
        if self._graph is not None:
            self._graph.close()
            self._graph, self._warm = None, False

    def __call__(self, frame: VideoFrame) -> BodyReading | None:
        """A camera frame -> reading, or None where no upper body is seen."""
        size = (frame.rgb.shape[0], frame.rgb.shape[1])
        if size != self._size:
            self._restart(size)
        landmarks = self._detect(frame.rgb)
        if landmarks is None:
            return None
        measured = measure(landmarks, aspect=size[1] / size[0])
        if self._last is not None and frame.time - self._seen < FORGET and _jumped(self._last, measured):
            return None
        if frame.time - self._seen >= FORGET:
            self.reset()
        step = float(np.clip(frame.time - self._seen, 0.0, LONGEST_STEP))
        self._last, self._seen = measured, frame.time
        confidence = float(self._steady(confidence_of(landmarks), frame.time))
        neutral = self._learn(measured, confidence, step=step)
        return BodyReading(frame.time, landmarks, self._motion(measured, neutral, frame.time), confidence)

    def _restart(self, size: tuple[int, int]) -> None:
        """Another picture geometry: positions have no meaning across it, so the neutral starts again."""
        self._size = size
        self.reset()
        if self._graph is not None:
            with quiet():
                self._graph.reset()
            self._warm = False

    def _detect(self, rgb: UInt8Array) -> FloatArray | None:
        height, width = rgb.shape[:2]
        factor = min(1.0, LONGEST_SIDE / max(height, width))
        small = (max(1, round(width * factor)), max(1, round(height * factor)))
        picture = np.ascontiguousarray(rgb) if factor >= 1.0 else cv2.resize(rgb, small, interpolation=cv2.INTER_AREA)
        if self._warm:
            found = self._graph.process(picture).pose_landmarks
        else:
            with quiet():
                if self._graph is None:
                    from mediapipe.python.solutions.pose import Pose

                    self._graph = Pose(model_complexity=1, smooth_landmarks=False)  # 1 is the only model inside the wheel
                found = self._graph.process(picture).pose_landmarks
            self._warm = found is not None
        if found is None:
            return None
        landmarks = np.array([(p.x, p.y, p.z, p.visibility) for p in found.landmark], np.float32)
        return landmarks if landmarks.shape == (BODY_POINTS, 4) and np.isfinite(landmarks).all() else None

    def _learn(self, measured: Float64Array, confidence: float, *, step: float) -> Float64Array:
        """The neutral to measure against: a running mean of what is seen well, eased, or the one that was chosen."""
        if self._mean is None or self._neutral is None:
            self._mean, self._neutral = RunningMean(measured, PRIOR * max(confidence, 0.1), max(confidence, 0.1)), measured
            return measured
        if self._chosen is not None:
            self._chosen.append(measured)
            if len(self._chosen) == CHOSEN_READINGS:
                self._mean, self._chosen, self._locked = RunningMean(np.mean(self._chosen, 0)), None, True
        elif not self._locked:
            known = self._mean.seconds / (self._mean.seconds + PRIOR)
            away = (measured - self._mean.value)[[0, 2, 3]] / (LEANING, *[MOVED * self._mean.value[5]] * 2)
            self._mean.add(measured, confidence / (1.0 + known * float((away**2).sum())) ** 2, step=step)
        self._neutral = self._neutral + (1.0 - float(np.exp(-step / EASE))) * (self._mean.value - self._neutral)
        return self._neutral

    def _motion(self, measured: Float64Array, neutral: Float64Array, time: float) -> FloatArray:
        lean, twist = measured[:2] - neutral[:2]
        x, y = (measured[2:4] - neutral[2:4]) / neutral[5]
        shrug = shrugged(measured, neutral)
        lean, twist, x, y, shrug = self._filter([lean, TWIST_MOST * np.tanh(TWIST_TRUST * twist / TWIST_MOST), x, y + shrug, shrug], time)
        return np.array([lean, twist, x, y, shrug, shrug], np.float32)


def measure(landmarks: FloatArray, *, aspect: float) -> Float64Array:
    """Pose landmarks -> [6] lean and twist of the shoulder line in degrees; its middle's x and y, the height of the ears over it
    and its width in picture heights."""
    points = np.asarray(landmarks[:, :3], np.float64) * (aspect, 1.0, aspect)
    left, right = points[SHOULDERS]
    across = right - left
    middle = (left + right) / 2
    lean = np.degrees(np.arctan2(across[1], across[0]))
    twist = np.degrees(np.arctan2(across[2], abs(across[0])))
    return np.array([lean, twist, middle[0], middle[1], middle[1] - points[EARS, 1].mean(), np.hypot(across[0], across[1])])


def shrugged(measured: Float64Array, neutral: Float64Array) -> float:
    """Shrug of both shoulders, shoulder widths, > 0 up: what they came nearer to the ears *and* moved up in the picture.

    A bowed head comes nearer without the shoulders moving, a person who rises moves up without coming nearer. One shoulder
    alone reads as lean: the two look alike in two points.
    """
    nearer = (neutral[4] - measured[4]) / neutral[5]
    up = (neutral[3] - measured[3]) / neutral[5]
    if nearer * up <= 0.0:
        return 0.0
    both = min(abs(nearer), abs(up))
    return float(np.sign(up) * max(0.0, both - SHRUG_REST))


def confidence_of(landmarks: FloatArray) -> float:
    """How well the shoulders are seen, 0..1: visibility of the worse one, less the further it lies below the picture."""
    visible = (float(landmarks[SHOULDERS, 3].min()) - SEEN[0]) / (SEEN[1] - SEEN[0])
    inside = (BELOW[1] - float(landmarks[SHOULDERS, 1].max())) / (BELOW[1] - BELOW[0])
    return float(np.clip(visible, 0.0, 1.0) * np.clip(inside, 0.0, 1.0))


def _jumped(before: Float64Array, now: Float64Array) -> bool:
    moved = np.hypot(*(now[2:4] - before[2:4])) / before[5]
    return bool(moved > JUMP or abs(np.log(now[5] / max(before[5], 1e-6))) > JUMP)
