"""What people send and fetch over HTTP: pictures, texts, sound, recordings, and a place to watch."""

from __future__ import annotations

import asyncio
import io
import json
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import av
import numpy as np
import pytest
from aiohttp import web
from aiortc import RTCSessionDescription

from engine.types import AvatarError
from streaming.api import DESK
from streaming.server import make_app
from streaming.settings import Limits, ServerSettings
from streaming.soundfile import decode_sound
from tests.caller import LOCAL, SETTINGS, House, ask, form, house, live, until, vanish
from tests.fakes import FakeSpeech, fake_studio


def picture(side: int = 200) -> bytes:
    """A PNG."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), 90, np.uint8)).save(out, "PNG")
    return out.getvalue()


def sound(*, rate: int = 8000, channels: int = 2, seconds: float = 0.5, level: float = 0.5) -> bytes:
    """A WAV file with a tone."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        tone = level * 32000 * np.sin(2 * np.pi * 220 * np.arange(int(rate * seconds)) / rate)
        file.writeframes(np.repeat(tone.astype(np.int16), channels).tobytes())
    return out.getvalue()


def test_uploads_are_judged_and_kept_under_ids_of_our_own() -> None:
    limits = Limits(upload_bytes=200_000, uploads=2)
    settings = ServerSettings(max_sessions=1, workers=1, trackers=1, limits=limits)

    async def story() -> None:
        async with house(settings) as home:
            status, _, body = await ask(home, "POST", "/upload", data=form(picture(), kind="background"))
            assert (status, body["width"], body["height"]) == (200, 200, 200)
            first = body["id"]
            assert "evil" not in first
            refusals = [
                (form(picture(), kind="portrait"), "consent"),
                (form(picture(), kind="portrait", consent="I agree."), "face"),
                (form(b"", kind="background"), "empty"),
                (form(b"just text", kind="background"), "picture"),
                (form(picture()[:300], kind="background"), ""),
                (form(picture(), kind="spaceship"), "kind"),
                (form(None, kind="background"), "file"),
            ]
            for data, word in refusals:
                status, _, body = await ask(home, "POST", "/upload", data=data)
                assert status == 400, body
                assert word in body["error"]
            status, _, body = await ask(home, "POST", "/upload", data=form(b"x" * 300_000, kind="background"))
            assert status == 413
            status, _, body = await ask(home, "POST", "/upload", data="x", headers={"Content-Type": "text/plain"})
            assert status == 400
            caller = await home.call()
            await until(lambda: caller.heard("hello"))
            caller.send(type="set", background={"kind": "picture", "picture": first})
            await until(lambda: home.app[DESK].live(caller.session).session.settings.background.kind == "picture")
            for _ in range(2):
                await ask(home, "POST", "/upload", data=form(picture(), kind="background"))
            assert len(home.app[DESK].uploads) == 2
            home.app[DESK].uploads.get(first)  # what is shown stays
            caller.send(type="set", background={"kind": "keep"})
            await until(lambda: home.app[DESK].live(caller.session).session.settings.background.kind == "keep")
            await ask(home, "POST", "/upload", data=form(picture(), kind="background"))
            caller.send(type="set", background={"kind": "picture", "picture": first})
            await until(lambda: caller.heard("notice"))

    live(story)


# -- speaking ---------------------------------------------------------------------------------------------------------------


