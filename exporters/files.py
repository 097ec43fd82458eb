"""Checkpoint files of others, read without running anything they hold; and a folder that is whole or not there."""

from __future__ import annotations

import fcntl
import glob
import json
import os
import shutil
import signal
import threading
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from engine.backends.artifact import sha256
from engine.types import AvatarError

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
"""In the order of preference where a folder has the same weights twice."""
PIECE = "-00001-of-"
"""In the name of the first of several files that a large one was cut into."""
POINTER = b"version https://git-lfs"
"""What the small text begins with that git leaves in place of a large file."""
SMALL = 1_000_000
"""Bytes under which a file that cannot be read may be a text."""
CONFIG = "config.json"
OBJECTS = ("Unsupported global", "Unsupported class", "GLOBAL")
"""In what PyTorch says of a file that would make objects of classes it does not allow."""


def find(folders: Sequence[Path], stems: Sequence[str]) -> Path | None:
    """The first file in the folders that has one of the names and one of the endings."""
    names = [stem + suffix for suffix in SUFFIXES for stem in stems]
    return next((path for folder in folders for name in names if (path := folder / name).is_file()), None)


def absent(folder: Path, stems: Sequence[str], *, option: str = "") -> AvatarError:
    """That `find` has found nothing in a folder, with what can be seen there of the reason. `option`: of the command line, that names another."""
    what, named = " or ".join(stems), f" with {option}" if option else ""
    if folder.is_file():
        return AvatarError(f"{folder} is a file; give the folder that it lies in{named}.")
    begun = sorted(path.name for stem in stems for path in folder.glob(f"{glob.escape(stem)}*") if path.is_file())
    if pieces := [name for name in begun if PIECE in name]:
        return AvatarError(f"{folder} has {what} in pieces ({pieces[0]}, ...), which are not put together here; give it as one file.")
    like = [name for name in begun if name.endswith(SUFFIXES)]
    renamed = f", though there is a '{like[0]}', which may be it under another name" if like else ""
    hint = f" or name its folder{named}" if option else ""
    return AvatarError(f"{folder} has no file {what} ({', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}){renamed}; download it{hint}.")


def read(path: Path, *, part: str = "", aside: Sequence[str] = ()) -> dict[str, Any]:
    """The tensors of a checkpoint by their keys; mapped, so that nothing is in memory until it is used, unless the format is too old.

    A nesting in `state_dict` and a `module.` before every key, as trainers leave them, are taken off. `part`: of a file that holds several
    networks by name, the one of this name. `aside`: keys that may hold something else, and are left out. Raises AvatarError for a file that
    is damaged, holds more than tensors, or is no checkpoint.
    """
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            held: Any = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about pickle protocols
                held = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except MemoryError:
        raise
    except Exception as error:  # whatever a broken file raises
        raise AvatarError(_complaint(path, error)) from error
    if isinstance(held, dict) and isinstance(held.get("state_dict"), dict):
        held = held["state_dict"]
    if part:
        if not isinstance(held, dict) or part not in held:
            raise AvatarError(f"{path} holds no network called '{part}'; give the published file.")
        held = held[part]
    if isinstance(held, dict):
        held = {key: value for key, value in held.items() if key not in aside}
    if not isinstance(held, dict) or not held or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in held.items()):
        raise AvatarError(f"{path} is no checkpoint: it does not hold tensors by name; give the file with the weights themselves.")
    if all(key.startswith("module.") for key in held):
        held = {key.removeprefix("module."): tensor for key, tensor in held.items()}
    return dict(held)


def _complaint(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{path} cannot be read ({error.strerror}); check the path and its permissions."
    if any(word in str(error) for word in OBJECTS) or ("Unsupported operand" in str(error) and _pickled(path)):
        return f"{path} holds Python objects beside tensors, which could run code when loaded, so it is not read; get it as .safetensors."
    size = path.stat().st_size if path.exists() else 0
    begins = path.read_bytes()[: len(POINTER)] if 0 < size < SMALL else b""
    if begins == POINTER:
        return f"{path} only says where the weights lie (Git LFS), and is not these; run `git lfs pull` in its folder, or download the file itself."
    if begins.lstrip()[:1] == b"<":
        return f"{path} is a web page and no weights; download the file itself."
    return f"{path} ({size:,} bytes) is damaged, not complete or no checkpoint; download it again."


def _pickled(path: Path) -> bool:
    """Whether a file begins as pickles of Python's own do."""
    with path.open("rb") as file:
        return file.read(1) == b"\x80"


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder. Raises AvatarError where there is no readable one."""
    try:
        config = json.loads((folder / CONFIG).read_text())
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise AvatarError(f"{folder} has no readable {CONFIG}, which tells what shapes do not; download the folder as it was published.") from error
    return config


@contextmanager
def fresh_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out` at the end; after an error, Ctrl+C or a SIGTERM nothing of it stays.

    What a SIGKILL leaves lies beside `out`, under another name, and goes with the next attempt.
    """
    out = out.absolute()
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise AvatarError(f"{out} exists already; choose another folder, or remove it first.")
    partial = out.with_name(f".{out.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    lock = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise AvatarError(f"Something else is writing {out} just now; wait for it, or choose another folder.") from error
    try:
        with _terminated_gently():
            for left in partial.iterdir():
                left.unlink()
            yield partial
            partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(lock)


@contextmanager
def _terminated_gently() -> Iterator[None]:
    """SIGTERM ends the program by an exception, so that what was begun is put away."""

    def stop(number: int, frame: Any) -> NoReturn:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


__all__ = ["absent", "find", "fresh_folder", "read", "read_config", "sha256"]
