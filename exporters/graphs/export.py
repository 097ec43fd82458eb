"""Weights -> a folder of graphs for one backend: traced, compared with PyTorch, narrowed, compiled, streamed, and published with a manifest."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np

from engine.backends import backend as backend_named
from engine.backends import engines, trt, trt_library
from engine.backends.artifact import Artifact, Manifest, digest
from engine.backends.trt_library import Flavour
from engine.types import AvatarError, GraphSpec, Runner
from exporters.graphs import closed_loop, parity, precision, to_openvino, to_tensorrt
from exporters.graphs.closed_loop import WINDOWS
from exporters.graphs.lora_option import Asked
from exporters.graphs.manifest import KEY_SHOWN, Publication, facts, file_hashes, provenance, publishing
from exporters.graphs.parity import LIMITS, Arrays
from exporters.graphs.subject import Subject, subject_of
from exporters.graphs.subject_diffusion import adapted_by
from exporters.graphs.to_onnx import OPSET, SEEDS, Onnx, available, reference, to_onnx
from exporters.graphs.to_tensorrt import STANDARD, Settings

Backend = Literal["onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"]
PRECISIONS: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
    "tensorrt": ("fp32", "fp16", "bf16", "int8"),
    "tensorrt_rtx": ("fp32", "fp16", "bf16", "int8"),
}
"""What each can have, the first by default."""
RECORDED = (0, 3)
"""Moments of real use whose inputs a graph is compared on, beside random ones."""
CALIBRATED = tuple(range(0, 48, 3))
"""Moments whose inputs show the ranges of values, where no recording is given."""
JUDGED = tuple(range(1, 48, 6))
"""Moments whose inputs narrower precisions are measured on: none that they were calibrated on."""
CALIBRATION_BYTES = 4e9
"""That they may take together; of a large preset's inputs, whose rings are gigabytes, there are fewer."""
UNMEASURED = "not measured: no NVIDIA GPU on the machine that built it"


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be made."""

    backend: Backend
    precision: str
    settings: Settings  # of TensorRT's builder
    windows: int  # of the closed loop; 0 leaves it out
    calibration: Sequence[Arrays]
    modelopt: str | None  # Python of an environment with NVIDIA ModelOpt
    timing_cache: Path | None
    tell: Callable[[str], None]
    plans: Mapping[str, Path] = field(default_factory=dict)  # graph -> an engine that gets other weights, instead of a new one
    before: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # graph -> how far that engine was from PyTorch with its own weights


def export(
    weights: Path,
    out: Path,
    *,
    backend: Backend,
    precision: str | None = None,
    steps: int | None = None,
    size: tuple[int, int] | None = None,
    decoder: Literal["kl", "tiny"] | None = None,
    windows: int = WINDOWS,
    calibration: Sequence[Arrays] = (),
    settings: Settings = STANDARD,
    modelopt: str | None = None,
    timing_cache: Path | None = None,
    loras: Sequence[Asked] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Every graph of the generator whose weights are in a folder, for one backend, into the folder `out` with its manifest.

    `steps` and `size` (H, W) px as the diffusion generator has them, by default the preset's. `windows`: length of the stream in which a graph
    that remembers is compared with PyTorch, each fed with its own past; 0 leaves that out. `calibration`: inputs of the narrowed graph, by
    default those of the built-in portrait in real use (`Subject.inputs`). `loras` are fused into the networks in memory. What `out` holds is
    replaced; engines in it that are still good are kept. Raises AvatarError, one sentence, with `out` as it was, for whatever cannot be made
    or is further from PyTorch than its precision may be.
    """
    order = Order(backend, precision or "fp32", settings, windows, calibration, modelopt, timing_cache, tell)
    check(order)
    return export_subject(subject_of(weights, steps=steps, size=size, decoder=decoder, adapt=adapted_by(loras, tell)), out, order)


def check(order: Order) -> None:
    """Raise AvatarError for what cannot be made here, before an hour of work."""
    if order.backend not in get_args(Backend):
        raise AvatarError(f"Graphs are exported for one of: {', '.join(get_args(Backend))}; not for '{order.backend}'.")
    if order.precision not in PRECISIONS[order.backend]:
        raise AvatarError(f"{order.backend} is exported as one of: {', '.join(PRECISIONS[order.backend])}; not as '{order.precision}'.")
    missing = available() or (to_openvino.available(order.precision) if order.backend == "openvino" else None)
    if missing:
        raise AvatarError(missing)
    if order.backend in ("tensorrt", "tensorrt_rtx"):
        trt_library.library(order.backend)
        to_tensorrt.check(order.backend, order.settings, gpu=trt_library.gpu())
    if order.precision in ("fp16", "bf16") and order.backend != "openvino":
        precision.modelopt(order.modelopt)


