"""Stable Diffusion's ControlNet (Zhang et al. 2023, arXiv 2302.05543), which is diffusers' own; frames are pictures to it."""

from __future__ import annotations

from diffusers import ControlNetModel
from torch import Tensor, nn

from engine.generators.diffusion.presets import Preset


class ControlNet(nn.Module):
    """What its first layers make of the condition picture is the preset's guider, which does not depend on the noise level: here it comes in."""

    def __init__(self, made: Preset) -> None:
        super().__init__()
        unet = made.unet
        self.model = ControlNetModel(
            in_channels=unet.in_channels,
            down_block_types=tuple("CrossAttnDownBlock2D" if there else "DownBlock2D" for there in unet.attention),
            block_out_channels=unet.channels,
            layers_per_block=unet.layers,
            norm_num_groups=unet.groups,
            cross_attention_dim=unet.image_dim,
            attention_head_dim=unet.heads,  # diffusers' name for how many there are
        )
        self.model.controlnet_cond_embedding = nn.Identity()

    def forward(self, x: Tensor, t: Tensor, hint: Tensor, tokens: Tensor) -> list[Tensor]:
        """x [N, C, h, w], t [N], hint [N, C0, h, w], tokens [N, T, D] -> [N, C, h, w] for every skip, and last for the middle."""
        down, middle = self.model(x, t, encoder_hidden_states=tokens, controlnet_cond=hint, return_dict=False)
        return [*down, middle]


__all__ = ["ControlNet"]
