"""Weights of a video system on disk: one .safetensors a network, and a manifest that is written last."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from engine.backends.artifact import sha256
from engine.types import AvatarError

MANIFEST = "weights.json"
"""Beside the .safetensors files: which size they are for and where they come from."""
RECOGNISER = "recogniser.onnx"
"""What tells faces apart, of systems that read it."""
UNTRAINED = "untrained"
GENERATOR = "video"
"""Whose weights they are, for commands that take any."""


MADE_FOR, PLAN = "made_for", ("steps", "window", "overlap")
"""Of a manifest's origin. Weights that were taught to run live say how, in all of PLAN; others what they were made for instead, and `window` where
they were taught windows of another length than their size's."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a live stream asks a network."""

    steps: int  # noise levels
    window: int  # frames that it sees at once
    overlap: int  # how many of them are past: finished already

    @property
    def new(self) -> int:
        """Frames that are made at once."""
        return self.window - self.overlap


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a folder says of itself."""

    preset: str
    sha256: Mapping[str, str]  # by network
    origin: Mapping[str, str]
    recogniser: str  # sha256 of it; empty where there is none
    own: str  # sha256 of the manifest

    @property
    def taught(self) -> Plan | None:
        """How the weights were taught to run live; None for others. Raises AvatarError for a plan that is none."""
        if MADE_FOR in self.origin or not set(PLAN) <= set(self.origin):
            return None
        try:
            plan = Plan(*(int(self.origin[name]) for name in PLAN))
        except ValueError:
            plan = Plan(0, 0, 0)
        if plan.steps < 1 or not 0 <= plan.overlap < plan.window:
            raise AvatarError(f"The {MANIFEST} of these weights does not say how they run live ({', '.join(PLAN)}); train them again.")
        return plan

    @property
    def window(self) -> int | None:
        """Frames of a window that a teacher was taught; None: as many as its size's. Raises AvatarError for a number that is none."""
        if MADE_FOR not in self.origin or "window" not in self.origin:
            return None
        if not (told := self.origin["window"]).isdecimal() or int(told) < 1:
            raise AvatarError(f"The {MANIFEST} of these weights names windows of '{told}' frames, which is no number; train them again.")
        return int(told)


def save(parts: Mapping[str, nn.Module], folder: Path, *, preset: str, origin: Mapping[str, str], recogniser: Path | None = None) -> None:
    """Networks by name, and a copy of the recogniser; a folder without a manifest is not whole."""
    folder.mkdir(parents=True, exist_ok=True)
    hashes = {}
    for name, module in parts.items():
        path = folder / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in module.state_dict().items()}, path)
        hashes[name] = sha256(path)
    write_manifest(folder, preset=preset, hashes=hashes, origin=origin, recogniser=recogniser)


def write_manifest(folder: Path, *, preset: str, hashes: Mapping[str, str], origin: Mapping[str, str], recogniser: Path | None = None) -> None:
    """The last file of a folder; the recogniser is copied into it first."""
    told: dict[str, object] = {"generator": GENERATOR, "preset": preset, "sha256": dict(hashes), "origin": dict(origin)}
    if recogniser is not None:
        shutil.copyfile(recogniser, folder / RECOGNISER)
        told["recogniser"] = sha256(folder / RECOGNISER)
    (folder / MANIFEST).write_text(json.dumps(told, indent=2) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Raises AvatarError for a folder that holds no weights."""
    try:
        text = (folder / MANIFEST).read_text()
        told = json.loads(text)
        own = hashlib.sha256(text.encode()).hexdigest()
        return Manifest(str(told["preset"]), dict(told["sha256"]), dict(told["origin"]), str(told.get("recogniser", "")), own)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AvatarError(f"{folder} holds no weights of a video generator: it has no readable {MANIFEST}; import them first.") from error


def fill(parts: Mapping[str, nn.Module], folder: Path, manifest: Manifest) -> None:
    """Networks without values (of the meta device) get those of a folder. Raises AvatarError for others."""
    for part, module in parts.items():
        path = folder / f"{part}.safetensors"
        if path.is_file() and sha256(path) != manifest.sha256.get(part):
            raise AvatarError(f"{path} is not the file that its {MANIFEST} names; import the weights again.")
        try:
            # Read, not mapped: a file that is written again must not change what runs.
            module.load_state_dict(load_file(path, backend="pread"), assign=True)
        except Exception as error:  # whatever a broken file raises
            raise AvatarError(f"{path} is missing, damaged or of another version of '{manifest.preset}'; import the weights again.") from error
        module.eval().requires_grad_(False)


def count_patches(image: nn.Module) -> None:
    """CLIP counts its patches in a buffer that no file keeps."""
    embeddings = image.get_submodule("vision_model.embeddings")
    count = int(embeddings.get_submodule("position_embedding").num_embeddings)
    embeddings.register_buffer("position_ids", torch.arange(count)[None], persistent=False)


def recogniser_in(folder: Path, manifest: Manifest) -> Path | None:
    """The recogniser of a folder; None where it has none. Raises AvatarError where it is not the one that the manifest names."""
    if not manifest.recogniser:
        return None
    path = folder / RECOGNISER
    if not path.is_file() or sha256(path) != manifest.recogniser:
        raise AvatarError(f"{path} is not the file that its {MANIFEST} names; import the weights again.")
    return path


__all__ = [
    "MADE_FOR",
    "MANIFEST",
    "PLAN",
    "RECOGNISER",
    "UNTRAINED",
    "Manifest",
    "Plan",
    "count_patches",
    "fill",
    "read_manifest",
    "recogniser_in",
    "save",
    "write_manifest",
]
