"""What stands behind the person: the matte, the background without the person, and the texture the mesh samples."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from engine.drivers.matte import clean_plate
from engine.types import FloatArray, UInt8Array

PLATE_SCALE = 4
"""The hole behind the person is filled at 1/4 of the size: what shows of it is soft anyway."""

DETAIL_SIGMA = 5.0
"""px: what is finer than this counts as the background's texture."""
DETAIL_MOST = 9.0
"""Grey levels of texture at most."""
SEEN_FACE = 0.5
"""Mean matte inside the face below which the segmentation has not seen the person."""
SEEN = 0.15
"""Matte above which a pixel may carry something of the person."""
CARRY = (0.020, 0.034)
"""The matte keeps a ring of real background, whole up to the first distance from the person and gone by the second; picture widths."""
CLEAR = 0.018
"""The plate is filled this far around the person."""
KNOWN_SEAM = 0.006
"""Width of the seam between the portrait's own background and a known one, picture widths."""
SOLID = 0.95
"""Matte from which a pixel is all person."""
TRUST = (0.3, 0.8)
"""Mattes between which a rim pixel's own colour, less the background's share, comes to be believed."""


def complete(matte: FloatArray, face: FloatArray) -> FloatArray:
    """The matte [H, W] with the whole face in it; where the segmentation saw nobody (line drawings), with a head and shoulders around it.

    face [K, 2]: the outline of the face, px.
    """
    inside = np.zeros(matte.shape, np.uint8)
    cv2.fillPoly(inside, [np.round(face).astype(np.int32)], 1)
    seen = float(matte[inside > 0].mean()) if inside.any() else 0.0
    found = np.maximum(matte, inside)
    if seen < SEEN_FACE:
        low, high = face.min(0), face.max(0)
        (x, y), (width, height) = (low + high) / 2, high - low
        person = inside.copy()
        head = (int(x), int(y - 0.12 * height)), (int(0.68 * width), int(0.78 * height))
        torso = (int(x), int(high[1] + 1.25 * height)), (int(1.35 * width), int(1.0 * height))
        for centre, axes in (head, torso):
            cv2.ellipse(person, centre, axes, 0, 0, 360, 1, -1)
        cv2.rectangle(person, (int(x - 0.3 * width), int(y)), (int(x + 0.3 * width), int(high[1] + 0.5 * height)), 1, -1)
        found = np.maximum(found, cv2.GaussianBlur(person.astype(np.float32), (0, 0), 0.02 * float(width)))
    whole: FloatArray = found.astype(np.float32)
    return whole


def ring(matte: FloatArray, inner: float, outer: float) -> FloatArray:
    """[H, W] 1 within `inner` px of the person, 0 beyond `outer` px, smooth between."""
    away = cv2.distanceTransform((matte < SEEN).astype(np.uint8), cv2.DIST_L2, 5)
    ramp = np.clip((outer - away) / (outer - inner), 0.0, 1.0).astype(np.float32)
    smooth: FloatArray = ramp * ramp * (3.0 - 2.0 * ramp)
    return smooth


