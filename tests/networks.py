"""Small networks that every part of shows in, for whatever compares what two ways make of them."""

from __future__ import annotations

from typing import Any

from engine.generators.diffusion.presets import Preset


def seeded(made: Preset, seed: int = 0) -> Any:
    """Networks (`diffusion.networks.Networks`) none of whose layers is zero."""
    import torch

    from engine.generators.diffusion.networks import build

    networks = build(made, seed=seed)
    torch.manual_seed(seed)
    for parameter in networks.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return networks


def error(got: Any, want: Any) -> float:
    """Relative, of two tensors."""
    return float((got - want).norm() / want.norm())
