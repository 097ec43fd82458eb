"""Offers from strangers: whatever is wrong with one is told in a sentence, and costs nobody a place."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from streaming.api import DESK
from streaming.rtc import clean_offer, make_peer_connection
from streaming.settings import Limits, ServerSettings
from tests.caller import LOCAL, SETTINGS, House, ask, house, live, until

PATIENT = ServerSettings(max_sessions=2, workers=1, trackers=1, limits=Limits(offers_per_minute=10_000, views_per_minute=10_000, viewers=2))


async def offer_of(*kinds: str, channel: bool = False) -> str:
    """A caller's offer that receives these kinds of media."""
    pc = make_peer_connection(LOCAL)
    for kind in kinds:
        pc.addTransceiver(kind, direction="recvonly")
    if channel:
        pc.createDataChannel("avatar")
    await pc.setLocalDescription(await pc.createOffer())
    sdp = pc.localDescription.sdp
    await pc.close()
    return sdp


async def send(home: House, sdp: str, *, watch: str = "", **more: Any) -> tuple[int, Any]:
    """An offer to /offer, or to /whep for the session `watch` -> (status, body)."""
    if watch:
        status, headers, body = await ask(home, "POST", f"/whep?sessionid={watch}", data=sdp, headers={"Content-Type": "application/sdp"})
        return status, headers.get("Location", body)
    status, _, body = await ask(home, "POST", "/offer", json={"sdp": sdp, "type": "offer", **more})
    return status, body


@pytest.mark.parametrize("change", ["missing", "doubled"])
def test_an_offer_with_a_line_missing_or_doubled_costs_nothing(change: str) -> None:
    async def story() -> None:
        async with house(PATIENT) as home:
            caller = await home.call()
            await until(lambda: caller.frames)
            lines = (await offer_of("video", "audio", channel=True)).splitlines()
            desk = home.app[DESK]
            for index in range(1, len(lines)):
                spoilt = lines[:index] + lines[index + 1 :] if change == "missing" else [*lines[: index + 1], *lines[index:]]
                sdp = "\r\n".join(spoilt) + "\r\n"
                status, body = await send(home, sdp)
                assert status in (200, 400), (lines[index], body)
                if status == 200:
                    await ask(home, "DELETE", f"/offer/{body['sessionid']}")
                else:
                    assert body["error"].endswith((".", "reload the page."))
                status, where = await send(home, sdp, watch=caller.session)
                assert status in (201, 400), (lines[index], where)
                if status == 201:
                    await ask(home, "DELETE", where)
                assert len(home.studio.sessions) == 1, lines[index]
                assert not any(broadcast.viewers for broadcast in desk.broadcasts.values()), lines[index]
            count = len(caller.frames)
            await until(lambda: len(caller.frames) > count + 5)

    live(story)


def test_the_server_ends_in_time_after_a_connection_that_was_only_half_made() -> None:
    async def story() -> None:
        async with house(PATIENT) as home:
            sdp = "\r\n".join(line for line in (await offer_of("video", "audio", channel=True)).splitlines() if line != "a=mid:0") + "\r\n"
            assert (await send(home, sdp))[0] == 400
            async with asyncio.timeout(4):
                await home.app[DESK].close()

    live(story)


@pytest.mark.parametrize(
    ("kinds", "status"),
    [(("video", "audio"), 200), (("video",), 200), (("audio",), 400), ((), 400)],
    ids=["both", "no sound", "no picture", "nothing"],
)
def test_an_offer_may_leave_the_sound_out(kinds: tuple[str, ...], status: int) -> None:
    async def story() -> None:
        async with house() as home:
            found, body = await send(home, await offer_of(*kinds, channel=True))
            assert found == status, body
            if status == 400:
                assert "add a video transceiver" in body["error"]
                assert not home.studio.sessions
            caller = await home.call(voice=None)
            await until(lambda: len(caller.frames) > 3)
            found, where = await send(home, await offer_of(*kinds), watch=caller.session) if kinds else (400, "")
            assert found == (201 if status == 200 else 400), where

    live(story)


def test_a_bad_offer_with_a_good_resume_token_leaves_the_session_to_its_person() -> None:
    async def story() -> None:
        async with house() as home:
            caller = await home.call()
            await until(lambda: len(caller.frames) > 3)
            status, body = await send(home, "v=0\r\nm=video 9\r\n", resume=caller.answer["resume"])
            assert status == 400
            assert body["error"].endswith(".")
            count = len(caller.frames)
            await until(lambda: len(caller.frames) > count + 10)

    live(story)


