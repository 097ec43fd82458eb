"""A bad network inside one process: what aioice's sockets send passes a `Link` that drops, delays, reorders and throttles.

Everything is counted, nothing is random: "every 10th packet", not "10 %", so that a run can be repeated. Only what the links
named `side` send is impaired, each by its own `Impairment`, which may be exchanged while the connection runs:

    with impaired_network() as network:
        with network.side("server"):
            await server.setLocalDescription(...)     # gathers: its sockets belong to "server"
        network.links["server"].impairment = Impairment(drop_every=10)
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

_side: ContextVar[str] = ContextVar("side", default="")


@dataclass(frozen=True, slots=True)
class Impairment:
    """What happens to packets of one direction. Times in s, rate in bit/s."""

    drop_every: int = 0  # every n-th packet is lost
    burst_every: int = 0  # of every n packets ...
    burst: int = 8  # ... this many in a row are lost
    delay: float = 0.0
    jitter: float = 0.0  # 0..jitter more, in a fixed pattern that reorders packets
    reorder_every: int = 0  # every n-th packet comes `reorder_by` later than its turn
    reorder_by: float = 0.03
    rate: float = 0.0  # 0: no limit
    queue: float = 0.2  # s of packets that may wait for the rate; more are lost
    down: bool = False  # nothing passes


CLEAR = Impairment()
GOLDEN = 0.618034
"""Multiples of the golden ratio, modulo 1, fill 0..1 evenly in an order that looks random."""


@dataclass(slots=True)
class Link:
    """One direction of one connection."""

    impairment: Impairment = CLEAR
    sent: int = 0
    lost: int = 0
    bytes: int = 0
    _count: int = 0
    _busy_until: float = 0.0
    _later: list[asyncio.TimerHandle] = field(default_factory=list)

    def send(self, deliver: Callable[[], None], size: int) -> None:
        """Pass a packet on, now, later or never."""
        loop = asyncio.get_running_loop()
        self.sent += 1
        self._count += 1
        wait = self._wait(size, loop.time())
        if wait is None:
            self.lost += 1
            return
        self.bytes += size
        if wait <= 0:
            deliver()
        else:
            self._later = [handle for handle in self._later if handle.when() > loop.time()]
            self._later.append(loop.call_later(wait, deliver))

    def _wait(self, size: int, now: float) -> float | None:
        """Seconds until the packet comes out, or None where it is lost."""
        what, n = self.impairment, self._count
        if what.down:
            return None
        if what.drop_every and n % what.drop_every == 0:
            return None
        if what.burst_every and n % what.burst_every < what.burst:
            return None
        wait = what.delay + what.jitter * (n * GOLDEN % 1.0)
        if what.reorder_every and n % what.reorder_every == 0:
            wait += what.reorder_by
        if what.rate:
            self._busy_until = max(self._busy_until, now) + 8 * size / what.rate
            if self._busy_until - now > what.queue:
                self._busy_until -= 8 * size / what.rate
                return None
            wait += self._busy_until - now
        return wait

    def close(self) -> None:
        """Forget what is still under way."""
        for handle in self._later:
            handle.cancel()
        self._later.clear()


class _Transport:
    """A datagram transport whose packets pass a link."""

    def __init__(self, transport: asyncio.DatagramTransport, link: Link) -> None:
        self._transport = transport
        self._link = link

    def sendto(self, data: bytes, addr: Any = None) -> None:
        """As asyncio.DatagramTransport."""

        def deliver() -> None:
            if not self._transport.is_closing():
                self._transport.sendto(data, addr)

        self._link.send(deliver, len(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


@dataclass(slots=True)
class Network:
    """The links by the name of the side that sends."""

    links: dict[str, Link] = field(default_factory=dict)

    @contextlib.contextmanager
    def side(self, name: str) -> Iterator[Link]:
        """Sockets opened within belong to this side."""
        token = _side.set(name)
        try:
            yield self.links.setdefault(name, Link())
        finally:
            _side.reset(token)


@contextlib.contextmanager
def impaired_network() -> Iterator[Network]:
    """Put the shim under the running loop's datagram sockets until the end of the block."""
    network = Network()
    loop = asyncio.get_running_loop()
    upstream = loop.create_datagram_endpoint

    async def create(protocol_factory: Callable[[], Any], *args: Any, **kwargs: Any) -> Any:
        name = _side.get()
        if not name:
            return await upstream(protocol_factory, *args, **kwargs)
        link = network.links.setdefault(name, Link())

        def factory() -> Any:
            protocol = protocol_factory()
            made = protocol.connection_made
            protocol.connection_made = lambda transport: made(_Transport(transport, link))
            return protocol

        return await upstream(factory, *args, **kwargs)

    loop.create_datagram_endpoint = create  # type: ignore[method-assign]
    try:
        yield network
    finally:
        loop.create_datagram_endpoint = upstream  # type: ignore[method-assign]
        for link in network.links.values():
            link.close()
