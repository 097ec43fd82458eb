"""Published ONNX files of the LivePortrait networks, run as they are by ONNX Runtime behind this generator's own graphs.

Their layout is FasterLivePortrait's: a float picture in 0..1 with its channels first, keypoints flat, the driven ones before the portrait's.
Names differ between exports, so a port is known by its place; only where a name says `source` does it count.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.backends import half_the_cores, ort, pytorch
from engine.generators.reenact.formulas import BINS, beside, degrees, stitched
from engine.generators.reenact.presets import KEYPOINTS, LIVEPORTRAIT
from engine.types import AvatarError, GraphSpec, Runner

Arrays = Mapping[str, Any]
FLAT = 3 * KEYPOINTS
VOLUME = (1, *LIVEPORTRAIT.volume, LIVEPORTRAIT.cells, LIVEPORTRAIT.cells)
PICTURE = (1, 3, LIVEPORTRAIT.side, LIVEPORTRAIT.side)
POINTS = (1, KEYPOINTS, 3)
FILES: dict[str, tuple[tuple[tuple[int, ...], ...], int]] = {
    "appearance_feature_extractor": ((PICTURE,), 1),
    "motion_extractor": ((PICTURE,), 7),
    "warping_spade": ((VOLUME, POINTS, POINTS), 1),
    "stitching": (((1, 2 * FLAT),), 1),
    "stitching_lip": (((1, FLAT + 2),), 1),
    "stitching_eye": (((1, FLAT + 3),), 1),
}
"""File -> shapes of its inputs, in their order, and how many outputs it has."""
SAID = ("pitch", "yaw", "roll", "t", "exp", "scale", "kp")
"""The outputs of the motion extractor, in their order."""


class _Graph:
    def __init__(self, call: Callable[[Arrays], dict[str, Any]]) -> None:
        self._call = call

    def __call__(self, inputs: Arrays) -> dict[str, Any]:
        return self._call(inputs)


class Released:
    """The files of a folder, loaded when they are first needed; one session each serves any number of callers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._loaded: dict[str, tuple[GraphSpec, Runner]] = {}
        self._graphs: dict[str, Callable[[Arrays], dict[str, Any]]] = {
            "appearance": self._appearance,
            "motion": self._motion,
            "retarget": self._retarget,
            "stitch": self._stitch,
            "render": self._render,
        }

    def runner(self, graph: str, rows: int, *, mode: pytorch.Mode | None = None) -> Runner:
        """A graph of `graphs.graphs` by name. The files take one row at a time."""
        if rows != 1:
            raise AvatarError("Published ONNX files take one session at a time; import the .pth files to step several at once.")
        return _Graph(self._graphs[graph])

    def _open(self, file: str) -> tuple[GraphSpec, Runner]:
        with self._lock:
            if file not in self._loaded:
                self._loaded[file] = checked(self._folder / f"{file}.onnx")
            return self._loaded[file]

    def _run(self, file: str, *given: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        spec, runner = self._open(file)
        named = {
            name: np.ascontiguousarray(array, dtype).reshape(shape) for (name, (shape, dtype)), array in zip(spec.inputs.items(), given, strict=True)
        }
        made = runner(named)
        return [made[name] for name in spec.outputs]

    def _appearance(self, given: Arrays) -> dict[str, Any]:
        return {"volume": np.asarray(self._run("appearance_feature_extractor", _unit(given["picture"]))[0], np.float32)}

    def _motion(self, given: Arrays) -> dict[str, Any]:
        # Pictures one by one: a camera's is one, and so is a portrait's.
        said = dict(zip(SAID, self._run("motion_extractor", _unit(given["picture"])), strict=True))
        angles = [degrees(said[name]) if said[name].shape[-1] == BINS else np.ravel(said[name]) for name in SAID[:3]]
        points = {name: said[name].reshape(POINTS).astype(np.float32) for name in ("kp", "exp")}
        return {"pose": np.stack(angles, 1), "t": said["t"].reshape(1, 3), "scale": said["scale"].reshape(1, 1), **points}

    def _retarget(self, given: Arrays) -> dict[str, Any]:
        source = given["source"]
        made = {}
        for name, file in (("lips", "stitching_lip"), ("eyes", "stitching_eye")):
            made[f"{name}_moved"] = self._run(file, beside(source, given[name]))[0].reshape(POINTS)
        return made

    def _stitch(self, given: Arrays) -> dict[str, Any]:
        said = self._run("stitching", beside(given["source"], given["driven"]))[0]
        return {"points": stitched(given["driven"], said.reshape(1, FLAT + 2))}

    def _render(self, given: Arrays) -> dict[str, Any]:
        points = [given["driven"], given["source"]]
        if "source" in list(self._open("warping_spade")[0].inputs)[1]:
            points.reverse()
        painted = self._run("warping_spade", given["volume"], *points)[0]
        return {"picture": np.clip(painted.astype(np.float32).transpose(0, 2, 3, 1) * 255 + 0.5, 0, 255).astype(np.uint8)}


def checked(path: Path) -> tuple[GraphSpec, Runner]:
    """A file as it is. Raises AvatarError where it is none, or takes and gives other things than `FILES` says."""
    spec, runner = ort.as_it_is(path, threads=half_the_cores())
    shapes, outputs = FILES[path.stem]
    takes = [shape for shape, _ in spec.inputs.values()]
    if [int(np.prod(shape)) for shape in takes] != [int(np.prod(shape)) for shape in shapes] or len(spec.outputs) < outputs:
        told = f"takes {', '.join(str(list(shape)) for shape in takes)} and gives {len(spec.outputs)} tensors"
        wanted = f"{', '.join(str(list(shape)) for shape in shapes)} and {outputs}"
        raise AvatarError(f"{path} is not the published {path.stem}.onnx: it {told} instead of {wanted}; download it again.")
    return spec, runner


def _unit(picture: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """uint8 [1, h, w, 3] -> [1, 3, h, w] 0..1."""
    return np.asarray(picture.transpose(0, 3, 1, 2), np.float32) / np.float32(255)


__all__ = ["FILES", "Released", "checked"]
