"""Weights that go on as a preset whose denoiser reads a face's tokens too: what is new adds nothing until it has learnt."""

from __future__ import annotations

import torch
from torch import nn

from engine.generators.diffusion.attention import Heads, Recognising
from engine.generators.diffusion.networks import Networks
from engine.generators.diffusion.presets import Preset, plain_name
from engine.generators.diffusion.tokens import face_tokens
from engine.generators.diffusion.unet import spatial_blocks


def grows(made: str, theirs: str) -> bool:
    """Whether weights of the preset `theirs` can go on as the preset `made` without being it."""
    return made != theirs and plain_name(made) == theirs


def grown(networks: Networks, made: Preset, *, seed: int) -> Networks:
    """The same networks, now of `made`, which `grows` from theirs: the new projections are seeded, those of the face's values zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks.face = face_tokens(made)
        for block in spatial_blocks(networks.denoiser):
            block.attn2 = _recognising(block.attn2, made.unet.face_dim)
    networks.denoiser.config = made.unet
    networks.preset = made
    return networks


def _recognising(plain: Heads, face: int) -> Recognising:
    width, source = plain.to_k.weight.shape
    other = Recognising(width, plain.heads, source=source, face=face)
    missing, more = other.load_state_dict(plain.state_dict(), strict=False, assign=True)
    assert not more
    assert missing == ["to_k_ip.weight", "to_v_ip.weight"]
    nn.init.zeros_(other.to_v_ip.weight)
    return other


__all__ = ["grown", "grows"]
