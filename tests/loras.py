"""LoRA files as others write them, with random values, for any networks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RANK, ALPHA = 3, 5.0


@dataclass(frozen=True)
class Branch:
    """One low-rank branch beside a layer."""

    module: str  # as the networks name it, "denoiser.conv_in"
    up: Any
    down: Any

    def files(self, layout: str, *, alpha: float | None = ALPHA) -> dict[str, Any]:
        """Its tensors under the keys of a layout."""
        import torch

        part, _, inner = self.module.partition(".")
        word = {"denoiser": "unet"}.get(part, f"{part}_unet")
        stem, down, up = {
            "peft": (f"{word}.{inner}", "lora_A.weight", "lora_B.weight"),
            "peft named": (f"{word}.{inner}", "lora_A.style.weight", "lora_B.style.weight"),
            "diffusers": (f"{word}.{inner}", "lora.down.weight", "lora.up.weight"),
            "kohya": (f"lora_{word}_{inner.replace('.', '_')}", "lora_down.weight", "lora_up.weight"),
            "own": (self.module, "lora_down.weight", "lora_up.weight"),
            "bare": (inner, "lora_down.weight", "lora_up.weight"),
        }[layout]
        made = {f"{stem}.{down}": self.down, f"{stem}.{up}": self.up}
        return made if alpha is None else {**made, f"{stem}.alpha": torch.tensor(alpha)}


def branches(networks: Any, modules: Iterable[str], *, seed: int = 0, size: float = 0.3) -> list[Branch]:
    """For layers of networks: linear ones, and convolutions with k x k below and 1 x 1 above."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    made = []
    for module in modules:
        weight = networks.get_parameter(f"{module}.weight")
        tail = [1] * (weight.ndim - 2)
        down = size * torch.randn((RANK, *weight.shape[1:]), generator=draw)
        made.append(Branch(module, size * torch.randn((weight.shape[0], RANK, *tail), generator=draw), down))
    return made


def file(path: Path, made: Iterable[Branch], layout: str = "kohya", *, alpha: float | None = ALPHA, **more: Any) -> Path:
    """A LoRA file. `more`: tensors by key beside."""
    from safetensors.torch import save_file

    tensors: dict[str, Any] = {}
    for each in made:
        tensors |= each.files(layout, alpha=alpha)
    save_file({key: value.clone() for key, value in (tensors | more).items()}, path)  # none shares memory
    return path


def layers(networks: Any, part: str = "denoiser") -> list[str]:
    """Every layer of a part that has a matrix or a kernel."""
    return [
        name.removesuffix(".weight")
        for name, value in getattr(networks, part).named_parameters(prefix=part)
        if name.endswith(".weight") and value.ndim > 1
    ]


__all__ = ["ALPHA", "RANK", "Branch", "branches", "file", "layers"]
