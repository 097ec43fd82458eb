"""ONNX Runtime on a CPU. A graph is an ONNX file: `path`, or what `spec.build()` returns, a path or bytes. Arrays go in and out on the CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.backends import check_inputs
from engine.types import AvatarError, GraphSpec, Runner

KINDS = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8", "tensor(int64)": "int64"}
"""How ONNX Runtime names types, and NumPy."""


def available() -> str | None:
    """Whether onnxruntime is installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "ONNX Runtime is not installed; pip install 'avatar-engine[onnx]'."
    return None


def _session(source: str | bytes, name: str, *, threads: int, again: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # trackers and encoders share the cores
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever a damaged or foreign file raises
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise AvatarError(f"ONNX Runtime cannot load '{name}' ({said}); {again}.") from error


class _OrtRunner:
    def __init__(self, spec: GraphSpec, session: Any) -> None:
        self._spec, self._session = spec, session
        named = {port.name for port in (*self._session.get_inputs(), *self._session.get_outputs())}
        if not {*spec.inputs, *spec.outputs} <= named:
            raise AvatarError(f"The ONNX file is not the graph '{spec.name}': names of inputs or outputs differ; export it again.")

    def another(self) -> Runner:
        """The same graph for another caller, at the same time: a session serves any number."""
        return self

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        check_inputs(self._spec, inputs)
        results = self._session.run(list(self._spec.outputs), dict(inputs))
        return dict(zip(self._spec.outputs, results, strict=True))


def load(spec: GraphSpec, *, threads: int = 0, path: str | Path | None = None, **_: Any) -> Runner:
    """An inference session; `threads` 0 lets ONNX Runtime choose. Raises AvatarError where the file is none, or another graph's."""
    missing = available()
    if missing:
        raise AvatarError(missing)
    source = spec.build() if path is None else str(path)
    if not isinstance(source, str | bytes | Path):
        raise AvatarError(f"ONNX Runtime runs files, and '{spec.name}' is not exported yet; export it and give the file.")
    source = source if isinstance(source, bytes) else str(source)
    return _OrtRunner(spec, _session(source, spec.name, threads=threads, again="export it again"))


def as_it_is(path: Path, *, threads: int = 0) -> tuple[GraphSpec, Runner]:
    """A file of somebody else, with the names, shapes and types that it says of itself; a size it leaves open is 1.

    Raises AvatarError where it cannot be loaded.
    """
    missing = available()
    if missing:
        raise AvatarError(missing)
    session = _session(str(path), path.name, threads=threads, again="download it again")
    sizes = {port.name: tuple(size if isinstance(size, int) else 1 for size in port.shape) for port in session.get_inputs()}
    kinds = {port.name: KINDS.get(port.type, port.type) for port in session.get_inputs()}
    outputs = tuple(port.name for port in session.get_outputs())
    spec = GraphSpec(path.stem, {name: (size, kinds[name]) for name, size in sizes.items()}, outputs, lambda: str(path))
    return spec, _OrtRunner(spec, session)