def test_sound_files_are_spoken_and_bad_ones_refused() -> None:
    async def story() -> None:
        async with house(SETTINGS) as home:
            caller = await home.call(camera=None, offer={"drive": "voice"})
            await until(lambda: len(caller.frames) > 3)
            for data in (sound(), sound(rate=44_100, channels=1), sound(level=0.0)):
                status, _, body = await ask(home, "POST", "/humanaudio", data=form(data, name="file", sessionid=caller.session))
                assert (status, body["code"]) == (200, 0)
            await until(caller.loud)
            clip = io.BytesIO()
            with av.open(clip, "w", format="mp4") as container:
                stream = container.add_stream("libx264", rate=10)
                stream.width = stream.height = 32
                stream.pix_fmt = "yuv420p"
                for k in range(3):
                    frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
                    frame.pts = k
                    container.mux(stream.encode(frame))
                container.mux(stream.encode(None))
            playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
            for data, word in (
                (b"", "empty"),
                (b"text, not sound" * 50, "sound file"),
                (clip.getvalue(), "no sound"),
                (playlist, "sound file"),
                (sound()[:30], "sound file"),
            ):
                status, _, body = await ask(home, "POST", "/humanaudio", data=form(data, name="file", sessionid=caller.session))
                assert (status, body["code"]) == (400, -1)
                assert word in body["msg"]
            status, _, body = await ask(home, "POST", "/humanaudio", data=form(sound(), name="file", sessionid="nobody"))
            assert status == 404

    live(story)


def test_a_sound_file_keeps_its_length_and_has_a_limit() -> None:
    pcm = decode_sound(sound(rate=22_050, channels=2, seconds=1.0), most_seconds=5.0)
    assert abs(len(pcm) - 48_000) < 100
    assert 0.4 < np.abs(pcm).max() / 32768 < 0.6
    with pytest.raises(AvatarError, match="longer than"):
        decode_sound(sound(seconds=3.0), most_seconds=1.0)


@asynccontextmanager
async def chat_service(lines: list[str], *, status: int = 200) -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    """An OpenAI-compatible endpoint that says these lines; what it was asked."""
    asked: list[dict[str, Any]] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(await request.json())
        if status != 200:
            return web.json_response({"error": "no"}, status=status)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for line in lines:
            piece = json.dumps({"choices": [{"delta": {"content": line}}]})
            await response.write(f"data: {piece}\n\n".encode())
            await asyncio.sleep(0.01)
        await response.write(b"data: [DONE]\n\n")
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1", asked
    finally:
        await runner.cleanup()


def test_chat_is_answered_sentence_by_sentence() -> None:
    speech = FakeSpeech()

    async def story() -> None:
        async with chat_service(["Good mor", "ning. How", " are you", "? Fine"]) as (url, asked):
            settings = ServerSettings(max_sessions=1, workers=1, trackers=1, chat_url=url, chat_model="some-model")
            async with house(settings, studio=fake_studio(settings, speech=speech)) as home:
                caller = await home.call(camera=None, offer={"drive": "voice"})
                status, said = await caller.post("/human", sessionid=caller.session, text="Hello", type="chat")
                assert (status, said["code"]) == (200, 0)
                await until(lambda: len(speech.spoken) == 3)
                assert speech.spoken == ["Good morning.", "How are you?", "Fine"]
                assert asked[0]["model"] == "some-model"
                assert asked[0]["messages"][-1] == {"role": "user", "content": "Hello"}
                await until(lambda: not home.app[DESK].live(caller.session).speaker.synthesising)
                await caller.post("/human", sessionid=caller.session, text="Again", type="chat")
                await until(lambda: len(asked) == 2)
                assert {"role": "assistant", "content": "Good morning. How are you? Fine"} in asked[1]["messages"]

    live(story)


def test_chat_without_a_service_says_so_and_a_broken_one_is_told() -> None:
    async def story() -> None:
        async with house(SETTINGS) as home:
            caller = await home.call(camera=None)
            status, said = await caller.post("/human", sessionid=caller.session, text="Hello", type="chat")
            assert (status, said["code"]) == (400, -1)
            assert "--chat-url" in said["msg"]
            for text, kind in (("", "echo"), ("x" * 5000, "echo"), ("hello", "song"), (None, "echo")):
                status, said = await caller.post("/human", sessionid=caller.session, text=text, type=kind)
                assert (status, said["code"]) == (400, -1)
        async with chat_service([], status=500) as (url, _):
            settings = ServerSettings(max_sessions=1, workers=1, trackers=1, chat_url=url)
            async with house(settings) as home:
                caller = await home.call(camera=None)
                await until(lambda: caller.heard("hello"))
                await caller.post("/human", sessionid=caller.session, text="Hello", type="chat")
                await until(lambda: caller.heard("notice"))
                assert "500" in caller.heard("notice")[0]["text"]

    live(story)