def request(subject: Subject, order: Order) -> str:
    """A name for what is asked for, before any work: the same weights, LoRAs, settings and target have the same, whatever versions made them."""
    asked: dict[str, Any] = {"backend": order.backend, "precision": order.precision, "source": dict(subject.source)} | dict(subject.config)
    if subject.adapters:
        asked["adapters"] = list(subject.adapters)
    if order.backend in ("tensorrt", "tensorrt_rtx"):
        gpu = trt_library.gpu() if order.backend == "tensorrt" else None
        library = trt_library.version(trt_library.library(order.backend))
        asked |= {"builder": order.settings.told(), "library": library, "gpu": gpu.told() if gpu else None}
    return digest(asked)[:KEY_SHOWN]


def export_subject(subject: Subject, out: Path, order: Order, *, traced: Mapping[str, Onnx] | None = None) -> Manifest:
    """As `export`, for what is loaded already. `traced`: its graphs, by name, where they are there as ONNX already."""
    check(order)
    with publishing(out) as publication:
        work = publication.folder / "work"
        work.mkdir()
        artifacts = {}
        for number, (name, spec) in enumerate(subject.specs.items(), 1):
            order.tell(f"[{number}/{len(subject.specs)}] {name}")
            artifacts[name] = _Job(subject, order, publication, work, name, spec, (traced or {}).get(name)).made()
        shutil.rmtree(work)
        gpu = trt_library.gpu()
        told = provenance(gpu=gpu.told() if gpu else None, settings=order.settings.told() if "tensorrt" in order.backend else None)
        # Serving needs them too: what is made of a portrait is made by the networks, not by an engine.
        fused = list(subject.leave(publication.folder))
        source = dict(subject.source) | subject.layout | {"inputs": subject.seen} | ({engines.ADAPTERS: fused} if fused else {})
        manifest = publication.commit(Manifest(order.backend, order.precision, "", artifacts, source, told))
    order.tell(f"{out}: {', '.join(artifacts)} for {order.backend} in {order.precision}")
    return manifest


@dataclass(frozen=True, slots=True)
class _Seen:
    """Inputs of a graph as real use has them."""

    calibration: Sequence[Arrays] = ()
    recorded: Sequence[Arrays] = ()  # to measure on


