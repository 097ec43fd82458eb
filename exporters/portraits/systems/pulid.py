"""PuLID (Guo et al. 2024, arXiv 2404.16022): v1 and v1.1 for SDXL, and PuLID-FLUX. Which one a file is, its keys say.

A recogniser's raw vector and what EVA-02-CLIP sees of the face alone, grey on white, become tokens. SDXL reads them beside the text, and what
is along the text's own result is taken out, so that the prompt keeps its say; FLUX reads them between its blocks. The face is cut out with
facexlib's BiSeNet as published; the five points that align it are ours (MediaPipe's mesh) and not RetinaFace's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from engine.drivers.portrait import Found
from engine.recogniser import five_points
from engine.types import AvatarError, UInt8Array
from exporters import files
from exporters.portraits import encoders, eva_clip, parsing, projectors, pulid_networks
from exporters.portraits.attention import attend, keys_and_values
from exporters.portraits.contract import Attachment, Between, Defaults, Family, IdentityTokens, Parts, Prompted
from exporters.portraits.photos import Photo
from exporters.portraits.samplers import DpmPlusPlus

STEMS = ("pulid",)
LONGEST = 1024
"""px: photos with a longer side are made smaller first, as they were published to be."""
SIDE = 512
"""px of the aligned face."""
TEMPLATE = np.array([[192.98138, 239.94708], [318.90277, 240.1936], [256.63416, 314.01935], [201.26117, 371.41043], [313.08905, 371.15118]])
"""px of an aligned face where the five points lie, of the picture's FFHQ kind (published with facexlib)."""
OUTSIDE = (132, 133, 135)
"""RGB where the photo ends."""
NO_FACE = (0, 7, 8, 9, 14, 15, 16, 18)
"""Labels that are made white: background, ears and their rings, neck and necklace, clothes, hat. Hair is kept."""
LUMA = (0.299, 0.587, 0.114)
LED_BY = 5
"""Tokens of a recogniser's vector, the first ones; what looks at them keeps more of what is along the text."""
DOUBLES, SINGLES = 2, 4
"""Of FLUX's blocks of two streams every second, of those of one every fourth is followed by a look at the person, the first always."""
WORDS = 128
"""Tokens of FLUX's prompt."""
PROMPT = "a photo of a person, head and shoulders, looking at the camera"
NEGATIVE = "flaws in the face, flaws in the eyes, lowres, blurry, deformed, hands, text, watermark"


@dataclass(frozen=True, slots=True)
class Way:
    """How a version is used; --variant chooses it, since it is not in a file."""

    defaults: Defaults
    zeros: int = 0  # SDXL: tokens of zeros beside the person's, where a look may rest
    softly: bool = True  # SDXL: less is taken out where the recogniser's tokens are looked at
    stochastic: bool = False  # v1.1's sampler
    start: int = 0  # FLUX: the first step that sees the person
    two_halves: bool = False  # FLUX: guidance between two halves, and none that the transformer is told


WAYS: dict[str, dict[str, Way]] = {
    # On SDXL-Lightning's UNet of four steps.
    "v1": {
        "fidelity": Way(Defaults(4, 1.2, 0.8, PROMPT, NEGATIVE), zeros=8),
        "style": Way(Defaults(4, 1.2, 0.8, PROMPT, NEGATIVE), zeros=16, softly=False),
    },
    # On a base such as Juggernaut-XL v9, and on one such as DreamShaper-XL-Lightning.
    "v1.1": {
        "plain": Way(Defaults(25, 7.0, 0.8, PROMPT, NEGATIVE), zeros=20),
        "lightning": Way(Defaults(5, 2.0, 0.8, PROMPT, NEGATIVE), zeros=20, stochastic=True),
    },
    # On FLUX.1-dev. A later start leaves the picture's layout to the prompt; for photos it was published to be the fourth step.
    "flux": {
        "photo": Way(Defaults(28, 4.0, 1.0, PROMPT, NEGATIVE), start=4),
        "style": Way(Defaults(28, 4.0, 1.0, PROMPT, NEGATIVE)),
        "true-cfg": Way(Defaults(28, 5.0, 1.0, PROMPT, NEGATIVE), start=1, two_halves=True),
    },
}
"""Version -> ways to use it, the first the usual one."""
HALVES_FROM = 1
"""First step of FLUX that has two halves, where they are asked for."""


