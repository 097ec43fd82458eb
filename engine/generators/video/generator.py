"""UniAnimate behind the contract of a generator that renders whole clips: nothing here is live."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from engine.backends import half_the_cores, pytorch  # before torch: see there
from engine.conditions.align import aligned
from engine.conditions.ease import Ease, eased
from engine.conditions.place import Anchor, Placed, anchor_of, place
from engine.conditions.skeleton import joints_of, paint_skeleton, with_feet
from engine.types import AvatarError, GeneratorSpec, Identity, MissingPart, Signal, UInt8Array, still_motion

try:
    import torch

    from engine.generators.video import networks as weights_of
    from engine.generators.video.networks import UNTRAINED, Portrait, resized
    from engine.generators.video.presets import UNIANIMATE
    from engine.generators.video.presets import preset as preset_named
    from engine.generators.video.render import DEFAULT, render
    from engine.generators.video.sampling import Progress
except ImportError as error:
    raise MissingPart(f"The generator 'video' needs PyTorch and diffusers ({error}); pip install 'avatar-engine[torch]'.") from error

FPS = 15
"""Frames a second: the published script takes every second frame of a clip."""
KINDS = {"fp32": torch.float32, "fp16": torch.float16}
STATE = "state.safetensors"
"""Of the folder that a rendering goes on from."""
NOTICE = "These weights are untrained: the clip shows that the engine runs, not what it can do. Import UniAnimate's and give --weights."


@dataclass(frozen=True, slots=True)
class Features:
    """One portrait, ready."""

    portrait: Portrait
    anchor: Anchor


class Video:
    """Whole clips of a body. Input: face, body and hands of every frame; they are painted with the portrait's proportions."""

    def __init__(
        self,
        preset: str | None = None,
        *,
        weights: str | Path | None = None,
        precision: Literal["fp32", "fp16"] | None = None,
        device: str | None = None,
        seed: int = 0,
    ) -> None:
        """`preset`: unianimate (default), unianimate_large, or tiny_unianimate; of random weights (by `seed`) where `weights`, an imported
        folder, is not given. Raises AvatarError for a misfit."""
        self.device = pytorch.device(device)
        if self.device.type == "cpu":
            torch.set_num_threads(half_the_cores())
        self.precision = precision or ("fp16" if self.device.type == "cuda" else "fp32")
        if self.precision not in KINDS or (self.precision == "fp16" and self.device.type == "cpu"):
            raise AvatarError(f"The generator 'video' has no precision '{self.precision}' on {self.device.type}; use fp32, or on a GPU fp16.")
        made = None if preset is None else preset_named(preset)
        random = weights is None
        networks = weights_of.build(made or UNIANIMATE, seed=seed) if random else weights_of.load(Path(str(weights)), made=made)
        self.networks = networks.to(self.device, KINDS[self.precision])
        self.trained = networks.origin != UNTRAINED
        self.weights = f"{networks.origin} {'' if self.trained else seed} {networks.made.name} {self.precision}"
        self.spec = GeneratorSpec(
            name="video",
            size=networks.made.size,
            fps=FPS,
            needs=("motion", "face", "body", "hands"),
            notice="" if self.trained else NOTICE,
        )

    def prepare(self, portrait: UInt8Array) -> Identity:
        """Portrait [H, W, 3] of any size -> Identity. Raises AvatarError where no face is found."""
        anchor = anchor_of(portrait)
        made = f"video {self.spec.size} {self.weights}"
        key = hashlib.sha256(np.ascontiguousarray(portrait).tobytes() + made.encode()).hexdigest()
        return Identity(key, resized(portrait, self.spec.size), Features(self.networks.prepare(portrait), anchor))

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
        own = place(Signal(0.0, motion=still_motion()), features.anchor, self.spec.size)
        ease = Ease()
        poses = np.stack([_painted(self._placed(signal, features.anchor, ease), self.spec.size) for signal in signals])
        settings = replace(DEFAULT, steps=steps or DEFAULT.steps, guidance=DEFAULT.guidance if guidance is None else guidance)
        state = kept / STATE
        kept.mkdir(exist_ok=True)
        told: dict[str, Any] = {"settings": settings, "state": state, "progress": progress}
        frames = render(self.networks, features.portrait, _painted(own, self.spec.size), poses, **told)
        return lambda number: cast(UInt8Array, frames[number])

    def _placed(self, signal: Signal, anchor: Anchor, ease: Ease) -> Placed:
        """A driver's points in the portrait's frame, with its proportions, as UniAnimate aligns them."""
        placed = aligned(ease.alignment, place(signal, anchor, self.spec.size), signal, anchor, kind="unianimate", size=self.spec.size)
        return eased(ease, placed, signal.time)


def _painted(placed: Placed, size: tuple[int, int]) -> UInt8Array:
    """Body, feet and hands, without a face."""
    return paint_skeleton(size, with_feet(joints_of(placed.face, placed.body), placed.body), placed.hands, None)


__all__ = ["Video"]
