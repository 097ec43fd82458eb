"""Pose guider: a condition picture becomes what is added after the denoiser's first convolution (Hu et al. 2023, section 3.2)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from engine.generators.diffusion.presets import Preset


class PoseGuider(nn.Module):
    """Convolutions down to the latents' size; names as in the published `pose_guider.pth`."""

    def __init__(self, made: Preset, *, channels: int | None = None) -> None:
        super().__init__()
        widths, self.fold = made.guider, made.fold
        self.centred = made.residual  # published guiders read 0..1; around 0 half as many updates teach as much
        self.conv_in = nn.Conv2d((channels or made.channels) * made.fold**2, widths[0], 3, padding=1)
        blocks: list[nn.Module] = []
        for above, below in zip(widths[:-1], widths[1:], strict=True):
            blocks += [nn.Conv2d(above, above, 3, padding=1), nn.Conv2d(above, below, 3, padding=1, stride=2)]
        self.blocks = nn.ModuleList(blocks)
        self.conv_out = nn.Conv2d(widths[-1], made.unet.channels[0], 3, padding=1)

    def forward(self, picture: Tensor) -> Tensor:
        """[N, K, H, W] 0..1 -> [N, C0, h, w]"""
        made: Tensor = self.conv_out(self.trunk(picture))
        return made

    def trunk(self, picture: Tensor) -> Tensor:
        """All but the last convolution."""
        picture = 2 * picture - 1 if self.centred else picture
        x = functional.silu(self.conv_in(functional.pixel_unshuffle(picture, self.fold)))
        for block in self.blocks:
            x = functional.silu(block(x))
        return x

    def last(self) -> list[nn.Module]:
        """Layers that are zero where training begins."""
        return [self.conv_out]


__all__ = ["PoseGuider"]
