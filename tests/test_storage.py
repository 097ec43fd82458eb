"""Files of a data set on a disk that fills up: nothing lies there twice, and what is there already needs no more room."""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine.types import AvatarError, Motion, UInt8Array, VideoFrame
from exporters.data import storage
from exporters.data.coarse import Coarse

SIZE = (48, 64)
FRAMES = 3


class Drawn(Coarse):
    """A puppet of one colour."""

    def __init__(self) -> None:
        self.portrait = np.zeros((*SIZE, 3), np.uint8)
        self._puppet: Any = SimpleNamespace(guide=lambda state, row, frame: frame.rgb, points=lambda state, row: np.zeros((478, 2), np.float32))
        self._state: Any = None

    def _step(self, motion: Motion | None) -> VideoFrame:
        rgb: UInt8Array = np.full((*SIZE, 3), 7, np.uint8)
        return VideoFrame(rgb, 0.0)


def pieces(folder: Path) -> Counter[str]:
    """How often each file lies there, those that are being written too."""
    return Counter(path.name.lstrip(".").split(".")[0] for path in folder.iterdir())


def written(clip: Path) -> Iterator[Counter[str]]:
    """Write a clip's frames -> what lies there after each of them."""
    seen: list[Counter[str]] = []
    Drawn().write(clip / "coarse.npy", [None] * FRAMES, tick=lambda done, total: seen.append(pieces(clip)))
    yield from seen


def test_a_retry_after_a_full_disk_holds_no_piece_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guide is whole before the frames are: where these find no room, the next try makes both anew."""
    synced: list[int] = []

    def full_in_the_end(file: int) -> None:
        synced.append(file)
        if len(synced) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full_in_the_end)
        with pytest.raises(AvatarError, match="the disk is full"):
            list(written(tmp_path))
    assert pieces(tmp_path) == {"guide": 1, "points": 1}
    for lying in written(tmp_path):
        assert set(lying.values()) == {1}, lying
    assert pieces(tmp_path) == {"guide": 1, "points": 1, "coarse": 1}


def test_what_is_there_already_needs_no_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = SIZE[0] * SIZE[1] * 3
    need = (3 * FRAMES + storage.LOOKS) * picture + storage.SPARE

    def with_room(free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
        storage.enough_room(tmp_path, frames=FRAMES, size=SIZE)

    with_room(need)
    with pytest.raises(AvatarError, match="free some space and start again"):
        with_room(need - 1)
    for name, size in (("clips/me/frames.npy", FRAMES * picture), (storage.ASSETS, 3000), (storage.APART, 5000)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
        need -= size
        with_room(need)
        with pytest.raises(AvatarError, match="free some space and start again"):
            with_room(need - 1)


# -- whose folder ---------------------------------------------------------------------------------------------------------


def lying(folder: Path) -> list[str]:
    """Names in it."""
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_of_other_files_is_refused_and_keeps_them_all(tmp_path: Path) -> None:
    for name in (".mine.part", "other.txt"):
        (tmp_path / name).write_text("not ours")
    with pytest.raises(AvatarError, match="holds other files"), storage.workplace(tmp_path, {"format": 1}):
        pass
    assert lying(tmp_path) == [".mine.part", "other.txt"]
    (tmp_path / "other.txt").unlink()
    with pytest.raises(AvatarError, match="holds other files"), storage.workplace(tmp_path, {"format": 1}):
        pass
    assert lying(tmp_path) == [".mine.part"]


def test_half_files_of_our_own_go(tmp_path: Path) -> None:
    (tmp_path / ".plan.json.0123.part").write_text("{")  # killed in the very first file
    with storage.workplace(tmp_path, {"format": 1}) as whole:
        assert not whole
        assert lying(tmp_path) == [storage.PLAN]
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / ".frames.npy.0123.part").write_bytes(b"half")
    with storage.workplace(tmp_path, {"format": 1}):
        assert lying(tmp_path / "clips") == []
