"""What a connection may be told: rates in bit/s, addresses, encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from aiortc import RTCIceServer

Interfaces = Literal["all", "loopback", "both"]
"""Host candidates to offer: every interface but loopback (aiortc's own rule), only 127.0.0.1, or both."""
EncoderChoice = Literal["auto", "x264", "nvenc"]
"""`auto` takes NVENC only where opening it and encoding one picture works, else x264; the others raise where they are missing."""

MIN_BITRATE = 150_000
"""bit/s; below this a 256 px picture at 30 fps is unreadable, so the sender drops frames instead."""


@dataclass(frozen=True, slots=True)
class RtcSettings:
    """How connections are made. Rates in bit/s."""

    ice_servers: tuple[RTCIceServer, ...] = ()  # empty: no STUN, no TURN, nothing leaves for the internet
    interfaces: Interfaces = "both"
    encoder: EncoderChoice = "auto"
    start_bitrate: int = 1_000_000  # of the avatar's video; doubled with every clean report until the first loss
    min_bitrate: int = MIN_BITRATE
    max_bitrate: int = 4_000_000
    camera_start_bitrate: int = 2_000_000  # asked of the browser's camera (x-google-start-bitrate) and seeded into REMB
    camera_max_bitrate: int = 4_000_000
    audio_bitrate: int = 40_000  # opus, mono


DEFAULTS = RtcSettings()
