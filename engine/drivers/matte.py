"""Who is the person in a picture, and what would be behind them: MediaPipe's selfie segmentation, refined. For set-up, not for every frame.

The network answers on 256 x 256 points, sure of itself nearly everywhere; hair, ears and collars come from the picture. A guided filter
(He, Sun, Tang 2013, IEEE PAMI 35(6), equations 11-15) lets the answer follow the picture's own edges inside a narrow band. Around that,
before a plain wall, a pixel's place between the wall's colour and the person's says how much of a strand of hair covers it.
"""

from __future__ import annotations

import cv2
import numpy as np

from engine.drivers.quiet import quiet
from engine.types import FloatArray, UInt8Array

WORKING_SIDE = 768
"""px: the longest side a matte is worked out at; larger pictures get it enlarged."""
CORE = 0.9
"""Confidence above which the network is believed."""
REACH = 0.045
"""How far from the core the person may extend, as a share of the longest side: rocks and sofas that the network half believes are further."""
BAND = 0.018
"""Half width of the band that the filter may change, as a share of the longest side."""
RADIUS = 0.012
"""Radius of the filter's windows, as a share of the longest side."""
EDGE = 0.012
"""Contrast (0..1) that counts as an edge: the square root of the filter's epsilon."""
STRETCH = (0.12, 0.9)
"""Filtered values that become 0 and 1: the filter's tails are haze."""

WISP = 0.06
"""How far from the person strands of hair are looked for, as a share of the longest side."""
SURE_PERSON = 0.012
"""Depth inside the person from which colours count as theirs, as a share of the longest side."""
WISP_RANGE = (0.15, 0.85)
"""Places between the wall's colour (0) and the person's (1) that become 0 and 1."""
NOISE = 30.0
"""Grey levels (over three channels) that a wall varies by at least."""
PLAIN = 16.0
"""How many times its own variance the wall must differ from the person, for its colour to mean anything."""
VARIES_WITHIN = 0.03
"""Distance over which the wall's variance is taken, as a share of the longest side."""
COARSE = 4
"""Variances are taken at a quarter of the size: colours are averaged over 4 x 4 px, their squares too."""
GAP = 0.012
"""px across, as a share of the longest side, of the smallest gap between strands: thinner ones are jewellery and glasses."""
CLEAR = 0.01
"""How far around the person the plate is filled too, as a share of the longest side: soft rims carry the person's colour."""


def person_matte(rgb: UInt8Array, *, figure: bool = False) -> UInt8Array:
    """Picture [H, W, 3] RGB -> [H, W], 255 where the person is, soft where hair or an edge only partly covers a pixel.

    `figure`: more than head and shoulders is shown and wanted. All zero where the network sees nobody. Takes about 0.1 s.
    """
    height, width = rgb.shape[:2]
    factor = min(1.0, WORKING_SIDE / max(height, width))
    small = rgb if factor == 1.0 else np.asarray(cv2.resize(rgb, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA), np.uint8)
    matte = _refined(small, *_networks(np.ascontiguousarray(small), both=not figure))
    if factor < 1.0:
        matte = np.asarray(cv2.resize(matte, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
    return np.asarray(matte * 255.0 + 0.5, np.uint8)


def _networks(rgb: UInt8Array, *, both: bool) -> tuple[FloatArray, FloatArray]:
    """[H, W] 0..1 twice: the answer, and the lower of both networks' answers, each the mean for the picture and its mirror image.

    The second network (144 x 256 points) is coarser, but its mistakes are others: of head and shoulders, what both believe is hardly ever
    furniture. Of a whole figure it does not see the lower half, so there the first one is alone.
    """
    from mediapipe.python.solutions.selfie_segmentation import SelfieSegmentation

    answers = []
    for model in (0, 1) if both else (0,):
        with quiet(), SelfieSegmentation(model_selection=model) as network:
            straight = network.process(rgb).segmentation_mask
            mirrored = network.process(np.ascontiguousarray(rgb[:, ::-1])).segmentation_mask[:, ::-1]
        answers.append((straight + mirrored) / 2)
    return np.asarray(answers[0], np.float32), np.asarray(np.min(answers, 0), np.float32)


def _refined(rgb: UInt8Array, answer: FloatArray, agreed: FloatArray) -> FloatArray:
    """The network's answer [H, W] 0..1, held to a reach around the agreed core and to the picture's own edges."""
    side = max(rgb.shape[:2])
    core = _without_crumbs((agreed > CORE).astype(np.uint8))
    if not core.any():
        return np.zeros(answer.shape, np.float32)
    from_core = cv2.distanceTransform(1 - core, cv2.DIST_L2, 5)
    near = answer * np.clip(2.0 - from_core / (REACH * side / 2), 0.0, 1.0)
    person = _without_crumbs((near > 0.5).astype(np.uint8))
    outside = cv2.distanceTransform(1 - person, cv2.DIST_L2, 5)
    inside = cv2.distanceTransform(person, cv2.DIST_L2, 5)
    guess = np.where(person > 0, np.maximum(near, 0.5), np.minimum(near, 0.5)).astype(np.float32)
    filtered = cv2.ximgproc.guidedFilter(rgb, guess, max(2, round(RADIUS * side)), (EDGE * 255.0) ** 2)
    low, high = STRETCH
    soft = np.clip((filtered - low) / (high - low), 0.0, 1.0)
    depth = np.where(person > 0, inside, -outside).astype(np.float32)
    sure = np.clip(np.abs(depth) / (BAND * side) * 2.0 - 1.0, 0.0, 1.0)
    return _with_wisps(rgb, answer, soft * (1.0 - sure) + (depth > 0) * sure, depth)


def _with_wisps(rgb: UInt8Array, answer: FloatArray, matte: FloatArray, depth: FloatArray) -> FloatArray:
    """A matte [H, W] 0..1 with strands of hair added outside and the gaps between them opened, where the network is in doubt.

    `depth` [H, W]: px inside the matte's edge, negative outside.
    """
    side = max(rgb.shape[:2])
    colour = rgb.astype(np.float32)
    theirs = ((depth > SURE_PERSON * side) & (answer > 0.95)).astype(np.float32)
    wall = ((depth < -WISP * side) & (answer < 0.05)).astype(np.float32)
    if not (theirs.any() and wall.any()):
        return matte
    here, behind = _spread(colour, theirs), _spread(colour, wall)
    variance = _variance(colour, wall, VARIES_WITHIN * side)
    apart = here - behind
    square = (apart**2).sum(2) + 1.0
    low, high = WISP_RANGE
    place = np.clip((((colour - behind) * apart).sum(2) / square - low) / (high - low), 0.0, 1.0)
    plain = np.clip(2.0 * square / (square + PLAIN * variance + NOISE**2) - 1.0, 0.0, 1.0)
    near = np.clip(1.5 + 1.5 * depth / (WISP * side), 0.0, 1.0)
    size = max(3, 2 * round(GAP * side / 2) + 1)
    gap = cv2.morphologyEx(1.0 - place, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)))
    more = plain * near * np.clip(answer / 0.15, 0.0, 1.0) * np.maximum(place - matte, 0.0)
    less = plain * np.clip((1.0 - answer) / 0.3, 0.0, 1.0) * np.maximum(matte - 1.0 + gap, 0.0)
    wispy = np.clip(matte + more - less, 0.0, 1.0)
    _, labels = cv2.connectedComponents((wispy > 0.1).astype(np.uint8))
    attached = np.isin(labels, np.unique(labels[(depth > 0) & (labels > 0)]))
    return np.asarray(wispy * attached, np.float32)


