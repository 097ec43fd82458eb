"""A clip at leisure: many steps, real guidance, every frame sees every other of its window. For teachers, and to judge weights by.

Windows overlap; what they say of a frame is averaged, then guided: unguided + scale · (guided - unguided), where the unguided half knows
neither the reference (or a picture of nothing in its place) nor, by default, the identity's tokens (Hu et al. 2023; the windows are those of the
published inference).
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

Progress = Callable[[int, int], None]
"""(windows done, windows of all steps)"""
Keep = Callable[[int, Tensor], None]


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
        """The half that knows no reference, nobody's tokens unless they say nothing of a portrait, and nobody's face."""
        nobody = networks.nobody()
        silent = [(torch.zeros_like(keys), torch.zeros_like(values)) for keys, values in self.identity]
        unknown = silent if nobody is None else networks.identity(nobody)
        return replace(
            self,
            reference=networks.nothing() if how.zeros_unguided else [],
            identity=networks.unknown(self.identity if how.tokens_unguided else unknown),
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

    def answer(self, recipe: Recipe, x: Tensor, s: int, index: Tensor, more: list[Tensor]) -> Tensor:
        """Of the frames `index` of x, which make a window, at step s; `more`: a ControlNet's residuals of these frames."""
        count, networks = len(index), recipe.networks
        seen = count + (len(self.carried[0]) if self.carried else 0)
        window = Window(whole(seen, 1, x.device), seen, seen, None, {})
        speech = self.speech[index] if self.speech is not None else None
        reads = self.reads[index] if self.reads is not None else None
        sources = Sources(
            count, self.reference, self.identity, speech=speech, regions=self.regions, carried=self.carried, reads=reads, residuals=more
        )
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
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(NOISE_SEED))
    noise = (noise.clamp(-how.clipped, how.clipped) if how.clipped else noise).to(recipe.device, recipe.dtype)
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
    keep: Keep | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """condition uint8 [F, H, W, K], speech [F, 16, 80] or other `Ears.heard` (`listening.heard_in`) -> latents [F, C, h, w].

    `cache`: made with this recipe. `sampling`: by default the preset's; its steps are the recipe's levels. `noise` [P, C, h, w]: where every
    frame starts, of the `padded` clip; by default `first_noise`. Where frames are carried, clips of `window` frames are made one after the
    other. `keep` is told (steps done, latents of the padded clip) after every step, or (clips done, their latents) after every clip of a chain;
    with those as `begun` a clip goes on.
    """
    networks, how = recipe.networks, sampling or recipe.preset.sampling
    asked, device = len(condition), recipe.device
    frames = padded(asked, how)
    condition, speech = _longer(condition, frames), None if speech is None else _longer(speech, frames)
    # Not all at once: at full size a guider's first layers hold far more of a frame than what it makes of it.
    seen = [networks.guider(part.to(device).permute(0, 3, 1, 2).to(recipe.dtype) / 255) for part in condition.split(how.window)]
    hint = torch.cat(seen)
    spoken = networks.speech(speech.to(device, recipe.dtype)) if networks.speech is not None and speech is not None else None
    if noise is None:
        noise = first_noise(recipe, frames, how)
    halves = [_Half(cache.reference, cache.identity, hint, spoken, cache.regions, cache.tokens)]
    if how.guidance != 1.0:
        halves.append(halves[0].unguided(how, networks))
    if how.carried:
        return _chained(recipe, cache, halves, noise, how, begun=begun, keep=keep, progress=progress)[:asked]
    return _denoised(recipe, halves, noise, how, begun=begun, keep=keep, progress=progress)[:asked]


def _denoised(
    recipe: Recipe,
    halves: Sequence[_Half],
    noise: Tensor,
    how: Sampling,
    *,
    begun: tuple[int, Tensor] | None = None,
    keep: Keep | None = None,
    progress: Progress | None,
) -> Tensor:
    """All steps of one clip, from where its frames start."""
    networks, levels, frames = recipe.networks, recipe.levels, len(noise)
    first, x = begun or (0, noise)
    for s in range(first, len(levels)):
        answers = [torch.zeros_like(x) for _ in halves]
        seen = torch.zeros(frames, device=x.device, dtype=x.dtype)
        wanted = windows(frames, how, s)
        for done, numbers in enumerate(wanted, 1):
            index = torch.tensor(numbers, device=x.device)
            seen[index] += 1
            more = networks.residuals(x[index], levels.t[s].expand(len(index)), halves[0].hint[index])
            for answer, half in zip(answers, halves, strict=True):
                answer[index] += half.answer(recipe, x, s, index, more)
            if progress is not None:
                progress(s * len(wanted) + done, len(levels) * len(wanted))
        means = [answer / seen.view(-1, 1, 1, 1) for answer in answers]
        said = means[0] if len(means) == 1 else means[1] + how.guidance * (means[0] - means[1])
        x = advance(levels, s, x, said, noise)
        if keep is not None:
            keep(s + 1, x)
    return x


def _chained(
    recipe: Recipe,
    cache: Cache,
    halves: Sequence[_Half],
    noise: Tensor,
    how: Sampling,
    *,
    begun: tuple[int, Tensor] | None,
    keep: Keep | None,
    progress: Progress | None,
) -> Tensor:
    """Clips of `window` frames one after the other, each reading the last `carried` frames of the one before; the first, the portrait."""
    networks, steps = recipe.networks, len(recipe.levels)
    assert cache.latents is not None
    dealt = how.dealt and len(halves) == 2 and cache.tokens is not None
    if dealt:
        nobody = networks.project(networks.reread(cache.latents, halves[1].tokens))
        both = [(torch.cat([a, k]), torch.cat([b, v])) for (a, b), (k, v) in zip(nobody, cache.reference, strict=True)]
        halves = [replace(halves[0], reference=both), halves[1]]
    starts = range(0, len(noise), how.window)
    made = noise[:0] if begun is None else begun[1]
    for number, first in list(enumerate(starts))[0 if begun is None else begun[0] :]:
        last = min(first + how.window, len(noise))
        before = _carried(networks, made[-how.carried :]) if first else cache.latents.expand(how.carried, -1, -1, -1)
        seen = [networks.reread(before, tokens) for tokens in _tokens(halves, len(before), dealt=dealt)]
        parts = [half.part(first, last, carried) for half, carried in zip(halves, seen, strict=True)]
        done = None if progress is None else _within(progress, number * steps, len(starts) * steps)
        made = torch.cat([made, _denoised(recipe, parts, noise[first:last], how, progress=done)])
        if keep is not None:
            keep(number + 1, made)
    return made


def _carried(networks: Networks, latents: Tensor) -> Tensor:
    """Latents [m, C, h, w] of a clip's last frames as the next one reads them: as those of pictures."""
    return networks.encode(networks.autoencoder.decode(latents / networks.preset.gain).clamp(-1, 1))


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


__all__ = ["first_noise", "padded", "sample", "windows"]
