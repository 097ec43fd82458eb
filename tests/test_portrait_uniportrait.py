"""UniPortrait: its networks, attention and router against the published code, and portraits of one and of several people on tiny bases."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.drivers.portrait import find_face, find_faces
from engine.types import AvatarError
from exporters.portraits import contract, people
from exporters.portraits.contract import Parts
from exporters.portraits.photos import Photo
from tests import identity_weights as small
from tests.conftest import require
from tests.tiny_adapters import STAGES, adapter, curricular, tensors, uniportrait

for part in ("torch", "diffusers", "transformers"):
    require(part)

import torch  # noqa: E402
from torch.nn import functional  # noqa: E402

from exporters.portraits import encoders, pipeline, projectors  # noqa: E402
from exporters.portraits import uniportrait_networks as networks  # noqa: E402
from exporters.portraits.attention import Decoupled, keys_and_values, low_rank, plus, routed  # noqa: E402
from exporters.portraits.systems import uniportrait as of_uniportrait  # noqa: E402
from tests import tiny_bases  # noqa: E402
from tests.test_portrait_several_photos import worst  # noqa: E402
from tests.test_portraits import CLOSE, OneBlock, asked, attention, given, photo  # noqa: E402

FACEID, ROUTER, RECOGNISER = "uniportrait-faceid_sd15.bin", "uniportrait-router_sd15.bin", "glint360k_curricular_face_r101_backbone.bin"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an image encoder, and UniPortrait's folder."""
    home = tmp_path_factory.mktemp("files")
    tiny_bases.base(home)
    tiny_bases.image_encoder(home / "image_encoder")
    uniportrait(home / "uniportrait")
    return home


@cache
def other() -> Photo:
    """Somebody else: the same person in another light and mirrored, and so another face for random weights."""
    rgb = np.ascontiguousarray(255 - (255 - photo().rgb[:, ::-1]) // 2)
    return replace(photo(), name="b.png", sha256="1" * 64, rgb=rgb, face=find_face(rgb))


def system_of(files: Path) -> Any:
    return contract.load("uniportrait", Parts(files / "uniportrait", files / "image_encoder"))


# -- the published code ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_resampler_gives_what_the_published_one_gives() -> None:
    held = tensors(small.uniportrait(who=12, form=20, out=32))
    made = projectors.loaded(networks.FaceResampler(held), held, "it")(given(2, 9, 12), given(2, 16, 20, seed=8), structure=0.3)
    assert worst(made, "uniportrait") <= CLOSE


@torch.no_grad()
def test_the_recogniser_gives_what_the_published_one_gives() -> None:
    network = networks.recogniser(curricular(), "it")
    vectors, maps = network(given(2, 3, 112, 112))
    assert [tuple(one.shape[1:]) for one in maps] == [(6, 56, 56), (8, 28, 28), (10, 14, 14), (12, 7, 7)]
    assert worst(vectors, "curricular") <= CLOSE
    small_maps = [functional.interpolate(one, (4, 4), mode="bilinear", align_corners=False) for one in maps]
    assert worst(torch.cat(small_maps, 1), "curricular_maps") <= CLOSE


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 3])
def test_attention_and_router_give_what_the_published_ones_give(count: int) -> None:
    widths = {"q": 32, "k": 20, "v": 20, "out": 32}
    lora = {f"to_{part}_lora.{side}.weight": (6, width) if side == "down" else (32, 6) for part, width in widths.items() for side in ("down", "up")}
    faceid = small.linear("to_k_faceid", 20, 32, bias=False) | small.linear("to_v_faceid", 20, 32, bias=False)
    first = {f"0.{key}": value for key, value in tensors({**lora, **faceid}, 1).items()}
    second = {f"0.{key}": value for key, value in tensors({**lora, **small.router(32, cross=20, queries=4)}, 2).items()}
    products = low_rank(OneBlock(attention()), first if count == 1 else second, what="it")
    block = attention({name.removeprefix("attn2."): up @ down for name, (up, down, _) in products.items()})
    tokens, text, hidden = given(2, 4 * count, 20, seed=9), given(2, 7, 20, seed=8), given(2, 10, 32)
    mix = plus(0.7) if count == 1 else routed(0.7, count)
    added = keys_and_values(OneBlock(block), first, tokens, names=("to_k_faceid", "to_v_faceid"), mix=mix, what="it")["attn2.processor"]
    if count > 1:
        route = of_uniportrait.routers(OneBlock(block), second, tokens.unflatten(1, (count, -1)), "it")["attn2.processor"]
        added = replace(added, route=route)
        whose = route(hidden, slice(None))
        assert whose.shape == (2, count, 10, 1)
        assert (whose.sum(1) == 1).all()
        assert (whose.sum((0, 2, 3)) > 0).sum() > 1  # more than one of them is somewhere
    made = Decoupled(added)(block, hidden, text)
    assert worst(made, f"uniportrait_attention_{count}") <= CLOSE
    assert float((Decoupled(added)(block, hidden[1:], text[1:]) - made[1:]).abs().max()) <= 1e-5


