"""ONNX -> an engine of TensorRT or of TensorRT for RTX, by the one interface that both have: strongly typed, so precision is the graph's.

TensorRT builds on the GPU that it builds for. TensorRT for RTX builds anywhere, without a GPU or a driver, for the compute capabilities asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.backends import trt_library
from engine.backends.artifact import sha256
from engine.backends.trt_library import NAMED, Flavour, Gpu
from engine.types import AvatarError, GraphSpec
from exporters.graphs import shapes
from exporters.graphs.manifest import told_if_full
from exporters.graphs.to_onnx import Onnx

GIB = 1 << 30
LEVELS = range(6)
"""Of the builder's search: 3 is its own default, 5 takes longest."""
SUFFIX = ".plan"


@dataclass(frozen=True, slots=True)
class Settings:
    """How an engine is built; all of it is part of its key."""

    level: int = 3
    workspace: int = 4 * GIB  # bytes that a kernel may use for itself, at most
    refit: bool = False  # weights can be replaced later, for a LoRA; costs some speed, and needs a GPU to build
    tf32: bool = False  # fp32 sums of rounded factors: faster, and off PyTorch by some 1e-3
    detailed: bool = True  # names of layers for `inspect` and for profilers
    same_capability: bool = False  # TensorRT only: for every GPU of this compute capability, not of this name alone; may be slower
    targets: tuple[str, ...] = ()  # TensorRT for RTX only: compute capabilities ("8.9", "12.0"); none: all that it supports

    def told(self) -> dict[str, Any]:
        """For a key."""
        return {name: getattr(self, name) for name in ("level", "workspace", "refit", "tf32", "detailed", "same_capability")} | {
            "targets": list(self.targets)
        }


STANDARD = Settings()


def target(flavour: Flavour, source: Onnx, settings: Settings, *, gpu: Gpu | None) -> dict[str, Any]:
    """What an engine is bound to: the part of its key that `engine.backends.trt` compares with the machine it runs on."""
    profiles = {}
    if source.dynamic is not None:
        profiles = {name: [list(shape) for shape in profile] for name, profile in profile_of(source).items()}
    return {
        "flavour": flavour,
        "library": trt_library.version(trt_library.library(flavour)),
        "builder": settings.told(),
        "profiles": profiles,
        "plugins": [],
        # RTX engines are finished on whatever GPU they run on.
        "gpu": gpu.told() if gpu and flavour == "tensorrt" else {},
    }


