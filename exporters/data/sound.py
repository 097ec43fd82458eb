"""The sound of a data set's clips, for presets that listen to it with a network of their own. Needs no PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.drivers.resample import RATE
from engine.media import audio_samples, first_picture_time
from engine.types import AvatarError
from exporters.data import storage

FILE = "sound.npz"
"""In the folder of a clip; data sets that were collected before it was kept have none."""
LOUDEST = 32_767
"""Of a sample, which stands for 1."""
Sound = npt.NDArray[np.int16]


def keep(video: Path, home: Path) -> None:
    """Write a clip's sound into its folder `home`, if it is not there: mono at 16 kHz from the first picture on; empty where there is none."""
    from av.error import FFmpegError

    if (home / FILE).exists():
        return
    try:
        heard = audio_samples(video, rate=RATE, origin=first_picture_time(video))
    except (AvatarError, FFmpegError):  # no, an empty or a broken track, as where log-mel is made of it
        heard = np.zeros(0, np.float32)
    storage.write_arrays(home / FILE, pcm=np.rint(np.clip(heard, -1.0, 1.0) * LOUDEST).astype(np.int16))


def kept(home: Path) -> Sound | None:
    """What `keep` wrote [M]; None where it was not there yet. Raises AvatarError where it is damaged."""
    if not (home / FILE).exists():
        return None
    pcm: Sound = storage.read_arrays(home / FILE)["pcm"]
    return pcm


__all__ = ["FILE", "LOUDEST", "Sound", "keep", "kept"]
