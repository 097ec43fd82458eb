"""Importing published weights: every key and shape of the published files finds its place in ours, and what does not fit is said."""

from __future__ import annotations

import fcntl
import json
import math
import os
import pickle
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import avatar
from engine.generators import load
from engine.generators.diffusion.presets import ANIMATE_ANYONE, PRESETS
from engine.persona import demo_portrait
from engine.types import AvatarError, Signal
from streaming.options import generator_options
from tests.conftest import found, require

if found("torch") and found("diffusers"):
    import torch
    from safetensors.torch import load_file, save_file

    from engine.generators.diffusion import autoencoder, networks, tokens
    from exporters import files, import_checkpoint, keys
    from exporters.import_checkpoint import import_layout

pytestmark = pytest.mark.torch
Shapes = dict[str, tuple[int, ...]]
SMALL = replace(
    ANIMATE_ANYONE,
    size=(64, 64),
    unet=replace(ANIMATE_ANYONE.unet, channels=(32, 64, 128, 128), image_dim=16),
    window=4,
)
"""The published layout, narrow."""
SMALL_VAE = {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 2, "latent_channels": 4, "norm_num_groups": 32, "act_fn": "silu"}
SMALL_CLIP = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 56, "image_size": 224, "projection_dim": 16}
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
WRITTEN = {"weights.json", *(f"{part}.safetensors" for part in ("autoencoder", "denoiser", "guider", "image", "reference"))}


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    require("torch")
    require("diffusers")
    require("transformers")


# -- the published layouts, written out -----------------------------------------------------------------------------------


def dense(key: str, width_in: int, width: int, *, bias: bool = True, side: int = 0) -> Shapes:
    """A linear layer, or a convolution of `side` px."""
    shapes: Shapes = {f"{key}.weight": (width, width_in, *[side] * (2 if side else 0))}
    return shapes | ({f"{key}.bias": (width,)} if bias else {})


def norm(key: str, width: int) -> Shapes:
    return {f"{key}.weight": (width,), f"{key}.bias": (width,)}


def resnet(key: str, width_in: int, width: int, time: int = 0) -> Shapes:
    made = norm(f"{key}.norm1", width_in) | dense(f"{key}.conv1", width_in, width, side=3) | norm(f"{key}.norm2", width)
    made |= dense(f"{key}.conv2", width, width, side=3)
    made |= dense(f"{key}.time_emb_proj", time, width) if time else {}
    return made | (dense(f"{key}.conv_shortcut", width_in, width, side=1) if width_in != width else {})


def attend(key: str, width: int, source: int) -> Shapes:
    made = dense(f"{key}.to_q", width, width, bias=False) | dense(f"{key}.to_out.0", width, width)
    return made | dense(f"{key}.to_k", source, width, bias=False) | dense(f"{key}.to_v", source, width, bias=False)


def forward(key: str, width: int) -> Shapes:
    return dense(f"{key}.net.0.proj", width, 8 * width) | dense(f"{key}.net.2", 4 * width, width)


def transformer(key: str, width: int, source: int) -> Shapes:
    block = f"{key}.transformer_blocks.0"
    made = norm(f"{key}.norm", width) | dense(f"{key}.proj_in", width, width, side=1) | dense(f"{key}.proj_out", width, width, side=1)
    made |= norm(f"{block}.norm1", width) | norm(f"{block}.norm2", width) | norm(f"{block}.norm3", width) | forward(f"{block}.ff", width)
    return made | attend(f"{block}.attn1", width, width) | attend(f"{block}.attn2", width, source)


def unet(channels: tuple[int, ...], source: int, *, tail: bool = True) -> Shapes:
    """Stable Diffusion 1.5: two resnets a level down and three up, attention at all but the lowest level and in the middle."""
    time, lowest = 4 * channels[0], len(channels) - 1
    made = dense("conv_in", 4, channels[0], side=3)
    made |= dense("time_embedding.linear_1", channels[0], time) | dense("time_embedding.linear_2", time, time)
    skips, width_in = [channels[0]], channels[0]
    for i, width in enumerate(channels):
        for j in range(2):
            made |= resnet(f"down_blocks.{i}.resnets.{j}", width_in, width, time)
            made |= transformer(f"down_blocks.{i}.attentions.{j}", width, source) if i < lowest else {}
            width_in = width
            skips.append(width)
        if i < lowest:
            made |= dense(f"down_blocks.{i}.downsamplers.0.conv", width, width, side=3)
            skips.append(width)
    made |= resnet("mid_block.resnets.0", width_in, width_in, time) | resnet("mid_block.resnets.1", width_in, width_in, time)
    made |= transformer("mid_block.attentions.0", width_in, source)
    for i, width in enumerate(reversed(channels)):
        for j in range(3):
            made |= resnet(f"up_blocks.{i}.resnets.{j}", width_in + skips.pop(), width, time)
            made |= transformer(f"up_blocks.{i}.attentions.{j}", width, source) if i > 0 else {}
            width_in = width
        made |= dense(f"up_blocks.{i}.upsamplers.0.conv", width, width, side=3) if i < lowest else {}
    return made | (norm("conv_norm_out", channels[0]) | dense("conv_out", channels[0], 4, side=3) if tail else {})


