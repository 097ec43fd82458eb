"""Personas as a server keeps them: previews that hold nobody up, and nothing served that is no longer on the disk."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.persona import MANIFEST, MANIFEST_VERSION, PORTRAIT, Persona, read_portrait
from engine.types import AvatarError, Generator, UInt8Array
from streaming import studio as studios
from streaming.settings import ServerSettings
from streaming.studio import Studio
from tests.caller import SETTINGS, House, ask, house, live
from tests.fakes import FakeBody, FakeFace, FakeGenerator, FakeSpeech, fake_persona


def keep(folder: Path, name: str, colour: tuple[int, int, int]) -> None:
    """A persona on disk, as `avatar persona create` leaves it, with a plain picture."""
    out = io.BytesIO()
    Image.new("RGB", (96, 128), colour).save(out, "PNG")
    place = folder / name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    (place / PORTRAIT).write_bytes(out.getvalue())
    digest = hashlib.sha256(out.getvalue()).hexdigest()
    manifest = {"version": MANIFEST_VERSION, "name": name, "files": {PORTRAIT: digest}, "caches": {}, "consent": "I agree."}
    (place / MANIFEST).write_text(json.dumps(manifest))


def make_studio(settings: ServerSettings, **options: Any) -> Studio:
    """A studio of fakes that reads personas from the disk."""
    return Studio(settings, generator=FakeGenerator, face=FakeFace, body=FakeBody, synthesizer=FakeSpeech(), **options)


@pytest.fixture
def settings(tmp_path: Path) -> ServerSettings:
    keep(tmp_path, "ann", (200, 40, 40))
    keep(tmp_path, "ben", (40, 40, 200))
    return replace(SETTINGS, persona_dir=tmp_path, persona="ann")


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the personas that were loaded whole; they are fakes."""
    names: list[str] = []

    def load(generator: Generator, name: str, *, folder: Path | None) -> Persona:
        names.append(name)
        return fake_persona(generator, "red" if name == "ann" else "blue")

    monkeypatch.setattr(studios, "load_persona", load)
    return names


async def colour(home: House, name: str) -> list[int]:
    """Of a preview."""
    async with home.http.get(f"{home.url}/personas/{name}/preview.jpg") as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "image/jpeg"
        picture = Image.open(io.BytesIO(await response.read()))
    return [round(float(v)) for v in np.asarray(picture).mean(axis=(0, 1))]


def test_previews_read_the_portrait_alone_and_once(settings: ServerSettings, loaded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    really = read_portrait

    def counted(name: str, *, folder: Path | None = None) -> UInt8Array:
        read.append(name)
        return really(name, folder=folder)

    monkeypatch.setattr(studios, "read_portrait", counted)
    assert settings.persona_dir is not None
    folder = Path(settings.persona_dir)

    async def story() -> None:
        async with house(settings, studio=make_studio(settings)) as home:
            await home.studio.ready()
            assert loaded == ["ann"], "the one of offers that name none"
            for _ in range(3):
                assert np.abs(np.subtract(await colour(home, "ben"), (40, 40, 200))).max() < 6
            assert await colour(home, "demo")
            assert (read, loaded) == (["ben"], ["ann"])
            keep(folder, "ben", (40, 200, 40))
            assert np.abs(np.subtract(await colour(home, "ben"), (40, 200, 40))).max() < 6
            shutil.rmtree(folder / "ben")
            status, _, body = await ask(home, "GET", "/personas/ben/preview.jpg")
            assert status == 404, body

    live(story)


def test_a_preview_and_a_known_persona_do_not_wait_for_one_that_is_being_loaded(settings: ServerSettings) -> None:
    gate = threading.Event()

    def slow(generator: Generator, name: str) -> Persona:
        assert name == "ann" or gate.wait(10.0)
        return fake_persona(generator, "red")

    async def story() -> None:
        async with house(settings, studio=make_studio(settings, persona=slow)) as home:
            await home.studio.ready()
            loading = asyncio.create_task(home.studio.persona("ben"))
            await asyncio.sleep(0.1)
            async with asyncio.timeout(3.0):
                await colour(home, "ben")
                await home.studio.persona("ann")
            assert not loading.done()
            gate.set()
            await loading

    live(story)


def test_a_persona_that_was_removed_or_changed_is_not_served_from_memory(settings: ServerSettings, loaded: list[str]) -> None:
    assert settings.persona_dir is not None
    folder = Path(settings.persona_dir)

    async def story() -> None:
        async with house(settings, studio=make_studio(settings)) as home:
            studio = home.studio
            await studio.ready()
            first = await studio.persona("ben")
            assert await studio.persona("ben") is first
            (folder / "ben" / "fake.npz").write_bytes(b"a cache")  # what the persona was made from is the same
            assert await studio.persona("ben") is first
            keep(folder, "ben", (1, 2, 3))
            assert await studio.persona("ben") is not first
            assert loaded == ["ann", "ben", "ben"]
            shutil.rmtree(folder / "ben")
            with pytest.raises(AvatarError, match="no persona called 'ben'"):
                await studio.persona("ben")
            refused = await home.call(offer={"persona": "ben"})
            assert refused.status == 400
            assert await studio.persona(None) is await studio.persona("demo")

    live(story)


@pytest.mark.parametrize("name", ["", ".", "..", "../ann", "/etc/passwd", "ann/../ben", "ann\0", "x" * 5000])
def test_names_that_are_none_reach_no_file(settings: ServerSettings, loaded: list[str], name: str) -> None:
    async def story() -> None:
        async with house(settings, studio=make_studio(settings)) as home:
            await home.studio.ready()
            assert home.studio._stamp(name) is None
            with pytest.raises(AvatarError):
                await home.studio.preview(name)

    live(story)


def test_weights_that_want_condition_pictures_are_told_before_anybody_comes(settings: ServerSettings, loaded: list[str]) -> None:
    generator = FakeGenerator()
    generator.spec = replace(generator.spec, needs=("maps",))

    async def story() -> None:
        studio = Studio(settings, generator=lambda: generator, face=FakeFace, body=FakeBody, synthesizer=FakeSpeech(), persona=fake_persona)
        studio.start()
        try:
            with pytest.raises(AvatarError, match="--maps NAME=FILE.onnx, or use `avatar render`"):
                await studio.ready()
        finally:
            await studio.close()

    asyncio.run(story())
    assert loaded == []
