"""The TensorRT backend up to the driver: keys, bindings, buffers that change places, and what is said where something is missing."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import platform
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine.backends import artifact, trt, trt_library
from engine.backends.artifact import Artifact, Manifest
from engine.backends.trt_library import Gpu
from engine.types import AvatarError, GraphSpec, MissingPart
from exporters.graphs import to_tensorrt
from exporters.graphs.manifest import facts, file_hashes, provenance, publishing
from tests.conftest import found, require
from tests.trt_fake import Engine, Library

if found("torch"):
    import torch

pytestmark = pytest.mark.torch
H200 = Gpu("NVIDIA H200", "9.0", 132, 13)
SHAPE = (2, 3, 5)
PORTS = {"a": (SHAPE, "float32"), "past": (SHAPE, "float32"), "shown": (SHAPE, "uint8"), "next": (SHAPE, "float32")}
SPEC = GraphSpec("toy", {name: PORTS[name] for name in ("a", "past")}, ("shown", "next"), lambda: None)
PLAN = b"a plan"


def compute(given: Any) -> dict[str, Any]:
    """A leaky sum, and a picture of it."""
    after = 0.5 * given["past"] + given["a"]
    return {"shown": np.clip(after * 10 + 100, 0, 255).astype(np.uint8), "next": after}


class Place:
    """A machine with a GPU, as the backend sees it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engine = Engine(PORTS, ("a", "past"), compute)
        self.library = Library({PLAN: self.engine})
        self.gpu: Gpu | None = H200
        monkeypatch.setattr(trt_library, "library", lambda flavour: self.library)
        monkeypatch.setattr(trt_library, "gpu", lambda *_: self.gpu)
        monkeypatch.setattr(trt, "available", lambda: None)

    @property
    def runs(self) -> list[dict[str, int]]:
        """Addresses of every run of the first context."""
        return self.engine.contexts[0].runs


@pytest.fixture(autouse=True)
def _installed() -> None:
    require("torch")


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(monkeypatch)


def built(
    folder: Path, *, spec: GraphSpec = SPEC, gpu: Gpu | dict[str, Any] | None = H200, flavour: str = "tensorrt", plan: bytes = PLAN, **target: Any
) -> Path:
    """An export of the toy as the exporter writes it."""
    bound = {
        "flavour": flavour,
        "library": "11.4.0.106",
        "builder": to_tensorrt.STANDARD.told(),
        "profiles": {},
        "plugins": [],
        "gpu": gpu.told() if isinstance(gpu, Gpu) else gpu or {},
    }
    known = facts(spec, weights={"w": "0"}, onnx="1", config={}, precision={"kind": "fp32"}, opset=20, target={**bound, **target})
    with publishing(folder) as publication:
        path = publication.folder / "step.plan"
        path.write_bytes(plan)
        made = Artifact(spec.name, file_hashes([path]), dict(spec.inputs), spec.outputs, "fp32", known)
        publication.commit(Manifest("tensorrt", "fp32", "", {"step": made}, {}, provenance()))
    return folder


def load(folder: Path, **options: Any) -> trt.TrtRunner:
    return trt.load(SPEC, path=folder, device_name="cpu", **options)


# -- running --------------------------------------------------------------------------------------------------------------


def test_an_engine_computes_its_graph(place: Place, tmp_path: Path) -> None:
    run = load(built(tmp_path))
    for seed in range(3):
        inputs = SPEC.examples(seed)
        got = run(inputs)
        for name, want in compute(inputs).items():
            np.testing.assert_array_equal(got[name], want)
    assert len({tuple(each.items()) for each in place.runs}) == 1, "arrays go through buffers that stay where they are"
    with pytest.raises(AvatarError, match=r"Input 'a' of graph 'toy' is float32\[2, 3, 5\], not float32\[2, 3\]"):
        run({**inputs, "a": inputs["a"][..., 0]})
    with pytest.raises(AvatarError, match="takes"):
        run({"a": inputs["a"]})


def test_the_folder_may_come_from_the_spec(place: Place, tmp_path: Path) -> None:
    folder = built(tmp_path)
    run = trt.load(replace(SPEC, build=lambda: str(folder)), device_name="cpu")
    assert set(run(SPEC.examples())) == {"shown", "next"}
    with pytest.raises(AvatarError, match="'toy' is not exported yet"):
        trt.load(SPEC, device_name="cpu")


