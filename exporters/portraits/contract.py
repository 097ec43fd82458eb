"""What every identity system answers to: `encode(photos) -> IdentityTokens`, slow and once a person; `attach(base, tokens) -> Attachment`.

A system is one file in `systems`, and one line in SYSTEMS. What it adds to a denoiser is named here, and the pipelines know no system: keys
and values beside the text's in cross-attention, low-rank changes of weights, a text encoding of its own, a ControlNet, what is added between a
FLUX's blocks, and the scheduler.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from engine.drivers.portrait import Found
from engine.types import AvatarError, FloatArray, UInt8Array
from exporters.portraits.photos import Photo

Family = Literal["sd15", "sdxl", "flux"]
Tensor = Any
"""Of PyTorch, which may be absent where this file is read."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The files that the user has; what a system needs of them it says itself where it is missing."""

    weights: Path  # the adapter's file, or a folder that holds it
    image_encoder: Path | None = None  # a folder with CLIP's config.json and weights; None: looked for beside the weights
    recogniser: Path | None = None  # an ONNX recogniser, or a folder such as antelopev2 or buffalo_l; None: looked for beside the weights
    control: Path | None = None  # a ControlNet's folder; None: looked for beside the weights
    variant: str | None = None  # where a file does not say what it is
    description: str | None = None  # of the person's face, for DESCRIBED


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a system was published to be used with."""

    steps: int
    guidance: float
    scale: float  # how strongly the person is asked for
    prompt: str
    negative: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class IdentityTokens:
    """What a system computed of one person's photos; kept with the candidates and the persona, and enough to make more portraits."""

    system: str
    variant: str
    arrays: Mapping[str, FloatArray]
    photos: tuple[str, ...]  # sha256 of the files it was computed from
    weights: str  # sha256 of the adapter's file

    def pack(self) -> bytes:
        """As an .npz."""
        out = io.BytesIO()
        told = {"system": self.system, "variant": self.variant, "photos": list(self.photos), "weights": self.weights}
        np.savez(out, manifest=np.array(json.dumps(told)), **{f"array.{name}": array for name, array in self.arrays.items()})
        return out.getvalue()

    @classmethod
    def unpack(cls, data: bytes) -> IdentityTokens:
        """Of what `pack` made. Raises AvatarError for anything else."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as held:
                told = json.loads(str(held["manifest"]))
                arrays = {name.removeprefix("array."): held[name] for name in held.files if name.startswith("array.")}
            return cls(told["system"], told["variant"], arrays, tuple(told["photos"]), told["weights"])
        except (ValueError, KeyError, TypeError, OSError, EOFError) as error:
            raise AvatarError("The kept identity tokens are damaged; remove them, and they are computed again.") from error


@dataclass(frozen=True, slots=True, eq=False)
class Added:
    """Keys and values of a person for one cross-attention, computed once. Row 0 is for the unconditional half, row 1 for the other."""

    k: Tensor  # [2, tokens, channels]
    v: Tensor  # [2, tokens, channels]
    mix: Callable[..., Tensor]
    """(text's result [B, N, channels], q [B, heads, N, d], k and v [B, heads, tokens, d]) -> result, before the output projection."""
    route: Callable[[Tensor, slice], Tensor] | None = None
    """(the block's input [B, N, channels], which of the two rows) -> whose each pixel is [B, people, N, 1], which `mix` takes as `whose`."""


@dataclass(frozen=True, slots=True, eq=False)
class Prompted:
    """A prompt encoded; row 0 unconditional, row 1 conditional."""

    text: Tensor  # [2, 77, channels]
    pooled: Tensor | None = None  # [2, channels], SDXL


@dataclass(frozen=True, slots=True, eq=False)
class Control:
    """A ControlNet that sees a picture and, where `tokens` is given, these instead of the text."""

    network: Any
    picture: UInt8Array  # [H, W, 3]
    scale: float
    tokens: Tensor | None = None  # [2, tokens, channels]


@dataclass(frozen=True, slots=True, eq=False)
class Between:
    """What is added to the picture's tokens behind blocks of a FLUX."""

    blocks: Mapping[str, Callable[[Tensor, int], Tensor]]
    """Name of a block -> (picture's tokens [1, N, C], row 0 for the unconditional half and 1 for the other) -> what is added to them."""
    start: int = 0  # first step that sees the person
    two_halves: bool = False  # the guidance is between two halves, the second with the negative prompt; else the transformer is told it
    halves_from: int = 0  # first step that has both


@dataclass(frozen=True, slots=True, eq=False)
class Attachment:
    """What a system adds to a denoiser for one person."""

    added: Mapping[str, Added] = field(default_factory=dict)  # by the name of the attention processor
    weights: Mapping[str, tuple[Tensor, Tensor, float]] = field(default_factory=dict)  # UNet's weight -> (up, down, factor) added to it
    text: Callable[[Any, str, str], tuple[Prompted, Prompted]] | None = None
    """(base, prompt, negative) -> (what the denoiser sees up to `merge_from`, what it sees then); None: the plain text."""
    merge_from: float = 0.0  # share of the steps that see the first; 0: none does
    control: Control | None = None
    between: Between | None = None
    scheduler: Callable[[Any], Any] | None = None  # the base's -> the one that is walked with; None: the base's own


class System(Protocol):
    """A published identity system, its weights loaded."""

    name: str
    variant: str
    families: tuple[Family, ...]
    together: bool  # whether it takes all photos of a person; else the best one
    defaults: Defaults
    digest: str  # sha256 of the adapter's file
    unet: Path | None  # the folder of the UNet that it is made of; None: the base's own

    def encode(self, photos: Sequence[Photo]) -> IdentityTokens:
        """Photos, the best first -> tokens. Raises AvatarError where a part is missing or a photo does not do."""
        ...

    def attach(self, base: Any, tokens: IdentityTokens, *, scale: float, size: tuple[int, int]) -> Attachment:
        """What is added to `base` (a `pipeline.Base`) for portraits of `size` (H, W). Raises AvatarError where the weights are for another."""
        ...


@runtime_checkable
class Several(Protocol):
    """A system that shows several people in one picture."""

    def encode_people(self, people: Sequence[Sequence[Photo]]) -> IdentityTokens:
        """The photos of each -> tokens for a picture with all of them. Raises AvatarError as `encode`."""
        ...

    def likeness(self, photos: Sequence[Photo], rgb: UInt8Array, faces: Sequence[Found]) -> list[float]:
        """How alike each face in a picture [H, W, 3] is to that of a person's photos, -1..1."""
        ...


SYSTEMS = {
    "ip-adapter": "exporters.portraits.systems.ip_adapter",
    "faceid": "exporters.portraits.systems.faceid",
    "consistentid": "exporters.portraits.systems.consistentid",
    "uniportrait": "exporters.portraits.systems.uniportrait",
    "instantid": "exporters.portraits.systems.instantid",
    "photomaker": "exporters.portraits.systems.photomaker",
    "arc2face": "exporters.portraits.systems.arc2face",
    "pulid": "exporters.portraits.systems.pulid",
}
"""Name on the command line -> module, which has `load(parts, device) -> System`."""
DESCRIBED = ("consistentid",)
"""Those that read a description of the face."""


def load(name: str, parts: Parts, *, device: str = "cpu") -> System:
    """A system with the user's weights. Raises AvatarError where it is unknown or its files do not fit."""
    if name not in SYSTEMS:
        raise AvatarError(f"There is no identity system called '{name}'; choose one of {', '.join(sorted(SYSTEMS))}.")
    if parts.description is not None and name not in DESCRIBED:
        raise AvatarError(f"{name} reads no description of the face; leave --describe out, or say it in --prompt.")
    try:
        module = import_module(SYSTEMS[name])
    except ImportError as error:
        raise AvatarError(f"Identity systems need PyTorch, diffusers and transformers ({error}); pip install 'avatar-engine[torch]'.") from error
    made: System = module.load(parts, device=device)
    return made


__all__ = [
    *("DESCRIBED", "SYSTEMS", "Added", "Attachment", "Between", "Control", "Defaults", "IdentityTokens", "Parts", "Prompted"),
    *("Several", "System", "load"),
]
