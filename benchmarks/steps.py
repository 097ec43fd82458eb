"""One row of the latency table: a generator's step along known motion, and the floor below it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks import media
from benchmarks.common import Laps, percentiles
from benchmarks.signals import signals
from engine.types import Generator, MissingPart, Motion, UInt8Array

WARM_UP = 5
"""Frames thrown away: caches, compilation, the trackers' first search."""
ROW_SECONDS = 10.0
"""s after which a slow generator's row ends, once it has LEAST_LAPS. Warming up takes at most half of it."""
LEAST_LAPS, LEAST_WARM_UP = 5, 2
DIFFUSION = "diffusion"


@dataclass(frozen=True, slots=True)
class Floor:
    """The least that a step can take on this machine, ms (of CPU time on a CPU), and what it was worked out from."""

    ms: float
    gflop: float | None = None  # of a step, all rows together; None for generators without networks
    mbytes: float | None = None
    rates: Mapping[str, Any] | None = None  # what this machine did


@dataclass(frozen=True, slots=True)
class Row:
    """One generator at one size."""

    generator: str
    made: dict[str, str | None]  # preset, backend, precision
    size: tuple[int, int]
    steps: int  # network evaluations a frame
    chunk: int  # frames that a step makes
    rows: int  # sessions that a step serves
    device: str
    laps: Laps
    prepare_s: float
    floor: Floor

    @property
    def over_floor(self) -> float:
        """Median step over the floor."""
        times = self.laps.wall_ms if self.device.startswith("cuda") else self.laps.cpu_ms
        return float(np.median(times)) / self.floor.ms

    def fields(self) -> dict[str, Any]:
        """As in the JSON line."""
        return {
            "generator": self.generator,
            **self.made,
            "size": list(self.size),
            "steps": self.steps,
            "chunk": self.chunk,
            "rows": self.rows,
            "device": self.device,
            "laps": len(self.laps.wall_ms),
            "step_ms": percentiles(self.laps.wall_ms),
            "cpu_ms": percentiles(self.laps.cpu_ms),
            "gflop": self.floor.gflop,
            "mbytes": self.floor.mbytes,
            "floor_ms": self.floor.ms,
            "over_floor": self.over_floor,
            "prepare_s": self.prepare_s,
        }


class Running:
    """A generator with a portrait in each of its rows, stepped along known motion again and again."""

    def __init__(
        self, name: str, wanted: Mapping[str, Any], motions: Sequence[Motion], *, portrait: UInt8Array, clip: media.Clip, rows: int = 1
    ) -> None:
        from engine.generators import load
        from engine.persona import make_persona

        self.generator: Generator = load(name, **wanted)
        preparing = Laps()
        with preparing:
            persona = make_persona(self.generator, portrait, name=name)
        self.prepare_s = preparing.wall_ms[0] / 1000
        self.identity = persona.identity
        self.rows = rows
        self._state = self.generator.allocate(rows)
        for row in range(rows):
            self.generator.admit(self._state, row, self.identity)
        self._signals, self._frame = signals(self.generator.spec.needs, motions, clip), 0

    @property
    def device(self) -> str:
        """Its generator's, "cpu" for one that names none."""
        return str(getattr(self.generator, "device", "cpu"))

    def step(self) -> None:
        """A chunk for every row."""
        chunk = self.generator.spec.chunk
        numbers = range(self._frame, self._frame + chunk)
        self._frame += chunk
        chunks = [replace(self._signals[i % len(self._signals)], time=i / media.FPS, id=i + 1) for i in numbers]
        self.generator.step(self._state, [chunks] * self.rows)


def step_time(running: Running, *, name: str, frames: int, seconds: float = ROW_SECONDS) -> Row:
    """Time so many frames, fewer where that takes longer than `seconds`."""
    generator, laps = running.generator, Laps()
    begin = time.perf_counter()
    for i in range(WARM_UP):
        if i >= LEAST_WARM_UP and time.perf_counter() > begin + seconds / 2:
            break
        running.step()
    begin = time.perf_counter()
    for i in range(max(1, frames // generator.spec.chunk)):
        if i >= LEAST_LAPS and time.perf_counter() > begin + seconds:
            break
        with laps:
            running.step()
    # A generator without networks names none of these: it is compiled by numba and works on bytes.
    made = {word: getattr(generator, word, default) for word, default in (("preset", None), ("backend", "numba"), ("precision", "uint8"))}
    steps = int(getattr(generator, "steps", 1))
    return Row(name, made, generator.spec.size, steps, generator.spec.chunk, running.rows, running.device, laps, running.prepare_s, floor_of(running))


def floor_of(running: Running) -> Floor:
    """By operations and bytes of the diffusion generator, that of a warp without networks; not a number where nobody has counted."""
    generator: Any = running.generator
    if not hasattr(generator, "recipe"):
        if hasattr(generator, "backend"):
            return Floor(float("nan"))
        return Floor(running.rows * warp_floor(running.identity.portrait))
    from benchmarks import floor

    work = floor.work(generator.recipe.preset, steps=generator.steps, precision=generator.precision, rows=running.rows)
    rates = floor.rates(running.device, generator.precision)
    return Floor(rates.floor_ms(work), work.gflop, work.mbytes, rates.fields())


def warp_floor(picture: UInt8Array, *, rounds: int = 30) -> float:
    """Median CPU ms of one bilinear remap and one blend of the frame: less than that no warping generator can cost."""
    import cv2

    height, width = picture.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32) + 0.3, np.arange(height, dtype=np.float32) + 0.3)
    share = np.full((height, width), 0.5, np.float32)
    laps = Laps()
    for _ in range(rounds):
        with laps:
            warped = cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            cv2.blendLinear(warped, picture, share, 1 - share)
    return float(np.median(laps.cpu_ms))


def missing(name: str) -> str | None:
    """What a generator lacks here, in a sentence; None where it can run."""
    from importlib import import_module

    from engine.generators import NAMES

    try:
        import_module(NAMES[name].partition(":")[0])
    except MissingPart as error:
        return str(error)
    return None


__all__ = ["DIFFUSION", "WARM_UP", "Floor", "Row", "Running", "floor_of", "missing", "step_time", "warp_floor"]
