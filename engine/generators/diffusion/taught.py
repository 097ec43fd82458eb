"""What goes with weights that were trained on clips of one person: what these taught the generator whose frames are the condition, used for
the portrait that it was learnt for, and which motions they showed."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from engine.generators.diffusion.presets import Preset, preset_in
from engine.generators.diffusion.trust import Trust
from engine.types import AvatarError, UInt8Array

FILE, WEIGHTS = "assets.npz", "weights.json"
PORTRAIT, OWN, SEEN = "portrait", "base.", "trust."
"""Names in the file: the portrait's, and what those of the generator's own arrays and of the trust begin with."""
SAME = 3.0
"""Mean grey levels up to which two pictures are one and the same, cut and scaled alike: another frame of the same person is further off."""
AGAIN = "train the weights again"


@dataclass(frozen=True, slots=True)
class Taught:
    """For one portrait."""

    portrait: UInt8Array  # [H, W, 3] the crop, RGB
    arrays: Mapping[str, npt.NDArray[Any]]  # what the generator's `read_assets` takes; empty where there was nothing to learn
    trust: Trust  # how far the weights can be believed, by motion

    def suits(self, portrait: UInt8Array) -> bool:
        """Whether a crop [h, w, 3] of any size is that of this portrait, and something was learnt for it."""
        height, width = self.portrait.shape[:2]
        how = cv2.INTER_AREA if portrait.shape[0] > height else cv2.INTER_CUBIC
        other = np.asarray(cv2.resize(portrait, (width, height), interpolation=how), np.float32)
        return bool(self.arrays) and float(np.abs(other - self.portrait).mean()) <= SAME


def write(folder: Path, taught: Taught) -> dict[str, str]:
    """Into a folder of weights -> what its manifest says of it: sha256 of the file, and of the portrait's pixels."""
    out = io.BytesIO()
    arrays: dict[str, Any] = {PORTRAIT: taught.portrait, **{OWN + name: array for name, array in taught.arrays.items()}}
    np.savez_compressed(out, **arrays, **{SEEN + name: array for name, array in taught.trust.pack().items()})
    (folder / FILE).write_bytes(out.getvalue())
    pixels = hashlib.sha256(np.ascontiguousarray(taught.portrait).tobytes()).hexdigest()
    return {"sha256": hashlib.sha256(out.getvalue()).hexdigest(), "portrait": pixels}


def read(folder: Path, told: Any) -> Taught:
    """The inverse, by what the manifest says. Raises AvatarError where the file is another one or cannot be read."""
    path = folder / FILE
    try:
        data = path.read_bytes()
    except OSError as error:
        raise AvatarError(f"{path} is missing, which the weights beside it need; copy it too, or {AGAIN}.") from error
    if hashlib.sha256(data).hexdigest() != (told.get("sha256") if isinstance(told, dict) else None):
        raise AvatarError(f"{path} is not the file that the weights beside it name; {AGAIN}.")
    with np.load(io.BytesIO(data), allow_pickle=False) as held:
        own, seen = ({name.removeprefix(start): held[name] for name in held.files if name.startswith(start)} for start in (OWN, SEEN))
        return Taught(held[PORTRAIT], own, Trust.unpack(seen))


def save_alone(folder: Path, taught: Taught, *, origin: dict[str, str]) -> None:
    """A folder of weights that has no networks: for the generator that was taught, which needs none."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {"preset": None, "sha256": {}, "origin": origin, "assets": write(folder, taught)}
    (folder / WEIGHTS).write_text(json.dumps(manifest, indent=2) + "\n")


def has_networks(weights: Path) -> bool:
    """Whether a folder of weights has more than what `save_alone` writes. Raises AvatarError where it is not whole."""
    return bool(_manifest(weights).get("sha256"))


def preset_of(weights: Path) -> Preset:
    """The preset of the networks in a folder of weights, by its manifest alone. Raises AvatarError where it has none."""
    return preset_in(_manifest(weights), weights)


def beside(weights: Path) -> Taught | None:
    """Of a folder of weights, without loading them; None where nothing was taught. Raises AvatarError for a folder that is not whole."""
    manifest = _manifest(weights)
    return read(weights, manifest["assets"]) if "assets" in manifest else None


def _manifest(weights: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((weights / WEIGHTS).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise AvatarError(f"{weights} holds no weights of this engine: it has no readable {WEIGHTS}; import or train them first.") from error


__all__ = ["FILE", "Taught", "beside", "has_networks", "preset_of", "read", "save_alone", "write"]
