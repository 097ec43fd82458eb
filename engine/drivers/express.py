"""Pose and shape of a face against a neutral -> smooth, person-independent Motion. Knows one person, not pictures."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from engine.drivers.calibrate import Levels, Neutral, NeutralState, Rest, head_vector
from engine.drivers.measure import BROWS, IRISES, LIPS, LOWER_LIDS, UPPER_LIDS, Measures, measure
from engine.drivers.rigid import EYE_CORNERS, MEAN_RIGID, RIGID, fit_pose
from engine.drivers.smooth import OneEuro
from engine.pose import Float64Array, angles, rotation
from engine.types import FACE_POINTS, Motion

ASIDE_YAW, ASIDE_PITCH = 10.0, 15.0
"""Degrees of the neutral's own yaw and pitch that are taken for the tracker's or the face's, not for a camera that stands aside."""
SHUT_EYE, OPEN_EYE = 0.06, 1.6
"""Apertures below the first are 0, since a blink must close; the second is the widest."""
APART, APART_YAW, WINK, LIKELY = 0.15, 0.02, 0.25, 0.35
"""Difference between the two apertures that is mostly the tracker's, how it grows a degree of yaw, how much more is wholly believed, and
the share of it that is believed below."""
GAZE_FADE = (0.15, 0.4)
"""Apertures between which an eye's iris goes from unseen to trusted."""
WIDE_GAP = 0.6
"""Lip gap in inter-ocular distances where the dead zone of shut lips has been made up for."""
JAW_PULL = 0.4
"""How far the corners of the mouth sink under the upper lip as the lips part, per lip gap: measured on open mouths that do not smile."""
BROAD_SMILE, DEEP_FROWN = 0.09, 0.06
"""Lift and drop of the corners in inter-ocular distances that are a full smile and a full frown."""
FULL_ROUND = 0.25
"""Loss of width as a share of the neutral's that is a full pucker."""
FEATURE_REACH = 0.08
"""Face widths around brows, eyes and lips within which the skin moves with them."""
NOSE, NOSE_REACH = np.array([168, 6, 197, 195, 5, 4, 1]), 0.06
"""The bridge and the tip of the nose, and the face widths around them that the skull carries."""
JAW_TOP = (0.15, 0.35)
"""Face widths below the eyes between which the skin goes from the skull's to the jaw's."""
SIDES = (0.35, 0.5)
"""Face widths from the middle between which the face turns to its outline, where the mesh slides as the head turns."""
DEPTH_BELIEVED = 0.3
"""How much of a displacement in depth is believed: most of it answers the head's turning, not the face."""
OUTLINE_SHARE = 0.3
"""How much of the displacement is believed on the outline."""

HEAD_CUTOFF = np.array([0.8, 0.8, 0.8, 1.0, 1.0, 0.8])
"""Hz at rest: yaw, pitch, roll, x, y, log scale."""
HEAD_BETA = np.array([1.0, 1.0, 1.5, 40.0, 40.0, 30.0])
"""Hz per degree/s and per face width/s."""
HEAD_CALM = np.array([2.0, 2.0, 1.0, 0.02, 0.02, 0.04])
"""Degrees/s and face widths/s that a resting head shows under a camera's noise."""
SKIN_CUTOFF, SKIN_BETA, SKIN_CALM = 1.0, 30.0, 0.02
"""Hz at rest, Hz per face width/s, and face widths/s of skin."""
LID_CUTOFF, LID_BETA, LID_CALM = 1.5, 120.0, 0.03
"""The same of the lids: a blink falls within two frames."""
IRIS_CUTOFF, IRIS_BETA, IRIS_CALM = 1.0, 40.0, 0.03
DEPTH_SHARE = 0.5
"""Cutoff of z against x and y, since it is the noisier axis."""
SPEED_CUTOFF, SKIN_SPEED_CUTOFF = 3.0, 5.0
"""Hz, of the head and of the skin: 1, the paper's, takes three frames to notice that a head has started to move."""


def _ramp(value: Float64Array | float, low: float, high: float) -> Float64Array:
    """0 below low, 1 above high, smooth between."""
    t = np.clip((np.asarray(value, np.float64) - low) / (high - low), 0.0, 1.0)
    ramp: Float64Array = t * t * (3.0 - 2.0 * t)
    return ramp