def motion(channels: tuple[int, ...], positions: int = 32) -> Shapes:
    """AnimateDiff's second version: one module after every resnet of the levels and one in the middle."""
    places = [(f"down_blocks.{i}.motion_modules.{j}", width) for i, width in enumerate(channels) for j in range(2)]
    places += [("mid_block.motion_modules.0", channels[-1])]
    places += [(f"up_blocks.{i}.motion_modules.{j}", width) for i, width in enumerate(reversed(channels)) for j in range(3)]
    made: Shapes = {}
    for place, width in places:
        key = f"{place}.temporal_transformer"
        block = f"{key}.transformer_blocks.0"
        made |= norm(f"{key}.norm", width) | dense(f"{key}.proj_in", width, width) | dense(f"{key}.proj_out", width, width)
        for k in range(2):
            made |= attend(f"{block}.attention_blocks.{k}", width, width) | norm(f"{block}.norms.{k}", width)
            made[f"{block}.attention_blocks.{k}.pos_encoder.pe"] = (1, positions, width)
        made |= forward(f"{block}.ff", width) | norm(f"{block}.ff_norm", width)
    return made


def guider(width: int) -> Shapes:
    made = dense("conv_in", 3, 16, side=3) | dense("conv_out", 256, width, side=3)
    for i, (above, below) in enumerate([(16, 16), (16, 32), (32, 32), (32, 96), (96, 96), (96, 256)]):
        made |= dense(f"blocks.{i}", above, below, side=3)
    return made


def vae(channels: tuple[int, ...]) -> Shapes:
    """diffusers' AutoencoderKL of Stable Diffusion, with its older names."""
    made: Shapes = {}
    for name, widths, layers in (("encoder", channels, 2), ("decoder", channels[::-1], 3)):
        middle, block = channels[-1], "down_blocks" if name == "encoder" else "up_blocks"
        first, last = (3, 8) if name == "encoder" else (4, 3)
        made |= dense(f"{name}.conv_in", first, widths[0], side=3) | norm(f"{name}.conv_norm_out", widths[-1])
        made |= dense(f"{name}.conv_out", widths[-1], last, side=3)
        width_in = widths[0]
        for i, width in enumerate(widths):
            for j in range(layers):
                made |= resnet(f"{name}.{block}.{i}.resnets.{j}", width_in, width)
                width_in = width
            if i < len(widths) - 1:
                made |= dense(f"{name}.{block}.{i}.{'down' if name == 'encoder' else 'up'}samplers.0.conv", width, width, side=3)
        made |= resnet(f"{name}.mid_block.resnets.0", middle, middle) | resnet(f"{name}.mid_block.resnets.1", middle, middle)
        made |= norm(f"{name}.mid_block.attentions.0.group_norm", middle)
        for projection in OLD_NAMES.values():
            made |= dense(f"{name}.mid_block.attentions.0.{projection}", middle, middle)
    return made | dense("quant_conv", 8, 8, side=1) | dense("post_quant_conv", 4, 4, side=1)


def taesd() -> Shapes:
    """Blocks of three convolutions, numbered through with whatever stands between them."""

    def block(key: str) -> Shapes:
        return dense(f"{key}.conv.0", 64, 64, side=3) | dense(f"{key}.conv.2", 64, 64, side=3) | dense(f"{key}.conv.4", 64, 64, side=3)

    made = dense("encoder.layers.0", 3, 64, side=3) | dense("encoder.layers.14", 64, 4, side=3)
    made |= dense("decoder.layers.0", 4, 64, side=3) | dense("decoder.layers.18", 64, 3, side=3)
    for i in range(1, 14):
        plain = i in (2, 6, 10)
        made |= dense(f"encoder.layers.{i}", 64, 64, bias=False, side=3) if plain else block(f"encoder.layers.{i}")
    for i in range(2, 18):  # 1 is the activation; 5, 10 and 15 make it larger
        if i not in (5, 10, 15):
            plain = i in (6, 11, 16)
            made |= dense(f"decoder.layers.{i}", 64, 64, bias=False, side=3) if plain else block(f"decoder.layers.{i}")
    return made


TAESD = {
    "act_fn": "relu",
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "latent_magnitude": 3,
    "latent_shift": 0.5,
    "encoder_block_out_channels": [64] * 4,
    "decoder_block_out_channels": [64] * 4,
    "force_upcast": False,
    "scaling_factor": 1.0,
    "num_encoder_blocks": [1, 3, 3, 3],
    "num_decoder_blocks": [3, 3, 3, 1],
    "upsampling_scaling_factor": 2,
}
"""Its config.json."""


