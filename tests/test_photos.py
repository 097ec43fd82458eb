"""Photos of a person: judged, put upright, cut and lit gently, and one clear sentence for each that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import avatar
from engine.drivers.outlines import EYES, LIPS
from engine.drivers.portrait import Found, find_face
from engine.persona import read_portrait, show
from engine.pose import Float64Array
from engine.types import AvatarError, UInt8Array
from exporters.portraits.finish import AROUND, finish
from exporters.portraits.photos import Marks, judge, read_photo, read_photos
from tests.faces import portrait, scene


@cache
def close() -> tuple[UInt8Array, Found]:
    """The built-in portrait's head [480, 480, 3], and its face."""
    rgb = np.ascontiguousarray(portrait()[20:500, 120:600])
    return rgb, find_face(rgb)


def saved(folder: Path, rgb: UInt8Array, name: str = "a.png", *, orientation: int = 1) -> Path:
    """A picture, written, with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(rgb).save(folder / name, exif=exif)
    return folder / name


def covered(outlines: tuple[tuple[int, ...], ...], colour: tuple[int, int, int], size: tuple[float, float]) -> UInt8Array:
    """An ellipse of `size` face widths over each of some outlines of the face."""
    rgb, face = close()
    picture = rgb.copy()
    for outline in outlines:
        x, y = face.points[list(outline)].mean(0)
        cv2.ellipse(picture, (int(x), int(y)), (int(size[0] * face.width), int(size[1] * face.width)), 0, 0, 360, colour, -1)
    return picture


def in_light(rgb: UInt8Array, light: float | Float64Array) -> UInt8Array:
    """A picture with its light multiplied."""
    return np.asarray(255 * ((rgb / 255.0) ** 2.2 * light) ** (1 / 2.2), np.uint8)


# -- judged ---------------------------------------------------------------------------------------------------------------


def test_a_good_photo_has_nothing_wrong() -> None:
    rgb, face = close()
    assert judge(rgb, face).warnings == ()


@pytest.mark.parametrize(
    ("picture", "word"),
    [
        (lambda: covered((LIPS,), (190, 205, 215), (0.4, 0.3)), "mouth seems to be covered"),
        (lambda: covered(EYES, (25, 25, 30), (0.2, 0.16)), "eyes seem to be covered"),
        (lambda: np.asarray(cv2.GaussianBlur(close()[0], (0, 0), 6), np.uint8), "blurred"),
        (lambda: np.asarray(cv2.resize(close()[0], (180, 180), interpolation=cv2.INTER_AREA), np.uint8), "look soft"),
    ],
    ids=["mask", "dark glasses", "blur", "small"],
)
def test_what_is_wrong_is_said_and_marked_down(picture: Callable[[], UInt8Array], word: str) -> None:
    rgb = picture()
    marks = judge(rgb, find_face(rgb))
    assert any(word in warning for warning in marks.warnings), marks
    assert marks.whole < 0.6 * judge(*close()).whole


def test_the_best_photo_comes_first_and_the_others_are_explained(tmp_path: Path) -> None:
    blurred = np.asarray(cv2.GaussianBlur(close()[0], (0, 0), 6), np.uint8)
    files = [saved(tmp_path, blurred, "blurred.png"), saved(tmp_path, close()[0], "sharp.png"), saved(tmp_path, close()[0], "again.png")]
    files.append(saved(tmp_path, scene((160, 240, 300), (480, 240, 300)), "two.png"))
    said: list[str] = []
    photos, refused = read_photos(files, tell=said.append)
    assert [photo.name for photo in photos] == ["sharp.png", "blurred.png"]
    assert [sentence.split(":")[0] for sentence in refused] == ["again.png", "two.png"]
    assert said == [f"Left out: {sentence}" for sentence in refused]
    with pytest.raises(AvatarError, match="None of the 2 photos"):
        read_photos([files[3], tmp_path / "nothing.png"])


# -- upright --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("quarters", "word"), [(1, "on its side"), (2, "upside down"), (3, "on its side")])
def test_a_picture_that_lies_is_turned(quarters: int, word: str, tmp_path: Path) -> None:
    rgb = close()[0][:, 40:440]
    photo = read_photo(saved(tmp_path, np.ascontiguousarray(np.rot90(rgb, quarters))))
    assert np.array_equal(photo.rgb, rgb)
    assert len(photo.notes) == 1
    assert word in photo.notes[0]
    assert np.allclose(photo.face.center, find_face(photo.rgb).center, atol=4)


def test_exif_is_followed_and_said(tmp_path: Path) -> None:
    rgb = close()[0][:, 40:440]
    photo = read_photo(saved(tmp_path, np.ascontiguousarray(np.rot90(rgb)), orientation=6))
    assert np.array_equal(photo.rgb, rgb)
    assert ["EXIF" in note for note in photo.notes] == [True]


# -- refused --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rgb", "sentence"),
    [
        (np.full((200, 200, 3), 90, np.uint8), "No face was found"),
        (scene((160, 240, 300), (480, 240, 300)), "more than one face"),
        (np.full((40, 40, 3), 90, np.uint8), "only 40 x 40 pixels"),
        (scene((320, 240, 110)), "at least 48"),
        (np.zeros((5200, 5000, 3), np.uint8), "5000 x 5200 pixels, more than"),
    ],
    ids=["no face", "two faces", "tiny", "tiny face", "huge"],
)
def test_what_cannot_be_used_is_one_sentence(rgb: UInt8Array, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(AvatarError, match=sentence) as said:
        read_photo(saved(tmp_path, rgb))
    assert str(said.value).startswith("a.png: ")
    assert str(said.value).count("\n") == 0


def test_a_face_that_cannot_be_judged_is_told_with_the_file_s_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unclear(rgb: UInt8Array, face: Found) -> Marks:
        raise AvatarError("The face is too unclear to be judged.")

    monkeypatch.setattr("exporters.portraits.photos.judge", unclear)
    with pytest.raises(AvatarError, match="^a.png: The face is too unclear"):
        read_photo(saved(tmp_path, close()[0]))


def test_what_is_no_picture_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0 broken")
    (tmp_path / "b.jpg").write_text("words")
    for name, word in (("a.jpg", "damaged"), ("b.jpg", "not a picture"), ("c.jpg", "cannot be opened")):
        with pytest.raises(AvatarError, match=f"{name}: .*{word}"):
            read_photo(tmp_path / name)


# -- finished -------------------------------------------------------------------------------------------------------------


def test_a_good_photo_is_left_as_it_is() -> None:
    rgb, face = close()
    finished = finish(rgb, face)
    assert finished.rgb is rgb
    assert finished.done == ()


def test_a_wide_picture_is_cut_around_the_face() -> None:
    rgb = scene((1400, 500, 360), size=(1000, 2000))
    face = find_face(rgb)
    finished = finish(rgb, face)
    height, width = finished.rgb.shape[:2]
    assert width == pytest.approx(AROUND * max(face.width, face.height / 1.3), abs=2)
    assert "cropped" in finished.done[0]
    found = find_face(finished.rgb)
    assert found.width == pytest.approx(face.width, rel=0.05)
    assert found.center[0] == pytest.approx(width / 2, abs=0.05 * width)
    assert finish(rgb, face, cut=False).rgb.shape == rgb.shape


def test_a_dark_face_becomes_brighter_but_not_bright() -> None:
    rgb, face = close()
    dark = in_light(rgb, 0.05)
    finished = finish(dark, face)
    assert finished.done == ("made brighter",)
    x, y = (int(value) for value in face.center)
    before, after, good = (float(picture[y - 40 : y + 40, x - 40 : x + 40].mean()) for picture in (dark, finished.rgb, rgb))
    assert before * 1.1 < after < good
    assert finish(dark, face, relight=False).rgb is dark


def test_light_from_one_side_is_evened_and_only_on_the_person() -> None:
    rgb, face = close()
    side = (np.arange(rgb.shape[1]) - face.center[0]) / face.width
    for mirror in (1, -1):
        lit = in_light(rgb, (1.0 - 0.97 / (1 + np.exp(-14 * side * mirror)))[None, :, None])
        finished = finish(lit, face)
        assert "evenly" in finished.done[0]
        x, y = int(face.center[0] + mirror * 0.25 * face.width), int(face.center[1])
        before, after = (float(picture[y - 8 : y + 8, x - 8 : x + 8].mean()) for picture in (lit, finished.rgb))
        bright = int(face.center[0] - mirror * 0.35 * face.width)
        assert before * 1.1 < after < before * 2
        assert np.abs(finished.rgb[y, bright].astype(int) - lit[y, bright]).max() < 0.1 * lit[y, bright].max()
        corner = (slice(0, 20), slice(-20, None) if mirror > 0 else slice(0, 20))
        assert np.abs(finished.rgb[corner].astype(int) - lit[corner]).mean() < 3


# -- the command ----------------------------------------------------------------------------------------------------------


def test_a_persona_of_photos_says_what_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("AVATAR_HOME", str(tmp_path / "home"))
    good = saved(tmp_path, np.ascontiguousarray(np.rot90(close()[0])), "good.png")
    none = saved(tmp_path, np.full((200, 200, 3), 90, np.uint8), "none.png")
    assert avatar.main(["persona", "create", "Eileen", "--photos", str(none), str(good), "--consent", "I am in the picture."]) == 0
    said = capsys.readouterr().out
    assert "No identity system was asked for" in said
    assert "Left out: none.png: No face" in said
    assert "turned upright" in said
    manifest = show("Eileen")
    made = manifest["provenance"]
    assert manifest["consent"]["statement"] == "I am in the picture."
    assert (manifest["source"], made["used"], made["system"]) == ("good.png", ["good.png"], None)
    assert len(made["photos"]) == 1
    assert len(made["photos"][0]["sha256"]) == 64
    assert "turned upright" in made["done"][0]
    assert json.loads(json.dumps(manifest)) == manifest
    assert np.array_equal(read_portrait("Eileen"), close()[0])
    assert avatar.main(["persona", "create", "Eileen", "--photos", str(good), "--consent", "yes"]) == 2
    assert "already a persona" in capsys.readouterr().err


# -- for a program that runs it -------------------------------------------------------------------------------------------


def told(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The events on standard output."""
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_photos_are_judged_for_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("exporters.portraits.child._end_with_parent", lambda: None)  # this process has another standard input
    rgb = covered((LIPS,), (190, 205, 215), (0.4, 0.3))
    wide = np.full((1400, 2800, 3), 120, np.uint8)
    wide[300:780, 300:780] = rgb
    files = [saved(tmp_path, wide, "a.png"), saved(tmp_path, scene((160, 240, 300), (480, 240, 300)), "two.png")]
    assert avatar.main(["persona", "judge", *map(str, files), "--previews", str(tmp_path / "seen"), "--child"]) == 0
    events = [event for event in told(capsys) if event["event"] != "said"]
    assert [(event["event"], event["file"]) for event in events] == [("photo", "a.png"), ("refused", "two.png")]
    good, bad = events
    assert list(good["wrong"]) == ["mouth_seen"]
    assert good["size"] == [2800, 1400]
    x0, y0, x1, y1 = good["box"]
    assert 0 <= x0 < 300 < 780 < x1 < 2800
    assert any("cropped" in what for what in good["done"])
    assert bad["text"].startswith("There is more than one face")
    with Image.open(tmp_path / "seen" / "a.png.jpg") as whole, Image.open(tmp_path / "seen" / "a.png.portrait.jpg") as kept:
        assert whole.size == (960, 480)
        assert kept.size[0] / kept.size[1] == pytest.approx((x1 - x0) / (y1 - y0), abs=0.01)
    assert sorted(path.name for path in (tmp_path / "seen").iterdir()) == ["a.png.jpg", "a.png.portrait.jpg"]
    assert avatar.main(["persona", "judge", str(files[0])]) == 0
    assert "a.png: marked" in capsys.readouterr().out


