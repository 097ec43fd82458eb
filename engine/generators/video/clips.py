"""What every video system is to the generator `video`: networks, what they read of a signal, how they render a clip and run live."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from engine.conditions.align import aligned
from engine.conditions.ease import Ease, eased
from engine.conditions.place import Anchor, Placed, place
from engine.drivers.align import Kind
from engine.generators.video.rolling import Call, Steps
from engine.generators.video.sampling import Progress
from engine.generators.video.weights import Plan
from engine.types import AvatarError, Signal, UInt8Array

STEPS, WINDOW = 4, 16
"""Live, of weights that were not taught how they run: noise levels, and frames that a network sees at once, fewer where it was trained on fewer."""
NEW = 4
"""One of so many frames of a window is new."""


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

    def plan(self, taught: Plan | None, frames: int) -> Plan:
        """How to run live: as asked, else as `taught`, else by the rule for networks that see `frames`; of a window alone the rule's share is
        new, and an overlap alone is added to what is new. For what `windows` lets pass."""
        usual = min(WINDOW, frames)
        own = taught or Plan(STEPS, usual, usual - max(1, usual // NEW))
        window, overlap = self.window, self.overlap
        if window is None:
            window = own.window if overlap is None else overlap + own.new
            overlap = own.overlap if overlap is None else overlap
        return Plan(own.steps if self.steps is None else self.steps, window, window - max(1, window // NEW) if overlap is None else overlap)


@dataclass(frozen=True, slots=True)
class Published:
    """What one asks of weights as they were published."""

    window: int  # frames that are made at once
    steps: int
    evaluations: int  # of the network for a window: guidance takes two a step


@dataclass(frozen=True, slots=True)
class Known:
    """What a live stream knows of a portrait; on the host."""

    still: Tensor  # [C, h, w] its latents
    given: Mapping[str, Tensor]  # what the network reads at every step, by the names of `System.known_shapes`


class System(Protocol):
    """One of them, with its networks on their device."""

    name: str  # of the preset
    size: tuple[int, int]  # (H, W) px
    latent: tuple[int, int, int]  # (C, h, w)
    layers: int  # channels of a frame's condition: pictures of 3 each
    origin: str  # sha256 of the weights' manifest, or that there is none
    taught: Plan | None  # how the weights were taught to run live
    published: Published
    frames: int  # that the network was trained to see at once
    needs: tuple[str, ...]  # fields of Signal
    maps: tuple[str, ...]  # of `Signal.maps`, those that there must be
    more_maps: tuple[str, ...]  # and those that are read where they are there
    notice: str  # a sentence that whoever watches must be told

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the networks."""

    def check(self, how: How) -> None:
        """Raise AvatarError for what cannot be asked."""

    def check_clip(self, how: How) -> None:
        """Raise AvatarError for steps in which a whole clip cannot be rendered."""

    def prepare(self, portrait: UInt8Array, anchor: Anchor) -> tuple[UInt8Array, Any]:
        """A portrait of any size -> it at the system's size, and what the networks make of it once."""
        ...

    def render(self, made: Any, anchor: Anchor, signals: Sequence[Signal], *, how: How, state: Path, progress: Progress | None) -> UInt8Array:
        """Frames [F, H, W, 3]. `state`: a file that an ended rendering goes on from."""
        ...

    # -- live -----------------------------------------------------------------------------------------------------------

    def steps(self, count: int) -> Steps:
        """So many noise levels. Raises AvatarError for none or too many."""
        ...

    def known_shapes(self) -> dict[str, tuple[int, ...]]:
        """What the network reads of a portrait, [1, ..] float32 each, by name."""
        ...

    def known(self, made: Any, anchor: Anchor) -> Known:
        """Of a prepared portrait."""
        ...

    def condition(self, signal: Signal, anchor: Anchor, ease: Ease) -> UInt8Array:
        """What a frame is driven by [H, W, layers]; `ease`, of one stream, goes on."""
        ...

    def rest(self, signal: Signal, anchor: Anchor) -> UInt8Array:
        """The same of a portrait that stands still until the first signal of a stream comes."""
        ...

    def parts(self) -> list[nn.Module]:
        """The networks that a live step runs."""
        ...

    def call(self, steps: Any, pictures: Tensor, given: Mapping[str, Tensor]) -> Call:
        """The network for one window: conditions uint8 [1, W, H, W', layers] and what it knows of the portrait. Pure."""
        ...

    def seen(self, latents: Tensor) -> Tensor:
        """Clean latents [N, C, h, w] -> pictures [N, 3, H, W], about -1..1."""
        ...


def placed(signals: Sequence[Signal], anchor: Anchor, size: tuple[int, int], *, kind: Kind) -> Iterator[Placed]:
    """Every driver's points in the portrait's frame, with its proportions."""
    ease = Ease()
    for signal in signals:
        yield placed_next(ease, signal, anchor, size, kind=kind)


def placed_next(ease: Ease, signal: Signal, anchor: Anchor, size: tuple[int, int], *, kind: Kind) -> Placed:
    """The same of a stream's next signal; `ease` goes on."""
    found = aligned(ease.alignment, place(signal, anchor, size), signal, anchor, kind=kind, size=size)
    return eased(ease, found, signal.time)


Make = Callable[[str | None, Path | None, int], System]
"""(preset, folder of weights, seed where there is none) -> system."""

__all__ = ["NEW", "STEPS", "WINDOW", "How", "Known", "Make", "Published", "System", "placed", "placed_next"]
