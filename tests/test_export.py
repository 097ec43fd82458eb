"""Weights -> exported graphs of the generator, for every backend: what is published computes what PyTorch does, or nothing is."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import avatar
from engine.backends import artifact, backend, engines
from engine.generators import load
from engine.persona import demo_portrait
from engine.types import AvatarError
from exporters.graphs import closed_loop, parity, to_tensorrt
from exporters.graphs.parity import LIMITS
from streaming.options import generator_options
from tests import exports
from tests.conftest import found, require
from tests.exports import MINI, given_calibration, given_exported, given_judged, given_parts, given_pytorch, given_recipe, given_traced  # noqa: F401
from tests.test_contract import signals

if found("torch") and found("diffusers"):
    from exporters.graphs import export as exporter
    from exporters.graphs import export_command, precision, to_onnx, to_openvino
    from exporters.graphs.subject_diffusion import of

pytestmark = pytest.mark.torch
Made = dict[str, Any]


@pytest.fixture(scope="module")
def weights() -> Any:
    """A folder of weights of MINI."""
    with exports.known():
        yield exports.weights()


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
    checks += "assert words['--nodes_to_exclude'] == '.*(conv_out).*'; assert '--keep_io_types' in sys.argv;"
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


def test_sizes_that_modelopt_lost_are_found_again(exported: Made, pytorch: Any, tmp_path: Path) -> None:
    forgets = "import onnx; m = onnx.load(words['--onnx_path']); [d.Clear() for v in m.graph.value_info for d in v.type.tensor_type.shape.dim];"
    forgets += "print('Converted 1/2 nodes'); onnx.save(m, words['--output_path'])"
    made = precision.to_half(exported["step"], tmp_path / "step.onnx", reference=pytorch, python=modelopt(tmp_path, forgets))
    assert made.recipe["nodes"] == "1/2"


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
    made = exporter.export_subject(of(recipe, {"weights": {"w": "0"}}), tmp_path / "out", order)
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


# -- the whole way --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("traced")
def test_weights_become_a_folder_that_says_all_about_itself(weights: Path, recipe: Any, exported: Made, pytorch: Any, tmp_path: Path) -> None:
    lines: list[str] = []
    made = exporter.export(weights, tmp_path / "out", backend="onnxruntime", windows=8, tell=lines.append)
    assert artifact.read(tmp_path / "out") == made
    assert (made.backend, made.precision) == ("onnxruntime", "fp32")
    assert made.source["size"] == list(MINI.size)
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


@pytest.mark.usefixtures("traced")
def test_an_export_that_does_not_hold_its_limit_leaves_what_was_there(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = exporter.Order("onnxruntime", "fp32", to_tensorrt.STANDARD, 0, (), None, None, lambda line: None)
    before = exporter.export_subject(of(recipe, {"weights": {"w": "0"}}), tmp_path, order)
    assert "stream" not in before.artifact("step").measured
    monkeypatch.setattr(closed_loop, "GROWTH", 1e-9)
    with pytest.raises(AvatarError, match="'mini 1-step' drifts away from PyTorch"):
        exporter.export_subject(of(recipe, {"weights": {"w": "1"}}), tmp_path, replace(order, windows=8))
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


# -- the command ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def own(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the weights, to export beside, in few windows."""
    monkeypatch.setattr(export_command, "WINDOWS", 8)
    return Path(shutil.copytree(weights, tmp_path / "own"))


