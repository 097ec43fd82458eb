"""A persona's idle loop: a short video of its person, played forth and back so that nobody sees where it turns.

It turns where the head is stillest near either end, and comes to rest there like a swing: the speed falls evenly to nothing and rises again,
so that no frame's motion differs from the last one's by more than 1 / EASE frames a frame.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from engine.drivers.tracker import FaceTracker
from engine.types import AvatarError, FloatArray, UInt8Array

LONGEST = 12.0
"""s of a video that are used: a second of 512 x 512 px at 25 fps is 20 MB."""
SHORTEST = 1.0
"""s below which a loop is a twitch."""
EASE = 10.0
"""Frames over which playing comes to rest before a turn, and gets going after it."""
ENDS = 0.2
"""Share of the video at either end in which the stillest moment is looked for."""
MISFIT = 0.05
"""Widths of the face by which the portrait's face may differ from that of its likest frame, on average."""


def position(frame: float, count: int) -> int:
    """Which of `count` pictures is shown `frame` frames after the start."""
    return min(count - 1, max(0, int(where(frame, count - 1) + 0.5)))


def where(frame: float, length: float) -> float:
    """0..length: the place in a loop of `length` frames, `frame` frames after its start; forth, and back, and so on."""
    if length <= 0:
        return 0.0
    ease = min(EASE, length)
    leg = length + ease  # frames that one way takes: half of each of its two eased ends is lost
    at = frame % (2 * leg)
    at = min(at, 2 * leg - at)
    if at < ease:
        return at * at / (2 * ease)
    if at > leg - ease:
        return length - (leg - at) ** 2 / (2 * ease)
    return at - ease / 2


def read(path: Path, *, fps: float) -> list[UInt8Array]:
    """The first LONGEST seconds of a video as RGB pictures, `fps` a second. Raises AvatarError where it is none, or too short."""
    video = cv2.VideoCapture(str(path)) if path.is_file() else None
    if video is None or not video.isOpened():
        raise AvatarError(f"The loop {path} cannot be read as a video; give an .mp4 of the portrait's person, idle before a still camera.")
    pictures: list[UInt8Array] = []
    try:
        own = float(video.get(cv2.CAP_PROP_FPS)) or fps
        taken = -1
        while len(pictures) < LONGEST * fps:
            there, bgr = video.read()
            if not there:
                break
            taken += 1
            picture = np.ascontiguousarray(bgr[..., ::-1])
            while len(pictures) < LONGEST * fps and round(len(pictures) * own / fps) <= taken:
                pictures.append(picture)
    finally:
        video.release()
    if len(pictures) < SHORTEST * fps:
        raise AvatarError(f"The loop {path} is shorter than {SHORTEST:.0f} s; give a longer one, 5 to {LONGEST:.0f} s of somebody idle.")
    return pictures


def track(pictures: list[UInt8Array]) -> FloatArray:
    """Mesh points [N, 478, 2] px of every picture. Raises AvatarError where one shows no face."""
    tracker, found = FaceTracker(faces=1), []
    try:
        for k, picture in enumerate(pictures):
            faces = tracker.detect(picture)
            if not faces:
                raise AvatarError(f"Picture {k + 1} of the loop shows no face; give a loop in which the face is always seen.")
            found.append(faces[0][:, :2] * np.array([picture.shape[1], picture.shape[0]], np.float32))
    finally:
        tracker.close()
    return np.stack(found)


def turns(points: FloatArray) -> tuple[int, int]:
    """First and last picture of the part that is played: the stillest near either end. `points` [N, 478, 2]."""
    speed = np.abs(np.diff(points, axis=0)).mean((1, 2))
    reach = max(1, round(ENDS * len(speed)))
    return int(np.argmin(speed[:reach])), len(speed) - int(np.argmin(speed[::-1][:reach]))


def framed(pictures: list[UInt8Array], points: FloatArray, portrait: FloatArray, size: tuple[int, int]) -> tuple[list[UInt8Array], FloatArray]:
    """The pictures and their points as the portrait is framed: `portrait` [478, 2] px of its frame of `size` (H, W).

    Raises AvatarError where the portrait is not (about) one of the pictures.
    """
    best, fit, shift = min((_fit(each, portrait) for each in points), key=lambda found: found[0])
    if best > MISFIT:
        raise AvatarError("The loop does not show the portrait's person as the portrait does; use one of the loop's own frames as the portrait.")
    height, width = size
    matrix = np.array([[fit[0], 0, shift[0]], [0, fit[1], shift[1]]], np.float32)
    return [_cut(picture, matrix, (width, height)) for picture in pictures], (points * fit + shift).astype(np.float32)


def _fit(points: FloatArray, portrait: FloatArray) -> tuple[float, FloatArray, FloatArray]:
    """(misfit in widths of the face, factors [2], shift [2] px) that bring points over the portrait's."""
    centred, aim = points - points.mean(0), portrait - portrait.mean(0)
    fit = (centred * aim).sum(0) / np.maximum((centred * centred).sum(0), 1e-6)
    misfit = np.linalg.norm(centred * fit - aim, axis=1).mean() / max(1e-6, float(np.ptp(portrait[:, 0])))
    return float(misfit), fit.astype(np.float32), (portrait.mean(0) - points.mean(0) * fit).astype(np.float32)


def _cut(picture: UInt8Array, matrix: FloatArray, size: tuple[int, int]) -> UInt8Array:
    """A picture scaled and moved into `size` (W, H); what lies beyond its edges repeats them. Shrunk first, where that is much."""
    factor = min(1.0, float(max(matrix[0, 0], matrix[1, 1])))
    if factor < 0.75:
        small = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        matrix = matrix.copy()
        matrix[0, 0] *= picture.shape[1] / small.shape[1]
        matrix[1, 1] *= picture.shape[0] / small.shape[0]
        picture = small
    return np.asarray(cv2.warpAffine(picture, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8)


__all__ = ["EASE", "framed", "position", "read", "track", "turns", "where"]