class PuLid:
    """Tokens of a face beside SDXL's text or between FLUX's blocks."""

    name = "pulid"
    unet = None

    def __init__(self, parts: Parts, *, device: str) -> None:
        path = encoders.adapter_file(parts.weights, STEMS)
        self._path, self._parts, self._device = path, parts, device
        self._version, held, self._attention = halves(path)
        ways = WAYS[self._version]
        chosen = parts.variant or next(iter(ways))
        if chosen not in ways:
            raise AvatarError(f"{path.name} is PuLID {self._version}, which has the variants {' and '.join(ways)}, not '{chosen}'.")
        self._way, self.defaults = ways[chosen], ways[chosen].defaults
        self.variant = f"{self._version} {chosen}"
        self.families: tuple[Family, ...] = ("flux",) if self._version == "flux" else ("sdxl",)
        self.together = self._version != "flux"
        self._encoder = projectors.loaded(pulid_networks.encoder(held, path.name), held, path.name)
        if self._version == "flux":
            self._betweens = projectors.loaded(pulid_networks.betweens(self._attention, path.name), self._attention, path.name)
        self.digest = files.sha256(path)

    @torch.no_grad()
    def encode(self, photos: Sequence[Photo]) -> IdentityTokens:
        """Of every photo, the first one leading; FLUX takes one."""
        network = encoders.recogniser(self._parts.recogniser, self._path, prefer="glintr100.onnx")
        eye = eva_clip.open_eva(self._file(self._parts.image_encoder, eva_clip.STEMS, "EVA-02-CLIP, --image-encoder"), device=self._device)
        cutter = parsing.open_parser(self._file(None, parsing.STEMS, "facexlib's face parsing"), device=self._device)
        small = [shrunk(photo) for photo in photos]
        vectors = torch.from_numpy(encoders.vectors(network, small, normed=False)).to(self._device)
        faces = torch.stack([pixels(cutter, photo, eye.side) for photo in small])
        pooled, seen = eye(faces)
        pooled = pooled / pooled.norm(dim=1, keepdim=True)
        if vectors.shape[1] + pooled.shape[1] != self._encoder.reads or eye.width != self._encoder.sees:
            raise AvatarError(
                f"{self._path.name} reads {self._encoder.reads} numbers and sees {self._encoder.sees}, and {network.path.name} and the image "
                f"encoder give {vectors.shape[1]} + {pooled.shape[1]} and {eye.width}; give antelopev2's glintr100.onnx and {eva_clip.STEMS[0]}.pt."
            )
        tokens = self._tokens(torch.cat([vectors, pooled], 1), seen)
        return IdentityTokens(self.name, self.variant, encoders.arrays(tokens=tokens), tuple(photo.sha256 for photo in photos), self.digest)

    def _tokens(self, vectors: Tensor, seen: list[Tensor]) -> Tensor:
        """[photos, C] and [photos, 1 + patches, D] five times -> [2, tokens, width], row 0 of nothing."""
        encoder = self._encoder.to(self._device)
        none = encoder(torch.zeros_like(vectors[:1]), [torch.zeros_like(depth[:1]) for depth in seen])
        if self._version != "v1":
            # All photos as one: a longer row of features.
            return torch.cat([none, encoder(vectors[None], [depth.flatten(0, 1)[None] for depth in seen])])
        some = encoder(vectors, seen)
        more = [torch.stack([none[0, :LED_BY], other[:LED_BY]]) for other in some[1:]]
        return torch.cat([torch.stack([none[0], some[0]]), *more], 1)

    def attach(self, base: Any, tokens: IdentityTokens, *, scale: float, size: tuple[int, int]) -> Attachment:
        """SDXL: keys and values for every cross-attention, and the scheduler. FLUX: what is added behind every few blocks."""
        given, way = torch.from_numpy(tokens.arrays["tokens"]), self._way
        if self._version == "flux":
            between = Between(self._blocks(base.pipe.transformer, given, scale), way.start, way.two_halves, HALVES_FROM)
            return Attachment(between=between, text=prompted)
        given = functional.pad(given, (0, 0, 0, way.zeros))
        mix = orthogonal(scale, softly=way.softly)
        added = keys_and_values(base.unet, self._attention, given, names=("id_to_k", "id_to_v"), mix=mix, what=self._path.name)
        if self._version == "v1":
            return Attachment(added, scheduler=trailing)
        return Attachment(added, scheduler=lambda old: DpmPlusPlus(stochastic=way.stochastic))

    @torch.no_grad()
    def _blocks(self, transformer: Any, tokens: Tensor, scale: float) -> dict[str, Any]:
        """Name of a block -> what is added behind it. Raises AvatarError where the weights are for another FLUX."""
        names = [f"transformer_blocks.{i}" for i in range(0, len(transformer.transformer_blocks), DOUBLES)]
        names += [f"single_transformer_blocks.{i}" for i in range(0, len(transformer.single_transformer_blocks), SINGLES)]
        width = {network.to_q.in_features for network in self._betweens}
        if len(names) != len(self._betweens) or width != {transformer.inner_dim}:
            raise AvatarError(
                f"{self._path.name} does not fit this base: it has {len(self._betweens)} attentions of width {sorted(width)}, and the base has "
                f"places for {len(names)} of {transformer.inner_dim}; use FLUX.1-dev."
            )
        given = tokens.to(transformer.device, transformer.dtype)
        made = {}
        for name, network in zip(names, self._betweens.to(transformer.device, transformer.dtype), strict=True):
            k, v = network.remembered(given)

            def add(picture: Tensor, row: int, network: Any = network, k: Tensor = k, v: Tensor = v) -> Tensor:
                added: Tensor = scale * network(picture, k[row : row + 1], v[row : row + 1])
                return added

            made[name] = add
        return made

    def _file(self, given: Path | None, stems: Sequence[str], what: str) -> Path:
        """The file that was given, or one of these names in its folder, or beside the weights and the other parts."""
        if given is not None and given.is_file():
            return given
        places = [place for place in (given, self._parts.image_encoder, self._path, self._parts.recogniser) if place is not None]
        folders = [place if place.is_dir() else place.parent for place in places]
        found = files.find(folders, stems)
        if found is None:
            raise AvatarError(f"PuLID needs {what}: {stems[0]} is not in {folders[0]}; put the file beside {self._path.name}.")
        return found


