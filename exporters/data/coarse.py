"""The puppet's frame for every frame of a clip: the portrait, moved as the person moves.

Without assets its head is laid where the real one is, which nobody can do live; what a clip taught the puppet does that and more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from engine.drivers.rigid import RIGID, RIGID_WEIGHTS
from engine.generators.puppet.assets import PuppetAssets
from engine.generators.puppet.generator import Puppet
from engine.generators.puppet.pose import corrected, place
from engine.pose import Float64Array
from engine.types import FloatArray, Identity, Motion, Signal, UInt8Array, VideoFrame, still_motion
from exporters.data import storage
from exporters.data.motions import steady

ROUNDS = 2
"""Of laying the head: the puppet's limits and its perspective make the first answer inexact."""
BELIEVED = np.array([0.0, 0.0, 0.0, 1.0, 0.5, 0.0], np.float32)
"""Share of the correction of `Motion.head` that is made: jaws that open and nods pull the points down, and the hair does not go along.
On three people the face gains 1.1, 1.5 and -0.4 dB by it; with all of y, or with the points' spread taken for scale, the hair's rim loses more."""
SAMPLES = 24
"""Frames of a clip in which the ways of moving the shoulders are compared."""
LOWER = 0.65
"""Share of the frame's height below which the shoulders are."""


def as_read(motion: Motion) -> Motion:
    """The shoulders as the tracker has them."""
    return motion


def at_rest(motion: Motion) -> Motion:
    """The shoulders still."""
    return replace(motion, body=np.zeros(6, np.float32), confidence=np.array([*motion.confidence[:2], 1.0], np.float32))


def with_the_head(motion: Motion) -> Motion:
    """The shoulders as the puppet moves them where nobody sees them."""
    return replace(motion, body=np.zeros(6, np.float32), confidence=np.array([*motion.confidence[:2], 0.0], np.float32))


