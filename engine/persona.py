"""A persona: a portrait, whose it is and with what consent, and what a generator computed from it once.

On disk a persona is a folder of its name with `portrait.png`, `manifest.json`, the folder `weights` where a generator was taught its person,
`identity.npz` where an identity system made the portrait (what that knows of the person, for generators with `read_tokens`), and, for every
generator that has prepared it, a cache of arrays. Portrait, weights and manifest are the truth; caches are made again when the code they
come from (SCENE_SOURCES and every file in the generator's folder), MediaPipe's version, the generator's spec or its weights have changed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import logging
import os
import shutil
import sys
import unicodedata
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from engine.composite import Scene, frame_portrait
from engine.types import AvatarError, Generator, Identity, UInt8Array

ASSETS = Path(__file__).parent / "assets"
PORTRAIT, MANIFEST, WEIGHTS, TOKENS = "portrait.png", "manifest.json", "weights", "identity.npz"
MANIFEST_VERSION = 1
BUILT_IN = ("demo", "demo taught")
"""Names of those that come with the program (`engine.built_in`)."""
LONGEST_NAME = 64
LONGEST_NAME_BYTES = 240
"""UTF-8 bytes of a name: file systems take 255, and a script outside of Latin has up to four a letter."""
SCENE_SOURCES = ("persona.py", "composite.py", "blend.py", "picture.py", "pose.py", "types.py", "drivers/*.py")
"""Code that the cached scene and, through the drivers, every generator's features come from; patterns in this folder."""

_Arrays = dict[str, npt.NDArray[Any]]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Persona:
    """A portrait ready to be driven; immutable, shared by every session that shows it. Its first frame is as fast as the others."""

    name: str
    scene: Scene
    identity: Identity
    manifest: dict[str, Any]
    folder: Path | None = None  # where it is kept; None: in memory only


# -- make and keep --------------------------------------------------------------------------------------------------------


def make_persona(
    generator: Generator,
    rgb: UInt8Array,
    *,
    name: str,
    consent: str | None = None,
    source: str | None = None,
    folder: Path | None = None,
    weights: Path | None = None,
    provenance: Mapping[str, Any] | None = None,
    tokens: bytes | None = None,
) -> Persona:
    """Frame a portrait [H, W, 3] RGB and prepare it; keep it in `folder / name` where a folder is given.

    `consent`: who agreed to what, in the words of whoever brings the picture; `source`: where it is from; `weights`: a folder of those that
    a generator was taught this person with, of which a kept persona has its own copy; `provenance`: how the portrait was made, as JSON;
    `tokens`: an `identity.npz` that a generator may read, which is not kept here. Raises AvatarError where the portrait cannot be driven, and
    for a kept persona where the name is unfit or taken.
    """
    consent = _consent(consent)
    place = None if folder is None else _place(name, folder)
    if place is not None:
        name = place.name
        if place.exists():
            raise AvatarError(f"There is already a persona called '{name}'; remove it first or choose another name.")
    scene, crop = frame_portrait(rgb, size=generator.spec.size)
    identity = _prepared(generator, crop, weights, tokens)
    import_module("engine.blend")  # the composite's compiled loops load now, not while someone waits for the first frame
    now = datetime.now(UTC).isoformat(timespec="seconds")
    manifest: dict[str, Any] = {
        "version": MANIFEST_VERSION,
        "name": name,
        "created": now,
        "generator": generator.spec.name,
        "weights": _weights(generator),
        "consent": {"statement": consent, "time": now} if consent else None,
        "source": source,
        "provenance": dict(provenance) if provenance else None,
        "size": [rgb.shape[1], rgb.shape[0]],
        "files": {},
        "caches": {},
    }
    if place is not None:
        _keep(place, rgb, manifest, generator, scene, identity, weights)
    return Persona(name, scene, identity, manifest, place)


def create(
    generator: Generator, portrait: Path, *, name: str, consent: str | None = None, folder: Path | None = None, weights: Path | None = None
) -> Persona:
    """Make a persona of a picture file and keep it; `weights` as in `make_persona`."""
    from engine.picture import read_picture

    home = folder or personas_folder()
    check_new(name, consent, folder=home)
    return make_persona(generator, read_picture(portrait), name=name, consent=consent, source=Path(portrait).name, folder=home, weights=weights)


