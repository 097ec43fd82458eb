"""Stable Diffusion 1.5 and SDXL with random weights, small enough for a test, as folders in diffusers' layout; and a CLIP image encoder."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

WIDTH = 32
"""Channels of the text, and of every token beside it."""
SEEN = 24
"""Channels of the image encoder."""
WORDS = ("a", "photo", "of", "person", "man", "woman", "img", "id", "head", "and", "shoulders", "looking", "at", "the", "camera", "blurry")


def base(folder: Path, *, family: str = "sd15") -> Path:
    """A whole base."""
    import diffusers
    import torch
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    xl = family == "sdxl"
    more: dict[str, Any] = (
        {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + WIDTH // 2} if xl else {}
    )
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
        norm_num_groups=8,
        **more,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        sample_size=64,
    )
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
    words = tokenizer(folder / "words")
    parts: dict[str, Any] = {"unet": unet, "vae": vae, "scheduler": scheduler, "tokenizer": words}
    if xl:
        parts |= {"text_encoder": text_encoder(WIDTH // 2), "text_encoder_2": text_encoder(WIDTH // 2, projected=True), "tokenizer_2": words}
        pipe = diffusers.StableDiffusionXLPipeline(**parts)
    else:
        parts |= {"text_encoder": text_encoder(WIDTH), "safety_checker": None, "feature_extractor": None}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipe = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipe.save_pretrained(folder / family)
    return folder / family


def tokenizer(folder: Path) -> Any:
    """CLIP's, of WORDS and single letters."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(33, 127)]
    merges: list[str] = []
    pieces = [*letters, *(f"{letter}</w>" for letter in letters)]
    for word in WORDS:
        left = word[0] if len(word) > 1 else f"{word}</w>"
        for k, letter in enumerate(word[1:], start=2):
            right = letter if k < len(word) else f"{letter}</w>"
            if f"{left} {right}" not in merges:
                merges.append(f"{left} {right}")
                pieces.append(left + right)
            left += right
    vocabulary = {piece: k for k, piece in enumerate(dict.fromkeys([*pieces, "<|startoftext|>", "<|endoftext|>"]))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def text_encoder(width: int, *, projected: bool = False) -> Any:
    """A CLIP text encoder with random weights."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=400, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3, num_attention_heads=2, projection_dim=WIDTH // 2,
        bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def image_encoder(folder: Path, *, width: int = SEEN, side: int = 28, patch: int = 7) -> Path:
    """A CLIP image encoder with random weights: 17 tokens, projection of 20."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(2)
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=side,
        patch_size=patch,
        projection_dim=20,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder
