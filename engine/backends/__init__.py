"""The registry of backends: one file and one line each. A backend turns a GraphSpec into a Runner, or raises; it never falls back."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any, Protocol

from engine.types import AvatarError, GraphSpec, Runner

NAMES = {
    "fake": "engine.backends.fake",
    "onnxruntime": "engine.backends.ort",
    "openvino": "engine.backends.ov",
    "pytorch": "engine.backends.pytorch",
    "tensorrt": "engine.backends.trt",
}


class Backend(Protocol):
    """What a backend module offers."""

    def available(self) -> str | None:
        """None if it works here, else one sentence that says what to install."""
        ...

    def load(self, spec: GraphSpec, **options: Any) -> Runner:
        """A runner of the graph, for one caller at a time; a call's results may lie where the next one's will. Raises AvatarError where it
        cannot be built."""
        ...


def backend(name: str) -> Backend:
    """A backend by name. Raises AvatarError for an unknown name."""
    if name not in NAMES:
        raise AvatarError(f"There is no backend called '{name}'; choose one of: {', '.join(sorted(NAMES))}.")
    module: Any = import_module(NAMES[name])
    found: Backend = module
    return found


def half_the_cores() -> int:
    """Threads of one call on a CPU: trackers and encoders share the cores, and a parallel loop waits for its slowest thread. On two busy cores
    two threads took ten times as long as one."""
    return max(1, (os.cpu_count() or 1) // 2)


def check_inputs(spec: GraphSpec, inputs: Any) -> None:
    """Raise AvatarError where names, shapes or dtypes differ from the spec: every backend checks alike."""
    if set(inputs) != set(spec.inputs):
        raise AvatarError(f"Graph '{spec.name}' takes {sorted(spec.inputs)}, not {sorted(inputs)}.")
    for name, (shape, dtype) in spec.inputs.items():
        got = inputs[name]
        if tuple(got.shape) != tuple(shape) or str(got.dtype) != dtype:
            raise AvatarError(f"Input '{name}' of graph '{spec.name}' is {dtype}{list(shape)}, not {got.dtype}{list(got.shape)}.")
