"""Engines of TensorRT and TensorRT for RTX, as an export left them: checked against their manifest, then run on addresses that stay.

Tensors on the GPU are read where they lie; arrays go through buffers of the runner's own and come back through pinned memory. States, outputs
that are the next call's inputs, stay on the GPU in two buffers that change places. Every set of addresses gets a CUDA graph of its own, which
holds on to its tensors: what is replayed is always there.
"""

from __future__ import annotations

import platform
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.backends import check_inputs, pytorch, trt_library
from engine.backends.artifact import AGAIN, Artifact, differences, read, verified
from engine.backends.trt_library import NAMED
from engine.types import AvatarError, GraphSpec

GRAPHS = 64
"""Sets of addresses that keep a CUDA graph; the one longest unused goes first."""
BOUND = (("name", "GPU"), ("sm", "compute capability"), ("processors", "number of multiprocessors"))
"""What an engine of TensorRT is bound to."""


def available() -> str | None:
    """None, or all that is missing, in one sentence."""
    lacks = []
    if trt_library.driver() is None:
        lacks.append(f"there is no NVIDIA GPU with a driver ({trt_library.DRIVER})")
    if told := pytorch.available():
        lacks.append(told.rstrip("."))
    elif not _torch_sees_a_gpu():
        lacks.append("PyTorch sees no GPU: install a CUDA build of it")
    absent = [told for flavour in ("tensorrt", "tensorrt_rtx") if (told := trt_library.missing(flavour))]
    if len(absent) == 2:
        lacks += [" or ".join(told.rstrip(".") for told in absent)]
    return f"TensorRT engines cannot run here: {'; '.join(lacks)}." if lacks else None


def _torch_sees_a_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def load(
    spec: GraphSpec, *, path: str | Path | None = None, states: Mapping[str, str] | None = None, device_name: str | None = None, **_: Any
) -> TrtRunner:
    """A runner of an exported engine. `path`: the folder of the export, or what `spec.build()` returns.

    `states`: output -> the input that it is next time; a call leaves those inputs out. Raises AvatarError where anything is missing, where the
    export is damaged, of another graph, GPU or version, and where the engine cannot be loaded. Nothing is rebuilt here.
    """
    folder = Path(path if path is not None else _folder(spec))
    manifest = read(folder)
    artifact = manifest.artifact(spec.name)
    artifact.fits(spec)
    check_place(artifact)
    missing = available()
    if missing:
        raise AvatarError(missing)
    device = pytorch.device(device_name or "cuda")
    return TrtRunner(spec, deserialised(artifact, verified(folder, manifest, artifact)), device, states=states or {})


def _folder(spec: GraphSpec) -> str | Path:
    made = spec.build()
    if not isinstance(made, str | Path):
        raise AvatarError(f"TensorRT runs exported engines, and '{spec.name}' is not exported yet; export it and give the folder.")
    return made


def check_place(artifact: Artifact) -> None:
    """Raise AvatarError, with what differs, unless an engine was built for this library, this GPU and this platform."""
    target = artifact.facts.get("target") or {}
    flavour: Any = target.get("flavour")
    if flavour not in NAMED:
        raise AvatarError(f"'{artifact.graph}' was exported for another backend than TensorRT; {AGAIN} with --backend tensorrt.")
    here = trt_library.gpu()
    wrong = differences(target, {"library": trt_library.version(trt_library.library(flavour))}, [("library", NAMED[flavour])])
    machine = {"os": platform.system(), "arch": platform.machine()}
    wrong += differences(artifact.facts.get("platform", {}), machine, [("os", "system"), ("arch", "processor")])
    if here is None:
        raise AvatarError(available() or "There is no NVIDIA GPU here.")
    if flavour == "tensorrt":
        alike = target["builder"]["same_capability"]
        wrong += differences(target["gpu"], here.told(), BOUND[1:2] if alike else BOUND)
    elif target["builder"]["targets"] and here.sm not in target["builder"]["targets"]:
        wrong.append(f"compute capability {' or '.join(target['builder']['targets'])}, here it is {here.sm}")
    if wrong:
        raise AvatarError(f"The engine '{artifact.graph}' was built for {'; '.join(wrong)}; {AGAIN} on this machine.")


# -- an engine --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Engine:
    """A deserialised engine, and what must live as long."""

    trt: Any
    engine: Any
    runtime: Any
    log: Any