def test_tensors_are_read_where_they_lie(place: Place, tmp_path: Path) -> None:
    run = load(built(tmp_path))
    first, second = ({name: torch.from_numpy(x) for name, x in SPEC.examples(seed).items()} for seed in (1, 2))
    for inputs in (first, second, first):
        made = run(inputs)
        assert torch.equal(made["next"], 0.5 * inputs["past"] + inputs["a"])
    addresses = [each["a"] for each in place.runs]
    assert addresses == [first["a"].data_ptr(), second["a"].data_ptr(), first["a"].data_ptr()]
    assert len(run._calls) == 2, "a set of addresses is prepared once"
    first["a"][...] = 1.0  # written in place: the same addresses, other values
    assert torch.equal(run(first)["next"], 0.5 * first["past"] + 1)
    assert len(run._calls) == 2


def test_what_is_replayed_keeps_its_memory_and_the_oldest_goes(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gc
    import weakref

    monkeypatch.setattr(trt, "GRAPHS", 2)
    run = load(built(tmp_path))
    gone: list[Any] = []
    for seed in range(3):
        inputs = {name: torch.from_numpy(x) for name, x in SPEC.examples(seed).items()}
        gone.append(weakref.ref(inputs["a"]))
        run(inputs)
        del inputs
    gc.collect()
    assert [ref() is not None for ref in gone] == [False, True, True]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a.double(), r"float64\[2, 3, 5\] on cpu"),
        (lambda a: a[..., :2], r"float32\[2, 3, 2\] on cpu with gaps"),
        (lambda a: a.transpose(0, 2).contiguous().transpose(0, 2), r"float32\[2, 3, 5\] on cpu with gaps"),
    ],
)
def test_a_tensor_that_cannot_be_read_where_it_lies_is_refused(place: Place, tmp_path: Path, change: Any, said: str) -> None:
    run = load(built(tmp_path))
    inputs = {name: torch.from_numpy(x) for name, x in SPEC.examples().items()}
    with pytest.raises(AvatarError, match=rf"Input 'a' of graph 'toy' is float32\[2, 3, 5\] on cpu, not {said}"):
        run({**inputs, "a": change(inputs["a"])})
    with pytest.raises(AvatarError, match="takes"):
        run({"a": inputs["a"]})


def test_states_change_places_and_never_leave_the_device(place: Place, tmp_path: Path) -> None:
    run = load(built(tmp_path), states={"next": "past"})
    want = np.zeros(SHAPE, np.float32)
    for seed in range(5):
        a = SPEC.examples(seed)["a"]
        want = 0.5 * want + a
        np.testing.assert_array_equal(run({"a": a})["next"], want)
    reads, writes = [each["past"] for each in place.runs], [each["next"] for each in place.runs]
    assert len(set(reads)) == 2, "two buffers"
    assert reads[1:] == writes[:-1], "what one call writes the next one reads"
    assert all(r != w for r, w in zip(reads, writes, strict=True)), "never the same in one call"
    assert len(run._calls) == 2
    run.reset()
    np.testing.assert_array_equal(run({"a": a})["next"], a)
    run.reset({"past": np.full(SHAPE, 2.0, np.float32)})
    np.testing.assert_array_equal(run({"a": a})["next"], 1 + a)
    with pytest.raises(AvatarError, match="takes"):
        run({"a": a, "past": a})
    with pytest.raises(AvatarError, match="cannot be its input 'past' next time"):
        load(tmp_path, states={"shown": "past"})


def test_results_in_flight_outlive_the_next_call(place: Place, tmp_path: Path) -> None:
    run = load(built(tmp_path))
    inputs = [SPEC.examples(seed) for seed in range(3)]
    first = run.submit(inputs[0])
    second = run.submit(inputs[1])
    np.testing.assert_array_equal(first.result()["next"], compute(inputs[0])["next"])
    np.testing.assert_array_equal(second.result()["next"], compute(inputs[1])["next"])
    third = run.submit(inputs[2]).result()
    assert np.shares_memory(third["next"], first.result()["next"]), "the call after the next takes the same memory"


def test_another_caller_has_a_context_and_states_of_its_own(place: Place, tmp_path: Path) -> None:
    run = load(built(tmp_path), states={"next": "past"})
    a = SPEC.examples()["a"]
    run({"a": a})
    np.testing.assert_array_equal(run.another()({"a": a})["next"], a)
    assert len(place.engine.contexts) == 2


