"""Files of a data set: each whole or not there, in a folder that says what it is made of."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from engine.generators.puppet.look import TERMS
from engine.types import AvatarError, UInt8Array
from exporters.data.look import BLOCKS
from exporters.files import sha256

PLAN, INDEX, MAPS = "plan.json", "dataset.json", "maps.json"
GUIDE, POINTS = "guide.npy", "points.npz"
TRACKS, REFERENCE, SCENE, ASSETS, APART = "tracks", "reference.npz", "scene.png", "assets.npz", "apart.npz"
"""See `exporters.data.dataset`."""
SUFFIXES = (".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi", ".mts", ".ts", ".mpg", ".mpeg")
"""Of the files in a folder that are taken for clips."""
LOOKS = (1 + BLOCKS) * TERMS * np.dtype(np.float16).itemsize
"""Pictures' worth of what is learnt: the look, and one for each part of the clip."""
ASIDE = ".part"
SPARE = 64 * 2**20
"""Bytes of disk left over."""

Array = npt.NDArray[Any]


# -- what it is made of -------------------------------------------------------------------------------------------------


def find_videos(videos: Sequence[Path]) -> list[Path]:
    """Files, and those of folders by name. Raises AvatarError where there are none."""
    found: list[Path] = []
    for path in map(Path, videos):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
            if not inside:
                raise AvatarError(f"There is no video in the folder '{path}'; put clips such as .mp4 or .mov there.")
            found += inside
        else:
            found.append(path)
    if not found:
        raise AvatarError("No video was given; name at least one clip of the person.")
    return found


def identify(paths: Sequence[Path], tell: Callable[[str, int, int], None]) -> list[dict[str, str]]:
    """Name and sha256 of every video. Raises AvatarError for one that cannot be read or is given twice."""
    known: dict[str, Path] = {}
    names: list[str] = []
    for number, path in enumerate(paths, 1):
        try:
            digest = sha256(path)
        except OSError as error:
            raise AvatarError(f"'{path}' cannot be read ({error.strerror or error}); check its name and permissions.") from error
        if digest in known:
            raise AvatarError(f"'{path}' and '{known[digest]}' are the same clip; leave one out.")
        known[digest] = path
        name = "".join(c if c.isalnum() or c in "-_" else "_" for c in path.stem)[:60] or "clip"
        names.append(name if name not in names else f"{name}-{number}")
        tell("reading the clips", number, len(paths))
    return [{"name": name, "sha256": digest} for name, digest in zip(names, known, strict=True)]


@contextmanager
def alone(folder: Path, *, doing: str) -> Iterator[None]:
    """The folder, for this program alone; made where it is not there. `doing`: what another one is doing, before the folder's name.

    Raises AvatarError where there is another, or where the folder cannot be made.
    """
    with told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise AvatarError(f"Something else is {doing} {folder} just now; wait for it, or choose another folder.") from error
        yield
    finally:
        os.close(lock)


@contextmanager
def workplace(folder: Path, plan: dict[str, Any]) -> Iterator[bool]:
    """The folder, locked, with its plan written -> whether the data set in it is whole already.

    What is left of an unfinished set of another plan is cleared away, but for the tracks of videos, which go by their hashes.
    """
    with told(folder):
        if folder.exists() and not folder.is_dir():
            raise AvatarError(f"'{folder}' is a file; name a folder for the data set.")
    with alone(folder, doing="writing"):
        _settle(folder, plan)
        with told(folder):
            for left in folder.rglob(f".*{ASIDE}"):  # not before it is known that the folder is ours
                left.unlink(missing_ok=True)
        yield (folder / INDEX).exists()


