"""The parts of a picture that faces are judged by, and how like two pictures are there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.drivers.outlines import EYES, LIPS, OVAL
from engine.types import FloatArray, UInt8Array

EYE_CORNERS = (33, 263)
GROWN = 0.18
"""Inter-ocular distances that mouth and eye regions reach beyond their outlines: where the puppet's errors spread to."""


def regions(face: FloatArray, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Face points [478, 2] px -> [2, H, W] 0..1: mouth with eyes, and the whole face; all 0 where the face is unknown (NaN)."""
    import cv2

    masks = np.zeros((2, *size), np.uint8)
    if not np.isfinite(face).all():
        return masks.astype(np.float32)
    grown = max(1, round(GROWN * float(np.linalg.norm(face[EYE_CORNERS[0]] - face[EYE_CORNERS[1]]))))
    for outline in (LIPS, *EYES):
        cv2.fillConvexPoly(masks[0], cv2.convexHull(np.rint(face[list(outline)]).astype(np.int32)), (255,))
    masks[0] = cv2.dilate(masks[0], cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * grown + 1, 2 * grown + 1)))
    cv2.fillConvexPoly(masks[1], cv2.convexHull(np.rint(face[list(OVAL)]).astype(np.int32)), (255,))
    return np.asarray(np.stack([cv2.GaussianBlur(mask, (0, 0), grown / 3) for mask in masks]) / 255, np.float32)


def mouth(face: FloatArray, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Face points [478, 2] px -> [H, W] 0..1: the lips and what they may cover; all 0 where the face is unknown (NaN)."""
    import cv2

    mask = np.zeros(size, np.uint8)
    if not np.isfinite(face).all():
        return mask.astype(np.float32)
    grown = max(1, round(GROWN * float(np.linalg.norm(face[EYE_CORNERS[0]] - face[EYE_CORNERS[1]]))))
    cv2.fillConvexPoly(mask, cv2.convexHull(np.rint(face[list(LIPS)]).astype(np.int32)), (255,))
    mask = cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * grown + 1, 2 * grown + 1)))
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), grown / 3) / 255, np.float32)


def psnr(made: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8], where: npt.NDArray[np.float32] | None = None) -> float:
    """dB between pictures [.., H, W, 3] 0..255, over the pixels that `where` [.., H, W] weighs."""
    square = ((made.astype(np.float32) - truth.astype(np.float32)) ** 2).mean(-1)
    error = square.mean() if where is None else (square * where).sum() / max(float(where.sum()), 1e-6)
    return float(10 * np.log10(255.0**2 / max(float(error), 1e-6)))


@dataclass(frozen=True, slots=True)
class Likeness:
    """How like the truth pictures are: peak signal to noise ratios of all of them together, dB."""

    crop_db: float  # the whole picture
    features_db: float  # mouth and eyes


def likeness(pairs: Iterable[tuple[UInt8Array, UInt8Array]], faces: FloatArray) -> Likeness:
    """Pairs (made, truth) of pictures [H, W, 3], and the landmarks [N, 478, 2] px in the truth; pairs are looked at one by one."""
    crop, features = np.zeros(2), np.zeros(2)  # sums of squares, and of what counts
    for (made, truth), face in zip(pairs, faces, strict=True):
        square = ((made.astype(np.float32) - truth) ** 2).mean(2)
        inside = regions(face, (truth.shape[0], truth.shape[1]))[0]
        crop += float(square.sum(dtype=np.float64)), square.size
        features += float((square * inside).sum(dtype=np.float64)), float(inside.sum(dtype=np.float64))
    whole, parts = (float(10 * np.log10(255.0**2 / max(a / max(b, 1e-6), 1e-6))) for a, b in (crop, features))
    return Likeness(whole, parts)


__all__ = ["Likeness", "likeness", "mouth", "psnr", "regions"]
