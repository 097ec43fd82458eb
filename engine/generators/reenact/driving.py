"""What drives a portrait from frame to frame: the picture of a driver where there is one, else what their signals say. Knows one session.

A picture is read by the motion extractor, and what changes from the driver's neutral is laid on the portrait. A motion without a picture (the
voice, the idle driver, a recording) turns and moves the portrait's own keypoints; lips and eyes go through the retargeting networks, and the
rest of the face by `EDITS`. Where one gives way to the other, the keypoints are mixed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from engine.drivers.calibrate import RunningMean
from engine.generators.reenact.crop import DRIVER_SCALE, DRIVER_UP, Square
from engine.generators.reenact.formulas import LIPS, Reading, Region, absolute, placed, relative
from engine.pose import Float64Array, rotation
from engine.types import FloatArray, Motion, Signal, still_motion

EASE = 0.3
"""s in which a picture takes over from what signals say, or gives way to it."""
LONGEST_STEP = 0.1
"""s a single frame counts at most."""
SEEN = 0.5
"""Confidence of the face from which its picture is believed."""
SMALLEST_PICTURE = 32
"""px of a picture's short side: what is smaller, such as the blank one beside a recorded signal, shows no face."""
TURNED, PARTED, MOVED = 12.0, 0.08, 0.02
"""Degrees of the head, lip gap in inter-ocular distances, and mean displacement of the skin in face widths that make a frame a poor neutral."""
FURTHEST = 0.35
"""Half sides of the crop that the head may be carried from where the portrait has it: beyond, it would leave what is painted."""
NEAREST, FARTHEST = 1.25, 0.8
"""Most and least of the portrait's size."""
PIVOT = np.array([0.0, 0.8, 0.2])
"""What a head turns about (`engine.drivers.rigid.PIVOT`), face widths from between the eyes; its depth from the middle of the keypoints."""

_Edit = tuple[tuple[int, int, float], ...]
GAZE_X: tuple[_Edit, _Edit] = (((11, 0, 0.0007), (15, 0, 0.001)), ((11, 0, 0.001), (15, 0, 0.0007)))
GAZE_Y: _Edit = ((11, 1, -0.0005), (15, 1, -0.0005), (13, 1, -0.00015), (16, 1, -0.00015))
BROWS: tuple[_Edit, _Edit] = (((1, 1, 0.001), (2, 1, -0.001)), ((1, 0, -0.001), (2, 0, 0.001), (1, 1, 0.0003), (2, 1, -0.0003)))
SMILE: _Edit = (
    *((20, 1, -0.01), (14, 1, -0.02), (17, 1, 0.0065), (17, 2, 0.003)),
    *((13, 1, -0.00275), (16, 1, -0.00275), (3, 1, -0.0035), (7, 1, -0.0035)),
)
PURSE: _Edit = ((14, 1, 0.001), (3, 1, -0.0005), (7, 1, -0.0005), (17, 2, -0.0005))
GRIN: _Edit = ((20, 2, -0.001), (20, 1, -0.001), (14, 1, -0.001))
"""Keypoint, axis and change of the expression for one unit of an edit, as the published editor has them; of two, the second is for values
below 0. Gaze and brows up to 30 either way, a smile -0.3 to 1.3, a purse up to 15, a grin up to 15."""
GAZE_GAIN, LARGEST_GAZE = 100.0, (30.0, 60.0)
"""Units of an edit an eye width, and the most of each axis."""
BROW_GAIN, LARGEST_BROW = 200.0, 30.0
"""Units an inter-ocular distance."""
LEAST_SMILE = -0.3
PURSED, GRIN_GAIN, LARGEST_GRIN = 12.0, 60.0, 12.0
"""Units of full roundness, and for a mouth as much wider as it is wide."""


@dataclass(frozen=True, slots=True)
class Face:
    """The portrait in its crop, as the networks and the landmarks see it."""

    reading: Reading
    points: FloatArray  # [21, 3] its keypoints
    eyes: FloatArray  # [2] opening over width
    lips: float  # the same of the lips
    mouth: float  # its width in inter-ocular distances
    between: FloatArray  # [2] middle of the eyes, in half sides of the crop
    width: float  # of the face, in the same


