"""What is to be said: one bounded queue in order, whatever goes wrong with one thing in it. And answers of all kinds of chat services."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from engine.types import AvatarError
from streaming.chat import Chat
from streaming.pacing import RATE
from streaming.settings import ServerSettings
from streaming.sound import Pcm16, SoundStream
from streaming.speaker import AHEAD_SECONDS, WAITING, WAITING_SECONDS, Speaker
from streaming.tts import Piece
from tests.caller import SETTINGS, ask, form, house, live, until
from tests.fakes import FakeSpeech
from tests.test_server_media import sound

LEVELS = {"one": 0.1, "two": 0.2, "three": 0.3}
"""How loud the words of `Words` are."""


@dataclass
class Words(FakeSpeech):
    """Speaks a word as half a second of its level; "bad" cannot be spoken, and nobody has said why."""

    async def speak(self, text: str, *, voice: str | None = None) -> AsyncGenerator[Piece, None]:
        """See Synthesizer."""
        self.spoken.append(text)
        if text == "bad":
            raise ZeroDivisionError
        yield Piece(np.full(RATE // 2, LEVELS.get(text, 0.5), np.float32), RATE)


@dataclass
class Desk:
    """A speaker and the stream it speaks into, read by hand."""

    words: Words = field(default_factory=Words)
    stream: SoundStream = field(default_factory=SoundStream)
    notices: list[str] = field(default_factory=list)
    settings: ServerSettings = SETTINGS
    heard: list[float] = field(default_factory=list)  # level of every block taken

    def __post_init__(self) -> None:
        self.speaker = Speaker(self.stream, synthesizer=self.words, chat=Chat(self.settings), notice=self.notices.append)
        self._now = 100.0

    async def run(self, seconds: float) -> None:
        """Let the stream run, faster than time."""
        for _ in range(round(seconds / 0.02)):
            self._now += 0.02
            self.heard += [round(float(block[1].max()), 1) for block, _ in self.stream.blocks(now=self._now)]
            await asyncio.sleep(0)

    async def settle(self) -> None:
        """Let whatever can be made be made."""
        for _ in range(50):
            await asyncio.sleep(0)

    @property
    def order(self) -> list[float]:
        """Levels in the order they were heard, silence and repeats left out."""
        return [level for before, level in zip([0.0, *self.heard], self.heard, strict=False) if level not in (0.0, before)]


def file(seconds: float, level: float = 0.4) -> Pcm16:
    """Decoded sound of one level."""
    return np.full(round(seconds * RATE), level * 32768, np.int16)


def run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """On a loop of its own."""
    asyncio.run(story())


def test_a_file_waits_for_the_texts_before_it() -> None:
    async def story() -> None:
        desk = Desk()
        desk.speaker.say("one")
        desk.speaker.say("two")
        desk.speaker.play(file(0.5))
        desk.speaker.say("three")
        await desk.run(3.0)
        assert desk.order == [0.1, 0.2, 0.4, 0.3]
        assert not desk.speaker.speaking

    run(story)


def test_texts_and_files_are_counted_until_they_have_been_said() -> None:
    async def story() -> None:
        desk = Desk()
        for k in range(WAITING):
            desk.speaker.play(file(0.5)) if k % 2 else desk.speaker.say("one")
            await desk.settle()  # it is made at once; it still has to be said
        with pytest.raises(AvatarError, match=f"^{WAITING} texts and files .*interrupt first\\.$"):
            desk.speaker.say("two")
        with pytest.raises(AvatarError, match=f"^{WAITING} texts and files"):
            desk.speaker.play(file(0.1))
        await desk.run(0.6)
        desk.speaker.say("two")
        desk.speaker.cancel()
        assert desk.speaker.utterances == 0
        assert desk.speaker.seconds == 0
        desk.speaker.play(file(0.1))

    run(story)


def test_seconds_are_limited_too_but_one_long_file_may_be_played() -> None:
    async def story() -> None:
        desk = Desk()
        long = np.broadcast_to(np.int16(9000), (round((WAITING_SECONDS + 60) * RATE),))  # takes no memory
        desk.speaker.play(long)
        assert desk.speaker.seconds == pytest.approx(WAITING_SECONDS + 60)
        with pytest.raises(AvatarError, match=r"^More than 15 minutes .*interrupt first\.$"):
            desk.speaker.say("two")
        desk.speaker.cancel()
        desk.speaker.play(long[: round((WAITING_SECONDS - 100) * RATE)])
        desk.speaker.say("x" * 1200)  # 86 s, as it is read aloud
        with pytest.raises(AvatarError, match="^More than 15 minutes"):
            desk.speaker.say("x" * 1200)

    run(story)


def test_speech_is_made_only_shortly_before_it_is_said() -> None:
    async def story() -> None:
        desk = Desk()
        desk.speaker.play(file(AHEAD_SECONDS + 5))
        desk.speaker.say("one")
        desk.speaker.say("two")
        await desk.settle()
        assert desk.words.spoken == []
        assert desk.speaker.utterances == 3
        desk.speaker.cancel()
        await desk.settle()
        assert not desk.speaker.speaking

    run(story)


def test_a_fault_nobody_foresaw_is_told_and_the_next_text_is_said() -> None:
    async def story() -> None:
        desk = Desk()
        for word in ("one", "bad", "two"):
            desk.speaker.say(word)
        await desk.run(2.0)
        assert desk.order == [0.1, 0.2]
        assert len(desk.notices) == 1
        assert "ZeroDivisionError" in desk.notices[0]
        assert not desk.speaker.speaking

    run(story)


def test_too_much_is_refused_by_the_server_in_its_envelope() -> None:
    async def story() -> None:
        async with house(SETTINGS) as home:
            caller = await home.call(camera=None, offer={"drive": "voice"})
            await until(lambda: caller.heard("hello"))
            answers = [
                (await ask(home, "POST", "/humanaudio", data=form(sound(seconds=3.0), name="file", sessionid=caller.session)))[::2]
                for _ in range(WAITING + 1)
            ]
            assert [status for status, _ in answers] == [200] * WAITING + [400]
            assert answers[-1][1]["code"] == -1
            assert "interrupt" in answers[-1][1]["msg"]
            caller.send(type="say", text="And one more")
            await until(lambda: caller.heard("notice"))
            caller.send(type="say", text="Something urgent", interrupt=True)
            await asyncio.sleep(0.2)
            assert len(caller.heard("notice")) == 1

    live(story)


# -- chat ------------------------------------------------------------------------------------------------------------------


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def answers(handler: Handler) -> list[str]:
    """What a service makes the avatar say. Raises AvatarError."""
    app = web.Application()
    app.router.add_post("/v1/chat/completions", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        chat = Chat(ServerSettings(chat_url=f"http://127.0.0.1:{runner.addresses[0][1]}/v1"))
        return [sentence async for sentence in chat.answer("Hello")]
    finally:
        await runner.cleanup()


def whole(content: Any, **options: Any) -> Handler:
    """A service that does not stream."""

    async def handler(request: web.Request) -> web.StreamResponse:
        body = {"choices": [{"index": 0, "message": {"role": "assistant", "content": content}}]}
        return web.Response(text=json.dumps(body, indent=2), **{"content_type": "application/json", **options})

    return handler


@pytest.mark.parametrize("kind", ["application/json", "text/plain"])
def test_an_answer_in_one_piece_is_spoken_as_well(kind: str) -> None:
    assert asyncio.run(answers(whole("Good day. How are you?\nFine", content_type=kind))) == ["Good day.", "How are you?", "Fine"]


def test_an_answer_in_parts_and_a_long_one_are_understood() -> None:
    assert asyncio.run(answers(whole([{"type": "text", "text": "Good "}, {"type": "text", "text": "day."}]))) == ["Good day."]
    assert sum(map(len, asyncio.run(answers(whole("Yes. " * 20_000))))) <= 8000


@pytest.mark.parametrize("body", ["", "{}", '{"choices": []}', '{"choices": [{"message": {"content": null}}]}', "data: [DONE]\n\n", "no JSON", "[1]"])
def test_no_answer_is_said_in_words(body: str) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(text=body)

    with pytest.raises(AvatarError, match="gave no answer"):
        asyncio.run(answers(handler))


def test_a_stream_without_a_word_is_said_in_words() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(text='data: {"choices": [{"delta": {"role": "assistant"}}]}\n\ndata: [DONE]\n\n', content_type="text/event-stream")

    with pytest.raises(AvatarError, match="gave no answer"):
        asyncio.run(answers(handler))


def test_what_an_interrupted_answer_had_said_is_remembered() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return await whole("One. Two. Three.")(request)

    async def story() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        chat = Chat(ServerSettings(chat_url=f"http://127.0.0.1:{runner.addresses[0][1]}/v1"))
        answer = chat.answer("Hello")
        assert await anext(answer) == "One."
        await answer.aclose()
        assert list(chat._history) == [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "One."}]
        await runner.cleanup()

    run(story)
