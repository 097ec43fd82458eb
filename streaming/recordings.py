"""The recordings of a server: one running at most a session, finished ones kept under the session's id until there are too many."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from pathlib import Path

from engine.types import AvatarError
from streaming.live import Live
from streaming.record import Recorder
from streaming.settings import Limits

KEPT = 16
"""Finished files; the oldest is deleted."""


class Recordings:
    """Files lie in a folder of the server's own, made when first needed and deleted with the server."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._running: dict[str, Recorder] = {}
        self._finished: OrderedDict[str, Path] = OrderedDict()
        self._count = 0

    def start(self, live: Live) -> None:
        """Begin to record a session. Raises AvatarError where it is recorded already."""
        if live.id in self._running:
            raise AvatarError("This session is being recorded already; end that recording first.")
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="avatar-")
        self._count += 1
        path = Path(self._folder.name) / f"{self._count}.mp4"  # no name from a client reaches the disk
        recorder = Recorder(path, most_seconds=self._limits.record_seconds, on_drop=live.stats.drop)
        self._running[live.id] = recorder
        live.outlet.sinks.add(recorder)

    async def finish(self, live: Live) -> Path | None:
        """End a session's recording -> its file; None where there was none. Raises AvatarError where it could not be written."""
        recorder = self._running.pop(live.id, None)
        if recorder is None:
            return None
        live.outlet.sinks.discard(recorder)
        path = await recorder.stop()
        if (old := self._finished.pop(live.id, None)) is not None:
            old.unlink(missing_ok=True)
        self._finished[live.id] = path
        while len(self._finished) > KEPT:
            self._finished.popitem(last=False)[1].unlink(missing_ok=True)
        return path

    def file(self, session: str) -> Path:
        """The finished file of a session. Raises AvatarError."""
        if session not in self._finished:
            raise AvatarError("There is no recording of that session; end the recording before you fetch it.")
        return self._finished[session]

    def close(self) -> None:
        """Delete everything."""
        if self._folder is not None:
            self._folder.cleanup()
