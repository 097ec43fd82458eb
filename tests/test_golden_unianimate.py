"""What UniAnimate's published network and sampler (643c9637) made of seeded weights, narrow: ours make the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.generators.video.presets import UniAnimate
from tests.conftest import found, require

if found("torch"):
    import torch

    from engine.generators.video import sampling
    from engine.generators.video.unianimate import VideoUNet
    from tests.test_golden import uniform, weigh

pytestmark = pytest.mark.torch
KEPT = Path(__file__).parent / "golden" / "unianimate.npz"
SAME = 1e-4
"""Relative error, fp32."""
SMALL = UniAnimate(name="narrow", size=(32, 48), width=32, levels=(1, 2), attention=(True, False), blocks=1, head=16, first_heads=3, text=3, tokens=2)
"""Every kind of block once; the groups of its norms and the width of its context are the published ones, which that code does not let change."""
FRAMES, LEVEL, STEPS, GUIDANCE = 3, 430, 6, 2.5


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    require("torch")


def weighted() -> tuple[VideoUNet, str]:
    """The network with no layer zero, and the hash of its weights."""
    network = VideoUNet(SMALL).eval().requires_grad_(False)
    return network, weigh(network)


def inputs() -> dict[str, Any]:
    """One clip. Pictures are 0..1."""
    latent, picture = (SMALL.latent, *SMALL.latent_size), (3, *SMALL.size)
    return {
        "x": uniform("x", (1, FRAMES, *latent)),
        "noise": uniform("noise", (1, FRAMES, *latent)),
        "latents": uniform("latents", (1, *latent)),
        "image": uniform("image", (1, SMALL.context)),
        "empty": uniform("empty", (SMALL.text, SMALL.context)),
        "pose": (uniform("pose", (1, *picture), 0.25) * 255 + 127).round().clamp(0, 255) / 255,
        "poses": (uniform("poses", (1, FRAMES, *picture), 0.25) * 255 + 127).round().clamp(0, 255) / 255,
    }


@torch.no_grad() if found("torch") else (lambda made: made)
def outputs(network: VideoUNet) -> dict[str, Any]:
    """The answer with and without what it is told, the portrait under noise, and a clip, of one step more than STEPS."""
    asked, level = inputs(), torch.tensor([LEVEL])
    guided, unguided = network.tokens(asked["empty"], asked["image"]), network.tokens(asked["empty"], None)
    first = network.reference(asked["latents"], asked["pose"])
    poses = network.poses(asked["poses"], SMALL.latent_size)
    begun = sampling.noised(asked["latents"][:, None], asked["noise"], sampling.START_SHORT)
    given = sampling.Given(asked["latents"][0], guided, unguided, first)
    pictures = (asked["poses"][0] * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    clip = sampling.sample(network, given, pictures, guidance=GUIDANCE, steps=STEPS, start=begun[0])
    return {
        "guided": network(asked["x"], level, guided, first=first, poses=poses),
        "unguided": network(asked["x"], level, unguided),
        "begun": begun,
        "clip": clip[None],
    }


def test_network_and_sampler_are_the_published_ones() -> None:
    network, weights = weighted()
    with np.load(KEPT) as kept:
        assert str(kept["weights"]) == weights, "other weights than those that the published code was given"
        for name, made in outputs(network).items():
            want = kept[name]
            assert made.shape == want.shape
            assert float(np.abs(made.numpy() - want).max() / np.abs(want).max()) < SAME, name
