"""Where pixels cross between the host and an accelerator: pinned buffers, copies that nobody waits for, and one wait where pictures leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.generators.diffusion.stream import Stream
from engine.types import FloatArray, UInt8Array


@dataclass(frozen=True, slots=True)
class Staging:
    """The host's side of a stream's ends. On a CPU these are the stream's own tensors, and nothing is copied.

    A buffer is written again only after `fetch` has waited for all that was sent from it, or for what a failed step had sent: the
    device does things in order, so the later copy wins.
    """

    stream: Stream
    active: Tensor  # [B] bool
    condition: Tensor  # [B, c, H, W, K] uint8
    speech: Tensor  # [B, c, 16, 80] log-mel, of the stream's precision: a copy that converts would be waited for
    out: Tensor  # [B, c, H, W, 3] uint8
    finite: Tensor  # [B] bool

    @classmethod
    def of(cls, stream: Stream) -> Staging:
        """Of a stream: its own tensors on a CPU, pinned ones where there is CUDA, plain ones for other accelerators."""
        if stream.out.device.type == "cpu":
            return cls(stream, stream.active, stream.condition, stream.speech, stream.out, stream.finite)
        return cls.apart(stream, pinned=stream.out.device.type == "cuda")

    @classmethod
    def apart(cls, stream: Stream, *, pinned: bool) -> Staging:
        """With buffers of its own."""
        ends = (stream.active, stream.condition, stream.speech, stream.out, stream.finite)
        return cls(stream, *(torch.zeros(end.shape, dtype=end.dtype, pin_memory=pinned) for end in ends))

    def put(self, row: int, condition: UInt8Array, speech: FloatArray) -> None:
        """A row's chunk: condition [c, H, W, K], speech [c, 16, 80]."""
        self.condition[row].copy_(torch.from_numpy(condition))
        self.speech[row].copy_(torch.from_numpy(speech))

    def send(self, rows: Sequence[int]) -> None:
        """These rows, and no others, have a chunk, and what was put for them goes to the device."""
        for row in range(len(self.active)):
            self.active[row] = row in rows
        if self.active is self.stream.active:
            return
        self.stream.active.copy_(self.active, non_blocking=self.pinned)
        for row in rows:
            self.stream.condition[row].copy_(self.condition[row], non_blocking=self.pinned)
            self.stream.speech[row].copy_(self.speech[row], non_blocking=self.pinned)

    def fetch(self, rows: Sequence[int]) -> tuple[UInt8Array, list[bool]]:
        """Wait for the device -> (pictures [B, c, H, W, 3], good until the next step, of which only those of `rows` are new; whether a row's
        numbers are numbers, [B])."""
        if self.out is not self.stream.out:
            self.finite.copy_(self.stream.finite, non_blocking=self.pinned)
            for row in rows:
                self.out[row].copy_(self.stream.out[row], non_blocking=self.pinned)
            if self.pinned:
                torch.cuda.current_stream(self.stream.out.device).synchronize()
        pictures: UInt8Array = self.out.numpy()
        return pictures, self.finite.tolist()

    @property
    def pinned(self) -> bool:
        """Whether copies need not be waited for one by one."""
        return bool(self.stream.out.device.type == "cuda")


__all__ = ["Staging"]