def _settle(folder: Path, plan: dict[str, Any]) -> None:
    """Bring the folder to where work on this plan can begin or go on."""
    if not (folder / PLAN).exists():
        if not all(path.match(f".{PLAN}.*{ASIDE}") for path in folder.iterdir()):  # killed in the plan's own file: still ours
            raise AvatarError(f"{folder} holds other files; choose an empty folder for the data set.")
        write_json(folder / PLAN, plan)
        return
    try:
        before = dict(json.loads((folder / PLAN).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise AvatarError(f"The data set in {folder} is damaged ({PLAN}); remove it and make it again.") from error
    other = next((name for name in plan if before.get(name) != plan[name]), None)
    if other is None:
        return
    if (folder / INDEX).exists():
        words = {"size": "with another frame size", "videos": "of other videos", "least": "with another least length"}
        was = words.get(other, "of another version")
        raise AvatarError(f"{folder} already holds a data set {was}; choose another folder, or remove it first.")
    with told(folder):
        shutil.rmtree(folder / "clips", ignore_errors=True)
        if before.get("format") != plan["format"]:
            shutil.rmtree(folder / TRACKS, ignore_errors=True)
        for name in (REFERENCE, SCENE, ASSETS, APART, MAPS):
            (folder / name).unlink(missing_ok=True)
    write_json(folder / PLAN, plan)


# -- whole files --------------------------------------------------------------------------------------------------------


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Whatever the disk refuses, in one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise AvatarError(f"'{path}' cannot be written: the disk is full; free some space and start again, it goes on from there.") from error
        raise AvatarError(f"'{path}' cannot be written ({error.strerror or error}); choose another folder.") from error


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when it is complete and on the disk."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}{ASIDE}")
    with told(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def clear(*paths: Path) -> None:
    """Remove files that are written anew, so that the disk never holds an old and a new one at a time."""
    for path in paths:
        with told(path):
            path.unlink(missing_ok=True)


def write_json(path: Path, held: dict[str, Any]) -> None:
    """A JSON file."""
    with whole_file(path) as file:
        file.write((json.dumps(held, indent=1, ensure_ascii=False) + "\n").encode())


def write_arrays(path: Path, **arrays: Array) -> None:
    """An .npz."""
    with whole_file(path) as file:
        np.savez(file, **arrays)


def write_picture(path: Path, rgb: UInt8Array) -> None:
    """A PNG."""
    from PIL import Image

    with whole_file(path) as file:
        Image.fromarray(rgb).save(file, "PNG", compress_level=3)


@contextmanager
def frames_file(path: Path, shape: tuple[int, ...]) -> Iterator[Callable[[UInt8Array], None]]:
    """An .npy of uint8 frames that are given one by one, exactly `shape[0]` of them.

    Not written through a map: where the disk is full that would end the process instead of raising an error.
    """
    given = 0
    with whole_file(path) as file:

        def write(frame: UInt8Array) -> None:
            nonlocal given
            assert frame.shape == shape[1:]
            assert frame.dtype == np.uint8
            file.write(np.ascontiguousarray(frame).tobytes())
            given += 1

        write_header: Any = np.lib.format.write_array_header_1_0
        write_header(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        yield write
        if given != shape[0]:
            raise AvatarError(f"'{path}' should hold {shape[0]} frames, but the clip gave {given}; the video has changed, start again.")


def track(folder: Path, named: Mapping[str, str]) -> Path:
    """The file of what was seen and heard in a video, which is `named` as in `identify`."""
    return folder / TRACKS / f"{named['sha256']}.npz"


def enough_room(folder: Path, *, frames: int, size: tuple[int, int]) -> None:
    """Raise AvatarError where the disk cannot hold what is still to be written: pictures, and what is learnt."""
    have = sum(f.stat().st_size for f in (*folder.rglob("*.npy"), *folder.glob(ASSETS), *folder.glob(APART)))
    room(folder, (3 * frames + LOOKS) * size[0] * size[1] * 3 - have, what="The data set needs")


def room(folder: Path, need: int, *, what: str) -> None:
    """Raise AvatarError where the disk has not `need` bytes left, and some to spare. `what` needs them, in words."""
    need, free = need + SPARE, shutil.disk_usage(folder).free
    if free < need:
        raise AvatarError(f"{what} {need / 2**20:.0f} MB in {folder} and there are {free / 2**20:.0f}; free some space and start again.")


# -- reading ------------------------------------------------------------------------------------------------------------


def finish(folder: Path, index: dict[str, Any]) -> None:
    """Say that the folder is whole: the index names every file with its size. Tracks of videos that are not in it go, and what was only
    needed on the way."""
    for track in (folder / TRACKS).iterdir():
        if track.stem not in {video["sha256"] for video in index["videos"]}:
            track.unlink()
    named = (f for f in sorted(folder.rglob("*")) if f.is_file() and f.name not in (INDEX, APART))
    write_json(folder / INDEX, {**index, "files": {str(f.relative_to(folder)): f.stat().st_size for f in named}})
    (folder / APART).unlink(missing_ok=True)  # last: a set that is not whole yet still needs it


def read_index(folder: Path, *, version: int) -> dict[str, Any]:
    """The index of a whole data set of this version of the format. Raises AvatarError where it is not that."""
    if not folder.is_dir():
        raise AvatarError(f"There is no data set at {folder}; make one first.")
    if not (folder / INDEX).exists():
        half = (folder / PLAN).exists()
        raise AvatarError(
            f"The data set in {folder} is not complete; make it again with the same videos, it goes on where it stopped."
            if half
            else f"{folder} holds no data set; make one first."
        )
    try:
        index: dict[str, Any] = json.loads((folder / INDEX).read_text())
        damaged = [name for name, size in index["files"].items() if not (folder / name).is_file() or (folder / name).stat().st_size != size]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AvatarError(f"The data set in {folder} is damaged ({INDEX}); remove it and make it again.") from error
    if index.get("format") != version:
        raise AvatarError(f"The data set in {folder} was made by another version of this program; remove it and make it again.")
    if damaged:
        raise AvatarError(f"The data set in {folder} is damaged ({damaged[0]}); remove it and make it again.")
    return index


def read_arrays(path: Path) -> dict[str, Array]:
    """The arrays of an .npz."""
    try:
        with np.load(path, allow_pickle=False) as held:
            return {name: held[name] for name in held.files}
    except Exception as error:  # whatever a broken file raises
        raise AvatarError(f"'{path}' is damaged; remove the data set and make it again.") from error


def mapped(path: Path) -> UInt8Array:
    """An .npy as it lies on the disk, read where it is looked at."""
    try:
        held: UInt8Array = np.load(path, mmap_mode="r", allow_pickle=False)
        return held
    except (OSError, ValueError, EOFError) as error:
        raise AvatarError(f"'{path}' is damaged; remove the data set and make it again.") from error


def likeness(one: Path, other: Path, kept: npt.NDArray[np.bool_]) -> float | None:
    """Median peak signal to noise ratio, dB, of two files of frames over the kept ones; None where none is."""
    a, b = mapped(one), mapped(other)
    wrong = [float(np.mean((a[k].astype(np.float32) - b[k]) ** 2)) for k in np.flatnonzero(kept)]
    return round(float(np.median(10 * np.log10(255.0**2 / np.maximum(wrong, 1e-3)))), 2) if wrong else None
