"""What is inside the mouth: teeth, tongue and the dark, drawn once a portrait and painted under the lips in every frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.generators.puppet import topology
from engine.generators.puppet.mesh import Head
from engine.generators.puppet.mouth import UPPER_SHARE
from engine.generators.puppet.raster import kernel, sample
from engine.types import FloatArray, UInt8Array

DETAIL = 3
"""Patch pixels per portrait pixel."""
# Anatomy in ocular distances (63 mm): widths of the teeth from the middle outwards, and their heights.
UPPER_WIDTHS = (0.135, 0.108, 0.118, 0.105, 0.10, 0.14)
UPPER_HEIGHTS = (0.150, 0.130, 0.145, 0.120, 0.110, 0.100)
LOWER_WIDTHS = (0.085, 0.092, 0.105, 0.105, 0.10, 0.14)
LOWER_HEIGHTS = (0.120, 0.120, 0.130, 0.110, 0.100, 0.090)
UPPER_SHOWN = 0.060
"""The upper teeth reach this far below the closed lips' line."""
LOWER_SHOWN = 0.030
"""The lower teeth reach this far above the line of the closed lips, once the jaw has dropped."""
CHEEK_SAMPLES, LIP_SAMPLES = (50, 280, 205, 425, 101, 330), (72, 302, 85, 315, 16, 86, 316)
"""Points of the face where skin and lips show their colour."""
SHADE, OWN_SHADE = 0.36, 0.10
"""Contact shadow of the upper lip on drawn teeth, and on the portrait's own, which bring theirs along."""
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
COLOURFUL = 0.14
"""Saturation of skin from which on a picture counts as one in full colour."""
BRIGHTEST = 240.0
THIN = 4.0
"""px: lips that are nearer show only the line between them."""
LINE = 0.55
"""Brightness of the line between closed lips, as a share of the lips'."""
OWN_GAP = 0.06
"""Lips nearer than this, ocular distances, show too little of a portrait's own teeth to use them."""
ARCH = 0.46
"""Radius of the row of teeth seen from above, ocular distances."""


@dataclass(frozen=True, slots=True)
class Inside:
    """Patches in the portrait's own pixels, DETAIL times finer."""

    box: FloatArray  # [4] x0, y0, width, height px of the portrait
    upper: UInt8Array  # [h, w, 4]
    lower: UInt8Array  # [h, w, 4]
    dark: FloatArray  # [2, 3] colours of the cavity and of the line between closed lips
    shade: FloatArray  # []


def _row(u: FloatArray, v: FloatArray, widths: tuple[float, ...], heights: tuple[float, ...], *, curve: float) -> tuple[FloatArray, FloatArray]:
    """Shade and cover of a row of teeth whose biting edge lies at v = 0 and which grows towards v > 0.

    u, v [h, w] ocular distances across and along the teeth. -> (shade [h, w] 0..1, cover [h, w] 0..1)
    """
    # The row bends around an arch: what is seen at u lies at the arch's angle asin(u / ARCH).
    angle = np.arcsin(np.clip(u / ARCH, -1, 1))
    along = np.abs(angle) * ARCH
    shade, cover = np.zeros_like(u), np.zeros_like(u)
    start = 0.0
    for number, (wide, high) in enumerate(zip(widths, heights, strict=True)):
        t = (along - start) / wide
        inside = (t >= 0) & (t < 1)
        side = np.abs(2 * t - 1)
        edge = 0.010 + curve * (along / ARCH) ** 2 + 0.014 * np.clip(side - 0.45, 0, 1) ** 2 * (1 + number % 2)
        bite = np.clip((v - edge) / 0.012, 0, 1)
        gum = np.clip((high + 0.01 - 0.03 * (1 - side**2) * -1 - v) / 0.03, 0, 1)
        seam = np.clip((1 - side) / 0.08, 0, 1)
        body = 0.85 + 0.15 * np.sqrt(np.clip(1 - 0.75 * side**2, 0, 1))
        tone = body * (0.87 + 0.13 * seam) * (0.90 + 0.10 * np.clip(v / 0.05, 0, 1))
        shade = np.where(inside, tone, shade)
        cover = np.where(inside, bite * gum, cover)
        start += wide
    turn = np.maximum(np.cos(angle), 0.0)
    shade = shade * (0.45 + 0.55 * turn**1.2)
    cover = cover * np.clip((ARCH * 0.97 - np.abs(u)) / 0.02, 0, 1)
    return shade.astype(np.float32), cover.astype(np.float32)


