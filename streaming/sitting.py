"""One person's photos on their way to a persona, and the work on them: what `streaming.sittings` keeps and a page shows."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Kind = Literal["judge", "make", "save"]


@dataclass(slots=True)
class Photo:
    """One that was sent."""

    key: str  # a number: its file's name
    name: str  # what its owner calls it
    sha256: str
    bytes: int
    judged: dict[str, Any] | None = None  # the child's event `photo` or `refused`; None: not yet looked at

    @property
    def fit(self) -> bool:
        """Whether it can be driven."""
        return self.judged is not None and self.judged["event"] == "photo"


@dataclass(slots=True)
class Job:
    """Work under way, or the last that was."""

    kind: Kind
    task: asyncio.Task[None] | None = None
    done: int = 0
    total: int = 0
    error: str = ""
    over: bool = False
    cancelled: bool = False


@dataclass(slots=True)
class Sitting:
    """One person's photos, and what became of them."""

    folder: Path
    id: str = field(default_factory=lambda: secrets.token_urlsafe(18))
    photos: dict[str, Photo] = field(default_factory=dict)
    counted: int = 0  # photos so far, those that were taken away too
    asked: tuple[Any, ...] = ()  # what the candidates were made of
    arguments: list[str] = field(default_factory=list)  # ... as the command's
    candidates: dict[int, dict[str, Any]] = field(default_factory=dict)  # seed -> the child's event
    job: Job | None = None
    saved: dict[str, Any] | None = None
    touched: float = field(default_factory=time.monotonic)

    def path(self, photo: Photo) -> Path:
        """Where a photo lies."""
        return self.folder / "photos" / photo.key

    @property
    def busy(self) -> bool:
        """Whether work is under way."""
        return self.job is not None and not self.job.over

    def told(self) -> dict[str, Any]:
        """All that a page shows of it."""
        photos = []
        for photo in self.photos.values():
            known = {"key": photo.key, "name": photo.name, "state": "new" if photo.judged is None else "fit" if photo.fit else "refused"}
            photos.append(known | {k: v for k, v in (photo.judged or {}).items() if k not in ("event", "file")})
        job = self.job
        return {
            "id": self.id,
            "photos": photos,
            "candidates": [{k: v for k, v in made.items() if k not in ("event", "path")} for _, made in sorted(self.candidates.items())],
            "job": None if job is None else {name: getattr(job, name) for name in ("kind", "done", "total", "error", "over", "cancelled")},
            "saved": self.saved,
        }


__all__ = ["Job", "Kind", "Photo", "Sitting"]
