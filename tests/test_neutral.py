"""The neutral: what the page is told of it, and that asking makes no tracker."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import numpy as np

from engine.batch import Batch
from engine.drivers.calibrate import Neutral
from engine.drivers.measure import measure
from engine.session import Session
from engine.types import Signal, VideoFrame
from streaming.api import DESK
from streaming.face import HeldFace
from streaming.tracking import NEUTRAL_FRAMES, NO_FACE
from tests.caller import SETTINGS, Caller, House, house, live, until
from tests.fakes import Camera, FakeFace, FakeGenerator, fake_persona, fake_studio

SEARCH = 25
"""Pictures after which `Searching` has found its neutral."""


@dataclass
class Searching(FakeFace):
    """Finds its neutral after SEARCH pictures; one that it is asked for is taken NEUTRAL_FRAMES - 1 pictures with a face later."""

    looked: int = 0
    taking: int = 0
    taken: int = 0

    def __call__(self, frame: VideoFrame) -> Signal:
        """See FaceDriver."""
        signal = super().__call__(frame)
        assert signal.motion is not None
        self.looked += 1
        if self.taking and signal.motion.confidence[0] > 0:
            self.taking -= 1
            self.taken += not self.taking
        return signal

    @property
    def neutral_state(self) -> str:
        """See FaceDriver."""
        return "set" if self.looked >= SEARCH else "searching"

    def set_neutral(self) -> None:
        """See FaceDriver."""
        self.taking = NEUTRAL_FRAMES - 1


def looked_through(home: House, caller: Caller) -> Searching:
    """The driver of a caller's session."""
    face = home.app[DESK].live(caller.session).session.face
    assert isinstance(face, HeldFace)
    assert isinstance(face.driver, Searching)
    return face.driver


def test_the_page_is_told_when_the_neutral_is_found() -> None:
    async def story() -> None:
        async with house(SETTINGS, studio=fake_studio(SETTINGS, face=Searching)) as home:
            caller = await home.call()
            await until(lambda: caller.heard("state") and caller.heard("state")[-1]["neutral"] == "set")
            told = [message["neutral"] for message in caller.heard("state")]
            assert told[0] == "searching"
            assert told == sorted(told), "searching, then set, and never back"
            driver = looked_through(home, caller)
            assert driver.looked >= SEARCH
            assert home.app[DESK].live(caller.session).snapshot()["neutral"] == "set"

    live(story)


def test_a_neutral_that_is_asked_for_is_told_once_it_has_been_taken() -> None:
    async def story() -> None:
        async with house(SETTINGS, studio=fake_studio(SETTINGS, face=Searching)) as home:
            caller = await home.call()
            await until(lambda: caller.heard("state") and caller.heard("state")[-1]["face"] == "seen")
            driver = looked_through(home, caller)
            caller.send(type="neutral")
            caller.send(type="neutral")
            await until(lambda: driver.taking)
            assert not caller.heard("notice"), "not yet"
            await until(lambda: caller.heard("notice"))
            assert driver.taken == 1
            notice = caller.heard("notice")[0]
            assert (notice["level"], notice["text"]) == ("info", "Neutral set.")
            await asyncio.sleep(0.3)
            assert len(caller.heard("notice")) == 1

    live(story)


def test_a_held_picture_does_not_count_for_the_neutral() -> None:
    """On the ladder's lower rungs every second picture is a repetition."""

    async def story() -> None:
        async with house(SETTINGS, studio=fake_studio(SETTINGS, face=Searching)) as home:
            caller = await home.call()
            await until(lambda: caller.heard("state") and caller.heard("state")[-1]["face"] == "seen")
            session = home.app[DESK].live(caller.session).session
            session.configure(track_every=3)
            caller.send(type="neutral")
            await until(lambda: caller.heard("notice"))
            assert looked_through(home, caller).taken == 1

    live(story)


def test_without_a_face_no_neutral_is_set_and_a_sentence_says_so() -> None:
    async def story() -> None:
        async with house(SETTINGS, studio=fake_studio(SETTINGS, face=Searching)) as home:
            camera = Camera(level=0)
            caller = await home.call(camera=camera)
            await until(lambda: len(caller.frames) > 5 and caller.heard("hello"))
            caller.send(type="neutral")
            await until(lambda: caller.heard("notice"))
            assert caller.heard("notice")[0]["text"] == NO_FACE
            assert caller.heard("notice")[0]["level"] == "error"
            camera.level = 128
            await until(lambda: caller.heard("state")[-1]["face"] == "seen")
            driver = looked_through(home, caller)
            camera.level = 0
            caller.send(type="neutral")  # the face goes before it could be taken
            await until(lambda: len(caller.heard("notice")) == 2)
            assert caller.heard("notice")[1]["text"] == NO_FACE
            assert driver.taken == 0

    live(story)


def test_a_camera_that_stops_has_lost_the_face() -> None:
    async def story() -> None:
        async with house(SETTINGS) as home:
            caller = await home.call()
            await until(lambda: caller.heard("state") and caller.heard("state")[-1]["face"] == "seen")
            caller.pc.getSenders()[0].replaceTrack(None)
            await until(lambda: caller.heard("state")[-1]["face"] == "lost", seconds=4.0)

    live(story)


def test_a_machine_that_looks_seldom_has_not_lost_the_face() -> None:
    async def story() -> None:
        async with house(SETTINGS) as home:
            caller = await home.call(camera=None)
            session = home.app[DESK].live(caller.session)
            session.tracked(True)
            session._face_seen -= 1.0
            assert session.face_state == "seen"
            session.tracked(False)
            assert session.face_state == "lost"

    live(story)


def test_a_chosen_neutral_is_taken_within_the_pictures_that_are_counted() -> None:
    """Even from somebody whose eyes are closed all the time."""
    shape = np.random.default_rng(1).random((478, 3))
    asleep = replace(measure(shape), lids=np.zeros(2))
    neutral = Neutral()
    neutral.choose()
    for k in range(NEUTRAL_FRAMES):
        assert neutral.state == "searching"
        neutral.see(np.zeros(6), shape, asleep, time=k / 30, opening=np.full(2, 0.3))
    assert neutral.state == "set"


def test_asking_for_the_state_makes_no_tracker_not_even_of_a_dead_session() -> None:
    generator = FakeGenerator()
    session = Session(Batch(generator, rows=1), fake_persona(generator, "red"))
    assert session.neutral_state == "searching"
    assert session._face is None
    session.close()

    async def story() -> None:
        async with house(replace(SETTINGS, max_sessions=1)) as home:
            caller = await home.call()
            await until(lambda: len(caller.frames) > 3)
            dying = home.app[DESK].live(caller.session)
            dying.session.close()  # as the generator's thread does before anyone else hears of it
            dying.tell_state(always=True)
            dying.snapshot()
            assert dying.session._face is None

    live(story)
