"""What a portrait has been made into, and the arrays that a file keeps of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine.generators.diffusion.conditions import Anchor
from engine.generators.diffusion.networks import Cache
from engine.types import AvatarError, Identity, UInt8Array

VERSION = "2"
"""Of these features: cached ones of another version are made anew."""
MORE = ("regions", "latents", "tokens", "face")
"""What a cache has beside keys and values, in presets that need it."""
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Features:
    """One portrait, ready."""

    cache: Cache
    base: Identity | None  # the same portrait for the generator whose frames are the condition
    anchor: Anchor | None  # where the portrait has its face and shoulders, for a painted condition


def pack(identity: Identity, *, weights: str, base: Any) -> Arrays:
    """What `np.savez` can keep of an identity, without pickle. `weights`: what names them; `base`: the generator whose frames are the condition."""
    features: Features = identity.features
    arrays = {"key": np.array(identity.key), "version": np.array(VERSION), "weights": np.array(weights)} | _packed(features)
    if features.base is not None:
        arrays |= {f"base.{name}": array for name, array in base.pack(features.base).items()}
        arrays["base_portrait"] = features.base.portrait
    return arrays


def unpack(portrait: UInt8Array, arrays: Mapping[str, npt.NDArray[Any]], *, weights: str, base: Any, dtype: torch.dtype) -> Identity:
    """The inverse of `pack`. Raises AvatarError for arrays of another version or of other weights."""
    if str(arrays.get("version", "")) != VERSION or str(arrays.get("weights", "")) != weights:
        raise AvatarError("These features were made with other weights; prepare the portrait again.")
    own = None
    if base is not None:
        parts = {name.removeprefix("base."): array for name, array in arrays.items() if name.startswith("base.")}
        own = base.unpack(arrays["base_portrait"], parts)
    return Identity(str(arrays["key"]), portrait, _unpacked(arrays, own, dtype))


def _packed(features: Features) -> Arrays:
    """All but the base; half precisions are kept as they are, in 16-bit words."""
    arrays: Arrays = {}
    for name, kept in (("reference", features.cache.reference), ("identity", features.cache.identity)):
        for i, pair in enumerate(kept):
            arrays |= {f"{name}.{i}.{part}": _words(x) for part, x in zip("kv", pair, strict=True)}
    more = {name: getattr(features.cache, name) for name in MORE}
    arrays |= {f"more.{name}": _words(x) for name, x in more.items() if x is not None}
    if features.anchor is not None:
        arrays |= {"anchor.face": features.anchor.face, "anchor.body": features.anchor.body}
    return arrays


def _unpacked(arrays: Mapping[str, npt.NDArray[Any]], base: Identity | None, dtype: torch.dtype) -> Features:
    """The inverse of `_packed`, in the precision that was packed."""

    def tensor(name: str) -> torch.Tensor:
        return torch.from_numpy(np.array(arrays[name])).view(dtype)

    def kept(name: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
        count = sum(key.startswith(f"{name}.") and key.endswith(".k") for key in arrays)
        return [(tensor(f"{name}.{i}.k"), tensor(f"{name}.{i}.v")) for i in range(count)]

    more = {name: tensor(f"more.{name}") for name in MORE if f"more.{name}" in arrays}
    anchor = Anchor(arrays["anchor.face"], arrays["anchor.body"]) if "anchor.face" in arrays else None
    return Features(Cache(kept("reference"), kept("identity"), **more), base, anchor)


def _words(x: torch.Tensor) -> npt.NDArray[Any]:
    """fp32 as it is; half precisions as 16-bit words, which NumPy may lack a type for."""
    kept = x.detach().cpu().contiguous()
    return np.asarray(kept.numpy() if kept.dtype == torch.float32 else kept.view(torch.int16).numpy())


__all__ = ["VERSION", "Features", "pack", "unpack"]
