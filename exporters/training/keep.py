"""What a clip taught, kept as a persona. Needs no PyTorch unless there are networks to keep."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from engine import persona as personas
from engine.backends import engines
from engine.driving import map_options
from engine.generators import load
from engine.generators.diffusion.presets import Preset
from engine.generators.diffusion.taught import Taught, save_alone
from engine.generators.diffusion.trust import Trust
from engine.generators.puppet.assets import pack as pack_assets
from engine.types import AvatarError, Generator
from exporters.data.dataset import Dataset
from exporters.data.storage import SCENE
from exporters.training.whole import maps_of

Tell = Callable[[str], None]


def seen_by(data: Dataset) -> Trust:
    """The motions of what is trained on."""
    return Trust.of(np.concatenate([clip.motion[a:b] for clip in data.clips for a, b in clip.train]))


def keep_network(data: Dataset, weights: Path, *, preset: Any, recipe: str, name: str, source: str, consent: str, tell: Tell) -> None:
    """With the networks in `weights`, of a preset of any generator. One that an earlier run of the same folder (`source`) kept is replaced."""
    generator = engines.generator_of(weights)
    made = as_persona(load(generator, weights=weights), data, weights, name=name, source=source, consent=consent, tell=tell)
    tell(f"Persona '{made.name}' is ready in {made.folder}.")
    if generator == "diffusion":
        tell(f"Faster where OpenVINO is installed: avatar export --persona {shlex.quote(made.name)} --backend openvino")
    tell(shown_by(f"--persona {shlex.quote(made.name)}", preset, recipe=recipe))


def shown_by(who: str, preset: Any, *, recipe: str) -> str:
    """How what was trained is looked at: `who` in words of a command line, of a preset of any generator. A whole clip's teacher is not live."""
    maps = map_options(maps_of(preset))
    if recipe == "teacher" and not isinstance(preset, Preset):
        return f"Render a clip: avatar render --offline {who} --drive CLIP.mp4 -o OUT.mp4{maps}"
    return f"Show it: avatar serve {who}{maps}"


def keep_puppet(data: Dataset, weights: Path, *, name: str, source: str, consent: str, tell: Tell) -> None:
    """As the puppet that the clip taught, live on any CPU; what it was taught is written to `weights`."""
    taught = Taught(data.portrait, {} if data.assets is None else pack_assets(data.assets), seen_by(data))
    save_alone(weights, taught, origin={"made_by": "avatar train --stage data", "dataset": str(data.report.get("key", data.folder))})
    made = as_persona(load("puppet"), data, weights, name=name, source=source, consent=consent, tell=tell)
    how = "the puppet" if data.assets is None else "the puppet that the clip taught"
    tell(f"Persona '{made.name}' is ready in {made.folder}, as {how}. Train the network too: leave --stage out.")
    tell(f"Show it: avatar serve --persona {shlex.quote(made.name)}")


def as_persona(generator: Generator, data: Dataset, weights: Path, *, name: str, source: str, consent: str, tell: Tell) -> personas.Persona:
    """Kept; an earlier one of that name, of the same folder as was checked, is replaced, and its engines stay where its weights are the same.

    Raises AvatarError where it cannot be kept; the earlier one is then as it was.
    """
    from engine.picture import read_picture

    picture, home = read_picture(data.folder / SCENE), personas.personas_folder()
    if name not in personas.list_personas():
        return personas.make_persona(generator, picture, name=name, consent=consent, source=source, folder=home, weights=weights)
    with tempfile.TemporaryDirectory(dir=home, prefix=".") as aside:  # the earlier one goes when the new one is whole
        personas.make_persona(generator, picture, name=name, consent=consent, source=source, folder=Path(aside), weights=weights)
        left = carry_engines(home / name / personas.WEIGHTS, Path(aside) / name / personas.WEIGHTS)
        _exchange(home / name, Path(aside) / name)
    if left:
        these = f"The {left} engines" if left > 1 else "The engine"
        again = f"avatar export --persona {shlex.quote(name)} --backend NAME"
        tell(f"{these} of this persona's earlier weights went with them, for these are others; where you still need one: {again}")
    return personas.load_persona(generator, name)


def _exchange(place: Path, new: Path) -> None:
    """The new folder in place of the earlier one, which stays beside where the new one was. Deleting takes long: nothing is deleted in between."""
    earlier = new.with_name(f".{place.name}")  # no persona's name begins so
    try:
        place.rename(earlier)
        try:
            new.rename(place)
        except BaseException:
            earlier.rename(place)
            raise
    except OSError as error:
        why = error.strerror or error
        raise AvatarError(
            f"The persona cannot be kept in {place.parent} ({why}); mend that and start again. The earlier one is still there as it was."
        ) from error


def carry_engines(before: Path, weights: Path) -> int:
    """Engines of the same weights come along -> how many do not, as they are of others."""
    there = before / engines.HOME
    found = [folder for folder in sorted(there.iterdir()) if folder.is_dir() and not folder.name.startswith(".")] if there.is_dir() else []
    if not found or engines.origin_of(before) != engines.origin_of(weights):
        return len(found)
    for folder in found:
        if not (weights / engines.HOME / folder.name).exists():
            shutil.copytree(folder, weights / engines.HOME / folder.name, copy_function=_linked, ignore=shutil.ignore_patterns(".*"))
    return 0


def _linked(source: str, target: str) -> str:
    """The same file under both names: no second copy of what may be large, and nothing is lost where this stops half way."""
    try:
        os.link(source, target)
    except OSError:  # a disk that has no links
        shutil.copy2(source, target)
    return target


__all__ = ["as_persona", "carry_engines", "keep_network", "keep_puppet", "seen_by", "shown_by"]
