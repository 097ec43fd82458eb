"""PyTorch: eager, traced, compiled, or as one CUDA graph, behind the same call. `spec.build()` returns an nn.Module."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from engine.backends import check_inputs
from engine.types import AvatarError, GraphSpec, Runner

Mode = Literal["eager", "script", "compile", "cudagraph"]
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


def best_mode(on: Any) -> Mode:
    """What suits a device: one launch a step on a GPU, one call a step on a CPU."""
    return "cudagraph" if on.type == "cuda" else "script"


def check_mode(mode: str, on: Any) -> None:
    """Raise AvatarError for a mode that does not exist or cannot run on the device."""
    if mode not in get_args(Mode):
        raise AvatarError(f"PyTorch has no mode called '{mode}'; choose one of: {', '.join(get_args(Mode))}.")
    if mode == "cudagraph" and on.type != "cuda":
        raise AvatarError("CUDA graphs need a CUDA GPU; use --mode script, eager or compile on this machine.")


def compiled(module: Any) -> Any:
    """The module, compiled for fixed shapes at its first call."""
    import torch

    return torch.compile(module, dynamic=False)


def scripted(module: Any, tensors: Sequence[Any]) -> Any:
    """The module as a graph that runs in one call, without the interpreter.

    A step of a thousand operations lets go of the interpreter's lock a thousand times, and beside busy Python threads waits for it as
    often: five times its time was measured. Tracing runs the module once, on copies. Its parameters need no gradients: they become constants.
    """
    import torch

    def call(*given: Any) -> Any:
        return module(*given)

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing warns of every shape it takes as fixed, which is what it is for
        # Of a function, not of the module: else each of its parts is made into a module of TorchScript first, which takes twice as long again.
        return torch.jit.trace(call, tuple(x.clone() for x in tensors), check_trace=False)


def prepared(module: Any, tensors: Sequence[Any], *, mode: Mode, pool: Any = None) -> Callable[[], None]:
    """`module(*tensors)`, which writes its tensors in place, as a call without arguments.

    In mode cudagraph it is captured after WARM_UPS calls, which run as they are: it must not look at a value on the host. `pool`, a
    `torch.cuda.graph_pool_handle()`: memory that graphs share of which one runs at a time; what they leave there is lost.
    """
    import torch

    def step() -> None:
        with torch.no_grad():
            module(*tensors)

    return _Captured(step, tensors[0].device, pool=pool) if mode == "cudagraph" else step


class _Captured:
    def __init__(self, step: Callable[[], None], on: Any, *, pool: Any = None) -> None:
        self._step, self._on, self._pool = step, on, pool
        self._calls = 0
        self._graph: Any = None

    def __call__(self) -> None:
        import torch

        with torch.cuda.device(self._on):
            if self._graph is not None:
                self._graph.replay()
                return
            if self._calls < WARM_UPS:
                # Warm-ups are real frames on a side stream, as a capture needs; nothing is computed twice.
                side = torch.cuda.Stream()
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    self._step()
                torch.cuda.current_stream().wait_stream(side)
                self._calls += 1
                return
            graph = torch.cuda.CUDAGraph()
            # Other threads may be preparing portraits on the same device meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):  # records, does not run
                self._step()
            graph.replay()
            self._graph = graph


class _TorchRunner:
    def __init__(self, spec: GraphSpec, *, mode: Mode, on: Any) -> None:
        self._spec, self._on = spec, on
        module = spec.build().to(on).eval().requires_grad_(False)
        self._call = compiled(module) if mode == "compile" else module
        self._mode = mode
        self._static: dict[str, Any] = {}
        self._made: Any = ()
        self._run: Callable[[], None] | None = None

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Arrays or tensors in, the same kind out."""
        import torch

        arrays = not any(isinstance(value, torch.Tensor) for value in inputs.values())
        if arrays:
            check_inputs(self._spec, inputs)
        given = {name: torch.as_tensor(inputs[name]) for name in self._spec.inputs}
        with torch.no_grad():
            if self._mode == "script" and not self._static:
                self._static, self._call = {"traced": True}, scripted(self._call, [x.to(self._on) for x in given.values()])
            results = self._captured(given) if self._mode == "cudagraph" else self._call(*(x.to(self._on) for x in given.values()))
        results = (results,) if isinstance(results, torch.Tensor) else results
        return {name: x.cpu().numpy() if arrays else x for name, x in zip(self._spec.outputs, results, strict=True)}

    def _captured(self, given: dict[str, Any]) -> Any:
        """Through static buffers; results are overwritten by the next call."""
        if not self._static:
            self._static = {name: x.to(self._on, copy=True) for name, x in given.items()}

            def call(*static: Any) -> None:
                self._made = self._call(*static)

            self._run = prepared(call, list(self._static.values()), mode="cudagraph")
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
