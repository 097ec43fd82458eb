"""IP-Adapter-FaceID, -Plus, -PlusV2 and -Portrait (h94/IP-Adapter-FaceID), of SD 1.5 and SDXL: a recogniser's vector instead of a picture.

Plus and PlusV2 have the same keys and shapes; the file's name says which, or --variant. Portrait has no LoRA, and reads as many photos as are
given: 16 tokens of each, one behind the other. The published code is told their number (5 in its example) and fills up nothing, nor do we.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from engine.types import AvatarError
from exporters.files import sha256
from exporters.portraits import encoders, projectors
from exporters.portraits.attention import keys_and_values, low_rank, plus
from exporters.portraits.contract import Attachment, Defaults, Family, IdentityTokens, Parts
from exporters.portraits.photos import Photo

STEMS = ("ip-adapter-faceid",)
CROP = 224
"""px of the aligned face that CLIP sees: twice the recogniser's template."""
OF_A_PHOTO = 16
"""FaceID-Portrait's tokens of each photo; every other FaceID makes 4."""


class FaceId:
    """Tokens of a face's vector beside the text, and for all but Portrait a LoRA on every attention."""

    name = "faceid"
    families: tuple[Family, ...] = ("sd15", "sdxl")
    unet = None
    defaults = Defaults(
        30, 6.0, 1.0, "a photo of a person, head and shoulders, looking at the camera", "lowres, blurry, cropped, hands, sunglasses, deformed"
    )

    def __init__(self, parts: Parts, *, device: str) -> None:
        path = encoders.adapter_file(parts.weights, STEMS)
        self._path, self._parts, self._device = path, parts, device
        held, attention = encoders.halves(path, "image_proj", "ip_adapter")
        if "unnorm" in path.stem and "latents" in held:
            raise AvatarError(f"{path.name} came without code that says how it is read; use ip-adapter-faceid-portrait_sdxl.bin.")
        if "norm.weight" not in held or "proj.0.weight" not in held:
            raise AvatarError(f"{path.name} is no IP-Adapter-FaceID; use --system ip-adapter.")
        self._lora = {key: value for key, value in attention.items() if "_lora." in key}
        self._attention = {key: value for key, value in attention.items() if "_lora." not in key}
        self.variant = self._kind(held, parts, path.stem)
        self.together = self.variant == "portrait"
        kind = projectors.MlpPlus if self.variant.startswith("plus") else projectors.Mlp
        self._project = projectors.loaded(kind(held), held, path.name)
        self.digest = sha256(path)

    def _kind(self, held: Any, parts: Parts, stem: str) -> str:
        if not self._lora:
            rows, width = held["proj.2.weight"].shape[0], held["norm.weight"].shape[0]
            if rows != OF_A_PHOTO * width or "perceiver_resampler.proj_in.weight" in held:
                raise AvatarError(f"{self._path.name} lacks its LoRA and is no FaceID-Portrait; get the published file again.")
            return "portrait"
        if "perceiver_resampler.proj_in.weight" not in held:
            return "faceid"
        if parts.variant not in (None, "plus", "plusv2"):
            raise AvatarError(f"FaceID-Plus has the variants plus and plusv2, not '{parts.variant}'.")
        if parts.variant is None and "plus" not in stem:
            raise AvatarError(f"{self._path.name} is FaceID-Plus or FaceID-PlusV2, and only its name would say which; give --variant plus or plusv2.")
        return parts.variant or ("plusv2" if "plusv2" in stem.replace("-v2", "v2") else "plus")

    @torch.no_grad()
    def encode(self, photos: Sequence[Photo]) -> IdentityTokens:
        """Of the best photo, for Portrait of every one: the recogniser's vector brought to length 1; and for Plus what CLIP sees of the aligned
        face."""
        used = photos if self.together else photos[:1]
        network = encoders.recogniser(self._parts.recogniser, self._path, prefer="w600k_r50.onnx")
        vector = torch.from_numpy(encoders.vectors(network, used, normed=True)).to(self._device)
        wanted = self._project.proj[0].in_features
        if vector.shape[1] != wanted:
            raise AvatarError(
                f"{self._path.name} reads vectors of {wanted} numbers, and {network.path.name} makes {vector.shape[1]}; give buffalo_l's."
            )
        both = torch.cat([torch.zeros_like(vector), vector])
        project = self._project.to(self._device)
        if not self.variant.startswith("plus"):
            tokens = project(both).unflatten(0, (2, -1)).flatten(1, 2)
        else:
            eye = encoders.image_encoder(self._parts.image_encoder, self._path, device=self._device)
            pixels = eye.pixels([encoders.aligned(photos[0], CROP)])
            seen = torch.cat([eye.hidden(torch.zeros_like(pixels)), eye.hidden(pixels)])
            if seen.shape[-1] != (reads := project.perceiver_resampler.proj_in.in_features):
                raise AvatarError(f"{self._path.name} reads an image encoder of width {reads}, and this one has {seen.shape[-1]}; give ViT-H/14.")
            tokens = project(both, seen, shortcut=self.variant == "plusv2")
        return IdentityTokens(self.name, self.variant, encoders.arrays(tokens=tokens), tuple(photo.sha256 for photo in used), self.digest)

    def attach(self, base: Any, tokens: IdentityTokens, *, scale: float, size: tuple[int, int]) -> Attachment:
        """Keys and values for every cross-attention, and the LoRA where there is one, whose factor is 1 whatever the scale."""
        given = torch.from_numpy(tokens.arrays["tokens"])
        added = keys_and_values(base.unet, self._attention, given, names=("to_k_ip", "to_v_ip"), mix=plus(scale), what=self._path.name)
        return Attachment(added, low_rank(base.unet, self._lora, what=self._path.name) if self._lora else {})


def load(parts: Parts, *, device: str) -> FaceId:
    """Of a file, or a folder that holds one."""
    return FaceId(parts, device=device)


__all__ = ["FaceId", "load"]
