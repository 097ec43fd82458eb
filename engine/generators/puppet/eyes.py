"""Lids, brows and the eyeballs under the lids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.generators.puppet import topology
from engine.generators.puppet.features import Features
from engine.generators.puppet.mesh import Head
from engine.generators.puppet.raster import kernel, sample
from engine.types import FloatArray, UInt8Array

UPPER_SHARE = 0.75
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
    brow *= 1.0 - np.clip(1.6 * lids, 0, 1)
    return EyeWeights(upper, lower, brow)


NOT_SKIN = 0.70
"""Pixels darker than this share of the skin around an eye are hair."""


def lid_curve(side: int) -> list[int]:
    """Mesh points along an upper lid's edge, from corner to corner."""
    outer, inner = topology.EYE_CORNERS[side]
    return [outer, *topology.UPPER_LID[side], inner]


LASH = 0.019
"""Thickness of the line of lashes, ocular distances."""
LASH_MOST, LASH_RISE = 0.13, 0.5
"""Until the eye closes it is no thicker than this share of the open eye's height, and lies this share of itself above the lid's edge."""
SHUT_FROM, SHUT_TO = 0.85, 0.25
"""Apertures between which a lid's look turns from open to closed."""


def move(features: Features, points: FloatArray, apertures: FloatArray, brows: FloatArray, *, expressed: float) -> None:
    """Bring the lids of `points` [478, 3] (changed in place) to absolute apertures [2] and lift the brows [2].

    `expressed` 0..1: how much of the brows the points already carry from the driver's expression.
    """
    down = features.frame[:, 1]
    for side in range(2):
        if expressed < 1.0:
            points -= features.brow[side][:, None] * (down * ((1.0 - expressed) * float(brows[side]) * float(features.ocular)))
        top, bottom = list(topology.UPPER_LID[side]), list(topology.LOWER_LID[side])
        own = (features.rest[bottom] - features.rest[top]) @ down
        now = (points[bottom] - points[top]) @ down
        change = now - float(apertures[side]) * own
        points += (features.lid_upper[side] @ (change * UPPER_SHARE))[:, None] * down
        points -= (features.lid_lower[side] @ (change * (1 - UPPER_SHARE)))[:, None] * down


@dataclass(frozen=True, slots=True)
class Patch:
    """One eye's pictures in portrait px."""

    box: FloatArray  # [4] x0, y0, width, height
    ball: UInt8Array  # [h, w, 3] the eye without its lids
    lid: UInt8Array  # [h, w, 4] the skin around the eye with the eye smoothed away: what a closed lid shows, and where
    iris: FloatArray  # [3] centre and radius
    axis: FloatArray  # [4] centre and half width vector
    lash: FloatArray  # [3] colour of the lashes


def draw(rgb: UInt8Array, landmarks: FloatArray, side: int) -> Patch:
    """Take one eye apart: the ball under the lids and the lid over the ball."""
    corners = landmarks[list(topology.EYE_CORNERS[side]), :2]
    corners = corners[np.argsort(corners[:, 0])]
    centre, half = corners.mean(0), (corners[1] - corners[0]) / 2
    reach = float(np.linalg.norm(half))
    x0, y0 = int(centre[0] - PATCH * 1.3 * reach), int(centre[1] - PATCH * reach)
    x1, y1 = int(centre[0] + PATCH * 1.3 * reach) + 1, int(centre[1] + PATCH * reach) + 1
    height, width = rgb.shape[:2]
    picture = rgb[np.clip(np.arange(y0, y1), 0, height - 1)][:, np.clip(np.arange(x0, x1), 0, width - 1)]
    local = landmarks[:, :2] - (x0, y0)
    iris_points = local[list(topology.IRIS[side])]
    radius = float(np.linalg.norm(iris_points[1:] - iris_points[0], axis=1).mean())
    ends = topology.EYE_CORNERS[side]
    hole = _polygon(local, _outline(topology.UPPER_LID[side], topology.LOWER_LID[side], ends, landmarks), picture.shape)
    around = _polygon(local, _outline(topology.UPPER_CREASE[side], topology.LOWER_CREASE[side], ends, landmarks), picture.shape)
    ball = _ball(picture, hole, iris_points[0], radius, reach)
    lid = _lid(picture, hole, around, reach)
    rim = _dilate(hole, 1) & ~_erode(hole, 1)
    dark = picture[rim].reshape(-1, 3).astype(np.float32)
    lash = np.minimum(np.percentile(dark, 10, axis=0) * 0.8, 70.0) if len(dark) else np.full(3, 40.0)
    return Patch(
        np.array([x0, y0, x1 - x0, y1 - y0], np.float32),
        ball,
        lid,
        np.array([*(iris_points[0] + (x0, y0)), radius], np.float32),
        np.array([*centre, *half], np.float32),
        lash.astype(np.float32),
    )