@torch.no_grad()
def test_what_is_seen_of_a_face_is_the_recognisers_maps_beside_the_image_encoders(files: Path) -> None:
    eye, network = encoders.ImageEncoder(files / "image_encoder"), networks.recogniser(curricular(), "it")
    face = encoders.aligned(photo(), 224)
    pixels = eye.pixels([face])
    who, form = of_uniportrait.seen(eye, network, pixels)
    assert who.shape == (1, 49, STAGES[-1][0])
    assert torch.allclose(form[..., -eye.width :], eye.hidden(pixels)[:, 1:])
    # The recogniser reads the pixels that the image encoder reads, brought back to -1..1.
    mean, deviation = np.array(encoders.MEAN, np.float32), np.array(encoders.DEVIATION, np.float32)
    back = torch.from_numpy((pixels[0].permute(1, 2, 0).numpy() * deviation + mean) * 2 - 1).permute(2, 0, 1)[None].clamp(-1, 1)
    maps = network(functional.interpolate(back, (112, 112), mode="bilinear"))[1]
    first = functional.interpolate(maps[0], (4, 4), mode="bilinear").flatten(2).mT
    assert torch.allclose(form[..., : STAGES[0][0]], first, rtol=1e-3, atol=1e-3 * float(first.abs().max()))


# -- whole ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [[1], [2], [1, 1], [1, 2]], ids=str)
def test_it_makes_portraits_of_one_and_of_several(group: Sequence[int], files: Path) -> None:
    system = system_of(files)
    photos = [[[photo()], [other()]][k % 2] * count for k, count in enumerate(group)]
    tokens = contract.IdentityTokens.unpack((system.encode(photos[0]) if len(group) == 1 else system.encode_people(photos)).pack())
    assert tokens.arrays["tokens"].shape == (2, 4 * len(group), tiny_bases.WIDTH)
    assert len(tokens.photos) == sum(group)
    ask = asked(prompt="a photo of a man and a woman", size=(64, 96))

    def maker(tokens: Any) -> pipeline.Maker:
        base = pipeline.open_base(files / "sd15")
        return pipeline.Maker(base, system.attach(base, tokens, scale=1.0, size=ask.size), ask)

    made = maker(tokens)
    with pytest.raises(pipeline.Cancelled):
        made.make(1, cancelled=iter([False, True]).__next__)
    one = made.make(1)
    assert one.shape == (64, 96, 3)
    assert np.array_equal(one, made.make(1))
    assert not np.array_equal(one, made.make(2))
    assert not np.array_equal(one, maker(replace(tokens, arrays={"tokens": -tokens.arrays["tokens"]})).make(1))


