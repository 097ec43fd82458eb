"""An ONNX graph as a PyTorch module that gradients pass through: the operators of face recognisers, at inference.

(The package onnx2torch does the same for more of them; it brings torchvision, and had no release between August 2024 and the end of 2026.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.types import AvatarError

OLDEST = 7
"""Operator set from which arithmetic broadcasts as today."""
FLOATS = ("float32", "float16", "float64")

Attributes = dict[str, Any]
Operator = Callable[..., Tensor]
"""(attributes, *inputs; None for one that is left out) -> the first output."""


@dataclass(frozen=True, slots=True)
class Node:
    """One operator of a graph."""

    run: Operator
    attributes: Attributes
    inputs: tuple[str, ...]
    output: str
    done: tuple[str, ...]  # what no later node reads


class Graph(nn.Module):
    """Of one input and one output, in float32. Weights do not learn, and are no part of a state_dict."""

    def __init__(self, path: Path) -> None:
        """Raises AvatarError for a file that cannot be read, or an operator that is not known here."""
        super().__init__()
        graph = _read(path)
        self._buffer: dict[str, str] = {}  # name -> attribute
        self._fixed: dict[str, Tensor] = {}  # shapes and indices, which stay on the host
        for held in graph.initializer:
            self._hold(held.name, _tensor(held))
        self._input = next(port.name for port in graph.input if port.name not in self._buffer and port.name not in self._fixed)
        self._output = graph.output[0].name
        computed = []
        for node in graph.node:
            if node.op_type == "Constant":
                self._hold(node.output[0], _constant(_attributes(node)))
            else:
                computed.append(node)
        unknown = sorted({node.op_type for node in computed if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx")})
        if unknown:
            raise AvatarError(f"'{path}' uses {', '.join(unknown)}, which cannot be learnt from here; give a TorchScript file of the same network.")
        self._nodes = _ordered(computed, self._output)

    def _hold(self, name: str, value: Tensor) -> None:
        if value.is_floating_point():
            self._buffer[name] = f"held_{len(self._buffer)}"
            self.register_buffer(self._buffer[name], value.float(), persistent=False)
        else:
            self._fixed[name] = value

    def forward(self, x: Tensor) -> Tensor:
        """What the graph takes -> what it gives."""
        values = {self._input: x, **self._fixed, **{name: getattr(self, attribute) for name, attribute in self._buffer.items()}}
        for node in self._nodes:
            values[node.output] = node.run(node.attributes, *(values[name] if name else None for name in node.inputs))
            for name in node.done:
                values.pop(name, None)
        return values[self._output]


def _read(path: Path) -> Any:
    import onnx

    try:
        model = onnx.load(str(path))
    except Exception as error:  # whatever a damaged or foreign file raises
        raise AvatarError(f"'{path}' is no ONNX file, or damaged; download it again.") from error
    version = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if version < OLDEST:
        raise AvatarError(f"'{path}' is of ONNX's operator set {version}, and {OLDEST} or newer can be read; export it again.")
    return model.graph


def _ordered(nodes: Sequence[Any], kept: str) -> list[Node]:
    """In the file's order, which ONNX demands to be one that can be run."""
    last = {name: i for i, node in enumerate(nodes) for name in node.input if name}
    made = []
    for i, node in enumerate(nodes):
        done = tuple(name for name in {*node.input, *node.output} if name and name != kept and last.get(name, i) == i)
        made.append(Node(OPERATORS[node.op_type], _attributes(node), tuple(node.input), node.output[0], done))
    return made


def _attributes(node: Any) -> Attributes:
    import onnx

    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _tensor(held: Any) -> Tensor:
    import onnx

    return torch.from_numpy(np.array(onnx.numpy_helper.to_array(held)))


def _constant(attributes: Attributes) -> Tensor:
    name, value = next(iter(attributes.items()))
    return _tensor(value) if name == "value" else torch.tensor(value, dtype=torch.int64 if "int" in name else torch.float32)


