"""What an exporter wrote and a backend loads: graphs in a folder, under a manifest that says what they were made of and for.

Layout: `manifest.json`, and beside it one folder with the files it names. The manifest is replaced in one step and last, so a reader finds
the old export or the new one, each whole. Nothing is loaded that is not, byte for byte, what the manifest says.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from engine.types import AvatarError, GraphSpec

SCHEMA = 1
"""Of the manifest and of the key: a manifest of another one is not read."""
EXPORTER = 1
"""Version of what the exporters do to a graph: artifacts of another one are made anew."""
MANIFEST = "manifest.json"
AGAIN = "export it again (avatar export)"
SETTLED = 2.0
"""s since a file was touched after which its clock tells every later change: clocks of files tick in steps, up to 2 s on some disks."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """One graph, ready for one backend."""

    graph: str  # GraphSpec.name
    files: dict[str, str]  # name inside the folder -> sha256; the first is what a backend loads
    inputs: dict[str, tuple[tuple[int, ...], str]]  # name -> (shape, dtype), as the spec had them
    outputs: tuple[str, ...]
    precision: str
    facts: dict[str, Any]  # all that the key covers: made of what, by what, for what
    measured: dict[str, Any] = field(default_factory=dict)  # errors against PyTorch

    @property
    def key(self) -> str:
        """sha256 of the facts: two artifacts with the same key are interchangeable. Never of the bytes, which differ from build to build."""
        return digest(self.facts)

    def fits(self, spec: GraphSpec) -> None:
        """Raise AvatarError where this is not the spec's graph."""
        wanted = {name: (tuple(shape), dtype) for name, (shape, dtype) in spec.inputs.items()}
        if self.graph != spec.name or self.outputs != tuple(spec.outputs):
            raise AvatarError(f"These files hold the graph '{self.graph}', not '{spec.name}' as it is asked for; {AGAIN}.")
        odd = next((name for name in (*wanted, *self.inputs) if not self._takes(name, wanted.get(name))), "")
        if odd:
            how = f"input '{odd}' {_shown(self.inputs.get(odd))} where {_shown(wanted.get(odd))} is asked for"
        elif list(self.inputs) != list(wanted):
            how = "its inputs in another order"
        else:
            return
        raise AvatarError(f"The exported graph '{self.graph}' has {how}; {AGAIN} with this preset, size and steps.")

    def of(self, *hashes: str) -> None:
        """Raise AvatarError unless it was made of the weights with one of these sha256."""
        if not set(hashes) & set(self.facts.get("weights", {}).values()):
            raise AvatarError(f"The graph '{self.graph}' was exported from other weights than these; {AGAIN}.")

    def _takes(self, name: str, wanted: tuple[tuple[int, ...], str] | None) -> bool:
        """Whether an input is as it is asked for, or within the lengths that were left free."""
        here = self.inputs.get(name)
        if here is None or wanted is None or here == wanted:
            return here == wanted
        free = (self.facts.get("target") or {}).get("profiles", {}).get(name)
        if not free or here[1] != wanted[1] or len(here[0]) != len(wanted[0]):
            return False
        return all(least <= size <= most for least, size, most in zip(free[0], wanted[0], free[-1], strict=True))


