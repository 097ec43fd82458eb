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
    """TAESD's layout: encoder and decoder of a million parameters each, distilled from Stable Diffusion's.

    Its latents are the scaled ones, as the denoiser has them, so nothing is multiplied at either end. `latent_magnitude` and `latent_shift` of
    its config.json only say how latents would be kept as bytes.
    """

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


class TinyDecoded(nn.Module):
    """Portraits through Stable Diffusion's own encoder, once, as the weights were trained; frames through a tiny decoder, live.

    Takes the two over: what neither needs any more is let go. Latents are scaled, as `Tiny` has them.
    """

    def __init__(self, kl: KL, tiny: Tiny, *, scale: float) -> None:
        super().__init__()
        self.kl, self.tiny, self.scale = kl, tiny, scale
        kl.model.decoder, kl.model.post_quant_conv, tiny.model.encoder = nn.Identity(), nn.Identity(), nn.Identity()

    def encode(self, picture: Tensor) -> Tensor:
        """[N, 3, H, W] -1..1 -> [N, 4, H / 8, W / 8]"""
        return self.kl.encode(picture) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """[N, 4, h, w] -> [N, 3, 8 h, 8 w] about -1..1"""
        return self.tiny.decode(latents)


Autoencoder = FoldedPixels | KL | Tiny | TinyDecoded


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


__all__ = ["KL", "Autoencoder", "FoldedPixels", "Tiny", "TinyDecoded", "autoencoder", "to_pixels", "to_unit"]
