"""Sound as the layers of wav2vec 2.0 (Baevski et al. 2020, arXiv 2006.11477), a row for every frame, for whatever is moved by speech.

The network looks both ways over all it is given, so sound that goes on needs a rule. What a frame hears is what the published code would find
for it in a file that holds LEFT before the frame and RIGHT from it on, and nothing else: it depends on no other frame, chunk or session.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.drivers.resample import RATE
from engine.types import FloatArray

AROUND = 2
"""Frames before and after its own whose layers a frame hears."""
LEFT, RIGHT = 50, AROUND + 1
"""Frames of sound before and from a frame's own on that what it hears is found in."""
NORMAL = 1e-7  # added to the variance of the sound, as published


class Encoder(nn.Module):
    """wav2vec2-base, in transformers' layout under `model.`."""

    def __init__(self, *, width: int, layers: int, heads: int, convolutions: int) -> None:
        super().__init__()
        from transformers import Wav2Vec2Config, Wav2Vec2Model

        self.model = Wav2Vec2Model(
            Wav2Vec2Config(
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                intermediate_size=4 * width,
                conv_dim=(convolutions,) * 7,
                num_conv_pos_embedding_groups=math.gcd(16, width),
                mask_time_prob=0.0,  # of training; without it there is no tensor for what is masked
                mask_feature_prob=0.0,
                attn_implementation="sdpa",
            )
        )

    def layers(self, pcm: Tensor, frames: int) -> Tensor:
        """Sound [N] of zero mean and unit variance -> the output of every layer, [frames, layers, C]."""
        model = self.model
        weight = model.feature_projection.projection.weight
        read = model.feature_extractor(pcm[None].to(weight))
        read = nn.functional.interpolate(read.float(), size=frames, align_corners=True, mode="linear").to(weight).transpose(1, 2)
        x, _ = model.feature_projection(read)
        x = model.encoder.layer_norm(x + model.encoder.pos_conv_embed(x))
        found = []
        for layer in model.encoder.layers:
            made: Any = layer(x, attention_mask=None)
            x = made[0] if isinstance(made, tuple) else made
            found.append(x[0])
        return torch.stack(found, 1)


def clip_layers(encoder: Encoder, pcm: FloatArray, *, fps: int, clip: int = 1) -> Tensor:
    """The rule of Hallo for a whole sound [N]: [F, layers, C] of every frame. `clip`: as many frames more as fill a clip of so many."""
    frames = math.ceil(len(pcm) / RATE * fps)
    sound = torch.from_numpy((pcm - pcm.mean()) / np.sqrt(pcm.var() + NORMAL))
    more = -frames % clip
    return encoder.layers(nn.functional.pad(sound, (0, more * (RATE // fps))), frames + more)


def frame_layers(layers: Tensor) -> Tensor:
    """[F, layers, C] -> [F, 5 layers, C] of every frame and its neighbours, in the order of time, the first or last one again beyond the ends."""
    index = (torch.arange(len(layers))[:, None] + torch.arange(-AROUND, AROUND + 1)).clamp(0, len(layers) - 1)
    return layers[index.to(layers.device)].flatten(1, 2)


def span(time: float, *, fps: int) -> tuple[int, int]:
    """First and last (exclusive) sample that what the frame at `time` s of the sound hears is found in."""
    first = round((time - LEFT / fps) * RATE)
    return first, first + (LEFT + RIGHT) * RATE // fps


__all__ = ["AROUND", "LEFT", "RIGHT", "Encoder", "clip_layers", "frame_layers", "span"]
