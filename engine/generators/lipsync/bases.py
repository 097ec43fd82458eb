"""Whose face the lips are given to: a still portrait, a persona's idle loop, or the frames of another generator of the registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from engine.drivers.tracker import FaceTracker
from engine.generators.lipsync import loop
from engine.generators.lipsync.face import Place, place
from engine.generators.lipsync.sizes import Kind
from engine.types import FloatArray, Generator, Identity, Motion, Signal, UInt8Array, VideoFrame

LONGEST_STEP = 0.2
"""s that count between two frames of a loop: a stall does not make it jump."""
TIP, BASE, EYES = 1, 2, (33, 263)
"""Mesh points: the tip of the nose and its base, between which the mouth's part of the face begins; outer corners of the eyes."""


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """One portrait, ready."""

    pictures: tuple[UInt8Array, ...]  # one of a still portrait, some of a loop, none of another generator's frames
    places: tuple[Place, ...]
    seen: tuple[Any, ...]  # what the model knows of each face (`Lips.see`)
    base: Identity | None = None  # the same portrait for the other generator
    region: FloatArray | None = None  # [478, 1] 0..1: the points that go with the mouth


def pack(features: Features) -> dict[str, npt.NDArray[Any]]:
    """All but the other generator's part as arrays."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    if features.pictures:
        arrays = {"pictures": np.stack(features.pictures), "boxes": np.array([each.box for each in features.places]), "seen": np.stack(features.seen)}
        arrays |= {f"mask.{i}": each.mask for i, each in enumerate(features.places)}
    if features.region is not None:
        arrays["region"] = features.region
    return arrays


def unpack(arrays: Mapping[str, npt.NDArray[Any]], base: Identity | None) -> Features:
    """The inverse of `pack`."""
    if "pictures" not in arrays:
        return Features((), (), (), base, arrays.get("region"))
    boxes = [(int(x0), int(y0), int(x1), int(y1)) for x0, y0, x1, y1 in arrays["boxes"]]
    places = tuple(Place(box, arrays[f"mask.{i}"]) for i, box in enumerate(boxes))
    return Features(tuple(arrays["pictures"]), places, tuple(arrays["seen"]), base, arrays.get("region"))


@dataclass(slots=True)
class Shown:
    """A picture that the lips are to be put in."""

    frame: VideoFrame
    where: Place | None = None
    seen: Any = None  # None: not looked at yet
    points: FloatArray | None = None  # [478, 2] px of the face, where `where` is not known yet


@dataclass(slots=True)
class Clock:
    """Where a row is in its loop."""

    time: float | None = None  # s, of the last signal
    passed: float = 0.0  # s since the start

    def __call__(self, time: float) -> float:
        """s since the start, at the next signal's time."""
        if self.time is not None:
            self.passed += float(np.clip(time - self.time, 0.0, LONGEST_STEP))
        self.time = time
        return self.passed


@dataclass(slots=True)
class Follower:
    """Finds the face in another generator's frames, of one row, where that does not say where it is."""

    tracker: FaceTracker = field(default_factory=lambda: FaceTracker(faces=1))

    def __call__(self, rgb: UInt8Array) -> FloatArray | None:
        """Picture [H, W, 3] -> [478, 2] px, or None where no face is seen."""
        faces = self.tracker.detect(rgb)
        return faces[0][:, :2] * np.array([rgb.shape[1], rgb.shape[0]], np.float32) if faces else None

    def close(self) -> None:
        """Free the tracker."""
        self.tracker.close()


class Locating(Protocol):
    """A generator that knows where the face of a row's last frame is (the puppet does)."""

    def points(self, state: Any, row: int) -> FloatArray:
        """[478, 2] px."""
        ...


def own(features: Features, clock: Clock, signal: Signal, *, fps: float) -> Shown:
    """The portrait, or its loop's picture, for a signal."""
    index = loop.position(clock(signal.time) * fps, len(features.pictures))
    return Shown(VideoFrame(features.pictures[index], signal.time, signal.id), features.places[index], features.seen[index])


def others(base: Generator, state: Any, signals: Sequence[Sequence[Signal] | None]) -> dict[int, Shown]:
    """Row -> another generator's frame for one signal a row, with its face where the generator says where it is."""
    shown = {}
    for row, frames in enumerate(base.step(state, signals)):
        if frames is not None:
            points = cast(Locating, base).points(state, row) if hasattr(base, "points") else None
            shown[row] = Shown(frames[0], points=None if points is None else points[:, :2].copy())
    return shown


def locate(shown: Shown, follower: Follower | None, *, kind: Kind) -> Place | None:
    """Where the face is; found now, where it was not known. None where there is none to be seen."""
    if shown.where is None:
        points = shown.points if shown.points is not None or follower is None else follower(shown.frame.rgb)
        shown.where = None if points is None else place(points, shown.frame.rgb.shape, kind=kind)
    return shown.where


def mute(signal: Signal, region: FloatArray | None) -> Signal:
    """The signal with closed lips: the voice will move them. A smile that the camera sees stays."""
    motion = signal.motion
    if motion is None:
        return signal
    smile = float(motion.mouth[3]) if float(motion.expressed[1]) > 0 else 0.0
    expression = motion.expression
    if expression is not None and region is not None:
        expression = (expression * (1 - region)).astype(np.float32)
    shut: Motion = replace(
        motion,
        mouth=np.array([0.0, 0.0, 0.0, smile], np.float32),
        expression=expression,
        expressed=np.array([motion.expressed[0], 0.0], np.float32),
    )
    return replace(signal, motion=shut)


def mouth_region(points: FloatArray) -> FloatArray:
    """[478, 2] px of a portrait -> [478, 1] 0..1: 0 down to the tip of the nose, 1 from its base to the chin."""
    eyes = points[list(EYES), :2]
    across = (eyes[1] - eyes[0]) / max(float(np.linalg.norm(eyes[1] - eyes[0])), 1e-6)
    height = (points[:, :2] - eyes.mean(0)) @ np.array([-across[1], across[0]])
    tip = float(height[TIP])
    share = np.clip((height - tip) / max(float(height[BASE]) - tip, 1.0), 0, 1)
    return np.asarray((share * share * (3 - 2 * share))[:, None], np.float32)


__all__ = ["Clock", "Features", "Follower", "Shown", "locate", "mouth_region", "mute", "others", "own", "pack", "unpack"]
