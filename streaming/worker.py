"""The threads that compute: a small pool that tracks faces and bodies, and one thread a batch that steps the generator.

Nothing here touches the event loop; results leave through callbacks that the session posts to it.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, TypeVar

from engine.batch import Batch
from engine.session import Session, render
from engine.types import AvatarError, Generator, Output, Signal, VideoFrame

logger = logging.getLogger(__name__)

TICK = 0.02
"""s after which a generator thread looks round even when nobody woke it."""
ROUNDS = 4
"""Frames of one session made in a row before others are looked at: more are only due after a stall."""
BODY_NICE = 5
"""How much lower the priority of body tracking is: it must never delay a face."""
APART = 10.0
"""s that the sessions of a failed call are stepped one by one at most; where one fails alone and goes, the others are together at once."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StepTimes:
    """How long one render took, in s."""

    step: float  # the generator
    compose: float  # mixing, compositing


class Seat(Protocol):
    """What a generator thread needs to know of a session; every method is called on that thread and returns at once."""

    session: Session

    @property
    def resting(self) -> bool:
        """Whether nobody watches: then nothing is rendered."""
        ...

    def listen(self) -> None:
        """Pass on the sound that has arrived."""
        ...

    def deliver(self, output: Output, times: StepTimes) -> None:
        """Frames are ready."""
        ...

    def shut(self) -> None:
        """Wait for the trackers to be idle and close the session."""
        ...

    def failed(self, error: Exception) -> None:
        """The session cannot go on; it was shut."""
        ...


class MeteredBatch(Batch):
    """A batch that knows how long its last step took."""

    last_step = 0.0  # s

    def step(self, signals: Mapping[int, Sequence[Signal]]) -> dict[int, list[VideoFrame]]:
        """See Batch."""
        started = time.perf_counter()
        frames = super().step(signals)
        self.last_step = time.perf_counter() - started
        return frames


class Stepper:
    """One thread, one batch. `together`: all sessions in one call (an accelerator); else one after another, each delivered at once.

    Whatever a session does, stepping or ending, takes nothing with it but itself.
    """

    def __init__(
        self, generator: Generator, *, rows: int, together: bool = False, name: str = "generator", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.generator = generator
        self.name = name
        self.rows = rows
        self.together = together
        self.busy = 0.0  # s of work so far
        self._clock = clock
        self._batch: MeteredBatch | None = None
        self._seats: list[Seat] = []
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._awake = threading.Event()
        self._stopping = False
        self._apart_until = float("-inf")  # s of the clock, until which sessions are stepped one by one all the same
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def load(self) -> int:
        """Sessions seated here."""
        return len(self._seats)

    def wake(self) -> None:
        """Something may be due; any thread."""
        self._awake.set()

    def call(self, job: Callable[[Batch], T]) -> Future[T]:
        """Run `job(batch)` on this thread between two steps, from a job of its own at once; any thread."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(job(self._open()))
            except BaseException as error:
                future.set_exception(error)

        if threading.current_thread() is self._thread:
            run()
        else:
            self._jobs.put(run)
            self.wake()
        return future

    def seat(self, seat: Seat) -> Future[None]:
        """Begin stepping a session; any thread."""
        return self.call(lambda _: self._seats.append(seat))

    def leave(self, seat: Seat) -> Future[None]:
        """Stop stepping a session and give back its row and trackers; any thread, harmless twice."""
        return self.call(lambda _: self._remove(seat))

    def stop(self, timeout: float = 2.0) -> None:
        """End the thread; sessions still seated are closed."""
        self._stopping = True
        self.wake()
        self._thread.join(timeout)

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _open(self) -> MeteredBatch:
        if self._batch is None:
            self._batch = MeteredBatch(self.generator, rows=self.rows)
        return self._batch

    def _remove(self, seat: Seat) -> None:
        if seat not in self._seats:
            return
        self._seats.remove(seat)
        self._apart_until = float("-inf")  # whoever is left may do better together
        try:
            seat.shut()
        except Exception:
            logger.exception("A session could not be closed in order.")

    def _run(self) -> None:
        while not self._stopping:
            self._awake.wait(TICK if self._seats else None)
            self._awake.clear()
            while not self._jobs.empty():
                self._jobs.get()()
            started = time.perf_counter()
            seats = [seat for seat in list(self._seats) if not seat.resting and self._listen(seat)]
            together = self.together and self._clock() >= self._apart_until
            for group in [seats] if together else [[seat] for seat in seats]:
                for _ in range(ROUNDS):
                    if not self._step(group):
                        break
            self.busy += time.perf_counter() - started
        for seat in list(self._seats):
            self._remove(seat)

    def _listen(self, seat: Seat) -> bool:
        """Let a session hear -> whether it could."""
        try:
            seat.listen()
        except Exception as error:  # as in _step
            self._isolate([seat], error)
            return False
        return True

    def _step(self, group: list[Seat]) -> bool:
        """Render whatever is due in a group -> whether anything was."""
        if not group:
            return False
        batch = self._open()
        started = time.perf_counter()
        try:
            outputs = render(batch, [seat.session for seat in group], now=self._clock())
        except Exception as error:  # whatever it is, it must not take the other sessions with it
            self._isolate(group, error)
            return False
        times = StepTimes(batch.last_step, max(0.0, time.perf_counter() - started - batch.last_step))
        for seat in list(group):
            if (output := outputs.get(seat.session.row)) is None:
                continue
            try:
                seat.deliver(output, times)
            except Exception as error:  # as above
                group.remove(seat)
                self._isolate([seat], error)
        return bool(outputs)

    def _isolate(self, group: list[Seat], error: Exception) -> None:
        """One session of the group failed: find out which by stepping each alone; the next signals will tell."""
        if len(group) > 1:
            logger.warning("A step of %d sessions failed (%r); they are stepped one by one.", len(group), error)
            self._apart_until = self._clock() + APART
            return
        seat = group[0]
        logger.error("A session cannot go on.", exc_info=error)
        self._remove(seat)
        try:
            seat.failed(error)
        except Exception:
            logger.exception("Nobody could be told that a session has ended.")


class Pool:
    """Threads for jobs that must not hold up the loop; a job never raises out of its thread unseen."""

    def __init__(self, name: str, *, threads: int, nice: int = 0) -> None:
        self.busy = 0.0  # s of work so far, all threads together
        self.threads = threads
        self._nice = nice
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._run, name=f"{name}-{k}", daemon=True) for k in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Callable[[], None]) -> None:
        """Run a job soon. Sessions bring their next picture only when the last one is done, so that hardly anything waits."""
        self._jobs.put(job)

    def stop(self, timeout: float = 2.0) -> None:
        """Finish what is running and end the threads."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(timeout)

    def _run(self) -> None:
        if self._nice and sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._nice)
        while (job := self._jobs.get()) is not None:
            started = time.perf_counter()
            try:
                job()
            except Exception:  # a job reports its own failures; one that does not must still not end the thread
                sys.excepthook(*sys.exc_info())
            self.busy += time.perf_counter() - started


def sentence(error: BaseException) -> str:
    """What a person is told about an error: our own sentences as they are, others by name."""
    return (
        str(error)
        if isinstance(error, AvatarError)
        else f"The avatar stopped because of an internal error ({type(error).__name__}); press Start again."
    )
