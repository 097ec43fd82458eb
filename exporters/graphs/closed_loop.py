"""An exported step against PyTorch's over a long stream, each fed with what it made itself: does a small error stay small?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from engine.types import MEL_BANDS, MEL_ROWS, AvatarError, Runner, UInt8Array
from exporters.graphs import parity
from exporters.graphs.parity import Arrays, Limit

WINDOWS = 64
"""Steps of a check: four times the past that the largest preset sees."""
LOOSER = 10.0
"""Times the limit of one step that a stream may be off by: what it reads is off already."""
TWICE = 6.0
"""dB: an error twice as large, which a stream's pictures may have over those of one step."""
GROWTH = 3.0
"""The most that the error of the last quarter may be of that of the second, by when the window is full."""
SEED = 7
ELSEWHERE = 40
"""Frames by which the further channels of a condition are ahead."""
SWAY = 0.04
"""Of the picture's width: how far the condition moves to either side."""

Stream = Callable[[int], Arrays]
"""Window number, in order from 0 -> what that step made, its past included."""


@dataclass(frozen=True, slots=True)
class Drift:
    """Errors by window, the worst of all outputs."""

    rel_l2: tuple[float, ...]  # of outputs that are not bytes, where there are any
    psnr: tuple[float, ...]  # dB of the pictures of bytes; empty where there are none

    @property
    def growth(self) -> float:
        """Mean error of the last quarter over that of the second; 1 where there is no error."""
        quarter = max(1, len(self.rel_l2) // 4)
        early, late = float(np.mean(self.rel_l2[quarter : 2 * quarter])), float(np.mean(self.rel_l2[-quarter:]))
        return late / early if early > 0 else (1.0 if late == 0 else math.inf)

    def told(self) -> dict[str, Any]:
        """For a manifest."""
        told: dict[str, Any] = {"windows": len(self.rel_l2), "rel_l2": max(self.rel_l2), "last_rel_l2": self.rel_l2[-1], "growth": self.growth}
        if self.psnr:
            told["psnr"] = min(self.psnr) if math.isfinite(min(self.psnr)) else "identical"
        return told


def closed_loop(reference: Stream, tested: Stream, *, windows: int = WINDOWS, what: str = "the exported step") -> Drift:
    """Both streams from their first window on. Raises AvatarError where outputs cannot be compared."""
    if windows < 8:
        raise AvatarError(f"A stream of {windows} windows shows no trend; check at least 8.")
    rel, psnr = [], []
    for window in range(windows):
        errors = parity.compare(reference(window), tested(window), what=what)
        numbers = [error.rel_l2 for error in errors.values() if error.psnr is None]  # bytes hide what is smaller than a step
        rel.append(max(numbers or [error.rel_l2 for error in errors.values()]))
        psnr += [min(found)] if (found := [error.psnr for error in errors.values() if error.psnr is not None]) else []
    return Drift(tuple(rel), tuple(psnr))


def check(drift: Drift, limit: Limit, *, what: str = "the exported step") -> None:
    """Raise AvatarError where the error passes the limit or grows with time."""
    worst = max(drift.rel_l2)
    if worst > LOOSER * limit.rel_l2:
        raise AvatarError(
            f"Fed with its own past, {what} is {worst:.2g} off PyTorch after {drift.rel_l2.index(worst) + 1} windows,"
            f" more than the {LOOSER * limit.rel_l2:g} allowed; nothing was written: choose a wider precision."
        )
    if drift.psnr and min(drift.psnr) < limit.psnr - TWICE:
        raise AvatarError(
            f"Fed with its own past, {what} shows pictures of {min(drift.psnr):.1f} dB against PyTorch, less than the {limit.psnr - TWICE:g} allowed;"
            " nothing was written: choose a wider precision."
        )
    if drift.growth > GROWTH:
        raise AvatarError(
            f"Fed with its own past, {what} drifts away from PyTorch: the error grows {drift.growth:.1f} times over {len(drift.rel_l2)} windows;"
            " nothing was written: choose a wider precision."
        )


def fed_back(runner: Runner, inputs: Callable[[int], Arrays], states: dict[str, str], first: Arrays) -> Stream:
    """A graph whose outputs are its next inputs: `states` output -> input, `first` what those inputs begin with; `inputs` gives the rest."""
    held = {name: np.array(first[name]) for name in states.values()}

    def step(window: int) -> Arrays:
        made = runner({**inputs(window), **held})
        held.update({goes_to: np.array(made[name]) for name, goes_to in states.items()})
        return {name: np.array(value) for name, value in made.items()}

    return step


# -- the diffusion generator's step -----------------------------------------------------------------------------------------


def live(recipe: Any, runner: Runner, *, portrait: UInt8Array | None = None, keep: Callable[[Arrays], None] | None = None) -> Stream:
    """The generator's own live loop around a runner of its step: rings, places and all. `recipe`: `diffusion.stream.Recipe`, fp32, CPU.

    `portrait` [H, W, 3] any size, by default the built-in one: it is also what moves. `keep` gets every step's inputs,
    views of what the next step writes over.
    """
    import torch

    from engine.generators.diffusion import stream as streams
    from engine.generators.diffusion.autoencoder import to_unit
    from engine.generators.diffusion.compiled import Calendar, Compiled

    made = recipe.preset
    picture = _fitted(portrait, made.size)
    seen: dict[str, Any] = {}

    def spied(inputs: Arrays) -> dict[str, Any]:
        if keep is not None:
            keep(inputs)
        found = runner(inputs)
        seen.clear()
        seen.update({name: np.array(value) for name, value in found.items()})
        return found

    cache = recipe.remember(to_unit(torch.from_numpy(picture)[None]))
    stream = streams.open_stream(recipe, 1, cache)
    streams.seat(stream, 0, cache)
    stream.active[0] = True
    run = Compiled(recipe, spied, Calendar.of(made)).prepared(stream.row(0))
    speech = _speech(made.ears.heard)

    def step(window: int) -> Arrays:
        for frame in range(made.chunk):
            stream.condition[0, frame] = torch.from_numpy(_shown(picture, window * made.chunk + frame, stream.condition.shape[-1]))
            stream.speech[0, frame] = torch.from_numpy(next(speech))
        run()
        return dict(seen)

    return step


def recorded(recipe: Any, reference: Runner, windows: Sequence[int], *, portrait: UInt8Array | None = None) -> list[dict[str, Any]]:
    """Inputs of the step as a stream really has them, at some windows: to compare on, and to calibrate on."""
    kept: dict[int, dict[str, Any]] = {}
    now = [0]

    def keep(inputs: Arrays) -> None:
        if now[0] in windows:  # a large preset's rings are gigabytes
            kept[now[0]] = {name: np.array(value) for name, value in inputs.items()}

    step = live(recipe, reference, portrait=portrait, keep=keep)
    for now[0] in range(max(windows) + 1):
        step(now[0])
    return [kept[window] for window in windows]


def _fitted(portrait: UInt8Array | None, size: tuple[int, int]) -> UInt8Array:
    if portrait is None:
        from engine.persona import demo_portrait

        portrait = demo_portrait()
    return np.ascontiguousarray(cv2.resize(portrait, (size[1], size[0]), interpolation=cv2.INTER_AREA), np.uint8)


def _shown(picture: UInt8Array, frame: int, channels: int) -> UInt8Array:
    """[H, W, channels]: the picture, and what else a preset's condition may have, which moves as well but elsewhere."""
    views = [_moved(picture, frame + number * ELSEWHERE) for number in range(math.ceil(channels / 3))]
    return np.ascontiguousarray(np.concatenate(views, 2)[..., :channels])


def _moved(picture: UInt8Array, frame: int) -> UInt8Array:
    """The picture, swaying and breathing: a condition that changes as a head does."""
    height, width = picture.shape[:2]
    x = SWAY * width * math.sin(frame / 5)
    way = cv2.getRotationMatrix2D((width / 2, height / 2), 3 * math.sin(frame / 9), 1 + SWAY * math.sin(frame / 7))
    way[0, 2] += x
    return np.asarray(cv2.warpAffine(picture, way, (width, height), borderMode=cv2.BORDER_REPLICATE), np.uint8)


def _speech(shape: tuple[int, ...]) -> Iterator[Any]:
    """Log-mel [16, 80] that wanders between silence and loud, without end; of other ears random features of their `shape`."""
    rng = np.random.default_rng(SEED)
    loud = -5.0
    while shape != (MEL_ROWS, MEL_BANDS):
        yield rng.normal(size=shape).astype(np.float32)
    while True:
        loud = float(np.clip(loud + rng.normal(), -10.0, 0.0))
        yield np.clip(loud + rng.normal(size=(MEL_ROWS, MEL_BANDS)), -10.0, 2.0).astype(np.float32)


__all__ = ["GROWTH", "WINDOWS", "Drift", "Stream", "check", "closed_loop", "fed_back", "live", "recorded"]
