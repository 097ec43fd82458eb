"""The pages' own files, from a list made once, and previews of portraits."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from aiohttp import web

from engine.types import UInt8Array

WEB = Path(__file__).parent / "web"
PREVIEW_SIDE = 320
"""px of a preview's longer side."""
JPEG_QUALITY = 85


@lru_cache(maxsize=1)
def _files() -> dict[str, Path]:
    return {path.name: path for path in WEB.iterdir() if path.is_file()}


def static_file(name: str) -> web.FileResponse:
    """A page's file. Raises HTTPNotFound for whatever is not on the list, so that no path from a client reaches the disk."""
    path = _files().get(name)
    if path is None:
        raise web.HTTPNotFound
    return web.FileResponse(path, headers={"Cache-Control": "no-cache"})


def preview_jpeg(rgb: UInt8Array) -> bytes:
    """[H, W, 3] -> a small JPEG."""
    import cv2

    scale = min(1.0, PREVIEW_SIDE / max(rgb.shape[:2]))
    small = cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert done
    return bytes(data)
