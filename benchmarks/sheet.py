"""Contact sheets: the driver above, the avatar below, with the measured values, so that a number is never without a look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.types import UInt8Array

Face = npt.NDArray[np.float64]
"""Landmarks [478, 3] in pixels."""
TILE = 256
"""px of a picture's side in the sheet."""
ACROSS = 8
AROUND = 2.2
"""Side of what is shown of a face, in face heights."""
LABEL = 34
"""px of text under a pair."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A driving picture and the avatar it made, small."""

    driving: UInt8Array  # [TILE, TILE, 3]
    avatar: UInt8Array

    @classmethod
    def of(cls, driving: UInt8Array, avatar: UInt8Array, *, faces: tuple[Face, Face] | None = None) -> Pair:
        """Shrink both; with `faces` only head and shoulders of each."""
        if faces is not None:
            driving, avatar = around(driving, faces[0]), around(avatar, faces[1])
        return cls(_tile(driving), _tile(avatar))


def around(rgb: UInt8Array, face: Face) -> UInt8Array:
    """The part of a picture that lies about a face."""
    middle, half = face[:, :2].mean(0), AROUND * float(np.ptp(face[:, 1])) / 2
    x0, y0 = (max(0, int(value - half)) for value in middle)
    x1, y1 = (
        max(start + 1, min(length, int(value + half))) for start, value, length in ((x0, middle[0], rgb.shape[1]), (y0, middle[1], rgb.shape[0]))
    )
    return rgb[y0:y1, x0:x1]


def _tile(rgb: UInt8Array) -> UInt8Array:
    import cv2

    height, width = rgb.shape[:2]
    scale = TILE / max(height, width)
    small = cv2.resize(rgb, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA)
    tile = np.full((TILE, TILE, 3), 40, np.uint8)
    y, x = (TILE - small.shape[0]) // 2, (TILE - small.shape[1]) // 2
    tile[y : y + small.shape[0], x : x + small.shape[1]] = small
    return tile


def contact_sheet(pairs: Sequence[tuple[Pair, str]], path: Path) -> None:
    """Write pairs, each with up to two lines of text below it, as a PNG."""
    import cv2

    cells = []
    for pair, text in pairs:
        label = np.full((LABEL, TILE, 3), 20, np.uint8)
        for k, line in enumerate(text.split("\n")[:2]):
            cv2.putText(label, line, (4, 13 + 15 * k), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (235, 235, 235), 1, cv2.LINE_AA)
        cells.append(np.concatenate([pair.driving, pair.avatar, label]))
    blank = np.full((2 * TILE + LABEL, TILE, 3), 20, np.uint8)
    cells += [blank] * (-len(cells) % ACROSS)
    rows = [np.concatenate(cells[i : i + ACROSS], axis=1) for i in range(0, len(cells), ACROSS)]
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.concatenate(rows)[..., ::-1])
