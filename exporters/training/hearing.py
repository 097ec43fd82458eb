"""What the frames of a data set hear by a preset's own listening network, and where its portrait has a face.

That network stays as it is, so its features are found once a clip and kept beside it, in half precision, by the network's weights. They are those
of the whole sound, as published: a live session's frames hear the two seconds before them alone, which is nearly the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from engine.drivers.resample import RATE
from engine.generators.diffusion.listening import heard_in
from engine.generators.diffusion.networks import Face, Networks
from engine.generators.diffusion.presets import Preset
from engine.types import BODY_POINTS, AvatarError, FloatArray
from exporters.training.batches import most_still

if TYPE_CHECKING:
    from exporters.data.dataset import Clip, Dataset
    from exporters.data.sound import Sound

PIECE, AROUND = 26, 2
"""s of sound that are listened to at a time, and on both sides of them: half a minute in all, as Whisper has it, whatever the clip's length."""


def check_ears(made: Preset, start: Path | None) -> None:
    """Raise AvatarError where a preset's listening network would be one that has learnt nothing."""
    if made.ears.kind != "mel" and start is None:
        raise AvatarError(f"The preset '{made.name}' listens with a network that training leaves as it is; give weights that have one with --start.")


def check_same(networks: Networks, teacher: Networks, *, named: Path) -> None:
    """Raise AvatarError where a teacher, the weights in `named`, hears otherwise than the student."""
    mine, theirs = networks.listener, teacher.listener
    if mine is None and theirs is None:
        return
    if mine is None or theirs is None or key_of(mine) != key_of(theirs):
        raise AvatarError(f"The teacher in {named} listens with another network than the student; start both from the same import (--start).")


def key_of(listener: nn.Module) -> str:
    """Names a listening network by its weights, whatever their precision."""
    told = hashlib.sha256()
    for name, value in sorted(listener.state_dict().items()):
        told.update(name.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
    return told.hexdigest()[:16]


def prepare(data: Dataset, networks: Networks) -> None:
    """Find what every frame hears, where it is not there yet. Raises AvatarError for a data set without sound, or where the disk is full."""
    if networks.listener is None:
        return
    for clip, path in zip(data.clips, _paths(data, networks), strict=True):
        if clip.sound is None:
            again = "collect it again with its videos (avatar train without --stage train), which adds it"
            raise AvatarError(f"The data set in {data.folder} holds no sound, which '{networks.preset.name}' listens to; {again}.")
        if not path.exists():
            _write(path, clip, clip.sound, networks, fps=data.fps)


def heard(data: Dataset, networks: Networks) -> list[FloatArray] | None:
    """[N, *`Ears.heard`] of every clip, mapped from the disk, float16; None where log-mel is all that is heard. After `prepare`."""
    if networks.listener is None:
        return None
    found: list[FloatArray] = []
    for clip, path in zip(data.clips, _paths(data, networks), strict=True):
        try:
            held = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise AvatarError(f"'{path}' is damaged; remove that file and train again.") from error
        if held.shape != (len(clip.kept), *networks.preset.ears.heard):
            raise AvatarError(f"'{path}' is of another clip; remove that file and train again.")
        found.append(held)
    return found


def face_in(data: Dataset, networks: Networks) -> Face | None:
    """What the preset knows of the face in the data set's portrait; None for presets that want nothing."""
    from engine.generators.diffusion.conditions import Anchor  # with it comes what tracks faces
    from engine.generators.diffusion.face_of import seen_face

    clip, frame = most_still(data.clips)
    points = data.clips[clip].face[frame] / np.array(data.size[::-1], np.float32)
    face = np.concatenate([points, np.zeros_like(points[:, :1])], 1)
    return seen_face(networks, data.portrait, Anchor(face, np.zeros((BODY_POINTS, 4), np.float32)))


def _paths(data: Dataset, networks: Networks) -> list[Path]:
    assert networks.listener is not None
    key = key_of(networks.listener)
    return [data.folder / "clips" / clip.name / f"heard-{key}.npy" for clip in data.clips]


def _write(path: Path, clip: Clip, sound: Sound, networks: Networks, *, fps: int) -> None:
    """Piece by piece: of a long clip there is more than memory holds."""
    from exporters.data import storage  # with it comes OpenCV, which a benchmark of training does without

    write_header: Any = np.lib.format.write_array_header_1_0
    with storage.whole_file(path) as file:
        write_header(file, {"descr": "<f2", "fortran_order": False, "shape": (len(clip.kept), *networks.preset.ears.heard)})
        for piece in _pieces(sound, networks, count=len(clip.kept), fps=fps):
            file.write(np.ascontiguousarray(piece, "<f2").tobytes())


def _pieces(sound: Sound, networks: Networks, *, count: int, fps: int) -> Iterator[FloatArray]:
    """[n, *`Ears.heard`] of `count` frames, `fps` a second, some at a time."""
    from exporters.data.sound import LOUDEST

    assert networks.listener is not None
    made, frame = replace(networks.preset, fps=fps), RATE // fps
    pcm = np.zeros(count * frame, np.float32)
    pcm[: len(sound)] = sound[: len(pcm)].astype(np.float32) / LOUDEST
    networks.listener.eval()
    for start in range(0, count, PIECE * fps):
        stop = min(count, start + PIECE * fps)
        first, last = max(0, start - AROUND * fps), min(count, stop + AROUND * fps)
        rows = heard_in(networks.listener, pcm[first * frame : last * frame], made)[start - first : stop - first]
        assert len(rows) == stop - start
        yield rows.float().cpu().numpy()


__all__ = ["check_ears", "check_same", "face_in", "heard", "key_of", "prepare"]
