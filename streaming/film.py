"""Files that browsers record: is there a picture in them, how long are they, and the same with their length written in. Packets only, no decoding."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from engine.types import AvatarError


@dataclass(frozen=True, slots=True)
class Film:
    """One file."""

    seconds: float  # from the first picture to the end of the last
    pictures: int
    width: int  # px
    height: int
    sound: bool
    timed: bool  # whether the file itself says how long it is


def _format(suffix: str) -> str:
    """The one that the video's name promises: what was sent may not choose another, some of which name further files."""
    return "mp4" if suffix == ".mp4" else "matroska"


def inspect(path: Path, *, suffix: str | None = None) -> Film:
    """Read all of its packets; `suffix` of the name it is to get, where it has another. Raises AvatarError where that cannot be done."""
    import av
    from av.error import FFmpegError

    try:
        with av.open(path, format=_format(suffix or path.suffix)) as container:
            if not container.streams.video:
                raise AvatarError("There is no picture in the recording; allow the camera and record it again.")
            stream = container.streams.video[0]
            times = [float(packet.pts * packet.time_base) for packet in container.demux(stream) if packet.pts is not None and packet.time_base]
            seconds = max(times) - min(times) if times else 0.0
            if not times or stream.width < 2:
                raise AvatarError("There is no picture in the recording; record it again.")
            known = container.duration is not None
            return Film(seconds, len(times), stream.width, stream.height, bool(container.streams.audio), known)
    except FFmpegError as error:
        raise AvatarError("The recording cannot be read, so it is not kept; record it again, or with another browser.") from error


def timed(source: Path, target: Path) -> None:
    """The same packets in a file that says how long it is and where to seek, flushed to the disk. Raises AvatarError, OSError."""
    import av
    from av.error import FFmpegError

    try:
        with av.open(source, format=_format(target.suffix)) as old, av.open(target, "w") as new:
            streams = {stream.index: new.add_stream_from_template(stream) for stream in old.streams if stream.type in ("video", "audio")}
            for packet in old.demux([old.streams[index] for index in streams]):
                if packet.dts is not None:  # the last one of a stream is empty
                    packet.stream = streams[packet.stream_index]
                    new.mux(packet)
    except FFmpegError as error:
        target.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(error.errno, os.strerror(error.errno)) from error
        raise AvatarError("The recording cannot be read, so it is not kept; record it again, or with another browser.") from error
    with target.open("rb") as file:
        os.fsync(file.fileno())
