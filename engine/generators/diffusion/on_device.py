"""A live chunk by a graph whose runner reads tensors where they lie: rings, reference and pictures never leave the accelerator.

As `compiled`, which does the same with NumPy views on a CPU. The runner gets the same tensors in every call, so that what it records once
stays valid.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from engine.generators.diffusion.graphs import PARTS, told
from engine.generators.diffusion.stream import Stream
from engine.types import FloatArray, Runner


class Places(Protocol):
    """`compiled.Calendar`."""

    @property
    def where(self) -> FloatArray:
        """[T, c, K + c, P]"""
        ...

    @property
    def bias(self) -> FloatArray:
        """[T, c, K + c]"""
        ...

    @property
    def put(self) -> list[list[tuple[int, int]]]:
        """T times (frame of the chunk, slot that it goes to)."""
        ...

    def row(self, count: int) -> int:
        """Where `count` frames seen are."""
        ...


class DeviceRow:
    """The step of one row (`Stream.row`), for one caller at a time."""

    def __init__(self, runner: Runner, calendar: Places, stream: Stream, *, chunk: int, listens: bool) -> None:
        """`listens`: whether the preset's graph takes speech."""
        on = stream.out.device
        self._runner, self._calendar, self._stream, self._chunk = runner, calendar, stream, chunk
        self._where_at, self._bias_at = (torch.from_numpy(x).to(on) for x in (calendar.where, calendar.bias))
        self._where, self._bias = torch.zeros_like(self._where_at[:1]), torch.zeros_like(self._bias_at[:1])
        self._rings = {
            f"{s}.{i}.{part}": ring
            for i, pair in enumerate(stream.rings)
            for part, rings in zip(PARTS, pair, strict=True)
            for s, ring in enumerate(rings)
        }
        given: dict[str, Tensor] = {"condition": stream.condition[0], "noise": stream.noise, "where": self._where, "bias": self._bias}
        if listens:
            given["speech"] = stream.speech[0]
        if stream.regions.shape[2]:
            given["regions"] = stream.regions
        for i, pair in enumerate(stream.reference):
            given |= {f"reference.{i}.{part}": x for part, x in zip(PARTS, pair, strict=True)}
        given |= {f"identity.{i}.{part}": x for i, pair in enumerate(stream.identity) for part, x in told(pair)}
        self._given = given | {f"ring.{name}": ring for name, ring in self._rings.items()}

    @torch.no_grad()
    def __call__(self) -> None:
        # Two numbers are waited for: what was asked of the device before has been fetched by now, so it is idle.
        if not bool(self._stream.active[0]):
            return
        today = self._calendar.row(int(self._stream.count[0]))
        self._where.copy_(self._where_at[today : today + 1])
        self._bias.copy_(self._bias_at[today : today + 1])
        made = self._runner(self._given)
        self._stream.out[0].copy_(made["picture"])
        self._stream.finite.copy_(made["magnitude"].isfinite())
        for name, ring in self._rings.items():
            new = made[f"new.{name}"][0]  # [c, L, h, d]
            for frame, slot in self._calendar.put[today]:
                ring[0, :, :, slot].copy_(new[frame])
        self._stream.count.add_(self._chunk)


__all__ = ["DeviceRow"]
