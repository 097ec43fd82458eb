"""OpenVINO on a CPU. A graph comes from a file (ONNX or OpenVINO's own IR), or from `spec.build()`, whose nn.Module is converted here.

Arrays are handed over without a copy: a caller that gives the same arrays in every call, written in place, binds them once.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from engine.backends import check_inputs, half_the_cores
from engine.types import AvatarError, GraphSpec

Precision = Literal["fp32", "bf16", "int8"]
DEVICE = "CPU"
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""What a precision asks of OpenVINO: left alone, it computes in half precision wherever the CPU can. int8 lies in the file; f32 is the rest."""
CAPABILITIES = {"bf16": "BF16", "int8": "INT8"}
"""What OpenVINO must say of the CPU: without it, a hint is dropped without a word."""


UNBOUND = object()


def available() -> str | None:
    """Whether OpenVINO is installed."""
    if importlib.util.find_spec("openvino") is None:
        return "OpenVINO is not installed; pip install 'avatar-engine[openvino]'."
    return None


def library() -> Any:
    """The package `openvino`. It counts its users over the network, from the import on, where `openvino_telemetry` is installed: not here.

    Raises AvatarError where it is not installed.
    """
    missing = available()
    if missing:
        raise AvatarError(missing)
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # to Python: a module that is not there
    import openvino

    return openvino


def check_precision(precision: str) -> None:
    """Raise AvatarError for a precision that does not exist, or that this CPU cannot compute in."""
    if precision not in get_args(Precision):
        raise AvatarError(f"OpenVINO has no precision called '{precision}'; choose one of: {', '.join(get_args(Precision))}.")
    needed = CAPABILITIES.get(precision)
    if needed and needed not in library().Core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"):
        raise AvatarError(f"This CPU has no {precision} arithmetic, so OpenVINO would compute in fp32; use --precision fp32.")


def load(
    spec: GraphSpec,
    *,
    precision: Precision = "fp32",
    threads: int | None = None,
    at_once: int = 1,
    path: str | Path | None = None,
    profile: bool = False,
    **_: Any,
) -> OpenVinoRunner:
    """A runner of the graph, from `path` where that is given.

    `threads` a call, half the cores by default; `at_once` calls side by side, each through a runner of its own (`another`). int8 needs a file
    that was quantised. `profile`: count the time of every operation. Raises AvatarError where any of it is not to be had.
    """
    library()
    check_precision(precision)
    if precision == "int8" and path is None:
        raise AvatarError(f"'{spec.name}' in int8 needs a file that was quantised beforehand; give one, or use --precision fp32.")
    threads = half_the_cores() if threads is None else threads
    try:
        model = _read(spec, path) if path is not None else _built(spec)
        _fit(spec, model, "what was converted" if path is None else str(path))
        _spell_out_group_norms(model)
        options = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": at_once,
            "INFERENCE_NUM_THREADS": threads * at_once,
            "ENABLE_CPU_PINNING": False,  # trackers and encoders share the cores
            "PERF_COUNT": profile,
        }
        return OpenVinoRunner(spec, library().Core().compile_model(model, DEVICE, options))
    except RuntimeError as error:  # whatever OpenVINO finds wrong
        raise AvatarError(f"OpenVINO cannot run '{spec.name}' ({_last(error)}); use the backend pytorch, or export the graph again.") from error


class OpenVinoRunner:
    """One request of a compiled graph, for one caller at a time. Results lie in arrays of its own, which its next call overwrites."""

    def __init__(self, spec: GraphSpec, compiled: Any) -> None:
        self._spec, self._compiled = spec, compiled
        self._tensor = library().Tensor
        self._request = compiled.create_infer_request()
        self._bound: dict[str, Any] = dict.fromkeys(spec.inputs, UNBOUND)
        self._held: dict[str, Any] = {}  # what OpenVINO reads without owning it
        self._results: dict[str, np.ndarray[Any, Any]] = {}
        for name in spec.outputs:
            port = compiled.output(name)
            array = np.empty(tuple(port.shape), port.element_type.to_dtype())
            self._request.set_tensor(name, self._tensor(array, shared_memory=True))
            self._results[name] = array

    def another(self) -> OpenVinoRunner:
        """The same graph for another caller, at the same time."""
        return OpenVinoRunner(self._spec, self._compiled)

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        new = [name for name in self._spec.inputs if inputs.get(name) is not self._bound[name]]
        if new or len(inputs) != len(self._bound):
            check_inputs(self._spec, inputs)
        for name in new:
            given = inputs[name]
            # An array that OpenVINO cannot look at where it lies is copied, and looked at again in every call.
            lies_well = given.flags.c_contiguous and given.flags.writeable
            self._held[name] = given if lies_well else np.array(given, order="C")
            self._request.set_tensor(name, self._tensor(self._held[name], shared_memory=True))
            self._bound[name] = given if lies_well else UNBOUND
        self._request.start_async()  # `infer` would copy every result
        self._request.wait()
        return dict(self._results)

    def profile(self) -> list[tuple[str, str, str, float]]:
        """(operation, implementation, name, ms) of the last call, for a runner that was loaded with `profile`."""
        return [(each.node_type, each.exec_type, each.node_name, each.real_time.total_seconds() * 1000) for each in self._request.profiling_info]


def _read(spec: GraphSpec, path: str | Path) -> Any:
    """A file's model. Raises AvatarError where there is none."""
    if not Path(path).is_file():
        raise AvatarError(f"{path} is not there, so '{spec.name}' cannot be loaded; export it again.")
    return library().Core().read_model(str(path))


