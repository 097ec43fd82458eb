"""UniPortrait (He et al. 2024, arXiv 2408.05939), of SD 1.5: who a face is and what form it has, apart; and several people in one picture.

Of one person, all photos are looked at together. Of several, a router in every attention tells each pixel whose it is, and another LoRA is used.
The published demo's reference picture for style (an IP-Adapter, an inversion and shared attention) is not here: it is another picture than this
one is about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from engine.drivers.portrait import Found
from engine.types import AvatarError, UInt8Array
from exporters import files
from exporters.files import sha256
from exporters.portraits import encoders, projectors
from exporters.portraits import uniportrait_networks as networks
from exporters.portraits.attention import CROSS, keys_and_values, low_rank, plus, routed
from exporters.portraits.contract import Attachment, Defaults, Family, IdentityTokens, Parts
from exporters.portraits.photos import Photo

STEMS, ROUTERS, RECOGNISERS = ("uniportrait-faceid",), ("uniportrait-router_sd15",), ("glint360k_curricular_face_r101_backbone",)
CROP = 224
"""px of the aligned face."""
STRUCTURE = (0.1, 0.3)
"""How strongly the face's form counts beside who it is: of one person, and of several in one picture, as the demo begins with."""


class UniPortrait:
    """Tokens of each person beside the text, a LoRA on every attention, and for several people a router."""

    name, variant = "uniportrait", "uniportrait"
    families: tuple[Family, ...] = ("sd15",)
    together = True
    unet = None
    defaults = Defaults(25, 7.5, 0.7, "a photo of a person, head and shoulders, looking at the camera", "nsfw")

    def __init__(self, parts: Parts, *, device: str) -> None:
        path = encoders.adapter_file(parts.weights, STEMS)
        self._path, self._parts, self._device = path, parts, device
        held, self._adapter = encoders.halves(path, "faceid_proj", "faceid_adapter")
        if "latents" not in held or "proj_clip.0.weight" not in held:
            raise AvatarError(f"{path.name} is no UniPortrait that is known here; give uniportrait-faceid_sd15.bin.")
        self._project = projectors.loaded(networks.FaceResampler(held), held, path.name)
        self.digest = sha256(path)

    def encode(self, photos: Sequence[Photo]) -> IdentityTokens:
        """Of all photos of one person."""
        tokens: IdentityTokens = self.encode_people([photos])
        return tokens

    @torch.no_grad()
    def encode_people(self, people: Sequence[Sequence[Photo]]) -> IdentityTokens:
        """Of all photos of each person; the tokens of the people stand one behind the other."""
        if len(people) > 1:
            self._router()  # before anything is computed in vain
        eye = encoders.image_encoder(self._parts.image_encoder, self._path, device=self._device)
        network, structure = self._recogniser(), STRUCTURE[len(people) > 1]
        made = []
        for photos in people:
            pixels = eye.pixels([encoders.aligned(photo, CROP) for photo in photos])
            who, form = seen(eye, network, pixels)
            nothing = torch.cat([torch.zeros_like(form[:1, :, : -eye.width]), eye.hidden(torch.zeros_like(pixels[:1]))[:, 1:]], -1)
            self._check(who, form, eye.width)
            project = self._project.to(self._device)
            some = project(who.flatten(0, 1)[None], form.flatten(0, 1)[None], structure=structure)
            made.append(torch.cat([project(torch.zeros_like(who[:1]), nothing, structure=structure), some]))
        used = tuple(photo.sha256 for photos in people for photo in photos)
        return IdentityTokens(self.name, self.variant, encoders.arrays(tokens=torch.cat(made, 1)), used, self.digest)

    @torch.no_grad()
    def likeness(self, photos: Sequence[Photo], rgb: UInt8Array, faces: Sequence[Found]) -> list[float]:
        """Cosines of CurricularFace's vectors, of each face the best of the photos."""
        pictures = [*(encoders.aligned(photo, CROP) for photo in photos), *(encoders.aligned_in(rgb, face, CROP) for face in faces)]
        pixels = torch.stack([torch.from_numpy(picture).permute(2, 0, 1) for picture in pictures]).to(self._device)
        vectors = functional.normalize(networks.recognised(self._recogniser(), pixels.float() / 255.0)[0], dim=1)
        return [float(value) for value in (vectors[len(photos) :] @ vectors[: len(photos)].T).amax(1)]

    def _recogniser(self) -> networks.Recogniser:
        given = self._parts.recogniser
        path = given if given is not None and given.is_file() else files.find([given or self._path.parent], RECOGNISERS)
        if path is None:
            raise AvatarError(f"UniPortrait's {RECOGNISERS[0]}.bin is not in {given or self._path.parent}; give it with --recogniser.")
        network: networks.Recogniser = networks.recogniser(files.read(path), path.name).to(self._device)
        return network

    def _check(self, who: Tensor, form: Tensor, width: int) -> None:
        """Raise AvatarError where the projector was made for other encoders."""
        wanted, reads = self._project.proj_id[0].in_features, self._project.proj_clip[0].in_features
        if who.shape[2] != wanted or form.shape[2] != reads:
            raise AvatarError(
                f"{self._path.name} reads {wanted} and {reads} channels, and there are {who.shape[2]} and {form.shape[2]}, {width} of them the image"
                f" encoder's; give ViT-H/14 and {RECOGNISERS[0]}.bin."
            )

    def _router(self) -> tuple[Path, dict[str, Tensor]]:
        """The file for several people, and what it holds. Raises AvatarError where it is not there."""
        path = files.find([self._path.parent], ROUTERS)
        if path is None:
            raise AvatarError(f"Several people in one picture need {ROUTERS[0]}.bin, which is not in {self._path.parent}; put it there.")
        return path, encoders.section(path, "faceid_adapter")

    def attach(self, base: Any, tokens: IdentityTokens, *, scale: float, size: tuple[int, int]) -> Attachment:
        """Keys and values for every cross-attention, and the LoRA of one person or of several, whose factor is 1 whatever the scale."""
        given = torch.from_numpy(tokens.arrays["tokens"])
        people = given.shape[1] // self._project.latents.shape[1]
        path, held, mix = self._path, self._adapter, plus(scale)
        if people > 1:
            path, held = self._router()
            mix = routed(scale, people)
        added = keys_and_values(base.unet, self._adapter, given, names=("to_k_faceid", "to_v_faceid"), mix=mix, what=self._path.name)
        if people > 1:
            found = routers(base.unet, held, given.unflatten(1, (people, -1)), path.name)
            added = {name: replace(one, route=found[name]) for name, one in added.items()}
        lora = {key: value for key, value in held.items() if networks.LORA in key}
        return Attachment(added, low_rank(base.unet, lora, what=path.name))


