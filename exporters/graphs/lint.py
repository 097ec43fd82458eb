"""What an ONNX file must be before any backend sees it: whole, typed, of known operators, with the inputs and outputs of its GraphSpec."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.types import AvatarError, GraphSpec
from exporters.graphs.shapes import Dynamic, free_axes

OPSETS = range(20, 24)
"""20 is what every backend reads; 21 has GroupNormalization of today, 23 Attention."""
_MOVED = "Concat DepthToSpace Expand Flatten Identity Pad Reshape Slice SpaceToDepth Split Squeeze Tile Transpose Unsqueeze"
_OTHERS = """
Abs Add And ArgMax ArgMin Attention AveragePool BatchNormalization Cast Ceil Clip Constant ConstantOfShape Conv ConvTranspose Cos CumSum
DequantizeLinear Div Einsum Elu Equal Erf Exp Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool Greater GreaterOrEqual
GridSample GroupNormalization HardSigmoid HardSwish InstanceNormalization LayerNormalization LeakyRelu Less LessOrEqual Log MatMul Max MaxPool
Min Mish Mod Mul Neg Not Or PRelu Pow QuantizeLinear RMSNormalization Range Reciprocal ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
Relu Resize Round ScatterElements ScatterND Shape Sigmoid Sign Sin Softmax Softplus Softsign Sqrt Sub Sum Tan Tanh TopK Trilu Where
"""
MOVED = frozenset(_MOVED.split())
"""Operators that only move values about."""
ALLOWED = MOVED | frozenset(_OTHERS.split())
"""What ONNX Runtime, OpenVINO and TensorRT all take. Not among them on purpose: random numbers, loops, branches, sequences, strings, and
whatever makes a shape depend on values."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a clean file holds."""

    opset: int
    nodes: int
    operators: dict[str, int]


def lint(path: Path, spec: GraphSpec, *, dynamic: Dynamic | None = None) -> Facts:
    """Look at a file without running it. Raises AvatarError, with the node or the tensor, for whatever is not as it should be."""
    import onnx

    model = load(path)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # the checker has its own kinds, and passes on those of what it reads
        raise AvatarError(f"{path.name} is no valid ONNX graph: {_line(error)}; export it again.") from error
    opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if set(opsets) != {"ai.onnx"} or opsets["ai.onnx"] not in OPSETS or model.functions:
        said = ", ".join(f"{domain} {version}" for domain, version in opsets.items())
        raise AvatarError(f"{path.name} uses the operator sets {said}; only ai.onnx {OPSETS[0]} to {OPSETS[-1]} runs on every backend.")
    _operators(path, model)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    _types(path, inferred)
    _ports(path, inferred, spec, dynamic)
    _shapes(path, inferred, dynamic)
    counts = Counter(node.op_type for node in model.graph.node)
    return Facts(opsets["ai.onnx"], len(model.graph.node), dict(sorted(counts.items())))


def load(path: Path) -> Any:
    """The graph of a file without external data. Raises AvatarError where it is none."""
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except FileNotFoundError as error:
        raise AvatarError(f"{path} is missing; export it again.") from error
    except Exception as error:  # protobuf's own kind
        raise AvatarError(f"{path} is damaged, cut short or no ONNX file; export it again.") from error
    if not model.graph.node:
        raise AvatarError(f"{path} is damaged, cut short or no ONNX file: it has no nodes; export it again.")
    return model


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")


def _operators(path: Path, model: Any) -> None:
    for node in model.graph.node:
        where = f"node '{node.name}' ({node.op_type})"
        if node.domain not in ("", "ai.onnx") or node.op_type not in ALLOWED:
            raise AvatarError(f"{path.name}: {where} is an operator that not every backend has; write that part of the network in simpler ones.")
        adding = [a for a in node.attribute if a.name == "reduction" and a.s not in (b"", b"none")]
        if adding and node.op_type.startswith("Scatter"):
            raise AvatarError(f"{path.name}: {where} adds while it scatters, which TensorRT cannot; multiply by a matrix of ones and zeros instead.")


def _types(path: Path, model: Any) -> None:
    from onnx import TensorProto

    wide = {TensorProto.DOUBLE: "float64", TensorProto.COMPLEX64: "complex64", TensorProto.COMPLEX128: "complex128", TensorProto.STRING: "text"}
    for name, kind in _typed(model):
        if kind in wide:
            raise AvatarError(f"{path.name}: tensor '{name}' is {wide[kind]}, which engines do not compute with; make it float32 in the network.")


def _typed(model: Any) -> Iterator[tuple[str, int]]:
    """(name, element type) of every tensor that has one."""
    graph = model.graph
    for tensor in graph.initializer:
        yield tensor.name, tensor.data_type
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield value.name, value.type.tensor_type.elem_type
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield node.name, attribute.t.data_type
            if node.op_type == "Cast" and attribute.name == "to":
                yield node.name, attribute.i


def _ports(path: Path, model: Any, spec: GraphSpec, dynamic: Dynamic | None) -> None:
    """Inputs and outputs against the spec."""
    import numpy as np
    from onnx import helper

    given, made = [value.name for value in model.graph.input], [value.name for value in model.graph.output]
    for kind, found, wanted in (("inputs", given, list(spec.inputs)), ("outputs", made, list(spec.outputs))):
        if found != wanted:
            odd = next((name for name in (*wanted, *found) if (name in wanted) != (name in found)), "their order")
            raise AvatarError(f"{path.name} has other {kind} than graph '{spec.name}' ({odd}); export it again.")
    free = free_axes(spec, dynamic)
    for value in model.graph.input:
        shape, dtype = spec.inputs[value.name]
        tensor = value.type.tensor_type
        kind = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
        sizes = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
        wanted_sizes = [None if axis in free.get(value.name, ()) else size for axis, size in enumerate(shape)]
        if kind != dtype or sizes != wanted_sizes:
            told, asked = (f"{t}[{', '.join('?' if s is None else str(s) for s in x)}]" for t, x in ((kind, sizes), (dtype, wanted_sizes)))
            raise AvatarError(f"Input '{value.name}' of {path.name} is {told}, of graph '{spec.name}' {asked}; export it again.")


def _shapes(path: Path, model: Any, dynamic: Dynamic | None) -> None:
    """No size may be unknown where none was declared free."""
    if dynamic is not None:
        return
    for value in (*model.graph.output, *model.graph.value_info):
        tensor = value.type.tensor_type
        if not tensor.HasField("shape") or not all(d.HasField("dim_value") for d in tensor.shape.dim):
            raise AvatarError(f"{path.name}: the size of tensor '{value.name}' is only known while it runs; make it fixed in the network.")


def counted(operators: Mapping[str, int]) -> str:
    """For a person: the most frequent first."""
    return ", ".join(f"{name} {count}" for name, count in sorted(operators.items(), key=lambda item: -item[1]))


__all__ = ["ALLOWED", "MOVED", "OPSETS", "Facts", "counted", "lint", "load"]