@dataclass(slots=True)
class _Job:
    """One graph on its way."""

    subject: Subject
    order: Order
    publication: Publication
    work: Path
    name: str
    spec: GraphSpec
    traced: Onnx | None

    def made(self) -> Artifact:
        """The graph's artifact, its files in the publication's folder."""
        order, subject, spec = self.order, self.subject, self.spec
        module = spec.build()
        spec = replace(spec, build=lambda: module)
        torch_runner = reference(spec, module)
        recorded = subject.inputs(self.name, torch_runner, RECORDED)
        onnx = self._again(self.traced) if self.traced else to_onnx(spec, self.work / f"{self.name}.onnx", recorded=recorded, tell=order.tell)
        narrow = order.precision if self.name in subject.narrowed else "fp32"
        seen = _Seen(recorded=recorded)
        if narrow != "fp32":
            order.tell(f"{spec.name}: recording what to measure {narrow} on ...")
            calibration, judged = CALIBRATED[:: _stride(spec)], JUDGED[:: _stride(spec)]
            kept = subject.inputs(self.name, torch_runner, (*calibration, *judged))
            seen = _Seen(order.calibration or kept[: len(calibration)], kept[len(calibration) :])
        make = self._openvino if order.backend == "openvino" else self._onnxruntime if order.backend == "onnxruntime" else self._tensorrt
        return make(onnx, torch_runner, narrow, seen)

    def _again(self, traced: Onnx) -> Onnx:
        """A graph that is there already, as if it had been traced here."""
        files = tuple(Path(shutil.copy(file, self.work)) for file in traced.files)
        return replace(traced, path=files[0], files=files)

    def _onnxruntime(self, onnx: Onnx, torch_runner: Runner, narrow: str, seen: _Seen) -> Artifact:
        made, recipe, measured = self._narrowed(onnx, torch_runner, narrow, seen)
        files = [file.rename(self.publication.folder / file.name) for file in made.files]
        runner = backend_named("onnxruntime").load(self.spec, path=files[0])
        return self._artifact(onnx, files, narrow, recipe, measured | self._streamed(torch_runner, runner, narrow))

    def _openvino(self, onnx: Onnx, torch_runner: Runner, narrow: str, seen: _Seen) -> Artifact:
        path = self.publication.folder / f"{self.name}.xml"
        shown: dict[str, Any] = {"calibration": seen.calibration, "recorded": seen.recorded, "tell": self.order.tell}
        shown["keep"] = self.subject.keep.get(narrow, "")
        made = to_openvino.to_openvino(onnx, path, reference=torch_runner, precision=narrow, **shown)
        measured: dict[str, Any] = {"onnx": onnx.measured.told()}
        if made.measured is None:
            measured["openvino"] = f"not measured: no {narrow} arithmetic on the machine that exported it"
        else:
            runner = backend_named("openvino").load(self.spec, precision=narrow, path=path)
            measured |= {"openvino": made.measured.told()} | self._streamed(torch_runner, runner, narrow)
        return self._artifact(onnx, made.files, narrow, made.recipe, measured)

    def _tensorrt(self, onnx: Onnx, torch_runner: Runner, narrow: str, seen: _Seen) -> Artifact:
        order, flavour = self.order, cast(Flavour, self.order.backend)
        source, recipe, measured = self._narrowed(onnx, torch_runner, narrow, seen)
        gpu = trt_library.gpu()
        target = to_tensorrt.target(flavour, source, order.settings, gpu=gpu)
        made = self._artifact(onnx, [], narrow, recipe, measured, target=target)
        kept = self.publication.reuse(made.key)
        if kept is not None:
            order.tell(f"{self.spec.name}: the engine that is there is still good")
            return kept
        path = self.publication.folder / f"{self.name}{to_tensorrt.SUFFIX}"
        if self.name in order.plans:
            order.tell(f"{self.spec.name}: replacing the weights of {order.plans[self.name].name} ...")
            to_tensorrt.refit(order.plans[self.name], source, path, flavour=flavour)
            measured = measured | {"before": order.before[self.name]}
        else:
            built = to_tensorrt.to_tensorrt(source, path, flavour=flavour, settings=order.settings, timing_cache=order.timing_cache, tell=order.tell)
            measured = measured | {"build": built}
        made = replace(made, files=file_hashes([path]), measured=measured)
        return replace(made, measured=measured | self._engine_measured(made, path, torch_runner, narrow, seen))

    def _engine_measured(self, made: Artifact, path: Path, torch_runner: Runner, narrow: str, seen: _Seen) -> dict[str, Any]:
        """The engine itself against PyTorch, where it can run."""
        missing = trt.available()
        if missing:
            self.order.tell(f"{self.spec.name}: the engine is not compared with PyTorch. {missing}")
            return {"engine": UNMEASURED}
        from engine.backends import pytorch

        runner = trt.TrtRunner(self.spec, trt.deserialised(made, path), pytorch.device("cuda"), states={})
        what = f"the engine '{self.spec.name}'"
        inputs = chain((self.spec.examples(seed) for seed in SEEDS if narrow != "int8"), seen.recorded)
        measured = parity.measure(torch_runner, runner, inputs, what=what)
        kind = "engine" if narrow == "fp32" else narrow
        parity.check(measured, LIMITS[kind], what=what)
        return {"engine": measured.told()} | self._streamed(torch_runner, runner, kind)

    def _narrowed(self, onnx: Onnx, torch_runner: Runner, narrow: str, seen: _Seen) -> tuple[Onnx, dict[str, Any], dict[str, Any]]:
        """(graph, recipe, what was measured) in a precision, as ONNX."""
        measured: dict[str, Any] = {"onnx": onnx.measured.told()}
        if narrow == "fp32":
            return onnx, {"kind": "fp32"}, measured
        path = self.work / f"{self.name}.{narrow}.onnx"
        shown: dict[str, Any] = {"calibration": seen.calibration, "recorded": seen.recorded, "tell": self.order.tell}
        shown["keep"] = self.subject.keep.get(narrow, "")
        if narrow == "int8":
            made = precision.to_int8(onnx, path, reference=torch_runner, **shown)
        else:
            kind = cast(precision.Half, narrow)
            made = precision.to_half(onnx, path, reference=torch_runner, kind=kind, python=self.order.modelopt, **shown)
        measured[narrow] = made.measured.told() if made.measured else "not measured: only a GPU runs it"
        return made.onnx, made.recipe, measured

    def _streamed(self, torch_runner: Runner, tested: Runner, narrow: str) -> dict[str, Any]:
        """A graph that remembers over a long stream, fed with its own past."""
        stream = self.subject.streams.get(self.name)
        if stream is None or not self.order.windows:
            return {}
        self.order.tell(f"{self.spec.name}: {self.order.windows} windows, fed with its own past ...")
        drift = closed_loop.closed_loop(stream(torch_runner), stream(tested), windows=self.order.windows, what=f"'{self.spec.name}'")
        closed_loop.check(drift, LIMITS[narrow], what=f"'{self.spec.name}'")
        return {"stream": drift.told()}

    def _artifact(
        self,
        onnx: Onnx,
        files: Sequence[Path],
        narrow: str,
        recipe: Mapping[str, Any],
        measured: dict[str, Any],
        *,
        target: Mapping[str, Any] | None = None,
    ) -> Artifact:
        subject = self.subject
        # The key has the fp32 graph and the recipe, not the bytes of what came of them, which may differ from run to run.
        made_of: dict[str, Any] = {"weights": subject.source["weights"], "adapters": subject.adapters, "onnx": onnx.sha256}
        known = facts(self.spec, **made_of, config=subject.layout, precision=recipe, opset=OPSET, target=target)
        inputs = {name: (tuple(shape), dtype) for name, (shape, dtype) in self.spec.inputs.items()}
        return Artifact(self.spec.name, file_hashes(list(files)), inputs, tuple(self.spec.outputs), narrow, known, measured)


def _stride(spec: GraphSpec) -> int:
    """Every how many of CALIBRATED fit into memory."""
    one = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in spec.inputs.values())
    return max(1, math.ceil(len(CALIBRATED) * one / CALIBRATION_BYTES))


__all__ = ["PRECISIONS", "Backend", "Order", "check", "export", "export_subject", "request"]
