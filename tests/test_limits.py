"""What a server keeps in memory is bounded in number and in bytes: nothing that is shown goes, and nothing that has a name is lost."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from engine.config import Background
from engine.persona import list_personas
from engine.types import AvatarError, Generator
from streaming.settings import Limits, ServerSettings
from streaming.shelf import Room, Shelf, size_of
from streaming.studio import Full
from streaming.uploads import Upload, Uploads
from tests.caller import SETTINGS, live
from tests.fakes import FakeGenerator, fake_persona, fake_studio
from tests.test_studio import keep, make_studio

KB = 1000


def picture(kilobytes: int = 3) -> Upload:
    """An upload of so many kB."""
    return Upload(np.zeros((kilobytes, KB // 3, 3), np.uint8)[:, :333])


def shelf(count: int, kilobytes: int, *used: str) -> Shelf[bytearray]:
    """Of byte counts, some of them in use."""
    return Shelf(Room(count, kilobytes), used=lambda name, _: name in used)


class Weight(bytearray):
    """As heavy as it is told."""

    nbytes: int

    def __init__(self, nbytes: int) -> None:
        super().__init__()
        self.nbytes = nbytes


def fill(kept: Shelf[bytearray], **sizes: int) -> list[bool]:
    """Put things of some sizes on a shelf -> whether each found room."""
    return [kept.put(name, Weight(size)) for name, size in sizes.items()]


def names(kept: Shelf[bytearray]) -> str:
    """Of what is there."""
    return "".join(name for name in "abcdef" if name in kept)


# -- the shelf ----------------------------------------------------------------------------------------------------------


def test_the_oldest_goes_by_count_and_by_bytes() -> None:
    kept = shelf(3, 100)
    assert fill(kept, a=10, b=10, c=10, d=10) == [True] * 4
    assert (names(kept), kept.bytes, len(kept)) == ("bcd", 30, 3)
    assert fill(kept, e=85) == [True]
    assert (names(kept), kept.bytes) == ("de", 95)


def test_what_is_used_stays_and_where_all_is_used_nothing_goes() -> None:
    kept = shelf(3, 100, "a", "c")
    assert fill(kept, a=10, b=10, c=10, d=10) == [True] * 4
    assert names(kept) == "acd"
    assert fill(kept, e=85) == [False], "the used ones take 20"
    assert (names(kept), kept.bytes) == ("acd", 30), "d was not given up for what does not fit anyway"
    full = shelf(2, 100, "a", "b")
    assert fill(full, a=1, b=1, c=1) == [True, True, False]


def test_one_that_was_asked_for_is_young_again_and_one_of_the_same_name_replaces_it() -> None:
    kept = shelf(3, 100)
    fill(kept, a=10, b=10, c=10)
    assert kept.get("a", renew=True) is not None
    assert kept.get("b") is not None
    assert kept.get("f", renew=True) is None
    fill(kept, d=10)
    assert names(kept) == "acd"
    fill(kept, a=60)
    assert (names(kept), kept.bytes) == ("acd", 80)
    kept.drop("a")
    kept.drop("a")
    assert (names(kept), kept.bytes) == ("cd", 20)


def test_the_size_of_a_thing_is_that_of_its_arrays_each_once() -> None:
    @dataclass
    class Features:
        points: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
        more: object

    array = np.zeros(100, np.float32)
    features = Features(array, {"again": array, "other": [np.zeros(10, np.uint8), (np.zeros(5, np.uint8), "text", 3, None)]})
    assert size_of(features) == 415
    assert size_of(Features) == 0
    loop: list[object] = [array]
    loop.append(loop)
    assert size_of(loop) == 400
    persona = fake_persona(FakeGenerator(), "red")
    assert size_of(persona) >= persona.scene.picture.nbytes + persona.scene.matte.nbytes


# -- uploads ------------------------------------------------------------------------------------------------------------


def test_the_oldest_upload_that_nobody_shows_goes_first() -> None:
    shown: list[Upload] = []
    uploads = Uploads(Limits(uploads=3), used=lambda upload: any(upload is one for one in shown))
    first, second, third = (uploads.keep(picture()) for _ in range(3))
    shown.append(uploads.get(first))
    uploads.keep(picture())
    assert len(uploads) == 3
    uploads.get(first)
    uploads.get(third)
    with pytest.raises(AvatarError, match="not here any more"):
        uploads.get(second)


def test_bytes_count_as_well_as_pictures() -> None:
    size = size_of(picture(100))
    uploads = Uploads(Limits(uploads=100, uploads_bytes=3 * size))
    keys = [uploads.keep(picture(100)) for _ in range(5)]
    assert len(uploads) == 3
    for key in keys[2:]:
        uploads.get(key)


def test_a_full_server_says_so_in_a_sentence() -> None:
    uploads = Uploads(Limits(uploads=2, uploads_bytes=2_000_000), used=lambda _: True)
    kept = [uploads.keep(picture()) for _ in range(2)]
    with pytest.raises(Full, match=r"keeps 2 pictures or 2 MB .* being shown; try again .*[.]$"):
        uploads.keep(picture())
    for key in kept:
        uploads.get(key)
    with pytest.raises(AvatarError, match=r"takes 4 MB here, and this server keeps 2 MB; send a smaller one[.]$") as refused:
        uploads.keep(picture(4000))
    assert not isinstance(refused.value, Full), "waiting would not help"


def test_an_upload_is_in_use_while_a_session_shows_it_or_has_it_behind_its_portrait() -> None:
    async def story() -> None:
        studio = fake_studio(SETTINGS)
        studio.start()
        await studio.ready()
        portrait = Upload(np.zeros((9, 9, 3), np.uint8), fake_persona(studio.generator, "red"))
        backdrop = Upload(np.ones((9, 9, 3), np.uint8))
        opened = await studio.open(portrait.persona or pytest.fail("it is a portrait"))
        assert studio.shows(portrait.persona)
        assert not studio.shows(portrait.rgb)
        assert not studio.shows(backdrop.rgb)
        assert not studio.shows(None), "a session without a backdrop shows none"
        opened.session.configure(background=Background("picture", picture=backdrop.rgb))
        assert studio.shows(backdrop.rgb)
        await studio.end(opened)
        assert not studio.shows(portrait.persona)
        assert not studio.shows(backdrop.rgb)
        await studio.close()

    live(story)


# -- named personas -----------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path: Path) -> ServerSettings:
    for name in ("ann", "ben", "cat", "dan"):
        keep(tmp_path, name, (200, 40, 40))
    return replace(SETTINGS, persona_dir=tmp_path, persona="ann", limits=Limits(personas=2))


def test_named_personas_are_kept_ready_within_bounds_and_none_is_lost(settings: ServerSettings) -> None:
    made: list[str] = []

    def make(generator: Generator, name: str) -> object:
        made.append(name)
        return fake_persona(generator, "red")

    async def story() -> None:
        studio = make_studio(settings, persona=make)
        studio.start()
        await studio.ready()
        for name in ("ben", "ben", "cat", "ben"):
            await studio.persona(name)
        assert made == ["ann", "ben", "cat", "ben"], "room for one beside the first"
        opened = await studio.open(await studio.persona("ben"))
        await studio.persona("cat")
        await studio.persona("cat")
        assert made[4:] == ["cat", "cat"], "what is shown stays, and who finds no room is made for the moment"
        assert await studio.persona("ben") is opened.persona
        await studio.persona("ann")
        assert len(made) == 6, "the one of offers that name none never goes"
        await studio.end(opened)
        await studio.persona("cat")
        assert await studio.persona("cat") is await studio.persona("cat")
        assert len(made) == 7
        assert list_personas(folder=settings.persona_dir) == ["ann", "ben", "cat", "dan"], "and on the disk nothing was touched"
        await asyncio.wait_for(studio.close(), 10.0)

    live(story)


def test_the_limits_have_sizes_that_a_machine_has() -> None:
    limits = Limits()
    assert 0 < limits.upload_pixels * 3 <= limits.uploads_bytes
    assert limits.uploads >= 2 * ServerSettings().max_sessions, "each may show a portrait before a backdrop"
    assert limits.personas > ServerSettings().max_sessions
