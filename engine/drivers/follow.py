"""One person among several: follow the face that continues the tracked one, and find it again. Knows faces and time, not expressions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.drivers.tracker import FaceTracker
from engine.types import FloatArray, UInt8Array

GONE = 2.0
"""s without the tracked person after which another may take over."""
STEP_SHARE, STEP_SPEED = 0.6, 0.8
"""Face sizes a face may have moved between two looks and still be the same one: at once, and more per second in between."""
GROWTH, GROWTH_SPEED = 0.35, 0.5
"""The same for the log of its size."""
MASK_SHARE = 1.0
"""Face sizes kept around a face, each way from its edge, when the others are blacked out for the tracker to take hold."""
SMALL = 0.18
"""Share of the picture's long side under which the detector misses a face; a smaller one is tracked in a window of its own."""
WINDOW = 3.0
"""Side of that window in face sizes."""
OFF_CENTRE = 0.8
"""Face sizes the face may stand off the window's middle before the window is moved."""
TILE = 0.5
"""Side of the tiles that are searched for small faces, as a share of the picture's short side; a tile a frame, half over the last."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a face is, in picture heights."""

    x: float
    y: float
    size: float  # mean of width and height

    @classmethod
    def of(cls, face: FloatArray, aspect: float) -> Place:
        """From landmarks [478, 3] in 0..1."""
        low, high = face[:, :2].min(0) * (aspect, 1.0), face[:, :2].max(0) * (aspect, 1.0)
        middle = (low + high) / 2
        return cls(float(middle[0]), float(middle[1]), max(1e-6, float((high - low).mean())))

    def continues(self, last: Place, elapsed: float) -> bool:
        """Whether a face here can be the one that was at `last` `elapsed` s ago."""
        moved = float(np.hypot(self.x - last.x, self.y - last.y)) / last.size
        grown = abs(float(np.log(self.size / last.size)))
        return moved < STEP_SHARE + STEP_SPEED * elapsed and grown < GROWTH + GROWTH_SPEED * elapsed


@dataclass(frozen=True, slots=True)
class Box:
    """A part of the picture, px."""

    x: int
    y: int
    width: int
    height: int

    def cut(self, rgb: UInt8Array) -> UInt8Array:
        """That part of a picture."""
        return rgb[self.y : self.y + self.height, self.x : self.x + self.width]

    def to_picture(self, face: FloatArray, rgb: UInt8Array) -> FloatArray:
        """Landmarks in 0..1 of the part -> 0..1 of the picture, z on the scale of x."""
        height, width = rgb.shape[:2]
        scale = np.array([self.width / width, self.height / height, self.width / width], np.float32)
        moved: FloatArray = face * scale + np.array([self.x / width, self.y / height, 0.0], np.float32)
        return moved


def square(rgb: UInt8Array, x: float, y: float, *, side: float) -> Box:
    """The square of `side` px around (x, y) px, moved and shrunk so that it lies in the picture."""
    height, width = rgb.shape[:2]
    length = max(1, min(round(side), height, width))
    return Box(int(np.clip(round(x - length / 2), 0, width - length)), int(np.clip(round(y - length / 2), 0, height - length)), length, length)


