"""A live chunk on another backend than PyTorch: one call of one graph, on the same memory that `stream.Step` reads and writes.

Rows are those of a `stream.Stream` on the CPU, so that seating, forgetting and vacating are its own. The graph gets NumPy views of a row,
the same ones in every call; what its rings grow by is written into them afterwards, in place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from engine.backends import artifact, backend, exported, half_the_cores
from engine.backends.engines import ADAPTERS
from engine.backends.exported import ON_A_GPU, Exported
from engine.generators.diffusion import adapters
from engine.generators.diffusion.autoencoder import TinyDecoded
from engine.generators.diffusion.graphs import PARTS, step_spec, told
from engine.generators.diffusion.on_device import DeviceRow
from engine.generators.diffusion.presets import Preset
from engine.generators.diffusion.stream import Recipe, Stream
from engine.generators.diffusion.temporal import places, put_at
from engine.types import AvatarError, FloatArray, Runner

Backend = Literal["pytorch", "openvino", "onnxruntime", "tensorrt"]
GRAPH = "step"
"""Its name in `graphs.graphs` and in an export's manifest."""


@dataclass(frozen=True, slots=True)
class Calendar:
    """`temporal.places` and `temporal.put_at` of one row for every number of frames seen: from `first` on they repeat with every `period`."""

    where: FloatArray  # [T, c, K + c, P]
    bias: FloatArray  # [T, c, K + c]
    put: list[list[tuple[int, int]]]  # T times (frame of the chunk, slot that it goes to)
    first: int
    period: int

    @classmethod
    def of(cls, made: Preset) -> Calendar:
        """By the rule itself."""
        first, period = made.window, made.ring  # by then the ring is full and every pinned frame is older than the recent ones
        count = torch.arange(first + period)
        at = places(count, made.chunk, made).placed(made.window, torch.float32)
        slots = put_at(count, made.chunk, torch.ones_like(count, dtype=torch.bool), made).permute(1, 0, 2).tolist()
        put = [sorted({(frame, slot) for each in pair for frame, slot in enumerate(each)}) for pair in slots]
        return cls(at.where.numpy(), at.bias.numpy(), put, first, period)

    def row(self, count: int) -> int:
        """Where `count` frames seen are."""
        return count if count < self.first else self.first + (count - self.first) % self.period


@dataclass(frozen=True, slots=True)
class Compiled:
    """The graph of a recipe's live chunk, loaded."""

    recipe: Recipe
    runner: Runner
    calendar: Calendar
    precision: str = "fp32"
    on_device: bool = False  # the runner takes tensors, not arrays

    def prepared(self, row: Stream) -> Callable[[], None]:
        """The step of one row (`Stream.row`), for one caller at a time; other rows may be stepped meanwhile."""
        another: Callable[[], Runner] = getattr(self.runner, "another", lambda: self.runner)
        if self.on_device:
            networks = self.recipe.networks
            return DeviceRow(another(), self.calendar, row, chunk=networks.preset.chunk, listens=networks.speech is not None)
        return _Row(self, another(), row)


