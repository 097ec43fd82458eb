"""FLUX as a base: the same as `pipeline` for a transformer that moves latents along straight paths, without a system what diffusers' pipeline gives.

FLUX.1-dev has learnt guidance: it is told its strength, and sees no negative prompt. A system may ask for two halves and their difference
instead, as other bases have it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.types import AvatarError
from exporters.portraits.contract import Between, Prompted
from exporters.portraits.pipeline import Base, Maker

WORDS = 512
"""Tokens of a prompt for T5, diffusers' default."""


def encoded(base: Base, prompt: str, negative: str, *, words: int = WORDS) -> Prompted:
    """A prompt as diffusers encodes it: T5's states [2, words, C] and CLIP's pooled [2, C']."""
    made = [base.pipe.encode_prompt(text, None, device=base.device, max_sequence_length=words)[:2] for text in (negative, prompt)]
    return Prompted(*(torch.cat(halves) for halves in zip(*made, strict=True)))


def packed(latents: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, h / 2 * w / 2, 4 * C]: squares of four are one token."""
    return latents.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpacked(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """The reverse; `size`: (h, w) of the latents."""
    squares = tokens.unflatten(1, (size[0] // 2, size[1] // 2)).unflatten(3, (-1, 2, 2))
    return squares.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


class FluxMaker(Maker):
    """A FLUX with a system's additions between its blocks, ready for many seeds."""

    def _attach(self) -> None:
        attachment, (height, width) = self._attachment, self._ask.size
        if attachment.added or attachment.weights or attachment.control:
            raise AvatarError("What the system adds is for a Stable Diffusion; give one with --base.")
        side = 2 * self.base.pipe.vae_scale_factor
        if height % side or width % side:
            raise AvatarError(f"FLUX makes no portrait of {width} x {height} pixels; both must be multiples of {side}.")
        self._latents = (2 * (height // side), 2 * (width // side))

    def _plain(self, base: Any, prompt: str, negative: str) -> tuple[Prompted, Prompted]:
        made = encoded(base, prompt, negative)
        return made, made

    def _begin(self, generator: torch.Generator) -> Tensor:
        pipe, (height, width), between = self.base.pipe, self._latents, self._attachment.between
        if between and between.start >= self._ask.steps:
            raise AvatarError(f"The person is seen after step {between.start}, and only {self._ask.steps} are asked for; give more --steps.")
        shape = (1, pipe.transformer.config.in_channels // 4, height, width)
        latents = packed(torch.randn(shape, generator=generator)).to(self.base.device, pipe.transformer.dtype)
        # The more tokens a picture has, the more of the steps are at high noise.
        config = pipe.scheduler.config
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        shift = config.base_shift + slope * (latents.shape[1] - config.base_image_seq_len)
        steps = self._ask.steps
        pipe.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=shift, device=self.base.device)
        return latents

    def _noise(self, latents: Tensor, t: Tensor, step: int) -> Tensor:
        """Where the latents are to move at a step."""
        between, guidance = self._attachment.between, self._ask.guidance
        apart = between is not None and between.two_halves and guidance > 1.0
        some = self._moved(latents, t, step, row=1, told=1.0 if apart else guidance)
        if not apart or between is None or step < between.halves_from:
            return some
        none = self._moved(latents, t, step, row=0, told=1.0)
        return none + guidance * (some - none)

    def _moved(self, latents: Tensor, t: Tensor, step: int, *, row: int, told: float) -> Tensor:
        """What the transformer answers for a row of the prompt. `told`: the guidance that it is told."""
        transformer, between, prompted = self.base.pipe.transformer, self._attachment.between, self._late
        assert prompted.pooled is not None
        text, pooled = prompted.text[row : row + 1], prompted.pooled[row : row + 1]
        height, width = self._latents[0] // 2, self._latents[1] // 2
        places = torch.zeros(height, width, 3, device=latents.device, dtype=latents.dtype)
        places[..., 1] += torch.arange(height, device=latents.device)[:, None]
        places[..., 2] += torch.arange(width, device=latents.device)
        guidance = torch.full([1], told, device=latents.device) if transformer.config.guidance_embeds else None
        with nullcontext() if between is None or step < between.start else person(transformer, between, row):
            made: Tensor = transformer(
                hidden_states=latents,
                timestep=t.expand(1).to(latents.dtype) / 1000,
                guidance=guidance,
                pooled_projections=pooled,
                encoder_hidden_states=text,
                txt_ids=torch.zeros(text.shape[1], 3, device=latents.device, dtype=text.dtype),
                img_ids=places.flatten(0, 1),
                return_dict=False,
            )[0]
        return made

    def _decoded(self, latents: Tensor) -> Any:
        config = self.base.pipe.vae.config
        # `Maker` divides by the factor: what is added comes out as the shift.
        return super()._decoded(unpacked(latents, self._latents) + (config.shift_factor or 0.0) * config.scaling_factor)


@contextmanager
def person(transformer: Any, between: Between, row: int) -> Iterator[None]:
    """While it is open, a person is added to the picture's tokens behind the named blocks; nothing of it stays in the transformer."""

    def added(add: Any, module: Any, given: Any, out: Any) -> Any:
        text, picture = out
        return text, picture + add(picture, row)

    hooks = [transformer.get_submodule(name).register_forward_hook(partial(added, add)) for name, add in between.blocks.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


__all__ = ["WORDS", "FluxMaker", "encoded", "packed", "person", "unpacked"]
