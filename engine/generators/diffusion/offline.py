"""A clip at leisure: many steps, real guidance, every frame sees every other of its window. For teachers, and to judge weights by.

Windows overlap; what they say of a frame is averaged, then guided: unguided + scale · (guided - unguided), where the unguided half knows
neither the reference nor the identity's tokens (Hu et al. 2023; the windows are those of the published inference).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from engine.generators.diffusion.attention import KeyValue, Sources
from engine.generators.diffusion.networks import Cache
from engine.generators.diffusion.sampler import advance
from engine.generators.diffusion.stream import NOISE_SEED, Recipe
from engine.generators.diffusion.temporal import Window, whole

GUIDANCE = 3.5
"""Scale of the published inference."""
SIZE, OVERLAP = 24, 4
"""Frames of a window, and how many of them the next one shares."""

Progress = Callable[[int, int], None]
"""(steps done, steps in all)"""


def windows(frames: int, *, size: int = SIZE, overlap: int = OVERLAP) -> list[list[int]]:
    """Frame numbers of every window over a clip; the last ones go on at its start, so that all frames are seen equally often."""
    if frames <= size:
        return [list(range(frames))]
    return [[(start + k) % frames for k in range(size)] for start in range(0, frames, size - overlap)]


@torch.no_grad()
def sample(
    recipe: Recipe,
    cache: Cache,
    condition: Tensor,
    speech: Tensor | None = None,
    *,
    guidance: float = GUIDANCE,
    size: int = SIZE,
    overlap: int = OVERLAP,
    noise: Tensor | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """condition uint8 [F, H, W, 3], speech [F, 16, 80] -> latents [F, C, h, w]. `guidance` 1 is none, and half the work.

    `noise` [F, C, h, w]: where every frame starts; seeded, different for every frame, where it is not given.
    """
    made, networks, levels = recipe.preset, recipe.networks, recipe.levels
    frames, device = condition.shape[0], recipe.device
    hint = networks.guider(condition.to(device).permute(0, 3, 1, 2).to(recipe.dtype) / 255)
    spoken = networks.speech(speech.to(device, recipe.dtype)) if networks.speech is not None and speech is not None else None
    if noise is None:
        shape = (frames, made.unet.in_channels, *made.latent_size)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(NOISE_SEED)).to(device, recipe.dtype)
    guided = (cache.reference, cache.identity)
    unguided: tuple[list[KeyValue], list[KeyValue]] = ([], [(torch.zeros_like(k), torch.zeros_like(v)) for k, v in cache.identity])
    halves = [guided] if guidance == 1.0 else [guided, unguided]
    x = noise
    for s in range(len(levels)):
        answers = [torch.zeros_like(x) for _ in halves]
        seen = torch.zeros(frames, device=device, dtype=x.dtype)
        for numbers in windows(frames, size=size, overlap=overlap):
            index = torch.tensor(numbers, device=device)
            seen[index] += 1
            for answer, (reference, identity) in zip(answers, halves, strict=True):
                count = len(numbers)
                window = Window(whole(count, 1, device), count, count, None, {})
                heard = spoken[index] if spoken is not None else None
                sources = Sources(count, reference, identity, speech=heard)
                answer[index] += networks.denoiser(x[index], levels.t[s].expand(count), hint[index], sources, window)
        means = [answer / seen.view(-1, 1, 1, 1) for answer in answers]
        said = means[0] if len(means) == 1 else means[1] + guidance * (means[0] - means[1])
        x = advance(levels, s, x, said, noise)
        if progress is not None:
            progress(s + 1, len(levels))
    return x


__all__ = ["sample", "windows"]