def test_a_session_that_is_ending_takes_no_viewers() -> None:
    async def story() -> None:
        async with house() as home:
            caller = await home.call()
            await until(lambda: len(caller.frames) > 3)
            sdp = await offer_of("video", "audio")
            desk = home.app[DESK]
            ending = asyncio.ensure_future(desk.end(desk.live(caller.session)))
            await asyncio.sleep(0)
            assert (await send(home, sdp, watch=caller.session))[0] == 404
            assert (await caller.post("/record", sessionid=caller.session, type="start_record"))[0] == 404
            await ending
            assert not desk.broadcasts

    live(story)


def test_a_view_id_opens_the_picture_and_nothing_else() -> None:
    async def story() -> None:
        async with house() as home:
            caller = await home.call()
            await until(lambda: caller.heard("hello") and len(caller.frames) > 3)
            view = caller.heard("hello")[0]["view"]
            assert (await send(home, await offer_of("video", "audio"), watch=view))[0] == 201
            assert (await caller.post("/human", sessionid=view, text="hello"))[0] == 404
            await ask(home, "DELETE", f"/offer/{view}")
            assert len(home.studio.sessions) == 1
            _, _, figures = await ask(home, "GET", "/stats")
            assert caller.session not in str(figures), "the figures open no session"

    live(story)


def test_a_persona_named_at_the_start_is_the_one_served() -> None:
    settings = ServerSettings(max_sessions=2, workers=1, trackers=1, persona="red")

    async def story() -> None:
        async with house(settings) as home:
            caller = await home.call()
            await until(lambda: caller.heard("hello"))
            assert caller.heard("hello")[0]["persona"] == "red"

    live(story)


def test_who_calls_from_the_internet_gets_no_packet_sent_into_the_house() -> None:
    lines = ["v=0", *(f"a=candidate:1 1 udp 2130706431 {address} 5000 typ host" for address in ("192.168.1.7", "127.0.0.1", "8.8.8.8", "fe80::1"))]
    sdp = "\r\n".join(lines) + "\r\n"
    assert clean_offer(sdp, caller="1.1.1.1").count("a=candidate") == 1
    assert clean_offer(sdp, caller="192.168.1.7").count("a=candidate") == 4
    assert clean_offer(sdp).count("a=candidate") == 4


def test_nonsense_in_headers_and_bodies_is_refused_in_words() -> None:
    async def story() -> None:
        async with house(SETTINGS) as home:
            for headers, status in (({"Host": "[::1"}, 403), ({"Origin": "http://["}, 403)):
                found, _, body = await ask(home, "GET", "/stats", headers=headers)
                assert found == status, (headers, body)
            found, _, body = await ask(home, "POST", "/offer", data="{}", headers={"Content-Type": "application/json; charset=nonsense"})
            assert (found, body["error"]) == (400, "The request is not JSON.")
            bad = '{"sdp": "v=0\\nm=video", "type": "offer", "resume": "\\ud800"}'
            assert (await ask(home, "POST", "/offer", data=bad, headers={"Content-Type": "application/json"}))[0] == 400
            for part in (b"nonsense\r\n\r\nx", b'Content-Disposition: form-data; name="picture"; filename="x"\r\nX: ' + b"a" * 20_000 + b"\r\n\r\nx"):
                data = b"--b\r\n" + part + b"\r\n--b--\r\n"
                found, _, body = await ask(home, "POST", "/upload", data=data, headers={"Content-Type": "multipart/form-data; boundary=b"})
                assert found == 400, body
                assert body["error"].endswith(".")

    live(story)


def test_a_token_that_is_no_text_is_a_wrong_token() -> None:
    async def story() -> None:
        async with house(ServerSettings(max_sessions=2, workers=1, trackers=1, token="secret")) as home:
            for path, status in (("/stats", 401), ("/healthz", 200)):
                assert (await ask(home, "GET", path, headers={"Authorization": "Bearer \udcff"}))[0] == status

    live(story)


def test_a_fault_of_the_server_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with house(SETTINGS) as home:
            monkeypatch.setattr(home.app[DESK], "snapshot", lambda: 1 / 0)
            status, _, body = await ask(home, "GET", "/stats")
            assert (status, body["error"]) == (500, "Something went wrong in the server; its log says what.")

    live(story)
