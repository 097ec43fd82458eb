"""A TensorRT that computes on the CPU: it reads and writes memory by the addresses it is given, as the real one does on a GPU."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

Compute = Callable[[Mapping[str, Any]], dict[str, Any]]
TYPES = ("float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool")


class Context:
    """One execution context."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.shapes = {name: shape for name, (shape, _) in engine.ports.items()}
        self.addresses: dict[str, int] = {}
        self.runs: list[dict[str, int]] = []  # the addresses of every run
        self.works = True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if not self.works:
            self._engine.log.log("ERROR", "CUDA error 700 in kernel launch")
            return False
        self.runs.append(dict(self.addresses))
        given = {name: self._at(name) for name in self._engine.inputs}
        for name, value in self._engine.compute({name: array.copy() for name, array in given.items()}).items():
            self._at(name)[...] = value
        return True

    def _at(self, name: str) -> Any:
        """The memory at the port's address as an array."""
        dtype = np.dtype(self._engine.ports[name][1])
        shape = self.shapes[name]
        size = int(np.prod(shape)) * dtype.itemsize
        raw: Any = (ctypes.c_char * size).from_address(self.addresses[name])
        return np.frombuffer(raw, dtype).reshape(shape)


class Engine:
    """A graph of ports {name: (shape, dtype)}, computed by a function."""

    refittable = True

    def __init__(self, ports: Mapping[str, tuple[tuple[int, ...], str]], inputs: tuple[str, ...], compute: Compute) -> None:
        self.ports, self.inputs, self.compute = dict(ports), inputs, compute
        self.contexts: list[Context] = []
        self.memory = True
        self.log: Any = None
        self.weights = b"weights"

    @property
    def num_io_tensors(self) -> int:
        return len(self.ports)

    def get_tensor_name(self, index: int) -> str:
        return list(self.ports)[index]

    def get_tensor_mode(self, name: str) -> str:
        return "INPUT" if name in self.inputs else "OUTPUT"

    def get_tensor_dtype(self, name: str) -> str:
        return f"DataType.{self.ports[name][1]}"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.ports[name][0]

    def create_execution_context(self) -> Context | None:
        if not self.memory:
            return None
        self.contexts.append(Context(self))
        return self.contexts[-1]

    def create_engine_inspector(self) -> Any:
        return SimpleNamespace(get_engine_information=lambda form: json.dumps({"Layers": list(self.ports)}))

    def serialize(self) -> bytes:
        return self.weights


class Library(SimpleNamespace):
    """What `import tensorrt` gives. `engines`: bytes of a plan -> the engine."""

    def __init__(self, engines: Mapping[bytes, Engine], *, version: str = "11.4.0.106") -> None:
        super().__init__(__version__=version, engines=dict(engines), **{name: f"DataType.{name}" for name in TYPES})
        self.TensorIOMode = SimpleNamespace(INPUT="INPUT", OUTPUT="OUTPUT")
        self.LayerInformationFormat = SimpleNamespace(JSON="JSON")

        class ILogger:
            ERROR, INTERNAL_ERROR = "ERROR", "INTERNAL_ERROR"

            def __init__(self) -> None:
                pass

        library = self

        class Runtime:
            def __init__(self, log: Any) -> None:
                self._log = log

            def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
                engine: Engine | None = library.engines.get(plan)
                if engine is None:
                    self._log.log("ERROR", "Serialization assertion plan->header.magicTag == kMAGIC_TAG failed")
                    return None
                engine.log = self._log
                return engine

        class Refitter:
            def __init__(self, engine: Engine, log: Any) -> None:
                self.engine = engine

            def refit_cuda_engine(self) -> bool:
                return True

            def get_missing_weights(self) -> list[str]:
                return ["conv_in.weight"]

        class OnnxParserRefitter:
            def __init__(self, refitter: Refitter, log: Any) -> None:
                self._engine = refitter.engine

            def refit_from_file(self, path: str) -> bool:
                from pathlib import Path

                self._engine.weights = Path(path).read_bytes()
                return self._engine.weights != b"other layout"

        self.ILogger, self.Runtime, self.Refitter, self.OnnxParserRefitter = ILogger, Runtime, Refitter, OnnxParserRefitter
