"""Published checkpoint keys and ours: one table a file, and what is left out with the reason.

Our networks carry the published names on purpose, so most tables say "the same"; saying it is what makes a missing key an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

SYSTEM = "Moore-AnimateAnyone"
LATER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""How diffusers named an autoencoder's attention until 2023, and how it does now."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Keys that are left out, because what they hold is made again, or nobody needs it; a file that holds something else there is refused."""

    suffix: str  # of the keys
    again: Literal["sinusoids", "count", "nothing"]  # what they hold
    reason: str  # {} stands for the number of positions
    prefix: str = ""  # of the keys
    any_length: bool = False  # whether sinusoids may be of another number of positions
    among: Callable[[str], bool] = lambda key: True  # which of these keys

    def takes(self, key: str) -> bool:
        """Whether a published key is one of them."""
        return key.startswith(self.prefix) and key.endswith(self.suffix) and self.among(key)


@dataclass(frozen=True, slots=True)
class Table:
    """How one published file becomes (a part of) one of our networks."""

    stems: tuple[str, ...]  # names the file goes by, without their ending
    part: str  # our network
    ours: Callable[[str], str]  # published key -> our key, without the prefix
    fills: Callable[[str], bool] = lambda key: True  # which keys of ours are to come from this file
    takes: Callable[[str], bool] = lambda key: True  # which published keys are its; others of the file are another table's
    prefix: str = ""  # of all of our keys
    drops: tuple[Drop, ...] = ()
    marks: tuple[str, ...] = ()  # published keys that must be there though they are left out: they tell the file from another system's
    folder: str = ""  # the folder inside the published one that the file usually lies in
    config: tuple[str, ...] = ()  # fields of the folder's config.json that must be as ours are: shapes do not tell them
    system: str = SYSTEM  # who published it
    option: str = ""  # of the command line, that names the file's folder where it lies elsewhere
    read: Callable[[Path], Mapping[str, Any]] | None = None  # how its file is opened, where that takes more than usual


def same(key: str) -> str:
    """Ours is the published key."""
    return key


def temporal(key: str) -> bool:
    """Whether a key of the denoiser belongs to a motion module."""
    return ".motion_modules." in key


def spatial(key: str) -> bool:
    """Whether it belongs to the Stable Diffusion part."""
    return not temporal(key)


def later(key: str) -> str:
    """An autoencoder's key with the names of today: `x.attentions.0.query.weight` -> `x.attentions.0.to_q.weight`."""
    head, attention, tail = key.partition(".attentions.")
    if not attention:
        return key
    number, _, rest = tail.partition(".")
    name, _, kind = rest.rpartition(".")
    return f"{head}.attentions.{number}.{LATER.get(name, name)}.{kind}"


DENOISER = Table(("denoising_unet",), "denoiser", same, spatial)
MOTION = Table(
    ("motion_module",),
    "denoiser",
    same,
    temporal,
    drops=(Drop(".pos_encoder.pe", "sinusoids", "the sinusoids of {} positions, which are made again"),),
)
REFERENCE = Table(("reference_unet",), "reference", same)
GUIDER = Table(("pose_guider",), "guider", same)
AUTOENCODER = Table(
    ("diffusion_pytorch_model",),
    "autoencoder",
    later,
    prefix="model.",
    folder="sd-vae-ft-mse",
    config=("act_fn", "block_out_channels", "in_channels", "latent_channels", "layers_per_block", "norm_num_groups", "scaling_factor"),
    option="--vae",
)
IMAGE = Table(
    ("model", "pytorch_model"),
    "image",
    same,
    prefix="model.",
    drops=(Drop(".position_ids", "count", "0, 1, 2 and so on, which is made again"),),
    folder="image_encoder",
    config=("hidden_act", "hidden_size", "image_size", "layer_norm_eps", "num_attention_heads", "num_hidden_layers", "patch_size", "projection_dim"),
    option="--image-encoder",
)
ANIMATE_ANYONE = (GUIDER, DENOISER, MOTION, REFERENCE, AUTOENCODER, IMAGE)
"""Every file that is needed; Stable Diffusion's own UNet is not: the denoising file holds all that it would give."""
TINY = Table(
    ("diffusion_pytorch_model", "diffusion_pytorch_model.fp16"),
    "tiny",
    same,
    prefix="model.",
    folder="taesd",
    # Not latent_magnitude and latent_shift: they say how latents are kept as bytes, which nothing here does.
    config=(
        *("act_fn", "in_channels", "out_channels", "latent_channels", "scaling_factor", "shift_factor"),
        *("encoder_block_out_channels", "decoder_block_out_channels", "num_encoder_blocks", "num_decoder_blocks"),
        *("upsample_fn", "upsampling_scaling_factor"),
    ),
    system="TAESD",
    option="--tiny-vae",
)
"""A tiny autoencoder for Stable Diffusion's latents (github.com/madebyollin/taesd) in diffusers' format; only where it is asked for.

The one for SDXL, taesdxl, has the same keys, shapes and config.json: nothing tells it apart but the picture.
"""

MOVED = {
    ".attn1.": ".attention_blocks.0.",
    ".attn2.": ".attention_blocks.1.",
    ".norm1.": ".norms.0.",
    ".norm2.": ".norms.1.",
    ".norm3.": ".ff_norm.",
}
"""How diffusers names what is in a motion module, and how the published files do."""


def published(key: str) -> str:
    """A denoiser's key with the published names of motion modules, which diffusers has others for; every other key as it is."""
    head, motion, tail = key.partition(".motion_modules.")
    number, _, rest = tail.partition(".")
    if not motion or rest.startswith("temporal_transformer."):
        return key
    for theirs, ours in MOVED.items():
        rest = rest.replace(theirs, ours)
    return f"{head}{motion}{number}.temporal_transformer.{rest}"


ADAPTED: dict[str, Table] = {
    "unet": replace(DENOISER, ours=published),
    "denoising_unet": replace(DENOISER, ours=published),
    "denoiser": replace(DENOISER, ours=published),
    "motion_module": MOTION,
    "reference_unet": REFERENCE,
    "reference": REFERENCE,
    "pose_guider": GUIDER,
    "guider": GUIDER,
    "vae": AUTOENCODER,
    "autoencoder": AUTOENCODER,
    "image_encoder": IMAGE,
    "image": IMAGE,
    "speech": Table((), "speech", same),
}
"""What the keys of a LoRA begin with, the names of published parts and our own, and the table of that part; without such a word they are the
denoiser's."""
ELSEWHERE = {
    "text_encoder": "the text encoder",
    "text_encoder_2": "the text encoder",
    "text_encoder_3": "the text encoder",
    "text_model": "the text encoder",
    "te": "the text encoder",
    "te1": "the text encoder",
    "te2": "the text encoder",
    "te3": "the text encoder",
}
"""Likewise, of parts that generators of this kind have not: what is for them is left out."""

__all__ = [
    "ADAPTED",
    "ANIMATE_ANYONE",
    "AUTOENCODER",
    "DENOISER",
    "ELSEWHERE",
    "GUIDER",
    "IMAGE",
    "MOTION",
    "REFERENCE",
    "SYSTEM",
    "TINY",
    "Drop",
    "Table",
    "later",
    "published",
]