class Follower:
    """Follows one face through a stream of pictures. Not thread-safe."""

    def __init__(self) -> None:
        self._stream = FaceTracker()
        self._search = FaceTracker(still=True)
        self._size = (0, 0)
        self.reset()

    def reset(self) -> None:
        """Forget the person; the next face is anybody's."""
        self.newcomer = True  # whether the face found last is another person's than the one before
        self._last: Place | None = None
        self._seen = float("-inf")
        self._displaced = False  # the picture's geometry has changed since then: the last place means nothing
        self._tile = 0
        self._let_go()

    def close(self) -> None:
        """Free the trackers. They start again on the next call."""
        self._stream.close()
        self._search.close()
        self._let_go()

    def __call__(self, rgb: UInt8Array, time: float) -> FloatArray | None:
        """The person's landmarks [478, 3] in the picture of `time` s, or None where they are not seen."""
        size = (rgb.shape[0], rgb.shape[1])
        if size != self._size:
            self._size, self._displaced = size, True
            self._let_go()
        self.newcomer = self._last is None or time - self._seen >= GONE
        face = self._continue(rgb, time) if self._box is not None else None
        if face is None:
            face = self._find(rgb, time)
        if face is not None:
            self._last, self._seen, self._displaced = Place.of(face, self._aspect), time, False
        return face

    @property
    def _aspect(self) -> float:
        return self._size[1] / self._size[0]

    def _let_go(self) -> None:
        self._box: Box | None = None
        self._stream.reset()

    def _same(self, face: FloatArray, time: float) -> bool:
        if self.newcomer or self._last is None or self._displaced:
            return True
        return Place.of(face, self._aspect).continues(self._last, time - self._seen)

    def _continue(self, rgb: UInt8Array, time: float) -> FloatArray | None:
        """Track on in the present box; lets go where the face is lost or jumps to another."""
        assert self._box is not None
        found = self._stream.detect(self._box.cut(rgb))
        face = self._box.to_picture(found[0], rgb) if found else None
        if face is None:
            self._box = None
            return None
        if not self._same(face, time):
            self._let_go()
            return None
        place = Place.of(face, self._aspect)
        middle = ((self._box.x + self._box.width / 2) / self._size[0], (self._box.y + self._box.height / 2) / self._size[0])
        whole = (self._box.height, self._box.width) == self._size
        if not whole and max(abs(place.x - middle[0]), abs(place.y - middle[1])) > OFF_CENTRE * place.size:
            self._let_go()
            self._hold(rgb, face)
        return face

    def _find(self, rgb: UInt8Array, time: float) -> FloatArray | None:
        """Look for the person (or, when they are gone, anybody) in the whole picture, and in one tile for small faces."""
        faces = [face for face in self._search.detect(rgb) if self._same(face, time)]
        if not faces:
            box = self._next_tile(rgb)
            faces = [face for part in self._search.detect(box.cut(rgb)) if self._same(face := box.to_picture(part, rgb), time)]
        if not faces:
            return None
        places = [Place.of(face, self._aspect) for face in faces]
        last = self._last
        if self.newcomer or last is None or self._displaced:
            best = max(range(len(faces)), key=lambda k: places[k].size)
        else:
            best = min(range(len(faces)), key=lambda k: float(np.hypot(places[k].x - last.x, places[k].y - last.y)))
        self._hold(rgb, faces[best])
        return faces[best]

    def _next_tile(self, rgb: UInt8Array) -> Box:
        height, width = rgb.shape[:2]
        side = max(1, round(TILE * min(height, width)))
        columns, rows = (max(1, int(np.ceil(2 * length / side)) - 1) for length in (width, height))
        self._tile = (self._tile + 1) % (columns * rows)
        x, y = (self._tile % columns + 1) * side / 2, (self._tile // columns + 1) * side / 2
        return square(rgb, x, y, side=side)

    def _hold(self, rgb: UInt8Array, face: FloatArray) -> None:
        """Make the streaming tracker take hold of this face: show it the picture with everything else black."""
        height, width = self._size
        place = Place.of(face, self._aspect)
        x, y, size = place.x * height, place.y * height, place.size * height
        reach = (0.5 + MASK_SHARE) * size
        alone = np.zeros_like(rgb)
        top, bottom, left, right = (
            int(np.clip(v, 0, n)) for v, n in ((y - reach, height), (y + reach, height), (x - reach, width), (x + reach, width))
        )
        alone[top:bottom, left:right] = rgb[top:bottom, left:right]
        window = square(rgb, x, y, side=WINDOW * size)
        for box in (window,) if size < SMALL * max(height, width) else (Box(0, 0, width, height), window):
            taken = self._stream.detect(box.cut(alone))
            if not taken:
                continue
            if Place.of(box.to_picture(taken[0], rgb), self._aspect).continues(place, 0.0):
                self._box = box
                return
            self._stream.reset()
