"""EVA-02-CLIP's image encoder (Sun et al. 2023, arXiv 2303.15389) with the layers' inputs that PuLID looks at, from EVA's own file.

A vision transformer with rotary positions on a grid beside learnt ones, a gated perceptron, and norms inside attention and perceptron.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.types import AvatarError
from exporters import files
from exporters.portraits.projectors import loaded

PART = "visual."
HEAD = 64
"""Channels a head."""
EPS = 1e-6
TRAINED_GRID = 16
"""Patches a side that the rotary positions were trained with; other grids are stretched onto it (224 px of 14)."""
THETA = 10000.0
LOOKED_AT = (4, 8, 12, 16, 20)
"""Blocks whose inputs PuLID takes, of 24."""
STEMS = ("EVA02_CLIP_L_336_psz14_s6B",)

Held = Mapping[str, Tensor]


def angles(grid: int, head: int) -> Tensor:
    """[grid * grid, head] rotary angles: the first half of a head's channels turn with the row, the others with the column, by pairs."""
    rates = THETA ** -(torch.arange(0, head // 2, 2).float() / (head // 2))
    places = torch.arange(grid) / grid * TRAINED_GRID
    turned = torch.outer(places, rates).repeat_interleave(2, 1)
    rows, columns = turned[:, None].expand(-1, grid, -1), turned[None].expand(grid, -1, -1)
    return torch.cat([rows, columns], -1).flatten(0, 1)


def rotated(x: Tensor, turn: Tensor) -> Tensor:
    """Heads [B, H, 1 + patches, d]: neighbouring channels of all but the first token turned by [patches, d]."""
    first, rest = x[:, :, :1], x[:, :, 1:]
    crossed = torch.stack([-rest[..., 1::2], rest[..., ::2]], -1).flatten(-2)
    return torch.cat([first, rest * turn.cos() + crossed * turn.sin()], 2)


class Attention(nn.Module):
    """Self-attention with rotary positions, and a norm before the output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.q_bias, self.v_bias = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))
        self.inner_attn_ln = nn.LayerNorm(width, eps=EPS)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:
        q, k, v = self.q_proj(x) + self.q_bias, self.k_proj(x), self.v_proj(x) + self.v_bias
        q, k, v = (x.unflatten(-1, (-1, HEAD)).transpose(1, 2) for x in (q, k, v))
        mixed = functional.scaled_dot_product_attention(rotated(q, turn), rotated(k, turn), v).transpose(1, 2).flatten(2)
        made: Tensor = self.proj(self.inner_attn_ln(mixed))
        return made


class Gated(nn.Module):
    """A perceptron whose one half opens the other, and a norm before the output."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(width, inner), nn.Linear(width, inner), nn.Linear(inner, width)
        self.ffn_ln = nn.LayerNorm(inner, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.w3(self.ffn_ln(functional.silu(self.w1(x)) * self.w2(x)))
        return made


class Block(nn.Module):
    """Attention and perceptron, each after a norm and added to what goes in."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=EPS), nn.LayerNorm(width, eps=EPS)
        self.attn, self.mlp = Attention(width), Gated(width, inner)

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), turn)
        made: Tensor = x + self.mlp(self.norm2(x))
        return made


class Patches(nn.Module):
    """The picture cut into squares."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, pixels: Tensor) -> Tensor:
        made: Tensor = self.proj(pixels).flatten(2).transpose(1, 2)
        return made


class EvaClip(nn.Module):
    """Pixels [B, 3, side, side] -> (embedding [B, D], inputs of the LOOKED_AT blocks [B, 1 + patches, width] each)."""

    def __init__(self, held: Held) -> None:
        super().__init__()
        _, places, width = held["pos_embed"].shape
        patch, grid = int(held["patch_embed.proj.weight"].shape[-1]), round((places - 1) ** 0.5)
        depth = 1 + max(int(key.split(".")[1]) for key in held if key.startswith("blocks."))
        self.side, self.width = grid * patch, int(width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, places, width))
        self.patch_embed = Patches(width, patch)
        self.blocks = nn.ModuleList(Block(width, held[f"blocks.{i}.mlp.w1.weight"].shape[0]) for i in range(depth))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.head = nn.Linear(width, held["head.weight"].shape[0])
        self.register_buffer("turn", angles(grid, HEAD), persistent=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = torch.cat([self.cls_token.expand(len(pixels), -1, -1), self.patch_embed(pixels)], 1) + self.pos_embed
        seen = []
        for i, block in enumerate(self.blocks):
            if i in LOOKED_AT:
                seen.append(x)
            x = block(x, self.turn)
        return self.head(self.norm(x)[:, 0]), seen


def open_eva(path: Path, *, device: str = "cpu") -> EvaClip:
    """EVA02_CLIP_L_336_psz14_s6B.pt, in fp32; what it holds of text and of computed positions is left. Raises AvatarError where it is another."""
    whole = files.read(path)
    held = {key.removeprefix(PART): value for key, value in whole.items() if key.startswith(PART) and ".rope." not in f".{key}"}
    needed = ("pos_embed", "patch_embed.proj.weight", "head.weight", "blocks.0.attn.q_proj.weight", f"blocks.{LOOKED_AT[-1]}.mlp.w1.weight")
    if any(key not in held for key in needed):
        raise AvatarError(f"{path} is not the image encoder that PuLID reads; give {STEMS[0]}.pt of EVA-02-CLIP.")
    try:
        made = EvaClip(held)
    except KeyError as error:
        raise AvatarError(f"{path} lacks {error} and more; download {STEMS[0]}.pt again.") from error
    network: EvaClip = loaded(made, held, path.name).to(device)
    return network


__all__ = ["HEAD", "LOOKED_AT", "STEMS", "EvaClip", "angles", "open_eva", "rotated"]
