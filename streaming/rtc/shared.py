"""One encode for all viewers of a session."""

from __future__ import annotations

from aiortc import MediaStreamTrack
from av import VideoFrame

from streaming.rtc.settings import DEFAULTS, RtcSettings


class SharedEncoder:
    """Encodes a picture once and hands the packets to every viewer's track.

    `push` is awaited with each picture (pts and time_base set); it encodes on a thread of its own and does nothing while
    nobody watches. `track()` makes one viewer's track (pc.addTrack it); it starts at a key picture, which is asked for,
    and leaves by itself when its connection closes.
    """

    def __init__(self, *, codec: str = "H264", settings: RtcSettings = DEFAULTS) -> None:
        self.codec = codec
        self.settings = settings

    @property
    def viewers(self) -> int:
        """Tracks that are live."""
        return 0

    def track(self) -> MediaStreamTrack:
        """A track for one viewer."""
        raise NotImplementedError

    async def push(self, frame: VideoFrame) -> None:
        """Encode a picture for whoever watches."""

    def close(self) -> None:
        """End every viewer's track."""
