"""What a tracker reads back from this portrait for a given motion, measured at set-up, and the motion that makes it read what is wanted.

Painted lids, a stylised jaw, the tracker's own habits: what is asked for and what is seen differ from portrait to portrait. A few
dozen renders of the portrait are tracked, one channel swept at a time; a motion is then corrected until the sum of the sweeps' answers
is what was asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from engine.drivers.face import FaceTracker
from engine.drivers.measure import measure
from engine.drivers.rigid import MEAN_RIGID, RIGID, fit_pose, metric
from engine.pose import Float64Array, angles
from engine.types import FloatArray, Motion, UInt8Array, still_motion

SWEEPS = (
    (-22.0, -14.0, -7.0, 0.0, 7.0, 14.0, 22.0),  # yaw, degrees
    (-16.0, -10.0, -5.0, 0.0, 5.0, 10.0, 16.0),  # pitch
    (-20.0, -12.0, -6.0, 0.0, 6.0, 12.0, 20.0),  # roll
    (0.0, 0.06, 0.12, 0.20, 0.32, 0.46, 0.62),  # lip gap, ocular distances
    (-1.0, -0.8, -0.55, -0.3, -0.15, 0.0, 0.3),  # aperture of the left eye less 1
    (-1.0, -0.8, -0.55, -0.3, -0.15, 0.0, 0.3),  # of the right eye
)
CHANNELS, STEPS = len(SWEEPS), len(SWEEPS[0])
TRUST = 0.8
"""Share of a correction that is applied in each of ROUNDS."""
ROUNDS = 3
REACH = np.array([6.0, 6.0, 5.0, 0.16, 0.35, 0.35], np.float32)
"""Largest correction of each channel."""
UNIT = np.array([8.0, 8.0, 8.0, 0.10, 0.3, 0.3], np.float32)
"""Motion of each channel at which corrections count in full; they vanish at rest."""
SHUT = 0.12
"""Apertures below this are closed whatever the tracker reads."""
LOOKS = 2
LID_TRUST = 0.75
"""How far the lids' sweeps are believed against a tracker that reads them as they are."""
LEAST_LID = 0.02
"""A lid whose closing a tracker reads as less than this, eye widths, says nothing about how lids are read."""
NO_RESPONSE = np.zeros((CHANNELS, STEPS, CHANNELS), np.float32)


def command(channel: int, value: float) -> Motion:
    """The motion of one channel alone."""
    still = still_motion()
    if channel < 3:
        head = still.head.copy()
        head[channel] = value
        return replace(still, head=head)
    if channel == 3:
        return replace(still, mouth=np.array([value, 0, 0, 0], np.float32))
    eyes = still.eyes.copy()
    eyes[channel - 4] = 1.0 + value
    return replace(still, eyes=eyes)


@dataclass(frozen=True, slots=True)
class Reading:
    """One picture as a tracker sees it."""

    turn: Float64Array  # [3, 3]
    shape: FloatArray  # [3] lip gap and the lids' opening

    def less(self, rest: Reading) -> FloatArray:
        """[6] yaw, pitch, roll in the camera's axes, lip gap, lids; against a reading at rest."""
        return np.array([*angles(self.turn @ rest.turn.T), *(self.shape - rest.shape)], np.float32)


def read(tracker: FaceTracker, rgb: UInt8Array) -> Reading | None:
    """A picture through the drivers' eyes; None where the tracker sees no face."""
    # More than once: the tracker looks where the face was before, and a sweep moves it in jumps.
    for _ in range(LOOKS):
        faces = tracker.detect(rgb)
        if not faces:
            return None
    points = metric(faces[0], rgb.shape[1] / rgb.shape[0])
    pose = fit_pose(MEAN_RIGID, points[RIGID])
    shape = measure(pose.undo(points))
    return Reading(pose.turn, np.array([shape.gap, *shape.lids], np.float32))


def listen(render: Callable[[Motion], UInt8Array]) -> FloatArray:
    """Sweep every channel -> [C, K, C]: sweep, step, what every channel was read as less its reading at rest.

    Lids are in units of the way from open to closed. All zero (no correction) where the tracker loses the portrait.
    """
    tracker = FaceTracker()
    try:
        rest = read(tracker, render(still_motion()))
        if rest is None:
            return NO_RESPONSE
        found = np.zeros_like(NO_RESPONSE)
        for channel, values in enumerate(SWEEPS):
            for step, value in enumerate(values):
                if value == 0.0:
                    continue
                seen = read(tracker, render(command(channel, value)))
                if seen is None:
                    return NO_RESPONSE
                found[channel, step] = seen.less(rest)
    finally:
        tracker.close()
    return _settled(found)


def _settled(found: FloatArray) -> FloatArray:
    """What of the raw sweeps is worth believing about the lids."""
    found[:4, :, 4:] = 0.0  # how a pose makes lids read is mostly noise, and a lid that answers a nod looks wrong
    found[4:, -1] = 0.0
    ways = [-float(found[side, 0, side]) for side in (4, 5)]
    curves = [found[side, :, side] / way for side, way in zip((4, 5), ways, strict=True) if way > LEAST_LID]
    for side in (4, 5):
        found[side, :, 9 - side] = 0.0
        straight = np.array(SWEEPS[side], np.float32)
        if curves:
            # Both eyes are alike, more closed never reads as more open, and one sweep is not believed wholly.
            curve = np.minimum.accumulate(np.mean(curves, 0)[::-1])[::-1]
            straight = np.where(straight <= 0, straight + LID_TRUST * (np.clip(curve, -1.0, 0.0) - straight), straight)
        found[side, :, side] = straight
    return found


def correct(response: FloatArray, wanted: FloatArray) -> FloatArray:
    """[6] motion (yaw, pitch, roll, gap, apertures less 1) that a tracker will read as `wanted` [6]."""
    if not response.any():
        return wanted
    made = wanted.astype(np.float32).copy()
    for _ in range(ROUNDS):
        read_as = np.zeros(CHANNELS, np.float32)
        for channel in range(CHANNELS):
            read_as += _interpolate(response[channel], SWEEPS[channel], float(made[channel]))
        made = wanted + np.clip(made + TRUST * (wanted - read_as) - wanted, -REACH, REACH)
    awake = float(np.clip(np.abs(wanted / UNIT).max(), 0.0, 1.0))
    awake = awake * awake * (3.0 - 2.0 * awake)
    made = wanted + awake * (made - wanted)
    for side in (4, 5):
        opening = 1.0 + float(wanted[side])
        made[side] = wanted[side] + (made[side] - wanted[side]) * np.clip(opening / SHUT - 1.0, 0.0, 1.0)
    made[3] = max(0.0, made[3]) * min(1.0, float(wanted[3]) / 0.02)
    return made


def _interpolate(answers: FloatArray, values: tuple[float, ...], at: float) -> FloatArray:
    """[C] what is read at a command between the sweep's steps; beyond its ends it goes on straight."""
    k = 0
    while k < len(values) - 2 and at > values[k + 1]:
        k += 1
    share = (at - values[k]) / (values[k + 1] - values[k])
    between: FloatArray = answers[k] + share * (answers[k + 1] - answers[k])
    return between
