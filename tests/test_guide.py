"""What the recording page asks for: what ticks each task, what does not count, and that the figures are the quality filter's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine.drivers import quality
from engine.drivers.face import FaceDriver
from engine.types import UInt8Array
from exporters.data import filters, footage
from streaming import guide as guides
from streaming.guide import KEYS, TASKS, Guide, Reading
from streaming.observer import Observer
from tests.faces import scene

STEP = 0.1
"""s between two pictures."""
SHOWN: dict[str, Callable[[float], dict[str, Any]]] = {
    "rest": lambda t: {},
    "left": lambda t: {"head": (22.0, 0.0, 0.0)},
    "right": lambda t: {"head": (-22.0, 0.0, 0.0)},
    "up": lambda t: {"head": (0.0, -14.0, 0.0)},
    "down": lambda t: {"head": (0.0, 14.0, 0.0)},
    "jaw": lambda t: {"gap": 0.6},
    "teeth": lambda t: {"wider": 0.2, "gap": 0.1},
    "eyes": lambda t: {"eyes": 1.3, "gap": 0.2},
    "brows": lambda t: {"brows": 0.08, "gap": 0.2},
    "blinks": lambda t: {"eyes": 0.1 if t % 0.8 < 0.3 else 0.9, "gap": 0.2},
    "read": lambda t: {"loud": 0.1 if t % 0.4 < 0.25 else 0.002, "gap": 0.15 + 0.1 * np.sin(12 * t)},
}
"""What shows each task and no other but the minute."""


def live_through(guide: Guide, seconds: float, show: Callable[[float], dict[str, Any]], *, start: float = 100.0) -> Guide:
    """Pictures of so many seconds."""
    for index in range(round(seconds / STEP) + 1):
        guide.see(Reading(start + index * STEP, **show(index * STEP)))
    return guide


@pytest.mark.parametrize("key", [key for key in KEYS if key != "minute"])
def test_a_task_is_ticked_by_what_shows_it_and_by_nothing_else(key: str) -> None:
    made = live_through(Guide(), 30.0, SHOWN[key])
    assert set(KEYS) - set(made.missing()) == {key}
    assert made.have["minute"] == pytest.approx(30.0)


def test_half_of_it_is_not_enough_and_shows_how_far_it_is() -> None:
    made = live_through(Guide(), 5.0, lambda t: {"head": (9.0, 0.0, 0.0)})
    assert "left" in made.missing()
    assert made.now["left"] == pytest.approx(0.5)
    told = {task["key"]: task for task in made.told()["tasks"]}
    assert told["left"] == {"key": "left", "share": 0.0, "now": 0.5}


def test_everything_is_there_in_the_end() -> None:
    made, start = Guide(), 0.0
    for show in SHOWN.values():
        live_through(made, 12.0, show, start=start)
        start += 12.5
    assert made.missing() == []
    assert made.told()["warning"] is None


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("no face", {"face": False}),
        ("dark", {"face": False, "light": 10.0}),
        ("two faces", {"others": 0.8}),
        ("cut off", {"outside": 0.1}),
        ("blurred", {"sharp": 8.0}),
        ("extreme pose", {"head": (34.0, 0.0, 0.0)}),
        ("mouth covered", {"mouth": 0.2}),
    ],
)
def test_what_the_filter_would_drop_does_not_count_and_is_told(reason: str, change: dict[str, Any]) -> None:
    made = live_through(Guide(), 8.0, lambda t: {})
    before = dict(made.have)
    live_through(made, 5.0, lambda t: {"head": (20.0, 0.0, 0.0), **change}, start=109.0)
    assert made.have == before
    assert made.told()["warning"] == guides.WARNINGS[reason]
    assert made.dropped[reason] == pytest.approx(5.5)
    live_through(made, 1.0, lambda t: {}, start=115.0)
    assert made.told()["warning"] is None


@pytest.mark.parametrize(("hint", "change"), [("dim", {"light": 40.0}), ("far", {"width": 80.0}), ("soft", {"sharp": 3.0})])
def test_what_is_only_worth_less_counts_and_is_told(hint: str, change: dict[str, Any]) -> None:
    made = live_through(Guide(), 3.0, lambda t: change)
    assert made.told()["advice"] == guides.ADVICE[hint]
    assert made.have["rest"] == pytest.approx(3.0)


def test_one_bad_picture_is_no_warning() -> None:
    made = live_through(Guide(), 1.0, lambda t: {})
    made.see(Reading(101.1, face=False))
    assert made.warning is None
    made.see(Reading(101.2, face=False))
    assert made.warning == "no face"


def test_nothing_is_measured_before_the_rest_is_known() -> None:
    made = live_through(Guide(), 1.9, lambda t: {"head": (22.0, 0.0, 0.0), "eyes": 1.3})
    assert made.have["left"] == made.have["eyes"] == 0.0
    live_through(made, 1.0, lambda t: {"head": (22.0, 0.0, 0.0)}, start=102.0)
    assert made.have["left"] == pytest.approx(1.0, abs=STEP)


def test_a_voice_needs_a_microphone_and_a_moving_mouth() -> None:
    for made, show in (
        (Guide(sound=False), SHOWN["read"]),
        (Guide(), lambda t: {**SHOWN["read"](t), "gap": 0.1}),  # somebody else speaks
        (Guide(), lambda t: {**SHOWN["read"](t), "loud": 0.1}),  # a fan hums while the mouth moves
        (Guide(), lambda t: {**SHOWN["read"](t), "loud": 0.001}),
    ):
        assert "read" in live_through(made, 20.0, show).missing()


def test_a_pause_of_the_line_counts_little_and_time_never_runs_back() -> None:
    made = Guide()
    for time in (10.0, 20.0, 5.0, 5.1):
        made.see(Reading(time))
    assert made.have["minute"] == pytest.approx(guides.LONGEST_STEP + 0.1)


def test_what_an_earlier_recording_showed_is_not_asked_again() -> None:
    made = live_through(Guide(done={"left", "jaw"}, seconds=50.0), 11.0, lambda t: {})
    assert not {"left", "jaw", "rest", "minute"} & set(made.missing())
    assert "right" in made.missing()


def test_a_recording_says_what_it_alone_showed() -> None:
    made = live_through(Guide(done={"left", "jaw"}, seconds=50.0), 11.0, lambda t: {})
    assert made.shown() == ["rest"]
    assert made.of_use() == pytest.approx(11.0)
    again = live_through(Guide(done=set(KEYS), seconds=70.0), 61.0, SHOWN["left"])
    assert again.shown() == ["left", "minute"], "once more"
    assert again.of_use() == pytest.approx(61.0)


def test_the_figures_are_the_quality_filters() -> None:
    assert list(guides.TURN_MOST) == filters.TURN_MOST.tolist()
    assert (guides.CUT_OFF, guides.SHARP_SHARE, guides.COVERED, guides.RIVAL) == (
        filters.CUT_OFF,
        filters.SHARP_SHARE,
        filters.COVERED,
        filters.RIVAL,
    )
    faces = [np.random.default_rng(seed).uniform(0.2 + 0.3 * seed, 0.4 + 0.3 * seed, (478, 3)).astype(np.float32) for seed in range(2)]
    assert (vars(footage)["sharpness"], vars(footage)["others"]) == (quality.sharpness, quality.others)
    assert quality.others(faces, faces[0]) > 0.9
    assert quality.others(faces, None) > 0.9


def test_the_page_is_given_words_for_every_task() -> None:
    told = guides.described()
    assert [task["key"] for task in told] == list(KEYS) == [task.key for task in TASKS]
    assert all(task["title"] and task["say"] for task in told)
    assert [task["key"] for task in told if task["read"]] == ["read"]


def test_the_observer_reads_real_pictures() -> None:
    observer = Observer(FaceDriver)

    def look(picture: UInt8Array, time: float) -> Reading:
        return observer(picture, time=time, loud=0.1, width=2 * picture.shape[1])

    try:
        alone = [look(scene((320, 260, 440)), k / 10) for k in range(4)][-1]
        assert alone.face
        assert alone.loud == 0.1
        assert alone.width == pytest.approx(2 * 0.31 * 440, rel=0.2), "of the recorded picture, which is twice as wide"
        assert max(abs(angle) for angle in alone.head) < 8.0
        assert (alone.others, alone.outside) == (0.0, 0.0)
        assert guides.problem(alone, alone.sharp) is None
        assert guides.problem(look(scene((180, 260, 340), (470, 260, 320)), 1.0), None) == "two faces"
        assert guides.problem(look(scene(), 4.0), None) == "no face"
        dark = look(np.full((480, 640, 3), 10, np.uint8), 5.0)
        assert guides.problem(dark, None) == "dark"
        soft = replace(alone, sharp=0.3 * alone.sharp)
        assert guides.problem(soft, alone.sharp) == "blurred"
    finally:
        observer.close()
