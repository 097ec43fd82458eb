"""Publishing an export: everything into a hidden folder, every byte on the disk, then the manifest, which makes it visible, in one step.

What a manifest holds and how it is read and checked is `engine.backends.artifact`, since that happens while serving.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from engine.backends.artifact import EXPORTER, MANIFEST, SCHEMA, Artifact, Manifest, read, sha256, verified
from engine.types import AvatarError, GraphSpec

PARTIAL = ".partial"
KEY_SHOWN = 12
"""Digits of a key that name a folder."""
OURS = re.compile(r"[0-9a-f]{12}(-[0-9]+)?")
"""Folders that a publication made."""
PACKAGES = ("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "openvino", "nncf")
"""Whose versions a manifest tells."""
IN_THE_KEY = ("torch", "onnx", "onnxscript", "onnx-ir")
"""Whose versions decide what an ONNX file holds."""


@dataclass(slots=True)
class Publication:
    """An export that is being made."""

    out: Path
    folder: Path  # to fill
    before: Manifest | None  # what `out` holds already, if that can be read

    def reuse(self, key: str) -> Artifact | None:
        """An artifact of the export before with this key, its files put into the new folder; None where there is none that is whole."""
        made = next((made for made in self.before.artifacts.values() if made.key == key), None) if self.before else None
        if made is None or self.before is None:
            return None
        try:
            verified(self.out, self.before, made)
            for name in made.files:
                _link(self.out / self.before.folder / name, self.folder / name)
        except (AvatarError, OSError):
            return None
        return made

    def commit(self, manifest: Manifest) -> Manifest:
        """Make the folder and its manifest what `out` is, and let go of the export before."""
        name = _free(self.out, manifest.key[:KEY_SHOWN])
        manifest = replace(manifest, folder=name)
        for path in self.folder.iterdir():
            _sync(path)
        _sync(self.folder)
        self.folder.rename(self.out / name)
        pending = self.out / f"{PARTIAL}.json"
        pending.write_text(manifest.text())
        _sync(pending)
        pending.replace(self.out / MANIFEST)
        _sync(self.out)
        for path in self.out.iterdir():
            if OURS.fullmatch(path.name) and path.name != name:
                shutil.rmtree(path, ignore_errors=True)
        return manifest


@contextmanager
def publishing(out: Path) -> Iterator[Publication]:
    """A publication into `out`, a new folder or one that an export made; after an error, `out` is what it was.

    Raises AvatarError where the folder holds something else, where another export writes there, and where the disk is full.
    """
    out = out.absolute()
    fresh = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise AvatarError(f"{out} cannot be written to ({error.strerror or error}); choose another folder.") from error
    partial = out / PARTIAL
    try:
        _lock(lock, out)
        before = _before(out)
    except AvatarError:  # what is there is another's
        os.close(lock)
        raise
    try:
        shutil.rmtree(partial, ignore_errors=True)
        with told_if_full(out):
            partial.mkdir()
            yield Publication(out, partial, before)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        (out / f"{PARTIAL}.json").unlink(missing_ok=True)
        if fresh and not any(out.iterdir()):
            out.rmdir()
        os.close(lock)


def _lock(handle: int, out: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise AvatarError(f"Another export is writing {out} just now; wait for it, or choose another folder.") from error


def _before(out: Path) -> Manifest | None:
    """The export that is there; None where it cannot be read, since it will be replaced. Raises AvatarError for a folder of another kind."""
    others = {path.name for path in out.iterdir() if not OURS.fullmatch(path.name)} - {PARTIAL, f"{PARTIAL}.json", MANIFEST}
    if not others and not (out / MANIFEST).exists():
        return None
    try:
        found = read(out)
    except AvatarError:
        found = None
    if others and found is None:  # also what a data set or a training run calls its manifest
        raise AvatarError(f"{out} holds something else than exported graphs ('{min(others)}'); choose another folder.")
    return found


@contextmanager
def told_if_full(out: Path) -> Iterator[None]:
    """A disk that is full, or that may not be written to, as a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise AvatarError(f"The disk of {out} is full, so nothing was exported; make room or write elsewhere.") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EFBIG):
            raise AvatarError(f"{error.filename or out} cannot be written ({error.strerror}); write elsewhere.") from error
        raise


def _sync(path: Path) -> None:
    """Onto the disk, before anything says that it is there."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def _free(out: Path, name: str) -> str:
    """A name for the folder that nothing has yet."""
    return next(f"{name}{tail}" for tail in ("", *(f"-{n}" for n in range(1, 1000))) if not (out / f"{name}{tail}").exists())


# -- what goes into a manifest ----------------------------------------------------------------------------------------------


def facts(
    spec: GraphSpec,
    *,
    weights: Mapping[str, str],
    onnx: str,
    config: Mapping[str, Any],
    precision: Mapping[str, Any],
    opset: int,
    adapters: Sequence[Mapping[str, Any]] = (),
    target: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """All that an artifact's key covers.

    `weights` part -> sha256, `adapters` sha256 and scale of every fused LoRA, `onnx` sha256 of the graph with its external data, `precision`
    the recipe, `target` what a compiled engine is bound to (library, device, profiles, builder).
    """
    return {
        "schema": SCHEMA,
        "exporter": EXPORTER,
        "component": spec.name,
        "weights": dict(weights),
        "adapters": [dict(adapter) for adapter in adapters],
        "onnx": onnx,
        "opset": opset,
        "config": dict(config),
        "versions": versions(IN_THE_KEY),
        "precision": dict(precision),
        "target": dict(target or {}),
        "platform": {"os": platform.system(), "arch": platform.machine()} if target else {},
    }


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Package -> version, of those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def provenance(**more: Any) -> dict[str, Any]:
    """Where and when: for people, in no key."""
    machine = {"os": platform.platform(), "arch": platform.machine(), "cores": os.cpu_count()}
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": versions(),
        "machine": machine,
    } | more


def file_hashes(paths: Sequence[Path]) -> dict[str, str]:
    """Name -> sha256, in the order given."""
    return {path.name: sha256(path) for path in paths}


__all__ = ["KEY_SHOWN", "Publication", "facts", "file_hashes", "provenance", "publishing", "told_if_full", "versions"]