def _outline(upper: tuple[int, ...], lower: tuple[int, ...], corners: tuple[int, int], landmarks: FloatArray) -> list[int]:
    def across(i: int) -> float:
        return float(landmarks[i, 0])

    left, right = sorted(corners, key=across)
    return [left, *sorted(upper, key=across), right, *sorted(lower, key=across, reverse=True)]


def _polygon(points: FloatArray, outline: list[int], shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    import cv2

    mask = np.zeros(shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.round(points[outline] * 16).astype(np.int32)], 1, shift=4)
    return mask > 0


def _erode(mask: npt.NDArray[np.bool_], px: float) -> npt.NDArray[np.bool_]:
    import cv2

    inner: npt.NDArray[np.bool_] = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5) > px
    return inner


def _dilate(mask: npt.NDArray[np.bool_], px: float) -> npt.NDArray[np.bool_]:
    return ~_erode(~mask, px)


def _spread(picture: UInt8Array, known: npt.NDArray[np.bool_], sigmas: tuple[float, ...]) -> FloatArray:
    """[h, w, 3] the known colours carried outwards: blurs of growing width, each filling what the narrower one could not see."""
    import cv2

    weight = known.astype(np.float32)
    filled = np.zeros(picture.shape, np.float32)
    left = np.ones(picture.shape[:2], np.float32)
    for sigma in sigmas:
        seen = cv2.GaussianBlur(weight, (0, 0), sigma)
        colour = cv2.GaussianBlur(picture * weight[..., None], (0, 0), sigma) / np.maximum(seen, 1e-4)[..., None]
        share = left * np.clip(seen * 4.0, 0.0, 1.0)
        filled += colour * share[..., None]
        left = left - share
    if known.any():
        filled += picture[known].mean(0) * left[..., None]
    return filled


def _ball(picture: UInt8Array, hole: npt.NDArray[np.bool_], centre: FloatArray, radius: float, reach: float) -> UInt8Array:
    import cv2

    gy, gx = np.mgrid[: picture.shape[0], : picture.shape[1]].astype(np.float32)
    away = np.hypot(gx - centre[0], gy - centre[1]) / radius
    inner = _erode(hole, max(1.0, 0.05 * reach))
    white = inner & (away > 1.2)
    if white.sum() < 8:
        white = hole & (away > 1.05)
    whites = _spread(picture, white, (0.10 * reach, 0.3 * reach, 0.8 * reach)) if white.any() else np.full(picture.shape, 200.0, np.float32)
    # What a lid hides of the iris is what the rest of its circle shows.
    rings = np.clip((away * 10).astype(int), 0, 10)
    profile = np.stack([picture[inner & (rings == k)].mean(0) if (inner & (rings == k)).sum() > 2 else np.full(3, np.nan) for k in range(11)])
    for k in range(11):
        if np.isnan(profile[k, 0]):
            good = [j for j in range(11) if not np.isnan(profile[j, 0])]
            profile[k] = profile[min(good, key=lambda j: abs(j - k))] if good else 60.0
    at = np.clip(away * 10 - 0.5, 0, 10)
    iris = np.stack([np.interp(at, np.arange(11), profile[:, c]) for c in range(3)], -1)
    share = np.clip((1.12 - away) / 0.2, 0, 1)[..., None]
    made = iris * share + whites * (1 - share)
    # The seam between the eye as seen and as made is soft, and lies inside the lids' shadow line.
    seen = cv2.GaussianBlur(inner.astype(np.float32), (0, 0), max(0.7, 0.03 * reach))[..., None] * _dilate(inner, 1)[..., None]
    mixed = np.where(hole[..., None], picture, made * (1 - seen) + picture * seen)
    ball: UInt8Array = np.clip(mixed + 0.5, 0, 255).astype(np.uint8)
    return ball


def _lid(picture: UInt8Array, hole: npt.NDArray[np.bool_], around: npt.NDArray[np.bool_], reach: float) -> UInt8Array:
    """Skin over the eye: lashes, lines and the eye itself smoothed away."""
    import cv2

    skin = ~_dilate(hole | around, 0.02 * reach)
    grey = picture.mean(2)
    # Brows, lashes and lines are much darker than skin; the soft shadow of an eye socket is not, and belongs to the lid.
    bright = skin & (grey > NOT_SKIN * np.median(grey[skin])) if skin.any() else skin
    colour = _spread(picture, bright, (0.12 * reach, 0.3 * reach, 0.6 * reach))
    where = cv2.GaussianBlur((_dilate(hole, 0.05 * reach) | around).astype(np.float32), (0, 0), 0.08 * reach) * 255
    lid: UInt8Array = np.clip(np.dstack([colour, where]) + 0.5, 0, 255).astype(np.uint8)
    return lid


