"""Speech from espeak-ng: offline, no weights, always in a process of its own (it is GPL)."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import re
import shutil
import signal
import struct
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.types import AvatarError
from streaming.tts import Piece, TtsSettings, WavReader, check_text, split_sentences

WORDS_PER_MINUTE = 165  # espeak's default of 175 sounds hurried from a face
START_TIMEOUT = 10.0  # s until espeak-ng answers, far above the 0.1 s it takes
_READ = 8_192  # bytes asked from a pipe at once
_VOICE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}(\+[A-Za-z][A-Za-z0-9_-]{0,31})?")
_SCRIPTS = (  # a text whose script gives its language away is not read letter by letter by an English voice
    ("ja", re.compile(r"[\u3040-\u30ff]")),
    ("ko", re.compile(r"[\uac00-\ud7af]")),
    ("cmn", re.compile(r"[\u4e00-\u9fff]")),
    ("ru", re.compile(r"[\u0400-\u04ff]")),
    ("el", re.compile(r"[\u0370-\u03ff]")),
    ("ar", re.compile(r"[\u0600-\u06ff]")),
    ("he", re.compile(r"[\u0590-\u05ff]")),
    ("hi", re.compile(r"[\u0900-\u097f]")),
)
DEFAULT_VOICE = "en-us"
_log = logging.getLogger(__name__)


class _Unloadable(AvatarError):
    """The wheel's library does not load on this machine."""


@dataclass(frozen=True, slots=True)
class Library:
    """The wheel's shared library and its data."""

    library: Path
    data: Path


def find_library() -> Library | None:
    """What the wheel `espeakng-loader` brought, found without importing it; None where it is not installed or is incomplete."""
    spec = importlib.util.find_spec("espeakng_loader")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    name = {"win32": "espeak-ng.dll", "darwin": "libespeak-ng.dylib"}.get(sys.platform, "libespeak-ng.so")
    found = Library(folder / name, folder / "espeak-ng-data")
    return found if found.library.is_file() and found.data.is_dir() else None


def find_binary() -> str | None:
    """Path of the system's espeak-ng, None where there is none."""
    return shutil.which("espeak-ng")


def guess_voice(text: str) -> str:
    """The language of a text as far as its script tells."""
    return next((voice for voice, script in _SCRIPTS if script.search(text)), DEFAULT_VOICE)


