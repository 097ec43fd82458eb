"""What a training run notices of its loss: that it is no number, and that it has run away; not that it wobbles, as every loss does."""

from __future__ import annotations

import math

import pytest

from tests.conftest import require

pytestmark = pytest.mark.torch
require("torch")
require("diffusers")
require("accelerate")

from exporters.training.runs import Progress  # noqa: E402
from exporters.training.train import RECENT, WORSE, _Watch  # noqa: E402


def fresh() -> _Watch:
    """Of a run that begins."""
    return _Watch(Progress())


def told(watch: _Watch, losses: list[float]) -> list[str]:
    """What is said of each, one after another."""
    return [watch(loss) for loss in losses]


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_told(loss: float) -> None:
    assert "no number" in fresh()(loss), "of the first update"
    watch = fresh()
    assert not any(told(watch, [1.0] * 2 * RECENT))
    assert "no number" in watch(loss), "of a later one"


def test_a_loss_that_runs_away_is_told_at_once() -> None:
    """As soon as the mean of the recent updates is so many times the best there was, and not one update before."""
    high, watch = 2 * WORSE - 1, fresh()  # half of the recent updates as high as this, half of them 1: exactly WORSE
    assert not any(told(watch, [1.0] * RECENT))
    *before, last = told(watch, [high] * (RECENT // 2 + 1))
    assert not any(before)
    assert "diverged" in last
    assert "it was 1)" in last


def test_it_is_measured_by_the_best_there_was_and_not_by_the_first() -> None:
    watch = fresh()
    assert not any(told(watch, [100.0] * RECENT + [1.0] * RECENT)), "what falls is well"
    assert any("diverged" in one for one in told(watch, [2 * WORSE] * RECENT)), "though the first were far higher"


def test_a_loss_that_creeps_up_is_told_too() -> None:
    losses = [1.01**k for k in range(400)]
    said = told(fresh(), losses)
    first = next(k for k, one in enumerate(said) if one)
    assert "diverged" in said[first]
    assert WORSE < losses[first] < 3 * WORSE


@pytest.mark.parametrize(
    "losses",
    [
        [1.0 + 0.9 * (-1) ** k for k in range(6 * RECENT)],
        [1.0 + 0.5 * math.sin(k / RECENT) for k in range(20 * RECENT)],
        [1.0] * RECENT + [0.9 * RECENT * (WORSE - 1)] + [1.0] * RECENT,
        [float(k) for k in range(RECENT)],
        [1.0] * RECENT + [0.9 * WORSE] * 3 * RECENT,
    ],
    ids=["from update to update", "slowly", "one wild update", "before there is a mean", "to a worse place"],
)
def test_a_loss_that_wobbles_is_not_told(losses: list[float]) -> None:
    assert not any(told(fresh(), losses))


def test_a_run_that_goes_on_remembers_its_best() -> None:
    done = Progress()
    assert not any(told(_Watch(done), [1.0] * RECENT))
    assert any("diverged" in one for one in told(_Watch(done), [2 * WORSE] * RECENT))


def test_one_wild_update_is_not_told_of_a_run_that_goes_on_either() -> None:
    done = Progress()
    assert not any(told(_Watch(done), [1.0] * RECENT))
    assert not any(told(_Watch(done), [2 * WORSE] + [1.0] * RECENT))
