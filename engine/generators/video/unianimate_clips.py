"""UniAnimate as one of the systems of the generator `video`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from engine.conditions.place import Anchor, Placed, place
from engine.conditions.skeleton import joints_of, paint_skeleton, with_feet
from engine.generators.video import networks as weights_of
from engine.generators.video.clips import How, placed
from engine.generators.video.networks import UNTRAINED, Portrait
from engine.generators.video.presets import UNIANIMATE, preset
from engine.generators.video.render import DEFAULT, Settings, render
from engine.generators.video.sampling import Progress
from engine.types import AvatarError, Signal, UInt8Array, still_motion

NOTICE = "These weights are untrained: the clip shows that the engine runs, not what it can do. Import UniAnimate's and give --weights."


class UniAnimateClips:
    """Skeletons with feet and without a face, painted with the portrait's proportions."""

    needs: tuple[str, ...] = ("motion", "face", "body", "hands")

    def __init__(self, name: str | None, weights: Path | None, seed: int) -> None:
        """Raises AvatarError for a misfit."""
        made = None if name is None else preset(name)
        self.networks = weights_of.build(made or UNIANIMATE, seed=seed) if weights is None else weights_of.load(weights, made=made)
        self.name, self.size, self.origin = self.networks.made.name, self.networks.made.size, self.networks.origin
        self.notice = NOTICE if self.origin == UNTRAINED else ""

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """See `clips.System`."""
        self.networks.to(device, dtype)

    def check(self, how: How) -> None:
        """See `clips.System`."""
        if how.first_guidance is not None:
            raise AvatarError("UniAnimate has the same guidance for all frames; leave --first-guidance out.")
        how.windows(DEFAULT.size, DEFAULT.overlap)

    def prepare(self, portrait: UInt8Array, anchor: Anchor) -> tuple[UInt8Array, Portrait]:
        """See `clips.System`."""
        made = self.networks.prepare(portrait)
        return made.picture, made

    def render(self, made: Portrait, anchor: Anchor, signals: Sequence[Signal], *, how: How, state: Path, progress: Progress | None) -> UInt8Array:
        """See `clips.System`."""
        own = painted(place(Signal(0.0, motion=still_motion()), anchor, self.size), self.size)
        poses = np.stack([painted(each, self.size) for each in placed(signals, anchor, self.size, kind="unianimate")])
        size, overlap = how.windows(DEFAULT.size, DEFAULT.overlap)
        guidance = DEFAULT.guidance if how.guidance is None else how.guidance
        settings = Settings(guidance=guidance, steps=how.steps or DEFAULT.steps, size=size, overlap=overlap)
        return render(self.networks, made, own, poses, settings=settings, state=state, progress=progress)


def painted(points: Placed, size: tuple[int, int]) -> UInt8Array:
    """The points of a frame as UniAnimate's skeleton [H, W, 3] RGB: body, feet and hands, without a face."""
    return paint_skeleton(size, with_feet(joints_of(points.face, points.body), points.body), points.hands, None)


__all__ = ["UniAnimateClips", "painted"]