class Espeak:
    """One child process an utterance; killing it is how an utterance stops."""

    def __init__(self, settings: TtsSettings) -> None:
        """Never fails: where espeak-ng is missing, `speak` says so, and all else goes on without it."""
        self._settings = settings
        self._library = find_library()
        self._binary = find_binary()
        self._children: set[asyncio.subprocess.Process] = set()

    async def speak(self, text: str, *, voice: str | None = None) -> AsyncGenerator[Piece, None]:
        """Text -> its speech as it is made."""
        if self._library is None and self._binary is None:
            raise AvatarError("Text cannot be spoken because espeak-ng is missing; install it with `pip install espeakng-loader`.")
        text = check_text(text)
        chosen = voice or self._settings.voice or guess_voice(text)
        if not _VOICE.fullmatch(chosen):
            raise AvatarError(f"'{chosen[:40]}' is not a voice of espeak-ng; use a language such as en-us, de or fr, with +f3 for another speaker.")
        words = str(round(WORDS_PER_MINUTE * min(2.0, max(0.5, self._settings.speed))))
        sentences = split_sentences(text)
        if self._library is not None:
            try:
                async with aclosing(self._from_library(self._library, sentences, chosen, words)) as source:
                    async for piece in source:
                        yield piece
                return
            except _Unloadable as error:  # raised before the first sound
                if self._binary is None:
                    raise
                _log.warning("%s The system's espeak-ng speaks instead.", error)
                self._library = None
        assert self._binary is not None
        async with aclosing(self._from_binary(self._binary, sentences, chosen, words)) as source:
            async for piece in source:
                yield piece

    async def close(self) -> None:
        """End every child."""
        for child in list(self._children):
            await self._end(child)

    # -- the wheel's library ------------------------------------------------------------------------------------------

    async def _from_library(self, found: Library, sentences: list[str], voice: str, words: str) -> AsyncGenerator[Piece, None]:
        script = Path(__file__).with_name("espeak_child.py")
        child = await self._start(sys.executable, "-I", "-S", str(script), str(found.library), str(found.data), voice, words)
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            async with asyncio.timeout(START_TIMEOUT):
                rate = struct.unpack("<I", (await _message(child.stdout, b"R"))[1])[0]
            for sentence in sentences:
                body = sentence.encode("utf-8", "replace")
                child.stdin.write(struct.pack("<I", len(body)) + body)
                while True:
                    async with asyncio.timeout(self._settings.timeout):
                        kind, payload = await _message(child.stdout, b"PE")
                    if kind == b"E":
                        break
                    yield Piece(np.frombuffer(payload, "<i2").astype(np.float32) / 32768, rate)
        except TimeoutError:
            raise AvatarError("espeak-ng does not answer; try again, or reinstall the package espeakng-loader.") from None
        finally:
            await self._end(child)

    # -- the system's program -----------------------------------------------------------------------------------------

    async def _from_binary(self, binary: str, sentences: list[str], voice: str, words: str) -> AsyncGenerator[Piece, None]:
        for sentence in sentences:
            child = await self._start(binary, "-v", voice, "-s", words, "--stdin", "--stdout")
            assert child.stdin is not None
            assert child.stdout is not None
            reader = WavReader()
            silent = True
            try:
                child.stdin.write(sentence.encode("utf-8", "replace"))
                child.stdin.close()
                async with asyncio.timeout(self._settings.timeout):
                    data = await child.stdout.read(_READ)
                while data:
                    pcm = reader.feed(data)
                    if len(pcm):
                        silent = False
                        yield Piece(pcm, reader.rate)
                    async with asyncio.timeout(self._settings.timeout):
                        data = await child.stdout.read(_READ)
                if silent and await child.wait() != 0:
                    raise AvatarError(f"espeak-ng cannot speak with the voice '{voice}'; use a language such as en-us, de or fr.")
            except TimeoutError:
                raise AvatarError("The system's espeak-ng does not answer; try it in a terminal, or install the package espeakng-loader.") from None
            finally:
                await self._end(child)

    # -- children -----------------------------------------------------------------------------------------------------

    async def _start(self, *command: str) -> asyncio.subprocess.Process:
        """A child without a shell, with nothing of our environment but what a process needs to start."""
        keep = ("PATH", "SYSTEMROOT", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH")
        pipe = asyncio.subprocess.PIPE
        try:
            child = await asyncio.create_subprocess_exec(
                *command,
                stdin=pipe,
                stdout=pipe,
                stderr=asyncio.subprocess.DEVNULL,
                env={name: os.environ[name] for name in keep if name in os.environ},
            )
        except OSError as error:
            raise AvatarError(f"espeak-ng cannot be started ({error.strerror or error}); reinstall it with `pip install espeakng-loader`.") from error
        self._children.add(child)
        return child

    async def _end(self, child: asyncio.subprocess.Process) -> None:
        """Kill and reap; safe to call twice."""
        self._children.discard(child)
        if child.returncode is None:
            with suppress(ProcessLookupError):
                if sys.platform == "win32":
                    child.kill()
                else:  # Process.kill polls first, which takes the exit status away from asyncio's own watcher
                    os.kill(child.pid, signal.SIGKILL)
        await child.wait()


async def _message(stream: asyncio.StreamReader, expected: bytes) -> tuple[bytes, bytes]:
    """(kind, payload) of the child's next message. Raises AvatarError with the child's own words, or where it died."""
    try:
        head = await stream.readexactly(5)
        kind, payload = head[:1], await stream.readexactly(struct.unpack("<I", head[1:])[0])
    except asyncio.IncompleteReadError:
        raise AvatarError("espeak-ng ended unexpectedly; reinstall the package espeakng-loader.") from None
    if kind == b"L":
        raise _Unloadable(payload.decode("utf-8", "replace"))
    if kind == b"X":
        raise AvatarError(payload.decode("utf-8", "replace"))
    if kind not in expected:
        raise AvatarError("espeak-ng answered out of turn; try again.")
    return kind, payload
