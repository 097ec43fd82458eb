"""One pose becomes a picture: the sheet is drawn, eyes and mouth are filled in under it, and all of it is laid over the plate."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from engine.generators.puppet import eyes, teeth, topology
from engine.generators.puppet.features import Features
from engine.generators.puppet.pose import Pose
from engine.generators.puppet.raster import blend, raster, soften
from engine.types import FloatArray, Motion, UInt8Array

EDGE_ROOM = 0.12
"""How far around the face one part of the person may hide another, face widths."""
EDGE_SHARE = 8
"""One pixel in so many can be softened."""
SHARP = [*topology.BROWS[0], *topology.BROWS[1], *topology.EYE_CORNERS[0], *topology.EYE_CORNERS[1], *topology.LOWER_LIP[3], *topology.LIP_CORNERS[3]]
"""Points around what people look at."""
TINY = 1e-6
"""px²: keeps points that lie on one line from having no map."""
GAZE_LIMIT = 0.35
"""Irises go this far, eye widths."""


@dataclass(frozen=True, slots=True)
class Canvas:
    """One session's buffers, made when an identity is seated and written in place."""

    sampling: FloatArray  # [H, W, 2] where each pixel comes from, texture px
    depth: FloatArray  # [H, W]
    tag: UInt8Array  # [H, W] skin, which hole, or nothing
    layer: UInt8Array  # [H, W, 4] the person, colour and packed matte
    places: npt.NDArray[np.int32]  # [K] edge pixels being softened
    colours: UInt8Array  # [K, 3]

    @classmethod
    def of(cls, height: int, width: int) -> Canvas:
        """Empty buffers for frames of H x W px."""
        edges = max(1, height * width // EDGE_SHARE)
        return cls(
            np.empty((height, width, 2), np.float32),
            np.empty((height, width), np.float32),
            np.empty((height, width), np.uint8),
            np.empty((height, width, 4), np.uint8),
            np.empty(edges, np.int32),
            np.empty((edges, 3), np.uint8),
        )


def paint(features: Features, canvas: Canvas, pose: Pose, motion: Motion) -> tuple[UInt8Array, UInt8Array]:
    """-> (rgb [H, W, 3], alpha [H, W]), both new: frames outlive the next step."""
    height, width = canvas.tag.shape
    pad = float(features.texture.shape[1] - width) / 2
    raster(pose.points, pose.uv, features.triangles, features.tags, canvas.sampling, canvas.depth, canvas.tag)
    face = bounds(pose.points[list(topology.OVAL)])
    _sample(features, canvas, bounds(pose.points[SHARP]))
    flat = features.uv - np.float32(pad)
    for side in range(2):
        _eye(features, canvas, pose, motion, side, flat)
    _mouth(features, canvas, pose, flat)
    rgb, alpha = np.empty((height, width, 3), np.uint8), np.empty((height, width), np.uint8)
    blend(canvas.layer, canvas.sampling, pad, features.plate, bool(features.known), rgb, alpha)
    room = np.float32(EDGE_ROOM * features.width) * np.array([-1, -1, 1, 1], np.float32)
    soften(rgb, canvas.sampling, face + room, canvas.places, canvas.colours)
    return rgb, alpha


def _sample(features: Features, canvas: Canvas, sharp: FloatArray) -> None:
    """Fetch every pixel of the person: bilinear, and in the box `sharp` [4] bicubic, which keeps lashes and lips crisp between pixels."""
    nothing = (0, 0, 0, 0)
    cv2.remap(features.texture, canvas.sampling, None, cv2.INTER_LINEAR, dst=canvas.layer, borderMode=cv2.BORDER_CONSTANT, borderValue=nothing)
    height, width = canvas.tag.shape
    x0, y0, x1, y1 = np.clip(sharp, 0, (width, height, width, height)).astype(int)
    if x1 - x0 < 2 or y1 - y0 < 2:
        return
    box = np.s_[y0:y1, x0:x1]
    canvas.layer[box] = cv2.remap(features.texture, canvas.sampling[box], None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_CONSTANT, borderValue=nothing)


def _eye(features: Features, canvas: Canvas, pose: Pose, motion: Motion, side: int, flat: FloatArray) -> None:
    """The eyeball under one pair of lids, and the look of the lids; flat [N, 2] the vertices at rest in portrait px."""
    near = [*topology.UPPER_LID[side], *topology.LOWER_LID[side], *topology.EYE_CORNERS[side]]
    half = features.eye_axis[side, 2:]
    gaze = np.clip(motion.gaze, -GAZE_LIMIT, GAZE_LIMIT) * 2
    shift = gaze[0] * half + gaze[1] * np.array([-half[1], half[0]])
    opening = float(motion.eyes[side])
    shut = float(np.clip((eyes.SHUT_FROM - opening) / (eyes.SHUT_FROM - eyes.SHUT_TO), 0.0, 1.0))
    closed = float(np.clip(1.0 - opening / eyes.SHUT_TO, 0.0, 1.0))
    height = float(np.linalg.norm(flat[topology.LOWER_LID[side][3]] - flat[topology.UPPER_LID[side][3]]))
    whole = eyes.LASH * float(features.ocular)
    thick = min(whole, eyes.LASH_MOST * height) * (1.0 - closed) + whole * closed
    rise = eyes.LASH_RISE * thick * (1.0 - closed)
    edge = pose.points[eyes.lid_curve(side), :2] - features.frame[:2, 1] * np.float32(rise)
    eyes.paint(
        canvas.layer,
        canvas.tag,
        canvas.sampling,
        float(features.uv[0, 0] - flat[0, 0]),
        side,
        bounds(pose.points[[*near, *topology.UPPER_CREASE[side]]]),
        affine(pose.skull[near], flat[near]),
        features.eyeballs[side],
        features.lids[side],
        features.eye_patch[side, :2],
        features.iris[side],
        features.eye_axis[side],
        shift.astype(np.float32),
        np.ascontiguousarray(edge, np.float32),
        shut,
        features.lash[side],
        thick,
    )


def _mouth(features: Features, canvas: Canvas, pose: Pose, flat: FloatArray) -> None:
    """Teeth, tongue and the dark between the lips."""
    ring = [*topology.LIP_CORNERS[0], *topology.UPPER_LIP[0], *topology.LOWER_LIP[0]]
    near = [*topology.LIP_CORNERS[3], *topology.UPPER_LIP[3], *topology.LOWER_LIP[3]]
    teeth.paint(
        canvas.layer,
        canvas.tag,
        topology.MOUTH_HOLE,
        bounds(pose.points[ring]),
        affine(pose.skull[near], flat[near]),
        affine(pose.skull[near] + pose.jaw, flat[near]),
        features.upper_teeth,
        features.lower_teeth,
        features.mouth_patch,
        float(teeth.DETAIL),
        features.dark,
        float(features.shade),
        float(features.ocular),
        pose.fresh,
    )


def affine(source: FloatArray, target: FloatArray) -> FloatArray:
    """[2, 3] the affine map that takes source [N, 2] to target [N, 2] in the least squares sense."""
    count = len(source)
    middle, goal = source.sum(0) / count, target.sum(0) / count
    away = source - middle
    (xx, xy), (_, yy) = (away.T @ away).tolist()
    xx, yy = xx + TINY, yy + TINY
    inverse = np.array([[yy, -xy], [-xy, xx]], np.float32) / (xx * yy - xy * xy)  # of a 2 x 2 matrix: LAPACK takes longer to start
    linear = (target - goal).T @ away @ inverse
    found: FloatArray = np.concatenate([linear, (goal - linear @ middle)[:, None]], 1).astype(np.float32)
    return found


def bounds(points: FloatArray, room: float = 2.0) -> FloatArray:
    """[4] x0, y0, x1, y1 of points [N, 2 or 3] with some pixels of room."""
    low, high = points[:, :2].min(0) - room, points[:, :2].max(0) + room
    both: FloatArray = np.concatenate([low, high]).astype(np.float32)
    return both