def _filters() -> tuple[OneEuro, OneEuro]:
    cutoff, beta, calm = (np.full((FACE_POINTS, 3), value) for value in (SKIN_CUTOFF, SKIN_BETA, SKIN_CALM))
    lids, irises = np.r_[UPPER_LIDS.ravel(), LOWER_LIDS.ravel()], np.arange(468, FACE_POINTS)
    for points, at_rest, gain, noise in ((lids, LID_CUTOFF, LID_BETA, LID_CALM), (irises, IRIS_CUTOFF, IRIS_BETA, IRIS_CALM)):
        cutoff[points], beta[points], calm[points] = at_rest, gain, noise
    cutoff[:, 2] *= DEPTH_SHARE
    beta[:, 2] *= DEPTH_SHARE
    return OneEuro(HEAD_CUTOFF, HEAD_BETA, SPEED_CUTOFF, HEAD_CALM), OneEuro(cutoff, beta, SKIN_SPEED_CUTOFF, calm)


def expressive(shape: Float64Array) -> Float64Array:
    """[478, 3] how much of each point's displacement is expression (1) and how much is the tracker's wobble on the skull (0)."""
    features = shape[np.r_[BROWS.ravel(), EYE_CORNERS.ravel(), UPPER_LIDS.ravel(), LOWER_LIDS.ravel(), IRISES, LIPS], :2]
    apart = np.linalg.norm(shape[:, None, :2] - features, axis=2).min(1)
    near = np.exp(-0.5 * (apart / FEATURE_REACH) ** 2)
    nose = np.linalg.norm(shape[:, None, :2] - shape[NOSE, :2], axis=2).min(1)
    held = 1.0 - np.exp(-0.5 * (nose / NOSE_REACH) ** 2)
    inside = 1.0 - (1.0 - OUTLINE_SHARE) * _ramp(np.abs(shape[:, 0]), *SIDES)
    weight: Float64Array = (np.maximum(near, _ramp(shape[:, 1], *JAW_TOP)) * inside * held)[:, None] * (1.0, 1.0, DEPTH_BELIEVED)
    return weight


@dataclass(slots=True)
class Expression:
    """One person's calibration and filters: metric landmarks in, Motion out. Make a new one for another person."""

    neutral: Neutral = field(default_factory=Neutral)
    levels: Levels = field(default_factory=Levels)
    _smooth: tuple[OneEuro, OneEuro] = field(default_factory=_filters)
    _mask: Float64Array | None = None
    _gaze: Float64Array = field(default_factory=lambda: np.zeros(2))
    _head: Float64Array | None = None  # head vector of the last frame
    _new_geometry: bool = False

    @property
    def neutral_state(self) -> NeutralState:
        """ "set" once enough good frames were seen, or the person chose one."""
        return self.neutral.state

    def set_neutral(self) -> None:
        """Take the next few frames as the neutral."""
        self.neutral.choose()

    def new_geometry(self) -> None:
        """The camera's picture has changed its size: place and size of the head go on from where they were."""
        self._new_geometry = True

    def __call__(self, points: Float64Array, time: float, *, mouth_seen: float = 1.0) -> tuple[Motion, Float64Array]:
        """Metric landmarks [478, 3] at `time` s -> Motion (confidence 1) and the head's similarity [4, 4] (face widths -> picture heights).

        `mouth_seen`: 0..1; as far as the mouth is hidden it rests, and nothing is learnt from it.
        """
        pose = fit_pose(MEAN_RIGID, points[RIGID])
        raw_shape = pose.undo(points)
        raw = measure(raw_shape)
        head = head_vector(pose)
        if self._new_geometry and self._head is not None:
            self.neutral.rebase(self._head, head)
        self._new_geometry, self._head = False, head
        self.levels.see(raw, time=time, mouth_seen=mouth_seen)
        rest = self.neutral.see(head, raw_shape, raw, time=time, opening=self.levels.opening, mouth_seen=mouth_seen)
        if self._mask is None:
            self._mask = expressive(rest.shape)
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = pose.scale * pose.turn, pose.shift
        smooth_head, smooth_shape = self._smooth
        moved = smooth_head(relative_head(head, rest), time)
        shape = smooth_shape(raw_shape, time)
        return self._motion(moved, shape, rest, mouth_seen), matrix

    def _motion(self, head: Float64Array, shape: Float64Array, rest: Rest, mouth_seen: float) -> Motion:
        now, then = measure(shape), rest.measures
        assert self._mask is not None
        believed = self._mask * (1.0 - (1.0 - mouth_seen) * _ramp(rest.shape[:, 1:2], *JAW_TOP))
        eyes = paired(apertures(now, self.levels), yaw=float(head[0]))
        self._gaze = gaze(now, then, eyes=eyes, before=self._gaze)
        return Motion(
            head=head.astype(np.float32),
            eyes=eyes.astype(np.float32),
            gaze=self._gaze.astype(np.float32),
            brows=(now.brows - then.brows).astype(np.float32),
            mouth=(mouth_seen * mouth(now, then, shut=self.levels.shut)).astype(np.float32),
            expression=((shape - rest.shape) * believed).astype(np.float32),
            confidence=np.array([1.0, 1.0, 0.0], np.float32),
        )


