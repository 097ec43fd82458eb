"""How far weights that were trained on one person can be believed: where a motion is unlike all that they have seen, the puppet's own frame is
shown instead, inside a feathered mask. A network that has never seen a mouth wide open makes a worse one than the puppet.

The distance of a motion is that to the nearest one of the training, for head, eyes and mouth apart; what counts as far follows from how
densely the training covers its own range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from engine.conditions.landmarks import EYE_CORNERS, LIP_CORNERS, LOWER_LID, LOWER_LIP, UPPER_LID, UPPER_LIP
from engine.types import AvatarError, FloatArray, Motion, UInt8Array, VideoFrame

SCALES: dict[str, tuple[slice, tuple[float, ...]]] = {
    "head": (slice(0, 6), (6.0, 6.0, 6.0, 0.08, 0.08, 0.08)),
    "eyes": (slice(6, 10), (0.25, 0.25, 0.12, 0.12)),
    "mouth": (slice(12, 16), (0.06, 0.08, 0.3, 0.3)),
}
"""Part -> its columns of a motion's row (`row`), and how much of each is one just noticeable difference or two: degrees, face widths, openings."""
PARTS = tuple(SCALES)
USUAL, FARTHEST = 0.95, 3.0
"""Share of the training's own motions that are near by definition, and how many times as far a motion is not believed at all."""
APART = 12
"""Frames around a motion that say nothing about how densely its range is covered: they are nearly the same."""
LEAST_NEAR = 0.5
"""Of SCALES: nearer than this two motions look alike."""
KEPT = 600
"""Motions that are kept of a training."""
GROWN = 0.25
"""Inter-ocular distances that the masks of mouth and eyes reach beyond their outlines, half of it a soft edge."""
LEAST = 1 / 255

_MOUTH = (LIP_CORNERS[0][0], *UPPER_LIP[0], LIP_CORNERS[0][1], *LOWER_LIP[0])
_EYES = tuple((*EYE_CORNERS[k], *UPPER_LID[k], *LOWER_LID[k]) for k in range(2))


def row(motion: Motion) -> FloatArray:
    """[16]: head 6, eyes 2, gaze 2, brows 2, mouth 4; what is no number counts as 0."""
    found = np.concatenate([motion.head, motion.eyes, motion.gaze, motion.brows, motion.mouth]).astype(np.float32)
    return np.where(np.isfinite(found), found, np.float32(0.0))


