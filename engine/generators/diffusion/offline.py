"""A clip at leisure: many steps, real guidance, every frame sees every other of its window. For teachers, and to judge weights by.

Windows overlap; what they say of a frame is averaged, then guided: unguided + scale · (guided - unguided), where the unguided half knows
neither the reference nor the identity's tokens (Hu et al. 2023; the windows are those of the published inference).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.generators.diffusion.attention import KeyValue, Sources
from engine.generators.diffusion.networks import Cache, Networks
from engine.generators.diffusion.presets import Sampling
from engine.generators.diffusion.sampler import advance
from engine.generators.diffusion.stream import NOISE_SEED, Recipe
from engine.generators.diffusion.temporal import Window, whole
from engine.generators.diffusion.unet import Denoiser

Progress = Callable[[int, int], None]
"""(steps done, steps in all)"""


def windows(frames: int, how: Sampling, step: int = 0) -> list[list[int]]:
    """Frame numbers of every window over a clip. Closed: the last ones go on at its start, so that all frames are seen equally often; open:
    none begins in the last `overlap` frames, and what would lie beyond the end is taken from the start, as published. `shift`: by step number
    `step` all of them have moved on so often, a single one too."""
    if frames <= how.window:
        found = [list(range(frames))]
    else:
        starts = range(0, frames if how.closed else frames - how.overlap, how.window - how.overlap)
        found = [[(start + k) % frames for k in range(how.window)] for start in starts]
    return [[(number + how.shift * step) % frames for number in window] for window in found] if how.shift else found


@dataclass(frozen=True, slots=True)
class _Half:
    """What one of the two halves of guidance is told."""

    reference: list[KeyValue]
    identity: list[KeyValue]
    hint: Tensor  # [F, C0, h, w]
    speech: Tensor | None  # [F, T, D]
    regions: Tensor | None  # [1, 3, R]
    tokens: Tensor | None = None  # [1, T, D] of the identity, where clips read the frames before them
    carried: Sequence[Tensor] = ()  # a spatial block: [m, L, C] of these
    reads: Tensor | None = None  # [F] which row of the reference each frame reads; None where there is one

    def unguided(self, how: Sampling, networks: Networks) -> _Half:
        """The half that knows neither the reference nor the identity's tokens."""
        nobody = networks.nobody()
        silent = [(torch.zeros_like(keys), torch.zeros_like(values)) for keys, values in self.identity]
        return replace(
            self,
            reference=[],
            identity=silent if nobody is None else networks.identity(nobody),
            hint=self.hint if how.hint_unguided else torch.zeros_like(self.hint),
            speech=self.speech if how.speech_unguided or self.speech is None else torch.zeros_like(self.speech),
            tokens=nobody,
        )

    def part(self, first: int, last: int, carried: Sequence[Tensor]) -> _Half:
        """Of the frames first .. last - 1 alone, which the `carried` ones come before."""
        count, speech = last - first, None if self.speech is None else self.speech[first:last]
        rows = len(self.reference[0][0]) if self.reference else 1
        # Of two rows, as of two halves that lie one after the other, the frames of the second half read one after the other in turn.
        reads = (torch.arange(count, device=self.hint.device) + count) % rows if rows > 1 else None
        return replace(self, hint=self.hint[first:last], speech=speech, carried=carried, reads=reads)

    def answer(self, denoiser: Denoiser, x: Tensor, t: Tensor, index: Tensor) -> Tensor:
        """Of the frames `index` of x, which make a window."""
        count = len(index)
        seen = count + (len(self.carried[0]) if self.carried else 0)
        window = Window(whole(seen, 1, x.device), seen, seen, None, {})
        speech = self.speech[index] if self.speech is not None else None
        reads = self.reads[index] if self.reads is not None else None
        sources = Sources(count, self.reference, self.identity, speech=speech, regions=self.regions, carried=self.carried, reads=reads)
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
    progress: Progress | None = None,
) -> Tensor:
    """condition uint8 [F, H, W, K], speech [F, 16, 80] or other `Ears.heard` (`listening.heard_in`) -> latents [F, C, h, w].

    `sampling`: by default the preset's; its steps are the recipe's levels. `noise` [F, C, h, w]: where every frame starts; seeded, different
    for every frame, where it is not given. Where frames are carried, clips of `window` frames are made one after the other.
    """
    made, networks = recipe.preset, recipe.networks
    frames, device = condition.shape[0], recipe.device
    how = sampling or made.sampling
    hint = networks.guider(condition.to(device).permute(0, 3, 1, 2).to(recipe.dtype) / 255)
    spoken = networks.speech(speech.to(device, recipe.dtype)) if networks.speech is not None and speech is not None else None
    if noise is None:
        shape = (frames, made.unet.in_channels, *made.latent_size)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(NOISE_SEED))
        noise = (noise.clamp(-how.clipped, how.clipped) if how.clipped else noise).to(device, recipe.dtype)
    halves = [_Half(cache.reference, cache.identity, hint, spoken, cache.regions, cache.tokens)]
    if how.guidance != 1.0:
        halves.append(halves[0].unguided(how, networks))
    if not how.carried:
        return _denoised(recipe, halves, noise, how, progress=progress)
    return _chained(recipe, cache, halves, noise, how, progress=progress)


