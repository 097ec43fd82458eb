"""A face driver that looks only at every n-th picture and repeats itself between: the ladder's "lower tracking rate"."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from engine.types import Signal, VideoFrame


class HeldFace:
    """Wraps a face driver, made on first use. `every()` is asked at each picture: 1 tracks them all."""

    def __init__(self, make: Callable[[], Any], *, every: Callable[[], int]) -> None:
        self._make = make
        self._every = every
        self._driver: Any = None
        self._last: Signal | None = None
        self._since = 0

    @property
    def driver(self) -> Any:
        """The wrapped driver."""
        if self._driver is None:
            self._driver = self._make()
        return self._driver

    def __call__(self, frame: VideoFrame) -> Signal:
        """See engine.drivers.face.FaceDriver."""
        self._since += 1
        if self._last is None or self._since >= self._every():
            self._since = 0
            self._last = self.driver(frame)
            return self._last
        return replace(self._last, time=frame.time, id=frame.id)

    @property
    def neutral_state(self) -> str:
        """ "searching" or "set"; drivers that do not say so have always found theirs."""
        return "searching" if self._driver is None else str(getattr(self._driver, "neutral_state", "set"))

    def set_neutral(self) -> None:
        """See FaceDriver."""
        self.driver.set_neutral()

    def reset(self) -> None:
        """See FaceDriver."""
        self._last = None
        self.driver.reset()

    def close(self) -> None:
        """See FaceDriver."""
        if self._driver is not None:
            self._driver.close()
        self._driver = None
