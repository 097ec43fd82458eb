"""Generators that remember nothing -> exported graphs: what is published computes what PyTorch does, and is served frame by frame the same."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import avatar
from engine.backends import artifact, engines
from engine.generators import load
from engine.persona import demo_portrait
from engine.types import AvatarError
from exporters.graphs import parity, rehearsal, to_tensorrt
from exporters.graphs.parity import LIMITS
from streaming.options import generator_options
from tests import exports
from tests.conftest import found, require, require_for
from tests.exports import given_parts  # noqa: F401
from tests.test_export_rtx import RTX

if found("torch") and found("diffusers"):
    from safetensors.torch import save_file

    from engine.generators.lipsync import networks as lips_networks
    from engine.generators.lipsync.sizes import MODELS, size_of
    from engine.generators.reenact import networks as reenact_networks
    from engine.generators.reenact.presets import TINY
    from exporters.graphs import export as exporter
    from exporters.graphs import subject as subjects
    from exporters.graphs import to_onnx

pytestmark = pytest.mark.torch
KINDS = ("reenact", "wav2lip", "musetalk")
SAME = {"onnxruntime": 1, "openvino": 1}
"""Steps of a byte that a frame from an export may be off PyTorch's."""


@pytest.fixture(autouse=True, scope="module")
def _known(_installed: None) -> Iterator[None]:
    """A MuseTalk with two levels among the sizes: what an export takes is time for every operation."""
    require_for("lipsync")
    MODELS["musetalk_mini"] = replace(size_of("musetalk_tiny"), name="musetalk_mini", side=32, unet=(8, 8), vae=(8, 8))  # type: ignore[arg-type]
    yield
    del MODELS["musetalk_mini"]


@cache
def weights(kind: str) -> Path:
    """A folder of small random weights."""
    folder = exports.place() / f"single-{kind}"
    if kind == "reenact":
        reenact_networks.save(reenact_networks.build(TINY), folder, origin={})
        return folder
    folder.mkdir()
    networks = lips_networks.build(size_of({"wav2lip": "wav2lip_tiny", "musetalk": "musetalk_mini"}[kind]))
    hashes = {}
    for part, module in networks.parts.items():
        kept = {key: value.contiguous() for key, value in module.state_dict().items() if not key.endswith(lips_networks.COUNTS)}
        save_file(kept, folder / f"{part}.safetensors")
        hashes[part] = artifact.sha256(folder / f"{part}.safetensors")
    told = {"generator": "lipsync", "model": networks.size.name, "sha256": hashes, "origin": {}}
    (folder / lips_networks.MANIFEST).write_text(json.dumps(told))
    return folder


@cache
def subject(kind: str) -> Any:
    return subjects.subject_of(weights(kind))


@cache
def traced(kind: str) -> dict[str, Any]:
    """Every graph as ONNX, traced once a process."""
    folder = exports.place() / f"traced-{kind}"
    folder.mkdir()
    return {name: to_onnx.to_onnx(spec, folder / f"{name}.onnx") for name, spec in subject(kind).specs.items()}


def order(backend: Any, precision: str = "fp32", modelopt: str | None = None) -> Any:
    return exporter.Order(backend, precision, to_tensorrt.STANDARD, 8, (), modelopt, None, lambda line: None)


@cache
def exported(kind: str, backend: str, precision: str = "fp32") -> Path:
    """The folder of an export."""
    out = exports.place() / f"out-{kind}-{backend}-{precision}"
    exporter.export_subject(subject(kind), out, order(backend, precision), traced=traced(kind))
    return out


@cache
def served(kind: str, backend: str = "pytorch", graphs: Path | None = None) -> Any:
    """Frames [N, H, W, 3] of a rehearsal."""
    options: dict[str, Any] = {"weights": weights(kind), "backend": backend} | ({"graphs": graphs} if graphs else {"device": "cpu"})
    generator: Any = load("reenact" if kind == "reenact" else "lipsync", **options)
    state = generator.allocate(1)
    generator.admit(state, 0, generator.prepare(demo_portrait()))
    moments = rehearsal.rehearsal()
    count = 3 if kind == "reenact" else generator.spec.delay + 10
    return np.stack([generator.step(state, [[next(moments).signal]])[0][0].rgb.astype(int) for _ in range(count)])