@dataclass(slots=True)
class Drive:
    """What one session remembers of its driver."""

    time: float | None = None  # s of the last signal
    share: float = 0.0  # 0..1 of the picture in what is shown
    pictured: FloatArray | None = None  # [21, 3] keypoints of the last picture, before stitching
    frame: Square | None = None  # the square that all readings are told in: that of the first picture, in heights of the picture
    neutral: RunningMean | None = None  # of readings, as `_vector` lays them out


def square_of(signal: Signal) -> Square | None:
    """The square of a signal's picture that shows the face; None where there is no picture with one."""
    image, face, motion = signal.image, signal.face, signal.motion
    if image is None or face is None or min(image.shape[:2]) < SMALLEST_PICTURE:
        return None
    if (motion is not None and float(motion.confidence[0]) < SEEN) or not np.isfinite(face).all():
        return None
    size = (image.shape[1], image.shape[0])
    return Square.around(np.asarray(face[:, :2] * size, np.float32), scale=DRIVER_SCALE, up=DRIVER_UP, upright=False)


def asked_of(face: Face, motion: Motion) -> tuple[FloatArray, FloatArray]:
    """What the retargeting networks are asked for: lips [2] and eyes [3], the portrait's own ratios and then the ones that the motion says."""
    lips = float(motion.mouth[0]) / face.mouth
    eyes = float(face.eyes.mean() * motion.eyes.mean())
    return np.array([face.lips, lips], np.float32), np.array([*face.eyes, eyes], np.float32)


def signalled(face: Face, motion: Motion) -> FloatArray:
    """Keypoints [21, 3] of a motion, without what the retargeting networks add."""
    own = face.reading
    turned = np.asarray(rotation(*(float(a) for a in motion.head[:3])), np.float32)
    grown = float(np.clip(np.exp(motion.head[5]), FARTHEST, NEAREST))
    # A head turns about the neck; keypoints turn about their own middle, and the rest of the way is a shift.
    arm = np.array([*face.between, 0.0]) - np.array([*own.t[:2], 0.0]) + PIVOT * face.width
    shift = (arm - grown * (turned @ arm))[:2] + motion.head[3:5] * face.width
    shift = np.clip(shift, -FURTHEST, FURTHEST)
    t = own.t + np.array([*shift, 0.0], np.float32)
    return placed(own.kp, own.turn @ turned.T, own.exp + edited(motion), own.scale * grown, t)


def edited(motion: Motion) -> FloatArray:
    """[21, 3] what gaze, brows and the shape of the mouth add to an expression."""
    made = np.zeros((21, 3), np.float32)
    x, y = (float(np.clip(GAZE_GAIN * g, -most, most)) for g, most in zip(motion.gaze, LARGEST_GAZE, strict=True))
    brows = float(np.clip(BROW_GAIN * motion.brows.mean(), -LARGEST_BROW, LARGEST_BROW))
    _, width, rounded, smile = (float(v) for v in motion.mouth)
    grin = float(np.clip(GRIN_GAIN * width, 0.0, LARGEST_GRIN))
    edits = ((GAZE_X[x < 0], x), (GAZE_Y, -y), (BROWS[brows < 0], brows), (SMILE, max(LEAST_SMILE, smile)), (PURSE, PURSED * rounded), (GRIN, grin))
    for edit, amount in edits:
        for point, axis, change in edit:
            made[point, axis] += amount * change
    return made


def pictured(drive: Drive, face: Face, said: Reading, square: Square, signal: Signal, *, region: Region, calibrated: bool) -> FloatArray:
    """Keypoints [21, 3] of what the extractor says of a signal's picture, of which `square` was cut.

    `calibrated`: what changes from the driver's neutral, laid on the portrait; else the driver's own pose and expression.
    """
    assert signal.image is not None
    here = Square(square.centre / signal.image.shape[0], square.side / signal.image.shape[0], square.turn)
    if drive.frame is None:
        drive.frame = here
    said = _in_frame(said, here, drive.frame)
    neutral = _neutral(drive, said, signal)
    own = neutral.exp if calibrated else face.reading.exp
    exp = said.exp.copy()
    exp[list(LIPS)] += (1.0 - _lips(signal)) * (own - said.exp)[list(LIPS)]
    if not calibrated:
        return absolute(face.reading, replace(said, exp=exp), region=region)
    t = neutral.t + np.clip(said.t - neutral.t, -FURTHEST, FURTHEST)
    scale = neutral.scale * float(np.clip(said.scale / neutral.scale, FARTHEST, NEAREST))
    return relative(face.reading, replace(said, exp=exp, t=t, scale=scale), neutral, region=region)


