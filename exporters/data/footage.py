"""A clip on disk -> what is seen and heard in it, on a grid of 25 frames a second. Knows pictures and time, not what they are good for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from engine.drivers.body import BodyDriver
from engine.drivers.follow import Follower
from engine.drivers.quality import others, sharpness
from engine.drivers.sight import MouthSight
from engine.drivers.speech import LOG_FLOOR, LOOK_AHEAD, SpeechDriver
from engine.drivers.tracker import FaceTracker
from engine.media import audio_samples, first_picture_time, probe, video_frames
from engine.types import BODY_POINTS, FACE_POINTS, MEL_BANDS, MEL_ROWS, AudioChunk, AvatarError, FloatArray, UInt8Array, VideoFrame
from exporters.data.camera import Places
from exporters.data.damage import damaged

FPS = 25
"""Frames a second of the grid."""
LATEST = 0.06
"""s a picture may lie off its grid frame and still stand for it: a camera of 15 pictures a second is at most 0.034 off."""
LONGEST_GAP = 60.0
"""s between two pictures: more is a broken clock."""
BODY_STEP = 3
"""Grid frames from one look at the shoulders to the next: they move slowly."""
CROWD_STEP = 5
"""Grid frames from one look for other faces to the next."""
SOUND_RATE, SOUND_STEP = 48_000, 960
"""Hz and samples a push (20 ms), as live."""
SMALL_SIDE = 320
"""px, longest side of the picture the background is followed in."""
Tick = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Footage:
    """N grid frames of one clip; NaN where nothing was seen."""

    size: npt.NDArray[np.int64]  # [2] H, W px of the upright picture
    shown: npt.NDArray[np.int64]  # [N] number of the decoded picture that stands for the frame, counted from 1; 0: there is none
    time: FloatArray  # [N] s of that picture
    face: FloatArray  # [N, 478, 3] x, y 0..1, z on the scale of x
    mouth: FloatArray  # [N] 0..1 how well the lips are seen
    body: FloatArray  # [N, 33, 4] pose landmarks, visibility last
    crowd: FloatArray  # [N] width of the widest other face as a share of the face's
    sharp: FloatArray  # [N] deviation of the face's Laplacian, grey levels
    change: FloatArray  # [N] mean difference to the picture before, grey levels
    place: npt.NDArray[np.int64]  # [N] which anchor the background fits, -1 where it is too plain to tell
    moved: FloatArray  # [N, 4] the camera since that anchor: x, y in picture heights, log of the scale, roll in degrees
    speech: FloatArray  # [N, 16, 80] log-mel
    duration: npt.NDArray[np.float64]  # [] s that the file says it has
    heard: npt.NDArray[np.bool_]  # [] whether there is sound

    def __len__(self) -> int:
        return len(self.time)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """For `np.savez`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


# -- pictures on the grid -----------------------------------------------------------------------------------------------


def gridded(frames: Iterator[VideoFrame]) -> Iterator[tuple[int, VideoFrame | None]]:
    """Pictures with their own times, in s from 0 -> (grid frame, the picture nearest to it, None where none is within LATEST)."""

    def near(frame: VideoFrame) -> VideoFrame | None:
        return frame if abs(frame.time - number / FPS) <= LATEST else None

    number, before = 0, None
    for frame in frames:
        if before is not None and frame.time <= before.time:
            continue
        if before is not None and frame.time - before.time > LONGEST_GAP:
            raise AvatarError(f"The times in the video jump by {frame.time - before.time:.0f} s; convert it to an ordinary MP4 and try again.")
        while before is not None and number / FPS < (before.time + frame.time) / 2:
            yield number, near(before)
            number += 1
        before = frame
    while before is not None and number / FPS < before.time + 0.5 / FPS:
        yield number, near(before)
        number += 1


def pictures(path: Path) -> Iterator[tuple[int, VideoFrame | None]]:
    """(grid frame, picture or None) of a clip; what cannot be decoded is missing."""
    from av.error import FFmpegError

    def decoded() -> Iterator[VideoFrame]:
        try:
            yield from video_frames(path)
        except FFmpegError:
            return  # broken from here on

    yield from gridded(decoded())


# -- what is seen and heard ---------------------------------------------------------------------------------------------


