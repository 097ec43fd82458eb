"""VividPose as a pupil (Wang et al. 2024, arXiv 2405.18156), taught as Stable Video Diffusion was (Blattmann et al. 2023, arXiv 2311.15127,
appendix D): velocity at noise levels drawn log-normally (Karras et al. 2022, arXiv 2206.00364), the image beside every frame slightly noisy, and
the network told how much. The paper's own values are not told."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.attention import FeedForward, TemporalBasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D, TemporalResnetBlock
from torch import Tensor, nn

from engine.generators.video import vividpose_networks as weights_of
from engine.generators.video import vividpose_sampling as sampling
from engine.generators.video.pictures import SCALE, unit
from engine.generators.video.presets import PATCH
from engine.generators.video.rolling import Call, VividPoseSteps, vividpose_call
from engine.generators.video.sampling import COLOURS
from engine.generators.video.vividpose import Read
from engine.generators.video.vividpose_clips import DENSE, drawn
from engine.generators.video.vividpose_networks import DECODED, Networks, Portrait
from engine.generators.video.vividpose_sampling import Given
from engine.types import UInt8Array
from exporters.data.dataset import Clip
from exporters.data.painted import placed
from exporters.training.lesson import with_gradient
from exporters.training.memory import again, one_by_one
from exporters.training.settings import Settings
from exporters.training.whole.windows import Reference

SIGMA_MEAN, SIGMA_DEVIATION = 0.7, 1.6
"""Of the logarithm of a noise level, as its image-to-video models were trained."""
BLUR_MEAN, BLUR_DEVIATION = -3.0, 0.5
"""Of the logarithm of the image's noise."""
TEMPORAL = {"temporal_transformer_blocks", "time_pos_embed", "time_mixer", "temporal_res_block"}
"""Parts of diffusers' blocks that carry motion on."""


class VividPosePupil:
    """As `pupils.Pupil`."""

    guidance = (sampling.FIRST_GUIDANCE + sampling.GUIDANCE) / 2  # what it is in the middle of a clip
    blocks: tuple[type[nn.Module], ...] = (ResnetBlock2D, TemporalResnetBlock, TemporalBasicTransformerBlock, Attention, FeedForward)

    def __init__(self, name: str, start: Path | None, seed: int, recogniser: Path | None) -> None:
        """Weights to go on from, or random ones. `recogniser`: of faces, where the weights have none. Raises AvatarError for others."""
        made = weights_of.preset(name)
        self.networks = (weights_of.build(made, seed=seed) if start is None else weights_of.load(start, made=made)).float()
        if self.networks.recogniser is None and recogniser is not None:
            weights_of.check_recogniser(recogniser)
            self.networks.recogniser = recogniser
        self.networks.posed = True
        self.name, self.size, self.depth = made.name, made.size, PATCH << (len(made.channels) - 1)
        self.frames = made.frames

    def choose(self, settings: Settings) -> None:
        """See `Pupil`. The autoencoder and the image encoder stay as they are, and the reference network where `Settings.reference` says so."""
        networks, spatial = self.networks.train().requires_grad_(False), settings.learn != "temporal"
        networks.denoiser.requires_grad_(spatial)
        networks.reference.requires_grad_(spatial and settings.reference)
        for name, module in networks.denoiser.named_modules():
            if name.split(".")[-1] in TEMPORAL:
                module.requires_grad_(settings.learn != "spatial")
        for module in networks.denoiser.modules():
            if isinstance(module, TemporalResnetBlock | TemporalBasicTransformerBlock):
                module.register_forward_pre_hook(with_gradient)

    def paint(self, clip: Clip, frame: int) -> UInt8Array:
        """See `Pupil`: the skeleton, then the map [H, W, 6]."""
        return np.concatenate([drawn(placed(clip, frame), self.size), np.asarray(clip.maps[DENSE][frame])], 2)

    def rest(self, own: Tensor, first: Tensor) -> Tensor:
        """See `Pupil`: nobody renders SMPL-X of a portrait."""
        return torch.cat([own[..., :3], first[..., 3:]], -1)

    def drawn(self, generator: torch.Generator, *, inner: bool = False) -> VividPoseSteps:
        """See `Pupil`. Levels near an end are rare by themselves."""
        return VividPoseSteps((_lognormal(generator, SIGMA_MEAN, SIGMA_DEVIATION), 0.0))

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """See `Pupil`."""
        return torch.randn(shape, generator=generator)

    def few(self, steps: int) -> VividPoseSteps:
        """See `Pupil`."""
        return VividPoseSteps.few(steps)

    def kept(self, networks: Networks, reference: Reference) -> Portrait:
        """See `Pupil`."""
        made: Portrait = networks.prepare(reference.picture, reference.face)
        return made

    def told(self, networks: Networks, reference: Reference, kept: Portrait, *, generator: torch.Generator | None = None) -> Given:
        """See `Pupil`: how noisy the image is."""
        if generator is None:
            return networks.given(kept)
        much = _lognormal(generator, BLUR_MEAN, BLUR_DEVIATION)
        clear = unit(reference.picture)[None]
        noisy = (clear + much * torch.randn(clear.shape, generator=generator)).to(kept.image)
        with torch.no_grad(), torch.autocast(noisy.device.type, enabled=False):
            image = networks.autoencoder.encode(noisy).latent_dist.mode()[0]
        return networks.given(replace(kept, image=image), augmented=much)

    def call(self, networks: Networks, told: Given, steps: Any, condition: Tensor, *, dropped: bool = False) -> Call:
        """See `Pupil`. The unguided half has the poses, and nothing else."""
        weight, rows = next(networks.denoiser.parameters()), len(condition)
        pictures = condition.to(weight.device).movedim(-1, -3).to(weight.dtype) / COLOURS
        poses = networks.denoiser.poses(pictures[:, :, :3], pictures[:, :, 3:])
        context, image, read = told.context, told.image, told.read
        if dropped:
            context, image, read = torch.zeros_like(context), torch.zeros_like(image), Read()
        return vividpose_call(
            networks.denoiser,
            steps,
            context=context.expand(rows, -1, -1),
            image=image.expand(rows, -1, -1, -1),
            ids=told.ids.expand(rows, -1),
            read=Read([each.expand(rows, -1, -1) for each in read.bank], None if read.face is None else read.face.expand(rows, -1, -1)),
            poses=poses,
        )

    def encode(self, networks: Networks, pictures: Tensor) -> Tensor:
        """See `Pupil`."""
        found: Tensor = one_by_one(lambda few: networks.autoencoder.encode(few).latent_dist.mode(), pictures) * SCALE
        return found

    def decode(self, networks: Networks, latents: Tensor) -> Tensor:
        """See `Pupil`; as many frames together as in a rendering."""
        return torch.cat([again(networks.seen, few) for few in latents.split(DECODED)])

    def render(self, networks: Networks, told: Given, condition: Tensor, steps: int, *, window: int) -> Tensor:
        """See `Pupil`."""
        windows = {"size": window, "overlap": min(sampling.OVERLAP, window // 2)}
        return sampling.sample(networks.denoiser, told, condition[..., :3], condition[..., 3:], steps=steps, **windows)

    def save(self, networks: Networks, folder: Path, *, origin: dict[str, str]) -> None:
        """See `Pupil`."""
        weights_of.save(networks, folder, origin=origin)


def _lognormal(generator: torch.Generator, mean: float, deviation: float) -> float:
    return math.exp(mean + deviation * float(torch.randn((), generator=generator)))


__all__ = ["VividPosePupil"]
