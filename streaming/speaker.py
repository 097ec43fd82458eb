"""What a session says: texts, answers and sound files, one after another, until it is interrupted. On the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable

from engine.types import AvatarError
from streaming.chat import Chat
from streaming.pacing import RATE
from streaming.sound import Pcm16, SoundStream, Utterance
from streaming.soundfile import ToRate
from streaming.tts import Synthesizer

WAITING = 16
"""Texts and files that may wait to be spoken."""
AHEAD_SECONDS = 20.0
"""Speech synthesised ahead of what is being said."""


class Speaker:
    """`notice(sentence)` is called with whatever goes wrong while speaking."""

    def __init__(self, stream: SoundStream, *, synthesizer: Synthesizer, chat: Chat, notice: Callable[[str], None]) -> None:
        self.chat = chat
        self._stream = stream
        self._synthesizer = synthesizer
        self._notice = notice
        self._waiting: deque[AsyncIterator[str]] = deque()
        self._task: asyncio.Task[None] | None = None

    @property
    def synthesising(self) -> bool:
        """Whether speech is being made."""
        return self._task is not None and not self._task.done()

    @property
    def speaking(self) -> bool:
        """Whether something is being said, made or waiting."""
        return self._stream.speaking or bool(self._waiting) or self.synthesising

    def say(self, text: str) -> None:
        """Speak a text. Raises AvatarError where too much waits already."""
        self._add(_only(text))

    def answer(self, text: str) -> None:
        """Speak the chat service's answer to a text. Raises AvatarError where there is none or too much waits."""
        self.chat.check()
        self._add(self.chat.answer(text))

    def play(self, pcm: Pcm16) -> None:
        """Speak sound: [N] int16 at 48 kHz."""
        self._stream.say(Utterance(deque([pcm]), done=True))

    def cancel(self) -> None:
        """Be silent and forget what was to be said; the processes and requests behind it end."""
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
        self._task = None
        self._stream.interrupt()

    def _add(self, sentences: AsyncIterator[str]) -> None:
        if len(self._waiting) >= WAITING:
            raise AvatarError("Too many texts are waiting to be spoken; wait, or interrupt first.")
        self._waiting.append(sentences)
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        while self._waiting:
            utterance = Utterance()
            self._stream.say(utterance)
            try:
                async for sentence in self._waiting.popleft():
                    await self._speak(sentence, utterance)
            except AvatarError as error:
                self._notice(str(error))
            finally:
                utterance.done = True

    async def _speak(self, sentence: str, utterance: Utterance) -> None:
        convert: ToRate | None = None
        async with contextlib.aclosing(self._synthesizer.speak(sentence)) as pieces:
            async for piece in pieces:
                convert = convert or ToRate(piece.rate)
                utterance.pcm.extend(convert.push(piece.pcm))
                surplus = sum(map(len, utterance.pcm)) / RATE - AHEAD_SECONDS
                if surplus > 0:
                    await asyncio.sleep(surplus)
        if convert is not None:
            utterance.pcm.extend(convert.end())


async def _only(text: str) -> AsyncIterator[str]:
    yield text
