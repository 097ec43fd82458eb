"""MuseTalk (Zhang et al., 2024): a face's lower half painted anew in one step of a Stable Diffusion UNet, from latents and sound tokens.

out = unet([z of the face with a black lower half, z of the whole face], t = 0, tokens): no noise, no scheduler; the answer is the latents of
the result. z = 0.18215 (mean + deviation * noise) of an AutoencoderKL, of pixels on -1..1. Tokens: all five states of whisper-tiny's encoder
(what goes into its first layer, what comes out of the others, the last one normalised), 50 steps a second, the ten steps from 80 ms before
the frame on, in the order of time and then of depth, plus sinusoids.

Of sound that goes on, a frame's tokens are found by the rule of `engine.drivers.whisper`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from engine.drivers.resample import RATE
from engine.drivers.whisper import AFTER, BANDS, BEFORE, LEFT, PAST, PER_SECOND, POSITIONS, REACH, RIGHT, STEP, Encoder, log_mel, span
from engine.generators.lipsync.sizes import MuseTalkSize
from engine.types import FloatArray

STATES = 5
TOKENS = (BEFORE + AFTER) * STATES
SCALE = 0.18215
"""Of latents, as Stable Diffusion has it."""


# -- sound ------------------------------------------------------------------------------------------------------------------


def clip_windows(states: Tensor, *, seconds: float, fps: int) -> Tensor:
    """The published rule for a whole file of `seconds`: states [T, 5, C] -> tokens [N, 50, C] of every frame, zeros beyond the file's ends."""
    states = states[: math.floor(seconds * PER_SECOND)]
    pad = math.ceil(PER_SECOND / fps)
    padded = torch.cat([states.new_zeros(2 * pad, *states.shape[1:]), states, states.new_zeros(6 * pad, *states.shape[1:])])
    starts = [math.floor(i * PER_SECOND / fps) for i in range(math.floor(seconds * fps))]
    return torch.stack([padded[start : start + BEFORE + AFTER].flatten(0, 1) for start in starts])


def heard(pcm: FloatArray, *, positions: int = POSITIONS) -> FloatArray:
    """The samples of a `span` -> [80, 2 positions], for `Listen`."""
    return log_mel(pcm, positions=positions)


class Listener(Encoder):
    """Whisper's encoder."""

    def __init__(self, size: MuseTalkSize) -> None:
        super().__init__(width=size.width, layers=size.listener_layers, heads=size.listener_heads, positions=size.positions)

    def forward(self, mel: Tensor) -> Tensor:
        """[N, 80, 2 T] -> all states [N, T, 5, C], the last one normalised."""
        *states, last = self.states(mel)
        return torch.stack([*states, self.model.layer_norm(last)], 2)


# -- networks ---------------------------------------------------------------------------------------------------------------


def sinusoids(count: int, width: int) -> Tensor:
    """[count, width]: sines on even, cosines on odd channels, wavelengths from 2 pi to 10000 * 2 pi."""
    rate = torch.exp(torch.arange(0, width, 2).float() * (-math.log(10_000.0) / width))
    angle = torch.arange(count).float()[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], 2).flatten(1)


def unet_config(size: MuseTalkSize) -> dict[str, Any]:
    """For diffusers' UNet2DConditionModel; what a published musetalk.json must say, too."""
    attention = len(size.unet) - 1
    return {
        "in_channels": 8,
        "out_channels": 4,
        "block_out_channels": size.unet,
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D",) * attention + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * attention,
        "cross_attention_dim": size.width,
        "attention_head_dim": size.unet_heads,  # of this class, by mistake: the number of heads
        "norm_num_groups": size.unet_groups,
        "norm_eps": 1e-5,
        "act_fn": "silu",
        "center_input_sample": False,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "downsample_padding": 1,
        "mid_block_scale_factor": 1,
    }


def vae_config(size: MuseTalkSize) -> dict[str, Any]:
    """For diffusers' AutoencoderKL; what the autoencoder's config.json must say, too."""
    count = len(size.vae)
    return {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "block_out_channels": size.vae,
        "layers_per_block": size.vae_layers,
        "norm_num_groups": size.vae_groups,
        "act_fn": "silu",
        "down_block_types": ("DownEncoderBlock2D",) * count,
        "up_block_types": ("UpDecoderBlock2D",) * count,
        "scaling_factor": SCALE,
    }


