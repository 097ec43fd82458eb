"""The routes as one table, and the OpenAPI 3.1 document that is made from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
BOOL: Schema = {"type": "boolean"}


def one_of(*values: str) -> Schema:
    """A string out of a few."""
    return {"type": "string", "enum": list(values)}


def fields(required: Sequence[str] = (), **properties: Schema) -> Schema:
    """An object."""
    return {"type": "object", "properties": properties, "required": list(required)}


ERROR = fields(("error",), error={"type": "string", "description": "One sentence that says what to do."})


def envelope(data: Schema | None = None) -> Schema:
    """LiveTalking's {code, msg, data}; code 0 is success, -1 an error that msg explains."""
    return fields(("code", "msg"), code={"type": "integer", "enum": [0, -1]}, msg=TEXT, data=data or {"type": "null"})


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path."""

    method: str
    path: str
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    summary: str
    takes: Schema | None = None  # of the body
    takes_type: str = "application/json"
    gives: Schema | None = None  # of the answer
    gives_type: str = "application/json"
    status: int = 200
    refusals: Sequence[int] = ()
    query: Sequence[str] = field(default=())
    secret: bool = True  # needs the token where the server has one


REFUSALS = {
    400: "Something sent makes no sense.",
    404: "No such session, viewer or file.",
    413: "Too large.",
    429: "Too many requests; see Retry-After.",
    503: "Every place is taken; see Retry-After.",
}


def document(routes: Sequence[Route], *, version: str) -> dict[str, Any]:
    """The whole document."""
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Avatar engine",
            "version": version,
            "summary": "A portrait that follows a face and a voice, live over WebRTC. Everything it sends is AI-generated.",
        },
        "paths": paths,
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def _operation(route: Route) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": "Done."}
    if route.gives is not None:
        answer["content"] = {route.gives_type: {"schema": route.gives}}
    operation: dict[str, Any] = {"summary": route.summary, "operationId": route.handler.__name__, "responses": {str(route.status): answer}}
    operation["responses"] |= {
        str(status): {"description": REFUSALS[status], "content": {"application/json": {"schema": ERROR}}} for status in route.refusals
    }
    names = [part[1:-1] for part in route.path.split("/") if part.startswith("{")]
    parameters = [{"name": name, "in": "path", "required": True, "schema": TEXT} for name in names]
    parameters += [{"name": name, "in": "query", "required": True, "schema": TEXT} for name in route.query]
    if parameters:
        operation["parameters"] = parameters
    if route.takes is not None:
        operation["requestBody"] = {"required": True, "content": {route.takes_type: {"schema": route.takes}}}
    if route.secret:
        operation["security"] = [{"token": []}]
        operation["responses"]["401"] = {"description": "The token is missing or wrong."}
    return operation
