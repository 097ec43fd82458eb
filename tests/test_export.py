"""Weights -> exported graphs of the generator, for every backend: what is published computes what PyTorch does, or nothing is."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.backends import artifact, backend, trt_library
from engine.backends.trt_library import Gpu
from engine.generators.diffusion.presets import PRESETS, TINY
from engine.types import AvatarError, GraphSpec
from exporters import closed_loop, parity, to_tensorrt
from exporters.parity import LIMITS
from tests.conftest import found, require, require_for

if found("torch") and found("diffusers"):
    import torch

    from engine.generators.diffusion.graphs import graphs
    from engine.generators.diffusion.networks import save
    from exporters import export as exporter
    from exporters import precision, to_onnx, to_openvino
    from tests.test_diffusion import seeded

pytestmark = pytest.mark.torch
MINI = replace(
    TINY,
    name="mini",
    size=(16, 24),
    steps=1,
    residual=True,
    scale=4.0,
    unet=replace(TINY.unet, channels=(16,), attention=(False,), motion=(False,)),
)
"""As TINY, with one level, whose middle alone has attention: what an export takes is time for every operation. As in COMPACT, what its random
weights make is added to the condition, at a quarter of its size."""
RTX = "tensorrt_rtx_bindings"
Made = dict[str, Any]


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    require_for("diffusion")
    for part in ("onnx", "onnxscript", "onnxruntime"):
        require(part)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder of weights of MINI."""
    folder = tmp_path_factory.mktemp("weights")
    PRESETS["mini"] = MINI
    save(seeded(MINI), folder, origin={})
    yield folder
    del PRESETS["mini"]


@pytest.fixture(scope="module")
def recipe(weights: Path) -> Any:
    return exporter._recipe(weights, steps=None, size=None, decoder=None)[0]


