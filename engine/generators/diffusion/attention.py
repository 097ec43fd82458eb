"""Spatial transformer block with explicit sources: the frame itself, the cached reference, the identity's tokens, speech."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.generators.diffusion.layout import FACE_TOKENS

KeyValue = tuple[Tensor, Tensor]
"""Projected keys and values, [B, L, C] each."""


@dataclass(slots=True)
class Sources:
    """What the attentions of one call read beside the frame itself, by block, and what they hand out.

    B rows with c frames each; N = B * c frames, a row's frames side by side.
    """

    frames: int = 1  # c
    reference: Sequence[KeyValue] = ()  # a spatial block: [B, Lr, C]; empty for none
    identity: Sequence[KeyValue] = ()  # a spatial block: [B, T, C], already projected; empty for none
    speech: Tensor | None = None  # [N, T, D]
    regions: Tensor | None = None  # [B, 3, R] masks of the speech's branches, the cells of all levels one after the other
    carried: Sequence[Tensor] = ()  # a spatial block: [m, L, C] of frames before a clip, which its motion module sees first; one row only
    reads: Tensor | None = None  # [N] row of the reference that each frame reads, where that is not its own
    bank: list[Tensor] | None = None  # the reference network writes here what its blocks' first attention read, [N, L, C]
    joined: int = 1  # frames that GroupNorms outside of attentions see at once, where the preset joins them
    residuals: Sequence[Tensor] = ()  # of a ControlNet: [N, C, h, w] added to every skip, and the last to the middle's product

    def of_step(self, step: int, steps: int) -> Sources:
        """Where the reference holds as many blocks for each of `steps` levels, one level after another: those of one step."""
        assert len(self.reference) % steps == 0, "read at other levels than these"
        share = len(self.reference) // steps
        return replace(self, reference=self.reference[step * share : (step + 1) * share])


class Projections(nn.Module):
    """Of multi-head attention, with diffusers' names."""

    def __init__(self, width: int, heads: int, *, source: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(source or width, width, bias=False)
        self.to_v = nn.Linear(source or width, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def project(self, source: Tensor) -> KeyValue:
        """[.., L, D] -> keys and values [.., L, C]."""
        return self.to_k(source), self.to_v(source)

    def out(self, attended: Tensor) -> Tensor:
        """The last projection."""
        return self.to_out[0](attended)


class Heads(Projections):
    """Attention whose keys and values may come from a cache."""

    def forward(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """query [N, L, C] unprojected; keys and values [N, K, C] projected -> [N, L, C]."""
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.to_q(query), keys, values))
        return self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Recognising(Heads):
    """Attention that reads a face's tokens beside the others, the two apart: out(attend(q, k, v) + attend(q, k_face, v_face)), where the face has a
    key's and a value's projection of its own (decoupled cross-attention; Ye et al. 2023, arXiv 2308.06721, section 3.2). Published names."""

    def __init__(self, width: int, heads: int, *, source: int, face: int) -> None:
        super().__init__(width, heads, source=source)
        self.to_k_ip = nn.Linear(face, width, bias=False)
        self.to_v_ip = nn.Linear(face, width, bias=False)

    def with_face(self, others: KeyValue, face: Tensor, scale: float) -> KeyValue:
        """Keys and values of the others [B, T, C] and tokens of a face [B, 4, D] -> of all, [B, T + 4, C], the face's last. `scale`, by which the
        face's attention counts, is in its values: so it costs nothing live, and no graph has to know it."""
        return torch.cat([others[0], self.to_k_ip(face)], 1), torch.cat([others[1], scale * self.to_v_ip(face)], 1)

    def forward(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """As `Heads`, of keys and values as `with_face` makes them."""
        count = keys.shape[1] - FACE_TOKENS
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.to_q(query), keys, values))
        face = functional.scaled_dot_product_attention(q, k[:, :, count:], v[:, :, count:])
        # Attention to a single token is that token, whatever the query.
        others = v[:, :, :1] if count == 1 else functional.scaled_dot_product_attention(q, k[:, :, :count], v[:, :, :count])
        return self.out((others + face).transpose(1, 2).flatten(2))


