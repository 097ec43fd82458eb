"""Pose, mouth and eyes measured from landmarks, on their own terms: nothing here is shared with the drivers being judged.

A face's shape is the mean of its own frames; pose is the rotation of a rigid fit of points that neither jaw, lips, brows nor
lids move, relative to the clip's mean pose and in the camera's axes, so that neither the portrait's own pose nor a choice of
axes in the head matters; apertures are distances after that pose and scale are taken away. "Left" and "right" are the picture's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from engine.pose import angles, umeyama
from engine.types import FACE_POINTS, UInt8Array

if TYPE_CHECKING:
    from engine.drivers.face import FaceTracker

Float64Array = npt.NDArray[np.float64]

CHANNELS = ("yaw", "pitch", "roll", "jaw", "eye_left", "eye_right")
LEAST_MOTION: Mapping[str, float] = {"yaw": 2.0, "pitch": 2.0, "roll": 2.0, "jaw": 0.02, "eye_left": 0.04, "eye_right": 0.04}
"""Standard deviation of the driver below which a channel says nothing: degrees, face heights, eye widths."""
RIGID = (10, 151, 9, 8, 168, 6, 197, 195, 5, 4, 67, 297, 109, 338, 54, 284, 21, 251, 162, 389, 127, 356, 234, 454, 33, 133, 362, 263)
"""Forehead, bridge and tip of the nose, temples, corners of the eyes: what the skull carries."""
FOREHEAD, CHIN, NOSE_BASE = 10, 152, 2
EYE_OUTER_LEFT, EYE_OUTER_RIGHT = 33, 263
EYE_CORNERS = {"eye_left": (33, 133), "eye_right": (362, 263)}
LIDS = {"eye_left": ((160, 144), (159, 145), (158, 153)), "eye_right": ((385, 380), (386, 374), (387, 373))}
INNER_LIPS = ((82, 87), (13, 14), (312, 317))
OVAL = (
    *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377),
    *(152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
)
MAX_LAG = 6
"""Frames of shift that are tried either way."""
ALIGN_ROUNDS = 3
"""Rounds of aligning all frames to their mean; it stands still after two."""


@dataclass(frozen=True, slots=True)
class Series:
    """What a face did in a clip, one value a frame, NaN where it was not seen."""

    yaw: Float64Array  # degrees from the clip's mean pose
    pitch: Float64Array
    roll: Float64Array
    jaw: Float64Array  # opening of the inner lips in face heights
    eye_left: Float64Array  # aperture in eye widths
    eye_right: Float64Array
    lost: int  # frames without a face

    def channel(self, name: str) -> Float64Array:
        """One of CHANNELS."""
        values: Float64Array = getattr(self, name)
        return values


def track(pictures: Iterable[UInt8Array], tracker: FaceTracker) -> Float64Array:
    """[N, 478, 3] in pixels (z on the scale of x), NaN where no face is found; of several faces the one nearest to the last."""
    rows: list[Float64Array] = []
    last: Float64Array | None = None
    for rgb in pictures:
        height, width = rgb.shape[:2]
        faces = [np.asarray(face, np.float64) * (width, height, width) for face in tracker.detect(rgb)]
        if not faces:
            rows.append(np.full((FACE_POINTS, 3), np.nan))
            continue
        anchor = last
        last = max(faces, key=_size) if anchor is None else min(faces, key=lambda face: float(np.linalg.norm(face.mean(0) - anchor.mean(0))))
        rows.append(last)
    return np.stack(rows)


def _size(face: Float64Array) -> float:
    return float(np.ptp(face[:, 0]) * np.ptp(face[:, 1]))


def upright(shape: Float64Array) -> Float64Array:
    """A shape [478, 3] turned so that the eyes lie on x and the plane of forehead and nose base faces the camera, centred."""
    x = shape[EYE_OUTER_RIGHT] - shape[EYE_OUTER_LEFT]
    x /= np.linalg.norm(x)
    down = shape[NOSE_BASE] - shape[FOREHEAD]
    y = down - x * (down @ x)
    y /= np.linalg.norm(y)
    axes = np.stack([x, y, np.cross(x, y)])
    centred: Float64Array = (shape - shape[list(RIGID)].mean(0)) @ axes.T
    return centred


def mean_rotation(turns: Float64Array) -> Float64Array:
    """[3, 3] chordal mean of rotations [N, 3, 3] (Hartley et al. 2013, "Rotation averaging", section 5.3)."""
    u, _, vt = np.linalg.svd(turns.mean(0))
    mean: Float64Array = (u * (1.0, 1.0, np.sign(np.linalg.det(u @ vt)))) @ vt
    return mean


def measure(points: Float64Array) -> Series:
    """Landmarks [N, 478, 3] in pixels -> Series. Raises ValueError where no frame has a face."""
    seen = np.flatnonzero(np.isfinite(points).all((1, 2)))
    if not len(seen):
        raise ValueError("no frame has a face")
    rigid = list(RIGID)
    shape = upright(points[seen[0]])
    aligned: Float64Array = np.full_like(points, np.nan)
    turns = np.empty((len(seen), 3, 3))
    for _ in range(ALIGN_ROUNDS):
        for k, i in enumerate(seen):
            scale, turns[k], shift = umeyama(shape[rigid], points[i, rigid])
            aligned[i] = (points[i] - shift) @ turns[k] / scale
        shape = upright(np.median(aligned[seen], 0))
    pose = np.full((len(points), 3), np.nan)
    middle = mean_rotation(turns)
    for k, i in enumerate(seen):
        pose[i] = angles(turns[k] @ middle.T)
    height = float(np.linalg.norm(shape[CHIN] - shape[FOREHEAD]))
    eyes = {name: _gaps(aligned, LIDS[name]) / float(np.linalg.norm(shape[a] - shape[b])) for name, (a, b) in EYE_CORNERS.items()}
    jaw = _gaps(aligned, INNER_LIPS) / height
    return Series(pose[:, 0], pose[:, 1], pose[:, 2], jaw, eyes["eye_left"], eyes["eye_right"], len(points) - len(seen))


def opening(face: npt.NDArray[np.floating[Any]]) -> float:
    """Opening of the inner lips in face heights of one face [478, 3] in pixels, read in the picture: quick, for long runs."""
    height = float(np.linalg.norm(face[CHIN, :2] - face[FOREHEAD, :2]))
    gaps = [float(np.linalg.norm(face[lower, :2] - face[upper, :2])) for upper, lower in INNER_LIPS]
    return float(np.mean(gaps)) / max(height, 1e-6)


def _gaps(aligned: Float64Array, pairs: Sequence[tuple[int, int]]) -> Float64Array:
    """Mean distance [N] between the points of each pair, in the face's own plane (z is the tracker's weakest reading)."""
    upper, lower = ([pair[k] for pair in pairs] for k in (0, 1))
    gaps: Float64Array = np.linalg.norm((aligned[:, lower] - aligned[:, upper])[..., :2], axis=-1).mean(1)
    return gaps


def correlation(driver: Float64Array, output: Float64Array, lag: int = 0) -> float:
    """Pearson's r of driver[t] and output[t + lag] over frames where both are seen; NaN where either stands still."""
    a = driver[: len(driver) - lag] if lag >= 0 else driver[-lag:]
    b = output[lag:] if lag >= 0 else output[: len(output) + lag]
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 3:
        return float("nan")
    a, b = a[both] - a[both].mean(), b[both] - b[both].mean()
    size = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum() / size) if size > 1e-12 else float("nan")


