"""What a network is taught: to denoise (the teacher), and three ways to a few steps (the student).

A, appearance (Self-Forcing's and PersonaLive's rule, arXiv 2506.08009 and 2512.11253 algorithm 1): the student runs its own steps through its own
window; the real frame is the teacher, and gradients pass through the last step alone. B, consistency (Luo et al. 2023, arXiv 2310.04378): what it
says of two neighbouring noise levels of a many-step teacher's path must agree. C, matching (DMD2, Yin et al. 2024, arXiv 2405.14867): its pictures
are pushed to where the teacher finds them likelier than a critic does that follows the student.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.generators.diffusion.attention import KeyValue, Sources
from engine.generators.diffusion.autoencoder import to_unit
from engine.generators.diffusion.budget import slots
from engine.generators.diffusion.networks import Networks
from engine.generators.diffusion.presets import Preset
from engine.generators.diffusion.sampler import LEVELS, Levels, advance, clean_and_noise, levels
from engine.generators.diffusion.stream import heard_and_seen, noise_of, shown
from engine.generators.diffusion.temporal import Places, Window, places
from exporters.training.batches import Batch
from exporters.training.losses import Weights, even, pictures, weigh
from exporters.training.memory import Forgetful, one_by_one

TEACHER_STEPS = 50
"""Of the path that consistency is taught along, and SKIP of them a stride (20 levels each of 1000)."""
HUBER = 1e-3
CRITIC_EVERY = 5
"""Updates of matching's critic for each of the student."""
LEAST, MOST = 0.02, 0.98
"""Noise levels, as a share of all, that matching compares at."""

Terms = dict[str, Tensor]
Show = Callable[[], Tensor]
"""The pictures [N, 3, H, W] -1..1 that were made."""


@dataclass(slots=True)
class Scene:
    """A batch as the networks read it."""

    batch: Batch
    hint: Tensor  # [N, C0, h, w]
    spoken: Tensor | None
    reference: list[KeyValue]  # [B, L, C]; empty where the portrait is read anew at every noise level
    identity: list[KeyValue]
    at: Places
    regions: Tensor | None = None  # [B, 3, R] where the speech's branches count
    latents: Tensor | None = None  # [1, C, h, w] of the portrait, where it is read anew
    tokens: Tensor | None = None  # [1, T, D] of the identity, likewise

    def window(self, length: int) -> Window:
        """Banded-causal attention over the batch's frames: exactly what streaming them one by one does."""
        return Window(self.at, length, self.batch.frames, None, Forgetful())


def scene(networks: Networks, batch: Batch) -> Scene:
    """With gradients to the guider, the speech tokens and the reference network where they are on."""
    made, rows = networks.preset, batch.rows
    hint, spoken = heard_and_seen(networks, batch.coarse, batch.speech, batch.truth.dtype)
    if batch.unguided is not None:
        told, how = (~batch.unguided).to(hint), made.sampling
        hint = hint if how.hint_unguided else hint * told[:, None, None, None]
        spoken = spoken if how.speech_unguided or spoken is None else spoken * told[:, None, None]
    vector = None if batch.face is None else batch.face.vector
    tokens = networks.tokens(batch.portrait, vector) if batch.tokens is None else batch.tokens
    latents = networks.encode(batch.portrait) if batch.latents is None and batch.bank is None else batch.latents
    bank = batch.bank
    if bank is None:
        assert latents is not None
        bank = [] if made.reference_each else networks.reread(latents, tokens)
    cache = networks.cached(bank, tokens, networks.known(batch.face))
    reference, identity = ([(k.expand(rows, -1, -1), v.expand(rows, -1, -1)) for k, v in kept] for kept in (cache.reference, cache.identity))
    at = places(torch.zeros(rows, dtype=torch.int64, device=batch.truth.device), batch.frames, made)
    past = slots(made)  # an empty ring, which nothing is read from
    alone = Places(at.query, at.key[:, :, past:], at.hidden[:, :, past:])
    return Scene(batch, hint, spoken, reference, identity, alone, branches(made, batch), latents, tokens)


def of_others(batch: Batch) -> Batch:
    """The batch for networks that read the portrait by a reference network and an image encoder of their own."""
    return replace(batch, bank=None, tokens=None)


