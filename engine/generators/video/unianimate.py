"""UniAnimate's denoiser: one video UNet whose frame 0 is the reference (Wang et al. 2024, arXiv 2406.01188).

Nothing here keeps state. What does not change from one denoising step to the next (frame 0, the poses' channels, the tokens) is made by
methods of its own, once a clip or once a window, and handed to `forward`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from engine.generators.video.blocks import (
    STEM_WIDTH,
    AlongFrames,
    Call,
    Downsample,
    Entry,
    LatentStem,
    PictureStem,
    ResBlock,
    SpatialTransformer,
    Stage,
    TemporalTransformer,
    Upsample,
)
from engine.generators.video.presets import UniAnimate, check

LONGEST_PERIOD = 10_000.0
"""Of the sinusoids that a noise level is written in."""
STEM_FRAMES = 4
"""Pictures that a stem reads at a time, for memory's sake: frames meet only behind it."""


class VideoUNet(nn.Module):
    """The network of the published weights, with all of its keys."""

    def __init__(self, made: UniAnimate) -> None:
        super().__init__()
        check(made)
        self.made = made
        widths = [made.width * level for level in made.levels]
        self.time_embed = nn.Sequential(nn.Linear(made.width, made.time), nn.SiLU(), nn.Linear(made.time, made.time))
        tokens = nn.Linear(made.context, made.context * made.tokens)
        self.pre_image_condition = nn.Sequential(nn.Linear(made.context, made.context), nn.SiLU(), tokens)
        inner = STEM_WIDTH * made.condition
        for name, channels in (("local_image", made.condition), ("dwpose", made.condition), ("randomref_pose2", made.joined)):
            self.add_module(f"{name}_embedding", PictureStem(channels, inner))
            self.add_module(f"{name}_embedding_after", AlongFrames(channels))
        self.randomref_embedding2 = LatentStem(made.latent, inner, made.joined)
        self.randomref_embedding_after2 = AlongFrames(made.joined)
        first = TemporalTransformer(made.width, made.first_heads, made.head, made.groups)
        down, skips = [nn.ModuleList(), [made.width]]
        down.append(Stage([Entry(made.joined, made.width, 3, padding=1), first]))
        width = made.width
        for i, level in enumerate(widths):
            for _ in range(made.blocks):
                down.append(Stage(self._blocks(width, level, attention=made.attention[i])))
                width = level
                skips.append(level)
            if i < len(widths) - 1:
                down.append(Downsample(level))
                skips.append(level)
        self.input_blocks = down
        middle = [*self._blocks(width, width, attention=True), ResBlock(width, width, made.time, made.groups)]
        self.middle_block = Stage(middle)
        self.output_blocks = nn.ModuleList()
        for i, level in reversed(list(enumerate(widths))):
            for j in range(made.blocks + 1):
                blocks = self._blocks(width + skips.pop(), level, attention=made.attention[i])
                width = level
                self.output_blocks.append(Stage([*blocks, *([Upsample(level)] if i > 0 and j == made.blocks else [])]))
        self.out = nn.Sequential(nn.GroupNorm(made.groups, width), nn.SiLU(), nn.Conv2d(width, made.latent, 3, padding=1))

    def _blocks(self, width_in: int, width: int, *, attention: bool) -> list[nn.Module]:
        made = self.made
        resnet = ResBlock(width_in, width, made.time, made.groups)
        if not attention:
            return [resnet]
        spatial = SpatialTransformer(width, made.head, made.groups, context=made.context)
        return [resnet, spatial, TemporalTransformer(width, width // made.head, made.head, made.groups)]

    # -- what does not change from step to step -------------------------------------------------------------------------

    def tokens(self, empty: Tensor, image: Tensor | None) -> Tensor:
        """Tokens of the empty prompt [T, D] and CLIP's image embedding [B, D] -> context [B, T + t, D]; None: unguided, [1, T + t, D]."""
        made = self.made
        if image is None:
            return torch.cat([empty, empty.new_zeros(made.tokens, made.context)])[None]
        seen = self.pre_image_condition(image).unflatten(-1, (made.tokens, made.context))
        return torch.cat([empty.expand(len(image), -1, -1), seen], 1)

    def reference(self, latents: Tensor, pose: Tensor) -> Tensor:
        """Reference latents [B, C, h, w] and the picture of its pose [B, 3, H, W] 0..1 -> the channels of frame 0, [B, C', h, w]."""
        seen = self.randomref_embedding_after2(self.randomref_embedding2(latents), 1)
        posed = self.randomref_pose2_embedding_after(self.randomref_pose2_embedding(pose, latents.shape[-2:]), 1)
        made: Tensor = seen + posed
        return made

    def poses(self, pictures: Tensor, size: tuple[int, int]) -> Tensor:
        """Poses of a window's frames [B, F, 3, H, W] 0..1 -> their channels [B, F, C, h, w]; they see each other, so a window is one call."""
        return self._stem("dwpose", pictures, size)

    def first_frame(self, picture: Tensor, size: tuple[int, int]) -> Tensor:
        """A picture that the clip goes on from, repeated, [B, F, 3, H, W] 0..1 -> channels [B, F, C, h, w] to be added to those of `poses`.

        The other way to tell the network of the reference (`partial_keys` with local_image): frame 0 is empty then.
        """
        return self._stem("local_image", picture, size)

    def _stem(self, name: str, pictures: Tensor, size: tuple[int, int]) -> Tensor:
        frames = pictures.shape[1]
        stem, after = self.get_submodule(f"{name}_embedding"), self.get_submodule(f"{name}_embedding_after")
        few = pictures.flatten(0, 1).split(STEM_FRAMES)  # its first convolution has the pictures' size
        made: Tensor = after(torch.cat([stem(each, size) for each in few]), frames)
        return made.unflatten(0, (-1, frames))

    # -- a step -----------------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, level: Tensor, context: Tensor, *, first: Tensor | None = None, poses: Tensor | None = None) -> Tensor:
        """Noisy latents x [B, F, C, h, w] at noise level [B] 0..999, context [B, L, D] -> the predicted velocity, like x.

        `first` [B, C', h, w] of `reference`, `poses` [B, F, C, h, w] of `poses`; None: zeros, as the unguided half has them.
        """
        rows, frames, (h, w) = x.shape[0], x.shape[1] + 1, x.shape[-2:]
        if poses is None:
            poses = x.new_zeros(rows, frames - 1, self.made.condition, h, w)
        if first is None:
            first = x.new_zeros(rows, self.made.joined, h, w)
        clip = torch.cat([first[:, None], torch.cat([x, poses], 2)], 1).flatten(0, 1)
        call = Call(frames, self.time_embed(sinusoids(level, self.made.width).to(x.dtype)), context)
        skips = []
        for block in self.input_blocks:
            clip = block(clip, call)
            skips.append(clip)
        clip = self.middle_block(clip, call)
        for block in self.output_blocks:
            clip = block(torch.cat([clip, skips.pop()], 1), call)
        made: Tensor = self.out(clip)
        return made.unflatten(0, (rows, frames))[:, 1:]


def sinusoids(level: Tensor, width: int) -> Tensor:
    """[B] -> [B, width]: cosines, then sines."""
    half = width // 2
    rate = torch.exp(torch.arange(half, device=level.device, dtype=torch.float32) * (-math.log(LONGEST_PERIOD) / half))
    angle = level.float()[:, None] * rate
    return torch.cat([angle.cos(), angle.sin()], 1)


__all__ = ["VideoUNet", "sinusoids"]
