"""Tracked frames of one person -> the Motion of every frame against a chosen neutral, without the lag of a live filter.

The same measures, ranges and filters as the live drivers'; but a recording is known to its end, so every filter runs forwards and
backwards and the mean is taken: what one pass lags behind, the other runs ahead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.drivers import body as shoulders
from engine.drivers import express
from engine.drivers.calibrate import (
    CLOSED_MARGIN,
    CLOSED_QUANTILE,
    CLOSED_RANGE,
    CLOSED_SHARE,
    OPEN_QUANTILE,
    SHUT_MARGIN,
    SHUT_QUANTILE,
    SHUT_RANGE,
    Levels,
    Rest,
    head_vector,
)
from engine.drivers.measure import LOWER_LIDS, UPPER_LIDS, Measures, measure
from engine.drivers.rigid import MEAN_RIGID, RIGID, fit_pose
from engine.drivers.smooth import OneEuro
from engine.pose import Float64Array
from engine.types import FACE_POINTS, FloatArray, Motion

COLUMNS = ("head", "eyes", "gaze", "brows", "mouth")
"""Motion's fields in a row of `Clip.motion`: 6 + 2 + 2 + 2 + 4 numbers."""
SURE, SURE_SHARE = 0.5, 0.7
"""Confidence from which shoulders count as seen, and the share of the frames in which they must be, or they are taken for still."""
IRISES = np.arange(468, FACE_POINTS)


@dataclass(frozen=True, slots=True)
class Heads:
    """Where the head is and what the face looks like with that taken away, in every frame; NaN where no face was seen."""

    vector: Float64Array  # [N, 6] as in `calibrate.Rest.head`
    shape: Float64Array  # [N, 478, 3] head frame, face widths; smoothed
    lids: Float64Array  # [N, 2] as tracked
    gap: Float64Array  # [N] as tracked

    @property
    def seen(self) -> npt.NDArray[np.bool_]:
        """[N] whether a face was seen."""
        seen: npt.NDArray[np.bool_] = np.isfinite(self.vector[:, 0])
        return seen


def heads(points: Float64Array, times: FloatArray) -> Heads:
    """Metric landmarks [N, 478, 3] (`rigid.metric`; of the crop, so that clips agree) at times [N] s, NaN where there is no face."""
    count = len(points)
    vector, shape = np.full((count, 6), np.nan), np.full((count, FACE_POINTS, 3), np.nan)
    lids, gap = np.full((count, 2), np.nan), np.full(count, np.nan)
    for k in np.flatnonzero(np.isfinite(points[:, 0, 0])):
        pose = fit_pose(MEAN_RIGID, points[k, RIGID])
        vector[k], shape[k] = head_vector(pose), pose.undo(points[k])
        raw = measure(shape[k])
        lids[k], gap[k] = raw.lids, raw.gap
    return Heads(vector, both_ways(_skin_filter, shape, times), lids, gap)


def both_ways(make: Callable[[], OneEuro], values: Float64Array, times: FloatArray) -> Float64Array:
    """[N, ...] smoothed without lag; `make` makes a fresh filter. NaN rows stay and the filters start afresh behind long gaps."""
    seen = np.flatnonzero(np.isfinite(values.reshape(len(values), -1)).all(1))
    ahead, back = make(), make()
    smooth = np.full_like(values, np.nan)
    for k in seen:
        smooth[k] = ahead(values[k], float(times[k]))
    for k in seen[::-1]:
        smooth[k] = (smooth[k] + back(values[k], -float(times[k]))) / 2
    return smooth


def steady(head: Float64Array, times: FloatArray) -> Float64Array:
    """`Motion.head` [N, 6], smoothed."""
    return both_ways(lambda: OneEuro(express.HEAD_CUTOFF, express.HEAD_BETA, express.SPEED_CUTOFF, express.HEAD_CALM), head, times)


def _skin_filter() -> OneEuro:
    e = express
    cutoff, beta, calm = (np.full((FACE_POINTS, 3), value) for value in (e.SKIN_CUTOFF, e.SKIN_BETA, e.SKIN_CALM))
    lids = np.r_[UPPER_LIDS.ravel(), LOWER_LIDS.ravel()]
    cutoff[lids], beta[lids], calm[lids] = e.LID_CUTOFF, e.LID_BETA, e.LID_CALM
    cutoff[IRISES], beta[IRISES], calm[IRISES] = e.IRIS_CUTOFF, e.IRIS_BETA, e.IRIS_CALM
    cutoff[:, 2] *= e.DEPTH_SHARE
    beta[:, 2] *= e.DEPTH_SHARE
    return OneEuro(cutoff, beta, e.SKIN_SPEED_CUTOFF, calm)


# -- one person ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Calibration:
    """One person's neutral, and how far their lids and lips go."""

    rest: Rest
    levels: Levels
    offset: Float64Array  # [6] what the smoothed head says in the neutral frame itself, where it should say 0
    body: Float64Array | None  # [6] of `drivers.body.measure` at the neutral


