"""VividPose as one of the systems of the generator `video`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from engine.conditions.maps import stacked
from engine.conditions.place import Anchor, Placed
from engine.conditions.skeleton import face_68, joints_of, paint_skeleton
from engine.generators.video import vividpose_networks as weights_of
from engine.generators.video.clips import How, placed
from engine.generators.video.sampling import Progress
from engine.generators.video.vividpose_networks import Portrait, preset
from engine.generators.video.vividpose_presets import VIVIDPOSE
from engine.generators.video.vividpose_render import DEFAULT, Settings, render
from engine.generators.video.weights import UNTRAINED
from engine.types import Signal, UInt8Array

DENSE, DRAWN = "smplx", "dwpose"
"""Condition pictures beside a drive: renderings of SMPL-X with the portrait's shape, which there must be; and skeletons that were drawn for
them, where the tracker's are not to be taken."""
NOTICE = (
    "These weights are untrained: the clip shows that the engine runs, not what it can do. Nobody has published VividPose's; "
    "avatar import vividpose begins from Stable Video Diffusion's."
)
NO_POSES = (
    "These weights are Stable Video Diffusion's alone, which know no pose: the portrait moves as they like and does not follow the drive. Nobody "
    "has published VividPose's; once there are trained ones, import them with --trained."
)


class VividPoseClips:
    """Skeletons with hands and face as DWPose draws them, with the portrait's bones in 3D; renderings of SMPL-X from beside the drive."""

    needs: tuple[str, ...] = ("motion", "face", "body", "hands", "maps")

    def __init__(self, name: str | None, weights: Path | None, seed: int) -> None:
        """Raises AvatarError for a misfit."""
        made = None if name is None else preset(name)
        self.networks = weights_of.build(made or VIVIDPOSE, seed=seed) if weights is None else weights_of.load(weights, made=made)
        self.name, self.size, self.origin = self.networks.made.name, self.networks.made.size, self.networks.origin
        self.notice = NOTICE if self.origin == UNTRAINED else "" if self.networks.posed else NO_POSES

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """See `clips.System`."""
        self.networks.placed(device, dtype)

    def check(self, how: How) -> None:
        """See `clips.System`."""
        how.windows(self.networks.made.frames, DEFAULT.overlap)

    def prepare(self, portrait: UInt8Array, anchor: Anchor) -> tuple[UInt8Array, Portrait]:
        """See `clips.System`."""
        height, width = portrait.shape[:2]
        made = self.networks.prepare(portrait, np.asarray(anchor.face[:, :2] * np.array((width, height), np.float32), np.float32))
        return made.picture, made

    def render(self, made: Portrait, anchor: Anchor, signals: Sequence[Signal], *, how: How, state: Path, progress: Progress | None) -> UInt8Array:
        """See `clips.System`."""
        dense = np.stack([stacked(signal.maps, (DENSE,), self.size) for signal in signals])
        skeletons = np.stack(list(self._skeletons(signals, anchor)))
        size, overlap = how.windows(self.networks.made.frames, DEFAULT.overlap)
        settings = Settings(
            guidance=DEFAULT.guidance if how.guidance is None else how.guidance,
            first_guidance=how.first_guidance,
            steps=how.steps or DEFAULT.steps,
            size=size,
            overlap=overlap,
        )
        return render(self.networks, made, skeletons, dense, settings=settings, state=state, progress=progress)

    def _skeletons(self, signals: Sequence[Signal], anchor: Anchor) -> Iterator[UInt8Array]:
        """Of every frame, [H, W, 3]."""
        for signal, points in zip(signals, placed(signals, anchor, self.size, kind="shape"), strict=True):
            if signal.maps is not None and DRAWN in signal.maps:
                yield stacked(signal.maps, (DRAWN,), self.size)
            else:
                yield drawn(points, self.size)


def drawn(points: Placed, size: tuple[int, int]) -> UInt8Array:
    """The points of a frame as DWPose draws them [H, W, 3]: body, hands and face."""
    return paint_skeleton(size, joints_of(points.face, points.body), points.hands, face_68(points.face))


__all__ = ["DENSE", "DRAWN", "VividPoseClips", "drawn"]
