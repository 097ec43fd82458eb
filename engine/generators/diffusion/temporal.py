"""The causal sliding window: temporal attention over a ring of past frames' keys and values, stored without positions.

The rule, for streaming and for whole clips alike. Frame q attends to frame f where q - f < `recent`, f <= q; such a key sits at
position window - 1 - (q - f), so a query is always the last position and ageing needs no re-projection. The first `sinks` frames are
pinned: once they are older than that, they stay, at positions 0 .. sinks - 1. What has not been seen yet is hidden.

Motion modules add their sinusoids before the projections (AnimateDiff, Guo et al. 2023, arXiv 2307.04725); as projections are linear,
each becomes a small table W · pe that is added when the ring is read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.generators.diffusion.attention import FeedForward, Projections
from engine.generators.diffusion.presets import Preset

NEVER = -(2**30)
"""Number of a frame that was never seen."""
HIDDEN = -1e4
"""Added to the score of a key that must not be seen: its weight is 0 in every precision, and finite even where nothing may be seen."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where queries and keys sit in the window; c frames asked, K past keys."""

    query: Tensor  # [B, c] positions
    key: Tensor  # [B, c, K + c] positions
    hidden: Tensor  # [B, c, K + c] keys a query must not see

    @property
    def past(self) -> int:
        """K."""
        return int(self.key.shape[2] - self.key.shape[1])

    def placed(self, length: int, dtype: torch.dtype) -> Placed:
        """The same as numbers that attention multiplies and adds."""
        at = torch.arange(length, device=self.key.device)
        hidden = torch.zeros_like(self.key, dtype=dtype).masked_fill(self.hidden, HIDDEN)
        return Placed(self.query, (self.key[..., None] == at).to(dtype), hidden)


@dataclass(frozen=True, slots=True)
class Placed:
    """Places without an index or a truth value but the queries' own, as every backend takes them."""

    query: Tensor  # [B, c] positions
    where: Tensor  # [B, c, K + c, P] 1 at a key's position, else 0
    bias: Tensor  # [B, c, K + c] added to scores: 0, or HIDDEN

    @property
    def past(self) -> int:
        """K."""
        return int(self.bias.shape[2] - self.bias.shape[1])


def places(count: Tensor, frames: int, made: Preset) -> Places:
    """count [B] int64 frames seen before -> Places of the next `frames` among a ring's `slots` and themselves."""
    device, sinks, ring = count.device, made.sinks, made.ring
    before = count[:, None]
    asked = before + torch.arange(frames, device=device)  # [B, c] frame numbers
    pinned = torch.arange(sinks, device=device).expand(count.shape[0], sinks)
    pinned = torch.where(pinned < before, pinned, NEVER)
    slot = torch.arange(ring, device=device)
    recent = before - 1 - (before - 1 - slot) % ring  # the newest frame that this slot got
    recent = torch.where(recent >= 0, recent, NEVER)
    trash = torch.full_like(before, NEVER)
    number = torch.cat([pinned, recent, trash, asked], 1)[:, None]  # [B, 1, K + c]
    is_slot = torch.arange(number.shape[2], device=device)
    age = asked[:, :, None] - number
    fresh = (age >= 0) & (age < made.recent) & (is_slot >= sinks)
    kept = (number >= 0) & (number < sinks) & (age >= made.recent) & ((is_slot < sinks) | (is_slot >= sinks + ring + 1))
    key = torch.where(kept, number, made.window - 1 - age).clamp(0, made.window - 1)
    return Places(torch.full_like(asked, made.window - 1), key, ~(fresh | kept))


def whole(frames: int, rows: int, device: torch.device) -> Places:
    """Every frame of a clip sees every other, at the positions 0 .. frames - 1: how the published models were trained."""
    at = torch.arange(frames, device=device).expand(rows, frames)
    key = at[:, None].expand(rows, frames, frames)
    return Places(at, key, torch.zeros_like(key, dtype=torch.bool))


def put_at(count: Tensor, frames: int, active: Tensor, made: Preset) -> Tensor:
    """[2, B, c] the slots that the next `frames` go to: their pinned place (for later ones the same as the second), and their recent one."""
    number = count[:, None] + torch.arange(frames, device=count.device)
    recent = made.sinks + number % made.ring
    first = torch.where(number < made.sinks, number, recent)
    trash = made.sinks + made.ring
    return torch.where(active[None, :, None], torch.stack([first, recent]), trash)


def write(ring: Tensor, new: Tensor, at: Tensor) -> None:
    """new [B, c, L, h, d] into ring [B, L, h, K, d] at the slots [2, B, c], in place."""
    rows = torch.arange(ring.shape[0], device=ring.device)[:, None]
    for slot in at:
        ring[rows, :, :, slot] = new


