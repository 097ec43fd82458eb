"""A recogniser that a user has: faces are brought to where it expects them, and whatever is none is refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from engine.drivers.portrait import find_face
from engine.persona import demo_portrait
from engine.recogniser import SIDE, TEMPLATE, Recogniser, aligned, digest, fit, five_points, similarity
from engine.types import AvatarError, FloatArray, UInt8Array
from tests.conftest import require
from tests.recognisers import LENGTH, onnx_file


@pytest.fixture(scope="module")
def portrait() -> tuple[UInt8Array, FloatArray]:
    """The built-in portrait with its face points, px."""
    picture = demo_portrait()
    return picture, find_face(picture).points


# -- alignment ----------------------------------------------------------------------------------------------------------


def test_the_portraits_five_points_land_on_the_template(portrait: tuple[UInt8Array, FloatArray]) -> None:
    """As its landmarks say, and as the tracker finds them again in the aligned face."""
    picture, points = portrait
    matrix = fit(five_points(points))
    landed = np.linalg.solve(matrix[:, :2], (five_points(points) - matrix[:, 2]).T).T
    assert np.abs(landed - TEMPLATE).max() < 6.0, "she smiles: her mouth is wider and higher than most"
    face = aligned(picture, points)
    assert face.shape == (SIDE, SIDE, 3)
    large = np.pad(np.asarray(cv2.resize(face, (4 * SIDE, 4 * SIDE)), np.uint8), ((2 * SIDE, 2 * SIDE), (2 * SIDE, 2 * SIDE), (0, 0)), "edge")
    again = (five_points(find_face(large).points) - 2 * SIDE) / 4
    assert np.abs(again - landed).max() < 2.0


@pytest.mark.parametrize("angle", [0, 30, 180])
def test_whatever_is_alike_to_the_template_is_brought_onto_it(angle: float) -> None:
    turn = 1.7 * np.exp(1j * np.radians(angle))
    moved = (TEMPLATE @ [1, 1j]) * turn + (30 - 12j)
    matrix = fit(np.stack([moved.real, moved.imag], -1))
    assert matrix == pytest.approx(np.array([[turn.real, -turn.imag, 30], [turn.imag, turn.real, -12]]), abs=1e-3)


def test_a_face_is_never_mirrored() -> None:
    """Even where its mirror image is the template itself: a turned head's points can lie nearer to that."""
    assert np.linalg.det(fit(TEMPLATE * [-1, 1] + [SIDE, 0])[:, :2]) > 0


def test_many_faces_are_fitted_as_each_alone_and_none_stays_none(portrait: tuple[UInt8Array, FloatArray]) -> None:
    five = np.stack([five_points(portrait[1]), five_points(portrait[1] * 0.3 + 9), np.full((5, 2), np.nan, np.float32), np.zeros((5, 2), np.float32)])
    together = fit(five)
    assert np.array_equal(together[1], fit(five[1]))
    assert np.isnan(together[2:]).all()


def test_a_picture_without_a_face_says_so() -> None:
    with pytest.raises(AvatarError, match="no face to recognise"):
        aligned(np.zeros((64, 64, 3), np.uint8), np.full((478, 2), np.nan, np.float32))


# -- files --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def _runtime() -> None:
    require("onnx")
    require("onnxruntime")


@pytest.mark.usefixtures("_runtime")
class TestFiles:
    @pytest.mark.parametrize("how", [{}, {"batch": 1}, {"normalises": True}])
    def test_a_face_has_the_same_vector_however_the_file_takes_it(self, tmp_path: Path, how: dict[str, Any]) -> None:
        faces = np.random.default_rng(1).integers(0, 256, (3, SIDE, SIDE, 3)).astype(np.uint8)
        plain, other = Recogniser(onnx_file(tmp_path / "a.onnx")), Recogniser(onnx_file(tmp_path / "b.onnx", **how))
        vectors = other(faces)
        assert vectors.shape == (3, other.length)
        assert other.length == LENGTH
        assert vectors == pytest.approx(plain(faces), abs=1e-4)
        assert vectors[1] == pytest.approx(other(faces[1:2])[0], abs=1e-5)
        assert similarity(vectors, vectors) == pytest.approx(1.0)
        assert similarity(vectors[0], vectors[1]) < 0.9999

    def test_a_portrait_is_more_like_itself_smaller_than_like_noise(self, tmp_path: Path, portrait: tuple[UInt8Array, FloatArray]) -> None:
        picture, points = portrait
        recogniser = Recogniser(onnx_file(tmp_path / "a.onnx"))
        small = aligned(np.asarray(cv2.resize(picture, None, fx=0.5, fy=0.5), np.uint8), points / 2)
        noise = np.random.default_rng(0).integers(0, 256, small.shape).astype(np.uint8)
        mine, again, other = recogniser(np.stack([aligned(picture, points), small, noise]))
        assert similarity(mine, again) > 0.98 > similarity(mine, other)

    def test_its_key_is_the_files(self, tmp_path: Path) -> None:
        first, same, other = (onnx_file(tmp_path / f"{i}.onnx", seed) for i, seed in enumerate((0, 0, 1)))
        assert Recogniser(first).key == digest(same) != digest(other)

    @pytest.mark.parametrize(
        ("how", "said"),
        [
            ({"side": 96}, "takes any x 3 x 96 x 96"),
            ({"layout": "NHWC"}, "takes any x 112 x 112 x 3"),
            ({"batch": 4}, "takes 4 faces at once"),
            ({"outputs": 2}, "gives 2 outputs"),
            ({"end": "Relu"}, r"gives \[1, 6, 7, 7\] numbers for 1 face,"),
        ],
    )
    def test_what_is_no_recogniser_is_refused_in_words(self, tmp_path: Path, how: dict[str, Any], said: str) -> None:
        with pytest.raises(AvatarError, match=said):
            Recogniser(onnx_file(tmp_path / "a.onnx", **how))

    def test_what_is_no_file_is_refused_in_words(self, tmp_path: Path) -> None:
        with pytest.raises(AvatarError, match="cannot be read .*check its name"):
            Recogniser(tmp_path / "none.onnx")
        with pytest.raises(AvatarError, match="cannot be read .*w600k_r50.onnx"):
            Recogniser(tmp_path)
        (tmp_path / "bad.onnx").write_bytes(b"not a graph")
        with pytest.raises(AvatarError, match="cannot load"):
            Recogniser(tmp_path / "bad.onnx")
