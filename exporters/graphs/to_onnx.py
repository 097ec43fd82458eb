"""GraphSpec -> ONNX, checked before it is written: linted, run by ONNX Runtime, and compared with PyTorch.

Fixed sizes, tensors in and tensors out, states among them; opset 20, which every backend reads. A file that fails a check does not appear.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from engine.backends import backend
from engine.backends.artifact import sha256
from engine.types import AvatarError, GraphSpec, Runner
from exporters.graphs import parity, shapes
from exporters.graphs.lint import Facts, lint
from exporters.graphs.manifest import told_if_full
from exporters.graphs.parity import LIMITS, Arrays, Limit, Measured
from exporters.graphs.shapes import Dynamic

OPSET = 20
SEEDS = (0, 1, 2)
"""Of the random inputs that every graph is compared on."""
INLINE_BYTES = 1_500_000_000
"""Above this, weights lie in a second file: an ONNX file of its own ends at 2 GiB."""
TORCH_EXTRA = "Exporting needs PyTorch and onnxscript; pip install 'avatar-engine[torch,export]'."


@dataclass(frozen=True, slots=True)
class Onnx:
    """A graph on disk that computes what PyTorch does."""

    spec: GraphSpec
    path: Path
    files: tuple[Path, ...]  # `path` first
    sha256: str  # of all files together
    facts: Facts
    measured: Measured
    dynamic: Dynamic | None = None


def to_onnx(
    spec: GraphSpec,
    path: Path,
    *,
    dynamic: Dynamic | None = None,
    recorded: Sequence[Arrays] = (),
    limit: Limit = LIMITS["fp32"],
    tell: Callable[[str], None] = lambda line: None,
) -> Onnx:
    """The graph, in fp32, as a new file. `recorded`: real inputs that it must agree on as well as on the random ones.

    Raises AvatarError, with nothing written, where it cannot be exported, is no clean graph, or differs from PyTorch by more than `limit`.
    """
    missing = available()
    if missing:
        raise AvatarError(missing)
    module = _module(spec)
    tell(f"{spec.name}: tracing ...")
    program = _traced(spec, module, dynamic)
    with told_if_full(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=".onnx-") as folder:
        draft = Path(folder) / path.name
        program.save(str(draft), external_data=_bytes(program.model) > INLINE_BYTES)
        facts = lint(draft, spec, dynamic=dynamic)
        tell(f"{spec.name}: {facts.nodes} nodes; comparing ONNX Runtime with PyTorch ...")
        measured = compared(spec, module, draft, dynamic=dynamic, recorded=recorded)
        parity.check(measured, limit, what=f"the ONNX graph '{spec.name}'")
        made = sorted(Path(folder).iterdir(), key=lambda file: file != draft)
        for file in reversed(made):  # the graph last: it is of no use without its data
            shutil.move(file, path.parent / file.name)
    files = tuple(path.parent / file.name for file in made)
    return Onnx(spec, path, files, digest(files), facts, measured, dynamic)


def available() -> str | None:
    """None, or what to install."""
    needed = ("torch", "onnxscript", "onnx_ir", "onnx", "onnxruntime")
    absent = [name for name in needed if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} is not installed. {TORCH_EXTRA}" if absent else None


def digest(files: Sequence[Path]) -> str:
    """One sha256 of a graph with its external data."""
    return hashlib.sha256("".join(sha256(file) for file in files).encode()).hexdigest()


def compared(spec: GraphSpec, module: Any, path: Path, *, dynamic: Dynamic | None = None, recorded: Sequence[Arrays] = ()) -> Measured:
    """An ONNX file against PyTorch: random inputs at every corner of a free length, then the recorded ones."""
    tested = onnx_runner(spec, path)
    worst: dict[str, parity.Error] = {}
    count = 0
    for each in shapes.sizes(spec, dynamic):
        inputs = chain((each.examples(seed) for seed in SEEDS), () if dynamic else recorded)  # one by one: rings can be gigabytes
        at_size = _Resized(each, tested)
        measured = parity.measure(reference(each, module), at_size, inputs, what=f"the ONNX graph '{spec.name}'")
        worst = {name: error.worse(worst[name]) if name in worst else error for name, error in measured.errors.items()}
        count += measured.inputs
    return Measured(count, worst)


def onnx_runner(spec: GraphSpec, path: Path) -> Any:
    """ONNX Runtime on a file; its own complaint as a sentence."""
    try:
        return backend("onnxruntime").load(replace(spec, build=lambda: str(path)))
    except AvatarError:
        raise
    except Exception as error:  # whatever the runtime raises for a graph that it cannot take
        raise AvatarError(f"ONNX Runtime cannot load {path.name} ({str(error).splitlines()[0]}); export it again.") from error


def reference(spec: GraphSpec, module: Any) -> Runner:
    """PyTorch on the CPU, in the module's own precision."""
    return backend("pytorch").load(replace(spec, build=lambda: module), mode="eager", device_name="cpu")