def test_several_use_the_routers_lora_and_another_share_of_the_form(files: Path) -> None:
    system, base = system_of(files), pipeline.open_base(files / "sd15")
    alone, both = system.encode([photo()]), system.encode_people([[photo()], [other()]])
    assert not np.allclose(alone.arrays["tokens"], both.arrays["tokens"][:, :4], atol=1e-4)
    assert np.allclose(both.arrays["tokens"][0, :4], both.arrays["tokens"][0, 4:])  # of nobody, the same for each
    held = {count: torch.load(files / "uniportrait" / name, weights_only=True)["faceid_adapter"] for count, name in ((1, FACEID), (2, ROUTER))}
    for count, tokens in ((1, alone), (2, both)):
        weights = system.attach(base, tokens, scale=1.0, size=(64, 64)).weights
        assert torch.equal(weights["mid_block.attentions.0.transformer_blocks.0.attn2.to_q.weight"][0], held[count]["13.to_q_lora.up.weight"])
    added = system.attach(base, both, scale=1.0, size=(64, 64)).added["mid_block.attentions.0.transformer_blocks.0.attn2.processor"]
    mine = {key.removeprefix("13."): value for key, value in held[2].items() if key.startswith("13.") and "router." in key}
    router = projectors.loaded(networks.Router(mine), mine, "it")
    each, hidden = torch.from_numpy(both.arrays["tokens"]).split(4, 1), given(2, 200, 64)
    whose = added.route(hidden, slice(None))
    assert torch.equal(whose, router(hidden, router.keys(torch.stack(each, 1))))
    assert 0 < whose[1, 0].mean() < 1


# -- the picture is cut to one person -------------------------------------------------------------------------------------


@cache
def pair() -> Any:
    """Two people side by side, the person on the right."""
    return np.ascontiguousarray(np.concatenate([other().rgb, photo().rgb], 1))


def test_a_picture_of_two_is_cut_to_the_person(files: Path, tmp_path: Path) -> None:
    faces = find_faces(pair())
    assert len(faces) == 2
    right = int(faces[1].center[0] > faces[0].center[0])
    system = system_of(files)
    alike = system.likeness([photo()], pair(), faces)
    assert alike[right] > max(alike[1 - right], 0.9)

    class Made:
        def make(self, seed: int, **how: Any) -> Any:
            return pair()

    together = people.Together(system, system, [photo()], [([other()], [])])
    assert together.defaults.prompt.startswith("a photo of 2 people")
    made = people.cut(Made(), together, tmp_path).make(3)  # type: ignore[arg-type]
    assert (tmp_path / "whole-3.png").is_file()
    assert np.array_equal(made, people.around(pair(), faces, right))
    assert find_face(made).width == pytest.approx(photo().face.width, rel=0.1)


def test_the_cut_ends_half_way_to_the_other_face() -> None:
    from engine.drivers.portrait import Found

    def face(x: float, y: float) -> Found:
        return Found(np.zeros((478, 2), np.float32), (x, y), 40.0, 60.0)

    rgb = np.arange(200 * 400, dtype=np.uint32).reshape(200, 400, 1).astype(np.uint8).repeat(3, 2)
    assert np.array_equal(people.around(rgb, [face(100, 100), face(180, 110)], 0), rgb[42:170, 36:140])
    assert np.array_equal(people.around(rgb, [face(100, 100), face(180, 110)], 1), rgb[52:180, 140:244])
    assert np.array_equal(people.around(rgb, [face(100, 40), face(110, 140)], 0), rgb[0:90, 36:164])


# -- the command ----------------------------------------------------------------------------------------------------------


