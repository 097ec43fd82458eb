"""What presets that know of a face read of a portrait beside its pixels: a recogniser's vector, and the masks of the speech's branches."""

from __future__ import annotations

import torch

from engine.conditions.regions import regions
from engine.generators.diffusion.conditions import Anchor, pixels
from engine.generators.diffusion.networks import Face, Networks
from engine.recogniser import Recogniser, aligned
from engine.types import UInt8Array


def seen_face(networks: Networks, portrait: UInt8Array, anchor: Anchor) -> Face | None:
    """Of a portrait [H, W, 3] and where its face is; None for presets that want none. Raises AvatarError where the recogniser does not run.

    Untrained networks have no recogniser, and go without a vector.
    """
    made = networks.preset
    if made.image_encoder != "face" and made.unet.speech_in != "branches":
        return None
    size = (portrait.shape[0], portrait.shape[1])
    face = pixels(anchor, size)
    vector = None
    if made.image_encoder == "face" and networks.recogniser is not None:
        vector = torch.from_numpy(Recogniser(networks.recogniser)(aligned(portrait, face)[None]))
    masks = torch.from_numpy(regions(face, size, made.level_sizes))[None] if made.unet.speech_in == "branches" else None
    return Face(vector, masks)


__all__ = ["seen_face"]
