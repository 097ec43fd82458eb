"""The generator's thread: whatever a session does, in a step or at its end, the others go on and come together again."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from engine.batch import Batch
from engine.config import SessionSettings
from engine.session import Session
from engine.types import Output, VideoFrame
from streaming.worker import APART, Stepper, StepTimes
from tests.caller import SETTINGS, house, live, until
from tests.fakes import COLOURS, FakeBody, FakeFace, FakeGenerator, fake_persona, fake_studio


class BadEnd(FakeFace):
    """A tracker that cannot be closed."""

    def close(self) -> None:
        raise OSError("the tracker would not close")


@dataclass
class FakeSeat:
    """A session at a stepper without a server; `bad`: what goes wrong."""

    session: Session
    bad: set[str] = field(default_factory=set)
    outputs: list[Output] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    resting: bool = False

    def listen(self) -> None:
        """See worker.Seat."""
        self._perhaps("listen")

    def deliver(self, output: Output, times: StepTimes) -> None:
        """See worker.Seat."""
        self._perhaps("deliver")
        self.outputs.append(output)

    def shut(self) -> None:
        """See worker.Seat."""
        try:
            self._perhaps("shut")
        finally:
            self.session.close()

    def failed(self, error: Exception) -> None:
        """See worker.Seat."""
        self.errors.append(error)
        self._perhaps("failed")

    def _perhaps(self, where: str) -> None:
        if where in self.bad:
            raise RuntimeError(f"broken in {where}")


def wait(condition: Callable[[], bool]) -> None:
    """Until something is so on the stepper's thread."""
    end = time.monotonic() + 5.0
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.005)


@dataclass
class Room:
    """A stepper with seats whose frames follow the wall clock (no camera, no sound)."""

    generator: FakeGenerator = field(default_factory=FakeGenerator)
    together: bool = False
    ahead: float = 0.0  # s that the stepper's clock is put forward
    stepper: Stepper = field(init=False)

    def __post_init__(self) -> None:
        self.stepper = Stepper(self.generator, rows=4, together=self.together, clock=lambda: time.monotonic() + self.ahead)

    def seat(self, name: str, *bad: str, face: FakeFace | None = None) -> FakeSeat:
        """Somebody takes a seat."""

        def make(batch: Batch) -> FakeSeat:
            persona = fake_persona(self.generator, name)
            return FakeSeat(Session(batch, persona, settings=SessionSettings(drive="voice"), face=face or FakeFace(), body=FakeBody()), set(bad))

        made = self.stepper.call(make).result(5.0)
        self.stepper.seat(made).result(5.0)
        return made

    def goes_on(self, seat: FakeSeat) -> None:
        """A seat gets further frames."""
        before = len(seat.outputs)
        wait(lambda: len(seat.outputs) > before + 3)


@pytest.mark.parametrize("bad", ["listen", "deliver", "shut", "failed", "tracker"])
def test_a_session_that_fails_anywhere_goes_alone_and_frees_its_row(bad: str) -> None:
    room = Room()
    good = room.seat("blue")
    ill = room.seat("red", *({"shut": ("deliver", "shut"), "failed": ("deliver", "failed"), "tracker": ("deliver",)}.get(bad, (bad,))))
    if bad == "tracker":
        ill.session._face = BadEnd()
    wait(lambda: room.stepper.load == 1)
    wait(lambda: len(ill.errors) == 1)
    room.goes_on(good)
    assert room.generator.seated == 1
    room.stepper.stop()
    assert not room.stepper._thread.is_alive()
    assert room.generator.seated == 0


def test_a_session_that_cannot_be_closed_keeps_nobody_from_leaving() -> None:
    room = Room()
    good, ill = room.seat("blue"), room.seat("red", "shut", face=BadEnd())
    room.stepper.leave(ill).result(5.0)
    room.goes_on(good)
    assert room.generator.seated == 1
    last = room.seat("red", "shut")
    room.goes_on(last)
    room.stepper.stop()
    assert room.generator.seated == 0, "at the end as well, each by itself"


def test_both_drivers_are_closed_whatever_one_of_them_does() -> None:
    closed: list[str] = []

    class Body(FakeBody):
        def close(self) -> None:
            closed.append("body")
            raise ValueError("nor would the body's")

    generator = FakeGenerator()
    batch = Batch(generator, rows=1)
    session = Session(batch, fake_persona(generator, "red"), face=BadEnd(), body=Body())
    with pytest.raises(OSError, match="would not close"):
        session.close()
    assert closed == ["body"]
    assert generator.seated == 0
    assert Session(batch, fake_persona(generator, "red"), face=FakeFace()).row == session.row


@dataclass
class Counting(FakeGenerator):
    """Knows how many rows each call stepped."""

    calls: list[int] = field(default_factory=list)

    def step(self, state: object, signals: object) -> list[list[VideoFrame] | None]:
        """See Generator."""
        self.calls.append(sum(row is not None for row in signals))  # type: ignore[attr-defined]
        return super().step(state, signals)  # type: ignore[arg-type]


def test_after_the_failing_session_has_gone_the_others_are_stepped_together_again() -> None:
    generator = Counting()
    room = Room(generator, together=True)
    seats = [room.seat("blue"), room.seat("demo"), room.seat("red")]
    wait(lambda: generator.calls[-1:] == [3])
    generator.fail_on = COLOURS["red"]
    wait(lambda: room.stepper.load == 2)
    wait(lambda: generator.calls[-1:] == [2])
    for seat in seats[:2]:
        room.goes_on(seat)
    assert [len(seat.errors) for seat in seats] == [0, 0, 1]
    room.stepper.stop()


def test_a_fault_that_is_nobodys_alone_parts_them_for_a_while_only() -> None:
    @dataclass
    class Fragile(Counting):
        broken: bool = False

        def step(self, state: object, signals: object) -> list[list[VideoFrame] | None]:
            made = super().step(state, signals)
            if self.broken and self.calls[-1] > 1:
                raise MemoryError
            return made

    generator = Fragile()
    room = Room(generator, together=True)
    seats = [room.seat("blue"), room.seat("demo")]
    wait(lambda: generator.calls[-1:] == [2])
    generator.broken = True
    wait(lambda: generator.calls[-6:] == [1] * 6)
    for seat in seats:
        room.goes_on(seat)
    generator.broken = False
    room.ahead = APART
    wait(lambda: generator.calls[-1:] == [2])
    room.stepper.stop()


def test_in_a_server_a_tracker_that_cannot_be_closed_ends_nobody_elses_session() -> None:
    ends = itertools.count()

    class Face(FakeFace):
        def close(self) -> None:
            if next(ends) != 0:  # the warm-up's is closed in peace
                raise OSError("the tracker would not close")

    generator = FakeGenerator()

    async def story() -> None:
        async with house(SETTINGS, studio=fake_studio(SETTINGS, generator=generator, face=Face)) as home:
            one, two = await home.call(), await home.call()
            await until(lambda: len(one.frames) > 3 and len(two.frames) > 3)
            await one.close()
            await until(lambda: len(home.studio.sessions) == 1)
            count = len(two.frames)
            await until(lambda: len(two.frames) > count + 10)
            assert generator.seated == 1
            three = await home.call()
            await until(lambda: len(three.frames) > 3)

    live(story)
