"""The HTTP side: `make_app` for tests and embedding, `serve` for the command line."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any, get_args

from aiohttp import web

from engine.types import AvatarError, Drive
from streaming.live import Live
from streaming.peer import Peer
from streaming.rtc import RtcSettings, close_all
from streaming.settings import ServerSettings
from streaming.studio import RETRY_AFTER, Full, Studio

WEB = Path(__file__).parent / "web"
STUDIO = web.AppKey("studio", Studio)
SETTINGS = web.AppKey("settings", ServerSettings)
PEERS = web.AppKey("peers", dict[str, Peer])


def _error(status: int, text: str, **headers: str) -> web.Response:
    return web.json_response({"error": text}, status=status, headers=headers)


@web.middleware
async def _sentences(request: web.Request, handler: Any) -> web.StreamResponse:
    """Every refusal is one sentence in JSON."""
    try:
        response: web.StreamResponse = await handler(request)
    except Full as error:
        return _error(503, str(error), **{"Retry-After": str(RETRY_AFTER)})
    except AvatarError as error:
        return _error(400, str(error))
    return response


async def offer(request: web.Request) -> web.Response:
    """POST /offer."""
    studio, peers = request.app[STUDIO], request.app[PEERS]
    try:
        body = await request.json()
    except ValueError:
        raise AvatarError("The request is not JSON.") from None
    if not isinstance(body, dict) or not isinstance(body.get("sdp"), str) or body.get("type") != "offer":
        raise AvatarError('An offer needs \'sdp\' and "type": "offer".')
    if len(body["sdp"]) > request.app[SETTINGS].limits.sdp_bytes:
        return _error(413, "The offer is too long.")
    drive: Drive = body.get("drive", "camera")
    if drive not in get_args(Drive):
        raise AvatarError("'drive' is one of: camera, voice, auto.")
    echo = body.get("generator") == "echo"
    if echo and not request.app[SETTINGS].allow_echo:
        raise AvatarError("This server gives nobody their own picture back; start it with --allow-echo.")
    await studio.ready()
    live = await studio.open(await studio.persona(body.get("persona")), drive=drive, echo=echo)

    async def gone(peer: Peer, ended: bool) -> None:
        peers.pop(live.id, None)
        await peer.close()
        await studio.end(live)

    peer = Peer(live, rtc=RtcSettings(), on_gone=gone)
    peers[live.id] = peer
    try:
        sdp = await peer.answer(body["sdp"])
    except BaseException:
        await gone(peer, True)
        raise
    return web.json_response({"sdp": sdp, "type": "answer", "sessionid": live.id, "resume": live.resume_token})


async def stats(request: web.Request) -> web.Response:
    """GET /stats."""
    studio = request.app[STUDIO]
    return web.json_response({"sessions": {live.id: live.snapshot() for live in studio.sessions.values()}})


async def healthz(request: web.Request) -> web.Response:
    """GET /healthz."""
    return web.json_response({"ok": True})


async def index(request: web.Request) -> web.FileResponse:
    """GET /."""
    return web.FileResponse(WEB / "index.html")


def make_app(settings: ServerSettings | None = None, *, studio: Studio | None = None) -> web.Application:
    """The application; the studio is made on start-up unless given."""
    settings = settings or ServerSettings()
    app = web.Application(middlewares=[_sentences], client_max_size=settings.limits.request_bytes)
    app[SETTINGS] = settings
    app[PEERS] = {}
    app.router.add_post("/offer", offer)
    app.router.add_get("/stats", stats)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/", index)
    if WEB.is_dir():
        app.router.add_static("/static", WEB)

    async def start(app: web.Application) -> None:
        app[STUDIO] = studio or Studio(settings)
        app[STUDIO].start()

    async def stop(app: web.Application) -> None:
        for peer in list(app[PEERS].values()):
            await peer.close("The server is shutting down.")
        await close_all()
        await app[STUDIO].close()

    app.on_startup.append(start)
    app.on_shutdown.append(stop)
    return app


def serve(settings: ServerSettings) -> None:
    """Serve until interrupted. Raises AvatarError where the server cannot start."""
    settings.check()
    asyncio.run(_serve(settings))


async def _serve(settings: ServerSettings) -> None:
    runner = web.AppRunner(make_app(settings))
    await runner.setup()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stop.set)
    try:
        try:
            await web.TCPSite(runner, settings.host, settings.port).start()
        except OSError as error:
            raise AvatarError(f"Port {settings.port} cannot be used ({error.strerror}): give another one with --port.") from error
        print(f"Open {settings.address}", file=sys.stderr, flush=True)
        await stop.wait()
    finally:
        await runner.cleanup()
