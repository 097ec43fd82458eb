"""Whether the other side of a connection is still there: packets of any kind, counted once a second.

Aiortc has no "disconnected"; a browser that was killed is noticed by ICE consent after 30 to 35 s (measured). A living one
sends receiver reports at least every second.
"""

from __future__ import annotations

import time

from aiortc import RTCPeerConnection, RTCRtpSender


class Pulse:
    """One connection's. `silence`, `connect`: s without a packet, and from the beginning to a connection, that mean it is dead."""

    def __init__(self, pc: RTCPeerConnection, sender: RTCRtpSender, *, silence: float, connect: float) -> None:
        self._pc, self._sender = pc, sender
        self._silence, self._connect = silence, connect
        self._packets = -1
        self._started = self._heard = time.monotonic()

    async def beats(self) -> bool:
        """Whether it lives; ask about once a second."""
        now = time.monotonic()
        if self._pc.connectionState != "connected":
            return now - self._started < self._connect
        report = await self._sender.getStats()
        packets = sum(getattr(entry, "packetsReceived", 0) for entry in report.values() if getattr(entry, "type", "") == "transport")
        if packets != self._packets:
            self._packets, self._heard = packets, now
        return now - self._heard < self._silence
