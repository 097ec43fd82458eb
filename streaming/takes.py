"""Recordings of people to teach a generator from: pieces of video in, whole files with a statement of consent beside them out.

    recordings/<name>/<name>-1.webm    a video that is there is whole
                      <name>-1.json    who agreed, what it shows; written first
                      .<name>-1.part   one that is being recorded, locked by who writes it; what a dead server left goes with the next take

Files and trackers only: the routes are in `takes_api`, what is asked of the person in `guide`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from engine.persona import LONGEST_NAME
from engine.types import AvatarError
from streaming.film import Film, inspect, timed
from streaming.guide import KEYS, TASKS, Guide
from streaming.observer import Observer
from streaming.settings import MIB, Limits
from streaming.studio import Full

SUFFIXES = {"video/webm": ".webm", "video/mp4": ".mp4"}
"""What browsers record, and the endings that `avatar train` takes for clips."""
LONGEST_BYTES = 200
"""Of a name: file systems take 255 with what is added to it."""
SPARE = 1024 * MIB
"""Bytes of disk that a recording must leave free."""
STALE_SECONDS = 60.0
"""s after which a half file that nobody holds is what a dead server left."""
LEAST_SECONDS = 2.0
"""s of a recording that is worth keeping."""
MINUTE = next(task.need for task in TASKS if task.key == "minute")
"""s of use that a person's clips have together when they are enough."""
LATE_SECONDS = 30.0
"""s that the last pieces may come after a recording's longest time, and s that its length may be over it."""


@dataclass(slots=True)
class Take:
    """One recording under way."""

    name: str
    folder: Path
    stem: str  # of the file to be
    suffix: str
    statement: str  # of consent
    width: int  # px of the recorded picture
    part: BinaryIO  # the half file, locked
    guide: Guide
    observer: Observer
    id: str = field(default_factory=lambda: secrets.token_urlsafe(18))
    began: float = field(default_factory=time.monotonic)
    touched: float = field(default_factory=time.monotonic)
    pieces: int = 0
    bytes: int = 0
    last: str = ""  # sha256 of the newest piece, to know it again
    saved: dict[str, Any] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)  # held while a thread uses any of it

    @property
    def path(self) -> Path:
        """The half file."""
        return self.folder / f".{self.stem}.part"


def fit_name(text: str) -> str:
    """What a person calls themselves -> a folder's name: letters, digits, '-' and '_' only. Raises AvatarError where nothing is left."""
    kept = "".join(c if c.isalnum() or c == "_" else "-" for c in unicodedata.normalize("NFC", text))
    name = "-".join(filter(None, kept.split("-"))).strip("_-")[:LONGEST_NAME]
    if not name:
        raise AvatarError("A recording needs a name with a letter or a digit in it, such as 'me'.")
    return name.encode()[:LONGEST_BYTES].decode(errors="ignore")


class Recorded:
    """What lies in a person's folder."""

    def __init__(self, folder: Path) -> None:
        self.clips, self.seconds, self.done = 0, 0.0, set[str]()
        for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
            try:
                told = json.loads(path.read_text(encoding="utf-8"))
                if not (folder / str(told["video"])).is_file():
                    continue
                seconds, done = float(told["seconds_of_use"]), {str(key) for key in told["shows"]}
            except (OSError, ValueError, KeyError, TypeError):
                continue  # not one of ours
            self.clips, self.seconds, self.done = self.clips + 1, self.seconds + seconds, self.done | (done & set(KEYS))
        if self.seconds >= MINUTE:
            self.done.add("minute")