class Painter(nn.Module):
    """diffusers' UNet, its keys the published ones."""

    def __init__(self, size: MuseTalkSize) -> None:
        super().__init__()
        from diffusers import UNet2DConditionModel

        self.model = UNet2DConditionModel(**unet_config(size), sample_size=64)

    def forward(self, latents: Tensor, tokens: Tensor) -> Tensor:
        """[N, 8, h, w], [N, 50, C] with their sinusoids -> latents of the result [N, 4, h, w]."""
        step = torch.zeros(1, dtype=torch.int64, device=latents.device)
        made: Tensor = self.model(latents, step, encoder_hidden_states=tokens, return_dict=False)[0]
        return made


class Autoencoder(nn.Module):
    """diffusers' AutoencoderKL between pixels and latents."""

    def __init__(self, size: MuseTalkSize) -> None:
        super().__init__()
        from diffusers import AutoencoderKL

        self.model = AutoencoderKL(**vae_config(size), sample_size=size.side)

    def encode(self, face: Tensor, noise: Tensor) -> Tensor:
        """face uint8 [N, S, S, 3] RGB, noise [N, 8, s, s] -> latents [N, 8, s, s]: the face with a black lower half, then the whole face."""
        kind = self.model.quant_conv.weight.dtype
        whole = face.permute(0, 3, 1, 2).float() / 255.0
        half = whole.shape[2] // 2
        upper = torch.cat((whole[:, :, :half], torch.zeros_like(whole[:, :, half:])), 2)
        pictures = ((torch.cat((upper, whole)) - 0.5) / 0.5).to(kind)
        found = self.model.encode(pictures).latent_dist
        drawn = torch.cat(noise.chunk(2, 1)).to(kind)
        z = SCALE * (found.mean + found.std * drawn)
        return torch.cat(z.chunk(2), 1)

    def decode(self, latents: Tensor) -> Tensor:
        """[N, 4, s, s] -> float32 [N, S, S, 3] RGB 0..255"""
        picture = self.model.decode(latents / SCALE, return_dict=False)[0].float()
        return (picture / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1) * 255.0


class MuseTalk(nn.Module):
    """Everything that has weights."""

    def __init__(self, size: MuseTalkSize) -> None:
        super().__init__()
        self.size = size
        self.unet, self.autoencoder, self.listener = Painter(size), Autoencoder(size), Listener(size)


class Encode(nn.Module):
    """Once a face: `Autoencoder.encode`, latents in full precision."""

    def __init__(self, networks: MuseTalk) -> None:
        super().__init__()
        self.autoencoder = networks.autoencoder

    def forward(self, face: Tensor, noise: Tensor) -> Tensor:
        """As `Autoencoder.encode`."""
        return self.autoencoder.encode(face, noise).float()


class Listen(nn.Module):
    """Once a frame: the states that it reads."""

    def __init__(self, networks: MuseTalk) -> None:
        super().__init__()
        self.listener = networks.listener

    def forward(self, mel: Tensor) -> Tensor:
        """[N, 80, 2 T] of `heard` -> float32 [N, 50, C], without sinusoids."""
        states = self.listener(mel)[:, LEFT - BEFORE : LEFT + AFTER]
        return states.flatten(1, 2).float()


class Live(nn.Module):
    """Once a frame: UNet and decoder."""

    def __init__(self, networks: MuseTalk) -> None:
        super().__init__()
        self.unet, self.autoencoder = networks.unet, networks.autoencoder
        self.register_buffer("sinusoids", sinusoids(TOKENS, networks.size.width), persistent=False)

    def forward(self, latents: Tensor, tokens: Tensor) -> Tensor:
        """latents [N, 8, s, s], tokens [N, 50, C] without sinusoids -> float32 [N, S, S, 3] RGB 0..255"""
        kind = self.unet.model.conv_in.weight.dtype
        return self.autoencoder.decode(self.unet(latents.to(kind), (tokens + self.sinusoids).to(kind)))


__all__ = [
    "BANDS",
    "AFTER",
    "BEFORE",
    "LEFT",
    "PAST",
    "POSITIONS",
    "RATE",
    "REACH",
    "RIGHT",
    "STEP",
    "TOKENS",
    "Encode",
    "Listen",
    "Listener",
    "Live",
    "MuseTalk",
    "clip_windows",
    "heard",
    "log_mel",
    "sinusoids",
    "span",
    "unet_config",
    "vae_config",
]
