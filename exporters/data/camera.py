"""Did the camera move? Points of the background are followed from an *anchor* picture to every later one.

Where they are lost (a cut, a camera carried away) a new anchor begins a new place, unless an old one fits again. A plain wall tells nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from engine.drivers.matte import person_matte
from engine.types import FloatArray, UInt8Array

POINTS, LEAST_POINTS, APART, CORNER = 150, 8, 6.0, 1e-3
"""Most points of the background, fewest that say anything, px between two, and the least eigenvalue (OpenCV's, of 8-bit pictures) of one:
the noise of a plain wall has a third of it."""
NEW_SHOT = 18.0
"""Grey levels by which two pictures of different shots differ at least."""
FOUND_SHARE = 0.4
"""Share of the points that must agree on one motion for the place to be the same."""
MOST_PLACES = 8
"""Anchors that are kept and tried again."""
AROUND, FAINT = 0.03, 8
"""Of the longest side: points so near the person, whose matte (0..255) is above the second, are not taken for background."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """The first picture of a place."""

    grey: UInt8Array
    points: FloatArray  # [K, 1, 2] px

    @classmethod
    def of(cls, rgb: UInt8Array, grey: UInt8Array) -> Anchor:
        """A small picture in colour and in grey."""
        mask = background(rgb)
        best = float(np.where(mask > 0, cv2.cornerMinEigenVal(grey, 3), 0.0).max())
        points = cv2.goodFeaturesToTrack(grey, POINTS, CORNER / best, APART, mask=mask) if best > CORNER else None
        return cls(grey, np.zeros((0, 1, 2), np.float32) if points is None else points)

    @property
    def plain(self) -> bool:
        """Whether too little is in it to be followed."""
        return len(self.points) < LEAST_POINTS


class Places:
    """Follows the background through one clip. Pictures of one size only."""

    def __init__(self) -> None:
        self._anchors: list[Anchor] = []
        self._at = 0

    def find(self, rgb: UInt8Array, grey: UInt8Array, *, change: float) -> tuple[int, npt.NDArray[np.float64]]:
        """A small picture in colour and in grey, and how it differs from the one before -> (place or -1, the camera's motion [4] since then)."""
        if self._anchors and self._anchors[self._at].plain and change < NEW_SHOT:
            return -1, np.zeros(4)
        for k, anchor in enumerate(self._anchors):  # the oldest first: a moment's blur does not make a place another one
            if not anchor.plain and (moved := motion_since(anchor, grey)) is not None:
                self._at = k
                return k, moved
        if len(self._anchors) == MOST_PLACES:
            return -1, np.zeros(4)
        self._at = len(self._anchors)
        self._anchors.append(Anchor.of(rgb, grey))
        return (-1 if self._anchors[self._at].plain else self._at), np.zeros(4)


def background(rgb: UInt8Array) -> UInt8Array:
    """[h, w] 255 outside the person."""
    reach = 2 * round(AROUND * max(rgb.shape[:2])) + 1
    person = cv2.dilate(person_matte(rgb), np.ones((reach, reach), np.uint8))
    return np.where(person < FAINT, 255, 0).astype(np.uint8)


def motion_since(anchor: Anchor, grey: UInt8Array) -> npt.NDArray[np.float64] | None:
    """[4] from an anchor to a picture, None where too few of its points agree."""
    if grey.shape != anchor.grey.shape:
        return None
    there, found, _ = cv2.calcOpticalFlowPyrLK(anchor.grey, grey, anchor.points, None, winSize=(15, 15), maxLevel=3)
    back, returned, _ = cv2.calcOpticalFlowPyrLK(grey, anchor.grey, there, None, winSize=(15, 15), maxLevel=3)
    sure = (found[:, 0] > 0) & (returned[:, 0] > 0) & (np.linalg.norm(back - anchor.points, axis=2)[:, 0] < 1.0)
    if sure.sum() < max(4, FOUND_SHARE * len(anchor.points)):
        return None
    matrix, inside = cv2.estimateAffinePartial2D(anchor.points[sure], there[sure], ransacReprojThreshold=1.0)
    if matrix is None or inside.sum() < FOUND_SHARE * len(anchor.points):
        return None
    height, width = grey.shape
    middle = np.array([width / 2, height / 2])
    shift = (matrix[:, :2] @ middle + matrix[:, 2] - middle) / height
    return np.array([*shift, np.log(np.hypot(matrix[0, 0], matrix[1, 0])), np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0]))])


__all__ = ["Anchor", "Places"]