def calibrate(clips: list[Heads], times: list[FloatArray], reference: tuple[int, int], body: Float64Array | None) -> Calibration:
    """`reference`: (clip, frame) of the neutral. The eyes' aperture 1 is the neutral's own, since the portrait's is."""
    clip, frame = reference
    shape = clips[clip].shape[frame]
    measures = measure(shape)
    lids = np.concatenate([c.lids[c.seen] for c in clips])
    gap = np.concatenate([c.gap[c.seen] for c in clips])
    usual = np.quantile(lids, OPEN_QUANTILE, axis=0)
    least = np.quantile(lids, CLOSED_QUANTILE, axis=0)
    low, high = CLOSED_RANGE
    closed = np.where(least < high * usual, np.clip(least * CLOSED_MARGIN, low * usual, high * usual), CLOSED_SHARE * usual)
    shut = float(np.clip(np.quantile(gap, SHUT_QUANTILE) + SHUT_MARGIN, *SHUT_RANGE))
    rest = Rest(clips[clip].vector[frame], shape, measures)
    offset = _relative(clips[clip], times[clip], rest)[frame]
    return Calibration(rest, Levels(measures.lids, closed, shut), offset, body)


def _relative(seen: Heads, times: FloatArray, rest: Rest) -> Float64Array:
    """[N, 6] `Motion.head`, smoothed."""
    relative = np.full_like(seen.vector, np.nan)
    for k in np.flatnonzero(seen.seen):
        relative[k] = express.relative_head(seen.vector[k], rest)
    return steady(relative, times)


def motions(seen: Heads, times: FloatArray, mouth_seen: FloatArray, body: FloatArray, calibration: Calibration) -> list[Motion | None]:
    """The Motion of every frame, None where there is no face. `body` [N, 33, 4]: pose landmarks, x, y, z on one scale."""
    rest, levels = calibration.rest, calibration.levels
    relative = _relative(seen, times, rest) - calibration.offset
    mask = express.expressive(rest.shape)
    torso, sure = _torso(body, times, calibration.body)
    made: list[Motion | None] = []
    gaze = np.zeros(2)
    for k in range(len(times)):
        if not seen.seen[k]:
            made.append(None)
            continue
        now: Measures = measure(seen.shape[k])
        eyes = express.paired(express.apertures(now, levels), yaw=float(relative[k, 0]))
        gaze = express.gaze(now, rest.measures, eyes=eyes, before=gaze)
        made.append(
            Motion(
                head=relative[k].astype(np.float32),
                eyes=eyes.astype(np.float32),
                gaze=gaze.astype(np.float32),
                brows=(now.brows - rest.measures.brows).astype(np.float32),
                mouth=express.mouth(now, rest.measures, shut=levels.shut).astype(np.float32),
                expression=((seen.shape[k] - rest.shape) * mask).astype(np.float32),
                body=torso[k],
                confidence=np.array([1.0, mouth_seen[k], sure[k]], np.float32),
            )
        )
    return made


def _torso(body: FloatArray, times: FloatArray, neutral: Float64Array | None) -> tuple[FloatArray, FloatArray]:
    """(`Motion.body` [N, 6], confidence [N])."""
    count = len(times)
    moved, sure = np.zeros((count, 6), np.float32), np.zeros(count, np.float32)
    if neutral is None:
        return moved, sure
    raw = np.full((count, 5), np.nan)
    for k in np.flatnonzero(np.isfinite(body[:, 0, 0])):
        now = shoulders.measure(body[k], aspect=1.0)
        sure[k] = shoulders.confidence_of(body[k])
        lean, twist = now[:2] - neutral[:2]
        x, y = (now[2:4] - neutral[2:4]) / neutral[5]
        shrug = shoulders.shrugged(now, neutral)
        most = shoulders.TWIST_MOST
        raw[k] = lean, most * np.tanh(shoulders.TWIST_TRUST * twist / most), x, y + shrug, shrug
    if np.mean(sure >= SURE) < SURE_SHARE:  # shoulders that come and go would jerk
        return moved, np.zeros(count, np.float32)
    smooth = both_ways(lambda: OneEuro(shoulders.CUTOFF, shoulders.BETA), raw, times)
    known = np.isfinite(smooth[:, 0])
    for to, column in enumerate((0, 1, 2, 3, 4, 4)):
        moved[:, to] = np.interp(np.arange(count), np.flatnonzero(known), smooth[known, column])
    return moved, sure


def table(made: list[Motion | None]) -> FloatArray:
    """[N, 16] COLUMNS of every motion, NaN where there is none."""
    width = 16
    rows = [np.full(width, np.nan) if m is None else np.concatenate([getattr(m, name) for name in COLUMNS]) for m in made]
    return np.array(rows, np.float32).reshape(len(made), width)


__all__ = ["COLUMNS", "Calibration", "Heads", "both_ways", "calibrate", "heads", "motions", "steady", "table"]
