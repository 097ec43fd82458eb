"""Answers from any OpenAI-compatible chat endpoint, sentence by sentence as they come, or whole from one that does not stream."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from engine.types import AvatarError
from streaming.settings import ServerSettings

REMEMBERED = 20
"""Messages of the conversation that are sent along."""
ANSWER_CHARS = 8000
ANSWER_BYTES = 512 * 1024
"""Of a whole answer that comes in one piece, its JSON around it included."""
TIMEOUT = 60.0
"""s without a word from the service."""
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

    async def answer(self, text: str) -> AsyncGenerator[str, None]:
        """Sentences of the answer to `text`. Raises AvatarError where the service does not answer."""
        self.check()
        self._history.append({"role": "user", "content": text})
        spoken: list[str] = []
        rest = ""
        try:
            async with aclosing(self._pieces()) as pieces:
                async for piece in pieces:
                    rest += piece
                    *done, rest = _END.split(rest)
                    for sentence in filter(None, map(str.strip, done)):
                        spoken.append(sentence)
                        yield sentence
            if rest.strip():
                spoken.append(rest.strip())
                yield rest.strip()
            if not spoken:
                raise AvatarError("The chat service gave no answer; ask again, or check its model (--chat-model).")
        finally:
            # An interrupted answer is remembered as far as it was handed on; speech is made a little ahead of what is heard.
            if spoken:
                self._history.append({"role": "assistant", "content": " ".join(spoken)})

    async def _pieces(self) -> AsyncGenerator[str, None]:
        settings = self.settings
        body = {"model": settings.chat_model, "stream": True, "messages": [{"role": "system", "content": settings.chat_prompt}, *self._history]}
        headers = {"Authorization": f"Bearer {settings.chat_key}"} if settings.chat_key else {}
        url = f"{(settings.chat_url or '').rstrip('/')}/chat/completions"
        count, plain = 0, ""
        # No limit on the whole: an answer is read only as fast as it is spoken.
        limits = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT, sock_read=TIMEOUT)
        try:
            async with (
                aiohttp.ClientSession(timeout=limits, read_bufsize=ANSWER_BYTES // 2) as session,
                session.post(url, json=body, headers=headers) as response,
            ):
                if response.status != 200:
                    raise AvatarError(f"The chat service refused with status {response.status}; check --chat-url, its model and its key.")
                async for line in response.content:
                    text = line.decode("utf-8", "replace")
                    if not text.startswith("data:"):
                        plain += text if len(plain) < ANSWER_BYTES else ""
                        continue
                    piece = _content(text.removeprefix("data:"))
                    count += len(piece)
                    if count > ANSWER_CHARS:
                        return
                    if piece:
                        yield piece
        except (aiohttp.ClientError, TimeoutError) as error:
            raise AvatarError("The chat service cannot be reached; check --chat-url.") from error
        except ValueError as error:
            raise AvatarError("The chat service's answer cannot be read; check --chat-url and its model.") from error
        if not count and plain.strip():  # an endpoint that knows no `stream`
            yield _content(plain)[:ANSWER_CHARS]


def _content(data: str) -> str:
    """The text in one JSON object, of a stream (`delta`) or a whole answer (`message`); empty where it has none."""
    try:
        choice = (json.loads(data).get("choices") or [{}])[0]
        content: Any = (choice.get("delta") or choice.get("message") or {}).get("content")
    except (ValueError, RecursionError, AttributeError, LookupError, TypeError):
        return ""
    if isinstance(content, list):  # in parts
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
