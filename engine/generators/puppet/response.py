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
PAIRS = ((0, 1, 14.0, 10.0), (0, 2, 14.0, 12.0), (1, 2, 10.0, 12.0))
"""Angles that are also tried two at a time, of both signs: what a tracker reads of a nod depends on where the head looks."""
COMPANY = (("brows", (-0.05, 0.06, 0.12)), ("smile", (-0.7, 0.7)))
"""What is not corrected itself but moves the pose that is read, and the values tried."""
COMPANY_UNIT = np.array([0.06, 0.5], np.float32)
"""Of each, at which corrections count in full."""
NO_COUPLING = np.zeros((len(PAIRS) + len(COMPANY), 3), np.float32)
NO_RESPONSE = np.zeros((CHANNELS, STEPS, CHANNELS), np.float32)


def command(wanted: FloatArray, company: tuple[float, float] = (0.0, 0.0)) -> Motion:
    """The motion of all channels [6] and of brows and smile."""
    still = still_motion()
    return replace(
        still,
        head=np.array([*wanted[:3], 0, 0, 0], np.float32),
        mouth=np.array([wanted[3], 0, 0, company[1]], np.float32),
        eyes=(1.0 + wanted[4:]).astype(np.float32),
        brows=np.full(2, company[0], np.float32),
    )


def alone(channel: int, value: float) -> FloatArray:
    """[6] one channel moved, the others at rest."""
    wanted = np.zeros(CHANNELS, np.float32)
    wanted[channel] = value
    return wanted


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


class Lost(Exception):
    """The tracker does not see the portrait."""


def listen(render: Callable[[Motion], UInt8Array]) -> tuple[FloatArray, FloatArray]:
    """Move the portrait and track it.

    -> (response [C, K, C]: sweep, step, what every channel was read as less its reading at rest, lids in units of the way from open
    to closed; coupling [P, 3]: what PAIRS of angles, as a product in 100 square degrees, and COMPANY add to the angles that are read).
    All zero (no correction) where the tracker loses the portrait.
    """
    tracker = FaceTracker()

    def seen(motion: Motion) -> Reading:
        reading = read(tracker, render(motion))
        if reading is None:
            raise Lost
        return reading

    try:
        rest = seen(still_motion())
        found = np.zeros_like(NO_RESPONSE)
        for channel, values in enumerate(SWEEPS):
            for step, value in enumerate(values):
                if value != 0.0:
                    found[channel, step] = seen(command(alone(channel, value))).less(rest)
        coupling = NO_COUPLING.copy()
        for row, (first, second, one, two) in enumerate(PAIRS):
            poses = [alone(first, a * one) + alone(second, b * two) for a in (-1, 1) for b in (-1, 1)]
            excess = [seen(command(pose)).less(rest)[:3] - _read_as(found, pose)[:3] for pose in poses]
            coupling[row] = _slope([float(pose[first] * pose[second]) / 100.0 for pose in poses], excess)
        for row, (name, tried) in enumerate(COMPANY, start=len(PAIRS)):
            pairs = [(value, 0.0) if name == "brows" else (0.0, value) for value in tried]
            coupling[row] = _slope(list(tried), [seen(command(np.zeros(CHANNELS, np.float32), pair)).less(rest)[:3] for pair in pairs])
    except Lost:
        return NO_RESPONSE, NO_COUPLING
    finally:
        tracker.close()
    return _settled(found), coupling


def _slope(steps: list[float], answers: list[FloatArray]) -> FloatArray:
    """[3] least squares slope of the answers through the origin."""
    at = np.array(steps, np.float32)
    slope: FloatArray = at @ np.stack(answers) / (at @ at)
    return slope


def _read_as(response: FloatArray, made: FloatArray) -> FloatArray:
    """[C] what a motion [C] is read as, by the sum of the sweeps."""
    total = np.zeros(CHANNELS, np.float32)
    for channel in range(CHANNELS):
        total += _interpolate(response[channel], SWEEPS[channel], float(made[channel]))
    return total


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


def correct(response: FloatArray, coupling: FloatArray, wanted: FloatArray, company: FloatArray) -> FloatArray:
    """[6] motion (yaw, pitch, roll, gap, apertures less 1) that a tracker will read as `wanted` [6] beside brows and smile [2]."""
    if not response.any():
        return wanted
    made = wanted.astype(np.float32).copy()
    beside = company @ coupling[len(PAIRS) :]
    for _ in range(ROUNDS):
        read_as = _read_as(response, made)
        products = np.array([made[first] * made[second] for first, second, _, _ in PAIRS], np.float32) / 100.0
        read_as[:3] += beside + products @ coupling[: len(PAIRS)]
        made = wanted + np.clip(made + TRUST * (wanted - read_as) - wanted, -REACH, REACH)
    awake = float(np.clip(max(np.abs(wanted / UNIT).max(), np.abs(company / COMPANY_UNIT).max()), 0.0, 1.0))
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
