"""TensorRT for RTX parses and builds every graph of the generator, without a GPU; what it cannot take is said with the node."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.backends import artifact, trt_library
from engine.backends.trt_library import Gpu
from engine.generators.diffusion.presets import COMPACT
from engine.types import AvatarError, GraphSpec
from exporters.graphs import to_tensorrt
from tests.conftest import found, require
from tests.exports import given_calibration, given_exported, given_judged, given_parts, given_pytorch, given_recipe, given_traced  # noqa: F401

if found("torch") and found("diffusers"):
    import torch

    from engine.generators.diffusion.graphs import graphs
    from engine.generators.diffusion.sampler import levels
    from engine.generators.diffusion.stream import Recipe
    from exporters.graphs import export as exporter
    from exporters.graphs import precision, to_onnx, to_openvino
    from exporters.graphs.subject_diffusion import of
    from tests.networks import seeded

pytestmark = pytest.mark.torch
RTX = "tensorrt_rtx_bindings"
Made = dict[str, Any]


# -- TensorRT for RTX, which parses and builds without a GPU ----------------------------------------------------------------

FAST = replace(to_tensorrt.STANDARD, level=0, targets=("8.9",))


@pytest.fixture(scope="module")
def rtx() -> Any:
    require(RTX)
    require(trt_library.CARRIER)
    return trt_library.library("tensorrt_rtx")


def test_the_libraries_come_without_the_package_that_carries_them(rtx: Any) -> None:
    import onnxruntime

    assert trt_library.CARRIER not in sys.modules
    assert Path(onnxruntime.__file__).parent.name == "onnxruntime", "the carrier's name begins alike"
    assert "CPUExecutionProvider" in onnxruntime.get_available_providers()
    assert trt_library.version(rtx).count(".") == 3


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("name", ["remember", "step"])
def test_every_graph_is_parsed_and_built(exported: Made, tmp_path: Path, name: str) -> None:
    made = to_tensorrt.to_tensorrt(exported[name], tmp_path / "x.plan", flavour="tensorrt_rtx", settings=FAST)
    assert made["layers"] > 50
    assert made["bytes"] == (tmp_path / "x.plan").stat().st_size > 100_000


@pytest.mark.usefixtures("rtx")
def test_graphs_in_8_bits_are_parsed(exported: Made, pytorch: Any, calibration: Any, judged: Any, tmp_path: Path, rtx: Any) -> None:
    made = precision.to_int8(exported["step"], tmp_path / "step.onnx", calibration=calibration, recorded=judged[:1], reference=pytorch)
    log = trt_library.logger(rtx)
    network, _ = to_tensorrt.parsed(rtx, log, rtx.Builder(log), made.onnx.path, flavour="tensorrt_rtx")
    assert network.num_layers > 300


LAYERS = {"remember": 100, "step": 300}
"""More than these: the portrait is read once and by one attention, the live step is two of the denoiser's."""


@pytest.mark.skipif(RTX not in os.environ.get("REQUIRE", ""), reason="minutes: where REQUIRE lists tensorrt_rtx_bindings")
@pytest.mark.usefixtures("rtx")
def test_every_graph_of_the_preset_that_ships_is_taken_by_every_backend(tmp_path: Path) -> None:
    """COMPACT, at the steps it is served with: compared with PyTorch in ONNX Runtime and OpenVINO, parsed and built by TensorRT for RTX."""
    require("openvino")
    networks = seeded(COMPACT)
    networks.denoiser.freeze(COMPACT.window)
    recipe = Recipe(networks, levels(COMPACT.noise, COMPACT.steps), False, torch.float32, torch.device("cpu"))
    for name, spec in graphs(recipe).items():
        module = spec.build()
        made = to_onnx.to_onnx(replace(spec, build=lambda module=module: module), tmp_path / f"{name}.onnx")
        assert made.measured.worst[1].rel_l2 < 1e-5
        path = tmp_path / f"{name}.xml"
        there = to_openvino.to_openvino(made, path, reference=to_onnx.reference(spec, module), recorded=[spec.examples(9)])
        assert there.measured is not None
        assert there.measured.worst[1].rel_l2 < 1e-5
        built = to_tensorrt.to_tensorrt(made, tmp_path / f"{name}.plan", flavour="tensorrt_rtx", settings=FAST)
        assert built["layers"] > LAYERS[name]


def test_a_free_length_becomes_a_profile(rtx: Any, tmp_path: Path) -> None:
    from exporters.graphs.shapes import Dynamic

    class Reads(torch.nn.Module):
        def forward(self, x: Any, tokens: Any) -> Any:
            return (x @ tokens.transpose(1, 2)).softmax(-1) @ tokens

    spec = GraphSpec("reads", {"x": ((1, 3, 8), "float32"), "tokens": ((1, 5, 8), "float32")}, ("y",), Reads)
    source = to_onnx.to_onnx(spec, tmp_path / "reads.onnx", dynamic=Dynamic({"tokens": 1}, 1, 2, 4))
    assert to_tensorrt.profile_of(source) == {"tokens": [(1, 5, 8), (1, 10, 8), (1, 20, 8)]}
    to_tensorrt.to_tensorrt(source, tmp_path / "reads.plan", flavour="tensorrt_rtx", settings=FAST)
    told = to_tensorrt.target("tensorrt_rtx", source, FAST, gpu=None)
    assert told["profiles"] == {"tokens": [[1, 5, 8], [1, 10, 8], [1, 20, 8]]}
    assert told["gpu"] == {}
    with pytest.raises(AvatarError, match=r"could not build 'reads' \(.*dynamic.*\)"):
        to_tensorrt.to_tensorrt(replace(source, dynamic=None), tmp_path / "no.plan", flavour="tensorrt_rtx", settings=FAST)
    assert not (tmp_path / "no.plan").exists()


