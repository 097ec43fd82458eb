"""The camera's uplink is not starved while the estimate settles.

Upstream (rate.py): the first estimate (REMB) comes after 3 s and equals what happened to arrive, so that a browser which starts at
300 kbit/s is held there: 250 kbit/s after 2 s, 284 after 8, 484 after 14, 947 after 23. Here the estimate starts at the rate that
the answer asks for (`negotiate.tune_answer`), is told with the first packet, is held for HOLD_MS against early false alarms
(arrival times are taken on a busy event loop) unless packets are lost,
and never falls below a floor; below that the browser's own loss response rules.
"""

from __future__ import annotations

from aiortc.rate import RemoteBitrateEstimator

HOLD_MS = 4000
FLOOR = 300_000
"""bit/s"""


class SeededEstimator(RemoteBitrateEstimator):
    """aiortc's estimator with a start value, a hold and a floor."""

    def __init__(self, start_bitrate: int) -> None:
        super().__init__()
        self._start = start_bitrate
        self._hold_until: int | None = None
        self.rate_control.current_bitrate = start_bitrate
        self.rate_control.current_bitrate_initialized = True

    def release(self) -> None:
        """Packets are being lost: the start value was too high, hold it no longer."""
        self._hold_until = 0

    def add(self, arrival_time_ms: int, abs_send_time: int, payload_size: int, ssrc: int) -> tuple[int, list[int]] | None:
        """As upstream -> (bit/s, ssrcs) where the sender is to be told, else None."""
        if self._hold_until is None:
            self._hold_until = arrival_time_ms + HOLD_MS
        told = super().add(arrival_time_ms, abs_send_time, payload_size, ssrc)
        if told is None:
            return None
        floor = self._start if arrival_time_ms < self._hold_until else min(FLOOR, self._start)
        self.rate_control.current_bitrate = max(self.rate_control.current_bitrate, floor)
        return self.rate_control.current_bitrate, told[1]
