"""The hot path: one chunk of frames for a span of rows. State is tensors of fixed shape, written in place; nothing here allocates rings,
counts in Python or waits for the device.

Two orders of the same arithmetic. *In turn*: a frame takes its S steps one after another. *Stream batch* (Kodaira et al. 2023, arXiv
2312.12491): step s of frame t - s for all s in one call, the frame leaves S - 1 frames later. Every noise level has a ring of its own,
so both are equal to banded-causal attention over the whole clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from engine.generators.diffusion.attention import KeyValue, Sources
from engine.generators.diffusion.autoencoder import to_pixels, to_unit
from engine.generators.diffusion.budget import ring_shapes, slots
from engine.generators.diffusion.networks import Cache, Face, Networks
from engine.generators.diffusion.presets import Preset
from engine.generators.diffusion.sampler import Levels, advance
from engine.generators.diffusion.temporal import Placed, Places, Window, places, put_at, write

NOISE_SEED = 20260101
"""Every stream starts every frame from the same noise: what changes between two frames is the condition, so nothing flickers."""


@dataclass(slots=True)
class Stream:
    """B rows of sessions, or a view of one of them. Shapes never change."""

    count: Tensor  # [B] int64 frames seen
    active: Tensor  # [B] bool: rows that have a chunk now
    condition: Tensor  # [B, c, H, W, K] uint8; K of `Preset.channels`
    speech: Tensor  # [B, c, 16, 80] log-mel, or whatever else frames hear (`Ears.heard`)
    out: Tensor  # [B, c, H, W, 3] uint8
    finite: Tensor  # [B] bool: whether all numbers of the last chunk were some; in `out` this is invisible
    regions: Tensor  # [B, 3, R] masks of the speech's branches; R is 0 where there are none
    noise: Tensor  # [c, C, h, w]
    # Stream batch only (S is 0 else): what lies between two calls
    x: Tensor  # [B, S, c, C, h, w] latents at the entry of each step
    hints: Tensor  # [B, S, c, C0, h, w]
    spoken: Tensor  # [B, S, c, T, D] speech tokens
    bases: Tensor  # [B, S, c, H, W, K] uint8 conditions
    reference: list[KeyValue]  # a spatial block: [B, L, C]
    identity: list[KeyValue]  # a spatial block: [B, T, C]
    rings: list[KeyValue]  # a temporal attention: [S, B, L, h, K, d], in a stream batch [B, S, ..]: what one call reads lies together

    def tensors(self) -> list[Tensor]:
        """All of them, always in the same order."""
        pairs = [tensor for kept in (self.reference, self.identity, self.rings) for pair in kept for tensor in pair]
        return [*(getattr(self, name) for name in SINGLE), *pairs]

    def like(self, tensors: Sequence[Tensor]) -> Stream:
        """A stream of other tensors, in the order of `tensors`."""
        rest = list(tensors[len(SINGLE) :])
        pairs = [(rest[i], rest[i + 1]) for i in range(0, len(rest), 2)]
        first, second = len(self.reference), len(self.reference) + len(self.identity)
        single = dict(zip(SINGLE, tensors, strict=False))
        return replace(self, **single, reference=pairs[:first], identity=pairs[first:second], rings=pairs[second:])

    def row(self, row: int) -> Stream:
        """A view of one row, which the same step takes: what it writes is written here."""
        level_first = not self.x.shape[1]

        def of(pairs: list[KeyValue]) -> list[KeyValue]:
            return [(k[row : row + 1], v[row : row + 1]) for k, v in pairs]

        rings = [(k[:, row : row + 1], v[:, row : row + 1]) for k, v in self.rings] if level_first else of(self.rings)
        single = {name: getattr(self, name)[row : row + 1] for name in SINGLE if name != "noise"}
        return replace(self, **single, reference=of(self.reference), identity=of(self.identity), rings=rings)

    @property
    def bytes(self) -> int:
        """Of all tensors together."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors())


