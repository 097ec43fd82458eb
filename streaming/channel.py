"""The data channel "avatar": one JSON object a message, `type` says which. What is unknown or malformed is answered with a notice.

From the page: ping {t} · set {drive, background {kind, colour, picture}, barge_in, return_voice; any of them} · neutral ·
say {text, interrupt} · interrupt · record {on} · shown {frames [[rtp, ms from capture to display]]} · bye.
To the page: pong {t, server_time} · hello {sessionid, resume, view, ai_generated, generator, notice, persona, drive, barge_in, return_voice,
badge, chat, limits} · frames {pairs [[outgoing RTP time, capture s, sent s]]} ten times a second · stats {...} once a second, as
in /stats · state {speaking, drive, face, neutral} on change · notice {level, text} · recorded {url} · bye {reason}. Times are
seconds of the server's clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable
from typing import Any, get_args

from aiortc import RTCDataChannel
from aiortc.exceptions import InvalidStateError

from engine.config import Background
from engine.types import AvatarError, Drive
from streaming.live import Live
from streaming.rtc.receive import received_losses
from streaming.uploads import Uploads

logger = logging.getLogger(__name__)

PAIRS_SECONDS = 0.1
"""s between two messages with pairs: 10 a second."""
BYE_SECONDS = 1.0
"""s a farewell waits for a channel that is not open yet."""
LEAVING_SECONDS = 0.05
"""s that a farewell gets to leave before the connection is closed."""
BUFFER_LIMIT = 256 * 1024
"""Bytes the channel may hold back before unimportant messages (pairs, stats) are left out."""


class Channel:
    """One peer's side of the protocol; before the channel is open, messages are dropped."""

    def __init__(self, live: Live, *, uploads: Uploads) -> None:
        self.live = live
        self._uploads = uploads
        self.on_bye: Callable[[], None] = lambda: None  # the person leaves for good; set by the peer
        self.on_record: Callable[[bool], None] = lambda _: None  # start or stop recording; set by the peer's owner
        self._channel: RTCDataChannel | None = None
        self._opened = asyncio.Event()
        self._pairs: list[list[float]] = []
        self._pairs_sent = 0.0
        self._second = 0.0
        self._messages = 0
        self._handlers: dict[str, Callable[[dict[str, Any]], None]] = {
            "ping": self._ping,
            "set": self._set,
            "neutral": lambda _: self.live.tracking.set_neutral(),
            "interrupt": lambda _: self.live.interrupt(),
            "bye": lambda _: self.on_bye(),
            "say": self._say,
            "record": self._record,
            "shown": self._shown,
        }

    def open(self, channel: RTCDataChannel) -> None:
        """The channel is there."""
        self._channel = channel
        transport = channel.transport.transport
        self.live.losses = lambda: received_losses(transport)
        self._opened.set()
        channel.on("message", self._on_message)
        spec = self.live.stepper.generator.spec
        self.send(
            {
                "type": "hello",
                "sessionid": self.live.id,
                "resume": self.live.resume_token,
                "view": self.live.view_id,
                "ai_generated": True,
                "generator": "echo" if self.live.echo else spec.name,
                "notice": "" if self.live.echo else spec.notice,
                "persona": self.live.persona.name,
                "drive": self.live.drive,
                "barge_in": self.live.barge_in,
                "return_voice": self.live.return_voice,
                "badge": self.live.settings.badge,
                "chat": bool(self.live.settings.chat_url),
                "limits": {"text": self.live.settings.limits.text_chars, "viewers": self.live.settings.limits.viewers},
            }
        )
        self.live.tell_state(always=True)

    async def bye(self, reason: str) -> None:
        """Say why the session ends; where the channel is only just opening, wait for it a little."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BYE_SECONDS):
                await self._opened.wait()
        self.send({"type": "bye", "reason": reason})
        await asyncio.sleep(LEAVING_SECONDS)

    def close(self) -> None:
        """Nothing is sent any more."""
        self._channel = None

    # -- out -----------------------------------------------------------------------------------------------------------

    def send(self, message: dict[str, Any]) -> None:
        """One message; lost where the channel is not open."""
        channel = self._channel
        if channel is None or channel.readyState != "open":
            return
        if message["type"] in ("frames", "stats") and channel.bufferedAmount > BUFFER_LIMIT:
            self.live.stats.drop("channel")
            return
        try:
            channel.send(json.dumps(message))
        except (InvalidStateError, ConnectionError):
            self._channel = None

    def notice(self, text: str, level: str = "info") -> None:
        """A sentence for the person."""
        self.send({"type": "notice", "level": level, "text": text})

    def pair(self, rtp: int, capture: float, sent: float) -> None:
        """An outgoing picture: its RTP timestamp, the capture time of the motion it shows, when it left (s, server clock)."""
        self._pairs.append([rtp, round(capture, 4), round(sent, 4)])
        if sent - self._pairs_sent >= PAIRS_SECONDS:
            self._pairs_sent = sent
            self.send({"type": "frames", "pairs": self._pairs})
            self._pairs = []

    def second(self) -> None:
        """Called once a second: the stats."""
        self.send({"type": "stats", **self.live.snapshot()})

    # -- in ------------------------------------------------------------------------------------------------------------

    def _on_message(self, data: str | bytes) -> None:
        now = time.monotonic()
        limits = self.live.settings.limits
        if now - self._second > 1.0:
            self._second, self._messages = now, 0
        self._messages += 1
        if self._messages > limits.messages_per_second:
            self.live.stats.drop("messages")
            return
        try:
            if len(data) > limits.message_bytes:
                raise AvatarError(f"That message is too long; {limits.message_bytes} bytes is the limit.")
            try:
                message = json.loads(data)
            except (ValueError, RecursionError):
                raise AvatarError("That message is not JSON.") from None
            kind = message.get("type") if isinstance(message, dict) else None
            handler = self._handlers.get(kind) if isinstance(kind, str) else None
            if handler is None:
                raise AvatarError("The server does not know that message; reload the page, it may be older than the server.")
            handler(message)
        except AvatarError as error:
            self.notice(str(error), "error")
        except Exception as error:  # this runs inside aiortc's receiving loop, which would end, and the connection with it
            logger.exception("A message of the page could not be followed.")
            self.notice(f"The server could not do that because of an internal error ({type(error).__name__}).", "error")

    def _ping(self, message: dict[str, Any]) -> None:
        self.send({"type": "pong", "t": message.get("t"), "server_time": time.monotonic()})

    def _set(self, message: dict[str, Any]) -> None:
        live = self.live
        for name, value in message.items():
            if name == "type":
                continue
            if name == "drive" and value in get_args(Drive):
                live.session.configure(drive=value)
            elif name == "background" and isinstance(value, dict):
                live.session.configure(background=self._background(value))
            elif name in ("barge_in", "return_voice") and isinstance(value, bool):
                setattr(live, name, value)
            else:
                raise AvatarError(f"'{name}' cannot be set to that.")

    def _background(self, value: dict[str, Any]) -> Background:
        kind = value.get("kind")
        if kind == "keep" or kind == "blur":
            return Background(kind)
        if kind == "colour":
            return Background("colour", colour=parse_colour(value.get("colour")))
        if kind == "picture":
            return Background("picture", picture=self._uploads.get(value.get("picture")).rgb)
        raise AvatarError("A background is one of: keep, blur, colour, picture.")

    def _say(self, message: dict[str, Any]) -> None:
        text = checked_text(message.get("text"), self.live.settings.limits.text_chars)
        if message.get("interrupt") is True:
            self.live.interrupt()
        self.live.speaker.say(text)

    def _record(self, message: dict[str, Any]) -> None:
        self.on_record(message.get("on") is True)

    def _shown(self, message: dict[str, Any]) -> None:
        frames = message.get("frames")
        if not isinstance(frames, list):
            raise AvatarError("'shown' needs a list of [rtp, milliseconds].")
        for frame in frames[:100]:
            if isinstance(frame, list) and len(frame) == 2 and isinstance(frame[1], (int, float)) and 0 <= frame[1] < 60_000:
                self.live.stats.stage("shown", frame[1] / 1000.0)


def checked_text(text: Any, most: int) -> str:
    """A text to be spoken, stripped. Raises AvatarError."""
    if not isinstance(text, str) or not text.strip():
        raise AvatarError("There is no text to speak: send a 'text' that is not empty.")
    if len(text) > most:
        raise AvatarError(f"That text is too long: {most} characters is the limit.")
    return text.strip()


def parse_colour(text: Any) -> tuple[int, int, int]:
    """ "#rrggbb" -> (r, g, b). Raises AvatarError."""
    if isinstance(text, str) and len(text) == 7 and text[0] == "#":
        try:
            return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)
        except ValueError:
            pass
    raise AvatarError("A colour is written as #rrggbb.")