def mixed(drive: Drive, face: Face, signal: Signal, of_picture: FloatArray | None, retargeted: tuple[FloatArray, FloatArray]) -> FloatArray:
    """Keypoints [21, 3] to show: the picture's, as far as there is one, else those of the motion with lips and eyes `retargeted`.

    As far as the voice moves the lips of a face that the camera sees (`Motion.expressed`), the picture has the motion's lips.
    """
    motion = signal.motion or still_motion()
    step = 0.0 if drive.time is None else float(np.clip(signal.time - drive.time, 0.0, LONGEST_STEP))
    first, drive.time = drive.time is None, signal.time
    if of_picture is not None:
        drive.pictured = of_picture
    towards = 0.0 if of_picture is None else 1.0
    drive.share = towards if first else drive.share + float(np.clip(towards - drive.share, -step / EASE, step / EASE))
    by_motion = signalled(face, motion) + retargeted[0] + retargeted[1]
    if drive.pictured is None or drive.share == 0.0:
        return np.asarray(by_motion, np.float32)
    spoken = retargeted[0].copy()
    spoken[list(LIPS)] += face.reading.scale * edited(motion)[list(LIPS)]
    by_picture = drive.pictured + (1.0 - _lips(signal)) * spoken
    return np.asarray(by_motion + drive.share * (by_picture - by_motion), np.float32)


def _lips(signal: Signal) -> float:
    """0..1 how much of the lips is the picture's."""
    return 1.0 if signal.motion is None else float(signal.motion.expressed[1])


def _in_frame(said: Reading, square: Square, frame: Square) -> Reading:
    """A reading of one square told in another: every picture is cut around its face, and where that was belongs to the motion."""
    zoom = square.side / frame.side
    moved = (square.centre - frame.centre) * (2 / frame.side)
    t = said.t * np.float32(zoom)
    t[:2] += moved
    return replace(said, t=t, scale=said.scale * zoom)


def _neutral(drive: Drive, said: Reading, signal: Signal) -> Reading:
    """The driver's neutral so far: the mean of readings, each by how near the calibrated motion says it is to neutral.

    Of the pose every frame tells: what the motion has turned and moved is taken off first.
    """
    now = _vector(said)
    goodness, step = 1.0, LONGEST_STEP if drive.time is None else float(np.clip(signal.time - drive.time, 0.0, LONGEST_STEP))
    if (motion := signal.motion) is not None:
        yaw, pitch, roll = (float(a) for a in motion.head[:3])
        now[:3] -= (pitch, -yaw, roll)
        skin = 0.0 if motion.expression is None else float(np.linalg.norm(motion.expression, axis=1).mean())
        cost = float(np.square(motion.head[:3] / TURNED).sum()) + (float(motion.mouth[0]) / PARTED) ** 2 + (skin / MOVED) ** 2
        cost += 4 * float(np.square(np.minimum(0.0, motion.eyes - 1.0)).sum())
        goodness = 1.0 / (1.0 + cost) ** 2
    if drive.neutral is None:
        drive.neutral = RunningMean(now)
    drive.neutral.add(now, goodness, step=step)
    mean = drive.neutral.value
    pitch, yaw, roll = (float(a) for a in mean[:3])
    t, exp = mean[3:6].astype(np.float32), mean[7:].reshape(-1, 3).astype(np.float32)
    return Reading(said.kp, pitch, yaw, roll, t, exp, float(np.exp(mean[6])))


def _vector(said: Reading) -> Float64Array:
    """[70] pitch, yaw, roll, t, log of the scale, expression."""
    return np.array([said.pitch, said.yaw, said.roll, *said.t, np.log(max(said.scale, 1e-3)), *said.exp.ravel()], np.float64)


__all__ = ["Drive", "Face", "asked_of", "edited", "mixed", "pictured", "signalled", "square_of"]
