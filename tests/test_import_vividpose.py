"""Importing Stable Video Diffusion for VividPose: the published keys, written out, find their places; what does not fit is said in one sentence."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import avatar
from engine.generators import load
from engine.persona import demo_portrait
from engine.types import AvatarError
from tests.conftest import found, require, require_for
from tests.recognisers import onnx_file

if found("torch") and found("diffusers"):
    import torch
    from safetensors.torch import load_file, save_file

    from engine.generators.video import vividpose_networks as weights_of
    from engine.generators.video import vividpose_presets as presets
    from engine.generators.video.vividpose_networks import Networks, build, empty, save
    from engine.generators.video.vividpose_presets import TINY, VIVIDPOSE
    from engine.generators.video.vividpose_render import Settings, render
    from engine.generators.video.weights import Plan
    from exporters.published import import_vividpose as importer
    from tests.test_vividpose import seeded

pytestmark = pytest.mark.torch
Shapes = dict[str, tuple[int, ...]]


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    require("torch")
    require("diffusers")
    require("transformers")


# -- the published keys, written out --------------------------------------------------------------------------------------


def dense(name: str, given: int, made: int, *side: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (made, given, *side)} | ({f"{name}.bias": (made,)} if bias else {})


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def resnet(name: str, given: int, made: int, *side: int, time: int = 0) -> Shapes:
    """One of diffusers' residual blocks; `side` of its kernels."""
    shapes = norm(f"{name}.norm1", given) | dense(f"{name}.conv1", given, made, *side) | norm(f"{name}.norm2", made)
    shapes |= dense(f"{name}.conv2", made, made, *side) | (dense(f"{name}.time_emb_proj", time, made) if time else {})
    return shapes | (dense(f"{name}.conv_shortcut", given, made, *(1 for _ in side)) if given != made else {})


def both(name: str, given: int, made: int, time: int = 0) -> Shapes:
    """A spatial one, a temporal one and how they are mixed."""
    shapes = resnet(f"{name}.spatial_res_block", given, made, 3, 3, time=time) | resnet(f"{name}.temporal_res_block", made, made, 3, 1, 1, time=time)
    return shapes | {f"{name}.time_mixer.mix_factor": (1,)}


def attention(name: str, width: int, context: int) -> Shapes:
    shapes = dense(f"{name}.to_q", width, width, bias=False) | dense(f"{name}.to_out.0", width, width)
    return shapes | dense(f"{name}.to_k", context, width, bias=False) | dense(f"{name}.to_v", context, width, bias=False)


def forward(name: str, width: int) -> Shapes:
    return dense(f"{name}.net.0.proj", width, 8 * width) | dense(f"{name}.net.2", 4 * width, width)


def transformer(name: str, width: int, context: int) -> Shapes:
    shapes = norm(f"{name}.norm", width) | dense(f"{name}.proj_in", width, width) | dense(f"{name}.proj_out", width, width)
    for kind, more in (("transformer_blocks", ()), ("temporal_transformer_blocks", ("norm_in",))):
        block = f"{name}.{kind}.0"
        for each in ("norm1", "norm2", "norm3", *more):
            shapes |= norm(f"{block}.{each}", width)
        shapes |= attention(f"{block}.attn1", width, width) | attention(f"{block}.attn2", width, context) | forward(f"{block}.ff", width)
        shapes |= forward(f"{block}.ff_in", width) if more else {}
    shapes |= dense(f"{name}.time_pos_embed.linear_1", width, 4 * width) | dense(f"{name}.time_pos_embed.linear_2", 4 * width, width)
    return shapes | {f"{name}.time_mixer.mix_factor": (1,)}


def svd_unet(channels: tuple[int, ...], blocks: int, context: int, ids: int) -> Shapes:
    """As in unet/diffusion_pytorch_model.safetensors."""
    time, last = 4 * channels[0], len(channels) - 1
    shapes = dense("conv_in", 8, channels[0], 3, 3) | norm("conv_norm_out", channels[0]) | dense("conv_out", channels[0], 4, 3, 3)
    for name, given in (("time_embedding", channels[0]), ("add_embedding", 3 * ids)):
        shapes |= dense(f"{name}.linear_1", given, time) | dense(f"{name}.linear_2", time, time)
    skips, width = [channels[0]], channels[0]
    for i, made in enumerate(channels):
        for j in range(blocks):
            shapes |= both(f"down_blocks.{i}.resnets.{j}", width, made, time)
            shapes |= transformer(f"down_blocks.{i}.attentions.{j}", made, context) if i < last else {}
            width = made
            skips.append(width)
        if i < last:
            shapes |= dense(f"down_blocks.{i}.downsamplers.0.conv", made, made, 3, 3)
            skips.append(made)
    shapes |= transformer("mid_block.attentions.0", width, context)
    for j in range(2):
        shapes |= both(f"mid_block.resnets.{j}", width, width, time)
    for i, made in enumerate(reversed(channels)):
        for j in range(blocks + 1):
            shapes |= both(f"up_blocks.{i}.resnets.{j}", width + skips.pop(), made, time)
            shapes |= transformer(f"up_blocks.{i}.attentions.{j}", made, context) if i else {}
            width = made
        shapes |= dense(f"up_blocks.{i}.upsamplers.0.conv", made, made, 3, 3) if i < last else {}
    return shapes


