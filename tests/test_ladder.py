"""What gives way when a session falls behind, and what is counted; virtual time."""

from __future__ import annotations

import itertools

import numpy as np

from streaming.ladder import DOWN_AFTER, RUNGS, UP_AFTER, WARM_UP, Ladder, Look, overrun
from streaming.stats import Stats, prometheus, quantiles
from tests.voices import START

# -- the ladder --------------------------------------------------------------------------------------------------------------


def seconds(ladder: Ladder, count: int, *, wanted: float = 30.0, made: float = 30.0, busy: float = 0.3) -> int:
    """So many seconds -> how often the rung changed."""
    return sum(ladder.observe(wanted=wanted, made=made, busy=busy) for _ in range(count))


def test_the_ladder_goes_down_in_the_documented_order_and_back_up() -> None:
    ladder = Ladder()
    seen = []
    for _ in range(80):
        if ladder.observe(wanted=30.0, made=6.0, busy=1.0):
            seen.append(ladder.rung)
    assert seen == list(RUNGS[1:])
    sizes = [rung.output_scale for rung in RUNGS]
    assert sizes == sorted(sizes, reverse=True)
    assert [rung.fps for rung in RUNGS] == sorted((rung.fps for rung in RUNGS), reverse=True)
    seconds(ladder, 200, made=30.0, busy=0.2)
    assert ladder.index == 0


def test_no_rung_gives_back_what_one_before_it_took() -> None:
    for before, after in itertools.pairwise(RUNGS):
        for rate in ("fps", "output_scale"):
            assert getattr(after, rate) <= getattr(before, rate)
        fps = min(before.fps, 30.0), min(after.fps, 30.0)
        assert fps[1] / after.track_every <= fps[0] / before.track_every, f"{after.name}: faces a second"
        assert fps[1] / after.body_every <= fps[0] / before.body_every, f"{after.name}: shoulders a second"


def test_what_no_rung_mends_is_said_in_words() -> None:
    assert not overrun(0.26, chunk=4, fps=15.0)
    told = overrun(0.943, chunk=4, fps=15.0)
    assert told.startswith("Making 4 pictures takes 0.94 s here, and they last 0.27 s. Fewer steps, ")
    assert overrun(0.2, chunk=1, fps=24.0).startswith("Making a picture takes 0.2 s here, and it lasts 0.042 s. ")


def test_an_encoder_that_is_too_slow_is_seen() -> None:
    """The pacer lets 30 pictures a second go; x264 manages 14 of 512 px, more of smaller ones."""
    ladder = Ladder()
    now, sent, worked, rungs = START, 0.0, 0.0, [0]
    for _ in range(200):
        can = 14.0 / ladder.rung.output_scale**2
        made = min(30.0, ladder.rung.fps, can)
        now, sent, worked = now + 1.0, sent + made, worked + made / can
        look = Look(now, sent=round(sent), worked={"generator_0": 500.0 + 0.1 * (now - START), "encoder": worked})
        if ladder.judge(look, fps=30.0, follows_camera=False):
            rungs.append(ladder.index)
    assert [rung for rung in rungs if rung <= 3][:4] == [0, 1, 2, 3]
    assert set(rungs[4:]) <= {3, 4}, "at 3/4 it just keeps up, and its busy encoder leaves no room to climb"
    assert "frames a second" in ladder.why


def test_a_busy_thread_shows_beside_one_that_has_worked_longer() -> None:
    ladder = Ladder(index=3)
    for k in range(60):
        worked = {"generator_0": 1000.0 + 0.1 * k, "tracker": 0.9 * k}
        ladder.judge(Look(START + k, sent=24 * k, worked=worked), fps=30.0, follows_camera=False)
    assert ladder.index == 3


def test_a_new_connection_counts_from_nothing_and_is_no_falling_behind() -> None:
    ladder = Ladder()
    for k in range(60):
        ladder.judge(Look(START + k, camera=30 * k, sent=30 * (k % 20)), fps=30.0, follows_camera=True)
    assert ladder.steps == 0


def test_a_bad_second_now_and_then_changes_nothing() -> None:
    ladder = Ladder()
    assert seconds(ladder, WARM_UP) == 0
    for _ in range(20):
        assert seconds(ladder, DOWN_AFTER - 1, made=10.0) == 0
        assert seconds(ladder, 1) == 0


def test_a_slow_camera_is_not_falling_behind() -> None:
    assert seconds(Ladder(), 60, wanted=12.0, made=12.0) == 0
    assert seconds(Ladder(), 60, wanted=0.0, made=0.0) == 0


def test_a_second_cut_a_frame_short_still_counts_as_keeping_up() -> None:
    ladder = Ladder(index=len(RUNGS) - 1)
    for k in range(40):
        ladder.observe(wanted=30.0, made=7.0 + k % 2, busy=0.1)
    assert ladder.index < len(RUNGS) - 1


def test_after_a_failed_climb_the_ladder_waits_longer() -> None:
    ladder = Ladder()
    changes: list[int] = []
    for second in range(400):
        enough = ladder.index >= 1  # this machine can do rung 1 and no more
        if ladder.observe(wanted=30.0, made=24.0 if enough else 15.0, busy=0.3):
            changes.append(second)
    assert ladder.steps < 20
    waits = np.diff(changes)[0::2]  # from each step down to the next try
    assert waits.max() > 3 * UP_AFTER, "each failed try doubles the patience"


# -- the figures -------------------------------------------------------------------------------------------------------------


def test_quantiles_and_the_prometheus_text() -> None:
    assert quantiles([]) == {}
    assert quantiles(range(100)) == {"p50": 50, "p95": 95, "p99": 99}
    stats = Stats(started=1.0)
    stats.stage("step", 0.012)
    stats.drop("camera", 3)
    stats.sent.hit(2.0)
    text = prometheus({"sessions": 1, "refused_total": 2}, {"abcd": stats.snapshot(2.0)})
    assert 'avatar_stage_milliseconds{session="abcd",stage="step",quantile="0.95"} 12' in text
    assert 'avatar_drops_total{session="abcd",cause="camera"} 3' in text
    assert "# TYPE avatar_refused_total counter" in text
    assert text.count("# TYPE avatar_fps gauge") == 1
