"""How large the networks of a model are; the published sizes and tiny ones of the same shape, for tests. Plain numbers, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.types import AvatarError

Kind = Literal["wav2lip", "musetalk"]


@dataclass(frozen=True, slots=True)
class Wav2LipSize:
    """The convolutional network; every width is divided by `thinner`."""

    name: str = "wav2lip"
    thinner: int = 1
    kind: Kind = "wav2lip"


@dataclass(frozen=True, slots=True)
class MuseTalkSize:
    """The inpainting network, the autoencoder of its latents and the encoder of its sound."""

    name: str = "musetalk"
    side: int = 256  # px of the face's crop
    unet: tuple[int, ...] = (320, 640, 1280, 1280)  # channels of the four resolutions
    unet_heads: int = 8
    unet_groups: int = 32  # of the group norms
    vae: tuple[int, ...] = (128, 256, 512, 512)
    vae_layers: int = 2
    vae_groups: int = 32
    width: int = 384  # of a sound token: the encoder's, and the cross-attention's
    listener_layers: int = 4
    listener_heads: int = 6
    positions: int = 1500  # steps of 20 ms that the encoder is given
    kind: Kind = "musetalk"

    @property
    def latent(self) -> int:
        """Side of the latents: the autoencoder halves the picture between its resolutions."""
        return self.side >> (len(self.vae) - 1)


Size = Wav2LipSize | MuseTalkSize

MODELS: dict[str, Size] = {
    "wav2lip": Wav2LipSize(),
    "musetalk": MuseTalkSize(),
    "wav2lip_tiny": Wav2LipSize("wav2lip_tiny", thinner=16),
    "musetalk_tiny": MuseTalkSize(
        name="musetalk_tiny",
        side=64,
        unet=(8, 8, 16, 16),
        unet_heads=2,
        unet_groups=4,
        vae=(8, 8, 8, 8),
        vae_layers=1,
        vae_groups=4,
        width=24,
        listener_layers=4,
        listener_heads=2,
        positions=120,
    ),
}
"""By the name that `--model` and a folder of weights give."""


def size_of(name: str) -> Size:
    """The size of a model by name. Raises AvatarError for an unknown name."""
    if name not in MODELS:
        raise AvatarError(f"There is no lips model called '{name}'; choose wav2lip or musetalk.")
    return MODELS[name]


__all__ = ["MODELS", "Kind", "MuseTalkSize", "Size", "Wav2LipSize", "size_of"]
