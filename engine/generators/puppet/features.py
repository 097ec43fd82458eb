"""What the puppet knows about a portrait after set-up: plain arrays only, so that they can be kept in an .npz."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.generators.puppet.look import VALUES
from engine.types import FloatArray, UInt8Array

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Features:
    """One portrait, ready to move. N mesh vertices: 478 face points,
    M between them, then hair, neck and body. P px of padding."""

    # The sheet
    rest: FloatArray  # [N, 3] vertices in camera space: their weak perspective projection is the portrait itself, px
    uv: FloatArray  # [N, 2] where each vertex samples the texture, texture px
    triangles: Int32Array  # [T, 3]
    tags: UInt8Array  # [T] 0 skin, else which hole the triangle closes
    texture: UInt8Array  # [H + 2P, W + 2P, 4] colour and packed matte
    plate: UInt8Array  # [H, W, 3] background without the person
    parents: Int32Array  # [M, 4] the points made by subdivision
    weights: FloatArray  # [M, 4]
    rim_index: Int32Array  # [K] vertices near the face's visible contour
    rim_shift: FloatArray  # [K, 2] px their sampling slides inwards when they turn into view
    rim_normal: FloatArray  # [K, 3] their outward normals
    # The head
    frame: FloatArray  # [3, 3] the portrait's own head rotation: columns are its right, down and away
    turn: FloatArray  # [3, 3] the same as the drivers measure it: what angles and expressions refer to
    pivot: FloatArray  # [3] px: what the head turns about
    eyes_middle: FloatArray  # [3] px: what translation and scale refer to
    width: FloatArray  # [] face width, px
    ocular: FloatArray  # [] distance between the eyes' centres, px
    head_weight: FloatArray  # [N] 1 moves with the head, 0 with the body
    follow: FloatArray  # [N - 478 - M, 36] how the rings follow the outline's expression
    # Mouth
    jaw: FloatArray  # [478] share of the jaw's motion
    upper: FloatArray  # [478, 9] share of each upper lip column's motion
    lower: FloatArray  # [478, 9] the same for the lower lip
    lip_gap: FloatArray  # [9] the portrait's own lip gap by column, ocular distances
    corners: FloatArray  # [478, 2] share of the left and right mouth corner's motion
    spread: FloatArray  # [478] signed share of a change of the mouth's width
    pucker: FloatArray  # [478] share of protrusion
    smile_rest: FloatArray  # [2] the portrait's own smile: lift of the corners and widening beyond a relaxed mouth, ocular distances
    straighten: FloatArray  # [9] ocular distances that each column of a smile's line goes down until it is straight
    mouth_patch: FloatArray  # [4] x0, y0, width, height of the mouth patches, px
    upper_teeth: UInt8Array  # [h, w, 4]
    lower_teeth: UInt8Array  # [h, w, 4] lower teeth and tongue: what rides the jaw
    dark: FloatArray  # [2, 3] colours of the mouth's cavity and of the line between closed lips, 0..255
    shade: FloatArray  # [] how much darker the teeth are under the lip's edge
    # Eyes
    lid_upper: FloatArray  # [2, 478, 7] share of each upper lid column's motion
    lid_lower: FloatArray  # [2, 478, 7]
    eye_patch: FloatArray  # [2, 4] x0, y0, width, height, px
    eyeballs: UInt8Array  # [2, h, w, 3] the eyes without lids
    lids: UInt8Array  # [2, h, w, 4] the skin of closed lids, and where it is
    lash: FloatArray  # [2, 3] colour of the lashes
    iris: FloatArray  # [2, 3] centre and radius, px
    eye_axis: FloatArray  # [2, 4] centre and half width vector of each eye, px
    brow: FloatArray  # [2, 478] share of each brow's lift
    # Body
    body: FloatArray  # [N] share of the shoulders' motion
    shrug: FloatArray  # [2, N] share of the left and right shoulder's lift
    shoulders: FloatArray  # [3] x, y of their middle and their width, px
    # Response
    response: FloatArray  # [6, 7, 6] what a tracker reads back; see `response.listen`
    coupling: FloatArray  # [5, 3]
    # What a clip of the person added; see `assets`
    offsets: FloatArray  # [2, N, 13] px that every vertex moves for each drive; [2, 0, 13] without assets
    driven: FloatArray  # [2, 13] least and most of the drives
    look: FloatArray  # [look.TERMS, h, w, 3] of any size; [0, 1, 1, 3] without one
    look_range: FloatArray  # [4, look.VALUES]
    known: UInt8Array  # [] 1: the plate is what really stands behind the person, and the texture's colours are free of it


def pack(features: Features) -> dict[str, npt.NDArray[Any]]:
    """Features -> name -> array."""
    arrays = {f.name: np.asarray(getattr(features, f.name)) for f in fields(features)}
    return {**arrays, "look": arrays["look"].astype(np.float16)}  # grey levels, and 25 MB of them


def unpack(arrays: dict[str, npt.NDArray[Any]]) -> Features:
    """The inverse of `pack`. Raises KeyError where an array is missing."""
    kept = {f.name: np.array(arrays[f.name]) for f in fields(Features)}
    return Features(**{**kept, "look": kept["look"].astype(np.float32)})


def blank() -> Features:
    """Features of nothing, with every array of the right kind: what the compiled loops are warmed up with."""

    def floats(*shape: int) -> FloatArray:
        return np.zeros(shape, np.float32)

    def whole(*shape: int) -> Int32Array:
        return np.zeros(shape, np.int32)

    def bytes_(*shape: int) -> UInt8Array:
        return np.zeros(shape, np.uint8)

    face, count = 478, 480
    return Features(
        rest=floats(count, 3), uv=floats(count, 2), triangles=whole(1, 3), tags=bytes_(1), texture=bytes_(8, 8, 4), plate=bytes_(8, 8, 3),
        parents=whole(1, 4), weights=floats(1, 4), rim_index=whole(1), rim_shift=floats(1, 2), rim_normal=floats(1, 3),
        frame=np.eye(3, dtype=np.float32), turn=np.eye(3, dtype=np.float32), pivot=floats(3), eyes_middle=floats(3),
        width=np.array(1, np.float32), ocular=np.array(1, np.float32), head_weight=floats(count), follow=floats(1, 36),
        jaw=floats(face), upper=floats(face, 9), lower=floats(face, 9), lip_gap=floats(9), corners=floats(face, 2), spread=floats(face),
        pucker=floats(face), smile_rest=floats(2), straighten=floats(9), mouth_patch=floats(4),
        upper_teeth=bytes_(4, 4, 4), lower_teeth=bytes_(4, 4, 4),
        dark=floats(2, 3), shade=np.array(0, np.float32), lid_upper=floats(2, face, 7),
        lid_lower=floats(2, face, 7), eye_patch=floats(2, 4), eyeballs=bytes_(2, 4, 4, 3),
        lids=bytes_(2, 4, 4, 4), lash=floats(2, 3), iris=floats(2, 3) + 1,
        eye_axis=floats(2, 4) + 1, brow=floats(2, face), body=floats(count),
        shrug=floats(2, count), shoulders=floats(3) + 1, response=floats(6, 7, 6), coupling=floats(5, 3),
        offsets=floats(2, 0, 13), driven=floats(2, 13), look=floats(0, 1, 1, 3), look_range=floats(4, VALUES), known=bytes_(),
    )  # fmt: skip
