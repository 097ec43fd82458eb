"""ConsistentID (Huang et al. 2024, arXiv 2404.16771), of SD 1.5 and SDXL: FaceID-Plus, and words of a description merged with the face's parts.

What the published pipelines do, but for three things. The description was LLaVA's in training and a fixed sentence since: here it is the user's
or that sentence. SD 1.5's pipeline shows the recogniser blue for red, and SDXL's its second text encoder the marks as letters: the training did
neither, nor do we. And the published ones look at the whole picture; we at head and shoulders, so that a large photo is no worse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from engine.types import AvatarError
from exporters.files import find, sha256
from exporters.portraits import encoders, face_parts, parsing, projectors
from exporters.portraits.attention import keys_and_values, low_rank, plus
from exporters.portraits.contract import Attachment, Defaults, Family, IdentityTokens, Parts, Prompted
from exporters.portraits.face_parts import MARK, WORDS
from exporters.portraits.photos import Photo

STEMS = ("ConsistentID",)
PARSERS = ("face_parsing", "79999_iter", "parsing_bisenet")
"""Names of the face parsing's file, which lies beside ConsistentID's where it is published."""
PARSED: dict[Family, int] = {"sd15": 512, "sdxl": 1280}
"""px of the picture that is parsed."""
FIXED: dict[Family, str] = {
    "sd15": "The person has one face, one nose, two eyes, two ears, and one mouth.",
    "sdxl": "The person has one face, one nose, two eyes, two ears, and a mouth.",
}
"""The description where none is given."""
LONGEST = 330
"""Letters of a description."""
BEFORE: dict[Family, str] = {"sd15": "Detail:", "sdxl": "; Detail:"}
"""What stands before it in the prompt."""
MERGE_FROM = 0.6
"""Share of the steps that see the plain text."""
WIDE = 2048
"""Channels of SDXL's text."""


class FacialEncoder(nn.Module):
    """The file's: what CLIP sees of a part of the face -> a token, and a word's token with it -> what takes the word's place."""

    def __init__(self, held: Mapping[str, Tensor]) -> None:
        super().__init__()
        prefix = "visual_projection."
        self.visual_projection = projectors.Resampler({key[len(prefix) :]: value for key, value in held.items() if key.startswith(prefix)})
        self.fuse_module = projectors.Fuse(held["fuse_module.layer_norm.weight"].shape[0])


class ConsistentId:
    """Tokens beside the text, a LoRA, and a text with the face's parts in it."""

    name = "consistentid"
    together = False
    unet = None

    def __init__(self, parts: Parts, *, device: str) -> None:
        path = encoders.adapter_file(parts.weights, STEMS)
        self._path, self._parts, self._device = path, parts, device
        facial = encoders.section(path, "FacialEncoder")
        held, attention = encoders.section(path, "image_proj", "image_proj_model"), encoders.section(path, "adapter_modules")
        if "perceiver_resampler.proj_in.weight" not in held or not {"visual_projection.latents", "fuse_module.layer_norm.weight"} <= set(facial):
            raise AvatarError(f"{path.name} is no ConsistentID that is known here; give ConsistentID-v1.bin or ConsistentID_SDXL-v1.bin.")
        self._lora = {key: value for key, value in attention.items() if "_lora." in key}
        self._attention = {key: value for key, value in attention.items() if "_lora." not in key}
        self._project = projectors.loaded(projectors.MlpPlus(held), held, path.name)
        self._facial = projectors.loaded(FacialEncoder(facial), facial, path.name)
        self._family: Family = self._of(held["norm.weight"].shape[0])
        self.variant, self.families = str(self._family), (self._family,)
        self.defaults = Defaults(
            50,
            5.0 if self._family == "sd15" else 7.5,
            1.0,
            "a photo of a person, head and shoulders, looking at the camera",
            "monochrome, lowres, bad anatomy, worst quality, low quality, blurry",
        )
        self.digest = sha256(path)

    def _of(self, width: int) -> Family:
        """What the file is for; it decides whether the projector has a shortcut."""
        if self._parts.variant not in (None, "sd15", "sdxl"):
            raise AvatarError(f"ConsistentID has the variants sd15 and sdxl, not '{self._parts.variant}'.")
        return "sdxl" if (self._parts.variant or ("sdxl" if width == WIDE or "sdxl" in self._path.stem.lower() else "sd15")) == "sdxl" else "sd15"

    @torch.no_grad()
    def encode(self, photos: Sequence[Photo]) -> IdentityTokens:
        """Of the best photo: the face as FaceID-Plus sees it, and a token of each part of the face that is seen."""
        network = encoders.recogniser(self._parts.recogniser, self._path, prefer="w600k_r50.onnx")
        vector = torch.from_numpy(encoders.vectors(network, photos[:1], normed=True)).to(self._device)
        if vector.shape[1] != (wanted := self._project.proj[0].in_features):
            raise AvatarError(f"ConsistentID reads vectors of {wanted} numbers, and {network.path.name} makes {vector.shape[1]}; give buffalo_l's.")
        eye = encoders.image_encoder(self._parts.image_encoder, self._path, device=self._device)
        if eye.width != (wanted := self._project.perceiver_resampler.proj_in.in_features):
            raise AvatarError(f"ConsistentID reads an image encoder of width {wanted}, and this one has {eye.width}; give ViT-H/14.")
        picture = encoders.square(photos[0], encoders.BUST)
        seen = self._seen(picture, photos[0].name)
        pixels = eye.pixels([picture, *(face_parts.only(picture, mask) for _, mask in seen)])
        states, nothing = eye.hidden(pixels), eye.hidden(torch.zeros_like(pixels[:1]))
        tokens = self._project.to(self._device)(
            torch.cat([torch.zeros_like(vector), vector]), torch.cat([nothing, states[:1]]), shortcut=self._family == "sdxl"
        )
        looked = self._facial.to(self._device).visual_projection(torch.cat([nothing, states[1:]]))[:, 0]
        held = encoders.arrays(tokens=tokens, nothing=looked[:1], parts=looked[1:])
        words = np.array([WORDS.index(word) for word, _ in seen], np.float32)
        return IdentityTokens(self.name, self.variant, {**held, "words": words}, (photos[0].sha256,), self.digest)

    def _seen(self, picture: Any, name: str) -> list[tuple[str, Any]]:
        """(word, mask) of the parts of the face. Raises AvatarError where the parser sees none."""
        path = find([self._path.parent], PARSERS)
        if path is None:
            raise AvatarError(f"ConsistentID's {PARSERS[0]}.pth is not in {self._path.parent}; put it there from where the weights are from.")
        side = PARSED[self._family]
        squashed = np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR), np.uint8)
        labels = parsing.labels(parsing.open_parser(path, device=self._device), squashed)
        seen = face_parts.regions(np.asarray(labels.cpu().numpy(), np.uint8))
        if not seen:
            raise AvatarError(f"{path.name} sees no part of a face in {name}; use a clearer photo, or get the published file again.")
        return seen

    def attach(self, base: Any, tokens: IdentityTokens, *, scale: float, size: tuple[int, int]) -> Attachment:
        """Keys and values for every cross-attention, the LoRA, and the merged text. `scale` is the tokens' alone."""
        description = FIXED[self._family] if self._parts.description is None else self._parts.description
        if len(description) > LONGEST:
            raise AvatarError(f"The description has {len(description)} letters, and ConsistentID reads {LONGEST}; shorten --describe.")
        given = torch.from_numpy(tokens.arrays["tokens"])
        added = keys_and_values(base.unet, self._attention, given, names=("to_k_ip", "to_v_ip"), mix=plus(scale), what=self._path.name)
        words = [WORDS[int(k)] for k in tokens.arrays["words"]]
        told, wanted = face_parts.described(description, words)
        if not wanted:
            raise AvatarError(f"--describe names nothing that is seen of the face; use words of {', '.join(words)}.")
        rows = [k for k, word in enumerate(words) if word in wanted]
        parts, nothing = (torch.from_numpy(tokens.arrays[name]).to(self._device) for name in ("parts", "nothing"))
        fuse = self._facial.fuse_module.to(self._device)

        def text(base: Any, prompt: str, negative: str) -> tuple[Prompted, Prompted]:
            return prompted(base, prompt, negative, told, (nothing, parts[rows]), fuse)

        return Attachment(added, low_rank(base.unet, self._lora, what=self._path.name), text, MERGE_FROM)


