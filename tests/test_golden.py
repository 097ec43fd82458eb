"""Numbers that were equal to the published network's when they were kept: a later change of the arithmetic turns these red.

Weights and inputs come from NumPy's generator by the parameters' names, so nothing depends on how PyTorch fills its layers.
`python -m tests.test_golden` keeps what the code makes now; do so only after parity with the published code was shown again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.generators.diffusion.presets import ANIMATE_ANYONE, TINY
from tests.conftest import found, require

if found("torch") and found("diffusers"):
    import torch

    from engine.generators.diffusion.attention import Sources
    from engine.generators.diffusion.guider import PoseGuider
    from engine.generators.diffusion.networks import Networks, build
    from engine.generators.diffusion.temporal import Window, places, whole
    from engine.generators.diffusion.unet import Denoiser, ReferenceNet

pytestmark = pytest.mark.torch
KEPT = Path(__file__).parent / "golden" / "diffusion_tiny.npz"
SAME = 1e-4
"""Relative error, fp32."""
FRAMES = 8
SIZE = (16, 24)
"""(H, W) px: small, and not square."""


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    require("torch")
    require("diffusers")


def uniform(name: str, shape: tuple[int, ...], deviation: float = 1.0) -> Any:
    """float32 numbers about 0 that depend on the name alone."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return torch.from_numpy(((np.random.default_rng(seed).random(shape) * 2 - 1) * 3**0.5 * deviation).astype(np.float32))


def weigh(module: Any) -> str:
    """Give a network weights of which no layer is zero and no norm plain -> their hash."""
    every = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        shape = tuple(parameter.shape)
        if parameter.ndim > 1:
            value = uniform(name, shape, parameter[0].numel() ** -0.5)
        else:
            value = uniform(name, shape, 0.1) + float(name.endswith("weight"))
        parameter.copy_(value)
        every.update(name.encode() + value.numpy().tobytes())
    return every.hexdigest()


def weighted() -> tuple[Networks, str]:
    """TINY, and the hash of its weights."""
    networks = build(TINY)
    return networks, weigh(networks)


def outputs(networks: Networks) -> dict[str, Any]:
    """Guider, the bank of every block, and the denoiser over a whole clip: each frame with every other, and by the window's rule."""
    (h, w), channels = (side // TINY.patch for side in SIZE), TINY.unet.in_channels
    picture, device = uniform("portrait", (1, 3, *SIZE), 0.5), torch.device("cpu")
    assert networks.image is not None
    assert networks.speech is not None
    with torch.inference_mode():
        hint = networks.guider(uniform("condition", (FRAMES, 3, *SIZE), 0.25) + 0.5)
        tokens, spoken = networks.image(picture), networks.speech(uniform("speech", (FRAMES, 16, 80), 3.0) - 4)
        bank = networks.reference(networks.autoencoder.encode(picture), networks._read(networks.reference, tokens))
        sources = Sources(FRAMES, networks.project(bank), networks._read(networks.denoiser, tokens), speech=spoken)
        x = uniform("latents", (FRAMES, channels, h, w))
        causal = places(torch.zeros(1, dtype=torch.int64), FRAMES, TINY)
        past = causal.past
        causal = type(causal)(causal.query, causal.key[:, :, past:], causal.hidden[:, :, past:])
        made = {"guider": hint} | {f"bank {index}": read.mean(1) for index, read in enumerate(bank)}
        for name, at, length in (("whole", whole(FRAMES, 1, device), FRAMES), ("causal", causal, TINY.window)):
            made[name] = networks.denoiser(x, torch.full((FRAMES,), 500.0), hint, sources, Window(at, length, FRAMES, None, {}))
    return made


def test_the_arithmetic_is_still_the_published_ones() -> None:
    networks, weights = weighted()
    with np.load(KEPT) as kept:
        assert weights == str(kept["weights"]), "these are other weights: the names or shapes of layers changed"
        made = outputs(networks)
        assert made.keys() == set(kept.files) - {"weights"}
        wrong = {name: float((got - kept[name]).norm() / np.linalg.norm(kept[name])) for name, got in made.items()}
    assert max(wrong.values()) < SAME, {name: error for name, error in wrong.items() if error >= SAME}


def test_the_published_layout_has_so_many_tensors_and_parameters() -> None:
    with torch.device("meta"):
        made = (PoseGuider(ANIMATE_ANYONE), ReferenceNet(ANIMATE_ANYONE.unet), Denoiser(ANIMATE_ANYONE.unet))
    counts = [(len(network.state_dict()), sum(p.numel() for p in network.parameters())) for network in made]
    assert counts == [(16, 1_086_480), (682, 859_508_800), (686 + 21 * 26, 859_520_964 + 453_209_280)]


def test_norms_have_the_published_epsilons() -> None:
    """Too small a difference to be seen in pictures of ordinary contrast."""
    networks = build(TINY)
    for network in (networks.reference, networks.denoiser):
        for name, module in network.named_modules():
            if isinstance(module, torch.nn.GroupNorm):
                assert module.eps == (1e-6 if name.endswith(".norm") else 1e-5), name
            elif isinstance(module, torch.nn.LayerNorm):
                assert module.eps == 1e-5, name


if __name__ == "__main__":
    networks, weights = weighted()
    KEPT.parent.mkdir(exist_ok=True)
    np.savez_compressed(KEPT, weights=weights, **{name: value.numpy() for name, value in outputs(networks).items()})