def relative_head(head: Float64Array, rest: Rest) -> Float64Array:
    """Head vector [6] against the neutral's -> [6] as in `Motion.head`.

    Angles are of the turn from the neutral to the present in the camera's axes; as far as the neutral itself looks well past
    the camera (which then stands aside), in the neutral head's axes, so that a nod stays a nod.
    """
    yaw, pitch = (float(np.sign(a) * max(0.0, abs(a) - free)) for a, free in zip(rest.head[:2], (ASIDE_YAW, ASIDE_PITCH), strict=True))
    aside = rotation(yaw, pitch, 0.0)
    turn = aside.T @ rotation(*(float(a) for a in head[:3])) @ rest.turn.T @ aside
    shift = (head[3:5] - rest.head[3:5]) / np.exp(rest.head[5])
    return np.array([*angles(turn), *shift, head[5] - rest.head[5]])


def apertures(now: Measures, levels: Levels) -> Float64Array:
    """[2] 0 closed, 1 the usual opening, up to OPEN_EYE."""
    opened = (now.lids - levels.closed) / (levels.opening - levels.closed)
    opened = np.where(opened < 1.0, np.maximum(0.0, opened - SHUT_EYE) / (1.0 - SHUT_EYE), opened)
    eyes: Float64Array = np.minimum(opened, OPEN_EYE)
    return eyes


def paired(eyes: Float64Array, *, yaw: float) -> Float64Array:
    """[2] apertures that differ only where somebody winks: lids move together, and the more a head turns, the worse its far eye is read."""
    apart = eyes[0] - eyes[1]
    free = APART + APART_YAW * abs(yaw)
    believed = LIKELY + (1.0 - LIKELY) * float(_ramp(abs(apart), free, free + WINK))
    together: Float64Array = eyes.mean() + 0.5 * believed * apart * np.array([1.0, -1.0])
    return together


def gaze(now: Measures, then: Measures, *, eyes: Float64Array, before: Float64Array) -> Float64Array:
    """[2] shift of the irises in eye widths, of the eyes that are open; while both are closed it stays where it was."""
    trust = _ramp(eyes, *GAZE_FADE)
    if trust.sum() <= 0.0:
        return before
    seen = (trust[:, None] * (now.gaze - then.gaze)).sum(0) / trust.sum()
    shifted: Float64Array = before + trust.max() * (seen - before)
    return shifted


def mouth(now: Measures, then: Measures, *, shut: float) -> Float64Array:
    """[4] gap, width, round, smile as in `Motion.mouth`. Below `shut` the gap is exactly 0."""
    gap = max(0.0, now.gap - shut) * WIDE_GAP / (WIDE_GAP - shut)
    wider = now.width / then.width - 1.0
    lift = now.corners - then.corners + JAW_PULL * (gap - max(0.0, then.gap - shut))
    return np.array([gap, wider, np.clip(-wider / FULL_ROUND, 0.0, 1.0), np.clip(lift / (BROAD_SMILE if lift > 0.0 else DEEP_FROWN), -1.0, 1.0)])