def check_new(name: str, consent: str | None, *, source: str | None = None, folder: Path | None = None) -> None:
    """Before long work. Raises AvatarError for an unfit name, empty words of consent, and a name that is taken but by a persona of `source`."""
    home = folder or personas_folder()
    place = _place(name, home)
    _consent(consent)
    if place.name in BUILT_IN:
        raise AvatarError(f"The persona '{place.name}' comes with the program; choose another name.")
    if place.exists() and (source is None or show(place.name, folder=home)["source"] != source):
        raise AvatarError(f"There is already a persona called '{place.name}'; remove it first or choose another name.")


def load_persona(generator: Generator, name: str, *, folder: Path | None = None) -> Persona:
    """A kept persona, from its cache where that is of today's code, generator and weights, prepared again otherwise.

    Raises AvatarError where there is none of that name or its files are missing, damaged or not its own.
    """
    place = _existing(name, folder or personas_folder())
    manifest = _manifest(place)
    data = _portrait_bytes(place, manifest)
    taught = _weights_folder(place, manifest)
    tokens = (place / TOKENS).read_bytes() if hasattr(generator, "read_tokens") and (place / TOKENS).is_file() else None
    key = _cache_key(generator, hashlib.sha256(data).hexdigest(), taught, tokens)
    arrays = _cached(place, manifest, generator, key)
    if arrays is not None:
        import_module("engine.blend")
        return Persona(manifest["name"], *_unpacked(generator, arrays), manifest, place)
    from engine.picture import decode_picture

    made = make_persona(generator, decode_picture(data), name=manifest["name"], weights=taught, tokens=tokens)
    try:
        _write_cache(place, manifest, generator, key, made.scene, made.identity)
        _write(place / MANIFEST, _json(manifest))
    except OSError as error:
        _log.warning("The persona '%s' was prepared but could not be cached in %s: %s", name, place, error)
    return Persona(made.name, made.scene, made.identity, manifest, place)


# -- look after -----------------------------------------------------------------------------------------------------------


def personas_folder() -> Path:
    """$AVATAR_HOME/personas, else avatar/personas in the user's data folder (XDG base directory specification)."""
    home = os.environ.get("AVATAR_HOME")
    if home:
        return Path(home) / "personas"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "avatar" / "personas"


def list_personas(*, folder: Path | None = None) -> list[str]:
    """Names of the kept personas, sorted."""
    home = folder or personas_folder()
    places = home.iterdir() if home.is_dir() else ()
    return sorted(place.name for place in places if not place.name.startswith(".") and (place / MANIFEST).is_file())


def show(name: str, *, folder: Path | None = None) -> dict[str, Any]:
    """A persona's manifest, after a look at its portrait."""
    place = _existing(name, folder or personas_folder())
    manifest = _manifest(place)
    _portrait_bytes(place, manifest)
    return manifest


def read_portrait(name: str, *, folder: Path | None = None) -> UInt8Array:
    """A persona's portrait [H, W, 3] RGB, for previews."""
    from engine.picture import decode_picture

    place = _existing(name, folder or personas_folder())
    return decode_picture(_portrait_bytes(place, _manifest(place)))


def remove(name: str, *, folder: Path | None = None) -> None:
    """Delete a persona and all its files."""
    home = folder or personas_folder()
    place = _existing(name, home)
    aside = home / f".{uuid.uuid4().hex}"
    place.rename(aside)  # gone at once for everyone else, even if deleting is interrupted
    shutil.rmtree(aside)


def demo_portrait() -> UInt8Array:
    """The built-in portrait [768, 768, 3] RGB (public domain, see assets/SOURCE.md)."""
    from engine.picture import read_picture

    return read_picture(ASSETS / "portrait.jpg")


# -- names and files ------------------------------------------------------------------------------------------------------


def _place(name: str, home: Path) -> Path:
    """The folder of a name. Only letters, digits, spaces, '-' and '_': no name leads anywhere else on the disk."""
    name = unicodedata.normalize("NFC", name)
    fit = 0 < len(name) <= LONGEST_NAME and name[0].isalnum() and name == name.strip() and all(c.isalnum() or c in " -_" for c in name)
    if fit and len(name.encode()) > LONGEST_NAME_BYTES:
        raise AvatarError(f"The name '{name}' is too long for a folder's; use at most {LONGEST_NAME_BYTES // 4} letters of that script.")
    if not fit:
        raise AvatarError(
            f"A persona's name is 1 to {LONGEST_NAME} letters, digits, spaces, '-' or '_' and starts with a letter or digit; rename it."
        )
    return home / name


