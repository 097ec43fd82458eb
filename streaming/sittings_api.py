"""The HTTP side of making a persona of photos: one function a route."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from aiohttp import web

from engine.installed import Installed, installed
from engine.types import AvatarError
from streaming.api import SETTINGS, in_thread, json_body, pass_gate, short_text
from streaming.desk import Unknown
from streaming.sitting import Sitting
from streaming.sittings import MOST_CANDIDATES, Sittings
from streaming.takes_api import SWEEP_SECONDS, read_body, whole_number

logger = logging.getLogger(__name__)

SITTINGS = web.AppKey("sittings", Sittings)


def add_sittings(app: web.Application) -> None:
    """Keep sittings for the time that the application runs, beside its personas."""
    settings = app[SETTINGS]
    sittings = app[SITTINGS] = Sittings(settings.persona_dir, settings.limits)

    async def life(app: web.Application) -> object:
        await sittings.clear()
        sweeper = asyncio.create_task(_sweep(sittings, settings.limits.sitting_idle_seconds))
        yield
        sweeper.cancel()
        await sittings.close()

    app.cleanup_ctx.append(life)  # type: ignore[arg-type]


async def _sweep(sittings: Sittings, idle: float) -> None:
    while True:
        await asyncio.sleep(min(SWEEP_SECONDS, idle))
        try:
            await sittings.drop_stale(idle)
        except Exception:  # one that cannot be cleared away must not keep all later ones
            logger.exception("Photos that were left could not be deleted; it is tried again.")


def _sitting(request: web.Request) -> Sitting:
    return request.app[SITTINGS].get(request.match_info["sitting"])


def _usable() -> tuple[list[Installed], list[str]]:
    """The identity systems that portraits can be made with, and a sentence for each that is damaged."""
    damaged: list[str] = []
    return [system for system in installed(damaged=damaged.append) if system.base is not None], damaged


def _told(sitting: Sitting) -> web.Response:
    return web.json_response(sitting.told(), headers={"Cache-Control": "no-store"})


# -- routes ---------------------------------------------------------------------------------------------------------------


async def sitting(request: web.Request) -> web.Response:
    """Begin."""
    pass_gate(request, "upload")
    made = await request.app[SITTINGS].start()
    return web.json_response({"id": made.id})


async def sitting_systems(request: web.Request) -> web.Response:
    """What portraits can be made with."""
    systems, damaged = await in_thread(request, _usable)  # photos can be used as they are, and with the others, all the same
    listed = [{"name": s.name, "variant": s.variant, "together": s.together, "prompt": s.prompt, "base": s.base and s.base.name} for s in systems]
    limits = request.app[SETTINGS].limits
    more = {"most_photos": limits.photos, "most_bytes": limits.upload_bytes, "most_candidates": MOST_CANDIDATES}
    return web.json_response({"systems": listed, "trouble": " ".join(damaged), **more}, headers={"Cache-Control": "no-store"})


async def sitting_state(request: web.Request) -> web.Response:
    """All there is."""
    return _told(_sitting(request))


async def sitting_discard(request: web.Request) -> web.Response:
    """Start over; 204 also where it is gone already."""
    with contextlib.suppress(Unknown):
        await request.app[SITTINGS].discard(_sitting(request))
    return web.Response(status=204)


async def sitting_photo(request: web.Request) -> web.Response:
    """Keep a photo."""
    pass_gate(request, "upload")
    sittings, made = request.app[SITTINGS], _sitting(request)
    sittings.check_room(made)  # before it is read
    data = await read_body(request, most=request.app[SETTINGS].limits.upload_bytes)
    photo = await sittings.add(made, request.query.get("name", ""), data)
    return web.json_response({"key": photo.key})


async def sitting_photo_remove(request: web.Request) -> web.Response:
    """Take a photo away."""
    await request.app[SITTINGS].remove(_sitting(request), request.match_info["key"])
    return web.Response(status=204)


async def sitting_judge(request: web.Request) -> web.Response:
    """Look at the new photos."""
    made = _sitting(request)
    request.app[SITTINGS].judge(made)
    return _told(made)


async def sitting_make(request: web.Request) -> web.Response:
    """Make portraits."""
    made, body = _sitting(request), await json_body(request)
    system = short_text(body, "system") or ""
    known, _ = await in_thread(request, _usable)
    if system not in (one.name for one in known):
        raise AvatarError(f"No identity system called '{system[:40]}' is installed here; `avatar import {system[:40]} DIR --base DIR` adds one.")
    count = whole_number(body.get("candidates", 4), "candidates", most=MOST_CANDIDATES)
    consent, prompt = (short_text(body, name) or "" for name in ("consent", "prompt"))
    request.app[SITTINGS].make(made, consent=consent, system=system, prompt=prompt, count=count)
    return _told(made)


async def sitting_save(request: web.Request) -> web.Response:
    """Keep a persona."""
    made, body = _sitting(request), await json_body(request)
    pick: Any = body.get("pick")
    if pick is not None:
        pick = whole_number(pick, "pick", most=MOST_CANDIDATES)
    name, consent = (short_text(body, field) or "" for field in ("name", "consent"))
    request.app[SITTINGS].save(made, name=name.strip(), consent=consent, photo=short_text(body, "photo"), pick=pick)
    return _told(made)


async def sitting_cancel(request: web.Request) -> web.Response:
    """Stop the work."""
    made = _sitting(request)
    await request.app[SITTINGS].cancel(made)
    return _told(made)


async def sitting_picture(request: web.Request) -> web.StreamResponse:
    """A preview."""
    path, kind = request.app[SITTINGS].picture(_sitting(request), request.match_info["picture"])
    return web.FileResponse(path, headers={"Content-Type": kind, "Cache-Control": "no-store"})


__all__ = [
    *("SITTINGS", "add_sittings", "sitting", "sitting_cancel", "sitting_discard", "sitting_judge", "sitting_make"),
    *("sitting_photo", "sitting_photo_remove", "sitting_picture", "sitting_save", "sitting_state", "sitting_systems"),
]
