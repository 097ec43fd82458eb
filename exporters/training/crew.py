"""Several processes on one run: who is first, what they agree on, and how they stop together.

`accelerate launch` or `torchrun` starts them. Gradients are averaged here, not by a wrapper around the module: a batch goes backwards more than
once, for the generator, the critic and the follower, each with an optimiser of its own, and such wrappers count on once.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from types import FrameType
from typing import Any, TypeVar

from engine.types import AvatarError

T = TypeVar("T")

STEP_LONGEST, WAIT_LONGEST = timedelta(hours=1), timedelta(days=7)
"""How long the others wait for one that is late with an update, and for the first one to do what only it does: to collect, to judge."""
BUCKET = 2**26
"""Bytes of gradients that are averaged at once."""
AGAIN = 2.0
"""s after which a second Ctrl-C is one: a launcher passes on the first, which the terminal has sent to everybody already."""
LEFT = 2
"""Exit status of the others where the first one has said why."""


class Crew:
    """The processes of a run. Of one alone nothing here does anything."""

    def __init__(self, rank: int = 0, count: int = 1, device: Any = None) -> None:
        """`device`: what all of them can send to each other from."""
        self.rank, self.count, self._device = rank, count, device
        self._waiting: Any = None
        if count > 1:
            import torch.distributed as ring

            self._ring = ring
            # On the host, whatever the devices are: a launcher's own gives up after minutes.
            self._waiting = ring.new_group(backend="gloo", timeout=WAIT_LONGEST)
            atexit.register(self._leave)

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def first(self, call: Callable[[], T]) -> T:
        """What the first process's `call` answers, for which the others wait. Where it fails there, they leave without a word."""
        if self.count == 1:
            return call()
        said: list[Any] = [False, None]
        try:
            if self.main:
                said = [True, call()]
        finally:
            with self._joined():
                self._ring.broadcast_object_list(said, src=0, group=self._waiting)
        if not said[0]:
            raise SystemExit(LEFT)
        answer: T = said[1]
        return answer

    def fail(self, sentence: str) -> AvatarError:
        """The error to raise for what all of them know. Only the first one speaks; the others leave."""
        if not self.main:
            raise SystemExit(LEFT)
        return AvatarError(sentence)

    def agree(self, share: float, stop: bool) -> tuple[float, bool]:
        """-> (the first one's `share`, whether anyone wants to stop): clocks differ, and so would what is done."""
        if self.count == 1:
            return share, stop
        told = self._summed([share if self.main else 0.0, float(stop)])
        return told[0], told[1] > 0

    def mean(self, values: Sequence[float]) -> list[float]:
        """Of all processes; no number where one has none."""
        return list(values) if self.count == 1 else [value / self.count for value in self._summed(values)]

    def _summed(self, values: Sequence[float]) -> list[float]:
        import torch

        held = torch.tensor(values, dtype=torch.float64, device=self._device)
        with self._joined():
            self._ring.all_reduce(held)
        return [float(value) for value in held.tolist()]

    def average(self, parameters: Sequence[Any]) -> None:
        """Their gradients become the mean of all processes' ones; where only some have one, it is zero in the others."""
        if self.count == 1:
            return
        import torch

        there = torch.tensor([one.grad is not None for one in parameters], dtype=torch.uint8, device=self._device)
        with torch.no_grad(), self._joined():
            self._ring.all_reduce(there, op=self._ring.ReduceOp.MAX)
            learnt = [one for one, has in zip(parameters, there.tolist(), strict=True) if has]
            for one in learnt:
                if one.grad is None:
                    one.grad = torch.zeros_like(one)
            for bucket in _buckets([one.grad for one in learnt]):
                flat = torch.cat([grad.flatten() for grad in bucket])
                self._ring.all_reduce(flat)
                flat /= self.count
                for grad, part in zip(bucket, flat.split([grad.numel() for grad in bucket]), strict=True):
                    grad.copy_(part.view_as(grad))

    @contextmanager
    def _joined(self) -> Iterator[None]:
        """Around what all take part in: where one of them is gone, the others end too."""
        try:
            yield
        except RuntimeError as error:  # gloo's, and NCCL's, of whatever happened to the connection
            raise self.fail("Another process of this run has ended; see what it said above, and start the run again: it goes on.") from error

    def close(self) -> None:
        """After the last thing that is done together."""
        if self.count > 1:
            self._ring.destroy_process_group()
            crew.cache_clear()

    def _leave(self) -> None:
        """However this process ends: gloo's threads let go of tensors, for which they need Python's lock. One that asks for it when Python has gone
        already aborts the process, and its exit status says nothing of what was wrong. Here they are waited for."""
        if not self._ring.is_initialized():
            return
        if self._ring.get_backend() == "gloo":
            self._ring.destroy_process_group()
        else:  # NCCL's may wait for one that is lost
            self._ring.destroy_process_group(self._waiting)


def _buckets(grads: Sequence[Any]) -> Iterator[list[Any]]:
    """Neighbours of one kind, up to BUCKET bytes."""
    held: list[Any] = []
    size = 0
    for grad in grads:
        if held and (size >= BUCKET or grad.dtype != held[0].dtype):
            yield held
            held, size = [], 0
        held.append(grad)
        size += grad.numel() * grad.element_size()
    if held:
        yield held


@cache
def crew(device: str | None = None) -> Crew:
    """That this process belongs to: one alone unless a launcher says otherwise, and then no library is loaded for it."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return Crew()
    from engine.backends import pytorch  # before torch: see there

    from accelerate import PartialState  # isort: skip

    state = PartialState(cpu=pytorch.device(device).type == "cpu", timeout=STEP_LONGEST)
    return Crew(state.process_index, state.num_processes, state.device)


class Stop:
    """Ctrl-C asks for the end of the update that is running, so that all processes stop at the same one and the checkpoint is exact."""

    def __init__(self) -> None:
        self._asked: float | None = None
        self._before: Any = None

    def __bool__(self) -> bool:
        return self._asked is not None

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._asked is not None and now - self._asked > AGAIN:
            raise KeyboardInterrupt
        self._asked = now if self._asked is None else self._asked


__all__ = ["Crew", "Stop", "crew"]
