"""The diffusion generator's networks alone, on random pictures: a step as a session pays for it, without a puppet, a tracker or a video.

Needs torch, diffusers, safetensors and numpy, and nothing else, so that it runs on a machine that has a GPU and little beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.backends import pytorch  # before torch: see there
from engine.generators.diffusion.budget import block_shapes
from engine.generators.diffusion.presets import Preset
from engine.types import MissingPart

try:
    import torch

    from engine.generators.diffusion import stream as streams
    from engine.generators.diffusion.networks import Cache, Networks, empty
    from engine.generators.diffusion.sampler import levels
    from engine.generators.diffusion.unet import spatial_blocks
except ImportError as error:
    raise MissingPart(f"This part of the benchmark needs PyTorch and diffusers ({error}); pip install 'avatar-engine[torch]'.") from error

KINDS: dict[str, Any] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PICTURES = 8
"""Random condition pictures, shown in turn."""


@dataclass
class Bare:
    """Rows of sessions that all show one random portrait."""

    recipe: streams.Recipe
    cache: Cache
    latents: Any  # [1, C, h, w] the portrait, and
    read: list[Any]  # its tokens' keys and values by block, as the reference network reads them
    stream: streams.Stream
    steps: list[Callable[[], None]]  # all rows at once, or row by row on a CPU, as the generator does
    pictures: Any  # [P, H, W, K] uint8
    seen: int = 0

    @property
    def networks(self) -> Networks:
        """Of the recipe."""
        return self.recipe.networks

    def step(self) -> Any:
        """One frame for every row -> uint8 [B, c, H, W, 3] on the host: copies in and out are part of what a session pays."""
        self.stream.condition.copy_(self.pictures[self.seen % PICTURES])
        self.seen += 1
        for step in self.steps:
            step()
        return self.stream.out.cpu()


def lean(made: Preset) -> Preset:
    """The preset with an encoder of the identity's token that needs neither weights nor transformers. A step costs the same."""
    return replace(made, image_encoder="pooled") if made.image_encoder == "clip" else made


def random_networks(made: Preset, *, precision: str, device: Any, seed: int = 0) -> Networks:
    """Networks of plausible random weights, made on the device: the initialisation of a billion parameters takes a CPU minutes."""
    networks: Networks = empty(lean(made)).to_empty(device=device).to(KINDS[precision])
    source = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in networks.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=source)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    networks.eval().requires_grad_(False)
    networks.denoiser.freeze(made.window)
    return networks


def recipe(networks: Networks, steps: int, *, precision: str, device: Any) -> streams.Recipe:
    """How a stream of these networks is made, steps in turn."""
    return streams.Recipe(networks, levels(networks.preset.noise, steps).to(device), False, KINDS[precision], torch.device(device))


def bare(networks: Any, *, steps: int, precision: str, mode: pytorch.Mode = "eager", device: Any, rows: int = 1, seed: int = 0) -> Bare:
    """Rows of sessions on networks that are there already; in mode "compile" their denoiser must be compiled by the caller."""
    made, how = networks.preset, recipe(networks, steps, precision=precision, device=device)
    source = torch.Generator().manual_seed(seed)
    pictures = torch.randint(0, 256, (PICTURES, *made.size, made.channels), dtype=torch.uint8, generator=source)
    portrait = (torch.rand((1, 3, *made.size), generator=source) * 2 - 1).to(device, KINDS[precision])
    cache = networks.remember(portrait)
    with torch.no_grad():
        latents = networks.autoencoder.encode(portrait) * made.gain
        token = networks.image(portrait) if networks.image is not None else None
        read = [] if token is None else [block.attn2.project(token) for block in spatial_blocks(networks.reference)]
    stream = streams.open_stream(how, rows, cache)
    for row in range(rows):
        streams.seat(stream, row, cache)
    stream.active.fill_(True)
    run = []
    for part in [stream] if how.device.type != "cpu" else [stream.row(row) for row in range(rows)]:
        step: Any = streams.Step(how, part).eval()
        run.append(pytorch.prepared(pytorch.scripted(step, part.tensors()) if mode == "script" else step, part.tensors(), mode=mode))
    return Bare(how, cache, latents, read, stream, run, pictures)


def shapes_only(made: Preset, *, steps: int, rows: int) -> tuple[streams.Recipe, streams.Stream]:
    """The same without a number in it, for counting: on the device "meta", which computes nothing."""
    networks = empty(lean(made))
    networks.eval().requires_grad_(False)
    networks.denoiser.freeze(made.window)
    how = recipe(networks, steps, precision="fp32", device="meta")

    def pairs(shapes: Sequence[tuple[int, ...]]) -> list[tuple[Any, Any]]:
        return [(torch.empty(shape, device="meta"), torch.empty(shape, device="meta")) for shape in shapes]

    blocks = block_shapes(made)
    identity = pairs([(1, made.tokens, width) for width, _ in blocks]) if made.unet.image_dim else []
    return how, streams.open_stream(how, rows, Cache(pairs([(1, cells, width) for width, cells in blocks]), identity))


__all__ = ["KINDS", "Bare", "bare", "lean", "random_networks", "recipe", "shapes_only"]
