"""What `serve` and `render` are told about what drives, made into drivers. Everything heavy is imported when it is used."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.config import Background
    from engine.drivers.dwpose import DWPose

Maker = Callable[[], Any]


def dwpose_makers(folder: str | Path | None) -> dict[str, Maker]:
    """Makers of the drivers of "body" and "hands" of any number of sessions, on networks that are loaded once, with the first driver; none for None.

    Raises AvatarError at once where a file is missing; the makers where one is damaged or another network.
    """
    if folder is None:
        return {}
    from engine.drivers.dwpose import DWPose, files
    from engine.drivers.dwpose_drivers import DWPoseBody, DWPoseHands

    files(folder)
    lock, loaded = threading.Lock(), list[DWPose]()

    def networks() -> DWPose:
        with lock:
            if not loaded:
                loaded.append(DWPose(folder))
            return loaded[0]

    return {"body": lambda: DWPoseBody(networks()), "hands": lambda: DWPoseHands(networks())}


def background(value: str) -> Background:
    """`--background`. Raises AvatarError for what is neither a kind, nor a colour, nor a picture that can be read."""
    from engine.config import Background
    from engine.picture import read_picture
    from engine.types import AvatarError

    if value in ("keep", "blur"):
        return Background(kind="keep" if value == "keep" else "blur")
    if value.startswith("#"):
        try:
            red, green, blue = bytes.fromhex(value[1:])
        except ValueError:
            raise AvatarError(f"'{value}' is not a colour; write it as #rrggbb, for example #00b140.") from None
        return Background(kind="colour", colour=(red, green, blue))
    return Background(kind="picture", picture=read_picture(value))


__all__ = ["background", "dwpose_makers"]
