"""Rows of one generator's State, one a session: sessions join and leave while others stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.types import AvatarError, Generator, Identity, Signal, UInt8Array, VideoFrame, still_motion


class BatchFull(AvatarError):
    """Every row is taken."""


class Batch:
    """Owns the State. One thread steps it; `admit` and `release` are called from that thread too."""

    def __init__(self, generator: Generator, *, rows: int) -> None:
        self.generator = generator
        self.state = generator.allocate(rows)
        self._free = list(reversed(range(rows)))
        self.rows = rows

    def admit(self, identity: Identity) -> int:
        """Seat an identity -> its row. Raises BatchFull."""
        if not self._free:
            raise BatchFull(f"All {self.rows} places are taken; try again when a session has ended.")
        row = self._free[-1]
        self.generator.admit(self.state, row, identity)  # a row whose identity cannot be seated stays free
        self._free.pop()
        return row

    def release(self, row: int) -> None:
        """Free a row; who sat there is forgotten at once. Harmless twice."""
        if row not in self._free:
            self.generator.evict(self.state, row)
            self._free.append(row)

    def step(self, signals: Mapping[int, Sequence[Signal]]) -> dict[int, list[VideoFrame]]:
        """{row: chunk of signals} -> {row: as many frames}; rows not named stay as they are."""
        frames = self.generator.step(self.state, [signals.get(row) for row in range(self.rows)])
        return {row: made for row, made in enumerate(frames) if made is not None}


def warm_up(batch: Batch, identity: Identity, *, together: bool, maps: Mapping[str, UInt8Array] | None = None) -> None:
    """Step an empty batch in every way that sessions will step it: each row alone, and all in one call where that is done (`together`).

    Kernels are chosen and graphs captured for these rows, in this State; all of them are free again afterwards, and hold nobody.
    `maps`: condition pictures, for a generator that is driven by them.
    """
    spec = batch.generator.spec
    rows: list[int] = []
    try:
        for _ in range(batch.rows):
            rows.append(batch.admit(identity))
        # The largest first: what it needed serves the others too.
        for way in [*([rows] if together and len(rows) > 1 else []), *([row] for row in rows)]:
            for k in range(spec.warm_up):
                chunk = [Signal(time=(k * spec.chunk + i) / spec.fps, motion=still_motion(), maps=maps) for i in range(spec.chunk)]
                batch.step(dict.fromkeys(way, chunk))
    finally:
        for row in reversed(rows):  # in the order in which they will be taken again
            batch.release(row)
