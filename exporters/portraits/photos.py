"""A person's photos: read, put upright, judged for driving, and the best of them; for each that cannot be used one sentence.

What is judged is what driving needs: a face from the front, large, sharp and evenly lit, a resting mouth that is seen, open eyes that nothing
covers. The marks only order the photos; whoever uses the best one is told what is wrong with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from engine.drivers.measure import measure
from engine.drivers.portrait import FaceLiesError, Found, NoFaceError, attitude, find_face
from engine.drivers.quality import sharpness
from engine.drivers.quiet import quiet
from engine.drivers.rigid import MEAN_RIGID, RIGID, fit_pose, metric
from engine.drivers.sight import UPPER_FACE, MouthSight
from engine.drivers.tracker import FaceTracker, shrink
from engine.picture import PictureLimits, decode_picture, orientation
from engine.types import AvatarError, FloatArray, UInt8Array

LIMITS = PictureLimits(max_bytes=64 * 2**20, longest_side=6144)
"""Of a photo: as a camera makes it, and large enough that the face of a distant person is still sharp."""
SEARCHED = 2048
"""px: longest side of the picture that the face is searched in."""
CLOSE_UP = 2.2
"""Side of the close-up that is judged, in face widths or heights."""
CLEARLY = 0.05
"""By how much the detector must be surer of a face in a turned picture. Measured: of upright faces it is surer by 0.1 and more."""
LAY = {1: "the face in it lay on its side", 2: "it was upside down", 3: "the face in it lay on its side"}
"""Quarter turns to the left that bring a picture upright -> how it lay."""
BELOW_EYES = np.array([[110, 24, 23, 22, 26, 231, 230, 229], [339, 254, 253, 252, 256, 451, 450, 449]])
"""Face mesh points on the skin below each eye, which lie behind the glass of dark spectacles."""
SHADED = (0.35, 0.55)
"""Light below the eyes as a share of the cheeks' and the forehead's where the eyes are surely covered, and surely not."""
SMALL = 160.0
"""px across: a face below this is soft once it fills a frame."""
BLURRED = 5.0
"""Sharpness (engine.drivers.quality) below which a face shows no lashes and lips have no edge."""
OPEN_MOUTH = (0.06, 0.3)
"""Lip gap, inter-ocular distances, of a mouth that rests and of one that is wide open."""
CLOSED_EYES = (0.08, 0.2)
"""Opening of the narrower eye, eye widths, that is a closed and an open one."""
FRONTAL = (0.25, 0.75)
"""Ratio of the two halves of the face that is turned too far, and as good as from the front."""
TILT = 40.0
"""Degrees of tilt at which a photo is worth least."""
FLOOR = 0.25
"""What the worst value of one mark leaves of the whole: no single one decides alone."""


@dataclass(frozen=True, slots=True, eq=False)
class Photo:
    """A photo that can be driven."""

    name: str  # the file's
    sha256: str  # of the file
    rgb: UInt8Array  # [H, W, 3], upright
    face: Found  # in px of `rgb`
    notes: tuple[str, ...]  # what was done to put it upright
    marks: Marks


@dataclass(frozen=True, slots=True)
class Marks:
    """What a photo is worth for driving; every mark 0..1, 1 the best."""

    frontal: float
    upright: float
    large: float
    sharp: float
    mouth_seen: float
    mouth_rests: float
    eyes_seen: float
    eyes_open: float

    @property
    def whole(self) -> float:
        """All of them together, 0..1."""
        values = (self.frontal, self.upright, self.large, self.sharp, self.mouth_seen, self.mouth_rests, self.eyes_seen, self.eyes_open)
        return float(np.prod([FLOOR + (1 - FLOOR) * value for value in values]))

    @property
    def wrong(self) -> dict[str, str]:
        """Marks that are too low -> what that means, a clause that follows on 'in this photo'."""
        said = {
            "mouth_seen": "the mouth seems to be covered",
            "eyes_seen": "the eyes seem to be covered, by dark glasses or hair",
            "eyes_open": "the eyes are nearly closed",
            "mouth_rests": "the mouth is wide open",
            "frontal": "the face looks well to the side",
            "sharp": "the face is blurred",
            "large": f"the face is less than {SMALL:.0f} pixels wide and will look soft",
        }
        return {name: text for name, text in said.items() if getattr(self, name) < 0.5}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is wrong."""
        return tuple(self.wrong.values())