@dataclass(frozen=True, slots=True)
class Trust:
    """Of one training."""

    seen: FloatArray  # [n, 16] motions that it saw
    near: FloatArray  # [3] distances of PARTS, in SCALES, up to which a motion is believed, and
    far: FloatArray  # [3] from which it is not

    @classmethod
    def of(cls, motions: FloatArray) -> Trust:
        """Motions [N, 16] of the training in the order of time; rows with NaN are left out. Raises AvatarError where none is left."""
        whole = motions[np.isfinite(motions).all(1)].astype(np.float32)
        if not len(whole):
            raise AvatarError("No motion of the training is known; collect the data anew.")
        kept = whole[np.unique(np.linspace(0, len(whole) - 1, min(KEPT, len(whole))).astype(int))]
        stride = max(1, len(whole) // len(kept))
        near = np.full(len(PARTS), LEAST_NEAR, np.float32)
        for k, part in enumerate(PARTS):
            apart = _distances(part, kept, kept)
            order = np.arange(len(kept))
            apart[np.abs(order[:, None] - order) * stride < APART] = np.inf
            nearest = apart.min(1)
            if np.isfinite(nearest).any():
                near[k] = max(LEAST_NEAR, float(np.quantile(nearest[np.isfinite(nearest)], USUAL)))
        return cls(kept, near, np.float32(FARTHEST) * near)

    def confidence(self, motion: FloatArray) -> FloatArray:
        """[16] -> [3] 0..1 of PARTS."""
        nearest = np.array([_distances(part, motion[None], self.seen).min() for part in PARTS], np.float32)
        share = np.clip((self.far - nearest) / (self.far - self.near), 0.0, 1.0)
        smooth: FloatArray = (share * share * (3.0 - 2.0 * share)).astype(np.float32)
        return smooth

    def pack(self) -> dict[str, npt.NDArray[Any]]:
        """For a file."""
        return {"seen": self.seen, "near": self.near, "far": self.far}

    @classmethod
    def unpack(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Trust:
        """The inverse. Raises AvatarError for other arrays."""
        try:
            seen, near, far = (np.asarray(arrays[name], np.float32) for name in ("seen", "near", "far"))
        except KeyError as error:
            raise AvatarError(f"What the training saw cannot be read ({error} is missing); train the weights again.") from error
        if seen.ndim != 2 or seen.shape[1] != 16 or (near.shape, far.shape) != ((len(PARTS),),) * 2:
            raise AvatarError("What the training saw has an unknown shape; train the weights again.")
        return cls(seen, near, far)


def _distances(part: str, some: FloatArray, others: FloatArray) -> FloatArray:
    """[m, 16], [n, 16] -> [m, n]"""
    columns, scale = SCALES[part]
    a, b = some[:, columns] / np.array(scale, np.float32), others[:, columns] / np.array(scale, np.float32)
    found: FloatArray = np.sqrt(np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T, 0.0))
    return found


def blend(made: UInt8Array, puppet: UInt8Array, points: FloatArray, confidence: FloatArray) -> UInt8Array:
    """made and puppet [H, W, 3], the puppet's face mesh [478, 2] px, confidence [3] of PARTS -> [H, W, 3]; `made` itself where all is believed."""
    head, eyes, mouth = (float(value) for value in confidence)
    if min(head, eyes, mouth) >= 1.0 - LEAST:
        return made
    share = np.full(made.shape[:2], head, np.float32)
    ocular = float(np.linalg.norm(points[EYE_CORNERS[0][0]] - points[EYE_CORNERS[1][0]]))
    for outlines, believed in ((_EYES, eyes), ((_MOUTH,), mouth)):
        if believed < 1.0 - LEAST:
            share *= 1.0 - (1.0 - believed) * _mask(made.shape[:2], points, outlines, GROWN * ocular)
    weight = share[..., None]
    mixed: UInt8Array = np.rint(weight * made + (1.0 - weight) * puppet).astype(np.uint8)
    return mixed


def _mask(size: tuple[int, ...], points: FloatArray, outlines: tuple[tuple[int, ...], ...], grown: float) -> FloatArray:
    """[H, W] 0..1, soft at its edge."""
    mask = np.zeros(size, np.uint8)
    for outline in outlines:
        cv2.fillConvexPoly(mask, cv2.convexHull(np.rint(points[list(outline)]).astype(np.int32)), (255,))
    reach = max(1, round(grown))
    mask = cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1)))
    soft: FloatArray = cv2.GaussianBlur(mask, (0, 0), max(1.0, grown / 4)).astype(np.float32) / 255
    return soft


class Guiding(Protocol):
    """What the puppet tells of the last frame of a row beside the frame itself."""

    def guide(self, state: Any, row: int, frame: VideoFrame) -> UInt8Array:
        """[H, W, 3] where every pixel comes from, and the landmark map."""
        ...

    def points(self, state: Any, row: int) -> FloatArray:
        """[478, 2] px: the face mesh."""
        ...


@dataclass(frozen=True, slots=True)
class Ask:
    """One frame that the networks are asked for."""

    frame: VideoFrame  # what is shown where they have no answer: the puppet's, or the painted condition
    picture: UInt8Array  # [H, W, K] what they see
    points: FloatArray | None = None  # [478, 2] px of the puppet's face, and
    confidence: FloatArray | None = None  # [3] how far they can be believed (`trust`); both None where nobody knows

    def answered(self, made: UInt8Array) -> VideoFrame:
        """The picture they made, of the stream's own memory, as a frame of its own."""
        if self.points is not None and self.confidence is not None:
            made = blend(made, self.frame.rgb, self.points, self.confidence)
        return VideoFrame(made.copy(), self.frame.time, self.frame.id, self.frame.alpha)


__all__ = ["PARTS", "SCALES", "Ask", "Guiding", "Trust", "blend", "row"]
