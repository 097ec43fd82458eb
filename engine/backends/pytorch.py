"""PyTorch: eager, compiled, or as one CUDA graph, behind the same call. `spec.build()` returns an nn.Module."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from typing import Any, Literal

from engine.backends import check_inputs
from engine.types import AvatarError, GraphSpec, Runner

Mode = Literal["eager", "compile", "cudagraph"]
# Read when PyTorch loads. Threads that wait by spinning take the cores that trackers and encoders share: a step took 2 to 7 times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

WARM_UPS = 3
"""Runs before a capture: libraries pick their kernels and allocate their workspaces in the first."""


def available() -> str | None:
    """Whether PyTorch is installed."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed; pip install 'avatar-engine[torch]'."
    return None


def device(name: str | None = None) -> Any:
    """A torch.device; by default the GPU where there is one. Raises AvatarError for one that is not there."""
    import torch

    try:
        found = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise AvatarError(f"PyTorch knows no device called '{name}'; use cpu or cuda.") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise AvatarError("PyTorch sees no CUDA GPU here; use --device cpu, or install a driver and a CUDA build of PyTorch.")
    return found


def check_mode(mode: str, on: Any) -> None:
    """Raise AvatarError for a mode that does not exist or cannot run on the device."""
    if mode not in ("eager", "compile", "cudagraph"):
        raise AvatarError(f"PyTorch has no mode called '{mode}'; choose one of: eager, compile, cudagraph.")
    if mode == "cudagraph" and on.type != "cuda":
        raise AvatarError("CUDA graphs need a CUDA GPU; use --mode eager or compile on this machine.")


def compiled(module: Any) -> Any:
    """The module, compiled for fixed shapes at its first call."""
    import torch

    return torch.compile(module, dynamic=False)


def prepared(step: Callable[[], None], *, mode: Mode) -> Callable[[], None]:
    """A step over static tensors -> the same step; in mode cudagraph captured at its second call, so that a call is one launch.

    The first call runs it as it is. The step must neither allocate what it leaves behind nor look at a value on the host, and running it
    again for a warm-up must do no harm but to what it counts, so the capture replays instead of running.
    """
    return _Captured(step) if mode == "cudagraph" else step


class _Captured:
    def __init__(self, step: Callable[[], None]) -> None:
        self._step = step
        self._calls = 0
        self._graph: Any = None

    def __call__(self) -> None:
        import torch

        if self._graph is None and self._calls < WARM_UPS:
            # Warm-ups are real frames on a side stream, as a capture needs; nothing is computed twice.
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._step()
            torch.cuda.current_stream().wait_stream(side)
            self._calls += 1
            return
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):  # records, does not run
                self._step()
        self._graph.replay()


class _TorchRunner:
    def __init__(self, spec: GraphSpec, *, mode: Mode, on: Any) -> None:
        self._spec, self._on = spec, on
        module = spec.build().to(on).eval().requires_grad_(False)
        self._call = compiled(module) if mode == "compile" else module
        self._mode = mode
        self._static: dict[str, Any] = {}
        self._made: tuple[Any, ...] = ()
        self._run: Callable[[], None] | None = None

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Arrays or tensors in, the same kind out."""
        import torch

        arrays = not any(isinstance(value, torch.Tensor) for value in inputs.values())
        if arrays:
            check_inputs(self._spec, inputs)
        given = {name: torch.as_tensor(inputs[name]) for name in self._spec.inputs}
        with torch.inference_mode():
            results = self._captured(given) if self._mode == "cudagraph" else self._call(*(x.to(self._on) for x in given.values()))
        results = (results,) if isinstance(results, torch.Tensor) else results
        return {name: x.cpu().numpy() if arrays else x for name, x in zip(self._spec.outputs, results, strict=True)}

    def _captured(self, given: dict[str, Any]) -> Any:
        """Through static buffers; results are overwritten by the next call."""
        if not self._static:
            self._static = {name: x.to(self._on, copy=True) for name, x in given.items()}

            def step() -> None:
                self._made = self._call(*self._static.values())

            self._run = prepared(step, mode="cudagraph")
        for name, x in given.items():
            self._static[name].copy_(x, non_blocking=True)
        assert self._run is not None
        self._run()
        return self._made


def load(spec: GraphSpec, *, mode: Mode = "eager", device_name: str | None = None, **_: Any) -> Runner:
    """A runner of the graph. Raises AvatarError where PyTorch, the device or the mode is not to be had."""
    missing = available()
    if missing:
        raise AvatarError(missing)
    on = device(device_name)
    check_mode(mode, on)
    return _TorchRunner(spec, mode=mode, on=on)
