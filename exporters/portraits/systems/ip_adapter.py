"""IP-Adapter (Ye et al. 2023, arXiv 2308.06721): plain, plus, plus-face and full-face, of SD 1.5 and SDXL.

Which one a file is, its keys say; only whether a plus one is for faces its name does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from engine.types import AvatarError
from exporters.files import sha256
from exporters.portraits import encoders, projectors
from exporters.portraits.attention import keys_and_values, plus
from exporters.portraits.contract import Attachment, Defaults, Family, IdentityTokens, Parts
from exporters.portraits.encoders import BUST, HEAD
from exporters.portraits.photos import Photo

STEMS = ("ip-adapter", "ip_adapter")
KINDS = {"latents": "plus", "proj.3.weight": "full-face", "proj.weight": "plain"}
"""Key that only this kind has -> the kind."""
NETWORKS = {"plain": projectors.Linear, "plus": projectors.Resampler, "plus-face": projectors.Resampler, "full-face": projectors.Pointwise}


class IpAdapter:
    """Tokens of a CLIP image encoder beside the text."""

    name = "ip-adapter"
    families: tuple[Family, ...] = ("sd15", "sdxl")
    together = False
    unet = None
    defaults = Defaults(
        30, 6.0, 0.7, "a photo of a person, head and shoulders, looking at the camera", "lowres, blurry, cropped, hands, sunglasses, deformed"
    )

    def __init__(self, parts: Parts, *, device: str) -> None:
        path = encoders.adapter_file(parts.weights, STEMS)
        self._path, self._parts, self._device = path, parts, device
        held, self._attention = encoders.halves(path, "image_proj", "ip_adapter")
        if "perceiver_resampler.proj_in.weight" in held or "0.to_q_lora.down.weight" in self._attention:
            raise AvatarError(f"{path.name} is an IP-Adapter-FaceID; use --system faceid.")
        kind = next((kind for key, kind in KINDS.items() if key in held), None)
        if kind is None:
            raise AvatarError(f"{path.name} is no IP-Adapter that is known here; its keys begin with '{next(iter(held))}'.")
        self.variant = "plus-face" if kind == "plus" and "face" in (parts.variant or path.stem) else kind
        self._project = projectors.loaded(NETWORKS[self.variant](held), held, path.name)
        self.digest = sha256(path)

    @torch.no_grad()
    def encode(self, photos: Sequence[Photo]) -> IdentityTokens:
        """Of the best photo, its face or the person."""
        eye = encoders.image_encoder(self._parts.image_encoder, self._path, device=self._device)
        pixels = eye.pixels([encoders.square(photos[0], HEAD if self.variant.endswith("face") else BUST)])
        if self.variant == "plain":
            seen = eye.pooled(pixels)
            nothing = torch.zeros_like(seen)  # zeros of the embedding, not the embedding of zeros as the others have it
        else:
            seen, nothing = eye.hidden(pixels), eye.hidden(torch.zeros_like(pixels))
        _fits(self._project, seen.shape[-1], self._path.name)
        tokens = self._project.to(self._device)(torch.cat([nothing, seen]))
        return IdentityTokens(self.name, self.variant, encoders.arrays(tokens=tokens), (photos[0].sha256,), self.digest)

    def attach(self, base: Any, tokens: IdentityTokens, *, scale: float, size: tuple[int, int]) -> Attachment:
        """Keys and values for every cross-attention."""
        given = torch.from_numpy(tokens.arrays["tokens"])
        added = keys_and_values(base.unet, self._attention, given, names=("to_k_ip", "to_v_ip"), mix=plus(scale), what=self._path.name)
        return Attachment(added)


def _fits(project: Any, width: int, name: str) -> None:
    """Raise AvatarError where the image encoder is another one."""
    wanted = next(module.in_features for module in project.modules() if isinstance(module, torch.nn.Linear))
    if isinstance(project, projectors.Resampler):
        wanted = project.proj_in.in_features
    if wanted != width:
        raise AvatarError(f"{name} reads an image encoder of width {wanted}, and this one has {width}; give its own (ViT-H/14 or ViT-bigG/14).")


def load(parts: Parts, *, device: str) -> IpAdapter:
    """Of a file, or a folder that holds one."""
    return IpAdapter(parts, device=device)


__all__ = ["IpAdapter", "load"]
