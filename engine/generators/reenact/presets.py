"""What every size of the generator is made of."""

from __future__ import annotations

from dataclasses import dataclass

from engine.types import AvatarError

KEYPOINTS = 21
"""Implicit keypoints, of which some follow the lips, some the eyes (`formulas.LIPS`, `formulas.EYES`): the same in every preset."""


@dataclass(frozen=True, slots=True)
class Preset:
    """One size of the generator. Names of its networks as in Guo et al. 2024, arXiv 2407.03168, figure 2."""

    name: str
    size: tuple[int, int]  # (H, W) px of its frames, the crop that is reenacted pasted into the portrait
    side: int  # px of the square crop that is read; what is painted is twice as large
    channels: int  # of the appearance extractor's first layer, doubled by each of its two halvings
    volume: tuple[int, int]  # channels and depth of the appearance volume, whose sides are a quarter of `side`
    residuals: int  # blocks that refine the volume
    depths: tuple[int, int, int, int]  # blocks of the motion extractor's stages
    widths: tuple[int, int, int, int]  # channels of these
    compressed: int  # channels of the volume as the dense motion sees it
    hourglass: int  # channels of its hourglass, doubled by every level ...
    widest: int  # ... up to this
    levels: int  # of the hourglass
    shared: int  # channels of a modulation's first layer in the decoder
    middle: int  # blocks of the decoder before it grows
    painted: int  # channels of the decoder's last block
    stitching: tuple[int, ...]  # hidden widths
    lip: tuple[int, ...]
    eye: tuple[int, ...]

    @property
    def cells(self) -> int:
        """Cells along a side of the volume."""
        return self.side // 4

    @property
    def picture(self) -> int:
        """px along a side of what is painted."""
        return 2 * self.side

    @property
    def features(self) -> int:
        """Channels of the warped features that the decoder reads."""
        return 4 * self.channels


LIVEPORTRAIT = Preset(
    name="liveportrait",
    size=(768, 768),
    side=256,
    channels=64,
    volume=(32, 16),
    residuals=6,
    depths=(3, 3, 9, 3),
    widths=(96, 192, 384, 768),
    compressed=4,
    hourglass=32,
    widest=1024,
    levels=5,
    shared=128,
    middle=6,
    painted=64,
    stitching=(128, 128, 64),
    lip=(128, 128, 64),
    eye=(256, 256, 128, 128, 64),
)
"""The published weights' (github.com/KwaiVGI/LivePortrait). The crop is about two thirds of a head-and-shoulders frame: at 768 px of these
none of its 512 px is lost."""

TINY = Preset(
    name="tiny",
    size=(192, 192),
    side=64,
    channels=8,
    volume=(4, 4),
    residuals=1,
    depths=(1, 1, 1, 1),
    widths=(8, 8, 16, 16),
    compressed=2,
    hourglass=4,
    widest=16,
    levels=2,
    shared=8,
    middle=1,
    painted=8,
    stitching=(16, 8),
    lip=(16, 8),
    eye=(16, 16, 8),
)
"""The same layout, too narrow to show anything: for tests and trials of the way through the engine."""

PRESETS = {preset.name: preset for preset in (TINY, LIVEPORTRAIT)}


def preset(name: str) -> Preset:
    """A preset by name. Raises AvatarError for an unknown one."""
    if name not in PRESETS:
        raise AvatarError(f"The generator 'reenact' has no preset called '{name}'; choose one of: {', '.join(sorted(PRESETS))}.")
    return PRESETS[name]


__all__ = ["KEYPOINTS", "LIVEPORTRAIT", "PRESETS", "TINY", "Preset", "preset"]