def told_by(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What `avatar export` prints, which must have gone well."""
    status = avatar.main(["export", *arguments])
    said = capsys.readouterr()
    assert status == 0, said.err
    return said.out


@pytest.mark.usefixtures("traced")
def test_the_command_leaves_an_engine_that_is_found_and_served(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = told_by(["--weights", str(own), "--backend", "onnxruntime"], capsys)
    (folder,) = (own / engines.HOME).iterdir()
    assert re.fullmatch("onnxruntime-[0-9a-f]{12}", folder.name)
    assert re.search(r"step in fp32, 0.\d MB: as ONNX \d.\de-0\d off PyTorch, .* fed with its own past for 8 windows", said)
    found_there = engines.find(own, "onnxruntime", steps=1, spec=exports.exported()["step"].spec)
    assert found_there.engine is not None
    assert found_there.engine.folder == folder

    command = said.splitlines()[-1].removeprefix("Serve it: avatar ")
    asked = generator_options(avatar._parser().parse_args(shlex.split(command)))
    plain: Any = load("diffusion", weights=own, steps=1)
    served: Any = load("diffusion", **asked)
    assert (served.backend, served.precision) == ("onnxruntime", "fp32")
    shown = []
    for generator in (plain, served):
        state = generator.allocate(1)
        generator.admit(state, 0, generator.prepare(demo_portrait()))
        shown.append([generator.step(state, [signals(1, 0, step)])[0][0].rgb.astype(int) for step in range(3)])
    assert np.abs(np.diff(shown, axis=0)).max() <= 1
    assert np.abs(np.diff(shown[1], axis=0)).max() > 3, "and the picture moves"

    again = told_by(["--weights", str(own), "--backend", "onnxruntime"], capsys)
    assert again.splitlines()[-1] == said.splitlines()[-1], "asked again, it goes to the same place"
    told_by(["--weights", str(own), "--backend", "onnxruntime", "--precision", "int8"], capsys)
    assert len(list((own / engines.HOME).iterdir())) == 2
    newest = engines.find(own, "onnxruntime", steps=1).engine
    assert newest is not None
    assert newest.folder != folder or newest.precision == "fp32"


@pytest.mark.usefixtures("traced")
def test_a_place_of_ones_own(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told_by(["--weights", str(own), "--backend", "onnxruntime", "--steps", "1", "--out", str(tmp_path / "mine")], capsys)
    assert artifact.read(tmp_path / "mine").source["steps"] == 1
    assert not (own / engines.HOME).exists()


@pytest.mark.usefixtures("traced")
def test_over_its_limit_nothing_is_written(own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LIMITS, "int8", replace(LIMITS["int8"], psnr=99.0))
    assert avatar.main(["export", "--weights", str(own), "--backend", "onnxruntime", "--precision", "int8"]) == 2
    said = capsys.readouterr().err
    assert "Output 'picture' of the int8 graph 'mini 1-step' differs from PyTorch" in said
    assert len(said.splitlines()) == 1
    assert list((own / engines.HOME).iterdir()) == []


def persona(home: Path, **told: Any) -> Path:
    """A kept persona called me, as far as its folder is looked at."""
    folder = home / "personas" / "me"
    folder.mkdir(parents=True)
    (folder / "portrait.png").write_bytes(b"a picture")
    manifest = {"version": 1, "name": "me", "files": {"portrait.png": hashlib.sha256(b"a picture").hexdigest()}, "caches": {}, "consent": None}
    (folder / "manifest.json").write_text(json.dumps(manifest | told))
    return folder


@pytest.mark.usefixtures("traced")
def test_a_persona_with_weights_of_its_own(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVATAR_HOME", str(tmp_path))
    folder = persona(tmp_path)

    def taught() -> None:
        shutil.copytree(own, folder / "weights")
        told = json.loads((folder / "manifest.json").read_text())
        told["files"]["weights"] = engines.origin_of(own)
        (folder / "manifest.json").write_text(json.dumps(told))

    ask = ["--persona", "me", "--backend", "onnxruntime"]
    for spoil, sentence in (
        (lambda: None, "has no weights of its own; give the folder that has them with --weights"),
        (taught, ""),
        (
            lambda: (folder / "weights" / "guider.safetensors").write_bytes(b"another"),
            "guider.safetensors is not the file that its weights.json names",
        ),
        (lambda: (folder / "weights" / "weights.json").write_text("{}"), "are not those that the persona 'me' was made with"),
        (lambda: (folder / "portrait.png").write_bytes(b"another"), "portrait.png of persona 'me' is not the picture it was made from"),
        (lambda: (folder / "portrait.png").unlink(), "has lost its portrait.png"),
        (lambda: (folder / "manifest.json").unlink(), "has lost its manifest.json"),
        (lambda: shutil.rmtree(folder), "There is no persona called 'me'"),
    ):
        spoil()
        status = avatar.main(["export", *ask])
        said = capsys.readouterr()
        assert status == (2 if sentence else 0), said.err
        assert re.search(sentence, said.err)
        assert len(said.err.splitlines()) == (1 if sentence else 0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--weights", "/nowhere", "--backend", "onnxruntime"], "holds no weights of this engine"),
        (["--weights", "/nowhere", "--backend", "openvino", "--precision", "fp16"], "exported as one of: fp32, bf16, int8; not as 'fp16'"),
        (["--weights", "/nowhere", "--backend", "onnxruntime", "--level", "2"], "--level is for TensorRT's builder; leave it out with onnxruntime"),
        (["--weights", "/nowhere", "--backend", "openvino", "--target", "8.9"], "--target is for TensorRT's builder"),
        (["--weights", "/nowhere", "--backend", "openvino", "--timing-cache", "f"], "--timing-cache is for TensorRT's builder"),
        (["--weights", "/nowhere", "--backend", "tensorrt", "--workspace", "-1"], "A workspace of -1 GB is none"),
    ],
)
def test_what_the_command_cannot_do_is_one_sentence(options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert avatar.main(["export", *options]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert len(said.splitlines()) == 1


def test_a_table_of_errors_can_be_made(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from exporters.graphs import table

    monkeypatch.setattr(table, "to_onnx", exports.again)
    monkeypatch.setattr(table, "random_recipe", lambda preset, steps: exports.recipe())
    monkeypatch.setattr(table, "WINDOWS", 8)
    assert table.main(["--preset", "mini", "--steps", "1", "--backend", "onnxruntime", "--precision", "fp32", "int8"]) == 0
    *_, fp32, int8, last = capsys.readouterr().out.splitlines()
    assert fp32.startswith("| 1 | onnxruntime | fp32 | ")
    assert int8.startswith("| 1 | onnxruntime | int8 | ")
    rows = json.loads(last)["rows"]
    assert rows[0]["measured"]["onnx"]["rel_l2"] < 1e-5
    assert rows[1]["measured"]["int8"]["psnr"] >= LIMITS["int8"].psnr
    monkeypatch.setitem(LIMITS, "int8", replace(LIMITS["int8"], psnr=99.0))
    assert table.main(["--preset", "mini", "--steps", "1", "--backend", "onnxruntime", "--precision", "int8"]) == 0
    assert "| int8 | not written: Output 'picture'" in capsys.readouterr().out
