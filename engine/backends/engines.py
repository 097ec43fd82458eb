"""Engines that `avatar export` left beside weights: which one runs these weights here, and in words why another does not.

Layout: `<weights>/engines/<backend>-<key>/`, each an export of its own (`engine.backends.artifact`). The key names what was asked for; whether
an engine is still good is read from its manifest, its files and this machine, never from its name.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.backends import artifact, backend, ov, trt
from engine.backends.artifact import EXPORTER, Manifest
from engine.types import AvatarError, GraphSpec

HOME = "engines"
"""The folder of engines in a folder of weights."""
WEIGHTS = "weights.json"
"""The manifest of a folder of weights: its sha256 is the weights', since it names those of all their files."""
UNNAMED = "diffusion"
"""The generator of weights whose manifest names none."""
LIVE = "step"
"""The graph that runs for every frame."""
ADAPTERS = "adapters"
"""Of a manifest's `source`: every LoRA that is part of an engine, with its sha256 and scale."""
BUILT_FOR: dict[str, tuple[str, ...]] = {"onnxruntime": ("onnxruntime",), "openvino": ("openvino",), "tensorrt": ("tensorrt", "tensorrt_rtx")}
"""Backend that runs engines -> what exports for it call themselves."""
SHOWN = 12
"""Digits of a hash that a person is shown."""


@dataclass(frozen=True, slots=True)
class Found:
    """An engine that runs here, every file of it as it was exported."""

    folder: Path  # for `--graphs`
    manifest: Manifest

    @property
    def precision(self) -> str:
        """Of the live graph."""
        return self.manifest.artifact(LIVE).precision


@dataclass(frozen=True, slots=True)
class Search:
    """What was looked for, and what there is."""

    weights: Path
    backend: str
    steps: int
    engine: Found | None  # the newest that can be used
    refused: tuple[str, ...]  # one sentence for each newer or other one that cannot
    adapters: tuple[Mapping[str, Any], ...] = ()  # LoRAs that must be part of it

    @property
    def build(self) -> str:
        """The command that makes one."""
        name = self.backend.replace("_", "-")
        loras = "".join(f" --lora {shlex.quote(str(each.get('name', 'FILE')))}:{each['scale']:g}" for each in self.adapters)
        return f"avatar export --weights {shlex.quote(str(self.weights))} --backend {name} --steps {self.steps}{loras}"

    @property
    def told(self) -> str:
        """One line for a person: what is used, or why nothing is and what to do."""
        if self.engine is not None:
            return f"{self.backend}: {self.engine.folder.name} ({self.engine.precision}, {self.engine.manifest.made.get('time', 'some time ago')})"
        why = " ".join(self.refused) or f"None was exported into {self.weights / HOME}."
        return f"No engine of these weights runs on {self.backend} at {self.steps} step{'s' * (self.steps > 1)} a frame. {why} Make one: {self.build}"


def find(
    weights: Path,
    name: str,
    *,
    steps: int,
    precision: str | None = None,
    decoder: str = "own",
    spec: GraphSpec | None = None,
    origin: str | None = None,
    adapters: Sequence[Mapping[str, Any]] = (),
) -> Search:
    """The newest engine of the weights in a folder that the backend `name` can run here at `steps` a frame, and why others cannot.

    `precision`: only that one. `decoder`: "own" or "tiny", as the weights are loaded with. `spec`: the live graph as the generator has it now
    (`graphs.step_spec`), with which an engine of another size, preset or layout is told apart; leave it out before the networks are loaded.
    `origin`: sha256 of the weights, looked up where it is not given. `adapters`: sha256, scale and name of every LoRA that must be part of it; an
    engine that has others is none of what was asked for. Looks, loads no graph and changes nothing; files are read through for their hashes, which
    loading does not do once more (`artifact.verified`). Raises AvatarError for an unknown backend and a folder without weights, for nothing else.
    """
    if name not in BUILT_FOR:
        raise AvatarError(f"No engines are exported for '{name}'; choose one of: {', '.join(BUILT_FOR)}.")
    made_of = origin or origin_of(weights)
    refused: list[str] = []
    engine = None
    for folder, manifest in _newest_first(weights / HOME, refused):
        if manifest.backend not in BUILT_FOR[name]:
            continue
        try:
            _check(folder, manifest, steps=steps, precision=precision, decoder=decoder, spec=spec, origin=made_of)
            _check_adapters(manifest, adapters)
            _check_here(name, manifest)
            for graph in manifest.artifacts.values():
                artifact.verified(folder, manifest, graph)
        except AvatarError as error:
            refused.append(f"{folder.name}: {error}")
            continue
        engine = Found(folder, manifest)
        break
    return Search(weights, name, steps, engine, tuple(refused), tuple(adapters))