def test_photos_of_one_name_have_previews_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    bright = saved(tmp_path, close()[0], "me.png")
    dark = saved(tmp_path / "other", (close()[0] // 2).astype(np.uint8), "me.png")
    seen = tmp_path / "seen"
    assert avatar.main(["persona", "judge", str(bright), str(dark), "--previews", str(seen)]) == 0
    assert sorted(path.name for path in seen.iterdir()) == ["me (2).png.jpg", "me (2).png.portrait.jpg", "me.png.jpg", "me.png.portrait.jpg"]
    with Image.open(seen / "me.png.jpg") as one, Image.open(seen / "me (2).png.jpg") as two:
        assert np.asarray(one).mean() > 1.5 * np.asarray(two).mean()


def test_a_persona_is_kept_in_a_home_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("AVATAR_HOME", str(tmp_path / "usual"))
    monkeypatch.setattr("exporters.portraits.child._end_with_parent", lambda: None)
    command = ["persona", "create", "Eileen", "--photos", str(saved(tmp_path, close()[0])), "--consent", "yes", "--home", str(tmp_path / "own")]
    assert avatar.main([*command, "--child"]) == 0
    (kept,) = [event for event in told(capsys) if event["event"] == "kept"]
    assert kept["name"] == "Eileen"
    assert kept["done"] == show("Eileen", folder=tmp_path / "own" / "personas")["provenance"]["done"]
    assert not (tmp_path / "usual").exists()
    assert avatar.main(command) == 2, "the name is taken there"
