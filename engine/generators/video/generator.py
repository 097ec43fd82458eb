"""Video systems behind the contract of a generator that renders whole clips: nothing here is live."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from engine.backends import half_the_cores, pytorch  # before torch: see there
from engine.conditions.place import Anchor, anchor_of
from engine.types import AvatarError, GeneratorSpec, Identity, MissingPart, Signal, UInt8Array

try:
    import torch

    from engine.generators.video import presets, vividpose_presets
    from engine.generators.video.clips import How, Make
    from engine.generators.video.sampling import Progress
    from engine.generators.video.unianimate_clips import UniAnimateClips
    from engine.generators.video.vividpose_clips import VividPoseClips
    from engine.generators.video.weights import UNTRAINED, read_manifest
except ImportError as error:
    raise MissingPart(f"The generator 'video' needs PyTorch and diffusers ({error}); pip install 'avatar-engine[torch]'.") from error

FPS = 15
"""Frames a second: UniAnimate's published script takes every second frame of a clip; VividPose's rate is not told."""
KINDS = {"fp32": torch.float32, "fp16": torch.float16}
STATE = "state.safetensors"
"""Of the folder that a rendering goes on from."""


def _make_of(name: str, folder: Path | None = None) -> Make:
    """Whose a preset is, that weights in `folder` are for where there are some. Raises AvatarError for an unknown one."""
    systems: list[tuple[Make, Iterable[str]]] = [(UniAnimateClips, presets.PRESETS), (VividPoseClips, vividpose_presets.PRESETS)]
    makes = {each: make for make, names in systems for each in names}
    if name not in makes and folder is not None:
        raise AvatarError(f"The weights in {folder} ('{name}') are another generator's; choose that one with --generator, or other weights.")
    if name not in makes:
        raise AvatarError(f"The generator 'video' has no preset '{name}'; choose one of: {', '.join(sorted(makes))}.")
    return makes[name]


@dataclass(frozen=True, slots=True)
class Features:
    """One portrait, ready."""

    made: Any  # of the system
    anchor: Anchor


class Video:
    """Whole clips of a body, by UniAnimate or VividPose. Input: face, body and hands of every frame, for VividPose pictures of SMPL-X too."""

    def __init__(
        self,
        preset: str | None = None,
        *,
        weights: str | Path | None = None,
        precision: Literal["fp32", "fp16"] | None = None,
        device: str | None = None,
        seed: int = 0,
        window: int | None = None,
        overlap: int | None = None,
        first_guidance: float | None = None,
    ) -> None:
        """`preset`: unianimate (default), unianimate_large, vividpose, vividpose_xt, tiny_unianimate or tiny_vividpose; of random weights (by
        `seed`) where `weights`, an imported folder, is not given. `window`, `overlap`: frames of a window over a long clip, and how many the
        next one shares; `first_guidance`: of VividPose's first frame. None: what the weights were made for. Raises AvatarError for a misfit."""
        self.device = pytorch.device(device)
        if self.device.type == "cpu":
            torch.set_num_threads(half_the_cores())
        self.precision = precision or ("fp16" if self.device.type == "cuda" else "fp32")
        if self.precision not in KINDS or (self.precision == "fp16" and self.device.type == "cpu"):
            raise AvatarError(f"The generator 'video' has no precision '{self.precision}' on {self.device.type}; use fp32, or on a GPU fp16.")
        if first_guidance is not None and not 0.0 <= first_guidance < math.inf:
            raise AvatarError(f"Guidance is a scale of 0 or more, not {first_guidance:g}; 1 is none.")
        self.how = How(first_guidance=first_guidance, window=window, overlap=overlap)
        folder = None if weights is None else Path(weights)
        make = _make_of(preset or presets.UNIANIMATE.name) if folder is None else _make_of(read_manifest(folder).preset, folder)
        if preset is not None and _make_of(preset) is not make:
            raise AvatarError(f"The weights in {folder} are not for the preset '{preset}'; leave --preset out.")
        self.system = make(preset, folder, seed)
        self.system.check(self.how)
        self.system.place(self.device, KINDS[self.precision])
        trained = self.system.origin != UNTRAINED
        self.weights = f"{self.system.origin} {'' if trained else seed} {self.system.name} {self.precision}"
        told: dict[str, Any] = {"needs": self.system.needs, "maps": self.system.maps, "notice": self.system.notice}
        self.spec = GeneratorSpec(name="video", size=self.system.size, fps=FPS, **told)

    def prepare(self, portrait: UInt8Array) -> Identity:
        """Portrait [H, W, 3] of any size -> Identity. Raises AvatarError where no face is found."""
        anchor = anchor_of(portrait)
        told = f"video {self.spec.size} {self.weights}"
        key = hashlib.sha256(np.ascontiguousarray(portrait).tobytes() + told.encode()).hexdigest()
        picture, made = self.system.prepare(portrait, anchor)
        return Identity(key, picture, Features(made, anchor))

    def at_leisure(
        self,
        identity: Identity,
        signals: Sequence[Signal],
        *,
        kept: Path,
        steps: int | None,
        guidance: float | None,
        progress: Progress | None = None,
    ) -> Callable[[int], UInt8Array]:
        """See `engine.whole`."""
        if not signals:
            raise AvatarError("The drive has no frame to render; choose a longer one.")
        features: Features = identity.features
        kept.mkdir(exist_ok=True)
        how = replace(self.how, steps=steps, guidance=guidance)
        frames = self.system.render(features.made, features.anchor, signals, how=how, state=kept / STATE, progress=progress)
        return lambda number: cast(UInt8Array, frames[number])


__all__ = ["Video"]