def read_photo(path: Path) -> Photo:
    """A photo, upright and judged.

    Raises AvatarError, one sentence that begins with the file's name, where it cannot be read or holds no single face that can be driven.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise AvatarError(f"{path.name}: it cannot be opened ({error.strerror or error}); check its name and permissions.") from error
    try:
        rgb = decode_picture(data, limits=LIMITS)
        turned = orientation(data) != 1
        face, quarters = _find(rgb)
        rgb = np.ascontiguousarray(np.rot90(rgb, quarters)) if quarters else rgb
        marks = judge(rgb, face)
    except AvatarError as error:
        raise AvatarError(f"{path.name}: {error}") from error
    notes = ["turned upright, as its EXIF orientation says"] if turned else []
    if quarters:
        notes.append(f"turned upright, since {LAY[quarters]}")
    return Photo(path.name, hashlib.sha256(data).hexdigest(), rgb, face, tuple(notes), marks)


def read_photos(paths: Sequence[Path], *, tell: Callable[[str], None] = lambda line: None) -> tuple[list[Photo], list[str]]:
    """(the photos that can be used, the best first; a sentence for each that cannot, told as they are read).

    Raises AvatarError, one sentence, where none can be used.
    """
    photos: list[Photo] = []
    refused: list[str] = []
    for path in paths:
        try:
            photo = read_photo(path)
            if any(photo.sha256 == other.sha256 for other in photos):
                raise AvatarError(f"{path.name}: it is the same file as another one; give each photo once.")
        except AvatarError as error:
            if len(paths) == 1:
                raise
            tell(f"Left out: {error}")
            refused.append(str(error))
        else:
            photos.append(photo)
    if not photos:
        raise AvatarError(f"None of the {len(paths)} photos can be used, for the reasons above; choose others.")
    return sorted(photos, key=lambda photo: -photo.marks.whole), refused


def judge(rgb: UInt8Array, face: Found) -> Marks:
    """A picture [H, W, 3] and its face -> what it is worth for driving. Raises AvatarError where a close look does not find the face."""
    near, mesh = _near(rgb, face)
    tilt, ratio = attitude(face)
    aspect = near.shape[1] / near.shape[0]
    points = metric(mesh, aspect)
    measures = measure(fit_pose(MEAN_RIGID, points[RIGID]).undo(points))
    return Marks(
        frontal=_ramp(ratio, *FRONTAL),
        upright=1.0 - min(tilt / TILT, 1.0),
        large=min(face.width / (2 * SMALL), 1.0),
        sharp=min(sharpness(near, mesh) / (2 * BLURRED), 1.0),
        mouth_seen=MouthSight().still(near, mesh),
        mouth_rests=1.0 - _ramp(measures.gap, *OPEN_MOUTH),
        eyes_seen=_eyes_seen(near, mesh),
        eyes_open=_ramp(float(measures.lids.min()), *CLOSED_EYES),
    )


def _find(rgb: UInt8Array) -> tuple[Found, int]:
    """(the face, in px of the picture once it is turned; quarter turns to the left that bring the picture upright)."""
    scale = min(1.0, SEARCHED / max(rgb.shape[:2]))
    small = rgb if scale == 1.0 else np.asarray(cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
    turned = [np.ascontiguousarray(np.rot90(small, quarters)) for quarters in range(4)]
    sure = _detected(turned)
    upright = sure[0] >= max(sure) - CLEARLY
    lying = sorted((quarters for quarters in (1, 2, 3) if sure[quarters]), key=lambda quarters: -sure[quarters])
    order = [0, *lying] if upright else [*lying, 0]
    complaints: list[AvatarError] = []
    for quarters in order:
        try:
            return _scaled(find_face(turned[quarters]), max(rgb.shape[:2]) / max(small.shape[:2])), quarters
        except (NoFaceError, FaceLiesError) as error:
            complaints.append(error)
    raise complaints[0]


def _detected(pictures: list[UInt8Array]) -> list[float]:
    """How sure the detector is of the clearest face in each, 0 where it sees none: the mesh alone is drawn into a face upside down, too."""
    from mediapipe.python.solutions.face_detection import FaceDetection

    with quiet(), FaceDetection(model_selection=0) as detector:
        answers = [detector.process(shrink(picture)).detections or () for picture in pictures]
    return [max((float(face.score[0]) for face in faces), default=0.0) for faces in answers]


def _scaled(face: Found, scale: float) -> Found:
    return Found.of(face.points * scale)


def _near(rgb: UInt8Array, face: Found) -> tuple[UInt8Array, FloatArray]:
    """A close-up of the face [h, w, 3], and its mesh [478, 3] in 0..1 of that, which has the depth that `Found` has not."""
    half = CLOSE_UP / 2 * max(face.width, face.height)
    x, y = face.center
    x0, y0 = max(0, int(x - half)), max(0, int(y - half))
    near = np.ascontiguousarray(rgb[y0 : int(y + half) + 1, x0 : int(x + half) + 1])
    tracker = FaceTracker(still=True)
    try:
        faces = tracker.detect(near)
    finally:
        tracker.close()
    size = np.array([near.shape[1], near.shape[0]], np.float32)
    ours = next((mesh for mesh in faces if Found.of(mesh[:, :2] * size + (x0, y0)).same(face)), None)
    if ours is None:
        raise AvatarError("The face is too unclear to be judged; use a sharper, better lit picture.")
    return near, ours


def _eyes_seen(near: UInt8Array, mesh: FloatArray) -> float:
    """0..1: dark glasses darken the skin below both eyes, hair or a hand that of one; the shadow of a brow does not go so far."""
    grey = cv2.GaussianBlur(cv2.cvtColor(near, cv2.COLOR_RGB2GRAY), (0, 0), 0.01 * near.shape[0]).astype(np.float32)
    skin = float(np.median(_values(grey, mesh[UPPER_FACE])))
    below = min(float(np.median(_values(grey, mesh[points]))) for points in BELOW_EYES)
    return _ramp(below / max(skin, 1.0), *SHADED)


def _values(grey: FloatArray, points: FloatArray) -> FloatArray:
    """A picture [H, W] at points [N, >= 2] in 0..1."""
    height, width = grey.shape
    x = np.clip((points[:, 0] * width).astype(int), 0, width - 1)
    y = np.clip((points[:, 1] * height).astype(int), 0, height - 1)
    return np.asarray(grey[y, x], np.float32)


def _ramp(value: float, low: float, high: float) -> float:
    return float(np.clip((value - low) / (high - low), 0.0, 1.0))


__all__ = ["Marks", "Photo", "judge", "read_photo", "read_photos"]
