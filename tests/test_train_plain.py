"""Training the plain trunk that `compact` has: what is computed again on the way back is the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.conftest import require

pytestmark = pytest.mark.torch
require("torch")
require("diffusers")
require("accelerate")

import torch  # noqa: E402

from exporters.data.dataset import Dataset  # noqa: E402
from exporters.training.batches import Batches, Pattern  # noqa: E402
from exporters.training.learner import Learner  # noqa: E402
from tests.networks import seeded  # noqa: E402
from tests.test_diffusion import PLAIN  # noqa: E402
from tests.test_train import QUICK, SIZE, data  # noqa: E402, F401


def test_a_plain_block_computed_again_gives_the_same_gradients(data: Dataset) -> None:  # noqa: F811
    settings, batches = replace(QUICK, preset=PLAIN.name, reference=True), Batches(data, seed=0, depth=PLAIN.depth, patterns=(Pattern(1, 3),))
    found, calls = list[dict[str, Any]](), list[int]()
    for again in (False, True):
        networks = seeded(PLAIN)
        learner = Learner(replace(settings, checkpointing=again), SIZE, start=networks, teacher=None, device="cpu")
        counted = list[None]()
        networks.denoiser.down_blocks[0].block.conv1.register_forward_hook(lambda *_, counted=counted: counted.append(None))
        learner._backward(batches.at(1), 1, 1.0, texture=False)
        found.append({name: one.grad for name, one in networks.named_parameters() if one.grad is not None})
        calls.append(len(counted))
    kept, anew = found
    assert calls[1] == calls[0] + 1, "the one call that carries gradients runs twice"
    assert kept.keys() == anew.keys()
    assert float(kept["denoiser.down_blocks.0.block.conv1.weight"].norm()) > 0
    for name, value in kept.items():
        assert torch.allclose(value, anew[name], rtol=1e-4, atol=1e-7), name