def _denoised(recipe: Recipe, halves: Sequence[_Half], noise: Tensor, how: Sampling, *, progress: Progress | None) -> Tensor:
    """All steps of one clip, from where its frames start."""
    networks, levels, frames, x = recipe.networks, recipe.levels, len(noise), noise
    for s in range(len(levels)):
        answers = [torch.zeros_like(x) for _ in halves]
        seen = torch.zeros(frames, device=x.device, dtype=x.dtype)
        for numbers in windows(frames, how, s):
            index = torch.tensor(numbers, device=x.device)
            seen[index] += 1
            for answer, half in zip(answers, halves, strict=True):
                answer[index] += half.answer(networks.denoiser, x, levels.t[s], index)
        means = [answer / seen.view(-1, 1, 1, 1) for answer in answers]
        said = means[0] if len(means) == 1 else means[1] + how.guidance * (means[0] - means[1])
        x = advance(levels, s, x, said, noise)
        if progress is not None:
            progress(s + 1, len(levels))
    return x


def _chained(recipe: Recipe, cache: Cache, halves: Sequence[_Half], noise: Tensor, how: Sampling, *, progress: Progress | None) -> Tensor:
    """Clips of `window` frames one after the other, each reading the last `carried` frames of the one before; the first, the portrait."""
    networks, steps, made = recipe.networks, len(recipe.levels), []
    assert cache.latents is not None
    dealt = how.dealt and len(halves) == 2 and cache.tokens is not None
    if dealt:
        nobody = networks.project(networks.reread(cache.latents, halves[1].tokens))
        both = [(torch.cat([a, k]), torch.cat([b, v])) for (a, b), (k, v) in zip(nobody, cache.reference, strict=True)]
        halves = [replace(halves[0], reference=both), halves[1]]
    before = cache.latents.expand(how.carried, -1, -1, -1)
    starts = range(0, len(noise), how.window)
    for number, first in enumerate(starts):
        last = min(first + how.window, len(noise))
        seen = [networks.reread(before, tokens) for tokens in _tokens(halves, len(before), dealt=dealt)]
        parts = [half.part(first, last, carried) for half, carried in zip(halves, seen, strict=True)]
        done = None if progress is None else _within(progress, number * steps, len(starts) * steps)
        x = _denoised(recipe, parts, noise[first:last], how, progress=done)
        made.append(x)
        if last < len(noise):
            pictures = networks.autoencoder.decode(x[-how.carried :] / networks.preset.gain).clamp(-1, 1)
            before = networks.encode(pictures)
    return torch.cat(made)


def _tokens(halves: Sequence[_Half], count: int, *, dealt: bool) -> list[Tensor | None]:
    """The identity's tokens [count, T, D] with which the reference network reads the frames before a clip, for each half of guidance.

    `dealt`: those of the other half, its own, and so on: Hallo's code repeats the halves' tokens over a batch that lies half by half.
    """
    own = [half.tokens for half in halves]
    found: list[Tensor | None] = []
    for mine, other in zip(own, reversed(own), strict=True):
        turns = [mine if k % 2 or not dealt else other for k in range(count)]
        found.append(None if mine is None else torch.cat([each for each in turns if each is not None]))
    return found


def _within(progress: Progress, before: int, total: int) -> Progress:
    """The progress of one clip as that of all."""
    return lambda done, _: progress(before + done, total)


__all__ = ["sample", "windows"]
