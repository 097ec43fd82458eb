"""Identity systems that were imported: tried once on the built-in portrait and a base, written down, and found again by their name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import avatar
from engine import installed, persona
from engine.types import AvatarError
from exporters.portraits.contract import SYSTEMS
from exporters.portraits.options import FILES
from tests.conftest import require
from tests.faces import portrait
from tests.recognisers import onnx_file
from tests.tiny_adapters import adapter, arc2face, consistentid, instantid, photomaker, uniportrait

for part in ("torch", "diffusers", "transformers"):
    require(part)

import torch  # noqa: E402

from exporters.portraits import parsing  # noqa: E402
from tests import tiny_bases, tiny_pulid  # noqa: E402

FITS = {"ip-adapter": "sd15", "faceid": "sd15", "instantid": "sdxl", "photomaker": "sdxl", "arc2face": "sd15"}
FITS |= {"pulid": "sdxl", "consistentid": "sd15", "uniportrait": "sd15"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bases, and every system's files, each with its parts beside it as they are downloaded."""
    home = tmp_path_factory.mktemp("files")
    for family in ("sd15", "sdxl"):
        tiny_bases.base(home, family=family)
    adapter(home / "ip-adapter" / "ip-adapter_sd15.bin", "plain")
    consistentid(home / "consistentid" / "ConsistentID-v1.bin")
    uniportrait(home / "uniportrait")
    for name in ("ip-adapter", "consistentid", "uniportrait"):
        tiny_bases.image_encoder(home / name / "image_encoder")
    tiny_pulid.pulid(home / "pulid" / "pulid_v1.1.safetensors", "v1.1")
    tiny_pulid.eva_file(home / "pulid" / "EVA02_CLIP_L_336_psz14_s6B.pt")
    for name, file in (("pulid", "parsing_bisenet.pth"), ("consistentid", "face_parsing.pth")):
        tiny_pulid.parsing_file(home / name / file)
    adapter(home / "faceid" / "ip-adapter-faceid_sd15.bin", "faceid")
    instantid(home / "instantid", home / "sdxl")
    (home / "photomaker").mkdir()
    photomaker(home / "photomaker" / "photomaker-v1.bin", home / "sdxl", version=1)
    arc2face(home / "arc2face", home / "sd15")
    onnx_file(home / "recogniser.onnx")
    return home


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder of this test alone."""
    monkeypatch.setenv("AVATAR_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights find no parts of a face, so all but the picture's edge is skin here, with an eye in it."""

    def labels(network: Any, picture: Any) -> Any:
        made = torch.zeros(picture.shape[:2], dtype=torch.int64)
        made[60:-60, 60:-60] = 1
        made[200:230, 200:230] = 4
        return made

    monkeypatch.setattr(parsing, "labels", labels)


def imports(name: str, files: Path, *more: Any, base: str | None = None) -> int:
    """`avatar import NAME` of the files above."""
    seen = [] if name in ("arc2face", "uniportrait") else ["--recogniser", str(files / "recogniser.onnx")]
    return avatar.main(["import", name, str(files / name), *seen, "--base", str(files / (base or FITS[name])), *map(str, more)])


def test_every_system_can_be_imported() -> None:
    assert set(FILES) == set(SYSTEMS)
    assert set(FITS) == set(SYSTEMS)


@pytest.mark.parametrize("name", FITS)
def test_an_imported_system_is_known_by_its_name(name: str, files: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert imports(name, files) == 0
    said = capsys.readouterr().out
    assert f"It fits the base in {files / FITS[name]}" in said
    assert f"--system {name}" in said
    (known,) = installed.installed()
    assert (known.name, known.weights, known.base) == (name, files / name, files / FITS[name])
    assert FITS[name] in known.families
    assert known.prompt


def test_a_presenter_needs_its_name_alone(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from exporters.portraits import pipeline

    monkeypatch.setattr(pipeline.Maker, "_decoded", lambda self, latents: np.asarray(portrait()[:600, :600], np.uint8))  # a face that can be driven
    Image.fromarray(portrait()).save(tmp_path / "a.png")
    command = ["persona", "create", "Ann", "--photos", str(tmp_path / "a.png"), "--consent", "hers", "--system", "faceid"]
    command += ["--candidates", "1", "--steps", "1", "--size", "64"]
    assert avatar.main(command) == 2
    assert "`avatar import faceid FILES --base DIR`" in capsys.readouterr().err
    assert imports("faceid", files) == 0
    assert avatar.main(command) == 0
    assert persona.show("Ann")["provenance"]["system"]["base"] == "sd15"


@pytest.mark.parametrize(
    ("name", "base", "sentence"),
    [
        ("instantid", "sd15", "instantid is for sdxl, and .* is sd15; give another --base"),
        ("faceid", "nowhere", "no readable model_index.json"),
    ],
)
def test_what_does_not_fit_is_not_written_down(name: str, base: str, sentence: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert imports(name, files, base=base) == 2
    said = capsys.readouterr()
    assert re.search(sentence, said.err)
    assert "was encoded" not in said.out, "told before what is slow"
    assert installed.installed() == ()


def test_files_that_went_away_are_one_sentence(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert avatar.main(["import", "photomaker", str(tmp_path / "nothing")]) == 2
    assert "nothing is not there; give the system's file" in capsys.readouterr().err
    gone = photomaker(tmp_path / "photomaker-v1.bin", files / "sdxl", version=1)
    assert avatar.main(["import", "photomaker", str(gone), "--base", str(files / "sdxl")]) == 0
    gone.unlink()
    create = ["persona", "create", "Ann", "--photos", str(tmp_path / "a.png"), "--consent", "hers", "--system", "photomaker"]
    assert avatar.main(create) == 2
    assert "is not there any more; give --weights, or run `avatar import photomaker DIR` again" in capsys.readouterr().err


def test_a_damaged_note_is_one_sentence(home: Path) -> None:
    folder = installed.systems_folder()
    folder.mkdir(parents=True)
    for text in ("{", "[]", json.dumps({"name": "faceid"}), json.dumps({"families": ["sd15"], "other": 1})):
        (folder / "faceid.json").write_text(text)
        with pytest.raises(AvatarError, match="is damaged; remove it and run `avatar import faceid DIR` again"):
            installed.find("faceid")


def test_a_damaged_note_hides_no_other(home: Path) -> None:
    folder, told = installed.systems_folder(), list[str]()
    folder.mkdir(parents=True)
    (folder / "faceid.json").write_text("{")
    made = installed.Installed("instantid", "sdxl", ("sdxl",), False, "a person", "0", home / "ip-adapter.bin")
    installed.keep(made)
    assert [system.name for system in installed.installed(damaged=told.append)] == ["instantid"]
    ((sentence),) = told
    assert sentence.endswith("is damaged; remove it and run `avatar import faceid DIR` again.")
    with pytest.raises(AvatarError, match="is damaged"):
        installed.installed()