def test_a_run_that_fails_is_said(place: Place, tmp_path: Path) -> None:
    run = load(built(tmp_path))
    place.engine.contexts[0].works = False
    with pytest.raises(AvatarError, match=r"TensorRT could not run 'toy' \(CUDA error 700 in kernel launch\)"):
        run(SPEC.examples())


# -- which engines --------------------------------------------------------------------------------------------------------

FOREIGN: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another GPU": ({}, {"gpu": replace(H200, name="NVIDIA H100")}, "built for GPU NVIDIA H200, here it is NVIDIA H100; export it again"),
    "another capability": ({}, {"gpu": replace(H200, sm="8.9")}, "compute capability 9.0, here it is 8.9"),
    "a slice of it": ({}, {"gpu": replace(H200, processors=60)}, "number of multiprocessors 132, here it is 60"),
    "another version": ({}, {"version": "11.3.0.1"}, "built for TensorRT 11.4.0.106, here it is 11.3.0.1"),
    "another system": ({}, {"machine": "aarch64"}, "built for processor .*, here it is aarch64"),
    "no GPU": ({}, {"gpu": None}, "There is no NVIDIA GPU here"),
    "another backend": ({"flavour": "openvino"}, {}, "was exported for another backend than TensorRT"),
    "RTX, other targets": (
        {"flavour": "tensorrt_rtx", "gpu": None, "builder": {**to_tensorrt.STANDARD.told(), "targets": ["8.9", "12.0"]}},
        {},
        "compute capability 8.9 or 12.0, here it is 9.0",
    ),
}


