"""What UniAnimate's network is made of: one frozen dataclass a size."""

from __future__ import annotations

from dataclasses import dataclass

from engine.types import AvatarError

PATCH = 8
"""px that a latent covers along each side."""


@dataclass(frozen=True, slots=True)
class UniAnimate:
    """The video UNet of Wang et al. 2024 (arXiv 2406.01188): names and layout of the published weights."""

    name: str
    size: tuple[int, int]  # (H, W) px of the frames
    width: int = 320  # channels of the first level
    levels: tuple[int, ...] = (1, 2, 4, 4)  # channels of every level, in widths
    attention: tuple[bool, ...] = (True, True, True, False)  # whether a level has attentions; the middle always has
    blocks: int = 2  # a level on the way down; one more on the way up
    head: int = 64  # channels of an attention head
    first_heads: int = 8  # of the temporal transformer after the first convolution; elsewhere as many as fill the channels
    groups: int = 32  # of every GroupNorm
    context: int = 1024  # width of text and image tokens
    text: int = 77  # tokens of the empty prompt
    text_layers: int = 24  # of the text encoder that reads it, once, at import
    vocabulary: int = 49408  # of that encoder
    tokens: int = 4  # that the image embedding becomes
    latent: int = 4  # channels of the autoencoder's latents
    condition: int = 8  # channels of the pose beside them
    frames: int = 32  # of a window, as the weights were trained

    @property
    def latent_size(self) -> tuple[int, int]:
        """(h, w) of the latents."""
        return self.size[0] // PATCH, self.size[1] // PATCH

    @property
    def joined(self) -> int:
        """Channels that the first convolution reads: latents and pose, or all of the reference's."""
        return self.latent + self.condition

    @property
    def time(self) -> int:
        """Width of the noise level's embedding."""
        return 4 * self.width


TINY = UniAnimate(
    name="tiny_unianimate",
    size=(32, 48),
    width=16,
    levels=(1, 2),
    attention=(True, False),
    blocks=1,
    head=8,
    first_heads=3,
    groups=8,
    context=24,
    text=5,
    text_layers=2,
    vocabulary=40,
    condition=4,
)
"""For tests: every kind of block once, wider than high, and a first temporal transformer that is wider than its level."""
UNIANIMATE = UniAnimate(name="unianimate", size=(768, 512))
"""unianimate_16f_32f_non_ema_223000.pth at the smaller of its two sizes."""
UNIANIMATE_LARGE = UniAnimate(name="unianimate_large", size=(1216, 768))
"""The same weights at the larger size, which the published script for long clips takes."""
PRESETS = {made.name: made for made in (TINY, UNIANIMATE, UNIANIMATE_LARGE)}


def preset(name: str) -> UniAnimate:
    """A size by name. Raises AvatarError for an unknown one."""
    if name not in PRESETS:
        raise AvatarError(f"There is no size of UniAnimate called '{name}'; choose one of: {', '.join(sorted(PRESETS))}.")
    return PRESETS[name]


def check(made: UniAnimate) -> None:
    """Raise AvatarError where the fields of a size contradict each other."""
    depth = PATCH << (len(made.levels) - 1)
    widths = [made.width * level for level in made.levels]
    rules = (
        (len(made.attention) == len(made.levels), "attention needs one entry a level"),
        (all(side > 0 and side % depth == 0 for side in made.size), f"its size must be a multiple of {depth}"),
        (all(width % made.groups == 0 and width % made.head == 0 for width in widths), "groups and heads must divide every level's channels"),
        (made.condition % 2 == 0, "the pose's channels must be even"),
    )
    for holds, complaint in rules:
        if not holds:
            raise AvatarError(f"The size '{made.name}' of UniAnimate cannot be built: {complaint}.")


__all__ = ["PATCH", "PRESETS", "TINY", "UNIANIMATE", "UNIANIMATE_LARGE", "UniAnimate", "check", "preset"]