def deserialised(artifact: Artifact, plan: Path) -> Engine:
    """Raises AvatarError where the library does not take the file."""
    flavour = artifact.facts["target"]["flavour"]
    trt = trt_library.library(flavour)
    log = trt_library.logger(trt)
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        raise AvatarError(f"{NAMED[flavour]} does not take the engine '{artifact.graph}' ({trt_library.said(log)}); {AGAIN} on this machine.")
    return Engine(trt, engine, runtime, log)


@dataclass(frozen=True, slots=True)
class Pending:
    """A call that runs on the GPU, its results on their way into pinned memory."""

    results: dict[str, Any]  # host tensors
    done: Callable[[], None]  # waits

    def result(self) -> dict[str, Any]:
        """Arrays, once they are there; the call after the next overwrites them."""
        self.done()
        return {name: tensor.numpy() for name, tensor in self.results.items()}


class TrtRunner:
    """One execution context: for one caller at a time, `another()` for more."""

    def __init__(self, spec: GraphSpec, engine: Engine, device: Any, *, states: Mapping[str, str]) -> None:
        self._spec, self._engine, self._device, self._states = spec, engine, device, dict(states)
        self._context = engine.engine.create_execution_context()
        if self._context is None:
            raise AvatarError(
                f"The GPU has no memory left to run '{spec.name}' ({trt_library.said(engine.log)}); close sessions or choose a smaller size."
            )
        self._check_ports()
        self._given = GraphSpec(spec.name, {k: v for k, v in spec.inputs.items() if k not in self._states.values()}, spec.outputs, spec.build)
        self._inputs: dict[str, Any] = {}  # buffers for arrays, made when the first come
        self._outputs = {name: self._empty(*self._shape(name)) for name in spec.outputs if name not in self._states}
        # Two buffers a state: a call reads one and writes the other, and the next call the other way round.
        self._front = {goes_to: self._empty(*spec.inputs[goes_to]) for goes_to in self._states.values()}
        self._back = {name: self._empty(*spec.inputs[goes_to]) for name, goes_to in self._states.items()}
        self._hosts: list[dict[str, Any]] = []
        self._calls: OrderedDict[tuple[int, ...], Callable[[], None]] = OrderedDict()

    def another(self) -> TrtRunner:
        """The same engine for another caller, at the same time; states of its own."""
        return TrtRunner(self._spec, self._engine, self._device, states=self._states)

    def reset(self, states: Mapping[str, Any] | None = None) -> None:
        """States, by input, as they are given; zero where they are not."""
        for name, tensor in self._front.items():
            if states and name in states:
                tensor.copy_(_tensor(states[name]))
            else:
                tensor.zero_()

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Arrays in, arrays out, which the call after the next overwrites; tensors in, tensors on the GPU out, which the next one does."""
        import torch

        if any(isinstance(value, torch.Tensor) for value in inputs.values()):
            return self._launch(self._bound(inputs))
        return self.submit(inputs).result()

    def submit(self, inputs: Mapping[str, Any]) -> Pending:
        """Start a call on arrays; what it makes is fetched with `Pending.result`, meanwhile the CPU is free."""
        check_inputs(self._given, inputs)
        for name, value in inputs.items():
            if name not in self._inputs:
                self._inputs[name] = self._empty(*self._spec.inputs[name])
            self._inputs[name].copy_(_tensor(value), non_blocking=True)
        made = self._launch(dict(self._inputs))
        host = self._hosts.pop(0) if len(self._hosts) == 2 else self._pinned(made)
        self._hosts.append(host)
        for name, tensor in made.items():
            host[name].copy_(tensor, non_blocking=True)
        return Pending(host, self._mark())

    # -- inside ---------------------------------------------------------------------------------------------------------

    def _launch(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Run on these tensors -> outputs, states among them. The states change places."""
        tensors = {**given, **self._front, **self._outputs, **self._back}
        key = tuple(tensors[name].data_ptr() for name in (*self._spec.inputs, *self._spec.outputs))
        if key not in self._calls:
            mode: pytorch.Mode = "cudagraph" if self._device.type == "cuda" else "eager"
            self._calls[key] = pytorch.prepared(self._execute, [tensors[name] for name in (*self._spec.inputs, *self._spec.outputs)], mode=mode)
            if len(self._calls) > GRAPHS:
                self._calls.popitem(last=False)
        self._calls.move_to_end(key)
        self._calls[key]()
        made = {name: self._back[name] if name in self._states else self._outputs[name] for name in self._spec.outputs}
        for name, goes_to in self._states.items():
            self._front[goes_to], self._back[name] = self._back[name], self._front[goes_to]
        return made

    def _execute(self, *tensors: Any) -> None:
        """One enqueue on the current stream."""
        for name, tensor in zip((*self._spec.inputs, *self._spec.outputs), tensors, strict=True):
            self._context.set_tensor_address(name, tensor.data_ptr())
        if not self._context.execute_async_v3(self._stream()):
            raise AvatarError(f"TensorRT could not run '{self._spec.name}' ({trt_library.said(self._engine.log)}); {AGAIN} on this machine.")

    def _stream(self) -> int:
        import torch

        return int(torch.cuda.current_stream(self._device).cuda_stream) if self._device.type == "cuda" else 0

    def _mark(self) -> Callable[[], None]:
        """Waits for all that was started until now."""
        import torch

        if self._device.type != "cuda":
            return lambda: None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return lambda: event.synchronize()

    def _empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        import torch

        return torch.zeros(shape, dtype=getattr(torch, dtype), device=self._device)

    def _pinned(self, like: Mapping[str, Any]) -> dict[str, Any]:
        """Host memory for results, which the GPU writes by itself."""
        import torch

        pin = self._device.type == "cuda"
        return {name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pin) for name, tensor in like.items()}

    def _bound(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Tensors that can be read where they lie. Raises AvatarError for any that cannot."""
        names = set(self._given.inputs)
        if set(inputs) != names:
            raise AvatarError(f"Graph '{self._spec.name}' takes {sorted(names)}, not {sorted(inputs)}.")
        for name, (shape, dtype) in self._given.inputs.items():
            got = inputs[name]
            kind, place = str(got.dtype).removeprefix("torch."), got.device.type
            if tuple(got.shape) != tuple(shape) or kind != dtype or place != self._device.type or not got.is_contiguous():
                lies = "" if got.is_contiguous() else " with gaps"
                told = f"{kind}{list(got.shape)} on {place}{lies}"
                raise AvatarError(f"Input '{name}' of graph '{self._spec.name}' is {dtype}{list(shape)} on {self._device.type}, not {told}.")
        return dict(inputs)

    def _shape(self, name: str) -> tuple[tuple[int, ...], str]:
        engine, trt = self._engine.engine, self._engine.trt
        return tuple(self._context.get_tensor_shape(name)), _word(trt, engine.get_tensor_dtype(name))

    def _check_ports(self) -> None:
        """Raise AvatarError unless the engine has the spec's inputs and outputs, and set the sizes that it leaves open."""
        engine, trt, spec = self._engine.engine, self._engine.trt, self._spec
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        given = {name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT}
        if given != set(spec.inputs) or set(names) - given != set(spec.outputs):
            odd = sorted(given ^ set(spec.inputs) | (set(names) - given) ^ set(spec.outputs))
            raise AvatarError(f"The engine '{spec.name}' has other inputs or outputs than the graph ({', '.join(odd)}); {AGAIN}.")
        for name, (shape, dtype) in spec.inputs.items():
            kind, sizes = _word(trt, engine.get_tensor_dtype(name)), tuple(engine.get_tensor_shape(name))
            fits = len(sizes) == len(shape) and all(a in (-1, b) for a, b in zip(sizes, shape, strict=True))
            if kind != dtype or not fits or not self._context.set_input_shape(name, tuple(shape)):
                raise AvatarError(f"Input '{name}' of the engine '{spec.name}' is {kind}{list(sizes)}, not {dtype}{list(shape)}; {AGAIN}.")
        for name, goes_to in self._states.items():
            if (
                name not in spec.outputs
                or goes_to not in spec.inputs
                or self._shape(name) != (tuple(spec.inputs[goes_to][0]), spec.inputs[goes_to][1])
            ):
                raise AvatarError(f"Output '{name}' of '{spec.name}' cannot be its input '{goes_to}' next time: they differ in shape or kind.")


def _tensor(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return value
    return torch.from_numpy(value if value.flags.writeable else value.copy())


WORDS = ("float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool")


def _word(trt: Any, dtype: Any) -> str:
    """The library's type -> its name in a GraphSpec."""
    return next((word for word in WORDS if getattr(trt, word, None) == dtype), str(dtype))


__all__ = ["Engine", "Pending", "TrtRunner", "available", "check_place", "deserialised", "load"]
