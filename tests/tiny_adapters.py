"""Files of identity systems with random weights for the bases of `tests.tiny_bases`, as they are published: keys, nesting, names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests import identity_weights as small
from tests.identity_weights import Shapes, seeded
from tests.tiny_bases import SEEN, WIDTH

POOLED = 20
"""Of the image encoder's embedding."""
VECTOR = 16
"""Of the recogniser's (tests.recognisers.LENGTH)."""
CHANNELS = (32, 32, 64, 64, 64, 64, 64, 64, 32, 32, 32, 32, 64, 64)
"""Of the attentions, in the order of `unet.attn_processors`: two down blocks, four in the up blocks, the middle."""
RANK = 3


def attentions(*, names: tuple[str, str] = ("to_k_ip", "to_v_ip"), lora: bool = False) -> Shapes:
    """Keys by place: the person's projections in every second attention, a LoRA in all."""
    made: dict[str, tuple[int, ...]] = {}
    for i, channels in enumerate(CHANNELS):
        cross = i % 2 == 1
        if cross:
            made |= {f"{i}.{name}.weight": (channels, WIDTH) for name in names}
        if lora:
            inputs = {"q": channels, "k": WIDTH if cross else channels, "v": WIDTH if cross else channels, "out": channels}
            for part, width in inputs.items():
                made |= {f"{i}.to_{part}_lora.down.weight": (RANK, width), f"{i}.to_{part}_lora.up.weight": (channels, RANK)}
    return made


PROJECTORS: dict[str, Shapes] = {
    "plain": small.plain(features=POOLED, out=WIDTH),
    "plus": small.resampler(features=SEEN, width=48, out=WIDTH),
    "full-face": small.full_face(features=SEEN, out=WIDTH),
    "faceid": small.faceid(features=VECTOR, out=WIDTH),
    "faceid-plus": small.faceid_plus(features=VECTOR, seen=SEEN, out=WIDTH),
}


def tensors(shapes: Shapes, seed: int = 0) -> dict[str, Any]:
    """`seeded`, for PyTorch."""
    import torch

    return {name: torch.from_numpy(array) for name, array in seeded(shapes, seed).items()}


def adapter(path: Path, kind: str) -> Path:
    """An IP-Adapter or a FaceID of a kind of PROJECTORS; nested in a .bin, flat in a .safetensors."""
    import torch
    from safetensors.torch import save_file

    halves = {"image_proj": tensors(PROJECTORS[kind]), "ip_adapter": tensors(attentions(lora=kind.startswith("faceid")), 1)}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({f"{half}.{key}": value for half, held in halves.items() for key, value in held.items()}, path)
    else:
        torch.save(halves, path)
    return path
