"""A LoRA as a person asks for it: FILE or FILE:SCALE."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.types import AvatarError


@dataclass(frozen=True, slots=True)
class Asked:
    """A LoRA that is to be fused, its products multiplied by `scale`."""

    path: Path
    scale: float = 1.0


def asked(text: str) -> Asked:
    """FILE or FILE:SCALE. Raises AvatarError for a scale that is none."""
    head, colon, tail = text.rpartition(":")
    if not colon or Path(text).exists():
        return Asked(Path(text))
    try:
        scale = float(tail)
    except ValueError:
        raise AvatarError(f"'{text}' is neither a file nor FILE:SCALE with a number for the scale, such as style.safetensors:0.8.") from None
    if not math.isfinite(scale) or scale == 0.0:
        raise AvatarError(f"A LoRA at scale {scale:g} cannot be fused; give a number other than 0, such as 0.8.")
    return Asked(Path(head), scale)


def laid(texts: Sequence[str], *, weights: str | None, persona: str | None, tell: Callable[[str], None]) -> dict[str, Any]:
    """What is asked for, laid onto a folder of weights or those of a persona: options of the generator, none where nothing is asked for.

    Raises AvatarError where there are no weights, and as `lora.adapters`.
    """
    if not texts:
        return {}
    from engine.serving import weights_of
    from exporters.graphs.lora import for_weights

    folder = Path(weights) if weights else weights_of(persona) if persona else None
    if folder is None:
        raise AvatarError("A LoRA changes weights, and there are none; give them with --weights, or a persona that has some.")
    return {"adapters": for_weights(folder, [asked(text) for text in texts], tell=tell)}


__all__ = ["Asked", "asked", "laid"]
