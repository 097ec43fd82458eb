"""A person connected to the server over WebRTC, both in this process: what they send and what comes back."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import AsyncGenerator
from dataclasses import replace

import numpy as np
import pytest

from streaming.api import DESK
from streaming.settings import Limits, ServerSettings
from streaming.tts import Piece
from tests.caller import SETTINGS, Caller, colour_of, house, live, near, until
from tests.fakes import Camera, FakeFace, FakeGenerator, FakeSpeech, Seen, Voice, fake_studio
from tests.voices import vowel

ECHO = replace(SETTINGS, allow_echo=True)


def test_a_camera_comes_back_as_the_avatar() -> None:
    async def story() -> None:
        async with house(SETTINGS) as home:
            caller = await home.call(offer={"persona": "red"})
            assert caller.status == 200, caller.answer
            assert set(caller.answer) == {"sdp", "type", "sessionid", "resume"}
            await until(lambda: len(caller.frames) > 30 and caller.heard("frames") and caller.heard("stats"))
            assert near(colour_of(caller), "red")
            hello = caller.heard("hello")[0]
            assert hello["ai_generated"] is True
            assert hello["sessionid"] == caller.session
            figures = await caller.stats()
            assert figures["grid"] == "camera"
            assert figures["stages"]["pace"]["p50"] < 5.0, "never held"
            rtp, captured, sent = caller.heard("frames")[-1]["pairs"][-1]
            assert 0 <= rtp < 2**32
            assert 0 < sent - captured < 1.0
            assert "H264" in caller.answer["sdp"]
            assert "x-google-start-bitrate" in caller.answer["sdp"]

    live(story)


def test_the_generator_never_steps_on_the_event_loop() -> None:
    """With 60 ms of work a frame the loop goes on turning: pictures drop, nothing queues."""
    turns = [0]
    generator = FakeGenerator(work=0.06, ticks=lambda: turns[0])

    async def turn() -> None:
        while True:
            turns[0] += 1
            await asyncio.sleep(0.005)

    async def story() -> None:
        async with house(SETTINGS, studio=fake_studio(SETTINGS, generator=generator)) as home:
            watch = asyncio.create_task(turn())
            caller = await home.call()
            await until(lambda: len(caller.frames) > 25)
            watch.cancel()
            assert threading.get_ident() not in generator.threads
            assert np.median(generator.moved[-20:]) >= 2
            figures = await caller.stats()
            assert figures["drops"].get("window", 0) + figures["drops"].get("camera", 0) > 0

    live(story)


def test_without_a_camera_the_portrait_is_alive_and_speaks() -> None:
    speech = FakeSpeech()

    async def story() -> None:
        async with house(SETTINGS, studio=fake_studio(SETTINGS, speech=speech)) as home:
            caller = await home.call(camera=None, offer={"drive": "voice"})
            await until(lambda: len(caller.frames) > 20)
            assert not caller.loud()
            status, said = await caller.post("/human", sessionid=caller.session, text="Hello there, and a good day", type="echo")
            assert (status, said) == (200, {"code": 0, "msg": "ok", "data": None})
            await until(caller.loud)
            assert (await caller.post("/is_speaking", sessionid=caller.session))[1]["data"] is True
            assert any(message["speaking"] for message in caller.heard("state"))
            await until(lambda: not caller.heard("state")[-1]["speaking"])
            assert (await caller.post("/is_speaking", sessionid=caller.session))[1]["data"] is False
            assert speech.spoken == ["Hello there, and a good day"]
            figures = await caller.stats()
            assert figures["grid"] == "voice"
            assert abs(figures["av_offset_ms"]["p50"]) < 45

    live(story)


def test_interrupting_stops_speech_within_200_ms() -> None:
    async def story() -> None:
        async with house(SETTINGS) as home:
            caller = await home.call(camera=None, offer={"drive": "voice"})
            await until(lambda: len(caller.frames) > 5)
            await caller.post("/human", sessionid=caller.session, text="A very long sentence that goes on and on." * 5, type="echo")
            await until(lambda: len(caller.loud()) > 15)
            asked = time.monotonic()
            caller.send(type="interrupt")
            await asyncio.sleep(0.8)
            assert caller.loud(asked), "it was still speaking"
            assert max(caller.loud(asked)) - asked < 0.25  # 200 ms, and the receiver's own buffer of up to 80 ms takes part
            assert (await caller.post("/is_speaking", sessionid=caller.session))[1]["data"] is False
            count = len(caller.frames)
            await until(lambda: len(caller.frames) > count + 10)

    live(story)


def test_the_speakers_own_voice_comes_back_only_on_request() -> None:
    async def story() -> None:
        async with house(SETTINGS) as home:
            caller = await home.call(voice=Voice(level=0.6), offer={"drive": "voice"}, camera=None)
            await until(lambda: len(caller.levels) > 40)
            assert not caller.loud()
            caller.send(type="set", return_voice=True)
            await until(lambda: len(caller.loud()) > 10)
            caller.send(type="set", return_voice=False)
            await asyncio.sleep(0.4)
            since = time.monotonic()
            await asyncio.sleep(0.3)
            assert not caller.loud(since)

    live(story)


def test_speaking_over_the_avatar_interrupts_it_by_switch() -> None:
    async def story() -> None:
        async with house(SETTINGS) as home:
            voice = Voice(level=0.0)
            caller = await home.call(camera=None, voice=voice, offer={"drive": "voice"})
            await until(lambda: len(caller.frames) > 5)
            for barge_in in (False, True):
                caller.send(type="set", barge_in=barge_in)
                await caller.post("/human", sessionid=caller.session, text="Something very long to say." * 8, type="echo")
                since = time.monotonic()
                await until(lambda: caller.loud(since))  # noqa: B023
                voice.level = 0.7
                await asyncio.sleep(1.2)
                voice.level = 0.0
                speaking = (await caller.post("/is_speaking", sessionid=caller.session))[1]["data"]
                assert speaking is not barge_in
                await caller.post("/interrupt_talk", sessionid=caller.session)

    live(story)


def test_a_camera_may_stop_start_again_change_size_and_turn() -> None:
    seen = Seen()

    async def story() -> None:
        async with house(SETTINGS, studio=fake_studio(SETTINGS, face=lambda: FakeFace(seen))) as home:
            camera = Camera(size=(120, 160))
            caller = await home.call(camera=camera, offer={"drive": "camera"})
            await until(lambda: len(caller.frames) > 10)
            camera.size = (160, 120)
            await until(lambda: (160, 120) in seen.sizes)
            camera.size = (60, 90)
            await until(lambda: (60, 90) in seen.sizes)
            caller.pc.getSenders()[0].replaceTrack(None)
            await asyncio.sleep(0.6)
            before = len(caller.frames)
            await until(lambda: len(caller.frames) > before + 5)  # idle, never frozen
            assert (await caller.stats())["grid"] == "voice"
            caller.pc.getSenders()[0].replaceTrack(Camera())
            tracked = (await caller.stats())["counts"]["tracked"]
            await asyncio.sleep(1.0)
            figures = await caller.stats()
            assert figures["counts"]["tracked"] > tracked + 5
            assert figures["grid"] == "camera"

    live(story)


def test_a_hasty_camera_is_thinned_out_and_a_huge_one_scaled_down() -> None:
    seen = Seen()
    settings = ServerSettings(max_sessions=1, workers=1, trackers=1, limits=Limits(camera_fps=20.0, camera_pixels=2000))

    async def story() -> None:
        async with house(settings, studio=fake_studio(settings, face=lambda: FakeFace(seen))) as home:
            caller = await home.call(camera=Camera(fps=120.0))
            await until(lambda: len(caller.frames) > 20)
            await asyncio.sleep(1.0)
            figures = await caller.stats()
            assert figures["drops"]["camera_fps"] + figures["drops"].get("camera", 0) > 20
            assert figures["fps"] <= 23
            assert all(h * w <= 2000 for h, w in seen.sizes[-20:])

    live(story)


def test_an_echo_is_the_camera_itself_without_tracking() -> None:
    seen = Seen()

    async def story() -> None:
        async with house(ECHO, studio=fake_studio(ECHO, face=lambda: FakeFace(seen))) as home:
            caller = await home.call(camera=Camera(level=200), offer={"generator": "echo"})
            await until(lambda: len(caller.frames) > 15)
            assert min(colour_of(caller)) > 170
            assert caller.pictures[-1].width == 160
            figures = await caller.stats()
            assert figures["generator"] == "echo"
            assert "tracked" not in figures["counts"]

    before = len(seen.sizes)
    live(story)
    assert len(seen.sizes) - before <= 2, "only the warm-up looked"


def test_a_session_that_falls_behind_steps_down_and_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.peer.WATCH_SECONDS", 0.6)
    for name, value in (("WARM_UP", 0), ("DOWN_AFTER", 1), ("RELAPSE", 0)):
        monkeypatch.setattr(f"streaming.ladder.{name}", value)
    generator = FakeGenerator(work=0.15)

    async def story() -> None:
        async with house(SETTINGS, studio=fake_studio(SETTINGS, generator=generator)) as home:
            caller = await home.call()
            await until(lambda: caller.pictures and caller.pictures[-1].width == 48, seconds=12.0)
            figures = await caller.stats()
            assert figures["ladder"]["rung"] >= 3
            assert "frames a second" in figures["ladder"]["why"]
            assert re.fullmatch(r"Making a picture takes 0\.\d+ s here, and it lasts 0\.033 s\. Fewer steps, .*", figures["overrun"])
            generator.work = 0.0
            home.app[DESK].live(caller.session).ladder._patience = 1
            await until(lambda: caller.pictures[-1].width == 64, seconds=15.0)
            figures = await caller.stats()
            assert figures["ladder"]["rung"] < 3
            assert not figures["overrun"]

    live(story)


def test_malformed_messages_are_answered_in_words_and_change_nothing() -> None:
    bad = [
        "not json",
        "[]",
        "{}",
        '{"type":"explode"}',
        '{"type":[]}',
        '{"type":{"a":1}}',
        '{"type":null}',
        '{"type":"set","background":{"kind":[]}}',
        '{"type":"set","drive":"rocket"}',
        '{"type":"set","background":{"kind":"colour","colour":"green"}}',
        '{"type":"set","background":{"kind":"picture","picture":"../../etc/passwd"}}',
        '{"type":"say","text":""}',
        '{"type":"shown","frames":3}',
        '{"type":"set","carry_strip":9}',
        "[" * 5000,
        '{"type":"ping","t":"' + "x" * 20_000 + '"}',
    ]

    async def story() -> None:
        async with house(SETTINGS) as home:
            caller = await home.call()
            await until(lambda: caller.heard("hello"))
            for text in bad:
                caller.channel.send(text)
            await until(lambda: len(caller.heard("notice")) == len(bad))
            assert all(notice["level"] == "error" and notice["text"].endswith(".") for notice in caller.heard("notice"))
            caller.send(type="ping", t=7)
            await until(lambda: caller.heard("pong"))
            assert caller.heard("pong")[0]["t"] == 7
            assert (await caller.stats())["drive"] == "camera"
            for _ in range(200):
                caller.send(type="ping", t=8)
            await asyncio.sleep(0.3)
            assert len(caller.heard("pong")) < 60

    live(story)


def test_a_fault_behind_a_message_is_told_and_ends_nothing() -> None:
    def broken() -> None:
        raise ZeroDivisionError

    async def story() -> None:
        async with house(SETTINGS) as home:
            caller = await home.call()
            await until(lambda: caller.heard("hello"))
            home.app[DESK].live(caller.session).interrupt = broken  # type: ignore[method-assign]
            caller.send(type="interrupt")
            await until(lambda: caller.heard("notice"))
            assert "ZeroDivisionError" in caller.heard("notice")[0]["text"]
            caller.send(type="ping", t=7)
            await until(lambda: caller.heard("pong"))

    live(story)


def test_interrupting_closes_the_lips_within_200_ms() -> None:
    """The fake avatar shows a white bar as long as its mouth is open."""
    sung = vowel("a", pitch=120, seconds=8.0)

    class Singer(FakeSpeech):
        async def speak(self, text: str, *, voice: str | None = None) -> AsyncGenerator[Piece, None]:
            for k in range(0, len(sung), 1600):
                yield Piece(sung[k : k + 1600], 16_000)

    def open_mouths(caller: Caller) -> list[float]:
        return [at for at, colour in caller.frames if colour.min() > 45]

    async def story() -> None:
        async with house(SETTINGS, studio=fake_studio(SETTINGS, speech=Singer())) as home:
            caller = await home.call(camera=None, offer={"drive": "voice", "persona": "red"})
            await until(lambda: len(caller.frames) > 5)
            await caller.post("/human", sessionid=caller.session, text="Aah", type="echo")
            await until(lambda: len(open_mouths(caller)) > 15)
            asked = time.monotonic()
            caller.send(type="interrupt")
            await asyncio.sleep(0.8)
            last = max(open_mouths(caller))
            assert last > asked - 0.15, "it was still speaking"
            assert last < asked + 0.2
            assert len([at for at, _ in caller.frames if at > asked + 0.3]) > 5, "the picture goes on"

    live(story)


def test_settings_reach_the_session() -> None:
    seen = Seen()

    async def story() -> None:
        async with house(SETTINGS, studio=fake_studio(SETTINGS, face=lambda: FakeFace(seen))) as home:
            caller = await home.call()
            await until(lambda: len(caller.frames) > 3)
            caller.send(type="set", drive="auto", background={"kind": "colour", "colour": "#102030"}, barge_in=False)
            caller.send(type="neutral")
            await until(lambda: seen.neutral)
            session = home.app[DESK].live(caller.session).session
            assert session.settings.background.colour == (16, 32, 48)
            await until(lambda: caller.heard("state")[-1]["drive"] == "auto")
            caller.send(type="shown", frames=[[1, 55.0], ["x"], [2, -5]])
            await asyncio.sleep(0.1)
            assert (await caller.stats())["stages"]["shown"]["p50"] == 55.0

    live(story)