class Takes:
    """The recordings of a server. Every method blocks: a worker thread's job."""

    def __init__(self, folder: Path, limits: Limits, *, face: Callable[[], Any]) -> None:
        """`folder`: where they are kept; `face`: makes a face driver."""
        self.folder, self.limits = folder, limits
        self._face = face
        self._open: dict[str, Take] = {}
        self._lock = threading.Lock()  # guards the dict
        self._starting = threading.Lock()  # one begins at a time, so that they are counted

    def __len__(self) -> int:
        """How many are under way."""
        return sum(not take.part.closed for take in list(self._open.values()))

    def start(self, name: str, statement: str, *, kind: str, width: int, sound: bool) -> Take:
        """A new recording. `kind`: its media type, `width`: px of its picture. Raises AvatarError, Full where there are too many."""
        name = fit_name(name)
        statement = statement.strip()
        if not statement:
            raise AvatarError("A recording needs a statement of consent: say that you are the person in the picture or have their permission.")
        suffix = SUFFIXES.get(kind.partition(";")[0].strip().lower())
        if suffix is None:
            raise AvatarError(f"Recordings come as {' or '.join(SUFFIXES)}; use a current Chrome, Edge, Firefox or Safari.")
        folder = self.folder / name
        known = Recorded(folder)
        whole = set(KEYS) <= known.done
        guide = Guide(sound=sound) if whole else Guide(done=known.done, seconds=known.seconds, sound=sound)
        with self._starting:
            if len(self) >= self.limits.takes:
                raise Full(f"{len(self)} people are being recorded here; try again when one is done.")
            with told(folder):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                if shutil.disk_usage(folder).free < SPARE:
                    raise OSError(errno.ENOSPC, "")
                _sweep(folder)
            observer = Observer(self._face)
            try:
                with told(folder):
                    stem, part = _reserve(folder, name)
            except AvatarError:
                observer.close()
                raise
            take = Take(name, folder, stem, suffix, statement, width, part, guide, observer)
            with self._lock:
                self._open[take.id] = take
            return take

    def get(self, key: str) -> Take | None:
        """A recording that is under way or has just been kept; it is not stale for a while now."""
        take = self._open.get(key)
        if take is not None:
            take.touched = time.monotonic()
        return take

    def append(self, take: Take, number: int, data: bytes) -> None:
        """The next piece, counted from 0; the newest one again is passed over. Raises AvatarError where it does not follow or has no room."""
        digest = hashlib.sha256(data).hexdigest()
        with take.lock:
            if take.part.closed:
                raise AvatarError("That recording is over; begin a new one.")
            if number == take.pieces - 1 and digest == take.last:
                return
            if number != take.pieces or not data:
                raise AvatarError("A piece of the recording got lost on the way; record it again.")
            if take.bytes + len(data) > self.limits.take_bytes:
                raise AvatarError(f"The recording is larger than {self.limits.take_bytes / MIB:.0f} MB; record a shorter one.")
            if time.monotonic() - take.began > self.limits.take_seconds + LATE_SECONDS:
                raise AvatarError(f"The recording is longer than {self.limits.take_seconds:.0f} s; record a shorter one.")
            with told(take.folder):
                try:
                    take.part.write(data)
                    take.part.flush()
                except OSError:
                    with suppress(OSError):
                        take.part.truncate(take.bytes)  # as if it had not come
                        take.part.seek(take.bytes)
                    raise
            take.pieces, take.bytes, take.last = take.pieces + 1, take.bytes + len(data), digest

    def finish(self, take: Take, *, pieces: int, size: int) -> dict[str, Any]:
        """Make it a whole file -> what is kept beside it. `pieces`, `size` in bytes: of all that was sent. Raises AvatarError; may be tried again."""
        with take.lock:
            if take.saved is None:
                if take.part.closed:
                    raise AvatarError("That recording is over; begin a new one.")
                if (take.pieces, take.bytes) != (pieces, size):
                    raise AvatarError("A part of the recording has not arrived, so it is not kept; record it again.")
                with told(take.folder):
                    take.part.flush()
                    os.fsync(take.part.fileno())
                    take.saved = self._keep(take)
            self._release(take)
            return take.saved

    def _keep(self, take: Take) -> dict[str, Any]:
        film = inspect(take.path, suffix=take.suffix)
        if film.seconds < LEAST_SECONDS:
            raise AvatarError(f"The recording is only {film.seconds:.1f} s long; record at least {LEAST_SECONDS:.0f}.")
        if film.seconds > self.limits.take_seconds + LATE_SECONDS:
            raise AvatarError(f"The recording is longer than {self.limits.take_seconds:.0f} s; record a shorter one.")
        video, beside = take.folder / f"{take.stem}{take.suffix}", take.folder / f"{take.stem}.json"
        source = take.path
        if not film.timed:  # recorders of browsers write no length, without which no player can seek
            source = take.path.with_suffix(".timed" + take.suffix)
            timed(take.path, source)
        manifest = _manifest(take, video.name, film, source)
        try:
            _write(beside, (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode())
            source.replace(video)  # nobody else may: the name is reserved by the half file
        except OSError:
            beside.unlink(missing_ok=True)
            raise
        finally:
            if source != take.path:
                source.unlink(missing_ok=True)
        _settle(take.folder)
        return {**manifest, "path": str(video), "folder": str(take.folder)}

    def discard(self, take: Take) -> None:
        """End it; nothing stays of one that has not been kept."""
        with take.lock:
            self._release(take)
        with self._lock:
            self._open.pop(take.id, None)  # last, so that `close` waits for one that is on its way out

    def _release(self, take: Take) -> None:
        """Its half file and its trackers; who asks once more how it ended is still told."""
        if not take.part.closed:
            take.path.unlink(missing_ok=True)
            take.part.close()
            take.observer.close()
            with suppress(OSError):
                take.folder.rmdir()  # where it is empty

    def drop_stale(self, seconds: float) -> None:
        """Discard the recordings of which nothing has been heard for so long."""
        now = time.monotonic()
        for take in [take for take in list(self._open.values()) if now - take.touched > seconds]:
            self.discard(take)

    def close(self) -> None:
        """Discard all that are under way."""
        for take in list(self._open.values()):
            self.discard(take)


def _manifest(take: Take, video: str, film: Film, source: Path) -> dict[str, Any]:
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    guide = take.guide
    return {
        "version": 1,
        "video": video,
        "sha256": digest,
        "consent": {"statement": take.statement, "time": datetime.now(UTC).isoformat(timespec="seconds")},
        "seconds": round(film.seconds, 2),
        "pictures": film.pictures,
        "size": [film.width, film.height],
        "sound": film.sound,
        "seconds_of_use": round(guide.of_use(), 2),
        "dropped": {reason: round(seconds, 2) for reason, seconds in guide.dropped.items()},
        "shows": guide.shown(),
        "missing": guide.missing(),
    }


# -- files ----------------------------------------------------------------------------------------------------------------


def _reserve(folder: Path, name: str) -> tuple[str, BinaryIO]:
    """The first free number -> (stem, its half file, locked). While that is there nobody else takes the number."""
    number = 1
    while True:
        stem = f"{name}-{number}"
        if not any((folder / f"{stem}{end}").exists() for end in (*SUFFIXES.values(), ".json")):
            try:
                part = (folder / f".{stem}.part").open("xb")
            except FileExistsError:
                pass
            else:
                fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return stem, part
        number += 1


def _sweep(folder: Path) -> None:
    """Remove the half files whose server is dead."""
    for left in [*folder.glob(".*.part"), *folder.glob(".*.timed.*")]:
        with suppress(OSError):
            if time.time() - left.stat().st_mtime < STALE_SECONDS:
                continue
            with left.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()


def _write(path: Path, data: bytes) -> None:
    aside = path.with_name(f".{path.name}.part")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _settle(folder: Path) -> None:
    """Names on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def told(folder: Path) -> Iterator[None]:
    """Whatever the disk refuses, in one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise AvatarError("The server's disk is full; free some space there, then record again.") from error
        raise AvatarError(f"The recording cannot be written to {folder} ({error.strerror or error}); choose a folder with AVATAR_HOME.") from error
