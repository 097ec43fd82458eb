"""The clockwork of one session on the event loop: ticks the sound, lets pictures leave when the pacer says so, tells every sink."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from streaming.pacing import BLOCK_SECONDS, Pacer
from streaming.tracks import Sink

BEHIND = 0.2
"""s a tick may be late before the grid of ticks starts afresh; less is caught up, so that the sound stays whole."""


class Outlet:
    """`on_tick(now)` is called before each 20 ms of sound leaves: the session brings its new sound there."""

    def __init__(self, pacer: Pacer, *, on_tick: Callable[[float], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.pacer = pacer
        self.sinks: set[Sink] = set()
        self._on_tick = on_tick
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._next = clock()  # nominal time of the next tick: exactly 20 ms apart, as RTP timestamps must be
        self._phase = 0.0  # s, 0..20 ms: how much later than that it really comes
        self._tick_timer: asyncio.TimerHandle | None = None
        self._picture_timer: asyncio.TimerHandle | None = None
        self._closed = False

    def start(self) -> None:
        """Begin ticking."""
        self._next = self._clock()
        self._tick()

    @property
    def phase(self) -> float:
        """s, 0..20 ms: when ticks come, modulo 20 ms of the clock."""
        return (self._next + self._phase) % BLOCK_SECONDS

    @phase.setter
    def phase(self, phase: float) -> None:
        self._phase = (phase - self._next) % BLOCK_SECONDS

    def poke(self) -> None:
        """A picture may have become due: send it, or set the timer for it."""
        if self._closed:
            return
        if self._picture_timer is not None:
            self._picture_timer.cancel()
            self._picture_timer = None
        now = self._clock()
        picture = self.pacer.picture(now=now)
        if picture is not None:
            for sink in tuple(self.sinks):
                sink.picture(picture, now=now)
        wait = self.pacer.wait(now=now)
        if wait is not None:
            self._picture_timer = self._loop.call_later(max(wait, 0.001), self.poke)

    def close(self) -> None:
        """Nothing leaves any more."""
        self._closed = True
        for timer in (self._tick_timer, self._picture_timer):
            if timer is not None:
                timer.cancel()
        self.sinks.clear()

    def _tick(self) -> None:
        if self._closed:
            return
        now = self._clock()
        if now - self._next - self._phase > BEHIND:
            self.pacer.stats.drop("ticks", int((now - self._next) / BLOCK_SECONDS))
            self._next = now - self._phase
        self._on_tick(now)
        while self._next + self._phase <= now + 1e-4:
            block = self.pacer.block(now=self._next + self._phase)
            for sink in tuple(self.sinks):
                sink.sound(block, time=self._next)
            self._next += BLOCK_SECONDS
        self._tick_timer = self._loop.call_later(max(0.0, self._next + self._phase - self._clock()), self._tick)
        self.poke()
