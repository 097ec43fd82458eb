"""Media files: read what drives, write what was made. The only place that opens containers (PyAV, imported on use)."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.types import AudioChunk, AvatarError, FloatArray, VideoFrame

if TYPE_CHECKING:
    from av.container import InputContainer

TIME_BASE = Fraction(1, 90_000)
"""The video clock of RTP and MPEG: fine enough for any frame rate, so irregular arrivals keep their times."""
AAC_FRAME = 1024
"""Samples an AAC packet holds."""
AI_NOTICE = "AI-generated: animated from a portrait by avatar-engine"
"""The machine-readable disclosure in every file's metadata."""
MOST_SECONDS = 4 * 3600.0
"""The longest file that is read: more is a mistake or an attack."""


@dataclass(frozen=True, slots=True)
class Clip:
    """What a driving file holds."""

    path: Path
    duration: float  # s
    fps: float  # average, 0 where there is no video
    frames: int  # an estimate, for a progress bar
    has_video: bool
    has_audio: bool


def probe(path: str | Path) -> Clip:
    """Look into a file without decoding it. Raises AvatarError where it holds neither picture nor sound."""
    path = Path(path)
    with _open(path) as container:
        video, audio = list(container.streams.video), list(container.streams.audio)
        # A cover picture in a sound file is no video.
        video = [stream for stream in video if not (stream.disposition & 0x400)]
        if not video and not audio:
            raise AvatarError(f"'{path.name}' holds neither video nor sound; choose a video clip or a sound file.")
        duration = _duration(container)
        if duration > MOST_SECONDS:
            raise AvatarError(f"'{path.name}' is {duration / 3600:.1f} hours long; at most {MOST_SECONDS / 3600:.0f} hours are read.")
        fps = float(video[0].average_rate or 0) if video else 0.0
        frames = (video[0].frames or round(duration * fps)) if video else 0
        return Clip(path, duration, fps, frames, bool(video), bool(audio))


