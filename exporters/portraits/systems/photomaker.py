"""PhotoMaker v1 and v2 (Li et al. 2023, arXiv 2312.04461): all photos of a person stacked into SDXL's text where its class word is.

v1 makes one token a photo of what a CLIP that was trained with it sees; v2 makes two, of a recogniser's raw vector and that CLIP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from engine.types import AvatarError
from exporters.files import sha256
from exporters.portraits import encoders, projectors
from exporters.portraits.contract import Attachment, Defaults, Family, IdentityTokens, Parts, Prompted
from exporters.portraits.photos import Photo
from exporters.portraits.projectors import Fuse

STEMS = ("photomaker",)
TRIGGER = "img"
"""The word in a prompt that stands behind the class word."""
MERGE_FROM = 0.2
"""Share of the steps that see the plain text, for the picture's layout."""
CLIP_HEAD, RETRIEVER_HEAD = 64, 128
"""Channels a head of its CLIP (ViT-L/14) and of v2's perceiver."""
FORGOTTEN = "vision_model.embeddings.position_ids"
"""0, 1, 2 and so on, which older files hold."""


class QFormer(nn.Module):
    """v2: vectors [N, D] and CLIP's last states [N, L, C] -> [N, tokens, width]."""

    def __init__(self, held: Mapping[str, Tensor]) -> None:
        super().__init__()
        inner, vector = held["token_proj.0.weight"].shape
        self.width = held["token_norm.weight"].shape[0]
        self.token_proj = nn.Sequential(nn.Linear(vector, inner), nn.GELU(), nn.Linear(inner, held["token_proj.2.weight"].shape[0]))
        self.token_norm = nn.LayerNorm(self.width)
        self.perceiver_resampler = projectors.Retriever(held, "perceiver_resampler.", head=RETRIEVER_HEAD)

    def forward(self, vectors: Tensor, seen: Tensor) -> Tensor:
        tokens = self.token_norm(self.token_proj(vectors).unflatten(-1, (-1, self.width)))
        made: Tensor = tokens + self.perceiver_resampler(tokens, seen)
        return made


class IdEncoder(nn.Module):
    """The file's `id_encoder`."""

    def __init__(self, held: Mapping[str, Tensor]) -> None:
        super().__init__()
        clip = vision(held)
        self.vision_model, self.visual_projection = clip.vision_model, clip.visual_projection
        inputs, outputs = held["visual_projection_2.weight"].shape[::-1]
        self.visual_projection_2 = nn.Linear(inputs, outputs, bias=False)
        self.fuse_module = Fuse(held["fuse_module.layer_norm.weight"].shape[0])
        prefix = "qformer_perceiver."
        inner = {key.removeprefix(prefix): value for key, value in held.items() if key.startswith(prefix)}
        if inner:
            self.qformer_perceiver = QFormer(inner)

    def forward(self, pixels: Tensor, vectors: Tensor | None = None) -> Tensor:
        """Photos [N, 3, side, side] and, for v2, vectors [N, D] -> tokens [N, 1 or 2, width]."""
        seen = self.vision_model(pixels)
        if vectors is not None:
            tokens: Tensor = self.qformer_perceiver(vectors, seen[0])
            return tokens
        return torch.cat([self.visual_projection(seen[1]), self.visual_projection_2(seen[1])], -1)[:, None]