def origin_of(weights: Path) -> str:
    """sha256 of a folder's weights, as an export notes it. Raises AvatarError for a folder without."""
    try:
        return hashlib.sha256((weights / WEIGHTS).read_text().encode()).hexdigest()
    except (OSError, UnicodeDecodeError) as error:
        raise AvatarError(f"{weights} holds no weights of this engine: it has no readable {WEIGHTS}; import or train them first.") from error


def generator_of(weights: Path) -> str:
    """The generator that a folder of weights is for, by its manifest. Raises AvatarError for a folder without."""
    try:
        told = json.loads((weights / WEIGHTS).read_bytes())
        return str(told.get("system") or told.get("generator") or UNNAMED)
    except (OSError, ValueError, AttributeError) as error:
        raise AvatarError(f"{weights} holds no weights of this engine: it has no readable {WEIGHTS}; import or train them first.") from error


def _newest_first(home: Path, refused: list[str]) -> list[tuple[Path, Manifest]]:
    """Every export in a folder; a sentence into `refused` for each that cannot be read. What a killed export left is none."""
    found: list[tuple[Path, Manifest]] = []
    for folder in sorted(home.iterdir()) if home.is_dir() else ():
        if not (folder / artifact.MANIFEST).exists():
            continue
        try:
            found.append((folder, artifact.read(folder)))
        except AvatarError as error:
            refused.append(f"{folder.name}: {error}")
    return sorted(found, key=lambda each: str(each[1].made.get("time", "")), reverse=True)


def _check(folder: Path, manifest: Manifest, *, steps: int, precision: str | None, decoder: str, spec: GraphSpec | None, origin: str) -> None:
    """Raise AvatarError unless this is an engine of these weights, as they are used."""
    live, source = manifest.artifact(LIVE), manifest.source
    if any(made.facts.get("exporter") != EXPORTER for made in manifest.artifacts.values()):
        raise AvatarError("It was made by another version of the exporter, so what is in it may differ from what these weights compute.")
    found = source.get("weights", {}).get(WEIGHTS, "")
    if found != origin:
        raise AvatarError(
            f"It was exported from other weights ({found[:SHOWN] or 'unknown'}) than those in {folder.parent.parent} ({origin[:SHOWN]})."
        )
    told = (
        ("steps", source.get("steps"), steps),
        ("decoder", source.get("decoder"), decoder),
        ("precision", live.precision, precision or live.precision),
    )
    for what, there, asked in told:
        if there != asked:
            raise AvatarError(f"It has {what} {there}, and {asked} is asked for.")
    if spec is not None:
        live.fits(spec)


def _check_adapters(manifest: Manifest, asked: Sequence[Mapping[str, Any]]) -> None:
    """Raise AvatarError unless the LoRAs in an engine are those that are asked for."""
    there = manifest.source.get(ADAPTERS, ())
    held, wanted = ({(str(each["sha256"]), float(each["scale"])) for each in some} for some in (there, asked))
    if extra := [each for each in there if (str(each["sha256"]), float(each["scale"])) not in wanted]:
        raise AvatarError(f"It has a LoRA fused ({extra[0].get('name')} at {float(extra[0]['scale']):g}); it is used only where --graphs names it.")
    if wanted - held:
        raise AvatarError("It has not the LoRA that is asked for.")


def _check_here(name: str, manifest: Manifest) -> None:
    """Raise AvatarError unless this machine can run it."""
    live = manifest.artifact(LIVE)
    if name == "tensorrt":  # which GPU and version an engine wants says more than what is missing here
        for made in manifest.artifacts.values():
            trt.check_place(made)
    missing = backend(name).available()
    if missing:
        raise AvatarError(missing)
    if name == "openvino":
        ov.check_precision(live.precision)


__all__ = ["ADAPTERS", "BUILT_FOR", "HOME", "LIVE", "WEIGHTS", "Found", "Search", "find", "generator_of", "origin_of"]