def watch(path: Path, *, tick: Tick | None = None) -> Footage:
    """Decode and track a clip. Raises AvatarError where it has no picture that can be read, and for HDR."""
    clip = probe(path)
    if not clip.has_video:
        raise AvatarError(f"'{path.name}' has no video; choose a clip that shows the person.")
    broken = damaged(path)
    watcher = _Watcher()
    try:
        for number, frame in pictures(path):
            whole = frame is not None and not any(start <= frame.time < end for start, end in broken)
            watcher.see(number, frame if whole else None)
            if tick is not None:
                tick(number + 1, max(number + 1, round(clip.duration * FPS)))
    finally:
        watcher.close()
    if watcher.size is None:
        raise AvatarError(f"Not one picture of '{path.name}' can be decoded; convert it to an ordinary MP4 and try again.")
    rows = watcher.rows
    times = np.array([row["time"] for row in rows], np.float32)
    speech, heard = listen(path, times) if clip.has_audio else (silence(len(rows)), False)
    return Footage(
        np.array(watcher.size, np.int64),
        np.array([row["shown"] for row in rows], np.int64),
        times,
        np.stack([row["face"] for row in rows]),
        np.array([row["mouth"] for row in rows], np.float32),
        _bridged(np.stack([row["body"] for row in rows])),
        np.array([row["crowd"] for row in rows], np.float32),
        np.array([row["sharp"] for row in rows], np.float32),
        np.array([row["change"] for row in rows], np.float32),
        np.array([row["place"] for row in rows], np.int64),
        np.array([row["moved"] for row in rows], np.float32),
        speech,
        np.array(clip.duration),
        np.array(heard),
    )


def silence(count: int) -> FloatArray:
    """[count, 16, 80] of no sound."""
    return np.full((count, MEL_ROWS, MEL_BANDS), LOG_FLOOR, np.float32)


def listen(path: Path, times: FloatArray) -> tuple[FloatArray, bool]:
    """(log-mel [N, 16, 80] as a live session has it at `times`, whether there is any sound that can be read)."""
    from av.error import FFmpegError

    try:
        sound = audio_samples(path, rate=SOUND_RATE, origin=first_picture_time(path))
    except (AvatarError, FFmpegError):  # an empty or a broken track
        return silence(len(times)), False
    driver, given = SpeechDriver(), 0
    rows = []
    for time in times:
        while given < len(sound) and given / SOUND_RATE < time + LOOK_AHEAD:
            driver.hear(AudioChunk(sound[given : given + SOUND_STEP], SOUND_RATE, given / SOUND_RATE))
            given += SOUND_STEP
        rows.append(driver.at(float(time)).logmel)
    return np.stack(rows), bool(np.any(sound))


class _Watcher:
    """Looks at grid frames one after the other."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.size: tuple[int, int] | None = None
        self._follower, self._sight, self._body = Follower(), MouthSight(), BodyDriver()
        self._crowd = FaceTracker(still=True)
        self._places = Places()
        self._before: UInt8Array | None = None
        self._others = 0.0
        self._last: VideoFrame | None = None

    def close(self) -> None:
        for part in (self._follower, self._body, self._crowd):
            part.close()

    def see(self, number: int, frame: VideoFrame | None) -> None:
        row: dict[str, Any] = {
            "shown": 0,
            "time": number / FPS,
            "face": np.full((FACE_POINTS, 3), np.nan, np.float32),
            "mouth": 0.0,
            "body": np.full((BODY_POINTS, 4), np.nan, np.float32),
            "crowd": self._others,
            "sharp": 0.0,
            "change": 0.0,
            "place": -1,
            "moved": np.zeros(4),
        }
        if frame is not None:
            self.size = self.size or (frame.rgb.shape[0], frame.rgb.shape[1])
        if frame is None or (frame.rgb.shape[0], frame.rgb.shape[1]) != self.size:
            self.rows.append(row)
            return
        if self._last is not None and frame.id == self._last.id:  # a slower camera: the same picture once more
            self.rows.append({**self.rows[-1], "change": 0.0})
            return
        self._last = frame
        row |= {"shown": frame.id, "time": frame.time}
        face = self._follower(frame.rgb, frame.time)
        small = shrunk(frame.rgb)
        grey = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.uint8)
        if self._before is not None:
            row["change"] = float(cv2.absdiff(grey, self._before).mean())
        self._before = grey
        if face is not None:
            row |= {"face": face, "mouth": self._sight(frame.rgb, face, frame.time), "sharp": sharpness(frame.rgb, face)}
        row["place"], row["moved"] = self._places.find(small, grey, change=row["change"])
        if number % BODY_STEP == 0 and (reading := self._body(frame)) is not None:
            row["body"] = reading.landmarks
        if number % CROWD_STEP == 0:
            row["crowd"] = self._others = others(self._crowd.detect(frame.rgb), face)
        self.rows.append(row)


def _bridged(body: FloatArray) -> FloatArray:
    """[N, 33, 4] with the frames between two looks filled in straight."""
    seen = np.flatnonzero(np.isfinite(body[:, 0, 0]))
    for a, b in zip(seen[:-1], seen[1:], strict=True):
        if 1 < b - a <= 2 * BODY_STEP:
            share = (np.arange(a + 1, b) - a)[:, None, None] / (b - a)
            body[a + 1 : b] = body[a] + share * (body[b] - body[a])
    return body


def shrunk(rgb: UInt8Array) -> UInt8Array:
    """The picture, its longest side SMALL_SIDE px."""
    scale = SMALL_SIDE / max(rgb.shape[:2])
    size = (max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale)))
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)


__all__ = ["FPS", "Footage", "gridded", "listen", "pictures", "watch"]