# -- files ----------------------------------------------------------------------------------------------------------------


def halves(path: Path) -> tuple[str, dict[str, Tensor], dict[str, Tensor]]:
    """A published file -> (version, the encoder's tensors, the attentions'). Raises AvatarError, one sentence, where it is none or not whole."""
    held: dict[str, dict[str, Tensor]] = {}
    for key, value in files.read(path).items():
        part, _, rest = key.partition(".")
        held.setdefault(part, {})[rest] = value
    known = {"id_adapter", "id_adapter_attn_layers"}, {"pulid_encoder", "pulid_ca"}
    if set(held) not in known:
        one = next((parts for parts in known if set(held) < parts), None)
        wrong = f"holds only {next(iter(held))}" if one else f"holds {', '.join(sorted(held)[:3])}"
        raise AvatarError(f"{path.name} is no PuLID that is known here (it {wrong}); give pulid_v1.bin, pulid_v1.1 or pulid_flux_v0.9.1.")
    if "pulid_ca" in held:
        return "flux", held["pulid_encoder"], held["pulid_ca"]
    encoder, attention = held["id_adapter"], held["id_adapter_attn_layers"]
    odd = next((key for key in attention if not re.fullmatch(r"\d+\.id_to_[kv]\.weight", key)), None)
    if odd:
        raise AvatarError(f"{path.name} has an attention's tensor that PuLID has not ('{odd}'); get the published file again.")
    return ("v1.1" if "latents" in encoder else "v1"), encoder, attention


