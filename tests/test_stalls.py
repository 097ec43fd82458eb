"""What is left of a stall once it is over: no picture that is late, no lag that is too long, and the sound that belongs to now."""

from __future__ import annotations

import numpy as np
import pytest

from engine.types import Output, VideoFrame
from streaming.pacing import LAG_SAMPLES, RATE, RETARGET, RING_SECONDS, Pacer, Playhead
from streaming.stats import Stats

PIXEL = np.zeros((2, 2, 3), np.uint8)
FPS = 30


def output(sound_time: float) -> Output:
    """A frame that shows `sound_time`."""
    return Output([VideoFrame(PIXEL, sound_time, id=1)], [], "voice", sound_time)


def test_of_pictures_that_are_due_the_newest_leaves_and_the_others_are_counted() -> None:
    pacer = Pacer(Stats())
    times = [100.0 + k / FPS for k in range(4)]
    for time in times:
        pacer.put(output(time), now=100.15)
    due = times[2] + pacer.playhead.target + 0.001
    picture = pacer.picture(now=due)
    assert picture is not None
    assert picture.sound_time == times[2]
    assert pacer.stats.drops["late"] == 2
    assert pacer.picture(now=due) is None, "the last one is not due yet"
    assert 0.0 < (pacer.wait(now=due) or 0.0) <= 1 / FPS


def test_the_lag_that_one_stall_asked_for_is_given_back() -> None:
    pacer = Pacer(Stats(), fps=FPS)
    aims = list[float]()
    for k in range(60 + LAG_SAMPLES):
        took = 0.7 if 50 <= k < 55 else 0.1
        pacer.put(output(k / FPS), now=k / FPS + took)
        aims.append(pacer.playhead.target)
    assert aims[49] == pytest.approx(0.1, abs=0.01)
    assert max(aims[50:60]) > 0.5, "while it lasts the sound waits for its pictures"
    assert aims[-1] == pytest.approx(aims[49], abs=RETARGET)


def test_after_a_long_stall_the_sound_is_that_of_now() -> None:
    """Loud all the time: there is no silence to jump over, and at 0.5 % it would take minutes."""
    playhead, loud = Playhead(), np.full((2, int(RING_SECONDS * RATE)), 0.5, np.float32)
    for now in (100.0, 130.0):
        playhead.ring.write(loud, round((now - RING_SECONDS) * RATE))
        playhead.block(now)
    assert playhead.lag(130.0) == pytest.approx(playhead.target, abs=0.025)
