"""The HTTP API: one function a route; `routes.py` has the table."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast, get_args

from aiohttp import BodyPartReader, ClientError, web
from aiohttp.http_exceptions import HttpProcessingError

from engine.types import AvatarError, Drive
from streaming.channel import checked_text
from streaming.desk import Desk, Offer, Unknown
from streaming.live import Live
from streaming.peer import Peer
from streaming.security import Gate, TooLarge, authorised
from streaming.settings import ServerSettings
from streaming.soundfile import decode_sound
from streaming.stats import prometheus
from streaming.uploads import decode_upload
from streaming.web_files import static_file

DESK = web.AppKey("desk", Desk)
GATES = web.AppKey("gates", dict[str, Gate])
SETTINGS = web.AppKey("settings", ServerSettings)
PEERS = web.AppKey("peers", dict[str, Peer])
VERSION = "0.1.0"
UPLOAD_SECONDS = 60.0
"""s an upload may take."""
FIELD_BYTES = 4096
"""Bytes of a form's text field."""
CHUNK = 1 << 16
T = TypeVar("T")


# -- reading requests ----------------------------------------------------------------------------------------------------


async def json_body(request: web.Request) -> dict[str, Any]:
    """The request's JSON object. Raises AvatarError."""
    try:
        body = await request.json()
    except (ValueError, RecursionError, LookupError):  # LookupError: a charset that nobody knows
        raise AvatarError("The request is not JSON.") from None
    if not isinstance(body, dict):
        raise AvatarError("The request must be a JSON object.")
    return body


def short_text(body: dict[str, Any], name: str) -> str | None:
    """A field that is a text of at most FIELD_BYTES characters; None where it is missing or empty. Raises AvatarError."""
    value = body.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > FIELD_BYTES:
        raise AvatarError(f"'{name}' must be a short text.")
    return value


async def _form(request: web.Request, *, most: int) -> tuple[dict[str, str], bytes]:
    """A multipart form -> its text fields and its one file. Raises TooLarge, AvatarError."""
    if not request.content_type.startswith("multipart/"):
        raise AvatarError("Send the file as a form (multipart/form-data).")
    texts: dict[str, str] = {}
    data: bytes | None = None
    try:
        async with asyncio.timeout(UPLOAD_SECONDS):
            async for part in await request.multipart():
                if not isinstance(part, BodyPartReader) or part.name is None:
                    raise AvatarError("The form is nested or unnamed; send plain fields.")
                if part.filename is None and part.name in ("sessionid", "kind", "consent"):
                    texts[part.name] = (await _part(part, FIELD_BYTES)).decode("utf-8", "replace")
                elif data is None:
                    data = await _part(part, most)
                else:
                    raise AvatarError("The form holds two files; send one.")
    except TimeoutError:
        raise AvatarError("The upload took too long; try a smaller file.") from None
    except (ValueError, LookupError, RuntimeError, HttpProcessingError, ClientError) as error:
        raise AvatarError("The form cannot be read; send it again.") from error
    if data is None:
        raise AvatarError("The form holds no file.")
    return texts, data


async def _part(part: BodyPartReader, most: int) -> bytes:
    data = bytearray()
    while chunk := await part.read_chunk(CHUNK):
        data += chunk
        if len(data) > most:
            raise TooLarge(f"That is too large: {most // 1024} KB is the limit.")
    return bytes(data)


def pass_gate(request: web.Request, name: str) -> None:
    """Raise TooMany where an address asks for the same thing too often."""
    request.app[GATES][name].pass_(request.remote or "", now=time.monotonic())


async def in_thread(request: web.Request, work: Callable[[], T]) -> T:
    """What would hold up the event loop."""
    return await asyncio.get_running_loop().run_in_executor(request.app[DESK].studio.executor, work)


def _ok(data: Any = None) -> web.Response:
    return web.json_response({"code": 0, "msg": "ok", "data": data})


# -- sessions ------------------------------------------------------------------------------------------------------------


