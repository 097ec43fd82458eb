"""What CLIP's text encoder answers to an empty prompt, as Stable Diffusion 2 reads it: the last layer but one, then the last norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engine.generators.video.presets import UniAnimate

EMPTY_TOKENS = "tokens"
"""The key of the answer in its file."""
PER_HEAD = 64
"""Channels of a text encoder's head, where it is as wide as the published one."""


def text_encoder(made: UniAnimate, *, layers: int) -> Any:
    """OpenCLIP's text encoder of ViT-H/14 as transformers has it, or a small one for tests."""
    from transformers import CLIPTextConfig, CLIPTextModel

    start, end = _marks(made)
    return CLIPTextModel(
        CLIPTextConfig(
            hidden_size=made.context,
            intermediate_size=4 * made.context,
            num_hidden_layers=layers,
            num_attention_heads=max(2, made.context // PER_HEAD),
            max_position_embeddings=made.text,
            vocab_size=made.vocabulary,
            hidden_act="gelu",
            bos_token_id=start,
            eos_token_id=end,
            pad_token_id=0,
        )
    )


def _marks(made: UniAnimate) -> tuple[int, int]:
    """Start and end of a prompt, the last two of the vocabulary."""
    return made.vocabulary - 2, made.vocabulary - 1


@torch.no_grad()
def prompt_of(tensors: Mapping[str, Tensor], made: UniAnimate) -> Tensor:
    """A text encoder's tensors by transformers' keys -> the empty prompt's tokens [T, D] float32. What follows the end is 0, as open_clip has it."""
    layers = made.text_layers - 1
    with torch.device("meta"):
        reader = text_encoder(made, layers=layers)
    reader.load_state_dict({key: tensors[key].float() for key in reader.state_dict()}, assign=True)
    for name, buffer in list(reader.named_buffers()):
        owner, _, own = name.rpartition(".")
        reader.get_submodule(owner).register_buffer(own, torch.arange(buffer.shape[1])[None], persistent=False)
    start, end = _marks(made)
    prompt = torch.tensor([[start, end, *[0] * (made.text - 2)]])
    found: Tensor = reader.eval()(input_ids=prompt).last_hidden_state[0]
    return found


__all__ = ["EMPTY_TOKENS", "prompt_of", "text_encoder"]
