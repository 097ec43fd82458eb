"""A clip of a person before a still camera -> what it teaches their puppet before any network: the place behind them, and where their
shoulders, hair and outline really go (`engine.generators.puppet.assets`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from engine.drivers.matte import person_matte
from engine.generators.puppet import plate as plates
from engine.generators.puppet.assets import DRIVES, HEAD_DRIVES, NODES, PuppetAssets
from engine.generators.puppet.generator import Puppet
from engine.types import AvatarError, FloatArray, Motion, UInt8Array
from exporters.data.alignment import Actor, Observed, fit, observe
from exporters.data.regions import Likeness, likeness

FRAMES = 64
"""Of a clip that are looked at, evenly spread: more of the same pose teach nothing."""
FEWEST = 12
"""Frames without which nothing can be learnt."""
BLOCKS, APART = 4, 1
"""The frames are parted into so many blocks in time; whether a block is more like the person is seen with what the others teach, but for the
frames next to it."""
PERSON = 25
"""Matte from which a pixel may be the person's."""
AROUND = 0.006
"""Picture widths around the person that do not count as background: soft rims carry the person's colour."""
SEEN, SEEN_SHARE = 3, 0.03
"""Frames, and share of them, in which a pixel must be background for its median to be believed."""
STILL = 40.0
"""Grey levels between the quartiles of a pixel's background from which it is no still place."""
EXPOSURE = (0.7, 1.4)
"""How far one frame's exposure may be from the portrait's."""
LEEWAY = 0.5
"""dB that mouth and eyes may be less like in one block."""
STRIP = 32
"""Rows that medians are taken of at a time, which bounds the memory."""

Progress = Callable[[str, int, int], None]
"""(what is being done, how much of it is done, out of how much)."""


@dataclass(frozen=True, slots=True)
class Behind:
    """The place behind a person."""

    plate: UInt8Array  # [H, W, 3]
    seen: npt.NDArray[np.bool_]  # [H, W] where the clip showed it; elsewhere it is the portrait's background, or filled in from around


@dataclass(frozen=True, slots=True)
class Lesson:
    """N frames of one clip that may be learnt from, in order."""

    pictures: Sequence[UInt8Array]  # [H, W, 3] crops, of the portrait's size
    motions: Sequence[Motion | None]  # as they will come live
    faces: FloatArray  # [N, 478, 2] px
    plain: Callable[[int], UInt8Array]  # what the puppet makes of a frame without assets


def learn(portrait: UInt8Array, lesson: Lesson, *, progress: Progress | None = None) -> PuppetAssets | None:
    """What a clip teaches the puppet of a portrait [H, W, 3], which is one of its frames; None where that makes it no more like the person.

    About 0.2 s of CPU for each of up to FRAMES frames at 256 x 256 px. It is used where it makes every part of the clip more like the person
    than `lesson.plain`, and mouth and eyes no less, though it was learnt from the other parts: all of it, else the place behind alone.
    Raises AvatarError for pictures of another size and for too few frames with a face.
    """
    tell = progress or (lambda what, done, total: None)
    size = (portrait.shape[0], portrait.shape[1])
    if any(picture.shape != portrait.shape for picture in lesson.pictures):
        raise AvatarError(f"The clip's crops are not all of the portrait's size, {size[1]} x {size[0]} px; crop them alike.")
    known = [(k, motion) for k, motion in enumerate(lesson.motions) if motion is not None]
    if len(known) < FEWEST:
        raise AvatarError(f"Only {len(known)} frames of the clip show the face, and {FEWEST} are needed; record it again, well lit.")
    picks = [known[k] for k in np.unique(np.linspace(0, len(known) - 1, min(len(known), FRAMES)).astype(int))]
    pictures, mattes, moved = [lesson.pictures[k] for k, _ in picks], list[UInt8Array](), [motion for _, motion in picks]
    for number, picture in enumerate(pictures, 1):
        mattes.append(person_matte(picture))
        tell("finding the person", number, len(picks))
    plate = background(portrait, pictures, mattes).plate
    puppet = Puppet(size)
    actor = Actor(puppet, puppet.prepare(portrait, unmoved(plate)))
    seen = observe(actor, pictures, mattes, moved)
    chosen = replace(lesson, pictures=pictures, motions=moved, faces=lesson.faces[[k for k, _ in picks]], plain=lambda i: lesson.plain(picks[i][0]))
    tell("learning the outline", 1, 3)
    helps = _helps(actor, chosen, seen, plate)
    tell("learning the outline", 2, 3)
    if helps is not True:
        return unmoved(plate) if helps is None else None
    maps = _fitted(actor, seen, plate)
    maps = _fitted(actor, observe(actor.taught(maps), pictures, mattes, moved), plate)  # what the first left
    tell("learning the outline", 3, 3)
    return maps


def _fitted(actor: Actor, seen: Observed, plate: UInt8Array) -> PuppetAssets:
    """Maps that explain best what was seen."""
    features, size = actor.identity.features, actor.puppet.spec.size
    flat = features.uv - np.float32((features.texture.shape[1] - size[1]) / 2)
    return fit(seen, flat, size, plate)


def _helps(actor: Actor, lesson: Lesson, seen: Observed, plate: UInt8Array) -> bool | None:
    """Whether maps make the blocks more like the person than the puppet alone; None: only the place behind does; False: not even that."""
    order = np.arange(len(lesson.pictures))
    plain, still, moved = list[Likeness](), list[Likeness](), list[Likeness]()
    for block in np.array_split(order, BLOCKS):
        others = order[(order < block[0] - APART) | (order > block[-1] + APART)]
        taught = actor.taught(_fitted(actor, seen.of(others), plate))
        for found, way in ((plain, lesson.plain), (still, _frames(actor, lesson)), (moved, _frames(taught, lesson))):
            found.append(likeness(((way(k), lesson.pictures[k]) for k in block), lesson.faces[block]))
    if _better(moved, plain) and all(a.crop_db > b.crop_db for a, b in zip(moved, still, strict=True)):
        return True
    return None if _better(still, plain) else False


def _frames(actor: Actor, lesson: Lesson) -> Callable[[int], UInt8Array]:
    """Number of a lesson's frame -> what an actor makes of it."""

    def frame(k: int) -> UInt8Array:
        motion = lesson.motions[k]
        assert motion is not None
        return actor.frame(motion)[0]

    return frame


def _better(made: Sequence[Likeness], plain: Sequence[Likeness]) -> bool:
    """Every block as a whole, and mouth and eyes on the mean of the blocks: one alone may show what the others do not, a wide open mouth."""
    crops = [a.crop_db - b.crop_db for a, b in zip(made, plain, strict=True)]
    features = [a.features_db - b.features_db for a, b in zip(made, plain, strict=True)]
    return min(crops) > 0 and min(features) >= -LEEWAY and float(np.mean(features)) >= 0


def unmoved(plate: UInt8Array) -> PuppetAssets:
    """Assets that know the place behind the person and nothing else."""
    count = len(DRIVES)
    rim = np.zeros((NODES, NODES, 2, HEAD_DRIVES), np.float32)
    none = np.zeros(count, np.float32)
    return PuppetAssets(plate, rim, np.zeros((NODES, NODES, 2, count - HEAD_DRIVES), np.float32), none, none)


# -- what stands behind -------------------------------------------------------------------------------------------------


def background(portrait: UInt8Array, pictures: Sequence[UInt8Array], mattes: Sequence[UInt8Array]) -> Behind:
    """The median over pictures [H, W, 3] of what their mattes [H, W] say is background, in the portrait's exposure."""
    height, width = portrait.shape[:2]
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * max(1, round(AROUND * width)) + 1,) * 2)
    free = np.stack([cv2.dilate(matte, kernel) < PERSON for matte in mattes])
    matte = person_matte(portrait)
    gains = _gains(portrait, cv2.dilate(matte, kernel) < PERSON, pictures, free)
    count = free.sum(0)
    median, spread = np.zeros(portrait.shape, np.float32), np.zeros((height, width), np.float32)
    for top in range(0, height, STRIP):
        rows = np.s_[top : top + STRIP]
        stack = np.stack([picture[rows] * gain for picture, gain in zip(pictures, gains, strict=True)])
        median[rows], spread[rows] = _quartiles(stack, free[:, rows])
    seen = (count >= max(SEEN, SEEN_SHARE * len(pictures))) & (spread <= STILL)
    mine = plates.ring(matte.astype(np.float32) / 255.0, plates.CLEAR * width, plates.CLEAR * width + 1.0) > 0
    shown = np.where(seen[..., None], np.clip(median + 0.5, 0, 255), portrait).astype(np.uint8)
    hole = (mine & ~seen).astype(np.float32)
    return Behind(plates.background(shown, hole, clear=1.0) if hole.any() else shown, seen)


def _gains(portrait: UInt8Array, plain: npt.NDArray[np.bool_], pictures: Sequence[UInt8Array], free: npt.NDArray[np.bool_]) -> list[FloatArray]:
    """[3] factors for every picture that bring its background to the portrait's exposure."""
    gains = []
    for picture, mask in zip(pictures, free, strict=True):
        both = mask & plain
        if not both.any():
            gains.append(np.ones(3, np.float32))
            continue
        here, there = picture[both].astype(np.float32), portrait[both].astype(np.float32)
        gains.append(np.clip((here * there).sum(0) / np.maximum((here * here).sum(0), 1.0), *EXPOSURE).astype(np.float32))
    return gains


def _quartiles(stack: FloatArray, free: npt.NDArray[np.bool_]) -> tuple[FloatArray, FloatArray]:
    """[T, h, W, 3] and where they count [T, h, W] -> (their median [h, W, 3], the widest distance of their quartiles [h, W]); 0 where none."""
    last = len(stack) - 1
    stack = np.sort(np.where(free[..., None], stack, np.inf).astype(np.float32), axis=0)
    count = free.sum(0)

    def ranked(rank: npt.NDArray[np.int64]) -> FloatArray:
        index = np.clip(rank, 0, last)[None, ..., None]
        found: FloatArray = np.take_along_axis(stack, np.broadcast_to(index, (1, *stack.shape[1:])), 0)[0]
        return np.where(np.isfinite(found), found, 0.0).astype(np.float32)

    median = (ranked((count - 1) // 2) + ranked(count // 2)) / 2
    spread = (ranked((3 * count - 1) // 4) - ranked(count // 4)).max(2)
    return np.where(count[..., None] > 0, median, 0.0).astype(np.float32), np.maximum(spread, 0.0).astype(np.float32)


__all__ = ["Behind", "Lesson", "background", "learn", "unmoved"]
