"""Cross-attention to a person beside the text's: keys and values are computed once, and a denoiser's block only reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from engine.types import AvatarError
from exporters.portraits.contract import Added

CROSS = "attn2.processor"
"""How the names of cross-attentions end."""


class Decoupled:
    """An attention processor of diffusers: the text's attention, and a person's mixed into it before the output projection."""

    def __init__(self, added: Added) -> None:
        self.added = added

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """[B, N, C] and text [B, 77, C'] -> [B, N, C]. B is 2 (unconditional, conditional) or 1 (conditional)."""
        q, k, v = attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        rows = slice(None) if len(q) == 2 else slice(1, 2)
        heads = [x.to(q.dtype).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (q, k, v, self.added.k[rows], self.added.v[rows])]
        text = functional.scaled_dot_product_attention(*heads[:3]).transpose(1, 2).flatten(2)
        whose = {} if self.added.route is None else {"whose": self.added.route(hidden_states, rows)}
        mixed = self.added.mix(text, heads[0], heads[3], heads[4], **whose)
        out: Tensor = attn.to_out[1](attn.to_out[0](mixed)) / attn.rescale_output_factor
        return out


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Heads [B, H, N, d] -> [B, N, H * d]."""
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def plus(scale: float) -> Any:
    """IP-Adapter's mix: the person's result is added."""

    def mix(text: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return text + scale * attend(q, k, v)

    return mix


def routed(scale: float, people: int) -> Any:
    """UniPortrait's mix for several: each pixel attends to each person's tokens, and takes the result of the one whose it is."""

    def mix(text: Tensor, q: Tensor, k: Tensor, v: Tensor, *, whose: Tensor) -> Tensor:
        each = [x.unflatten(2, (people, -1)).transpose(1, 2) for x in (k, v)]
        found = functional.scaled_dot_product_attention(q[:, None].expand(-1, people, -1, -1, -1), *each).transpose(2, 3).flatten(3)
        return text + scale * (whose * found).sum(1)

    return mix


def keys_and_values(unet: Any, held: Mapping[str, Tensor], tokens: Tensor, *, names: tuple[str, str], mix: Any, what: str) -> dict[str, Added]:
    """For every cross-attention of a UNet its `Added`, from `{i}.{name}.weight`, where i is its place in `unet.attn_processors`.

    Those are in the order of diffusers' attributes, down, up and mid, which is not that of the computation. Raises AvatarError where the
    weights are for another UNet.
    """
    made = {}
    for i, processor in enumerate(unet.attn_processors):
        if not processor.endswith(CROSS):
            continue
        weights = [held.get(f"{i}.{name}.weight") for name in names]
        attn = unet.get_submodule(processor.removesuffix(".processor"))
        wanted = tuple(attn.to_k.weight.shape)
        if any(weight is None or tuple(weight.shape) != wanted for weight in weights):
            found = [None if weight is None else list(weight.shape) for weight in weights]
            raise AvatarError(f"{what} does not fit this base: block {i} ({processor}) needs {list(wanted)} and it has {found}; use its own base.")
        k, v = (tokens.to(unet.device, unet.dtype) @ weight.to(unet.device, unet.dtype).T for weight in weights if weight is not None)
        made[processor] = Added(k, v, mix)
    most = 1 + max(int(key.split(".")[0]) for key in held)
    if most > len(unet.attn_processors):
        raise AvatarError(f"{what} is for a larger base ({most} attentions, this one has {len(unet.attn_processors)}); use its own base.")
    return made


def low_rank(unet: Any, held: Mapping[str, Tensor], *, what: str) -> dict[str, tuple[Tensor, Tensor, float]]:
    """`{i}.to_{q,k,v,out}_lora.{down,up}.weight` by the same places -> weights of the UNet and the product that is added to each, times 1.

    Raises AvatarError where one is missing or fits no weight.
    """
    made = {}
    for i, processor in enumerate(unet.attn_processors):
        attention = processor.removesuffix(".processor")
        for part, name in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("out", "to_out.0")):
            up, down = (held.get(f"{i}.to_{part}_lora.{side}.weight") for side in ("up", "down"))
            weight = unet.get_submodule(f"{attention}.{name}").weight
            if up is None or down is None or (up.shape[0], down.shape[1]) != tuple(weight.shape) or up.shape[1] != down.shape[0]:
                raise AvatarError(f"{what} has no LoRA that fits block {i} ({attention}.{name}); use the base it was made for.")
            made[f"{attention}.{name}.weight"] = (up, down, 1.0)
    return made


def add_low_rank(unet: Any, weights: Mapping[str, tuple[Tensor, Tensor, float]]) -> None:
    """Add the products to a UNet's weights, in fp32. There is no way back but loading it again: taking them off would leave rounding behind."""
    held = dict(unet.named_parameters())
    with torch.no_grad():
        for name, (up, down, factor) in weights.items():
            weight = held[name]
            product = factor * (up.float().flatten(1) @ down.float().flatten(1))
            weight += product.reshape(weight.shape).to(weight.device, weight.dtype)


__all__ = ["CROSS", "Decoupled", "add_low_rank", "attend", "keys_and_values", "low_rank", "plus", "routed"]
