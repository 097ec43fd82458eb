"""How fast a sender may send: loss response, retransmission budget, pacing, key pictures. Pure, with the time passed in.

Upstream (rtcrtpsender.py): the target follows REMB alone, loss in receiver reports is ignored, every NACK is answered at once
and for ever. Measured on a 1 Mbit/s link with a 200 ms queue, start 3 Mbit/s: 9481 packets sent, 7714 of them lost, no picture in
14 s. With what is below: 30 fps, 79 ms.
"""

from __future__ import annotations

from dataclasses import dataclass, field

LOSS_HIGH = 0.10
"""Share of lost packets above which the target is cut (the thresholds are those of Google's congestion control, section 6)."""
LOSS_LOW = 0.02
"""Below it the target grows."""
LOSS_HEAVY = 0.35
"""Above it the link is far too small or gone: the target falls to what got through."""
CUT = 0.5
"""Target *= 1 - CUT * loss."""
DELIVERED_SHARE = 0.9
GROWTH = 1.08
"""A second, while reports are clean."""
PROBE_GROWTH = 1.25
"""A clean report, before the first loss."""
QUEUE_DELAY = 0.05
"""s above the smallest round trip seen at which the target does not grow: a queue is filling."""
RTT_CREEP = 0.005
"""s a second by which that smallest round trip is forgotten, so that a longer route is not taken for a queue for ever."""
FAST_GROWTH = 2.0
"""A clean report, after a heavy loss, up to half of what was sent before it: an outage is over, or the link was merely narrower."""
EARLY_LOSS = 0.4
"""Share of packets reported lost by NACKs that is acted upon at once (a report comes once a second) ..."""
EARLY_PACKETS = 10
"""... of at least this many ..."""
EARLY_SPACING = 0.5
"""... and once in this many s."""
USED_SHARE = 2.0
"""The target does not grow beyond this many times what was sent: a still picture says nothing about the link."""
CONGESTED_FOR = 10.0
"""s after the last loss above LOSS_LOW during which pictures are paced and skipped."""
MAX_REPORT_GAP = 2.0
"""s: growth is given for at most this long a time between two reports."""


@dataclass(slots=True)
class RateControl:
    """The target bitrate of one sender, bit/s."""

    target: float
    floor: float
    ceiling: float
    remb: float | None = None  # what the receiver says it can take
    loss: float = 0.0  # the last report's, 0..1
    rtt_min: float = float("inf")  # s; the smallest seen lately
    _probing: bool = True  # nothing was lost yet
    _before: float = 0.0  # the target before a heavy loss, while it is being won back
    _congested_until: float = float("-inf")
    _last_report: float | None = None
    _early: float = float("-inf")

    def on_remb(self, bitrate: float) -> None:
        """Receiver's estimate (REMB), bit/s: a ceiling of its own."""
        self.remb = bitrate
        self.target = self._clamp(self.target)

    def on_report(self, loss: float, now: float, *, sent: float, rtt: float | None = None) -> None:
        """A receiver report: the share of packets lost since the last one, 0..1; `sent`: bit/s that were sent in that time; `rtt`: s."""
        elapsed = 1.0 if self._last_report is None else min(now - self._last_report, MAX_REPORT_GAP)
        self._last_report = now
        self.loss = loss
        if rtt is not None:
            self.rtt_min = min(self.rtt_min + RTT_CREEP * elapsed, rtt)
        if loss > LOSS_LOW:
            self._congested_until = now + CONGESTED_FOR
            self._probing = False
        if loss > LOSS_HEAVY:
            self._before = self.target
            self.target = min(self.target * (1 - CUT * loss), DELIVERED_SHARE * (1 - loss) * self.target)
        elif loss > LOSS_HIGH:
            self._before = 0.0
            self.target *= 1 - CUT * loss
        elif loss <= LOSS_LOW and (rtt is None or rtt < self.rtt_min + QUEUE_DELAY):
            self._grow(elapsed, tested=USED_SHARE * sent)
        self.target = self._clamp(self.target)

    def on_nack(self, lost: int, sent: int, now: float) -> bool:
        """`lost` of the last `sent` packets were reported so, well before any report -> whether the target was cut for it."""
        if sent < EARLY_PACKETS or lost <= EARLY_LOSS * sent or now - self._early < EARLY_SPACING:
            return False
        self._early = now
        self.on_report(lost / sent, now, sent=0.0)
        return True

    def _grow(self, elapsed: float, *, tested: float) -> None:
        """A clean report; `tested`: the rate that it speaks for."""
        if self.target < self._before / 2:
            self.target = min(self.target * FAST_GROWTH, self._before / 2)
            return
        self._before = 0.0
        if tested > self.target:
            self.target = min(self.target * (PROBE_GROWTH if self._probing else GROWTH**elapsed), tested)

    def congested(self, now: float) -> bool:
        """Whether packets were lost a short while ago."""
        return now < self._congested_until

    def _clamp(self, target: float) -> float:
        ceiling = self.ceiling if self.remb is None else min(self.ceiling, self.remb)
        return max(self.floor, min(target, ceiling))