def draw(rgb: UInt8Array, landmarks: FloatArray, head: Head) -> Inside:
    """Draw the mouth's inside for a portrait, in the light of its skin."""
    ocular = head.ocular
    inner = landmarks[list(topology.LIP_CORNERS[0]), :2]
    centre = inner.mean(0)
    half = 0.75 * ocular
    x0, y0 = np.floor(centre - (half, half * 0.9))
    width, height = np.ceil(2 * half), np.ceil(1.9 * half)
    box = np.array([x0, y0, width, height], np.float32)
    gy, gx = np.mgrid[0 : int(height) * DETAIL, 0 : int(width) * DETAIL].astype(np.float32) / DETAIL
    right, down = head.frame[:2, 0], head.frame[:2, 1]
    dx, dy = gx + x0 - centre[0], gy + y0 - centre[1]
    basis = np.linalg.inv(np.stack([right, down], 1)) / ocular
    u, v = basis[0, 0] * dx + basis[0, 1] * dy, basis[1, 0] * dx + basis[1, 1] * dy

    skin = _skin_colour(rgb, landmarks)
    light = float(np.clip(skin @ LUMA / 165.0, 0.2, 1.2))
    cast = np.clip(skin / max(float(skin.mean()), 1.0), 0.5, 1.6)
    tooth = _in_the_tone_of(skin, np.array([230, 216, 198], np.float32) * light**0.8 * cast**0.35)
    tooth *= min(1.0, BRIGHTEST / float(tooth.max()))
    gum = _in_the_tone_of(skin, np.array([172, 92, 88], np.float32) * light * cast**0.35)
    tongue = _in_the_tone_of(skin, np.array([176, 92, 88], np.float32) * light * cast**0.35)
    cavity = _in_the_tone_of(skin, np.array([58, 22, 21], np.float32) * light)
    lips = basis @ (landmarks[[13, 14], :2] - centre).T  # [2, 2]
    line = float(lips[1, 0] + UPPER_SHARE * max(lips[1, 1] - lips[1, 0], 0.0))

    # Upper: teeth with a strip of gum above.
    edge = line + UPPER_SHOWN
    shade, cover = _row(u, edge - v, UPPER_WIDTHS, UPPER_HEIGHTS, curve=0.07)
    above = np.clip((edge - 0.10 - v) / 0.02, 0, 1) * np.clip((ARCH * 0.9 - np.abs(u)) / 0.04, 0, 1)
    upper = _over(tooth * shade[..., None], cover, gum * np.clip(0.55 + 0.45 * (1 - (u / ARCH) ** 2), 0, 1)[..., None], above)

    # Lower: the tongue behind, the teeth before it.
    shade, cover = _row(u, v - (line - LOWER_SHOWN), LOWER_WIDTHS, LOWER_HEIGHTS, curve=0.05)
    mound = np.sqrt(np.clip(1 - (u / 0.36) ** 2, 0, 1))
    top = line + 0.02 - 0.23 * mound
    body = np.clip((v - top) / 0.06, 0, 1) * np.clip(mound / 0.3, 0, 1)
    groove = 1 - 0.16 * np.exp(-((u / 0.03) ** 2)) * np.clip((v - top) / 0.10, 0, 1)
    lit = groove * (0.36 + 0.64 * np.clip((v - top) / 0.24, 0, 1)) * (0.62 + 0.38 * mound)
    lower = _over(tooth * 0.90 * shade[..., None], cover, tongue * lit[..., None], body)
    dark = np.stack([cavity, LINE * _median_colour(rgb, landmarks, LIP_SAMPLES)])
    own = _own_teeth(rgb, landmarks, box, u.shape, ocular)
    if own is not None:
        # The portrait's own teeth before the drawn ones, of which only what the lip hides stays.
        hidden = np.clip((float(lips[1, 0]) + 0.015 - v) / 0.02, 0, 1)
        upper = _over(
            own[..., :3].astype(np.float32),
            own[..., 3] / np.float32(255.0),
            upper[..., :3].astype(np.float32),
            upper[..., 3] / np.float32(255.0) * hidden,
        )
    return Inside(box, upper, lower, dark.astype(np.float32), np.array(SHADE if own is None else OWN_SHADE, np.float32))


