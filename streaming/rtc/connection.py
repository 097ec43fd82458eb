"""Peer connections with the mends: explicit ICE servers, loopback candidates, all closed on shutdown."""

from __future__ import annotations

import asyncio
import logging
import weakref
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import aioice.ice
import aiortc.rtcpeerconnection as upstream
import aiortc.rtcrtpreceiver
from aiortc import MediaStreamTrack, RTCConfiguration, RTCRtpTransceiver, RTCSessionDescription

from streaming.rtc import decode, readers, receive, send
from streaming.rtc.settings import DEFAULTS, Interfaces, RtcSettings

LOOPBACK = "127.0.0.1"
CLOSE_SECONDS = 2.0
"""s a connection may take to say goodbye at a shutdown."""

logger = logging.getLogger(__name__)

_interfaces: ContextVar[Interfaces] = ContextVar("interfaces", default="all")
_upstream_addresses = aioice.ice.get_host_addresses
_alive: weakref.WeakSet[RTCPeerConnection] = weakref.WeakSet()
_installed = False


def install() -> None:
    """Put the mends into aiortc, once for the process; calling again does nothing. `make_peer_connection` calls it."""
    global _installed
    if _installed:
        return
    for module, name, mend in MENDS:
        getattr(module, name)  # an upstream that has moved it fails here, not in the middle of a call
        setattr(module, name, mend)
    _installed = True


def _host_addresses(use_ipv4: bool, use_ipv6: bool) -> list[str]:
    """aioice never offers 127.0.0.1; here the connection's settings say which interfaces to offer."""
    which = _interfaces.get()
    loopback = [LOOPBACK] if use_ipv4 and which in ("loopback", "both") else []
    return loopback + (_upstream_addresses(use_ipv4, use_ipv6) if which != "loopback" else [])


MENDS: tuple[tuple[ModuleType, str, Any], ...] = (
    (aioice.ice, "get_host_addresses", _host_addresses),
    (upstream, "RemoteStreamTrack", readers.RemoteTrack),
    (upstream, "RTCRtpSender", send.RTCRtpSender),
    (upstream, "RTCRtpReceiver", receive.RTCRtpReceiver),
    (aiortc.rtcrtpreceiver, "decoder_worker", decode.decoder_worker),
)
"""Module, name and what is put there."""


class RTCPeerConnection(upstream.RTCPeerConnection):
    """aiortc's connection, with the settings of this package. (Its parent's name, so that private names mean the parent's.)"""

    def __init__(self, settings: RtcSettings = DEFAULTS) -> None:
        install()
        self.settings = settings
        # With iceServers=None aiortc asks stun.l.google.com and may wait 5 s for it; an empty list asks nobody.
        super().__init__(RTCConfiguration(iceServers=list(settings.ice_servers)))
        _alive.add(self)

    def __createTransceiver(self, direction: str, kind: str, sender_track: MediaStreamTrack | None = None) -> RTCRtpTransceiver:
        """Every sender and receiver that upstream makes gets the connection's settings, and the receiver its sender (for the round trip)."""
        transceiver: RTCRtpTransceiver = super().__createTransceiver(direction, kind, sender_track)
        sender, receiver = transceiver.sender, transceiver.receiver
        assert isinstance(sender, send.RTCRtpSender)
        assert isinstance(receiver, receive.RTCRtpReceiver)
        sender.configure(self.settings)
        receiver.configure(self.settings)
        receiver.sender = sender
        return transceiver

    async def setRemoteDescription(self, sessionDescription: RTCSessionDescription) -> None:
        """As upstream; an offer that has no place for one of our tracks goes on without it, where upstream raises in the answer."""
        await super().setRemoteDescription(sessionDescription)
        if sessionDescription.type != "offer":
            return
        for transceiver in [t for t in self.__transceivers if t.mid is None]:
            self.__transceivers.remove(transceiver)
            transport = transceiver.receiver.transport
            await transceiver.stop()
            await transport.stop()
            await transport.transport.stop()
            self.__dtlsTransports.discard(transport)
            self.__iceTransports.discard(transport.transport)

    async def close(self) -> None:
        """As upstream, but a connection that was only half made is closed too: upstream raises then, and every later close waits for ever."""
        try:
            await super().close()
        except Exception as error:
            logger.warning("A connection could not be closed in order: %r", error)
            if self.__isClosed and not self.__isClosed.done():
                self.__isClosed.set_result(True)
                for transport in self.__iceTransports:
                    await transport.stop()
                self.remove_all_listeners()

    async def setLocalDescription(self, sessionDescription: RTCSessionDescription | None = None) -> None:
        """As upstream; candidates are gathered here, on the interfaces that the settings name."""
        token = _interfaces.set(self.settings.interfaces)
        try:
            await super().setLocalDescription(sessionDescription)
        finally:
            _interfaces.reset(token)


PeerConnection = RTCPeerConnection


def make_peer_connection(settings: RtcSettings = DEFAULTS) -> PeerConnection:
    """A new connection with every mend; must be called on a running event loop."""
    return PeerConnection(settings)


async def close_all() -> None:
    """Close every connection that is still open (a server's shutdown). Without it aiortc's sockets and tasks outlive the server."""
    closing = [asyncio.ensure_future(pc.close()) for pc in list(_alive) if pc.connectionState != "closed"]
    if closing:
        await asyncio.wait(closing, timeout=CLOSE_SECONDS)
