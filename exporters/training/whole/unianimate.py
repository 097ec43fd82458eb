"""UniAnimate as a pupil (Wang et al. 2024, arXiv 2406.01188): velocity at levels whose last has no signal, noise that is partly the same for a
whole frame, the reference as frame 0; every second frame of a clip, as its configuration takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.generators.video import networks as weights_of
from engine.generators.video import sampling
from engine.generators.video.blocks import AlongFrames, ResBlock, SpatialTransformer, TemporalTransformer
from engine.generators.video.networks import Networks, Portrait
from engine.generators.video.pictures import SCALE
from engine.generators.video.presets import PATCH, preset
from engine.generators.video.render import as_read
from engine.generators.video.rolling import Call, UniAnimateSteps, unianimate_call
from engine.generators.video.sampling import COLOURS, LEVELS, OFFSET, Given, Levels
from engine.generators.video.unianimate_clips import painted
from engine.types import UInt8Array
from exporters.data.dataset import Clip
from exporters.data.painted import placed
from exporters.training.lesson import with_gradient
from exporters.training.memory import one_by_one
from exporters.training.objectives import LEAST, MOST
from exporters.training.settings import Settings
from exporters.training.whole.windows import Reference

TEMPORAL_CONVOLUTION = "temopral_conv"
"""Its name in every resnet."""


class UniAnimatePupil:
    """As `pupils.Pupil`."""

    guidance = sampling.GUIDANCE
    blocks: tuple[type[nn.Module], ...] = (ResBlock, SpatialTransformer, TemporalTransformer)

    def __init__(self, name: str, start: Path | None, seed: int) -> None:
        """Weights to go on from, or random ones. Raises AvatarError for others."""
        made = preset(name)
        self.networks = (weights_of.build(made, seed=seed) if start is None else weights_of.load(start, made=made)).float()
        self.name, self.size, self.depth = made.name, made.size, PATCH << (len(made.levels) - 1)
        self.frames = made.frames

    def choose(self, settings: Settings) -> None:
        """See `Pupil`. The empty prompt's tokens, the autoencoder and the image encoder stay as they are."""
        denoiser = self.networks.train().requires_grad_(False).denoiser.requires_grad_(settings.learn != "temporal")
        for name, module in denoiser.named_modules():
            if isinstance(module, TemporalTransformer | AlongFrames) or name.endswith(TEMPORAL_CONVOLUTION):
                module.requires_grad_(settings.learn != "spatial")
                module.register_forward_pre_hook(with_gradient)

    def paint(self, clip: Clip, frame: int) -> UInt8Array:
        """See `Pupil`."""
        return as_read(painted(placed(clip, frame), self.size))

    def rest(self, own: Tensor, first: Tensor) -> Tensor:
        """See `Pupil`."""
        return own

    def drawn(self, generator: torch.Generator, *, inner: bool = False) -> UniAnimateSteps:
        """Any of the 1000, evenly."""
        low, high = (round(LEAST * LEVELS), round(MOST * LEVELS)) if inner else (0, LEVELS)
        t = torch.randint(low, high, (1,), generator=generator)
        share = sampling.alphas()[t]
        none = torch.zeros(1, dtype=torch.float64)
        return UniAnimateSteps.of(Levels(t, share.sqrt(), (1 - share).sqrt(), none + 1, none))

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """See `Pupil`; with the offset noise of the published configuration (`noise_strength`)."""
        return torch.randn(shape, generator=generator) + OFFSET * torch.randn(*shape[:2], 1, 1, generator=generator)

    def few(self, steps: int) -> UniAnimateSteps:
        """See `Pupil`."""
        return UniAnimateSteps.few(steps)

    def kept(self, networks: Networks, reference: Reference) -> Portrait:
        """See `Pupil`."""
        made: Portrait = networks.prepare(reference.picture)
        return made

    def told(self, networks: Networks, reference: Reference, kept: Portrait, *, generator: torch.Generator | None = None) -> Given:
        """See `Pupil`; nothing is drawn."""
        return networks.given(kept, reference.condition)

    def call(self, networks: Networks, told: Given, steps: Any, condition: Tensor, *, dropped: bool = False) -> Call:
        """See `Pupil`. The unguided half has no poses either."""
        weight, rows = next(networks.denoiser.parameters()), len(condition)
        pictures = condition.to(weight.device).movedim(-1, -3).to(weight.dtype) / COLOURS
        poses = networks.denoiser.poses(pictures, networks.made.latent_size)
        tokens, first = (told.unguided, torch.zeros_like(told.first)) if dropped else (told.guided, told.first)
        poses = torch.zeros_like(poses) if dropped else poses
        return unianimate_call(networks.denoiser, steps, tokens=tokens.expand(rows, -1, -1), first=first.expand(rows, -1, -1, -1), poses=poses)

    def encode(self, networks: Networks, pictures: Tensor) -> Tensor:
        """See `Pupil`."""
        found: Tensor = one_by_one(lambda few: networks.autoencoder.encode(few).latent_dist.mode(), pictures) * SCALE
        return found

    def decode(self, networks: Networks, latents: Tensor) -> Tensor:
        """See `Pupil`."""
        return one_by_one(networks.seen, latents)

    def render(self, networks: Networks, told: Given, condition: Tensor, steps: int, *, window: int) -> Tensor:
        """See `Pupil`."""
        return sampling.sample(networks.denoiser, told, condition, steps=steps, size=window, overlap=min(sampling.OVERLAP, window // 2))

    def save(self, networks: Networks, folder: Path, *, origin: dict[str, str]) -> None:
        """See `Pupil`."""
        weights_of.save(networks, folder, origin=origin)


__all__ = ["UniAnimatePupil"]