@kernel
def paint(
    layer: UInt8Array, tags: UInt8Array, sampling: FloatArray, pad: float, side: int, box: FloatArray, back: FloatArray, ball: UInt8Array,
    lid: UInt8Array, corner: FloatArray, iris: FloatArray, axis: FloatArray, gaze: FloatArray, edge: FloatArray, shut: float,
    lash: FloatArray, thick: float,
) -> None:  # fmt: skip
    """Put an eyeball under the lids, and on a closing lid the skin, the shadow and the lashes of a closed one.

    layer [H, W, 4] is painted on; tags [H, W] and sampling [H, W, 2] as `raster` left them, sampling `pad` px off the portrait;
    box [4] x0, y0, x1, y1 px; back [2, 3] output px -> portrait px; ball [h, w, 3] and lid [h, w, 4] with their corner [2]; gaze [2] shift px;
    edge [K, 2] the upper lid's edge, px; shut 0..1 how far the lid has come down; lash [3] colour; thick px of the lashes' line.
    """
    hole_tag = 2 + side
    reach = np.sqrt(axis[2] * axis[2] + axis[3] * axis[3])
    inner, outer = iris[2] * 1.1, max(reach * 1.05, iris[2] * 2.2)
    for y in range(max(int(box[1]), 1), min(int(box[3]) + 1, tags.shape[0] - 1)):
        for x in range(max(int(box[0]), 1), min(int(box[2]) + 1, tags.shape[1] - 1)):
            count = 0
            for j in range(-1, 2):
                for i in range(-1, 2):
                    if tags[y + j, x + i] == hole_tag:
                        count += 1
            if count == 0 and shut <= 0:
                continue
            r, g, b = float(layer[y, x, 0]), float(layer[y, x, 1]), float(layer[y, x, 2])
            near, taper = 1e9, 1.0
            if shut > 0:
                for k in range(edge.shape[0] - 1):
                    ex, ey = edge[k + 1, 0] - edge[k, 0], edge[k + 1, 1] - edge[k, 1]
                    long = max(ex * ex + ey * ey, (1e-6))
                    t = min(max(((x - edge[k, 0]) * ex + (y - edge[k, 1]) * ey) / long, 0.0), 1.0)
                    dx, dy = x - edge[k, 0] - t * ex, y - edge[k, 1] - t * ey
                    far = dx * dx + dy * dy
                    if far < near:
                        near = far
                        along = (k + t) / (edge.shape[0] - 1)
                        taper = min(1.0, 0.25 + 4.0 * min(along, 1.0 - along))
                near = np.sqrt(near)
            if count < 9 and shut > 0:
                sx, sy = sampling[y, x, 0] - pad - corner[0], sampling[y, x, 1] - pad - corner[1]
                if 0 <= sx <= lid.shape[1] - 1 and 0 <= sy <= lid.shape[0] - 1:
                    ix, iy = int(sx), int(sy)
                    share = shut * lid[iy, ix, 3] / 255.0
                    r += (lid[iy, ix, 0] - r) * share
                    g += (lid[iy, ix, 1] - g) * share
                    b += (lid[iy, ix, 2] - b) * share
            if count > 0:
                mix = count / 9.0
                px = back[0, 0] * x + back[0, 1] * y + back[0, 2]
                py = back[1, 0] * x + back[1, 1] * y + back[1, 2]
                # The white is a rubber sheet: it moves with the iris there and stays at the corners.
                qx, qy = px, py
                for _ in range(3):
                    far = np.sqrt((qx - iris[0]) ** 2 + (qy - iris[1]) ** 2)
                    hold = min(max((outer - far) / (outer - inner), 0.0), 1.0)
                    qx, qy = px - gaze[0] * hold, py - gaze[1] * hold
                sx = min(max(qx - corner[0], 0.0), (ball.shape[1] - 1.001))
                sy = min(max(qy - corner[1], 0.0), (ball.shape[0] - 1.001))
                ix, iy = int(sx), int(sy)
                fx, fy = sx - ix, sy - iy
                dim = 1.0
                if shut > 0:
                    dim -= 0.35 * min(shut * 2, 1.0) * max(1.0 - near / (3.0 * thick), 0.0)
                r += (sample(ball, ix, iy, fx, fy, 0) * dim - r) * mix
                g += (sample(ball, ix, iy, fx, fy, 1) * dim - g) * mix
                b += (sample(ball, ix, iy, fx, fy, 2) * dim - b) * mix
            if shut > 0 and near < thick * 1.5:
                line = 0.62 * taper * min(shut * 1.5, 1.0) * min(max((thick * 1.1 - near) / (thick * 0.8), 0.0), 1.0)
                r += (lash[0] - r) * line
                g += (lash[1] - g) * line
                b += (lash[2] - b) * line
            layer[y, x, 0] = np.uint8(min(max(r + 0.5, 0.0), 255.0))
            layer[y, x, 1] = np.uint8(min(max(g + 0.5, 0.0), 255.0))
            layer[y, x, 2] = np.uint8(min(max(b + 0.5, 0.0), 255.0))
