"""The graphs of one set of networks, on one backend: loaded when they are first needed, for as many rows as are asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch

from engine.backends import backend, exported, half_the_cores, pytorch
from engine.backends.exported import Exported
from engine.generators.reenact import networks as weights_of
from engine.generators.reenact.graphs import FP32, graphs
from engine.generators.reenact.networks import Networks
from engine.generators.reenact.presets import LIVEPORTRAIT, Preset
from engine.generators.reenact.presets import preset as preset_named
from engine.generators.reenact.released import Released
from engine.types import AvatarError, Runner

Backend = Literal["pytorch", "openvino", "onnxruntime", "tensorrt"]
"""PyTorch runs the weights, OpenVINO too; an export is run by the one that it is for, and published ONNX files by ONNX Runtime."""
Precision = Literal["fp32", "bf16", "fp16"]
KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HALVED = ("appearance", "warping", "decoder")
"""Networks that take another precision; see `graphs.FP32`."""


def check(name: str, *, released: bool, mode: str | None, device: str | None, precision: str, graphs: Path | None = None) -> None:
    """Raise AvatarError where a backend or a precision does not exist, or does not go with the weights or with what was asked beside it."""
    if name not in get_args(Backend):
        raise AvatarError(f"The generator 'reenact' has no backend called '{name}'; choose one of: {', '.join(get_args(Backend))}.")
    if released and name != "onnxruntime":
        raise AvatarError("These weights are published ONNX files, which ONNX Runtime runs; leave --backend out, or import the .pth files.")
    if released and graphs is not None:
        raise AvatarError("These weights are published ONNX files, which are run as they are; leave --graphs out, or import the .pth files.")
    if graphs is None and precision not in KINDS:
        raise AvatarError(f"The generator 'reenact' has no precision called '{precision}'; choose one of: {', '.join(KINDS)}.")
    exported.check(name, graphs="published" if released else graphs, mode=mode, device=device)
    if name == "pytorch":
        return
    if missing := backend(name).available():
        raise AvatarError(missing)
    if graphs is None and (precision == "fp16" or (released and precision != "fp32")):
        raise AvatarError(f"The backend {name} has no {precision} here; use --precision fp32, or leave it out.")


@dataclass(frozen=True, slots=True)
class Opened:
    """Weights, ready to run."""

    preset: Preset
    origin: str  # sha256 of the weights' manifest, or `networks.UNTRAINED`
    runners: Runners | Released
    networks: Networks | None  # that the runners run; of an export without values, of published files none


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to run them."""

    backend: Backend | None  # None: PyTorch, and for published ONNX files ONNX Runtime
    mode: pytorch.Mode | None
    device: str | None
    precision: str | None
    graphs: Path | None  # the folder of an export


def opened(weights: Path | None, asked: Asked, *, preset: str, seed: int) -> tuple[Opened, Backend, pytorch.Mode, Any, str]:
    """Networks of a folder, or random ones of a preset, or published files, and what runs them: backend, mode, device, precision."""
    origin = None if weights is None else weights_of.release(weights)
    chosen: Backend = asked.backend or ("pytorch" if origin is None else "onnxruntime")
    on = pytorch.device(asked.device if chosen == "pytorch" else "cpu")
    kind = asked.precision or ("fp16" if on.type == "cuda" else "fp32")
    check(chosen, released=origin is not None, mode=asked.mode, device=asked.device, precision=kind, graphs=asked.graphs)
    how = asked.mode or pytorch.best_mode(on)
    pytorch.check_mode(how, on)
    if on.type == "cpu":
        torch.set_num_threads(half_the_cores())
    if weights is not None and origin is not None:
        return Opened(LIVEPORTRAIT, origin, Released(weights), None), chosen, how, on, kind
    if asked.graphs is not None:
        # Of the networks themselves nothing is needed but their shapes.
        networks = weights_of.empty(preset_named(preset)) if weights is None else weights_of.described(weights)
        held = exported.opened(asked.graphs, chosen, origin=networks.origin, precision=asked.precision)
        runners, kind = Runners(partial(_exported, networks, held), mode=how), held.manifest.precision
    else:
        networks = weights_of.build(preset_named(preset), seed=seed) if weights is None else weights_of.load(weights)
        runners = of_networks(networks, chosen, mode=how, device=on, precision=cast(Precision, kind))
    return Opened(networks.preset, networks.origin, runners, networks), chosen, how, on, kind


class Runners:
    """Runners by graph and rows. Safe to ask from several threads; each takes runners of its own (`Desk`)."""

    def __init__(self, load: Callable[[str, int, pytorch.Mode], Runner], *, mode: pytorch.Mode) -> None:
        """`load`: a graph's name, rows and PyTorch's mode -> its runner."""
        self._load, self._mode = load, mode
        self._lock = threading.Lock()
        self._loaded: dict[tuple[str, int, str], Runner] = {}

    def runner(self, graph: str, rows: int, *, mode: pytorch.Mode | None = None) -> Runner:
        """A runner for one caller. `mode`: PyTorch's, where it is not the usual one."""
        how = mode or self._mode
        with self._lock:
            key = (graph, rows, how)
            if key not in self._loaded:
                self._loaded[key] = self._load(graph, rows, how)
            loaded = self._loaded[key]
            another: Callable[[], Runner] = getattr(loaded, "another", lambda: loaded)
            return another()


def of_networks(networks: Networks, name: Backend, *, mode: pytorch.Mode, device: Any, precision: Precision) -> Runners:
    """Runners of the networks themselves, which are moved to the device and into the precision."""
    kind = KINDS[precision] if name == "pytorch" else torch.float32
    for part, module in networks.parts().items():
        module.to(device, kind if part in HALVED else torch.float32)
    networks.sampled_as("native" if name == "pytorch" else "gather")

    def load(graph: str, rows: int, how: pytorch.Mode) -> Runner:
        spec = graphs(networks, rows=rows)[graph]
        if name == "pytorch":
            return pytorch.load(spec, mode=how, device_name=str(device))
        return backend(name).load(spec, precision="fp32" if graph in FP32 else precision, threads=half_the_cores())

    return Runners(load, mode=mode)


def _exported(networks: Networks, held: Exported, graph: str, rows: int, mode: pytorch.Mode) -> Runner:
    return held.runner(graph, graphs(networks, rows=rows)[graph])


class Desk:
    """The runners of one caller, which keeps them: of a State, or of a preparation."""

    def __init__(self, runners: Runners | Released, *, mode: pytorch.Mode | None = None) -> None:
        self._runners, self._mode = runners, mode
        self._kept: dict[tuple[str, int], Runner] = {}

    def __call__(self, graph: str, rows: int, given: Mapping[str, Any]) -> dict[str, Any]:
        """Arrays, or tensors on the device, in; the same kind out."""
        key = (graph, rows)
        if key not in self._kept:
            self._kept[key] = self._runners.runner(graph, rows, mode=self._mode)
        return self._kept[key](given)

    def clear(self) -> None:
        """Let go of all runners, and of whatever they were given last."""
        self._kept.clear()


__all__ = ["KINDS", "Asked", "Backend", "Desk", "Opened", "Precision", "Runners", "check", "of_networks", "opened"]
