"""What the systems of this folder share about pictures: their bytes and numbers, Stable Diffusion's scale of latents, CLIP's image encoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine.types import AvatarError, MissingPart, UInt8Array

SCALE = 0.18215
"""Latents are multiplied by this, so that their variance is about 1."""
CLIP_SIZE = 224
CLIP_MEAN, CLIP_DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def resized(picture: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    """[H, W, 3] squashed to `size` (H, W), as Pillow's bilinear filter does, which sees all pixels of a larger picture."""
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise AvatarError(f"A picture has 3 channels of bytes, not {list(picture.shape)} {picture.dtype}; give it as RGB.")
    if picture.shape[:2] == size:
        return picture
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def unit(picture: UInt8Array) -> Tensor:
    """uint8 [H, W, 3] -> [3, H, W] -1..1"""
    return torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 127.5 - 1.0


def shown(picture: Tensor) -> UInt8Array:
    """[N, 3, H, W] about -1..1 -> uint8 [N, H, W, 3]"""
    return np.ascontiguousarray(to_bytes(picture).cpu().numpy())


def to_bytes(picture: Tensor) -> Tensor:
    """The same, where it lies."""
    return ((picture.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def image_encoder(context: int, *, narrow: bool) -> Any:
    """CLIP's ViT-H/14 with its projection to `context` numbers, or a small one for tests (`narrow`)."""
    try:
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
    except ImportError as error:
        raise MissingPart(f"The image encoder needs transformers ({error}); run `make torch`, or pip install 'avatar-engine[torch]'.") from error
    sizes = (16, 32, 2, 2, 56) if narrow else (1280, 5120, 32, 16, 14)
    width, inner, layers, heads, patch = sizes
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            patch_size=patch,
            image_size=CLIP_SIZE,
            projection_dim=context,
            hidden_act="gelu",
        )
    )


__all__ = ["CLIP_DEVIATION", "CLIP_MEAN", "CLIP_SIZE", "SCALE", "image_encoder", "resized", "shown", "to_bytes", "unit"]
