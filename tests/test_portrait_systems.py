"""InstantID, PhotoMaker and Arc2Face: their networks against the published code, their texts and controls, and portraits on tiny bases."""

from __future__ import annotations

from dataclasses import replace
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
from tests.tiny_adapters import arc2face, instantid, photomaker, photomaker_qformer, tensors

for part in ("torch", "diffusers", "transformers"):
    require(part)

import torch  # noqa: E402

from exporters.portraits import pipeline, projectors  # noqa: E402
from exporters.portraits.systems import arc2face as of_arc2face  # noqa: E402
from exporters.portraits.systems import photomaker as of_photomaker  # noqa: E402
from exporters.portraits.systems.instantid import draw_points  # noqa: E402
from tests import tiny_bases  # noqa: E402
from tests.test_portraits import CLOSE, GOLDEN, asked, given, photo, worst  # noqa: E402

PROMPT = "a photo of a woman img, looking at the camera"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bases, and every system's files for them."""
    home = tmp_path_factory.mktemp("files")
    for family in ("sd15", "sdxl"):
        tiny_bases.base(home, family=family)
    onnx_file(home / "recogniser.onnx")
    instantid(home / "instantid", home / "sdxl")
    for version in (1, 2):
        photomaker(home / f"photomaker-v{version}.bin", home / "sdxl", version=version)
    arc2face(home / "arc2face", home / "sd15")
    return home


def loaded(name: str, files: Path) -> Any:
    """A system by the name of its files."""
    system, _, version = name.partition("-")
    path = files / (f"{name}.bin" if version else name)
    return contract.load(system, Parts(path, recogniser=None if system == "arc2face" else files / "recogniser.onnx"))


# -- the published code ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_photomakers_networks_give_what_the_published_ones_give() -> None:
    shapes = photomaker_qformer(vector=16, seen=24, width=128)
    held = tensors(shapes)
    qformer = projectors.loaded(of_photomaker.QFormer(held), held, "it")
    assert worst(qformer(given(3, 16), given(3, 17, 24, seed=8)), "qformer") <= CLOSE
    held = tensors(small.fuse(40))
    text = given(1, 9, 40)
    text[0, 2:6] = projectors.loaded(of_photomaker.Fuse(40), held, "it")(text[0, 2:6], given(1, 2, 2, 40, seed=8).reshape(4, 40))
    assert worst(text, "fuse") <= CLOSE


def test_instantids_points_are_drawn_as_the_published_ones() -> None:
    five = np.array([[60.2, 70.1], [110.7, 66.3], [90.1, 100.9], [68.4, 130.2], [108.8, 127.5]], np.float32)
    assert np.array_equal(draw_points(five, (208, 176)), GOLDEN["keypoints"])


# -- texts ----------------------------------------------------------------------------------------------------------------


def test_the_class_word_is_stacked_as_the_published_tokenizer_does(tmp_path: Path) -> None:
    words, published = tiny_bases.tokenizer(tmp_path), tiny_bases.tokenizer(tmp_path)
    published.add_tokens(["img"], special_tokens=True)
    raw = published(PROMPT).input_ids
    at = raw.index(published.convert_tokens_to_ids("img"))
    expected = [*raw[: at - 1], *[raw[at - 1]] * 3, *raw[at + 1 :]]
    before, _, after = PROMPT.partition(" img")
    ids, start = of_photomaker.stacked(words, before, after, 3)
    assert ids[0, : len(expected)].tolist() == expected
    assert set(ids[0, len(expected) :].tolist()) == {words.pad_token_id}
    assert start == at - 1
    with pytest.raises(AvatarError, match="77 fit"):
        of_photomaker.stacked(words, before, after, 70)


@torch.no_grad()
def test_only_the_class_word_is_another_in_photomakers_text(files: Path) -> None:
    base = pipeline.open_base(files / "sdxl")
    fuse = of_photomaker.Fuse(tiny_bases.WIDTH).eval()
    person = given(2, tiny_bases.WIDTH)
    early, late = of_photomaker.prompted(base, PROMPT, "blurry", person, fuse)
    plain = pipeline.encoded(base, PROMPT.replace(" img", ""), "blurry")
    assert torch.equal(early.text, plain.text)
    ids, start = of_photomaker.stacked(base.pipe.tokenizer, "a photo of a woman", ", looking at the camera", 2)
    states = [encoder(ids, output_hidden_states=True).hidden_states[-2] for encoder in (base.pipe.text_encoder, base.pipe.text_encoder_2)]
    text = torch.cat(states, -1)[0]
    others = torch.ones(77, dtype=torch.bool)
    others[start : start + 2] = False
    assert torch.allclose(late.text[1][others], text[others], atol=1e-6)
    assert torch.allclose(late.text[1][~others], fuse(text[~others], person), atol=1e-5)
    assert torch.equal(late.text[0], plain.text[0])
    for wrong in ("a photo of a woman", "img", "a man img and a woman img"):
        with pytest.raises(AvatarError, match="needs 'img' once"):
            of_photomaker.prompted(base, wrong, "", person, fuse)


@torch.no_grad()
def test_arc2faces_vector_takes_the_place_of_the_words_embedding(tmp_path: Path) -> None:
    encoder, words = tiny_bases.text_encoder(tiny_bases.WIDTH), tiny_bases.tokenizer(tmp_path)
    vector = given(16)
    made = of_arc2face.with_vector(encoder, words, vector)
    table = encoder.get_input_embeddings().weight
    table[words.encode("id", add_special_tokens=False)[0]] = torch.nn.functional.pad(vector, (0, 16))
    again = encoder(of_arc2face.ids(words, "photo of a id person"))[0]
    assert torch.allclose(made, again, atol=1e-6)
    assert not torch.allclose(made, of_arc2face.with_vector(encoder, words, -vector), atol=1e-2)


