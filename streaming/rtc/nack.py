"""Lost packets are asked for again until they come or are no longer of use.

Upstream (rtcrtpreceiver.py, NackGenerator): a NACK is sent only when a new gap appears; a lost retransmission is not asked for
again before the next loss, or before 512 packets have piled up (measured: one freeze of 1.57 s at 1 % loss; uplink with 5 % loss:
longest stall 560 ms, with repeated NACKs 117 ms). Here: every REPEAT seconds, at most TRIES times, within the last WINDOW packets.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from aiortc.rtp import RtpPacket
from aiortc.utils import uint16_add, uint16_gt

REPEAT = 0.06
"""s between two requests for the same packet."""
TRIES = 8
"""Requests for one packet; together with REPEAT a little longer than the jitter buffer waits for it."""
WINDOW = 256
"""Packets behind the newest that are still asked for."""
LARGEST_GAP = 128
"""A larger gap is an outage: the stream goes on at a key picture, nothing of it is asked for."""


@dataclass(slots=True)
class _Missing:
    asked: float
    tries: int = 0


class NackTracker:
    """Stands in for aiortc's NackGenerator: `add` and `missing` are what its receiver uses."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._newest: int | None = None
        self._missing: dict[int, _Missing] = {}
        self.requests = 0

    def add(self, packet: RtpPacket) -> bool:
        """A packet arrives -> whether it opens a gap (then `missing` is to be sent at once)."""
        sequence = packet.sequence_number
        if self._newest is None:
            self._newest = sequence
            return False
        if not uint16_gt(sequence, self._newest):
            self._missing.pop(sequence, None)
            return False
        gap = uint16_add(sequence, -self._newest) - 1
        if gap > LARGEST_GAP:
            self._missing.clear()
        else:
            for offset in range(1, gap + 1):
                self._missing[uint16_add(self._newest, offset)] = _Missing(float("-inf"))
        self._newest = sequence
        oldest = uint16_add(sequence, -WINDOW)
        self._missing = {s: m for s, m in self._missing.items() if uint16_gt(s, oldest)} if self._missing else self._missing
        return 0 < gap <= LARGEST_GAP

    @property
    def missing(self) -> set[int]:
        """The packets to ask for now; asking is noted."""
        return self.due()

    def due(self) -> set[int]:
        """Packets never asked for, or not within REPEAT; those asked for often enough are forgotten."""
        now = self._now()
        due = {s for s, m in self._missing.items() if now - m.asked >= REPEAT}
        for sequence in due:
            entry = self._missing[sequence]
            entry.asked, entry.tries = now, entry.tries + 1
            if entry.tries >= TRIES:
                del self._missing[sequence]
        self.requests += len(due)
        return due

    def forget_before(self, sequence: int) -> None:
        """Packets before this one are of no use any more."""
        self._missing = {s: m for s, m in self._missing.items() if s == sequence or uint16_gt(s, sequence)}
