"""Sound as the states of Whisper's encoder (Radford et al. 2022, arXiv 2212.04356), 50 steps a second, for whatever is moved by speech.

The encoder looks both ways over 30 s, so sound that goes on needs a rule. A frame's states are those that the published code would find for
it in a file that holds LEFT before the frame and RIGHT after it, and nothing else: they depend on no other frame, on no chunk and no session.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.drivers.resample import RATE
from engine.types import FloatArray

FFT = 400  # samples of a window: 25 ms
HOP = 160  # samples: 10 ms
BANDS = 80
STEP = 2 * HOP  # samples of one of the encoder's steps: 20 ms
PER_SECOND = RATE / STEP
POSITIONS = 1500
"""Steps that the encoder is always given: 30 s."""
BEFORE, AFTER = 4, 6
"""Steps before a frame's own, and from that on, whose states it reads."""
LEFT, RIGHT = 100, 7
"""Steps of sound before and from a frame's own on that its states are found in. RIGHT is all that the last step sees, without attention:
its two convolutions and its window reach 132.5 ms."""
REACH = RIGHT / PER_SECOND
"""s after a frame's time."""
PAST = (LEFT + 1) / PER_SECOND
"""s before it: its step may begin one earlier."""
EPSILON = 1e-6
"""Steps by which a time on the grid may miss it by rounding."""
LEAST, RANGE = 1e-10, 8.0  # power; decades under the loudest that count


@lru_cache(maxsize=1)
def _tables() -> tuple[FloatArray, FloatArray]:
    """(Hann window [400], mel filters [80, 201])."""
    from librosa.filters import mel

    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FFT) / FFT)
    return hann.astype(np.float32), mel(sr=RATE, n_fft=FFT, n_mels=BANDS)


def _power(padded: FloatArray, columns: int) -> FloatArray:
    """Sound with half a window more at both ends -> mel power [80, columns]."""
    hann, filters = _tables()
    windows = np.lib.stride_tricks.sliding_window_view(padded, FFT)[::HOP][:columns]
    spectrum = np.fft.rfft(windows * hann, axis=1)
    # einsum and not @: BLAS would wake its threads for little, and they keep a core busy while they wait for more.
    power: FloatArray = np.einsum("tf,bf->bt", (spectrum.real**2 + spectrum.imag**2).astype(np.float32), filters)
    return power


def _floored(level: FloatArray) -> FloatArray:
    return np.asarray((np.maximum(level, level.max() - RANGE) + 4.0) / 4.0, np.float32)


def log_mel(pcm: FloatArray, *, positions: int = POSITIONS) -> FloatArray:
    """Sound [N] at 16 kHz, at most `positions` steps -> [80, 2 positions] as Whisper is given it: log10 power, floored 8 under the loudest.

    What follows the sound is silence.
    """
    length = positions * STEP
    # Of the silence that follows only the windows that touch the sound are computed: the others are all the same.
    used = min(length, (len(pcm) // HOP + 3) * HOP)
    padded = np.pad(np.pad(pcm[:length], (0, used - min(len(pcm), length))), (FFT // 2, 0), mode="reflect")
    tail = padded[-FFT // 2 - 1 : -1][::-1] if used == length else np.zeros(FFT // 2, np.float32)
    power = _power(np.concatenate([padded, tail]), used // HOP)
    level = np.full((BANDS, 2 * positions), math.log10(LEAST), np.float32)
    level[:, : power.shape[1]] = np.log10(np.maximum(power, LEAST))
    return _floored(level)


def log_mel_alone(pcm: FloatArray) -> FloatArray:
    """Sound [N] of any length -> [80, N // 160]: the same of the sound and nothing after it, floored under the loudest of all of it."""
    power = _power(np.pad(pcm, FFT // 2, mode="reflect"), len(pcm) // HOP)
    return _floored(np.log10(np.maximum(power, LEAST)))


def span(time: float) -> tuple[int, int]:
    """First and last (exclusive) sample that the states of the frame at `time` s of the sound are found in."""
    step = int(np.floor(time * PER_SECOND + EPSILON))
    return (step - LEFT) * STEP, (step + RIGHT) * STEP


class Encoder(nn.Module):
    """Whisper's encoder, in transformers' layout under `model.`."""

    def __init__(self, *, width: int, layers: int, heads: int, positions: int) -> None:
        super().__init__()
        from transformers import WhisperConfig
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        config = WhisperConfig(
            d_model=width,
            encoder_layers=layers,
            encoder_attention_heads=heads,
            encoder_ffn_dim=4 * width,
            num_mel_bins=BANDS,
            max_source_positions=positions,
            attn_implementation="sdpa",
        )
        self.model, self.positions = WhisperEncoder(config), positions

    def states(self, mel: Tensor) -> list[Tensor]:
        """[N, 80, 2 T] -> what goes into the first layer and what comes out of each, [N, T, C] each, none of them normalised.

        Not by the encoder's own call, whose notion of the last state has changed with versions.
        """
        model = self.model
        x = nn.functional.gelu(model.conv1(mel.to(model.conv1.weight.dtype)))
        x = nn.functional.gelu(model.conv2(x)).transpose(1, 2)
        x = x + model.embed_positions.weight[: x.shape[1]]
        states = [x]
        for layer in model.layers:
            made: Any = layer(x, attention_mask=None)
            x = made[0] if isinstance(made, tuple) else made
            states.append(x)
        return states


def clip_states(encoder: Encoder, pcm: FloatArray) -> Tensor:
    """The rule of EchoMimic for a whole sound [N]: raw states [T, S, C] of every 20 ms, found in pieces of 30 s that end with zeros."""
    level, width = torch.from_numpy(log_mel_alone(pcm)), 2 * encoder.positions
    weight = encoder.model.conv1.weight
    found = []
    for start in range(0, level.shape[1], width):
        piece = level[:, start : start + width]
        padded = nn.functional.pad(piece, (0, width - piece.shape[1])).to(weight)
        found.append(torch.stack(encoder.states(padded[None]), 2)[0, : piece.shape[1] // 2])
    return torch.cat(found)


def frame_states(states: Tensor, *, fps: int, frames: int | None = None) -> Tensor:
    """States [T, S, C] -> [F, 10 S, C] of every frame: ten steps from four before its own, the first or last one again beyond the ends.

    `frames`: by default as many as EchoMimic makes of a sound, which go on for a moment after it.
    """
    if frames is None:
        frames = next(i for i in range(len(states) + fps) if int(i * PER_SECOND / fps) > len(states)) + 1
    own = torch.tensor([int(i * PER_SECOND / fps) for i in range(frames)])
    index = (own[:, None] + torch.arange(-BEFORE, AFTER)).clamp(0, len(states) - 1)
    return states[index.to(states.device)].flatten(1, 2)


__all__ = [
    "AFTER",
    "BANDS",
    "BEFORE",
    "LEFT",
    "PAST",
    "PER_SECOND",
    "POSITIONS",
    "REACH",
    "RIGHT",
    "STEP",
    "Encoder",
    "clip_states",
    "frame_states",
    "log_mel",
    "log_mel_alone",
    "span",
]