def svd_vae(channels: tuple[int, ...], blocks: int) -> Shapes:
    """As in vae/diffusion_pytorch_model.safetensors."""
    last, width = len(channels) - 1, channels[0]
    shapes = dense("encoder.conv_in", 3, width, 3, 3) | dense("quant_conv", 8, 8, 1, 1)
    for i, made in enumerate(channels):
        for j in range(blocks):
            shapes |= resnet(f"encoder.down_blocks.{i}.resnets.{j}", width, made, 3, 3)
            width = made
        shapes |= dense(f"encoder.down_blocks.{i}.downsamplers.0.conv", made, made, 3, 3) if i < last else {}
    for name in ("encoder.mid_block", "decoder.mid_block"):
        shapes |= norm(f"{name}.attentions.0.group_norm", width)
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            shapes |= dense(f"{name}.attentions.0.{part}", width, width)
    for j in range(2):
        shapes |= resnet(f"encoder.mid_block.resnets.{j}", width, width, 3, 3)
    for j in range(blocks):
        shapes |= both(f"decoder.mid_block.resnets.{j}", width, width)
    shapes |= norm("encoder.conv_norm_out", width) | dense("encoder.conv_out", width, 8, 3, 3) | dense("decoder.conv_in", 4, width, 3, 3)
    for i, made in enumerate(reversed(channels)):
        for j in range(blocks + 1):
            shapes |= both(f"decoder.up_blocks.{i}.resnets.{j}", width, made)
            width = made
        shapes |= dense(f"decoder.up_blocks.{i}.upsamplers.0.conv", made, made, 3, 3) if i < last else {}
    shapes |= norm("decoder.conv_norm_out", width) | dense("decoder.conv_out", width, 3, 3, 3)
    return shapes | dense("decoder.time_conv_out", 3, 3, 3, 1, 1)


def shapes_of(module: Any) -> Shapes:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def test_every_published_key_has_its_place_at_full_size() -> None:
    whole = empty(VIVIDPOSE)
    unet, vae = svd_unet((320, 640, 1280, 1280), 2, 1024, 256), svd_vae((128, 256, 512, 512), 2)
    assert shapes_of(whole.denoiser.unet) == unet
    assert shapes_of(whole.autoencoder) == vae
    assert sum(int(np.prod(shape)) for shape in unet.values()) == 1_524_623_082, "as diffusers counts it"
    eye = shapes_of(whole.image)
    assert sum(int(np.prod(shape)) for shape in eye.values()) == 632_076_800, "CLIP's ViT-H/14 with its projection"
    assert eye["visual_projection.weight"] == (1024, 1280)
    assert set(whole.parts()) == {"denoiser", "reference", "autoencoder", "image"}


# -- small files of the published kind ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made() -> Networks:
    networks: Networks = seeded(build(TINY, seed=4), 4)
    return networks


def put(folder: Path, made: Networks, **spoilt: Any) -> Path:
    """As published: a folder each, with its config.json."""
    parts = {"unet": made.denoiser.unet, "vae": made.autoencoder, "image_encoder": made.image}
    for name, module in parts.items():
        (folder / name).mkdir(parents=True)
        file = "model" if name == "image_encoder" else "diffusion_pytorch_model"
        held = {key: value.contiguous() for key, value in module.state_dict().items()}
        config = json.loads((module.config if name == "image_encoder" else module).to_json_string())
        if name in spoilt:
            spoilt[name](held, config)
        save_file(held, folder / name / f"{file}.safetensors")
        (folder / name / "config.json").write_text(json.dumps(config))
    return folder


bring = partial(lambda source, out, **more: importer.import_vividpose(source, out, **{"made": TINY} | more))


def same(a: Any, b: Any) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return set(mine) == set(theirs) and all(torch.equal(mine[key], value) for key, value in theirs.items())