def clip(width: int, layers: int, patch: int, token: int) -> Shapes:
    """CLIP's vision tower as transformers wrote it when the file was published."""
    seen, root = (224 // patch) ** 2 + 1, "vision_model"
    made: Shapes = {f"{root}.embeddings.class_embedding": (width,), f"{root}.embeddings.position_ids": (1, seen)}
    made |= dense(f"{root}.embeddings.patch_embedding", 3, width, bias=False, side=patch)
    made |= {f"{root}.embeddings.position_embedding.weight": (seen, width), "visual_projection.weight": (token, width)}
    made |= norm(f"{root}.pre_layrnorm", width) | norm(f"{root}.post_layernorm", width)
    for i in range(layers):
        key = f"{root}.encoder.layers.{i}"
        for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
            made |= dense(f"{key}.self_attn.{projection}", width, width)
        made |= norm(f"{key}.layer_norm1", width) | norm(f"{key}.layer_norm2", width)
        made |= dense(f"{key}.mlp.fc1", width, 4 * width) | dense(f"{key}.mlp.fc2", 4 * width, width)
    return made


def size(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def tensors(shapes: Shapes, seed: int = 0) -> dict[str, Any]:
    """Seeded weights, and what the published files hold where nothing was trained."""
    torch.manual_seed(seed)
    made = {key: torch.randn(shape) * 0.05 for key, shape in shapes.items()}
    for key, shape in shapes.items():
        if key.endswith("position_ids"):
            made[key] = torch.arange(shape[1])[None]
        if key.endswith("pos_encoder.pe"):
            angle = torch.arange(shape[1])[:, None] * torch.exp(torch.arange(0, shape[2], 2) * (-math.log(10000.0) / shape[2]))
            made[key][0, :, 0::2], made[key][0, :, 1::2] = torch.sin(angle), torch.cos(angle)
    return made


# -- small files of the published kind ------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The small preset is known, and its encoders are small ones of the same make."""
    if "full_size" in request.node.name:
        return
    from diffusers import AutoencoderKL
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    levels_of = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    monkeypatch.setitem(PRESETS, SMALL.name, SMALL)
    monkeypatch.setattr(networks, "autoencoder", lambda made: autoencoder.KL(AutoencoderKL(**SMALL_VAE, **levels_of)))
    small_clip = partial(CLIPVisionConfig, **SMALL_CLIP, intermediate_size=128)
    monkeypatch.setattr(networks, "image_encoder", lambda made: tokens.ClipImage(CLIPVisionModelWithProjection(small_clip())))
    monkeypatch.setattr(import_checkpoint, "empty", small_empty)


@cache
def small_empty(made: Any) -> Any:
    """The importer only looks at their shapes, so the tests share them."""
    return networks.empty(made)


@pytest.fixture(scope="module")
def _once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    channels, source = SMALL.unet.channels, SMALL.unet.image_dim
    torch.save(tensors(unet(channels, source), 1), folder / "denoising_unet.pth")
    torch.save(tensors(unet(channels, source, tail=False), 2), folder / "reference_unet.pth")
    torch.save(tensors(motion(channels), 3), folder / "motion_module.pth")
    torch.save(tensors(guider(channels[0]), 4), folder / "pose_guider.pth")
    for name, file, shapes, config in (
        ("sd-vae-ft-mse", "diffusion_pytorch_model.bin", vae((32, 32, 32, 32)), SMALL_VAE),
        ("image_encoder", "pytorch_model.bin", clip(32, 2, 56, 16), SMALL_CLIP | {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}),
    ):
        (folder / name).mkdir()
        torch.save(tensors(shapes, 5), folder / name / file)
        (folder / name / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def published(_once: Path, tmp_path: Path) -> Path:
    """A folder as the published script leaves it; a test that changes a file replaces it."""
    shutil.copytree(_once, tmp_path / "pretrained", copy_function=os.link)
    return tmp_path / "pretrained"


@pytest.fixture
def tiny_vae(tmp_path: Path) -> Path:
    """TAESD as it is published for diffusers."""
    folder = tmp_path / "taesd"
    folder.mkdir()
    save_file(tensors(taesd(), 6), folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps(TAESD))
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """Where to; whatever happens, there is a whole folder or none, and nothing beside it."""
    place = tmp_path / "made" / "weights"
    yield place
    if place.exists():
        assert {path.name for path in place.iterdir()} - {"tiny.safetensors"} == WRITTEN
    if place.parent.exists():
        assert set(place.parent.iterdir()) <= {place}


def changed(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Write a checkpoint anew, changed."""
    held = torch.load(path, weights_only=True)
    held = change(held) or held
    path.unlink()
    torch.save(held, path)


def run(source: Path, place: Path, *, vae: Path | None = None, tiny_vae: Path | None = None, **options: Any) -> None:
    import_layout("animate-anyone", source, place, elsewhere={"--vae": vae, "--tiny-vae": tiny_vae}, **options)


@pytest.fixture(name="imported")
def given_imported(_once: Path) -> Path:
    """The published files, imported once for all: nobody changes what they became."""
    folder = _once.with_name(f"{_once.name}-imported")
    if not folder.exists():
        run(_once, folder)
    return folder


# -- what fits ------------------------------------------------------------------------------------------------------------


def test_every_key_of_the_full_size_files_is_one_of_ours() -> None:
    """Without a byte of weights: the published lists, written out above, against our networks on the meta device."""
    channels = ANIMATE_ANYONE.unet.channels
    lists = {
        "denoising_unet": (unet(channels, 768), 686, 859_520_964),
        "reference_unet": (unet(channels, 768, tail=False), 682, 859_520_964 - 2 * 320 - 4 * 320 * 9 - 4),
        "motion_module": (motion(channels), 588, 454_417_600),
        "pose_guider": (guider(320), 16, 1_086_480),
        "diffusion_pytorch_model": (vae((128, 256, 512, 512)), 248, 83_653_863),
        "model": (clip(1024, 24, 14, 768), 393, 303_966_208 + 257),
    }
    ours = {part: {key: tuple(value.shape) for key, value in module.state_dict().items()} for part, module in meta().parts().items()}
    filled: dict[str, set[str]] = {part: set() for part in ours}
    for table in keys.ANIMATE_ANYONE:
        shapes, count, values = lists[table.stems[0]]
        assert (len(shapes), size(shapes)) == (count, values)
        dropped = {key for key in shapes if any(key.endswith(drop.suffix) for drop in table.drops)}
        assert len(dropped) == {"motion_module": 42, "model": 1}.get(table.stems[0], 0)
        pairs = {table.prefix + table.ours(key): shape for key, shape in shapes.items() if key not in dropped}
        assert len(pairs) == len(shapes) - len(dropped), "two published keys never become one of ours"
        assert pairs == {key: shape for key, shape in ours[table.part].items() if table.fills(key)}
        assert filled[table.part].isdisjoint(pairs)
        filled[table.part] |= set(pairs)
    assert filled == {part: set(shapes) for part, shapes in ours.items()}


def meta() -> Any:
    made = networks.empty(ANIMATE_ANYONE)
    assert all(parameter.is_meta for parameter in made.parameters())
    return made


def test_imported_weights_load_and_make_a_frame(published: Path, out: Path) -> None:
    told: list[str] = []
    run(published, out, tell=told.append)
    loaded = networks.load(out)
    denoising, moving = (torch.load(published / name, weights_only=True) for name in ("denoising_unet.pth", "motion_module.pth"))
    mine = loaded.denoiser.state_dict()
    assert all(torch.equal(mine[key], value) for key, value in denoising.items())
    assert all(torch.equal(mine[key], value) for key, value in moving.items() if not key.endswith(".pe"))
    assert any("42 left out" in line for line in told)
    assert not any(x.is_meta for x in (*loaded.parameters(), *loaded.buffers()))
    generator: Any = load("diffusion", weights=out)
    assert generator.trained
    assert "made for 30 steps with guidance 3.5" in generator.spec.notice
    state = generator.allocate(1)
    generator.admit(state, 0, generator.prepare(demo_portrait()))
    frames = [generator.step(state, [[Signal(time=t / 25)]])[0][0] for t in range(2)]
    assert all(frame.rgb.shape == (64, 64, 3) for frame in frames)
    assert len(np.unique(frames[-1].rgb)) > 10


def test_loading_gives_what_building_and_copying_gives(imported: Path) -> None:
    """Empty networks that are filled compute as those that were initialised first, buffers included."""
    loaded, built = networks.load(imported), networks.build(SMALL)
    for name, module in built.parts().items():
        module.load_state_dict(load_file(imported / f"{name}.safetensors"))
    picture = torch.rand(1, 3, 64, 64)
    for mine, theirs in zip(loaded.remember(picture).reference, built.remember(picture).reference, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_an_old_autoencoder_and_a_new_one_are_the_same(imported: Path, published: Path, out: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "vae"
    shutil.copytree(published / "sd-vae-ft-mse", elsewhere)
    old = torch.load(elsewhere / "diffusion_pytorch_model.bin", weights_only=True)
    assert any(".proj_attn." in key for key in old)
    new = {key: value for key, value in old.items() if ".attentions." not in key}
    for now, before in OLD_NAMES.items():
        new |= {key.replace(f".{before}.", f".{now}."): value for key, value in old.items() if f".{before}." in key}
    new |= {key: value for key, value in old.items() if ".group_norm." in key}
    save_file(new, elsewhere / "diffusion_pytorch_model.safetensors")
    (elsewhere / "diffusion_pytorch_model.bin").write_text("the other one is preferred")
    run(published, out, vae=elsewhere)
    one, other = (load_file(place / "autoencoder.safetensors") for place in (imported, out))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".ckpt", ".bin", "old"])
def test_every_ending_is_read(suffix: str, nested: bool, published: Path) -> None:
    path = published / "pose_guider.pth"
    held = torch.load(path, weights_only=True)
    given = {f"module.{key}": value for key, value in held.items()} if nested else held
    again = path.with_suffix(".pth" if suffix == "old" else suffix)
    path.unlink()
    if suffix == ".safetensors":
        save_file(given, again)
    else:
        wrapped = {"state_dict": given, "step": 7} if nested else given
        torch.save(wrapped, again, _use_new_zipfile_serialization=suffix != "old")
    place = files.find([published], ("pose_guider",))
    assert place == again
    read = files.read(place)
    assert read.keys() == held.keys()
    assert all(torch.equal(read[key], value) for key, value in held.items())


def test_the_manifest_names_what_was_read(published: Path, out: Path) -> None:
    run(published, out)
    assert {path.stat().st_mode for path in out.iterdir()} == {(out / "weights.json").stat().st_mode}
    manifest = json.loads((out / "weights.json").read_text())
    assert manifest["preset"] == SMALL.name
    assert manifest["origin"] == {
        "system": "Moore-AnimateAnyone",
        "precision": "fp32",
        "made_for": "30 steps with guidance 3.5",
        "steps": "30",
        **{name: files.sha256(published / name) for name in ("denoising_unet.pth", "reference_unet.pth", "motion_module.pth", "pose_guider.pth")},
        **{name: files.sha256(published / name) for name in ("sd-vae-ft-mse/diffusion_pytorch_model.bin", "image_encoder/pytorch_model.bin")},
    }
    assert manifest["sha256"] == {part.removesuffix(".safetensors"): files.sha256(out / part) for part in WRITTEN - {"weights.json"}}


def test_half_precision_halves_and_is_read_as_it_is(published: Path, out: Path, tmp_path: Path) -> None:
    run(published, out, precision="fp16")
    changed(published / "pose_guider.pth", lambda held: {key: value.half() for key, value in held.items()})
    run(published, tmp_path / "whole")
    assert {parameter.dtype for parameter in networks.load(tmp_path / "whole").parameters()} == {torch.float32}
    assert (out / "denoiser.safetensors").stat().st_size < 0.6 * (tmp_path / "whole" / "denoiser.safetensors").stat().st_size
    assert {parameter.dtype for parameter in networks.load(out).parameters()} == {torch.float16}
    with pytest.raises(AvatarError, match="fp32, fp16"):
        run(published, tmp_path / "no", precision="int4")


def test_the_command_imports_and_says_how_to_serve(published: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published.rename(published.with_name("pretrained_weights"))  # the folder above is given
    assert avatar.main(["import", "animate-anyone", str(published.parent), "-o", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "denoising_unet.pth: 686 tensors -> denoiser" in shown
    assert f"avatar serve --generator diffusion --weights {out}\n" in shown


def test_the_command_imports_a_tiny_decoder(published: Path, tiny_vae: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert avatar.main(["import", "animate-anyone", str(published), "--tiny-vae", str(tiny_vae), "-o", str(out)]) == 0
    assert f"avatar serve --generator diffusion --weights {out} --decoder tiny\n" in capsys.readouterr().out
    words = ["render", "--generator", "diffusion", "--weights", str(out), "--decoder", "tiny"]
    args = avatar._parser().parse_args([*words, "--drive", "a.wav", "-o", "b.mp4"])
    generator: Any = load("diffusion", **generator_options(args))
    assert isinstance(generator.recipe.networks.autoencoder, autoencoder.TinyDecoded)


@pytest.mark.parametrize(("steps", "sentence"), [(2, "; in 2 the picture is soft"), (29, "; in 29 "), (30, "no guidance"), (40, "no guidance")])
def test_what_the_weights_were_made_for_is_told_where_it_is_missing(steps: int, sentence: str, imported: Path) -> None:
    notice = load("diffusion", weights=imported, steps=steps).spec.notice
    assert notice.startswith("These weights were made for 30 steps with guidance 3.5; ")
    assert sentence in notice
    as_published = "leaves 0.9 s after its motion at the earliest, since 24 frames are made at once, and takes 60 evaluations of the network; "
    assert f"{as_published}here it waits for none and takes {steps}." in notice


# -- a tiny decoder -------------------------------------------------------------------------------------------------------


def test_every_key_of_the_tiny_autoencoder_is_one_of_ours() -> None:
    with torch.device("meta"):
        ours = {key: tuple(value.shape) for key, value in autoencoder.Tiny().state_dict().items()}
    assert (len(taesd()), size(taesd())) == (134, 2_445_063)
    assert {f"{keys.TINY.prefix}{keys.TINY.ours(key)}": shape for key, shape in taesd().items()} == ours


@pytest.mark.parametrize("variant", ["", ".fp16"], ids=["whole", "half"])
def test_a_tiny_decoder_beside_the_weights_decodes_as_diffusers_does(variant: str, published: Path, tiny_vae: Path, out: Path) -> None:
    """Its latents are the scaled ones; what is made of the portrait stays what the weights' own encoder makes."""
    from diffusers import AutoencoderTiny

    plain = tiny_vae / "diffusion_pytorch_model.safetensors"
    held = {key: value.to(torch.float16 if variant else torch.float32) for key, value in load_file(plain).items()}
    plain.unlink()
    save_file(held, plain.with_stem(f"diffusion_pytorch_model{variant}"))
    theirs = AutoencoderTiny().eval()
    theirs.load_state_dict({key: value.float() for key, value in held.items()})
    run(published, out, tiny_vae=tiny_vae)
    own, tiny = networks.load(out), networks.load(out, decoder="tiny")
    whole = autoencoder.Tiny()
    whole.load_state_dict(load_file(out / "tiny.safetensors"))
    picture, latents = torch.rand(1, 3, 64, 64) * 2 - 1, torch.randn(2, 4, 8, 8)
    with torch.inference_mode():
        want = theirs.decode(latents).sample
        assert torch.equal(tiny.autoencoder.decode(latents / tiny.preset.gain), want)
        assert torch.equal(whole.decode(latents), want)
        assert torch.equal(whole.encode(picture), theirs.encode(picture).latents)
    for mine, before in zip(tiny.remember(picture).reference, own.remember(picture).reference, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, before, strict=True))
    names = [name for name, _ in tiny.autoencoder.named_parameters()]
    assert not any(name.startswith(("kl.model.decoder", "tiny.model.encoder")) for name in names), "what nobody needs takes no room"


def test_frames_of_both_decoders_come_from_the_same_latents(published: Path, tiny_vae: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(published, out, tiny_vae=tiny_vae)
    seen: list[Any] = []

    def spy(decode: Callable[[Any], Any], gain: float, latents: Any) -> Any:
        seen.append(latents * gain)
        return decode(latents)

    for decoder in ("kl", "tiny"):
        generator: Any = load("diffusion", weights=out, decoder=decoder, mode="eager")
        recipe = generator.recipe
        own = recipe.networks.autoencoder
        monkeypatch.setattr(own, "decode", partial(spy, own.decode, recipe.preset.gain))
        state = generator.allocate(1)
        identity = generator.prepare(demo_portrait())
        generator.admit(state, 0, generator.unpack(identity.portrait, generator.pack(identity)))
        assert generator.step(state, [[Signal(time=0.0)]])[0][0].rgb.shape == (64, 64, 3)
    torch.testing.assert_close(*seen)
    assert SMALL.scale == 0.18215


def test_the_manifest_names_the_tiny_decoder(published: Path, tiny_vae: Path, out: Path, tmp_path: Path) -> None:
    told: list[str] = []
    run(published, out, tiny_vae=tiny_vae, tell=told.append)
    manifest = json.loads((out / "weights.json").read_text())
    assert manifest["origin"]["taesd/diffusion_pytorch_model.safetensors"] == files.sha256(tiny_vae / "diffusion_pytorch_model.safetensors")
    assert manifest["sha256"]["tiny"] == files.sha256(out / "tiny.safetensors")
    assert "taesd/diffusion_pytorch_model.safetensors: 134 tensors -> tiny, 2.4 million values" in told
    (tmp_path / "b").mkdir()
    shutil.copytree(published / "sd-vae-ft-mse", tmp_path / "a" / "vae")
    tiny_vae.rename(tmp_path / "b" / "vae")
    (tmp_path / "b" / "vae" / "diffusion_pytorch_model.safetensors").rename(tmp_path / "b" / "vae" / "diffusion_pytorch_model.bin")
    torch.save(tensors(taesd()), tmp_path / "b" / "vae" / "diffusion_pytorch_model.bin")
    run(published, tmp_path / "again", vae=tmp_path / "a" / "vae", tiny_vae=tmp_path / "b" / "vae")
    origin = json.loads((tmp_path / "again" / "weights.json").read_text())["origin"]
    assert {"vae/diffusion_pytorch_model.bin", "tiny: vae/diffusion_pytorch_model.bin"} <= origin.keys(), "two folders of one name"


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("scaling_factor", 0.13025, "has scaling_factor 0.13025, this system 1.0"),
        ("act_fn", "silu", "has act_fn silu"),
        ("latent_channels", 16, "has latent_channels 16, this system 4; give the published taesd"),
        ("num_decoder_blocks", [2, 2, 2, 1], "has num_decoder_blocks"),
    ],
)
def test_another_tiny_autoencoder_is_refused(field: str, value: Any, complaint: str, published: Path, tiny_vae: Path, out: Path) -> None:
    (tiny_vae / "config.json").write_text(json.dumps(TAESD | {field: value}))
    with pytest.raises(AvatarError, match=complaint):
        run(published, out, tiny_vae=tiny_vae)


def test_a_tiny_autoencoder_that_is_not_whole_is_told(published: Path, tiny_vae: Path, out: Path) -> None:
    path = tiny_vae / "diffusion_pytorch_model.safetensors"
    held = load_file(path)
    held["decoder.layers.18.extra"] = held.pop("decoder.layers.18.bias")
    save_file(held, path)
    with pytest.raises(AvatarError, match=r"is not TAESD's taesd: .*1 missing .first 'decoder.layers.18.bias'.*1 unexpected"):
        run(published, out, tiny_vae=tiny_vae)
    path.unlink()
    with pytest.raises(AvatarError, match="download it or name its folder with --tiny-vae"):
        run(published, out, tiny_vae=tiny_vae)


def test_a_decoder_that_is_not_there_is_told(imported: Path) -> None:
    with pytest.raises(AvatarError, match="no tiny decoder.*: avatar import animate-anyone DIR --tiny-vae TAESD_DIR -o OUT"):
        networks.load(imported, decoder="tiny")
    networks.load(imported, decoder="kl")
    with pytest.raises(AvatarError, match="works on pixels and has no decoder to choose; leave --decoder out"):
        load("diffusion", preset="compact", decoder="tiny")
    with pytest.raises(AvatarError, match="no decoder called 'big'; choose one of: kl, tiny"):
        load("diffusion", preset="compact", decoder="big")


# -- what does not --------------------------------------------------------------------------------------------------------


def drop_two(held: dict[str, Any]) -> None:
    del held["conv_in.weight"], held["conv_in.bias"]


def add_one(held: dict[str, Any]) -> None:
    held["conv_in.extra"] = torch.zeros(1)


def reshape(held: dict[str, Any]) -> None:
    held["conv_in.weight"] = held["conv_in.weight"][:, :1].clone()


def whole_numbers(held: dict[str, Any]) -> None:
    held["conv_in.weight"] = held["conv_in.weight"].long()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (drop_two, "2 missing .first 'conv_in.weight'"),
        (add_one, "1 unexpected .first 'conv_in.extra'"),
        (reshape, r"'conv_in.weight', \[\d+, 1, 3, 3\] float32 instead of \[\d+, \d, 3, 3\]"),
        (whole_numbers, "int64"),
    ],
)
@pytest.mark.parametrize("file", ["denoising_unet.pth", "reference_unet.pth", "pose_guider.pth"])
def test_what_does_not_fit_is_told(file: str, change: Callable[[dict[str, Any]], None], complaint: str, published: Path, out: Path) -> None:
    changed(published / file, change)
    told: list[str] = []
    with pytest.raises(AvatarError, match=f"{file} is not Moore-AnimateAnyone's .*{complaint}.*; give the published file"):
        run(published, out, tell=told.append)
    assert "conv_in" in told[-1]
    assert not out.exists()


