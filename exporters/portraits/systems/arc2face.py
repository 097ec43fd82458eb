"""Arc2Face (Paraperas Papantoniou et al. 2024, arXiv 2403.11641): a face's vector in place of a word, a text encoder and a UNet taught to read it.

No prompt is read: the text is always the same, and everything but the face is left to chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from engine.types import AvatarError
from exporters import files
from exporters.files import CONFIG, sha256
from exporters.portraits import encoders
from exporters.portraits.contract import Attachment, Defaults, Family, IdentityTokens, Parts, Prompted
from exporters.portraits.photos import Photo

PROMPT, WORD = "photo of a id person", "id"
"""What is encoded, and the word whose embedding the vector takes the place of."""
UNET, ENCODER, RECOGNISER = "arc2face", "encoder", "arcface.onnx"


class Arc2Face:
    """A text encoding of a person, and the UNet for it."""

    name, variant = "arc2face", "arc2face"
    families: tuple[Family, ...] = ("sd15",)
    together = False
    defaults = Defaults(25, 3.0, 1.0, PROMPT)

    def __init__(self, parts: Parts, *, device: str) -> None:
        home = parts.weights if parts.weights.is_dir() else parts.weights.parent
        self.unet, self._encoder, self._parts, self._device = home / UNET, home / ENCODER, parts, device
        for folder in (self.unet, self._encoder):
            if not (folder / CONFIG).is_file():
                raise AvatarError(f"{folder} has no {CONFIG}; give the folder that holds Arc2Face's {UNET} and {ENCODER} with --weights.")
        path = files.find([self._encoder], ["pytorch_model", "model"])
        if path is None:
            raise AvatarError(f"{self._encoder} holds no weights; download Arc2Face's folder again.")
        self._home, self.digest = home, sha256(path)

    def encode(self, photos: Sequence[Photo]) -> IdentityTokens:
        """Of the best photo: the vector of Arc2Face's own recogniser, brought to length 1."""
        network = encoders.recogniser(self._parts.recogniser, self._home, prefer=RECOGNISER)
        vector = encoders.vectors(network, photos[:1], normed=True)
        return IdentityTokens(self.name, self.variant, {"vector": vector}, (photos[0].sha256,), self.digest)

    def attach(self, base: Any, tokens: IdentityTokens, *, scale: float, size: tuple[int, int]) -> Attachment:
        """The text encoding; `scale` multiplies the vector, 1 as published."""
        from transformers import CLIPTextModel

        encoders.quiet()
        try:
            encoder = CLIPTextModel.from_pretrained(self._encoder, local_files_only=True, dtype=base.unet.dtype)
        except (OSError, ValueError, RuntimeError) as error:
            raise AvatarError(f"The text encoder in {self._encoder} does not load ({str(error).splitlines()[0]}); download it again.") from error
        encoder = encoder.to(base.device).eval().requires_grad_(False)
        vector = torch.from_numpy(scale * tokens.arrays["vector"][0])
        if len(vector) > encoder.config.hidden_size:
            raise AvatarError(
                f"The recogniser gives {len(vector)} numbers and the text encoder takes {encoder.config.hidden_size}; give {RECOGNISER}."
            )

        def text(base: Any, prompt: str, negative: str) -> tuple[Prompted, Prompted]:
            some = with_vector(encoder, base.pipe.tokenizer, vector)
            none = encoder(ids(base.pipe.tokenizer, negative).to(base.device))[0]
            made = Prompted(torch.cat([none, some]))
            return made, made

        return Attachment(text=text)


def ids(tokenizer: Any, text: str) -> Any:
    """[1, 77] of a prompt."""
    length = tokenizer.model_max_length
    return tokenizer(text, truncation=True, padding="max_length", max_length=length, return_tensors="pt").input_ids


def with_vector(encoder: Any, tokenizer: Any, vector: Any) -> Any:
    """PROMPT encoded [1, 77, width] with a vector [D], zeros behind it, as the embedding of WORD."""
    word = tokenizer.encode(WORD, add_special_tokens=False)
    words = ids(tokenizer, PROMPT).to(encoder.device)
    places = words[0] == word[0]
    if len(word) != 1 or int(places.sum()) != 1:
        raise AvatarError(f"The base's tokenizer does not know '{WORD}' as one word; give a Stable Diffusion 1.5 as --base.")
    padded = torch.nn.functional.pad(vector, (0, encoder.config.hidden_size - len(vector))).to(encoder.device, encoder.dtype)

    def replaced(module: Any, given: Any, out: Any) -> Any:
        return torch.where(places[None, :, None], padded, out)

    hook = encoder.get_input_embeddings().register_forward_hook(replaced)
    try:
        return encoder(words)[0]
    finally:
        hook.remove()


def load(parts: Parts, *, device: str) -> Arc2Face:
    """Of a folder with the published folders."""
    return Arc2Face(parts, device=device)


__all__ = ["Arc2Face", "load", "with_vector"]
