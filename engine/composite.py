"""The picture around the generator: crop for driving, paste back, background, badge. Once for every generator."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from engine.config import Background, OperatorSettings, SessionSettings
from engine.types import AvatarError, FloatArray, UInt8Array, VideoFrame

if TYPE_CHECKING:
    from engine.drivers.portrait import Found

HEAD_AND_SHOULDERS = 3.7
"""Short side of the crop in face widths."""
HEAD = 1.5
"""Smallest short side of the crop in face widths or heights: the hair must fit."""
WHOLE = 0.8
"""A picture that is no larger than the crop over this is driven whole: no seam, no paste."""
FACE_HEIGHT_IN_CROP = 0.47
"""Where the middle of the face sits in the crop, from the top, as a share of its short side."""
STRETCH = 1.25
"""How far the crop may reach beyond the largest that fits in the picture; what lies outside is the edge, repeated, and never shown."""
LONGEST_SIDE = 1024
"""px of the picture that is sent."""
SHORTEST_LONG_SIDE = 512
"""px: smaller pictures are enlarged to this."""
FEATHER = 0.08
"""Soft rim of the crop where it meets the rest of the picture, as a share of its short side."""
FEATHER_BELOW = 0.16
"""The same at its lower edge, which crosses the body."""
BODY_BELOW = 0.4
"""Share of the shoulders' motion that is left where the crop ends above the picture's lower edge: what follows there does not move."""
BLUR = 0.022
"""Standard deviation of the blurred background, as a share of the picture's longest side."""
BLUR_REDUCTION = 4
"""The blur is done at a quarter of the size: nothing finer is left in it."""
BADGE_HEIGHT = 0.06
"""Height of the "AI" badge as a share of the picture's short side, and its smallest height in px."""
BADGE_SMALLEST = 16
KEPT_STAGES = 6
"""Backgrounds and sizes of one scene that are kept ready."""


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """How the rectangle of a generator's frames lies in a picture."""

    rect: tuple[int, int, int, int]  # x, y, width, height in px; may reach beyond the picture
    box: tuple[int, int, int, int]  # x0, y0, x1, y1 of its visible part
    feather: UInt8Array  # [box] 255 = the rectangle; soft only where its rim lies inside the picture
    whole: bool  # it covers the picture

    @classmethod
    def of(cls, rect: tuple[int, int, int, int], size: tuple[int, int]) -> Fit:
        """A rectangle (x, y, width, height) in a picture of (H, W)."""
        x, y, across, down = rect
        height, width = size
        x0, y0, x1, y1 = box = max(0, x), max(0, y), min(width, x + across), min(height, y + down)
        band, below = FEATHER * min(across, down), FEATHER_BELOW * min(across, down)
        ramps = np.multiply.outer(_ramp(y0, y1, height, (band, below)), _ramp(x0, x1, width, (band, band)))
        return cls(rect, box, np.asarray(255 * ramps + 0.5, np.uint8), box == (0, 0, width, height))

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) px of the rectangle."""
        return self.rect[3], self.rect[2]

    @property
    def exact(self) -> bool:
        """The picture is the rectangle itself."""
        return self.whole and self.box == (0, 0, *self.rect[2:])

    @property
    def inset(self) -> tuple[int, int]:
        """x, y of the box in the rectangle."""
        return self.box[0] - self.rect[0], self.box[1] - self.rect[1]

    def cut(self, image: UInt8Array) -> UInt8Array:
        """[h, w] or [h, w, 3]: the rectangle of a picture, its edge repeated outside of it."""
        x, y, across, down = self.rect
        rows = np.clip(np.arange(y, y + down), 0, image.shape[0] - 1)
        columns = np.clip(np.arange(x, x + across), 0, image.shape[1] - 1)
        return np.ascontiguousarray(image[rows][:, columns])

    def scaled(self, size: tuple[int, int], to: tuple[int, int]) -> Fit:
        """The same rectangle in the picture resized from `size` to `to`, (H, W); edges that it reached it still reaches."""
        scale = max(to) / max(size)
        x, y, across, down = self.rect
        spans = [(x, across, size[1], to[1]), (y, down, size[0], to[0])]
        covered = [(new, length) for start, length, old, new in spans if start <= 0 and start + length >= old]
        placed = []
        for start, length, old, new in spans:
            # As large as the scale says, and larger in both directions where it would else no longer cover what it covered.
            longer = max([round(length * scale), *(-(-needed * length // other) for needed, other in covered)])
            moved = round(start * scale)
            moved = min(moved, 0) if start <= 0 else moved
            placed.append((max(moved, new - longer) if start + length >= old else moved, longer))
        return Fit.of((placed[0][0], placed[1][0], placed[0][1], placed[1][1]), to)


def _ramp(start: int, end: int, length: int, bands: tuple[float, float]) -> FloatArray:
    """[end - start] 0..1, smooth over `bands` px at the start and the end where they are not those of 0..length."""
    at = np.arange(start, end) + 0.5
    t = np.ones(end - start)
    if start > 0:
        t = np.minimum(t, (at - start) / bands[0])
    if end < length:
        t = np.minimum(t, (end - at) / bands[1])
    return np.asarray(t * t * (3 - 2 * t), np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A portrait's picture and where the generator's frames go in it. Immutable but for its cache of stages."""

    picture: UInt8Array  # [H, W, 3] RGB, even sides
    matte: UInt8Array  # [H, W] 255 = the person as the picture shows them
    clean: UInt8Array  # [H, W, 3] the picture without its person
    fit: Fit  # where frames go
    stages: Stages = field(default_factory=lambda: Stages(), repr=False)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) px of the pictures that `compose` makes at output scale 1."""
        return self.picture.shape[0], self.picture.shape[1]

    @property
    def body_share(self) -> float:
        """How much of a driver's body motion suits this scene, 0..1."""
        return 1.0 if self.fit.box[3] >= self.size[0] else BODY_BELOW

    def pack(self) -> dict[str, npt.NDArray[Any]]:
        """For a file."""
        return {"picture": self.picture, "matte": self.matte, "clean": self.clean, "rect": np.array(self.fit.rect)}

    @classmethod
    def unpack(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Scene:
        """The inverse."""
        picture = arrays["picture"]
        x, y, width, height = (int(value) for value in arrays["rect"])
        return cls(picture, arrays["matte"], arrays["clean"], Fit.of((x, y, width, height), (picture.shape[0], picture.shape[1])))


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """A scene made ready for one size and one background."""

    still: UInt8Array  # [h, w, 3] the whole picture as it is where no frame is pasted
    fit: Fit  # where frames go
    plate: UInt8Array | None = None  # [h, w, 3] the new background; None where the portrait's own is kept
    clean: UInt8Array | None = None  # [h, w, 3] the old one
    matte: UInt8Array | None = None  # of the still picture, as large as the fit's rectangle: for frames that have none


class Stages:
    """The stages of a scene that were used last. Safe from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[object, ...], tuple[Background, Stage]] = OrderedDict()

    def get(self, scene: Scene, background: Background, scale: float) -> Stage:
        """The stage for a background and an output scale, built where it is new (up to 30 ms)."""
        key = (scale, background.kind, background.colour, id(background.picture))
        with self._lock:
            if key not in self._kept:
                # The background is kept beside the stage, so that the id of its picture stays its own.
                self._kept[key] = (background, _stage(scene, background, scale))
                while len(self._kept) > KEPT_STAGES:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key][1]


# -- once a portrait ----------------------------------------------------------------------------------------------------


def frame_portrait(rgb: UInt8Array, *, size: tuple[int, int] = (512, 512)) -> tuple[Scene, UInt8Array]:
    """Picture [H, W, 3] RGB of any size -> (Scene, crop [h, w, 3] for `Generator.prepare`, of the frames' shape).

    `size`: (H, W) px of the generator's frames; the scene is scaled so that they need no resizing where that fits. A crop that is higher
    than wide shows the head and as much of the body as the picture does. Raises AvatarError where the picture has no face that can be
    driven (see `engine.drivers.portrait.find_face`).
    """
    from engine.drivers.matte import clean_plate, person_matte
    from engine.drivers.portrait import find_face

    face = find_face(rgb)
    height, width = rgb.shape[:2]
    long = max(height, width)
    fit = Fit.of(_crop(rgb, face, size[1] / size[0]), (height, width))
    crop = fit.cut(rgb)
    figure = fit.size[0] * WHOLE > HEAD_AND_SHOULDERS * face.width
    scale = min(size[0] / fit.size[0], LONGEST_SIDE / long, max(1.0, SHORTEST_LONG_SIDE / long))
    picture = _resize(rgb, _even(width * scale), _even(height * scale))
    fit = fit.scaled((height, width), (picture.shape[0], picture.shape[1]))
    matte = person_matte(picture, figure=figure or not fit.whole)
    if not fit.whole:  # the head is worth a look of its own
        x0, y0, x1, y1 = fit.box
        left, top = fit.inset
        near = _resize(person_matte(crop, figure=figure), *fit.rect[2:])[top : top + y1 - y0, left : left + x1 - x0].astype(np.int32)
        far = matte[y0:y1, x0:x1]
        far[:] = far + (near - far) * fit.feather // 255
    return Scene(picture, matte, clean_plate(picture, matte), fit), crop


def _crop(rgb: UInt8Array, face: Found, aspect: float) -> tuple[int, int, int, int]:
    """x, y, width, height of the crop, `aspect` = width / height: head and shoulders, a tall one's figure, or the whole of a picture that
    is hardly larger than that."""
    from engine.drivers.figure import figure_of

    height, width = rgb.shape[:2]
    fits, covers = min(width, height * aspect), max(width, height * aspect)
    wide = max(1.0, aspect)  # of the crop, in its short sides
    figure = None
    across = HEAD_AND_SHOULDERS * face.width * wide
    if aspect < 1.0:
        x0, y0, x1, y1 = figure = figure_of(rgb, face)
        across = max(across, x1 - x0, (y1 - y0) * aspect)
    if covers <= STRETCH * fits and across >= WHOLE * covers:
        across = covers
    else:
        across = max(min(across, STRETCH * fits, covers), HEAD * max(face.width, face.height) * wide)
    right, down = round(across), round(across / aspect)
    x, y = face.center[0] - right / 2, face.center[1] - FACE_HEIGHT_IN_CROP * min(right, down)
    if figure is not None:
        x, y = _around(x, right, figure[0], figure[2]), _around(y, down, figure[1], figure[3])
    return _place(x, right, width), _place(y, down, height), right, down


def _around(start: float, length: float, low: float, high: float) -> float:
    """Where a span begins that is moved no further than it must be to hold low..high, or at least the beginning of that."""
    return min(max(start, high - length), low)


def _place(start: float, length: int, longest: int) -> int:
    """Where a span begins: inside the picture where it fits, else around it evenly."""
    if length >= longest:
        return -((length - longest) // 2)
    return round(min(max(start, 0.0), float(longest - length)))


def _even(length: float) -> int:
    """The nearest even number of px: encoders store colour for two by two."""
    return max(2, 2 * round(length / 2))


def _resize(image: UInt8Array, width: int, height: int) -> UInt8Array:
    """The image itself where it already fits."""
    import cv2

    if image.shape[:2] == (height, width):
        return image
    shrinks = width * height < image.shape[0] * image.shape[1]
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC), np.uint8)


# -- once a background --------------------------------------------------------------------------------------------------


def _stage(scene: Scene, background: Background, scale: float) -> Stage:
    from engine.blend import replace_background

    height, width = _even(scene.size[0] * scale), _even(scene.size[1] * scale)
    fit = scene.fit.scaled(scene.size, (height, width))
    still = _resize(scene.picture, width, height)
    if background.kind == "keep":
        return Stage(still, fit)
    matte, clean = _resize(scene.matte, width, height), _resize(scene.clean, width, height)
    plate = _plate(clean, background)
    behind = plate.copy()
    replace_background(behind, still, matte, clean, plate, np.full((height, width), 255, np.uint8), 0, 0, 0, 0)
    return Stage(behind, fit, plate, clean, fit.cut(matte))


def _plate(clean: UInt8Array, background: Background) -> UInt8Array:
    """[H, W, 3] the new background, given the old one without its person."""
    import cv2

    height, width = clean.shape[:2]
    if background.kind == "colour":
        return np.full(clean.shape, background.colour, np.uint8)
    if background.kind == "blur":
        small = cv2.resize(clean, (max(1, width // BLUR_REDUCTION), max(1, height // BLUR_REDUCTION)), interpolation=cv2.INTER_AREA)
        soft = cv2.GaussianBlur(small, (0, 0), BLUR * max(height, width) / BLUR_REDUCTION, borderType=cv2.BORDER_REPLICATE)
        return np.asarray(cv2.resize(soft, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)
    if background.picture is None:
        raise AvatarError("The background is set to a picture but none was given; choose a picture or another background.")
    own_height, own_width = background.picture.shape[:2]
    cover = max(width / own_width, height / own_height)
    large = _resize(background.picture, max(width, round(own_width * cover)), max(height, round(own_height * cover)))
    left, top = (large.shape[1] - width) // 2, (large.shape[0] - height) // 2
    return np.ascontiguousarray(large[top : top + height, left : left + width])


# -- every frame ----------------------------------------------------------------------------------------------------------


def compose(
    scene: Scene, frame: VideoFrame, settings: SessionSettings, operator: OperatorSettings, *, driving: UInt8Array | None = None
) -> VideoFrame:
    """A generator's frame [h, w, 3], matte [h, w] or None -> the picture that leaves [H, W, 3], even sides; time and id are the frame's.

    `driving`: the camera picture that the frame follows, for `operator.carry_strip`. The frame's arrays are neither written nor kept.
    """
    from engine.blend import paste, replace_background

    stage = scene.stages.get(scene, settings.background, settings.output_scale)
    fit = stage.fit
    where = (*fit.box[:2], *fit.inset)
    rgb = _quickly(frame.rgb, fit.size)
    if stage.plate is None or stage.clean is None or stage.matte is None:
        if fit.exact:
            picture = rgb.copy() if rgb is frame.rgb else rgb
        else:
            picture = stage.still.copy()
            paste(picture, rgb, fit.feather, *where)
    else:
        matte = stage.matte if frame.alpha is None else _quickly(frame.alpha, fit.size)
        picture = np.empty_like(stage.still) if fit.whole else stage.still.copy()
        replace_background(picture, rgb, matte, stage.clean, stage.plate, fit.feather, *where)
    if operator.badge:
        _stamp(picture)
    if operator.carry_strip and driving is not None:
        _carry(driving, picture, operator.carry_strip)
    return replace(frame, rgb=picture, alpha=None)


def _quickly(image: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    """A frame or its matte at `size` (H, W): halved while that is too large, then linear, a tenth of the time that exact areas take."""
    import cv2

    height, width = size
    while image.shape[0] >= 2 * height and image.shape[1] >= 2 * width:
        image = np.asarray(cv2.resize(image, (image.shape[1] // 2, image.shape[0] // 2), interpolation=cv2.INTER_AREA), np.uint8)
    if image.shape[:2] != size:
        image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    return np.ascontiguousarray(image)


def _carry(driving: UInt8Array, picture: UInt8Array, rows: int) -> None:
    """Copy the camera picture's top rows over the picture's, as many of them, stretched in width."""
    import cv2

    rows = min(rows, driving.shape[0], picture.shape[0])
    picture[:rows] = cv2.resize(driving[:rows], (picture.shape[1], rows), interpolation=cv2.INTER_AREA)


def _stamp(picture: UInt8Array) -> None:
    """Lay the badge into the lower right corner."""
    from engine.badge import badge

    colour, cover = badge(max(BADGE_SMALLEST, round(BADGE_HEIGHT * min(picture.shape[:2]))))
    height, width = cover.shape[:2]
    edge = height // 2
    top, left = max(0, picture.shape[0] - edge - height), max(0, picture.shape[1] - edge - width)
    corner = picture[top : top + height, left : left + width]
    colour, cover = colour[: corner.shape[0], : corner.shape[1]], cover[: corner.shape[0], : corner.shape[1]]
    corner[:] = (corner * (255 - cover) + colour) // 255
