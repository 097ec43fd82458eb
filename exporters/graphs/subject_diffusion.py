"""What weights of the diffusion generator export: what a portrait is remembered by, and the live step, which is fed with its own past."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from engine.driving import map_options
from engine.types import Runner
from exporters.graphs import closed_loop
from exporters.graphs.lora_option import Asked
from exporters.graphs.precision import SENSITIVE
from exporters.graphs.subject import Subject

LIVE = "step"
"""The graph that runs for every frame: it alone is narrowed and streamed. What is made of a portrait once stays in fp32."""
Adapt = Callable[[Any], Sequence[Any]]
"""`Networks` -> the LoRAs (`diffusion.adapters.Adapter`) that become part of them."""


def adapted_by(loras: Sequence[Asked], tell: Callable[[str], None]) -> Adapt | None:
    """For `subject`: None where there are none."""

    def adapt(networks: Any) -> Sequence[Any]:
        from exporters.graphs import lora

        return lora.adapters(networks, loras, tell=tell)

    return adapt if loras else None


def subject(
    weights: Path,
    *,
    steps: int | None = None,
    size: tuple[int, int] | None = None,
    decoder: Literal["kl", "tiny"] | None = None,
    adapt: Adapt | None = None,
) -> Subject:
    """Of a folder of weights. `steps` and `size` (H, W) px as the generator has them, by default the preset's.

    Raises AvatarError for what does not fit together.
    """
    return of(*recipe_of(weights, steps=steps, size=size, decoder=decoder, adapt=adapt))


def recipe_of(
    weights: Path,
    *,
    steps: int | None = None,
    size: tuple[int, int] | None = None,
    decoder: Literal["kl", "tiny"] | None = None,
    adapt: Adapt | None = None,
) -> tuple[Any, dict[str, Any]]:
    """The generator's recipe in fp32 on the CPU, and what a manifest says of its weights. Raises AvatarError for what does not fit together."""
    import torch

    from engine.generators.diffusion import adapters, presets, sampler, stream
    from engine.generators.diffusion import networks as weights_of

    networks = weights_of.load(weights, decoder=decoder).to(torch.float32)
    adapters.fuse(networks, adapt(networks) if adapt else ())
    if size is not None:
        networks.preset = presets.resized(networks.preset, size)
    made = networks.preset
    networks.denoiser.freeze(made.window)
    at = sampler.levels(made.noise, made.steps if steps is None else steps)
    source = {"weights": {weights_of.MANIFEST: networks.origin}, "decoder": "tiny" if decoder == "tiny" else "own"}
    return stream.Recipe(networks, at, False, torch.float32, torch.device("cpu")), source


def of(recipe: Any, source: Mapping[str, Any]) -> Subject:
    """Of a recipe (`diffusion.stream.Recipe`, fp32, CPU) whose weights `source` tells: {"weights": {name: sha256}, "decoder": own or tiny}."""
    from engine.generators.diffusion import adapters
    from engine.generators.diffusion.graphs import graphs

    made, count = recipe.preset, len(recipe.levels)
    fused = recipe.networks.adapters

    def inputs(graph: str, runner: Runner, moments: Sequence[int]) -> list[dict[str, Any]]:
        return closed_loop.recorded(recipe, runner, moments) if graph == LIVE else []

    return Subject(
        generator="diffusion",
        about=f"{made.name}, {count}-step",
        specs=graphs(recipe),
        narrowed=(LIVE,),
        inputs=inputs,
        seen="a stream of the built-in portrait, swaying, and of noise for speech",
        config={"preset": made.name, "size": list(made.size), "steps": count, "chunk": made.chunk, "window": made.window, "fps": made.fps},
        source={"decoder": "own", **source},
        serve=f" --steps {count}" + " --decoder tiny" * (source.get("decoder") == "tiny") + map_options(made.maps),
        keep={"int8": SENSITIVE},
        streams={LIVE: partial(closed_loop.live, recipe)},
        adapters=tuple(adapters.keys(fused)),
        leave=lambda folder: adapters.write(fused, folder),
    )


__all__ = ["LIVE", "Adapt", "adapted_by", "of", "recipe_of", "subject"]
