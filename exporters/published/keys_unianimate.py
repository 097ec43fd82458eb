"""UniAnimate's published keys and ours: the denoiser carries the published names; autoencoder and CLIP have those of their libraries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from exporters.published.keys import Table, same

if TYPE_CHECKING:
    from torch import Tensor

SYSTEM = "UniAnimate"
PUBLISHED_STEPS = 31
MADE_FOR = "31 steps with guidance 2.5"
FIRST_STAGE = "first_stage_model."
"""What an autoencoder's keys begin with inside a checkpoint of Stable Diffusion."""
VISUAL = "visual."
"""Likewise CLIP's image encoder; what has no such beginning is the text encoder's."""
UNUSED = ("logit_scale", "text_projection")
"""Of CLIP, which compare pictures with texts."""
PICTURED = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "attn.q_proj": "self_attn.q_proj",
    "attn.k_proj": "self_attn.k_proj",
    "attn.v_proj": "self_attn.v_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
SEEING = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre": "pre_layrnorm",
    "ln_post": "post_layernorm",
}
READING = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final": "final_layer_norm",
}


def pictured(key: str) -> str:
    """A key of Stable Diffusion's autoencoder as diffusers has it."""
    words = key.removeprefix(FIRST_STAGE).split(".")
    if words[1:2] == ["mid"] and len(words) > 3:
        kind, rest = words[2], words[3:]
        if kind == "attn_1":
            return ".".join([words[0], "mid_block.attentions.0", PICTURED.get(rest[0], rest[0]), *rest[1:]])
        return ".".join([words[0], "mid_block.resnets", str(int(kind == "block_2")), *rest])
    if words[1:2] in (["down"], ["up"]) and len(words) > 4:
        way, level, kind, rest = words[1], words[2], words[3], words[4:]
        level = str(3 - int(level)) if way == "up" and level.isdecimal() else level
        inner = [f"{way}samplers", "0", *rest] if kind == f"{way}sample" else ["resnets", *rest]
        return ".".join([words[0], f"{way}_blocks", level, *("conv_shortcut" if word == "nin_shortcut" else word for word in inner)])
    if words[1:2] == ["norm_out"]:
        words[1] = "conv_norm_out"
    return ".".join(words)


def seeing(key: str) -> str:
    """A key of open_clip's image encoder as transformers has it."""
    bare = key.removeprefix(VISUAL)
    return "visual_projection.weight" if bare == "proj" else "vision_model." + _tower(bare, SEEING)


def reading(key: str) -> str:
    """A key of open_clip's text encoder as transformers has it."""
    return _tower(key, READING)


def _tower(key: str, named: Mapping[str, str]) -> str:
    if key in named:
        return named[key]
    words = key.split(".")
    if key.startswith("transformer.resblocks.") and len(words) > 4:
        name, kind = ".".join(words[3:-1]), words[-1]
        return ".".join(["encoder.layers", words[2], LAYER.get(name, name), kind])
    name, _, kind = key.rpartition(".")
    return f"{named.get(name, name)}.{kind}"


def flattened(held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An autoencoder's tensors, the 1 x 1 convolutions of its attention as the matrices that diffusers has."""
    return {key: value.flatten(1) if ".attn_1." in key and value.ndim == 4 and value.shape[2:] == (1, 1) else value for key, value in held.items()}


def parted(held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CLIP's tensors, joint projections as three, the last one turned as transformers has it."""
    made: dict[str, Tensor] = {}
    for key, value in held.items():
        head, joint, kind = key.partition("attn.in_proj_")
        if joint and value.ndim in (1, 2) and value.shape[0] % 3 == 0:
            made |= {f"{head}attn.{name}_proj.{kind}": part for name, part in zip("qkv", value.chunk(3), strict=True)}
        else:
            made[key] = value.T if key == f"{VISUAL}proj" and value.ndim == 2 else value
    return made


DENOISER = Table(("unianimate_16f_32f_non_ema_223000",), "denoiser", same, system=SYSTEM)
AUTOENCODER = Table(("v2-1_512-ema-pruned",), "autoencoder", pictured, system="Stable Diffusion 2.1", option="--vae")
IMAGE = Table(("open_clip_pytorch_model", "open_clip_model"), "image", seeing, system="OpenCLIP ViT-H/14", option="--clip")
TEXT = Table(IMAGE.stems, "empty", reading, system=IMAGE.system, option=IMAGE.option)

__all__ = [
    "AUTOENCODER",
    "DENOISER",
    "FIRST_STAGE",
    "IMAGE",
    "MADE_FOR",
    "PUBLISHED_STEPS",
    "SYSTEM",
    "TEXT",
    "UNUSED",
    "VISUAL",
    "flattened",
    "parted",
    "pictured",
    "reading",
    "seeing",
]
