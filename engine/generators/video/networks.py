"""All of UniAnimate's networks in one place, what they make of a portrait, and their weights on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.generators.video import weights
from engine.generators.video.pictures import CLIP_DEVIATION, CLIP_MEAN, CLIP_SIZE, SCALE, image_encoder, resized, shown, unit
from engine.generators.video.presets import TINY, UniAnimate, preset
from engine.generators.video.sampling import SEED, Given
from engine.generators.video.unianimate import VideoUNet
from engine.generators.video.weights import UNTRAINED, Plan
from engine.types import UInt8Array

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
        self.autoencoder, self.image = autoencoder(made), image_encoder(made.context, narrow=made.name == TINY.name)
        self.origin = UNTRAINED  # sha256 of the weights' manifest, once there are any
        self.taught: Plan | None = None  # how they run live, where they were taught to
        self.frames = made.frames  # of a window, as they were taught

    @torch.no_grad()
    def prepare(self, portrait: UInt8Array, *, seed: int = SEED) -> Portrait:
        """Portrait uint8 [H, W, 3] of any size -> what a render needs of it.

        Squashed to the network's size, as published. The latents are drawn from what the autoencoder answers, not its mean: seeded.
        """
        picture = resized(portrait, self.made.size)
        weight = next(self.autoencoder.parameters())
        found = self.autoencoder.encode(unit(picture)[None].to(weight)).latent_dist
        noise = torch.randn(found.mean.shape, generator=torch.Generator().manual_seed(seed)).to(weight)
        latents = (found.mean + found.std * noise)[0] * SCALE
        seen = torch.from_numpy(resized(portrait, (CLIP_SIZE, CLIP_SIZE)).copy()).permute(2, 0, 1).float() / 255
        mean, deviation = (torch.tensor(x).view(3, 1, 1) for x in (CLIP_MEAN, CLIP_DEVIATION))
        eye = next(self.image.parameters())
        embedding: Tensor = self.image(((seen - mean) / deviation)[None].to(eye)).image_embeds[0]
        return Portrait(picture, latents, embedding)

    def given(self, portrait: Portrait, pose: UInt8Array) -> Given:
        """A portrait and the picture of its pose, uint8 [H, W, 3] of the network's size -> what every call of the denoiser knows of them, with
        gradients to what learns."""
        weight = next(self.denoiser.parameters())
        latents, empty = portrait.latents.to(weight), self.empty.tokens.to(weight)
        picture = torch.from_numpy(pose.copy()).permute(2, 0, 1)[None].to(weight) / 255
        guided, unguided = self.denoiser.tokens(empty, portrait.image[None].to(weight)), self.denoiser.tokens(empty, None)
        return Given(portrait.latents, guided, unguided, self.denoiser.reference(latents[None], picture))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> UInt8Array:
        """Clean latents [F, C, h, w] -> frames uint8 [F, H, W, 3]."""
        return np.concatenate([shown(self.seen(few)) for few in latents.split(DECODED)])

    def seen(self, latents: Tensor) -> Tensor:
        """The same as pictures [F, 3, H, W], about -1..1."""
        weight = next(self.autoencoder.decoder.parameters())
        picture: Tensor = self.autoencoder.decode(latents.to(weight) / SCALE).sample
        return picture

    def parts(self) -> dict[str, nn.Module]:
        """The networks by the name of their file."""
        return dict(self.named_children())


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
    networks.origin, networks.taught, networks.frames = manifest.own, manifest.taught, manifest.window or networks.frames
    networks.eval().requires_grad_(False)
    return networks


__all__ = [
    "UNTRAINED",
    "EmptyPrompt",
    "Networks",
    "Portrait",
    "autoencoder",
    "build",
    "empty",
    "load",
    "save",
]
