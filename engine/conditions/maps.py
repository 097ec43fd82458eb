"""Condition pictures that come with a signal: DensePose, or depth, normals, body parts and a skeleton of one body."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from engine.drivers.maps import squeezed
from engine.types import AvatarError, UInt8Array


def stacked(maps: Mapping[str, UInt8Array] | None, names: Sequence[str], size: tuple[int, int]) -> UInt8Array:
    """Pictures uint8 [h, w, 3] by name, each squeezed to `size` (H, W) as published scripts do it -> [H, W, 3 names], in the order of the names.

    Raises AvatarError where one is missing or no such picture.
    """
    missing = [name for name in names if maps is None or name not in maps]
    if maps is None or missing:
        lacking = " and no ".join(missing)
        raise AvatarError(f"These weights are driven by pictures of a body, and there is no {lacking}; give each with --maps NAME=FILE.")
    for name in names:
        if maps[name].ndim != 3 or maps[name].shape[2] != 3 or maps[name].dtype != np.uint8:
            raise AvatarError(f"The {name} map is {maps[name].dtype} {list(maps[name].shape)}; give pictures of 8 bits [height, width, 3].")
    return np.ascontiguousarray(np.concatenate([squeezed(maps[name], size) for name in names], 2))


__all__ = ["stacked"]
