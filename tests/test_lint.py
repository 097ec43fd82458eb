"""An ONNX file is looked at before anything runs it: whole, typed, of known operators, with the ports of its GraphSpec."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.types import AvatarError, GraphSpec
from exporters.graphs.lint import counted, lint
from exporters.graphs.shapes import Dynamic, check, sized
from tests.conftest import require

SPEC = GraphSpec("toy", {"x": ((2, 3), "float32"), "past": ((2, 3), "float32")}, ("y",), lambda: None)


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    require("onnx")


def graph(*nodes: Any, opset: int = 20, x: Any = (2, 3), kind: int | None = None, constants: Any = (), domain: str = "") -> Any:
    """x, past -> y by the nodes, or by their sum."""
    from onnx import TensorProto, helper

    of = TensorProto.FLOAT if kind is None else kind
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        list(nodes) or [helper.make_node("Add", ["x", "past"], ["y"], name="sum")],
        "toy",
        [value("x", of, x), value("past", of, x)],
        [value("y", of, x)],
        list(constants),
    )
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(made, opset_imports=opsets, ir_version=10)


def node(kind: str, given: list[str], made: list[str], **attributes: Any) -> Any:
    from onnx import helper

    return helper.make_node(kind, given, made, name=f"the_{kind}", **attributes)


def saved(model: Any, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def test_a_clean_graph_passes(tmp_path: Path) -> None:
    found = lint(saved(graph(), tmp_path / "toy.onnx"), SPEC)
    assert (found.opset, found.nodes, found.operators) == (20, 1, {"Add": 1})
    assert counted({"Add": 1, "Conv": 3}) == "Conv 3, Add 1"


def _scatter() -> Any:
    import numpy as np
    from onnx import numpy_helper

    index = numpy_helper.from_array(np.zeros((2, 3), np.int64), "index")
    return graph(node("ScatterElements", ["x", "index", "past"], ["y"], axis=1, reduction="add"), constants=[index])


def _double() -> Any:
    from onnx import TensorProto

    cast, back = node("Cast", ["x"], ["wide"], to=TensorProto.DOUBLE), node("Cast", ["wide"], ["narrow"], to=TensorProto.FLOAT)
    return graph(cast, back, node("Add", ["narrow", "past"], ["y"]))


def _half() -> Any:
    from onnx import TensorProto

    return graph(kind=TensorProto.FLOAT16)


def _random() -> Any:
    return graph(node("RandomNormalLike", ["x"], ["noise"]), node("Add", ["noise", "past"], ["y"]))


def _values_make_a_size() -> Any:
    return graph(node("NonZero", ["x"], ["where"]), node("Add", ["x", "past"], ["y"]))


def _own_domain() -> Any:
    return graph(node("Add", ["x", "past"], ["y"], domain="com.somebody"), domain="com.somebody")


def _renamed() -> Any:
    model = graph()
    model.graph.input[1].name = model.graph.node[0].input[1] = "future"
    return model


def _no_type() -> Any:
    model = graph()
    model.graph.node[0].input[0] = "nowhere"
    return model


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "adds while it scatters": (_scatter, r"'the_ScatterElements' \(ScatterElements\) adds while it scatters"),
    "computes in float64": (_double, "float64, which engines do not compute with"),
    "another dtype": (_half, r"Input 'x' of toy.onnx is float16\[2, 3\], of graph 'toy' float32\[2, 3\]"),
    "another shape": (lambda: graph(x=(2, 4)), r"is float32\[2, 4\], of graph 'toy' float32\[2, 3\]"),
    "a free size": (lambda: graph(x=("n", 3)), r"is float32\[\?, 3\]"),
    "random numbers": (_random, r"'the_RandomNormalLike' \(RandomNormalLike\) is an operator that not every backend has"),
    "sizes made of values": (_values_make_a_size, r"'the_NonZero' \(NonZero\)"),
    "operators of somebody's own": (_own_domain, "uses the operator sets ai.onnx 20, com.somebody 1"),
    "an old opset": (lambda: graph(opset=17), "uses the operator sets ai.onnx 17; only ai.onnx 20 to 23"),
    "another input": (_renamed, r"has other inputs than graph 'toy' \(past\)"),
    "an input from nowhere": (_no_type, "is no valid ONNX graph"),
}


@pytest.mark.parametrize("what", sorted(WRONG))
def test_a_graph_that_some_backend_would_not_take_is_refused(tmp_path: Path, what: str) -> None:
    make, sentence = WRONG[what]
    with pytest.raises(AvatarError, match=sentence) as told:
        lint(saved(make(), tmp_path / "toy.onnx"), SPEC)
    assert "\n" not in str(told.value)


def test_outputs_are_those_of_the_graph(tmp_path: Path) -> None:
    with pytest.raises(AvatarError, match=r"has other outputs than graph 'toy' \(z\)"):
        lint(saved(graph(), tmp_path / "toy.onnx"), replace(SPEC, outputs=("y", "z")))


@pytest.mark.parametrize("content", [b"", b"not a protobuf at all", None], ids=["empty", "text", "cut short"])
def test_a_damaged_file_is_said(tmp_path: Path, content: bytes | None) -> None:
    path = saved(graph(), tmp_path / "toy.onnx")
    path.write_bytes(path.read_bytes()[:60] if content is None else content)
    with pytest.raises(AvatarError, match="toy.onnx is damaged, cut short or no ONNX file"):
        lint(path, SPEC)
    with pytest.raises(AvatarError, match="is missing; export it again"):
        lint(tmp_path / "other.onnx", SPEC)


def test_only_declared_lengths_are_free(tmp_path: Path) -> None:
    path = saved(graph(x=("n", 3)), tmp_path / "toy.onnx")
    free = Dynamic({"x": 0, "past": 0}, 1, 2, 4)
    assert lint(path, SPEC, dynamic=free).nodes == 1
    with pytest.raises(AvatarError, match=r"Input 'past' of toy.onnx is float32\[\?, 3\], of graph 'toy' float32\[2, 3\]"):
        lint(path, SPEC, dynamic=replace(free, axes={"x": 0}))
    with pytest.raises(AvatarError, match=r"of graph 'toy' float32\[2, \?\]"):
        lint(path, SPEC, dynamic=replace(free, axes={"x": 1}))


def test_a_free_length_is_declared_well() -> None:
    free = Dynamic({"x": 1}, 1, 2, 4)
    assert sized(SPEC, free, 4).inputs == {"x": ((2, 12), "float32"), "past": ((2, 3), "float32")}
    assert free.corners == (1, 2, 4)
    with pytest.raises(AvatarError, match="has no input 'z' with an axis 0"):
        check(SPEC, replace(free, axes={"z": 0}))
    with pytest.raises(AvatarError, match="has no input 'x' with an axis 2"):
        check(SPEC, replace(free, axes={"x": 2}))
    for wrong in (replace(free, minimum=0), replace(free, minimum=3), replace(free, optimum=5), Dynamic({"x": 0}, 1, 1, 1)):
        with pytest.raises(AvatarError, match="A free length needs"):
            check(SPEC, wrong)
