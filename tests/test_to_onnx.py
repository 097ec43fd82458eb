"""GraphSpec -> ONNX: what is written computes what PyTorch does, and what would not is never written."""

from __future__ import annotations

import importlib.util
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.backends import backend
from engine.types import AvatarError, GraphSpec
from exporters.graphs import closed_loop, parity, to_onnx
from exporters.graphs.parity import LIMITS
from exporters.graphs.shapes import Dynamic
from tests.conftest import found, require

if found("torch"):
    import torch
    from torch import nn

pytestmark = pytest.mark.torch
INPUTS = {"picture": ((1, 6, 4, 3), "uint8"), "state": ((1, 8, 4, 6), "float32"), "tokens": ((1, 5, 8), "float32")}
"""H != W, and no two sizes alike where they could be mixed up."""


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    for part in ("torch", "onnx", "onnxscript", "onnxruntime"):
        require(part)


def toy(change: Callable[[Any], Any] | None = None) -> GraphSpec:
    """A step with a memory: bytes in, attention to tokens, bytes out. `change`: of the network."""

    class Toy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv_in = nn.Conv2d(3, 8, 3, padding=1)
            self.norm = nn.GroupNorm(2, 8)
            self.to_kv = nn.Linear(8, 16)
            self.conv_out = nn.Conv2d(8, 3, 1)

        def forward(self, picture: Any, state: Any, tokens: Any) -> Any:
            x = self.norm(self.conv_in(picture.permute(0, 3, 2, 1).float() / 255))
            k, v = self.to_kv(tokens).chunk(2, -1)
            query = x.flatten(2).transpose(1, 2)
            seen = ((query @ k.transpose(1, 2)).softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
            after = 0.5 * state + seen
            made = (self.conv_out(x + after).sigmoid() * 255).round().to(torch.uint8)
            return made.permute(0, 3, 2, 1).contiguous(), after

    torch.manual_seed(0)
    network = Toy()
    return GraphSpec("toy", INPUTS, ("shown", "next"), lambda: network if change is None else change(network))


@pytest.fixture(scope="module")
def program() -> Any:
    """The toy, traced once."""
    spec = toy()
    return to_onnx._traced(spec, spec.build(), None)


@pytest.fixture
def traced(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports of the toy take the trace that there is."""
    monkeypatch.setattr(to_onnx, "_traced", lambda spec, module, dynamic: program)


@pytest.fixture(scope="module")
def exported(program: Any, tmp_path_factory: pytest.TempPathFactory) -> to_onnx.Onnx:
    """The toy, once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(to_onnx, "_traced", lambda spec, module, dynamic: program)
        return to_onnx.to_onnx(toy(), tmp_path_factory.mktemp("onnx") / "toy.onnx")


def nodes(path: Path) -> list[Any]:
    import onnx

    return list(onnx.load(path).graph.node)


# -- what is written ------------------------------------------------------------------------------------------------------


def test_the_file_computes_what_pytorch_does(exported: to_onnx.Onnx) -> None:
    spec = toy()
    run = backend("onnxruntime").load(spec, path=exported.path)
    for seed in (5, 6):
        inputs = spec.examples(seed)
        with torch.no_grad():
            shown, after = spec.build()(*(torch.from_numpy(x) for x in inputs.values()))
        got = run(inputs)
        np.testing.assert_array_equal(got["shown"], shown.numpy())
        np.testing.assert_allclose(got["next"], after.numpy(), atol=1e-5)
    assert exported.facts.opset == to_onnx.OPSET
    assert exported.measured.inputs == len(to_onnx.SEEDS)
    name, error = exported.measured.worst
    assert name == "next"
    assert 0 < error.rel_l2 < 1e-5


def test_bytes_are_numbers_inside(exported: to_onnx.Onnx) -> None:
    kinds = [node.op_type for node in nodes(exported.path)]
    casts = [node for node in nodes(exported.path) if node.op_type == "Cast"]
    assert [(cast.input[0], cast.output[0]) for cast in casts if "picture" in cast.input or "shown" in cast.output] == [
        ("picture", "picture.float"),
        ("shown.float", "shown"),
    ]
    assert len(casts) == 2
    assert "CastLike" not in kinds


def test_nodes_are_named_by_their_module_and_nothing_tells_where_it_was_made(exported: to_onnx.Onnx) -> None:
    assert any(node.name.startswith("conv_in/Conv") for node in nodes(exported.path))
    assert any(node.name.startswith("norm/InstanceNormalization") for node in nodes(exported.path))
    content = exported.path.read_bytes()
    for trace in (b"site-packages", b"/home", str(Path.cwd()).encode(), b"test_to_onnx", b'File "'):
        assert trace not in content


def test_two_exports_are_the_same_bytes(exported: to_onnx.Onnx, tmp_path: Path) -> None:
    assert to_onnx.to_onnx(toy(), tmp_path / "toy.onnx").sha256 == exported.sha256


@pytest.mark.usefixtures("traced")
def test_large_weights_lie_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to_onnx, "INLINE_BYTES", 0)
    spec = toy()
    made = to_onnx.to_onnx(spec, tmp_path / "toy.onnx")
    assert [file.name for file in made.files] == ["toy.onnx", "toy.onnx.data"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy.onnx", "toy.onnx.data"]
    inputs = spec.examples(9)
    run = backend("onnxruntime").load(spec, path=made.path)
    np.testing.assert_array_equal(run(inputs)["shown"], spec.build()(*map(torch.from_numpy, inputs.values()))[0].numpy())
    data = made.files[1]
    data.write_bytes(data.read_bytes()[:-1] + b"\x7f")
    assert to_onnx.digest(made.files) != made.sha256


def test_a_length_that_is_declared_free_is_free(tmp_path: Path) -> None:
    spec, free = toy(), Dynamic({"tokens": 1}, 1, 2, 4)
    made = to_onnx.to_onnx(spec, tmp_path / "toy.onnx", dynamic=free)
    assert made.measured.inputs == len(to_onnx.SEEDS) * len(free.corners)
    for n in (1, 3, 4):
        at = replace(spec, inputs={**INPUTS, "tokens": ((1, 5 * n, 8), "float32")})
        inputs = at.examples(7)
        got = backend("onnxruntime").load(at, path=made.path)(inputs)
        want = spec.build()(*map(torch.from_numpy, inputs.values()))
        np.testing.assert_allclose(got["next"], want[1].detach().numpy(), atol=1e-5)


# -- what is not ----------------------------------------------------------------------------------------------------------


def refused(spec: GraphSpec, tmp_path: Path, sentence: str, **options: Any) -> None:
    """Nothing of it is left, not even a folder for drafts."""
    with pytest.raises(AvatarError, match=sentence) as told:
        to_onnx.to_onnx(spec, tmp_path / "toy.onnx", **options)
    assert "\n" not in str(told.value)
    assert list(tmp_path.iterdir()) == []


def test_what_differs_from_pytorch_is_not_written(tmp_path: Path) -> None:
    class Counts(nn.Module):
        """What a trace sees once, PyTorch does anew every time."""

        def __init__(self, network: Any) -> None:
            super().__init__()
            self.network, self.calls = network, 0

        def forward(self, *tensors: Any) -> Any:
            shown, after = self.network(*tensors)
            self.calls += 1
            return shown, after + 0.001 * self.calls

    refused(toy(Counts), tmp_path, r"Output 'next' of the ONNX graph 'toy' differs from PyTorch by 0.00\d+ at most and .* relative, more than")


def test_recorded_inputs_count_as_the_random_ones_do(exported: to_onnx.Onnx) -> None:
    spec, recorded = toy(), toy().examples(3)
    assert to_onnx.compared(spec, spec.build(), exported.path, recorded=[recorded]).inputs == 1 + len(to_onnx.SEEDS)
    recorded["state"][0, 0, 0, 0] = np.inf
    with pytest.raises(AvatarError, match="holds values that are no numbers, already in PyTorch"):
        to_onnx.compared(spec, spec.build(), exported.path, recorded=[recorded])


def test_a_network_that_cannot_be_exported_is_said(tmp_path: Path) -> None:
    class Branches(nn.Module):
        def forward(self, picture: Any, state: Any, tokens: Any) -> Any:
            return picture, state if float(tokens.sum()) > 0 else -state

    class Random(nn.Module):
        def forward(self, picture: Any, state: Any, tokens: Any) -> Any:
            return picture, state + torch.randn_like(state)

    class Bytes(nn.Module):
        def forward(self, picture: Any, state: Any, tokens: Any) -> Any:
            return picture + picture, state

    refused(toy(lambda _: Branches()), tmp_path, "cannot be traced .*; make its network free of branches on values")
    refused(toy(lambda _: Random()), tmp_path, "RandomNormalLike")
    refused(toy(lambda _: Bytes()), tmp_path, r"\(Add\) computes with bytes, which engines cannot")
    refused(toy(lambda network: network.half()), tmp_path, r"'conv_in.weight' of graph 'toy' is torch.float16 on cpu; export from fp32")
    refused(toy(lambda _: lambda inputs: inputs), tmp_path, "is no PyTorch network")


@pytest.mark.usefixtures("traced")
def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        refused(toy(), tmp_path, "cannot be written")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_was_spoiled_is_not_run(exported: to_onnx.Onnx, tmp_path: Path) -> None:
    spoiled = tmp_path / "toy.onnx"
    spoiled.write_bytes(exported.path.read_bytes()[:-200])
    with pytest.raises(AvatarError, match="cannot load|damaged"):
        to_onnx.compared(toy(), toy().build(), spoiled)


def test_missing_parts_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else real(name))
    refused(toy(), tmp_path, r"onnxscript is not installed. Exporting needs PyTorch and onnxscript; pip install 'avatar-engine\[torch,export\]'")


# -- how far apart --------------------------------------------------------------------------------------------------------


def test_errors_are_what_they_say() -> None:
    want: dict[str, Any] = {"numbers": np.array([3.0, 4.0], np.float32), "bytes": np.full((2, 5), 100, np.uint8)}
    got: dict[str, Any] = {
        "numbers": np.array([3.0, 4.5], np.float32),
        "bytes": np.where(np.arange(10).reshape(2, 5) == 0, 101, 100).astype(np.uint8),
    }
    errors = parity.compare(want, got, what="it")
    assert errors["numbers"] == parity.Error(0.5, 0.1, 0.5)
    assert errors["bytes"].psnr == pytest.approx(10 * np.log10(255**2 / 0.1))
    assert errors["bytes"].differing == 0.1
    assert parity.Measured(1, errors).worst[0] == "numbers"
    assert parity.compare(want, want, what="it")["bytes"].psnr == np.inf
    nothing = {"zero": np.zeros(3, np.float32)}
    assert parity.compare(nothing, nothing, what="it")["zero"].rel_l2 == 0
    assert parity.compare(nothing, {"zero": np.full(3, 1e-9)}, what="it")["zero"].rel_l2 == np.inf
    for wrong, sentence in (
        ({}, "missing"),
        ({"zero": np.zeros(2)}, r"\[2\], in PyTorch \[3\]"),
        ({"zero": np.full(3, np.nan)}, "but not in PyTorch"),
    ):
        with pytest.raises(AvatarError, match=sentence):
            parity.compare(nothing, wrong, what="it")
    with pytest.raises(AvatarError, match="nothing to compare"):
        parity.measure(lambda given: {}, lambda given: {}, [], what="it")


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (parity.Error(9e-5, 9e-6, 1.0), True),
        (parity.Error(1.1e-4, 1e-6, 1.0), False),
        (parity.Error(1e-5, 1.1e-5, 1.0), False),
        (parity.Error(1.0, 0.01, 9e-4, 80.0, True), True),  # bytes, rarely one step off
        (parity.Error(1.0, 0.0, 2e-3, 80.0, True), False),
        (parity.Error(9.0, 0.0, 9e-4, 59.0, True), False),
        (parity.Error(1.0, 9e-6, 9e-4, 80.0), True),  # a picture of numbers, which holds the relative limit too
        (parity.Error(1.0, 0.01, 9e-4, 80.0), False),
    ],
)
def test_the_limit_of_fp32(error: parity.Error, passes: bool) -> None:
    measured = parity.Measured(3, {"y": error})
    if passes:
        parity.check(measured, LIMITS["fp32"], what="it")
    else:
        with pytest.raises(AvatarError, match="Output 'y' of it differs from PyTorch"):
            parity.check(measured, LIMITS["fp32"], what="it")


