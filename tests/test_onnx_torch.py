"""Every operator of ONNX that can be learnt from gives what ONNX Runtime makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.types import AvatarError
from tests.conftest import require

pytestmark = pytest.mark.torch
for part in ("torch", "onnx", "onnxruntime"):
    require(part)

import torch  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from exporters.training.onnx_torch import OPERATORS, Graph  # noqa: E402

RNG = np.random.default_rng(0)
SHAPE = (2, 4, 6, 5)


def floats(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


def whole(*values: int) -> Any:
    return np.array(values, np.int64)


Step = tuple[str, list[Any], dict[str, Any]]
"""(operator, inputs after the first, attributes); a chain of them, the first from x [2, 4, 6, 5], each next from the one before."""

CASES: dict[str, list[Step]] = {
    "conv": [("Conv", [floats(8, 2, 3, 3), floats(8)], {"pads": [1, 0, 2, 1], "strides": [2, 1], "group": 2})],
    "conv that pads itself": [("Conv", [floats(3, 4, 3, 2)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]})],
    "conv that pads itself below": [("Conv", [floats(3, 4, 2, 2)], {"auto_pad": "SAME_LOWER"})],
    "conv without padding": [("Conv", [floats(3, 4, 3, 3)], {"auto_pad": "VALID", "dilations": [2, 1]})],
    "batch norm": [("BatchNormalization", [floats(4), floats(4), floats(4), np.abs(floats(4)) + 0.1], {"epsilon": 1e-2})],
    "prelu by channel": [("PRelu", [floats(4, 1, 1)], {})],
    "prelu by pixel": [("PRelu", [floats(4, 6, 5)], {})],
    "prelu by column": [("PRelu", [floats(5)], {})],
    "relu": [("Relu", [], {})],
    "leaky": [("LeakyRelu", [], {"alpha": 0.3}), ("Tanh", [], {}), ("Neg", [], {}), ("HardSigmoid", [], {"alpha": 0.5})],
    "clip": [("Clip", [np.float32(-0.5), np.float32(0.5)], {})],
    "sum": [("Add", [floats(4, 1, 1)], {}), ("Sub", [np.float32(0.5)], {}), ("Mul", [floats(5)], {}), ("Div", [np.float32(3)], {})],
    "root": [("Abs", [], {}), ("Pow", [np.float32(1.5)], {}), ("Sqrt", [], {})],
    "head": [("Flatten", [], {}), ("Dropout", [], {}), ("Gemm", [floats(7, 120), floats(7)], {"transB": 1, "alpha": 0.5, "beta": 2.0})],
    "product": [("MatMul", [floats(5, 3)], {}), ("Identity", [], {})],
    "gate": [("GlobalAveragePool", [], {}), ("Sigmoid", [], {}), ("Squeeze", [whole(2, 3)], {}), ("Unsqueeze", [whole(-1, 1)], {})],
    "pool": [("AveragePool", [], {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 0]})],
    "pool that counts its edge": [("AveragePool", [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1})],
    "largest": [("MaxPool", [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]})],
    "reshape": [("Reshape", [whole(0, 2, -1)], {}), ("Transpose", [], {"perm": [0, 2, 1]})],
    "length": [("ReduceL2", [], {"axes": [1], "keepdims": 1}), ("Expand", [whole(2, 4, 6, 5)], {})],
    "mean": [("ReduceMean", [], {"axes": [2, 3], "keepdims": 0}), ("LpNormalization", [], {"axis": 1, "p": 2})],
    "total": [("ReduceSum", [whole(2)], {"keepdims": 0}), ("HardSwish", [], {})],
    "slice": [("Slice", [whole(1, -3), whole(2**40, -1), whole(1, 3), whole(2, 1)], {})],
    "shape": [("Shape", [], {}), ("Gather", [whole(0, -1)], {"axis": 0}), ("Cast", [], {"to": TensorProto.FLOAT})],
    "numbers": [("Shape", [], {}), ("Div", [whole(2)], {}), ("Concat", [whole(9)], {"axis": 0}), ("Cast", [], {"to": TensorProto.FLOAT})],
    "channels": [("Gather", [whole(3, 0)], {"axis": 1}), ("Concat", [floats(2, 1, 6, 5)], {"axis": 1})],
}


def model(steps: list[Step], *, opset: int = 14, constants: bool = False) -> Any:
    """`constants`: held by nodes instead of as weights."""
    nodes, held = [], []
    for i, (kind, given, attributes) in enumerate(steps):
        names = [f"held_{i}_{k}" for k in range(len(given))]
        for name, array in zip(names, given, strict=True):
            tensor = numpy_helper.from_array(np.asarray(array), name)
            if constants:
                nodes.append(helper.make_node("Constant", [], [name], value=tensor))
            else:
                held.append(tensor)
        nodes.append(helper.make_node(kind, [f"at_{i}", *names], [f"at_{i + 1}"], **attributes))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("at_0", SHAPE), (f"at_{len(steps)}", None))]
    graph = helper.make_graph(nodes, "steps", ends[:1], ends[1:], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def saved(path: Path, made: Any) -> Path:
    path.write_bytes(made.SerializeToString())
    return path


@pytest.mark.parametrize("constants", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_an_operator_is_onnx_runtimes(name: str, constants: bool, tmp_path: Path) -> None:
    import onnxruntime

    path = saved(tmp_path / "steps.onnx", model(CASES[name], constants=constants))
    x = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    wanted = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"at_0": x})[0]
    made = Graph(path)(torch.from_numpy(x)).numpy()
    assert made.shape == wanted.shape
    assert made == pytest.approx(wanted, abs=1e-5, rel=1e-5)


def test_every_operator_is_tried() -> None:
    assert {kind for steps in CASES.values() for kind, *_ in steps} == set(OPERATORS)


def test_older_files_keep_axes_and_bounds_in_attributes(tmp_path: Path) -> None:
    steps: list[Step] = [("Clip", [], {"min": -0.5, "max": 0.25}), ("Unsqueeze", [], {"axes": [0]}), ("Squeeze", [], {"axes": [0]})]
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Graph(saved(tmp_path / "old.onnx", model(steps, opset=9)))(x), x.clamp(-0.5, 0.25))


def test_weights_neither_learn_nor_are_kept(tmp_path: Path) -> None:
    graph = Graph(saved(tmp_path / "steps.onnx", model(CASES["head"])))
    assert not list(graph.parameters())
    assert not graph.state_dict()
    x = torch.randn(SHAPE, requires_grad=True)
    graph(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().min() > 0


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(AvatarError, match="uses Softplus, which cannot be learnt from"):
        Graph(saved(tmp_path / "steps.onnx", model([("Softplus", [], {})])))
    with pytest.raises(AvatarError, match="operator set 6, and 7 or newer"):
        Graph(saved(tmp_path / "steps.onnx", model([("Relu", [], {})], opset=6)))
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    with pytest.raises(AvatarError, match="no ONNX file, or damaged"):
        Graph(tmp_path / "bad.onnx")
