"""IP-Adapter-FaceID's published file becomes part of imported weights: the tokens of a face, and the projections that the denoiser reads them by.

Of h94/IP-Adapter-FaceID `ip-adapter-faceid_sd15.bin`, for presets of Stable Diffusion 1.5's layout. The file's LoRA, on every attention, is left
out unless it is asked for: it was trained on Stable Diffusion 1.5 with a text, and these systems have changed the same weights for a portrait and a
reference since. Then it is added to the denoiser's weights, at 1 as published and whatever the tokens' scale, and not to the reference network's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.recogniser import Recogniser, check_length
from engine.types import AvatarError
from exporters.files import read
from exporters.published.import_checkpoint import Published, Source
from exporters.published.keys import Table

try:
    from torch import Tensor

    from engine.generators.diffusion.networks import PROJECTOR
    from engine.generators.diffusion.presets import UNet, with_face
    from engine.generators.diffusion.tokens import VECTOR
except ImportError as error:
    raise AvatarError(f"Importing weights needs PyTorch and diffusers ({error}); pip install 'avatar-engine[torch]'.") from error

SYSTEM, STEM = "IP-Adapter-FaceID", "ip-adapter-faceid_sd15"
TOKENS, ATTENTION = "image_proj.", "ip_adapter."
"""What begins the keys of the two halves of the file."""
PLUS = TOKENS + "perceiver_resampler."
OURS = (".to_k_ip.weight", ".to_v_ip.weight")
"""What ends the denoiser's keys that come from it."""
LOW_RANK = "_lora."
LAYERS = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
"""How the LoRA names an attention's layers, and how the networks do."""


@dataclass(frozen=True, slots=True)
class FaceId:
    """What was asked for beside a system's own files."""

    path: Path
    lora: bool = False  # whether the file's LoRA is added to the denoiser's weights
    recogniser: Path | None = None  # ONNX; None: only personas that bring their tokens can be shown


def adding(asked: FaceId, tell: Callable[[str], None] = lambda line: None) -> Callable[[Published], Published]:
    """For `import_published`: what a system publishes -> the same with FaceID in its denoiser. Raises AvatarError where the files do not fit."""

    def added(found: Published) -> Published:
        made = with_face(found.made)
        held = read_faceid(asked.path)
        if any(key.startswith(PLUS) for key in held):
            raise AvatarError(f"{asked.path} is a FaceID-Plus, whose tokens are made of CLIP's view of the face too; give {STEM}.bin.")
        if asked.recogniser is not None:
            check_length(Recogniser(asked.recogniser), VECTOR, reader=made.name)
        places = attentions(made.unet)
        factors = low_rank(held, places, asked)
        told = "added to the denoiser's weights" if asked.lora else "left out; --faceid-lora adds it to the denoiser's weights"
        if lora := sum(LOW_RANK in key for key in held):
            tell(f"{asked.path.name}: {lora} tensors of its LoRA {told}")
        if asked.recogniser is None:
            tell("No --recogniser: only personas that were made with --system faceid and this file can be shown.")
        return replace(
            found,
            made=made,
            tables=tuple(replace(table, fills=_but_ours(table.fills)) for table in found.tables),
            named=tuple(Source(table, asked.path, asked.path.name) for table in tables_of(places)),
            read={**found.read, PROJECTOR: asked.path},
            low_rank={"denoiser": factors} if asked.lora else {},
            recogniser=asked.recogniser,
        )

    return added


def attentions(unet: UNet) -> list[str]:
    """Names of a denoiser's attentions where IP-Adapter counts them: the way down, the way up and then the middle; of each block, the one of a
    frame to itself and the other one."""
    levels = [i for i, there in enumerate(unet.attention) if there]
    last = len(unet.attention) - 1
    down = [f"down_blocks.{i}.attentions.{k}" for i in levels for k in range(unet.layers)]
    up = [f"up_blocks.{last - i}.attentions.{k}" for i in reversed(levels) for k in range(unet.layers + 1)]
    return [f"{place}.transformer_blocks.0.attn{k}" for place in (*down, *up, "mid_block.attentions.0") for k in (1, 2)]


def read_faceid(path: Path) -> Mapping[str, Any]:
    """Its tensors, each half's keys with the half's name before them, as the .safetensors has them."""
    if path.suffix == ".safetensors":
        return read(path)
    return {half + key: value for half in (TOKENS, ATTENTION) for key, value in read(path, part=half[:-1]).items()}


def low_rank(held: Mapping[str, Any], places: list[str], asked: FaceId) -> dict[str, tuple[Tensor, Tensor]]:
    """The file's LoRA by our keys: (up [o, r], down [r, i]). Raises AvatarError where it is asked for and not whole, and for more than it has."""
    made, known = {}, set()
    for i, place in enumerate(places):
        for theirs, ours in LAYERS.items():
            ends = [f"{ATTENTION}{i}.to_{theirs}{LOW_RANK}{side}.weight" for side in ("up", "down")]
            known |= set(ends)
            if asked.lora and (lost := next((key for key in ends if key not in held), None)):
                raise AvatarError(f"{asked.path} has no LoRA for all attentions ('{lost}' is missing); leave --faceid-lora out, or give {STEM}.bin.")
            if asked.lora:
                made[f"{place}.{ours}.weight"] = (held[ends[0]], held[ends[1]])
    more = sorted(key for key in held if LOW_RANK in key and key not in known)
    if more:
        raise AvatarError(f"{asked.path} has a LoRA for {len(more)} layers that are not there (first '{more[0]}'); give {STEM}.bin.")
    return made


def tables_of(places: list[str]) -> tuple[Table, Table]:
    """Of the file's two halves."""

    def ours(key: str) -> str:
        number, _, rest = key.removeprefix(ATTENTION).partition(".")
        return f"{places[int(number)]}.{rest}" if number.isdecimal() and int(number) < len(places) else key

    tokens = Table((STEM,), "face", lambda key: key.removeprefix(TOKENS), takes=lambda key: key.startswith(TOKENS), system=SYSTEM, read=read_faceid)
    attention = replace(
        tokens,
        part="denoiser",
        ours=ours,
        fills=lambda key: key.endswith(OURS),
        takes=lambda key: not key.startswith(TOKENS) and LOW_RANK not in key,
    )
    return tokens, attention


def _but_ours(fills: Callable[[str], bool]) -> Callable[[str], bool]:
    return lambda key: fills(key) and not key.endswith(OURS)


__all__ = ["LAYERS", "FaceId", "adding", "attentions", "low_rank", "read_faceid", "tables_of"]
