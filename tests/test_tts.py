"""Text to speech: espeak-ng in a child process, and an OpenAI-compatible endpoint played by a small server on 127.0.0.1."""

from __future__ import annotations

import asyncio
import os
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from engine.types import AvatarError, FloatArray
from streaming import espeak
from streaming.espeak import Espeak, find_library, guess_voice
from streaming.tts import SENTENCE_LIMIT, TEXT_LIMIT, Piece, SpeechEndpoint, TtsSettings, WavReader, check_text, make_synthesizer, split_sentences
from tests.conftest import require


async def collect(pieces: AsyncIterator[Piece]) -> list[Piece]:
    return [piece async for piece in pieces]


def joined(pieces: list[Piece]) -> FloatArray:
    return np.concatenate([piece.pcm for piece in pieces])


def wav(samples: FloatArray, rate: int, *, channels: int = 1, floats: bool = False, size: int | None = None, extra: bytes = b"") -> bytes:
    """A WAV file; `size`: what the header claims."""
    body = np.repeat(samples, channels)
    data = body.astype("<f4").tobytes() if floats else (body * 32767).astype("<i2").tobytes()
    bits = 32 if floats else 16
    form = struct.pack("<HHIIHH", 3 if floats else 1, channels, rate, rate * channels * bits // 8, channels * bits // 8, bits)
    size = len(data) if size is None else size
    return b"RIFF" + struct.pack("<I", size) + b"WAVEfmt " + struct.pack("<I", 16) + form + extra + b"data" + struct.pack("<I", size) + data


# -- text -------------------------------------------------------------------------------------------------------------


def test_sentences_are_found_and_abbreviations_are_not() -> None:
    text = 'Hello there, Mr. Smith! It costs 3.14 euros. "Really?" she asked.\nYes\n你好。今天很好。'
    assert split_sentences(text) == ["Hello there, Mr. Smith!", "It costs 3.14 euros.", '"Really?"', "she asked.", "Yes", "你好。", "今天很好。"]


@given(st.text(max_size=600))
def test_no_word_is_lost_between_sentences(text: str) -> None:
    parts = split_sentences(text)
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert all(0 < len(part) <= SENTENCE_LIMIT for part in parts)


def test_a_long_sentence_is_cut_at_a_comma() -> None:
    parts = split_sentences("word " * 30 + "word, " + "other " * 60)
    assert parts[0].endswith("word,")
    assert max(len(part) for part in parts) <= SENTENCE_LIMIT


@pytest.mark.parametrize("text", ["", "  \n\t ", "\x00\x07", "x" * (TEXT_LIMIT + 1)])
def test_texts_that_cannot_be_spoken_are_refused(text: str) -> None:
    with pytest.raises(AvatarError):
        check_text(text)


def test_control_characters_and_lone_surrogates_become_spaces() -> None:
    assert check_text("a\x00b\ud800c") == "a b c"


def test_the_script_chooses_the_voice() -> None:
    assert [guess_voice(text) for text in ("Hello", "你好", "こんにちは世界", "Привет", "안녕")] == ["en-us", "cmn", "ja", "ru", "ko"]


# -- espeak-ng --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["library", "binary"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The wheel's library, or the system's program."""
    if request.param == "binary":
        require("espeak-ng")
        monkeypatch.setattr(espeak, "find_library", lambda: None)
    return str(request.param)


def test_espeak_speaks(either: str) -> None:
    async def run() -> None:
        synthesizer = make_synthesizer()
        short = await collect(synthesizer.speak("Hello."))
        long = await collect(synthesizer.speak("Hello there. This is a longer text, in two sentences."))
        await synthesizer.close()
        assert {piece.rate for piece in short + long} == {22_050}
        assert all(piece.pcm.dtype == np.float32 for piece in long)
        assert 0.3 < len(joined(short)) / 22_050 < 2.0
        assert 2.0 < len(joined(long)) / 22_050 < 8.0
        assert 0.05 < float(np.sqrt((joined(long) ** 2).mean())) < 0.5
        assert np.abs(joined(long)).max() <= 1.0

    asyncio.run(run())


def test_an_unknown_voice_is_said_in_words(either: str) -> None:
    async def run() -> None:
        for voice in ("xx-nothing", "--version", "en; rm -rf", "../../etc/passwd", "-w/tmp/x"):
            with pytest.raises(AvatarError, match="voice"):
                await collect(make_synthesizer().speak("Hello.", voice=voice))

    asyncio.run(run())


def test_text_never_becomes_a_command(either: str, tmp_path: Path) -> None:
    async def run() -> None:
        marker = tmp_path / "touched"
        for text in (f"$(touch {marker})", f"`touch {marker}`; touch {marker}", "-w out.wav", "--version", f"<audio src='{marker}'/> [[hello]] %s%n"):
            assert len(joined(await collect(make_synthesizer().speak(text)))) > 1000
        assert not marker.exists()

    asyncio.run(run())


def children() -> set[int]:
    """Process ids of this process's children."""
    path = Path(f"/proc/self/task/{os.getpid()}/children")
    return {int(pid) for pid in path.read_text().split()}


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_cancelling_ends_the_child_at_once(either: str) -> None:
    async def run() -> None:
        synthesizer = make_synthesizer()
        before = children()
        started = asyncio.Event()

        async def speak() -> None:
            async for _ in synthesizer.speak("A sentence that goes on. " * 100):
                started.set()
                await asyncio.sleep(10)

        task = asyncio.create_task(speak())
        await started.wait()
        assert children() - before
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 1.0)
        await asyncio.sleep(0.05)
        assert not children() - before

        pieces = synthesizer.speak("A sentence that goes on. " * 100)
        await anext(pieces)
        await synthesizer.close()
        assert not children() - before

    asyncio.run(run())


