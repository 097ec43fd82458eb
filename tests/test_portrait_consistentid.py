"""ConsistentID: its networks and texts against the published code, and portraits on tiny bases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.types import AvatarError
from exporters.portraits import contract
from exporters.portraits.contract import Parts
from tests import identity_weights as small
from tests.conftest import require
from tests.recognisers import onnx_file
from tests.tiny_adapters import adapter, consistentid, tensors

for part in ("torch", "diffusers", "transformers", "cv2"):
    require(part)

import torch  # noqa: E402

from exporters.portraits import face_parts, parsing, pipeline, projectors  # noqa: E402
from exporters.portraits.face_parts import MARK, WORDS, described  # noqa: E402
from exporters.portraits.systems import consistentid as of_consistentid  # noqa: E402
from tests import tiny_bases  # noqa: E402
from tests.test_portrait_several_photos import worst  # noqa: E402
from tests.test_portraits import CLOSE, asked, given, photo  # noqa: E402


def labels(*seen: int) -> torch.Tensor:
    """[60, 60] with a square of each label in a row, 1 around all of them."""
    made = torch.zeros(60, 60, dtype=torch.int64)
    made[5:55, 5:55] = 1
    for k, label in enumerate(seen):
        made[20:30, 6 + 8 * k : 12 + 8 * k] = label
    return made


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bases, an image encoder, a recogniser, and ConsistentID's file by each of its names."""
    home = tmp_path_factory.mktemp("files")
    for family in ("sd15", "sdxl"):
        tiny_bases.base(home, family=family)
    tiny_bases.image_encoder(home / "image_encoder")
    onnx_file(home / "w600k_r50.onnx")
    consistentid(home / "one" / "ConsistentID-v1.bin")
    consistentid(home / "two" / "ConsistentID_SDXL-v1.safetensors", nested="image_proj_model")
    return home