def _spoil(change: Callable[[Any], Any]) -> Callable[[Path], Any]:
    def spoil(path: Path) -> None:
        import onnx

        model = onnx.load(path)
        change(model)
        onnx.save(model, path)

    return spoil


def _unique(model: Any) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Sigmoid")
    node.op_type, node.name = "Unique", "the odd one"


SPOILED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "an operator it lacks": (_spoil(_unique), r"does not take node 'the odd one' \(Unique\) of step.onnx: .*; write that part"),
    "an edge cut": (_spoil(lambda model: model.graph.node[5].input.__setitem__(0, "nowhere")), "does not take|cannot read"),
    "an output less": (_spoil(lambda model: model.graph.output.pop()), r"lost or gained inputs or outputs while it was parsed \(new.0.1.v\)"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:5000]), "does not take|cannot read"),
    "missing": (lambda path: path.unlink(), "does not take|cannot read"),
}


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("how", sorted(SPOILED))
def test_a_graph_that_was_spoiled_is_refused_with_its_node(exported: Made, tmp_path: Path, how: str) -> None:
    spoil, sentence = SPOILED[how]
    path = tmp_path / "step.onnx"
    shutil.copy(exported["step"].path, path)
    spoil(path)
    with pytest.raises(AvatarError, match=sentence) as told:
        to_tensorrt.to_tensorrt(replace(exported["step"], path=path), tmp_path / "step.plan", flavour="tensorrt_rtx", settings=FAST)
    assert "\n" not in str(told.value)
    assert "cudaError" not in str(told.value)
    assert not (tmp_path / "step.plan").exists()


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (replace(FAST, level=9), "A builder's level is 0 to 5, not 9"),
        (replace(FAST, workspace=0), "A workspace of 0 bytes is none"),
        (replace(FAST, targets=("9.0",)), "does not build for compute capability 9.0"),
        (replace(FAST, same_capability=True), "leave same_capability out"),
    ],
)
def test_settings_that_cannot_be_are_refused(exported: Made, tmp_path: Path, settings: Any, sentence: str) -> None:
    with pytest.raises(AvatarError, match=sentence):
        to_tensorrt.to_tensorrt(exported["remember"], tmp_path / "x.plan", flavour="tensorrt_rtx", settings=settings)


def test_what_needs_a_gpu_says_so() -> None:
    gpu = Gpu("NVIDIA L4", "8.9", 58, 13)
    with pytest.raises(AvatarError, match="TensorRT builds engines on the GPU they are for, and there is none here"):
        to_tensorrt.check("tensorrt", to_tensorrt.STANDARD, gpu=None)
    with pytest.raises(AvatarError, match="whose weights can be replaced is built on a GPU"):
        to_tensorrt.check("tensorrt_rtx", replace(FAST, refit=True), gpu=None)
    with pytest.raises(AvatarError, match="Compute capabilities are chosen for TensorRT for RTX only"):
        to_tensorrt.check("tensorrt", FAST, gpu=gpu)
    to_tensorrt.check("tensorrt", replace(to_tensorrt.STANDARD, refit=True, same_capability=True), gpu=gpu)


@pytest.mark.usefixtures("traced", "rtx")
def test_engines_that_are_still_good_are_kept_and_others_built_anew(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builds: list[str] = []

    def build(source: Any, path: Path, **_: Any) -> dict[str, Any]:
        builds.append(path.stem)
        path.write_bytes(os.urandom(100))  # as builds do, never the same twice
        return {"layers": 1, "bytes": 100}

    monkeypatch.setattr(to_tensorrt, "to_tensorrt", build)

    def export(settings: Any = FAST, weights: str = "0") -> artifact.Manifest:
        order = exporter.Order("tensorrt_rtx", "fp32", settings, 8, (), None, None, lambda line: None)
        return exporter.export_subject(of(recipe, {"weights": {"w": weights}}), tmp_path, order)

    first = export()
    assert builds == ["remember", "step"]
    again = export()
    assert builds == ["remember", "step"]
    assert again.artifact("step").files == first.artifact("step").files
    assert artifact.verified(tmp_path, again, again.artifact("step")).is_file()
    assert again.artifact("step").measured["engine"] == exporter.UNMEASURED
    assert again.artifact("step").facts["target"]["flavour"] == "tensorrt_rtx"
    export(replace(FAST, level=1))
    assert len(builds) == 4
    export(weights="1")
    assert len(builds) == 6
    plan = next(tmp_path.rglob("step.plan"))
    plan.write_bytes(b"damaged")
    export(weights="1")
    assert builds[6:] == ["step"]
    monkeypatch.setattr(trt_library, "version", lambda trt: "1.8.0.1")
    export(weights="1")
    assert len(builds) == 9