def _variance(values: FloatArray, known: FloatArray, sigma: float) -> FloatArray:
    """[H, W] how much the known values [H, W, C] vary within `sigma` px, summed over C, and as much where nothing is known near."""
    height, width = known.shape
    size = (max(1, width // COARSE), max(1, height // COARSE))
    sums = [cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in (known, values * known[..., None], values**2 * known[..., None])]
    weight, first, second = (cv2.GaussianBlur(image, (0, 0), sigma / COARSE) for image in sums)
    share = np.maximum(weight, 1e-3)[..., None]
    found = (second / share - (first / share) ** 2).sum(2, keepdims=True)
    spread = _spread(found, (weight > 0.05).astype(np.float32))
    return np.asarray(np.maximum(cv2.resize(spread, (width, height), interpolation=cv2.INTER_LINEAR), 0.0), np.float32)


def _without_crumbs(mask: UInt8Array) -> UInt8Array:
    """The largest connected piece of a 0/1 mask, its small holes filled."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    if count < 2:
        return mask
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    piece = (labels == largest).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(1 - piece, connectivity=4)
    holes = np.flatnonzero(stats[:, cv2.CC_STAT_AREA] < 0.002 * mask.size)
    return np.asarray(np.maximum(piece, np.isin(labels, holes)), np.uint8)


def clean_plate(rgb: UInt8Array, matte: UInt8Array) -> UInt8Array:
    """Picture [H, W, 3] and matte [H, W] -> [H, W, 3] the picture without its person: a smooth fill from what surrounds the hole.

    A picture that is all person becomes its own mean.
    """
    hole = cv2.dilate(matte, np.ones((3, 3), np.uint8), iterations=max(1, round(CLEAR * max(matte.shape))))
    known = 1.0 - (hole > 0).astype(np.float32)
    if not known.any():
        return np.broadcast_to(rgb.reshape(-1, 3).mean(0) + 0.5, rgb.shape).astype(np.uint8)
    return np.asarray(np.clip(_spread(rgb.astype(np.float32), known) + 0.5, 0, 255), np.uint8)


def _spread(values: FloatArray, known: FloatArray) -> FloatArray:
    """Values [H, W, C] that are known where `known` [H, W] is 1 -> the same with every gap filled smoothly from around it.

    The pull-push algorithm of Gortler et al. 1996 ("The Lumigraph", section 3.4): averages of what is known at ever coarser scales, then
    each scale fills its gaps from the next coarser one.
    """
    levels = [(values * known[..., None], known)]
    while min(levels[-1][1].shape) > 1:
        value, weight = levels[-1]
        half = (max(1, weight.shape[1] // 2), max(1, weight.shape[0] // 2))
        small = cv2.resize(value, half, interpolation=cv2.INTER_AREA).reshape(half[1], half[0], -1)
        levels.append((small, cv2.resize(weight, half, interpolation=cv2.INTER_AREA)))
    value, weight = levels.pop()
    fill = np.broadcast_to(value.sum((0, 1)) / max(float(weight.sum()), 1e-6), value.shape).astype(np.float32)
    for value, weight in reversed(levels):
        height, width = weight.shape
        wide = cv2.resize(fill, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, -1)
        trust = np.minimum(1.0, weight * 4.0)[..., None]
        fill = wide + trust * (value / np.maximum(weight, 1e-3)[..., None] - wide)
    return fill