def background(rgb: UInt8Array, matte: FloatArray, *, clear: float) -> UInt8Array:
    """[H, W, 3] the portrait without its person: everything within `clear` px of the matte is filled in from around.

    Colours are inpainted at a small size (Telea 2004, "An image inpainting technique", J. Graphics Tools 9(1)); the texture on them is
    the background's own, mirrored about the hole's edge.
    """
    height, width = matte.shape
    hole = ring(matte, clear, clear + 1.0) > 0
    if hole.all():
        return np.broadcast_to(np.median(rgb.reshape(-1, 3), 0).astype(np.uint8), rgb.shape).copy()
    small = (width // PLATE_SCALE, height // PLATE_SCALE)
    # Averaging only over background pixels keeps the person's colour out of the fill.
    known = (~hole).astype(np.float32)
    keep = cv2.resize(known, small, interpolation=cv2.INTER_AREA)
    colour = cv2.resize(rgb * known[..., None], small, interpolation=cv2.INTER_AREA) / np.maximum(keep, 1e-3)[..., None]
    unknown = keep < 0.5
    filled = cv2.inpaint(np.clip(colour, 0, 255).astype(np.uint8), unknown.astype(np.uint8), 3, cv2.INPAINT_TELEA).astype(np.float32)
    filled = np.where(unknown[..., None], cv2.GaussianBlur(filled, (0, 0), 2.5), filled)
    fill = cv2.resize(filled, (width, height), interpolation=cv2.INTER_CUBIC)
    fill += _texture(rgb, fill, hole)
    share = cv2.GaussianBlur(hole.astype(np.float32), (0, 0), 1.5)[..., None]
    mixed: UInt8Array = np.clip(rgb * (1 - share) + fill * share + 0.5, 0, 255).astype(np.uint8)
    return mixed


def known(rgb: UInt8Array, matte: FloatArray, behind: UInt8Array, *, clear: float) -> UInt8Array:
    """[H, W, 3] the portrait without its person where `behind` [., ., 3] shows what stands there: it fills everything within `clear` px."""
    height, width = matte.shape
    if behind.shape[:2] != (height, width):
        how = cv2.INTER_AREA if behind.shape[0] > height else cv2.INTER_CUBIC
        behind = np.asarray(cv2.resize(behind, (width, height), interpolation=how), np.uint8)
    share = ring(matte, clear, clear + KNOWN_SEAM * width)[..., None]
    mixed: UInt8Array = np.clip(rgb * (1 - share) + behind * share + 0.5, 0, 255).astype(np.uint8)
    return mixed


def alone(rgb: UInt8Array, matte: FloatArray, behind: UInt8Array) -> UInt8Array:
    """[H, W, 3] the person's own colours, free of what shines through at their rim.

    A pixel is a F + (1 - a) B: person F, matte a, background B, which `behind` [H, W, 3] knows. Where a is small F is not to be had that
    way and is taken from the person nearby.
    """
    share = matte[..., None]
    near = clean_plate(rgb, np.where(matte > SOLID, 0, 255).astype(np.uint8)).astype(np.float32)
    own = np.clip((rgb - (1.0 - share) * behind) / np.maximum(share, TRUST[0]), 0, 255)
    trust = np.clip((share - TRUST[0]) / (TRUST[1] - TRUST[0]), 0.0, 1.0)
    colours: UInt8Array = np.where(share >= 1.0, rgb, near + trust * (own - near) + 0.5).astype(np.uint8)
    return colours


def _texture(rgb: UInt8Array, fill: FloatArray, hole: npt.NDArray[np.bool_]) -> FloatArray:
    """[H, W, 3] fine detail for the hole: what lies as far outside its edge as a pixel lies inside."""
    height, width = hole.shape
    whole = np.where(hole[..., None], fill, rgb).astype(np.float32)
    # Grain and brush strokes pass; strong edges are things, and a mirrored thing would show.
    detail = DETAIL_MOST * np.tanh((whole - cv2.GaussianBlur(whole, (0, 0), DETAIL_SIGMA)) / DETAIL_MOST) * (~hole)[..., None]
    _, labels = cv2.distanceTransformWithLabels(hole.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    ys, xs = np.nonzero(~hole)
    at_y, at_x = np.zeros(labels.max() + 1, np.int32), np.zeros(labels.max() + 1, np.int32)
    at_y[labels[ys, xs]], at_x[labels[ys, xs]] = ys, xs
    gy, gx = np.mgrid[:height, :width]
    away_y, away_x = np.abs(2 * at_y[labels] - gy), np.abs(2 * at_x[labels] - gx)
    from_y = np.where(away_y >= height, 2 * (height - 1) - away_y, away_y).clip(0, height - 1)
    from_x = np.where(away_x >= width, 2 * (width - 1) - away_x, away_x).clip(0, width - 1)
    found: FloatArray = detail[from_y, from_x] * hole[..., None]
    return found


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


def seen(matte: UInt8Array, uv: FloatArray, triangles: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """[T] which triangles show anything of the person: those whose bounding box, a pixel around it, has some of the packed matte [H, W].

    uv [N, 2] texture px. The others draw nothing: the plate is what is to be seen there.
    """
    corners = uv[triangles]
    low, high = np.floor(corners.min(1)).astype(int) - 1, np.ceil(corners.max(1)).astype(int) + 2
    height, width = matte.shape
    (x0, y0), (x1, y1) = np.clip(low, 0, (width, height)).T, np.clip(high, 0, (width, height)).T
    total = cv2.integral((matte > 0).astype(np.uint8))
    return np.asarray(total[y1, x1] - total[y0, x1] - total[y1, x0] + total[y0, x0] > 0)
