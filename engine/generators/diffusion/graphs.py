"""The denoiser as every backend sees it: tensors in, tensors out, nothing hidden. The single truth for export and parity checks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.generators.diffusion.attention import Sources
from engine.generators.diffusion.budget import block_shapes, ring_shapes, slots
from engine.generators.diffusion.networks import Networks
from engine.generators.diffusion.temporal import Places, Window
from engine.generators.diffusion.tokens import SPEECH_TOKENS
from engine.types import GraphSpec

Shapes = dict[str, tuple[tuple[int, ...], str]]


def denoiser_inputs(networks: Networks, rows: int, *, identity_tokens: int = 1, dtype: str = "float32") -> Shapes:
    """Name -> (shape, dtype) of one denoising step for `rows` sessions, in the order of the call."""
    made = networks.preset
    unet, (h, w), pictures = made.unet, made.latent_size, rows * made.chunk
    shapes: Shapes = {
        "x": ((pictures, unet.in_channels, h, w), dtype),
        "level": ((pictures,), "float32"),
        "hint": ((pictures, unet.channels[0], h, w), dtype),
        "position": ((rows, made.chunk, slots(made) + made.chunk), "int64"),
        "visible": ((rows, made.chunk, slots(made) + made.chunk), "bool"),
    }
    if unet.speech_dim:
        shapes["speech"] = ((pictures, SPEECH_TOKENS, unet.speech_dim), dtype)
    for i, (width, cells) in enumerate(block_shapes(made)):
        shapes |= {f"reference.{i}.{part}": ((rows, cells, width), dtype) for part in "kv"}
        if unet.image_dim:
            shapes |= {f"identity.{i}.{part}": ((rows, identity_tokens, width), dtype) for part in "kv"}
    for i, (width, cells) in enumerate(ring_shapes(made)):
        shapes |= {f"ring.{i}.{part}": ((rows, cells, unet.heads, slots(made), width // unet.heads), dtype) for part in "kv"}
    return shapes


def denoiser_spec(networks: Networks, rows: int = 1) -> GraphSpec:
    """The graph of one step. `position` and `visible` are those of `temporal.places`.

    Out come `answer`, then what every ring grows by, [rows, c, cells, heads, d].
    """
    outputs = ["answer", *(f"new.{i}.{part}" for i in range(len(ring_shapes(networks.preset))) for part in "kv")]
    inputs = denoiser_inputs(networks, rows)
    return GraphSpec(f"{networks.preset.name} denoiser", inputs, tuple(outputs), lambda: DenoiserGraph(networks, tuple(inputs)))


class DenoiserGraph(nn.Module):
    """The denoiser with a flat signature."""

    def __init__(self, networks: Networks, names: tuple[str, ...]) -> None:
        super().__init__()
        self.denoiser, self._preset, self._names = networks.denoiser, networks.preset, names

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """In the order of `denoiser_inputs` -> in the order of the spec's outputs."""
        given = dict(zip(self._names, tensors, strict=True))
        made = self._preset

        def pairs(kind: str) -> list[tuple[Tensor, Tensor]]:
            count = sum(name.startswith(f"{kind}.") for name in self._names) // 2
            return [(given[f"{kind}.{i}.k"], given[f"{kind}.{i}.v"]) for i in range(count)]

        position = given["position"].clamp(0, made.window - 1)
        at = Places(torch.full_like(position[:, :, 0], made.window - 1), position, ~given["visible"])
        window = Window(at, made.window, made.chunk, pairs("ring"), {})
        sources = Sources(made.chunk, pairs("reference"), pairs("identity"), speech=given.get("speech"))
        answer = self.denoiser(given["x"], given["level"], given["hint"], sources, window)
        return (answer, *(x for i in sorted(window.new) for x in window.new[i]))


__all__ = ["DenoiserGraph", "denoiser_inputs", "denoiser_spec"]
