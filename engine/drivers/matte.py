"""Who is the person in a picture, and what would be behind them: MediaPipe's selfie segmentation, refined. For set-up, not for every frame.

The network answers on 256 x 256 points, sure of itself nearly everywhere; hair, ears and collars come from the picture: a guided filter
(He, Sun, Tang 2013, IEEE PAMI 35(6), equations 11-15) lets the answer follow the picture's own edges inside a narrow band.
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
    band = BAND * side
    depth = np.where(person > 0, inside, -outside) / band
    sure = np.clip(np.abs(depth) * 2.0 - 1.0, 0.0, 1.0)
    return np.asarray(soft * (1.0 - sure) + (depth > 0) * sure, np.float32)


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

    The pull-push algorithm of Gortler et al. 1996 ("The Lumigraph", section 3.4): averages of what is known at ever coarser scales, then
    each scale fills its gaps from the next coarser one. A picture that is all person becomes its own mean.
    """
    hole = cv2.dilate(matte, np.ones((3, 3), np.uint8), iterations=max(1, round(CLEAR * max(matte.shape))))
    known = 1.0 - (hole > 0).astype(np.float32)
    levels = [(rgb * known[..., None], known)]
    while min(levels[-1][1].shape) > 1:
        colour, weight = levels[-1]
        half = (max(1, weight.shape[1] // 2), max(1, weight.shape[0] // 2))
        levels.append((cv2.resize(colour, half, interpolation=cv2.INTER_AREA), cv2.resize(weight, half, interpolation=cv2.INTER_AREA)))
    colour, weight = levels.pop()
    fill = np.where(weight.sum() > 0, colour.sum((0, 1)) / max(float(weight.sum()), 1e-6), rgb.mean((0, 1))) * np.ones((*weight.shape, 1))
    for colour, weight in reversed(levels):
        wide = cv2.resize(fill.astype(np.float32), (weight.shape[1], weight.shape[0]), interpolation=cv2.INTER_LINEAR)
        trust = np.minimum(1.0, weight * 4.0)[..., None]
        fill = wide + trust * (colour / np.maximum(weight, 1e-3)[..., None] - wide)
    return np.asarray(np.clip(fill + 0.5, 0, 255), np.uint8)
