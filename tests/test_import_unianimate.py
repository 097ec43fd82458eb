"""Importing UniAnimate: the published files' keys, written out, find their places; what does not fit is said in one sentence."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import avatar
from engine.persona import demo_portrait
from engine.types import AvatarError
from tests.conftest import found, require

if found("torch") and found("diffusers"):
    import torch
    from safetensors.torch import load_file, save_file

    from engine.generators.video import presets
    from engine.generators.video.networks import autoencoder, empty, load
    from engine.generators.video.pictures import image_encoder
    from engine.generators.video.presets import TINY, UNIANIMATE
    from engine.generators.video.render import Settings, render
    from engine.generators.video.text import text_encoder
    from engine.generators.video.unianimate import VideoUNet
    from exporters.published import import_unianimate as importer
    from exporters.published import keys_unianimate as keys
    from exporters.published import streamed
    from tests.checkpoints import Shapes, dense, norm

pytestmark = pytest.mark.torch
LAYOUT = "98a483cebb07f999b1b6db4eefcef6633962dc28f0f7aacde034d5cf761aaa8e"
"""sha256 of the published network's keys and shapes, one a line, sorted (ali-vilab/UniAnimate at 643c9637)."""


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    require("torch")
    require("diffusers")
    require("transformers")


# -- the published layouts, written out -----------------------------------------------------------------------------------


def ldm_resnet(key: str, width_in: int, width: int) -> Shapes:
    made = norm(f"{key}.norm1", width_in) | dense(f"{key}.conv1", width_in, width, side=3) | norm(f"{key}.norm2", width)
    made |= dense(f"{key}.conv2", width, width, side=3)
    return made | (dense(f"{key}.nin_shortcut", width_in, width, side=1) if width_in != width else {})


def ldm(channels: tuple[int, ...], layers: int) -> Shapes:
    """Stable Diffusion's autoencoder with its own names: attention of 1 x 1 convolutions, the way up counted from the finest."""
    made: Shapes = {}
    for name in ("encoder", "decoder"):
        down, middle = name == "encoder", channels[-1]
        order = list(enumerate(channels)) if down else list(reversed(list(enumerate(channels))))
        width_in = order[0][1]
        made |= dense(f"{name}.conv_in", 3 if down else 4, width_in, side=3) | norm(f"{name}.norm_out", order[-1][1])
        made |= dense(f"{name}.conv_out", order[-1][1], 8 if down else 3, side=3) | norm(f"{name}.mid.attn_1.norm", middle)
        for part in ("q", "k", "v", "proj_out"):
            made |= dense(f"{name}.mid.attn_1.{part}", middle, middle, side=1)
        for k in (1, 2):
            made |= ldm_resnet(f"{name}.mid.block_{k}", middle, middle)
        for i, width in order:
            way = "down" if down else "up"
            for j in range(layers if down else layers + 1):
                made |= ldm_resnet(f"{name}.{way}.{i}.block.{j}", width_in, width)
                width_in = width
            if i != order[-1][0]:
                made |= dense(f"{name}.{way}.{i}.{way}sample.conv", width, width, side=3)
    made |= dense("quant_conv", 8, 8, side=1) | dense("post_quant_conv", 4, 4, side=1)
    return {f"first_stage_model.{key}": shape for key, shape in made.items()}


def tower(prefix: str, width: int, inner: int, layers: int) -> Shapes:
    """open_clip's transformer, whose three projections are one matrix."""
    made: Shapes = {}
    for i in range(layers):
        key = f"{prefix}transformer.resblocks.{i}"
        made |= norm(f"{key}.ln_1", width) | norm(f"{key}.ln_2", width) | dense(f"{key}.attn.out_proj", width, width)
        made |= {f"{key}.attn.in_proj_weight": (3 * width, width), f"{key}.attn.in_proj_bias": (3 * width,)}
        made |= dense(f"{key}.mlp.c_fc", width, inner) | dense(f"{key}.mlp.c_proj", inner, width)
    return made