def seen(eye: encoders.ImageEncoder, network: networks.Recogniser, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """CLIP's pixels of aligned faces -> (who they are [B, 49, C], their form [B, patches, C']: the recogniser's other maps, and CLIP's states)."""
    states = eye.hidden(pixels)[:, 1:]
    mean, deviation = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (encoders.MEAN, encoders.DEVIATION))
    *maps, last = networks.recognised(network, pixels * deviation + mean)[1]
    side = round(states.shape[1] ** 0.5)
    inner = [functional.interpolate(one, (side, side), mode="bilinear", align_corners=False) for one in maps]
    return last.flatten(2).mT, torch.cat([*(one.flatten(2).mT for one in inner), states], -1)


def routers(unet: Any, held: dict[str, Tensor], tokens: Tensor, name: str) -> dict[str, Any]:
    """A router for each cross-attention, by its name, which knows the people's tokens [2, people, queries, width].

    Raises AvatarError where one is missing or for another base.
    """
    made = {}
    for i, processor in enumerate(unet.attn_processors):
        if not processor.endswith(CROSS):
            continue
        prefix = f"{i}."
        mine = {key[len(prefix) :]: value for key, value in held.items() if key.startswith(prefix) and networks.ROUTER in key}
        channels = unet.get_submodule(processor.removesuffix(".processor")).to_q.weight.shape[1]
        wanted = {"to_q_router.0.weight": channels, "to_k_router.0.weight": tokens.shape[3], "aggr_router.weight": tokens.shape[2]}
        if any(key not in mine or mine[key].shape[1] != size for key, size in wanted.items()):
            raise AvatarError(f"{name} has no router that fits block {i} ({processor}); use its own base, or get the published file again.")
        made[processor] = _route(projectors.loaded(networks.Router(mine), mine, name).to(unet.device, unet.dtype), tokens)
    return made


@torch.no_grad()
def _route(router: networks.Router, tokens: Tensor) -> Any:
    weight = router.aggr_router.weight
    keys = router.keys(tokens.to(weight.device, weight.dtype))

    def route(hidden: Tensor, rows: slice) -> Tensor:
        whose: Tensor = router(hidden, keys[rows])
        return whose

    return route


def load(parts: Parts, *, device: str) -> UniPortrait:
    """Of a folder with the published files, or the first of them."""
    return UniPortrait(parts, device=device)


__all__ = ["UniPortrait", "load", "routers", "seen"]
