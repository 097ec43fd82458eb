"""How much memory an update of training takes, by arithmetic: for machines that one does not have yet.

What stays is counted: parameters times the bytes of weights, gradients, Adam's two moments and the moving average. What comes and goes with a
batch is measured on narrow networks of the same layout and small pictures, where every tensor that lives is counted at its highest, and scaled:
it grows with the cells of a picture and with the channels. Attention keeps no square of the cells, with the kernels that PyTorch picks today.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from engine.backends import pytorch  # noqa: F401  before torch: see there
from engine.generators.diffusion.presets import Preset
from exporters.training.batches import Batch, Pattern
from exporters.training.lesson import chosen
from exporters.training.losses import Critic, pictures, weigh
from exporters.training.memory import LARGE, Peak, Shrink, one_by_one, recomputed
from exporters.training.objectives import Denoise
from exporters.training.settings import Settings

import torch  # isort: skip
from torch import Tensor  # isort: skip

from benchmarks.bare import lean, random_networks  # isort: skip
from engine.generators.diffusion.networks import Networks, empty  # isort: skip
from engine.generators.diffusion.unet import temporal_attentions  # isort: skip

GB = 1e9
WORD = 4
"""Bytes of what is learnt: training keeps fp32 whatever the arithmetic."""
ADAM = 2
"""Moments of a parameter."""
NARROWER = 8
"""Times the networks that stand for those of an autoencoder's latents are narrower, where their channels allow it."""
FEW = 4
"""Frames of a run that stand for a longer one: each takes as much."""
CLIP = 303_966_208
"""Parameters of the image encoder, which is not built for this."""
HALVES = (16, 32, 64, 64)
"""Channels of an autoencoder NARROWER times as narrow as Stable Diffusion's."""


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes of one process."""

    weights: float
    gradients: float
    adam: float
    average: float
    copies: float  # of the weights in half precision, while a batch is on its way
    batch: float  # what comes and goes with it

    @property
    def total(self) -> float:
        """Of all."""
        return self.weights + self.gradients + self.adam + self.average + self.copies + self.batch


def room(made: Preset, settings: Settings, pattern: Pattern) -> Room:
    """Of a preset at its size, for a batch of a pattern (halved ones are seen as parts)."""
    networks = chosen(empty(lean(made)), settings)
    every = sum(one.numel() for one in networks.parameters()) + CLIP * (made.image_encoder == "clip")
    learnt = sum(one.numel() for one in networks.parameters() if one.requires_grad)
    half = settings.precision != "no"
    copied = sum(one.numel() for part in (networks.denoiser, networks.reference, networks.guider) for one in part.parameters())
    again = settings.checkpointing
    again = sum(one.numel() for one in networks.denoiser.parameters()) >= LARGE if again is None else again
    few = replace(pattern, frames=min(FEW, pattern.frames))
    batch = through_networks(made, settings, few, again=again)
    if made.latent != "pixel" and settings.recipe == "appearance":
        batch += through_pictures(made, settings, few)
    batch *= pattern.frames / few.frames
    if made.latent != "pixel" and settings.recipe == "appearance":
        batch += through_decoder(made, settings)
    return Room(WORD * every, WORD * learnt, WORD * ADAM * learnt, WORD * learnt, 2.0 * half * copied, batch)


def through_networks(made: Preset, settings: Settings, pattern: Pattern, *, again: bool) -> float:
    """Bytes that a batch takes at its highest on the way through denoiser, reference network and guider, and back."""
    narrow, times = _narrow(made)

    def bytes_at(size: tuple[int, int]) -> int:
        one = replace(narrow, size=size)
        networks = chosen(trainable(one, "cpu"), settings)
        if one.latent != "pixel":
            networks.autoencoder = Shrink(one)
        recomputed(networks, again)
        batch, objective = random_batch(one, pattern, "cpu"), Denoise(settings.weights, 0)
        return _peak(lambda: sum(objective.loss(networks, batch, 0)[0].values()), settings, networks)

    return times * _scaled(bytes_at, made, parts=pattern.halved)


def through_decoder(made: Preset, settings: Settings) -> float:
    """The same of an autoencoder's decoder, for the one picture that it has in hand."""
    from diffusers import AutoencoderKL

    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    model = AutoencoderKL(block_out_channels=HALVES, norm_num_groups=8, layers_per_block=2, latent_channels=4, **kinds).requires_grad_(False)

    def bytes_at(size: tuple[int, int]) -> int:
        latents = torch.zeros((1, 4, size[0] // made.patch, size[1] // made.patch), requires_grad=True)
        return _peak(lambda: one_by_one(lambda part: model.decode(part).sample, latents).square().mean(), settings, model)

    return NARROWER * _scaled(bytes_at, made)


def through_pictures(made: Preset, settings: Settings, pattern: Pattern) -> float:
    """The same of what pictures are judged by."""

    def bytes_at(size: tuple[int, int]) -> int:
        batch, critic = random_batch(replace(made, size=size), pattern, "cpu"), Critic()
        shown = torch.zeros_like(batch.truth, requires_grad=True)

        def loss() -> Tensor:
            terms = sum(pictures(shown, batch.truth, weigh(batch.areas, settings.weights), settings.weights).values())
            return terms + critic.please(shown, batch.truth, batch.truth) + critic.judge(shown, batch.truth, batch.truth)

        return _peak(loss, settings, critic)

    return _scaled(bytes_at, made, parts=pattern.halved)


def trainable(made: Preset, device: Any, *, seed: int = 0) -> Networks:
    """Random networks on a device, ready to learn, with an encoder of the identity's token that needs no library."""
    networks: Networks = random_networks(made, precision="fp32", device=device, seed=seed)
    for attention in temporal_attentions(networks.denoiser):
        attention._tables = None  # they were worked out for good; training changes what they are made of
    return networks


def random_batch(made: Preset, pattern: Pattern, device: Any, *, seed: int = 0) -> Batch:
    """Noise instead of pictures: a step takes as long."""
    source = torch.Generator().manual_seed(seed)
    count, (height, width) = pattern.rows * pattern.frames, made.size
    part = pattern.halved and not any(side % (2 * made.depth) for side in made.size)
    seen = (height // 2, width // 2) if part else (height, width)
    return Batch(
        pattern.rows,
        pattern.frames,
        truth=torch.rand((count, 3, *seen), generator=source) * 2 - 1,
        coarse=torch.randint(0, 256, (count, *seen, made.channels), dtype=torch.uint8, generator=source),
        speech=torch.full((count, 16, 80), -4.0),
        areas=torch.rand((count, 2, *seen), generator=source),
        fits=torch.full((count, 2, 3), float("nan")),
        portrait=torch.rand((1, 3, height, width), generator=source) * 2 - 1,
        corners=((0, 0),) * count if part else (),
    ).to(device)


def _narrow(made: Preset) -> tuple[Preset, int]:
    """(a preset of the same layout with fewer channels, how many times fewer)."""
    if made.latent == "pixel" or any(width % NARROWER for width in (*made.unet.channels, *made.guider)):
        return made, 1
    channels = tuple(width // NARROWER for width in made.unet.channels)
    # As wide heads, but fewer: what attention keeps for each of them shrinks with the channels too.
    fewer = replace(made.unet, channels=channels, groups=max(1, made.unet.groups // NARROWER), heads=max(1, made.unet.heads // NARROWER))
    return lean(replace(made, unet=fewer, guider=tuple(width // NARROWER for width in made.guider))), NARROWER


def _scaled(bytes_at: Callable[[tuple[int, int]], int], made: Preset, *, parts: bool = False) -> float:
    """Bytes at the preset's size, from the growth between one that is as small as can be (with `parts`, halves) and one twice as high and wide."""
    side = (2 if parts else 1) * made.depth
    small, large = (bytes_at((side * k, side * k)) for k in (1, 2))
    cells = side * side
    return (large - small) / (3 * cells) * made.size[0] * made.size[1]


def _peak(loss: Callable[[], Any], settings: Settings, networks: Any) -> int:
    """Bytes at their highest, on the way there and back, without those of the networks and their gradients."""
    half = torch.bfloat16
    known = [one.detach() for one in (*networks.parameters(), *networks.buffers())]
    for one in networks.parameters():
        if one.requires_grad:
            one.grad = torch.zeros_like(one)
            known.append(one.grad)
    with Peak(known) as peak:
        with torch.autocast("cpu", dtype=half, enabled=settings.precision != "no"):
            made = loss()
        made.backward()
    return int(peak.most)


__all__ = ["GB", "Room", "random_batch", "room", "trainable"]
