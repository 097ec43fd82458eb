"""A session written to a file while it runs, off the loop; the file says in its metadata that it was made by a computer."""

from __future__ import annotations

import asyncio
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from engine.media import Writer
from engine.types import AudioChunk, AvatarError, FloatArray, VideoFrame
from streaming.pacing import BLOCK_SECONDS, RATE, Picture

PICTURES_WAITING = 30
"""Pictures that may wait for the writer: 1 s; later ones are left out and counted."""
BLOCKS_WAITING = 1000
"""Everything that may wait: 10 s of sound and pictures; a disk that slow ends the recording."""
QUALITY = 23
"""x264 CRF."""
NICE = 5


class Recorder:
    """A sink. `start` on the loop, `await stop()` gives the file's path. `on_drop(cause)` counts what was left out."""

    def __init__(self, path: Path, *, most_seconds: float, on_drop: Callable[[str], None]) -> None:
        self.path = path
        self.started = time.monotonic()
        self._most = most_seconds
        self._on_drop = on_drop
        self._queue: queue.SimpleQueue[tuple[Picture | None, FloatArray | None, float] | None] = queue.SimpleQueue()
        self._pictures = 0
        self._origin: float | None = None
        self._over = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def picture(self, picture: Picture, *, now: float) -> None:
        """See tracks.Sink."""
        if self._over or self._full():
            return
        if self._pictures >= PICTURES_WAITING:
            self._on_drop("record")
            return
        self._pictures += 1
        self._queue.put((picture, None, now))

    def sound(self, block: FloatArray, *, time: float) -> None:
        """See tracks.Sink."""
        if not (self._over or self._full()):
            self._queue.put((None, block.sum(axis=0), time))

    def _full(self) -> bool:
        if self._queue.qsize() > BLOCKS_WAITING or time.monotonic() - self.started > self._most:
            self._over = True
            self._on_drop("record_limit")
            self._queue.put(None)
        return self._over

    async def stop(self) -> Path:
        """Finish the file. Raises AvatarError where nothing could be written."""
        if not self._over:
            self._over = True
            self._queue.put(None)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)
        if self._error is not None:
            raise AvatarError("The recording could not be written; nothing was sent while it ran, or the disk is full.") from self._error
        return self.path

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        try:
            with Writer(self.path, audio_rate=RATE, quality=QUALITY) as writer:
                self._write(writer)
        except Exception as error:  # told to whoever stops the recording
            self._error = error
            self._over = True

    def _write(self, writer: Writer) -> None:
        pictured = False
        heard = 0  # samples
        while (entry := self._queue.get()) is not None:
            picture, pcm, at = entry
            if picture is not None:
                self._pictures -= 1
                if self._origin is None:
                    self._origin = at
                writer.write_frame(VideoFrame(_rgb(picture), at - self._origin, picture.id))
                pictured = True
            elif pcm is not None and pictured and self._origin is not None:
                missing = round((at - self._origin) * RATE) - heard
                if missing > BLOCK_SECONDS * RATE:
                    pcm = np.concatenate([np.zeros(missing, np.float32), pcm])
                writer.write_audio(AudioChunk(np.clip(pcm, -1.0, 1.0), RATE, heard / RATE))
                heard += len(pcm)


def _rgb(picture: Picture) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    if picture.rgb is not None:
        return picture.rgb
    rgb: np.ndarray[tuple[int, int, int], np.dtype[np.uint8]] = picture.raw.to_ndarray(format="rgb24")
    return rgb
