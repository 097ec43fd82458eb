"""A clip at leisure: as `engine.offline`, but the generator sees the whole clip before it paints a frame, with all the steps its weights want.

The drive is read twice. First every signal is collected, as a live session would have asked for it; then the generator renders them all;
then the session goes through the drive again and is given the finished frames, so that cropping, background and sound are those of any other
rendering.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from engine.config import OperatorSettings, SessionSettings
from engine.media import Writer
from engine.offline import Progress, keep_apart, render, run_through
from engine.persona import Persona
from engine.types import AvatarError, Generator, GeneratorSpec, Identity, Signal, UInt8Array, VideoFrame

if TYPE_CHECKING:
    from engine.drivers.maps import Maps


@runtime_checkable
class Leisurely(Protocol):
    """A generator that can render a whole clip."""

    notice: str  # a sentence that whoever watches such a clip must be told; that of the spec is of how it runs live

    def check_leisure(self, *, steps: int | None, guidance: float | None) -> None:
        """Raise AvatarError for what `at_leisure` would not do, whatever the drive is."""
        ...

    def at_leisure(
        self,
        identity: Identity,
        signals: Sequence[Signal],
        *,
        kept: Path,
        steps: int | None,
        guidance: float | None,
        progress: Progress | None = None,
    ) -> Callable[[int], UInt8Array]:
        """All frames of a clip -> frame by number [H, W, 3]. `kept`: a folder for what a rendering that was ended goes on from; `steps` and
        `guidance`, where they are not None, instead of those that the weights were made for."""
        ...


def render_whole(
    generator: Generator,
    persona: Persona,
    drive: str | Path,
    out: str | Path,
    *,
    settings: SessionSettings | None = None,
    operator: OperatorSettings | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    progress: Progress | None = None,
    makers: Mapping[str, Callable[[], Any]] | None = None,
    maps: Maps | None = None,
    **more: Any,
) -> int:
    """As `engine.offline.render` (which `more` goes to) -> number of frames; `progress` tells steps of the rendering.

    What an ended rendering had done lies in a folder beside `out`, from which the same command goes on; it is gone when `out` is written.
    Raises AvatarError for a generator that renders live only, for `steps` or a `guidance` that cannot be, and where `maps` lacks what the weights
    read, all of it before the drive is.
    """
    if not isinstance(generator, Leisurely):
        raise AvatarError(f"The generator '{generator.spec.name}' renders frame by frame only; leave --offline out.")
    if guidance is not None and not 0.0 <= guidance < math.inf:
        raise AvatarError(f"Guidance is a scale of 0 or more, not {guidance:g}; 1 is none.")
    if steps is not None and steps < 1:
        raise AvatarError(f"A clip takes at least 1 denoising step, not {steps}; give another --steps, or leave it out.")
    generator.check_leisure(steps=steps, guidance=guidance)
    if generator.spec.maps:
        from engine.conditions.maps import check_names

        check_names(() if maps is None else maps.names, generator.spec.maps)
    out = Path(out)
    keep_apart(out, drive)
    Writer(out).abort()  # what cannot be written is told now, not after an hour
    clip = _Clip(generator, persona)
    run_through(clip, persona, drive, settings=settings, makers=makers, maps=maps)
    kept = out.with_name(f".{out.name}.rendering")
    try:
        clip.finished = generator.at_leisure(persona.identity, clip.signals, kept=kept, steps=steps, guidance=guidance, progress=progress)
    except AvatarError:
        with suppress(OSError):  # there is none, or something to go on from
            kept.rmdir()
        raise
    clip.spec = replace(clip.spec, needs=tuple(need for need in clip.spec.needs if need == "motion"))  # whatever else has been read
    done = render(clip, persona, drive, out, settings=settings, operator=operator, **more)
    for file in kept.glob("*") if kept.is_dir() else ():
        file.unlink()
    if kept.is_dir():
        kept.rmdir()
    return done


class _Clip:
    """Stands in for the generator: first it collects what it is asked, then it shows what has come of that."""

    def __init__(self, generator: Generator, persona: Persona) -> None:
        self.spec: GeneratorSpec = replace(generator.spec, delay=0, chunk=1)
        self.signals: list[Signal] = []
        self.finished: Callable[[int], UInt8Array] | None = None
        self._persona, self._shown = persona, 0

    def prepare(self, portrait: UInt8Array) -> Identity:
        """The persona's, which is ready."""
        return self._persona.identity

    def allocate(self, rows: int) -> None:
        """There is nothing to hold."""

    def admit(self, state: Any, row: int, identity: Identity) -> None:
        """Nobody else can sit here."""

    def reset(self, state: Any, row: int) -> None:
        """There is no past."""

    def evict(self, state: Any, row: int) -> None:
        """There is nothing to let go of."""

    def step(self, state: Any, signals: Sequence[Sequence[Signal] | None]) -> list[list[VideoFrame] | None]:
        """The portrait while collecting, then frame by frame what was made."""
        return [None if chunk is None else [self._frame(signal) for signal in chunk] for chunk in signals]

    def _frame(self, signal: Signal) -> VideoFrame:
        if self.finished is None:
            self.signals.append(signal)
            return VideoFrame(self._persona.identity.portrait.copy(), signal.time, signal.id)
        if self._shown >= len(self.signals):
            raise AvatarError("The drive has more frames than when it was first read; render it again once it is finished.")
        self._shown += 1
        return VideoFrame(self.finished(self._shown - 1), signal.time, signal.id)


__all__ = ["Leisurely", "render_whole"]
