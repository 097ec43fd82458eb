"""Personas on disk: made, kept whole, found again fast, and never another person's picture."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engine import persona
from engine.persona import Persona, create, demo_portrait, list_personas, load_persona, make_persona, read_portrait, remove, show
from engine.types import AvatarError, GeneratorSpec, Identity, Signal, UInt8Array, VideoFrame

RGB = demo_portrait()


class Bare:
    """A generator whose one feature is the portrait's mean colour; counts how often it is asked. It cannot be cached."""

    def __init__(self, *, weights: str | None = None, size: int = 256) -> None:
        self.spec = GeneratorSpec("stamp", (size, size), 30)
        self.weights = weights
        self.prepared = 0

    def prepare(self, portrait: UInt8Array) -> Identity:
        self.prepared += 1
        return Identity("key", portrait[::2, ::2].copy(), portrait.reshape(-1, 3).mean(0))

    def allocate(self, rows: int) -> Any:
        return None

    def admit(self, state: Any, row: int, identity: Identity) -> None:
        return None

    def reset(self, state: Any, row: int) -> None:
        return None

    def evict(self, state: Any, row: int) -> None:
        return None

    def step(self, state: Any, signals: Sequence[Sequence[Signal] | None]) -> list[list[VideoFrame] | None]:
        return [None for _ in signals]


class Stamp(Bare):
    """The same, with a cache."""

    def pack(self, identity: Identity) -> dict[str, npt.NDArray[Any]]:
        return {"mean": identity.features}

    def unpack(self, portrait: UInt8Array, arrays: dict[str, npt.NDArray[Any]]) -> Identity:
        return Identity("key", portrait, arrays["mean"])


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Persona]:
    home = tmp_path_factory.mktemp("kept")
    return home, make_persona(Stamp(), RGB, name="Eileen", consent="I am the one in the picture.", source="portrait.jpg", folder=home)