@pytest.fixture(autouse=True)
def parser(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A face parsing that sees eyes, an ear, a nose and lips in every picture; the files that were opened."""
    opened: list[Path] = []
    monkeypatch.setattr(parsing, "open_parser", lambda path, *, device: opened.append(path))
    monkeypatch.setattr(parsing, "labels", lambda network, picture: labels(4, 5, 8, 10, 12))
    return opened


def system_of(files: Path, family: str = "sd15", **more: Any) -> Any:
    """ConsistentID for a base."""
    weights = files / ("one" if family == "sd15" else "two")
    return contract.load("consistentid", Parts(weights, files / "image_encoder", files / "w600k_r50.onnx", **more))


# -- the published code ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_facial_encoder_gives_what_the_published_one_gives() -> None:
    held = tensors(small.facial(features=24, width=64, out=32))
    encoder = projectors.loaded(of_consistentid.FacialEncoder(held), held, "it")
    text, places = given(1, 9, 32), [2, 4, 5]
    text[0, places] = encoder.fuse_module(text[0, places], encoder.visual_projection(given(1, 5, 17, 24, seed=8)[0, :3])[:, 0])
    assert worst(text, "facial_encoder") <= CLOSE


def test_a_description_is_taken_apart_as_published() -> None:
    fixed = of_consistentid.FIXED["sd15"]
    told, words = described(fixed, WORDS)
    assert told.replace(MARK, "<>") == "The person has one face <>, two ears <>, two eyes <>, one nose <>, and one mouth <>,"
    assert words == list(WORDS)
    told, words = described("A broad face; green eyes, a face in the sun. A nose.", ["face", "eyes", "mouth"])
    assert told.replace(MARK, "<>") == "A broad face <>, green eyes <>,"
    assert words == ["face", "eyes"]
    assert described("nobody", WORDS) == ("", [])


def test_the_first_of_two_stands_for_both_and_holes_are_filled() -> None:
    seen = dict(face_parts.regions(labels(5, 4, 8, 10, 13).numpy().astype(np.uint8)))
    assert list(seen) == ["face", "eyes", "ears", "nose", "mouth"]
    assert (seen["face"][5:55, 5:55] == 255).all()
    assert np.argwhere(seen["eyes"] == 255)[0].tolist() == [20, 14]  # label 4, whose place is the second
    picture = np.full((120, 120, 3), 90, np.uint8)
    cut = face_parts.only(picture, seen["nose"])
    assert cut[50, 65].tolist() == [90, 90, 90]
    assert cut[5, 5].tolist() == [0, 0, 0]


def test_marks_stand_where_the_published_tokenizer_puts_them(tmp_path: Path) -> None:
    words, published = tiny_bases.tokenizer(tmp_path), tiny_bases.tokenizer(tmp_path)
    published.add_tokens(["<|facial|>"], special_tokens=True)
    mark = published.convert_tokens_to_ids("<|facial|>")
    for text in (f"a photo of a man looking at {MARK}, the camera {MARK},", f"a man {MARK} " + "of the camera " * 60):
        raw = published(text.replace(MARK, "<|facial|>")).input_ids
        expected = [k for k in raw if k != mark]
        ids, places = of_consistentid.marked(words, text)
        assert ids.shape == (1, 77)
        assert ids[0, : len(expected)].tolist() == expected[:77]
        assert [raw.index(mark) - 1, *(k - 2 for k in range(len(raw)) if k > raw.index(mark) and raw[k] == mark)] == places


@torch.no_grad()
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_only_the_words_of_the_parts_are_other_in_the_text(family: str, files: Path) -> None:
    base = pipeline.open_base(files / family)
    fuse = projectors.Fuse(tiny_bases.WIDTH).eval()
    told, words = described(of_consistentid.FIXED["sd15"], ["face", "nose"])
    nothing, parts = given(1, tiny_bases.WIDTH), given(2, tiny_bases.WIDTH, seed=8)
    early, late = of_consistentid.prompted(base, "a man", "blurry", told, (nothing, parts), fuse)
    whole = f"a man{of_consistentid.BEFORE[base.family]}{told}"
    _, places = of_consistentid.marked(base.pipe.tokenizer, whole)
    assert len(places) == len(words) == 2
    plain = pipeline.encoded(base, whole.replace(MARK, ""), "blurry").text
    others = torch.ones(77, dtype=torch.bool)
    others[places] = False
    assert torch.allclose(late.text[1][others], plain[1][others], atol=1e-5)
    assert torch.allclose(late.text[1][places], fuse(plain[1][places], parts), atol=1e-5)
    assert torch.allclose(late.text[0][places], fuse(plain[0][places], nothing.expand(2, -1)), atol=1e-5)
    assert torch.equal(early.text[0], late.text[0])
    first = plain if family == "sd15" else pipeline.encoded(base, "a man", "blurry").text
    assert torch.allclose(early.text[1], first[1], atol=1e-6)


# -- whole ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_it_makes_portraits(family: str, files: Path, parser: list[Path]) -> None:
    system = system_of(files, family)
    assert (system.variant, system.families) == (family, (family,))
    tokens = contract.IdentityTokens.unpack(system.encode([photo()]).pack())
    assert [path.name for path in parser] == ["face_parsing.pth"]
    assert [WORDS[int(k)] for k in tokens.arrays["words"]] == ["face", "eyes", "ears", "nose", "mouth"]
    ask = asked(prompt="a photo of a man", size=(64, 96), steps=5)

    def maker(tokens: Any) -> pipeline.Maker:
        base = pipeline.open_base(files / family)
        return pipeline.Maker(base, system.attach(base, tokens, scale=1.0, size=ask.size), ask)

    made = maker(tokens)
    with pytest.raises(pipeline.Cancelled):
        made.make(1, cancelled=iter([False, True]).__next__)
    one = made.make(1)
    assert one.shape == (64, 96, 3)
    assert np.array_equal(one, made.make(1))
    assert not np.array_equal(one, made.make(2))
    for name in ("tokens", "parts", "nothing"):
        arrays = {**tokens.arrays, name: -tokens.arrays[name]}
        assert not np.array_equal(maker(contract.IdentityTokens("consistentid", family, arrays, (), "")).make(1), one)


def test_the_projectors_shortcut_is_sdxls_alone(files: Path) -> None:
    made = {variant: system_of(files, variant=variant).encode([photo()]).arrays for variant in ("sd15", "sdxl")}
    short = projectors.Mlp.forward(system_of(files)._project, torch.zeros(1, 16))[0].detach().numpy()
    assert np.allclose(made["sdxl"]["tokens"][0] - made["sd15"]["tokens"][0], short, atol=1e-4)


def test_the_merged_text_comes_after_three_fifths_of_the_steps(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = system_of(files)
    base = pipeline.open_base(files / "sd15")
    maker = pipeline.Maker(base, system.attach(base, system.encode([photo()]), scale=1.0, size=(64, 64)), asked(prompt="a man", steps=10))
    seen: list[bool] = []
    forward = base.unet.forward

    def spied(*args: Any, **more: Any) -> Any:
        seen.append(bool(torch.equal(more["encoder_hidden_states"], maker._late.text)))
        return forward(*args, **more)

    monkeypatch.setattr(base.unet, "forward", spied)
    maker.make(0)
    assert seen == [False] * 7 + [True] * 3  # published: while the step is no more than its start, 6 of 10


def test_the_description_chooses_the_parts(files: Path) -> None:
    system = system_of(files, description="A long nose, narrow eyes.")
    base = pipeline.open_base(files / "sd15")
    tokens = system.encode([photo()])
    early, late = system.attach(base, tokens, scale=1.0, size=(64, 64)).text(base, "a man", "")
    changed = (early.text[1] - late.text[1]).abs().amax(-1) > 1e-4
    assert int(changed.sum()) == 2
    for description, sentence in (("A hat.", "words of face, eyes, ears, nose, mouth"), ("eyes " * 70, "350 letters")):
        with pytest.raises(AvatarError, match=sentence):
            system_of(files, description=description).attach(base, tokens, scale=1.0, size=(64, 64))
    with pytest.raises(AvatarError, match="reads no description"):
        contract.load("faceid", Parts(files, description="A long nose."))


# -- what does not fit ----------------------------------------------------------------------------------------------------


def test_what_is_missing_or_another_is_one_sentence(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AvatarError, match="'image_proj_model'|'FacialEncoder'"):
        contract.load("consistentid", Parts(adapter(tmp_path / "ip-adapter-faceid.bin", "faceid")))
    with pytest.raises(AvatarError, match="variants sd15 and sdxl"):
        system_of(files, variant="v2")
    path = tmp_path / "ConsistentID-v1.bin"
    data = (files / "one" / "ConsistentID-v1.bin").read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(AvatarError, match="damaged, not complete"):
        contract.load("consistentid", Parts(path))
    held = torch.load(files / "one" / "ConsistentID-v1.bin", weights_only=True)
    del held["FacialEncoder"]["fuse_module.mlp2.fc1.bias"]
    torch.save(held, path)
    with pytest.raises(AvatarError, match="lacks 1 tensors .first 'fuse_module.mlp2.fc1.bias'"):
        contract.load("consistentid", Parts(path))
    consistentid(path)
    (tmp_path / "face_parsing.pth").unlink()
    system = contract.load("consistentid", Parts(path, files / "image_encoder", files / "w600k_r50.onnx"))
    with pytest.raises(AvatarError, match="face_parsing.pth is not in"):
        system.encode([photo()])
    monkeypatch.setattr(parsing, "labels", lambda network, picture: torch.zeros(60, 60, dtype=torch.int64))
    with pytest.raises(AvatarError, match="sees no part of a face in a.png"):
        system_of(files).encode([photo()])
    other = tiny_bases.image_encoder(tmp_path / "other", width=16)
    system = contract.load("consistentid", Parts(files / "one", other, files / "w600k_r50.onnx"))
    with pytest.raises(AvatarError, match="width 24, and this one has 16"):
        system.encode([photo()])
    base = pipeline.open_base(files / "sd15")
    tokens = contract.IdentityTokens("", "", {"tokens": np.zeros((2, 4, 32), np.float32)}, (), "")
    held = torch.load(files / "one" / "ConsistentID-v1.bin", weights_only=True)
    held["adapter_modules"]["3.to_k_ip.weight"] = torch.zeros(64, 16)
    torch.save(held, path)
    with pytest.raises(AvatarError, match="block 3"):
        contract.load("consistentid", Parts(path)).attach(base, tokens, scale=1.0, size=(64, 64))