SINGLE = ("count", "active", "condition", "speech", "out", "finite", "regions", "noise", "x", "hints", "spoken", "bases")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a stream is made."""

    networks: Networks
    levels: Levels
    batched: bool  # stream batch
    dtype: torch.dtype
    device: torch.device

    @property
    def preset(self) -> Preset:
        """Of the networks."""
        return self.networks.preset

    def remember(self, picture: Tensor, face: Face | None = None) -> Cache:
        """Portrait [1, 3, H, W] -1..1 -> what every frame of a stream or a clip reads of it. `face`: for presets that know of one."""
        kept: Cache = self.networks.remember(picture, self.levels.t, face=face)
        return kept

    def of_step(self, sources: Sources, step: int) -> Sources:
        """What is read at one of the levels."""
        return sources.of_step(step, len(self.levels)) if self.preset.reference_each else sources


def noise_of(made: Preset) -> Tensor:
    """[c, C, h, w] fp32: what every frame of every stream starts from."""
    generator = torch.Generator().manual_seed(NOISE_SEED)
    noise = torch.randn((1, made.unet.in_channels, *made.latent_size), generator=generator)
    return noise.expand(made.chunk, -1, -1, -1).contiguous()


def open_stream(recipe: Recipe, rows: int, like: Cache) -> Stream:
    """Buffers for `rows` sessions, all of them at once. `like`: any identity's cache, for its shapes."""
    made, dtype, device = recipe.preset, recipe.dtype, recipe.device
    unet, steps, chunk = made.unet, len(recipe.levels), made.chunk
    (height, width), (h, w) = made.size, made.latent_size

    def empty(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.zeros(shape, dtype=kind, device=device)

    def seats(kept: list[KeyValue]) -> list[KeyValue]:
        return [(empty(rows, *k.shape[1:]), empty(rows, *v.shape[1:])) for k, v in kept]

    lanes = (rows, steps) if recipe.batched else (steps, rows)
    rings: list[KeyValue] = []
    for attention, cells in ring_shapes(made):
        shape = (*lanes, cells, unet.heads, slots(made), attention // unet.heads)
        rings.append((empty(*shape), empty(*shape)))
    between = steps if recipe.batched else 0
    return Stream(
        count=empty(rows, kind=torch.int64),
        active=empty(rows, kind=torch.bool),
        condition=empty(rows, chunk, height, width, made.channels, kind=torch.uint8),
        speech=empty(rows, chunk, *made.ears.heard),
        out=empty(rows, chunk, height, width, 3, kind=torch.uint8),
        finite=empty(rows, kind=torch.bool),
        regions=empty(rows, 3, 0 if like.regions is None else like.regions.shape[2]),
        noise=noise_of(made).to(device, dtype),
        x=empty(rows, between, chunk, unet.in_channels, h, w),
        hints=empty(rows, between, chunk, unet.channels[0], h, w),
        spoken=empty(rows, between if unet.speech_dim else 0, chunk, made.ears.tokens, unet.speech_dim),
        bases=empty(rows, between if made.residual else 0, chunk, height, width, made.channels, kind=torch.uint8),
        reference=seats(like.reference),
        identity=seats(like.identity),
        rings=rings,
    )


def seat(stream: Stream, row: int, cache: Cache) -> None:
    """An identity's cache into a row."""
    for kept, found in ((stream.reference, cache.reference), (stream.identity, cache.identity)):
        for (k, v), (new_k, new_v) in zip(kept, found, strict=True):
            k[row].copy_(new_k[0])
            v[row].copy_(new_v[0])
    if cache.regions is not None:
        stream.regions[row].copy_(cache.regions[0])


def forget(stream: Stream, row: int) -> None:
    """A row's past. Hidden slots must hold numbers, so whatever a failed step may have left goes too."""
    view = stream.row(row)
    for tensor in (view.count, view.x, view.hints, view.spoken, view.bases, *(tensor for pair in view.rings for tensor in pair)):
        tensor.zero_()


def vacate(stream: Stream, row: int) -> None:
    """Nothing of whoever sat in a row stays."""
    forget(stream, row)
    view = stream.row(row)
    for tensor in (
        view.condition,
        view.speech,
        view.out,
        view.regions,
        *(x for kept in (view.reference, view.identity) for pair in kept for x in pair),
    ):
        tensor.zero_()


class Step(nn.Module):
    """A chunk for every row, from `condition`, `speech` and `active` into `out`: a module of tensors, for whatever runs modules."""

    def __init__(self, recipe: Recipe, like: Stream) -> None:
        super().__init__()
        self.networks, self._recipe, self._like = recipe.networks, recipe, like

    def forward(self, *tensors: Tensor) -> Tensor:
        """The tensors of a stream, which are written in place -> its `out`."""
        stream = self._like.like(tensors)
        step(self._recipe, stream)
        return stream.out


@torch.no_grad()
def step(recipe: Recipe, stream: Stream) -> None:
    """As `Step`."""
    made, networks = recipe.preset, recipe.networks
    hint, spoken = heard_and_seen(networks, stream.condition.flatten(0, 1), stream.speech.flatten(0, 1), recipe.dtype)
    run = _stream_batch if recipe.batched else _in_turn
    latents, base = run(recipe, stream, hint, spoken)
    picture = shown(networks, latents, base.flatten(0, 1))
    stream.out.copy_(to_pixels(picture).unflatten(0, (-1, made.chunk)))
    # The latents too: a decoder that bounds what it is given makes a picture of infinity.
    stream.finite.copy_(_finite(latents, made.chunk) & _finite(picture, made.chunk))
    stream.count += made.chunk * stream.active


def _finite(x: Tensor, chunk: int) -> Tensor:
    """[N, ..] -> [B] whether all numbers of a row's chunk are finite."""
    return x.isfinite().flatten(1).all(1).unflatten(0, (-1, chunk)).all(1)


def heard_and_seen(networks: Networks, condition: Tensor, speech: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """condition uint8 [N, H, W, K], speech [N, *`Ears.heard`] -> what all steps of these frames read: (hint, speech tokens or None)."""
    hint = networks.guider(condition.permute(0, 3, 1, 2).to(dtype) / 255)
    return hint, networks.speech(speech) if networks.speech is not None and speech is not None else None


def shown(networks: Networks, latents: Tensor, base: Tensor) -> Tensor:
    """Clean latents [N, C, h, w] and the condition they belong to, uint8 [N, H, W, K] -> pictures [N, 3, H, W] about -1..1."""
    picture: Tensor = networks.autoencoder.decode(latents / networks.preset.gain)
    return picture + to_unit(base[..., :3]) if networks.preset.residual else picture


def in_turn(
    networks: Networks, levels: Levels, noise: Tensor, hint: Tensor, sources: Sources, rings: Sequence[Sequence[KeyValue]], at: Places | Placed
) -> tuple[Tensor, list[dict[int, KeyValue]]]:
    """S calls, each of all rows, nothing written: noise [N, C, h, w], `rings` of every level by temporal attention [B, L, h, K, d]
    -> (clean latents [N, C, h, w], what each level's rings grow by, [B, c, L, h, d])."""
    made, x, new = networks.preset, noise, []
    for s in range(len(levels)):
        window = Window(at, made.window, made.chunk, list(rings[s]), {})
        read = sources.of_step(s, len(levels)) if made.reference_each else sources
        answer = networks.denoise(x, levels.t[s].expand(x.shape[0]), hint, read, window)
        x = advance(levels, s, x, answer, noise)
        at = window.places
        new.append(window.new)
    return x, new


def _in_turn(recipe: Recipe, stream: Stream, hint: Tensor, spoken: Tensor | None) -> tuple[Tensor, Tensor]:
    """A frame's steps one after another -> (latents [N, C, h, w], the condition they belong to)."""
    made, levels = recipe.preset, recipe.levels
    noise = stream.noise.repeat(stream.count.shape[0], 1, 1, 1)
    at = places(stream.count, made.chunk, made).placed(made.window, recipe.dtype)  # for all steps at once, which are then compiled once
    put = put_at(stream.count, made.chunk, stream.active, made)
    sources = Sources(made.chunk, stream.reference, stream.identity, speech=spoken, regions=stream.regions)
    rings = [[(k[s], v[s]) for k, v in stream.rings] for s in range(len(levels))]
    x, new = in_turn(recipe.networks, levels, noise, hint, sources, rings, at)
    for kept, grown in zip(rings, new, strict=True):
        _grow(kept, grown, put)
    return x, stream.condition


def _stream_batch(recipe: Recipe, stream: Stream, hint: Tensor, spoken: Tensor | None) -> tuple[Tensor, Tensor]:
    """One call: level s has the frames of s calls ago -> (latents [N, C, h, w] of the oldest, the condition they belong to)."""
    made, levels, rows = recipe.preset, recipe.levels, stream.count.shape[0]
    steps, chunk, active = len(levels), made.chunk, stream.active
    noise = stream.noise.repeat(rows, 1, 1, 1).unflatten(0, (rows, chunk))
    _shift(stream.hints, hint.unflatten(0, (rows, chunk)), active)
    if spoken is not None:
        _shift(stream.spoken, spoken.unflatten(0, (rows, chunk)), active)
    if made.residual:
        _shift(stream.bases, stream.condition, active)
    level = torch.arange(steps, device=recipe.device)
    behind = (stream.count[:, None] - level * chunk).flatten()  # [B · S] frames that this level of this row has seen
    working = active[:, None].expand(-1, steps).flatten() & (behind >= 0)
    at, put = places(behind.clamp(min=0), chunk, made), put_at(behind.clamp(min=0), chunk, working, made)
    reference, identity = (
        [(k.repeat_interleave(steps, 0), v.repeat_interleave(steps, 0)) for k, v in kept] for kept in (stream.reference, stream.identity)
    )
    if made.reference_each:
        reference = _side_by_side(stream.reference, steps)
    heard = stream.spoken.flatten(0, 2) if spoken is not None else None
    sources = Sources(chunk, reference, identity, speech=heard, regions=stream.regions.repeat_interleave(steps, 0))
    each = level.repeat(rows).repeat_interleave(chunk)  # [N] level of every picture
    x = torch.cat([noise[:, None], stream.x[:, 1:]], 1).flatten(0, 2)
    rings = [(k.flatten(0, 1), v.flatten(0, 1)) for k, v in stream.rings]
    window = Window(at, made.window, chunk, rings, {})
    answer = recipe.networks.denoise(x, levels.t[each], stream.hints.flatten(0, 2), sources, window)
    _grow(rings, window.new, put)
    moved = advance(levels, each, x, answer, noise.repeat_interleave(steps, 0).flatten(0, 1)).unflatten(0, (rows, steps, chunk))
    _shift(stream.x, noise, active, moved)
    return moved[:, -1].flatten(0, 1), stream.bases[:, -1] if made.residual else stream.condition


def _side_by_side(kept: Sequence[KeyValue], steps: int) -> list[KeyValue]:
    """[B, L, C] of every block at every step, one step after another -> [B · S, L, C] of every block."""
    count = len(kept) // steps
    return [tuple(torch.stack([kept[s * count + i][part] for s in range(steps)], 1).flatten(0, 1) for part in (0, 1)) for i in range(count)]


def _shift(queue: Tensor, newest: Tensor, active: Tensor, moved: Tensor | None = None) -> None:
    """`newest` [B, ..] enters a queue [B, S, ..] of the active rows, whose contents (or `moved` instead of them) go one place on."""
    now = torch.cat([newest[:, None], (queue if moved is None else moved)[:, :-1]], 1)
    queue.copy_(torch.where(active.view(-1, *[1] * (queue.ndim - 1)), now, queue))


def _grow(rings: Sequence[KeyValue], new: dict[int, KeyValue], put: Tensor) -> None:
    """What a call has learnt goes into the rings [B, L, h, K, d]."""
    for index, (k, v) in new.items():
        write(rings[index][0], k, put)
        write(rings[index][1], v, put)


@torch.no_grad()
def whole_clip(recipe: Recipe, cache: Cache, condition: Tensor, speech: Tensor | None) -> Tensor:
    """The same by definition, without a ring: banded-causal attention over a clip at once.

    condition uint8 [F, H, W, K], speech [F, 16, 80] -> latents [F, C, h, w]. What streaming is measured against.
    """
    made, networks, levels = recipe.preset, recipe.networks, recipe.levels
    frames = len(condition)
    hint, spoken = heard_and_seen(networks, condition, speech, recipe.dtype)
    noise = noise_of(made)[:1].to(recipe.device, recipe.dtype).expand(frames, -1, -1, -1)
    sources = Sources(frames, cache.reference, cache.identity, speech=spoken, regions=cache.regions)
    x = noise
    at = places(torch.zeros(1, dtype=torch.int64, device=recipe.device), frames, made)
    empty = slots(made)
    alone = Places(at.query, at.key[:, :, empty:], at.hidden[:, :, empty:])
    for s in range(len(levels)):
        window = Window(alone, made.window, frames, None, {})
        answer = networks.denoise(x, levels.t[s].expand(frames), hint, recipe.of_step(sources, s), window)
        x = advance(levels, s, x, answer, noise)
    return x


__all__ = [
    "Recipe",
    "Step",
    "Stream",
    "forget",
    "heard_and_seen",
    "in_turn",
    "noise_of",
    "open_stream",
    "seat",
    "shown",
    "step",
    "vacate",
    "whole_clip",
]
