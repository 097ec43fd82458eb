"""VividPose as one of the systems of the generator `video`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from engine.conditions.ease import Ease
from engine.conditions.maps import stacked
from engine.conditions.place import Anchor, Placed, place
from engine.conditions.skeleton import face_68, joints_of, paint_skeleton
from engine.generators.video import vividpose_networks as weights_of
from engine.generators.video.clips import How, Known, Published, placed, placed_next
from engine.generators.video.rolling import Call, VividPoseSteps, vividpose_call
from engine.generators.video.sampling import COLOURS, Progress
from engine.generators.video.vividpose import IDS, Read, read_shapes
from engine.generators.video.vividpose_networks import DECODED, Portrait, preset
from engine.generators.video.vividpose_presets import VIVIDPOSE
from engine.generators.video.vividpose_render import DEFAULT, Settings, render
from engine.generators.video.vividpose_sampling import sigmas
from engine.generators.video.weights import UNTRAINED
from engine.types import Signal, UInt8Array, still_motion

DENSE, DRAWN = "smplx", "dwpose"
"""Condition pictures beside a drive: renderings of SMPL-X with the portrait's shape, which there must be; and skeletons that were drawn for
them, where the tracker's are not to be taken."""
BANK = "bank"
"""Of what the reference network read, by spatial block."""
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
    maps: tuple[str, ...] = (DENSE,)
    more_maps: tuple[str, ...] = (DRAWN,)
    layers = 6

    def __init__(self, name: str | None, weights: Path | None, seed: int) -> None:
        """Raises AvatarError for a misfit."""
        made = None if name is None else preset(name)
        self.networks = weights_of.build(made or VIVIDPOSE, seed=seed) if weights is None else weights_of.load(weights, made=made)
        made = self.networks.made
        self.name, self.size, self.latent = made.name, made.size, (made.latent, *made.latent_size)
        self.origin, self.taught = self.networks.origin, self.networks.taught
        self.notice = NOTICE if self.origin == UNTRAINED else "" if self.networks.posed else NO_POSES
        self.frames = self.networks.frames
        self.published = Published(self.frames, DEFAULT.steps, 2 * DEFAULT.steps)

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """See `clips.System`."""
        self.networks.placed(device, dtype)

    def check(self, how: How) -> None:
        """See `clips.System`."""
        how.windows(self.frames, DEFAULT.overlap)

    def check_clip(self, how: How) -> None:
        """See `clips.System`."""
        sigmas(DEFAULT.steps if how.steps is None else how.steps)

    def prepare(self, portrait: UInt8Array, anchor: Anchor) -> tuple[UInt8Array, Portrait]:
        """See `clips.System`."""
        height, width = portrait.shape[:2]
        made = self.networks.prepare(portrait, np.asarray(anchor.face[:, :2] * np.array((width, height), np.float32), np.float32))
        return made.picture, made

    def render(self, made: Portrait, anchor: Anchor, signals: Sequence[Signal], *, how: How, state: Path, progress: Progress | None) -> UInt8Array:
        """See `clips.System`."""
        dense = np.stack([stacked(signal.maps, (DENSE,), self.size) for signal in signals])
        points = placed(signals, anchor, self.size, kind="shape")
        skeletons = np.stack([self._skeleton(*both) for both in zip(signals, points, strict=True)])
        size, overlap = how.windows(self.frames, DEFAULT.overlap)
        settings = Settings(
            guidance=DEFAULT.guidance if how.guidance is None else how.guidance,
            first_guidance=how.first_guidance,
            steps=how.steps or DEFAULT.steps,
            size=size,
            overlap=overlap,
        )
        return render(self.networks, made, skeletons, dense, settings=settings, state=state, progress=progress)

    def _skeleton(self, signal: Signal, points: Placed) -> UInt8Array:
        """Of a frame, [H, W, 3]."""
        if signal.maps is not None and DRAWN in signal.maps:
            return stacked(signal.maps, (DRAWN,), self.size)
        return drawn(points, self.size)

    # -- live -----------------------------------------------------------------------------------------------------------

    def steps(self, count: int) -> VividPoseSteps:
        """See `clips.System`."""
        return VividPoseSteps.few(count)

    def known_shapes(self) -> dict[str, tuple[int, ...]]:
        """See `clips.System`."""
        made = self.networks.made
        shapes: dict[str, tuple[int, ...]] = {"context": (1, 1, made.context), "image": (1, *self.latent), "ids": (1, IDS)}
        shapes |= {f"{BANK}.{i}": (1, *shape) for i, shape in enumerate(read_shapes(made))}
        if self.networks.recogniser is not None:
            shapes["face"] = (1, made.face_tokens, made.context)
        return shapes

    def known(self, made: Portrait, anchor: Anchor) -> Known:
        """See `clips.System`."""
        given = self.networks.given(made)
        held = {"context": given.context, "image": given.image, "ids": given.ids}
        held |= {f"{BANK}.{i}": read for i, read in enumerate(given.read.bank)}
        if given.read.face is not None:
            held["face"] = given.read.face
        return Known(made.latents.float().cpu(), {name: tensor.float().cpu() for name, tensor in held.items()})

    def condition(self, signal: Signal, anchor: Anchor, ease: Ease) -> UInt8Array:
        """See `clips.System`: the skeleton, then SMPL-X."""
        points = placed_next(ease, signal, anchor, self.size, kind="shape")
        return np.concatenate([self._skeleton(signal, points), stacked(signal.maps, (DENSE,), self.size)], 2)

    def rest(self, signal: Signal, anchor: Anchor) -> UInt8Array:
        """See `clips.System`. Nobody renders SMPL-X of the portrait: the driver's first body stands for it."""
        still = drawn(place(Signal(0.0, motion=still_motion()), anchor, self.size), self.size)
        return np.concatenate([still, stacked(signal.maps, (DENSE,), self.size)], 2)

    def parts(self) -> list[nn.Module]:
        """See `clips.System`."""
        return [self.networks.denoiser, self.networks.autoencoder.decoder]

    def call(self, steps: VividPoseSteps, pictures: Tensor, given: Mapping[str, Tensor]) -> Call:
        """See `clips.System`."""
        network = self.networks.denoiser
        dtype = network.skeleton.conv_in.weight.dtype
        shown = pictures.permute(0, 1, 4, 2, 3).to(dtype) / COLOURS
        held = {name: tensor.to(dtype) for name, tensor in given.items()}
        read = Read([held[f"{BANK}.{i}"] for i in range(len(read_shapes(network.made)))], held.get("face"))
        known = {name: held[name] for name in ("context", "image", "ids")}
        return vividpose_call(network, steps, read=read, poses=network.poses(shown[:, :, :3], shown[:, :, 3:]), **known)

    def seen(self, latents: Tensor) -> Tensor:
        """See `clips.System`."""
        return torch.cat([self.networks.seen(some) for some in latents.split(DECODED)])


def drawn(points: Placed, size: tuple[int, int]) -> UInt8Array:
    """The points of a frame as DWPose draws them [H, W, 3]: body, hands and face."""
    return paint_skeleton(size, joints_of(points.face, points.body), points.hands, face_68(points.face))


__all__ = ["DENSE", "DRAWN", "VividPoseClips", "drawn"]
