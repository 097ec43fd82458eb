"""What the caches of the diffusion generator save, and whether a long stream stays as fast and as small as it began.

*window ratio*: a frame without the ring of past keys and values, which must be made again from the whole window's frames, against a
streaming step. *reference ratio*: a step that runs the reference network and its projections anew for every denoising step, against one
that reads the cache. Both alternate with the plain step lap by lap, so that a busy machine slows all three alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.common import Laps
from engine.types import MEL_BANDS, MEL_ROWS, AvatarError

LAPS = 8
"""Of every kind, where the time allows."""
LEAST_LAPS = 2
SECONDS = 20.0
"""s for all laps together."""
SPAN = 100
"""Frames at a stream's beginning and end that are compared."""
MB = 1e6


@dataclass(frozen=True, slots=True)
class Caches:
    """Milliseconds of a frame with the caches and without, CPU time on a CPU, wall time on a GPU."""

    step_ms: float
    window_ms: float  # without the ring
    reference_ms: float  # without the reference's cache
    frames: int  # of the window

    @property
    def window(self) -> float:
        """How many times a step costs without the ring."""
        return self.window_ms / self.step_ms

    @property
    def reference(self) -> float:
        """How many times a step costs without the reference's cache."""
        return self.reference_ms / self.step_ms


def judged(laps: Laps, device: str) -> list[float]:
    """The laps' milliseconds that tell the work: CPU time of the process on a CPU, where others may run too; wall time on a GPU."""
    return laps.wall_ms if device.startswith("cuda") else laps.cpu_ms


def caches(networks: Any, *, steps: int, precision: str, device: Any, laps: int = LAPS, seconds: float = SECONDS) -> Caches:
    """Measure both ratios with one session, all three ways of making a frame run alike: eager on a CPU, as CUDA graphs on a GPU."""
    import torch

    from benchmarks import bare
    from benchmarks.floor import wait
    from engine.backends import pytorch
    from engine.generators.diffusion.attention import Sources
    from engine.generators.diffusion.autoencoder import to_pixels
    from engine.generators.diffusion.sampler import advance
    from engine.generators.diffusion.temporal import Places, Window, places

    mode: pytorch.Mode = "cudagraph" if device.type == "cuda" else "eager"
    one = bare.bare(networks, steps=steps, precision=precision, mode=mode, device=device)
    recipe, cache = one.recipe, one.cache
    made, frames = recipe.preset, recipe.preset.window
    clip = one.pictures[torch.arange(frames) % len(one.pictures)].to(device)
    speech = torch.zeros((frames, MEL_ROWS, MEL_BANDS), dtype=recipe.dtype, device=device)
    noise = one.stream.noise[:1].repeat(frames, 1, 1, 1)
    at = places(torch.zeros(1, dtype=torch.int64, device=device), frames, made)
    alone = Places(at.query, at.key[:, :, at.past :], at.hidden[:, :, at.past :])

    def from_scratch() -> None:
        """The newest frame of a window that nothing is kept of: `stream.whole_clip`, with its constants made before."""
        hint = networks.guider(clip.permute(0, 3, 1, 2).to(recipe.dtype) / 255)
        spoken = networks.speech(speech) if networks.speech is not None else None
        sources, x = Sources(frames, cache.reference, cache.identity, speech=spoken), noise
        for s in range(len(recipe.levels)):
            answer = networks.denoise(x, recipe.levels.t[s].expand(frames), hint, sources, Window(alone, made.window, frames, None, {}))
            x = advance(recipe.levels, s, x, answer, noise)
        to_pixels(networks.autoencoder.decode(x[-1:] / made.scale))

    def read_again() -> None:
        """What the cache spares: the reference network and its projections, at every denoising step as in the published pipelines."""
        for _ in range(len(recipe.levels)):
            networks.project(networks.reference(one.latents, one.read))

    whole, reading = (pytorch.prepared(run, [], mode=mode) for run in (from_scratch, read_again))

    def without_cache() -> None:
        reading()
        one.step()

    kinds: tuple[tuple[Callable[[], object], Laps], ...] = ((one.step, Laps()), (whole, Laps()), (without_cache, Laps()))
    warm_up = 1 + (pytorch.WARM_UPS if mode == "cudagraph" else 0)
    end = 0.0
    for i in range(warm_up + laps):
        if i == warm_up:
            end = time.perf_counter() + seconds
        if i >= warm_up + LEAST_LAPS and time.perf_counter() > end:
            break
        for run, times in kinds:
            wait(device)
            with times if i >= warm_up else Laps():
                run()
                wait(device)
    step, window, reference = (float(np.median(judged(times, str(device)))) for _, times in kinds)
    return Caches(step, window, reference, made.window)


def growth(step: Callable[[], object], frames: int, *, device: str, warm_up: int = 5) -> Mapping[str, Any]:
    """Over a long stream -> {"frames", "ratio", "rss_growth_mb"}: median ms of the last frames over that of the first, memory of the process."""
    import psutil

    if frames < 2:
        raise AvatarError("A stream needs at least 2 frames to be compared with itself; give more with --stream-frames, or 0 for none.")
    process, laps, span = psutil.Process(), Laps(), min(SPAN, frames // 2)
    for _ in range(warm_up):
        step()
    before = 0
    for i in range(frames):
        with laps:
            step()
        if i == span - 1:
            before = process.memory_info().rss
    times: Sequence[float] = judged(laps, device)
    ratio = float(np.median(times[-span:]) / np.median(times[:span]))
    return {"frames": frames, "ratio": ratio, "rss_growth_mb": (process.memory_info().rss - before) / MB}


__all__ = ["Caches", "caches", "growth", "judged"]
