"""Which of MediaPipe's 478 face points are what, and how they are joined: facts about the tracker's mesh, no geometry."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from engine.drivers import outlines
from engine.types import FACE_POINTS

Int32Array = npt.NDArray[np.int32]

SKIN_POINTS = 468
"""Points of the skin mesh; the rest are irises."""

# fmt: off
OVAL = outlines.OVAL
CHIN, FOREHEAD, NOSE_TIP = 152, 10, 1
CHEEKS = (234, 454)
"""Outermost points of the outline beside the ears, picture left and right: their distance is the face width."""

# Lips: rings from the inside out; each ring is (left corner, upper arc, right corner, lower arc), arcs from left to right.
LIP_CORNERS = ((78, 308), (62, 292), (76, 306), (61, 291))
UPPER_LIP = ((191, 80, 81, 82, 13, 312, 311, 310, 415), (183, 42, 41, 38, 12, 268, 271, 272, 407),
             (184, 74, 73, 72, 11, 302, 303, 304, 408), (185, 40, 39, 37, 0, 267, 269, 270, 409))
LOWER_LIP = ((95, 88, 178, 87, 14, 317, 402, 318, 324), (96, 89, 179, 86, 15, 316, 403, 319, 325),
             (77, 90, 180, 85, 16, 315, 404, 320, 307), (146, 91, 181, 84, 17, 314, 405, 321, 375))

# Eyes, picture left then right; arcs from the outer to the inner corner.
EYE_CORNERS = ((33, 133), (263, 362))
UPPER_LID = ((246, 161, 160, 159, 158, 157, 173), (466, 388, 387, 386, 385, 384, 398))
LOWER_LID = ((7, 163, 144, 145, 153, 154, 155), (249, 390, 373, 374, 380, 381, 382))
UPPER_CREASE = ((247, 30, 29, 27, 28, 56, 190), (467, 260, 259, 257, 258, 286, 414))
LOWER_CREASE = ((25, 110, 24, 23, 22, 26, 112), (255, 339, 254, 253, 252, 256, 341))
IRIS = ((468, 469, 470, 471, 472), (473, 474, 475, 476, 477))
BROWS = ((70, 63, 105, 66, 107, 46, 53, 52, 65, 55), (300, 293, 334, 296, 336, 276, 283, 282, 295, 285))
# fmt: on

SKIN, MOUTH_HOLE, LEFT_EYE_HOLE, RIGHT_EYE_HOLE = range(4)
"""Tags of triangles: skin, and what closes the mesh's holes."""


@lru_cache(maxsize=1)
def skin_triangles() -> Int32Array:
    """[T, 3] triangles of the skin: the 3-cliques of the tracker's edges; eyes and mouth stay open."""
    from mediapipe.python.solutions.face_mesh_connections import FACEMESH_TESSELATION

    near: dict[int, set[int]] = {}
    for a, b in FACEMESH_TESSELATION:
        near.setdefault(a, set()).add(b)
        near.setdefault(b, set()).add(a)
    cliques = sorted((a, b, c) for a in near for b in near[a] if b > a for c in near[a] & near[b] if c > b)
    return np.array(cliques, np.int32)


def hole_triangles() -> tuple[Int32Array, npt.NDArray[np.uint8]]:
    """([T, 3], tag [T]) triangles that close the mouth and the eyes."""
    holes = [
        (MOUTH_HOLE, LIP_CORNERS[0], UPPER_LIP[0], LOWER_LIP[0]),
        (LEFT_EYE_HOLE, EYE_CORNERS[0], UPPER_LID[0], LOWER_LID[0]),
        (RIGHT_EYE_HOLE, EYE_CORNERS[1], UPPER_LID[1], LOWER_LID[1]),
    ]
    triangles, tags = [], []
    for tag, (start, end), upper, lower in holes:
        strip = [(start, upper[0], lower[0]), (end, upper[-1], lower[-1])]
        for i in range(len(upper) - 1):
            strip += [(upper[i], upper[i + 1], lower[i]), (upper[i + 1], lower[i + 1], lower[i])]
        triangles += strip
        tags += [tag] * len(strip)
    return np.array(triangles, np.int32), np.array(tags, np.uint8)


def mirrored_pairs() -> Int32Array:
    """[P, 2] picture-left and picture-right points that mirror each other, from the outline, the lips and the eyes."""
    half = len(OVAL) // 2
    pairs = [(OVAL[-i], OVAL[i]) for i in range(1, half)]
    for a, b in zip((*EYE_CORNERS[0], *UPPER_LID[0], *LOWER_LID[0]), (*EYE_CORNERS[1], *UPPER_LID[1], *LOWER_LID[1]), strict=True):
        pairs.append((a, b))
    for arc in (*UPPER_LIP, *LOWER_LIP):
        pairs += [(arc[i], arc[-1 - i]) for i in range(len(arc) // 2)]
    return np.array(pairs, np.int32)


assert max(IRIS[1]) < FACE_POINTS
