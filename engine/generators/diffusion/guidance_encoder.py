"""Guiders of several pictures of one frame: each its own, and what they make is summed. Those of a body's maps have an attention over the picture at
their end (Champ, Zhu et al. 2024, arXiv 2403.14781, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.generators.diffusion.attention import Sources, SpatialTransformer
from engine.generators.diffusion.guider import PoseGuider
from engine.generators.diffusion.presets import Preset


class GuidanceEncoder(PoseGuider):
    """The guider of one map. Names as in the published files, whose attentions but the last are of no use to anybody."""

    def __init__(self, made: Preset) -> None:
        super().__init__(made, channels=3)
        attention = SpatialTransformer(made.guider[-1], made.unet.heads, made.unet.groups, image_dim=0, speech_dim=0, index=0)
        self.attentions = nn.ModuleDict({str(len(self.blocks) - 1): attention})

    def forward(self, picture: Tensor) -> Tensor:
        """[N, 3, H, W] 0..1 -> [N, C0, h, w]"""
        x = self.trunk(picture)
        for attention in self.attentions.values():
            x = attention(x, Sources())
        made: Tensor = self.conv_out(x)
        return made


class Guiders(nn.Module):
    """One for every picture of the condition."""

    def __init__(self, made: Preset) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(
            {name: GuidanceEncoder(made) if made.guider_attends else PoseGuider(made, channels=3) for name in made.pictures}
        )

    def forward(self, pictures: Tensor) -> Tensor:
        """[N, 3 pictures, H, W] 0..1, in the order of the preset's pictures -> [N, C0, h, w]"""
        each = zip(self.encoders.values(), pictures.split(3, 1), strict=True)
        return torch.stack([encoder(picture) for encoder, picture in each]).sum(0)

    def last(self) -> list[nn.Module]:
        """Layers that are zero where training begins."""
        return [layer for encoder in self.encoders.values() for layer in encoder.last()]


def guider(made: Preset) -> PoseGuider | Guiders:
    """The one of a preset."""
    return Guiders(made) if made.guider_each else PoseGuider(made)


__all__ = ["GuidanceEncoder", "Guiders", "guider"]