def branches(made: Preset, batch: Batch) -> Tensor | None:
    """The masks of the speech's branches [B, 3, R] where each row's pictures lie; all ones where no face is known; None for presets without."""
    if made.unet.speech_in != "branches":
        return None
    sizes = made.level_sizes
    masks = None if batch.face is None else batch.face.regions
    if masks is None:
        masks = batch.truth.new_ones(1, 3, sum(h * w for h, w in sizes))
    if not batch.corners:
        return masks.to(batch.truth).expand(batch.rows, -1, -1)
    levels_of = [part.unflatten(2, size)[0] for part, size in zip(masks.to(batch.truth).split([h * w for h, w in sizes], 2), sizes, strict=True)]
    height, width = batch.truth.shape[2:]
    rows = []
    for y, x in batch.corners[:: batch.frames]:
        cells = [made.patch << i for i in range(len(sizes))]  # px a side, level by level
        parts = [mask[:, y // px : (y + height) // px, x // px : (x + width) // px].flatten(1) for mask, px in zip(levels_of, cells, strict=True)]
        rows.append(torch.cat(parts, 1))
    return torch.stack(rows)


def answer(networks: Networks, view: Scene, x: Tensor, t: Tensor) -> Tensor:
    """One call of the denoiser for all N pictures, at noise levels t [N], the same in all frames of a row, or at one []."""
    reference = _reread(networks, view, t) if networks.preset.reference_each else view.reference
    sources = Sources(view.batch.frames, reference, view.identity, speech=view.spoken, regions=view.regions)
    said: Tensor = networks.denoise(x, t.expand(len(x)), view.hint, sources, view.window(networks.preset.window))
    return said


def _reread(networks: Networks, view: Scene, t: Tensor) -> list[KeyValue]:
    """The portrait at the noise level of each row: [B, L, C] by block. One level for all is read once."""
    assert view.latents is not None
    levels_of = t[:: view.batch.frames] if t.ndim else t[None]
    latents, tokens = (None if x is None else x.expand(len(levels_of), *x.shape[1:]) for x in (view.latents, view.tokens))
    assert latents is not None
    read = networks.project(networks.reread(latents, tokens, levels_of))
    return [(k.expand(view.batch.rows, -1, -1), v.expand(view.batch.rows, -1, -1)) for k, v in read]


def encode(networks: Networks, batch: Batch) -> Tensor:
    """The truth as clean latents [N, C, h, w]."""
    wanted = batch.truth - to_unit(batch.coarse[..., :3]).to(batch.truth) if networks.preset.residual else batch.truth
    halves = networks.autoencoder.encode
    clean: Tensor = (halves(wanted) if networks.preset.latent == "pixel" else one_by_one(halves, wanted)) * networks.preset.gain
    return clean


def seen(networks: Networks, latents: Tensor, batch: Batch) -> Tensor:
    """Clean latents [N, C, h, w] -> the pictures [N, 3, H, W] about -1..1 that are shown of them."""
    if networks.preset.latent == "pixel":
        return shown(networks, latents, batch.coarse)
    return one_by_one(lambda part: shown(networks, part, batch.coarse), latents)


def first_noise(made: Preset, batch: Batch) -> Tensor:
    """The noise that every frame of a stream starts from, where the batch's pictures lie [N, C, h, w]."""
    noise, patch = noise_of(made)[0], made.patch
    if not batch.corners:
        return noise.expand(len(batch.truth), -1, -1, -1)
    h, w = batch.truth.shape[2] // patch, batch.truth.shape[3] // patch
    return torch.stack([noise[:, y // patch : y // patch + h, x // patch : x // patch + w] for y, x in batch.corners])


def rollout(networks: Networks, at: Levels, view: Scene, *, exit: int) -> Tensor:
    """The student's own steps up to number `exit`, which alone carries gradients -> clean latents [N, C, h, w]."""
    noise = first_noise(networks.preset, view.batch).to(view.hint)
    x = noise
    for s in range(exit):
        with torch.no_grad():
            x = advance(at, s, x, answer(networks, view, x, at.t[s]), noise)
    said = answer(networks, view, x.detach(), at.t[exit])
    return clean_and_noise(at, exit, x.detach(), said)[0]


def seeded(seed: int, step: int) -> torch.Generator:
    """The random numbers of one training step, whatever came before it."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


class Objective(Protocol):
    """One way of teaching."""

    def loss(self, networks: Any, batch: Batch, step: int) -> tuple[Terms, Show]:
        """(terms, whose sum is minimised; the pictures for a critic, which cost a decoder: ask once, and only if there is one)."""
        ...


class Following(Protocol):
    """A way of teaching that trains a network of its own beside the student."""

    follower: Any  # nn.Module

    def follow(self, networks: Any, batch: Batch, step: int) -> Tensor:
        """What that network learns from."""
        ...

    def to(self, device: Any) -> Any:
        """Moved."""
        ...


@dataclass(frozen=True, slots=True)
class Denoise:
    """The teacher: any noise level, drawn anew for every row. An autoencoder's latents are compared as they are: through its decoder a step would
    take twice as long, and its weights were trained so."""

    weights: Weights
    seed: int

    def loss(self, networks: Networks, batch: Batch, step: int) -> tuple[Terms, Show]:
        """As `Objective`."""
        generator = seeded(self.seed, step)
        whole = levels(networks.preset.noise, LEVELS).to(batch.truth.device)
        index = torch.randint(0, LEVELS, (batch.rows,), generator=generator).repeat_interleave(batch.frames).to(batch.truth.device)
        clean = encode(networks, batch)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        x = _column(whole.alpha, index) * clean + _column(whole.sigma, index) * noise
        said = answer(networks, scene(networks, batch), x, whole.t[index])
        found = clean_and_noise(whole, index, x, said)[0]
        if networks.preset.latent != "pixel":
            weight = weigh(functional.avg_pool2d(batch.areas, networks.preset.patch), self.weights)
            square = (weight * (said.float() - _goal(whole, index, clean, noise)).square()).mean()
            return {"latents": square}, lambda: seen(networks, found, batch)
        made = seen(networks, found, batch)
        return pictures(made, batch.truth, _weight(networks, batch, self.weights), self.weights), lambda: made


@dataclass(frozen=True, slots=True)
class Appearance:
    """Recipe A. The exit step is drawn evenly, so that every step learns to be the last."""

    steps: int
    weights: Weights
    seed: int

    def loss(self, networks: Networks, batch: Batch, step: int) -> tuple[Terms, Show]:
        """As `Objective`."""
        at = levels(networks.preset.noise, self.steps).to(batch.truth.device)
        exit = int(torch.randint(self.steps, (), generator=seeded(self.seed, step)))
        made = seen(networks, rollout(networks, at, scene(networks, batch), exit=exit), batch)
        return pictures(made, batch.truth, _weight(networks, batch, self.weights), self.weights), lambda: made


class Consistency:
    """Recipe B. `target`: the student's average, which the trainer keeps."""

    def __init__(self, teacher: Networks, target: Networks, *, seed: int) -> None:
        self.teacher, self.target, self.seed = teacher.eval().requires_grad_(False), target, seed
        self.path = levels(teacher.preset.noise, TEACHER_STEPS)

    def loss(self, networks: Networks, batch: Batch, step: int) -> tuple[Terms, Show]:
        """As `Objective`."""
        generator = seeded(self.seed, step)
        path = self.path.to(batch.truth.device)
        index = torch.randint(0, TEACHER_STEPS, (batch.rows,), generator=generator).repeat_interleave(batch.frames).to(batch.truth.device)
        clean = encode(networks, batch)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        x = _column(path.alpha, index) * clean + _column(path.sigma, index) * noise
        with torch.no_grad():
            mine = scene(self.teacher, of_others(batch))
            nearer = advance(replace(path, stepper="euler"), index, x, answer(self.teacher, mine, x, path.t[index]), noise)
            goal = self._consistent(self.target, batch, nearer, (index + 1).clamp(max=TEACHER_STEPS - 1), path)
            # The last step of the path ends at the picture itself: what ties all the others to it.
            goal = torch.where((index + 1 == TEACHER_STEPS).view(-1, 1, 1, 1), nearer, goal)
        found = self._consistent(networks, batch, x, index, path)
        apart = found - goal
        return {"consistency": (torch.sqrt(apart.square() + HUBER**2) - HUBER).mean()}, lambda: seen(networks, found, batch)

    @staticmethod
    def _consistent(networks: Networks, batch: Batch, x: Tensor, index: Tensor, path: Levels) -> Tensor:
        """f(x, t) = skip · x + out · clean."""
        clean = clean_and_noise(path, index, x, answer(networks, scene(networks, batch), x, path.t[index]))[0]
        return _column(path.skip, index) * x + _column(path.out, index) * clean


class Matching(nn.Module):
    """Recipe C. Holds the critic of the student's own distribution and its optimiser's turn."""

    def __init__(self, teacher: Networks, *, steps: int, seed: int) -> None:
        super().__init__()
        self.teacher = teacher.eval().requires_grad_(False)
        self.follower = copy.deepcopy(teacher).train().requires_grad_(True)
        self.steps, self.seed = steps, seed

    def loss(self, networks: Networks, batch: Batch, step: int) -> tuple[Terms, Show]:
        """As `Objective`: 0.5 |x - sg(x - grad)|², grad = (follower - teacher) / mean |x - teacher|, sample by sample."""
        at = levels(networks.preset.noise, self.steps).to(batch.truth.device)
        exit = int(torch.randint(self.steps, (), generator=seeded(self.seed, step)))
        mine = rollout(networks, at, scene(networks, batch), exit=exit)
        with torch.no_grad():
            x, index, whole = self._noisy(mine.detach(), batch, step)
            theirs, follower = of_others(batch), self.follower.eval()
            teacher, followed = (
                clean_and_noise(whole, index, x, answer(one, scene(one, theirs), x, whole.t[index]))[0] for one in (self.teacher, follower)
            )
            push = matching_gradient(mine.detach(), teacher, followed)
        return {"matching": 0.5 * functional.mse_loss(mine, (mine - push).detach())}, lambda: seen(networks, mine, batch)

    def follow(self, networks: Networks, batch: Batch, step: int) -> Tensor:
        """The critic's own loss: to denoise what the student makes."""
        at = levels(networks.preset.noise, self.steps).to(batch.truth.device)
        with torch.no_grad():
            mine = rollout(networks, at, scene(networks, batch), exit=self.steps - 1)
        x, index, whole = self._noisy(mine, batch, step)
        self.follower.train()
        found = clean_and_noise(whole, index, x, answer(self.follower, scene(self.follower, of_others(batch)), x, whole.t[index]))[0]
        return functional.mse_loss(found, mine)

    def _noisy(self, clean: Tensor, batch: Batch, step: int) -> tuple[Tensor, Tensor, Levels]:
        generator = seeded(self.seed, step)
        whole = levels(self.teacher.preset.noise, LEVELS).to(clean.device)
        low, high = round(LEAST * LEVELS), round(MOST * LEVELS)
        index = torch.randint(low, high, (batch.rows,), generator=generator).repeat_interleave(batch.frames).to(clean.device)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        return _column(whole.alpha, index) * clean + _column(whole.sigma, index) * noise, index, whole


def matching_gradient(made: Tensor, teacher: Tensor, follower: Tensor) -> Tensor:
    """[N, C, h, w]: which way the student's latents should not go; 0 where teacher and follower agree."""
    size = (made - teacher).abs().mean((1, 2, 3), keepdim=True)
    return torch.nan_to_num((follower - teacher) / size)


def same_encoder(mine: nn.Module, theirs: nn.Module) -> bool:
    """Whether two autoencoders of one layout are the same one, both in fp32, whatever their files' precision was."""
    other = theirs.state_dict()
    return all(torch.equal(value, other[name]) for name, value in mine.state_dict().items())


def _goal(at: Levels, index: Tensor, clean: Tensor, noise: Tensor) -> Tensor:
    """[N, C, h, w]: what a network should answer."""
    alpha, sigma = _column(at.alpha, index), _column(at.sigma, index)
    if at.prediction == "x0":
        return clean
    if at.prediction == "v":
        return alpha * noise - sigma * clean
    return noise if at.prediction == "epsilon" else noise - clean


def _weight(networks: Networks, batch: Batch, weights: Weights) -> Tensor:
    """[N, 1, H, W] how much each pixel counts."""
    weight = weigh(batch.areas, weights)
    return even(weight, to_unit(batch.coarse[..., :3]).to(weight), batch.truth) if networks.preset.residual else weight


def _column(values: Tensor, index: Tensor) -> Tensor:
    return values[index].view(-1, 1, 1, 1)


__all__ = [
    "Appearance",
    "Consistency",
    "Denoise",
    "Following",
    "Matching",
    "Objective",
    "Scene",
    "Show",
    "answer",
    "branches",
    "encode",
    "first_noise",
    "matching_gradient",
    "of_others",
    "rollout",
    "same_encoder",
    "scene",
    "seeded",
    "seen",
]