@pytest.mark.parametrize("what", sorted(FOREIGN))
def test_an_engine_of_elsewhere_is_refused(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    target, here, sentence = FOREIGN[what]
    folder = built(tmp_path, **target)
    if "gpu" in here:
        place.gpu = here["gpu"]
    place.library.__version__ = here.get("version", place.library.__version__)
    if "machine" in here:
        monkeypatch.setattr(platform, "machine", lambda: here["machine"])
    with pytest.raises(AvatarError, match=sentence):
        load(folder)
    assert place.engine.contexts == [], "it was not even opened"


def test_an_engine_for_a_whole_capability_and_one_for_all_rtx_gpus_are_taken(place: Place, tmp_path: Path) -> None:
    place.gpu = replace(H200, name="NVIDIA H100", processors=114)
    load(built(tmp_path / "a", builder={**to_tensorrt.STANDARD.told(), "same_capability": True}))
    load(built(tmp_path / "b", flavour="tensorrt_rtx", gpu=None))
    place.gpu = replace(H200, sm="8.9")
    load(built(tmp_path / "b2", flavour="tensorrt_rtx", gpu=None, builder={**to_tensorrt.STANDARD.told(), "targets": ["8.9"]}))
    with pytest.raises(AvatarError, match="compute capability 9.0, here it is 8.9"):
        load(tmp_path / "a")


def test_a_damaged_export_is_refused(place: Place, tmp_path: Path) -> None:
    folder = built(tmp_path)
    plan = next(folder.rglob("*.plan"))
    plan.write_bytes(PLAN[:-1])
    with pytest.raises(AvatarError, match="is not the file that was exported"):
        load(folder)
    with pytest.raises(AvatarError, match=r"does not take the engine 'toy' \(Serialization assertion .* failed\); export it again"):
        load(built(tmp_path, plan=b"no plan of this library"))
    place.engine.memory = False
    with pytest.raises(AvatarError, match="The GPU has no memory left to run 'toy'"):
        load(built(tmp_path))


@pytest.mark.parametrize(
    ("ports", "said"),
    [
        ({**PORTS, "more": (SHAPE, "float32")}, r"has other inputs or outputs than the graph \(more\)"),
        ({**PORTS, "a": ((2, 3, 6), "float32")}, r"Input 'a' of the engine 'toy' is float32\[2, 3, 6\], not float32\[2, 3, 5\]"),
        ({**PORTS, "a": (SHAPE, "float16")}, "is float16"),
        ({**PORTS, "a": ((-1, 3), "float32")}, r"is float32\[-1, 3\]"),
    ],
)
def test_an_engine_of_another_graph_is_refused(place: Place, tmp_path: Path, ports: Any, said: str) -> None:
    place.library.engines[PLAN] = Engine(ports, ("a", "past"), compute)
    with pytest.raises(AvatarError, match=said):
        load(built(tmp_path))


def test_a_length_left_free_takes_the_size_asked_for(place: Place, tmp_path: Path) -> None:
    free = (-1, 3, 5)
    place.library.engines[PLAN] = engine = Engine({name: (free, dtype) for name, (_, dtype) in PORTS.items()}, ("a", "past"), compute)
    folder = built(tmp_path, profiles={name: [[2, 3, 5], [4, 3, 5], [8, 3, 5]] for name in ("a", "past")})
    at = replace(SPEC, inputs=dict.fromkeys(SPEC.inputs, ((6, 3, 5), "float32")))
    real = engine.create_execution_context

    def context() -> Any:
        made = real()
        assert made is not None
        made.get_tensor_shape = lambda name: (6, 3, 5)  # type: ignore[method-assign]
        made.shapes = dict.fromkeys(PORTS, (6, 3, 5))
        return made

    engine.create_execution_context = context  # type: ignore[method-assign]
    inputs = at.examples(4)
    np.testing.assert_array_equal(trt.load(at, path=folder, device_name="cpu")(inputs)["next"], compute(inputs)["next"])
    with pytest.raises(AvatarError, match=r"has input 'a' float32\[2, 3, 5\] where float32\[10, 3, 5\] is asked for"):
        trt.load(replace(SPEC, inputs=dict.fromkeys(SPEC.inputs, ((10, 3, 5), "float32"))), path=folder, device_name="cpu")


# -- what is missing ------------------------------------------------------------------------------------------------------


def test_all_that_is_missing_is_named_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt_library, "driver", lambda *_: None)
    monkeypatch.setattr(trt_library, "missing", lambda flavour: f"{flavour} is not installed; get it.")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    told = trt.available()
    assert told is not None
    for part in (
        "no NVIDIA GPU with a driver (libcuda.so.1)",
        "PyTorch sees no GPU",
        "tensorrt is not installed; get it or tensorrt_rtx is not installed",
    ):
        assert part in told
    monkeypatch.setattr(trt_library, "driver", lambda *_: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert trt.available() == "TensorRT engines cannot run here: tensorrt is not installed; get it or tensorrt_rtx is not installed; get it."
    monkeypatch.setattr(trt_library, "missing", lambda flavour: None if flavour == "tensorrt_rtx" else "absent")
    assert trt.available() is None


@pytest.fixture
def _uncached() -> Any:
    trt_library.library.cache_clear()
    yield
    trt_library.library.cache_clear()


@pytest.mark.usefixtures("_uncached")
def test_a_library_that_is_absent_half_there_or_broken_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    there: set[str] = set()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[]) if name in there else None)
    for flavour, sentence in (
        ("tensorrt", "TensorRT is not installed; install NVIDIA's package"),
        ("tensorrt_rtx", "TensorRT for RTX is not installed"),
    ):
        with pytest.raises(MissingPart, match=sentence):
            trt_library.library(flavour)
    there.add("tensorrt_rtx_bindings")
    with pytest.raises(MissingPart, match="half installed: the bindings lack their libraries"):
        trt_library.library("tensorrt_rtx")
    there.add(trt_library.CARRIER)
    with pytest.raises(AvatarError, match=r"installed but does not load \(onnxruntime_ep_nv_tensorrt_rtx has no libtensorrt_rtx.so"):
        trt_library.library("tensorrt_rtx")
    there.add("tensorrt")

    def broken(name: str) -> Any:
        raise ImportError("libnvonnxparser.so.11: cannot open shared object file\nmore")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(AvatarError, match=r"TensorRT is installed but does not load \(libnvonnxparser.so.11: cannot open shared object file\)"):
        trt_library.library("tensorrt")


def test_an_extra_of_two_words_is_no_requirement() -> None:
    """The doctor would tell everybody to install TensorRT."""
    from engine.doctor import _requirements

    needed, extras = _requirements(["numpy==1.26.4", 'tensorrt-rtx-cu13-bindings==1.7.1.116; extra == "tensorrt-rtx"'])
    assert needed == {"numpy": "==1.26.4"}
    assert extras == {"tensorrt-rtx": {"tensorrt-rtx-cu13-bindings": "==1.7.1.116"}}


class Driver:
    """libcuda as far as it is asked."""

    def __init__(self, *, devices: int = 1) -> None:
        self.devices = devices

    def cuDeviceGet(self, device: Any, index: int) -> int:
        return 0 if index < self.devices else 101

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        name.value = b"NVIDIA GeForce RTX 4090"
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        ctypes.cast(value, ctypes.POINTER(ctypes.c_int))[0] = {75: 8, 76: 9, 16: 128}[attribute]
        return 0

    def cuDriverGetVersion(self, value: Any) -> int:
        ctypes.cast(value, ctypes.POINTER(ctypes.c_int))[0] = 13010
        return 0


