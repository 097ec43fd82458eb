"""Recorded signals: a list of Signals <-> one .npz file of plain arrays (no pickle), and a driver that plays them."""

from __future__ import annotations

import zipfile
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.types import AvatarError, Motion, Signal, VideoFrame, still_motion

FORMAT = 1
_PARTS = ("face", "head", "body", "hands", "speech", "pcm", "image")
"""Signal's arrays. `maps` is not kept: it is made from the others, or is a clip of its own."""
_MOTION = tuple(f.name for f in fields(Motion))


def save(path: str | Path, signals: Sequence[Signal]) -> None:
    """Write signals to `path`. Each part is one array over the frames that have it, beside the numbers of those frames.

    Raises AvatarError where a part changes its shape from frame to frame (a driving picture that was resized), since it could
    not be read back.
    """
    arrays: dict[str, Any] = {
        "format": np.array(FORMAT),
        "time": np.array([s.time for s in signals], np.float64),
        "id": np.array([s.id for s in signals], np.int64),
        "aspect": np.array([s.aspect for s in signals], np.float64),
    }
    for part in _PARTS:
        _pack(arrays, part, [getattr(s, part) for s in signals])
    for part in _MOTION:
        _pack(arrays, f"motion.{part}", [None if s.motion is None else getattr(s.motion, part) for s in signals])
    for part in sorted({name for s in signals for name in s.confidence}):
        _pack(arrays, f"confidence.{part}", [None if part not in s.confidence else np.float64(s.confidence[part]) for s in signals])
    with Path(path).open("wb") as file:
        np.savez_compressed(file, **arrays)


def load(path: str | Path) -> list[Signal]:
    """Read what `save` wrote. Raises AvatarError where the file is missing or is not a recording."""
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise AvatarError(f"There is no recording at {path}.") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise AvatarError(f"{path} is not a recording of signals; make one with engine.drivers.replay.save.") from error
    if "format" not in arrays or int(arrays["format"]) != FORMAT:
        raise AvatarError(f"{path} is not a recording of signals of format {FORMAT}; record it again with this version.")
    try:
        return _unpack(arrays)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise AvatarError(f"The recording {path} is damaged; record it again.") from error


def _pack(arrays: dict[str, Any], name: str, values: Sequence[Any]) -> None:
    at = [k for k, value in enumerate(values) if value is not None]
    if not at:
        return
    shapes = {np.shape(values[k]) for k in at}
    if len(shapes) > 1:
        raise AvatarError(f"Signals whose {name} changes its shape cannot be recorded together; record them in separate files.")
    arrays[name] = np.stack([np.asarray(values[k]) for k in at])
    arrays[f"{name}.at"] = np.array(at, np.int64)


def _column(arrays: dict[str, Any], name: str, count: int) -> list[Any]:
    column: list[Any] = [None] * count
    if name in arrays:
        for at, value in zip(arrays[f"{name}.at"], arrays[name], strict=True):
            column[int(at)] = value
    return column


def _unpack(arrays: dict[str, Any]) -> list[Signal]:
    count = len(arrays["time"])
    parts = {part: _column(arrays, part, count) for part in _PARTS}
    moved = {part: _column(arrays, f"motion.{part}", count) for part in _MOTION}
    named = {name.split(".", 1)[1] for name in arrays if name.startswith("confidence.") and not name.endswith(".at")}
    sure = {part: _column(arrays, f"confidence.{part}", count) for part in named}
    signals = []
    for k in range(count):
        motion = None if moved["head"][k] is None else Motion(**{part: moved[part][k] for part in _MOTION})
        signals.append(
            Signal(
                time=float(arrays["time"][k]),
                id=int(arrays["id"][k]),
                aspect=float(arrays["aspect"][k]),
                motion=motion,
                confidence={part: float(column[k]) for part, column in sure.items() if column[k] is not None},
                **{part: column[k] for part, column in parts.items()},
            )
        )
    return signals


class ReplayDriver:
    """Plays a recording with the face driver's call: the camera's frames only give the time."""

    neutral_state = "set"

    def __init__(self, path: str | Path, *, loop: bool = True) -> None:
        """`loop`: start again at the end; otherwise the last signal stays. Raises AvatarError as `load` does, or on an empty recording."""
        self._signals = load(path)
        if not self._signals:
            raise AvatarError(f"The recording {path} holds no signals.")
        first = self._signals[0].time
        self._times = [s.time - first for s in self._signals]
        step = self._times[-1] / (len(self._times) - 1) if len(self._times) > 1 else 1.0
        self._length = self._times[-1] + step
        self._loop = loop
        self._start: float | None = None

    def __call__(self, frame: VideoFrame) -> Signal:
        """The signal that was recorded as long after the first as this frame comes after the first one shown, with this frame's time and id."""
        if self._start is None:
            self._start = frame.time
        at = frame.time - self._start
        at = at % self._length if self._loop else at
        signal = self._signals[max(0, bisect_right(self._times, at + 1e-6) - 1)]
        return replace(signal, time=frame.time, id=frame.id, motion=signal.motion or still_motion())

    def set_neutral(self) -> None:
        """Nothing to do: a recording is calibrated already."""

    def reset(self) -> None:
        """Start the recording again with the next frame."""
        self._start = None

    def close(self) -> None:
        """Nothing to free."""