def test_in_8_bits_the_pictures_decide() -> None:
    coarse = parity.Error(9.0, 0.9, 1.0)  # what a network remembers
    for psnr, passes in ((31.0, True), (29.0, False)):
        measured = parity.Measured(1, {"picture": parity.Error(9.0, 0.1, 1.0, psnr, True), "new": coarse})
        if passes:
            parity.check(measured, LIMITS["int8"], what="it")
        else:
            with pytest.raises(AvatarError, match="Output 'picture' of it differs from PyTorch .* 30 dB allowed"):
                parity.check(measured, LIMITS["int8"], what="it")
    with pytest.raises(AvatarError, match="no pictures to judge it by"):
        parity.check(parity.Measured(1, {"new": coarse}), LIMITS["int8"], what="it")


# -- fed with its own past ------------------------------------------------------------------------------------------------


def streams(exported: to_onnx.Onnx, tested: Any = None) -> tuple[closed_loop.Stream, closed_loop.Stream]:
    spec = toy()

    def inputs(window: int) -> dict[str, Any]:
        return {name: value for name, value in spec.examples(window).items() if name != "state"}

    first = {"state": np.zeros(INPUTS["state"][0], np.float32)}
    reference = to_onnx.reference(spec, spec.build())
    run = tested or backend("onnxruntime").load(spec, path=exported.path)
    made = [closed_loop.fed_back(runner, inputs, {"next": "state"}, first) for runner in (reference, run)]
    return made[0], made[1]


