"""Condition pictures from signals: skeletons in the DWPose convention and face landmark maps, in the portrait's frame.

The driver's picture is not the portrait's: its person sits elsewhere, nearer or further. Where the points go follows from one
signal and from the portrait alone (`engine.conditions.place`); a memory only eases the change from one rule to another (`...ease`), and knows
the driver's proportions where they are not to be shown (`...align`):

1. *A face that the camera sees and that moves its own lips* (`motion.expression` given, confidences at least 0.3). A rigid fit says
   where the driver's head is now, `motion.head` says how far that is from the driver's neutral: so the neutral's place and size
   are known. One similarity (a scale and a shift, no rotation) takes the neutral head onto the portrait's, and all points of the
   driver through it: face, shoulders, arms, hands. Size and place of the head thereby follow `motion.head` exactly, smoothed
   as it is, while its turn and its features are the driver's own. A signal without a motion counts as the neutral.
2. *No face, or lips that a voice moves* (`engine.conditions.own`): the portrait's own face, found once, is moved by the motion: lids,
   irises, brows and lips by the scalars (and the expression, if there is one), then the head turns about the neck as one piece.
3. *A body of which the camera sees neither shoulder* is the portrait's own, moved by `motion.body`. One it sees below a face of rule 2
   is brought to the portrait's by the two shoulders alone.

4. *Proportions* are the driver's own, at the size of the portrait's head, unless the preset names an alignment: then the body below the
   head takes on the portrait's (`engine.conditions.align`).

A hand or a joint whose confidence is under 0.3 is left out, and so is a joint that the tracker guesses well outside the picture. A face
under it is not the driver's any more (rule 2), so that no frame is without one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from engine.conditions.align import aligned
from engine.conditions.dots import face_dots, paint_dots
from engine.conditions.ease import Ease, eased
from engine.conditions.landmarks import paint_features, paint_landmarks
from engine.conditions.maps import stacked
from engine.conditions.place import Anchor, Placed, anchor_of, place
from engine.conditions.regions import face_mask
from engine.conditions.skeleton import face_68, joints_of, paint_skeleton
from engine.generators.diffusion.layout import Condition
from engine.generators.diffusion.presets import Preset
from engine.types import FloatArray, Signal, UInt8Array

Painter = Callable[[Signal, Anchor | None, Ease], UInt8Array]
"""(signal, where the portrait it drives has its face and shoulders, what was painted before) -> condition picture [H, W, K]."""


def painter(made: Preset) -> Painter:
    """The painter of a preset's condition: of its skeleton, of its landmarks, dots or features, of the face's place, which never changes, or of what
    the signal brings, which knows no portrait."""
    if made.maps:
        return lambda signal, anchor, ease: stacked(signal.maps, made.maps, made.size)

    def masked(signal: Signal, anchor: Anchor | None, ease: Ease) -> UInt8Array:
        assert anchor is not None
        return mask_of(anchor, made)

    def paint(signal: Signal, anchor: Anchor | None, ease: Ease) -> UInt8Array:
        assert anchor is not None
        placed = place(signal, anchor, made.size)
        if made.alignment != "own" and made.condition == "skeleton":
            placed = aligned(ease.alignment, placed, signal, anchor, kind=made.alignment, size=made.size)
        return draw(made.condition, eased(ease, placed, signal.time), made.size, face=made.face)

    return masked if made.condition == "mask" else paint


def pixels(anchor: Anchor, size: tuple[int, int]) -> FloatArray:
    """The portrait's own face [478, 2] in px of a picture of `size` (H, W)."""
    return np.asarray(anchor.face[:, :2] * np.array(size[::-1], np.float32), np.float32)


def mask_of(anchor: Anchor, made: Preset) -> UInt8Array:
    """The condition picture [H, W, K] of a portrait whose head sound alone moves: where its face is."""
    mask = face_mask(pixels(anchor, made.size), made.size)
    return np.repeat(mask[..., None], made.planes, 2)


def draw(condition: Condition, placed: Placed, size: tuple[int, int], *, face: bool = True) -> UInt8Array:
    """The condition picture [H, W, K] of points that lie in a frame of `size` (H, W). `face`: whether a skeleton shows its face's points."""
    if condition == "landmarks":
        return paint_landmarks(size, placed.face)
    if condition == "dots":
        return paint_dots(size, face_dots(placed.face))
    if condition == "features":
        return paint_features(size, placed.face)
    assert condition == "skeleton"
    return paint_skeleton(size, joints_of(placed.face, placed.body), placed.hands, face_68(placed.face) if face else None)


__all__ = ["Anchor", "Ease", "Painter", "Placed", "anchor_of", "draw", "mask_of", "painter", "pixels"]