def test_the_gpu_is_asked_of_the_driver() -> None:
    assert trt_library.gpu(cuda=Driver()) == Gpu("NVIDIA GeForce RTX 4090", "8.9", 128, 13)
    assert trt_library.gpu(cuda=Driver(devices=0)) is None
    assert trt_library.driver("libsurely_absent.so.7") is None
    assert trt_library.driver("libc.so.6") is None  # a library of that name that is not NVIDIA's


# -- engines that are there -----------------------------------------------------------------------------------------------


def test_an_engine_is_inspected_and_takes_other_weights(place: Place, tmp_path: Path) -> None:
    plan, onnx, out = tmp_path / "step.plan", tmp_path / "lora.onnx", tmp_path / "new.plan"
    plan.write_bytes(PLAN)
    onnx.write_bytes(b"fused weights")
    source: Any = SimpleNamespace(path=onnx)
    assert to_tensorrt.inspect(plan) == {"Layers": list(PORTS)}
    assert to_tensorrt.refit(plan, source, out) == artifact.sha256(out)
    assert out.read_bytes() == b"fused weights"
    onnx.write_bytes(b"other layout")
    with pytest.raises(AvatarError, match=r"does not take the weights of lora.onnx \(conv_in.weight\)"):
        to_tensorrt.refit(plan, source, tmp_path / "never.plan")
    place.engine.refittable = False
    with pytest.raises(AvatarError, match="was not built to take other weights"):
        to_tensorrt.refit(plan, source, tmp_path / "never.plan")
    plan.write_bytes(b"damaged")
    with pytest.raises(AvatarError, match=r"does not take step.plan \(Serialization"):
        to_tensorrt.inspect(plan)
    place.gpu = None
    with pytest.raises(AvatarError, match="can only be opened on a machine with an NVIDIA GPU"):
        to_tensorrt.inspect(plan)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lora.onnx", "new.plan", "step.plan"]


class Config:
    """A builder's configuration that takes timing caches of this GPU only."""

    def __init__(self) -> None:
        self.cache: bytes | None = None

    def create_timing_cache(self, held: bytes) -> bytes | None:
        return None if held == b"damaged" else held or b"empty"

    def set_timing_cache(self, cache: bytes, ignore: bool) -> bool:
        self.cache = cache if ignore or cache != b"of another GPU" else self.cache
        return self.cache == cache


@pytest.mark.parametrize(
    ("held", "taken"), [(b"", b"empty"), (b"good", b"good"), (b"damaged", b"empty"), (b"of another GPU", b"empty"), (None, b"empty")]
)
def test_a_timing_cache_that_does_not_fit_is_begun_anew(tmp_path: Path, held: bytes | None, taken: bytes) -> None:
    path, config = tmp_path / "timing", Config()
    if held is not None:
        path.write_bytes(held)
    assert to_tensorrt._timing_cache(config, path) == config.cache == taken


# -- a real one -----------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_a_real_engine_computes_what_pytorch_does(tmp_path: Path) -> None:
    """Any flavour that is installed: build, load, run through a CUDA graph, states in place."""
    missing = trt.available()
    if missing:
        pytest.skip(missing)
    from exporters.graphs.to_onnx import to_onnx

    class Toy(torch.nn.Module):
        def forward(self, a: Any, past: Any) -> Any:
            after = 0.5 * past + a
            return (after * 10 + 100).clamp(0, 255).round().to(torch.uint8), after

    flavour: trt_library.Flavour = "tensorrt" if trt_library.missing("tensorrt") is None else "tensorrt_rtx"
    spec = replace(SPEC, build=Toy)
    source = to_onnx(spec, tmp_path / "toy.onnx")
    plan = tmp_path / "toy.plan"
    to_tensorrt.to_tensorrt(source, plan, flavour=flavour)
    target = to_tensorrt.target(flavour, source, to_tensorrt.STANDARD, gpu=trt_library.gpu())
    run = trt.load(SPEC, path=built(tmp_path / "out", plan=plan.read_bytes(), **target), states={"next": "past"})
    want = np.zeros(SHAPE, np.float32)
    for seed in range(12):  # beyond the warm-ups of both graphs
        a = SPEC.examples(seed)["a"]
        want = 0.5 * want + a
        np.testing.assert_allclose(run({"a": a})["next"], want, rtol=1e-5, atol=1e-6)
