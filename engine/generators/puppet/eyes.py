"""Lids, brows and the eyeballs under the lids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.generators.puppet import topology
from engine.generators.puppet.features import Features
from engine.generators.puppet.mesh import Head
from engine.generators.puppet.raster import kernel
from engine.types import FloatArray, UInt8Array

UPPER_SHARE = 0.82
"""Share of a closing aperture that the upper lid takes."""
PATCH = 1.1
"""Half size of an eyeball patch, eye widths across and 0.75 of that down."""


@dataclass(frozen=True, slots=True)
class EyeWeights:
    """See the fields of the same names in Features."""

    lid_upper: FloatArray
    lid_lower: FloatArray
    brow: FloatArray


def weigh(head: Head) -> EyeWeights:
    """How far each point goes with the lids' columns and the brows."""
    count = len(head.points)
    upper, lower = np.zeros((2, count, 7), np.float32), np.zeros((2, count, 7), np.float32)
    brow = np.zeros((2, count), np.float32)
    for side in range(2):
        corner = head.points[list(topology.EYE_CORNERS[side])]
        local = head.local(corner.mean(0))
        u, v = local[:, 0], local[:, 1]
        order = np.argsort(u[list(topology.UPPER_LID[side])])
        top, bottom = np.array(topology.UPPER_LID[side])[order], np.array(topology.LOWER_LID[side])[order]
        crease_top = np.array(topology.UPPER_CREASE[side])[order]
        edge = float(np.abs(u[list(topology.EYE_CORNERS[side])]).mean())
        knots = (u[top] + u[bottom]) / 2
        full = np.concatenate([[-edge * 1.15], knots, [edge * 1.15]])
        hats = np.stack([np.interp(u, full, np.eye(9)[i + 1]) for i in range(7)], 1)
        back = np.argsort(order)
        reach = max(float((v[top] - v[crease_top]).mean()), 0.04)
        near_top = np.exp(-((np.minimum(v - np.interp(u, u[top], v[top]), 0) / (1.1 * reach)) ** 2))
        near_bottom = np.exp(-((np.maximum(v - np.interp(u, u[bottom], v[bottom]), 0) / (1.3 * reach)) ** 2))
        middle = np.interp(u, knots, (v[top] + v[bottom]) / 2)
        upper_half, lower_half = v < middle, v >= middle
        upper_half[top], lower_half[top] = True, False
        upper_half[bottom], lower_half[bottom] = False, True
        upper[side] = (hats * (upper_half * near_top)[:, None])[:, back]
        lower[side] = (hats * (lower_half * near_bottom)[:, None])[:, back]
        for arc, weights in ((topology.UPPER_LID[side], upper[side]), (topology.LOWER_LID[side], lower[side])):
            weights[list(arc)] = np.eye(7, dtype=np.float32)
        for corner_point in topology.EYE_CORNERS[side]:
            upper[side, corner_point] = lower[side, corner_point] = 0
        brows = local[list(topology.BROWS[side])]
        across = np.exp(-((np.maximum(np.abs(u - brows[:, 0].mean()) - 0.30, 0) / 0.18) ** 2))
        from_brow = v - brows[:, 1].mean()
        brow[side] = across * np.where(from_brow < 0, np.exp(-((from_brow / 0.45) ** 2)), np.exp(-((from_brow / 0.16) ** 2)))
    lids = upper.sum(2).max(0) + lower.sum(2).max(0)
    brow *= 1.0 - 0.9 * np.clip(lids, 0, 1)
    return EyeWeights(upper, lower, brow)


def move(features: Features, points: FloatArray, apertures: FloatArray, brows: FloatArray, *, expressed: bool) -> None:
    """Bring the lids of `points` [478, 3] (changed in place) to absolute apertures [2] and, without an expression, lift the brows [2]."""
    down = features.frame[:, 1]
    for side in range(2):
        if not expressed:
            points -= features.brow[side][:, None] * (down * (float(brows[side]) * float(features.ocular)))
        top, bottom = list(topology.UPPER_LID[side]), list(topology.LOWER_LID[side])
        own = (features.rest[bottom] - features.rest[top]) @ down
        now = (points[bottom] - points[top]) @ down
        change = now - float(apertures[side]) * own
        points += (features.lid_upper[side] @ (change * UPPER_SHARE))[:, None] * down
        points -= (features.lid_lower[side] @ (change * (1 - UPPER_SHARE)))[:, None] * down


