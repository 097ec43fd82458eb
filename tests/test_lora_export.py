"""Engines with a LoRA: exported, told apart from those without, served by name only, and refitted in place of a build."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import avatar
from engine.backends import artifact, engines, pytorch, trt, trt_library
from engine.backends.trt_library import Gpu
from engine.generators import load
from engine.persona import demo_portrait
from engine.types import AvatarError
from exporters.graphs import to_tensorrt
from exporters.graphs.lora_option import Asked, laid
from tests import exports, loras
from tests.conftest import found, require, require_for
from tests.exports import MINI
from tests.test_contract import signals
from tests.trt_fake import Engine, Library

if found("torch") and found("diffusers"):
    import torch

    from engine.generators.diffusion.graphs import graphs
    from exporters.graphs import export as exporter
    from exporters.graphs import export_command, lora, subject_diffusion
    from tests.networks import seeded

pytestmark = pytest.mark.torch
H200 = Gpu("NVIDIA H200", "9.0", 132, 13)
WINDOWS = 8
"""Of a stream: enough to be fed with its own past."""


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    require_for("diffusion")
    for part in ("onnx", "onnxscript", "onnxruntime"):
        require(part)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with weights of MINI and two LoRAs for them, and the graphs with the first one as ONNX Runtime has them."""
    folder = tmp_path_factory.mktemp("lora")
    networks = seeded(MINI)
    layers = [*(layer for layer in loras.layers(networks) if not any(word in layer for word in exports.FOLDED)), "reference.conv_in"]
    for seed, name in enumerate(("style", "other")):
        loras.file(folder / f"{name}.safetensors", loras.branches(networks, layers, seed=seed, size=0.2), "own")
    with exports.known(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_command, "WINDOWS", WINDOWS)
        shutil.copytree(exports.weights(), folder / "weights")
        yield folder


@pytest.fixture(scope="module")
def traced(place: Path) -> dict[str, Any]:
    """Every graph as ONNX, by the LoRA in it."""
    made: dict[str, Any] = {"": exports.exported()}
    adapt = subject_diffusion.adapted_by([Asked(place / "style.safetensors", 0.5)], lambda line: None)
    networks = subject_diffusion.recipe_of(place / "weights", adapt=adapt)[0].networks
    (place / "onnx").mkdir()
    made[networks.adapters[0].sha256] = {
        name: exports.with_weights(graph, networks, place / "onnx" / f"{name}.onnx") for name, graph in exports.exported().items()
    }
    for graph in made[networks.adapters[0].sha256].values():
        assert graph.measured.worst[1].rel_l2 < 1e-5
    return made