def test_what_is_imported_is_what_was_published(made: Networks, tmp_path: Path) -> None:
    told: list[str] = []
    bring(put(tmp_path / "stable-video-diffusion-img2vid", made).parent, tmp_path / "out", tell=told.append)
    networks = weights_of.load(tmp_path / "out")
    assert same(networks.denoiser.unet, made.denoiser.unet)
    assert same(networks.autoencoder, made.autoencoder)
    assert same(networks.image, made.image)
    unet = made.denoiser.unet.state_dict()
    assert all(torch.equal(value, unet[key]) for key, value in networks.reference.unet.state_dict().items())
    silent = [networks.denoiser.skeleton.conv_out.weight, networks.denoiser.dense.conv_out.weight, networks.denoiser.face_keys[0].to_v_ip.weight]
    assert not any(bool(each.any()) for each in silent)
    assert bool(networks.denoiser.skeleton.conv_in.weight.any())
    assert (networks.posed, networks.recogniser) == (False, None)
    assert told[0].startswith(f"vae/diffusion_pytorch_model.safetensors: {len(made.autoencoder.state_dict())} tensors -> autoencoder")
    assert any("know no pose and no face" in line for line in told)
    assert any("no live generator" in line for line in told)
    manifest = json.loads((tmp_path / "out" / "weights.json").read_text())
    assert manifest["preset"] == "tiny_vividpose"
    unet_file = tmp_path / "stable-video-diffusion-img2vid" / "unet" / "diffusion_pytorch_model.safetensors"
    assert manifest["origin"]["unet/diffusion_pytorch_model.safetensors"] == hashlib.sha256(unet_file.read_bytes()).hexdigest()
    frame = np.zeros((1, *TINY.size, 3), np.uint8)
    assert render(networks, networks.prepare(demo_portrait()), frame, frame, settings=Settings(steps=1, overlap=1)).shape == frame.shape


def test_trained_weights_go_beside_it_with_a_recogniser(made: Networks, tmp_path: Path) -> None:
    require("onnxruntime")
    source, faces = put(tmp_path / "svd", made), onnx_file(tmp_path / "faces.onnx", length=512)
    shutil.rmtree(source / "unet")
    trained: Networks = seeded(build(TINY, seed=6), 6)
    trained.posed = True
    save(trained, tmp_path / "trained", origin={})
    with pytest.raises(AvatarError, match="name its ONNX file with --recogniser"):
        bring(source, tmp_path / "out", trained=tmp_path / "trained")
    bring(source, tmp_path / "out", trained=tmp_path / "trained", recogniser=faces, made=None)
    networks = weights_of.load(tmp_path / "out")
    assert same(networks.denoiser, trained.denoiser)
    assert same(networks.reference, trained.reference)
    assert same(networks.autoencoder, made.autoencoder)
    assert networks.posed
    assert networks.recogniser is not None
    assert networks.recogniser.read_bytes() == faces.read_bytes()
    networks.recogniser.write_bytes(b"another")
    with pytest.raises(AvatarError, match=r"recogniser\.onnx is not the file"):
        weights_of.load(tmp_path / "out")
    with pytest.raises(AvatarError, match="and VividPose reads 512"):
        bring(source, tmp_path / "other", trained=tmp_path / "trained", recogniser=onnx_file(tmp_path / "short.onnx"))
    save(trained, tmp_path / "student", origin={"steps": "2", "window": "3", "overlap": "2"})
    bring(source, tmp_path / "live", trained=tmp_path / "student", recogniser=faces, made=None)
    assert weights_of.load(tmp_path / "live").taught == Plan(2, 3, 2), "a student is asked as it was taught"
    save(trained, tmp_path / "teacher", origin={"made_for": "31 steps", "window": "6"})
    bring(source, tmp_path / "longer", trained=tmp_path / "teacher", recogniser=faces, made=None)
    assert (weights_of.load(tmp_path / "longer").taught, weights_of.load(tmp_path / "longer").frames) == (None, 6)
    (tmp_path / "trained" / "weights.json").unlink()
    with pytest.raises(AvatarError, match=r"trained has no weights\.json, which says whether its windows have 14 or 25 frames"):
        bring(source, tmp_path / "other", trained=tmp_path / "trained", recogniser=faces, made=None)
    (tmp_path / "trained" / "reference.safetensors").unlink()
    with pytest.raises(AvatarError, match="has no file reference .*--trained"):
        bring(source, tmp_path / "other", trained=tmp_path / "trained", recogniser=faces)


