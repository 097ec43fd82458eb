"""What a session keeps on its device, by arithmetic alone: no PyTorch needed to know what fits."""

from __future__ import annotations

from dataclasses import dataclass

from engine.generators.diffusion.presets import Preset

WORD = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Bytes of a number."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes of one session."""

    window: int  # keys and values of past frames, all noise levels
    reference: int  # keys and values of the portrait

    @property
    def total(self) -> int:
        """Of both."""
        return self.window + self.reference


def budget(made: Preset, *, steps: int | None = None, precision: str = "fp16") -> Budget:
    """Of a preset at so many denoising steps. Every noise level has a window of its own."""
    word, levels = WORD[precision], steps or made.steps
    window = sum(2 * width * cells * slots(made) for width, cells in ring_shapes(made)) * levels * word
    reference = sum(2 * width * cells for width, cells in reading_shapes(made, levels)) * word
    return Budget(window, reference)


def slots(made: Preset) -> int:
    """Of a ring: the pinned frames, the recent ones, and one that rows without a frame write to."""
    return made.sinks + made.ring + 1


def ring_shapes(made: Preset) -> list[tuple[int, int]]:
    """(channels, cells) of every temporal attention, in the order of the data: two a motion module."""
    return [shape for shape in _places(made, made.unet.motion, middle=made.unet.motion_middle) for _ in range(2)]


def block_shapes(made: Preset) -> list[tuple[int, int]]:
    """(channels, cells) of every spatial attention, in the order of the data."""
    return _places(made, made.unet.attention, middle=True)


def reading_shapes(made: Preset, steps: int) -> list[tuple[int, int]]:
    """Of those that read the reference, as many times as it is read at so many denoising steps."""
    first = 0 if made.unet.bank == "full" else made.unet.layers * sum(made.unet.attention)
    return block_shapes(made)[first:] * (steps if made.reference_each else 1)


def _places(made: Preset, levels: tuple[bool, ...], *, middle: bool) -> list[tuple[int, int]]:
    """(channels, cells) of what stands after every resnet of some levels, and in the middle."""
    unet, (h, w) = made.unet, made.latent_size
    shapes = [(width, (h >> i) * (w >> i)) for i, width in enumerate(unet.channels)]
    down = [shape for shape, there in zip(shapes, levels, strict=True) for _ in range(unet.layers * there)]
    up = [shape for shape, there in reversed(list(zip(shapes, levels, strict=True))) for _ in range((unet.layers + 1) * there)]
    return [*down, *[shapes[-1]] * middle, *up]


__all__ = ["Budget", "block_shapes", "budget", "reading_shapes", "ring_shapes", "slots"]
