"""Speech that moves a face in three branches, and the frames before a clip: what audio-driven denoisers have beside the others.

A module stands after every spatial attention (Xu et al. 2024, arXiv 2406.08801). Its block attends to itself, then three times to the same
speech tokens; each answer counts where its mask says: around the face, in it, and at the lips.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.generators.diffusion.attention import FeedForward, Heads, Sources
from engine.generators.diffusion.presets import UNet
from engine.generators.diffusion.temporal import MotionModule, Window

BRANCHES = ("full", "face", "lip")
"""Published names of the branches' last layers, in the order of the masks: surroundings, face, lips."""


class AudioBlock(nn.Module):
    """Self-attention, three masked attentions to speech, and a feed-forward; names as in Hallo's checkpoint."""

    def __init__(self, width: int, config: UNet) -> None:
        super().__init__()
        self.gains = config.branch_gains
        self.norm1, self.attn1 = nn.LayerNorm(width), Heads(width, config.heads)
        self.norm2 = nn.LayerNorm(width)
        for k, name in enumerate(BRANCHES):
            self.add_module(f"attn2_{k}", Heads(width, config.heads, source=config.speech_dim))
            self.add_module(f"zero_conv_{name}", nn.Conv2d(width, width, 1))
        self.norm3, self.ff = nn.LayerNorm(width), FeedForward(width)

    def forward(self, x: Tensor, speech: Tensor, masks: Tensor) -> Tensor:
        """x [N, L, C], speech [N, T, D], masks [N, 3, L] -> [N, L, C]"""
        read = self.norm1(x)
        x = x + self.attn1(read, *self.attn1.project(read))
        read = self.norm2(x)
        for k, (name, gain) in enumerate(zip(BRANCHES, self.gains, strict=True)):
            heads, last = getattr(self, f"attn2_{k}"), getattr(self, f"zero_conv_{name}")
            said = heads(read, *heads.project(speech)) * masks[:, k, :, None]
            # A 1 x 1 convolution of cells in a row is a linear layer, whatever their picture's sides.
            x = x + gain * functional.linear(said, last.weight.flatten(1), last.bias)
        made: Tensor = x + self.ff(self.norm3(x))
        return made


class AudioModule(nn.Module):
    """A picture's cells as tokens of another width, one block, and back."""

    def __init__(self, width: int, inner: int, config: UNet, *, depth: int) -> None:
        super().__init__()
        self.depth = depth  # whose masks it reads
        self.norm = nn.GroupNorm(config.groups, width, eps=1e-6)
        self.proj_in = nn.Conv2d(width, inner, 1)
        self.transformer_blocks = nn.ModuleList([AudioBlock(inner, config)])
        self.proj_out = nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor, sources: Sources) -> Tensor:
        """[N, C, h, w] -> [N, C, h, w]"""
        assert sources.speech is not None
        assert sources.regions is not None
        height, width = x.shape[2:]
        masks = at_level(sources.regions, (height, width), self.depth)
        masks = masks if sources.frames == 1 else masks.repeat_interleave(sources.frames, 0)
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        tokens = self.transformer_blocks[0](tokens, sources.speech, masks)
        made: Tensor = x + self.proj_out(tokens.transpose(1, 2).unflatten(2, (height, width)))
        return made


def at_level(regions: Tensor, size: tuple[int, int], depth: int) -> Tensor:
    """Masks [B, 3, R] of all levels, and the (h, w) of level `depth` -> its own, [B, 3, h w]."""
    height, width = size
    first = sum((height << i) * (width << i) for i in range(1, depth + 1))
    return regions[..., first : first + height * width]


def carried_on(module: MotionModule, x: Tensor, window: Window, before: Tensor) -> Tensor:
    """A motion module over a clip x [c, C, h, w] that sees the frames before it first, `before` [m, L, C]; `window` is of m + c frames."""
    past = before.transpose(1, 2).unflatten(2, x.shape[2:]).to(x.dtype)
    made: Tensor = module(torch.cat([past, x]), window)[len(before) :]
    return made


__all__ = ["BRANCHES", "AudioBlock", "AudioModule", "at_level", "carried_on"]