class _Resized:
    """A session at another size of its free length: only the check of the inputs differs."""

    def __init__(self, spec: GraphSpec, runner: Any) -> None:
        self._spec, self._session = spec, runner

    def __call__(self, inputs: Arrays) -> dict[str, Any]:
        self._session._spec = self._spec
        found: dict[str, Any] = self._session(inputs)
        return found


# -- tracing ----------------------------------------------------------------------------------------------------------------


def _module(spec: GraphSpec) -> Any:
    """The spec's network, ready to be traced. Raises AvatarError for one that is not in fp32 on the CPU."""
    import torch

    module = spec.build()
    if not isinstance(module, torch.nn.Module):
        raise AvatarError(f"Graph '{spec.name}' is no PyTorch network, so it cannot be exported; give a generator that runs on PyTorch.")
    module.eval().requires_grad_(False)
    for name, held in (*module.named_parameters(), *module.named_buffers()):
        if held.device.type != "cpu" or (held.is_floating_point() and held.dtype != torch.float32):
            raise AvatarError(f"'{name}' of graph '{spec.name}' is {held.dtype} on {held.device}; export from fp32 on the CPU.")
    return module


def _traced(spec: GraphSpec, module: Any, dynamic: Dynamic | None) -> Any:
    """An ONNXProgram, tidied. Raises AvatarError where the network cannot be traced."""
    import torch

    from exporters.graphs.tidy import tidy

    class Positional(torch.nn.Module):
        """Tensors in the order of the spec -> a tuple."""

        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *tensors: Any) -> Any:
            made = self.module(*tensors)
            return (made,) if isinstance(made, torch.Tensor) else tuple(made)

    # A free length is traced at 2 or more: a length of 1 would be taken for a fact.
    shown = shapes.sized(spec, dynamic, max(2, dynamic.optimum)) if dynamic else spec
    examples = tuple(torch.from_numpy(value) for value in shown.examples().values())
    try:
        with _quiet(), torch.no_grad():
            # Captured here, once: left to itself, the exporter tries other ways where one fails.
            captured = torch.export.export(Positional().eval(), examples, dynamic_shapes=_free(spec, dynamic), strict=False)
            program = torch.onnx.export(
                captured,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(spec.inputs),
                output_names=list(spec.outputs),
                optimize=False,
                verbose=False,
            )
            tidy(program.model)
    except AvatarError:
        raise
    except Exception as error:  # whatever PyTorch raises where a network cannot be traced
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        said = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise AvatarError(f"Graph '{spec.name}' cannot be traced ({said}); make its network free of branches on values.") from error
    return program


def _free(spec: GraphSpec, dynamic: Dynamic | None) -> Any:
    """PyTorch's words for a free length: every axis a multiple of one dimension."""
    if dynamic is None:
        return None
    import torch

    shapes.check(spec, dynamic)
    n = torch.export.Dim("n", min=dynamic.minimum, max=dynamic.maximum)
    axes = ({dynamic.axes[name]: shape[dynamic.axes[name]] * n} if name in dynamic.axes else None for name, (shape, _) in spec.inputs.items())
    return {"tensors": tuple(axes)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch's exporter warns of itself."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _bytes(model: Any) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


__all__ = ["OPSET", "SEEDS", "Onnx", "available", "compared", "digest", "onnx_runner", "reference", "to_onnx"]
