"""One round of subdivision of the face mesh: lips, lids and outline become smooth curves instead of polygons."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.generators.puppet import topology
from engine.types import FACE_POINTS, FloatArray

TENSION = 1.0 / 16.0
"""Of the four-point scheme."""


@dataclass(frozen=True, slots=True)
class Subdivision:
    """New points as weighted sums of the 478, and the triangles over both."""

    parents: npt.NDArray[np.int32]  # [M, 4]
    weights: FloatArray  # [M, 4]
    triangles: npt.NDArray[np.int32]  # [T, 3], new points count from FACE_POINTS
    tags: npt.NDArray[np.uint8]  # [T]
    outline: npt.NDArray[np.int32]  # the face's outline with its new points, in order


def apply(parents: npt.NDArray[np.int32], weights: FloatArray, points: FloatArray) -> FloatArray:
    """[478 or more, K] -> [M, K] the new points."""
    made: FloatArray = np.einsum("mp,mpk->mk", weights, points[parents], optimize=False)
    return made


def _curves() -> list[list[int]]:
    """Closed curves of the mesh that should be smooth, and open ones whose ends are corners."""
    curves = [list(topology.OVAL) + [topology.OVAL[0]]]
    for ring in range(4):
        left, right = topology.LIP_CORNERS[ring]
        curves.append([left, *topology.UPPER_LIP[ring], right, *reversed(topology.LOWER_LIP[ring]), left])
    for side in range(2):
        outer, inner = topology.EYE_CORNERS[side]
        curves += [[outer, *topology.UPPER_LID[side], inner], [outer, *topology.LOWER_LID[side], inner]]
        curves += [list(topology.UPPER_CREASE[side]), list(topology.LOWER_CREASE[side])]
    return curves


def _four_point_rule() -> dict[tuple[int, int], tuple[tuple[int, int, int, int], tuple[float, float, float, float]]]:
    """Edge -> parents and weights of its middle by the interpolating four-point scheme.

    Dyn, Levin, Gregory 1987, "A 4-point interpolatory subdivision scheme for curve design", CAGD 4: -1/16, 9/16, 9/16, -1/16.
    """
    rule: dict[tuple[int, int], tuple[tuple[int, int, int, int], tuple[float, float, float, float]]] = {}
    for curve in _curves():
        closed = curve[0] == curve[-1]
        for i in range(len(curve) - 1):
            a, b = curve[i], curve[i + 1]
            before = curve[i - 1] if i > 0 else curve[-2] if closed else None
            after = curve[i + 2] if i + 2 < len(curve) else curve[1] if closed else None
            how = [-TENSION, 0.5 + TENSION, 0.5 + TENSION, -TENSION]
            # Where the curve ends, its last segment is reflected about its end: 2 a - b stands for the missing point.
            if before is None:
                how = [0.0, how[1] - 2 * TENSION, how[2] + TENSION, how[3]]
            if after is None:
                how = [how[0], how[1] + TENSION, how[2] - 2 * TENSION, 0.0]
            key = (min(a, b), max(a, b))
            rule[key] = ((before if before is not None else a, a, b, after if after is not None else b), (how[0], how[1], how[2], how[3]))
    return rule


def subdivide() -> Subdivision:
    """Split every triangle of the face in four."""
    skin = topology.skin_triangles()
    holes, hole_tags = topology.hole_triangles()
    coarse = np.concatenate([skin, holes])
    tags = np.concatenate([np.full(len(skin), topology.SKIN, np.uint8), hole_tags])
    rule = _four_point_rule()
    middle: dict[tuple[int, int], int] = {}
    parents: list[tuple[int, int, int, int]] = []
    weights: list[tuple[float, float, float, float]] = []

    def between(a: int, b: int) -> int:
        key = (min(a, b), max(a, b))
        if key not in middle:
            middle[key] = FACE_POINTS + len(parents)
            who, how = rule.get(key, ((a, a, b, b), (0.0, 0.5, 0.5, 0.0)))
            parents.append(who)
            weights.append(how)
        return middle[key]

    fine: list[tuple[int, int, int]] = []
    for a, b, c in coarse.tolist():
        ab, bc, ca = between(a, b), between(b, c), between(c, a)
        fine += [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
    outline: list[int] = []
    for i, point in enumerate(topology.OVAL):
        outline += [point, between(point, topology.OVAL[(i + 1) % len(topology.OVAL)])]
    return Subdivision(
        np.array(parents, np.int32),
        np.array(weights, np.float32),
        np.array(fine, np.int32),
        np.repeat(tags, 4).astype(np.uint8),
        np.array(outline, np.int32),
    )
