"""The two pixel loops of the composite, compiled: every frame passes through one of them once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from numba import types

from engine.types import UInt8Array

_F = TypeVar("_F", bound=Callable[..., Any])

FULL = 255
CORRECTION_LIMIT = 64
"""Grey levels the colour correction at the rim may add or take: where the background's estimate is poor, more would be a new error."""
CORRECTION_FROM = 96
"""Matte value from which the correction is whole; below it fades, since there the picture is background and its texture is unknown."""

_IMAGE, _MASK = types.Array(types.uint8, 3, "C", readonly=True), types.Array(types.uint8, 2, "C", readonly=True)
_OUT = types.Array(types.uint8, 3, "C")


def _kernel(*arguments: Any) -> Callable[[_F], _F]:
    """Compiled for exactly these arguments when this file is first imported (1 s; later runs find it on disk), so never while someone waits for a
    frame. Releases the interpreter's lock."""

    def compiled(function: _F) -> _F:
        return cast(_F, numba.njit(types.void(*arguments), cache=True, nogil=True)(function))

    return compiled


@_kernel(_OUT, _IMAGE, _MASK, types.int64, types.int64, types.int64, types.int64)
def paste(out: UInt8Array, frame: UInt8Array, feather: UInt8Array, x: int, y: int, frame_x: int, frame_y: int) -> None:
    """Write a part of `frame` [., ., 3] into `out` [., ., 3] by `feather` [h, w], 255 = the frame.

    The part starts at (frame_x, frame_y) of the frame and at (x, y) of `out`, and is as large as the feather.
    """
    height, width = feather.shape
    for j in range(height):
        for i in range(width):
            share = int(feather[j, i])
            if share == FULL:
                for c in range(3):
                    out[y + j, x + i, c] = frame[frame_y + j, frame_x + i, c]
            elif share > 0:
                for c in range(3):
                    still = int(out[y + j, x + i, c])
                    out[y + j, x + i, c] = still + ((int(frame[frame_y + j, frame_x + i, c]) - still) * share + 127) // FULL


@_kernel(_OUT, _IMAGE, _MASK, _IMAGE, _IMAGE, _MASK, types.int64, types.int64, types.int64, types.int64)
def replace_background(
    out: UInt8Array,
    frame: UInt8Array,
    matte: UInt8Array,
    clean: UInt8Array,
    plate: UInt8Array,
    feather: UInt8Array,
    x: int,
    y: int,
    frame_x: int,
    frame_y: int,
) -> None:
    """Write the person of `frame` [., ., 3] over `plate` into `out`, by `feather` [h, w] as in `paste`.

    `matte` is as large as the frame; `clean` and `plate`, the old and the new background, are as large as `out`.

    A frame's pixel at the rim is a F + (1 - a) B: person F, matte a, old background B, which `clean` estimates. What is wanted,
    a F + (1 - a) P with the new background P, is the plain mix a C + (1 - a) P plus (1 - a) (C - B): the second term takes the
    old background's colour out of the hair.
    """
    height, width = feather.shape
    for j in range(height):
        for i in range(width):
            share = int(feather[j, i])
            if share == 0:
                continue
            a = int(matte[frame_y + j, frame_x + i])
            rest = FULL - a
            trust = min(FULL, a * FULL // CORRECTION_FROM)
            for c in range(3):
                value = int(plate[y + j, x + i, c])
                if a > 0:
                    colour = int(frame[frame_y + j, frame_x + i, c])
                    if rest == 0:
                        value = colour
                    else:
                        correction = (colour - int(clean[y + j, x + i, c])) * rest * trust // (FULL * FULL)
                        correction = max(-CORRECTION_LIMIT, min(CORRECTION_LIMIT, correction))
                        value = max(0, min(FULL, (colour * a + value * rest + 127) // FULL + correction))
                if share < FULL:
                    still = int(out[y + j, x + i, c])
                    value = still + ((value - still) * share + 127) // FULL
                out[y + j, x + i, c] = value