class Coarse:
    """A portrait that is moved through clips. The puppet is made ready when the first one is written, in 2 to 3 s."""

    def __init__(self, portrait: UInt8Array, face: FloatArray, motion: Motion, assets: PuppetAssets | None = None) -> None:
        """Portrait [H, W, 3]; the landmarks [478, 2] px and the motion that the clip's tracker found in it; what a clip taught its puppet."""
        self.portrait, self._face, self._motion, self.assets = portrait, face, motion, assets
        self._puppet = Puppet((portrait.shape[0], portrait.shape[1]))
        self._state = self._puppet.allocate(1)
        self._identity: Identity | None = None

    def with_assets(self, assets: PuppetAssets) -> Coarse:
        """The same portrait, knowing this of its person."""
        return Coarse(self.portrait, self._face, self._motion, assets)

    def write(
        self,
        path: Path,
        acted: Sequence[Motion | None],
        *,
        by: Callable[[int], Coarse] | None = None,
        tick: Callable[[int, int], None] | None = None,
    ) -> None:
        """One frame for each of N motions -> an .npy of [N, H, W, 3], and before it the like of its guide, and the points [N, 478, 2].

        `by`: which puppet shows a frame, by its number, where it is not this one.
        """
        shape, points = (len(acted), *self.portrait.shape), []
        storage.clear(path.with_name(storage.GUIDE), path.with_name(storage.POINTS))  # of a try that came no further, made anew now
        with storage.frames_file(path, shape) as write:
            with storage.frames_file(path.with_name(storage.GUIDE), shape) as write_guide:
                for number, motion in enumerate(acted):
                    one = self if by is None else by(number)
                    frame = one._step(motion)
                    write(frame.rgb)
                    write_guide(one._puppet.guide(one._state, 0, frame))
                    points.append(one._puppet.points(one._state, 0).copy())
                    if tick is not None:
                        tick(number + 1, len(acted))
            storage.write_arrays(path.with_name(storage.POINTS), points=np.array(points, np.float32))

    def acted(self, motions: Sequence[Motion | None], times: FloatArray, faces: FloatArray, real: UInt8Array) -> Sequence[Motion | None]:
        """The motions that are shown: those of a live session where there are assets, else with the head laid and the better shoulders.

        times [N] s, faces [N, 478, 2] px and pictures [N, H, W, 3] are the real ones that the motions come from.
        """
        if self.assets is not None:
            return motions
        laid = self.laid(motions, times, faces)
        shoulders = self._shoulders(laid, real)
        return [None if motion is None else shoulders(motion) for motion in laid]

    def laid(self, motions: Sequence[Motion | None], times: FloatArray, faces: FloatArray) -> list[Motion | None]:
        """The motions with such shifts that the puppet's head lies where the real one does.

        A camera close by sees another perspective than the puppet's, so that a turned head would lie up to 3 % of the frame aside: a
        network that learns from it would learn to push heads about.
        """
        made = list(motions)
        # What two looks at one and the same face differ by: the clip's tracker's, and the puppet's own.
        off = self._apart(self._face, self._motion)
        for _ in range(ROUNDS):
            wrong = np.full((len(made), 6), np.nan)
            for k, motion in enumerate(made):
                if motion is not None:
                    wrong[k] = 0.0, 0.0, 0.0, *(self._apart(faces[k], motion) - off), 0.0
            wrong = steady(wrong, times)
            made = [m if m is None else replace(m, head=(m.head + wrong[k]).astype(np.float32)) for k, m in enumerate(made)]
        pairs = zip(motions, made, strict=True)
        return [a if a is None or b is None else replace(a, head=a.head + BELIEVED * (b.head - a.head)) for a, b in pairs]

    def frame(self, motion: Motion | None) -> UInt8Array:
        """[H, W, 3] the portrait, moved; as it is where there is no motion."""
        return self._step(motion).rgb

    def seen(self, motion: Motion | None) -> tuple[UInt8Array, UInt8Array, FloatArray]:
        """A frame [H, W, 3], its alpha [H, W], and the places [H, W, 2] px of the portrait that its pixels come from."""
        frame = self._step(motion)
        assert frame.alpha is not None
        return frame.rgb, frame.alpha, self._puppet.origins(self._state, 0, frame)

    def _step(self, motion: Motion | None) -> VideoFrame:
        self._ready()
        frames = self._puppet.step(self._state, [[Signal(0.0, motion=still_motion() if motion is None else motion)]])[0]
        assert frames is not None
        return frames[0]

    def _ready(self) -> Identity:
        if self._identity is None:
            self._identity = self._puppet.prepare(self.portrait, self.assets)
            self._puppet.admit(self._state, 0, self._identity)
        return self._identity

    def _apart(self, face: FloatArray, motion: Motion) -> Float64Array:
        """[2] how far the real head [478, 2] px lies from the puppet's in x and y, in the portrait's face widths."""
        features = self._ready().features
        points = place(features, corrected(features, motion), rest=True).points[RIGID, :2]
        apart: Float64Array = RIGID_WEIGHTS @ (face[RIGID] - points) / (RIGID_WEIGHTS.sum() * float(features.width))
        return apart

    def _shoulders(self, motions: Sequence[Motion | None], real: UInt8Array) -> Callable[[Motion], Motion]:
        """How the shoulders are moved in this clip: a tracker's reading of them can be worse than none, so the pictures decide."""
        seen = [k for k, motion in enumerate(motions) if motion is not None and motion.body.any()]
        if not seen:
            return as_read
        low = int(LOWER * self.portrait.shape[0])
        wrong = dict.fromkeys((as_read, at_rest, with_the_head), 0.0)
        for k in seen[:: max(1, len(seen) // SAMPLES)]:
            motion = motions[k]
            assert motion is not None
            for way in wrong:
                wrong[way] += float(np.abs(self.frame(way(motion))[low:].astype(np.int16) - real[k, low:]).mean())
        return min(wrong, key=lambda way: wrong[way])


__all__ = ["Coarse", "as_read", "at_rest", "with_the_head"]
