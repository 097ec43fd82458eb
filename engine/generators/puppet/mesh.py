"""From face points to a sheet of triangles over the whole picture: face, hair, neck and shoulders in one piece."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.drivers.rigid import MEAN_RIGID, PIVOT, RIGID, fit_pose
from engine.generators.puppet import topology
from engine.generators.puppet.raster import kernel
from engine.generators.puppet.refine import apply, subdivide
from engine.types import FloatArray

CAMERA = 6.0
"""Distance of the weak perspective's camera, face widths."""
GRID = 18
"""Spacing of the vertices around the face, px at a face width of 150 px; grows with the face."""
BACK_SLOPE = 0.5
"""How fast the head recedes outside the face's outline: depth per distance."""
BACK_LIMIT = 0.4
"""The deepest point behind the outline, face widths."""
FOLLOW = 0.32
"""The outline's expression reaches this far outside it, face widths."""
RIM, RIM_LEAST = 0.10, 0.040
"""Skin within RIM of the visible contour slides inwards when it turns into view, at the contour itself by RIM_LEAST; face widths."""
NECK = 0.55
"""The head's hold on the neck ends this far below the chin, face heights."""


def smoothstep(x: FloatArray | float, low: float, high: float) -> FloatArray:
    """0 below `low`, 1 above `high`, smooth between (also for low > high, falling)."""
    t = np.clip((np.asarray(x, np.float32) - low) / (high - low), 0.0, 1.0)
    smooth: FloatArray = (t * t * (3.0 - 2.0 * t)).astype(np.float32)
    return smooth


@dataclass(frozen=True, slots=True)
class Head:
    """The portrait's head as found: a frame of its own and the units everything is measured in."""

    points: FloatArray  # [478, 3] px, camera space after `unproject`
    frame: FloatArray  # [3, 3] columns: right, down, away
    turn: FloatArray  # [3, 3] rotation from the drivers' mean face, which their angles and expressions refer to
    pivot: FloatArray  # [3]
    eyes_middle: FloatArray  # [3]
    width: float  # px
    height: float  # px, forehead to chin
    ocular: float  # px

    def local(self, origin: FloatArray) -> FloatArray:
        """[478, 3] points in the head's frame about `origin`, ocular distances."""
        found: FloatArray = (self.points - origin) @ self.frame / self.ocular
        return found


def project(points: FloatArray, pivot: FloatArray, width: float) -> FloatArray:
    """[N, 2] picture positions of camera-space points."""
    focal = CAMERA * width
    scale = focal / (focal + points[:, 2:] - pivot[2])
    flat: FloatArray = pivot[:2] + (points[:, :2] - pivot[:2]) * scale
    return flat


@kernel
def turn_about(points: FloatArray, pivot: FloatArray, width: float, matrix: FloatArray, shift: FloatArray, turned: FloatArray) -> None:
    """Turn camera-space points [N, 3] about `pivot` [3] by matrix [3, 3], move them by `shift` [3] and project them.

    turned [N, 3] is written: px and camera-space depth.
    """
    focal = np.float32(CAMERA * width)
    for i in range(points.shape[0]):
        x, y, z = points[i, 0] - pivot[0], points[i, 1] - pivot[1], points[i, 2] - pivot[2]
        depth = matrix[2, 0] * x + matrix[2, 1] * y + matrix[2, 2] * z + shift[2]
        scale = focal / (focal + depth)
        turned[i, 0] = pivot[0] + (matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] * z + shift[0]) * scale
        turned[i, 1] = pivot[1] + (matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] * z + shift[1]) * scale
        turned[i, 2] = pivot[2] + depth


def unproject(points: FloatArray, pivot: FloatArray, width: float) -> FloatArray:
    """[N, 3] camera-space points whose projection has the given picture positions; depth stays."""
    focal = CAMERA * width
    flat = pivot[:2] + (points[:, :2] - pivot[:2]) * ((focal + points[:, 2:] - pivot[2]) / focal)
    whole: FloatArray = np.concatenate([flat, points[:, 2:]], 1).astype(np.float32)
    return whole


