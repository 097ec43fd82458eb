"""The hot path: one chunk of frames for a span of rows. State is tensors of fixed shape, written in place; nothing here allocates rings,
counts in Python or waits for the device.

Two orders of the same arithmetic. *In turn*: a frame takes its S steps one after another. *Stream batch* (Kodaira et al. 2023, arXiv
2312.12491): step s of frame t - s for all s in one call, the frame leaves S - 1 frames later. Every noise level has a ring of its own,
so both are equal to banded-causal attention over the whole clip.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.generators.diffusion.attention import KeyValue, Sources
from engine.generators.diffusion.autoencoder import to_pixels, to_unit
from engine.generators.diffusion.budget import ring_shapes, slots
from engine.generators.diffusion.networks import Cache, Networks
from engine.generators.diffusion.presets import Preset
from engine.generators.diffusion.sampler import Levels, advance
from engine.generators.diffusion.temporal import Window, places, put_at, write
from engine.generators.diffusion.tokens import SPEECH_TOKENS
from engine.types import MEL_BANDS, MEL_ROWS

NOISE_SEED = 20260101
"""Every stream starts every frame from the same noise: what changes between two frames is the condition, so nothing flickers."""


@dataclass(slots=True)
class Stream:
    """B rows of sessions. A lane is one noise level of one row: S a row. Shapes never change."""

    count: Tensor  # [B] int64 frames seen
    active: Tensor  # [B] bool: rows that have a chunk now
    condition: Tensor  # [B, c, H, W, 3] uint8
    speech: Tensor  # [B, c, 16, 80] log-mel
    out: Tensor  # [B, c, H, W, 3] uint8
    reference: list[KeyValue]  # a spatial block: [B, L, C]
    identity: list[KeyValue]  # a spatial block: [B, T, C]
    rings: list[KeyValue]  # a temporal attention: [B · S, L, h, K, d]
    noise: Tensor  # [c, C, h, w]
    # Stream batch only: what lies between two calls
    x: Tensor  # [B, S, c, C, h, w] latents at the entry of each step
    hints: Tensor  # [B, S, c, C0, h, w]
    spoken: Tensor  # [B, S, c, T, D] speech tokens
    bases: Tensor  # [B, S, c, H, W, 3] uint8 conditions

    @property
    def bytes(self) -> int:
        """Of all tensors together."""
        single = [getattr(self, name) for name in ("count", "active", "condition", "speech", "out", "noise", "x", "hints", "spoken", "bases")]
        pairs = [tensor for kept in (self.reference, self.identity, self.rings) for pair in kept for tensor in pair]
        return sum(tensor.numel() * tensor.element_size() for tensor in (*single, *pairs))


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


def open_stream(recipe: Recipe, rows: int, like: Cache) -> Stream:
    """Buffers for `rows` sessions, all of them at once. `like`: any identity's cache, for its shapes."""
    made, dtype, device = recipe.preset, recipe.dtype, recipe.device
    unet, steps, chunk = made.unet, len(recipe.levels), made.chunk
    (height, width), (h, w) = made.size, made.latent_size
    generator = torch.Generator().manual_seed(NOISE_SEED)
    noise = torch.randn((1, unet.in_channels, h, w), generator=generator).expand(chunk, -1, -1, -1)

    def empty(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.zeros(shape, dtype=kind, device=device)

    def seats(kept: list[KeyValue]) -> list[KeyValue]:
        return [(empty(rows, *k.shape[1:]), empty(rows, *v.shape[1:])) for k, v in kept]

    rings: list[KeyValue] = []
    for attention, cells in ring_shapes(made):
        heads = unet.heads
        shape = (rows * steps, cells, heads, slots(made), attention // heads)
        rings.append((empty(*shape), empty(*shape)))
    between = steps if recipe.batched else 0
    return Stream(
        count=empty(rows, kind=torch.int64),
        active=empty(rows, kind=torch.bool),
        condition=empty(rows, chunk, height, width, 3, kind=torch.uint8),
        speech=empty(rows, chunk, MEL_ROWS, MEL_BANDS),
        out=empty(rows, chunk, height, width, 3, kind=torch.uint8),
        reference=seats(like.reference),
        identity=seats(like.identity),
        rings=rings,
        noise=noise.to(device, dtype).contiguous(),
        x=empty(rows, between, chunk, unet.in_channels, h, w),
        hints=empty(rows, between, chunk, unet.channels[0], h, w),
        spoken=empty(rows, between if unet.speech_dim else 0, chunk, SPEECH_TOKENS, unet.speech_dim),
        bases=empty(rows, between if made.residual else 0, chunk, height, width, 3, kind=torch.uint8),
    )


def seat(stream: Stream, row: int, cache: Cache) -> None:
    """An identity's cache into a row."""
    for kept, found in ((stream.reference, cache.reference), (stream.identity, cache.identity)):
        for (k, v), (new_k, new_v) in zip(kept, found, strict=True):
            k[row].copy_(new_k[0])
            v[row].copy_(new_v[0])


def forget(stream: Stream, row: int) -> None:
    """A row's past. Hidden slots must hold numbers, so whatever a failed step may have left goes too."""
    stream.count[row] = 0
    lanes = slice(*(end * (len(stream.rings[0][0]) // len(stream.count)) for end in (row, row + 1))) if stream.rings else slice(0)
    for k, v in stream.rings:
        if stream.x.shape[1]:  # row-major lanes
            k[lanes].zero_()
            v[lanes].zero_()
        else:
            k[row :: len(stream.count)].zero_()
            v[row :: len(stream.count)].zero_()
    for tensor in (stream.x, stream.hints, stream.spoken, stream.bases):
        tensor[row].zero_()


@torch.inference_mode()
def step(recipe: Recipe, stream: Stream, start: int, end: int) -> None:
    """A chunk for the rows start..end - 1, from `condition`, `speech` and `active` into `out`."""
    made, networks, dtype = recipe.preset, recipe.networks, recipe.dtype
    span = slice(start, end)
    condition = stream.condition[span].flatten(0, 1)  # [N, H, W, 3]
    hint = networks.guider(condition.permute(0, 3, 1, 2).to(dtype) / 255)
    spoken = networks.speech(stream.speech[span].flatten(0, 1)) if networks.speech is not None else None
    run = _stream_batch if recipe.batched else _in_turn
    latents, base = run(recipe, stream, span, hint, spoken)
    picture = networks.autoencoder.decode(latents / made.scale)
    if made.residual:
        picture = picture + to_unit(base.flatten(0, 1))
    stream.out[span] = to_pixels(picture).unflatten(0, (-1, made.chunk))
    stream.count[span] += made.chunk * stream.active[span]


def _in_turn(recipe: Recipe, stream: Stream, span: slice, hint: Tensor, spoken: Tensor | None) -> tuple[Tensor, Tensor]:
    """S calls, each of all rows -> (latents [N, C, h, w], the condition they belong to)."""
    made, levels, rows = recipe.preset, recipe.levels, span.stop - span.start
    count, active, total = stream.count[span], stream.active[span], len(stream.count)
    noise = stream.noise.repeat(rows, 1, 1, 1)
    x = noise
    at, put = places(count, made.chunk, made), put_at(count, made.chunk, active, made)
    sources = Sources(made.chunk, *_seated(stream, span), speech=spoken)
    for s in range(len(levels)):
        lanes = slice(s * total + span.start, s * total + span.stop)
        window = Window(at, made.window, made.chunk, [(k[lanes], v[lanes]) for k, v in stream.rings], {})
        answer = recipe.networks.denoiser(x, levels.t[s].expand(len(x)), hint, sources, window)
        keep(stream.rings, lanes, window, put)
        x = advance(levels, s, x, answer, noise)
    return x, stream.condition[span]


def _stream_batch(recipe: Recipe, stream: Stream, span: slice, hint: Tensor, spoken: Tensor | None) -> tuple[Tensor, Tensor]:
    """One call: level s has the frames of s calls ago -> (latents [N, C, h, w] of the oldest, the condition they belong to)."""
    made, levels, rows = recipe.preset, recipe.levels, span.stop - span.start
    steps, chunk = len(levels), made.chunk
    noise = stream.noise.repeat(rows, 1, 1, 1).unflatten(0, (rows, chunk))
    kept = [(stream.x, noise), (stream.hints, hint.unflatten(0, (rows, chunk)))]
    if spoken is not None:
        kept.append((stream.spoken, spoken.unflatten(0, (rows, chunk))))
    if made.residual:
        kept.append((stream.bases, stream.condition[span]))
    active = stream.active[span]
    for queue, newest in kept:
        moved = torch.cat([newest[:, None], queue[span, 1:] if queue is stream.x else queue[span, :-1]], 1)
        keep_old = active.view(-1, *[1] * (moved.ndim - 1))
        queue[span] = torch.where(keep_old, moved, queue[span])
    level = torch.arange(steps, device=recipe.device)
    behind = (stream.count[span, None] - level * chunk).flatten()  # [rows · S] frames that this lane has seen
    at = places(behind.clamp(min=0), chunk, made)
    put = put_at(behind.clamp(min=0), chunk, (active[:, None].expand(-1, steps).flatten()) & (behind >= 0), made)
    reference, identity = ([tuple(x.repeat_interleave(steps, 0) for x in pair) for pair in kept_] for kept_ in _seated(stream, span))
    heard = stream.spoken[span].flatten(0, 2) if spoken is not None else None
    lanes = slice(span.start * steps, span.stop * steps)
    window = Window(at, made.window, chunk, [(k[lanes], v[lanes]) for k, v in stream.rings], {})
    each = level.repeat(rows).repeat_interleave(chunk)  # [N] level of every picture
    x = stream.x[span].flatten(0, 2)
    answer = recipe.networks.denoiser(x, levels.t[each], stream.hints[span].flatten(0, 2), Sources(chunk, reference, identity, speech=heard), window)
    keep(stream.rings, lanes, window, put)
    made_x = advance(levels, each, x, answer, noise.repeat_interleave(steps, 0).flatten(0, 1)).unflatten(0, (rows, steps, chunk))
    ready = torch.cat([stream.x[span, :1], made_x[:, :-1]], 1)  # what each step will find at its entry
    stream.x[span] = torch.where(active.view(-1, 1, 1, 1, 1, 1), ready, stream.x[span])
    base = stream.bases[span, -1] if made.residual else stream.condition[span]
    return made_x[:, -1].flatten(0, 1), base


def _seated(stream: Stream, span: slice) -> tuple[list[KeyValue], list[KeyValue]]:
    """The caches of some rows."""
    return [(k[span], v[span]) for k, v in stream.reference], [(k[span], v[span]) for k, v in stream.identity]


def keep(rings: list[KeyValue], lanes: slice, window: Window, put: Tensor) -> None:
    """What a call made, into the rings."""
    for index, (k, v) in window.new.items():
        write(rings[index][0][lanes], k, put)
        write(rings[index][1][lanes], v, put)


@torch.inference_mode()
def whole_clip(recipe: Recipe, cache: Cache, condition: Tensor, speech: Tensor | None) -> Tensor:
    """The same by definition, without a ring: banded-causal attention over a clip at once.

    condition uint8 [F, H, W, 3], speech [F, 16, 80] -> latents [F, C, h, w]. What streaming is measured against.
    """
    made, networks, levels = recipe.preset, recipe.networks, recipe.levels
    frames = len(condition)
    hint = networks.guider(condition.permute(0, 3, 1, 2).to(recipe.dtype) / 255)
    spoken = networks.speech(speech) if networks.speech is not None and speech is not None else None
    noise = open_stream(recipe, 1, cache).noise[:1].expand(frames, -1, -1, -1)
    sources = Sources(frames, cache.reference, cache.identity, speech=spoken)
    x = noise
    at = places(torch.zeros(1, dtype=torch.int64, device=recipe.device), frames, made)
    empty = slots(made)
    alone = type(at)(at.query, at.key[:, :, empty:], at.hidden[:, :, empty:])
    for s in range(len(levels)):
        window = Window(alone, made.window, frames, None, {})
        answer = networks.denoiser(x, levels.t[s].expand(frames), hint, sources, window)
        x = advance(levels, s, x, answer, noise)
    return x


__all__ = ["Recipe", "Stream", "forget", "keep", "open_stream", "seat", "step", "whole_clip"]
