"""The HTTP side of recording a person: one function a route. Pictures are looked at and files written off the loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import shlex
import time
from functools import partial
from typing import Any

from aiohttp import ClientError, web

from engine.persona import personas_folder
from engine.picture import PictureLimits, decode_picture
from engine.types import AvatarError
from streaming.api import CHUNK, DESK, SETTINGS, UPLOAD_SECONDS, in_thread, json_body, pass_gate, short_text
from streaming.desk import Unknown
from streaming.guide import described
from streaming.security import TooLarge
from streaming.settings import MIB
from streaming.takes import Take, Takes
from streaming.web_files import static_file

logger = logging.getLogger(__name__)

TAKES = web.AppKey("takes", Takes)
PICTURE_SIDE = 640
"""px, longest side of the pictures that are looked at; larger ones are shrunk."""
PICTURE_PIXELS = 4_000_000
PICTURE_WAIT = 0.2
"""s a picture waits while another is looked at or a piece is written; then it is passed over."""
WIDTHS = (160, 8192)
"""px of a recorded picture that make sense."""
SWEEP_SECONDS = 5.0
"""s between two looks for recordings that were given up."""


def add_takes(app: web.Application) -> None:
    """Keep recordings for the time that the application runs, beside its personas."""
    settings = app[SETTINGS]
    home = (settings.persona_dir or personas_folder()).parent / "recordings"
    takes = app[TAKES] = Takes(home, settings.limits, face=lambda: app[DESK].studio.make_face())

    async def life(app: web.Application) -> object:
        sweeper = asyncio.create_task(_sweep(takes, settings.limits.take_idle_seconds))
        yield
        sweeper.cancel()
        await asyncio.get_running_loop().run_in_executor(None, takes.close)

    app.cleanup_ctx.append(life)  # type: ignore[arg-type]


async def _sweep(takes: Takes, idle: float) -> None:
    while True:
        await asyncio.sleep(min(SWEEP_SECONDS, idle))
        if len(takes):
            try:
                await asyncio.get_running_loop().run_in_executor(None, takes.drop_stale, idle)
            except Exception:  # one recording that cannot be cleared away must not keep all later ones
                logger.exception("A recording that was left could not be discarded; it is tried again.")


# -- reading requests -----------------------------------------------------------------------------------------------------


def _take(request: web.Request) -> Take:
    take = request.app[TAKES].get(request.match_info["take"])
    if take is None:
        raise Unknown("That recording is not open any more, and nothing of it was kept; record it again.")
    return take


async def read_body(request: web.Request, *, most: int) -> bytes:
    """The request's body. Raises TooLarge, AvatarError."""
    data = bytearray()
    try:
        async with asyncio.timeout(UPLOAD_SECONDS):
            async for chunk in request.content.iter_chunked(CHUNK):
                data += chunk
                if len(data) > most:
                    raise TooLarge(f"That is too large: {most / MIB:.1f} MB is the limit.")
    except TimeoutError:
        raise AvatarError("That took too long to arrive; try a faster connection.") from None
    except ClientError as error:
        raise AvatarError("It did not arrive whole; send it again.") from error
    return bytes(data)


def whole_number(value: Any, name: str, *, most: int) -> int:
    """A count from JSON or from an address. Raises AvatarError."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise AvatarError(f"'{name}' must be a whole number from 0 to {most}.")
    return value


# -- routes ---------------------------------------------------------------------------------------------------------------


async def take(request: web.Request) -> web.Response:
    """Begin a recording."""
    pass_gate(request, "upload")
    body, takes = await json_body(request), request.app[TAKES]
    limits = request.app[SETTINGS].limits
    name, consent, kind = (short_text(body, field) or "" for field in ("name", "consent", "type"))
    width = whole_number(body.get("width"), "width", most=WIDTHS[1])
    if width < WIDTHS[0]:
        raise AvatarError(f"The camera's picture is only {width} pixels wide; choose a better one.")
    await request.app[DESK].studio.ready()
    made = await in_thread(request, lambda: takes.start(name, consent, kind=kind, width=width, sound=body.get("sound") is not False))
    answer = {"id": made.id, "name": made.name, "most_seconds": limits.take_seconds}
    return web.json_response({**answer, **made.guide.told()})


async def take_picture(request: web.Request) -> web.Response:
    """Look at the person."""
    made = _take(request)
    try:
        loud = float(request.query.get("loud", "0"))
    except ValueError:
        loud = math.nan
    if not 0.0 <= loud <= 1.0:
        raise AvatarError("'loud' must be a number from 0 to 1.")
    now = time.monotonic()
    data = await read_body(request, most=request.app[SETTINGS].limits.request_bytes)
    return web.json_response(await in_thread(request, partial(_look, made, data, now, loud)))


def _look(made: Take, data: bytes, now: float, loud: float) -> dict[str, Any]:
    rgb = decode_picture(data, limits=PictureLimits(max_pixels=PICTURE_PIXELS, longest_side=PICTURE_SIDE))
    if made.lock.acquire(timeout=PICTURE_WAIT):  # one at a time; whoever sends more holds up no thread for long
        try:
            if not made.part.closed:
                made.guide.see(made.observer(rgb, time=now, loud=loud, width=made.width))
        finally:
            made.lock.release()
    return made.guide.told()


async def take_piece(request: web.Request) -> web.Response:
    """Keep a piece."""
    made, limits = _take(request), request.app[SETTINGS].limits
    number = whole_number(request.query.get("number"), "number", most=100_000)
    data = await read_body(request, most=limits.piece_bytes)
    await in_thread(request, partial(request.app[TAKES].append, made, number, data))
    return web.json_response({"pieces": made.pieces, "bytes": made.bytes})


async def take_finish(request: web.Request) -> web.Response:
    """Make a file of it."""
    made, body = _take(request), await json_body(request)
    pieces, size = (whole_number(body.get(name), name, most=2**40) for name in ("pieces", "bytes"))
    saved = await in_thread(request, partial(request.app[TAKES].finish, made, pieces=pieces, size=size))
    agreed = saved["consent"]["statement"]  # without it training keeps no persona
    command = shlex.join(["avatar", "train", "--video", saved["folder"], "--out", made.name, "--consent", agreed])
    told = {key: saved[key] for key in ("path", "video", "seconds", "seconds_of_use", "pictures", "dropped", "size", "sound", "missing")}
    return web.json_response({**told, "bytes": made.bytes, "command": command})


async def take_discard(request: web.Request) -> web.Response:
    """Give it up; 204 also where it has been given up already."""
    with contextlib.suppress(Unknown):
        made = _take(request)
        await in_thread(request, partial(request.app[TAKES].discard, made))
    return web.Response(status=204)


async def studio_tasks(request: web.Request) -> web.Response:
    """What a person will be asked to do."""
    return web.json_response(described())


async def studio_page(request: web.Request) -> web.StreamResponse:
    """The page that makes personas, of photos or of a minute of video."""
    return static_file("studio.html")


__all__ = [
    *("TAKES", "add_takes", "read_body", "studio_page", "studio_tasks", "take", "take_discard", "take_finish", "take_picture", "take_piece"),
    "whole_number",
]
