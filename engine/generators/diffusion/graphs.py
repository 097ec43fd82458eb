"""Every network of the generator as a backend sees it: tensors in, tensors out, nothing hidden. The single truth for export and parity checks.

`graphs(recipe)` lists what a persona needs: `remember`, once a portrait, and `step`, the whole of a live chunk in one call.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.generators.diffusion.attention import KeyValue, Sources
from engine.generators.diffusion.autoencoder import to_pixels, to_unit
from engine.generators.diffusion.budget import block_shapes, reading_shapes, ring_shapes, slots
from engine.generators.diffusion.networks import Face, Networks
from engine.generators.diffusion.sampler import Levels, levels
from engine.generators.diffusion.stream import Recipe, heard_and_seen, in_turn, shown
from engine.generators.diffusion.temporal import Placed, Places, Window
from engine.generators.diffusion.tokens import VECTOR
from engine.types import GraphSpec

Shapes = dict[str, tuple[tuple[int, ...], str]]
PARTS = "kv"
"""Keys and values: how the names of their inputs and outputs end."""


def graphs(recipe: Recipe) -> dict[str, GraphSpec]:
    """What a persona needs from its portrait to its picture, by name; one session's row."""
    return {"remember": remember_spec(recipe.networks, recipe.levels.t), "step": step_spec(recipe.networks, len(recipe.levels))}


# -- once a portrait --------------------------------------------------------------------------------------------------------


def remember_spec(networks: Networks, at: Tensor | None = None) -> GraphSpec:
    """`portrait` uint8 [1, H, W, 3] -> `reference.I.k|v` [1, L, C] by spatial block I that reads it (and by the step, one step after another,
    where the preset reads at the steps' levels `at` [S]) and, for presets with tokens, `identity.I.k|v` [1, T, C] by spatial block I. Presets
    that know a face by a recogniser take its `vector` [1, 512] too."""
    made = networks.preset
    counts = {"reference": len(reading_shapes(made, 1 if at is None else len(at))), "identity": len(block_shapes(made)) * bool(made.unet.image_dim)}
    outputs = [f"{kind}.{i}.{part}" for kind, count in counts.items() for i in range(count) for part in PARTS]
    inputs: Shapes = {"portrait": ((1, *made.size, 3), "uint8")}
    if made.recognises:
        inputs["vector"] = ((1, VECTOR), "float32")
    return GraphSpec(f"{made.name} remember", inputs, tuple(outputs), lambda: RememberGraph(networks, at))


class RememberGraph(nn.Module):
    """The reference network and all projections of what it and the identity's tokens say."""

    def __init__(self, networks: Networks, at: Tensor | None = None) -> None:
        super().__init__()
        self.networks, self._at = networks, at

    def forward(self, portrait: Tensor, vector: Tensor | None = None) -> tuple[Tensor, ...]:
        """In the order of the spec's outputs."""
        known = self.networks.known(Face(vector))
        cache = self.networks.cached(*self.networks.read(to_unit(portrait), self._at, vector=vector), known)
        return tuple(x for kept in (cache.reference, cache.identity) for pair in kept for x in pair)


# -- a live chunk -----------------------------------------------------------------------------------------------------------


def step_spec(networks: Networks, steps: int, *, rows: int = 1, rounded: bool = True) -> GraphSpec:
    """The graph of a whole live chunk of c frames for `rows` sessions (N = rows · c pictures), its denoising steps in turn.

    In: `condition` uint8 [N, H, W, K]; `speech` [N, *`Ears.heard`], for presets that listen, and
    `regions` [rows, 3, R] for those that hear in branches; `noise` [c, C, h, w], the stream's own; `where`
    [rows, c, K + c, P] and `bias` [rows, c, K + c], see `temporal.Placed`; `reference.I.k|v` and `identity.I.k|v` of `remember_spec`, for `rows`
    (no key of a single token: attention never looks at it); `ring.S.I.k|v` [rows, cells, heads, K, d], of temporal attention I at step S.
    Out: `picture` uint8 [N, H, W, 3] (with `rounded` false float32 [N, 3, H, W], about -1..1); `magnitude` [rows], no finite number where
    a latent or a pixel was none; `new.S.I.k|v` [rows, c, cells, heads, d], what each ring grows by: `temporal.put_at` says where.
    """
    made = networks.preset
    at = levels(made.noise, steps)
    inputs = step_inputs(networks, steps, rows)
    new = [name.replace("ring", "new") for name in inputs if name.startswith("ring.")]
    name = f"{made.name} {steps}-step"
    return GraphSpec(name, inputs, ("picture", "magnitude", *new), lambda: StepGraph(networks, at, tuple(inputs), rounded=rounded))


