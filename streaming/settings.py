"""What the operator of a server chooses, and the limits every client meets; frozen dataclasses, checked once at the start."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.types import AvatarError

KIB = 1024
MIB = 1024 * KIB
CHAT_PROMPT = "You are speaking aloud through an avatar. Answer briefly, in plain sentences, without lists or markup."


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on whatever a client may send; every one of them is answered with a sentence, never with a dead server."""

    request_bytes: int = 256 * KIB  # any request that is not an upload
    sdp_bytes: int = 64 * KIB
    media_lines: int = 4  # m= lines of an offer
    candidates: int = 32  # ICE candidates of an offer
    upload_bytes: int = 20 * MIB  # a picture
    upload_pixels: int = 50_000_000
    uploads: int = 12  # pictures kept in memory, about 15 MB each; beyond it the oldest that no session shows goes
    uploads_bytes: int = 512 * MIB  # ... of all of them together, with what the generator has computed from them
    personas: int = 16  # named personas kept ready in memory; beyond it the one asked for longest ago is read from the disk again when asked for
    personas_bytes: int = 1024 * MIB  # ... of all of them together
    audio_bytes: int = 64 * MIB  # a file for /humanaudio
    audio_seconds: float = 600.0
    text_chars: int = 4000  # one /human request
    message_bytes: int = 16 * KIB  # one data channel message
    messages_per_second: float = 50.0
    camera_pixels: int = 1280 * 720  # larger camera pictures are scaled down before tracking
    camera_fps: float = 60.0  # faster cameras are thinned out, counted as drops
    viewers: int = 8  # WHEP viewers of one session
    record_seconds: float = 1800.0
    takes: int = 2  # people who are being recorded to teach a generator from; each has trackers of its own
    take_seconds: float = 240.0
    take_bytes: int = 512 * MIB
    piece_bytes: int = 32 * MIB  # what a browser sends of it at a time
    take_idle_seconds: float = 60.0  # without a picture or a piece, after which it is given up
    sittings: int = 4  # people who are making a persona of photos; one at a time is worked for
    photos: int = 12  # of one of them, each within upload_bytes
    sitting_idle_seconds: float = 900.0  # without a request, after which photos and portraits are deleted
    offers_per_minute: int = 60  # from one address; so are the next two
    views_per_minute: int = 120  # of sessions that are there
    uploads_per_minute: int = 60  # pictures and sound files
    connect_seconds: float = 15.0  # from the answer to a working connection


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Everything `serve` needs. `check` raises AvatarError with one sentence where a choice is unsafe or impossible."""

    host: str = "127.0.0.1"
    port: int = 8010
    token: str | None = None  # bearer token; needed when the server is reachable from other machines
    tls_cert: Path | str | None = None
    tls_key: Path | str | None = None
    allowed_origins: tuple[str, ...] = ()  # besides the server's own address
    ice_servers: tuple[str, ...] = ()  # "stun:host:port" or "turn:user:password@host:port"; none are contacted unless named
    max_sessions: int = 4
    generator: str = "puppet"
    generator_options: Mapping[str, Any] = field(default_factory=dict)  # for its constructor
    generator_told: tuple[str, ...] = ()  # what was chosen by rule and why, for /stats
    persona: str | None = None  # the persona of offers that name none; None: the built-in portrait
    persona_dir: Path | None = None  # default: engine.persona's
    workers: int = 0  # generator threads, 0: one per core up to max_sessions
    trackers: int = 0  # face tracking threads, 0: one per core up to max_sessions
    accelerator: bool = False  # one generator thread steps all sessions in one call; False: N threads, one session at a time
    badge: bool = False
    carry_strip: int = 0  # rows, see engine.config.OperatorSettings
    allow_echo: bool = False  # offers may ask for "generator": "echo" (benchmarks)
    tts_url: str | None = None  # an OpenAI-compatible endpoint that ends in /v1; None: espeak-ng
    tts_key: str | None = None
    tts_model: str = "tts-1"
    tts_voice: str | None = None
    chat_url: str | None = None  # an OpenAI-compatible endpoint that ends in /v1
    chat_key: str | None = None
    chat_model: str = "gpt-4o-mini"
    chat_prompt: str = CHAT_PROMPT
    virtual_camera: bool = False
    dwpose: Path | str | None = None  # a folder of DWPose's files, to read body and hands with instead of MediaPipe
    maps: tuple[str, ...] = ()  # NAME=FILE.onnx: networks that make condition pictures, for generators that are driven by them
    resume_seconds: float = 30.0  # how long a lost session is kept for its person
    silence_limit: float = 6.0  # s without any packet after which a peer is dead
    limits: Limits = field(default_factory=Limits)

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def address(self) -> str:
        """The address to open in a browser (without the token)."""
        host = "localhost" if self.host in ("localhost", "127.0.0.1", "::1", "0.0.0.0", "::") else self.host
        host = f"[{host}]" if ":" in host else host
        return f"{'https' if self.tls_cert else 'http'}://{host}:{self.port}"

    def check(self) -> None:
        """Raise AvatarError where the server must not start."""
        if not self.loopback and not self.token:
            raise AvatarError(f"Listening on {self.host} lets other machines in: give a secret with --token, or leave --host at 127.0.0.1.")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise AvatarError("TLS needs both a certificate and its key: give --tls-cert and --tls-key together.")
        for name in (self.tls_cert, self.tls_key):
            if name is not None and not Path(name).is_file():
                raise AvatarError(f"There is no file {name}: check --tls-cert and --tls-key.")
        if self.dwpose is not None:
            from engine.drivers.dwpose import files

            files(self.dwpose)
        if self.maps:
            from engine.driving import live_map_files

            live_map_files(self.maps)
        if self.max_sessions < 1:
            raise AvatarError("A server needs room for at least one session: give --max-sessions 1 or more.")
        if not 1 <= self.port <= 65535:
            raise AvatarError(f"{self.port} is not a port: choose one between 1 and 65535.")
        if self.carry_strip < 0:
            raise AvatarError(f"{self.carry_strip} rows cannot be copied: give --carry-strip 0 or more.")
        for url in self.ice_servers:
            if not url.startswith(("stun:", "turn:", "turns:")):
                raise AvatarError(f"'{url}' is not an ICE server: write stun:host:port or turn:user:password@host:port.")
            credentials, at, _ = url.partition(":")[2].rpartition("@")
            if not url.startswith("stun:") and not (at and all(credentials.partition(":"))):
                raise AvatarError(f"'{url}' names no user and password, without which no TURN server relays: write turn:user:password@host:port.")
