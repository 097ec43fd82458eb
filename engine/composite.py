"""The picture around the generator: crop for driving, paste back, background, badge. Once for every generator."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from engine.config import OperatorSettings, SessionSettings
from engine.types import UInt8Array, VideoFrame

HEAD_AND_SHOULDERS = 3.4
"""Side of the crop in face widths."""
HEAD = 1.5
"""Smallest side of the crop in face widths or heights: the hair must fit."""
WHOLE = 0.8
"""A picture that is no larger than the crop over this is driven whole: no seam, no paste."""
FACE_HEIGHT_IN_CROP = 0.45
"""Where the middle of the face sits in the crop, from the top."""
STRETCH = 1.25
"""How far the crop may reach beyond the picture's short side; what lies outside is the edge, repeated, and never shown."""
LONGEST_SIDE = 1024
"""px of the picture that is sent."""
SHORTEST_LONG_SIDE = 512
"""px: smaller pictures are enlarged to this."""
FEATHER = 0.08
"""Soft rim of the crop where it meets the rest of the picture, as a share of its side."""


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A portrait's picture and where the generator's frames go in it."""

    picture: UInt8Array  # [H, W, 3] RGB, even sides
    square: tuple[int, int, int]  # x, y, side in px of the picture; may reach beyond it
    feather: UInt8Array | None = None  # [H, W] of the square's visible part, 255 = the frame; None where the frame is the whole picture

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) px of the pictures that `compose` makes at output scale 1."""
        return self.picture.shape[0], self.picture.shape[1]

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1 of the square's visible part."""
        x, y, side = self.square
        height, width = self.size
        return max(0, x), max(0, y), min(width, x + side), min(height, y + side)


def frame_portrait(rgb: UInt8Array, *, size: int = 512) -> tuple[Scene, UInt8Array]:
    """Picture [H, W, 3] RGB of any size -> (Scene, square crop [side, side, 3] for `Generator.prepare`).

    `size`: px of the generator's frames; the scene is scaled so that they need no resizing where that fits. Raises AvatarError
    where the picture has no face that can be driven (see `engine.drivers.portrait.find_face`).
    """
    import cv2

    from engine.drivers.portrait import find_face

    face = find_face(rgb)
    height, width = rgb.shape[:2]
    short, long = min(height, width), max(height, width)
    side = _side(face.width, face.height, short, long)
    x = _place(face.center[0] - side / 2, side, width)
    y = _place(face.center[1] - FACE_HEIGHT_IN_CROP * side, side, height)
    crop = _cut(rgb, x, y, side)
    scale = min(size / side, LONGEST_SIDE / long, max(1.0, SHORTEST_LONG_SIDE / long))
    even = (max(2, 2 * round(width * scale / 2)), max(2, 2 * round(height * scale / 2)))
    picture = np.asarray(cv2.resize(rgb, even, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC), np.uint8)
    square = (round(x * even[0] / width), round(y * even[1] / height), round(side * scale))
    return _with_feather(Scene(picture, square)), crop


def _side(face_width: float, face_height: float, short: int, long: int) -> int:
    """px of the crop: head and shoulders, or the whole of a picture that is hardly larger than that."""
    if long <= STRETCH * short and HEAD_AND_SHOULDERS * face_width >= WHOLE * long:
        return long
    return round(max(min(HEAD_AND_SHOULDERS * face_width, STRETCH * short, long), HEAD * max(face_width, face_height)))


def _place(start: float, side: int, length: int) -> int:
    """Where a span of `side` begins: inside the picture where it fits, else around it evenly."""
    if side >= length:
        return -((side - length) // 2)
    return round(min(max(start, 0.0), float(length - side)))


def _cut(rgb: UInt8Array, x: int, y: int, side: int) -> UInt8Array:
    """The square, with the picture's edge repeated outside of it."""
    rows = np.clip(np.arange(y, y + side), 0, rgb.shape[0] - 1)
    columns = np.clip(np.arange(x, x + side), 0, rgb.shape[1] - 1)
    return np.ascontiguousarray(rgb[rows][:, columns])


def _with_feather(scene: Scene) -> Scene:
    """Soft only where the square's rim lies inside the picture."""
    x0, y0, x1, y1 = scene.box
    height, width = scene.size
    if (x0, y0, x1, y1) == (0, 0, width, height):
        return scene
    band = FEATHER * scene.square[2]
    columns, rows = np.arange(x0, x1) + 0.5, np.arange(y0, y1) + 0.5
    far = np.float64(np.inf)
    across = np.minimum(columns - x0 if x0 > 0 else far, x1 - columns if x1 < width else far)
    down = np.minimum(rows - y0 if y0 > 0 else far, y1 - rows if y1 < height else far)
    t = np.clip(np.minimum.outer(np.broadcast_to(down, len(rows)), np.broadcast_to(across, len(columns))) / band, 0.0, 1.0)
    return replace(scene, feather=np.asarray(255 * t * t * (3 - 2 * t) + 0.5, np.uint8))


def compose(
    scene: Scene, frame: VideoFrame, settings: SessionSettings, operator: OperatorSettings, *, driving: UInt8Array | None = None
) -> VideoFrame:
    """A generator's frame -> the picture that leaves. The frame's arrays are not written to."""
    import cv2

    x, y, side = scene.square
    x0, y0, x1, y1 = scene.box
    rgb = frame.rgb if frame.rgb.shape[0] == side else np.asarray(cv2.resize(frame.rgb, (side, side), interpolation=cv2.INTER_AREA), np.uint8)
    part = rgb[y0 - y : y1 - y, x0 - x : x1 - x]
    picture = scene.picture.copy()
    if scene.feather is None:
        picture[y0:y1, x0:x1] = part
    else:
        share = scene.feather[..., None].astype(np.uint16)
        still = picture[y0:y1, x0:x1]
        picture[y0:y1, x0:x1] = ((part * share + still * (255 - share)) // 255).astype(np.uint8)
    rows = operator.carry_strip
    if rows and driving is not None:
        picture[:rows] = cv2.resize(driving[:rows], (picture.shape[1], rows), interpolation=cv2.INTER_NEAREST)
    return replace(frame, rgb=picture, alpha=None)