def _shown(shape: tuple[tuple[int, ...], str] | None) -> str:
    return "no" if shape is None else f"{shape[1]}{list(shape[0])}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """A whole export."""

    backend: str
    precision: str
    folder: str  # beside the manifest, with the files
    artifacts: dict[str, Artifact]  # by the name the generator has for the graph
    source: dict[str, Any]  # weights and their hashes, preset, size, steps
    made: dict[str, Any]  # provenance: versions, machine, time; not in any key
    schema: int = SCHEMA

    @property
    def key(self) -> str:
        """Of all artifacts together."""
        return digest({"schema": self.schema, "backend": self.backend, "artifacts": {name: made.key for name, made in self.artifacts.items()}})

    def text(self) -> str:
        """JSON, closed by a seal over everything else."""
        told = asdict(self) | {"key": self.key}
        for name, made in self.artifacts.items():
            told["artifacts"][name]["key"] = made.key
        return json.dumps(told | {"seal": digest(told)}, indent=1) + "\n"

    def artifact(self, name: str) -> Artifact:
        """By the generator's name of the graph, or by the spec's. Raises AvatarError where it is not among them."""
        found = self.artifacts.get(name) or next((made for made in self.artifacts.values() if made.graph == name), None)
        if found is None:
            raise AvatarError(f"This export has no graph '{name}', only {', '.join(sorted(self.artifacts))}; {AGAIN}.")
        return found


def canonical(value: Any) -> str:
    """JSON with one spelling for one meaning: sorted keys, no spaces, no NaN. Raises ValueError or TypeError for what JSON has no word for."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """sha256 of the canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Of a file, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(folder: Path) -> Manifest:
    """The manifest of an export. Raises AvatarError, one sentence, where there is none, or it is damaged, edited or of another version."""
    path = folder / MANIFEST
    try:
        told = json.loads(path.read_bytes())
        if not isinstance(told, dict):
            raise ValueError("not an object")
    except FileNotFoundError as error:
        raise AvatarError(f"{folder} holds no exported graphs: it has no {MANIFEST}; {AGAIN}, or give the folder it was exported to.") from error
    except OSError as error:
        raise AvatarError(f"{path} cannot be read ({error.strerror or error}); check the path and its permissions.") from error
    except ValueError as error:
        raise AvatarError(f"{path} is damaged; {AGAIN}.") from error
    if told.get("schema") != SCHEMA:
        raise AvatarError(f"{path} was written by another version of this engine (schema {told.get('schema')}, this one reads {SCHEMA}); {AGAIN}.")
    seal = told.pop("seal", None)
    if seal != digest(told):
        raise AvatarError(f"{path} was changed after it was written, so nothing in it can be trusted; {AGAIN}.")
    try:
        artifacts = {name: _artifact(made) for name, made in told["artifacts"].items()}
        return Manifest(told["backend"], told["precision"], told["folder"], artifacts, told["source"], told["made"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AvatarError(f"{path} lacks what a manifest needs ({error}); {AGAIN}.") from error


def _artifact(told: Mapping[str, Any]) -> Artifact:
    inputs = {name: (tuple(shape), dtype) for name, (shape, dtype) in told["inputs"].items()}
    return Artifact(
        told["graph"], dict(told["files"]), inputs, tuple(told["outputs"]), told["precision"], dict(told["facts"]), dict(told["measured"])
    )


def verified(folder: Path, manifest: Manifest, artifact: Artifact) -> Path:
    """The artifact's first file, once all of its files are what the manifest says. Raises AvatarError where one is missing or another."""
    home = folder / manifest.folder
    for name, wanted in artifact.files.items():
        path = home / name
        if not (_plain(manifest.folder) and _plain(name)):
            raise AvatarError(f"{folder / MANIFEST} names a file outside of its folder ('{name}'); {AGAIN}.")
        try:
            found = _sha256_of(path)
        except FileNotFoundError as error:
            raise AvatarError(f"{path} is missing; {AGAIN}.") from error
        except OSError as error:
            raise AvatarError(f"{path} cannot be read ({error.strerror or error}); check its permissions.") from error
        if found != wanted:
            raise AvatarError(f"{path} is not the file that was exported: its bytes are others than {MANIFEST} names; {AGAIN}.")
    return home / next(iter(artifact.files))


def _sha256_of(path: Path) -> str:
    """Of a file, read once for as long as it stays as it is: one engine is looked for, chosen and loaded, and may be large.

    The time of a file's last change of any kind (`st_ctime_ns`) cannot be set back, as that of its contents can.
    """
    now, there = time.time(), path.stat()
    if now - max(there.st_mtime, there.st_ctime) < SETTLED:
        return sha256(path)
    return _remembered(path, there.st_dev, there.st_ino, there.st_size, there.st_mtime_ns, there.st_ctime_ns)


@lru_cache(maxsize=256)
def _remembered(path: Path, *mark: int) -> str:
    return sha256(path)


def _plain(name: str) -> bool:
    """Whether a name leads nowhere but into its own folder."""
    return name not in ("", ".", "..") and Path(name).name == name


def differences(made: Mapping[str, Any], here: Mapping[str, Any], names: Sequence[tuple[str, str]]) -> list[str]:
    """In words, what an artifact was made for and is not here. `names`: (field, its name for a person)."""
    return [f"{word} {made.get(name)}, here it is {here.get(name)}" for name, word in names if made.get(name) != here.get(name)]


__all__ = ["EXPORTER", "MANIFEST", "SCHEMA", "Artifact", "Manifest", "canonical", "differences", "digest", "read", "sha256", "verified"]