def test_broken_speech_is_told_and_the_next_text_is_spoken() -> None:
    speech = FakeSpeech(broken=True)

    async def story() -> None:
        async with house(SETTINGS, studio=fake_studio(SETTINGS, speech=speech)) as home:
            caller = await home.call(camera=None)
            await until(lambda: caller.heard("hello"))
            caller.send(type="say", text="One")
            await until(lambda: caller.heard("notice"))
            assert "broken" in caller.heard("notice")[0]["text"]
            speech.broken = False
            caller.send(type="say", text="Two", interrupt=True)
            await until(lambda: speech.spoken == ["Two"])

    live(story)


def test_a_recording_has_picture_sound_and_says_what_it_is() -> None:
    async def story() -> None:
        async with house(SETTINGS) as home:
            caller = await home.call()
            await until(lambda: len(caller.frames) > 3)
            assert (await caller.post("/record", sessionid=caller.session, type="end_record"))[0] == 400
            assert (await caller.post("/record", sessionid=caller.session, type="start_record"))[1]["code"] == 0
            assert (await caller.post("/record", sessionid=caller.session, type="start_record"))[0] == 400
            assert (await ask(home, "GET", f"/record/{caller.session}"))[0] == 404
            await caller.post("/human", sessionid=caller.session, text="Hello recording", type="echo")
            await asyncio.sleep(1.5)
            status, said = await caller.post("/record", sessionid=caller.session, type="end_record")
            assert said["data"]["url"] == f"/record/{caller.session}"
            await until(lambda: caller.heard("recorded"))
            async with home.http.get(home.url + said["data"]["url"]) as response:
                assert response.content_type == "video/mp4"
                data = await response.read()
            with av.open(io.BytesIO(data), "r") as container:
                assert "AI" in container.metadata["comment"]
                seconds = {stream.type: float((stream.duration or 0) * (stream.time_base or 0)) for stream in container.streams}
                assert abs(seconds["video"] - seconds["audio"]) < 0.2
                assert seconds["video"] > 0.8
                frames = len(list(container.decode(video=0)))
                assert frames > 8
            caller.send(type="record", on=True)
            await asyncio.sleep(0.5)
            caller.send(type="record", on=False)
            await until(lambda: len(caller.heard("recorded")) == 2)

    live(story)


class FakeDevice:
    """What pyvirtualcam would give."""

    device = "fake"

    def __init__(self) -> None:
        self.shown: list[Any] = []
        self.closed = False

    def __enter__(self) -> FakeDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def send(self, rgb: Any) -> None:
        self.shown.append(rgb)


def test_the_virtual_camera_shows_the_first_session_and_tells_its_lag(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("streaming.server.check_virtual_camera", lambda: None)
    monkeypatch.setattr("streaming.virtual_camera.LAG_AFTER", 10)
    settings = ServerSettings(max_sessions=2, workers=1, trackers=1, virtual_camera=True)
    devices: list[FakeDevice] = []

    async def story() -> None:
        async with house(settings) as home:
            home.app[DESK].open_camera = lambda: devices.append(FakeDevice()) or devices[-1]  # type: ignore[func-returns-value]
            one = await home.call(offer={"persona": "red"})
            await home.call(offer={"persona": "blue"})
            await until(lambda: len(devices[0].shown) > 15)
            picture = devices[0].shown[-1]
            assert picture.shape == (720, 1280, 3)
            assert picture[360, 640].tolist() == [200, 40, 40]
            assert picture[360, 100].tolist() == [0, 0, 0]
            assert len(devices) == 1
            await one.close()
            await until(lambda: devices[0].closed)

    live(story)
    assert "delay your microphone by" in capfd.readouterr().err


def test_a_missing_virtual_camera_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AvatarError, match="pip install"):
        make_app(ServerSettings(virtual_camera=True))


