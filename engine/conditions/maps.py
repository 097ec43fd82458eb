"""Condition pictures that come with a signal: DensePose, or depth, normals, body parts and a skeleton of one body."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from engine.drivers.maps import squeezed
from engine.types import AvatarError, UInt8Array


def stacked(maps: Mapping[str, UInt8Array] | None, names: Sequence[str], size: tuple[int, int]) -> UInt8Array:
    """Pictures uint8 [h, w, 3] by name, each squeezed to `size` (H, W) as published scripts do it -> [H, W, 3 names], in the order of the names.

    Raises AvatarError where one is missing or no such picture.
    """
    maps = maps or {}
    check_names(maps, names)
    for name in names:
        if maps[name].ndim != 3 or maps[name].shape[2] != 3 or maps[name].dtype != np.uint8:
            raise AvatarError(f"The {name} map is {maps[name].dtype} {list(maps[name].shape)}; give pictures of 8 bits [height, width, 3].")
    return np.ascontiguousarray(np.concatenate([squeezed(maps[name], size) for name in names], 2))


def check_names(there: Collection[str], names: Sequence[str]) -> None:
    """Raise AvatarError where one of `names` is not there."""
    if missing := [name for name in names if name not in there]:
        lacking = " and no ".join(missing)
        raise AvatarError(f"These weights are driven by pictures of a body, and there is no {lacking}; give each with --maps NAME=FILE.")


__all__ = ["check_names", "stacked"]
