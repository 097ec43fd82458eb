"""ONNX Runtime. `spec.build()` returns the path or the bytes of an ONNX file; arrays go in and out on the CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from engine.backends import check_inputs
from engine.types import AvatarError, GraphSpec, Runner


def available() -> str | None:
    """Whether onnxruntime is installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "ONNX Runtime is not installed; pip install 'avatar-engine[onnx]'."
    return None


class _OrtRunner:
    def __init__(self, spec: GraphSpec, *, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._spec = spec
        self._session = onnxruntime.InferenceSession(spec.build(), options, providers=["CPUExecutionProvider"])

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        check_inputs(self._spec, inputs)
        results = self._session.run(list(self._spec.outputs), dict(inputs))
        return dict(zip(self._spec.outputs, results, strict=True))


def load(spec: GraphSpec, *, threads: int = 0) -> Runner:
    """An inference session; `threads` 0 lets ONNX Runtime choose."""
    missing = available()
    if missing:
        raise AvatarError(missing)
    return _OrtRunner(spec, threads=threads)