class GatedUnit(nn.Module):
    """GEGLU (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """[.., C] -> [.., inner]"""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return torch.mul(value, functional.gelu(gate))


class FeedForward(nn.Module):
    """Four times as wide inside; indices as in published checkpoints (net.1 is a dropout, absent here)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleDict({"0": GatedUnit(width, 4 * width), "2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        """[.., C] -> [.., C]"""
        made: Tensor = self.net["2"](self.net["0"](x))
        return made


class SpatialBlock(nn.Module):
    """Self-attention that also reads the reference, then the identity's tokens, then speech, then the feed-forward."""

    def __init__(self, width: int, heads: int, *, image_dim: int, speech_dim: int, index: int, second: float = 0.0, face_dim: int = 0) -> None:
        """`second`: how much the second attention counts where it reads speech; 0 where speech has a third one. `face_dim`: of a face's tokens that
        it reads beside the identity's."""
        super().__init__()
        self.index = self.reads = index  # among all spatial blocks of the network; among those that read the reference, below 0 if it does not
        self.last = False  # of a network that ends where this block has been read
        self.second = second
        self.norm1, self.attn1 = nn.LayerNorm(width), Heads(width, heads)
        if image_dim or second:
            self.norm2 = nn.LayerNorm(width)
            source = image_dim or speech_dim
            self.attn2 = Recognising(width, heads, source=source, face=face_dim) if face_dim else Heads(width, heads, source=source)
        self.third = speech_dim > 0 and not second
        if self.third:
            self.norm_speech, self.attn_speech = nn.LayerNorm(width), Heads(width, heads, source=speech_dim)
        self.norm3, self.ff = nn.LayerNorm(width), FeedForward(width)

    def forward(self, x: Tensor, sources: Sources) -> Tensor:
        """[N, L, C] -> [N, L, C]"""
        read = self.norm1(x)
        if sources.bank is not None and self.reads >= 0:
            sources.bank.append(read)
        if self.last:
            return x
        keys, values = self.attn1.project(read)
        if sources.reference and self.reads >= 0:
            kept_here = sources.reference[self.reads]
            more = [_each_frame(kept, sources.frames) if sources.reads is None else kept[sources.reads] for kept in kept_here]
            keys, values = torch.cat([keys, more[0]], 1), torch.cat([values, more[1]], 1)
        x = x + self.attn1(read, keys, values)
        if sources.identity:
            keys, values = (_each_frame(kept, sources.frames) for kept in sources.identity[self.index])
            # Attention to a single token is that token, whatever the query.
            x = x + (self.attn2.out(values) if values.shape[1] == 1 else self.attn2(self.norm2(x), keys, values))
        if sources.speech is not None and self.second:
            x = x + self.second * self.attn2(self.norm2(x), *self.attn2.project(sources.speech))
        if sources.speech is not None and self.third:
            x = x + self.attn_speech(self.norm_speech(x), *self.attn_speech.project(sources.speech))
        made: Tensor = x + self.ff(self.norm3(x))
        return made


class SpatialTransformer(nn.Module):
    """A picture's cells as tokens, one block, and back (projections are 1 x 1 convolutions, as in Stable Diffusion 1.5)."""

    def __init__(
        self, width: int, heads: int, groups: int, *, image_dim: int, speech_dim: int, index: int, second: float = 0.0, face_dim: int = 0
    ) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.proj_in = nn.Conv2d(width, width, 1)
        block = SpatialBlock(width, heads, image_dim=image_dim, speech_dim=speech_dim, index=index, second=second, face_dim=face_dim)
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, sources: Sources) -> Tensor:
        """[N, C, h, w] -> [N, C, h, w]"""
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        tokens = self.transformer_blocks[0](tokens, sources)
        if self.transformer_blocks[0].last:
            return x
        made: Tensor = x + self.proj_out(tokens.transpose(1, 2).unflatten(2, x.shape[2:]))
        return made

    def cut(self) -> None:
        """Let go of all that comes after the place where the block is read."""
        block = self.transformer_blocks[0]
        block.last = True
        del self.proj_out, block.attn1, block.norm2, block.attn2, block.norm3, block.ff


def _each_frame(kept: Tensor, frames: int) -> Tensor:
    """[B, L, C] -> [B * frames, L, C]"""
    return kept if frames == 1 else kept.repeat_interleave(frames, 0)


__all__ = ["FeedForward", "Heads", "KeyValue", "Projections", "Recognising", "Sources", "SpatialBlock", "SpatialTransformer"]