class _Row:
    def __init__(self, of: Compiled, runner: Runner, stream: Stream) -> None:
        self._runner, self._calendar, self._chunk = runner, of.calendar, of.recipe.preset.chunk
        self._count, self._active, self._finite = stream.count.numpy(), stream.active.numpy(), stream.finite.numpy()
        self._out = stream.out[0].numpy()
        self._where, self._bias = np.empty_like(of.calendar.where[:1]), np.empty_like(of.calendar.bias[:1])
        self._rings = dict(_rings(stream))
        given = {"condition": stream.condition[0].numpy(), "noise": stream.noise.numpy(), "where": self._where, "bias": self._bias}
        if of.recipe.networks.speech is not None:
            given["speech"] = stream.speech[0].numpy()
        if stream.regions.shape[2]:
            given["regions"] = stream.regions.numpy()
        for i, pair in enumerate(stream.reference):
            given |= {f"reference.{i}.{part}": x.numpy() for part, x in zip(PARTS, pair, strict=True)}
        given |= {f"identity.{i}.{part}": x.numpy() for i, pair in enumerate(stream.identity) for part, x in told(pair)}
        self._given = given | {f"ring.{name}": ring for name, ring in self._rings.items()}

    def __call__(self) -> None:
        if not self._active[0]:
            return
        today = self._calendar.row(int(self._count[0]))
        self._where[0], self._bias[0] = self._calendar.where[today], self._calendar.bias[today]
        made = self._runner(self._given)
        self._out[...] = made["picture"]
        self._finite[0] = np.isfinite(made["magnitude"][0])
        for name, ring in self._rings.items():
            new = made[f"new.{name}"][0]  # [c, L, h, d]
            for frame, slot in self._calendar.put[today]:
                ring[0, :, :, slot] = new[frame]
        self._count += self._chunk


def _rings(row: Stream) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """S.I.k|v -> the ring [1, L, h, K, d] of one row, a view."""
    for i, pair in enumerate(row.rings):
        for part, levels in zip(PARTS, pair, strict=True):
            for s, ring in enumerate(levels.numpy()):
                yield f"{s}.{i}.{part}", ring


def check(name: str, *, mode: str | None, device: str | None, batched: bool, graphs: object) -> None:
    """Raise AvatarError where a backend does not exist, or what was asked beside it is PyTorch's."""
    if name not in get_args(Backend):
        raise AvatarError(f"The diffusion generator has no backend called '{name}'; choose one of: {', '.join(get_args(Backend))}.")
    exported.check(name, graphs=graphs, mode=mode, device=device)
    if batched and name != "pytorch":
        raise AvatarError(f"The backend {name} has no stream batch; leave --stream-batch out.")


def load(recipe: Recipe, name: str, *, precision: str | None = None, folder: Path | None = None) -> Compiled:
    """The step of a recipe (fp32, on the CPU; for TensorRT on the GPU) on a backend; from an export in `folder`, in its precision, where that
    is given.

    OpenVINO converts the networks itself where there is no export. Raises AvatarError where the backend, the export or the precision is not
    to be had.
    """
    spec = step_spec(recipe.networks, len(recipe.levels))
    calendar = Calendar.of(recipe.preset)
    at_once = max(1, (os.cpu_count() or 1) // half_the_cores())
    if folder is not None:
        held = _exported(recipe, folder, name, precision)
        runner = held.runner(GRAPH, spec, at_once=at_once, device=str(recipe.device))
        return Compiled(recipe, runner, calendar, held.manifest.artifact(GRAPH).precision, on_device=name in ON_A_GPU)
    precision = precision or "fp32"
    runner = backend(name).load(spec, precision=precision, threads=half_the_cores(), at_once=at_once)
    return Compiled(recipe, runner, calendar, precision)


def _exported(recipe: Recipe, folder: Path, name: str, precision: str | None) -> Exported:
    """The export in a folder. Raises AvatarError for one of other weights, or for another backend or precision."""
    networks = recipe.networks
    held = exported.opened(folder, name, origin=networks.origin, precision=precision)
    if held.manifest.source.get("decoder") != ("tiny" if isinstance(networks.autoencoder, TinyDecoded) else "own"):
        raise AvatarError(f"The graphs in {folder} were exported with another decoder; {artifact.AGAIN}.")
    fused = held.manifest.source.get(ADAPTERS, [])
    if [{"sha256": each["sha256"], "scale": each["scale"]} for each in fused] != adapters.keys(networks.adapters):
        asked = " and ".join(each.told for each in networks.adapters) or "none"
        raise AvatarError(f"The graphs in {folder} have as LoRA {adapters.named(fused)}, and {asked} is asked for; {artifact.AGAIN}.")
    return held


__all__ = ["ON_A_GPU", "Backend", "Calendar", "Compiled", "check", "load"]