class TemporalAttention(Projections):
    """Self-attention over time of every cell by itself."""

    def __init__(self, width: int, heads: int, *, index: int) -> None:
        super().__init__(width, heads)
        self.index = index  # among all temporal attentions of the network
        self.register_buffer("_tables", None, persistent=False)  # [3, length, C] once frozen; goes along to other devices

    def tables(self, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """[length, C] each: what positions add to queries, keys and values."""
        if self._tables is not None and self._tables.shape[1] == length:
            return self._tables[0], self._tables[1], self._tables[2]
        pe = sinusoids(length, self.to_q.in_features).to(self.to_q.weight)
        return self.to_q(pe), self.to_k(pe), self.to_v(pe)

    def freeze(self, length: int) -> None:
        """Keep the tables: the weights will not change any more."""
        self._tables = None
        with torch.no_grad():
            self._tables = torch.stack(self.tables(length))

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None, at: Placed, length: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x [B, c, L, C]; past keys and values [B, L, h, K, d] -> (attended [B, c, L, C], this chunk's keys and values [B, c, L, h, d])."""
        tq, tk, tv = (table.unflatten(-1, (self.heads, -1)).transpose(0, 1) for table in self.tables(length))  # [h, P, d]
        q, k, v = (to(x).unflatten(-1, (self.heads, -1)) for to in (self.to_q, self.to_k, self.to_v))  # [B, c, L, h, d]
        query = (q + tq.transpose(0, 1)[at.query][:, :, None]).permute(0, 2, 3, 1, 4)  # [B, L, h, c, d]
        now_k, now_v = k.permute(0, 2, 3, 1, 4), v.permute(0, 2, 3, 1, 4)
        scores = query @ now_k.transpose(-1, -2)
        if past is not None:
            scores = torch.cat([query @ past[0].transpose(-1, -2), scores], -1)
        scores = scores + torch.einsum("blhcp,bckp->blhck", query @ tk.transpose(-1, -2), at.where)
        weights = (scores / math.sqrt(q.shape[-1]) + at.bias[:, None, None]).softmax(-1)
        moved = torch.einsum("blhck,bckp->blhcp", weights, at.where) @ tv
        known = at.past if past is not None else 0
        moved = moved + weights[..., known:] @ now_v
        if past is not None:
            moved = moved + weights[..., :known] @ past[1]
        return self.out(moved.permute(0, 3, 1, 2, 4).flatten(3)), (k, v)


class TemporalBlock(nn.Module):
    """Two temporal self-attentions and a feed-forward (names as in AnimateDiff's checkpoints)."""

    def __init__(self, width: int, heads: int, *, index: int) -> None:
        super().__init__()
        self.attention_blocks = nn.ModuleList([TemporalAttention(width, heads, index=2 * index + k) for k in range(2)])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.ff_norm, self.ff = nn.LayerNorm(width), FeedForward(width)

    def forward(self, x: Tensor, window: Window) -> Tensor:
        """[B, c, L, C] -> [B, c, L, C]"""
        for attention, norm in zip(self.attention_blocks, self.norms, strict=True):
            moved, window.new[attention.index] = attention(norm(x), window.past(attention.index), window.placed(x.dtype), window.length)
            x = x + moved
        made: Tensor = x + self.ff(self.ff_norm(x))
        return made


@dataclass(slots=True)
class Window:
    """The past of one call, by temporal attention, and what the call adds to it."""

    places: Places | Placed
    length: int  # positions there are
    frames: int  # c
    kept: list[tuple[Tensor, Tensor]] | None  # [B, L, h, K, d] a temporal attention; None where the call holds the whole clip
    new: dict[int, tuple[Tensor, Tensor]]  # index -> keys and values [B, c, L, h, d]

    def placed(self, dtype: torch.dtype) -> Placed:
        """Its places as numbers; worked out once a call."""
        if isinstance(self.places, Places):
            self.places = self.places.placed(self.length, dtype)
        return self.places

    def past(self, index: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values before this call's frames."""
        return None if self.kept is None else self.kept[index]


class MotionModule(nn.Module):
    """Temporal transformer of one place in the network; GroupNorm sees one frame at a time."""

    def __init__(self, width: int, heads: int, groups: int, *, index: int) -> None:
        super().__init__()
        self.temporal_transformer = _TemporalTransformer(width, heads, groups, index=index)

    def forward(self, x: Tensor, window: Window) -> Tensor:
        """[N, C, h, w] -> [N, C, h, w]"""
        made: Tensor = self.temporal_transformer(x, window)
        return made


class _TemporalTransformer(nn.Module):
    def __init__(self, width: int, heads: int, groups: int, *, index: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.proj_in = nn.Linear(width, width)
        self.transformer_blocks = nn.ModuleList([TemporalBlock(width, heads, index=index)])
        self.proj_out = nn.Linear(width, width)

    def forward(self, x: Tensor, window: Window) -> Tensor:
        tokens = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))  # [N, L, C]
        tokens = self.transformer_blocks[0](tokens.unflatten(0, (-1, window.frames)), window).flatten(0, 1)
        made: Tensor = x + self.proj_out(tokens).transpose(1, 2).unflatten(2, x.shape[2:])
        return made


def sinusoids(length: int, width: int) -> Tensor:
    """[length, width] sin on the even channels, cos on the odd ones, of position · 10000^(-2i / width)."""
    at = torch.arange(length, dtype=torch.float64)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float64) * (-math.log(10000.0) / width))
    return torch.stack([torch.sin(at * rate), torch.cos(at * rate)], -1).flatten(1).float()


__all__ = ["HIDDEN", "MotionModule", "Placed", "Places", "TemporalAttention", "Window", "places", "put_at", "sinusoids", "whole", "write"]