def test_a_motion_module_of_another_system_is_refused(published: Path, out: Path) -> None:
    path = published / "motion_module.pth"
    changed(path, lambda held: {key: value for key, value in held.items() if "mid_block" not in key})
    with pytest.raises(AvatarError, match="26 missing"):
        run(published, out)
    path.unlink()
    torch.save(tensors(motion(SMALL.unet.channels, 128)), path)
    with pytest.raises(AvatarError, match=r"42 of another kind .*pos_encoder.pe', which is not the sinusoids of 32 positions"):
        run(published, out)


def test_two_names_for_one_tensor_are_one_too_many(published: Path, out: Path) -> None:
    def twice(held: dict[str, Any]) -> None:
        held["encoder.mid_block.attentions.0.to_q.bias"] = held["encoder.mid_block.attentions.0.query.bias"].clone()

    changed(published / "sd-vae-ft-mse" / "diffusion_pytorch_model.bin", twice)
    with pytest.raises(AvatarError, match="1 unexpected .first 'encoder.mid_block.attentions.0.to_q.bias'"):
        run(published, out)


class Object:
    """Whose loading would leave a mark."""

    mark = "/nonexistent"

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.mark,))


@pytest.mark.parametrize("kind", ["new", "old", "pickle", "safetensors"])
def test_nothing_that_a_file_holds_is_run(kind: str, published: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Object, "mark", str(published / "ran"))
    path = published / "pose_guider.pth"
    path.unlink()
    if kind in ("new", "old"):
        torch.save({"conv_in.weight": Object()}, path, _use_new_zipfile_serialization=kind == "new")
    else:
        path.with_suffix(".safetensors" if kind == "safetensors" else ".pth").write_bytes(pickle.dumps({"conv_in.weight": Object()}))
    with pytest.raises(AvatarError, match="damaged" if kind == "safetensors" else "could run code"):
        run(published, out)
    assert not (published / "ran").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", "old"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file_is_told(suffix: str, share: float, published: Path, out: Path) -> None:
    path = published / "pose_guider.pth"
    held = torch.load(path, weights_only=True)
    path.unlink()
    path = path.with_suffix(".pth" if suffix == "old" else suffix)
    if suffix == ".safetensors":
        save_file(held, path)
    else:
        torch.save(held, path, _use_new_zipfile_serialization=suffix == ".pth")
    path.write_bytes(path.read_bytes()[: round(share * path.stat().st_size)])
    with pytest.raises(AvatarError, match=r"pose_guider\S* \([\d,]+ bytes\) is damaged, not complete or no checkpoint; download it again"):
        run(published, out)


