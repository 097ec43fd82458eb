"""The graphs of one set of networks, on one backend: loaded when they are first needed, for as many rows as are asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from engine.backends import backend, half_the_cores, pytorch
from engine.generators.reenact import networks as weights_of
from engine.generators.reenact.graphs import FP32, graphs
from engine.generators.reenact.networks import Networks
from engine.generators.reenact.presets import LIVEPORTRAIT, Preset
from engine.generators.reenact.presets import preset as preset_named
from engine.generators.reenact.released import Released
from engine.types import AvatarError, Runner

Backend = Literal["pytorch", "openvino", "onnxruntime"]
"""ONNX Runtime runs published ONNX files and nothing else here; what is imported from .pth files the other two."""
Precision = Literal["fp32", "bf16", "fp16"]
KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HALVED = ("appearance", "warping", "decoder")
"""Networks that take another precision; see `graphs.FP32`."""


def check(name: str, *, released: bool, mode: str | None, device: str | None, precision: str) -> None:
    """Raise AvatarError where a backend or a precision does not exist, or does not go with the weights or with what was asked beside it."""
    if name not in get_args(Backend):
        raise AvatarError(f"The generator 'reenact' has no backend called '{name}'; choose one of: {', '.join(get_args(Backend))}.")
    if precision not in KINDS:
        raise AvatarError(f"The generator 'reenact' has no precision called '{precision}'; choose one of: {', '.join(KINDS)}.")
    if released and name != "onnxruntime":
        raise AvatarError("These weights are published ONNX files, which ONNX Runtime runs; leave --backend out, or import the .pth files.")
    if not released and name == "onnxruntime":
        raise AvatarError("ONNX Runtime runs published ONNX files, and these weights are none; use --backend openvino, or leave it out.")
    if name == "pytorch":
        return
    if missing := backend(name).available():
        raise AvatarError(missing)
    if mode is not None:
        raise AvatarError(f"A mode is how PyTorch runs a step; leave --mode out with --backend {name}.")
    if device not in (None, "cpu"):
        raise AvatarError(f"The backend {name} runs on the CPU; use --device cpu, or leave --backend out.")
    if precision == "fp16" or (released and precision != "fp32"):
        raise AvatarError(f"The backend {name} has no {precision} here; use --precision fp32, or leave it out.")


@dataclass(frozen=True, slots=True)
class Opened:
    """Weights, ready to run."""

    preset: Preset
    origin: str  # sha256 of the weights' manifest, or `networks.UNTRAINED`
    runners: Runners | Released


def opened(
    weights: Path | None, name: Backend | None, *, preset: str, seed: int, mode: pytorch.Mode | None, device: str | None, precision: Precision | None
) -> tuple[Opened, Backend, pytorch.Mode, Any, Precision]:
    """Networks of a folder, or random ones of a preset, or published files, and what runs them: backend, mode, device, precision."""
    origin = None if weights is None else weights_of.release(weights)
    chosen: Backend = name or ("pytorch" if origin is None else "onnxruntime")
    on = pytorch.device(device if chosen == "pytorch" else "cpu")
    kind: Precision = precision or ("fp16" if on.type == "cuda" else "fp32")
    check(chosen, released=origin is not None, mode=mode, device=device, precision=kind)
    how = mode or pytorch.best_mode(on)
    pytorch.check_mode(how, on)
    if on.type == "cpu":
        torch.set_num_threads(half_the_cores())
    if weights is not None and origin is not None:
        return Opened(LIVEPORTRAIT, origin, Released(weights)), chosen, how, on, kind
    networks = weights_of.build(preset_named(preset), seed=seed) if weights is None else weights_of.load(weights)
    runners = Runners(networks, chosen, mode=how, device=on, precision=kind)
    return Opened(networks.preset, networks.origin, runners), chosen, how, on, kind


class Runners:
    """Runners by graph and rows. Safe to ask from several threads; each takes runners of its own (`Desk`)."""

    def __init__(self, networks: Networks, name: Backend, *, mode: pytorch.Mode, device: Any, precision: Precision) -> None:
        """Moves the networks to the device and into the precision."""
        self.networks, self.name, self.mode, self.device, self.precision = networks, name, mode, device, precision
        kind = KINDS[precision] if name == "pytorch" else torch.float32
        for part, module in networks.parts().items():
            module.to(device, kind if part in HALVED else torch.float32)
        networks.sampled_as("native" if name == "pytorch" else "gather")
        self._lock = threading.Lock()
        self._loaded: dict[tuple[str, int, str], Runner] = {}

    def runner(self, graph: str, rows: int, *, mode: pytorch.Mode | None = None) -> Runner:
        """A runner for one caller. `mode`: PyTorch's, where it is not the usual one."""
        how = mode or self.mode
        with self._lock:
            key = (graph, rows, how)
            if key not in self._loaded:
                self._loaded[key] = self._load(graph, rows, how)
            loaded = self._loaded[key]
            another: Callable[[], Runner] = getattr(loaded, "another", lambda: loaded)
            return another()

    def _load(self, graph: str, rows: int, mode: pytorch.Mode) -> Runner:
        spec = graphs(self.networks, rows=rows)[graph]
        if self.name == "pytorch":
            return pytorch.load(spec, mode=mode, device_name=str(self.device))
        precision = "fp32" if graph in FP32 else self.precision
        return backend(self.name).load(spec, precision=precision, threads=half_the_cores())


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


__all__ = ["KINDS", "Backend", "Desk", "Opened", "Precision", "Runners", "check", "opened"]
