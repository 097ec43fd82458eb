"""Tokens of a text that never changes: what CLIP's text encoder says of no word at all, kept beside the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.generators.diffusion.presets import TEXT_TOKENS


class ConstantText(nn.Module):
    """In the place of an image encoder: every portrait has the same tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(TEXT_TOKENS, width))

    def forward(self, picture: Tensor) -> Tensor:
        """[N, ..] -> [N, 77, D]"""
        return self.embedding.expand(picture.shape[0], -1, -1)


__all__ = ["ConstantText"]