def test_half_precision_and_published_halves(made: Networks, tmp_path: Path) -> None:
    source = put(tmp_path / "in", made)
    bring(source, tmp_path / "half", precision="fp16")
    file = source / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({key: value.half() for key, value in load_file(file).items()}, file.with_suffix(".fp16.safetensors"))
    file.unlink()
    bring(source, tmp_path / "whole")
    halves, whole = (load_file(tmp_path / name / "denoiser.safetensors") for name in ("half", "whole"))
    assert all(value.dtype == torch.float16 for value in halves.values())
    assert all(value.dtype == torch.float32 and torch.equal(value.half(), halves[key]) for key, value in whole.items())


def test_the_longer_weights_have_longer_windows(made: Networks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = put(tmp_path / "in", made, unet=lambda held, config: config.update(num_frames=25))
    long = replace(TINY, name="tiny_long", frames=25)
    monkeypatch.setattr(importer, "VIVIDPOSE_XT", long)
    monkeypatch.setitem(presets.PRESETS, "tiny_long", long)
    bring(source, tmp_path / "out", made=None)
    assert weights_of.load(tmp_path / "out").made.frames == 25


def test_the_command_imports_and_says_how_to_render(
    made: Networks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    require_for("diffusion")
    monkeypatch.setattr(importer, "import_vividpose", partial(importer.import_vividpose, made=TINY))
    source, out = put(tmp_path / "in", made), tmp_path / "out"
    (source / "vae").rename(tmp_path / "elsewhere")
    assert avatar.main(["import", "vividpose", str(source), "-o", str(out)]) == 2
    assert "name its folder with --vae" in capsys.readouterr().err
    assert avatar.main(["import", "vividpose", str(source), "-o", str(out), "--vae", str(tmp_path / "elsewhere")]) == 0
    said = capsys.readouterr()
    assert f"avatar render --generator video --weights {out} --offline --drive clip.mp4 --maps smplx=smplx.mp4 -o out.mp4" in said.out + said.err
    assert "Nobody has published VividPose's weights" in said.out + said.err
    generator = load("video", weights=out, device="cpu", mode="eager")
    assert (generator.spec.size, getattr(generator, "preset", "")) == (TINY.size, "tiny_vividpose")


# -- what does not fit ----------------------------------------------------------------------------------------------------

WRONG = {
    "a missing key": ("unet", lambda held, config: held.pop("conv_out.bias"), r"'s unet: of its tensors, 1 missing \(first 'conv_out\.bias'\)"),
    "a key too many": ("unet", lambda held, config: held.update(more=torch.zeros(2)), "1 unexpected"),
    "Stable Diffusion's unet": ("unet", lambda held, config: held.update({"conv_in.weight": torch.zeros(32, 4, 3, 3)}), "1 of another kind"),
    "other heads": ("unet", lambda held, config: config.update(num_attention_heads=[1, 2]), "has num_attention_heads"),
    "an autoencoder of pictures": ("vae", lambda held, config: [held.pop(key) for key in list(held) if "time" in key], "missing"),
    "another scale": ("vae", lambda held, config: config.update(scaling_factor=0.13), "has scaling_factor 0.13, this system 0.18215"),
    "a smaller CLIP": ("image_encoder", lambda held, config: held.update({"visual_projection.weight": torch.zeros(8, 16)}), "1 of another kind"),
    "another CLIP": ("image_encoder", lambda held, config: config.update(hidden_act="quick_gelu"), "has hidden_act quick_gelu"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_does_not_fit_is_refused(name: str, made: Networks, tmp_path: Path) -> None:
    part, spoil, message = WRONG[name]
    with pytest.raises(AvatarError, match=message) as refused:
        bring(put(tmp_path / "in", made, **{part: spoil}), tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_missing_mixed_up_and_truncated_files_are_refused(made: Networks, tmp_path: Path) -> None:
    with pytest.raises(AvatarError, match="is no folder"):
        bring(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(AvatarError, match="not as 'int4'"):
        bring(tmp_path, tmp_path / "out", precision="int4")
    with pytest.raises(AvatarError, match="vae has no file diffusion_pytorch_model"):
        bring(tmp_path, tmp_path / "out")
    (tmp_path / "svd_xt.safetensors").touch()
    with pytest.raises(AvatarError, match="download the folders unet, vae and image_encoder"):
        bring(tmp_path, tmp_path / "out")
    mixed = put(tmp_path / "mixed", made)
    shutil.copy(mixed / "vae" / "diffusion_pytorch_model.safetensors", mixed / "unet")
    with pytest.raises(AvatarError, match="is not Stable Video Diffusion's unet"):
        bring(mixed, tmp_path / "out")
    short = put(tmp_path / "short", made) / "image_encoder" / "model.safetensors"
    short.write_bytes(short.read_bytes()[:-1000])
    with pytest.raises(AvatarError, match="damaged, not complete"):
        bring(short.parent.parent, tmp_path / "out")
    assert not (tmp_path / "out").exists()
