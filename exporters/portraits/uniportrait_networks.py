"""UniPortrait's networks (He et al. 2024, arXiv 2408.05939) under the published names of their weights, built from the shapes of their own files.

The recogniser is CurricularFace's (Huang et al. 2020, arXiv 2004.00288) as TFace builds it; its inner maps are read, and its vector tells whose
face in a picture of several people is whose.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.types import AvatarError
from exporters.portraits.projectors import Perceiver, feed_forward, loaded

SIDE = 112
"""px of a face that is recognised."""
LAST = 7
"""px of the last of its maps."""
COUNTED = "num_batches_tracked"
LORA, ROUTER = "_lora.", "router."

Held = Mapping[str, Tensor]


class Residual(nn.Module):
    """[B, C, H, W] -> [B, C', H / stride, W / stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        if inputs != outputs:
            self.shortcut_layer = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.res_layer(x) + self.shortcut_layer(x)
        return made


class Recogniser(nn.Module):
    """Aligned faces [B, 3, 112, 112] RGB -1..1 -> (vectors [B, D], the last map of each stage, the largest first)."""

    def __init__(self, held: Held) -> None:
        super().__init__()
        first = held["input_layer.0.weight"].shape[0]
        self.input_layer = nn.Sequential(nn.Conv2d(3, first, 3, 1, 1, bias=False), nn.BatchNorm2d(first), nn.PReLU(first))
        blocks: list[nn.Module] = []
        self.ends: list[int] = []
        while (key := f"body.{len(blocks)}.res_layer.1.weight") in held:
            outputs, inputs = held[key].shape[:2]
            # A stage begins where channels change, and the first at once; it is its first block that halves the map.
            begins = not blocks or inputs != outputs
            if begins and blocks:
                self.ends.append(len(blocks) - 1)
            blocks.append(Residual(inputs, outputs, 2 if begins else 1))
        self.ends.append(len(blocks) - 1)
        self.body = nn.Sequential(*blocks)
        last, length = blocks[-1].res_layer[5].num_features, held["output_layer.3.weight"].shape[0]
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(last), nn.Dropout(), nn.Flatten(), nn.Linear(last * LAST**2, length), nn.BatchNorm1d(length, affine=False)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self.input_layer(x)
        maps = []
        for k, block in enumerate(self.body):
            x = block(x)
            if k in self.ends:
                maps.append(x)
        return self.output_layer(x), maps


class FaceResampler(nn.Module):
    """Learnt latents look at who it is [B, N, C] and, as strongly as `structure` says, at the face's form [B, M, C'] -> [B, queries, width]."""

    def __init__(self, held: Held) -> None:
        super().__init__()
        queries = held["latents"]
        width = queries.shape[2]
        self.latents = nn.Parameter(torch.empty(queries.shape))
        self.proj_id, self.proj_clip = (self._perceptron(held, name) for name in ("proj_id", "proj_clip"))
        made: list[nn.Module] = []
        while (key := f"layers.{len(made)}.0.to_q.weight") in held:
            inner, wide = held[key].shape[0], held[f"layers.{len(made)}.2.1.weight"].shape[0]
            made.append(nn.ModuleList([Perceiver(width, inner), Perceiver(width, inner), feed_forward(width, wide)]))
        self.layers = nn.ModuleList(made)
        self.proj_out = nn.Linear(width, held["proj_out.weight"].shape[0])
        self.norm_out = nn.LayerNorm(held["proj_out.weight"].shape[0])

    @staticmethod
    def _perceptron(held: Held, name: str) -> nn.Sequential:
        inner, inputs = held[f"{name}.0.weight"].shape
        return nn.Sequential(nn.Linear(inputs, inner), nn.GELU(), nn.Linear(inner, held[f"{name}.2.weight"].shape[0]))

    def forward(self, who: Tensor, form: Tensor, *, structure: float) -> Tensor:
        who, form = self.proj_id(who), self.proj_clip(form)
        latents = self.latents.expand(len(who), -1, -1)
        for to_who, to_form, forward in self.layers:
            latents = latents + to_who(who, latents)
            latents = latents + structure * to_form(form, latents)
            latents = latents + forward(latents)
        tokens: Tensor = self.norm_out(self.proj_out(latents))
        return tokens


class Router(nn.Module):
    """Of one attention: whose a pixel is, by what it is now and the people's tokens."""

    def __init__(self, held: Held) -> None:
        super().__init__()
        self.to_q_router, self.to_k_router = (self._perceptron(held, name) for name in ("to_q_router", "to_k_router"))
        self.aggr_router = nn.Linear(held["aggr_router.weight"].shape[1], 1)

    @staticmethod
    def _perceptron(held: Held, name: str) -> nn.Sequential:
        inner, inputs = held[f"{name}.0.weight"].shape
        return nn.Sequential(nn.Linear(inputs, inner), nn.GELU(), nn.Linear(inner, held[f"{name}.2.weight"].shape[0], bias=False))

    def keys(self, tokens: Tensor) -> Tensor:
        """Tokens [B, people, queries, width] -> [B, people, channels]."""
        made: Tensor = self.to_k_router(self.aggr_router(tokens.transpose(-1, -2)).squeeze(-1))
        return made

    def forward(self, hidden: Tensor, keys: Tensor) -> Tensor:
        """The block's input [B, N, channels] and `keys` -> [B, people, N, 1]: 1 for one person, 0 for the others."""
        logits = self.to_q_router(hidden) @ keys.transpose(-1, -2)
        return functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(hidden.dtype).transpose(1, 2)[..., None]


def recogniser(held: Held, name: str) -> Recogniser:
    """The network of its weights. Raises AvatarError where they are another's."""
    if not {"input_layer.0.weight", "body.0.res_layer.1.weight", "output_layer.3.weight"} <= set(held):
        raise AvatarError(f"{name} is no CurricularFace; give UniPortrait's glint360k_curricular_face_r101_backbone.bin with --recogniser.")
    made = Recogniser(held)
    # What counts the batches of training is in some files and not in others, and nothing reads it.
    counters = {key: value for key, value in made.state_dict().items() if key.endswith(COUNTED)}
    network: Recogniser = loaded(made, {**counters, **held}, name)
    return network


def recognised(network: Recogniser, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Faces [B, 3, h, w] RGB 0..1 -> as the network gives it."""
    x = functional.interpolate((2 * pixels - 1).clamp(-1, 1), (SIDE, SIDE), mode="bilinear", align_corners=False)
    made: tuple[Tensor, list[Tensor]] = network(x)
    return made


__all__ = ["LORA", "ROUTER", "FaceResampler", "Recogniser", "Router", "recognised", "recogniser"]
