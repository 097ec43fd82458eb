"""How sessions end: hanging up, vanishing, failing, being taken over; what is left behind is nothing."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from typing import Any

import psutil
import pytest

from streaming.api import DESK, PEERS
from streaming.settings import Limits, ServerSettings
from tests.caller import SETTINGS, Caller, ask, colour_of, house, live, near, until
from tests.fakes import COLOURS, Camera, FakeFace, FakeGenerator, fake_studio


def test_sessions_are_isolated_and_a_failing_one_goes_alone() -> None:
    generator = FakeGenerator()

    async def story() -> None:
        async with house(SETTINGS, studio=fake_studio(SETTINGS, generator=generator)) as home:
            one, two = await home.call(offer={"persona": "red"}), await home.call(offer={"persona": "blue"})
            await until(lambda: len(one.frames) > 10 and len(two.frames) > 10)
            assert near(colour_of(one), "red")
            assert near(colour_of(two), "blue")
            generator.fail_on = COLOURS["red"]
            await until(lambda: one.heard("bye"))
            assert "RuntimeError" in one.heard("bye")[0]["reason"]
            await until(lambda: len(home.studio.sessions) == 1)
            count = len(two.frames)
            await until(lambda: len(two.frames) > count + 15)
            assert generator.seated == 1
            generator.fail_on = None
            three = await home.call(offer={"persona": "red"})
            await until(lambda: len(three.frames) > 3)
            assert near(colour_of(three), "red")

    live(story)


def test_a_tracker_that_fails_ends_its_own_session() -> None:
    class Broken(FakeFace):
        def __call__(self, frame: Any) -> Any:
            if frame.rgb.mean() > 220:
                raise RuntimeError("broken tracker")
            return super().__call__(frame)

    async def story() -> None:
        async with house(SETTINGS, studio=fake_studio(SETTINGS, face=Broken)) as home:
            good, bad = await home.call(), await home.call(camera=Camera(level=255))
            await until(lambda: bad.heard("bye"))
            await until(lambda: len(home.studio.sessions) == 1)
            count = len(good.frames)
            await until(lambda: len(good.frames) > count + 10)

    live(story)


def test_sound_that_cannot_be_heard_ends_its_own_session() -> None:
    def broken(chunk: Any) -> None:
        raise RuntimeError("broken ears")

    async def story() -> None:
        async with house(SETTINGS) as home:
            good, bad = await home.call(), await home.call()
            await until(lambda: good.frames and bad.heard("hello"))
            home.app[DESK].live(bad.session).session.hear = broken  # type: ignore[method-assign]
            await until(lambda: bad.heard("bye"))
            count = len(good.frames)
            await until(lambda: len(good.frames) > count + 10)

    live(story)


def test_hanging_up_frees_the_seat_at_once() -> None:
    generator = FakeGenerator()
    settings = ServerSettings(max_sessions=1, workers=1, trackers=1)

    async def story() -> None:
        async with house(settings, studio=fake_studio(settings, generator=generator)) as home:
            caller = await home.call()
            await until(lambda: len(caller.frames) > 3)
            refused = await home.call()
            assert refused.status == 503
            assert int(refused.headers["Retry-After"]) > 0
            assert refused.answer["error"].endswith(".")
            await caller.close()
            await until(lambda: not home.studio.sessions, seconds=3.0)
            assert generator.seated == 0
            again = await home.call()
            assert again.status == 200
            await until(lambda: again.heard("hello"))
            again.send(type="bye")
            await until(lambda: home.app[DESK]._endings or not home.studio.sessions)
            last = await home.call()
            assert last.status == 200, "Stop and Start again"
            for _ in range(2):
                assert (await ask(home, "DELETE", f"/offer/{last.answer['sessionid']}"))[0] == 204, "also where it has ended"
                assert not home.studio.sessions

    live(story)


def test_a_person_who_vanishes_is_noticed_within_8_seconds_and_may_come_back() -> None:
    settings = ServerSettings(max_sessions=1, workers=1, trackers=1, silence_limit=2.0, resume_seconds=20.0)

    async def story() -> None:
        async with house(settings) as home:
            caller = await home.call(offer={"persona": "blue"})
            await until(lambda: len(caller.frames) > 5)
            caller.vanish()
            await until(lambda: not home.app[PEERS], seconds=6.0)
            assert list(home.studio.sessions) == [caller.session], "kept for its person"
            back = await home.call(offer={"resume": caller.answer["resume"]})
            assert back.session == caller.session
            await until(lambda: len(back.frames) > 5)
            assert near(colour_of(back), "blue"), "the persona is the one of before"
            assert (await back.stats())["connected"]

    live(story)


def test_a_lost_session_ends_after_its_grace_and_gives_way_to_who_waits() -> None:
    settings = ServerSettings(max_sessions=1, workers=1, trackers=1, silence_limit=1.0, resume_seconds=0.8)

    async def story() -> None:
        async with house(settings) as home:
            caller = await home.call()
            await until(lambda: len(caller.frames) > 3)
            caller.vanish()
            await until(lambda: not home.studio.sessions, seconds=8.0)

    live(story)
    patient = ServerSettings(max_sessions=1, workers=1, trackers=1, silence_limit=1.0, resume_seconds=60.0)

    async def evicted() -> None:
        async with house(patient) as home:
            caller = await home.call()
            await until(lambda: len(caller.frames) > 3)
            caller.vanish()
            await until(lambda: not home.app[PEERS], seconds=8.0)
            other = await home.call(offer={"resume": "a wrong secret", "persona": "red"})
            assert other.status == 200
            assert other.session != caller.session
            assert len(home.studio.sessions) == 1

    live(evicted)


def test_taking_over_closes_the_older_connection() -> None:
    async def story() -> None:
        async with house(SETTINGS) as home:
            old = await home.call()
            await until(lambda: len(old.frames) > 3 and old.heard("hello"))
            new = await home.call(offer={"resume": old.answer["resume"]})
            await until(lambda: old.heard("bye"))
            await until(lambda: len(new.frames) > 3)
            assert len(home.studio.sessions) == 1
            assert len(home.app[PEERS]) == 1

    live(story)


def test_sixty_calls_leave_nothing_behind() -> None:
    settings = ServerSettings(max_sessions=2, workers=1, trackers=1, limits=Limits(offers_per_minute=100))
    generator = FakeGenerator()
    figures: list[tuple[int, int, int]] = []

    async def story() -> None:
        async with house(settings, studio=fake_studio(settings, generator=generator)) as home:
            process = psutil.Process()
            for k in range(60):
                caller = Caller(home.http, home.url)
                await caller.connect()
                await until(lambda: caller.heard("hello"))  # noqa: B023
                await caller.close()
                await until(lambda: not home.studio.sessions)
                if k in (9, 59):
                    gc.collect()
                    figures.append((threading.active_count(), process.num_fds(), len(asyncio.all_tasks())))

    live(story)
    (threads, files, tasks), after = figures
    assert after[0] <= threads + 1
    assert after[1] <= files + 3
    assert after[2] <= tasks + 2
    assert generator.seated == 0


def test_shutting_down_says_goodbye_and_is_quick() -> None:
    others = set(threading.enumerate())  # of tests before, whose studios nobody closed

    async def story() -> None:
        async with house(SETTINGS) as home:
            caller = await home.call()
            await until(lambda: len(caller.frames) > 3 and caller.heard("hello"))
            started = time.monotonic()
            await home.app[DESK].close()
            assert time.monotonic() - started < 4.0
            await until(lambda: caller.heard("bye"))
            left = [thread for thread in set(threading.enumerate()) - others if thread.name.startswith(("generator", "tracker", "body"))]
            assert not left

    live(story)


@pytest.mark.parametrize("word", ["m=video 9 UDP/TLS/RTP/SAVPF 96\r\n", "a=group:BUNDLE 0\r\n"])
def test_an_offer_without_sense_is_refused_and_holds_no_seat(word: str) -> None:
    async def story() -> None:
        async with (
            house(SETTINGS) as home,
            home.http.post(f"{home.url}/offer", json={"sdp": "v=0\r\no=- 0 0 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n" + word, "type": "offer"}) as answer,
        ):
            assert answer.status == 400
            assert (await answer.json())["error"].endswith(".")
            await until(lambda: not home.studio.sessions)

    live(story)
