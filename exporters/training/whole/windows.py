"""What the networks of whole clips learn from: windows of a data set's frames, with their poses painted as an offline rendering paints them.

The crop of a data set is the portrait's, and the driver is the person in the portrait: so a frame's own points in its own crop are what placing
and aligning them would make (`painted`), and lie on the picture to the pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from engine.generators.video.generator import FPS
from engine.types import AvatarError, FloatArray, UInt8Array
from exporters.data.dataset import Clip, Dataset
from exporters.training.batches import Batches, Chances, Pattern, most_still

REFERENCES = 8
"""Frames that are shown as the portrait beside the stillest one, evenly over the training part: what a portrait looks like is read, not learnt."""
Paint = Callable[[Clip, int], UInt8Array]
"""(clip, frame that was kept) -> its condition [H, W, K]."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A frame that stands for the portrait."""

    picture: UInt8Array  # [H, W, 3]
    face: FloatArray  # [478, 2] px
    condition: UInt8Array  # [H, W, K] its own pose


def slower(data: Dataset) -> Dataset:
    """The same at the rate nearest to the generator's that leaves out whole frames: every n-th of them. The n clips that this makes of each are all
    learnt from, and one of them is held out."""
    step = max(1, round(data.fps / FPS))
    clips = [_every(clip, step, first) for clip in data.clips for first in range(step)]
    return replace(data, clips=clips)


def _every(clip: Clip, step: int, first: int) -> Clip:
    """Frames first, first + step, ..; pictures stay on the disk."""

    def runs(of: list[tuple[int, int]]) -> list[tuple[int, int]]:
        moved = ((max(0, -(-(start - first) // step)), -(-(stop - first) // step)) for start, stop in of)
        return [(start, stop) for start, stop in moved if stop > start]

    names = ("frames", "coarse", "guide", "points", "speech", "motion", "face", "kept", "body", "hands")
    taken = {name: value[first::step] for name in names if (value := getattr(clip, name)) is not None}
    maps = {name: value[first::step] for name, value in clip.maps.items()}
    return replace(clip, maps=maps, train=runs(clip.train), held_out=runs(clip.held_out) if first == 0 else [], **taken)


class Windows(Batches):
    """Of whole pictures, with painted poses; nothing is heard."""

    def __init__(self, data: Dataset, *, seed: int, depth: int, patterns: Sequence[Pattern], paint: Paint) -> None:
        """`paint`: as the system reads poses. Raises AvatarError where no run of frames is as long as a window."""
        self.paint = paint
        asked = max(one.frames for one in patterns)
        longest = max((stop - start for clip in data.clips for start, stop in clip.train), default=0)
        if longest < asked:
            told = f"The longest run of good frames has {longest} of them at about {FPS} a second, and {asked} are taught at a time"
            raise AvatarError(f"{told}: film longer without a cut, or give a smaller --window.")
        super().__init__(data, seed=seed, depth=depth, patterns=patterns, chances=Chances(0.0, 0.0), hears=False)
        self.references = _references(data, paint)
        self.views = [one.picture for one in self.references]

    def _coarse(self, clip: Clip, start: int, stop: int, *, still: bool) -> UInt8Array:
        """[F, H, W, K]"""
        return np.stack([self.paint(clip, frame) for frame in range(start, stop)])


def _references(data: Dataset, paint: Paint) -> list[Reference]:
    """The stillest frame, which is the portrait or as near to it as the clips come, then others. Their own poses are without hands: of a portrait
    nobody looks for them."""
    taught = [(number, frame) for number, clip in enumerate(data.clips) for start, stop in clip.train for frame in range(start, stop)]
    picks = [most_still(data.clips), *(taught[k] for k in np.linspace(0, len(taught) - 1, REFERENCES).round().astype(int))]
    shown = [(data.clips[number], frame) for number, frame in picks]
    return [Reference(np.array(clip.frames[frame]), clip.face[frame], paint(replace(clip, hands=None), frame)) for clip, frame in shown]


__all__ = ["Paint", "Reference", "Windows", "slower"]