def measure(landmarks: FloatArray) -> Head:
    """[478, 3] picture px (z on the scale of x) -> Head."""
    pairs = topology.mirrored_pairs()
    right = (landmarks[pairs[:, 1]] - landmarks[pairs[:, 0]]).mean(0)
    right /= np.linalg.norm(right)
    down = landmarks[topology.CHIN] - landmarks[topology.FOREHEAD]
    down -= right * (down @ right)
    down /= np.linalg.norm(down)
    frame = np.stack([right, down, np.cross(right, down)], 1).astype(np.float32)
    width = float(np.linalg.norm(np.subtract(*landmarks[list(topology.CHEEKS)])))
    height = float(np.linalg.norm(landmarks[topology.CHIN] - landmarks[topology.FOREHEAD]))
    eyes = np.stack([landmarks[list(corners)].mean(0) for corners in topology.EYE_CORNERS])
    pivot = (eyes.mean(0) + frame @ (PIVOT * width)).astype(np.float32)
    points = unproject(landmarks, pivot, width)
    turn = fit_pose(MEAN_RIGID, landmarks[RIGID].astype(np.float64)).turn.astype(np.float32)
    return Head(points, frame, turn, pivot, eyes.mean(0).astype(np.float32), width, height, float(np.linalg.norm(eyes[0] - eyes[1])))


@dataclass(frozen=True, slots=True)
class Rim:
    """Skin near the face's visible contour: where a turn brings more of it into view, it samples skin from further inside."""

    index: npt.NDArray[np.int32]  # [K] vertices
    shift: FloatArray  # [K, 2] px inwards when wholly turned into view
    normal: FloatArray  # [K, 3] outward unit normals at rest


def find_rim(face: FloatArray, flat: FloatArray, triangles: npt.NDArray[np.int32], head: Head) -> Rim:
    """The face's vertices [F, 3] in camera space and [F, 2] in the picture -> Rim."""
    import cv2

    hull = cv2.convexHull(np.ascontiguousarray(flat))
    inside = np.array([cv2.pointPolygonTest(hull, (float(x), float(y)), True) for x, y in flat], np.float32)
    reach, least = RIM * head.width, RIM_LEAST * head.width
    index = np.flatnonzero(inside < reach)
    border = hull[:, 0]
    ends = np.roll(border, -1, axis=0)
    along = ends - border
    t = np.clip(((flat[index, None] - border) * along).sum(2) / np.maximum((along**2).sum(1), 1e-6), 0, 1)
    nearest = border + t[..., None] * along
    which = np.linalg.norm(flat[index, None] - nearest, axis=2).argmin(1)
    normal = np.stack([along[:, 1], -along[:, 0]], 1)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-6)
    normal *= np.sign(((flat.mean(0) - border) * normal).sum(1))[:, None]
    depth = np.maximum(inside[index], 0)
    shift = normal[which] * (least * (1 - depth / reach))[:, None]

    a, b, c = (face[triangles[:, k]] for k in range(3))
    facet = np.cross(b - a, c - a)
    centre = head.eyes_middle + head.frame @ (np.array([0.0, 0.25, 0.45], np.float32) * head.width)
    facet *= np.sign((facet * ((a + b + c) / 3 - centre)).sum(1))[:, None]
    normals = np.zeros_like(face)
    for k in range(3):
        np.add.at(normals, triangles[:, k], facet)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-6)
    return Rim(index.astype(np.int32), shift.astype(np.float32), normals[index].astype(np.float32))


@dataclass(frozen=True, slots=True)
class Sheet:
    """The face, refined, with its surroundings: 478 face points, M made by subdivision, then the surroundings."""

    rest: FloatArray  # [N, 3] camera space
    flat: FloatArray  # [N, 2] picture px
    triangles: npt.NDArray[np.int32]
    tags: npt.NDArray[np.uint8]
    parents: npt.NDArray[np.int32]  # [M, 4]
    weights: FloatArray  # [M, 4]
    head_weight: FloatArray  # [N]
    follow: FloatArray  # [N - 478 - M, 36]
    rim: Rim


