"""What attentions read beside pictures: the identity's tokens and the speech of a frame."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.generators.diffusion.layout import FACE_TOKENS
from engine.generators.diffusion.presets import Ears, Preset
from engine.generators.diffusion.text import ConstantText
from engine.types import MEL_BANDS, MEL_ROWS, MissingPart

POOLED = 8
"""px a side that the pooled encoder looks at."""
ROWS_A_TOKEN = 4
"""Rows of log-mel in one speech token: 40 ms, about one frame."""
SPEECH_TOKENS = MEL_ROWS // ROWS_A_TOKEN
MEL_MIDDLE, MEL_SPREAD = -4.0, 4.0
"""Log-mel values of speech lie about here; silence is the floor, -10."""
VECTOR = 512
"""Numbers of a recogniser's vector, and the tokens it becomes."""
NOBODY = 1e-12
"""Added to a vector's squared length, so that no vector has a direction; in half precision it would be nothing."""
CLIP_SIZE = 224
CLIP_MEAN, CLIP_DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class PooledImage(nn.Module):
    """One token from the colours of a very small picture."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(3 * POOLED**2, width)

    def forward(self, picture: Tensor) -> Tensor:
        """[N, 3, H, W] -1..1 -> [N, 1, D]"""
        made: Tensor = self.proj(functional.adaptive_avg_pool2d(picture, POOLED).flatten(1))[:, None]
        return made


class ClipImage(nn.Module):
    """CLIP's image embedding as one token, squashed to a square and not normalised, as the published networks were trained with."""

    def __init__(self, model: Any = None) -> None:
        super().__init__()
        try:
            from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
        except ImportError as error:
            raise MissingPart(f"The image encoder needs transformers ({error}); run `make torch`, or pip install 'avatar-engine[torch]'.") from error

        self.model = model or CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14, projection_dim=768
            )
        )

    def forward(self, picture: Tensor) -> Tensor:
        """[N, 3, H, W] -1..1 -> [N, 1, 768]"""
        small = functional.interpolate((picture.float() + 1) / 2, (CLIP_SIZE, CLIP_SIZE), mode="bicubic", antialias=True).clamp(0, 1)
        mean, deviation = (torch.tensor(x, device=small.device).view(1, 3, 1, 1) for x in (CLIP_MEAN, CLIP_DEVIATION))
        weight = next(self.model.parameters())
        made: Tensor = self.model(((small - mean) / deviation).to(weight.dtype)).image_embeds[:, None]
        return made


class SpeechTokens(nn.Module):
    """The log-mel of a frame as a few tokens of 40 ms."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(ROWS_A_TOKEN * MEL_BANDS, width)
        self.position = nn.Parameter(torch.zeros(SPEECH_TOKENS, width))

    def forward(self, logmel: Tensor) -> Tensor:
        """[N, 16, 80] -> [N, 4, D]"""
        grouped = logmel.unflatten(1, (SPEECH_TOKENS, ROWS_A_TOKEN)).flatten(2)
        made: Tensor = self.proj((grouped - MEL_MIDDLE) / MEL_SPREAD) + self.position
        return made


class FaceTokens(nn.Module):
    """A recogniser's vector, as it gives it, as four tokens; names as in Hallo's `imageproj`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj, self.norm = nn.Linear(VECTOR, FACE_TOKENS * width), nn.LayerNorm(width)

    def forward(self, vector: Tensor) -> Tensor:
        """[N, 512] -> [N, 4, D]"""
        made: Tensor = self.norm(self.proj(vector).unflatten(1, (FACE_TOKENS, -1)))
        return made


class FaceIdTokens(nn.Module):
    """A recogniser's vector, brought to length 1, as four tokens; names as in IP-Adapter-FaceID's `image_proj`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Linear(VECTOR, 2 * VECTOR), nn.GELU(), nn.Linear(2 * VECTOR, FACE_TOKENS * width))
        self.norm = nn.LayerNorm(width)

    def forward(self, vector: Tensor) -> Tensor:
        """[N, 512], zeros for nobody -> [N, 4, D]"""
        exact = vector.float()
        unit = exact / (exact.square().sum(1, keepdim=True) + NOBODY).sqrt()
        made: Tensor = self.norm(self.proj(unit.to(self.norm.weight.dtype)).unflatten(1, (FACE_TOKENS, -1)))
        return made


class LayeredSpeech(nn.Module):
    """The layers of wav2vec around a frame as tokens; names as in Hallo's `audioproj`."""

    def __init__(self, ears: Ears, width: int) -> None:
        super().__init__()
        rows, columns = ears.heard
        self.tokens = ears.tokens
        self.proj1, self.proj2 = nn.Linear(rows * columns, ears.hidden), nn.Linear(ears.hidden, ears.hidden)
        self.proj3, self.norm = nn.Linear(ears.hidden, ears.tokens * width), nn.LayerNorm(width)

    def forward(self, heard: Tensor) -> Tensor:
        """[N, 5 layers, C], frame by frame -> [N, T, D]"""
        x = functional.relu(self.proj2(functional.relu(self.proj1(heard.flatten(1)))))
        made: Tensor = self.norm(self.proj3(x).unflatten(1, (self.tokens, -1)))
        return made


def speech_tokens(made: Preset) -> SpeechTokens | LayeredSpeech | nn.Identity | None:
    """What makes tokens of what a frame hears (`Ears.heard`); Whisper's states are tokens already."""
    if not made.unet.speech_dim:
        return None
    if made.ears.kind == "mel":
        return SpeechTokens(made.unet.speech_dim)
    return nn.Identity() if made.ears.kind == "whisper" else LayeredSpeech(made.ears, made.unet.speech_dim)


def image_encoder(made: Preset) -> PooledImage | ClipImage | FaceTokens | ConstantText | None:
    """The one of a preset. That of faces reads a recogniser's vector, the others a picture."""
    if made.image_encoder == "none":
        return None
    if made.image_encoder == "face":
        return FaceTokens(made.unet.image_dim)
    if made.image_encoder == "text":
        return ConstantText(made.unet.image_dim)
    return ClipImage() if made.image_encoder == "clip" else PooledImage(made.unet.image_dim)


def face_tokens(made: Preset) -> FaceIdTokens | None:
    """What makes those of a face that the denoiser reads beside the identity's."""
    return FaceIdTokens(made.unet.face_dim) if made.unet.face_dim else None


__all__ = [
    *("SPEECH_TOKENS", "VECTOR", "ClipImage", "FaceIdTokens", "FaceTokens", "LayeredSpeech", "PooledImage", "SpeechTokens"),
    *("face_tokens", "image_encoder", "speech_tokens"),
]
