"""Answers from any OpenAI-compatible chat endpoint, sentence by sentence as they come."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp

from engine.types import AvatarError
from streaming.settings import ServerSettings

REMEMBERED = 20
"""Messages of the conversation that are sent along."""
ANSWER_CHARS = 8000
TIMEOUT = 60.0
"""s for a whole answer."""
NOT_CONFIGURED = 'No chat service is configured: start the server with --chat-url, or use type "echo" to have the text spoken as it is.'
_END = re.compile(r"(?<=[.!?…])[\s\"')\]]+|(?<=[。！？])|\n+")


@dataclass(slots=True)
class Chat:
    """One session's conversation."""

    settings: ServerSettings
    _history: deque[dict[str, str]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def check(self) -> None:
        """Raise AvatarError where there is no endpoint."""
        if not self.settings.chat_url:
            raise AvatarError(NOT_CONFIGURED)

    async def answer(self, text: str) -> AsyncIterator[str]:
        """Sentences of the answer to `text`. Raises AvatarError where the service does not answer."""
        self.check()
        self._history.append({"role": "user", "content": text})
        spoken: list[str] = []
        rest = ""
        try:
            async for piece in self._pieces():
                rest += piece
                *done, rest = _END.split(rest)
                for sentence in filter(None, map(str.strip, done)):
                    spoken.append(sentence)
                    yield sentence
            if rest.strip():
                spoken.append(rest.strip())
                yield rest.strip()
        finally:
            # An interrupted answer is remembered as far as it was spoken.
            if spoken:
                self._history.append({"role": "assistant", "content": " ".join(spoken)})

    async def _pieces(self) -> AsyncIterator[str]:
        settings = self.settings
        body = {"model": settings.chat_model, "stream": True, "messages": [{"role": "system", "content": settings.chat_prompt}, *self._history]}
        headers = {"Authorization": f"Bearer {settings.chat_key}"} if settings.chat_key else {}
        url = f"{(settings.chat_url or '').rstrip('/')}/chat/completions"
        count = 0
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT)) as session,
                session.post(url, json=body, headers=headers) as response,
            ):
                if response.status != 200:
                    raise AvatarError(f"The chat service refused with status {response.status}; check --chat-url, its model and its key.")
                async for line in response.content:
                    piece = _delta(line.decode("utf-8", "replace"))
                    count += len(piece)
                    if count > ANSWER_CHARS:
                        return
                    if piece:
                        yield piece
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise AvatarError("The chat service cannot be reached; check --chat-url.") from error


def _delta(line: str) -> str:
    """The text of one server-sent event, empty where it has none."""
    name, _, data = line.strip().partition(":")
    if name != "data" or data.strip() == "[DONE]":
        return ""
    try:
        choices = json.loads(data).get("choices") or [{}]
        return str((choices[0].get("delta") or {}).get("content") or "")
    except (ValueError, AttributeError, IndexError, KeyError):
        return ""
