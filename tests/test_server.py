"""The HTTP side: every route, every refusal in one sentence, who may ask, and how the server starts and ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from engine.types import AvatarError
from streaming.desk import ice_server
from streaming.openapi import document
from streaming.routes import ROUTES
from streaming.server import make_app, serve
from streaming.settings import Limits, ServerSettings
from tests.caller import SETTINGS, Caller, ask, house, live, until

ROOT = Path(__file__).parent.parent


# -- the document ------------------------------------------------------------------------------------------------------------


def test_the_document_names_every_route_that_the_server_has() -> None:
    app = make_app(SETTINGS)
    served = {(route.method, route.resource.canonical) for route in app.router.routes() if route.resource is not None and route.method != "HEAD"}
    made = document(ROUTES, version="1")
    described = {(method.upper(), path) for path, operations in made["paths"].items() for method in operations}
    assert served == described
    for path in ("/offer", "/human", "/humanaudio", "/interrupt_talk", "/is_speaking", "/record", "/whep", "/healthz", "/stats", "/metrics"):
        assert path in made["paths"]
    names = [operation["operationId"] for operations in made["paths"].values() for operation in operations.values()]
    assert len(names) == len(set(names))


def test_looking_at_the_server() -> None:
    async def story() -> None:
        async with house(SETTINGS) as home:
            await home.studio.ready()
            status, _, health = await ask(home, "GET", "/healthz")
            assert (status, health["ok"], health["ready"], health["ai_generated"], health["ice_servers"]) == (200, True, True, True, [])
            status, _, described = await ask(home, "GET", "/openapi.json")
            assert described["openapi"].startswith("3.")
            caller = await home.call()
            await until(lambda: len(caller.frames) > 20)
            _, _, figures = await ask(home, "GET", "/stats")
            mine = figures["sessions"][caller.session[:8]]
            for stage in ("uplink", "wait", "track", "step", "compose", "handoff", "pace", "total"):
                assert set(mine["stages"][stage]) == {"p50", "p95", "p99"}
            assert mine["ladder"]["rung"] == 0
            assert mine["link"]["frames_sent"] > 0
            assert figures["server"]["sessions"] == 1
            status, headers, text = await ask(home, "GET", "/metrics")
            assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
            for wanted in (
                "avatar_sessions 1",
                "avatar_fps{",
                "avatar_stage_milliseconds{",
                "avatar_av_offset_milliseconds{",
                "avatar_passed_total{",
            ):
                assert wanted in text
            assert caller.session not in text, "an id opens the session; the metrics name half of it"
            status, headers, listed = await ask(home, "GET", "/personas")
            assert listed[0] == {"name": "demo", "preview": "/personas/demo/preview.jpg"}
            async with home.http.get(home.url + listed[0]["preview"]) as response:
                assert response.content_type == "image/jpeg"
                assert (await response.read())[:2] == b"\xff\xd8"
            for path in ("/", "/view?sessionid=x", "/static/client.js"):
                status, headers, text = await ask(home, "GET", path)
                assert status == 200
                assert "frame-ancestors" in headers["Content-Security-Policy"]

    live(story)


def test_nothing_that_a_client_names_is_a_path() -> None:
    async def story() -> None:
        async with house(SETTINGS) as home:
            for path in (
                "/static/..%2fserver.py",
                "/static/%2e%2e%2f%2e%2e%2fpyproject.toml",
                "/record/..%2f..%2fetc%2fpasswd",
                "/personas/..%2f..%2fx/preview.jpg",
                "/nothing",
            ):
                status, _, body = await ask(home, "GET", path)
                assert status == 404, path
                assert body["error"].endswith(".")

    live(story)


# -- refusals ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/offer", "not json", 400),
        ("/offer", [], 400),
        ("/offer", {}, 400),
        ("/offer", {"sdp": 7, "type": "offer"}, 400),
        ("/offer", {"sdp": "v=0\r\nnonsense", "type": "offer"}, 400),
        ("/offer", {"sdp": "v=0\r\n" + "m=video 9 RTP/AVP 96\r\n" * 9, "type": "offer"}, 400),
        ("/offer", {"sdp": "v=0\r\nm=" + "x" * 70_000, "type": "offer"}, 413),
        ("/offer", {"sdp": "v=0\r\nm=" + "x" * 300_000, "type": "offer"}, 413),
        ("/offer", {"sdp": "v=0\r\nm=video", "type": "offer", "drive": "rocket"}, 400),
        ("/offer", {"sdp": "v=0\r\nm=video", "type": "offer", "generator": "echo"}, 400),
        ("/offer", {"sdp": "v=0\r\nm=video", "type": "offer", "generator": "other"}, 400),
        ("/offer", {"sdp": "v=0\r\nm=video", "type": "offer", "persona": "../../etc"}, 400),
        ("/offer", {"sdp": "v=0\r\nm=video", "type": "offer", "persona": ["x"]}, 400),
        ("/offer", {"sdp": "v=0\r\nm=video", "type": "offer", "portrait_upload": "gone"}, 400),
        ("/human", {"sessionid": "nobody", "text": "hi"}, 404),
        ("/human", {"text": "hi"}, 404),
        ("/interrupt_talk", {"sessionid": 3}, 404),
        ("/is_speaking", {"sessionid": "nobody"}, 404),
        ("/record", {"sessionid": "nobody", "type": "start_record"}, 404),
    ],
)
def test_bad_requests_are_refused_in_one_sentence(path: str, body: Any, status: int) -> None:
    async def story() -> None:
        async with house(SETTINGS) as home:
            data = body if isinstance(body, str) else json.dumps(body)
            got, _, answer = await ask(home, "POST", path, data=data, headers={"Content-Type": "application/json"})
            assert got == status
            text = answer["error"] if path == "/offer" else answer["msg"]
            assert text.endswith(".")
            assert text.count(". ") == 0 or len(text) < 200
            assert path == "/offer" or answer["code"] == -1
            assert not home.studio.sessions

    live(story)


# -- who may ask ------------------------------------------------------------------------------------------------------------


def test_pages_of_other_addresses_and_borrowed_names_are_refused() -> None:
    settings = ServerSettings(max_sessions=1, workers=1, trackers=1, allowed_origins=("https://friend.example",))

    async def story() -> None:
        async with house(settings) as home:
            own = home.url.replace("127.0.0.1", "localhost")
            for headers, status in (
                ({"Origin": "https://evil.example"}, 403),
                ({"Origin": "null"}, 403),
                ({"Host": "evil.example"}, 403),
                ({"Origin": home.url}, 200),
                ({"Origin": own, "Host": own[7:]}, 200),
                ({"Origin": "https://friend.example"}, 200),
            ):
                got, answer, _ = await ask(home, "GET", "/stats", headers=headers)
                assert got == status, headers
            assert answer["Access-Control-Allow-Origin"] == "https://friend.example"
            got, answer, _ = await ask(
                home, "OPTIONS", "/offer", headers={"Origin": "https://friend.example", "Access-Control-Request-Method": "POST"}
            )
            assert got == 204
            assert "POST" in answer["Access-Control-Allow-Methods"]
            assert (await ask(home, "DELETE", "/offer"))[0] == 405

    live(story)


def test_a_token_is_asked_for_and_turn_secrets_are_only_for_who_has_it() -> None:
    settings = ServerSettings(host="0.0.0.0", token="secret", max_sessions=1, workers=1, trackers=1, ice_servers=("turn:me:pass@turn.example:3478",))

    async def story() -> None:
        async with house(settings) as home:
            for path in ("/", "/view", "/healthz", "/openapi.json", "/static/style.css"):
                assert (await ask(home, "GET", path))[0] == 200
            assert "ice_servers" not in (await ask(home, "GET", "/healthz"))[2]
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
                status, answer, body = await ask(home, "GET", "/stats", headers=headers)
                assert status == 401
                assert answer["WWW-Authenticate"] == "Bearer"
            right = {"Authorization": "Bearer secret"}
            assert (await ask(home, "GET", "/stats", headers=right))[0] == 200
            health = (await ask(home, "GET", "/healthz", headers=right))[2]
            assert health["ice_servers"] == [{"urls": "turn:turn.example:3478", "username": "me", "credential": "pass"}]
            assert (await ask(home, "POST", "/offer", json={}))[0] == 401

    live(story)
    assert ice_server("stun:a:1").urls == "stun:a:1"


def test_offers_from_one_address_are_counted() -> None:
    settings = ServerSettings(max_sessions=1, workers=1, trackers=1, limits=Limits(offers_per_minute=3))

    async def story() -> None:
        async with house(settings) as home:
            got = [(await ask(home, "POST", "/offer", json={}))[0] for _ in range(5)]
            assert got == [400, 400, 400, 429, 429]

    live(story)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"host": "0.0.0.0"}, "--token"),
        ({"host": "192.168.1.5"}, "--token"),
        ({"tls_cert": "a.pem"}, "--tls-key"),
        ({"tls_cert": "/no/a.pem", "tls_key": "/no/b.pem"}, "no file"),
        ({"max_sessions": 0}, "--max-sessions"),
        ({"port": 99_999}, "port"),
        ({"ice_servers": ("http://x",)}, "ICE"),
    ],
)
def test_unsafe_or_impossible_settings_do_not_start(options: dict[str, Any], word: str) -> None:
    with pytest.raises(AvatarError, match=word):
        make_app(ServerSettings(**options))
    assert ServerSettings(host="localhost").loopback
    assert ServerSettings(host="::1").loopback
    assert not ServerSettings(host="example.org").loopback


def test_a_port_in_use_is_told_in_a_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(AvatarError, match="choose another with --port"):
            serve(ServerSettings(port=taken.getsockname()[1]))


def test_the_server_ends_within_five_seconds_of_being_told() -> None:
    """A process of its own with fakes, a caller connected, SIGTERM."""
    code = (
        "import streaming.server as s; from streaming.settings import ServerSettings as S; from tests.fakes import fake_studio\n"
        "import sys; port = int(sys.argv[1]); settings = S(port=port, workers=1, trackers=1)\n"
        "s.Studio = lambda settings: fake_studio(settings); s.serve(settings)"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(port)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )

    async def story() -> None:

        url = f"http://127.0.0.1:{port}"
        async with aiohttp.ClientSession() as http:
            for _ in range(150):
                try:
                    async with http.get(url + "/healthz") as response:
                        assert response.status == 200
                        break
                except aiohttp.ClientError:
                    await asyncio.sleep(0.1)
            caller = await Caller(http, url).connect()
            await until(lambda: len(caller.frames) > 3)
            started = time.monotonic()
            process.send_signal(signal.SIGTERM)
            code = await asyncio.get_running_loop().run_in_executor(None, lambda: process.wait(10))
            assert time.monotonic() - started < 5.0
            assert code == 0
            assert caller.heard("bye")
            await caller.close()

    try:
        live(story)
        assert process.stdout is not None
        assert f"http://localhost:{port}" in process.stdout.read().decode()
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
