"""Sittings: a person's photos on their way to a persona. What is looked at, made and kept is made by a child process (`streaming.child`).

    <data>/sittings/<server>/.lock           held while the server lives; what a dead one left goes when the next one starts
                             <sitting>/photos/1, 2, ...    as they were sent
                                       previews/           small JPEGs of them
                                       candidates/, personas/    what the child makes

A persona that is whole is moved beside the others, and everything else of its sitting is deleted then; also when the person starts over,
has not been heard of for a while, or the server ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from engine.persona import check_new, list_personas, personas_folder
from engine.types import AvatarError
from streaming import child
from streaming.desk import Unknown
from streaming.settings import MIB, Limits
from streaming.sitting import Job, Kind, Photo, Sitting
from streaming.studio import Full
from streaming.takes import SPARE

logger = logging.getLogger(__name__)

LOCK = ".lock"
MOST_CANDIDATES = 8
PROMPT_CHARS = 1000
CONSENT_CHARS = 1000
NAME_CHARS = 80
"""Of a photo's own name, which is only shown."""
JPEG, PNG = "image/jpeg", "image/png"
T = TypeVar("T")


class Sittings:
    """The sittings of a server, all on its event loop; one child works at a time."""

    def __init__(self, personas: Path | None, limits: Limits) -> None:
        """`personas`: where those that are saved go; None: `engine.persona`'s folder."""
        self.personas, self.limits = personas or personas_folder(), limits
        self.home = self.personas.parent / "sittings"
        self._own: Path | None = None  # this server's, in `home`
        self._lock: Any = None
        self._open: dict[str, Sitting] = {}
        self._settling = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._open)

    # -- begin and end -------------------------------------------------------------------------------------------------

    async def start(self) -> Sitting:
        """A new one. Raises Full where there are too many, AvatarError where the disk has no room."""
        if len(self) >= self.limits.sittings and not await self._dropped_one():
            raise Full(f"{len(self)} people are making personas here; try again when one of them is done.")
        async with self._settling:
            if self._own is None:
                self._own = await _off_loop(self._settled)
        sitting = Sitting(self._own / secrets.token_hex(8))
        self._open[sitting.id] = sitting
        try:
            await _off_loop(lambda: _room(sitting.folder / "photos"))
        except BaseException:
            del self._open[sitting.id]
            raise
        return sitting

    async def _dropped_one(self) -> bool:
        """Make room: those that have been saved hold nothing any more."""
        over = [sitting for sitting in self._open.values() if sitting.saved is not None and not sitting.busy]
        for sitting in over:
            await self.discard(sitting)
        return bool(over)

    def get(self, key: str) -> Sitting:
        """One that is under way; it is not stale for a while now. Raises Unknown."""
        sitting = self._open.get(key)
        if sitting is None:
            raise Unknown("These photos are not on the server any more, since nothing was heard of you for a while; choose them again.")
        sitting.touched = time.monotonic()
        return sitting

    async def discard(self, sitting: Sitting) -> None:
        """End it, with all that was sent and made; harmless twice."""
        self._open.pop(sitting.id, None)
        await self.cancel(sitting)
        await _off_loop(lambda: shutil.rmtree(sitting.folder, ignore_errors=True))

    async def drop_stale(self, seconds: float) -> None:
        """Discard those of whom nothing has been heard for so long."""
        now = time.monotonic()
        for sitting in [sitting for sitting in self._open.values() if now - sitting.touched > seconds]:
            await self.discard(sitting)

    async def close(self) -> None:
        """Discard all of them."""
        await asyncio.gather(*(self.discard(sitting) for sitting in list(self._open.values())))
        if self._own is not None:
            own, self._own = self._own, None
            await _off_loop(lambda: shutil.rmtree(own, ignore_errors=True))
            self._lock.close()

    async def clear(self) -> None:
        """Delete what dead servers left."""
        with contextlib.suppress(OSError):  # whoever begins is told what is wrong with the folder
            await _off_loop(self._clear)

    def _clear(self) -> None:
        for left in self.home.iterdir() if self.home.is_dir() else ():
            with contextlib.suppress(OSError), (left / LOCK).open("rb") as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)

    def _settled(self) -> Path:
        """A folder of this server's own, after those of dead ones are gone."""
        _room(self.home)
        self._clear()
        own = self.home / secrets.token_hex(8)
        aside = own.with_name(f".{own.name}")
        _room(aside)
        self._lock = (aside / LOCK).open("wb")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return aside.rename(own)

    # -- photos --------------------------------------------------------------------------------------------------------

    def check_room(self, sitting: Sitting) -> None:
        """Raise AvatarError where no photo may be added now."""
        if sitting.saved is not None:
            raise AvatarError("That persona is saved and its photos are deleted; start over for another one.")
        if sitting.busy:
            raise AvatarError("Wait until the present work is done, or cancel it; then add photos.")
        if len(sitting.photos) >= self.limits.photos:
            raise AvatarError(f"{self.limits.photos} photos are the most; take one away first.")

    async def add(self, sitting: Sitting, name: str, data: bytes) -> Photo:
        """Keep a photo's file. Raises AvatarError."""
        self.check_room(sitting)
        if not data:
            raise AvatarError("The file is empty; choose another one.")
        digest = await _off_loop(lambda: hashlib.sha256(data).hexdigest())
        self.check_room(sitting)  # again: another may have come meanwhile
        if any(photo.sha256 == digest for photo in sitting.photos.values()):
            raise AvatarError("That photo is here already.")
        sitting.counted += 1
        photo = Photo(str(sitting.counted), name[:NAME_CHARS], digest, len(data))
        sitting.photos[photo.key] = photo
        try:
            await _off_loop(lambda: _write(sitting.path(photo), data))
        except BaseException:
            sitting.photos.pop(photo.key, None)
            raise
        if self._open.get(sitting.id) is not sitting:  # somebody started over while it was written, or before
            await self.discard(sitting)
            self.get(sitting.id)
        return photo

    async def remove(self, sitting: Sitting, key: str) -> None:
        """Delete a photo; what was made of it can then not be saved any more."""
        if sitting.busy:
            raise AvatarError("Wait until the present work is done, or cancel it; then take photos away.")
        photo = sitting.photos.pop(key, None)
        if photo is None:
            return
        for path in (sitting.path(photo), *(sitting.folder / "previews" / f"{key}{end}" for end in (".jpg", ".portrait.jpg"))):
            path.unlink(missing_ok=True)
        if str(sitting.path(photo)) in sitting.arguments:
            sitting.candidates, sitting.asked, sitting.arguments = {}, (), []

    def picture(self, sitting: Sitting, name: str) -> tuple[Path, str]:
        """A preview's file and its kind: 'photo-1', 'portrait-1' (what it would become) or 'candidate-7'. Raises Unknown."""
        kind, _, key = name.partition("-")
        if kind in ("photo", "portrait") and key in sitting.photos and sitting.photos[key].fit:
            return sitting.folder / "previews" / (f"{key}.jpg" if kind == "photo" else f"{key}.portrait.jpg"), JPEG
        if kind == "candidate" and key.isascii() and key.isdigit() and len(key) < 4 and int(key) in sitting.candidates:
            return Path(sitting.candidates[int(key)]["path"]), PNG
        raise Unknown("There is no such picture; it may have been taken away.")

    # -- work ----------------------------------------------------------------------------------------------------------

    def judge(self, sitting: Sitting) -> None:
        """Look at the photos that nobody has looked at yet."""
        new = [photo for photo in sitting.photos.values() if photo.judged is None]
        if not new:
            return

        def heard(event: dict[str, Any]) -> None:
            if event["event"] in ("photo", "refused") and (photo := sitting.photos.get(event["file"])) is not None:
                photo.judged = event

        async def work() -> None:
            command = ["persona", "judge", *(str(sitting.path(photo)) for photo in new)]
            await child.run([*command, "--previews", str(sitting.folder / "previews"), "--child"], heard)

        self._begin(sitting, "judge", work)

    def make(self, sitting: Sitting, *, consent: str, system: str, prompt: str, count: int) -> None:
        """Make portraits of the fit photos with an installed system; those there are of the same asking stay."""
        consent = _agreed(consent)
        if not 1 <= count <= MOST_CANDIDATES:
            raise AvatarError(f"Ask for 1 to {MOST_CANDIDATES} portraits.")
        if len(prompt) > PROMPT_CHARS:
            raise AvatarError(f"The prompt is longer than {PROMPT_CHARS} characters; shorten it.")
        photos = [photo for photo in sitting.photos.values() if photo.fit]
        if not photos:
            raise AvatarError("None of the photos can be used; add one that can.")
        prompt = " ".join(prompt.split())
        # Written as one word each: nothing that a person types is taken for an option.
        arguments = ["--photos", *(str(sitting.path(photo)) for photo in photos), f"--system={system}", f"--candidates={count}"]
        arguments += [f"--prompt={prompt}"] if prompt else []
        self._check_free(sitting)
        asked = (system, prompt, tuple(photo.sha256 for photo in photos))
        if asked != sitting.asked:
            sitting.candidates = {}
        sitting.asked, sitting.arguments = asked, arguments

        async def work() -> None:
            await child.run(self._create(sitting, "portrait", consent, [*arguments, "--only-candidates"]), self._hears(sitting))

        self._begin(sitting, "make", work)

    def save(self, sitting: Sitting, *, name: str, consent: str, photo: str | None, pick: int | None) -> None:
        """Make a persona of a photo as it is, or of a candidate."""
        consent = _agreed(consent)
        check_new(name, consent, folder=self.personas)
        if sitting.saved is not None:
            raise AvatarError("That persona is saved already; start over for another one.")
        if pick is not None:
            if pick not in sitting.candidates:
                raise AvatarError("That portrait is not there any more; choose another one, or make it again.")
            what = [*sitting.arguments, f"--pick={pick}"]
        else:
            chosen = sitting.photos.get(photo or "")
            if chosen is None or not chosen.fit:
                raise AvatarError("Choose a photo that can be used.")
            what = ["--photos", str(sitting.path(chosen))]

        async def work() -> None:
            kept: dict[str, Any] = {}
            made = sitting.folder / personas_folder().name
            await _off_loop(lambda: shutil.rmtree(made, ignore_errors=True))  # one that could not be moved, or was cancelled
            hears = self._hears(sitting, kept)
            await child.run(self._create(sitting, name, consent, what), hears)
            keeping = asyncio.ensure_future(self._keep(sitting, kept, generated=pick is not None))
            try:
                await asyncio.shield(keeping)
            except asyncio.CancelledError:
                await asyncio.wait({keeping})  # too late to cancel: whoever does is told what became of it
                keeping.result()
                raise

        self._begin(sitting, "save", work)

    async def _keep(self, sitting: Sitting, kept: dict[str, Any], *, generated: bool) -> None:
        """Move the persona to the others, and delete all else of its sitting."""
        name = await _off_loop(lambda: _moved(sitting.folder / personas_folder().name, self.personas))
        await _off_loop(lambda: shutil.rmtree(sitting.folder, ignore_errors=True))
        sitting.saved = {"name": name, "done": kept.get("done", []), "generated": generated}
        sitting.photos, sitting.candidates, sitting.arguments, sitting.asked = {}, {}, [], ()

    async def cancel(self, sitting: Sitting) -> None:
        """End the work under way; what was finished stays. Harmless where there is none."""
        job = sitting.job
        if job is not None and job.task is not None and not job.over:
            job.cancelled = True
            job.task.cancel()
            await asyncio.wait({job.task})
            job.over = True  # also where it had not begun

    def _create(self, sitting: Sitting, name: str, consent: str, what: Sequence[str]) -> list[str]:
        return ["persona", "create", *what, f"--consent={consent}", f"--home={sitting.folder}", "--child", "--", name]

    def _hears(self, sitting: Sitting, kept: dict[str, Any] | None = None) -> Callable[[dict[str, Any]], None]:
        def heard(event: dict[str, Any]) -> None:
            if event["event"] == "progress" and sitting.job is not None:
                sitting.job.done, sitting.job.total = int(event["done"]), int(event["total"])
            elif event["event"] == "candidate":
                sitting.candidates[int(event["seed"])] = event
            elif event["event"] == "kept" and kept is not None:
                kept.update(event)

        return heard

    def _check_free(self, sitting: Sitting) -> None:
        """Raise where other work is under way."""
        if sitting.busy:
            raise AvatarError("Wait until the present work is done, or cancel it.")
        if any(other.busy for other in self._open.values()):
            raise Full("This server is at work on somebody else's photos, one person at a time; try again in a moment.")

    def _begin(self, sitting: Sitting, kind: Kind, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._check_free(sitting)
        job = sitting.job = Job(kind)

        async def whole() -> None:
            try:
                await work()
            except AvatarError as error:
                job.error = str(error)
            except Exception:
                logger.exception("Work on photos failed")
                job.error = "Something went wrong in the server; its log says what."
            finally:
                job.over = True
                sitting.touched = time.monotonic()

        job.task = asyncio.create_task(whole())


def _agreed(consent: str) -> str:
    """The statement. Raises AvatarError where there is none."""
    if not (consent := consent.strip()[:CONSENT_CHARS]):
        raise AvatarError("A persona needs a statement of consent: say that the person the photos show agrees.")
    return consent


# -- files ----------------------------------------------------------------------------------------------------------------


async def _off_loop(work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(None, work)


def _room(folder: Path) -> None:
    """Make a folder that is nobody else's business, where there is room on the disk."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise AvatarError(f"Photos cannot be kept in {folder.parent} ({error.strerror or error}); choose a folder with AVATAR_HOME.") from error
    if free < SPARE:
        raise AvatarError(f"The server's disk is full; leave {SPARE / MIB:.0f} MB free there, then try again.")


def _write(path: Path, data: bytes) -> None:
    _room(path.parent)
    try:
        path.write_bytes(data)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise AvatarError(f"The photo cannot be kept on the server ({error.strerror or error}); try again when it has room.") from error


def _moved(made: Path, home: Path) -> str:
    """The one persona in `made`, moved to `home` -> its name; whole or not at all."""
    (name,) = list_personas(folder=made)
    try:
        home.mkdir(parents=True, exist_ok=True)
        os.rename(made / name, home / name)
    except OSError as error:
        if (home / name).exists():
            raise AvatarError(f"There is already a persona called '{name}'; remove it first or choose another name.") from None
        raise AvatarError(f"The persona cannot be kept in {home} ({error.strerror or error}); choose a folder with AVATAR_HOME.") from error
    return name


__all__ = ["MOST_CANDIDATES", "Sittings"]
