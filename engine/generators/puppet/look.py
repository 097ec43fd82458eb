"""How a person's looks change as they move: shades, teeth, lids, glasses. Learnt from a clip (`exporters.data.look`), it is linear
in the motion and lies on the portrait's own pixels, so that it moves with them and costs a matrix product a frame."""

from __future__ import annotations

import cv2
import numpy as np

from engine.generators.puppet.raster import OUTSIDE, kernel
from engine.types import FloatArray, Motion, UInt8Array

VALUES = 22
"""Of a motion: head 6, eyes 2, gaze 2, brows 2, mouth 4, body 6."""
GAP, WIDTH, ROUND, YAW, PITCH = 12, 13, 14, 0, 1
PRODUCTS = ((6, 6), (7, 7), (GAP, GAP), (GAP, WIDTH), (GAP, ROUND), (YAW, YAW), (PITCH, PITCH), (YAW, GAP), (YAW, PITCH))
"""Pairs of values that change the looks together."""
TERMS = 1 + VALUES + len(PRODUCTS)
MIDDLE, SCALE, LOW, HIGH = range(4)
"""Rows of the range: a value's mean and spread in the clip, and its least and most in spreads, beyond which nothing changes further."""

TOGETHER = 1.4
"""Times as far as in the clip's usual motion that all values together go: each may be known while their sum is not."""
RIM = 0.0027
"""Spread of the changes where the person ends, in picture widths: one pixel has them and the next has none, which would show as a staircase. Less
change where the matte is softer, in the matte's measure, would be smoother yet, but takes from the hair what the matte lacks of it: 0.14 dB."""


def values(motion: Motion) -> FloatArray:
    """[VALUES] of a motion; what is no number counts as 0."""
    found = np.concatenate([motion.head, motion.eyes, motion.gaze, motion.brows, motion.mouth, motion.body]).astype(np.float32)
    return np.where(np.isfinite(found), found, np.float32(0.0))


def terms(of: FloatArray, ranges: FloatArray) -> FloatArray:
    """values [VALUES], ranges [4, VALUES] -> [TERMS]."""
    z = np.clip((of - ranges[MIDDLE]) / ranges[SCALE], ranges[LOW], ranges[HIGH])
    farthest = TOGETHER * np.sqrt(np.count_nonzero(ranges[HIGH] > ranges[LOW]))
    z *= min(1.0, farthest / max(float(np.linalg.norm(z)), 1e-6))
    found: FloatArray = np.concatenate([[1.0], z, [z[a] * z[b] for a, b in PRODUCTS]]).astype(np.float32)
    return found


def change(look: FloatArray, ranges: FloatArray, motion: Motion) -> FloatArray:
    """[H, W, 3] grey levels that the portrait's pixels change by."""
    made: FloatArray = (terms(values(motion), ranges) @ look.reshape(len(look), -1)).reshape(look.shape[1:])
    return made


def origins(sampling: FloatArray, alpha: UInt8Array, pad: float) -> FloatArray:
    """[H, W, 2] px of the portrait that a frame's pixels come from, `raster.blend`'s arguments; OUTSIDE where the person is not.

    What stands behind never changes its looks: corrections of a hair's rim that were laid on it would stay there as ghosts of the head.
    """
    out = np.empty(sampling.shape, np.float32)
    _origins(sampling, alpha, pad, out)
    return out


@kernel
def _origins(sampling: FloatArray, alpha: UInt8Array, pad: float, out: FloatArray) -> None:
    for y in range(alpha.shape[0]):
        for x in range(alpha.shape[1]):
            if alpha[y, x] > 0 and sampling[y, x, 0] != np.float32(OUTSIDE):
                out[y, x, 0] = min(max(sampling[y, x, 0] - np.float32(pad), np.float32(0)), np.float32(alpha.shape[1] - 1))
                out[y, x, 1] = min(max(sampling[y, x, 1] - np.float32(pad), np.float32(0)), np.float32(alpha.shape[0] - 1))
            else:
                out[y, x, 0], out[y, x, 1] = np.float32(OUTSIDE), np.float32(OUTSIDE)


def apply(rgb: UInt8Array, alpha: UInt8Array, changed: FloatArray, at: FloatArray) -> None:
    """Change a frame [H, W, 3] in place by what the portrait's pixels change by [h, w, 3] of any size, fetched from `origins` [H, W, 2].

    alpha [H, W]: of the person, whose rim is softened, up to two RIMs into what stands behind.
    """
    if changed.shape != rgb.shape:
        changed = cv2.resize(changed, (rgb.shape[1], rgb.shape[0]), interpolation=cv2.INTER_LINEAR)
    moved = cv2.remap(changed, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    spread = RIM * rgb.shape[1]
    side = 2 * int(np.ceil(2 * spread)) + 1
    _add(rgb, alpha, moved, cv2.GaussianBlur(moved, (side, side), spread))


@kernel
def _add(rgb: UInt8Array, alpha: UInt8Array, more: FloatArray, soft: FloatArray) -> None:
    for y in range(rgb.shape[0]):
        for x in range(rgb.shape[1]):
            here = more if alpha[y, x] == 255 else soft
            for c in range(3):
                rgb[y, x, c] = np.uint8(min(max(np.float32(rgb[y, x, c]) + here[y, x, c] + np.float32(0.5), np.float32(0)), np.float32(255)))


def warm() -> None:
    """Run the compiled loops once on nothing."""
    rgb, alpha = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)
    apply(rgb, alpha, np.zeros((4, 4, 3), np.float32), origins(np.zeros((4, 4, 2), np.float32), alpha, 0.0))


__all__ = ["HIGH", "LOW", "MIDDLE", "SCALE", "TERMS", "VALUES", "apply", "change", "origins", "terms", "values", "warm"]
