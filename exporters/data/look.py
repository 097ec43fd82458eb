"""A clip of a person -> how their looks change as they move (`engine.generators.puppet.look`): ridge regression of what the puppet's frames lack,
laid back onto the portrait, on the motion. It is used where it makes parts of the clip it was not learnt from more like the person.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from engine.generators.puppet.assets import PuppetAssets
from engine.generators.puppet.look import HIGH, LOW, MIDDLE, SCALE, TERMS, VALUES, apply, terms, values
from engine.generators.puppet.raster import OUTSIDE
from engine.types import FloatArray, Motion, UInt8Array
from exporters.data.regions import Likeness, likeness

FRAMES = 500
"""Of a clip that are learnt from, evenly spread."""
BLOCKS, APART = 4, 12
"""The clip's parts in time; each is judged by what the others teach, but for the frames next to it."""
JUDGED = 12
"""Frames of each part that are judged."""
STRENGTHS = (0.1, 0.4, 1.2, 3.0)
"""Of the ridge, per frame and term of unit spread: the best of them is taken."""
CONSTANT = 0.02
"""Of that for the constant term, which is the same in every frame and needs little caution."""
SURE = 0.05
"""Pixels of a frame that must fall near a pixel of the portrait before it learns from that frame."""
NEAR = 0.7
"""px: how far a pixel of a frame spreads over the portrait's."""
REACH = 2.5
"""Spreads from the mean, and no further than the clip went, up to which a motion changes the looks."""
LEEWAY = 0.3
"""dB that mouth and eyes may be less like in one part."""

Apart = list[tuple[int, npt.NDArray[np.float16]]]
"""Number of a part's first frame, and its look [TERMS, H, W, 3]."""
Made = tuple[UInt8Array, UInt8Array, FloatArray]
"""What the puppet makes of a frame [H, W, 3], its alpha [H, W], and where its pixels come from [H, W, 2], `look.origins`."""


@dataclass(frozen=True, slots=True)
class Study:
    """N frames of a clip that may be learnt from, in order."""

    motions: Sequence[Motion]
    pictures: Sequence[UInt8Array]  # [H, W, 3]
    faces: FloatArray  # [N, 478, 2] px
    made: Callable[[int], Made]  # of a frame by its number; the caller's


@dataclass(frozen=True, slots=True)
class Learnt:
    """What a clip taught."""

    assets: PuppetAssets
    apart: Apart
    """Of every part of the clip, in order, with the look as the others teach it. A network that learns over the puppet must see the part as
    the puppet shows what it has not learnt from; of what it has, it makes smaller errors than it ever does live. Empty where no look helps."""


@dataclass(slots=True)
class _Sums:
    """Normal equations of one part."""

    squares: npt.NDArray[np.float64]  # [TERMS, TERMS]
    products: FloatArray  # [TERMS, H · W · 3]
    frames: int = 0


def learn(assets: PuppetAssets, study: Study, *, progress: Callable[[str, int, int], None] | None = None) -> Learnt:
    """The same assets with a look, or without one where none helps. About 0.05 s of CPU a frame at 256 x 256 px."""
    tell = progress or (lambda what, done, total: None)
    picks = np.unique(np.linspace(0, len(study.pictures) - 1, min(FRAMES, len(study.pictures))).astype(int))
    table = np.stack([values(study.motions[k]) for k in picks])
    ranges = _ranges(table)
    each = np.stack([terms(row, ranges) for row in table])
    parts = np.array_split(np.arange(len(picks)), BLOCKS)
    sums, kept, edges = [], list[list[tuple[int, Made]]](), list[list[tuple[int, FloatArray]]]()
    done = 0
    for number, part in enumerate(parts):
        whole, judged, edge = _empty(study.pictures[0].shape), list[tuple[int, Made]](), list[tuple[int, FloatArray]]()
        shown = set(part[np.unique(np.linspace(0, len(part) - 1, JUDGED).astype(int))].tolist())
        for k in part:
            made = study.made(int(picks[k]))
            lacking = _laid(study.pictures[picks[k]].astype(np.float32) - made[0], made[2])
            near = (number > 0 and k - part[0] < APART) or (number < BLOCKS - 1 and part[-1] - k < APART)
            if near:
                edge.append((int(k), lacking.astype(np.float16)))
            _add(whole, each[k], lacking)
            if int(k) in shown:
                judged.append((int(k), made))
            done += 1
            tell("learning the looks", done, len(picks))
        sums.append(whole)
        kept.append(judged)
        edges.append(edge)
    without = [_without(number, sums, edges, each, parts) for number in range(BLOCKS)]
    strength = _best(without, kept, each, study, picks)
    if strength is None:
        return Learnt(assets, [])

    def look(of: Sequence[_Sums]) -> npt.NDArray[np.float16]:
        return np.clip(_solved(of, strength).reshape(TERMS, *study.pictures[0].shape), -255, 255).astype(np.float16)

    starts = [0, *(int(picks[part[0]]) for part in parts[1:])]
    apart = [(start, look(others)) for start, others in zip(starts, without, strict=True)]
    return Learnt(replace(assets, look=look(sums), look_range=ranges), apart)