@pytest.mark.parametrize("held", [[1, 2], {}, {"epoch": 3}, {"optimizer": {"a": 1}}], ids=["list", "empty", "number", "optimizer"])
def test_a_file_without_tensors_is_told(held: Any, published: Path, out: Path) -> None:
    (published / "pose_guider.pth").unlink()
    torch.save(held, published / "pose_guider.pth")
    with pytest.raises(AvatarError, match="does not hold tensors by name"):
        run(published, out)


def test_a_page_instead_of_a_file_is_told(published: Path, out: Path) -> None:
    (published / "pose_guider.pth").unlink()
    (published / "pose_guider.pth").write_text("<!DOCTYPE html><title>Not found</title>")
    with pytest.raises(AvatarError, match="is a web page and no weights; download the file itself"):
        run(published, out)


def test_what_stands_in_for_a_file_is_told(published: Path, out: Path) -> None:
    """What git and browsers leave, and what people rename."""
    file = published / "pose_guider.pth"
    real = file.read_bytes()
    file.unlink()
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4351337\n")
    with pytest.raises(AvatarError, match=r"only says where the weights lie \(Git LFS\)"):
        run(published, out)
    file.unlink()
    (published / "pose_guider (1).pth").write_bytes(real)
    with pytest.raises(AvatarError, match=r"though there is a 'pose_guider \(1\)\.pth', which may be it under another name"):
        run(published, out)
    (published / "pose_guider-00001-of-00002.safetensors").touch()
    with pytest.raises(AvatarError, match=r"has pose_guider in pieces \(pose_guider-00001-of-00002\.safetensors, \.\.\.\)"):
        run(published, out)


