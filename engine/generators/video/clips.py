"""What every video system is to the generator `video`: networks, what they read of a signal, and how they render a clip."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from engine.conditions.align import aligned
from engine.conditions.ease import Ease, eased
from engine.conditions.place import Anchor, Placed, place
from engine.drivers.align import Kind
from engine.generators.video.sampling import Progress
from engine.types import AvatarError, Signal, UInt8Array


@dataclass(frozen=True, slots=True)
class How:
    """What a person asked for; None: what the weights were made for."""

    steps: int | None = None
    guidance: float | None = None
    first_guidance: float | None = None  # of the first frame, where it grows over the clip
    window: int | None = None  # frames
    overlap: int | None = None  # frames that two windows share

    def windows(self, size: int, overlap: int) -> tuple[int, int]:
        """(frames, shared) of the windows, by a system's own; of a window that was made shorter half at most. Raises AvatarError for none."""
        size = size if self.window is None else self.window
        shared = min(overlap, size // 2) if self.overlap is None else self.overlap
        if size < 1:
            raise AvatarError(f"A window has at least 1 frame, not {size}; give another --window.")
        if not 0 <= shared < size:
            raise AvatarError(f"Windows of {size} frames cannot share {shared}; give another --window or --overlap.")
        return size, shared


class System(Protocol):
    """One of them, with its networks on their device."""

    name: str  # of the preset
    size: tuple[int, int]  # (H, W) px
    origin: str  # sha256 of the weights' manifest, or that there is none
    needs: tuple[str, ...]  # fields of Signal
    maps: tuple[str, ...]  # of `Signal.maps`, those that there must be
    notice: str  # a sentence that whoever watches must be told

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the networks."""

    def check(self, how: How) -> None:
        """Raise AvatarError for what cannot be asked."""

    def prepare(self, portrait: UInt8Array, anchor: Anchor) -> tuple[UInt8Array, Any]:
        """A portrait of any size -> it at the system's size, and what the networks make of it once."""
        ...

    def render(self, made: Any, anchor: Anchor, signals: Sequence[Signal], *, how: How, state: Path, progress: Progress | None) -> UInt8Array:
        """Frames [F, H, W, 3]. `state`: a file that an ended rendering goes on from."""
        ...


def placed(signals: Sequence[Signal], anchor: Anchor, size: tuple[int, int], *, kind: Kind) -> Iterator[Placed]:
    """Every driver's points in the portrait's frame, with its proportions."""
    ease = Ease()
    for signal in signals:
        found = aligned(ease.alignment, place(signal, anchor, size), signal, anchor, kind=kind, size=size)
        yield eased(ease, found, signal.time)


Make = Callable[[str | None, Path | None, int], System]
"""(preset, folder of weights, seed where there is none) -> system."""

__all__ = ["How", "Make", "System", "placed"]
