"""What stands behind the person: the matte, the background without the person, and the texture the mesh samples."""

from __future__ import annotations

import cv2
import numpy as np

from engine.types import FloatArray, UInt8Array

PLATE_SCALE = 4
"""The hole behind the person is filled at 1/4 of the size: what shows of it is soft anyway."""


def ring(matte: FloatArray, inner: float, outer: float) -> FloatArray:
    """[H, W] 1 within `inner` px of the person, 0 beyond `outer` px, smooth between."""
    away = cv2.distanceTransform((matte < 0.5).astype(np.uint8), cv2.DIST_L2, 5)
    ramp = np.clip((outer - away) / (outer - inner), 0.0, 1.0).astype(np.float32)
    smooth: FloatArray = ramp * ramp * (3.0 - 2.0 * ramp)
    return smooth


def background(rgb: UInt8Array, matte: FloatArray, *, clear: float) -> UInt8Array:
    """[H, W, 3] the portrait without its person: everything within `clear` px of the matte is filled in from around."""
    height, width = matte.shape
    hole = (ring(matte, clear, clear + 1.0) > 0).astype(np.uint8)
    if hole.all():
        return np.broadcast_to(np.median(rgb.reshape(-1, 3), 0).astype(np.uint8), rgb.shape).copy()
    small = (width // PLATE_SCALE, height // PLATE_SCALE)
    # Averaging only over background pixels keeps the person's colour out of the fill.
    keep = cv2.resize((1 - hole).astype(np.float32), small, interpolation=cv2.INTER_AREA)
    colour = cv2.resize(rgb.astype(np.float32) * (1 - hole)[..., None], small, interpolation=cv2.INTER_AREA) / np.maximum(keep, 1e-3)[..., None]
    filled = cv2.inpaint(np.clip(colour, 0, 255).astype(np.uint8), (keep < 0.5).astype(np.uint8), 3, cv2.INPAINT_TELEA)
    filled = np.where((keep < 0.5)[..., None], cv2.GaussianBlur(filled, (0, 0), 3.0), filled)
    fill = cv2.GaussianBlur(cv2.resize(filled, (width, height), interpolation=cv2.INTER_CUBIC), (0, 0), 2.0)
    edge = cv2.GaussianBlur(hole.astype(np.float32), (0, 0), 1.0)[..., None]
    edge = np.where(hole[..., None] > 0, np.maximum(edge, 0.6), edge)
    mixed: UInt8Array = np.clip(rgb * (1 - edge) + fill * edge + 0.5, 0, 255).astype(np.uint8)
    return mixed


def pack_matte(carry: FloatArray, tight: FloatArray) -> UInt8Array:
    """Two mattes in one byte: `carry` (with a ring of real background) fills the lower half of the range before `tight` starts."""
    packed: UInt8Array = np.clip(np.where(carry >= 1.0, 128.0 + 127.0 * tight, 128.0 * carry) + 0.5, 0, 255).astype(np.uint8)
    return packed


def texture(rgb: UInt8Array, packed: UInt8Array, pad: int) -> UInt8Array:
    """[H + 2 pad, W + 2 pad, 4]: colour and packed matte beyond the frame too, so that a moving frame edge is never exposed.

    Colours are mirrored; the matte goes straight on: only what the frame cuts off continues.
    """
    colour = cv2.copyMakeBorder(rgb, pad, pad, pad, pad, cv2.BORDER_REFLECT_101)
    matte = cv2.copyMakeBorder(packed, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
    padded: UInt8Array = np.dstack([colour, matte])
    return padded
