"""VividPose's latents: Stable Video Diffusion's noise levels (Karras et al. 2022, arXiv 2206.00364), Euler steps, guidance, windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.generators.video.sampling import COLOURS, SEED, Half, Progress, windows
from engine.generators.video.vividpose import AUGMENTED, FPS, MOTION, Denoiser, Read, ReferenceNet
from engine.types import AvatarError

SIGMA_FIRST, SIGMA_LAST, RHO = 700.0, 0.002, 7.0
"""Noise levels of Stable Video Diffusion's scheduler, and how they bend."""
STEPS = 25
FIRST_GUIDANCE, GUIDANCE = 1.0, 3.0
"""Of a clip's first and last frame; between them it grows evenly."""
OVERLAP = 4
"""Frames that two windows share."""


@dataclass(frozen=True, slots=True)
class Given:
    """What every call knows of the reference; one clip."""

    context: Tensor  # [1, 1, D] CLIP's image embedding, not normalised
    image: Tensor  # [1, 4, h, w] latents of the reference, not scaled, as Stable Video Diffusion reads them
    read: Read  # of the reference network and the face
    ids: Tensor  # [1, 3]


def sigmas(steps: int = STEPS) -> Tensor:
    """[S + 1] float64, noisiest first; the last is 0. Raises AvatarError for no steps."""
    if steps < 1:
        raise AvatarError(f"A clip takes at least 1 denoising step, not {steps}.")
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    first, last = SIGMA_FIRST ** (1 / RHO), SIGMA_LAST ** (1 / RHO)
    return torch.cat([(first + ramp * (last - first)) ** RHO, torch.zeros(1, dtype=torch.float64)])


def scaled(x: Tensor, sigma: float) -> Tensor:
    """Latents of a level as the network reads them."""
    return x / (sigma**2 + 1) ** 0.5


def advance(x: Tensor, velocity: Tensor, *, sigma: float, after: float) -> Tensor:
    """Latents and the predicted velocity at a level -> latents at the next, an Euler step; written so that much noise loses no clean digits."""
    found = clean(x, velocity, sigma=sigma)
    return found + (x - found) * (after / sigma)


def clean(x: Tensor, velocity: Tensor, *, sigma: float) -> Tensor:
    """What the velocity says that latents of a level are without noise."""
    return x / (sigma**2 + 1) - velocity * (sigma / (sigma**2 + 1) ** 0.5)


def first_latents(shape: tuple[int, ...], *, seed: int = SEED) -> Tensor:
    """Noise [F, C, h, w] of the first level. Seeded on the CPU."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * (SIGMA_FIRST**2 + 1) ** 0.5


def scales(frames: int, *, first: float | None, last: float) -> Tensor:
    """[F, 1, 1, 1] guidance of every frame. `first` None: FIRST_GUIDANCE, or less where `last` is."""
    return torch.linspace(min(FIRST_GUIDANCE, last) if first is None else first, last, frames).view(-1, 1, 1, 1)


def given(
    denoiser: Denoiser,
    reference: ReferenceNet,
    *,
    latents: Tensor,
    image: Tensor,
    token: Tensor,
    face: Tensor | None,
    augmented: float = AUGMENTED,
) -> Given:
    """Reference latents [4, h, w] (scaled) and `image` (not scaled, of a picture as noisy as `augmented`), CLIP's embedding [D], ArcFace's vector
    [512] or None where no face was found. With gradients to what learns."""
    ids = torch.tensor([[FPS - 1, MOTION, augmented]], device=latents.device, dtype=latents.dtype)
    context = token[None, None]
    bank = reference(latents[None], image[None], context, ids)
    return Given(context, image[None], Read(bank, None if face is None else denoiser.face(face[None])), ids)


@torch.no_grad()
def sample(
    network: Denoiser,
    about: Given,
    skeletons: Tensor,
    maps: Tensor,
    *,
    guidance: float = GUIDANCE,
    first_guidance: float | None = None,
    steps: int = STEPS,
    size: int | None = None,
    overlap: int = OVERLAP,
    start: Tensor | None = None,
    half: Half | None = None,
    keep: Callable[[Half], None] | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Skeletons and renderings of SMPL-X, uint8 [F, H, W, 3] each -> latents [F, C, h, w] float32.

    `guidance` of the last frame, `first_guidance` of the first (None: FIRST_GUIDANCE, or less where `guidance` is); 1 for all is none, and half
    the work. `size`: frames of a window, None for what the weights were trained on. Otherwise as `sampling.sample`.
    """
    frames, at = len(skeletons), sigmas(steps).tolist()
    if not frames or maps.shape != skeletons.shape:
        raise AvatarError("A clip needs at least one frame, and as many SMPL-X maps as skeletons, of one size; render them together.")
    weight = next(network.parameters())
    scale = scales(frames, first=first_guidance, last=guidance).to(weight.device)
    plain = bool((scale == 1.0).all())
    spans = windows(frames, size=size or network.made.frames, overlap=overlap)
    seen = torch.zeros(frames, 1, 1, 1)
    for span in spans:
        seen[span] += 1
    if half is None:
        x = first_latents((frames, *about.image.shape[1:])) if start is None else start.float()
        half = Half(0, 0, x, x.new_zeros(1 if plain else 2, *x.shape))
    x, said, seen = half.x.to(weight.device), half.said.to(weight.device, copy=True), seen.to(weight.device)
    nothing = (torch.zeros_like(about.context), torch.zeros_like(about.image), None)
    halves = [(about.context, about.image, about.read), nothing][: len(said)]
    for step in range(half.step, steps):
        sigma = at[step]
        level = torch.tensor([at[step]], device=weight.device).log() * 0.25
        for w in range(half.window if step == half.step else 0, len(spans)):
            span = spans[w]
            poses = _poses(network, skeletons[span], maps[span])  # made anew: cheap beside the network, and too much to keep of a long clip
            for k, (context, image, read) in enumerate(halves):
                noisy = torch.cat([scaled(x[span], sigma).to(weight.dtype), image.expand(len(span), -1, -1, -1)], 1)[None]
                said[k, span] += network(noisy, level, context, about.ids, poses=poses, read=read)[0].float()
            if keep is not None and (step, w) != (steps - 1, len(spans) - 1):
                keep(Half(step, w + 1, x, said))
            if progress is not None:
                progress(step * len(spans) + w + 1, steps * len(spans))
        mean = said / seen
        velocity = mean[0] if plain else mean[1] + scale * (mean[0] - mean[1])
        x, said = advance(x, velocity, sigma=sigma, after=at[step + 1]), torch.zeros_like(said)
    return x


def _poses(network: Denoiser, skeletons: Tensor, maps: Tensor) -> Tensor:
    """[1, F, C, h, w] of a window."""
    weight = next(network.parameters())
    both = [each.to(weight.device).permute(0, 3, 1, 2)[None].to(weight.dtype) / COLOURS for each in (skeletons, maps)]
    return network.poses(*both)


__all__ = [
    "FIRST_GUIDANCE",
    "GUIDANCE",
    "OVERLAP",
    "STEPS",
    "Given",
    "advance",
    "clean",
    "first_latents",
    "given",
    "sample",
    "scaled",
    "scales",
    "sigmas",
]
