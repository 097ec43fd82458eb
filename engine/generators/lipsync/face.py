"""Where a face's lips are in a picture: the crop a model reads, the feathered mask its answer is pasted by. From MediaPipe's face mesh.

The published systems find their boxes with detectors of their own; these are the same boxes from equivalent points of the mesh:
- Wav2Lip crops what S3FD finds, from the hairline to the chin and from cheek to cheek, and 10 px more below: the bounds of the mesh's outline.
- MuseTalk lays the middle of its box on landmark 29 of 68, two thirds down the bridge of the nose, its lower edge under the chin (10 px more in
  version 1.5), and its sides at the jaw's ends.
Their pixels were those of video at its own size, where such a face is about 250 px high: here the margin is a share of the box.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from engine.drivers.outlines import OVAL
from engine.generators.lipsync.sizes import Kind
from engine.types import AvatarError, FloatArray, UInt8Array

BELOW = 0.04
"""Heights of the box that it goes on under the chin."""
# fmt: off
JAW = (127, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 288, 323, 454, 356)
"""The jaw from ear to ear: the contour that the 68 landmarks begin with."""
# fmt: on
BRIDGE, TIP, CHIN = 168, 4, 152
"""The nose between the eyes, its tip, and the chin."""
DOWN_THE_NOSE = 2 / 3
"""Of the way from BRIDGE to TIP: landmark 29 of 68."""
FEATHER = 0.035
"""Standard deviation of the mask's edge, in widths of the box."""
INSET = 2.0
"""Standard deviations from the box's edges that the mask ends at."""
JAW_DROP = 0.05
"""Heights of the box that an opening mouth takes the chin down by."""
SMALLEST = 24
"""px: a box below this has no lips to be seen."""


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A face in a picture."""

    box: tuple[int, int, int, int]  # x0, y0, x1, y1 px, inside the picture
    mask: npt.NDArray[np.float32]  # [y1 - y0, x1 - x0] 0..1: where the model's answer shows


def place(points: FloatArray, shape: tuple[int, ...], *, kind: Kind) -> Place | None:
    """Mesh points [478, 2 or more] in px of a picture of `shape` (H, W, ..) -> where its lips are; None where too little is inside."""
    x0, y0, x1, y1 = bounds(points, kind=kind)
    left, top, right, bottom = max(0, round(x0)), max(0, round(y0)), min(shape[1], round(x1)), min(shape[0], round(y1))
    if right - left < SMALLEST or bottom - top < SMALLEST:
        return None
    return Place((left, top, right, bottom), _mask(points, (left, top, right, bottom), middle=(y0 + y1) / 2))


def bounds(points: FloatArray, *, kind: Kind) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 px of the crop, before it is cut to the picture."""
    if kind == "wav2lip":
        low, high = points[list(OVAL), :2].min(0), points[list(OVAL), :2].max(0)
        return float(low[0]), float(low[1]), float(high[0]), float(high[1] + BELOW * (high[1] - low[1]))
    jaw = points[list(JAW), :2]
    middle = float(points[BRIDGE, 1] + DOWN_THE_NOSE * (points[TIP, 1] - points[BRIDGE, 1]))
    chin = float(jaw[:, 1].max())
    top = max(0.0, middle - (chin - middle))
    return float(jaw[:, 0].min()), top, float(jaw[:, 0].max()), chin + BELOW * (chin - top)


def _mask(points: FloatArray, box: tuple[int, int, int, int], *, middle: float) -> npt.NDArray[np.float32]:
    """The face's outline under the box's middle, its chin let down as far as a mouth opens, feathered inside of the box."""
    x0, y0, x1, y1 = box
    width, height = x1 - x0, y1 - y0
    sigma = FEATHER * width
    outline = points[list(OVAL), :2] - np.array([x0, y0], np.float32)
    drop = JAW_DROP * height * np.clip((outline[:, 1] - (middle - y0)) / max(1.0, height / 2), 0, 1)
    outline = outline + np.stack([np.zeros_like(drop), drop], 1)
    shape = np.zeros((height, width), np.uint8)
    cv2.fillPoly(shape, [np.round(outline).astype(np.int32)], 255)
    margin = min(round(INSET * sigma), width // 4, height // 4)
    shape[: max(0, round(middle - y0 + sigma))] = 0
    shape[:, :margin], shape[:, width - margin :], shape[height - margin // 2 :] = 0, 0, 0
    soft = cv2.GaussianBlur(shape.astype(np.float32) / 255.0, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
    rim = float(max(soft[:, 0].max(), soft[:, -1].max(), soft[-1].max(), soft[0].max()))
    mask = np.clip((soft - rim) / max(1e-6, 1.0 - rim), 0, 1)  # nothing at the box's edges, which would show
    return np.asarray(mask, np.float32)


def crop(rgb: UInt8Array, where: Place, side: int, *, kind: Kind) -> UInt8Array:
    """What the model reads: the box of a picture at `side` x `side` px, by the published filters (bilinear; Lanczos)."""
    x0, y0, x1, y1 = where.box
    how = cv2.INTER_LINEAR if kind == "wav2lip" else cv2.INTER_LANCZOS4
    return np.asarray(cv2.resize(rgb[y0:y1, x0:x1], (side, side), interpolation=how), np.uint8)


def paste(rgb: UInt8Array, where: Place, answer: FloatArray, share: float) -> UInt8Array:
    """A copy of the picture with the model's answer [s, s, 3] (0..255) over its box, by the mask and `share` 0..1."""
    x0, y0, x1, y1 = where.box
    out = rgb.copy()
    made = np.clip(answer + 0.5, 0, 255).astype(np.uint8)
    how = cv2.INTER_CUBIC if x1 - x0 > made.shape[1] else cv2.INTER_AREA
    made = np.asarray(cv2.resize(made, (x1 - x0, y1 - y0), interpolation=how), np.uint8)
    over = where.mask * np.float32(share)
    out[y0:y1, x0:x1] = cv2.blendLinear(np.ascontiguousarray(made), np.ascontiguousarray(out[y0:y1, x0:x1]), over, 1.0 - over)
    return out


def need(points: FloatArray, shape: tuple[int, ...], *, kind: Kind) -> Place:
    """As `place`. Raises AvatarError where too little of the face is in the picture."""
    found = place(points, shape, kind=kind)
    if found is None:
        raise AvatarError("The face's mouth is too small or outside of the picture; use one where the whole face is larger.")
    return found


__all__ = ["Place", "bounds", "crop", "need", "paste", "place"]
