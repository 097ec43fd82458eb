"""A training run on disk: what it says to a run with other settings."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from engine.types import AvatarError
from tests.conftest import require

pytestmark = pytest.mark.torch
require("torch")
require("diffusers")
require("accelerate")

from exporters.training import runs  # noqa: E402
from exporters.training.learner import Settings  # noqa: E402

DATA = {"one": "7f" * 32, "other": "a0" * 32}


def known(data: str = "one", **changes: Any) -> dict[str, Any]:
    """As a run keeps its settings."""
    settings = replace(Settings(), **changes)
    return {**{name: repr(value) for name, value in asdict(settings).items()}, "start": "", "dataset": DATA[data]}


def refused(folder: Path, settings: dict[str, Any]) -> str:
    with pytest.raises(AvatarError) as refusal:
        runs.load(folder, settings=settings)
    return str(refusal.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    runs.save(tmp_path, {"updates": 1}, settings=known())
    assert runs.load(tmp_path, settings=known()) == {"updates": 1}
    return tmp_path


def test_only_what_differs_is_named_with_short_values(folder: Path) -> None:
    said = refused(folder, known(steps=1, recipe="teacher"))
    assert "(recipe appearance instead of teacher, steps 2 instead of 1); give the same options" in said
    assert "or another --out to begin anew." in said


def test_long_values_are_left_out(folder: Path) -> None:
    patterns = Settings().patterns
    assert "(patterns); give" in refused(folder, known(patterns=(*patterns[:-1], replace(patterns[-1], rows=2))))
    assert "(dataset); give" in refused(folder, known("other"))


def test_of_a_group_only_what_differs_inside_is_named(folder: Path) -> None:
    weights = Settings().weights
    said = refused(folder, known(weights=replace(weights, critic=9.0)))
    assert f"(weights.critic {weights.critic} instead of 9.0); give" in said


def test_a_setting_that_the_run_did_not_have_is_named(folder: Path) -> None:
    assert "(later none instead of 3); give" in refused(folder, {**known(), "later": "3"})