def vision(held: Mapping[str, Tensor]) -> Any:
    """A CLIP image encoder as large as the one in the file; the weights come later."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    patches = held["vision_model.embeddings.patch_embedding.weight"]
    places, width = held["vision_model.embeddings.position_embedding.weight"].shape
    depth = 1 + max(int(key.split(".")[3]) for key in held if key.startswith("vision_model.encoder.layers."))
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=held["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
            num_hidden_layers=depth,
            num_attention_heads=width // CLIP_HEAD,
            patch_size=patches.shape[-1],
            image_size=round((places - 1) ** 0.5) * patches.shape[-1],
            projection_dim=held["visual_projection.weight"].shape[0],
        )
    )


class PhotoMaker:
    """Text with a person in it, and a LoRA."""

    name = "photomaker"
    families: tuple[Family, ...] = ("sdxl",)
    together = True
    unet = None
    defaults = Defaults(
        50, 5.0, 1.0, f"a photo of a person {TRIGGER}, head and shoulders, looking at the camera", "lowres, blurry, cropped, deformed"
    )

    def __init__(self, parts: Parts, *, device: str) -> None:
        path = encoders.adapter_file(parts.weights, STEMS)
        self._path, self._parts, self._device = path, parts, device
        held, self._lora = encoders.halves(path, "id_encoder", "lora_weights")
        held = {key: value for key, value in held.items() if key != FORGOTTEN}
        if "fuse_module.layer_norm.weight" not in held or "visual_projection_2.weight" not in held:
            raise AvatarError(f"{path.name} is no PhotoMaker that is known here; give photomaker-v1.bin or photomaker-v2.bin.")
        self.variant = "v2" if any(key.startswith("qformer_perceiver.") for key in held) else "v1"
        self._encoder = projectors.loaded(IdEncoder(held), held, path.name)
        self.digest = sha256(path)

    @torch.no_grad()
    def encode(self, photos: Sequence[Photo]) -> IdentityTokens:
        """Of every photo."""
        side = int(self._encoder.vision_model.config.image_size)
        pixels = torch.stack([torch.from_numpy(encoders.clip_pixels(encoders.square(photo, encoders.HEAD), side)) for photo in photos])
        vectors = None
        if self.variant == "v2":
            network = encoders.recogniser(self._parts.recogniser, self._path, prefer="w600k_r50.onnx")
            vectors = torch.from_numpy(encoders.vectors(network, photos, normed=False)).to(self._device)
            if vectors.shape[1] != (wanted := self._encoder.qformer_perceiver.token_proj[0].in_features):
                raise AvatarError(
                    f"PhotoMaker v2 reads vectors of {wanted} numbers, and {network.path.name} makes {vectors.shape[1]}; give buffalo_l's."
                )
        tokens = self._encoder.to(self._device)(pixels.to(self._device), vectors)
        return IdentityTokens(self.name, self.variant, encoders.arrays(tokens=tokens), tuple(photo.sha256 for photo in photos), self.digest)

    def attach(self, base: Any, tokens: IdentityTokens, *, scale: float, size: tuple[int, int]) -> Attachment:
        """The merged text, and the LoRA, `scale` times."""
        person = torch.from_numpy(tokens.arrays["tokens"]).flatten(0, 1)
        fuse = self._encoder.fuse_module.to(self._device)

        def text(base: Any, prompt: str, negative: str) -> tuple[Prompted, Prompted]:
            return prompted(base, prompt, negative, person.to(self._device), fuse)

        return Attachment(weights=lora(base.unet, self._lora, scale, self._path.name), text=text, merge_from=MERGE_FROM)


def prompted(base: Any, prompt: str, negative: str, person: Tensor, fuse: Any) -> tuple[Prompted, Prompted]:
    """(the prompt without the trigger, the prompt with the person's tokens [N, width] at its class word). Raises AvatarError without one."""
    from exporters.portraits.pipeline import encoded

    before, found, after = f" {prompt} ".partition(f" {TRIGGER}")
    if not found or not before.strip() or (after[:1].isalnum()) or f" {TRIGGER}" in after:
        raise AvatarError(f"PhotoMaker's prompt needs '{TRIGGER}' once, behind who is shown, such as 'a photo of a woman {TRIGGER}'.")
    pipe = base.pipe
    # As the words are without the trigger: taken apart and put together again, which sets the blanks.
    words = pipe.tokenizer.encode(before, add_special_tokens=False) + pipe.tokenizer.encode(after, add_special_tokens=False)
    early = encoded(base, pipe.tokenizer.decode(words), negative)
    texts, pooled = [], None
    for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
        ids, start = stacked(tokenizer, before, after, len(person))
        out = encoder(ids.to(base.device), output_hidden_states=True)
        pooled = out[0]
        texts.append(out.hidden_states[-2])
    merged = torch.cat(texts, -1)
    place = slice(start, start + len(person))
    merged[0, place] = fuse(merged[0, place].float(), person).to(merged.dtype)
    assert early.pooled is not None
    return early, Prompted(torch.cat([early.text[:1], merged]), torch.cat([early.pooled[:1], pooled]))


def stacked(tokenizer: Any, before: str, after: str, count: int) -> tuple[Tensor, int]:
    """(ids [1, 77] with the last word of `before` `count` times, where it begins). Raises AvatarError where that is too long."""
    first, rest = (tokenizer.encode(part, add_special_tokens=False) for part in (before, after))
    whole = [tokenizer.bos_token_id, *first[:-1], *[first[-1]] * count, *rest, tokenizer.eos_token_id]
    length = tokenizer.model_max_length
    if len(whole) > length:
        raise AvatarError(f"The prompt and {count} tokens of the person are {len(whole)} tokens, and {length} fit; shorten it, or give fewer photos.")
    return torch.tensor([whole + [tokenizer.pad_token_id] * (length - len(whole))]), len(first)


def lora(unet: Any, held: Mapping[str, Tensor], scale: float, name: str) -> dict[str, tuple[Tensor, Tensor, float]]:
    """The file's LoRA by the UNet's weights. Raises AvatarError where anything of it fits none."""
    from exporters.graphs.lora import match

    part = "denoiser."
    wanted = {f"{part}{key}": tuple(value.shape) for key, value in unet.named_parameters() if key.endswith(".weight") and value.ndim > 1}
    found = match(held, wanted, name=name)
    left = [*found.unknown, *found.unfit, *(key for keys in found.elsewhere.values() for key in keys)]
    if left:
        raise AvatarError(f"The LoRA in {name} does not fit this base ({len(left)} modules, such as '{left[0]}'); use the SDXL it was made for.")
    return {key.removeprefix(part): (made.up, made.down, scale * made.alpha / made.down.shape[0]) for key, made in found.factors.items()}


def load(parts: Parts, *, device: str) -> PhotoMaker:
    """Of a file, or a folder that holds one."""
    return PhotoMaker(parts, device=device)


__all__ = ["Fuse", "IdEncoder", "PhotoMaker", "QFormer", "load", "prompted", "stacked"]
