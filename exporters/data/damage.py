"""What is wrong inside a video that decodes: broken stretches that a decoder paints over, and colours that an ordinary reader gets wrong."""

from __future__ import annotations

from bisect import bisect_right
from fractions import Fraction
from pathlib import Path

from engine.types import AvatarError

REORDERED = 0.2
"""s by which a picture may be shown before one that is decoded before it."""
HDR = {16: "PQ", 18: "HLG"}
"""Transfer characteristics of ITU-T H.273 whose pictures look washed out where they are read as ordinary ones."""

Span = tuple[float, float]
"""s from, s until; the first picture is at 0."""


def damaged(path: Path) -> list[Span]:
    """Stretches of a video's pictures that hold decoding errors, each up to the next key frame: until then errors are carried on.

    1 ms of CPU a frame. Raises AvatarError for an HDR video.
    """
    import av
    from av.error import FFmpegError

    keys: list[float] = []
    errors: list[float] = []
    first: float | None = None
    with av.open(f"file:{path}", metadata_errors="ignore") as container:
        stream = next(s for s in container.streams.video if not (s.disposition & 0x400))  # a cover picture is no video
        name = HDR.get(int(stream.codec_context.color_trc))
        if name is not None:
            raise AvatarError(f"'{path.name}' is an HDR video ({name}), whose colours would be learnt wrong; record with HDR off, or convert it.")
        stream.codec_context.options = {"err_detect": "explode"}
        stream.codec_context.thread_count = 1  # an error is then told of the packet that holds it
        unit, at = stream.time_base or Fraction(1, 90_000), 0.0
        try:
            for packet in container.demux(stream):
                at = at if packet.pts is None else float(packet.pts * unit)
                if packet.is_keyframe and packet.size:
                    keys.append(at)
                try:
                    for frame in packet.decode():
                        if first is None and frame.pts is not None:
                            first = float(frame.pts * unit)
                except FFmpegError:
                    errors.append(at)
        except FFmpegError:
            errors.append(at)
    return _spans(errors, sorted(keys), first or 0.0)


def _spans(errors: list[float], keys: list[float], first: float) -> list[Span]:
    """Errors and key frames, s -> spans from `first` on, joined where they touch."""
    spans: list[Span] = []
    for error in sorted(errors):
        behind = bisect_right(keys, error)
        start, end = error - REORDERED - first, (keys[behind] - first if behind < len(keys) else float("inf"))
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((start, end))
    return spans


__all__ = ["Span", "damaged"]
