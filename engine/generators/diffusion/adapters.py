"""Low-rank adapters (LoRA) under the names of our networks: how they become part of weights in memory, and what an export keeps of them.

The folder of the weights never changes. Who reads the files that others publish is `exporters.graphs.lora`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load, save_file
from torch import Tensor, nn

from engine.backends import artifact
from engine.backends.artifact import Artifact
from engine.backends.engines import ADAPTERS, WEIGHTS
from engine.types import AvatarError

if TYPE_CHECKING:
    from engine.generators.diffusion.networks import Networks

WEIGHT = ".weight"


@dataclass(frozen=True, slots=True)
class Factors:
    """What is added to one weight [o, ..]: alpha / r · up @ down, in its shape."""

    up: Tensor  # [o, r]
    down: Tensor  # [r, ..], as the weight after its first axis
    alpha: float

    def delta(self) -> Tensor:
        """[o, i · kh · kw] fp32"""
        rank = self.down.shape[0]
        return self.alpha / rank * (self.up.float() @ self.down.float().flatten(1))


@dataclass(frozen=True, slots=True)
class Adapter:
    """One LoRA at one scale."""

    name: str  # of the file it came in, for people
    sha256: str  # of that file
    scale: float
    factors: Mapping[str, Factors]  # name of a parameter of `Networks` -> what is added to it

    @property
    def key(self) -> dict[str, Any]:
        """What tells it from others: for the key of an engine."""
        return {"sha256": self.sha256, "scale": self.scale}

    @property
    def told(self) -> str:
        """For a person."""
        return told(self.name, self.scale)


def told(name: str, scale: float) -> str:
    """A LoRA in words."""
    return name if scale == 1.0 else f"{name} at {scale:g}"


def keys(adapters: Sequence[Adapter]) -> list[dict[str, Any]]:
    """Of several, whatever order they were given in."""
    return sorted((each.key for each in adapters), key=lambda key: str(key["sha256"]))


def mark(adapters: Sequence[Adapter]) -> str:
    """What marks whatever was computed with them; empty for none."""
    return f" {artifact.canonical(keys(adapters))}" if adapters else ""


def named(keys_: Sequence[Mapping[str, Any]]) -> str:
    """LoRAs of a manifest in words: "style.safetensors at 0.8 and other.safetensors"; "none" where there is none."""
    return " and ".join(told(str(each.get("name", str(each["sha256"])[:12])), float(each["scale"])) for each in keys_) or "none"


@torch.no_grad()
def fuse(networks: Networks, adapters: Sequence[Adapter]) -> tuple[str, ...]:
    """Make adapters part of the networks' weights -> all of theirs in words; before `freeze`, which keeps what follows from weights.

    Weights that change become fp32, whatever they were, so that narrowing them later rounds the sum, once. Raises AvatarError where a sum is
    no number any more, and where an adapter is of another preset.
    """
    ordered = sorted(adapters, key=lambda each: each.sha256)  # sums of floats depend on their order
    for name in sorted({name for each in ordered for name in each.factors}):
        owner, _, own = name.rpartition(".")
        try:
            total = networks.get_parameter(name).float()
            for each in ordered:
                if name in each.factors:
                    total = total + each.scale * each.factors[name].delta().reshape(total.shape)
        except (AttributeError, RuntimeError) as error:
            raise AvatarError(f"A LoRA has '{name}' in a shape that these weights have not; export it again (avatar export --lora).") from error
        if not bool(total.isfinite().all()):
            raise AvatarError(f"With the LoRA, '{name}' holds values that are no numbers; give a smaller scale.")
        setattr(networks.get_submodule(owner), own, nn.Parameter(total, requires_grad=False))
    networks.adapters = (*networks.adapters, *ordered)
    return tuple(each.told for each in networks.adapters)


# -- what an export keeps ---------------------------------------------------------------------------------------------------


def write(adapters: Sequence[Adapter], folder: Path) -> list[dict[str, Any]]:
    """A file for each into the folder of an export -> what its manifest says of them (`engines.ADAPTERS`)."""
    made = []
    for each in sorted(adapters, key=lambda each: each.sha256):
        path = folder / f"lora-{each.sha256[:12]}.safetensors"
        tensors: dict[str, Tensor] = {}
        for name, factors in each.factors.items():
            module = name.removesuffix(WEIGHT)
            tensors[f"{module}.lora_up.weight"], tensors[f"{module}.lora_down.weight"] = factors.up.clone(), factors.down.clone()
            tensors[f"{module}.alpha"] = torch.tensor(factors.alpha, dtype=torch.float64)
        save_file(tensors, path)
        made.append({**each.key, "name": each.name, "file": path.name, "file_sha256": artifact.sha256(path)})
    return made


def fused_in(folder: Path | None, origin: str) -> tuple[Adapter, ...]:
    """What was fused into the weights of an export; none where there is no export, or one of other weights than those with the sha256 `origin`.

    Raises AvatarError for a folder without an export, and where a file of it is missing or another.
    """
    if folder is None:
        return ()
    manifest = artifact.read(folder)
    if manifest.source.get("weights", {}).get(WEIGHTS) != origin:
        return ()
    return tuple(_read(folder, manifest, each) for each in manifest.source.get(ADAPTERS, ()))


def _read(folder: Path, manifest: artifact.Manifest, noted: Mapping[str, Any]) -> Adapter:
    try:
        file = Artifact("LoRA", {noted["file"]: noted["file_sha256"]}, {}, (), "", {})
        tensors = load(artifact.verified(folder, manifest, file).read_bytes())
        ends = (".lora_up.weight", ".lora_down.weight", ".alpha")
        modules = sorted(key.removesuffix(ends[0]) for key in tensors if key.endswith(ends[0]))
        factors = {}
        for module in modules:
            up, down, alpha = (tensors[module + end] for end in ends)
            factors[module + WEIGHT] = Factors(up, down, float(alpha))
        return Adapter(noted["name"], noted["sha256"], noted["scale"], factors)
    except (KeyError, TypeError, ValueError) as error:
        raise AvatarError(f"{folder} lacks what it says of its LoRA ({error}); {artifact.AGAIN}.") from error


__all__ = ["WEIGHT", "Adapter", "Factors", "fuse", "fused_in", "keys", "mark", "named", "told", "write"]
