"""Every backend keeps the same contract: one call, dict of arrays -> dict of arrays, the declared shapes or a sentence."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
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


def _engine() -> str:
    """A folder as an export of the graph leaves it, built on the GPU that is here."""
    from engine.backends import trt_library
    from exporters.graphs import to_tensorrt
    from exporters.graphs.to_onnx import to_onnx
    from tests.test_trt import built

    flavour: trt_library.Flavour = "tensorrt" if trt_library.missing("tensorrt") is None else "tensorrt_rtx"
    home = Path(tempfile.mkdtemp())
    source = to_onnx(_spec("pytorch"), home / "graph.onnx")
    to_tensorrt.to_tensorrt(source, home / "graph.plan", flavour=flavour)
    target = to_tensorrt.target(flavour, source, to_tensorrt.STANDARD, gpu=trt_library.gpu())
    return str(built(home / "out", spec=_spec("pytorch"), plan=(home / "graph.plan").read_bytes(), **target))


def _require(name: str) -> None:
    """As `require_for`; TensorRT needs more than a module."""
    require_for(name)
    missing = backends.backend(name).available() if name == "tensorrt" else None
    if missing:
        pytest.skip(missing)


BUILDS: dict[str, Callable[[], Any]] = {
    "fake": lambda: _scaled_sum,
    "onnxruntime": _onnx_bytes,
    "openvino": _onnx_bytes,
    "pytorch": _module,
    "tensorrt": _engine,
}


def _spec(name: str) -> GraphSpec:
    return GraphSpec("scaled_sum", {"a": (SHAPE, "float32"), "b": (SHAPE, "float32")}, ("out",), BUILDS[name])


@pytest.mark.parametrize("name", sorted(backends.NAMES))
def test_a_backend_computes_the_graph(name: str) -> None:
    _require(name)
    assert backends.backend(name).available() is None
    spec = _spec(name)
    inputs = spec.examples(seed=3)
    results = backends.backend(name).load(spec)(inputs)
    assert set(results) == {"out"}
    np.testing.assert_allclose(results["out"], inputs["a"] * 2 + inputs["b"], rtol=1e-6)


@pytest.mark.parametrize("name", sorted(backends.NAMES))
def test_wrong_names_shapes_and_types_are_refused(name: str) -> None:
    _require(name)
    spec = _spec(name)
    run, good = backends.backend(name).load(spec), spec.examples()
    with pytest.raises(AvatarError, match="takes"):
        run({"a": good["a"]})
    with pytest.raises(AvatarError, match=r"\[2, 3, 5\], not float32\[2, 3\]"):
        run({**good, "a": good["a"][..., 0]})
    with pytest.raises(AvatarError, match="not float64"):
        run({**good, "b": good["b"].astype(np.float64)})


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_graph_comes_from_a_file_too(name: str, tmp_path: Path) -> None:
    require_for(name)
    file = tmp_path / "graph.onnx"
    file.write_bytes(_onnx_bytes())
    load, spec = backends.backend(name).load, replace(_spec(name), build=None)
    inputs = spec.examples(seed=3)
    np.testing.assert_allclose(load(spec, path=file)(inputs)["out"], inputs["a"] * 2 + inputs["b"], rtol=1e-6)
    with pytest.raises(AvatarError, match="not the graph 'scaled_sum'|graph 'scaled_sum' is not"):
        load(replace(spec, outputs=("sum",)), path=file)
    file.write_bytes(b"nothing")
    with pytest.raises(AvatarError, match=r"'scaled_sum' .*\."):
        load(spec, path=file)
    with pytest.raises(AvatarError, match="export"):
        load(spec, path=tmp_path / "none.onnx")


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_callers_side_by_side_have_a_runner_each(name: str) -> None:
    require_for(name)
    spec = _spec(name)
    first: Any = backends.backend(name).load(spec)
    second, (one, two) = first.another(), (spec.examples(seed) for seed in (1, 2))
    results = [first(one)["out"], second(two)["out"]]
    for got, inputs in zip(results, (one, two), strict=True):
        np.testing.assert_allclose(got, inputs["a"] * 2 + inputs["b"], rtol=1e-6)


def test_openvino_reads_arrays_where_they_lie() -> None:
    """The same array is looked at anew in every call; one that cannot be read where it lies is copied in every call."""
    require("openvino")
    spec = _spec("openvino")
    run, inputs = backends.backend("openvino").load(spec), spec.examples()
    fixed, backwards = np.ones(SHAPE, np.float32), np.ones(SHAPE[::-1], np.float32).T
    fixed.flags.writeable = False
    for number in range(3):
        inputs["a"][...] = number
        backwards[...] = number
        for b in (inputs["b"], fixed, backwards):
            np.testing.assert_allclose(run({"a": inputs["a"], "b": b})["out"], 2 * number + b, rtol=1e-6)


@pytest.mark.torch
def test_openvino_converts_a_network() -> None:
    """With a group norm, which it gets in other words, and outputs in order."""
    require("openvino")
    require("torch")
    import torch

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.norm = torch.nn.Conv2d(3, 6, 3), torch.nn.GroupNorm(2, 6, eps=1e-3)
            torch.nn.init.normal_(self.norm.weight)
            torch.nn.init.normal_(self.norm.bias)

        def forward(self, picture: Any, shift: Any, unused: Any) -> Any:
            x = self.norm(self.conv(picture.float() / 255) + shift)
            return x, x.mean((2, 3))

    shapes = {"picture": ((1, 3, 7, 9), "uint8"), "shift": ((1, 6, 1, 1), "float32"), "unused": ((2,), "float32")}
    spec = GraphSpec("network", shapes, ("x", "mean"), Network)
    inputs = spec.examples(seed=3)
    want = backends.backend("pytorch").load(spec)(inputs)
    got = backends.backend("openvino").load(spec)(inputs)
    for name in spec.outputs:
        assert got[name].dtype == want[name].dtype
        np.testing.assert_allclose(got[name], want[name], rtol=1e-4, atol=1e-5)


def test_openvino_refuses_what_it_would_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """It drops the wish for bf16 without a word where the CPU has none."""
    require("openvino")
    from engine.backends import ov

    class Core:
        def get_property(self, *_: str) -> list[str]:
            return ["FP32"]

    monkeypatch.setattr(ov.library(), "Core", Core)
    spec = _spec("openvino")
    for precision, sentence in (("bf16", "no bf16 arithmetic"), ("int8", "no int8 arithmetic"), ("fp16", "no precision called 'fp16'")):
        with pytest.raises(AvatarError, match=sentence):
            backends.backend("openvino").load(spec, precision=precision)
    monkeypatch.undo()
    with pytest.raises(AvatarError, match="quantised beforehand"):
        ov.load(spec, precision="int8")


def test_openvino_tells_nobody_that_it_is_used(tmp_path: Path) -> None:
    require("openvino")
    (tmp_path / "openvino_telemetry").mkdir()
    (tmp_path / "openvino_telemetry" / "__init__.py").write_text("print('told')\nraise ImportError\n")
    code = "from engine.backends import ov; ov.library(); print('loaded')"
    root = Path(__file__).parent.parent
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env={**os.environ, "PYTHONPATH": f"{tmp_path}:{root}"}, capture_output=True, text=True, check=True
    )
    assert out.stdout.split() == ["loaded"]


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