def _surroundings(outline: FloatArray, head: Head, size: tuple[int, int], pad: int) -> FloatArray:
    """[S, 2] grid points outside the face's outline [K, 2], out to the padding."""
    import cv2

    step = max(GRID * head.width / 150.0, 10.0)
    height, width = size
    columns = np.linspace(-pad, width - 1 + pad, int(np.ceil((width + 2 * pad) / step)) + 1)
    rows = np.linspace(-pad, height - 1 + pad, int(np.ceil((height + 2 * pad) / step)) + 1)
    grid = np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2).astype(np.float32)
    away = np.array([-cv2.pointPolygonTest(outline, (float(x), float(y)), True) for x, y in grid], np.float32)
    # A first ring close to the outline, so that the skin's edge does not stretch over a whole cell.
    hull = outline[::2]
    middle = hull.mean(0)
    ring = hull + (hull - middle) / np.linalg.norm(hull - middle, axis=1, keepdims=True) * step * 0.5
    found: FloatArray = np.concatenate([ring, grid[away > step * 0.8]]).astype(np.float32)
    return found


def spread_sheet(landmarks: FloatArray, head: Head, size: tuple[int, int], pad: int) -> Sheet:
    """Grow the face mesh over the whole (padded) picture of `size` (H, W)."""
    from scipy.spatial import Delaunay

    division = subdivide()
    made = apply(division.parents, division.weights, head.points)
    face = np.concatenate([head.points, made])
    face_flat = project(face, head.pivot, head.width)
    border = face_flat[division.outline]
    outer = _surroundings(np.ascontiguousarray(border), head, size, pad)
    joined = Delaunay(np.concatenate([border, outer])).simplices
    joined = joined[(joined >= len(border)).any(1)]
    index = np.concatenate([division.outline, len(face) + np.arange(len(outer))])
    around = index[joined].astype(np.int32)
    triangles = np.concatenate([division.triangles, around])
    tags = np.concatenate([division.tags, np.zeros(len(around), np.uint8)])

    outline = landmarks[list(topology.OVAL)]
    gap = np.linalg.norm(outer[:, None] - outline[None, :, :2], axis=2)
    away = gap.min(1)
    near = 1.0 / (gap + 0.02 * head.width) ** 3
    near /= near.sum(1, keepdims=True)
    z = near @ outline[:, 2] + np.minimum(BACK_SLOPE * away, BACK_LIMIT * head.width)
    follow = (near * (1.0 - smoothstep(away / head.width, 0.0, FOLLOW))[:, None]).astype(np.float32)

    around3 = unproject(np.concatenate([outer, z[:, None]], 1).astype(np.float32), head.pivot, head.width)
    weight = np.concatenate([np.ones(len(face), np.float32), _head_hold(outer, away, landmarks, head)])
    rest = np.concatenate([face, around3]).astype(np.float32)
    flat = np.concatenate([face_flat, outer]).astype(np.float32)
    return Sheet(
        rest,
        flat,
        triangles.astype(np.int32),
        tags.astype(np.uint8),
        division.parents,
        division.weights,
        weight,
        follow,
        find_rim(face, face_flat, division.triangles, head),
    )


def _head_hold(outer: FloatArray, away: FloatArray, landmarks: FloatArray, head: Head) -> FloatArray:
    """[M] 1 where a point moves with the head, falling to 0 down the neck and far from the head."""
    down = head.frame[:2, 1] / np.linalg.norm(head.frame[:2, 1])
    below = (outer - landmarks[topology.CHIN, :2]) @ down / head.height
    neck = 1.0 - smoothstep(below, -0.12, NECK)
    far = 1.0 - smoothstep(away / head.width, 0.65, 1.5)
    hold: FloatArray = (neck * far).astype(np.float32)
    return hold
