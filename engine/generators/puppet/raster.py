"""The hot loops: a mesh becomes a sampling map, layers become a picture. Compiled once, cached on disk, no lock held."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

from engine.types import FloatArray, UInt8Array

_F = TypeVar("_F", bound=Callable[..., Any])

OUTSIDE = -10_000.0
"""Sampling position of pixels that no triangle covers: far outside every texture, which reads as transparent."""
FAREST = 1e9
"""Depth of such pixels."""
HAIR = 1e-3
"""px that every row of a triangle is wider than it should be."""


def kernel(function: _F) -> _F:
    """A compiled function: cached beside the source, releases the interpreter's lock."""
    return cast(_F, numba.njit(cache=True, nogil=True, fastmath=True, error_model="numpy")(function))


@kernel
def raster(points: FloatArray, uv: FloatArray, triangles: Any, tags: UInt8Array, out_map: FloatArray, depth: FloatArray, out_tag: UInt8Array) -> None:
    """Draw triangles nearest-first into a sampling map.

    points [N, 3] pixels and depth (smaller is nearer); uv [N, 2] texture pixels; triangles [T, 3]; tags [T];
    out_map [H, W, 2], depth [H, W], out_tag [H, W] are overwritten: OUTSIDE and 255 where nothing is drawn.
    """
    height, width = depth.shape
    out_map[:] = np.float32(OUTSIDE)
    depth[:] = np.float32(FAREST)
    out_tag[:] = np.uint8(255)
    one, hair = np.float32(1.0), np.float32(HAIR)
    for t in range(triangles.shape[0]):
        # From the top down: a above b above c, one long side a-c and two short ones.
        a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        if points[b, 1] < points[a, 1]:
            a, b = b, a
        if points[c, 1] < points[a, 1]:
            a, c = c, a
        if points[c, 1] < points[b, 1]:
            b, c = c, b
        ax, ay, az = points[a, 0], points[a, 1], points[a, 2]
        bax, bay, baz = points[b, 0] - ax, points[b, 1] - ay, points[b, 2] - az
        cax, cay, caz = points[c, 0] - ax, points[c, 1] - ay, points[c, 2] - az
        area = bax * cay - cax * bay
        y0, y1 = max(int(np.ceil(ay)), 0), min(int(np.floor(ay + cay)), height - 1)
        if abs(area) < np.float32(1e-6) or y0 > y1 or ax + max(bax, cax, np.float32(0)) < 0 or ax + min(bax, cax, np.float32(0)) > width - 1:
            continue
        # Gradients of texture position and depth over the triangle's plane.
        inv = one / area
        au, av = uv[a, 0], uv[a, 1]
        du1, du2, dv1, dv2 = uv[b, 0] - au, uv[c, 0] - au, uv[b, 1] - av, uv[c, 1] - av
        ux, uy = (du1 * cay - du2 * bay) * inv, (du2 * bax - du1 * cax) * inv
        vx, vy = (dv1 * cay - dv2 * bay) * inv, (dv2 * bax - dv1 * cax) * inv
        zx, zy = (baz * cay - caz * bay) * inv, (caz * bax - baz * cax) * inv
        long = cax / cay
        upper = bax / bay if bay > 0 else np.float32(0.0)
        lower = (cax - bax) / (cay - bay) if cay > bay else np.float32(0.0)
        tag = tags[t]
        for y in range(y0, y1 + 1):
            fy = np.float32(y) - ay
            left = ax + fy * long
            right = ax + fy * upper if fy < bay else ax + bax + (fy - bay) * lower
            if left > right:
                left, right = right, left
            # A hair wider than the triangle, so that rounding leaves no crack between neighbours.
            x0, x1 = max(int(np.ceil(left - hair)), 0), min(int(np.floor(right + hair)), width - 1)
            fx = np.float32(x0) - ax
            u, v, z = au + ux * fx + uy * fy, av + vx * fx + vy * fy, az + zx * fx + zy * fy
            for x in range(x0, x1 + 1):
                if z < depth[y, x]:
                    depth[y, x] = z
                    out_map[y, x, 0] = u
                    out_map[y, x, 1] = v
                    out_tag[y, x] = tag
                u += ux
                v += vx
                z += zx


@kernel
def sample(patch: UInt8Array, x: int, y: int, fx: float, fy: float, channel: int) -> float:
    """Bilinear value of one channel of `patch` [h, w, C] at (x + fx, y + fy); x + 1 and y + 1 lie inside."""
    top = patch[y, x, channel] * (1 - fx) + patch[y, x + 1, channel] * fx
    low = patch[y + 1, x, channel] * (1 - fx) + patch[y + 1, x + 1, channel] * fx
    value: float = top * (1 - fy) + low * fy
    return value


NEAR, FAR = 0.006, 0.024
"""Share of the picture's width a pixel may move before its ring of real background fades, and by which it is gone."""


