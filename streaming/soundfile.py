"""Sound of any format and rate -> mono 16 bit at 48 kHz; through PyAV, never on the loop."""

from __future__ import annotations

import io

import av
import numpy as np
from av.error import FFmpegError

from engine.types import AvatarError, FloatArray
from streaming.pacing import RATE
from streaming.sound import Pcm16

FORMATS = "wav,w64,mp3,flac,ogg,matroska,webm,mov,mp4,m4a,aac,aiff,amr,au,caf,mpegts,avi,opus"
"""Containers that are opened. Playlists are not among them: they would make the server read other files and addresses."""
HINT = "use WAV, MP3, FLAC, OGG, M4A or WebM"


def decode_sound(data: bytes, *, most_seconds: float) -> Pcm16:
    """A file's first sound track -> [N] int16 at 48 kHz. Raises AvatarError with one sentence."""
    if not data:
        raise AvatarError("The sound file is empty; choose another one.")
    parts: list[Pcm16] = []
    count = 0
    try:
        with av.open(
            io.BytesIO(data), "r", options={"format_whitelist": FORMATS, "protocol_whitelist": "none"}, metadata_errors="ignore"
        ) as container:
            if not container.streams.audio:
                raise AvatarError(f"There is no sound in that file; {HINT}.")
            resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
            for frame in container.decode(container.streams.audio[0]):
                for piece in resampler.resample(frame):
                    parts.append(piece.to_ndarray()[0])
                    count += len(parts[-1])
                if count > most_seconds * RATE:
                    raise AvatarError(f"That file is longer than {most_seconds / 60:.0f} minutes; cut it.")
            parts.extend(piece.to_ndarray()[0] for piece in resampler.resample(None))
    except (FFmpegError, ValueError) as error:
        raise AvatarError(f"That is not a sound file that can be read; {HINT}.") from error
    if not count:
        raise AvatarError(f"There is no sound in that file; {HINT}.")
    return np.concatenate(parts)


class ToRate:
    """A stream of mono pieces of one rate -> 16 bit at 48 kHz, without seams."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)

    def push(self, pcm: FloatArray) -> list[Pcm16]:
        """[N] -1..1 -> what is complete so far."""
        if not len(pcm):
            return []
        samples = (np.clip(pcm, -1.0, 1.0) * 32767.0).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = self._rate
        return [piece.to_ndarray()[0] for piece in self._resampler.resample(frame)]

    def end(self) -> list[Pcm16]:
        """The rest."""
        return [piece.to_ndarray()[0] for piece in self._resampler.resample(None)]
