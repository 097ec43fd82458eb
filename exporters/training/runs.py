"""A training run on disk: the newest checkpoint, whole or not there, and a log that says every update once."""

from __future__ import annotations

import ast
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.types import AvatarError

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"
SHORT = 24
"""Letters of a setting's value that a person can take in; hashes and lists are longer."""


@dataclass(slots=True)
class Progress:
    """How far a run is."""

    updates: int = 0
    seconds: float = 0.0  # of training, over all its sessions
    critic_from: int = -1  # the update at which the critic joined in; -1: it has not
    best: float = math.inf  # the lowest mean loss there was


def save(folder: Path, state: dict[str, Any], *, settings: dict[str, Any]) -> None:
    """Write beside, flush, rename: after a kill or a full disk the checkpoint before is still there. Raises AvatarError for a full disk."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".{CHECKPOINT}.{os.getpid()}"
    try:
        with beside.open("wb") as file:
            torch.save({"settings": settings, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(folder / CHECKPOINT)
    except (OSError, RuntimeError) as error:
        raise AvatarError(f"The checkpoint could not be written to {folder} ({error}); the one before is kept. Make room and start again.") from error
    finally:
        beside.unlink(missing_ok=True)


def load(folder: Path, *, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The newest checkpoint, or None. Raises AvatarError where it is damaged or belongs to a run with other settings."""
    for left in folder.glob(f".{CHECKPOINT}.*"):
        left.unlink(missing_ok=True)  # of a run that was killed while it wrote
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        theirs = dict(state.pop("settings"))
    except Exception as error:  # whatever a broken file raises
        raise AvatarError(f"{path} is damaged; remove it to train from the beginning.") from error
    if other := _apart(theirs, settings):
        same = "give the same options to the same version of this program to go on, or another --out to begin anew"
        raise AvatarError(f"{folder} holds a run with other settings ({', '.join(other)}); {same}.")
    return state


def _apart(theirs: Mapping[str, Any], ours: Mapping[str, Any], within: str = "") -> list[str]:
    """For a person: every setting that differs, with both values where they are short; of a group of settings those inside it."""
    told = list[str]()
    for name in sorted(ours.keys() | theirs.keys()):
        there, here = (_meant(of.get(name, "")) for of in (theirs, ours))
        if isinstance(there, dict) and isinstance(here, dict):
            told += _apart(there, here, f"{within}{name}.")
        elif there != here:
            said = [str(value) or "none" for value in (there, here)]
            told.append(within + name + (f" {said[0]} instead of {said[1]}" if max(map(len, said)) <= SHORT else ""))
    return told


def _meant(value: Any) -> Any:
    """What a setting's `repr` stands for; what stands for nothing is itself."""
    try:
        return ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError):
        return value


class Log:
    """One JSON line an update. What a killed run logged after its last checkpoint is taken away, since it happens again."""

    def __init__(self, folder: Path, *, updates: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / LOG
        kept = []
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                try:
                    if json.loads(line)["update"] < updates:
                        kept.append(line)
                except (ValueError, KeyError):
                    break  # a line half written
        beside = folder / f".{LOG}"
        beside.write_text("".join(line + "\n" for line in kept))
        beside.replace(self.path)

    def __call__(self, update: int, **values: float) -> None:
        """Append."""
        with self.path.open("a") as file:
            file.write(json.dumps({"update": update, **{name: round(value, 7) for name, value in values.items()}}) + "\n")


__all__ = ["CHECKPOINT", "LOG", "Log", "Progress", "load", "save"]
