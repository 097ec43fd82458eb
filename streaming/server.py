"""`make_app`: the application, for tests and for embedding. `serve`: the command line's server."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import signal
import socket
import ssl
import sys
from dataclasses import replace

from aiohttp import web

from engine.types import AvatarError, Generator
from streaming.api import DESK, GATES, PEERS, SETTINGS
from streaming.desk import Desk
from streaming.routes import ROUTES
from streaming.security import Gate, guard, sentences
from streaming.settings import ServerSettings
from streaming.sittings_api import add_sittings
from streaming.studio import Studio
from streaming.takes_api import add_takes
from streaming.virtual_camera import check_virtual_camera

M_ARENA_MAX = -8
"""glibc's mallopt parameter, malloc.h."""
ARENAS = 2
SWITCH_SECONDS = 0.001
"""s a computing thread may keep the interpreter from the event loop; Python's own 5 ms show in the frames' rhythm."""
SHUTDOWN_SECONDS = 4.0
"""s a shutdown may take; then the process ends all the same."""


def make_app(settings: ServerSettings | None = None, *, studio: Studio | None = None) -> web.Application:
    """The application. The studio is made and begins to load when the application starts, unless one is given.

    Raises AvatarError where the settings are unsafe or impossible.
    """
    settings = settings or ServerSettings()
    settings.check()
    if settings.virtual_camera:
        check_virtual_camera()
    app = web.Application(middlewares=[guard(settings), sentences], client_max_size=settings.limits.request_bytes)
    app[SETTINGS] = settings
    limits = settings.limits
    app[GATES] = {"offer": Gate(limits.offers_per_minute), "watch": Gate(limits.views_per_minute), "upload": Gate(limits.uploads_per_minute)}
    app[PEERS] = {}
    for route in ROUTES:
        app.router.add_route(route.method, route.path, route.handler)

    async def life(app: web.Application) -> object:
        desk = app[DESK] = Desk(settings, studio or Studio(settings), peers=app[PEERS])
        desk.studio.start()
        yield
        await desk.close()

    app.cleanup_ctx.append(life)  # type: ignore[arg-type]
    add_takes(app)
    add_sittings(app)
    return app


def serve(settings: ServerSettings) -> None:
    """Serve until interrupted. Raises AvatarError where the server cannot start.

    Secrets that are not in the settings are taken from AVATAR_TOKEN, AVATAR_TTS_KEY and AVATAR_CHAT_KEY, so that they need not
    stand in a command line.
    """
    settings = replace(
        settings,
        token=settings.token or os.environ.get("AVATAR_TOKEN"),
        tts_key=settings.tts_key or os.environ.get("AVATAR_TTS_KEY"),
        chat_key=settings.chat_key or os.environ.get("AVATAR_CHAT_KEY"),
    )
    settings.check()
    _few_arenas()
    asyncio.run(_serve(settings))


def _few_arenas() -> None:
    """Let all threads share two heaps. glibc gives each its own and keeps what was freed there: 110 MB for our 30 threads (measured)."""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(M_ARENA_MAX, ARENAS)


async def _serve(settings: ServerSettings) -> None:
    tls = _tls(settings)
    _probe(settings)  # before the long loading, so that a taken port is told at once
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stop.set)
    app = make_app(settings)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    print("Loading the avatar ...", file=sys.stderr, flush=True)
    await runner.setup()
    try:
        ready = asyncio.ensure_future(app[DESK].studio.ready())
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait((ready, stopped), return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            ready.result()
            gc.collect()
            gc.freeze()  # what was loaded stays: the collector need not walk it while people stream
            sys.setswitchinterval(SWITCH_SECONDS)
            try:
                await web.TCPSite(runner, settings.host, settings.port, ssl_context=tls).start()
            except OSError as error:
                raise _port_error(settings, error) from error
            hint = "/#token=... with the token in place of the dots" if settings.token else ""
            print(f"Open {settings.address}{hint} in a browser; Ctrl+C ends the server.", flush=True)
            for line in _told(app[DESK].studio.generator):
                print(f"avatar: {line}", file=sys.stderr, flush=True)
            await stopped
        ready.cancel()
    finally:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SHUTDOWN_SECONDS):
                await runner.cleanup()


def _told(generator: Generator) -> list[str]:
    """What whoever starts the server must know of its generator."""
    lines = [generator.spec.notice] if generator.spec.notice else []
    if loras := getattr(generator, "adapters", ()):
        lines.append(f"LoRA fused into the weights: {', '.join(loras)}.")
    return lines


def _probe(settings: ServerSettings) -> None:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        with socket.socket(family) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((settings.host, settings.port))
    except OSError as error:
        raise _port_error(settings, error) from error


def _port_error(settings: ServerSettings, error: OSError) -> AvatarError:
    return AvatarError(
        f"Port {settings.port} on {settings.host} cannot be used ({(error.strerror or str(error)).lower()}): choose another with --port."
    )


def _tls(settings: ServerSettings) -> ssl.SSLContext | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise AvatarError("The TLS certificate and key do not fit together or are not PEM files: check --tls-cert and --tls-key.") from error
    return context
