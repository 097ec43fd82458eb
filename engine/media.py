"""Media files: read what drives, write what was made. The only place that opens containers (PyAV, imported on use)."""

from __future__ import annotations

import contextlib
import errno
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
GAP = 0.02
"""s a piece of sound may come later than the one before it ends: Matroska rounds times to 1 ms, and a packet is 20 ms or so. A longer gap
is one that was cut or lost, and stays a gap."""
SUFFIXES = {"": "mp4", ".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".webm": "webm"}
"""Suffix of a file that is written -> FFmpeg's name of its container."""
FORMATS = "mov,mp4,m4a,matroska,webm,avi,mpegts,mpeg,flv,asf,mjpeg,yuv4mpegpipe,ivf,gif,wav,w64,mp3,flac,ogg,aac,aiff,amr,au,caf"
"""Containers that are opened. Playlists are not among them, which would make us read other files and addresses, nor are still pictures."""
STILL_HEADS = (b"\xff\xd8\xff", b"\x89PNG", b"BM", b"II*\x00", b"MM\x00*")
STILL_BRANDS = (b"avif", b"heic", b"heix", b"mif1")
"""First bytes of a still picture (JPEG, PNG, BMP, TIFF), and brands of one in an MP4-like container."""


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
        video, audio = _pictures(container), list(container.streams.audio)
        if not video and not audio:
            raise AvatarError(f"'{path.name}' holds neither video nor sound; choose a video clip or a sound file.")
        duration = _duration(container)
        if duration > MOST_SECONDS:
            raise AvatarError(f"'{path.name}' is {duration / 3600:.1f} hours long; at most {MOST_SECONDS / 3600:.0f} hours are read.")
        fps = float(video[0].average_rate or 0) if video else 0.0
        frames = (video[0].frames or round(duration * fps)) if video else 0
        if container.format.name == "gif" and frames == 1:
            raise AvatarError(_still(path))
        return Clip(path, duration, fps, frames, bool(video), bool(audio))


def video_frames(path: str | Path) -> Iterator[VideoFrame]:
    """Decoded frames in order with their own times from 0; a corrupt stretch is skipped, and rotation metadata is obeyed."""
    start: float | None = None
    for number, (time, frame) in enumerate(_decoded(Path(path)), 1):
        start = time if start is None else start
        yield VideoFrame(rgb=_upright(frame), time=time - start, id=number)


def first_picture_time(path: str | Path) -> float | None:
    """The file's own time, s, of the frame that `video_frames` calls 0; None where there is none."""
    return next((time for time, _ in _decoded(Path(path))), None)


def picture_count(path: str | Path) -> int:
    """Frames that `video_frames` gives, counted without making pictures of them: a few ms each."""
    return sum(1 for _ in _decoded(Path(path)))


def _decoded(path: Path) -> Iterator[tuple[float, Any]]:
    """(the file's own time in s, frame) of its video."""
    from av.error import FFmpegError

    with _open(path) as container:
        stream = _pictures(container)[0]
        stream.thread_type = "AUTO"
        number = 0
        for packet in container.demux(stream):
            try:
                decoded = packet.decode()
            except FFmpegError:
                continue
            for frame in decoded:
                yield float(frame.pts * stream.time_base) if frame.pts is not None and stream.time_base else number / 30.0, frame
                number += 1


def audio_samples(path: str | Path, *, rate: int, origin: float | None = None) -> FloatArray:
    """The whole sound of a file as mono float32 at `rate` Hz, [N] in -1..1. Raises AvatarError where there is none.

    Gaps in the sound are silence. `origin`: the file's own time, s, of the first sample returned (sound before it is left out, silence
    stands where the sound begins later); None: the sound's own beginning.
    """
    from av.error import FFmpegError

    path = Path(path)
    with _open(path) as container:
        if not container.streams.audio:
            raise AvatarError(f"'{path.name}' holds no sound; choose a file with speech in it.")
        track = _Track(path.name, rate, origin)
        for packet in container.demux(container.streams.audio[0]):
            try:
                frames = packet.decode()
            except FFmpegError:
                continue
            for frame in frames:
                track.add(frame)
    return track.samples()


class _Track:
    """Decoded sound on its way to one array, each piece at its own time."""

    def __init__(self, name: str, rate: int, origin: float | None) -> None:
        self._name, self._rate, self._origin = name, rate, origin
        self._parts: list[FloatArray] = []
        self._count = 0  # samples in `_parts`
        self._heard = False
        self._resampler: Any = None
        self._shape: Any = None  # what the resampler was made for
        self._next: float | None = None  # s at which the next frame begins if nothing is missing

    def add(self, frame: Any) -> None:
        """The next decoded frame."""
        if not frame.samples:
            return
        time = frame.time if frame.time is not None else self._next or 0.0
        if self._origin is None:
            self._origin = time
        if self._next is None or time - self._next > GAP:
            self._end()
            self._silence(round((time - self._origin) * self._rate) - self._count)
            self._next = time
        shape = (frame.format.name, frame.layout.name, frame.sample_rate)
        if self._resampler is None or shape != self._shape:
            import av

            self._end()
            self._shape, self._resampler = shape, av.AudioResampler(format="fltp", rate=self._rate)
        self._next += frame.samples / frame.sample_rate
        self._keep(self._resampler.resample(frame))

    def _keep(self, frames: list[Any]) -> None:
        # Channels are averaged here: FFmpeg's own down-mix adds them up, which clips a voice that stands in the middle.
        for frame in frames:
            self._append(frame.to_ndarray().mean(0))
            self._heard = True

    def _append(self, samples: FloatArray) -> None:
        self._parts.append(samples)
        self._count += len(samples)
        if self._count > MOST_SECONDS * self._rate:
            raise AvatarError(f"The sound of '{self._name}' is longer than {MOST_SECONDS / 3600:.0f} hours; cut the file.")

    def _silence(self, count: int) -> None:
        """Before the origin the count is negative: what is heard up to then is cut off in the end."""
        if count > MOST_SECONDS * self._rate:
            raise AvatarError(f"The times in '{self._name}' jump by hours; convert the file and try again.")
        if count > 0:
            self._append(np.zeros(count, np.float32))
        elif not self._parts:
            self._count = count

    def _end(self) -> None:
        """Take what the resampler still holds."""
        if self._resampler is not None:
            self._keep(self._resampler.resample(None))
            self._resampler = None

    def samples(self) -> FloatArray:
        """All of it. Raises AvatarError where nothing was heard."""
        self._end()
        if not self._heard:
            raise AvatarError(f"'{self._name}' holds a sound track without any sound in it; choose another file.")
        samples = np.concatenate(self._parts).astype(np.float32)
        early = len(samples) - self._count
        return np.clip(np.nan_to_num(samples[early:]), -1.0, 1.0)


class Writer:
    """Writes frames and sound into an MP4, MOV or WebM (by suffix) that appears under its name only when it is whole.

    Use as a context manager: an exception inside leaves nothing behind. Not thread-safe. All that can go wrong with the file (no such
    folder, not writable, disk full) is an AvatarError, and what can be known before the first frame is told by the constructor.
    """

    def __init__(self, path: str | Path, *, audio_rate: int | None = None, quality: int = 18) -> None:
        """`audio_rate`: Hz of the sound that will come, None for a silent file; `quality`: x264's CRF, lower is better."""
        self.path = Path(path)
        self.audio_rate = audio_rate  # may be set to None until the first frame is written
        self._format = _output_format(self.path)
        self._quality = quality
        self._container: Any = None
        self._video: Any = None
        self._audio: Any = None
        self._last_pts = -1
        self._samples = 0
        self._pending = np.zeros(0, np.float32)
        self._partial = self.path.with_name(f".{secrets.token_hex(8)}.part")
        with _told(self.path):
            self._partial.open("xb").close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _start(self, height: int, width: int) -> None:
        import av

        webm = self._format == "webm"
        self._container = av.open(f"file:{self._partial}", "w", format=self._format)
        self._container.metadata["comment"] = AI_NOTICE
        if webm:
            self._video = self._container.add_stream(
                "libvpx-vp9", rate=30, options={"crf": str(self._quality + 8), "b:v": "0", "deadline": "realtime"}
            )
        else:
            self._video = self._container.add_stream("libx264", rate=30, options={"crf": str(self._quality), "preset": "veryfast"})
        self._video.width, self._video.height, self._video.pix_fmt = width, height, "yuv420p"
        self._video.codec_context.time_base = TIME_BASE
        if self.audio_rate:
            self._audio = self._container.add_stream("libopus" if webm else "aac", rate=48_000 if webm else self.audio_rate)
            self._audio.codec_context.layout = "mono"

    def write_frame(self, frame: VideoFrame) -> None:
        """A frame at its own time; one that is not later than the frame before it is left out."""
        import av

        height, width = frame.rgb.shape[0] // 2 * 2, frame.rgb.shape[1] // 2 * 2
        if self._container is None:
            with _told(self.path):
                self._start(height, width)
        pts = round(frame.time / TIME_BASE)
        if pts <= self._last_pts:
            return
        self._last_pts = pts
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame.rgb[:height, :width]), format="rgb24")
        if (picture.width, picture.height) != (self._video.width, self._video.height):
            picture = picture.reformat(width=self._video.width, height=self._video.height)
        picture.pts, picture.time_base = pts, TIME_BASE
        with _told(self.path):
            self._container.mux(self._video.encode(picture))

    def write_audio(self, chunk: AudioChunk) -> None:
        """Sound, appended to what came before; it begins at time 0."""
        self._pending = np.concatenate([self._pending, chunk.pcm])
        if self._audio is not None:
            with _told(self.path):
                self._encode_audio(len(self._pending) // AAC_FRAME * AAC_FRAME)

    def _encode_audio(self, count: int) -> None:
        import av

        if count <= 0 or self.audio_rate is None:
            return
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(self._pending[None, :count]), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = self.audio_rate, self._samples, Fraction(1, self.audio_rate)
        self._samples += count
        self._pending = self._pending[count:]
        self._container.mux(self._audio.encode(frame))

    def close(self) -> None:
        """Finish the file and give it its name. Raises AvatarError where no frame was written or the file cannot be."""
        try:
            if self._container is None:
                raise AvatarError("Nothing was written: the drive gave no frame.")
            with _told(self.path):
                if self._audio is not None:
                    self._encode_audio(len(self._pending))
                    self._container.mux(self._audio.encode(None))
                self._container.mux(self._video.encode(None))
                self._container.close()
                os.replace(self._partial, self.path)
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Throw the unfinished file away."""
        if self._container is not None:
            with contextlib.suppress(Exception):  # a full disk complains again
                self._container.close()
        with contextlib.suppress(OSError):
            self._partial.unlink(missing_ok=True)


def _output_format(path: Path) -> str:
    """FFmpeg's name of the container for this file. Raises AvatarError where no video can be written there."""
    if not path.name:
        raise AvatarError("The file to write has no name; give one such as out.mp4.")
    if path.suffix.lower() not in SUFFIXES:
        raise AvatarError(f"'{path.name}' would not be what its name says: only .mp4, .m4v, .mov and .webm are written; choose one of them.")
    with _told(path):
        if path.is_dir():
            raise AvatarError(f"'{path}' is a folder; name a file in it, such as {path / 'out.mp4'}.")
        if not path.parent.is_dir():
            raise AvatarError(f"The folder '{path.parent}' does not exist; make it first or write elsewhere.")
        if path.exists() and not path.is_file():
            raise AvatarError(f"'{path}' is no ordinary file; write elsewhere.")
    return SUFFIXES[path.suffix.lower()]


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Whatever the disk refuses, in one sentence."""
    from av.error import FFmpegError

    try:
        yield
    except (OSError, FFmpegError) as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise AvatarError(f"'{path}' cannot be written: the disk is full; free some space or write elsewhere.") from error
        raise AvatarError(f"'{path}' cannot be written ({error.strerror or error}); write elsewhere.") from error


def _open(path: Path) -> InputContainer:
    import av
    from av.error import FFmpegError

    try:
        if path.is_dir():
            raise AvatarError(f"'{path}' is a folder; choose a file in it.")
        if not path.is_file():
            raise AvatarError(f"There is no file '{path}'; check the path.")
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise AvatarError(f"'{path}' cannot be read ({error.strerror or error}); check its name and permissions.") from error
    if not head:
        raise AvatarError(f"'{path.name}' is empty; choose another file.")
    if head[4:8] == b"ftyp" and any(brand in head[8:] for brand in STILL_BRANDS):
        raise AvatarError(_still(path))
    try:
        # "file:" keeps a name with a colon from being taken for an address.
        return av.open(f"file:{path}", metadata_errors="ignore", options={"format_whitelist": FORMATS, "protocol_whitelist": "file"})
    except (FFmpegError, ValueError) as error:
        if head.startswith(STILL_HEADS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
            raise AvatarError(_still(path)) from error
        raise AvatarError(f"'{path.name}' is not a media file that can be read; use MP4, WebM, MOV, WAV, FLAC, MP3 or OGG.") from error


def _still(path: Path) -> str:
    return f"'{path.name}' is a still picture, which moves nothing; choose a video clip or a sound file."


def _pictures(container: InputContainer) -> list[Any]:
    """Its video streams. A cover picture in a sound file is none (disposition "attached picture", 0x400)."""
    return [stream for stream in container.streams.video if not (stream.disposition & 0x400)]


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
