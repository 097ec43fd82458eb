"""A clip at leisure: many steps, real guidance, every frame sees every other of its window. For teachers, and to judge weights by.

Windows overlap; what they say of a frame is averaged, then guided: unguided + scale · (guided - unguided), where the unguided half knows
neither the reference nor the identity's tokens (Hu et al. 2023; the windows are those of the published inference).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.generators.diffusion.attention import KeyValue, Sources
from engine.generators.diffusion.networks import Cache
from engine.generators.diffusion.presets import Sampling
from engine.generators.diffusion.sampler import advance
from engine.generators.diffusion.stream import NOISE_SEED, Recipe
from engine.generators.diffusion.temporal import Window, whole
from engine.generators.diffusion.unet import Denoiser

Progress = Callable[[int, int], None]
"""(windows done, windows of all steps)"""


def windows(frames: int, how: Sampling) -> list[list[int]]:
    """Frame numbers of every window over a clip. Closed: the last ones go on at its start, so that all frames are seen equally often; open:
    none begins in the last `overlap` frames, and what would lie beyond the end is taken from the start, as published."""
    if frames <= how.window:
        return [list(range(frames))]
    starts = range(0, frames if how.closed else frames - how.overlap, how.window - how.overlap)
    return [[(start + k) % frames for k in range(how.window)] for start in starts]


@dataclass(frozen=True, slots=True)
class _Half:
    """What one of the two halves of guidance is told."""

    reference: list[KeyValue]
    identity: list[KeyValue]
    hint: Tensor  # [F, C0, h, w]
    speech: Tensor | None  # [F, T, D]

    def unguided(self, how: Sampling) -> _Half:
        """The half that knows neither the reference nor the identity's tokens."""
        silent = [(torch.zeros_like(keys), torch.zeros_like(values)) for keys, values in self.identity]
        return _Half([], silent, self.hint if how.hint_unguided else torch.zeros_like(self.hint), self.speech)

    def answer(self, denoiser: Denoiser, x: Tensor, t: Tensor, index: Tensor) -> Tensor:
        """Of the frames `index` of x, which make a window."""
        count = len(index)
        window = Window(whole(count, 1, x.device), count, count, None, {})
        sources = Sources(count, self.reference, self.identity, speech=self.speech[index] if self.speech is not None else None)
        made: Tensor = denoiser(x[index], t.expand(count), self.hint[index], sources, window)
        return made


@torch.no_grad()
def sample(
    recipe: Recipe,
    cache: Cache,
    condition: Tensor,
    speech: Tensor | None = None,
    *,
    sampling: Sampling | None = None,
    noise: Tensor | None = None,
    begun: tuple[int, Tensor] | None = None,
    keep: Callable[[int, Tensor], None] | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """condition uint8 [F, H, W, 3], speech [F, 16, 80] -> latents [F, C, h, w].

    `sampling`: by default the preset's; its steps are the recipe's levels. `noise` [F, C, h, w]: where every frame starts; seeded, different
    for every frame, where it is not given. `keep` is told (steps done, latents) after every step; with those as `begun` a clip goes on.
    """
    made, networks, levels = recipe.preset, recipe.networks, recipe.levels
    frames, device = condition.shape[0], recipe.device
    hint = networks.guider(condition.to(device).permute(0, 3, 1, 2).to(recipe.dtype) / 255)
    spoken = networks.speech(speech.to(device, recipe.dtype)) if networks.speech is not None and speech is not None else None
    if noise is None:
        shape = (frames, made.unet.in_channels, *made.latent_size)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(NOISE_SEED)).to(device, recipe.dtype)
    how = sampling or made.sampling
    halves = [_Half(cache.reference, cache.identity, hint, spoken)]
    if how.guidance != 1.0:
        halves.append(halves[0].unguided(how))
    first, x = begun or (0, noise)
    wanted = windows(frames, how)
    for s in range(first, len(levels)):
        answers = [torch.zeros_like(x) for _ in halves]
        seen = torch.zeros(frames, device=device, dtype=x.dtype)
        for done, numbers in enumerate(wanted, 1):
            index = torch.tensor(numbers, device=device)
            seen[index] += 1
            for answer, half in zip(answers, halves, strict=True):
                answer[index] += half.answer(networks.denoiser, x, levels.t[s], index)
            if progress is not None:
                progress(s * len(wanted) + done, len(levels) * len(wanted))
        means = [answer / seen.view(-1, 1, 1, 1) for answer in answers]
        said = means[0] if len(means) == 1 else means[1] + how.guidance * (means[0] - means[1])
        x = advance(levels, s, x, said, noise)
        if keep is not None:
            keep(s + 1, x)
    return x


__all__ = ["sample", "windows"]
