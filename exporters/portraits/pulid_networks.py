"""PuLID's networks (Guo et al. 2024, arXiv 2404.16022) under the published names of their weights, built from the shapes of their own file.

v1 turns what was seen of a face into ten tokens by perceptrons; v1.1 and FLUX let learnt queries look at it, five depths of the image encoder
one after another. FLUX reads the tokens by attentions of their own between its blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.types import AvatarError
from exporters.portraits.projectors import HEAD, layers

DEPTHS = 5
"""Layers of the image encoder that are looked at, and tokens that the pooled vectors become."""
FLUX_HEAD = 128
"""Channels a head of the attentions between FLUX's blocks."""

Held = Mapping[str, Tensor]


def perceptron(held: Held, name: str) -> nn.Sequential:
    """Linear, LayerNorm, LeakyReLU twice, and a Linear."""
    (first, inputs), second, outputs = held[f"{name}.0.weight"].shape, held[f"{name}.3.weight"].shape[0], held[f"{name}.6.weight"].shape[0]
    return nn.Sequential(
        nn.Linear(inputs, first), nn.LayerNorm(first), nn.LeakyReLU(),
        nn.Linear(first, second), nn.LayerNorm(second), nn.LeakyReLU(),
        nn.Linear(second, outputs),
    )  # fmt: skip


class IdEncoder(nn.Module):
    """v1: a face's vector and pooled embedding [B, C], and five depths [B, 1 + patches, D] each -> [B, 10, width]."""

    def __init__(self, held: Held) -> None:
        super().__init__()
        self.body = perceptron(held, "body")
        for i in range(DEPTHS):
            self.add_module(f"mapping_{i}", perceptron(held, f"mapping_{i}"))
            self.add_module(f"mapping_patch_{i}", perceptron(held, f"mapping_patch_{i}"))
        self.reads = int(held["body.0.weight"].shape[1])
        self.sees = int(held["mapping_0.0.weight"].shape[1])

    def forward(self, x: Tensor, seen: Sequence[Tensor]) -> Tensor:
        first = self.body(x).unflatten(-1, (DEPTHS, -1))
        second = [
            self.get_submodule(f"mapping_{i}")(depth[:, :1]) + self.get_submodule(f"mapping_patch_{i}")(depth[:, 1:]).mean(1, keepdim=True)
            for i, depth in enumerate(seen)
        ]
        return torch.cat([first, *second], 1)


class IdFormer(nn.Module):
    """v1.1 and FLUX: one vector a photo [B, photos, C], and five depths [B, photos * (1 + patches), D] -> [B, queries, width]."""

    def __init__(self, held: Held) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.empty(held["latents"].shape))
        self.proj_out = nn.Parameter(torch.empty(held["proj_out"].shape))
        self.width = int(held["latents"].shape[2])
        self.layers = layers(held, "", width=self.width, head=HEAD)
        self.id_embedding_mapping = perceptron(held, "id_embedding_mapping")
        for i in range(DEPTHS):
            self.add_module(f"mapping_{i}", perceptron(held, f"mapping_{i}"))
        self.reads = int(held["id_embedding_mapping.0.weight"].shape[1])
        self.sees = int(held["mapping_0.0.weight"].shape[1])

    def forward(self, x: Tensor, seen: Sequence[Tensor]) -> Tensor:
        person = self.id_embedding_mapping(x).reshape(len(x), -1, self.width)
        latents = torch.cat([self.latents.expand(len(x), -1, -1), person], 1)
        each = len(self.layers) // DEPTHS
        for i, depth in enumerate(seen):
            features = torch.cat([person, self.get_submodule(f"mapping_{i}")(depth)], 1)
            for attention, forward in list(self.layers)[i * each : (i + 1) * each]:
                latents = latents + attention(features, latents)
                latents = latents + forward(latents)
        tokens: Tensor = latents[:, : self.latents.shape[1]] @ self.proj_out
        return tokens


class Between(nn.Module):
    """FLUX's picture tokens [B, N, C] look at a person's tokens [B, tokens, C']; the latters' keys and values are computed once."""

    def __init__(self, held: Held, prefix: str) -> None:
        super().__init__()
        inner, width = held[f"{prefix}to_q.weight"].shape
        tokens = held[f"{prefix}to_kv.weight"].shape[1]
        self.norm1, self.norm2 = nn.LayerNorm(tokens), nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(tokens, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def remembered(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """A person's tokens -> keys and values [B, heads, tokens, 128]."""
        k, v = (x.unflatten(-1, (-1, FLUX_HEAD)).transpose(1, 2) for x in self.to_kv(self.norm1(tokens)).chunk(2, -1))
        return k, v

    def forward(self, picture: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """-> what is added to the picture's tokens."""
        q = self.to_q(self.norm2(picture)).unflatten(-1, (-1, FLUX_HEAD)).transpose(1, 2)
        made: Tensor = self.to_out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return made


def encoder(held: Held, name: str) -> IdEncoder | IdFormer:
    """The one that the keys are of, without weights. Raises AvatarError, one sentence, where they are of neither."""
    try:
        return IdFormer(held) if "latents" in held else IdEncoder(held)
    except (KeyError, ValueError) as error:
        raise AvatarError(f"{name} lacks tensors of PuLID's encoder (such as {error}); get the published file again.") from error


def betweens(held: Held, name: str) -> nn.ModuleList:
    """FLUX's attentions `{i}.to_q.weight` and so on, without weights. Raises AvatarError, one sentence, where one is not whole."""
    count = 1 + max((int(key.split(".")[0]) for key in held if key.split(".")[0].isdigit()), default=-1)
    try:
        return nn.ModuleList(Between(held, f"{i}.") for i in range(count))
    except (KeyError, ValueError) as error:
        raise AvatarError(f"{name} lacks tensors of PuLID's attentions (such as {error}); get the published file again.") from error


__all__ = ["DEPTHS", "FLUX_HEAD", "Between", "IdEncoder", "IdFormer", "betweens", "encoder", "perceptron"]
