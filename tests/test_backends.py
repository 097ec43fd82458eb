"""Every backend keeps the same contract: one call, dict of arrays -> dict of arrays, the declared shapes or a sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from engine import backends
from engine.types import AvatarError, GraphSpec

SHAPE = (2, 3, 5)  # every size different


def _scaled_sum(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {"out": inputs["a"] * 2 + inputs["b"]}


def _onnx_bytes() -> bytes:
    from onnx import TensorProto, checker, helper

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "a"], ["twice"]), helper.make_node("Add", ["twice", "b"], ["out"])],
        "scaled_sum",
        [value("a", TensorProto.FLOAT, SHAPE), value("b", TensorProto.FLOAT, SHAPE)],
        [value("out", TensorProto.FLOAT, SHAPE)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


BUILDS: dict[str, Callable[[], Any]] = {"fake": lambda: _scaled_sum, "onnxruntime": _onnx_bytes}


def _spec(name: str) -> GraphSpec:
    return GraphSpec("scaled_sum", {"a": (SHAPE, "float32"), "b": (SHAPE, "float32")}, ("out",), BUILDS[name])


@pytest.mark.parametrize("name", sorted(backends.NAMES))
def test_a_backend_computes_the_graph(name: str) -> None:
    assert backends.backend(name).available() is None
    spec = _spec(name)
    inputs = spec.examples(seed=3)
    results = backends.backend(name).load(spec)(inputs)
    assert set(results) == {"out"}
    np.testing.assert_allclose(results["out"], inputs["a"] * 2 + inputs["b"], rtol=1e-6)


@pytest.mark.parametrize("name", sorted(backends.NAMES))
def test_wrong_names_shapes_and_types_are_refused(name: str) -> None:
    spec = _spec(name)
    run, good = backends.backend(name).load(spec), spec.examples()
    with pytest.raises(AvatarError, match="takes"):
        run({"a": good["a"]})
    with pytest.raises(AvatarError, match=r"\[2, 3, 5\], not float32\[2, 3\]"):
        run({**good, "a": good["a"][..., 0]})
    with pytest.raises(AvatarError, match="not float64"):
        run({**good, "b": good["b"].astype(np.float64)})


def test_examples_are_seeded() -> None:
    spec = _spec("fake")
    np.testing.assert_array_equal(spec.examples(1)["a"], spec.examples(1)["a"])
    assert not np.array_equal(spec.examples(1)["a"], spec.examples(2)["a"])
