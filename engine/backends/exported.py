"""An export as a generator loads it: for the backend that was asked for, of the weights that it has, graph by graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.backends import artifact, backend, half_the_cores
from engine.backends.artifact import AGAIN, Manifest
from engine.backends.engines import BUILT_FOR, WEIGHTS
from engine.types import AvatarError, GraphSpec, Runner

ON_A_GPU = ("tensorrt",)
"""Backends that run on a GPU."""


def check(name: str, *, graphs: object, mode: str | None = None, device: str | None = None) -> None:
    """Raise AvatarError where what was asked beside a backend does not go with it. `graphs`: the folder of an export, or None."""
    if name == "pytorch":
        if graphs is not None:
            raise AvatarError("PyTorch runs the weights themselves; give --backend with --graphs, or leave it out.")
        return
    if mode is not None:
        raise AvatarError(f"A mode is how PyTorch runs a step; leave --mode out with --backend {name}.")
    if name in ON_A_GPU:
        if missing := backend(name).available():
            raise AvatarError(missing)
        if device == "cpu":
            raise AvatarError(f"The backend {name} runs on a GPU; leave --device out, or choose another backend.")
        if graphs is None:
            raise AvatarError("TensorRT runs exported engines; export them (avatar export --backend tensorrt) and give the folder with --graphs.")
    elif device not in (None, "cpu"):
        raise AvatarError(f"The backend {name} runs on the CPU; use --device cpu, or leave --backend out.")
    elif name == "onnxruntime" and graphs is None:
        raise AvatarError("ONNX Runtime runs exported graphs; export them (avatar export) and give the folder with --graphs.")


@dataclass(frozen=True, slots=True)
class Exported:
    """A folder of graphs that fits a backend and weights."""

    folder: Path
    manifest: Manifest
    backend: str

    def runner(self, graph: str, spec: GraphSpec, *, at_once: int = 1, device: str | None = None) -> Runner:
        """A graph by the generator's name, in the precision that it has there. Raises AvatarError where it is not among them, is another than the
        spec's, is damaged, or does not load.

        `at_once`: callers side by side, each with a runner of its own (`another`). `device`: of a backend that runs on a GPU.
        """
        made = self.manifest.artifact(graph)
        made.fits(spec)
        if self.backend in ON_A_GPU:  # which reads and verifies the folder itself
            return backend(self.backend).load(spec, path=self.folder, device_name=device)
        path = artifact.verified(self.folder, self.manifest, made)
        return backend(self.backend).load(spec, precision=made.precision, threads=half_the_cores(), at_once=at_once, path=path)


def opened(folder: Path, name: str, *, origin: str, precision: str | None = None) -> Exported:
    """The export in a folder, for the backend `name`. `origin`: sha256 of the weights. `precision`: None, or the one that it must have.

    Raises AvatarError for one of other weights, or for another backend or precision.
    """
    manifest = artifact.read(folder)
    if manifest.backend not in BUILT_FOR.get(name, (name,)):
        raise AvatarError(f"The graphs in {folder} were exported for {manifest.backend}, not for {name}; choose that backend, or {AGAIN}.")
    if manifest.source.get("weights", {}).get(WEIGHTS) != origin:
        raise AvatarError(f"The graphs in {folder} were exported from other weights; {AGAIN}.")
    if precision not in (None, manifest.precision):
        raise AvatarError(f"The graphs in {folder} are in {manifest.precision}, not in {precision}; leave --precision out, or {AGAIN}.")
    return Exported(folder, manifest, name)


__all__ = ["ON_A_GPU", "Exported", "check", "opened"]
