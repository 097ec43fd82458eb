"""The floor of a diffusion step: less time than its multiplications and its memory traffic need on this machine it cannot take.

Operations are counted by shape, by PyTorch's own counter (a multiplication and an addition are two); what is not a matrix product or
a convolution counts nothing. Bytes are those that must move at least once a frame: the weights, the caches and the rings in, the new keys
and values, the condition and the picture out; intermediate tensors count nothing, and what a second denoising step reads again may
have stayed in a cache. Both are divided by what this machine did in the same run: a large matrix product of the row's precision,
and a large copy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from engine.generators.diffusion.budget import WORD, budget, slots
from engine.generators.diffusion.presets import Preset

GIGA, MEGA, MS = 1e9, 1e6, 1000.0
WIDTHS = {"cpu": 1024, "cuda": 8192}
"""Of the square matrix product that tells a device's rate: large enough to be bound by arithmetic, a tenth of a second on a slow core."""
COPY_BYTES = {"cpu": 2**28, "cuda": 2**30}
"""Of the copy that tells its bandwidth: more than any cache holds."""
ROUNDS, ROUND_SECONDS = 6, 2.0
"""Of each, fewer where they take longer; the fastest counts, as a floor is asked for."""
UNREAD = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "norm2")
"""Weights of the denoiser that no frame reads: attention to the identity's single token is that token, and it is projected once."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a step of all rows has to do."""

    gflop: float  # 10^9 multiplications and additions
    mbytes: float  # 10^6 bytes


@dataclass(frozen=True, slots=True)
class Rates:
    """What a device did in this run, by the CPU time of the process on a CPU (so that other processes do not count), by wall time on a GPU."""

    device: str
    precision: str
    gflop_s: float
    gbyte_s: float

    def floor_ms(self, work: Work) -> float:
        """Milliseconds that the work takes at least."""
        return MS * max(work.gflop / self.gflop_s, work.mbytes * MEGA / (self.gbyte_s * GIGA))

    def fields(self) -> dict[str, Any]:
        """As in the JSON line."""
        return {"device": self.device, "precision": self.precision, "gflop_s": self.gflop_s, "gbyte_s": self.gbyte_s}


def work(made: Preset, *, steps: int, precision: str, rows: int = 1) -> Work:
    """Of one step of `rows` sessions together."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.bare import shapes_only
    from engine.generators.diffusion import stream as streams

    how, stream = shapes_only(made, steps=steps, rows=rows)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        streams.Step(how, stream)(*stream.tensors())
    networks, word = how.networks, WORD[precision]
    read: list[Any] = [networks.guider, networks.denoiser] + ([networks.speech] if networks.speech is not None else [])
    weights = sum(p.numel() for module in read for name, p in module.named_parameters() if not any(part in name for part in UNREAD))
    # The autoencoder's first half read the portrait, once.
    weights += sum(p.numel() for name, p in networks.autoencoder.named_parameters() if "decoder" in name or "post_quant" in name)
    kept = budget(made, steps=steps, precision=precision)
    each = kept.window // slots(made)  # of one frame in all rings
    ring = each * (slots(made) - 1) + each * made.chunk  # read: all slots but the one of idle rows; written: the new frames
    pictures = 2 * made.chunk * 3 * made.size[0] * made.size[1]
    return Work(counter.get_total_flops() / GIGA, (weights * word + rows * (ring + kept.reference + pictures)) / MEGA)


@cache
def rates(device: str, precision: str) -> Rates:
    """Measure them, once a run; a few seconds on a slow core.

    A half precision counts as no slower than fp32: where a processor lacks its instructions, converting is the faster way.
    """
    import torch

    from benchmarks.bare import KINDS

    on = torch.device(device)
    width, size = WIDTHS[on.type], COPY_BYTES[on.type]
    source = torch.ones(size, dtype=torch.uint8, device=on)
    target = torch.empty_like(source)
    copy = fastest(lambda: target.copy_(source), on)

    def multiply(kind: Any) -> float:
        a, b = (torch.randn((width, width), device=on).to(kind) for _ in range(2))
        return fastest(lambda: torch.mm(a, b), on)

    seconds = min(multiply(KINDS[kind]) for kind in {precision, "fp32"})
    return Rates(device, precision, 2 * width**3 / GIGA / seconds, 2 * size / GIGA / copy)


def fastest(run: Callable[[], object], on: Any) -> float:
    """Seconds of the fastest of some rounds."""
    clock = time.perf_counter if on.type == "cuda" else time.process_time
    end, best = time.perf_counter() + ROUND_SECONDS, float("inf")
    for i in range(ROUNDS):
        if i and time.perf_counter() > end:
            break
        start = clock()
        run()
        wait(on)
        best = min(best, clock() - start)
    return best


def wait(on: Any) -> None:
    """Until a device has done what it was given; a CPU has."""
    if on.type == "cuda":
        import torch

        torch.cuda.synchronize(on)


__all__ = ["Rates", "Work", "fastest", "rates", "wait", "work"]