RESEND_SHARE = 0.30
"""Retransmissions may take this share of the target."""
RESEND_DEPTH = 0.5
"""s of that share which may be spent at once."""
RESEND_MIN_BITS = 60_000
"""... but always at least this much: a burst of a few packets can be repaired at any rate."""
RESEND_SPACING = 0.05
"""s: the same packet is not sent again within max(this, round trip): the first answer is still under way."""


@dataclass(slots=True)
class ResendBudget:
    """Decides which NACKs are answered."""

    sent: int = 0
    refused: int = 0
    _bits: float | None = None
    _time: float = 0.0
    _last: dict[int, float] = field(default_factory=dict)  # sequence number -> when it was last sent again

    def allow(self, sequence: int, size: int, *, target: float, rtt: float | None, now: float) -> bool:
        """Whether packet `sequence` of `size` bytes may be sent again now; counts it."""
        depth = max(RESEND_SHARE * target * RESEND_DEPTH, RESEND_MIN_BITS)
        self._bits = depth if self._bits is None else min(depth, self._bits + RESEND_SHARE * target * (now - self._time))
        self._time = now
        if now - self._last.get(sequence, float("-inf")) < max(rtt or 0.0, RESEND_SPACING) or self._bits < 8 * size:
            self.refused += 1
            return False
        self._bits -= 8 * size
        self._last[sequence] = now
        self.sent += 1
        if len(self._last) > HISTORY:
            self._last = {k: t for k, t in self._last.items() if now - t < 1.0}
        return True


HISTORY = 1024
"""Packets kept for retransmission: 3 s at 4 Mbit/s. Upstream: 128, which a single key picture at 720p can fill."""

SKIP_AFTER = 0.25
"""s of the target's bits that may be owed to a congested link before pictures are skipped (before they are encoded, so nothing breaks)."""
SKIP_AFTER_CLEAR = 1.0
"""The same where nothing is being lost: only a runaway encoder gets there."""
BURST = 0.04
"""s of the target's bits that leave at once on a congested link; the rest of a large picture follows at PACE times the target."""
PACE = 1.5


@dataclass(slots=True)
class Pacer:
    """Bits owed to the link. On a link that loses nothing it never waits."""

    _owed: float = 0.0  # bits sent beyond target * time
    _time: float | None = None

    def _settle(self, target: float, now: float) -> None:
        if self._time is not None:
            self._owed = max(0.0, self._owed - target * (now - self._time))
        self._time = now

    def skip(self, *, target: float, congested: bool, now: float) -> bool:
        """Whether the next picture should not be sent at all."""
        self._settle(target, now)
        return self._owed > target * (SKIP_AFTER if congested else SKIP_AFTER_CLEAR)

    def add(self, size: int, *, target: float, now: float) -> None:
        """`size` bytes were sent."""
        self._settle(target, now)
        self._owed += 8 * size

    def forgive(self, target: float) -> None:
        """What is owed was lost rather than queued: the link is free again."""
        self._owed = min(self._owed, target * SKIP_AFTER)

    def wait(self, sent_bits: float, *, target: float, congested: bool) -> float:
        """Seconds that `sent_bits` of one picture should have taken so far; 0 on a clear link."""
        return max(0.0, sent_bits - BURST * target) / (PACE * target) if congested else 0.0


KEY_SPACING = 1.0
"""s between two key pictures: each costs 5 to 10 ordinary ones."""


@dataclass(slots=True)
class KeyRequests:
    """Merges requests for a key picture into one a second."""

    sent: int = 0
    _wanted: bool = False
    _last: float = float("-inf")  # the stream's first picture does not count: where it was lost, the next may follow at once

    def ask(self) -> None:
        """Someone needs a key picture."""
        self._wanted = True

    def take(self, now: float) -> bool:
        """Whether the next picture must be a key picture."""
        if not self._wanted or now - self._last < KEY_SPACING:
            return False
        self._wanted = False
        self._last = now
        self.sent += 1
        return True

    def first(self) -> None:
        """The stream begins with a key picture."""
        self._wanted = False
        self.sent += 1
