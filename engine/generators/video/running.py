"""What runs a video system's live step: PyTorch, or a graph of it on another backend; and words for what cannot be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch

from engine.backends import backend, exported, half_the_cores, pytorch
from engine.backends.exported import ON_A_GPU
from engine.generators.video.clips import System
from engine.generators.video.live import GRAPH, step_spec
from engine.generators.video.weights import Plan
from engine.types import AvatarError, GraphSpec, Runner

Backend = Literal["pytorch", "openvino", "onnxruntime", "tensorrt"]
KINDS = {"fp32": torch.float32, "fp16": torch.float16}
"""PyTorch's; other backends get fp32 networks and are asked for a precision."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to run it, checked."""

    backend: str
    mode: pytorch.Mode
    device: Any
    precision: str  # of the networks that PyTorch runs
    narrow: str | None  # that another backend is asked for
    graphs: Path | None

    @classmethod
    def of(cls, name: str, *, mode: pytorch.Mode | None, device: str | None, precision: str | None, graphs: str | Path | None) -> Asked:
        """Raises AvatarError for what does not exist, or does not go together."""
        if name not in get_args(Backend):
            raise AvatarError(f"The generator 'video' has no backend called '{name}'; choose one of: {', '.join(get_args(Backend))}.")
        exported.check(name, graphs=graphs, mode=mode, device=device)
        on = pytorch.device(device if name == "pytorch" or name in ON_A_GPU else "cpu")
        kind = "fp32" if name != "pytorch" else precision or ("fp16" if on.type == "cuda" else "fp32")
        if kind not in KINDS or (kind == "fp16" and on.type == "cpu"):
            raise AvatarError(f"The generator 'video' has no precision '{kind}' on {on.type}; use fp32, or on a GPU fp16.")
        if name != "pytorch" and (missing := backend(name).available()):
            raise AvatarError(missing)
        how = mode or pytorch.best_mode(on)
        pytorch.check_mode(how, on)
        if on.type == "cpu":
            torch.set_num_threads(half_the_cores())
        return cls(name, how, on, kind, None if name == "pytorch" else precision, None if graphs is None else Path(graphs))

    @property
    def told(self) -> str:
        """For a person."""
        return f"pytorch {self.mode}" if self.backend == "pytorch" else self.backend

    @property
    def arrays(self) -> bool:
        """Whether the runner takes NumPy's."""
        return self.backend != "pytorch" and self.backend not in ON_A_GPU

    def runner(self, system: System, plan: Plan) -> tuple[GraphSpec, Runner, str]:
        """(the live step, what runs it, its precision). Raises AvatarError where an export is of other weights, or of another step."""
        spec = step_spec(system, plan)
        if self.graphs is not None:
            held = exported.opened(self.graphs, self.backend, origin=system.origin, precision=self.narrow)
            return spec, held.runner(GRAPH, spec, device=str(self.device)), held.manifest.artifact(GRAPH).precision
        if self.backend == "pytorch":
            return spec, pytorch.load(spec, mode=self.mode, device_name=str(self.device)), self.precision
        narrow = self.narrow or "fp32"
        return spec, backend(self.backend).load(spec, precision=narrow, threads=half_the_cores()), narrow


def within_memory(what: str, call: Callable[[], T], *, ways: str) -> T:
    """`call()`; where memory is not enough to do `what`, a sentence with `ways` to need less."""
    try:
        return call()
    except (torch.OutOfMemoryError, MemoryError):
        pass
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
    # Outside of the handler, which would keep the tensors of all its frames.
    raise AvatarError(f"The memory is not enough to {what}; use {ways}.")


__all__ = ["KINDS", "Asked", "Backend", "within_memory"]
