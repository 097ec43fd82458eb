"""Small networks that turn what an encoder saw of a face into tokens of the denoiser's width, under the published names of their weights.

The perceiver is Flamingo's (Alayrac et al. 2022, arXiv 2204.14198) as IP-Adapter (arXiv 2308.06721), InstantID and PhotoMaker have it. Every
network is built from the shapes of its own checkpoint, so that a size that nobody published loads too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from engine.types import AvatarError

HEAD = 64
"""Channels a head of every perceiver but PhotoMaker's."""

Held = Mapping[str, Tensor]


class Perceiver(nn.Module):
    """Latents [B, L, D] look at features [B, N, D] and at themselves."""

    def __init__(self, width: int, inner: int, head: int = HEAD) -> None:
        super().__init__()
        self.head = head
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, features: Tensor, latents: Tensor) -> Tensor:
        """-> what is added to the latents."""
        features, latents = self.norm1(features), self.norm2(latents)
        k, v = self.to_kv(torch.cat((features, latents), 1)).chunk(2, -1)
        q, k, v = (x.unflatten(-1, (-1, self.head)).transpose(1, 2) for x in (self.to_q(latents), k, v))
        # Each half of the scale before the product, and the softmax in fp32: that is how fp16 weights were trained.
        scale = self.head**-0.25
        shares = ((q * scale) @ (k * scale).transpose(-2, -1)).float().softmax(-1).to(v.dtype)
        mixed: Tensor = self.to_out((shares @ v).transpose(1, 2).flatten(2))
        return mixed


def feed_forward(width: int, inner: int) -> nn.Sequential:
    """As every perceiver has it, without biases but the norm's."""
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, inner, bias=False), nn.GELU(), nn.Linear(inner, width, bias=False))


def layers(held: Held, prefix: str, *, width: int, head: int = HEAD) -> nn.ModuleList:
    """[attention, feed-forward] for each `{prefix}layers.{i}` of a checkpoint."""
    depth = 0
    while f"{prefix}layers.{depth}.0.to_q.weight" in held:
        depth += 1
    made = []
    for i in range(depth):
        inner = held[f"{prefix}layers.{i}.0.to_q.weight"].shape[0]
        wide = held[f"{prefix}layers.{i}.1.1.weight"].shape[0]
        made.append(nn.ModuleList([Perceiver(width, inner, head), feed_forward(width, wide)]))
    return nn.ModuleList(made)


