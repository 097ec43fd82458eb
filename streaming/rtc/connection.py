"""Peer connections with the mends: explicit ICE servers, loopback candidates, all closed on shutdown."""

from __future__ import annotations

import asyncio
import weakref
from contextvars import ContextVar

import aioice.ice
import aiortc.rtcpeerconnection as upstream
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from streaming.rtc import readers, send
from streaming.rtc.settings import DEFAULTS, Interfaces, RtcSettings

LOOPBACK = "127.0.0.1"

_interfaces: ContextVar[Interfaces] = ContextVar("interfaces", default="all")
_upstream_addresses = aioice.ice.get_host_addresses
_alive: weakref.WeakSet[PeerConnection] = weakref.WeakSet()
_installed = False


def install() -> None:
    """Put the mends into aiortc, once for the process; calling again does nothing. `make_peer_connection` calls it."""
    global _installed
    if _installed:
        return
    aioice.ice.get_host_addresses = _host_addresses
    upstream.RemoteStreamTrack = readers.RemoteTrack
    upstream.RTCRtpSender = send.RTCRtpSender
    _installed = True


def _host_addresses(use_ipv4: bool, use_ipv6: bool) -> list[str]:
    """aioice never offers 127.0.0.1; here the connection's settings say which interfaces to offer."""
    which = _interfaces.get()
    loopback = [LOOPBACK] if use_ipv4 and which in ("loopback", "both") else []
    return loopback + (_upstream_addresses(use_ipv4, use_ipv6) if which != "loopback" else [])


class PeerConnection(RTCPeerConnection):
    """aiortc's connection, with the settings of this package."""

    def __init__(self, settings: RtcSettings = DEFAULTS) -> None:
        install()
        self.settings = settings
        # With iceServers=None aiortc asks stun.l.google.com and may wait 5 s for it; an empty list asks nobody.
        super().__init__(RTCConfiguration(iceServers=list(settings.ice_servers)))
        _alive.add(self)

    async def setLocalDescription(self, sessionDescription: RTCSessionDescription | None = None) -> None:
        """As upstream; candidates are gathered here, on the interfaces that the settings name."""
        token = _interfaces.set(self.settings.interfaces)
        try:
            await super().setLocalDescription(sessionDescription)
        finally:
            _interfaces.reset(token)


def make_peer_connection(settings: RtcSettings = DEFAULTS) -> PeerConnection:
    """A new connection with every mend; must be called on a running event loop."""
    return PeerConnection(settings)


async def close_all() -> None:
    """Close every connection that is still open (a server's shutdown)."""
    await asyncio.gather(*(pc.close() for pc in list(_alive)))