# -- operators ----------------------------------------------------------------------------------------------------------


def _whole(x: Tensor | None) -> list[int] | None:
    """Values of a tensor of shapes, axes or indices."""
    return None if x is None else [int(value) for value in x.reshape(-1)]


def _padded(a: Attributes, x: Tensor, kernel: Sequence[int], *, value: float = 0.0) -> Tensor:
    """x with what a convolution or a pool pads."""
    strides, dilations = a.get("strides", [1, 1]), a.get("dilations", [1, 1])
    auto = a.get("auto_pad", b"NOTSET").decode()
    top, left, bottom, right = a.get("pads", [0, 0, 0, 0])
    if auto.startswith("SAME"):
        sides = []
        for side, k, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
            more = max(0, (math.ceil(side / stride) - 1) * stride + (k - 1) * dilation + 1 - side)
            sides.append((more // 2, more - more // 2) if auto == "SAME_UPPER" else (more - more // 2, more // 2))
        (top, bottom), (left, right) = sides
    elif auto == "VALID":
        top = left = bottom = right = 0
    return functional.pad(x, (left, right, top, bottom), value=value) if top or left or bottom or right else x


def _conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x = _padded(a, x, weight.shape[2:])
    return functional.conv2d(x, weight, bias, a.get("strides", [1, 1]), 0, a.get("dilations", [1, 1]), a.get("group", 1))


def _pool(a: Attributes, x: Tensor, *, largest: bool) -> Tensor:
    kernel, strides, ceil = a["kernel_shape"], a.get("strides", [1, 1]), bool(a.get("ceil_mode", 0))
    if largest:
        return functional.max_pool2d(_padded(a, x, kernel, value=-math.inf), kernel, strides, ceil_mode=ceil)
    total = functional.avg_pool2d(_padded(a, x, kernel), kernel, strides, ceil_mode=ceil)
    if a.get("count_include_pad", 0):
        return total
    return total / functional.avg_pool2d(_padded(a, torch.ones_like(x[:1, :1]), kernel), kernel, strides, ceil_mode=ceil)


def _batch_norm(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return functional.batch_norm(x, mean, variance, scale, bias, eps=a.get("epsilon", 1e-5))


def _prelu(a: Attributes, x: Tensor, slope: Tensor) -> Tensor:
    by_channel = slope.shape[0] == x.shape[1] and all(side == 1 for side in slope.shape[1:]) and slope.ndim == x.ndim - 1 if slope.ndim else False
    if slope.numel() == 1 or by_channel:
        return functional.prelu(x, slope.reshape(-1))  # which keeps less for the gradient
    return torch.where(x < 0, slope * x, x)


def _gemm(a: Attributes, x: Tensor, y: Tensor, z: Tensor | None = None) -> Tensor:
    x, y = x.t() if a.get("transA", 0) else x, y.t() if a.get("transB", 0) else y
    product = a.get("alpha", 1.0) * (x @ y)
    return product if z is None else product + a.get("beta", 1.0) * z


def _div(a: Attributes, x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() or y.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _flatten(a: Attributes, x: Tensor) -> Tensor:
    axis = a.get("axis", 1) % (x.ndim + 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _reshape(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    wanted = _whole(shape) or []
    return x.reshape([x.shape[i] if side == 0 and not a.get("allowzero", 0) else side for i, side in enumerate(wanted)])


def _squeeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    which = _whole(axes) or a.get("axes")
    return x.squeeze() if which is None else x.squeeze(tuple(which))


def _unsqueeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    which = _whole(axes) or list(a["axes"])
    for axis in sorted(axis % (x.ndim + len(which)) for axis in which):
        x = x.unsqueeze(axis)
    return x


def _gather(a: Attributes, x: Tensor, index: Tensor) -> Tensor:
    axis = a.get("axis", 0) % x.ndim
    picked = x.index_select(axis, (index.reshape(-1) % x.shape[axis]).to(x.device))
    return picked.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def _slice(a: Attributes, x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None) -> Tensor:
    first, last = _whole(starts) or [], _whole(ends) or []
    where, stride = _whole(axes) or range(len(first)), _whole(steps) or [1] * len(first)
    for start, stop, axis, step in zip(first, last, where, stride, strict=True):
        whole = range(x.shape[axis])[start:stop:step]
        x = x.index_select(axis, torch.tensor(list(whole), device=x.device))
    return x


def _shape(a: Attributes, x: Tensor) -> Tensor:
    return torch.tensor(list(x.shape)[a.get("start", 0) : a.get("end")], dtype=torch.int64)


def _cast(a: Attributes, x: Tensor) -> Tensor:
    import onnx

    name = onnx.helper.tensor_dtype_to_np_dtype(a["to"]).name
    kind: torch.dtype = torch.float32 if name in FLOATS else getattr(torch, name)
    return x.to(kind)


def _clip(a: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    bounds = [given if given is not None else a.get(name) for given, name in ((low, "min"), (high, "max"))]
    least, most = (None if bound is None else float(bound) for bound in bounds)
    return x if least is None and most is None else x.clamp(least, most)


def _reduced(reduce: Callable[..., Tensor]) -> Operator:
    def run(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
        which = _whole(axes) or a.get("axes") or range(x.ndim)
        return reduce(x, tuple(which), keepdim=bool(a.get("keepdims", 1)))

    return run


def _unit_length(a: Attributes, x: Tensor) -> Tensor:
    return functional.normalize(x, p=a.get("p", 2), dim=a.get("axis", -1))


OPERATORS: dict[str, Operator] = {
    "Abs": lambda a, x: x.abs(),
    "Add": lambda a, x, y: x + y,
    "AveragePool": lambda a, x: _pool(a, x, largest=False),
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda a, *every: torch.cat(every, a["axis"]),
    "Conv": _conv,
    "Div": _div,
    "Dropout": lambda a, x, *rest: x,
    "Expand": lambda a, x, shape: x * torch.ones(_whole(shape) or [], dtype=x.dtype, device=x.device),
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda a, x: x.mean((2, 3), keepdim=True),
    "HardSigmoid": lambda a, x: (a.get("alpha", 0.2) * x + a.get("beta", 0.5)).clamp(0, 1),
    "HardSwish": lambda a, x: functional.hardswish(x),
    "Identity": lambda a, x: x,
    "LeakyRelu": lambda a, x: functional.leaky_relu(x, a.get("alpha", 0.01)),
    "LpNormalization": _unit_length,
    "MatMul": lambda a, x, y: x @ y,
    "MaxPool": lambda a, x: _pool(a, x, largest=True),
    "Mul": lambda a, x, y: x * y,
    "Neg": lambda a, x: -x,
    "PRelu": _prelu,
    "Pow": lambda a, x, y: x**y,
    "ReduceL2": _reduced(lambda x, axes, keepdim: x.square().sum(axes, keepdim=keepdim).sqrt()),
    "ReduceMean": _reduced(lambda x, axes, keepdim: x.mean(axes, keepdim=keepdim)),
    "ReduceSum": _reduced(lambda x, axes, keepdim: x.sum(axes, keepdim=keepdim)),
    "Relu": lambda a, x: functional.relu(x),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": lambda a, x: x.sigmoid(),
    "Slice": _slice,
    "Sqrt": lambda a, x: x.sqrt(),
    "Squeeze": _squeeze,
    "Sub": lambda a, x, y: x - y,
    "Tanh": lambda a, x: x.tanh(),
    "Transpose": lambda a, x: x.permute(*(a.get("perm") or reversed(range(x.ndim)))),
    "Unsqueeze": _unsqueeze,
}
"""By ONNX's names."""

__all__ = ["OPERATORS", "Graph"]