async def offer(request: web.Request) -> web.Response:
    """Connect a person."""
    pass_gate(request, "offer")
    body = await json_body(request)
    sdp, drive = body.get("sdp"), cast(Drive, body.get("drive") or "camera")
    if not isinstance(sdp, str) or body.get("type") != "offer":
        raise AvatarError('An offer needs \'sdp\' and "type": "offer".')
    _check_sdp(sdp, request.app[SETTINGS])
    if drive not in get_args(Drive):
        raise AvatarError("'drive' is one of: camera, voice, auto.")
    names = ("persona", "portrait_upload", "generator", "resume")
    answer, live = await request.app[DESK].offer(Offer(sdp, caller=request.remote, drive=drive, **{name: short_text(body, name) for name in names}))
    return web.json_response({"sdp": answer, "type": "answer", "sessionid": live.id, "resume": live.resume_token})


def _check_sdp(sdp: str, settings: ServerSettings) -> None:
    limits = settings.limits
    if len(sdp) > limits.sdp_bytes:
        raise TooLarge("The offer is too long.")
    lines = sdp.splitlines()
    if not lines or not lines[0].startswith("v=0") or not any(line.startswith("m=") for line in lines):
        raise AvatarError("The offer is not a session description that this server understands; reload the page.")
    if sum(line.startswith("m=") for line in lines) > limits.media_lines:
        raise AvatarError(f"The offer has too many media lines; {limits.media_lines} is the limit.")


async def hang_up(request: web.Request) -> web.Response:
    """End a session; 204 also where it has ended already, since the connection's own goodbye may have been faster."""
    desk = request.app[DESK]
    with contextlib.suppress(Unknown):
        await desk.end(desk.live(request.match_info["sessionid"]))
    return web.Response(status=204)


async def whep(request: web.Request) -> web.Response:
    """Watch a session."""
    live = request.app[DESK].watched(request.query.get("sessionid"))
    pass_gate(request, "watch")
    if request.content_type != "application/sdp":
        raise AvatarError("WHEP takes an offer as application/sdp.")
    sdp = (await request.read()).decode("utf-8", "replace")
    _check_sdp(sdp, request.app[SETTINGS])
    viewer, answer = await request.app[DESK].watch(live, sdp, caller=request.remote)
    return web.Response(status=201, text=answer, content_type="application/sdp", headers={"Location": f"/whep/{viewer}", "X-AI-Generated": "true"})


async def whep_end(request: web.Request) -> web.Response:
    """Stop watching."""
    await request.app[DESK].unwatch(request.match_info["viewer"])
    return web.Response(status=204)


# -- speaking (LiveTalking's names and envelope) ---------------------------------------------------------------------------


def _live(request: web.Request, body: dict[str, Any]) -> Live:
    return request.app[DESK].live(body.get("sessionid"))


async def human(request: web.Request) -> web.Response:
    """Speak a text, or the chat service's answer to it."""
    body = await json_body(request)
    live = _live(request, body)
    kind = body.get("type", "echo")
    if kind not in ("echo", "chat"):
        raise AvatarError("'type' is one of: echo, chat.")
    text = checked_text(body.get("text"), request.app[SETTINGS].limits.text_chars)
    if kind == "chat":
        live.speaker.chat.check()
    if body.get("interrupt") is True:
        live.interrupt()
    (live.speaker.answer if kind == "chat" else live.speaker.say)(text)
    return _ok()


async def humanaudio(request: web.Request) -> web.Response:
    """Speak a sound file."""
    pass_gate(request, "upload")
    limits = request.app[SETTINGS].limits
    texts, data = await _form(request, most=limits.audio_bytes)
    live = _live(request, dict(texts))
    pcm = await in_thread(request, lambda: decode_sound(data, most_seconds=limits.audio_seconds))
    live.speaker.play(pcm)
    return _ok()


async def interrupt_talk(request: web.Request) -> web.Response:
    """Stop speaking."""
    _live(request, await json_body(request)).interrupt()
    return _ok()


async def is_speaking(request: web.Request) -> web.Response:
    """Whether the avatar says something."""
    return _ok(_live(request, await json_body(request)).speaking)