# -- the graphs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_graph_computes_what_pytorch_does_and_is_served_the_same(kind: str, backend: str) -> None:
    require(backend)
    folder = exported(kind, backend)
    made = artifact.read(folder)
    assert set(made.artifacts) == set(subject(kind).specs)
    assert made.source["inputs"] == rehearsal.SEEN
    for name, each in made.artifacts.items():
        each.fits(subject(kind).specs[name])
        each.of(engines.origin_of(weights(kind)))
        assert each.precision == "fp32"
        assert "stream" not in each.measured
        for told in each.measured.values():
            assert told["rel_l2"] < 2e-4 if name == "render" else told["rel_l2"] < 1e-5
    first = next(iter(made.artifacts.values())).measured
    assert first["openvino" if backend == "openvino" else "onnx"]["rel_l2"] > 0, "compared with itself"
    shown, want = served(kind, backend, folder), served(kind)
    assert np.abs(shown - want).max() <= SAME[backend]
    assert np.abs(np.diff(want, axis=0)).max() > 3, "and the picture moves"


def test_graphs_are_compared_on_real_inputs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def noted(spec: Any, path: Path, *, recorded: Any, **_: Any) -> Any:
        given[path.stem] = recorded
        raise AvatarError("enough")

    monkeypatch.setattr(exporter, "to_onnx", noted)
    for kind in KINDS:
        for name, spec in subject(kind).specs.items():
            with pytest.raises(AvatarError, match="enough"):
                exporter.export_subject(replace(subject(kind), specs={name: spec}), exports.place() / "never", order("onnxruntime"))
            assert len(given[name]) == (1 if name == "appearance" else len(exporter.RECORDED))
            for inputs in given[name]:
                assert {key: (array.shape, str(array.dtype)) for key, array in inputs.items()} == spec.inputs
    for name in ("motion", "render"):
        first, later = given[name]
        assert any(not np.array_equal(first[key], later[key]) for key in first), name