# -- whole ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["instantid", "photomaker-v1", "photomaker-v2", "arc2face"])
def test_a_system_makes_portraits(name: str, files: Path) -> None:
    system = loaded(name, files)
    photos = [photo(), photo()] if system.together else [photo()]
    tokens = system.encode(photos)
    assert len(tokens.photos) == len(photos)
    base = pipeline.open_base(files / system.families[0], unet=system.unet)
    ask = asked(prompt=PROMPT, size=(64, 96))
    maker = pipeline.Maker(base, system.attach(base, tokens, scale=1.0, size=ask.size), ask)
    one, same, other = maker.make(1), maker.make(1), maker.make(2)
    assert one.shape == (64, 96, 3)
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    another = replace(tokens, arrays={key: -array for key, array in tokens.arrays.items()})
    base = pipeline.open_base(files / system.families[0], unet=system.unet)
    assert not np.array_equal(pipeline.Maker(base, system.attach(base, another, scale=1.0, size=ask.size), ask).make(1), one)


def test_photomakers_versions_make_one_and_two_tokens_a_photo(files: Path) -> None:
    for version, count in (("v1", 1), ("v2", 2)):
        system = loaded(f"photomaker-{version}", files)
        assert system.variant == version
        assert system.encode([photo(), photo()]).arrays["tokens"].shape == (2, count, tiny_bases.WIDTH)


def test_photomakers_lora_is_added_to_the_weights(files: Path) -> None:
    system = loaded("photomaker-v1", files)
    base, before = pipeline.open_base(files / "sdxl"), pipeline.open_base(files / "sdxl").unet.state_dict()
    held = torch.load(files / "photomaker-v1.bin", weights_only=True)["lora_weights"]
    pipeline.Maker(base, system.attach(base, system.encode([photo()]), scale=0.5, size=(64, 64)), asked(prompt=PROMPT))
    changed = {key for key, value in base.unet.state_dict().items() if not torch.equal(value, before[key])}
    assert {key.removesuffix(".to_q.weight") + ".processor" for key in changed} == set(base.unet.attn_processors)
    name = "mid_block.attentions.0.transformer_blocks.0.attn2"
    product = 0.5 * held[f"unet.{name}.processor.to_q_lora.up.weight"] @ held[f"unet.{name}.processor.to_q_lora.down.weight"]
    assert torch.allclose(base.unet.state_dict()[f"{name}.to_q.weight"] - before[f"{name}.to_q.weight"], product, atol=1e-5)


def test_the_plain_text_is_seen_first(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = loaded("photomaker-v1", files)
    base = pipeline.open_base(files / "sdxl")
    maker = pipeline.Maker(base, system.attach(base, system.encode([photo()]), scale=1.0, size=(64, 64)), asked(prompt=PROMPT, steps=10))
    seen: list[bool] = []
    forward = base.unet.forward

    def spied(*args: Any, **more: Any) -> Any:
        seen.append(bool(torch.equal(more["encoder_hidden_states"], maker._late.text)))
        return forward(*args, **more)

    monkeypatch.setattr(base.unet, "forward", spied)
    maker.make(0)
    assert seen == [False] * 3 + [True] * 7  # published: while the step is no more than its start, 2 of 10


def test_instantids_controlnet_sees_the_tokens_and_never_the_text(files: Path) -> None:
    system = loaded("instantid", files)
    tokens = system.encode([photo()])
    base = pipeline.open_base(files / "sdxl")
    attachment = system.attach(base, tokens, scale=1.0, size=(64, 96))
    assert attachment.control.picture.shape == (64, 96, 3)
    seen: list[Any] = []
    attachment.control.network.register_forward_pre_hook(lambda module, given, more: seen.append(more["encoder_hidden_states"]), with_kwargs=True)
    pipeline.Maker(base, attachment, asked(steps=1, size=(64, 96))).make(0)
    assert torch.equal(seen[0], torch.from_numpy(tokens.arrays["tokens"]))
    vectors = tokens.arrays["tokens"]
    assert not np.array_equal(vectors[0], vectors[1])


def test_a_system_without_its_parts_is_one_sentence(files: Path, tmp_path: Path) -> None:
    for name, parts, sentence in (
        ("instantid", Parts(files / "instantid" / "ip-adapter.bin", control=tmp_path), "--control"),
        ("arc2face", Parts(tmp_path), "arc2face and encoder"),
        ("photomaker", Parts(files / "instantid" / "ip-adapter.bin"), "no network called 'id_encoder'"),
    ):
        with pytest.raises(AvatarError, match=sentence):
            contract.load(name, parts)
    system = contract.load("photomaker", Parts(files / "photomaker-v2.bin", recogniser=onnx_file(tmp_path / "short.onnx", end="GlobalAveragePool")))
    with pytest.raises(AvatarError, match="recogniser"):
        system.encode([photo()])
    spoilt = torch.load(files / "photomaker-v1.bin", weights_only=True)
    spoilt["lora_weights"]["unet.up_blocks.9.to_q_lora.down.weight"] = torch.zeros(3, 32)
    spoilt["lora_weights"]["unet.up_blocks.9.to_q_lora.up.weight"] = torch.zeros(32, 3)
    torch.save(spoilt, tmp_path / "photomaker-v1.bin")
    system = contract.load("photomaker", Parts(tmp_path / "photomaker-v1.bin"))
    base = pipeline.open_base(files / "sdxl")
    with pytest.raises(AvatarError, match="does not fit this base .1 modules"):
        system.attach(base, system.encode([photo()]), scale=1.0, size=(64, 64))
