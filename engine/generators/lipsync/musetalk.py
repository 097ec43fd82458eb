"""MuseTalk (Zhang et al., 2024): a face's lower half painted anew in one step of a Stable Diffusion UNet, from latents and sound tokens.

out = unet([z of the face with a black lower half, z of the whole face], t = 0, tokens): no noise, no scheduler; the answer is the latents of
the result. z = 0.18215 (mean + deviation * noise) of an AutoencoderKL, of pixels on -1..1. Tokens: all five states of whisper-tiny's encoder
(what goes into its first layer, what comes out of the others, the last one normalised), 50 steps a second, the ten steps from 80 ms before
the frame on, in the order of time and then of depth, plus sinusoids.

The encoder looks both ways over 30 s, so sound that goes on needs a rule. A frame's tokens are those that the published code would find for
it in a file that holds LEFT before the frame and RIGHT after it, and nothing else: they depend on no other frame, on no chunk and no session.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.generators.lipsync.sizes import MuseTalkSize
from engine.types import FloatArray

RATE = 16_000  # Hz
FFT = 400  # samples of a window: 25 ms
HOP = 160  # samples: 10 ms
BANDS = 80
STEP = 2 * HOP  # samples of one of the encoder's steps: 20 ms
PER_SECOND = RATE / STEP
POSITIONS = 1500
"""Steps that the encoder is always given: 30 s, silence where there is no more sound."""
BEFORE, AFTER = 4, 6
"""Steps before a frame's own, and from that on, whose states it reads."""
STATES = 5
TOKENS = (BEFORE + AFTER) * STATES
LEFT, RIGHT = 100, 7
"""Steps of sound before and from a frame's own on that its tokens are found in. RIGHT is all that the last step sees, without attention:
its two convolutions and its window reach 132.5 ms."""
REACH = RIGHT / PER_SECOND
"""s after a frame's time."""
PAST = (LEFT + 1) / PER_SECOND
"""s before it: its step may begin one earlier."""
SCALE = 0.18215
"""Of latents, as Stable Diffusion has it."""
EPSILON = 1e-6
"""Steps by which a time on the grid may miss it by rounding."""
LEAST, RANGE = 1e-10, 8.0  # power; decades under the loudest that count


# -- sound ------------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _tables() -> tuple[FloatArray, FloatArray]:
    """(Hann window [400], mel filters [80, 201])."""
    from librosa.filters import mel

    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FFT) / FFT)
    return hann.astype(np.float32), mel(sr=RATE, n_fft=FFT, n_mels=BANDS)


def log_mel(pcm: FloatArray, *, positions: int = POSITIONS) -> FloatArray:
    """Sound [N] at 16 kHz, at most `positions` steps -> [80, 2 positions] as Whisper is given it: log10 power, floored 8 under the loudest."""
    hann, filters = _tables()
    length = positions * STEP
    # Of the silence that follows only the windows that touch the sound are computed: the others are all the same.
    used = min(length, (len(pcm) // HOP + 3) * HOP)
    padded = np.pad(np.pad(pcm[:length], (0, used - min(len(pcm), length))), (FFT // 2, 0), mode="reflect")
    tail = padded[-FFT // 2 - 1 : -1][::-1] if used == length else np.zeros(FFT // 2, np.float32)
    padded = np.concatenate([padded, tail])
    windows = np.lib.stride_tricks.sliding_window_view(padded, FFT)[::HOP][: used // HOP]
    spectrum = np.fft.rfft(windows * hann, axis=1)
    # einsum and not @: see wav2lip.columns.
    power = np.einsum("tf,bf->bt", (spectrum.real**2 + spectrum.imag**2).astype(np.float32), filters)
    level = np.full((BANDS, 2 * positions), math.log10(LEAST), np.float32)
    level[:, : power.shape[1]] = np.log10(np.maximum(power, LEAST))
    floored: FloatArray = (np.maximum(level, level.max() - RANGE) + 4.0) / 4.0
    return floored


def clip_windows(states: Tensor, *, seconds: float, fps: int) -> Tensor:
    """The published rule for a whole file of `seconds`: states [T, 5, C] -> tokens [N, 50, C] of every frame, zeros beyond the file's ends."""
    states = states[: math.floor(seconds * PER_SECOND)]
    pad = math.ceil(PER_SECOND / fps)
    padded = torch.cat([states.new_zeros(2 * pad, *states.shape[1:]), states, states.new_zeros(6 * pad, *states.shape[1:])])
    starts = [math.floor(i * PER_SECOND / fps) for i in range(math.floor(seconds * fps))]
    return torch.stack([padded[start : start + BEFORE + AFTER].flatten(0, 1) for start in starts])


def span(time: float) -> tuple[int, int]:
    """First and last (exclusive) sample that the tokens of the frame at `time` s of the sound are found in."""
    step = int(np.floor(time * PER_SECOND + EPSILON))
    return (step - LEFT) * STEP, (step + RIGHT) * STEP


def heard(pcm: FloatArray, *, positions: int = POSITIONS) -> FloatArray:
    """The samples of a `span` -> [80, 2 positions], for `Listen`."""
    return log_mel(pcm, positions=positions)


class Listener(nn.Module):
    """Whisper's encoder."""

    def __init__(self, size: MuseTalkSize) -> None:
        super().__init__()
        from transformers import WhisperConfig
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        config = WhisperConfig(
            d_model=size.width,
            encoder_layers=size.listener_layers,
            encoder_attention_heads=size.listener_heads,
            encoder_ffn_dim=4 * size.width,
            num_mel_bins=BANDS,
            max_source_positions=size.positions,
            attn_implementation="sdpa",
        )
        self.model = WhisperEncoder(config)

    def forward(self, mel: Tensor) -> Tensor:
        """[N, 80, 2 T] -> all states [N, T, 5, C]. Not by the encoder's own call, whose notion of the last state has changed with versions."""
        model = self.model
        x = nn.functional.gelu(model.conv1(mel.to(model.conv1.weight.dtype)))
        x = nn.functional.gelu(model.conv2(x)).transpose(1, 2)
        x = x + model.embed_positions.weight[: x.shape[1]]
        states = []
        for layer in model.layers:
            states.append(x)
            made: Any = layer(x, attention_mask=None)
            x = made[0] if isinstance(made, tuple) else made
        return torch.stack([*states, model.layer_norm(x)], 2)


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
    "LEFT",
    "PAST",
    "POSITIONS",
    "RATE",
    "REACH",
    "RIGHT",
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