# -- photos ---------------------------------------------------------------------------------------------------------------


def shrunk(photo: Photo) -> Photo:
    """A photo whose longer side is at most LONGEST."""
    height, width = photo.rgb.shape[:2]
    factor = LONGEST / max(height, width)
    if factor >= 1.0:
        return photo
    rgb = cv2.resize(photo.rgb, (int(width * factor), int(height * factor)), interpolation=cv2.INTER_LANCZOS4)
    return replace(photo, rgb=np.asarray(rgb, np.uint8), face=Found.of(photo.face.points * factor))


def aligned(photo: Photo) -> UInt8Array:
    """[512, 512, 3]: the face with its five points on TEMPLATE, by the least median of squares."""
    matrix = cv2.estimateAffinePartial2D(five_points(photo.face.points).astype(np.float64), TEMPLATE, method=cv2.LMEDS)[0]
    if matrix is None:
        raise AvatarError(f"{photo.name}: the face cannot be aligned; choose a photo that shows it from the front.")
    return np.asarray(cv2.warpAffine(photo.rgb, matrix, (SIDE, SIDE), borderMode=cv2.BORDER_CONSTANT, borderValue=OUTSIDE), np.uint8)


def alone(face: UInt8Array, labels: Tensor) -> Tensor:
    """An aligned face [H, W, 3] and its pixels' labels [H, W] -> [H, W] 0..1, grey where the face and the hair are and white elsewhere."""
    values = torch.from_numpy(face).to(labels.device).float() / 255.0
    grey = (values * torch.tensor(LUMA, device=labels.device)).sum(-1)
    away = torch.isin(labels, torch.tensor(NO_FACE, device=labels.device))
    return torch.where(away, torch.ones_like(grey), grey)


def pixels(cutter: parsing.BiSeNet, photo: Photo, side: int) -> Tensor:
    """A photo -> [3, side, side] as the image encoder reads it; made smaller (bicubic) without a filter, as the published torchvision does it."""
    face = aligned(photo)
    grey = alone(face, parsing.labels(cutter, face))
    small = functional.interpolate(grey[None, None], (side, side), mode="bicubic", align_corners=False)[0].expand(3, -1, -1)
    mean, deviation = (torch.tensor(values, device=small.device)[:, None, None] for values in (encoders.MEAN, encoders.DEVIATION))
    return (small - mean) / deviation


# -- denoisers ------------------------------------------------------------------------------------------------------------


def orthogonal(scale: float, *, softly: bool) -> Any:
    """PuLID's mix: of the person's result, what is along the text's (over the picture's places, channel by channel) is taken out.

    `softly`: less of it where the recogniser's tokens are looked at. How much they are is read from attention without its usual scale.
    """

    def mix(text: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        whole, person = text.float(), attend(q, k, v).float()
        along = (whole * person).sum(-2, keepdim=True) / (whole * whole).sum(-2, keepdim=True) * whole
        kept: Tensor | float = 0.0
        if softly:
            kept = (q @ k.transpose(-2, -1)).softmax(-1).mean(1)[..., :LED_BY].sum(-1, keepdim=True)
        return (whole + scale * (person + (kept - 1.0) * along)).to(text.dtype)

    return mix


def trailing(old: Any) -> Any:
    """v1's scheduler, which ends where Lightning's steps do."""
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler.from_config(old.config, timestep_spacing="trailing")


def prompted(base: Any, prompt: str, negative: str) -> tuple[Prompted, Prompted]:
    """FLUX's prompt, as long as PuLID was published with."""
    from exporters.portraits.pipeline_flux import encoded

    made = encoded(base, prompt, negative, words=WORDS)
    return made, made


def load(parts: Parts, *, device: str) -> PuLid:
    """Of a file, or a folder that holds one."""
    return PuLid(parts, device=device)


__all__ = ["WAYS", "PuLid", "Way", "aligned", "alone", "halves", "load", "orthogonal", "pixels", "prompted", "shrunk", "trailing"]