def step_inputs(networks: Networks, steps: int, rows: int) -> Shapes:
    """Name -> (shape, dtype) of `step_spec`, in the order of the call."""
    made = networks.preset
    unet, c, keys = made.unet, made.chunk, slots(made) + made.chunk
    shapes: Shapes = {"condition": ((rows * c, *made.size, made.channels), "uint8")}
    if unet.speech_dim:
        shapes["speech"] = ((rows * c, *made.ears.heard), "float32")
    if unet.speech_in == "branches":
        shapes["regions"] = ((rows, 3, made.cells), "float32")
    shapes |= {
        "noise": ((c, unet.in_channels, *made.latent_size), "float32"),
        "where": ((rows, c, keys, made.window), "float32"),
        "bias": ((rows, c, keys), "float32"),
    }
    alone = made.tokens == 1
    kept = _cache_shapes(networks, rows, steps=steps, identity_tokens=made.tokens)
    shapes |= {name: shape for name, shape in kept.items() if not (alone and name.startswith("identity.") and name.endswith(".k"))}
    for s in range(steps):
        shapes |= _ring_shapes(networks, rows, f"ring.{s}")
    return shapes


class StepGraph(nn.Module):
    """A live chunk with a flat signature: what `stream.Step` computes, without a thing that is written in place."""

    def __init__(self, networks: Networks, at: Levels, names: tuple[str, ...], *, rounded: bool) -> None:
        super().__init__()
        self.networks, self._levels, self._names, self._rounded = networks, at, names, rounded

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """In the order of `step_inputs` -> in the order of the spec's outputs."""
        given = dict(zip(self._names, tensors, strict=True))
        networks, made = self.networks, self.networks.preset
        condition, where = given["condition"], given["where"]
        rows = where.shape[0]
        hint, spoken = heard_and_seen(networks, condition, given.get("speech"), torch.float32)
        last = torch.full((rows, made.chunk), made.window - 1, dtype=torch.int64, device=where.device)
        at = Placed(last, where, given["bias"])
        identity = [(given[name[:-1] + "k"] if made.tokens > 1 else given[name], given[name]) for name in self._names if _value(name)]
        sources = Sources(made.chunk, _pairs(given, "reference"), identity, speech=spoken, regions=given.get("regions"))
        rings = [_pairs(given, f"ring.{s}") for s in range(len(self._levels))]
        latents, new = in_turn(networks, self._levels, given["noise"].repeat(rows, 1, 1, 1), hint, sources, rings, at)
        picture = shown(networks, latents, condition)
        magnitude = _magnitude(latents, rows) + _magnitude(picture, rows)
        grown = (x for level in new for i in sorted(level) for x in level[i])
        return (to_pixels(picture) if self._rounded else picture, magnitude, *grown)


def told(pair: KeyValue) -> list[tuple[str, Tensor]]:
    """What the live graph takes of the identity's keys and values [B, T, C] in a block, by the end of the input's name."""
    return [("v", pair[1])] if pair[1].shape[1] == 1 else list(zip(PARTS, pair, strict=True))


def _value(name: str) -> bool:
    """Whether an input is the values of the identity's tokens."""
    return name.startswith("identity.") and name.endswith(".v")