@pytest.fixture
def home(kept: tuple[Path, Persona], tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    place = tmp_path / "Eileen"
    place.mkdir()
    for file in (kept[0] / "Eileen").iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_what_is_kept_comes_back_without_preparing(home: Path, kept: tuple[Path, Persona]) -> None:
    generator = Stamp()
    found = load_persona(generator, "Eileen", folder=home)
    made = kept[1]
    assert generator.prepared == 0
    assert np.array_equal(found.scene.picture, made.scene.picture)
    assert np.array_equal(found.scene.matte, made.scene.matte)
    assert np.array_equal(found.scene.clean, made.scene.clean)
    assert found.scene.fit.rect == made.scene.fit.rect
    assert np.array_equal(found.identity.portrait, made.identity.portrait)
    assert np.array_equal(found.identity.features, made.identity.features)
    assert found.folder == home / "Eileen"


def test_the_manifest_says_who_what_and_with_what_consent(home: Path) -> None:
    manifest = show("Eileen", folder=home)
    assert manifest["name"] == "Eileen"
    assert manifest["generator"] == "stamp"
    assert manifest["consent"]["statement"] == "I am the one in the picture."
    assert manifest["consent"]["time"] == manifest["created"]
    assert manifest["source"] == "portrait.jpg"
    assert manifest["size"] == [768, 768]
    assert len(manifest["files"]["portrait.png"]) == 64
    assert np.array_equal(read_portrait("Eileen", folder=home), RGB)


def test_other_weights_or_size_are_prepared_anew_and_cached(home: Path) -> None:
    for generator in (Stamp(weights="b"), Stamp(size=128)):
        load_persona(generator, "Eileen", folder=home)
        assert generator.prepared == 1
        load_persona(generator, "Eileen", folder=home)
        assert generator.prepared == 1
    assert show("Eileen", folder=home)["consent"]["statement"] == "I am the one in the picture."


def test_changed_code_is_prepared_anew(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persona, "SCENE_SOURCES", (*persona.SCENE_SOURCES, "config.py"))
    generator = Stamp()
    load_persona(generator, "Eileen", folder=home)
    assert generator.prepared == 1


def test_a_cache_depends_on_all_the_code_it_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Follows the imports: what the framing of a portrait and the puppet load from this engine is hashed."""
    import subprocess
    import sys

    from engine.generators import load

    code = "import sys, engine.composite, engine.drivers.portrait, engine.generators.puppet.generator; print(*sorted(sys.modules))"
    root = Path(persona.__file__).parent.parent
    loaded = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout.split()
    engine = {root.joinpath(*name.split(".")).with_suffix(".py") for name in loaded if name.startswith("engine.")}
    neutral = {root / "engine" / name for name in ("batch.py", "config.py")}  # settings and seats: nothing that is cached
    hashed = set(persona._sources(load("puppet")))
    assert {path for path in engine if path.is_file()} - neutral <= hashed
    assert set((root / "engine" / "drivers").glob("*.py")) <= hashed

    before = persona._cache_key(Stamp(), "portrait")
    assert persona._cache_key(Stamp(), "portrait") == before
    monkeypatch.setattr(persona, "_tracker", lambda: "0.10.99")
    assert persona._cache_key(Stamp(), "portrait") != before


@pytest.mark.parametrize("consent", ["", "  ", "\n\t"])
def test_consent_that_says_nothing_is_refused(tmp_path: Path, consent: str) -> None:
    with pytest.raises(AvatarError, match="consent is empty"):
        make_persona(Stamp(), RGB, name="a", consent=consent, folder=tmp_path)
    with pytest.raises(AvatarError, match="consent is empty"):
        create(Stamp(), tmp_path / "absent.png", name="a", consent=consent, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_long_name_in_another_script(tmp_path: Path) -> None:
    letter = "\U00020000"  # a Han character of four bytes: 64 of them are 256
    for act in (show, remove, read_portrait):
        with pytest.raises(AvatarError, match="at most 60 letters"):
            act(letter * 64, folder=tmp_path)
    with pytest.raises(AvatarError, match="at most 60 letters"):
        make_persona(Stamp(), RGB, name=letter * 61, folder=tmp_path)
    assert make_persona(Stamp(), RGB, name=letter * 60, folder=tmp_path).name == letter * 60
    assert load_persona(Stamp(), letter * 60, folder=tmp_path).name == letter * 60


def test_a_generator_that_cannot_be_cached_still_works(tmp_path: Path) -> None:
    generator = Bare()
    made = make_persona(generator, RGB, name="bare", folder=tmp_path)
    assert made.manifest["caches"] == {}
    load_persona(generator, "bare", folder=tmp_path)
    assert generator.prepared == 2


@pytest.mark.parametrize("spoil", ["swap", "cut", "lose"])
def test_a_spoilt_cache_is_made_again(home: Path, spoil: str) -> None:
    cache = home / "Eileen" / "stamp.npz"
    whole = cache.read_bytes()
    if spoil == "lose":
        cache.unlink()
    else:
        cache.write_bytes(whole[: len(whole) // 2] if spoil == "cut" else whole[:-200] + bytes(200))
    generator = Stamp()
    found = load_persona(generator, "Eileen", folder=home)
    assert generator.prepared == 1
    assert found.scene.picture.shape == (256, 256, 3)
    load_persona(generator, "Eileen", folder=home)
    assert generator.prepared == 1


def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(persona, "_write", full)
    assert load_persona(Stamp(weights="b"), "Eileen", folder=home).name == "Eileen"
    assert "could not be cached" in caplog.text


def _swap_portrait(place: Path) -> None:
    from PIL import Image

    Image.fromarray(RGB[:, ::-1].copy()).save(place / "portrait.png")


def _edit(place: Path, **changes: Any) -> None:
    manifest = json.loads((place / "manifest.json").read_text())
    (place / "manifest.json").write_text(json.dumps(manifest | changes))


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "portrait lost": (lambda p: (p / "portrait.png").unlink(), "has lost its portrait.png"),
    "portrait swapped": (_swap_portrait, "not the picture it was made from"),
    "portrait cut": (lambda p: (p / "portrait.png").write_bytes((p / "portrait.png").read_bytes()[:1000]), "not the picture it was made from"),
    "manifest lost": (lambda p: (p / "manifest.json").unlink(), "has lost its manifest.json"),
    "manifest cut": (lambda p: (p / "manifest.json").write_text("{"), "cannot be read"),
    "manifest binary": (lambda p: (p / "manifest.json").write_bytes(b"\xff\xfe\x00"), "cannot be read"),
    "manifest of another kind": (lambda p: (p / "manifest.json").write_text("[1, 2]"), "cannot be read"),
    "manifest without files": (lambda p: _edit(p, files={}), "cannot be read"),
    "manifest with odd caches": (lambda p: _edit(p, caches=3), "cannot be read"),
    "manifest of the future": (lambda p: _edit(p, version=99), "another version"),
    "manifest of another": (lambda p: _edit(p, name="Sally"), "belongs to another persona"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_folders_get_one_sentence(home: Path, name: str) -> None:
    spoil, says = SPOILT[name]
    spoil(home / "Eileen")
    with pytest.raises(AvatarError, match=says) as caught:
        load_persona(Stamp(), "Eileen", folder=home)
    assert "remove it and create it again" in str(caught.value)
    remove("Eileen", folder=home)  # which is possible in every state
    assert list_personas(folder=home) == []


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", "a\\b", "/etc", "a.b", ".hidden", " a", "a ", "a\0b", "a\nb", "-x", "x" * 65, "~"])
def test_names_lead_nowhere(tmp_path: Path, name: str) -> None:
    for act in (show, remove, read_portrait):
        with pytest.raises(AvatarError, match="name is 1 to 64"):
            act(name, folder=tmp_path)
    with pytest.raises(AvatarError, match="name is 1 to 64"):
        make_persona(Stamp(), RGB, name=name, folder=tmp_path)
    with pytest.raises(AvatarError, match="name is 1 to 64"):
        create(Stamp(), tmp_path / "p.png", name=name, folder=tmp_path)


def test_a_link_is_not_a_persona(home: Path, tmp_path: Path) -> None:
    os.symlink(home / "Eileen", home / "Link")
    with pytest.raises(AvatarError, match="There is no persona"):
        remove("Link", folder=home)
    assert (home / "Eileen" / "portrait.png").is_file()


def test_create_list_remove_in_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVATAR_HOME", str(tmp_path / "home"))
    assert list_personas() == []
    picture = persona.ASSETS / "portrait_wide.jpg"
    made = create(Stamp(), picture, name="Zoe\u0308 2", consent="Mine.")  # as some keyboards and file systems spell it
    assert made.folder == tmp_path / "home" / "personas" / "Zoë 2"
    assert list_personas() == ["Zoë 2"]
    assert show("Zoë 2")["source"] == "portrait_wide.jpg"
    assert load_persona(Stamp(), "Zoe\u0308 2").name == "Zoë 2"
    with pytest.raises(AvatarError, match="already a persona"):
        create(Stamp(), picture, name="Zoë 2", consent="Mine.")
    remove("Zoë 2")
    assert list_personas() == []
    assert list((tmp_path / "home" / "personas").iterdir()) == []
    with pytest.raises(AvatarError, match="There is no persona called 'Zoë 2'"):
        load_persona(Stamp(), "Zoë 2")


def test_a_failed_keep_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(persona, "_write", full)
    with pytest.raises(AvatarError, match="No space left"):
        make_persona(Stamp(), RGB, name="a", folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_portrait_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AvatarError, match="No face"):
        make_persona(Stamp(), np.full((300, 300, 3), 128, np.uint8), name="a", folder=tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_in_memory_any_name_will_do() -> None:
    made = make_persona(Stamp(), RGB, name="photo (1).jpg")
    assert made.folder is None
    assert made.manifest["consent"] is None


def test_the_puppet_comes_back_from_its_cache(tmp_path: Path) -> None:
    from engine.generators import load

    puppet = load("puppet")
    made = make_persona(puppet, RGB, name="puppet", folder=tmp_path)
    found = load_persona(puppet, "puppet", folder=tmp_path)
    assert found.manifest["caches"]["puppet"]["key"] == made.manifest["caches"]["puppet"]["key"]
    assert found.identity.key == made.identity.key
    for name, array in puppet.pack(made.identity).items():  # type: ignore[attr-defined]
        assert np.array_equal(puppet.pack(found.identity)[name], array), name  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["demo", "demo taught"])
def test_names_that_come_with_the_program_are_not_given_away(name: str, tmp_path: Path) -> None:
    with pytest.raises(AvatarError, match="comes with the program"):
        create(Stamp(), tmp_path / "p.png", name=name, folder=tmp_path)