def eyeball(rgb: UInt8Array, landmarks: FloatArray, side: int) -> tuple[FloatArray, UInt8Array, FloatArray, FloatArray]:
    """The eye without its lids -> (patch [4], picture [h, w, 3], iris [3] centre and radius, axis [4] centre and half width vector)."""
    import cv2

    corners = landmarks[list(topology.EYE_CORNERS[side]), :2]
    corners = corners[np.argsort(corners[:, 0])]
    centre, half = corners.mean(0), (corners[1] - corners[0]) / 2
    reach = float(np.linalg.norm(half))
    x0, y0 = int(centre[0] - PATCH * 1.3 * reach), int(centre[1] - PATCH * reach)
    x1, y1 = int(centre[0] + PATCH * 1.3 * reach) + 1, int(centre[1] + PATCH * reach) + 1
    height, width = rgb.shape[:2]
    xs, ys = np.clip(np.arange(x0, x1), 0, width - 1), np.clip(np.arange(y0, y1), 0, height - 1)
    patch = rgb[ys][:, xs].copy()
    iris_points = landmarks[list(topology.IRIS[side]), :2]
    iris_centre = iris_points[0]
    radius = float(np.linalg.norm(iris_points[1:] - iris_centre, axis=1).mean())
    outline = np.concatenate([corners[:1], landmarks[_arc(topology.UPPER_LID[side], landmarks), :2], corners[1:], landmarks[_arc(topology.LOWER_LID[side], landmarks)[::-1], :2]])
    hole = np.zeros(patch.shape[:2], np.uint8)
    cv2.fillPoly(hole, [np.round((outline - (x0, y0)) * 16).astype(np.int32)], 1, shift=4)
    inner = cv2.erode(hole, np.ones((3, 3), np.uint8))
    # What a lid hides of the iris is what its mirror image below shows.
    gy, gx = np.mgrid[y0:y1, x0:x1].astype(np.float32)
    within = np.hypot(gx - iris_centre[0], gy - iris_centre[1]) < radius * 1.02
    mirror_y = np.clip(np.round(2 * iris_centre[1] - gy - y0).astype(int), 0, len(ys) - 1)
    columns = np.broadcast_to(np.arange(len(xs)), mirror_y.shape)
    can = within & (inner == 0) & (inner[mirror_y, columns] > 0)
    filled = np.where(can[..., None], patch[mirror_y, columns], patch)
    known = (inner > 0) | can
    filled = cv2.inpaint(np.ascontiguousarray(filled), (~known).astype(np.uint8), 3, cv2.INPAINT_TELEA)
    soft = cv2.GaussianBlur(filled, (0, 0), 1.0)
    filled = np.where(known[..., None], filled, soft)
    filled = np.where(hole[..., None] > 0, patch, filled)
    return (
        np.array([x0, y0, x1 - x0, y1 - y0], np.float32),
        filled.astype(np.uint8),
        np.array([*iris_centre, radius], np.float32),
        np.array([*centre, *half], np.float32),
    )


def _arc(arc: tuple[int, ...], landmarks: FloatArray) -> list[int]:
    return sorted(arc, key=lambda i: float(landmarks[i, 0]))


@kernel
def paint(layer: UInt8Array, hole: UInt8Array, tag: int, box: FloatArray, back: FloatArray, patch: UInt8Array, corner: FloatArray, iris: FloatArray, axis: FloatArray, gaze: FloatArray) -> None:
    """Put an eyeball under the lids: every pixel of `layer` [H, W, 4] near the hole `tag` is mixed with the eye it shows.

    box [4] x0, y0, x1, y1 px; back [2, 3] output px -> portrait px; patch [h, w, 3] whose corner is at corner [2]; gaze [2] shift px.
    """
    reach = np.sqrt(axis[2] * axis[2] + axis[3] * axis[3])
    inner, outer = iris[2] * np.float32(1.1), max(reach * np.float32(1.05), iris[2] * np.float32(2.2))
    for y in range(max(int(box[1]), 1), min(int(box[3]) + 1, hole.shape[0] - 1)):
        for x in range(max(int(box[0]), 1), min(int(box[2]) + 1, hole.shape[1] - 1)):
            count = 0
            for j in range(-1, 2):
                for i in range(-1, 2):
                    if hole[y + j, x + i] == tag:
                        count += 1
            if count == 0:
                continue
            mix = np.float32(count) / np.float32(9.0)
            px = back[0, 0] * x + back[0, 1] * y + back[0, 2]
            py = back[1, 0] * x + back[1, 1] * y + back[1, 2]
            # The white is a rubber sheet: it moves with the iris there and stays at the corners.
            qx, qy = px, py
            for _ in range(3):
                far = np.sqrt((qx - iris[0]) ** 2 + (qy - iris[1]) ** 2)
                hold = min(max((outer - far) / (outer - inner), np.float32(0.0)), np.float32(1.0))
                qx, qy = px - gaze[0] * hold, py - gaze[1] * hold
            sx = min(max(qx - corner[0], np.float32(0.0)), np.float32(patch.shape[1] - 1.001))
            sy = min(max(qy - corner[1], np.float32(0.0)), np.float32(patch.shape[0] - 1.001))
            ix, iy = int(sx), int(sy)
            fx, fy = sx - ix, sy - iy
            for c in range(3):
                top = patch[iy, ix, c] * (1 - fx) + patch[iy, ix + 1, c] * fx
                low = patch[iy + 1, ix, c] * (1 - fx) + patch[iy + 1, ix + 1, c] * fx
                value = top * (1 - fy) + low * fy
                layer[y, x, c] = np.uint8(layer[y, x, c] * (1 - mix) + value * mix + np.float32(0.5))
