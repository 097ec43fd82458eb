"""All of UniAnimate's networks in one place, what they make of a portrait, and their weights on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from engine.generators.video import weights
from engine.generators.video.presets import TINY, UniAnimate, preset
from engine.generators.video.sampling import SEED, Given
from engine.generators.video.unianimate import VideoUNet
from engine.generators.video.vividpose_presets import VividPose
from engine.generators.video.weights import UNTRAINED
from engine.types import AvatarError, MissingPart, UInt8Array

SCALE = 0.18215
"""Latents are multiplied by this, so that their variance is about 1."""
CLIP_SIZE = 224
CLIP_MEAN, CLIP_DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
DECODED = 2
"""Frames that are decoded at a time."""


@dataclass(frozen=True, slots=True)
class Portrait:
    """What is computed once for a portrait."""

    picture: UInt8Array  # [H, W, 3], of the network's size
    latents: Tensor  # [C, h, w], scaled
    image: Tensor  # [D] CLIP's embedding


class EmptyPrompt(nn.Module):
    """The text encoder's answer to an empty prompt, which is all that is ever asked of it."""

    def __init__(self, made: UniAnimate) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.zeros(made.text, made.context))


class Networks(nn.Module):
    """Denoiser, autoencoder (that of Stable Diffusion 2.1), CLIP's image encoder (ViT-H/14) and the empty prompt."""

    def __init__(self, made: UniAnimate) -> None:
        super().__init__()
        self.made = made
        self.denoiser, self.empty = VideoUNet(made), EmptyPrompt(made)
        self.autoencoder, self.image = autoencoder(made), image_encoder(made)
        self.origin = UNTRAINED  # sha256 of the weights' manifest, once there are any

    @torch.no_grad()
    def prepare(self, portrait: UInt8Array, *, seed: int = SEED) -> Portrait:
        """Portrait uint8 [H, W, 3] of any size -> what a render needs of it.

        Squashed to the network's size, as published. The latents are drawn from what the autoencoder answers, not its mean: seeded.
        """
        picture = resized(portrait, self.made.size)
        weight = next(self.autoencoder.parameters())
        found = self.autoencoder.encode(_unit(picture)[None].to(weight)).latent_dist
        noise = torch.randn(found.mean.shape, generator=torch.Generator().manual_seed(seed)).to(weight)
        latents = (found.mean + found.std * noise)[0] * SCALE
        seen = torch.from_numpy(resized(portrait, (CLIP_SIZE, CLIP_SIZE)).copy()).permute(2, 0, 1).float() / 255
        mean, deviation = (torch.tensor(x).view(3, 1, 1) for x in (CLIP_MEAN, CLIP_DEVIATION))
        eye = next(self.image.parameters())
        embedding: Tensor = self.image(((seen - mean) / deviation)[None].to(eye)).image_embeds[0]
        return Portrait(picture, latents, embedding)

    @torch.no_grad()
    def given(self, portrait: Portrait, pose: UInt8Array) -> Given:
        """A portrait and the picture of its pose, uint8 [H, W, 3] of the network's size -> what every call of the denoiser knows of them."""
        weight = next(self.denoiser.parameters())
        latents, empty = portrait.latents.to(weight), self.empty.tokens.to(weight)
        picture = torch.from_numpy(pose.copy()).permute(2, 0, 1)[None].to(weight) / 255
        guided, unguided = self.denoiser.tokens(empty, portrait.image[None].to(weight)), self.denoiser.tokens(empty, None)
        return Given(portrait.latents, guided, unguided, self.denoiser.reference(latents[None], picture))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> UInt8Array:
        """Clean latents [F, C, h, w] -> frames uint8 [F, H, W, 3]."""
        weight = next(self.autoencoder.parameters())
        frames = []
        for few in latents.split(DECODED):
            picture = self.autoencoder.decode(few.to(weight) / SCALE).sample.float()
            frames.append(((picture + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())
        return np.concatenate(frames)

    def parts(self) -> dict[str, nn.Module]:
        """The networks by the name of their file."""
        return dict(self.named_children())


def resized(picture: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    """[H, W, 3] squashed to `size` (H, W), as Pillow's bilinear filter does, which sees all pixels of a larger picture."""
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise AvatarError(f"A picture has 3 channels of bytes, not {list(picture.shape)} {picture.dtype}; give it as RGB.")
    if picture.shape[:2] == size:
        return picture
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _unit(picture: UInt8Array) -> Tensor:
    """uint8 [H, W, 3] -> [3, H, W] -1..1"""
    return torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 127.5 - 1.0


def autoencoder(made: UniAnimate) -> Any:
    """Stable Diffusion's, or a narrow one for tests."""
    from diffusers import AutoencoderKL

    narrow = made.name == TINY.name
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8) if narrow else (128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1 if narrow else 2,
        latent_channels=made.latent,
        norm_num_groups=4 if narrow else 32,
    )


def image_encoder(made: UniAnimate | VividPose) -> Any:
    """CLIP's ViT-H/14 with its projection, or a small one for tests."""
    try:
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
    except ImportError as error:
        raise MissingPart(f"The image encoder needs transformers ({error}); run `make torch`, or pip install 'avatar-engine[torch]'.") from error
    narrow = made.name.startswith("tiny_")
    sizes = (16, 32, 2, 2, 56) if narrow else (1280, 5120, 32, 16, 14)
    width, inner, layers, heads, patch = sizes
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            patch_size=patch,
            image_size=CLIP_SIZE,
            projection_dim=made.context,
            hidden_act="gelu",
        )
    )


def empty(made: UniAnimate) -> Networks:
    """Networks whose parameters have shapes but no values."""
    with torch.device("meta"):
        return Networks(made)


def build(made: UniAnimate, *, seed: int = 0) -> Networks:
    """Networks with seeded random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = Networks(made)
    networks.eval().requires_grad_(False)
    return networks


def save(networks: Networks, folder: Path, *, origin: dict[str, str]) -> None:
    """One .safetensors a network, and the manifest last."""
    weights.save(networks.parts(), folder, preset=networks.made.name, origin=origin)


def load(folder: Path, *, made: UniAnimate | None = None) -> Networks:
    """The networks of a folder that `save` or the importer wrote. `made`: another size of the same weights. Raises AvatarError for others."""
    manifest = weights.read_manifest(folder)
    networks = empty(made or preset(manifest.preset))
    weights.fill(networks.parts(), folder, manifest)
    weights.count_patches(networks.image)
    networks.origin = manifest.own
    networks.eval().requires_grad_(False)
    return networks


__all__ = [
    "SCALE",
    "UNTRAINED",
    "EmptyPrompt",
    "Networks",
    "Portrait",
    "autoencoder",
    "build",
    "empty",
    "image_encoder",
    "load",
    "resized",
    "save",
]