def _over(front: FloatArray, front_cover: FloatArray, behind: FloatArray, behind_cover: FloatArray) -> UInt8Array:
    """[h, w, 4] one layer over another, straight alpha."""
    rest = behind_cover * (1 - front_cover)
    total = front_cover + rest
    colour = (front * front_cover[..., None] + behind * rest[..., None]) / np.maximum(total, 1e-3)[..., None]
    both: UInt8Array = np.clip(np.dstack([colour, 255 * total]) + 0.5, 0, 255).astype(np.uint8)
    return both


def _own_teeth(rgb: UInt8Array, landmarks: FloatArray, box: FloatArray, shape: tuple[int, ...], ocular: float) -> UInt8Array | None:
    """[h, w, 4] the teeth the portrait shows, at the patches' size, or None where it shows too little of them."""
    import cv2

    ring = [topology.LIP_CORNERS[0][0], *topology.UPPER_LIP[0], topology.LIP_CORNERS[0][1], *reversed(topology.LOWER_LIP[0])]
    if np.linalg.norm(landmarks[13, :2] - landmarks[14, :2]) < OWN_GAP * ocular:
        return None
    x0, y0 = int(box[0]), int(box[1])
    size = (int(box[2]), int(box[3]))
    place = np.array([[1, 0, -x0], [0, 1, -y0]], np.float32)
    picture = cv2.warpAffine(rgb, place, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    hole = np.zeros(picture.shape[:2], np.uint8)
    cv2.fillPoly(hole, [np.round((landmarks[ring, :2] - (x0, y0)) * 16).astype(np.int32)], 1, shift=4)
    colour = picture.astype(np.float32)
    bright = colour @ LUMA
    redness = (colour[..., 0] - colour[..., 1:].mean(2)) / np.maximum(colour.max(2), 1)
    skin = float(_skin_colour(rgb, landmarks) @ LUMA)
    tooth = (hole > 0) & (bright > 0.72 * skin) & (redness < 0.22)
    if tooth.sum() < 0.3 * hole.sum():
        return None
    fill = cv2.morphologyEx(tooth.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((7, 7), np.uint8)) & hole
    inside = cv2.resize(cv2.erode(hole, np.ones((3, 3), np.uint8)) * 255, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    big = cv2.resize(picture, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    like = cv2.GaussianBlur(cv2.resize(fill.astype(np.float32), (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR), (0, 0), 0.03 * ocular * DETAIL)
    smooth = cv2.GaussianBlur(inside.astype(np.float32) / 255.0, (0, 0), DETAIL * 0.6)
    cover = 255 * np.clip(like * 3.0 - 1.0, 0.0, 1.0) * smooth
    found: UInt8Array = np.dstack([big, cover]).astype(np.uint8)
    return found


def _in_the_tone_of(skin: FloatArray, colour: FloatArray) -> FloatArray:
    """A colour [3] as a picture with such skin [3] shows it: in grey, sepia or pencil there is no red tongue."""
    tone = skin / max(float(skin @ LUMA), 1.0)
    colourful = float(np.clip((skin.max() - skin.min()) / max(float(skin.max()), 1.0) / COLOURFUL, 0.0, 1.0))
    shown: FloatArray = (colour * colourful + tone * float(colour @ LUMA) * (1 - colourful)).astype(np.float32)
    return shown


def _skin_colour(rgb: UInt8Array, landmarks: FloatArray) -> FloatArray:
    """[3] median colour of the cheeks."""
    return _median_colour(rgb, landmarks, CHEEK_SAMPLES)


def _median_colour(rgb: UInt8Array, landmarks: FloatArray, points: tuple[int, ...]) -> FloatArray:
    """[3] median colour around some points."""
    height, width = rgb.shape[:2]
    samples = []
    for point in points:
        x, y = int(np.clip(landmarks[point, 0], 3, width - 4)), int(np.clip(landmarks[point, 1], 3, height - 4))
        samples.append(rgb[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3))
    found: FloatArray = np.median(np.concatenate(samples), 0).astype(np.float32)
    return found


@kernel
def paint(
    layer: UInt8Array, hole: UInt8Array, tag: int, bounds: FloatArray, skull: FloatArray, jaw: FloatArray, upper: UInt8Array, lower: UInt8Array,
    box: FloatArray, detail: float, dark: FloatArray, shade: float, ocular: float, fresh: float,
) -> None:  # fmt: skip
    """Paint the mouth's inside into `layer` [H, W, 4] wherever the hole `tag` shows.

    bounds [4] x0, y0, x1, y1 px; skull, jaw [2, 3]: output px -> portrait px for what rides the skull and the jaw; upper, lower
    [h, w, 4] patches at box [4], `detail` times finer than the portrait; dark [2, 3]; shade 0..1; ocular px; fresh 0..1 how much of
    it is painted over what the portrait itself shows there.
    """
    ya, yb = max(int(bounds[1]), 1), min(int(bounds[3]) + 1, hole.shape[0] - 1)
    for x in range(max(int(bounds[0]), 1), min(int(bounds[2]) + 1, hole.shape[1] - 1)):
        top, bottom = -1, -1
        for y in range(ya, yb):
            if hole[y, x] == tag:
                if top < 0:
                    top = y
                bottom = y
        if top < 0:
            continue
        for y in range(max(ya, top - 1), min(yb, bottom + 2)):
            count = 0
            for j in range(-1, 2):
                for i in range(-1, 2):
                    if hole[y + j, x + i] == tag:
                        count += 1
            if count == 0:
                continue
            mix = count / 9.0 * fresh
            # Darker towards the lips that overhang it, and deeper in the middle.
            under = (y - top + 1) / (0.11 * ocular)
            over = (bottom - y + 1) / (0.06 * ocular)
            shadow = (1.0 - shade * (1.0 - min(under, 1.0))) * (0.78 + 0.22 * min(over, 1.0))
            r, g, b = dark[0, 0], dark[0, 1], dark[0, 2]
            for which in range(2):
                back = jaw if which == 0 else skull
                patch = lower if which == 0 else upper
                px = (back[0, 0] * x + back[0, 1] * y + back[0, 2] - box[0]) * detail
                py = (back[1, 0] * x + back[1, 1] * y + back[1, 2] - box[1]) * detail
                if px < 0 or py < 0 or px >= patch.shape[1] - 1 or py >= patch.shape[0] - 1:
                    continue
                ix, iy = int(px), int(py)
                fx, fy = px - ix, py - iy
                cover = sample(patch, ix, iy, fx, fy, 3) / 255.0
                if cover > 0:
                    r += (sample(patch, ix, iy, fx, fy, 0) - r) * cover
                    g += (sample(patch, ix, iy, fx, fy, 1) - g) * cover
                    b += (sample(patch, ix, iy, fx, fy, 2) - b) * cover
            # Between lips that all but touch there is only a line.
            wide = min((bottom - top) / THIN, 1.0)
            layer[y, x, 0] = int(layer[y, x, 0] * (1 - mix) + (dark[1, 0] + (r * shadow - dark[1, 0]) * wide) * mix + 0.5)
            layer[y, x, 1] = int(layer[y, x, 1] * (1 - mix) + (dark[1, 1] + (g * shadow - dark[1, 1]) * wide) * mix + 0.5)
            layer[y, x, 2] = int(layer[y, x, 2] * (1 - mix) + (dark[1, 2] + (b * shadow - dark[1, 2]) * wide) * mix + 0.5)