@pytest.fixture(scope="module")
def exported(recipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Every graph as ONNX: traced once, compared, and taken by all that follows."""
    folder = tmp_path_factory.mktemp("onnx")
    return {name: to_onnx.to_onnx(spec, folder / f"{name}.onnx") for name, spec in graphs(recipe).items()}


@pytest.fixture(scope="module")
def pytorch(exported: Made) -> Any:
    """The step in PyTorch."""
    spec = exported["step"].spec
    return to_onnx.reference(spec, spec.build())


@pytest.fixture
def traced(exported: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports take the ONNX graphs that there are."""

    def again(spec: GraphSpec, path: Path, **_: Any) -> to_onnx.Onnx:
        made: to_onnx.Onnx = exported[path.stem]
        assert made.spec.inputs == spec.inputs
        shutil.copy(made.path, path)
        return replace(made, spec=spec, path=path, files=(path,))

    monkeypatch.setattr(exporter, "to_onnx", again)


@pytest.fixture(scope="module")
def calibration(recipe: Any, pytorch: Any) -> list[dict[str, Any]]:
    return closed_loop.recorded(recipe, pytorch, (0, 2, 5, 9))


@pytest.fixture(scope="module")
def judged(recipe: Any, pytorch: Any) -> list[dict[str, Any]]:
    """Others, to measure on."""
    return closed_loop.recorded(recipe, pytorch, (1, 8, 14))


# -- ONNX -----------------------------------------------------------------------------------------------------------------


def test_every_graph_of_the_generator_computes_what_pytorch_does(exported: Made) -> None:
    assert set(exported) == {"remember", "step"}
    for made in exported.values():
        assert made.measured.worst[1].rel_l2 < 3e-6
        assert made.measured.worst[1].max_abs < 3e-5
        assert made.measured.worst[1].rel_l2 > 0, "compared with itself"


def test_the_exported_step_streams_as_pytorch_does(recipe: Any, exported: Made, pytorch: Any) -> None:
    """64 windows, each fed with its own rings; beyond the window, so that they have wrapped many times."""
    spec = exported["step"].spec
    runner = backend("onnxruntime").load(spec, path=exported["step"].path)
    drift = closed_loop.closed_loop(closed_loop.live(recipe, pytorch), closed_loop.live(recipe, runner))
    assert len(drift.rel_l2) == closed_loop.WINDOWS > 4 * MINI.window
    assert 0 < max(drift.rel_l2) < 5e-6
    assert drift.growth < 2
    assert min(drift.psnr) > 60
    closed_loop.check(drift, LIMITS["fp32"])


def test_a_stream_shows_motion_and_remembers(recipe: Any, pytorch: Any) -> None:
    """What is compared is no still picture, and the rings matter."""
    stream = closed_loop.live(recipe, pytorch)
    made = [stream(window) for window in range(8)]
    assert not np.array_equal(made[6]["picture"], made[7]["picture"])
    (kept,) = closed_loop.recorded(recipe, pytorch, (7,))
    blank = {name: np.zeros_like(x) if name.startswith("ring.") else x for name, x in kept.items()}
    assert not np.allclose(pytorch(blank)["new.0.1.k"], made[7]["new.0.1.k"], atol=1e-4)
    np.testing.assert_array_equal(pytorch(kept)["new.0.1.k"], made[7]["new.0.1.k"])


# -- narrower numbers -----------------------------------------------------------------------------------------------------


def test_int8_is_symmetric_and_measured(exported: Made, pytorch: Any, calibration: Any, judged: Any, tmp_path: Path) -> None:
    import onnx

    made = precision.to_int8(exported["step"], tmp_path / "step.int8.onnx", calibration=calibration, recorded=judged, reference=pytorch)
    model = onnx.load(made.onnx.path)
    zeros = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer if "zero_point" in tensor.name}
    assert zeros
    assert all(array.dtype == np.int8 and not array.any() for array in zeros.values())
    quantised = {node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert quantised
    fed = {value for node in model.graph.node if "conv_in/" in node.name or "conv_out/" in node.name for value in node.input}
    assert not any("DequantizeLinear" in value for value in fed), "the first and the last convolution keep fp32"
    assert made.measured is not None
    worst, psnr = made.measured.worst[1].rel_l2, made.measured.psnr
    assert psnr is not None
    assert worst > 1e-3, "as good as fp32: nothing was quantised"
    assert LIMITS["int8"].psnr <= psnr < 60
    assert made.measured.inputs == len(judged)
    assert made.recipe["calibration"] == precision.digest_of(calibration) != precision.digest_of(calibration[:-1])


def test_int8_without_inputs_or_over_its_limit_is_not_written(
    exported: Made, pytorch: Any, calibration: Any, judged: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "step.int8.onnx"
    with pytest.raises(AvatarError, match="int8 needs inputs to calibrate on"):
        precision.to_int8(exported["step"], path, calibration=[], recorded=judged, reference=pytorch)
    with pytest.raises(AvatarError, match="measured on inputs that it was not calibrated on"):
        precision.to_int8(exported["step"], path, calibration=calibration, recorded=[], reference=pytorch)
    monkeypatch.setitem(LIMITS, "int8", replace(LIMITS["int8"], psnr=70.0))
    with pytest.raises(AvatarError, match=r"Output 'picture' of the int8 graph 'mini 1-step' differs from PyTorch .* choose a wider precision"):
        precision.to_int8(exported["step"], path, calibration=calibration[:1], recorded=judged[:1], reference=pytorch)
    assert list(tmp_path.iterdir()) == []


STUB = """\
#!{python}
import shutil, sys
words = dict(zip(sys.argv, sys.argv[1:]))
if "-c" in words:
    print({version!r})
else:
    {body}
"""
GOOD = (
    """print('2026 [modelopt][onnx] - INFO - Converted 340/352 nodes (96.59%) to fp16'); shutil.copy(words['--onnx_path'], words['--output_path'])"""
)


def modelopt(folder: Path, body: str, *, version: str = "version 0.47.0") -> str:
    """A Python of an environment with ModelOpt, as far as it is called."""
    path = folder / "python"
    path.write_text(textwrap.dedent(STUB).format(python=sys.executable, body=body, version=version))
    path.chmod(0o755)
    return str(path)


def test_fp16_is_asked_of_modelopt_and_measured(exported: Made, pytorch: Any, calibration: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    checks = "import glob, numpy; held = [dict(numpy.load(f)) for f in sorted(glob.glob(words['--calibration_data'] + '/*.npz'))];"
    checks += f"assert len(held) == {len(calibration)} and 'ring.0.0.k' in held[0], held; assert words['--low_precision_type'] == 'fp16';"
    checks += "assert words['--nodes_to_exclude'] == 'conv_out'; assert '--keep_io_types' in sys.argv;"
    made = precision.to_half(
        exported["step"],
        out / "step.fp16.onnx",
        reference=pytorch,
        calibration=calibration,
        keep="conv_out",
        python=modelopt(tmp_path, checks + GOOD),
    )
    assert made.recipe["nodes"] == "340/352"
    assert made.recipe["by"] == "modelopt 0.47.0"
    assert made.measured is not None
    assert made.measured.inputs == len(calibration)
    assert [path.name for path in out.iterdir()] == ["step.fp16.onnx"]
    # bf16 cannot run on a CPU: its error is measured on the GPU, as an engine
    assert precision.to_half(
        exported["step"], out / "b.onnx", reference=pytorch, kind="bf16", python=modelopt(tmp_path, GOOD)
    ).measured is None  # fmt: skip


@pytest.mark.parametrize(
    ("body", "version", "sentence"),
    [
        (GOOD, "Traceback\nModuleNotFoundError: No module named 'modelopt'", "has no working NVIDIA ModelOpt .ModuleNotFoundError"),
        ("raise SystemExit('ValueError: low is out of bounds')", "version 0.47.0", "did not convert 'mini 1-step' to fp16 .ValueError: low is out"),
        (GOOD.split(";")[0], "version 0.47.0", "did not convert"),
        (GOOD.replace("shutil.copy(", "open(words['--output_path'], 'w').write('x'); print("), "version 0.47.0", "is damaged, cut short or no ONNX"),
    ],
)
def test_a_modelopt_that_fails_is_quoted(exported: Made, pytorch: Any, tmp_path: Path, body: str, version: str, sentence: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(AvatarError, match=sentence):
        precision.to_half(exported["step"], out / "step.onnx", reference=pytorch, python=modelopt(tmp_path, body, version=version))
    assert list(out.iterdir()) == []


def test_no_modelopt_is_said(exported: Made, pytorch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(precision.MODELOPT, raising=False)
    if not found("modelopt"):
        with pytest.raises(AvatarError, match=r"fp16 and bf16 need NVIDIA ModelOpt in an environment of its own: .*set AVATAR_MODELOPT"):
            precision.to_half(exported["step"], tmp_path / "step.onnx", reference=pytorch)
    monkeypatch.setenv(precision.MODELOPT, str(tmp_path / "nowhere"))
    with pytest.raises(AvatarError, match=r"nowhere is no Python that can be run \(No such file or directory\)"):
        precision.to_half(exported["step"], tmp_path / "step.onnx", reference=pytorch)


# -- OpenVINO -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("traced")
def test_openvino_gets_its_own_files_in_fp32(recipe: Any, exported: Made, pytorch: Any, tmp_path: Path) -> None:
    require("openvino")
    lines: list[str] = []
    order = exporter.Order("openvino", "fp32", to_tensorrt.STANDARD, 12, (), None, None, lines.append)
    made = exporter.export_recipe(recipe, tmp_path / "out", order, source={"weights": {"w": "0"}})
    step = made.artifact("step")
    assert list(step.files) == ["step.xml", "step.bin"]
    assert step.measured["openvino"]["rel_l2"] < 1e-5
    assert step.measured["stream"]["windows"] == 12
    path = artifact.verified(tmp_path / "out", made, step)
    assert 'element_type="f32"' in path.read_text()
    assert 'element_type="f16"' not in path.read_text()
    inputs = exported["step"].spec.examples(8)
    got = backend("openvino").load(exported["step"].spec, path=path)(inputs)
    assert parity.compare(pytorch(inputs), got, what="it")["new.0.0.k"].rel_l2 < 1e-5
    assert any("12 windows" in line for line in lines)


def test_openvino_in_8_bits_is_calibrated_and_measured(exported: Made, pytorch: Any, calibration: Any, judged: Any, tmp_path: Path) -> None:
    require("openvino")
    made, path = exported["step"], tmp_path / "step.xml"
    shown: Any = {"reference": pytorch, "precision": "int8", "calibration": calibration, "recorded": judged}
    if not found("nncf"):
        with pytest.raises(AvatarError, match="int8 for OpenVINO needs NNCF"):
            to_openvino.to_openvino(made, path, **shown)
    require("nncf")
    found_in = to_openvino.to_openvino(made, path, **shown)
    assert "FakeQuantize" in path.read_text()
    assert found_in.recipe["calibration"] == precision.digest_of(calibration)
    if found_in.measured is not None:  # on a CPU that has int8 arithmetic
        assert found_in.measured.inputs == len(judged)
        assert found_in.measured.worst[1].rel_l2 > 1e-3, "as good as fp32: nothing was quantised"
        psnr = found_in.measured.psnr
        assert psnr is not None
        assert LIMITS["int8"].psnr <= psnr < 60
    for lacking, sentence in (("calibration", "int8 needs inputs to calibrate on"), ("recorded", "int8 is measured on inputs that it was not")):
        with pytest.raises(AvatarError, match=sentence):
            to_openvino.to_openvino(made, tmp_path / "b.xml", **{**shown, lacking: []})


def test_openvino_refuses_what_it_does_not_have(exported: Made, pytorch: Any, tmp_path: Path) -> None:
    require("openvino")
    with pytest.raises(AvatarError, match="OpenVINO is exported as one of: fp32, bf16, int8; not as 'fp16'"):
        to_openvino.to_openvino(exported["step"], tmp_path / "step.xml", reference=pytorch, precision="fp16")
    with pytest.raises(AvatarError, match="differs from PyTorch"), pytest.MonkeyPatch.context() as patch:
        patch.setitem(LIMITS, "fp32", parity.Limit(1e-9))
        to_openvino.to_openvino(exported["remember"], tmp_path / "r.xml", reference=_torch(exported["remember"]), tell=lambda line: None)
    assert list(tmp_path.iterdir()) == []


def _torch(made: Any) -> Any:
    return to_onnx.reference(made.spec, made.spec.build())


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


@pytest.mark.skipif(RTX not in os.environ.get("REQUIRE", ""), reason="minutes: where REQUIRE lists tensorrt_rtx_bindings")
@pytest.mark.usefixtures("rtx")
def test_every_graph_of_the_whole_layout_is_parsed_and_built(tmp_path: Path) -> None:
    """TINY: every kind of block, at every level, two steps."""
    from engine.generators.diffusion.sampler import levels
    from engine.generators.diffusion.stream import Recipe

    networks = seeded(TINY)
    networks.denoiser.freeze(TINY.window)
    recipe = Recipe(networks, levels(TINY.noise, 2), False, torch.float32, torch.device("cpu"))
    for name, spec in graphs(recipe).items():
        made = to_onnx.to_onnx(spec, tmp_path / f"{name}.onnx")
        assert to_tensorrt.to_tensorrt(made, tmp_path / f"{name}.plan", flavour="tensorrt_rtx", settings=FAST)["layers"] > 500


def test_a_free_length_becomes_a_profile(rtx: Any, tmp_path: Path) -> None:
    from exporters.shapes import Dynamic

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


# -- the whole way --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("traced")
def test_weights_become_a_folder_that_says_all_about_itself(weights: Path, recipe: Any, exported: Made, pytorch: Any, tmp_path: Path) -> None:
    lines: list[str] = []
    made = exporter.export(weights, tmp_path / "out", backend="onnxruntime", windows=8, tell=lines.append)
    assert artifact.read(tmp_path / "out") == made
    assert (made.backend, made.precision) == ("onnxruntime", "fp32")
    assert made.source["size"] == [16, 24]
    assert made.source["steps"] == 1
    for name, each in made.artifacts.items():
        each.fits(exported[name].spec)
        each.of(recipe.networks.origin)
        assert each.measured["onnx"]["rel_l2"] < 1e-5
        assert each.facts["onnx"] == exported[name].sha256
        assert set(each.facts["versions"]) == {"torch", "onnx", "onnxscript", "onnx-ir"}
    assert made.artifact("step").measured["stream"]["windows"] == 8
    assert "stream" not in made.artifact("remember").measured
    assert made.made["versions"]["torch"]
    assert {path.name for path in (tmp_path / "out" / made.folder).iterdir()} == {"remember.onnx", "step.onnx"}
    assert lines[0] == "[1/2] remember"
    inputs = exported["step"].spec.examples(4)
    path = artifact.verified(tmp_path / "out", made, made.artifact("step"))
    got = backend("onnxruntime").load(exported["step"].spec, path=path)(inputs)
    np.testing.assert_allclose(got["new.0.0.k"], pytorch(inputs)["new.0.0.k"], atol=1e-5)


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
        return exporter.export_recipe(recipe, tmp_path, order, source={"weights": {"w": weights}})

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


@pytest.mark.usefixtures("traced")
def test_an_export_that_does_not_hold_its_limit_leaves_what_was_there(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = exporter.Order("onnxruntime", "fp32", to_tensorrt.STANDARD, 0, (), None, None, lambda line: None)
    before = exporter.export_recipe(recipe, tmp_path, order, source={"weights": {"w": "0"}})
    assert "stream" not in before.artifact("step").measured
    monkeypatch.setattr(closed_loop, "GROWTH", 1e-9)
    with pytest.raises(AvatarError, match="'mini 1-step' drifts away from PyTorch"):
        exporter.export_recipe(recipe, tmp_path, replace(order, windows=8), source={"weights": {"w": "1"}})
    assert artifact.read(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} == {artifact.MANIFEST, before.folder}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"backend": "abacus"}, "exported for one of: onnxruntime, openvino, tensorrt, tensorrt_rtx; not for 'abacus'"),
        ({"backend": "openvino", "precision": "fp16"}, "openvino is exported as one of: fp32, bf16, int8; not as 'fp16'"),
        ({"backend": "onnxruntime", "precision": "fp8"}, "onnxruntime is exported as one of: fp32, fp16, int8"),
        ({"backend": "onnxruntime", "size": (0, 16)}, "A picture of 0 x 16 px cannot be made"),
        ({"backend": "onnxruntime", "size": (10, 16)}, "its size must be a multiple of 4"),
        ({"backend": "onnxruntime", "steps": 0}, "A frame takes 1 to 1000 denoising steps, not 0"),
        ({"backend": "onnxruntime", "decoder": "tiny"}, "has no decoder to choose"),
    ],
)
def test_what_cannot_be_exported_is_said_before_any_work(weights: Path, tmp_path: Path, options: Any, sentence: str) -> None:
    with pytest.raises(AvatarError, match=sentence):
        exporter.export(weights, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_weights_is_said(tmp_path: Path) -> None:
    with pytest.raises(AvatarError, match="holds no weights of this engine"):
        exporter.export(tmp_path / "nothing", tmp_path / "out", backend="onnxruntime")