def _magnitude(x: Tensor, rows: int) -> Tensor:
    """[N, C, h, w] -> [rows] mean size of its numbers, axis by axis, so that halves do not overflow."""
    return x.float().abs().mean(3).mean(2).mean(1).unflatten(0, (rows, -1)).mean(1)


# -- one denoising step -----------------------------------------------------------------------------------------------------


def denoiser_inputs(networks: Networks, rows: int, *, dtype: str = "float32") -> Shapes:
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
        shapes["speech"] = ((pictures, made.ears.tokens, unet.speech_dim), dtype)
    if unet.speech_in == "branches":
        shapes["regions"] = ((rows, 3, made.cells), dtype)
    kept = _cache_shapes(networks, rows, identity_tokens=made.tokens, dtype=dtype)
    return shapes | kept | _ring_shapes(networks, rows, "ring", dtype=dtype)


def denoiser_spec(networks: Networks, rows: int = 1) -> GraphSpec:
    """The graph of one step. `position` and `visible` are those of `temporal.places`.

    Out come `answer`, then what every ring grows by, [rows, c, cells, heads, d].
    """
    outputs = ["answer", *(f"new.{i}.{part}" for i in range(len(ring_shapes(networks.preset))) for part in PARTS)]
    inputs = denoiser_inputs(networks, rows)
    return GraphSpec(f"{networks.preset.name} denoiser", inputs, tuple(outputs), lambda: DenoiserGraph(networks, tuple(inputs)))


class DenoiserGraph(nn.Module):
    """The denoiser with a flat signature."""

    def __init__(self, networks: Networks, names: tuple[str, ...]) -> None:
        super().__init__()
        self.networks, self._preset, self._names = networks, networks.preset, names

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """In the order of `denoiser_inputs` -> in the order of the spec's outputs."""
        given = dict(zip(self._names, tensors, strict=True))
        made = self._preset
        position = given["position"].clamp(0, made.window - 1)
        at = Places(torch.full_like(position[:, :, 0], made.window - 1), position, ~given["visible"])
        window = Window(at, made.window, made.chunk, _pairs(given, "ring"), {})
        sources = Sources(made.chunk, _pairs(given, "reference"), _pairs(given, "identity"), speech=given.get("speech"), regions=given.get("regions"))
        answer = self.networks.denoise(given["x"], given["level"], given["hint"], sources, window)
        return (answer, *(x for i in sorted(window.new) for x in window.new[i]))


# -- names and shapes -------------------------------------------------------------------------------------------------------


def _cache_shapes(networks: Networks, rows: int, *, steps: int = 1, identity_tokens: int = 1, dtype: str = "float32") -> Shapes:
    shapes: Shapes = {}
    for i, (width, cells) in enumerate(reading_shapes(networks.preset, steps)):
        shapes |= {f"reference.{i}.{part}": ((rows, cells, width), dtype) for part in PARTS}
    for i, (width, _) in enumerate(block_shapes(networks.preset)):
        if networks.preset.unet.image_dim:
            shapes |= {f"identity.{i}.{part}": ((rows, identity_tokens, width), dtype) for part in PARTS}
    return shapes


def _ring_shapes(networks: Networks, rows: int, kind: str, *, dtype: str = "float32") -> Shapes:
    made = networks.preset
    heads = made.unet.heads
    shapes: Shapes = {}
    for i, (width, cells) in enumerate(ring_shapes(made)):
        shapes |= {f"{kind}.{i}.{part}": ((rows, cells, heads, slots(made), width // heads), dtype) for part in PARTS}
    return shapes


def _pairs(given: dict[str, Tensor], kind: str) -> list[KeyValue]:
    """Keys and values of one kind, by index."""
    count = sum(name.startswith(f"{kind}.") for name in given) // 2
    return [(given[f"{kind}.{i}.k"], given[f"{kind}.{i}.v"]) for i in range(count)]


__all__ = [
    "DenoiserGraph",
    "RememberGraph",
    "StepGraph",
    "denoiser_inputs",
    "denoiser_spec",
    "graphs",
    "remember_spec",
    "step_inputs",
    "step_spec",
    "told",
]