def open_clip(seeing: tuple[int, int, int, int], reading: tuple[int, int, int, int]) -> Shapes:
    """(width, inner, layers, patch) of the image encoder, (width, layers, tokens, vocabulary) of the text encoder."""
    width, inner, layers, patch = seeing
    text, text_layers, tokens, vocabulary = reading
    made = tower("visual.", width, inner, layers) | {"visual.class_embedding": (width,), "visual.proj": (width, text)}
    made |= {"visual.positional_embedding": ((224 // patch) ** 2 + 1, width), "visual.conv1.weight": (width, 3, patch, patch)}
    made |= norm("visual.ln_pre", width) | norm("visual.ln_post", width) | tower("", text, 4 * text, text_layers) | norm("ln_final", text)
    made |= {"positional_embedding": (tokens, text), "token_embedding.weight": (vocabulary, text)}
    return made | {"text_projection": (text, text), "logit_scale": ()}


def tensors(shapes: Shapes, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=generator) * 0.1 for key, shape in shapes.items()}


def shapes_of(module: Any) -> Shapes:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


# -- small files of the published kind ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def held() -> dict[str, Any]:
    with torch.device("meta"):
        denoiser = shapes_of(VideoUNet(TINY))
    stray = {"model.diffusion_model.out.0.weight": (4,), "cond_stage_model.model.logit_scale": ()}
    return {
        "denoiser": tensors(denoiser, 1),
        "vae": tensors(ldm((8, 8, 8, 8), 1) | stray, 2),
        "clip": tensors(open_clip((16, 32, 2, 56), (24, 2, 5, 40)), 3),
    }


def put(folder: Path, held: dict[str, Any]) -> Path:
    """As published: a trainer's file with its step, a pickled checkpoint with more networks, open_clip's."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": held["denoiser"], "step": 223000}, folder / "unianimate_16f_32f_non_ema_223000.pth")
    torch.save({"state_dict": held["vae"], "global_step": 1}, folder / "v2-1_512-ema-pruned.ckpt")
    torch.save(held["clip"], folder / "open_clip_pytorch_model.bin")
    return folder


bring = partial(lambda source, out, **more: importer.import_unianimate(source, out, made=TINY, **more))


# -- the published size ---------------------------------------------------------------------------------------------------


def test_every_published_key_has_its_place_at_full_size() -> None:
    with torch.device("meta"):
        denoiser, eye = shapes_of(VideoUNet(UNIANIMATE)), shapes_of(image_encoder(UNIANIMATE.context, narrow=False))
        vae, reader = shapes_of(autoencoder(UNIANIMATE)), shapes_of(text_encoder(UNIANIMATE, layers=24))
        lines = sorted(f"{key} {list(shape)}" for key, shape in denoiser.items())
        assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == LAYOUT
        published = {key: torch.empty(shape) for key, shape in ldm((128, 256, 512, 512), 2).items()}
        assert len(published) == 248
        assert {keys.pictured(key): tuple(value.shape) for key, value in keys.flattened(published).items()} == vae
        clip = {key: torch.empty(shape) for key, shape in open_clip((1280, 5120, 32, 14), (1024, 24, 77, 49408)).items()}
    assert sum(value.numel() for value in clip.values()) == 986_109_441  # as open_clip counts ViT-H-14
    parted = {key: tuple(value.shape) for key, value in keys.parted(clip).items() if key not in keys.UNUSED}
    assert {keys.seeing(key): shape for key, shape in parted.items() if key.startswith("visual.")} == eye
    bare = {key.removeprefix("text_model."): shape for key, shape in reader.items()}
    assert {keys.reading(key): shape for key, shape in parted.items() if not key.startswith("visual.")} == bare


# -- a whole import -------------------------------------------------------------------------------------------------------


def test_what_is_imported_is_what_was_published(held: dict[str, Any], tmp_path: Path) -> None:
    told: list[str] = []
    bring(put(tmp_path / "checkpoints", held).parent, tmp_path / "out", tell=told.append)
    networks = load(tmp_path / "out")
    state = networks.denoiser.state_dict()
    assert set(state) == set(held["denoiser"])
    assert all(torch.equal(state[key], value) for key, value in held["denoiser"].items())
    deep = networks.autoencoder.state_dict()
    assert torch.equal(deep["decoder.up_blocks.0.resnets.1.conv1.weight"], held["vae"]["first_stage_model.decoder.up.3.block.1.conv1.weight"])
    assert torch.equal(deep["encoder.mid_block.attentions.0.to_k.bias"], held["vae"]["first_stage_model.encoder.mid.attn_1.k.bias"])
    eye = networks.image.state_dict()
    joint = held["clip"]["visual.transformer.resblocks.1.attn.in_proj_weight"]
    assert torch.equal(eye["vision_model.encoder.layers.1.self_attn.v_proj.weight"], joint[32:])
    assert torch.equal(eye["visual_projection.weight"], held["clip"]["visual.proj"].T)
    assert any("2 left out" in line for line in told)
    assert any("no live generator" in line for line in told)
    manifest = json.loads((tmp_path / "out" / "weights.json").read_text())
    assert manifest["origin"]["steps"] == "31"
    assert len(manifest["origin"]["open_clip_pytorch_model.bin"]) == 64
    frame = np.zeros((1, *TINY.size, 3), np.uint8)
    assert render(networks, networks.prepare(demo_portrait()), frame[0], frame, settings=Settings(steps=1)).shape == frame.shape


def test_the_empty_prompt_is_what_the_text_encoder_says_before_its_last_layer(held: dict[str, Any], tmp_path: Path) -> None:
    """Written out: causal attention, two heads, gelu; the last of the two layers is not asked."""
    bring(put(tmp_path / "in", held), tmp_path / "out")
    clip = held["clip"]
    functional = torch.nn.functional
    x = clip["token_embedding.weight"][[38, 39, 0, 0, 0]] + clip["positional_embedding"]
    key = "transformer.resblocks.0"
    read = functional.layer_norm(x, (24,), clip[f"{key}.ln_1.weight"], clip[f"{key}.ln_1.bias"])
    joint = functional.linear(read, clip[f"{key}.attn.in_proj_weight"], clip[f"{key}.attn.in_proj_bias"])
    q, k, v = (each.unflatten(1, (2, 12)).transpose(0, 1) for each in joint.chunk(3, 1))
    attended = functional.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0].transpose(0, 1).flatten(1)
    x = x + functional.linear(attended, clip[f"{key}.attn.out_proj.weight"], clip[f"{key}.attn.out_proj.bias"])
    read = functional.layer_norm(x, (24,), clip[f"{key}.ln_2.weight"], clip[f"{key}.ln_2.bias"])
    inner = functional.gelu(functional.linear(read, clip[f"{key}.mlp.c_fc.weight"], clip[f"{key}.mlp.c_fc.bias"]))
    x = x + functional.linear(inner, clip[f"{key}.mlp.c_proj.weight"], clip[f"{key}.mlp.c_proj.bias"])
    want = functional.layer_norm(x, (24,), clip["ln_final.weight"], clip["ln_final.bias"])
    assert torch.allclose(load(tmp_path / "out").empty.tokens, want, atol=1e-5)


def test_half_precision_halves_the_files(held: dict[str, Any], tmp_path: Path) -> None:
    source = put(tmp_path / "in", held)
    bring(source, tmp_path / "whole")
    bring(source, tmp_path / "half", precision="fp16")
    for part in ("denoiser", "autoencoder", "image", "empty"):
        whole, half = (load_file(tmp_path / name / f"{part}.safetensors") for name in ("whole", "half"))
        assert all(value.dtype == torch.float16 for value in half.values())
        assert set(whole) == set(half)
        assert all(torch.equal(value.half(), half[key]) for key, value in whole.items())


def test_the_command_imports_and_names_no_server(
    held: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importer, "import_unianimate", partial(importer.import_unianimate, made=TINY))
    source = put(tmp_path / "in", held)
    (tmp_path / "sd").mkdir()
    (source / "v2-1_512-ema-pruned.ckpt").rename(tmp_path / "sd" / "v2-1_512-ema-pruned.ckpt")
    out = tmp_path / "out"
    assert avatar.main(["import", "unianimate", str(source), "-o", str(out)]) == 2
    assert avatar.main(["import", "unianimate", str(source), "-o", str(out), "--vae", str(tmp_path / "sd")]) == 0
    said = capsys.readouterr()
    assert "name its folder with --vae" in said.err
    assert f"Wrote {out}." in said.out + said.err
    assert "Serve it" not in said.out + said.err


def test_the_other_size_takes_the_same_weights(held: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bring(put(tmp_path / "in", held), tmp_path / "out")
    monkeypatch.setitem(presets.PRESETS, "other", replace(TINY, size=(64, 32)))
    networks = load(tmp_path / "out", made=replace(TINY, size=(64, 32)))
    frame = np.zeros((1, 64, 32, 3), np.uint8)
    assert render(networks, networks.prepare(demo_portrait()), frame[0], frame, settings=Settings(steps=1)).shape == frame.shape


# -- what does not fit ----------------------------------------------------------------------------------------------------

WRONG = {
    "a missing key": ("denoiser", lambda held: held.pop("out.2.weight"), r"1 missing \(first 'out\.2\.weight'\)"),
    "a key too many": ("denoiser", lambda held: held.update({"fps_embedding.0.weight": torch.zeros(2)}), "1 unexpected"),
    "another shape": ("denoiser", lambda held: held.update({"out.2.weight": torch.zeros(4, 16, 1, 1)}), "1 of another kind"),
    "no autoencoder": ("vae", lambda held: [held.pop(key) for key in list(held) if "first_stage" in key], "nothing in it is called"),
    "half an autoencoder": ("vae", lambda held: held.pop("first_stage_model.quant_conv.bias"), "1 missing"),
    "CLIP without eyes": ("clip", lambda held: [held.pop(key) for key in list(held) if key.startswith("visual.")], "give open_clip's file"),
    "CLIP without a text encoder": ("clip", lambda held: held.pop("ln_final.bias"), "1 missing"),
    "a smaller CLIP": ("clip", lambda held: held.update({"visual.proj": torch.zeros(16, 12)}), "1 of another kind"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_does_not_fit_is_refused(name: str, held: dict[str, Any], tmp_path: Path) -> None:
    part, spoil, message = WRONG[name]
    spoilt = {**held, part: dict(held[part])}
    spoil(spoilt[part])  # type: ignore[no-untyped-call]
    with pytest.raises(AvatarError, match=message) as refused:
        bring(put(tmp_path / "in", spoilt), tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_mixed_up_truncated_and_unsafe_files_are_refused(held: dict[str, Any], tmp_path: Path) -> None:
    mixed = put(tmp_path / "mixed", {**held, "denoiser": held["clip"]})
    with pytest.raises(AvatarError, match="is not UniAnimate's unianimate_16f_32f_non_ema_223000"):
        bring(mixed, tmp_path / "out")
    short = put(tmp_path / "short", held) / "v2-1_512-ema-pruned.ckpt"
    short.write_bytes(short.read_bytes()[:-1000])
    with pytest.raises(AvatarError, match="damaged, not complete"):
        bring(short.parent, tmp_path / "out")
    unsafe = put(tmp_path / "unsafe", held)
    torch.save({"state_dict": held["denoiser"], "callbacks": Path("x")}, unsafe / "unianimate_16f_32f_non_ema_223000.pth")
    with pytest.raises(AvatarError, match="could run code when loaded"):
        bring(unsafe, tmp_path / "out")
    with pytest.raises(AvatarError, match="is no folder"):
        bring(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(AvatarError, match="not as 'int4'"):
        bring(unsafe, tmp_path / "out", precision="int4")
    assert not (tmp_path / "out").exists()


def test_a_plain_file_and_a_trainers_prefix_are_taken(held: dict[str, Any], tmp_path: Path) -> None:
    source = put(tmp_path / "in", held)
    torch.save({f"module.{key}": value for key, value in held["denoiser"].items()}, source / "unianimate_16f_32f_non_ema_223000.pth")
    (source / "v2-1_512-ema-pruned.ckpt").unlink()
    save_file(held["vae"], source / "v2-1_512-ema-pruned.safetensors")
    bring(source, tmp_path / "out")
    assert torch.equal(load(tmp_path / "out").denoiser.out[2].weight, held["denoiser"]["out.2.weight"])


def test_what_is_streamed_is_what_the_library_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "PIECE", 5)
    held = {"b": torch.randn(3, 4), "a": torch.randn(2, 3, 2).permute(2, 0, 1), "scalar": torch.tensor(1.5), "none": torch.zeros(0, 4)}
    found = streamed.write(tmp_path / "x.safetensors", held, torch.float16)
    assert found == hashlib.sha256((tmp_path / "x.safetensors").read_bytes()).hexdigest()
    again = load_file(tmp_path / "x.safetensors")
    assert set(again) == set(held)
    assert all(torch.equal(again[key], value.half()) for key, value in held.items())
    with pytest.raises(AvatarError, match="cannot be written"):
        streamed.write(tmp_path / "no" / "x.safetensors", held, torch.float32)


def test_no_parameter_is_left_without_a_file() -> None:
    made = empty(TINY)
    assert set(made.parts()) == {"denoiser", "empty", "autoencoder", "image"}
    assert sum(value.numel() for part in made.parts().values() for value in part.parameters()) == sum(value.numel() for value in made.parameters())
