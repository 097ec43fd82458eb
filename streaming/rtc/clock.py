"""When a received frame was captured, on this machine's monotonic clock.

Upstream offers nothing: a frame has its RTP time relative to the first one, sender reports are kept for statistics.

Every arrival is a bound: a packet of RTP time r that arrives at a was captured no later than a, so that
offset = a - r / rate is too late by (capture to send) + (network). A sender report is a better one: its RTP time is that of the
moment it was sent (RFC 3550, 6.4.1), so only the network is in it. The smallest offset seen lately is the estimate; half the
round trip, where known, is the network that even the best bound contains. Two windows of WINDOW seconds that take turns let the
minimum rise again, with clock drift (100 ppm is 1.5 ms in 15 s) or a new route. RTP time may wrap.
"""

from __future__ import annotations

from dataclasses import dataclass, field

WINDOW = 15.0
"""s"""
SLEW = 0.02
"""s a second: how fast the reported offset follows the estimate, so that capture times never run backwards."""
JUMP = 1.0
"""s: an arrival this far from the estimate does not belong to the same clock ..."""
JUMP_COUNT = 10
"""... and this many in a row mean that the sender's clock has started anew (a camera that was switched)."""
WRAP = 1 << 32


@dataclass(slots=True)
class CaptureClock:
    """One received stream's clock. `rate`: RTP ticks a second."""

    rate: int
    reports: int = 0
    _last: int | None = None  # newest unwrapped RTP time
    _current: float = float("inf")  # smallest offset of this window, s
    _previous: float = float("inf")  # ... of the one before
    _turn: float = field(default=float("-inf"))
    _shown: float | None = None  # the offset as reported, slewed
    _shown_at: float = 0.0
    _strange: int = 0

    def packet(self, rtp: int, arrival: float) -> None:
        """A media packet: RTP time 0..2^32-1, arrival in s on the monotonic clock."""
        self._bound(rtp, arrival)

    def report(self, rtp: int, arrival: float) -> None:
        """A sender report's RTP time and its arrival."""
        if self._last is None or rtp == 0:
            return  # nothing to compare it with yet; the next one comes in a second
        self.reports += 1
        self._bound(rtp, arrival)

    def capture(self, rtp: int, now: float, round_trip: float = 0.0) -> float | None:
        """s on the monotonic clock at which RTP time `rtp` was captured; None before any arrival. Never later than `now`."""
        if self._last is None:
            return None
        wanted = min(self._current, self._previous)
        if self._shown is None or abs(wanted - self._shown) > JUMP:
            self._shown = wanted
        else:
            room = SLEW * max(0.0, now - self._shown_at)
            self._shown += max(-room, min(room, wanted - self._shown))
        self._shown_at = now
        return min(now, self._unwrap(rtp) / self.rate + self._shown - round_trip / 2)

    def _bound(self, rtp: int, arrival: float) -> None:
        time = self._unwrap(rtp)
        offset = arrival - time / self.rate
        best = min(self._current, self._previous)
        if self._last is not None and abs(offset - best) > JUMP:
            self._strange += 1
            if self._strange < JUMP_COUNT:
                return
            self._current = self._previous = float("inf")
            self._shown = None
        self._strange = 0
        self._last = time if self._last is None else max(self._last, time)
        if arrival - self._turn > WINDOW:
            self._previous, self._current, self._turn = self._current, offset, arrival
        else:
            self._current = min(self._current, offset)

    def _unwrap(self, rtp: int) -> int:
        if self._last is None:
            return rtp
        return self._last + ((rtp - self._last + WRAP // 2) % WRAP) - WRAP // 2
