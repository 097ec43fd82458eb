"""A photo -> the portrait that is driven: cut around head and shoulders, and lit gently where its light is bad. Nothing else of it changes."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from engine.drivers.matte import person_matte
from engine.drivers.outlines import OVAL
from engine.drivers.portrait import LEFT_CHEEK, NOSE, RIGHT_CHEEK, Found
from engine.types import FloatArray, UInt8Array

AROUND = 6.0
"""Sides of what is kept around the face, in its own widths: head, shoulders and some of the room, from which the engine makes its frame."""
FACE_AT = 0.42
"""Where the middle of the face sits in that, from the top."""
WORTH_CUTTING = 1.25
"""A picture no larger than this many times what is kept stays whole."""
LONGEST = 2048
"""px of the portrait."""
DARK, BRIGHT = 85.0, 200.0
"""Median grey level of the face below and above which the picture is brought half way (in the exponent) to these."""
GAMMA = (0.6, 1.5)
"""Of that tone curve: no further, since noise and burnt skin would show."""
ONE_SIDED = 1.6
"""Ratio of the brighter to the darker half of the face from which light is evened."""
EVENED, MODELLING = 0.5, 1.3
"""Share, in logarithms, that is taken away of what is above MODELLING, the ratio that a portrait's light may well have."""
MOST = 1.6
"""Largest factor of brightness that the darker half gets."""
SOFT = 0.35
"""Standard deviation, in face widths, of the gain: no edge of it can be seen."""
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """The portrait, and what was done to the photo, each a clause in the past tense."""

    rgb: UInt8Array  # [H, W, 3]
    done: tuple[str, ...]
    box: tuple[int, int, int, int]  # x0, y0, x1, y1 of what was kept, px of the photo


def finish(rgb: UInt8Array, face: Found, *, relight: bool = True, cut: bool = True) -> Finished:
    """A photo [H, W, 3] and its face -> the portrait. `cut`: false for generators that show the whole figure."""
    done = []
    box = 0, 0, rgb.shape[1], rgb.shape[0]
    if cut:
        x0, y0, x1, y1 = box = _around(rgb, face)
        if (x1 - x0, y1 - y0) != (rgb.shape[1], rgb.shape[0]):
            rgb = np.ascontiguousarray(rgb[y0:y1, x0:x1])
            face = Found.of(face.points - np.array([x0, y0], np.float32))
            done.append(f"cropped to head and shoulders ({x1 - x0} x {y1 - y0} pixels)")
    if (scale := LONGEST / max(rgb.shape[:2])) < 1.0:
        size = (round(rgb.shape[1] * scale), round(rgb.shape[0] * scale))
        rgb = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)
        face = Found.of(face.points * scale)
        done.append(f"reduced to {size[0]} x {size[1]} pixels")
    if relight:
        rgb, lit = relit(rgb, face)
        done += lit
    return Finished(rgb, tuple(done), box)


def _around(rgb: UInt8Array, face: Found) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of what is kept; the whole picture where that is hardly larger."""
    height, width = rgb.shape[:2]
    side = AROUND * max(face.width, face.height / 1.3)
    spans = []
    for length, middle, at in ((width, face.center[0], 0.5), (height, face.center[1], FACE_AT)):
        if length <= WORTH_CUTTING * side:
            spans.append((0, length))
            continue
        start = round(min(max(middle - at * side, 0.0), length - side))
        spans.append((start, start + round(side)))
    return spans[0][0], spans[1][0], spans[0][1], spans[1][1]


def relit(rgb: UInt8Array, face: Found) -> tuple[UInt8Array, list[str]]:
    """A picture [H, W, 3] and its face -> (the picture, what was done to its light). The same array where nothing had to be."""
    done = []
    left, right = _halves(rgb, face)
    if max(left, right) > ONE_SIDED * max(min(left, right), 1.0):
        rgb = _evened(rgb, face, left, right)
        done.append(f"lit more evenly (one half of the face was {max(left, right) / max(min(left, right), 1.0):.1f} times as bright as the other)")
    level = _level(rgb, face)
    aim = DARK if level < DARK else BRIGHT if level > BRIGHT else level
    if aim != level:
        exponent = float(np.log(aim / 255.0) / np.log(np.clip(level, 2.0, 253.0) / 255.0))
        gamma = float(np.clip(np.sqrt(exponent), *GAMMA))
        table = np.asarray(255.0 * (np.arange(256) / 255.0) ** gamma + 0.5, np.uint8)
        rgb = np.asarray(cv2.LUT(rgb, table), np.uint8)
        done.append("made brighter" if aim > level else "made darker")
    return rgb, done


def _oval(rgb: UInt8Array, face: Found) -> tuple[UInt8Array, FloatArray]:
    """(mask [H, W] of the face from forehead to chin, grey levels [H, W])."""
    mask = np.zeros(rgb.shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.round(face.points[list(OVAL)]).astype(np.int32)], 255)
    return mask, np.asarray(rgb.astype(np.float32) @ LUMA, np.float32)


def _level(rgb: UInt8Array, face: Found) -> float:
    """Median grey level of the face."""
    mask, grey = _oval(rgb, face)
    return float(np.median(grey[mask > 0])) if mask.any() else 128.0


def _halves(rgb: UInt8Array, face: Found) -> tuple[float, float]:
    """Median grey levels of the face's left and right half, split along the line from the forehead to the chin."""
    mask, grey = _oval(rgb, face)
    side = _side(rgb.shape[:2], face)
    left, right = grey[(mask > 0) & (side < 0)], grey[(mask > 0) & (side >= 0)]
    if left.size == 0 or right.size == 0:
        return 128.0, 128.0
    return float(np.median(left)), float(np.median(right))


def _side(shape: tuple[int, ...], face: Found) -> FloatArray:
    """[H, W] distance from the middle of the face, in half face widths, > 0 to the right of it."""
    across = face.points[RIGHT_CHEEK] - face.points[LEFT_CHEEK]
    half = max(float(np.hypot(*across)) / 2, 1.0)
    along = across / (2 * half)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    return np.asarray(((x - face.points[NOSE, 0]) * along[0] + (y - face.points[NOSE, 1]) * along[1]) / half, np.float32)


def _evened(rgb: UInt8Array, face: Found, left: float, right: float) -> UInt8Array:
    """The darker half of the person brighter, more so the further from the middle, and the room as it was."""
    over = max(left, right) / max(min(left, right), 1.0) / MODELLING
    gain = min(float(over**EVENED), MOST)
    side = _side(rgb.shape[:2], face) * (1.0 if right < left else -1.0)
    matte = person_matte(rgb).astype(np.float32) / 255.0
    share = cv2.GaussianBlur(np.clip(2.0 * side, 0.0, 1.0), (0, 0), SOFT * face.width / 2) * matte
    # In light, not in grey levels: what is doubled there is what a lamp twice as bright would do.
    table = (np.arange(256) / 255.0) ** 2.2
    lit = np.asarray(table, np.float32)[rgb] * (gain**2.2) ** share[..., None]
    return np.asarray(255.0 * np.clip(lit, 0.0, 1.0) ** (1 / 2.2) + 0.5, np.uint8)


__all__ = ["Finished", "finish", "relit"]
