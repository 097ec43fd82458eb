"""What a session says: texts, answers and sound files, one after another, until it is interrupted. On the event loop.

One queue for all of them, bounded in number and in seconds. Speech is made little more than AHEAD_SECONDS before it is said, so
that what waits are texts and the files themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from engine.types import AvatarError
from streaming.chat import Chat
from streaming.pacing import RATE
from streaming.sound import Pcm16, SoundStream, Utterance
from streaming.soundfile import ToRate
from streaming.tts import Synthesizer

logger = logging.getLogger(__name__)

WAITING = 16
"""Texts and files that may be said and wait to be said."""
WAITING_SECONDS = 900.0
"""s of sound they may be together, 86 MB; one alone may be longer (its own limit is the server's)."""
CHARS_PER_SECOND = 14.0
"""Of a text read aloud: what a text is reckoned at before its sound is there."""
ANSWER_SECONDS = 30.0
"""s an answer is reckoned at, since nobody knows."""
AHEAD_SECONDS = 20.0
"""Speech synthesised ahead of what is being said."""


@dataclass(slots=True)
class Item:
    """Something to say."""

    sound: Pcm16 | AsyncGenerator[str, None]  # the sound itself, or sentences
    seconds: float  # of sound that is still to be made of it, as far as it can be reckoned


class Speaker:
    """`notice(sentence)` is called with whatever goes wrong while speaking."""

    def __init__(self, stream: SoundStream, *, synthesizer: Synthesizer, chat: Chat, notice: Callable[[str], None]) -> None:
        self.chat = chat
        self._stream = stream
        self._synthesizer = synthesizer
        self._notice = notice
        self._waiting: deque[Item] = deque()
        self._making: Item | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def synthesising(self) -> bool:
        """Whether speech is being made."""
        return self._task is not None and not self._task.done()

    @property
    def speaking(self) -> bool:
        """Whether something is being said, made or waiting."""
        return self._stream.speaking or bool(self._waiting) or self.synthesising

    @property
    def utterances(self) -> int:
        """Texts and files that are being said or wait."""
        return self._stream.utterances + len(self._waiting)

    @property
    def seconds(self) -> float:
        """Of sound that they are and will be."""
        coming = [*self._waiting] if self._making is None else [self._making, *self._waiting]
        return self._stream.seconds + sum(item.seconds for item in coming)

    def say(self, text: str) -> None:
        """Speak a text. Raises AvatarError where too much waits already."""
        self._add(Item(_only(text), len(text) / CHARS_PER_SECOND))

    def answer(self, text: str) -> None:
        """Speak the chat service's answer to a text. Raises AvatarError where there is none or too much waits."""
        self.chat.check()
        self._add(Item(self.chat.answer(text), ANSWER_SECONDS))

    def play(self, pcm: Pcm16) -> None:
        """Speak sound: [N] int16 at 48 kHz. Raises AvatarError where too much waits already."""
        self._add(Item(pcm, len(pcm) / RATE))

    def cancel(self) -> None:
        """Be silent and forget what was to be said; the processes and requests behind it end."""
        self._waiting.clear()
        self._making = None
        if self._task is not None:
            self._task.cancel()
        self._task = None
        self._stream.interrupt()

    def _add(self, item: Item) -> None:
        if self.utterances >= WAITING:
            raise AvatarError(f"{WAITING} texts and files are waiting to be spoken already; wait, or interrupt first.")
        if self.utterances and self.seconds + item.seconds > WAITING_SECONDS:
            raise AvatarError(f"More than {WAITING_SECONDS / 60:.0f} minutes would be waiting to be spoken; wait, or interrupt first.")
        self._waiting.append(item)
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        while self._waiting:
            item = self._waiting.popleft()
            utterance = Utterance()
            self._stream.say(utterance)
            try:
                await self._make(item, utterance)
            except AvatarError as error:
                self._notice(str(error))
            except Exception as error:  # whatever it is, what waits behind it is still to be said
                logger.exception("Something could not be spoken.")
                self._notice(f"That could not be spoken because of an internal error ({type(error).__name__}).")
            finally:
                utterance.done = True

    async def _make(self, item: Item, utterance: Utterance) -> None:
        if not isinstance(item.sound, AsyncGenerator):
            utterance.pcm.append(item.sound)
            return
        self._making = item
        try:
            async with contextlib.aclosing(item.sound) as sentences:
                async for sentence in sentences:
                    await self._speak(sentence, item, utterance)
        finally:
            if self._making is item:  # else it was interrupted, and another one may be under way
                self._making = None

    async def _speak(self, sentence: str, item: Item, utterance: Utterance) -> None:
        await self._let_pass()
        convert: ToRate | None = None
        async with contextlib.aclosing(self._synthesizer.speak(sentence)) as pieces:
            async for piece in pieces:
                convert = convert or ToRate(piece.rate)
                utterance.pcm.extend(convert.push(piece.pcm))
                item.seconds = max(0.0, item.seconds - len(piece.pcm) / piece.rate)
                await self._let_pass()
        if convert is not None:
            utterance.pcm.extend(convert.end())

    async def _let_pass(self) -> None:
        """Wait while there is more sound than need be."""
        surplus = self._stream.seconds - AHEAD_SECONDS
        while surplus > 0:
            await asyncio.sleep(surplus)
            surplus = self._stream.seconds - AHEAD_SECONDS


async def _only(text: str) -> AsyncGenerator[str, None]:
    yield text
