"""What VividPose's network is made of: one frozen dataclass a size."""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.generators.video.presets import PATCH


@dataclass(frozen=True, slots=True)
class VividPose:
    """One size. Channels must be multiples of 32, the groups of diffusers' norms."""

    name: str
    size: tuple[int, int]  # (H, W) px of the frames
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    heads: tuple[int, ...] = (5, 10, 20, 20)
    blocks: int = 2  # a level on the way down; one more on the way up
    context: int = 1024  # width of CLIP's token
    time_ids: int = 256  # width of each id's embedding
    face_tokens: int = 4
    guider: tuple[int, ...] = (16, 32, 96, 256)  # channels of a guider, each but the first half the size
    frames: int = 14  # of a window: what the weights were trained on
    latent: int = 4  # channels of the autoencoder's latents
    decoder: tuple[int, ...] = (128, 256, 512, 512)  # channels of the autoencoder's levels
    decoder_blocks: int = 2  # of one of its levels on the way down

    @property
    def latent_size(self) -> tuple[int, int]:
        """(h, w) of the latents."""
        return self.size[0] // PATCH, self.size[1] // PATCH


TINY = VividPose(
    name="tiny_vividpose",
    size=(32, 48),
    channels=(32, 64),
    heads=(2, 4),
    blocks=1,
    context=24,
    time_ids=8,
    frames=4,
    decoder=(32, 32, 32, 32),
    decoder_blocks=1,
)
"""For tests."""
VIVIDPOSE = VividPose(name="vividpose", size=(1024, 576))
"""On stable-video-diffusion-img2vid; upright, as the paper's people are."""
VIVIDPOSE_XT = replace(VIVIDPOSE, name="vividpose_xt", frames=25)
"""On stable-video-diffusion-img2vid-xt, which has the same layout and was trained on longer clips."""
PRESETS = {made.name: made for made in (TINY, VIVIDPOSE, VIVIDPOSE_XT)}

__all__ = ["PRESETS", "TINY", "VIVIDPOSE", "VIVIDPOSE_XT", "VividPose"]
