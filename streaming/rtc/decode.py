"""Decoding on a thread, with a bound on what waits for it and an end that cannot hang.

Upstream (rtcrtpreceiver.py): the decoder's input is an unbounded queue.Queue; the thread is not a daemon and waits for a mark that
only `close` sends, so that a process that ends without closing its connections hangs for ever in threading._shutdown; a
decoder that has seen an empty packet raises EOFError for every later one.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

import av
from aiortc.codecs import get_decoder

logger = logging.getLogger(__name__)

VIDEO_LIMIT = 8
"""Pictures that may wait for the decoder: a quarter of a second."""
AUDIO_LIMIT = 100
"""Packets of 20 ms."""
POLL = 0.5
"""s between two looks at whether the program is ending."""


class DecoderQueue(queue.Queue[Any]):
    """Bounded: an arrival that finds it full empties it (the decoder's past is worthless then) and calls `overflowed`."""

    def __init__(self, limit: int, overflowed: Callable[[], None]) -> None:
        super().__init__()
        self._limit = limit
        self._overflowed = overflowed
        self.dropped = 0

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """As queue.Queue; None, the end, is always taken."""
        if item is not None and self.qsize() >= self._limit:
            with self.mutex:
                self.dropped += len(self.queue) + 1
                self.queue.clear()
            self._overflowed()
            return
        super().put(item, block, timeout)


def decoder_worker(loop: asyncio.AbstractEventLoop, input_q: queue.Queue[Any], output_q: asyncio.Queue[Any], decode_error: threading.Event) -> None:
    """Stands in for aiortc's function of this name: (codec, encoded) in, av frames out, until None comes or the program ends."""
    codec_name = decoder = None
    while True:
        try:
            task = input_q.get(timeout=POLL)
        except queue.Empty:
            if not threading.main_thread().is_alive():
                return
            continue
        if task is None:
            _hand_over(loop, output_q, None)
            return
        codec, encoded = task
        if codec.name != codec_name:
            decoder, codec_name = get_decoder(codec), codec.name
        if not encoded.data:
            continue
        assert decoder is not None
        try:
            frames = decoder.decode(encoded)
        except av.FFmpegError as problem:
            logger.debug("A %s picture could not be decoded: %s", codec.name, problem)
            if isinstance(problem, EOFError):
                decoder = get_decoder(codec)
            decode_error.set()
            continue
        for frame in frames:
            if not _hand_over(loop, output_q, frame):
                return


def _hand_over(loop: asyncio.AbstractEventLoop, output_q: asyncio.Queue[Any], item: Any) -> bool:
    """Put it into the track's queue on its loop; False where that loop is gone."""
    try:
        loop.call_soon_threadsafe(output_q.put_nowait, item)
    except RuntimeError:
        return False
    return True
