"""What the server says of itself: figures at any moment, every drop by its cause, counters to the last digit."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from streaming import rtc
from streaming.api import DESK, PEERS
from streaming.rtc import encoders, shared
from streaming.settings import ServerSettings
from streaming.stats import Stats, prometheus
from streaming.studio import Full, Studio
from tests.caller import LOCAL, SETTINGS, ask, house, live, until
from tests.fakes import FakeBody, FakeFace, FakeGenerator, FakeSpeech, fake_persona, fake_studio
from tests.peers import frame_at

ONE = ServerSettings(max_sessions=1, workers=1, trackers=1)


def test_figures_are_there_while_a_session_is_being_seated() -> None:
    gate = threading.Event()
    gate.set()

    def slow_body() -> FakeBody:
        assert gate.wait(10.0)
        return FakeBody()

    studio = Studio(ONE, generator=FakeGenerator, face=FakeFace, body=slow_body, synthesizer=FakeSpeech(), persona=fake_persona)

    async def story() -> None:
        async with house(ONE, studio=studio) as home:
            await studio.ready()
            persona = await studio.persona(None)
            gate.clear()
            opening = asyncio.create_task(studio.open(persona))
            await asyncio.sleep(0.1)
            for path in ("/stats", "/metrics"):
                status, _, body = await ask(home, "GET", path)
                assert status == 200, body
            assert studio.full, "the place is taken all the same"
            with pytest.raises(Full):
                await studio.open(persona)
            gate.set()
            opened = await opening
            assert list(studio.sessions) == [opened.id]
            await studio.end(opened)
            assert not studio.full

    live(story)


def test_who_gives_up_while_being_seated_leaves_no_row_behind() -> None:
    gate = threading.Event()
    gate.set()
    generator = FakeGenerator()

    def slow_body() -> FakeBody:
        assert gate.wait(10.0)
        return FakeBody()

    studio = Studio(ONE, generator=lambda: generator, face=FakeFace, body=slow_body, synthesizer=FakeSpeech(), persona=fake_persona)

    async def story() -> None:
        async with house(ONE, studio=studio):
            await studio.ready()
            persona = await studio.persona(None)
            gate.clear()
            opening = asyncio.create_task(studio.open(persona))
            await asyncio.sleep(0.1)
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
            gate.set()
            await asyncio.sleep(0.1)
            opened = await studio.open(persona)
            assert sum(stepper.load for stepper in studio._steppers) == 1
            await studio.end(opened)
            assert generator.seated == 0

    live(story)


def test_the_hardware_encoder_is_looked_for_off_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("streaming.studio.nvenc_works", lambda: asked.append(threading.get_ident()))

    async def story() -> None:
        async with house(SETTINGS) as home:
            await home.studio.ready()
            assert asked
            assert threading.get_ident() not in asked

    live(story)


def test_counters_keep_all_their_digits() -> None:
    stats = Stats()
    stats.counts["sent"] = 123_456_789
    text = prometheus({"cpu_seconds_total": 1_234_567.89, "sessions": 1, "ready": True}, {"abcd": stats.snapshot(2.0)})
    assert 'avatar_passed_total{session="abcd",what="sent"} 123456789\n' in text
    assert "avatar_cpu_seconds_total 1234567.89\n" in text
    assert "avatar_ready 1\n" in text


def test_counts_that_others_keep_are_added_up_over_connections() -> None:
    stats = Stats()
    for total in (0, 3, 3, 7, 2, 2):  # a new connection counts from nothing
        stats.drop_total("link", total)
    assert stats.drops == {"link": 9}


def test_whatever_is_given_up_on_the_way_in_is_shown_by_its_cause() -> None:
    async def story() -> None:
        async with house(SETTINGS) as home:
            caller = await home.call()
            await until(lambda: len(caller.frames) > 3 and caller.heard("hello"))
            receivers: list[Any] = home.app[PEERS][caller.session]._pc.getReceivers()
            for receiver in receivers:
                receiver.buffer.given_up += 2
                receiver.buffer.withheld += 4
                receiver.waiting.dropped += 3
                receiver.track.bounded.dropped += 5
            wanted = {
                f"{what}_{cause}": n for what in ("camera", "mic") for cause, n in (("gaps", 2), ("withheld", 4), ("decoder", 3), ("unread", 5))
            }
            drops = home.app[DESK].live(caller.session).snapshot()["drops"]
            assert {cause: drops.get(cause, 0) >= n for cause, n in wanted.items()} == dict.fromkeys(wanted, True)
            assert drops["mic_decoder"] == 3
            again = await home.call(offer={"resume": caller.answer["resume"]})
            await until(lambda: len(again.frames) > 3 and again.heard("hello"))
            assert home.app[DESK].live(again.session).snapshot()["drops"]["mic_decoder"] == 3, "another connection takes nothing back"
            text = (await ask(home, "GET", "/metrics"))[2]
            assert f'session="{again.session[:8]}",cause="mic_decoder"}} 3\n' in text

    live(story)


def test_sound_that_a_stalled_generator_does_not_hear_is_counted() -> None:
    generator = FakeGenerator()

    async def story() -> None:
        async with house(ONE, studio=fake_studio(ONE, generator=generator)) as home:
            caller = await home.call(camera=None, offer={"drive": "voice"})
            await until(lambda: len(caller.frames) > 3)
            generator.work = 3.0
            await asyncio.sleep(0.3)
            generator.work = 0.0
            session = home.app[DESK].live(caller.session)
            await until(lambda: session.stats.drops["hearing"] > 10)

    live(story)


def test_pictures_that_a_viewer_does_without_are_counted() -> None:
    drops: dict[str, int] = {}

    def note(cause: str, count: int) -> None:
        drops[cause] = drops.get(cause, 0) + count

    async def story() -> None:
        encoder = rtc.SharedEncoder(settings=LOCAL, on_drop=note)
        viewer = encoder.track()
        for k in range(shared.QUEUE + 3):  # nobody reads
            await encoder.push(frame_at(k))
        assert drops == {"viewer": viewer.skipped}
        assert viewer.skipped >= shared.QUEUE + 1
        await asyncio.gather(*(encoder.push(frame_at(20 + k)) for k in range(3)))
        assert drops["viewer_encoder"] == encoder.skipped == 2
        before = viewer.skipped
        viewer.fall_behind()
        assert drops["viewer"] == viewer.skipped > before
        encoder.close()

    live(story)


def test_an_encoder_that_cannot_keep_up_steps_the_session_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.peer.WATCH_SECONDS", 0.6)
    encode = encoders.H264.encode

    def slow(self: encoders.H264, frame: Any, force_keyframe: bool = False) -> Any:
        time.sleep(0.1 * (frame.width / 64) ** 2)
        return encode(self, frame, force_keyframe)

    monkeypatch.setattr(encoders.H264, "encode", slow)

    async def story() -> None:
        async with house(SETTINGS) as home:
            caller = await home.call(camera=None, offer={"drive": "voice"})
            session = home.app[DESK].live(caller.session)
            await until(lambda: session.ladder.index >= 1, seconds=15.0)
            figures = session.snapshot()
            assert figures["drops"]["encoder"] > 10
            assert figures["link"]["frames_sent"] < 0.7 * figures["counts"]["sent"], "the pacer had let them all go"
            video = home.app[PEERS][caller.session].video
            busy, at = video.busy, time.monotonic()
            await asyncio.sleep(1.0)
            assert (video.busy - busy) / (time.monotonic() - at) > 0.5

    live(story)