# -- viewers ----------------------------------------------------------------------------------------------------------------


async def watch(home: House, session: str) -> tuple[int, Any, Any, list[Any]]:
    """A viewer: (status, headers, connection, frames)."""
    from streaming.rtc import make_peer_connection, prefer_codecs

    pc = make_peer_connection(LOCAL)
    frames: list[Any] = []
    pc.addTransceiver("video", direction="recvonly")
    pc.addTransceiver("audio", direction="recvonly")
    prefer_codecs(pc)

    async def pump(track: Any) -> None:
        while True:
            frames.append((track.kind, await track.recv()))

    tasks: list[asyncio.Future[None]] = []
    pc.on("track", lambda track: tasks.append(asyncio.ensure_future(pump(track))))
    pc.pumps = tasks  # type: ignore[attr-defined]
    await pc.setLocalDescription(await pc.createOffer())
    async with home.http.post(
        f"{home.url}/whep?sessionid={session}", data=pc.localDescription.sdp, headers={"Content-Type": "application/sdp"}
    ) as response:
        text = await response.text()
        if response.status == 201:
            await pc.setRemoteDescription(RTCSessionDescription(text, "answer"))
        return response.status, response.headers, pc, frames


async def leave(*viewers: Any) -> None:
    for pc in viewers:
        for task in pc.pumps:
            task.cancel()
        await asyncio.gather(*pc.pumps, return_exceptions=True)
        await pc.close()


def test_viewers_watch_and_hear_and_their_number_is_limited() -> None:
    settings = ServerSettings(max_sessions=1, workers=1, trackers=1, limits=Limits(viewers=2))

    async def story() -> None:
        async with house(settings) as home:
            status, _, nobody, _ = await watch(home, "nobody")
            assert status == 404
            await leave(nobody)
            caller = await home.call(offer={"persona": "red"})
            await until(lambda: len(caller.frames) > 3)
            status, headers, one, frames = await watch(home, caller.session)
            assert status == 201
            await until(lambda: sum(kind == "video" for kind, _ in frames) > 10 and any(kind == "audio" for kind, _ in frames))
            mean = [frame for kind, frame in frames if kind == "video"][-1].to_ndarray(format="rgb24").mean(axis=(0, 1))
            assert mean[0] > 150 > mean[1]
            status, _, two, _ = await watch(home, caller.session)
            assert status == 201
            status, refused, three, _ = await watch(home, caller.session)
            assert status == 503
            assert "Retry-After" in refused
            async with home.http.delete(home.url + headers["Location"]) as response:
                assert response.status == 204
            async with home.http.delete(home.url + headers["Location"]) as response:
                assert response.status == 404
            assert (await ask(home, "GET", "/stats"))[2]["server"]["viewers"] == 1
            await until(lambda: two.connectionState == "connected")
            await leave(one, two, three)
            await until(lambda: not home.app[DESK].broadcasts[caller.session].viewers)
            status, _, body = await ask(home, "POST", "/whep?sessionid=" + caller.session, data="x", headers={"Content-Type": "text/plain"})
            assert status == 400

    live(story)


def test_a_viewer_who_vanishes_gives_the_place_back() -> None:
    settings = replace(SETTINGS, silence_limit=1.5)

    async def story() -> None:
        async with house(settings) as home:
            caller = await home.call()
            await until(lambda: len(caller.frames) > 3)
            _, _, pc, frames = await watch(home, caller.session)
            await until(lambda: len(frames) > 5)
            vanish(pc)
            await until(lambda: not home.app[DESK].broadcasts[caller.session].viewers, seconds=6.0)
            await leave(pc)

    live(story)