class Resampler(nn.Module):
    """Learnt latents look at features: IP-Adapter-plus and InstantID. `x` [B, N, C] -> [B, queries, width]."""

    def __init__(self, held: Held) -> None:
        super().__init__()
        width = held["latents"].shape[2]
        self.latents = nn.Parameter(torch.empty(held["latents"].shape))
        self.proj_in = nn.Linear(held["proj_in.weight"].shape[1], width)
        self.proj_out = nn.Linear(width, held["proj_out.weight"].shape[0])
        self.norm_out = nn.LayerNorm(held["proj_out.weight"].shape[0])
        self.layers = layers(held, "", width=width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj_in(x)
        latents = self.latents.expand(len(x), -1, -1)
        for attention, forward in self.layers:
            latents = latents + attention(x, latents)
            latents = latents + forward(latents)
        tokens: Tensor = self.norm_out(self.proj_out(latents))
        return tokens


class Retriever(nn.Module):
    """The same with latents that are given: FaceID-Plus and PhotoMaker v2."""

    def __init__(self, held: Held, prefix: str, *, head: int = HEAD) -> None:
        super().__init__()
        width, features = held[f"{prefix}proj_in.weight"].shape
        self.proj_in = nn.Linear(features, width)
        self.proj_out = nn.Linear(width, held[f"{prefix}proj_out.weight"].shape[0])
        self.norm_out = nn.LayerNorm(held[f"{prefix}proj_out.weight"].shape[0])
        self.layers = layers(held, prefix, width=width, head=head)

    def forward(self, latents: Tensor, x: Tensor) -> Tensor:
        x = self.proj_in(x)
        for attention, forward in self.layers:
            latents = latents + attention(x, latents)
            latents = latents + forward(latents)
        tokens: Tensor = self.norm_out(self.proj_out(latents))
        return tokens


class Linear(nn.Module):
    """IP-Adapter: a pooled embedding [B, C] -> [B, tokens, width]."""

    def __init__(self, held: Held) -> None:
        super().__init__()
        self.width = held["norm.weight"].shape[0]
        self.proj = nn.Linear(held["proj.weight"].shape[1], held["proj.weight"].shape[0])
        self.norm = nn.LayerNorm(self.width)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.norm(self.proj(x).unflatten(-1, (-1, self.width)))
        return tokens


class Pointwise(nn.Module):
    """IP-Adapter-full-face: each token of the encoder [B, N, C] -> [B, N, width]."""

    def __init__(self, held: Held) -> None:
        super().__init__()
        inner, features = held["proj.0.weight"].shape
        width = held["proj.2.weight"].shape[0]
        self.proj = nn.Sequential(nn.Linear(features, inner), nn.GELU(), nn.Linear(inner, width), nn.LayerNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.proj(x)
        return tokens


class Mlp(nn.Module):
    """FaceID: a face's vector [B, C] -> [B, tokens, width]."""

    def __init__(self, held: Held) -> None:
        super().__init__()
        self.width = held["norm.weight"].shape[0]
        inner, features = held["proj.0.weight"].shape
        self.proj = nn.Sequential(nn.Linear(features, inner), nn.GELU(), nn.Linear(inner, held["proj.2.weight"].shape[0]))
        self.norm = nn.LayerNorm(self.width)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.norm(self.proj(x).unflatten(-1, (-1, self.width)))
        return tokens


class MlpPlus(Mlp):
    """FaceID-Plus: those tokens retrieve from CLIP's [B, N, C]. `shortcut`: V2, and nothing in the file says so."""

    def __init__(self, held: Held) -> None:
        super().__init__(held)
        self.perceiver_resampler = Retriever(held, "perceiver_resampler.")

    def forward(self, x: Tensor, seen: Tensor, *, shortcut: bool, scale: float = 1.0) -> Tensor:  # type: ignore[override]
        tokens = super().forward(x)
        found: Tensor = self.perceiver_resampler(tokens, seen)
        return tokens + scale * found if shortcut else found


class Perceptron(nn.Module):
    """LayerNorm, Linear, GELU, Linear, and the input added where `residual`."""

    def __init__(self, inputs: int, width: int, *, residual: bool) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(inputs)
        self.fc1, self.fc2 = nn.Linear(inputs, width), nn.Linear(width, width)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.fc2(nn.functional.gelu(self.fc1(self.layernorm(x))))
        return x + made if self.residual else made


class Fuse(nn.Module):
    """PhotoMaker and ConsistentID: a text's tokens and a person's [N, width] each -> what takes the text's place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp1, self.mlp2 = Perceptron(2 * width, width, residual=False), Perceptron(width, width, residual=True)
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, text: Tensor, person: Tensor) -> Tensor:
        fused: Tensor = self.layer_norm(self.mlp2(self.mlp1(torch.cat([text, person], -1)) + text))
        return fused


def loaded(made: Any, held: Held, name: str) -> Any:
    """A network with its weights, strictly, in fp32, ready to run. Raises AvatarError, one sentence, for keys that do not fit."""
    wanted = {key: tuple(value.shape) for key, value in made.state_dict().items()}
    missing = sorted(set(wanted) - set(held))
    more = sorted(set(held) - set(wanted))
    unfit = sorted(key for key in set(wanted) & set(held) if tuple(held[key].shape) != wanted[key])
    for word, keys in (("lacks", missing), ("has beside what is known", more), ("has in another shape", unfit)):
        if keys:
            raise AvatarError(f"{name} {word} {len(keys)} tensors (first '{keys[0]}'); get the published file again.")
    made.load_state_dict({key: value.float() for key, value in held.items()})
    return made.eval().requires_grad_(False)


__all__ = [
    *("HEAD", "Fuse", "Linear", "Mlp", "MlpPlus", "Perceiver", "Perceptron", "Pointwise", "Resampler", "Retriever"),
    *("feed_forward", "layers", "loaded"),
]