def to_tensorrt(
    source: Onnx,
    path: Path,
    *,
    flavour: Flavour = "tensorrt",
    settings: Settings = STANDARD,
    timing_cache: Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Parse and build; the serialised engine goes into a new file -> facts about it (layers, bytes).

    `timing_cache`: a file of measured kernels, read and written, that makes the next build faster; without a GPU nothing is measured.
    Raises AvatarError, with nothing written, for a graph that is not taken (which node, why), without a GPU where one is needed, and where the
    builder gives up.
    """
    trt = trt_library.library(flavour)
    gpu = trt_library.gpu()
    check(flavour, settings, gpu=gpu)
    log = trt_library.logger(trt)
    builder = trt.Builder(log)
    network, parser = parsed(trt, log, builder, source.path, flavour=flavour)
    layers = int(network.num_layers)
    _ports(trt, network, source.spec, source.path.name)
    config = _config(trt, builder, settings, flavour)
    if source.dynamic is not None:
        config.add_optimization_profile(_profile(builder, source))
    cache = _timing_cache(config, timing_cache) if timing_cache is not None and gpu is not None else None
    tell(f"{source.spec.name}: {layers} layers; {NAMED[flavour]} {trt_library.version(trt)} builds at level {settings.level} ...")
    plan = builder.build_serialized_network(network, config)
    del parser  # its weights are the network's until here
    if plan is None:
        raise AvatarError(f"{NAMED[flavour]} could not build '{source.spec.name}' ({trt_library.said(log)}); try a lower level or more workspace.")
    data = bytes(plan)
    with told_if_full(path):
        _write(path, data)
        if cache is not None and timing_cache is not None:
            _write(timing_cache, bytes(cache.serialize()))
    tell(f"{source.spec.name}: {len(data) / 1e6:.1f} MB")
    return {"layers": layers, "bytes": len(data)}


def parsed(trt: Any, log: Any, builder: Any, path: Path, *, flavour: Flavour) -> tuple[Any, Any]:
    """(network, parser) of an ONNX file. Raises AvatarError with the node that the parser does not take; keep the parser while building."""
    flags = getattr(trt, "NetworkDefinitionCreationFlag", None)
    typed = getattr(flags, "STRONGLY_TYPED", None)  # releases that know nothing else have no flag for it
    network = builder.create_network(1 << int(typed) if typed is not None else 0)
    parser = trt.OnnxParser(network, log)
    native = getattr(trt.OnnxParserFlag, "NATIVE_INSTANCENORM", None)
    if native is not None:
        parser.set_flag(native)
    if not parser.parse_from_file(str(path)):
        raise AvatarError(_complaint(parser, log, path, flavour))
    return network, parser


def _complaint(parser: Any, log: Any, path: Path, flavour: Flavour) -> str:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    # The first with a node is the cause: what follows from it, and what is about the whole file, says less.
    named = next((error for error in errors if error.node_operator()), errors[0] if errors else None)
    if named is None:
        return f"{NAMED[flavour]} cannot read {path.name} ({trt_library.said(log)}); export it again."
    lines = [line.strip() for line in str(named.desc()).splitlines() if line.strip() and "cudaError 35" not in line]
    why = lines[-1].rstrip(".") if lines else trt_library.said(log)
    node = f"node '{named.node_name()}' ({named.node_operator()}) of " if named.node_operator() else ""
    return f"{NAMED[flavour]} does not take {node}{path.name}: {why}; write that part of the network in other operators."


def check(flavour: Flavour, settings: Settings, *, gpu: Gpu | None) -> None:
    """Raise AvatarError for settings that do not exist, or that need what is not here."""
    if settings.level not in LEVELS:
        raise AvatarError(f"A builder's level is {LEVELS[0]} to {LEVELS[-1]}, not {settings.level}.")
    if settings.workspace <= 0:
        raise AvatarError(f"A workspace of {settings.workspace} bytes is none; give some GB.")
    if gpu is None and flavour == "tensorrt":
        raise AvatarError("TensorRT builds engines on the GPU they are for, and there is none here; build there, or use tensorrt-rtx.")
    if gpu is None and settings.refit:
        raise AvatarError("An engine whose weights can be replaced is built on a GPU, and there is none here; build there, or leave refit out.")
    if settings.targets and flavour != "tensorrt_rtx":
        raise AvatarError("Compute capabilities are chosen for TensorRT for RTX only; TensorRT builds for the GPU that is here.")
    if settings.same_capability and flavour != "tensorrt":
        raise AvatarError("TensorRT for RTX takes its GPUs as compute capabilities (targets); leave same_capability out.")


def _ports(trt: Any, network: Any, spec: GraphSpec, name: str) -> None:
    """What the parser made of inputs and outputs, against the spec."""
    given = {network.get_input(i).name: network.get_input(i).dtype for i in range(network.num_inputs)}
    made = [network.get_output(i).name for i in range(network.num_outputs)]
    if list(given) != list(spec.inputs) or made != list(spec.outputs):
        odd = sorted(set(given) ^ set(spec.inputs) | set(made) ^ set(spec.outputs)) or ["their order"]
        raise AvatarError(f"{name} lost or gained inputs or outputs while it was parsed ({', '.join(odd)}); export it again.")
    for port, (_, dtype) in spec.inputs.items():
        if given[port] != getattr(trt, WORDS.get(dtype, ""), None):
            raise AvatarError(f"Input '{port}' of {name} is {dtype}, the engine would take {given[port]}; make it float32 in the network.")


WORDS = {"float32": "float32", "float16": "float16", "int32": "int32", "int64": "int64", "bool": "bool", "uint8": "uint8", "int8": "int8"}
"""dtype of a spec -> the library's name for it."""


def _config(trt: Any, builder: Any, settings: Settings, flavour: Flavour) -> Any:
    config = builder.create_builder_config()
    config.builder_optimization_level = settings.level
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace)
    if settings.detailed:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    (config.set_flag if settings.tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    if settings.refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    if settings.same_capability:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    if settings.targets:
        known = [getattr(trt.ComputeCapability, f"SM{each.replace('.', '')}", None) for each in settings.targets]
        if None in known:
            odd = settings.targets[known.index(None)]
            raise AvatarError(f"{NAMED[flavour]} {trt_library.version(trt)} does not build for compute capability {odd}; choose another GPU.")
        config.num_compute_capabilities = len(known)
        for index, each in enumerate(known):
            config.set_compute_capability(each, index)
    return config


def profile_of(source: Onnx) -> dict[str, list[tuple[int, ...]]]:
    """Input -> its shape at the least, the usual and the largest size, of the inputs with a free length."""
    dynamic = source.dynamic
    if dynamic is None:
        return {}
    at = [shapes.sized(source.spec, dynamic, n) for n in (dynamic.minimum, dynamic.optimum, dynamic.maximum)]
    return {name: [each.inputs[name][0] for each in at] for name in dynamic.axes}


def _profile(builder: Any, source: Onnx) -> Any:
    profile = builder.create_optimization_profile()
    for name, (least, usual, most) in profile_of(source).items():
        profile.set_shape(name, least, usual, most)
    return profile


def _timing_cache(config: Any, path: Path) -> Any:
    """The cache of an earlier build, or an empty one."""
    held = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(held)
    if cache is None or not config.set_timing_cache(cache, False):  # damaged, or of another GPU or version
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _write(path: Path, data: bytes) -> None:
    pending = path.with_name(f".{path.name}.partial")
    try:
        pending.write_bytes(data)
        pending.replace(path)
    finally:
        pending.unlink(missing_ok=True)


# -- engines that are there -------------------------------------------------------------------------------------------------


def opened(plan: Path, *, flavour: Flavour) -> tuple[Any, Any]:
    """(engine, logger) of a file. Raises AvatarError where it is none, or is for another GPU or version, and without a GPU."""
    trt = trt_library.library(flavour)
    if trt_library.gpu() is None:
        raise AvatarError(f"{plan.name} can only be opened on a machine with an NVIDIA GPU and its driver.")
    log = trt_library.logger(trt)
    engine = trt.Runtime(log).deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        raise AvatarError(f"{NAMED[flavour]} does not take {plan.name} ({trt_library.said(log)}); export it again on this machine.")
    return engine, log


def inspect(plan: Path, *, flavour: Flavour = "tensorrt") -> dict[str, Any]:
    """An engine's layers, as the library tells them: kernels, precisions, sizes. Raises AvatarError as `opened`."""
    trt = trt_library.library(flavour)
    engine, _ = opened(plan, flavour=flavour)
    told = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    found: Any = json.loads(told)
    return found if isinstance(found, dict) else {"layers": found}


def refit(plan: Path, source: Onnx, out: Path, *, flavour: Flavour = "tensorrt") -> str:
    """The engine with the weights of another graph of the same layout, one with a fused LoRA say, as a new file -> its sha256.

    Compare the result with PyTorch before it is used: one release dropped biases of engines that can be refitted (11.3.0). Raises AvatarError,
    with nothing written, for an engine that was not built for it, and where the graph has other weights.
    """
    trt = trt_library.library(flavour)
    engine, log = opened(plan, flavour=flavour)
    if not engine.refittable:
        raise AvatarError(f"{plan.name} was not built to take other weights; build it with refit.")
    refitter = trt.Refitter(engine, log)
    if not trt.OnnxParserRefitter(refitter, log).refit_from_file(str(source.path)) or not refitter.refit_cuda_engine():
        left = ", ".join(list(refitter.get_missing_weights())[:3])
        raise AvatarError(f"{plan.name} does not take the weights of {source.path.name} ({left or trt_library.said(log)}); build it anew.")
    with told_if_full(out):
        _write(out, bytes(engine.serialize()))
    return sha256(out)


def told(facts: Mapping[str, Any]) -> str:
    """Facts of a build in a line."""
    return f"{facts['layers']} layers, {facts['bytes'] / 1e6:.1f} MB"


__all__ = ["STANDARD", "Settings", "check", "inspect", "opened", "parsed", "profile_of", "refit", "target", "to_tensorrt", "told"]