def prompted(base: Any, prompt: str, negative: str, told: str, tokens: tuple[Tensor, Tensor], fuse: Any) -> tuple[Prompted, Prompted]:
    """(the text, the text with the parts' tokens merged in); the unconditional half of both has those of nothing at the same places.

    `told`: `described`'s; `tokens`: of nothing [1, width], and of the parts [N, width], as many as `told` has marks.
    """
    from exporters.portraits.pipeline import encoded

    pipe, before = base.pipe, BEFORE[base.family]
    whole = f"{prompt}{before}{told}"
    if len(spelt(pipe.tokenizer, whole)[0]) + whole.count(MARK) > pipe.tokenizer.model_max_length:
        whole = f"{before}{told} Caption:{prompt}"  # so that it is the prompt that is cut
    early = encoded(base, prompt if base.family == "sdxl" else whole.replace(MARK, ""), negative)
    ids, places = marked(pipe.tokenizer, whole)
    pooled = None
    if base.family == "sdxl":
        other, _ = marked(pipe.tokenizer_2, whole)
        first = pipe.text_encoder(ids.to(base.device), output_hidden_states=True)
        second = pipe.text_encoder_2(other.to(base.device), output_hidden_states=True)
        pooled = second[0]
        some = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
    else:
        some = pipe.text_encoder(ids.to(base.device))[0]
    nothing, parts = tokens
    none = early.text[:1].clone()
    for text, merged in ((some, parts[: len(places)]), (none, nothing.expand(len(places), -1))):
        text[0, places] = fuse(text[0, places].float(), merged).to(text.dtype)
    if early.pooled is None or pooled is None:
        return Prompted(torch.cat([none, early.text[1:]])), Prompted(torch.cat([none, some]))
    late = torch.cat([early.pooled[:1], pooled])
    return Prompted(torch.cat([none, early.text[1:]]), early.pooled), Prompted(torch.cat([none, some]), late)


def spelt(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    """(ids of a text with marks, of any length; the place of the token before each mark)."""
    ids, places = [tokenizer.bos_token_id], []
    for piece in text.split(MARK):
        ids += tokenizer.encode(piece, add_special_tokens=False)
        places.append(len(ids) - 1)
    return [*ids, tokenizer.eos_token_id], places[:-1]


def marked(tokenizer: Any, text: str) -> tuple[Tensor, list[int]]:
    """(ids [1, 77], the places that are left). What is too long is cut off with the mark of its end, as published."""
    ids, places = spelt(tokenizer, text)
    length = tokenizer.model_max_length
    ids = ids[:length]
    return torch.tensor([ids + [tokenizer.pad_token_id] * (length - len(ids))]), [place for place in places if place < length]


def load(parts: Parts, *, device: str) -> ConsistentId:
    """Of a file, or a folder that holds one."""
    return ConsistentId(parts, device=device)


__all__ = ["ConsistentId", "FacialEncoder", "load", "marked", "prompted", "spelt"]