def test_a_persona_of_a_picture_of_two_names_both(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random weights draw no face, so the decoder is made to give two people side by side."""
    from PIL import Image

    import avatar
    from engine.persona import read_portrait, show

    monkeypatch.setenv("AVATAR_HOME", str(tmp_path / "home"))
    for name, one in (("a", photo()), ("b", other())):
        Image.fromarray(one.rgb).save(tmp_path / f"{name}.png")
    monkeypatch.setattr(pipeline.Maker, "_decoded", lambda self, latents: pair())
    command = ["persona", "create", "Eileen", "--photos", str(tmp_path / "a.png"), "--consent", "We are in it.", "--system", "uniportrait"]
    command += ["--base", str(files / "sd15"), "--weights", str(files / "uniportrait"), "--image-encoder", str(files / "image_encoder")]
    command += ["--candidates", "1", "--steps", "1", "--size", "64", "--device", "cpu"]
    assert avatar.main([*command, "--also", str(tmp_path / "a.png")]) == 2
    assert "a.png is given for two people" in capsys.readouterr().err
    Image.fromarray(np.full((200, 200, 3), 90, np.uint8)).save(tmp_path / "grey.png")
    assert avatar.main([*command, "--also", str(tmp_path / "b.png"), "--also", str(tmp_path / "grey.png")]) == 2
    assert "grey.png: No face was found" in capsys.readouterr().err
    assert avatar.main([*command, "--also", str(tmp_path / "b.png")]) == 0
    said = capsys.readouterr().out
    assert "there will be 1 more (b.png); the consent must be everybody's" in said
    made = show("Eileen")["provenance"]
    assert made["photos"][0]["file"] == "a.png"
    assert [one["file"] for one in made["also"][0]["photos"]] == ["b.png"]
    assert made["system"]["also"] == [[made["also"][0]["photos"][0]["sha256"]]]
    assert made["system"]["prompt"].startswith("a photo of 2 people")
    assert read_portrait("Eileen").shape[1] < pair().shape[1] / 2 + 80
    find_face(read_portrait("Eileen"))  # one, and whole
    monkeypatch.setattr(pipeline.Maker, "_decoded", None)
    assert avatar.main(["persona", "remove", "Eileen"]) == 0
    assert avatar.main([*command, "--also", str(tmp_path / "b.png")]) == 0
    assert "Made before" in capsys.readouterr().out


# -- what does not fit ----------------------------------------------------------------------------------------------------


def test_what_is_missing_or_another_is_one_sentence(files: Path, tmp_path: Path) -> None:
    with pytest.raises(AvatarError, match="shows one person; leave --also out"):
        alone = contract.load("ip-adapter", Parts(adapter(tmp_path / "ip-adapter.bin", "plain")))
        people.together(alone, [photo()], [[tmp_path / "b.png"]], tell=print)
    with pytest.raises(AvatarError, match="no network called 'faceid_proj'"):
        contract.load("uniportrait", Parts(adapter(tmp_path / "ip-adapter.bin", "plain")))
    home = shutil.copytree(files / "uniportrait", tmp_path / "uniportrait")
    system: Any = contract.load("uniportrait", Parts(home, files / "image_encoder"))
    (home / ROUTER).unlink()
    system.encode([photo()])
    with pytest.raises(AvatarError, match=f"{ROUTER}, which is not in"):
        system.encode_people([[photo()], [other()]])
    (home / RECOGNISER).unlink()
    with pytest.raises(AvatarError, match="--recogniser"):
        system.encode([photo()])
    torch.save({"conv1.weight": torch.zeros(3)}, home / RECOGNISER)
    with pytest.raises(AvatarError, match="is no CurricularFace"):
        system.encode([photo()])
    whole = curricular()
    torch.save({key: value for key, value in whole.items() if key != "body.1.res_layer.3.weight"}, home / RECOGNISER)
    with pytest.raises(AvatarError, match=r"lacks 1 tensors .first 'body.1.res_layer.3.weight'"):
        system.encode([photo()])
    data = (files / "uniportrait" / FACEID).read_bytes()
    (home / FACEID).write_bytes(data[: len(data) // 2])
    with pytest.raises(AvatarError, match="damaged, not complete"):
        contract.load("uniportrait", Parts(home))
    narrow = tiny_bases.image_encoder(tmp_path / "narrow", width=16)
    with pytest.raises(AvatarError, match="reads 12 and 48 channels, and there are 12 and 40, 16 of them"):
        contract.load("uniportrait", Parts(files / "uniportrait", narrow)).encode([photo()])


def test_a_router_for_another_base_is_one_sentence(files: Path, tmp_path: Path) -> None:
    home = shutil.copytree(files / "uniportrait", tmp_path / "uniportrait")
    held = torch.load(home / ROUTER, weights_only=True)
    held["faceid_adapter"]["3.to_q_router.0.weight"] = torch.zeros(16, 8)
    torch.save(held, home / ROUTER)
    system, base = contract.load("uniportrait", Parts(home, files / "image_encoder")), pipeline.open_base(files / "sd15")
    tokens = contract.IdentityTokens("", "", {"tokens": np.zeros((2, 8, tiny_bases.WIDTH), np.float32)}, (), "")
    with pytest.raises(AvatarError, match="no router that fits block 3"):
        system.attach(base, tokens, scale=1.0, size=(64, 64))
