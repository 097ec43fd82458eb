"""GroupNorms that see several frames at once, as some published networks were trained; cells of a frame are then one long picture."""

from __future__ import annotations

from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional


def joined(norm: nn.Module, x: Tensor, frames: int) -> Tensor:
    """[N, C, h, w] -> the same normalised over `frames` pictures side by side; with 1 each by itself."""
    if frames == 1:
        made: Tensor = norm(x)
        return made
    apart = x.unflatten(0, (-1, frames)).transpose(1, 2)  # [B, C, frames, h, w]
    return norm(apart).transpose(1, 2).flatten(0, 1)


class JoinedResnet(ResnetBlock2D):
    """A resnet whose norms can be told how many frames to see; with 1 it is the ordinary one."""

    def forward(self, x: Tensor, level: Tensor, frames: int = 1) -> Tensor:
        """[N, C, h, w], level [N, T] -> [N, C', h, w]"""
        y = self.conv1(functional.silu(joined(self.norm1, x, frames)))
        y = y + self.time_emb_proj(functional.silu(level))[:, :, None, None]
        y = self.conv2(functional.silu(joined(self.norm2, y, frames)))
        kept: Tensor = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return kept + y


__all__ = ["JoinedResnet", "joined"]
