"""Paints a skeleton in the DWPose convention: OpenPose's 18 joints, two hands of 21 points, 68 dots of a face, on black.

Colours, order, widths and the darkening of the limbs are those of DWPose's `draw_bodypose`, `draw_handpose` and `draw_facepose`
(Yang et al. 2023, arXiv 2307.15880; the 18 joints are Cao et al.'s, arXiv 1812.08008), in RGB. A weight that was trained on such
pictures expects each of them: limbs painted over one another in this order, nothing anti-aliased, coordinates cut to whole px.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np

from engine.drivers.align import JOINTS, NECK, SEEN
from engine.types import FloatArray, UInt8Array

PUBLISHED_SIDE = 512
"""px of the picture's shorter side that the widths below are made for."""
STICK = 4
"""px: half the width of a limb in its middle."""
JOINT, HAND_JOINT, FACE_DOT = 4, 4, 3
"""px, radii."""
FINGER = 2
"""px, width of the bones of a hand."""
LIMB_SHARE = 0.6
"""Brightness of the limbs; joints, hands and face keep all of theirs."""

FROM_BODY = {2: 12, 3: 14, 4: 16, 5: 11, 6: 13, 7: 15, 8: 24, 9: 26, 10: 28, 11: 23, 12: 25, 13: 27}
"""OpenPose's joint -> MediaPipe's pose landmark: the person's right arm, left arm, right leg, left leg. The neck lies between the shoulders."""
FROM_FACE = {0: 1, 14: 468, 15: 473, 16: 234, 17: 454}
"""OpenPose's joint -> face mesh point: tip of the nose, right and left eye, right and left ear. The mesh is read on every frame, the body is not."""
FEET_FROM_BODY = (31, 32)
"""MediaPipe's tips of the left and the right foot."""
EAR_OUT = 0.06
"""Face widths by which an ear lies outside the mesh: on it, the dots of the face would hide the joint."""
EAR_BESIDE = {16: 33, 17: 263}
"""Ear -> outer corner of the eye on its side: an ear that does not lie outside of it is hidden by the turned head."""

# fmt: off
LIMBS = ((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15),
         (15, 17))
"""Pairs of joints, in the order of painting; limb i has colour i."""
COLOURS = ((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0), (0, 255, 85), (0, 255, 170),
           (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85))
"""RGB of the joints, and of the limbs before they are darkened."""
FOOT_LIMBS = ((13, 18), (10, 19))
"""Where a picture has feet (UniAnimate's): each hangs on its ankle, the left one first."""
FOOT_COLOURS = ((170, 255, 255), (255, 255, 0))
JAW = ((127, 127, 0.0), (234, 93, 0.34), (93, 132, 0.60), (132, 58, 0.74), (58, 172, 0.94), (136, 150, 0.38), (150, 149, 0.93),
       (176, 148, 0.60), (152, 152, 0.0), (400, 377, 0.60), (379, 378, 0.93), (365, 379, 0.38), (288, 397, 0.94), (361, 288, 0.74),
       (323, 361, 0.60), (454, 323, 0.34), (356, 356, 0.0))
"""Between which two points of the mesh, and at which share of the way, lie the 17 of the jaw: equal steps from temple over chin to temple."""
FACE_51 = (70, 63, 105, 66, 107, 336, 296, 334, 293, 300,  # brows
           168, 197, 5, 4, 98, 97, 2, 326, 327,  # nose: bridge down to the tip, then its base
           33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,  # eyes, each clockwise from the picture's left
           61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87)  # lips: outer, then inner edge, clockwise
"""Face mesh points that are the other 51 of iBUG's 68 (Sagonas et al. 2013), in its order, from the picture's left."""
# fmt: on
LIMB_COLOURS = tuple(tuple(int(LIMB_SHARE * part) for part in colour) for colour in (*COLOURS, *FOOT_COLOURS)[: len(LIMBS) + len(FOOT_LIMBS)])
"""DWPose darkens the whole picture once the limbs are on it, which is the same."""
FINGERS = tuple((0 if joint == 0 else base + joint - 1, base + joint) for base in (1, 5, 9, 13, 17) for joint in range(4))
"""Bones of a hand: from the wrist along each finger."""
FINGER_COLOURS = tuple(tuple(255.0 * part for part in colorsys.hsv_to_rgb(i / len(FINGERS), 1.0, 1.0)) for i in range(len(FINGERS)))
HAND_COLOUR, FACE_COLOUR = (0, 0, 255), (255, 255, 255)