def _ranges(table: FloatArray) -> FloatArray:
    """[N, VALUES] -> [4, VALUES]; what does not move, or never was known, says nothing."""
    middle, spread = table.mean(0), table.std(0)
    moves = spread > 1e-4
    scale = np.where(moves, spread, 1.0)
    z = (table - middle) / scale
    low, high = np.maximum(z.min(0), -REACH), np.minimum(z.max(0), REACH)
    out = np.zeros((4, VALUES), np.float32)
    out[MIDDLE], out[SCALE], out[LOW], out[HIGH] = middle, scale, np.where(moves, low, 0.0), np.where(moves, high, 0.0)
    return out


def _empty(shape: tuple[int, ...]) -> _Sums:
    return _Sums(np.zeros((TERMS, TERMS)), np.zeros((TERMS, int(np.prod(shape))), np.float32))


def _add(sums: _Sums, term: FloatArray, lacking: FloatArray, sign: float = 1.0) -> None:
    sums.squares += sign * np.outer(term, term)
    sums.products += np.outer(np.float32(sign) * term, lacking.reshape(-1))
    sums.frames += int(sign)


def _laid(lacking: FloatArray, at: FloatArray) -> FloatArray:
    """What the person in a frame [H, W, 3] lacks, on the portrait's own pixels; 0 where it shows none of them."""
    height, width = lacking.shape[:2]
    person = at[..., 0] != np.float32(OUTSIDE)
    lacking, at = lacking[person], at[person]
    x, y = (np.clip(np.rint(at[:, k]), 0, top - 1).astype(np.int64) for k, top in enumerate((width, height)))
    index = y * width + x
    count = np.bincount(index, minlength=height * width).reshape(height, width).astype(np.float32)
    total = np.stack([np.bincount(index, lacking[:, c], height * width) for c in range(3)], 1).reshape(height, width, 3).astype(np.float32)
    count, total = cv2.GaussianBlur(count, (0, 0), NEAR), cv2.GaussianBlur(total, (0, 0), NEAR)
    laid: FloatArray = np.where(count[..., None] > SURE, total / np.maximum(count, SURE)[..., None], 0.0).astype(np.float32)
    return laid


def _solved(sums: Sequence[_Sums], strength: float) -> FloatArray:
    """[TERMS, H · W · 3]"""
    caution = np.eye(TERMS) * strength * sum(one.frames for one in sums)
    caution[0, 0] *= CONSTANT
    squares = sum((one.squares for one in sums), np.zeros((TERMS, TERMS))) + caution
    inverse = np.linalg.inv(squares).astype(np.float32)
    found: FloatArray = inverse @ sum((one.products for one in sums[1:]), sums[0].products)
    return found


def _without(
    number: int, sums: list[_Sums], edges: list[list[tuple[int, FloatArray]]], each: FloatArray, parts: list[npt.NDArray[np.intp]]
) -> list[_Sums]:
    """All sums but those of a part and of the frames next to it."""
    others = [one for k, one in enumerate(sums) if k != number]
    beside = _Sums(np.zeros_like(others[0].squares), np.zeros_like(others[0].products))
    for other in (number - 1, number + 1):
        for k, lacking in edges[other] if 0 <= other < len(parts) else ():
            if parts[number][0] - APART <= k <= parts[number][-1] + APART:
                _add(beside, each[k], lacking.astype(np.float32), -1.0)
    return [*others, beside]


def _best(
    without: list[list[_Sums]],
    kept: list[list[tuple[int, Made]]],
    each: FloatArray,
    study: Study,
    picks: npt.NDArray[np.intp],
) -> float | None:
    """The strength that makes parts most like the person as learnt from the others; None where none makes them more so."""
    before, after = list[Likeness](), {strength: list[Likeness]() for strength in STRENGTHS}
    for others, judged in zip(without, kept, strict=True):
        at = np.array([picks[k] for k, _ in judged])
        before.append(likeness(((made[0], study.pictures[picks[k]]) for k, made in judged), study.faces[at]))
        for strength, found in after.items():
            look = _solved(others, strength).reshape(TERMS, *study.pictures[0].shape)
            shown = (_shown(look, each[k], made) for k, made in judged)
            found.append(likeness(((one, study.pictures[picks[k]]) for one, (k, _) in zip(shown, judged, strict=True)), study.faces[at]))
    gains = {strength: _gain(found, before) for strength, found in after.items()}
    best = max(gains, key=lambda strength: gains[strength])
    return best if gains[best] > 0 else None


def _shown(look: FloatArray, term: FloatArray, made: Made) -> UInt8Array:
    rgb, alpha, at = made
    frame = rgb.copy()
    apply(frame, alpha, (term @ look.reshape(TERMS, -1)).reshape(look.shape[1:]), at)
    return frame


def _gain(after: Sequence[Likeness], before: Sequence[Likeness]) -> float:
    """dB on the mean of the parts, mouth and eyes and whole picture together; none where a part's mouth and eyes are much less like."""
    features = [a.features_db - b.features_db for a, b in zip(after, before, strict=True)]
    crops = [a.crop_db - b.crop_db for a, b in zip(after, before, strict=True)]
    if min(features) < -LEEWAY or np.mean(features) <= 0 or np.mean(crops) <= 0:
        return -np.inf
    return float(np.mean(features) + np.mean(crops))


__all__ = ["Apart", "Learnt", "Made", "Study", "learn"]
