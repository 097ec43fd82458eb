"""What `avatar import` knows of published systems whose files differ in data alone: a row each. No more than that, so that a parser costs nothing."""

from __future__ import annotations

from dataclasses import dataclass

from exporters.published import keys, keys_body
from exporters.published.keys import Table

WEIGHTS, MODELS = "pretrained_weights", "pretrained_models"
"""Folders that published instructions have files downloaded to: Moore-AnimateAnyone's and MusePose's, MagicAnimate's and Champ's."""


@dataclass(frozen=True, slots=True)
class Layout:
    """One system's files, or one configuration of it."""

    told: str  # on the command line, of what it takes
    system: str
    tables: tuple[Table, ...]
    preset: str  # that its files become weights of
    beside: tuple[str, ...] = ()  # as `Published.beside`


LAYOUTS: dict[str, Layout] = {
    "animate-anyone": Layout(
        "Moore-AnimateAnyone's four files, the autoencoder and the image encoder", keys.SYSTEM, keys.ANIMATE_ANYONE, "animate_anyone"
    ),
    "animate-anyone --v1": Layout(
        "files for its first configuration: no motion module in the middle, 24 positions", keys.SYSTEM, keys.ANIMATE_ANYONE, "animate_anyone_v1"
    ),
    "animate-anyone --reenact": Layout(
        "its face reenactment (DIR/reenact), which dots of a face and of its mouth drive",
        keys_body.REENACT,
        keys_body.REENACT_TABLES,
        "animate_anyone_face",
        ("reenact", f"{WEIGHTS}/reenact", ".."),
    ),
    "musepose": Layout(
        "MusePose's four files, the autoencoder and the image encoder",
        keys_body.MUSE_POSE,
        keys_body.MUSE_POSE_TABLES,
        "muse_pose",
        ("MusePose", f"{WEIGHTS}/MusePose", ".."),
    ),
    "champ": Layout(
        "Champ's seven files, the autoencoder and the image encoder",
        keys_body.CHAMP,
        keys_body.CHAMP_TABLES,
        "champ",
        ("champ", f"{MODELS}/champ", MODELS, ".."),
    ),
}
"""As it follows `avatar import`, of a system without an option first."""


def variants(name: str) -> tuple[str, ...]:
    """The other rows of the same command."""
    return tuple(other for other in LAYOUTS if other != name and other.split()[0] == name.split()[0])


def elsewhere(name: str) -> tuple[str, ...]:
    """Options of the command line that name a folder of some of a row's files."""
    return (*dict.fromkeys(table.option for table in LAYOUTS[name].tables if table.option), keys.TINY.option)


__all__ = ["LAYOUTS", "MODELS", "WEIGHTS", "Layout", "elsewhere", "variants"]