def test_outputs_are_fed_back() -> None:
    def adds(inputs: Any) -> dict[str, Any]:
        return {"next": inputs["state"] + inputs["x"], "seen": inputs["state"]}

    step = closed_loop.fed_back(adds, lambda window: {"x": np.array([window], np.float32)}, {"next": "state"}, {"state": np.zeros(1, np.float32)})
    assert [float(step(window)["next"][0]) for window in range(5)] == [0, 1, 3, 6, 10]


def test_a_faithful_graph_does_not_drift(exported: to_onnx.Onnx) -> None:
    drift = closed_loop.closed_loop(*streams(exported), windows=64)
    assert len(drift.rel_l2) == len(drift.psnr) == 64
    assert 0 < max(drift.rel_l2) < 1e-6
    assert 0.3 < drift.growth < 2
    closed_loop.check(drift, LIMITS["fp32"])
    assert drift.told()["windows"] == 64


def test_a_graph_that_drifts_is_found_though_every_step_is_close(exported: to_onnx.Onnx) -> None:
    real = backend("onnxruntime").load(toy(), path=exported.path)
    held = np.zeros(INPUTS["state"][0], np.float32)

    def adds_up(inputs: Any) -> dict[str, Any]:
        """A small error that never fades."""
        made = real(inputs)
        held[...] += 2e-6
        return {**made, "next": made["next"] + held}

    drift = closed_loop.closed_loop(*streams(exported, adds_up), windows=64)
    assert drift.growth > 2
    assert max(drift.rel_l2) < LIMITS["fp16"].rel_l2
    with pytest.raises(AvatarError, match="windows, more than the 0.0001 allowed|drifts away from PyTorch: the error grows"):
        closed_loop.check(drift, LIMITS["fp32"])
    growing = closed_loop.Drift(tuple(1e-9 * 1.1**n for n in range(64)), ())
    with pytest.raises(AvatarError, match=r"the error grows \d+\.\d times over 64 windows"):
        closed_loop.check(growing, LIMITS["fp32"])
    with pytest.raises(AvatarError, match="after 33 windows"):
        closed_loop.check(closed_loop.Drift((*[0.0] * 32, 1.0, *[0.0] * 31), ()), LIMITS["fp32"])
    with pytest.raises(AvatarError, match="shows no trend"):
        closed_loop.closed_loop(*streams(exported), windows=4)


def test_signs_only_must_be_numbers() -> None:
    want = {"x": np.ones(4, np.float32), "magnitude": np.ones(1, np.float32)}
    assert list(parity.compare(want, {"x": want["x"], "magnitude": np.full(1, 2.0, np.float32)}, what="it")) == ["x"]
    with pytest.raises(AvatarError, match="'magnitude' of it holds values that are no numbers"):
        parity.compare(want, {"x": want["x"], "magnitude": np.full(1, np.nan, np.float32)}, what="it")