@pytest.mark.parametrize(("kind", "graph"), [("reenact", "stitch"), ("wav2lip", "step")])
def test_a_graph_that_is_off_is_not_written(kind: str, graph: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a fiftieth: the last layer as OpenVINO gets it, all of them as ONNX."""
    import onnx

    path = tmp_path / traced(kind)[graph].path.name
    model = onnx.load(traced(kind)[graph].path)
    last = [node.input[1] for node in model.graph.node if node.op_type in ("Conv", "Gemm")][-1]
    (tensor,) = (each for each in model.graph.initializer if each.name == last)
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(1.02), last))
    onnx.save(model, path)
    off = {**traced(kind), graph: replace(traced(kind)[graph], path=path, files=(path,))}
    only = replace(subject(kind), specs={graph: subject(kind).specs[graph]})
    require("openvino")
    with pytest.raises(AvatarError, match=rf"of the OpenVINO graph '\w+ {graph}' differs from PyTorch .*; nothing was written"):
        exporter.export_subject(only, tmp_path / "out", order("openvino"), traced=off)
    program = to_onnx._traced

    def falsified(spec: Any, module: Any, dynamic: Any) -> Any:
        import copy

        other = copy.deepcopy(module)
        for value in other.parameters():
            value.mul_(1.02)
        return program(spec, other, dynamic)

    monkeypatch.setattr(to_onnx, "_traced", falsified)
    with pytest.raises(AvatarError, match=rf"of the ONNX graph '\w+ {graph}' differs from PyTorch .*; nothing was written"):
        exporter.export_subject(only, tmp_path / "out", order("onnxruntime"))
    assert not (tmp_path / "out").exists()


def test_pictures_of_numbers_are_judged_by_the_bytes_that_they_become_too() -> None:
    want = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)
    near, off = ({"picture": want + np.float32(gap)} for gap in (1e-4, 1e-2))
    error = parity.compare({"picture": want}, near, what="it")["picture"]
    assert error.psnr == pytest.approx(128, abs=1)
    assert error.differing < 1e-3
    parity.check(parity.Measured(1, {"picture": error}), LIMITS["fp32"], what="it")
    measured = parity.Measured(1, parity.compare({"picture": want}, off, what="it"))
    with pytest.raises(AvatarError, match=r"Output 'picture' of it differs from PyTorch by 0.01 steps at most in [01].*% of its bytes, PSNR 88"):
        parity.check(measured, LIMITS["fp32"], what="it")
    grey = {"picture": np.full((1, 8, 8, 3), 100.2, np.float32)}
    hidden = parity.Measured(1, parity.compare(grey, {"picture": grey["picture"] + np.float32(2e-3)}, what="it"))
    assert hidden.errors["picture"].differing == 0
    with pytest.raises(AvatarError, match="0.00% of its bytes, PSNR .* and 2e-05 relative, more than the 0.10% and 60 dB and 1e-05 relative allowed"):
        parity.check(hidden, LIMITS["fp32"], what="it")
    parity.check(measured, LIMITS["int8"], what="it")


# -- narrower numbers -----------------------------------------------------------------------------------------------------


def test_in_8_bits_only_what_paints_is_narrowed() -> None:
    import onnx

    folder = exported("reenact", "onnxruntime", "int8")
    made = artifact.read(folder)
    assert made.precision == "int8"
    assert {name: each.precision for name, each in made.artifacts.items()} == {
        **dict.fromkeys(("appearance", "motion", "retarget", "stitch"), "fp32"),
        "render": "int8",
    }
    for name, each in made.artifacts.items():
        model = onnx.load(artifact.verified(folder, made, each))
        quantised = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
        assert bool(quantised) == (name == "render"), name
    fed = {node.name for node in model.graph.node for value in node.input if "DequantizeLinear" in value}
    assert any("decoder" in name for name in fed)
    assert not any("dense_motion_network" in name or "conv_img" in name for name in fed), "where things are stays exact"
    told = made.artifact("render").measured["int8"]
    assert LIMITS["int8"].psnr <= told["psnr"] < 70
    assert told["inputs"] == len(exporter.JUDGED)
    gap = np.abs(served("reenact", "onnxruntime", folder) - served("reenact"))
    assert gap.max() > 1
    assert gap.mean() < 4


STUB = """\
#!{python}
import shutil, sys
words = dict(zip(sys.argv, sys.argv[1:]))
if "-c" in words:
    print("version 0.47.0")
else:
    open({log!r}, "a").write(words["--onnx_path"] + " " + words["--nodes_to_exclude"] + "\\n")
    print("Converted 3/4 nodes")
    shutil.copy(words["--onnx_path"], words["--output_path"])
"""


def test_in_half_precision_places_and_motions_stay_exact(tmp_path: Path) -> None:
    """As far as ModelOpt is asked: it is not installed here."""
    python = tmp_path / "python"
    python.write_text(textwrap.dedent(STUB).format(python=sys.executable, log=str(tmp_path / "log")))
    python.chmod(0o755)
    made = exporter.export_subject(subject("reenact"), tmp_path / "out", order("onnxruntime", "fp16", str(python)), traced=traced("reenact"))
    (line,) = (tmp_path / "log").read_text().splitlines()
    path, keep = line.split(" ")
    assert Path(path).name == "render.onnx"
    assert {name for name, each in made.artifacts.items() if each.precision == "fp16"} == {"render"}
    names = _names("render")
    kept = [name for name in names if re.fullmatch(keep, name)]
    assert any(name.startswith("warping/Gather") for name in kept), "the look-up"
    assert any("dense_motion_network/Einsum" in name for name in kept), "the mixture of the shifts"
    assert not any("decoder" in name or "hourglass" in name or "third" in name for name in kept)


def _names(graph: str) -> list[str]:
    import onnx

    return [node.name for node in onnx.load(traced("reenact")[graph].path).graph.node]


# -- serving --------------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_in_a_sentence(tmp_path: Path) -> None:
    folder = exported("reenact", "onnxruntime")
    others = tmp_path / "others"
    shutil.copytree(weights("reenact"), others)
    told = json.loads((others / engines.WEIGHTS).read_text())
    (others / engines.WEIGHTS).write_text(json.dumps(told | {"origin": {"made": "elsewhere"}}))
    damaged = Path(shutil.copytree(folder, tmp_path / "damaged"))
    next(damaged.rglob("render.onnx")).write_bytes(b"another")
    good = {"weights": weights("reenact"), "backend": "onnxruntime", "graphs": folder}
    for options, sentence in (
        ({"weights": others}, "were exported from other weights"),
        ({"weights": None}, "were exported from other weights"),
        ({"backend": "openvino"}, "for onnxruntime, not for openvino"),
        ({"backend": "pytorch"}, "give --backend with --graphs"),
        ({"backend": None}, "give --backend with --graphs"),
        ({"backend": "tensorrt"}, "cannot run here: .*|were exported for onnxruntime"),
        ({"precision": "bf16"}, "are in fp32, not in bf16"),
        ({"mode": "script"}, "leave --mode out"),
        ({"device": "cuda"}, "runs on the CPU"),
        ({"graphs": tmp_path}, "holds no exported graphs"),
        ({"graphs": None}, "ONNX Runtime runs exported graphs; export them"),
        ({"graphs": exported("wav2lip", "onnxruntime")}, "were exported from other weights"),
    ):
        with pytest.raises(AvatarError, match=sentence):
            load("reenact", **{**good, **options})
    broken: Any = load("reenact", **{**good, "graphs": damaged})
    identity = broken.prepare(demo_portrait())
    state = broken.allocate(1)
    broken.admit(state, 0, identity)
    with pytest.raises(AvatarError, match="render.onnx is not the file that was exported"):
        broken.step(state, [[next(rehearsal.rehearsal()).signal]])
    lips = {"weights": weights("wav2lip"), "backend": "onnxruntime", "graphs": exported("wav2lip", "onnxruntime")}
    for options, sentence in (
        ({"backend": "pytorch"}, "give --backend with --graphs"),
        ({"graphs": None}, "ONNX Runtime runs exported graphs; export them"),
        ({"graphs": folder}, "were exported from other weights"),
        ({"weights": weights("musetalk")}, "were exported from other weights"),
        ({"precision": "int8"}, "are in fp32, not in int8"),
    ):
        with pytest.raises(AvatarError, match=sentence):
            load("lipsync", **{**lips, **options})


def test_an_export_is_served_without_the_networks(tmp_path: Path) -> None:
    folder = tmp_path / "alone"
    folder.mkdir()
    shutil.copy(weights("wav2lip") / engines.WEIGHTS, folder)
    generator: Any = load("lipsync", weights=folder, backend="onnxruntime", graphs=exported("wav2lip", "onnxruntime"))
    assert generator.trained
    assert generator.prepare(demo_portrait()).features.seen


# -- the command ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["reenact", "wav2lip"])
def test_the_command_says_how_to_serve_it(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path(shutil.copytree(weights(kind), tmp_path / "own"))

    def again(spec: Any, path: Path, **_: Any) -> Any:
        made = traced(kind)[path.stem]
        shutil.copy(made.path, path)
        return replace(made, path=path, files=(path,))

    monkeypatch.setattr(exporter, "to_onnx", again)
    assert avatar.main(["export", "--weights", str(own), "--backend", "onnxruntime"]) == 0
    said = capsys.readouterr().out
    name = "reenact" if kind == "reenact" else "lipsync"
    (folder,) = (own / engines.HOME).iterdir()
    assert said.splitlines()[-1] == f"Serve it: avatar serve --generator {name} --weights {own} --backend onnxruntime --graphs {folder}"
    asked = generator_options(avatar._parser().parse_args(shlex.split(said.splitlines()[-1].removeprefix("Serve it: avatar "))))
    generator: Any = load(name, **asked)
    assert generator.precision == "fp32"
    assert generator.prepare(demo_portrait()).portrait.shape == (*generator.spec.size, 3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--steps", "2"], "--steps is for the diffusion generator, and the weights in .* are of 'reenact'; leave it out"),
        (["--decoder", "tiny"], "--decoder is for the diffusion generator"),
        (["--lora", "pyproject.toml"], "--lora is for the diffusion generator"),
    ],
)
def test_options_of_another_generator_are_refused(options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert avatar.main(["export", "--weights", str(weights("reenact")), "--backend", "onnxruntime", *options]) == 2
    assert re.search(sentence, capsys.readouterr().err)


def test_weights_that_cannot_be_exported_say_so(tmp_path: Path) -> None:
    with pytest.raises(AvatarError, match="are of 'abacus', which cannot be exported; choose weights of diffusion, lipsync, reenact"):
        _of(tmp_path, {"system": "abacus"})
    released = {"system": "reenact", "preset": "liveportrait", "sha256": {}, "origin": {}, "format": "onnx"}
    with pytest.raises(AvatarError, match="holds published ONNX files, which ONNX Runtime runs as they are; import the .pth files"):
        _of(tmp_path, released)
    with pytest.raises(AvatarError, match="holds no weights of this engine"):
        _of(tmp_path, [])


def _of(folder: Path, told: Any) -> Any:
    (folder / engines.WEIGHTS).write_text(json.dumps(told))
    return subjects.subject_of(folder)


# -- TensorRT for RTX, which builds without a GPU ---------------------------------------------------------------------------


def test_tensorrt_rtx_builds_every_graph(tmp_path: Path) -> None:
    require(RTX)
    settings = replace(to_tensorrt.STANDARD, level=0, targets=("8.9",))
    for kind in ("reenact", "wav2lip"):
        made = exporter.export_subject(subject(kind), tmp_path / kind, replace(order("tensorrt_rtx"), settings=settings), traced=traced(kind))
        for each in made.artifacts.values():
            assert each.measured["build"]["layers"] > 20
            assert each.measured["engine"] == exporter.UNMEASURED or each.measured["engine"]["inputs"] > 0