@kernel
def blend(layer: UInt8Array, sampling: FloatArray, pad: float, plate: UInt8Array, known: bool, rgb: UInt8Array, alpha: UInt8Array) -> None:
    """Lay the person over the plate.

    layer [H, W, 4]: colour and the packed matte of `plate.pack_matte`; sampling [H, W, 2] where it came from, `pad` px off; plate
    [H, W, 3]; rgb [H, W, 3] and alpha [H, W] are written. Where a pixel stayed near its place, the ring of real background that the
    matte carries keeps every hair; where it moved, the tight matte keeps that background from coming along. A `known` plate needs no ring.
    """
    height, width = alpha.shape
    near, far = np.float32(NEAR * width), np.float32(FAR * width)
    for y in range(height):
        for x in range(width):
            packed = int(layer[y, x, 3])
            tight = (packed - 128) * 2 + 1 if packed > 128 else 0
            alpha[y, x] = tight
            cover = tight
            if packed > 0 and tight < 255 and not known:
                dx, dy = sampling[y, x, 0] - pad - x, sampling[y, x, 1] - pad - y
                moved = np.sqrt(dx * dx + dy * dy)
                stay = min(max((far - moved) / (far - near), 0.0), 1.0)
                cover = max(tight, int(min(packed * 2, 255) * stay))
            if cover == 255:
                for c in range(3):
                    rgb[y, x, c] = layer[y, x, c]
            elif cover == 0:
                for c in range(3):
                    rgb[y, x, c] = plate[y, x, c]
            else:
                for c in range(3):
                    rgb[y, x, c] = (int(layer[y, x, c]) * cover + int(plate[y, x, c]) * (255 - cover) + 127) // 255


JUMP = 3.0
"""px: neighbours whose sampling lies further apart than this belong to different parts of the sheet: one hides the other there."""
STRETCHED = 0.7
"""Texture px a pixel, sideways, below which skin is so stretched that its grain becomes streaks."""
STREAK = 3
"""Half length of the blur across streaks, px."""


@kernel
def soften(rgb: UInt8Array, sampling: FloatArray, box: FloatArray, places: Any, colours: UInt8Array) -> None:
    """Smooth what gives the sheet away in `rgb` [H, W, 3]: staircases where one part hides another, streaks where skin is stretched.

    sampling [H, W, 2] tells where those are; only box [4] x0, y0, x1, y1 px is looked at; places [K] int32 and colours [K, 3] are
    scratch: of more than K such pixels the rest stay as they are.
    """
    height, width = rgb.shape[:2]
    count = 0
    for y in range(max(int(box[1]), STREAK), min(int(box[3]), height - STREAK)):
        for x in range(max(int(box[0]), STREAK), min(int(box[2]), width - STREAK)):
            if count == places.shape[0]:
                break
            if sampling[y, x, 0] == OUTSIDE:
                continue
            jump, stretch = 0.0, 0.0
            for c in range(2):
                here, right, left = sampling[y, x, c], sampling[y, x + 1, c], sampling[y, x - 1, c]
                jump = max(jump, abs(right - here), abs(left - here), abs(sampling[y + 1, x, c] - here), abs(sampling[y - 1, x, c] - here))
                stretch += abs(right - left) / 2
            if jump > JUMP:
                for c in range(3):
                    total = 8
                    for j in range(-1, 2):
                        for i in range(-1, 2):
                            total += (2 - abs(i)) * (2 - abs(j)) * int(rgb[y + j, x + i, c])
                    colours[count, c] = total // 16
            elif stretch < STRETCHED:
                share = min(2 * (STRETCHED - stretch) / STRETCHED, 1.0)
                r, g, b, weight = 0.0, 0.0, 0.0, 0.0
                for j in range(-STREAK, STREAK + 1):
                    away = abs(sampling[y + j, x, 0] - sampling[y, x, 0]) + abs(sampling[y + j, x, 1] - sampling[y, x, 1])
                    if away < JUMP * (1 + abs(j)):
                        w = STREAK + 1.0 - abs(j)
                        r, g, b, weight = r + w * rgb[y + j, x, 0], g + w * rgb[y + j, x, 1], b + w * rgb[y + j, x, 2], weight + w
                colours[count, 0] = int(rgb[y, x, 0] * (1 - share) + share * r / weight + 0.5)
                colours[count, 1] = int(rgb[y, x, 1] * (1 - share) + share * g / weight + 0.5)
                colours[count, 2] = int(rgb[y, x, 2] * (1 - share) + share * b / weight + 0.5)
            else:
                continue
            places[count] = y * width + x
            count += 1
    for k in range(count):
        y, x = places[k] // width, places[k] % width
        for c in range(3):
            rgb[y, x, c] = colours[k, c]
