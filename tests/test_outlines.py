"""The outlines of a face: one place for them, and each goes around its part once."""

from __future__ import annotations

import numpy as np
import pytest

from engine.drivers import hands, outlines, portrait
from engine.generators.puppet import topology
from engine.generators.puppet.find import find_face
from engine.persona import demo_portrait
from engine.types import FloatArray
from exporters.data import regions


def test_all_who_need_them_have_the_same() -> None:
    assert topology.OVAL is outlines.OVAL
    for module, names in ((portrait, ["OVAL"]), (hands, ["OVAL"]), (regions, ["OVAL", "LIPS", "EYES"])):
        assert all(vars(module)[name] is vars(outlines)[name] for name in names)


@pytest.fixture(scope="module")
def face() -> FloatArray:
    return find_face(demo_portrait())[:, :2]


@pytest.mark.parametrize("outline", [outlines.OVAL, outlines.LIPS, *outlines.EYES])
def test_each_goes_around_once_clockwise(outline: tuple[int, ...], face: FloatArray) -> None:
    """Every step turns around the middle the same way, and all of them by one turn together."""
    around = face[list(outline)] - face[list(outline)].mean(0)
    angles = np.arctan2(around[:, 1], around[:, 0])
    steps = (np.roll(angles, -1) - angles + np.pi) % (2 * np.pi) - np.pi
    assert len(set(outline)) == len(outline)
    assert steps.min() > 0
    assert steps.sum() == pytest.approx(2 * np.pi)