def joints_of(face: FloatArray, body: FloatArray) -> FloatArray:
    """Face [478, 2] and body [33, 3] (x, y in px, visibility) -> [18, 3] OpenPose's joints with a score of 0..1."""
    joints = np.zeros((JOINTS, 3), np.float32)
    for joint, at in FROM_BODY.items():
        joints[joint] = body[at]
    shoulders = joints[[2, 5]]
    joints[NECK] = (*shoulders[:, :2].mean(0), shoulders[:, 2].min())
    for joint, at in FROM_FACE.items():
        joints[joint] = (*face[at], 1.0)
    across = face[454] - face[234]
    for ear, corner in EAR_BESIDE.items():
        outwards = across if ear == 17 else -across
        joints[ear, :2] += EAR_OUT * outwards
        joints[ear, 2] = float((face[FROM_FACE[ear]] - face[corner]) @ outwards > 0.0)
    return joints


def with_feet(joints: FloatArray, body: FloatArray) -> FloatArray:
    """Joints [18, 3] and body [33, 3] as in `joints_of` -> [20, 3]."""
    return np.concatenate([joints, body[list(FEET_FROM_BODY)]])


def face_68(face: FloatArray) -> FloatArray:
    """Face [478, 2] -> [68, 2] iBUG's points: jaw, brows, nose, eyes, lips."""
    jaw = [face[a] + share * (face[b] - face[a]) for a, b, share in JAW]
    return np.concatenate([jaw, face[list(FACE_51)]]).astype(np.float32)


def paint_skeleton(size: tuple[int, int], joints: FloatArray, hands: Sequence[FloatArray], face: FloatArray | None) -> UInt8Array:
    """A picture of `size` (H, W): joints [18, 3] (x, y in px, score), or [20, 3] with the feet, each hand [21, 2] px, face [68, 2] px."""
    limbs = LIMBS if len(joints) == JOINTS else (*LIMBS, *FOOT_LIMBS)
    colours = np.array((*COLOURS, *FOOT_COLOURS))[: len(joints)]
    canvas = np.zeros((*size, 3), np.uint8)
    unit = min(size) / PUBLISHED_SIDE
    seen = joints[:, 2] > SEEN
    for (a, b), colour in zip(limbs, LIMB_COLOURS, strict=False):
        if seen[a] and seen[b]:
            _limb(canvas, joints[a, :2], joints[b, :2], colour, _px(STICK * unit))
    for joint, colour in zip(joints[seen], colours[seen].tolist(), strict=True):
        cv2.circle(canvas, _cut(joint), _px(JOINT * unit), colour, thickness=-1)
    for hand in hands:
        _hand(canvas, hand, unit)
    for point in () if face is None else face:
        if _inside(point):
            cv2.circle(canvas, _cut(point), _px(FACE_DOT * unit), FACE_COLOUR, thickness=-1)
    return canvas


def _limb(canvas: UInt8Array, a: FloatArray, b: FloatArray, colour: Sequence[int], half: int) -> None:
    """A filled ellipse from joint to joint; its middle, half length and angle (degrees) are cut to whole numbers."""
    across, down = float(a[0] - b[0]), float(a[1] - b[1])
    half_length = int(np.hypot(across, down) / 2)
    outline = cv2.ellipse2Poly(_cut((a + b) / 2), (half_length, half), int(np.degrees(np.arctan2(down, across))), 0, 360, 1)
    cv2.fillConvexPoly(canvas, outline, colour)


def _hand(canvas: UInt8Array, hand: FloatArray, unit: float) -> None:
    for (a, b), colour in zip(FINGERS, FINGER_COLOURS, strict=True):
        if _inside(hand[a]) and _inside(hand[b]):
            cv2.line(canvas, _cut(hand[a]), _cut(hand[b]), colour, thickness=_px(FINGER * unit))
    for point in hand:
        if _inside(point):
            cv2.circle(canvas, _cut(point), _px(HAND_JOINT * unit), HAND_COLOUR, thickness=-1)


def _px(length: float) -> int:
    """A width that never vanishes."""
    return max(1, round(length))


def _cut(point: FloatArray) -> tuple[int, int]:
    return int(point[0]), int(point[1])


def _inside(point: FloatArray) -> bool:
    """DWPose leaves out points of hands and face in or beyond the first column or row, as it marks what it does not see by -1."""
    return int(point[0]) > 0 and int(point[1]) > 0


__all__ = ["COLOURS", "FACE_51", "FINGERS", "LIMBS", "NECK", "SEEN", "face_68", "joints_of", "paint_skeleton", "with_feet"]
