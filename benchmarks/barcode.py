"""A frame number drawn as black and white cells over the top rows of a picture, and read back after codecs and resizing.

Layout, left to right over the whole width: white, black | 20 bits of the number | 12 bits of CRC | black, white. The guards
give the two grey levels, so that a change of brightness or contrast does not matter; the CRC (the CRC-12 of 3GPP TS 25.212,
polynomial 0x80F: x^12 + x^11 + x^3 + x^2 + x + 1) refuses a strip that is torn between two frames or not there at all.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engine.types import UInt8Array

ID_BITS = 20
"""9.7 hours at 30 frames a second."""
CRC_BITS = 12
CRC_POLYNOMIAL = 0x80F
CRC_START = 0xA5A  # not 0: a strip of one grey must not be a valid number
GUARD = (1, 0)  # white, black; mirrored at the right end
CELLS = 2 * len(GUARD) + ID_BITS + CRC_BITS
ROWS = 32
"""px: rows of the strip, two macroblocks of H.264 and VP8."""
LOWEST_WIDTH = 4 * CELLS
"""px: narrower pictures leave under 4 px a cell, too few for a chroma-subsampled, blocked codec."""
MIN_CONTRAST = 48
"""Grey levels between the guards' white and black below which there is no bar code."""
READ_ROWS = (0.2, 0.6)
"""Share of the strip that is read: away from the picture below, also when the picture was resized in height by up to 0.6."""
READ_CELL = 0.5
"""Share of a cell's width that is averaged, around its middle."""


def crc(number: int) -> int:
    """CRC-12 of the number's 20 bits, most significant first."""
    value = CRC_START
    for bit in range(ID_BITS - 1, -1, -1):
        top = (value >> (CRC_BITS - 1)) & 1
        value = (value << 1) & ((1 << CRC_BITS) - 1)
        if top ^ ((number >> bit) & 1):
            value ^= CRC_POLYNOMIAL & ((1 << CRC_BITS) - 1)
    return value


def cells(number: int) -> npt.NDArray[np.uint8]:
    """[36] of 0 or 1: the whole row of cells. Raises ValueError where the number has more than 20 bits."""
    if not 0 <= number < 1 << ID_BITS:
        raise ValueError(f"a frame number of 0..{(1 << ID_BITS) - 1} was expected, not {number}")
    word = number << CRC_BITS | crc(number)
    bits = [(word >> k) & 1 for k in range(ID_BITS + CRC_BITS - 1, -1, -1)]
    return np.array([*GUARD, *bits, *reversed(GUARD)], np.uint8)


def draw(rgb: UInt8Array, number: int, *, rows: int = ROWS) -> None:
    """Draw the number over the top `rows` of a picture [H, W, 3], in place. Raises ValueError where it is too narrow."""
    width = rgb.shape[1]
    if width < LOWEST_WIDTH:
        raise ValueError(f"a picture at least {LOWEST_WIDTH} px wide was expected, not {width}")
    columns = np.minimum(np.arange(width) * CELLS // width, CELLS - 1)
    rgb[:rows] = (cells(number)[columns] * np.uint8(255))[None, :, None]


def read(rgb: UInt8Array, *, rows: int = ROWS) -> int | None:
    """The number in the top `rows` of a picture [H, W, 3] (or grey [H, W]); None where there is none or it is damaged."""
    height, width = rgb.shape[:2]
    if width < CELLS or height < 1:
        return None
    first, last = (int(round(share * min(rows, height))) for share in READ_ROWS)
    strip = rgb[first : max(last, first + 1)]
    grey = strip.mean(axis=(0, 2)) if strip.ndim == 3 else strip.mean(axis=0)
    total = np.concatenate([[0.0], np.cumsum(grey)])
    middles = (np.arange(CELLS) + 0.5) * width / CELLS
    half = max(0.5, READ_CELL * width / CELLS / 2)
    low = np.clip(np.floor(middles - half).astype(int), 0, width - 1)
    high = np.clip(np.ceil(middles + half).astype(int), low + 1, width)
    levels = (total[high] - total[low]) / (high - low)
    n = len(GUARD)
    white, black = (levels[0] + levels[-1]) / 2, (levels[n - 1] + levels[-n]) / 2
    if white - black < MIN_CONTRAST:
        return None
    bits = (levels > (white + black) / 2).astype(int)
    if tuple(bits[:n]) != GUARD or tuple(bits[-n:]) != GUARD[::-1]:
        return None
    word = int("".join(map(str, bits[n:-n])), 2)
    number, check = word >> CRC_BITS, word & ((1 << CRC_BITS) - 1)
    return number if crc(number) == check else None