def test_several_utterances_at_once() -> None:
    async def run() -> None:
        synthesizer = make_synthesizer()
        one, two = await asyncio.gather(
            collect(synthesizer.speak("One.", voice="en-us")), collect(synthesizer.speak("Zwei und drei und vier.", voice="de"))
        )
        assert len(joined(two)) > len(joined(one)) > 0

    asyncio.run(run())


def test_espeak_is_never_loaded_into_this_process() -> None:
    code = (
        "import asyncio, pathlib\n"
        "from streaming.tts import make_synthesizer\n"
        "async def run():\n"
        "    return [p async for p in make_synthesizer().speak('Hello.')]\n"
        "assert asyncio.run(run())\n"
        "maps = pathlib.Path('/proc/self/maps')\n"
        "assert not maps.exists() or 'espeak' not in maps.read_text()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent, timeout=60)


def test_without_espeak_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(espeak, "find_library", lambda: None)
    monkeypatch.setattr(espeak, "find_binary", lambda: None)
    with pytest.raises(AvatarError, match="pip install espeakng-loader"):
        asyncio.run(collect(make_synthesizer().speak("Hello.")))


def test_a_library_that_does_not_load_gives_way_to_the_system_s_program(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    require("espeak-ng")
    real = find_library()
    assert real is not None
    broken = tmp_path / "libespeak-ng.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(espeak, "find_library", lambda: espeak.Library(broken, real.data))
    assert len(joined(asyncio.run(collect(Espeak(TtsSettings()).speak("Hello."))))) > 1000
    assert "does not work on this machine" in caplog.text
    monkeypatch.setattr(espeak, "find_binary", lambda: None)
    with pytest.raises(AvatarError, match="does not work"):
        asyncio.run(collect(Espeak(TtsSettings()).speak("Hello.")))


# -- WAV --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "floats", "size"), [(1, False, None), (2, False, None), (1, True, None), (1, False, 0xFFFFFFFF), (1, False, 0)])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_wav_is_read_as_it_arrives(channels: int, floats: bool, size: int | None, chunk: int) -> None:
    sound = np.sin(np.arange(500) / 5).astype(np.float32)
    data = wav(sound, 24_000, channels=channels, floats=floats, size=size, extra=b"LIST" + struct.pack("<I", 4) + b"INFO")
    reader = WavReader()
    pcm = np.concatenate([reader.feed(data[at : at + chunk]) for at in range(0, len(data), chunk)])
    assert reader.rate == 24_000
    assert np.allclose(pcm, sound, atol=1e-4)


@pytest.mark.parametrize(
    "data", [b"RIFF....WAVE<html>, not a sound at all", wav(np.zeros(9, np.float32), 100), b"ID3\x03\x00\xff\xff\xff\xff\xff\xff\xff\xff"]
)
def test_what_is_no_wav_is_refused(data: bytes) -> None:
    with pytest.raises(AvatarError):
        WavReader().feed(data + bytes(100))


# -- an endpoint ------------------------------------------------------------------------------------------------------

TONE = (0.5 * np.sin(np.arange(4800) / 8)).astype(np.float32)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """A server on 127.0.0.1 -> its address."""
    app = web.Application()
    app.router.add_post("/v1/audio/speech", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


def ask(handler: Handler, text: str = "Hello.", *, path: str = "/v1", timeout: float = 5.0, api_key: str | None = None) -> list[Piece]:
    """Speak a text through a server that answers like `handler`."""

    async def run() -> list[Piece]:
        async with serving(handler) as address:
            synthesizer = make_synthesizer(TtsSettings(url=address + path, timeout=timeout, api_key=api_key, voice="nova"))
            assert isinstance(synthesizer, SpeechEndpoint)
            try:
                return await collect(synthesizer.speak(text))
            finally:
                await synthesizer.close()

    return asyncio.run(run())


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/v1/audio/speech"])
def test_an_endpoint_is_asked_a_sentence_at_a_time(path: str) -> None:
    orders = []

    async def handler(request: web.Request) -> web.StreamResponse:
        orders.append((await request.json(), request.headers.get("Authorization")))
        return web.Response(body=(TONE * 32767).astype("<i2").tobytes(), content_type="audio/pcm")

    pieces = ask(handler, "One. Two.", path=path, api_key="secret")
    assert [order["input"] for order, _ in orders] == ["One.", "Two."]
    assert orders[0][0] == {"model": "tts-1", "input": "One.", "voice": "nova", "response_format": "pcm", "speed": 1.0}
    assert orders[0][1] == "Bearer secret"
    assert {piece.rate for piece in pieces} == {24_000}
    assert np.allclose(joined(pieces), np.concatenate([TONE, TONE]), atol=1e-4)


@pytest.mark.parametrize(
    ("body", "kind", "rate"),
    [
        (wav(TONE, 22_050), "audio/wav", 22_050),
        (wav(TONE, 22_050, size=0xFFFFFFFF), "application/octet-stream", 22_050),
        ((TONE * 32767).astype("<i2").tobytes(), "audio/pcm; rate=16000", 16_000),
    ],
)
def test_wav_and_pcm_answers_are_both_understood(body: bytes, kind: str, rate: int) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": kind})
        await response.prepare(request)
        for at in range(0, len(body), 999):  # odd pieces: samples are cut in two
            await response.write(body[at : at + 999])
        return response

    pieces = ask(handler)
    assert {piece.rate for piece in pieces} == {rate}
    assert np.allclose(joined(pieces), TONE, atol=1e-4)


def answer(status: int = 200, body: bytes = b"", kind: str = "audio/pcm") -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=body, content_type=kind)

    return handler


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (answer(401), "key"),
        (answer(404), "404"),
        (answer(400, b'{"error": {"message": "no voice \\"nova\\" here", "type": "x"}}', "application/json"), "no voice"),
        (answer(500, b"<html>" + b"x" * 100_000, "text/html"), "500"),
        (answer(302), "302"),
        (answer(200, b"ID3" + bytes(1000), "audio/mpeg"), "audio/mpeg"),
        (answer(200, b'{"ok": true}', "application/json"), "application/json"),
        (answer(200, b""), "no sound"),
    ],
)
def test_an_endpoint_s_failures_are_said_in_words(handler: Handler, words: str) -> None:
    with pytest.raises(AvatarError, match=words) as caught:
        ask(handler, api_key="secret")
    assert "127.0.0.1" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_an_endpoint_that_hangs_is_given_up() -> None:
    async def silent(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(5)
        return web.Response()

    async def stalling(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(bytes(4000))
        await asyncio.sleep(5)
        return response

    for handler in (silent, stalling):
        with pytest.raises(AvatarError, match="silent for"):
            ask(handler, timeout=0.2)


def test_an_endpoint_that_never_stops_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.tts.SOUND_LIMIT", 1.0)

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(bytes(48_000))

    with pytest.raises(AvatarError, match="over 1 s"):
        ask(endless)


def test_cancelling_closes_the_request() -> None:
    ended = asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(bytes(480))
                await asyncio.sleep(0.01)
        except (ConnectionResetError, asyncio.CancelledError):
            ended.set()
            raise

    async def run() -> None:
        async with serving(slow) as address:
            synthesizer = make_synthesizer(TtsSettings(url=address))
            pieces = synthesizer.speak("Hello.")
            await anext(pieces)
            task = asyncio.ensure_future(collect(pieces))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, 1.0)
            await asyncio.wait_for(ended.wait(), 1.0)
            await synthesizer.close()

    asyncio.run(run())


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "http://", "file:///etc/passwd"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(AvatarError, match="address"):
        make_synthesizer(TtsSettings(url=url))


def test_an_endpoint_that_is_not_there() -> None:
    async def run() -> None:
        synthesizer = make_synthesizer(TtsSettings(url="http://127.0.0.1:1/v1"))
        try:
            await collect(synthesizer.speak("Hello."))
        finally:
            await synthesizer.close()

    with pytest.raises(AvatarError, match="cannot be reached"):
        asyncio.run(run())
