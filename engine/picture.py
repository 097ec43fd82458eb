"""Bytes of a picture file -> RGB, safely."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from engine.types import UInt8Array


def decode_picture(data: bytes) -> UInt8Array:
    """Bytes of a picture file -> [H, W, 3] uint8 RGB."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"), np.uint8)


def read_picture(path: str | Path) -> UInt8Array:
    """A picture file -> [H, W, 3] uint8 RGB."""
    return decode_picture(Path(path).read_bytes())
