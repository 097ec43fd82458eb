"""Every route of the server: what is served, and what /openapi.json says about it."""

from __future__ import annotations

from typing import get_args

from aiohttp import web

from engine.types import Drive
from streaming import api, sittings_api, takes_api
from streaming.openapi import BOOL, TEXT, Route, document, envelope, fields, one_of


async def openapi(request: web.Request) -> web.Response:
    """This document."""
    return web.json_response(document(ROUTES, version=api.VERSION))


SESSION = fields(("sessionid",), sessionid=TEXT)
SDP_ANSWER = fields(
    ("sdp", "type", "sessionid"), sdp=TEXT, type=one_of("answer"), sessionid=TEXT, resume={**TEXT, "description": "Secret for coming back."}
)
TAKE_STATE = fields(("tasks", "missing", "seconds"), tasks={"type": "array"}, missing={"type": "array"}, warning=TEXT, advice=TEXT)
COUNT = {"type": "integer"}
SITTING = fields(
    ("id", "photos", "candidates", "job", "saved"), id=TEXT, photos={"type": "array"}, candidates={"type": "array"}, job=fields(), saved=fields()
)
FILE = {"type": "string", "contentMediaType": "application/octet-stream"}
ROUTES = (
    Route(
        "POST",
        "/offer",
        api.offer,
        "Connect camera and microphone, get the avatar back.",
        takes=fields(
            ("sdp", "type"),
            sdp=TEXT,
            type=one_of("offer"),
            persona=TEXT,
            portrait_upload={**TEXT, "description": "An id from /upload, instead of a persona."},
            drive=one_of(*get_args(Drive)),
            generator=TEXT,
            resume={**TEXT, "description": "The secret of a session that was lost."},
        ),
        gives=SDP_ANSWER,
        refusals=(400, 413, 429, 503),
    ),
    Route("DELETE", "/offer/{sessionid}", api.hang_up, "End a session and free its seat.", status=204),
    Route(
        "POST",
        "/human",
        api.human,
        "Speak a text (echo), or the answer to it (chat).",
        takes=fields(("sessionid", "text"), sessionid=TEXT, text=TEXT, type=one_of("echo", "chat"), interrupt=BOOL),
        gives=envelope(),
        refusals=(400, 404),
    ),
    Route(
        "POST",
        "/humanaudio",
        api.humanaudio,
        "Speak a sound file.",
        takes=fields(("sessionid", "file"), sessionid=TEXT, file=FILE),
        takes_type="multipart/form-data",
        gives=envelope(),
        refusals=(400, 404, 413),
    ),
    Route("POST", "/interrupt_talk", api.interrupt_talk, "Stop speaking at once.", takes=SESSION, gives=envelope(), refusals=(400, 404)),
    Route("POST", "/is_speaking", api.is_speaking, "Whether something is being said.", takes=SESSION, gives=envelope(BOOL), refusals=(400, 404)),
    Route(
        "POST",
        "/record",
        api.record,
        "Begin or end a recording.",
        takes=fields(("sessionid", "type"), sessionid=TEXT, type=one_of("start_record", "end_record")),
        gives=envelope(fields((), url=TEXT)),
        refusals=(400, 404),
    ),
    Route("GET", "/record/{sessionid}", api.recorded, "Fetch a finished recording.", gives=FILE, gives_type="video/mp4", refusals=(404,)),
    Route(
        "POST",
        "/upload",
        api.upload,
        "Send a portrait (with a statement of consent) or a background.",
        takes=fields(("picture",), picture=FILE, kind=one_of("portrait", "background"), consent=TEXT),
        takes_type="multipart/form-data",
        gives=fields(("id", "width", "height"), id=TEXT, width={"type": "integer"}, height={"type": "integer"}),
        refusals=(400, 413, 503),
    ),
    Route(
        "GET",
        "/personas",
        api.personas,
        "The portraits there are.",
        gives={"type": "array", "items": fields(("name", "preview"), name=TEXT, preview=TEXT)},
    ),
    Route("GET", "/personas/{name}/preview.jpg", api.preview, "A portrait's picture.", gives=FILE, gives_type="image/jpeg", refusals=(404,)),
    Route(
        "POST",
        "/whep",
        api.whep,
        "Watch a session (WHEP).",
        takes=TEXT,
        takes_type="application/sdp",
        gives=TEXT,
        gives_type="application/sdp",
        status=201,
        refusals=(400, 404, 413, 429, 503),
        query=("sessionid",),
    ),
    Route("DELETE", "/whep/{viewer}", api.whep_end, "Stop watching.", status=204, refusals=(404,)),
    Route(
        "POST",
        "/studio/takes",
        takes_api.take,
        "Begin to record a person to teach a generator from.",
        takes=fields(
            ("name", "consent", "type", "width"),
            name=TEXT,
            consent={**TEXT, "description": "Who agreed; kept beside the video."},
            type=one_of("video/webm", "video/mp4"),
            width={"type": "integer", "description": "px of the recorded picture."},
            sound=BOOL,
        ),
        gives=fields(("id", "name", "most_seconds"), id=TEXT, name=TEXT, most_seconds={"type": "number"}),
        refusals=(400, 429, 503),
    ),
    Route(
        "POST",
        "/studio/takes/{take}/picture",
        takes_api.take_picture,
        "A picture of now, small: what has been shown, what is missing, what is wrong.",
        takes=FILE,
        takes_type="image/jpeg",
        gives=TAKE_STATE,
        refusals=(400, 404, 413),
        query=("loud",),
    ),
    Route(
        "POST",
        "/studio/takes/{take}/piece",
        takes_api.take_piece,
        "The next piece of the video, counted from 0.",
        takes=FILE,
        takes_type="application/octet-stream",
        gives=fields(("pieces", "bytes"), pieces={"type": "integer"}, bytes={"type": "integer"}),
        refusals=(400, 404, 413),
        query=("number",),
    ),
    Route(
        "POST",
        "/studio/takes/{take}/finish",
        takes_api.take_finish,
        "Keep it as a whole file; says what to do with it.",
        takes=fields(("pieces", "bytes"), pieces={"type": "integer"}, bytes={"type": "integer"}),
        gives=fields(("path", "command", "missing"), path=TEXT, command=TEXT, missing={"type": "array"}),
        refusals=(400, 404),
    ),
    Route("DELETE", "/studio/takes/{take}", takes_api.take_discard, "Give it up; nothing of it is kept.", status=204),
    Route(
        "POST",
        "/studio/sittings",
        sittings_api.sitting,
        "Begin to make a persona of photos.",
        gives=fields(("id",), id=TEXT),
        refusals=(400, 429, 503),
    ),
    Route(
        "GET",
        "/studio/systems",
        sittings_api.sitting_systems,
        "Which identity systems portraits can be made with, and how many photos may be sent.",
        gives=fields(("systems", "most_photos"), systems={"type": "array"}, most_photos=COUNT),
    ),
    Route("GET", "/studio/sittings/{sitting}", sittings_api.sitting_state, "Photos, portraits and work so far.", gives=SITTING, refusals=(404,)),
    Route("DELETE", "/studio/sittings/{sitting}", sittings_api.sitting_discard, "Start over; nothing of it is kept.", status=204),
    Route(
        "POST",
        "/studio/sittings/{sitting}/photo",
        sittings_api.sitting_photo,
        "A photo of the person, as it is in its file.",
        takes=FILE,
        takes_type="application/octet-stream",
        gives=fields(("key",), key=TEXT),
        refusals=(400, 404, 413, 429),
        query=("name",),
    ),
    Route("DELETE", "/studio/sittings/{sitting}/photo/{key}", sittings_api.sitting_photo_remove, "Take a photo away.", status=204),
    Route("POST", "/studio/sittings/{sitting}/judge", sittings_api.sitting_judge, "Look at the new photos.", gives=SITTING, refusals=(400, 404, 503)),
    Route(
        "POST",
        "/studio/sittings/{sitting}/make",
        sittings_api.sitting_make,
        "Make portraits with an identity system; asked again, it goes on where it was.",
        takes=fields(("system", "consent"), system=TEXT, consent=TEXT, prompt=TEXT, candidates=COUNT),
        gives=SITTING,
        refusals=(400, 404, 503),
    ),
    Route(
        "POST",
        "/studio/sittings/{sitting}/save",
        sittings_api.sitting_save,
        "Keep a persona of a photo as it is, or of a portrait.",
        takes=fields(
            ("name", "consent"),
            name=TEXT,
            consent={**TEXT, "description": "Who agreed; kept with the persona."},
            photo={**TEXT, "description": "A photo's key ..."},
            pick={**COUNT, "description": "... or a portrait's seed."},
        ),
        gives=SITTING,
        refusals=(400, 404, 503),
    ),
    Route("POST", "/studio/sittings/{sitting}/cancel", sittings_api.sitting_cancel, "Stop the work; what was finished stays.", gives=SITTING),
    Route(
        "GET",
        "/studio/sittings/{sitting}/picture/{picture}",
        sittings_api.sitting_picture,
        "photo-KEY, portrait-KEY (what it would become) or candidate-SEED.",
        gives=FILE,
        gives_type="image/jpeg",
        refusals=(404,),
    ),
    Route("GET", "/healthz", api.healthz, "Whether the server is there.", gives=fields(("ok", "ready"), ok=BOOL, ready=BOOL), secret=False),
    Route("GET", "/stats", api.stats, "Everything measured.", gives=fields((), server=fields(), sessions=fields())),
    Route("GET", "/metrics", api.metrics, "Everything measured, for Prometheus.", gives=TEXT, gives_type="text/plain"),
    Route("GET", "/openapi.json", openapi, "This document.", gives=fields(), secret=False),
    Route("GET", "/", api.index, "The page.", gives=TEXT, gives_type="text/html", secret=False),
    Route("GET", "/studio", takes_api.studio_page, "The page that makes personas.", gives=TEXT, gives_type="text/html", secret=False),
    Route("GET", "/studio/tasks", takes_api.studio_tasks, "What that page asks for.", gives={"type": "array", "items": fields()}, secret=False),
    Route("GET", "/view", api.view, "The picture alone, for OBS.", gives=TEXT, gives_type="text/html", secret=False),
    Route(
        "GET", "/static/{file}", api.static, "Files of the pages.", gives=FILE, gives_type="application/octet-stream", refusals=(404,), secret=False
    ),
)
