"""Condition pictures beside a driving picture: recorded clips of DensePose, normals, depth or semantic parts, or a user's network that makes them.

Every source answers the same call: the driving frame -> a picture [h, w, 3] RGB of the generator's frame size, for `Signal.maps`. Clips were
made for the drive: their frames are matched to the drive's by time, both from 0, so that their rates may differ. A network sees the driving
picture, cut around its middle to the shape of the generator's frames. Knows pictures and times; whoever opens a clip hands over its frames.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from engine.types import AvatarError, MissingPart, Signal, UInt8Array, VideoFrame

NAMES = ("densepose", "depth", "dwpose", "normal", "semantic", "smplx")
SHAPE = 0.02
"""Share by which a clip's width / height may differ from the generator's."""
HELD = 0.25
"""s that a clip's last picture is held: rates and last frames of two clips need not agree to the frame."""
EARLY = 1e-3
"""s by which a picture's time may be rounded up."""


class MapSource(Protocol):
    """What makes one kind of condition picture. One a session; pictures come in order."""

    def __call__(self, frame: VideoFrame) -> UInt8Array:
        """The driving frame -> condition picture [h, w, 3] RGB."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class Recorded:
    """A clip, played beside the drive."""

    def __init__(self, name: str, frames: Iterator[VideoFrame], *, size: tuple[int, int]) -> None:
        """`name` of the file, for complaints; `frames` with times from 0; `size` (H, W) of the generator. Raises AvatarError for another shape."""
        self._name, self._frames, self._size = name, frames, size
        first = next(frames, None)
        if first is None:
            raise AvatarError(f"No picture in '{name}' can be read; record the clip of condition pictures again.")
        height, width = first.rgb.shape[:2]
        if abs(width / height * size[0] / size[1] - 1.0) > SHAPE:
            raise AvatarError(f"'{name}' is {width} x {height} and the generator's frames are {size[1]} x {size[0]}; crop the clip to that shape.")
        self._now, self._next = first, next(frames, None)
        self._shown: tuple[VideoFrame, UInt8Array] | None = None

    def __call__(self, frame: VideoFrame) -> UInt8Array:
        """The picture of this instant. Raises AvatarError where the clip has ended and the drive has not."""
        while self._next is not None and self._next.time <= frame.time + EARLY:
            self._now, self._next = self._next, next(self._frames, None)
        if self._next is None and frame.time > self._now.time + HELD:
            raise AvatarError(f"'{self._name}' ends after {self._now.time:.1f} s and the drive goes on; record it over all of the drive.")
        if self._shown is None or self._shown[0] is not self._now:
            self._shown = self._now, squeezed(self._now.rgb, self._size)
        return self._shown[1]

    def close(self) -> None:
        """Let go of the file."""
        close = getattr(self._frames, "close", None)
        if close is not None:
            close()


class Network:
    """A user's ONNX file: one picture [1, 3, H, W] RGB 0..1 -> one [1, 1 or 3, h, w] 0..1, both float32. Free sizes are the generator's."""

    def __init__(self, path: str | Path, *, size: tuple[int, int], threads: int = 0) -> None:
        """Raises AvatarError for a file that is missing, cannot be loaded, or takes or gives something else."""
        if importlib.util.find_spec("onnxruntime") is None:
            raise MissingPart("A network for condition pictures needs ONNX Runtime, which is not installed; pip install 'avatar-engine[onnx]'.")
        import onnxruntime

        self._path, self._size = Path(path), size
        if not self._path.is_file():
            raise AvatarError(f"There is no file '{path}'; check --maps.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # whatever a damaged or foreign file raises
            raise AvatarError(f"ONNX Runtime cannot load '{path}' ({_first_line(error)}); give one that turns a picture into one.") from error
        ports = self._session.get_inputs()
        shape = list(ports[0].shape) if ports else []
        if len(ports) != 1 or len(shape) != 4 or shape[1] != 3 or ports[0].type != "tensor(float)" or (isinstance(shape[0], int) and shape[0] != 1):
            said = " and ".join(f"{port.shape} of {port.type}" for port in ports)
            raise AvatarError(f"'{path}' takes {said}, and a picture is [1, 3, height, width] of tensor(float); export it so.")
        self._input = str(ports[0].name)
        self._seen = tuple(side if isinstance(side, int) else own for side, own in zip(shape[2:], size, strict=True))
        self(VideoFrame(np.zeros((*size, 3), np.uint8), 0.0))

    def __call__(self, frame: VideoFrame) -> UInt8Array:
        """The network's picture of the driving one."""
        seen = squeezed(_cut(frame.rgb, self._size), self._seen)
        given = np.ascontiguousarray(seen.transpose(2, 0, 1)[None], np.float32) / 255.0
        try:
            told = np.asarray(self._session.run(None, {self._input: given})[0])
        except Exception as error:  # whatever a graph raises that says too little of itself
            raise AvatarError(f"'{self._path}' cannot be run on a picture ({_first_line(error)}); export it anew.") from error
        if told.ndim != 4 or told.shape[0] != 1 or told.shape[1] not in (1, 3):
            raise AvatarError(f"'{self._path}' gives {list(told.shape)}, and a condition picture is [1, 1 or 3, height, width]; export it so.")
        picture = np.clip(np.nan_to_num(told[0].transpose(1, 2, 0)) * 255.0 + 0.5, 0.0, 255.0).astype(np.uint8)
        return squeezed(np.ascontiguousarray(np.broadcast_to(picture, (*picture.shape[:2], 3))), self._size)

    def close(self) -> None:
        """Nothing to free before the object itself goes."""


class Maps:
    """All the condition pictures of one drive."""

    def __init__(self, sources: Mapping[str, MapSource]) -> None:
        self._sources = dict(sources)
        self.names = tuple(self._sources)

    def __call__(self, frame: VideoFrame) -> dict[str, UInt8Array]:
        """The driving frame -> what `Signal.maps` holds."""
        return {name: source(frame) for name, source in self._sources.items()}

    def close(self) -> None:
        """Close every source."""
        for source in self._sources.values():
            source.close()


class FaceAndMaps:
    """A face driver whose signals have the condition pictures of their frame beside them."""

    def __init__(self, face: Any, maps: Maps) -> None:
        self._face, self._maps = face, maps

    def __call__(self, frame: VideoFrame) -> Signal:
        """The driving frame -> what drives."""
        signal: Signal = self._face(frame)
        return replace(signal, maps=self._maps(frame))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._face, name)


def _cut(rgb: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    """The middle of a picture [H, W, 3] that has the shape of `size` (H, W)."""
    height, width = rgb.shape[:2]
    h, w = min(height, round(width * size[0] / size[1])), min(width, round(height * size[1] / size[0]))
    top, left = (height - h) // 2, (width - w) // 2
    return rgb[top : top + max(1, h), left : left + max(1, w)]


def squeezed(rgb: UInt8Array, size: tuple[int, ...]) -> UInt8Array:
    """A picture [h, w, 3] in the shape of `size` (H, W), itself where it has it."""
    if rgb.shape[:2] == tuple(size):
        return rgb
    smaller = rgb.shape[0] > size[0]
    return np.asarray(cv2.resize(rgb, (size[1], size[0]), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR), np.uint8)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


__all__ = ["NAMES", "FaceAndMaps", "MapSource", "Maps", "Network", "Recorded", "squeezed"]
