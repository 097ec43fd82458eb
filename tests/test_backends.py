"""Every backend keeps the same contract: one call, dict of arrays -> dict of arrays, the declared shapes or a sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from engine import backends
from engine.types import AvatarError, GraphSpec
from tests.conftest import require, require_for

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


def _module() -> Any:
    import torch

    class ScaledSum(torch.nn.Module):
        def forward(self, a: Any, b: Any) -> Any:
            return a * 2 + b

    return ScaledSum()


BUILDS: dict[str, Callable[[], Any]] = {"fake": lambda: _scaled_sum, "onnxruntime": _onnx_bytes, "pytorch": _module}


def _spec(name: str) -> GraphSpec:
    return GraphSpec("scaled_sum", {"a": (SHAPE, "float32"), "b": (SHAPE, "float32")}, ("out",), BUILDS[name])


@pytest.mark.parametrize("name", sorted(backends.NAMES))
def test_a_backend_computes_the_graph(name: str) -> None:
    require_for(name)
    assert backends.backend(name).available() is None
    spec = _spec(name)
    inputs = spec.examples(seed=3)
    results = backends.backend(name).load(spec)(inputs)
    assert set(results) == {"out"}
    np.testing.assert_allclose(results["out"], inputs["a"] * 2 + inputs["b"], rtol=1e-6)


@pytest.mark.parametrize("name", sorted(backends.NAMES))
def test_wrong_names_shapes_and_types_are_refused(name: str) -> None:
    require_for(name)
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


@pytest.mark.torch
def test_tensors_stay_tensors() -> None:
    require("torch")
    import torch

    spec = _spec("pytorch")
    inputs = {name: torch.from_numpy(x) for name, x in spec.examples(seed=3).items()}
    eager = backends.backend("pytorch").load(spec)(inputs)["out"]
    assert isinstance(eager, torch.Tensor)
    assert torch.equal(eager, inputs["a"] * 2 + inputs["b"])


@pytest.mark.torch
def test_a_device_or_mode_that_is_not_there_is_refused() -> None:
    require("torch")
    import torch

    from engine.backends import pytorch

    spec = _spec("pytorch")
    with pytest.raises(AvatarError, match="knows no device"):
        pytorch.load(spec, device_name="abacus")
    with pytest.raises(AvatarError, match="choose one of: eager"):
        pytorch.check_mode("fast", torch.device("cpu"))
    with pytest.raises(AvatarError, match="need a CUDA GPU"):
        pytorch.load(spec, mode="cudagraph", device_name="cpu")
    if not torch.cuda.is_available():
        with pytest.raises(AvatarError, match="sees no CUDA GPU"):
            pytorch.load(spec, device_name="cuda")


@pytest.mark.gpu
@pytest.mark.torch
def test_a_captured_graph_computes_the_same_every_time() -> None:
    require("torch")
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU")
    run = backends.backend("pytorch").load(_spec("pytorch"), mode="cudagraph")
    for seed in range(6):
        inputs = _spec("pytorch").examples(seed)
        np.testing.assert_allclose(run(inputs)["out"], inputs["a"] * 2 + inputs["b"], rtol=1e-6)