async def record(request: web.Request) -> web.Response:
    """Begin or end a recording."""
    body = await json_body(request)
    desk, live = request.app[DESK], _live(request, body)
    if body.get("type") == "start_record":
        desk.recordings.start(live)
        return _ok()
    if body.get("type") != "end_record":
        raise AvatarError("'type' is one of: start_record, end_record.")
    if await desk.recordings.finish(live) is None:
        raise AvatarError("This session is not being recorded.")
    live.on_event({"type": "recorded", "url": f"/record/{live.id}"})
    return _ok({"url": f"/record/{live.id}"})


async def recorded(request: web.Request) -> web.StreamResponse:
    """Fetch a recording."""
    session = request.match_info["sessionid"]
    try:
        path = request.app[DESK].recordings.file(session)
    except AvatarError as error:
        raise Unknown(str(error)) from None
    return web.FileResponse(path, headers={"Content-Disposition": f'attachment; filename="avatar-{session[:8]}.mp4"', "Cache-Control": "no-store"})


# -- portraits -------------------------------------------------------------------------------------------------------------


async def upload(request: web.Request) -> web.Response:
    """Send a portrait or a background."""
    pass_gate(request, "upload")
    desk, limits = request.app[DESK], request.app[SETTINGS].limits
    texts, data = await _form(request, most=limits.upload_bytes)
    await desk.studio.ready()
    generator = desk.studio.generator
    kind, consent = texts.get("kind", "portrait"), texts.get("consent")
    made = await in_thread(request, lambda: decode_upload(data, kind=kind, consent=consent, generator=generator, limits=limits))
    return web.json_response({"id": desk.uploads.keep(made), "width": made.rgb.shape[1], "height": made.rgb.shape[0]})


async def personas(request: web.Request) -> web.Response:
    """The portraits there are, the default one first."""
    studio = request.app[DESK].studio
    await studio.ready()
    return web.json_response([{"name": name, "preview": f"/personas/{name}/preview.jpg"} for name in await studio.persona_names()])


async def preview(request: web.Request) -> web.Response:
    """A portrait's picture."""
    studio, name = request.app[DESK].studio, request.match_info["name"]
    if name not in await studio.persona_names():
        raise Unknown(f"There is no persona called '{name}'; GET /personas lists the ones there are.")
    return web.Response(body=await studio.preview(name), content_type="image/jpeg", headers={"Cache-Control": "max-age=60"})


# -- looking at the server -----------------------------------------------------------------------------------------------


async def healthz(request: web.Request) -> web.Response:
    """Whether the server is there, and what a page must know before it connects."""
    desk, settings = request.app[DESK], request.app[SETTINGS]
    answer: dict[str, Any] = {"ok": True, "ready": desk.studio.loaded, "ai_generated": True, "generator": settings.generator, "version": VERSION}
    if authorised(request, settings):  # TURN credentials are nobody else's business
        answer["ice_servers"] = [
            {"urls": server.urls, **({"username": server.username, "credential": server.credential} if server.username else {})}
            for server in desk.rtc.ice_servers
        ]
    return web.json_response(answer)


def _sessions(desk: Desk) -> dict[str, Any]:
    """What every session says of itself, by the first half of its id: the whole one would open it to whoever reads the figures."""
    return {live.id[:8]: live.snapshot() for live in desk.studio.sessions.values()}


async def stats(request: web.Request) -> web.Response:
    """Everything measured, as JSON."""
    desk = request.app[DESK]
    return web.json_response({"server": desk.snapshot(), "sessions": _sessions(desk)})


async def metrics(request: web.Request) -> web.Response:
    """The same for Prometheus."""
    desk = request.app[DESK]
    server = {name: value for name, value in desk.snapshot().items() if isinstance(value, (int, float))}
    return web.Response(text=prometheus(server, _sessions(desk)), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


async def index(request: web.Request) -> web.StreamResponse:
    """The page."""
    return static_file("index.html")


async def view(request: web.Request) -> web.StreamResponse:
    """The picture alone, for a browser source; ?sessionid= names the session."""
    return static_file("view.html")


async def static(request: web.Request) -> web.StreamResponse:
    """Files of the pages."""
    return static_file(request.match_info["file"])
