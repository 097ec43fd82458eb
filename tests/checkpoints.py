"""Checkpoints of Moore-AnimateAnyone's layout and of what it shares with others: shapes as they were published, and small files of the kind."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from engine.generators.diffusion.presets import ANIMATE_ANYONE, PRESETS
from tests.conftest import found, require

if found("torch") and found("diffusers"):
    import torch
    from safetensors.torch import save_file

    from engine.generators.diffusion import autoencoder, networks, tokens
    from exporters.published import import_checkpoint
    from exporters.published.import_checkpoint import import_layout


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


@pytest.fixture(name="published")
def given_published(_once: Path, tmp_path: Path) -> Path:
    """A folder as the published script leaves it; a test that changes a file replaces it."""
    shutil.copytree(_once, tmp_path / "pretrained", copy_function=os.link)
    return tmp_path / "pretrained"


@pytest.fixture(name="tiny_vae")
def given_tiny_vae(tmp_path: Path) -> Path:
    """TAESD as it is published for diffusers."""
    folder = tmp_path / "taesd"
    folder.mkdir()
    save_file(tensors(taesd(), 6), folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps(TAESD))
    return folder


@pytest.fixture(name="out")
def given_out(tmp_path: Path) -> Iterator[Path]:
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