def best_lag(driver: Sequence[Float64Array], output: Sequence[Float64Array], *, max_lag: int = MAX_LAG) -> int | None:
    """The lag (frames, > 0: the output is late) with the highest mean correlation over the channels; None where nothing moves."""
    scores: dict[int, float] = {}
    for lag in range(-max_lag, max_lag + 1):
        values = [correlation(a, b, lag) for a, b in zip(driver, output, strict=True)]
        finite = [value for value in values if np.isfinite(value)]
        if finite:
            scores[lag] = float(np.mean(finite))
    return max(scores, key=lambda lag: (scores[lag], -abs(lag))) if scores else None


@dataclass(frozen=True, slots=True)
class Following:
    """How an output follows its driver."""

    correlation: dict[str, float | None]  # at the common lag; None where the driver hardly moves
    lag_frames: int | None
    lags: dict[str, int | None]  # each channel's own best lag
    gain: dict[str, float | None]  # slope of output on driver at the common lag
    moved: dict[str, float]  # standard deviation of the driver


def follow(driver: Series, output: Series) -> Following:
    """Compare two clips of as many frames, channel by channel."""
    moved = {name: float(np.nanstd(driver.channel(name))) for name in CHANNELS}
    active = [name for name in CHANNELS if moved[name] >= LEAST_MOTION[name]]
    lag = best_lag([driver.channel(n) for n in active], [output.channel(n) for n in active])
    r = {n: correlation(driver.channel(n), output.channel(n), lag or 0) if n in active else None for n in CHANNELS}
    lags = {n: best_lag([driver.channel(n)], [output.channel(n)]) if n in active else None for n in CHANNELS}
    gain = {n: None if (c := r[n]) is None else c * float(np.nanstd(output.channel(n))) / moved[n] for n in CHANNELS}
    return Following(r, lag, lags, gain, moved)


def head_mask(face: Float64Array, shape: tuple[int, ...], *, grow: float = 1.0) -> npt.NDArray[np.bool_]:
    """[H, W] of a picture of `shape`, inside the face oval of landmarks [478, 3] in pixels, scaled by `grow` about its middle."""
    import cv2

    oval = face[list(OVAL), :2]
    oval = oval.mean(0) + (oval - oval.mean(0)) * grow
    mask = np.zeros(shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.round(oval).astype(np.int32)], 1)
    return mask.astype(bool)


def psnr(a: UInt8Array, b: UInt8Array, mask: npt.NDArray[np.bool_]) -> float:
    """Peak signal-to-noise ratio in dB of two pictures [H, W, 3] inside a mask; 99 where they are equal."""
    error = float(((a[mask].astype(np.float64) - b[mask]) ** 2).mean())
    return 99.0 if error < 1e-9 else float(10 * np.log10(255.0**2 / error))
