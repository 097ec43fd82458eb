"""A clip at leisure: many steps, real guidance, every frame sees every other of its window. For teachers, and to judge weights by.

Windows overlap; what they say of a frame is averaged, then guided: unguided + scale · (guided - unguided), where the unguided half knows
neither the reference nor, by default, the identity's tokens (Hu et al. 2023; the windows are those of the published inference).
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
        """The half that knows no reference."""
        silent = [(torch.zeros_like(keys), torch.zeros_like(values)) for keys, values in self.identity]
        tokens = self.identity if how.tokens_unguided else silent
        return _Half([], tokens, self.hint if how.hint_unguided else torch.zeros_like(self.hint), self.speech)

    def answer(self, recipe: Recipe, x: Tensor, s: int, index: Tensor, more: list[Tensor]) -> Tensor:
        """Of the frames `index` of x, which make a window, at step s; `more`: a ControlNet's residuals of these frames."""
        count, networks = len(index), recipe.networks
        window = Window(whole(count, 1, x.device), count, count, None, {})
        sources = Sources(count, self.reference, self.identity, speech=self.speech[index] if self.speech is not None else None, residuals=more)
        if recipe.preset.unet.joined_norms:
            sources.joined = count
        made: Tensor = networks.denoise(x[index], recipe.levels.t[s].expand(count), self.hint[index], recipe.of_step(sources, s), window)
        return made


def padded(frames: int, how: Sampling) -> int:
    """Frames that a clip is sampled with: those beyond its own repeat its last one, as published scripts have it."""
    if how.padding == "windows":
        return frames + (how.window - frames) % (how.window - how.overlap)
    return frames + -frames % how.window if how.padding == "multiple" else frames


def first_noise(recipe: Recipe, frames: int, how: Sampling) -> Tensor:
    """[frames, C, h, w]: seeded, different for every frame, or for as many as the preset says, which then repeat."""
    own = min(how.noise_frames or frames, frames)
    shape = (own, recipe.preset.unet.in_channels, *recipe.preset.latent_size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(NOISE_SEED)).to(recipe.device, recipe.dtype)
    return noise.repeat(-(-frames // own), 1, 1, 1)[:frames]


def _longer(clip: Tensor, frames: int) -> Tensor:
    """[F, ..] -> [frames, ..], the last one repeated."""
    return clip if len(clip) == frames else torch.cat([clip, clip[-1:].expand(frames - len(clip), *clip.shape[1:])])


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
    """condition uint8 [F, H, W, K], speech [F, 16, 80] -> latents [F, C, h, w].

    `cache`: made with this recipe. `sampling`: by default the preset's; its steps are the recipe's levels. `noise` [P, C, h, w]: where every
    frame starts, of the `padded` clip; by default `first_noise`. `keep` is told (steps done, latents of the padded clip) after every step; with
    those as `begun` a clip goes on.
    """
    networks, levels, how = recipe.networks, recipe.levels, sampling or recipe.preset.sampling
    asked, device = len(condition), recipe.device
    frames = padded(asked, how)
    condition, speech = _longer(condition, frames), None if speech is None else _longer(speech, frames)
    hint = networks.guider(condition.to(device).permute(0, 3, 1, 2).to(recipe.dtype) / 255)
    spoken = networks.speech(speech.to(device, recipe.dtype)) if networks.speech is not None and speech is not None else None
    if noise is None:
        noise = first_noise(recipe, frames, how)
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
            more = networks.residuals(x[index], levels.t[s].expand(len(index)), hint[index])
            for answer, half in zip(answers, halves, strict=True):
                answer[index] += half.answer(recipe, x, s, index, more)
            if progress is not None:
                progress(s * len(wanted) + done, len(levels) * len(wanted))
        means = [answer / seen.view(-1, 1, 1, 1) for answer in answers]
        said = means[0] if len(means) == 1 else means[1] + how.guidance * (means[0] - means[1])
        x = advance(levels, s, x, said, noise)
        if keep is not None:
            keep(s + 1, x)
    return x[:asked]


__all__ = ["first_noise", "padded", "sample", "windows"]
