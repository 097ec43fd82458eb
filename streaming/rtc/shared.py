"""One encode for all viewers of a session.

Upstream: every sender has an encoder of its own (aiortc issue 1155: N viewers are N encodes). Its sender takes packets in
place of pictures from a track, and that door is used here: a viewer's track yields pictures that are encoded and cut into
RTP payloads already. Key pictures are asked for by any viewer and made once a second at most for all of them.

The bitrate is the median of what the viewers' links take. A viewer whose link is too small for it does not slow the others:
it is given nothing for REST seconds, then goes on at a key picture.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from av import VideoFrame

from streaming.rtc.encoders import VideoEncoder, encode_pool, make_video_encoder
from streaming.rtc.rate import KeyRequests
from streaming.rtc.send import Encoded
from streaming.rtc.settings import DEFAULTS, RtcSettings

QUEUE = 8
"""Pictures that may wait for one viewer's connection."""
REST = 2.0
"""s that a viewer with a full link does without pictures."""


class ViewerTrack(MediaStreamTrack):
    """What one viewer's connection sends. Made by `SharedEncoder.track`."""

    kind = "video"

    def __init__(self, owner: SharedEncoder) -> None:
        super().__init__()
        self._owner = owner
        self._queue: deque[Encoded] = deque()
        self._arrived = asyncio.Event()
        self._await_key = True
        self._rest_until = float("-inf")
        self.skipped = 0
        self.target: float | None = None  # bit/s that this viewer's link takes, once it is known

    def give(self, picture: Encoded) -> None:
        """Called by the encoder with each picture."""
        if self._await_key and (not picture.keyframe or time.monotonic() < self._rest_until):
            self._skip(1)
            if time.monotonic() >= self._rest_until:
                self._owner.request_keyframe()
            return
        self._await_key = False
        self._queue.append(picture)
        if len(self._queue) > QUEUE:
            self._skip(len(self._queue))
            self._queue.clear()
            self._await_key = True
        self._arrived.set()

    def fall_behind(self) -> None:
        """The sender's link is full: rest, then go on at a key picture."""
        self._skip(len(self._queue) + 1)  # the picture that the sender holds as well
        self._queue.clear()
        self._await_key = True
        self._rest_until = time.monotonic() + REST

    def note_target(self, bitrate: float) -> None:
        """The sender's estimate of the viewer's link, bit/s."""
        self.target = bitrate
        self._owner.retarget()

    def request_keyframe(self) -> None:
        """The viewer's browser has lost the picture."""
        self._owner.request_keyframe()

    async def recv(self) -> Any:
        """The next encoded picture. Raises MediaStreamError when the track has ended."""
        while not self._queue:
            if self.readyState != "live":
                raise MediaStreamError
            self._arrived.clear()
            await self._arrived.wait()
        return self._queue.popleft()

    def _skip(self, count: int) -> None:
        self.skipped += count
        self._owner.on_drop("viewer", count)

    def stop(self) -> None:
        super().stop()
        self._owner.leave(self)
        self._arrived.set()


class SharedEncoder:
    """Encodes a picture once and hands it to every viewer's track. Lives on one event loop.

    `push` is awaited with each picture (pts and time_base set); it encodes on a thread and does nothing while nobody watches.
    `track()` makes one viewer's track (give it to pc.addTrack; negotiate `codec` alone); it starts at a key picture, which is
    asked for, and leaves by itself when its connection closes.
    """

    def __init__(
        self, *, codec: str = "H264", settings: RtcSettings = DEFAULTS, on_drop: Callable[[str, int], None] = lambda cause, count: None
    ) -> None:
        """`on_drop(cause, pictures)`: "viewer_encoder", the encoder was busy; "viewer", one viewer's link was full or its key picture awaited."""
        self.codec = codec
        self.on_drop = on_drop
        self.settings = settings
        self.encoded = 0
        self.skipped = 0  # pictures that came while one was still being encoded
        self._viewers: set[ViewerTrack] = set()
        self._keys = KeyRequests()
        self._encoder: VideoEncoder | None = None
        self._busy = False

    @property
    def viewers(self) -> int:
        """Tracks that are live."""
        return len(self._viewers)

    @property
    def target_bitrate(self) -> int:
        """bit/s of the shared stream; 0 while nobody watches."""
        return self._encoder.target_bitrate if self._encoder is not None else 0

    @property
    def keyframes(self) -> int:
        """Key pictures made."""
        return self._keys.sent

    def track(self) -> ViewerTrack:
        """A track for one viewer."""
        viewer = ViewerTrack(self)
        self._viewers.add(viewer)
        self._keys.ask()
        return viewer

    def request_keyframe(self) -> None:
        """The next picture (but one a second at most) will be a key picture."""
        self._keys.ask()

    def retarget(self) -> None:
        """Take the median of the viewers' targets."""
        targets = sorted(viewer.target for viewer in self._viewers if viewer.target is not None)
        if targets and self._encoder is not None:
            self._encoder.target_bitrate = int(targets[len(targets) // 2])

    def leave(self, viewer: ViewerTrack) -> None:
        """A viewer's track has ended."""
        self._viewers.discard(viewer)

    async def push(self, frame: VideoFrame) -> None:
        """Encode a picture for whoever watches."""
        if not self._viewers:
            self._encoder = None
            return
        if self._busy:
            self.skipped += 1
            self.on_drop("viewer_encoder", 1)
            return
        self._busy = True
        try:
            await self._encode(frame)
        finally:
            self._busy = False

    async def _encode(self, frame: VideoFrame) -> None:
        if self._encoder is None:
            self._encoder = make_video_encoder(self.codec, self.settings)
            self._keys.first()
            key = True
        else:
            key = self._keys.take(time.monotonic())
        encode = self._encoder.encode  # the encoder may be closed meanwhile
        payloads, timestamp = await asyncio.get_running_loop().run_in_executor(encode_pool(), encode, frame, key)
        if not payloads:
            return
        self.encoded += 1
        picture = Encoded(payloads, timestamp, key)
        for viewer in list(self._viewers):
            viewer.give(picture)

    def close(self) -> None:
        """End every viewer's track."""
        for viewer in list(self._viewers):
            viewer.stop()
        self._encoder = None
