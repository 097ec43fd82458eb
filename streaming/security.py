"""Who may ask: token, Origin, Host; and how every refusal is worded. Middlewares of the application."""

from __future__ import annotations

import hmac
import logging
from collections import deque
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from engine.types import AvatarError
from streaming.desk import Unknown
from streaming.settings import ServerSettings
from streaming.studio import RETRY_AFTER, Full

logger = logging.getLogger(__name__)

OPEN = {"/", "/view", "/studio", "/studio/tasks", "/healthz", "/openapi.json"}
"""Paths without secrets, served without a token; static files are too."""
ENVELOPED = {"/human", "/humanaudio", "/interrupt_talk", "/is_speaking", "/record"}
"""Paths that answer {code, msg, data}, as users of LiveTalking know them."""
LOOPBACK_NAMES = {"localhost", "127.0.0.1", "::1"}
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob: data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'self'"
    ),
}
CORS = {"Access-Control-Allow-Methods": "GET, POST, DELETE", "Access-Control-Allow-Headers": "Authorization, Content-Type"}
WORDS = {
    404: "There is nothing at that address; /openapi.json lists what there is.",
    405: "That address does not take this kind of request; /openapi.json lists what there is.",
    413: "The request is too large.",
}


class TooLarge(AvatarError):
    """Something sent is over its limit."""


class TooMany(AvatarError):
    """Requests come faster than allowed."""


@dataclass(slots=True)
class Gate:
    """Counts offers by address."""

    per_minute: int
    _times: dict[str, deque[float]] = field(default_factory=dict)

    def pass_(self, address: str, *, now: float) -> None:
        """Raise TooMany where an address has asked too often within a minute."""
        for other in [a for a, times in self._times.items() if now - times[-1] > 60.0]:
            del self._times[other]
        times = self._times.setdefault(address, deque())
        while times and now - times[0] > 60.0:
            times.popleft()
        if len(times) >= self.per_minute:
            raise TooMany("Too many connections from this address within a minute; wait a little.")
        times.append(now)


def refuse(request: web.Request, status: int, text: str, headers: dict[str, str] | None = None) -> web.Response:
    """One sentence, in the shape that the path's users expect."""
    enveloped = request.path in ENVELOPED
    body = {"code": -1, "msg": text, "data": None} if enveloped else {"error": text}
    return web.json_response(body, status=status, headers=headers)


@web.middleware
async def sentences(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors -> statuses and sentences."""
    try:
        return await handler(request)
    except (Full, TooMany) as error:
        return refuse(request, 503 if isinstance(error, Full) else 429, str(error), {"Retry-After": str(RETRY_AFTER)})
    except Unknown as error:
        return refuse(request, 404, str(error))
    except TooLarge as error:
        return refuse(request, 413, str(error))
    except AvatarError as error:
        return refuse(request, 400, str(error))
    except web.HTTPException as error:
        if error.status < 400:
            raise
        kept = {name: error.headers[name] for name in ("Allow",) if name in error.headers}
        return refuse(request, error.status, WORDS.get(error.status, error.reason), kept)
    except ConnectionError:
        raise  # whoever asked has gone
    except Exception:
        logger.exception("%s %s failed", request.method, request.path)
        return refuse(request, 500, "Something went wrong in the server; its log says what.")


def guard(settings: ServerSettings) -> Middleware:
    """The middleware that lets in only whom the settings allow."""

    names = LOOPBACK_NAMES | {settings.host} | {host_of(origin) for origin in settings.allowed_origins}

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        # A page of another site may point its own name at 127.0.0.1 (DNS rebinding); the name gives it away.
        if settings.loopback and host_of(f"//{request.host}") not in names:
            return refuse(request, 403, f"This server answers on this machine only; open {settings.address}.")
        origin = request.headers.get("Origin")
        foreign = origin is not None and origin.partition("://")[2] != request.host
        if foreign and origin not in settings.allowed_origins:
            return refuse(request, 403, "Pages of other addresses may not use this server; open its own page.")
        if foreign and request.method == "OPTIONS":
            return web.Response(status=204, headers={**CORS, "Access-Control-Allow-Origin": origin or ""})
        if request.path in OPEN or request.path.startswith("/static/") or authorised(request, settings):
            response = await handler(request)
        else:
            response = refuse(request, 401, "This server asks for an access token.", {"WWW-Authenticate": "Bearer"})
        if not response.prepared:
            response.headers.update(HEADERS)
            if foreign and origin is not None:
                response.headers.update({"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": "Location, Retry-After"})
                response.headers["Cross-Origin-Resource-Policy"] = "cross-origin"
        return response

    return check


def host_of(url: str) -> str:
    """The host in an address, "" where there is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def authorised(request: web.Request, settings: ServerSettings) -> bool:
    """Whether the request carries the token, if there is one."""
    if not settings.token:
        return True
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode("utf-8", "surrogatepass"), settings.token.encode())