@pytest.fixture
def once(traced: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports take the graphs that there are, by what is in the weights that they are asked for."""

    def again(spec: Any, path: Path, **_: Any) -> Any:
        networks = spec.build().networks
        made = traced[networks.adapters[0].sha256 if networks.adapters else ""][path.stem]
        shutil.copy(made.path, path)
        return replace(made, spec=spec, path=path, files=(path,))

    monkeypatch.setattr(exporter, "to_onnx", again)


def export(*arguments: Any) -> int:
    return avatar.main(["export", *(str(each) for each in arguments)])


@pytest.fixture
def engine(place: Path, once: None, capsys: pytest.CaptureFixture[str]) -> Path:
    """The folder of an engine of ONNX Runtime with the first LoRA at half its scale."""
    shutil.rmtree(place / "weights" / engines.HOME, ignore_errors=True)
    assert export("--weights", place / "weights", "--backend", "onnxruntime", "--lora", f"{place / 'style.safetensors'}:0.5") == 0
    said = capsys.readouterr().out
    assert "LoRA style.safetensors at 0.5: " in said
    (folder,) = (place / "weights" / engines.HOME).iterdir()
    assert f"--graphs {shlex.quote(str(folder))}" in said
    return folder


def shown(generator: Any, frames: int = 3) -> Any:
    """[frames, H, W, 3] of the built-in portrait."""
    state = generator.allocate(1)
    generator.admit(state, 0, generator.prepare(demo_portrait()))
    return np.stack([generator.step(state, [signals(1, 0, step)])[0][0].rgb.astype(int) for step in range(frames)])


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: artifact.sha256(path) for path in folder.iterdir() if path.is_file()}


def test_an_engine_with_a_lora_is_another_one_and_computes_what_pytorch_does_with_it(place: Path, engine: Path) -> None:
    weights = place / "weights"
    assert hashes(weights) == hashes(exports.weights()), "the weights stay as they are"
    manifest = artifact.read(engine)
    (noted,) = manifest.source["adapters"]
    assert (noted["name"], noted["scale"], noted["sha256"]) == ("style.safetensors", 0.5, artifact.sha256(place / "style.safetensors"))
    for made in manifest.artifacts.values():
        assert made.facts["adapters"] == [{"sha256": noted["sha256"], "scale": 0.5}]
        assert made.measured["onnx"]["rel_l2"] < 1e-5
    served: Any = load("diffusion", weights=weights, steps=1, backend="onnxruntime", graphs=engine)
    asked = laid([f"{place / 'style.safetensors'}:0.5"], weights=str(weights), persona=None, tell=lambda line: None)
    same: Any = load("diffusion", weights=weights, steps=1, mode="eager", **asked)
    plain: Any = load("diffusion", weights=weights, steps=1, mode="eager")
    assert served.adapters == same.adapters == ("style.safetensors at 0.5",)
    assert plain.adapters == ()
    assert served.weights == same.weights != plain.weights, "what is kept of a portrait is not taken for the other's"
    pictures = [shown(each) for each in (served, same, plain)]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1
    assert np.abs(pictures[0] - pictures[2]).max() > 10
    # Of a portrait, too, what is remembered is of the weights with the LoRA.
    keys = [each.prepare(demo_portrait()).features.cache.reference[0][0] for each in (served, same, plain)]
    assert torch.equal(keys[0], keys[1])
    assert not torch.allclose(keys[0], keys[2], atol=1e-2)


def test_keys_tell_engines_apart(place: Path, once: None, tmp_path: Path) -> None:
    keys, names = [], []
    for scale in (None, 0.5, 0.25):
        asked = [] if scale is None else [Asked(place / "style.safetensors", scale)]
        subject = subject_diffusion.subject(place / "weights", adapt=subject_diffusion.adapted_by(asked, lambda line: None))
        order = exporter.Order("onnxruntime", "fp32", to_tensorrt.STANDARD, 0, (), None, None, lambda line: None)
        names.append(exporter.request(subject, order))
        if scale != 0.25:
            keys.append(exporter.export_subject(subject, tmp_path / f"{scale}", order).key)
    assert len(set(keys)) == 2
    assert len(set(names)) == 3
    assert "adapters" not in artifact.read(tmp_path / "None").source


def test_it_is_chosen_only_where_it_is_asked_for(place: Path, engine: Path) -> None:
    weights = place / "weights"
    search = engines.find(weights, "onnxruntime", steps=1)
    assert search.engine is None
    assert "It has a LoRA fused (style.safetensors at 0.5); it is used only where --graphs names it." in search.told
    (noted,) = artifact.read(engine).source["adapters"]
    wanted = {"sha256": noted["sha256"], "scale": 0.5, "name": "style.safetensors"}
    there = engines.find(weights, "onnxruntime", steps=1, adapters=[wanted])
    assert there.engine is not None
    assert there.engine.folder == engine
    other = engines.find(weights, "onnxruntime", steps=1, adapters=[{**wanted, "scale": 0.25}])
    assert other.engine is None
    assert other.build.endswith("--lora style.safetensors:0.25")
    assert export("--weights", weights, "--backend", "onnxruntime") == 0
    plain = engines.find(weights, "onnxruntime", steps=1)
    assert plain.engine is not None
    assert plain.engine.folder != engine
    refused = engines.find(weights, "onnxruntime", steps=1, adapters=[{**wanted, "scale": 0.25}]).told
    assert "It has not the LoRA that is asked for" in refused


def test_what_does_not_belong_to_an_engine_is_refused(place: Path, engine: Path) -> None:
    weights = place / "weights"
    asked = {"weights": weights, "steps": 1, "backend": "onnxruntime", "graphs": engine}
    other = laid([str(place / "other.safetensors")], weights=str(weights), persona=None, tell=lambda line: None)
    with pytest.raises(AvatarError, match="have as LoRA style.safetensors at 0.5, and other.safetensors is asked for"):
        load("diffusion", **asked, **other)
    (file,) = (path for path in engine.rglob("lora-*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(AvatarError, match=r"lora-.*safetensors is not the file that was exported"):
        load("diffusion", **asked)


def test_serving_takes_a_lora_and_says_so(place: Path, engine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from engine import serving
    from streaming.desk import Desk
    from streaming.server import _told

    monkeypatch.setattr(serving, "_cuda", lambda: False)
    monkeypatch.setattr(serving, "backend", lambda name: _Backend(name))
    ask = ["serve", "--generator", "diffusion", "--weights", str(place / "weights"), "--steps", "1"]
    choice = avatar._choice(avatar._parser().parse_args([*ask, "--lora", f"{place / 'style.safetensors'}:0.5"]))
    assert (choice.options["backend"], choice.options["graphs"]) == ("onnxruntime", engine), "the engine with this very LoRA"
    assert "graphs" not in avatar._choice(avatar._parser().parse_args(ask)).options
    assert "LoRA style.safetensors at 0.5: " in capsys.readouterr().out
    generator = load("diffusion", **choice.options)
    assert _told(generator)[-1] == "LoRA fused into the weights: style.safetensors at 0.5."
    studio = SimpleNamespace(started=0.0, loaded=True, generator=generator, sessions={}, refused=0, load=dict)
    settings = SimpleNamespace(generator="diffusion", generator_told=choice.told, max_sessions=1)
    desk: Any = SimpleNamespace(studio=studio, settings=settings, broadcasts={}, _kept={})
    assert Desk.snapshot(desk)["lora"] == ["style.safetensors at 0.5"]


class _Backend:
    """Of the others, ONNX Runtime alone."""

    def __init__(self, name: str) -> None:
        self._name = name

    def available(self) -> str | None:
        return None if self._name == "onnxruntime" else f"{self._name} is not installed."


# -- refit ----------------------------------------------------------------------------------------------------------------


class Plans(dict[bytes, Engine]):
    """A plan is the ONNX file that it was built from; ONNX Runtime computes it."""

    def get(self, plan: bytes, default: Any = None) -> Any:
        import onnxruntime

        try:
            session = onnxruntime.InferenceSession(plan, providers=["CPUExecutionProvider"])
        except Exception:
            return default
        names = [port.name for port in session.get_inputs()]
        spec = next(spec for spec in graphs(exports.recipe()).values() if list(spec.inputs) == names)
        outputs = [port.name for port in session.get_outputs()]

        def compute(given: Any) -> dict[str, Any]:
            return dict(zip(outputs, session.run(outputs, dict(given)), strict=True))

        made = compute(spec.examples())
        engine = Engine({**spec.inputs, **{name: (made[name].shape, str(made[name].dtype)) for name in outputs}}, tuple(names), compute)
        engine.weights = plan
        return engine


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Library:
    """A machine with a GPU, as far as TensorRT is asked."""
    library = Library({})
    library.engines = Plans()
    monkeypatch.setattr(trt_library, "library", lambda flavour: library)
    monkeypatch.setattr(trt_library, "gpu", lambda *_: H200)
    monkeypatch.setattr(trt, "available", lambda: None)
    monkeypatch.setattr(pytorch, "device", lambda name=None: torch.device("cpu"))

    def build(source: Any, path: Path, **_: Any) -> dict[str, Any]:
        shutil.copy(source.path, path)
        return {"layers": 1, "bytes": 1}

    monkeypatch.setattr(to_tensorrt, "to_tensorrt", build)
    return library


@pytest.fixture
def built(place: Path, once: None, gpu: Library) -> Path:
    """An engine without a LoRA that takes other weights."""
    shutil.rmtree(place / "weights" / engines.HOME, ignore_errors=True)
    shutil.rmtree(place / "built", ignore_errors=True)
    assert export("--weights", place / "weights", "--backend", "tensorrt", "--refit", "--out", place / "built") == 0
    return place / "built"


def refit(place: Path, engine: Path, *more: Any) -> int:
    return export("--weights", place / "weights", "--backend", "tensorrt", "--refit-from", engine, *more)


def test_an_engine_gets_other_weights_in_place_of_a_build(
    place: Path, built: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is built")

    monkeypatch.setattr(to_tensorrt, "to_tensorrt", build)
    before = hashes(built / artifact.read(built).folder)
    capsys.readouterr()
    assert refit(place, built, "--lora", f"{place / 'style.safetensors'}:0.5") == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "built, before its weights are replaced:" in said
    assert "step: replacing the weights of step.plan" in said
    assert "the engine before, with its own weights, " in said
    (folder,) = (place / "weights" / engines.HOME).iterdir()
    manifest, old = artifact.read(folder), artifact.read(built)
    for name, made in manifest.artifacts.items():
        assert made.measured["before"]["rel_l2"] < 1e-5
        assert made.measured["engine"]["rel_l2"] < 1e-5
        assert "build" not in made.measured
        assert made.facts["target"] == old.artifact(name).facts["target"]
        assert made.files != old.artifact(name).files
    assert manifest.artifact("step").measured["stream"]["windows"] == WINDOWS
    assert manifest.source["adapters"][0]["scale"] == 0.5
    assert hashes(built / old.folder) == before, "the engine that it was made of stays as it is"
    assert engines.find(place / "weights", "tensorrt", steps=1).engine is None
    # And back to none, from the new one, whose own LoRA is what it is compared with first.
    monkeypatch.setattr(lora, "adapters", build)
    assert refit(place, folder, "--out", place / "back") == 0, capsys.readouterr().err
    assert "adapters" not in artifact.read(place / "back").source
    assert artifact.read(place / "back").artifact("step").files == old.artifact("step").files
    shutil.rmtree(place / "back")


def test_an_engine_that_keeps_its_weights_or_never_had_them_is_not_written(
    place: Path, built: Path, gpu: Library, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = (built, "--lora", f"{place / 'style.safetensors'}:0.5", "--out", place / "no")
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(gpu.OnnxParserRefitter, "refit_from_file", lambda self, path: True)
        assert refit(place, *ask) == 2
    assert "of the engine 'mini remember' differs from PyTorch" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(gpu.OnnxParserRefitter, "refit_from_file", lambda self, path: False)
        assert refit(place, *ask) == 2
    assert "remember.plan does not take the weights of remember.onnx (conv_in.weight); build it anew" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        real = Plans.get

        def off(self: Plans, plan: bytes, default: Any = None) -> Any:
            engine = real(self, plan)
            compute = engine.compute
            engine.compute = lambda given: {name: x if x.dtype == np.uint8 else x + 1 for name, x in compute(given).items()}
            return engine

        patch.setattr(Plans, "get", off)
        assert refit(place, *ask) == 2
    assert "the engine 'mini remember' with its own weights differs from PyTorch" in capsys.readouterr().err
    assert not (place / "no").exists()


def test_what_cannot_be_refitted_is_said_before_any_work(place: Path, built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    style = ("--lora", f"{place / 'style.safetensors'}:0.5")
    assert export("--weights", place / "weights", "--backend", "tensorrt", "--out", place / "fixed") == 0
    others = place / "others"
    shutil.copytree(place / "weights", others, ignore=shutil.ignore_patterns(engines.HOME))
    (others / "weights.json").write_text((others / "weights.json").read_text() + "\n")
    capsys.readouterr()
    for ask, sentence in (
        ((built,), "has these weights already; give another LoRA or another scale with --lora"),
        ((place / "fixed", *style), "was not built to take other weights; build one with avatar export --refit"),
        ((place / "nowhere", *style), "no exported graphs"),
        ((built, *style, "--weights", others), "is of other weights than those in"),
        ((built, *style, "--steps", "2"), "has steps 1, not 2, and refitting cannot change that; leave --steps out"),
        ((built, *style, "--precision", "fp16"), "has precision fp32, not fp16"),
        ((built, *style, "--level", "5"), "--level is for TensorRT's builder, which --refit-from does without; leave it out"),
        ((built, *style, "--out", built), "holds the engine that is refitted, which stays as it is"),
        ((built, *style, "--backend", "tensorrt-rtx"), "is one of tensorrt, not of tensorrt_rtx"),
        ((built, *style, "--backend", "openvino"), "Only TensorRT's engines take other weights; leave --refit-from out"),
    ):
        assert refit(place, *ask) == 2
        said = capsys.readouterr().err
        assert sentence in said
        assert len(said.splitlines()) == 1


def test_without_a_gpu_it_says_what_is_missing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if trt.available() is None:
        pytest.skip("there is a GPU that runs engines here")
    assert refit(place, place / "built", "--lora", place / "style.safetensors") == 2
    said = capsys.readouterr().err
    assert "An engine gets other weights on the GPU that runs it. TensorRT engines cannot run here: " in said
    assert "NVIDIA" in said or "PyTorch sees no GPU" in said