def _built(spec: GraphSpec) -> Any:
    """What `spec.build()` returns as a model: a network is traced and converted; a path or bytes of a file are read."""
    made = spec.build()
    if isinstance(made, str | Path):
        return _read(spec, made)
    if isinstance(made, bytes):
        return library().Core().read_model(made)
    import torch

    examples = tuple(torch.from_numpy(value) for value in spec.examples().values())
    module = made.eval().requires_grad_(False)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing warns of every shape it takes as fixed, which is what it is for
        # As a function, whose weights are constants: wrapping some thousand submodules would take longer than all the rest.
        traced = torch.jit.trace(lambda *tensors: module(*tensors), examples, check_trace=False)
        model = library().convert_model(traced, example_input=examples, input=[tuple(shape) for shape, _ in spec.inputs.values()])
    if len(model.inputs) != len(spec.inputs) or len(model.outputs) != len(spec.outputs):
        raise AvatarError(f"OpenVINO made {len(model.inputs)} inputs of the {len(spec.inputs)} of '{spec.name}'; use the backend pytorch.")
    for ports, names in ((model.inputs, spec.inputs), (model.outputs, spec.outputs)):
        for port, name in zip(ports, names, strict=True):
            port.get_tensor().set_names({name})
    return model


def _fit(spec: GraphSpec, model: Any, what: str) -> None:
    """Fix the shapes that a model leaves open. Raises AvatarError where it is not the spec's graph."""
    takes, gives = ({name for port in ports for name in port.names} for ports in (model.inputs, model.outputs))
    if len(model.inputs) != len(spec.inputs) or not set(spec.inputs) <= takes or not set(spec.outputs) <= gives:
        raise AvatarError(f"The graph '{spec.name}' is not {what}: names of inputs or outputs differ; export it again.")
    shapes = {name: list(shape) for name, (shape, _) in spec.inputs.items()}
    if model.is_dynamic():
        model.reshape(shapes)
    for name, (shape, dtype) in spec.inputs.items():
        port = model.input(name)
        if tuple(port.shape) != tuple(shape) or np.dtype(port.element_type.to_dtype()) != np.dtype(dtype):
            raise AvatarError(f"Input '{name}' of {what} is not {dtype}{list(shape)} as '{spec.name}' has it; export it again.")


def _spell_out_group_norms(model: Any) -> None:
    """Group norms of pictures, in place, as means, products and sums, which run in the layout that convolutions have.

    OpenVINO's own operation wants planar pictures, so between convolutions it costs two copies: a step took a sixth longer.
    """
    from openvino import opset15 as op

    for node in model.get_ordered_ops():
        kind, told = node.get_type_name(), node.get_attributes()
        if kind not in ("GroupNormalization", "MVN") or (x := node.input_value(0)).partial_shape.is_dynamic:
            continue
        if kind == "GroupNormalization" and len(x.shape) == 4:
            scale, shift = (op.reshape(node.input_value(i), np.array([1, -1, 1, 1]), False) for i in (1, 2))
            even = _evened(x, int(told["num_groups"]), float(told["epsilon"]))
            node.output(0).replace(op.add(op.multiply(even, scale), shift).output(0))
        if kind == "MVN" and (found := _folded(node)) is not None:
            folded, back = found
            back.output(0).replace(_evened(folded, x.shape[1], float(told["eps"])).output(0))
    model.validate_nodes_and_infer_types()


def _folded(node: Any) -> tuple[Any, Any] | None:
    """How an ONNX file says group norm: pictures folded to [N, G, ..], evened, and folded back -> (pictures, the last of these), or None."""
    before, after = node.input_value(0).get_node(), [to.get_node() for to in node.output(0).get_target_inputs()]
    told, axes = node.get_attributes(), node.input_value(1).get_node()
    plain = told["normalize_variance"] and told["eps_mode"].upper() == "INSIDE_SQRT" and axes.get_type_name() == "Constant"
    if not plain or before.get_type_name() != "Reshape" or [each.get_type_name() for each in after] != ["Reshape"]:
        return None
    pictures, groups = before.input_value(0), list(node.input_value(0).shape)
    fits = len(pictures.shape) == 4 and len(groups) == 3 and groups[0] == pictures.shape[0] and pictures.shape[1] % groups[1] == 0
    whole = fits and axes.data.flatten().tolist() in ([2], [-1]) and list(after[0].output(0).shape) == list(pictures.shape)
    return (pictures, after[0]) if whole else None


def _evened(x: Any, groups: int, epsilon: float) -> Any:
    """Pictures [N, C, h, w] whose groups of channels have mean 0 and deviation 1."""
    from openvino import opset15 as op

    n, channels = x.shape[0], x.shape[1]
    shape = np.array([n, groups, channels // groups])

    def mean(x: Any) -> Any:
        channel = op.reshape(op.reduce_mean(x, np.array([2, 3]), True), shape, False)
        return op.reshape(op.broadcast(op.reduce_mean(channel, np.array([2]), True), shape), np.array([n, channels, 1, 1]), False)

    centred = op.subtract(x, mean(x))
    return op.divide(centred, op.sqrt(op.add(mean(op.multiply(centred, centred)), np.float32(epsilon))))


def _last(error: RuntimeError) -> str:
    """The last line of what OpenVINO says: the ones before it are places in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__


__all__ = ["OpenVinoRunner", "Precision", "available", "check_precision", "library", "load"]