def _consent(statement: str | None) -> str | None:
    """The statement without blanks around it; None where nobody was asked for one. Raises AvatarError for one that says nothing."""
    if statement is not None and not (statement := statement.strip()):
        raise AvatarError("The statement of consent is empty; say who agreed to what, such as 'I am the person in the picture'.")
    return statement


def _existing(name: str, home: Path) -> Path:
    place = _place(name, home)
    if place.is_symlink() or not place.is_dir():
        raise AvatarError(f"There is no persona called '{name}'; `avatar persona list` shows the ones there are.")
    return place


def _manifest(place: Path) -> dict[str, Any]:
    again = "remove it and create it again"
    try:
        manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        version, _, _, _ = manifest["version"], manifest["files"][PORTRAIT], manifest["caches"].items(), manifest["consent"]
    except FileNotFoundError:
        raise AvatarError(f"The persona '{place.name}' has lost its {MANIFEST}; {again}.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AvatarError(f"The {MANIFEST} of persona '{place.name}' cannot be read; {again}.") from error
    if version != MANIFEST_VERSION:
        raise AvatarError(f"The persona '{place.name}' was made by another version of this program; {again}.")
    if manifest.get("name") != unicodedata.normalize("NFC", place.name):
        raise AvatarError(f"The {MANIFEST} in '{place.name}' belongs to another persona; {again}.")
    return dict(manifest)


def _portrait_bytes(place: Path, manifest: Mapping[str, Any]) -> bytes:
    """The portrait's file, which must be the one that the manifest's consent was given for."""
    try:
        data = (place / PORTRAIT).read_bytes()
    except OSError:
        raise AvatarError(f"The persona '{place.name}' has lost its {PORTRAIT}; remove it and create it again.") from None
    if hashlib.sha256(data).hexdigest() != manifest["files"][PORTRAIT]:
        raise AvatarError(f"The {PORTRAIT} of persona '{place.name}' is not the picture it was made from; remove it and create it again.")
    return data


def _weights_folder(place: Path, manifest: Mapping[str, Any]) -> Path | None:
    """The persona's own weights; None where it has none. Raises AvatarError where they are lost or not those it was made with."""
    expected = manifest["files"].get(WEIGHTS)
    if expected is None:
        return None
    home = place / WEIGHTS
    try:
        found = hashlib.sha256((home / f"{WEIGHTS}.json").read_bytes()).hexdigest()
    except OSError as error:
        raise AvatarError(f"The persona '{place.name}' has lost its weights ({home}); put them back, or train it again.") from error
    if found != expected:
        raise AvatarError(f"The weights in {home} are not those that the persona '{place.name}' was made with; put those back, or train it again.")
    return home


def own_weights(name: str, *, folder: Path | None = None) -> Path | None:
    """The folder of a persona's own weights; None where it has none. Raises AvatarError as `load_persona` does."""
    place = _existing(name, folder or personas_folder())
    _portrait_bytes(place, manifest := _manifest(place))
    return _weights_folder(place, manifest)


def _keep(
    place: Path, rgb: UInt8Array, manifest: dict[str, Any], generator: Generator, scene: Scene, identity: Identity, weights: Path | None
) -> None:
    """Write a new persona's folder: whole or not at all."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "PNG", compress_level=3)
    digest = hashlib.sha256(out.getvalue()).hexdigest()
    manifest["files"][PORTRAIT] = digest
    aside = place.parent / f".{uuid.uuid4().hex}"
    try:
        aside.mkdir(parents=True)
        (aside / PORTRAIT).write_bytes(out.getvalue())
        if weights is not None:
            shutil.copytree(weights, aside / WEIGHTS, ignore=shutil.ignore_patterns(".*"))
            manifest["files"][WEIGHTS] = hashlib.sha256((aside / WEIGHTS / f"{WEIGHTS}.json").read_bytes()).hexdigest()
        _write_cache(aside, manifest, generator, _cache_key(generator, digest, weights), scene, identity)
        (aside / MANIFEST).write_bytes(_json(manifest))
        aside.rename(place)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        if place.exists():
            raise AvatarError(f"There is already a persona called '{place.name}'; remove it first or choose another name.") from None
        raise AvatarError(f"The persona cannot be kept in {place.parent} ({error.strerror or error}); choose a folder with AVATAR_HOME.") from error


def _write(path: Path, data: bytes) -> None:
    """Replace a file: readers see the old one or the new one, never a part."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        aside.write_bytes(data)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _json(manifest: Mapping[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode()


# -- caches ---------------------------------------------------------------------------------------------------------------


def _weights(generator: Generator) -> str | None:
    """What a generator says about its weights (an optional attribute `weights`, such as their sha256)."""
    weights = getattr(generator, "weights", None)
    return None if weights is None else str(weights)


def _prepared(generator: Generator, crop: UInt8Array, weights: Path | None, tokens: bytes | None) -> Identity:
    """With what the clip behind `weights` taught the puppet, where this is the puppet and the clip's portrait, or with an identity's tokens."""
    read_tokens = getattr(generator, "read_tokens", None)
    if tokens is not None and read_tokens is not None:
        return cast(Identity, cast(Any, generator).prepare(crop, read_tokens(tokens)))
    read_assets = getattr(generator, "read_assets", None)
    if weights is None or read_assets is None:
        return generator.prepare(crop)
    from engine.generators.diffusion import taught

    found = taught.beside(weights)
    arrays = None if found is None or not found.suits(crop) else read_assets(dict(found.arrays))
    return cast(Identity, cast(Any, generator).prepare(crop, arrays))


def _cache_key(generator: Generator, portrait: str, weights: Path | None = None, tokens: bytes | None = None) -> str:
    """sha256 of all that the cached arrays depend on: the portrait's digest, the generator, its weights, the code of both halves, the tracker."""
    digest = hashlib.sha256(f"{portrait} {generator.spec.name} {generator.spec.size} {_weights(generator)} {_tracker()}".encode())
    if weights is not None:
        digest.update((weights / f"{WEIGHTS}.json").read_bytes())
    digest.update(tokens or b"")
    for path in _sources(generator):
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _sources(generator: Generator) -> list[Path]:
    """Every file that the cached arrays come from. A generator of another package is its own file."""
    here = Path(__file__).parent
    own = Path(str(sys.modules[type(generator).__module__].__file__))
    files = [path for pattern in SCENE_SOURCES for path in sorted(here.glob(pattern))]
    if here not in own.parents:
        return [*files, own]
    # All generators, since one may build on another.
    return files + [path for path in sorted((here / "generators").rglob("*")) if path.is_file() and "__pycache__" not in path.parts]


def _tracker() -> str:
    """MediaPipe's version: its models come with it."""
    try:
        return importlib.metadata.version("mediapipe")
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _write_cache(place: Path, manifest: dict[str, Any], generator: Generator, key: str, scene: Scene, identity: Identity) -> None:
    """Write a generator's cache and name it in the manifest. Generators without `pack` and `unpack` are prepared anew each time."""
    if not (hasattr(generator, "pack") and hasattr(generator, "unpack")):
        return
    arrays: _Arrays = {
        **{f"scene.{name}": array for name, array in scene.pack().items()},
        "portrait": identity.portrait,
        **{f"features.{name}": array for name, array in generator.pack(identity).items()},
    }
    out = io.BytesIO()
    np.savez(out, **arrays)
    name = f"{generator.spec.name}.npz"
    _write(place / name, out.getvalue())
    manifest["caches"][generator.spec.name] = {"file": name, "key": key, "sha256": hashlib.sha256(out.getbuffer()).hexdigest()}


def _cached(place: Path, manifest: Mapping[str, Any], generator: Generator, key: str) -> _Arrays | None:
    """A generator's arrays, or None where they are not there, not of today or not as they were written."""
    entry = manifest["caches"].get(generator.spec.name)
    if not isinstance(entry, dict) or entry.get("key") != key or not hasattr(generator, "unpack"):
        return None
    try:
        data = (place / f"{generator.spec.name}.npz").read_bytes()
    except OSError:
        return None
    if hashlib.sha256(data).hexdigest() != entry.get("sha256"):
        return None
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _unpacked(generator: Any, arrays: _Arrays) -> tuple[Scene, Identity]:
    scene, features = (
        {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)} for start in ("scene.", "features.")
    )
    return Scene.unpack(scene), generator.unpack(arrays["portrait"], features)
