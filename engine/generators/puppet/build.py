"""A portrait and the points of its face become Features: everything that is worked out once."""

from __future__ import annotations

import numpy as np

from engine.drivers.matte import person_matte
from engine.generators.puppet import body, eyes, look, mouth, plate, response, teeth, topology
from engine.generators.puppet.assets import DRIVES, PuppetAssets, spread
from engine.generators.puppet.features import Features
from engine.generators.puppet.mesh import measure, spread_sheet
from engine.types import FloatArray, UInt8Array

PAD = 0.14
"""Padding of the texture, picture sizes: how far the picture goes on, mirrored, beyond its edges."""


def build(rgb: UInt8Array, landmarks: FloatArray, assets: PuppetAssets | None = None) -> Features:
    """Portrait [H, W, 3] and its face [478, 3] px (z on the scale of x) -> Features, no response measured yet.

    `assets`: what a clip of the person taught, see there.
    """
    height, width = rgb.shape[:2]
    head = measure(landmarks)
    pad = int(PAD * max(height, width))
    sheet = spread_sheet(landmarks, head, (height, width), pad)
    matte = plate.complete(person_matte(rgb).astype(np.float32) / 255.0, landmarks[list(topology.OVAL), :2])
    carry = plate.ring(matte, *(share * width for share in plate.CARRY))
    clear = plate.CLEAR * width
    behind = plate.background(rgb, matte, clear=clear) if assets is None else plate.known(rgb, matte, assets.plate, clear=clear)
    colours = rgb if assets is None else plate.alone(rgb, matte, behind)
    texture, uv = plate.texture(colours, plate.pack_matte(carry, matte), pad), (sheet.flat + pad).astype(np.float32)
    drawn = plate.seen(texture[..., 3], uv, sheet.triangles) | (sheet.tags != topology.SKIN)
    lips, lids = mouth.weigh(head), eyes.weigh(head)
    torso = body.weigh(sheet.flat, landmarks, head, (height, width))
    inside = teeth.draw(rgb, landmarks, head)
    patches = [eyes.draw(rgb, landmarks, side) for side in range(2)]
    return Features(
        rest=sheet.rest,
        uv=uv,
        triangles=sheet.triangles[drawn],
        tags=sheet.tags[drawn],
        texture=texture,
        plate=behind,
        parents=sheet.parents,
        weights=sheet.weights,
        rim_index=sheet.rim.index,
        rim_shift=sheet.rim.shift,
        rim_normal=sheet.rim.normal,
        frame=head.frame,
        turn=head.turn,
        pivot=head.pivot,
        eyes_middle=head.eyes_middle,
        width=np.array(head.width, np.float32),
        ocular=np.array(head.ocular, np.float32),
        head_weight=sheet.head_weight,
        follow=sheet.follow,
        jaw=lips.jaw,
        upper=lips.upper,
        lower=lips.lower,
        lip_gap=lips.lip_gap,
        corners=lips.corners,
        spread=lips.spread,
        pucker=lips.pucker,
        smile_rest=lips.smile_rest,
        straighten=lips.straighten,
        mouth_patch=inside.box,
        upper_teeth=inside.upper,
        lower_teeth=inside.lower,
        dark=inside.dark,
        shade=inside.shade,
        lid_upper=lids.lid_upper,
        lid_lower=lids.lid_lower,
        eye_patch=np.stack([patch.box for patch in patches]),
        eyeballs=_stack([patch.ball for patch in patches]),
        lids=_stack([patch.lid for patch in patches]),
        lash=np.stack([patch.lash for patch in patches]),
        iris=np.stack([patch.iris for patch in patches]),
        eye_axis=np.stack([patch.axis for patch in patches]),
        brow=lids.brow,
        body=torso.body,
        shrug=torso.shrug,
        shoulders=torso.shoulders,
        response=response.NO_RESPONSE,
        coupling=response.NO_COUPLING,
        offsets=np.zeros((2, 0, len(DRIVES)), np.float32) if assets is None else spread(assets, sheet.flat, (height, width)),
        driven=np.zeros((2, len(DRIVES)), np.float32) if assets is None else np.stack([assets.low, assets.high]),
        look=np.zeros((0, 1, 1, 3), np.float32) if assets is None else assets.look.astype(np.float32),
        look_range=np.zeros((4, look.VALUES), np.float32) if assets is None else assets.look_range,
        known=np.array(assets is not None, np.uint8),
    )


def _stack(pictures: list[UInt8Array]) -> UInt8Array:
    """Pictures of nearly one size in one array, their last rows and columns repeated."""
    height, width = np.max([p.shape[:2] for p in pictures], 0)
    return np.stack([np.pad(p, ((0, height - p.shape[0]), (0, width - p.shape[1]), (0, 0)), mode="edge") for p in pictures])
