"""`avatar persona judge FILES`: what photos are worth for driving, and what of each would become the portrait. Nothing is kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from engine.types import AvatarError, UInt8Array
from exporters.portraits.command import Event, Tell
from exporters.portraits.finish import finish
from exporters.portraits.photos import Photo, read_photo

PREVIEW_SIDE = 960
"""px of a preview's longer side."""
JPEG_QUALITY = 88


def judge_photos(paths: Sequence[Path], *, previews: Path | None, tell: Tell, event: Event = lambda kind, **facts: None) -> None:
    """Tell of one photo after another; of files with one name the later ones' previews are numbered. Raises AvatarError where previews cannot
    be written."""
    names: set[str] = set()
    for path in paths:
        try:
            photo = read_photo(path)
        except AvatarError as error:
            tell(str(error))
            event("refused", file=path.name, text=str(error).removeprefix(f"{path.name}: "))
            continue
        names.add(name := _other(photo.name, names))
        _judged(photo, None if previews is None else previews / name, tell, event)


def _other(name: str, taken: set[str]) -> str:
    """The name itself, or, where it is taken, with the first number that is free."""
    plain, number = Path(name), 1
    while name in taken:
        number += 1
        name = f"{plain.stem} ({number}){plain.suffix}"
    return name


def _judged(photo: Photo, preview: Path | None, tell: Tell, event: Event) -> None:
    """`preview`: its beginning, to which `.jpg` and `.portrait.jpg` are added."""
    wrong = "".join(f"; {warning}" for warning in photo.marks.warnings)
    tell(f"{photo.name}: marked {photo.marks.whole:.2f} for driving{wrong}")
    finished = finish(photo.rgb, photo.face)
    if preview is not None:
        _write(preview.with_name(f"{preview.name}.jpg"), photo.rgb)
        _write(preview.with_name(f"{preview.name}.portrait.jpg"), finished.rgb)
    event(
        "photo",
        file=photo.name,
        size=[photo.rgb.shape[1], photo.rgb.shape[0]],
        box=list(finished.box),
        mark=round(photo.marks.whole, 3),
        wrong=photo.marks.wrong,
        done=[*photo.notes, *finished.done],
    )


def _write(path: Path, rgb: UInt8Array) -> None:
    """[H, W, 3] -> a small JPEG."""
    scale = min(1.0, PREVIEW_SIDE / max(rgb.shape[:2]))
    small = cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(small[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert done
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise AvatarError(f"{path} cannot be written ({error.strerror or error}); give another folder with --previews.") from error


__all__ = ["judge_photos"]