def video_frames(path: str | Path) -> Iterator[VideoFrame]:
    """Decoded frames in order with their own times from 0; a corrupt stretch is skipped, and rotation metadata is obeyed."""
    from av.error import FFmpegError

    with _open(Path(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        start: float | None = None
        number = 0
        for packet in container.demux(stream):
            try:
                decoded = packet.decode()
            except FFmpegError:
                continue
            for frame in decoded:
                time = float(frame.pts * stream.time_base) if frame.pts is not None and stream.time_base else number / 30.0
                start = time if start is None else start
                number += 1
                yield VideoFrame(rgb=_upright(frame), time=time - start, id=number)


def audio_samples(path: str | Path, *, rate: int) -> FloatArray:
    """The whole sound of a file as mono float32 at `rate` Hz, [N] in -1..1. Raises AvatarError where there is none."""
    import av
    from av.error import FFmpegError

    path = Path(path)
    with _open(path) as container:
        if not container.streams.audio:
            raise AvatarError(f"'{path.name}' holds no sound; choose a file with speech in it.")
        resampler = av.AudioResampler(format="fltp", rate=rate)
        # Channels are averaged here: FFmpeg's own down-mix adds them up, which clips a voice that stands in the middle.
        parts: list[FloatArray] = []
        for packet in container.demux(container.streams.audio[0]):
            try:
                frames = packet.decode()
            except FFmpegError:
                continue
            parts += [part.to_ndarray().mean(0) for frame in frames for part in resampler.resample(frame)]
        parts += [part.to_ndarray().mean(0) for part in resampler.resample(None)]
    if not parts or not sum(len(part) for part in parts):
        raise AvatarError(f"'{path.name}' holds a sound track without any sound in it; choose another file.")
    samples = np.concatenate(parts).astype(np.float32)
    return np.clip(np.nan_to_num(samples), -1.0, 1.0)


class Writer:
    """Writes frames and sound into an MP4 (or WebM by suffix) that appears under its name only when it is whole.

    Use as a context manager: an exception inside leaves nothing behind. Not thread-safe.
    """

    def __init__(self, path: str | Path, *, audio_rate: int | None = None, quality: int = 18) -> None:
        """`audio_rate`: Hz of the sound that will come, None for a silent file; `quality`: x264's CRF, lower is better."""
        self.path = Path(path)
        if not self.path.parent.is_dir():
            raise AvatarError(f"The folder '{self.path.parent}' does not exist; make it first or write elsewhere.")
        self._audio_rate = audio_rate
        self._quality = quality
        self._container: Any = None
        self._video: Any = None
        self._audio: Any = None
        self._last_pts = -1
        self._samples = 0
        self._pending = np.zeros(0, np.float32)
        self._partial = self.path.with_name(f".{self.path.stem}-{secrets.token_hex(4)}{self.path.suffix or '.mp4'}")

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _start(self, height: int, width: int) -> None:
        import av

        webm = self.path.suffix == ".webm"
        self._container = av.open(str(self._partial), "w", format="webm" if webm else "mp4")
        self._container.metadata["comment"] = AI_NOTICE
        if webm:
            self._video = self._container.add_stream(
                "libvpx-vp9", rate=30, options={"crf": str(self._quality + 8), "b:v": "0", "deadline": "realtime"}
            )
        else:
            self._video = self._container.add_stream("libx264", rate=30, options={"crf": str(self._quality), "preset": "veryfast"})
        self._video.width, self._video.height, self._video.pix_fmt = width, height, "yuv420p"
        self._video.codec_context.time_base = TIME_BASE
        if self._audio_rate:
            self._audio = self._container.add_stream("libopus" if webm else "aac", rate=48_000 if webm else self._audio_rate)
            self._audio.codec_context.layout = "mono"

    def write_frame(self, frame: VideoFrame) -> None:
        """A frame at its own time; one that is not later than the frame before it is left out."""
        import av

        height, width = frame.rgb.shape[0] // 2 * 2, frame.rgb.shape[1] // 2 * 2
        if self._container is None:
            self._start(height, width)
        pts = round(frame.time / TIME_BASE)
        if pts <= self._last_pts:
            return
        self._last_pts = pts
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame.rgb[:height, :width]), format="rgb24")
        if (picture.width, picture.height) != (self._video.width, self._video.height):
            picture = picture.reformat(width=self._video.width, height=self._video.height)
        picture.pts, picture.time_base = pts, TIME_BASE
        self._container.mux(self._video.encode(picture))

    def write_audio(self, chunk: AudioChunk) -> None:
        """Sound, appended to what came before; it begins at time 0."""
        self._pending = np.concatenate([self._pending, chunk.pcm])
        if self._audio is not None:
            self._encode_audio(len(self._pending) // AAC_FRAME * AAC_FRAME)

    def _encode_audio(self, count: int) -> None:
        import av

        if count <= 0 or self._audio_rate is None:
            return
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(self._pending[None, :count]), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = self._audio_rate, self._samples, Fraction(1, self._audio_rate)
        self._samples += count
        self._pending = self._pending[count:]
        self._container.mux(self._audio.encode(frame))

    def close(self) -> None:
        """Finish the file and give it its name. Raises AvatarError where no frame was written."""
        if self._container is None:
            self.abort()
            raise AvatarError("Nothing was written: the drive gave no frame.")
        if self._audio is not None:
            self._encode_audio(len(self._pending))
            self._container.mux(self._audio.encode(None))
        self._container.mux(self._video.encode(None))
        self._container.close()
        os.replace(self._partial, self.path)

    def abort(self) -> None:
        """Throw the unfinished file away."""
        if self._container is not None:
            self._container.close()
        self._partial.unlink(missing_ok=True)


def _open(path: Path) -> InputContainer:
    import av
    from av.error import FFmpegError

    if not path.is_file():
        raise AvatarError(f"There is no file '{path}'; check the path.")
    if path.stat().st_size == 0:
        raise AvatarError(f"'{path.name}' is empty; choose another file.")
    try:
        return av.open(str(path), metadata_errors="ignore")
    except (FFmpegError, ValueError) as error:
        raise AvatarError(f"'{path.name}' is not a media file that can be read; use MP4, WebM, MOV, WAV, FLAC, MP3 or OGG.") from error


def _duration(container: InputContainer) -> float:
    if container.duration:
        return float(container.duration) / 1_000_000
    lengths = [float(s.duration * s.time_base) for s in container.streams if s.duration and s.time_base]
    return max(lengths, default=0.0)


def _upright(frame: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """RGB of a decoded frame, turned as its display matrix asks (a phone held upright)."""
    rgb: np.ndarray[Any, np.dtype[np.uint8]] = frame.to_ndarray(format="rgb24")
    quarter_turns = math.floor(((frame.rotation or 0) % 360) / 90 + 0.5) % 4
    return np.ascontiguousarray(np.rot90(rgb, quarter_turns)) if quarter_turns else rgb