def test_a_file_where_its_folder_is_wanted_is_told(published: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = next((published / "sd-vae-ft-mse").glob("diffusion_pytorch_model.*"))
    assert avatar.main(["import", "animate-anyone", str(published), "-o", str(out), "--vae", str(file)]) == 2
    assert f"{file} is a file; give the folder that it lies in with --vae." in capsys.readouterr().err


def test_a_wrong_folder_is_told(published: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert avatar.main(["import", "animate-anyone", str(published / "nowhere"), "-o", str(out)]) == 2
    assert avatar.main(["import", "animate-anyone", str(published / "image_encoder"), "-o", str(out)]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert "is no folder; give the one that Moore-AnimateAnyone's files were downloaded to" in told[0]
    assert "has no file pose_guider (.safetensors, .pth, .pt, .ckpt or .bin); download it" in told[1]


@pytest.mark.parametrize(("folder", "option"), [("sd-vae-ft-mse", "--vae"), ("image_encoder", "--image-encoder")])
def test_an_encoder_that_is_not_there_is_told(folder: str, option: str, published: Path, out: Path) -> None:
    (published / folder / "config.json").unlink()
    with pytest.raises(AvatarError, match=f"{folder} has no readable config.json"):
        run(published, out)
    shutil.rmtree(published / folder)
    with pytest.raises(AvatarError, match=option):
        run(published, out)


def test_what_shapes_do_not_tell_is_read_from_the_config(published: Path, out: Path) -> None:
    for folder, name, value in (("sd-vae-ft-mse", "norm_num_groups", 16), ("image_encoder", "hidden_act", "gelu")):
        path = published / folder / "config.json"
        before = path.read_text()
        path.unlink()
        path.write_text(json.dumps(json.loads(before) | {name: value}))
        with pytest.raises(AvatarError, match=f"{folder}/config.json has {name} {value}, this system"):
            run(published, out)
        path.write_text(before)


# -- nothing half written -------------------------------------------------------------------------------------------------


def test_a_folder_with_something_in_it_is_left_alone(published: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    for place in (tmp_path / "mine", tmp_path / "mine" / "letter"):
        with pytest.raises(AvatarError, match="exists already"):
            run(published, place)
    assert (tmp_path / "mine" / "letter").read_text() == "dear"


def test_a_full_disk_is_told(published: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("I/O error: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(import_checkpoint, "save_file", full)
        with pytest.raises(AvatarError, match="No space left"):
            run(published, out)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: os.terminal_size((0, 0)) and type("Usage", (), {"free": 1000})())
    with pytest.raises(AvatarError, match="has room for 0.0"):
        run(published, out)


def test_a_kill_leaves_nothing(published: Path, out: Path) -> None:
    def killed(line: str) -> None:
        if line.endswith("written"):
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit):
        run(published, out, tell=killed)
    assert signal.getsignal(signal.SIGTERM) is before
    assert list(out.parent.iterdir()) == []


def test_what_a_harder_kill_left_goes_with_the_next_attempt(published: Path, out: Path) -> None:
    left = out.with_name(".weights.partial")
    left.mkdir(parents=True)
    (left / "half.safetensors").write_text("half")
    held = os.open(left, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(AvatarError, match="Something else is writing"):
        run(published, out)
    os.close(held)
    run(published, out)
    networks.load(out)


def test_a_folder_that_was_tampered_with_does_not_load(imported: Path, tmp_path: Path) -> None:
    for name in WRITTEN:
        shutil.copytree(imported, tmp_path / name)
        (tmp_path / name / name).write_bytes((imported / name).read_bytes()[:-9])
        with pytest.raises(AvatarError, match="import"):
            networks.load(tmp_path / name)
