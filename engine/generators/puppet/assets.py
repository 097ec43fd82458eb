"""What a clip of the person tells beyond their portrait: what stands behind them, how head and shoulders really move in the picture, and how
their looks change with it (`look`).

The maps are linear in a handful of DRIVES and smooth over the picture: their coefficients sit on the nodes of a coarse grid that lies on
the portrait, and cubic B-splines spread them (Lee, Wolberg, Shin 1997, "Scattered data interpolation with multilevel B-splines", IEEE
TVCG 3(3), equations 1 and 2). So they fit every mesh and every size, and cost a small matrix product a frame.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.generators.puppet.look import TERMS, VALUES
from engine.types import AvatarError, FloatArray, Motion, UInt8Array

VERSION = "2"
"""Of the arrays on disk: raised when they would be read wrongly, as those of another version are refused. A better way of showing the same arrays
raises nothing: looks have come to change the person alone, all values together no further than TOGETHER, and softly at the rim, and one that
was learnt before lies on the same pixels in the same terms; it is shown the better way too, as a refusal would cost a person their persona."""
DRIVES = ("yaw", "pitch", "roll", "x", "y", "scale", "gap", "brows", "lean", "twist", "sway", "rise", "shrug")
"""What the maps are linear in: head, lips and brows, then shoulders."""
UNIT = np.array([10.0, 10.0, 10.0, 0.1, 0.1, 0.1, 0.5, 0.1, 5.0, 5.0, 0.1, 0.1, 0.1], np.float32)
"""The motion that counts as 1: degrees, face widths, log of the scale, ocular distances, degrees, shoulder widths."""
HEAD_DRIVES = 8
"""So many of DRIVES are the head's; the others are the shoulders'."""
NODES = 19
"""Of the grid, each way."""
REACH = 0.14
"""Shares of the picture's width and height that the splines reach beyond it."""
STEP = (1.0 + 2.0 * REACH) / (NODES - 3)
"""From one node to the next, in shares of the picture's width and height."""


@dataclass(frozen=True, slots=True)
class PuppetAssets:
    """Learnt from a clip for one portrait. Grids [NODES, NODES] are rows and columns; the maps [., ., 2, K] are x and y in picture widths
    that the portrait's pixels near a node lie off from where the puppet alone would put them, for each unit of each drive."""

    plate: UInt8Array  # [H, W, 3] the portrait without its person
    rim: FloatArray  # [NODES, NODES, 2, 8] the head's drives
    torso: FloatArray  # [NODES, NODES, 2, 5] the shoulders' drives
    low: FloatArray  # [13] the least of each drive that the maps were learnt from, UNITs
    high: FloatArray  # [13] and the most: what lies beyond moves nothing further
    look: npt.NDArray[np.float16] = field(default_factory=lambda: np.zeros((0, 1, 1, 3), np.float16))  # [look.TERMS or 0, h, w, 3] see `look`
    look_range: FloatArray = field(default_factory=lambda: np.zeros((4, VALUES), np.float32))

    @staticmethod
    def no_look() -> npt.NDArray[np.float16]:
        """Of assets without a look."""
        return np.zeros((0, 1, 1, 3), np.float16)

    def __post_init__(self) -> None:
        """Raises AvatarError for arrays of other shapes or with values that are no numbers."""
        count = len(DRIVES)
        shapes = {"rim": (NODES, NODES, 2, HEAD_DRIVES), "torso": (NODES, NODES, 2, count - HEAD_DRIVES), "low": (count,), "high": (count,)}
        sane = self.plate.ndim == 3 and self.plate.shape[2] == 3 and self.plate.dtype == np.uint8
        for name, shape in shapes.items():
            array = getattr(self, name)
            sane = sane and array.shape == shape and array.dtype == np.float32 and bool(np.isfinite(array).all())
        sane = sane and self.look.ndim == 4 and self.look.shape[0] in (0, TERMS) and self.look.shape[3] == 3 and self.look.dtype == np.float16
        sane = sane and self.look_range.shape == (4, VALUES) and bool(np.isfinite(self.look_range).all() and np.isfinite(self.look).all())
        if not sane:
            raise AvatarError("These are not the arrays of a puppet's assets; learn them from the clip again.")


def pack(assets: PuppetAssets) -> dict[str, npt.NDArray[Any]]:
    """Assets -> name -> array, which `np.savez` keeps without pickle."""
    return {**{f.name: getattr(assets, f.name) for f in fields(assets)}, "version": np.array(VERSION)}


def unpack(arrays: dict[str, npt.NDArray[Any]]) -> PuppetAssets:
    """The inverse of `pack`. Raises AvatarError where an array is missing, not as it should be or of another version."""
    if str(arrays.get("version", VERSION)) != VERSION:
        raise AvatarError("These assets of a puppet were made by another version of this program; learn them from the clip again.")
    try:
        return PuppetAssets(**{f.name: np.asarray(arrays[f.name]) for f in fields(PuppetAssets)})
    except KeyError as error:
        raise AvatarError("These are not the arrays of a puppet's assets; learn them from the clip again.") from error


def drives(motion: Motion) -> FloatArray:
    """[13] DRIVES of a motion, in UNITs."""
    head, body = motion.head, motion.body
    found: FloatArray = (
        np.array([*head[:6], motion.mouth[0], (motion.brows[0] + motion.brows[1]) / 2, *body[:4], (body[4] + body[5]) / 2], np.float32) / UNIT
    )
    return found


def splines(points: FloatArray, size: tuple[int, int]) -> FloatArray:
    """[N, NODES²] how much each node counts at points [N, 2] px of a picture of `size` (H, W); every row sums to 1."""
    last = NODES - 3 - 1e-4  # of the places between nodes that a spline is whole at
    rows = []
    for length, values in ((size[1], points[:, 0]), (size[0], points[:, 1])):
        at = np.clip((values / length + REACH) / STEP, 0.0, last)[:, None] + 1.0 - np.arange(NODES)
        away = np.abs(at)
        near = (4.0 - 6.0 * away**2 + 3.0 * away**3) / 6.0
        rows.append(np.where(away < 1.0, near, np.maximum(2.0 - away, 0.0) ** 3 / 6.0))
    across, down = rows
    weights: FloatArray = (down[:, :, None] * across[:, None, :]).reshape(len(points), NODES * NODES).astype(np.float32)
    return weights


def spread(assets: PuppetAssets, points: FloatArray, size: tuple[int, int]) -> FloatArray:
    """[2, N, 13] px that vertices at points [N, 2] px of the portrait at `size` (H, W) move for each drive."""
    maps = np.concatenate([assets.rim, assets.torso], 3).reshape(NODES * NODES, -1)
    moved = (splines(points, size) @ maps).reshape(len(points), 2, len(DRIVES)) * np.float32(size[1])
    by_axis: FloatArray = np.ascontiguousarray(moved.transpose(1, 0, 2), np.float32)
    return by_axis


__all__ = ["DRIVES", "HEAD_DRIVES", "NODES", "PuppetAssets", "drives", "pack", "splines", "spread", "unpack"]
