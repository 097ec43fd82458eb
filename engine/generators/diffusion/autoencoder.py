"""Pictures to what the denoiser works on and back: folded pixels, or diffusers' KL and tiny autoencoders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.generators.diffusion.presets import Preset


class FoldedPixels(nn.Module):
    """No autoencoder: every patch of pixels becomes one cell (space-to-depth), without loss."""

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def encode(self, picture: Tensor) -> Tensor:
        """[N, 3, H, W] -1..1 -> [N, 3 p², H / p, W / p]"""
        return functional.pixel_unshuffle(picture, self.patch)

    def decode(self, latents: Tensor) -> Tensor:
        """The inverse."""
        return functional.pixel_shuffle(latents, self.patch)


class KL(nn.Module):
    """Stable Diffusion's variational autoencoder. Its sampling is left out: the mean is what reference latents are."""

    def __init__(self, model: Any = None) -> None:
        super().__init__()
        from diffusers import AutoencoderKL

        self.model = model or AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
        )

    def encode(self, picture: Tensor) -> Tensor:
        """[N, 3, H, W] -1..1 -> [N, 4, H / 8, W / 8]"""
        mean: Tensor = self.model.encode(picture).latent_dist.mean
        return mean

    def decode(self, latents: Tensor) -> Tensor:
        """[N, 4, h, w] -> [N, 3, 8 h, 8 w] about -1..1"""
        made: Tensor = self.model.decode(latents).sample
        return made


class Tiny(nn.Module):
    """TAESD's layout: a decoder of a million parameters for latents of Stable Diffusion (scaled, as it expects them)."""

    def __init__(self, model: Any = None) -> None:
        super().__init__()
        from diffusers import AutoencoderTiny

        self.model = model or AutoencoderTiny()

    def encode(self, picture: Tensor) -> Tensor:
        """[N, 3, H, W] -1..1 -> [N, 4, H / 8, W / 8]"""
        made: Tensor = self.model.encode(picture).latents
        return made

    def decode(self, latents: Tensor) -> Tensor:
        """[N, 4, h, w] -> [N, 3, 8 h, 8 w] about -1..1"""
        made: Tensor = self.model.decode(latents).sample
        return made


Autoencoder = FoldedPixels | KL | Tiny


def autoencoder(made: Preset) -> Autoencoder:
    """The one of a preset."""
    if made.latent == "pixel":
        return FoldedPixels(made.patch)
    return KL() if made.latent == "kl" else Tiny()


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] -> [N, 3, H, W] -1..1"""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def to_pixels(picture: Tensor) -> Tensor:
    """[N, 3, H, W] -1..1 -> uint8 [N, H, W, 3]"""
    return ((picture.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


__all__ = ["KL", "Autoencoder", "FoldedPixels", "Tiny", "autoencoder", "to_pixels", "to_unit"]
