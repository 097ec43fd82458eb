"""Text -> speech, sentence by sentence, cancellable at once.

    synthesizer = make_synthesizer(TtsSettings())
    async for piece in synthesizer.speak("Hello. How are you?"):
        piece.pcm, piece.rate      # float32 mono -1..1, Hz; pieces follow each other without a gap
    await synthesizer.close()

To stop an utterance, cancel the task that reads it or `aclose()` the iterator: the process or the request behind it ends at
once. Pieces are made only as fast as they are taken, so a reader that waits holds the speech back and nothing piles up.
"""

from __future__ import annotations

import re
import struct
import unicodedata
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol
from urllib.parse import urlsplit

import numpy as np

from engine.types import AvatarError, FloatArray

if TYPE_CHECKING:
    import aiohttp

TEXT_LIMIT = 4_000
"""Characters of one utterance."""
SENTENCE_LIMIT = 240
"""Characters spoken in one go; a longer sentence is cut at a comma or a space."""
SOUND_LIMIT = 120.0
"""s of sound one sentence may become: an endpoint that never stops is cut off."""

_READ = 4_096  # bytes taken from a response at once: 85 ms at 24 kHz
_WORDS = 200  # characters of an endpoint's own error message that are passed on


@dataclass(frozen=True, slots=True)
class Piece:
    """Some speech; the pieces of one utterance follow each other without a gap and have one rate."""

    pcm: FloatArray  # [N] -1..1
    rate: int  # Hz


@dataclass(frozen=True, slots=True)
class TtsSettings:
    """Where speech comes from. Without `url`: espeak-ng in a process of its own."""

    url: str | None = None  # an OpenAI-compatible endpoint: http(s)://host[:port][/v1] or the full .../audio/speech
    api_key: str | None = None
    model: str = "tts-1"
    voice: str | None = None  # the voice where `speak` names none; espeak-ng: "en-us", "de", "en-us+f3" ...
    timeout: float = 20.0  # s until the first sound of a sentence, and between two pieces
    speed: float = 1.0  # 0.5..2
    response_format: Literal["pcm", "wav"] = "pcm"  # what the endpoint is asked for; either answer is understood
    pcm_rate: int = 24_000  # Hz of a bare "pcm" answer that does not name its rate (OpenAI's)


class Synthesizer(Protocol):
    """Speaks texts, one after another or several at once."""

    def speak(self, text: str, *, voice: str | None = None) -> AsyncGenerator[Piece, None]:
        """Text -> its speech as it is made. Raises AvatarError (on iteration) in words for a person."""
        ...

    async def close(self) -> None:
        """End every process and connection."""
        ...


def make_synthesizer(settings: TtsSettings | None = None) -> Synthesizer:
    """The synthesiser that the settings name. Cheap: nothing is started before the first text. Raises AvatarError for an address that is none."""
    settings = settings or TtsSettings()
    if settings.url:
        return SpeechEndpoint(settings)
    from streaming.espeak import Espeak

    return Espeak(settings)


def check_text(text: str) -> str:
    """A text fit to be spoken: control characters become spaces. Raises AvatarError for an empty or too long one."""
    clean = "".join(" " if unicodedata.category(c) in ("Cc", "Cs", "Co", "Cn") and c != "\n" else c for c in text[: TEXT_LIMIT + 1]).strip()
    if not clean:
        raise AvatarError("There is no text to speak; type a sentence first.")
    if len(text) > TEXT_LIMIT:
        raise AvatarError(f"The text has {len(text)} characters and at most {TEXT_LIMIT} are spoken at once; send it in parts.")
    return clean


_END = re.compile(r"""(?<=[.!?…])["'”’)\]]*\s+|(?<=[。！？；])|\n+""")
_ABBREVIATION = re.compile(r"(?:^|[\s(])(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|vs|etc|e\.g|i\.e|z\.B|d\.h|Nr|No)\.$")


def split_sentences(text: str) -> list[str]:
    """Sentences in order, none empty, none longer than SENTENCE_LIMIT; nothing but white space between them is lost."""
    sentences: list[str] = []
    start = 0
    for end in _END.finditer(text):
        if "\n" not in end.group() and _ABBREVIATION.search(text[start : end.start()]):
            continue
        sentences.append(text[start : end.end()])
        start = end.end()
    sentences.append(text[start:])
    return [part for sentence in sentences for part in _cut(" ".join(sentence.split()))]


def _cut(sentence: str) -> list[str]:
    """A sentence in parts of at most SENTENCE_LIMIT, cut after a comma where there is one, else at a space."""
    parts = []
    while len(sentence) > SENTENCE_LIMIT:
        window = sentence[:SENTENCE_LIMIT]
        at = max(window.rfind(mark) for mark in (", ", "; ", ": ", "，", "、")) + 1 or window.rfind(" ") + 1 or SENTENCE_LIMIT
        parts.append(sentence[:at].strip())
        sentence = sentence[at:].strip()
    return [part for part in [*parts, sentence] if part]


@dataclass(slots=True)
class WavReader:
    """Reads a WAV stream as it arrives, whatever lengths its header claims: 16-bit or float, any channels (their mean)."""

    rate: int = 0  # Hz, known once `feed` has returned samples
    _buffer: bytearray = field(default_factory=bytearray)
    _format: tuple[int, int, int] | None = None  # (tag, channels, bits)
    _sounding: bool = False

    def feed(self, data: bytes) -> FloatArray:
        """Bytes -> the samples [N] they complete. Raises AvatarError for what is no such WAV."""
        self._buffer += data
        while not self._sounding:
            if not self._read_header():
                return np.zeros(0, np.float32)
        assert self._format is not None
        tag, channels, bits = self._format
        whole = len(self._buffer) // (channels * bits // 8) * (channels * bits // 8)
        samples = np.frombuffer(bytes(self._buffer[:whole]), "<f4" if tag == 3 else "<i2")
        del self._buffer[:whole]
        scale = 1.0 if tag == 3 else 1 / 32768
        mono: FloatArray = (samples.reshape(-1, channels).mean(1) * scale).astype(np.float32)
        return mono

    def _read_header(self) -> bool:
        """Consume one chunk of the header; False where more bytes are needed."""
        if self._format is None and self._buffer[:4] == b"RIFF":
            if len(self._buffer) < 12:
                return False
            del self._buffer[:12]
        if len(self._buffer) < 8:
            return False
        name, size = struct.unpack("<4sI", self._buffer[:8])
        if name == b"data" and self._format is not None:
            del self._buffer[:8]
            self._sounding = True
            return True
        if not name.isalnum() and not name.strip().isalnum() or size > 1 << 16:
            raise AvatarError("The speech endpoint's sound is not a WAV file; set its response format to pcm or wav.")
        if len(self._buffer) < 8 + size:
            return False
        if name == b"fmt ":
            tag, channels, self.rate, _, _, bits = struct.unpack("<HHIIHH", self._buffer[8:24])
            tag = struct.unpack("<H", self._buffer[32:34])[0] if tag == 0xFFFE and size >= 26 else tag  # WAVE_FORMAT_EXTENSIBLE
            if (tag, bits) not in ((1, 16), (3, 32)) or not 1 <= channels <= 8 or not 8_000 <= self.rate <= 192_000:
                raise AvatarError(f"WAV sound of {bits} bits, {channels} channels and {self.rate} Hz cannot be used; ask for 16-bit mono.")
            self._format = (tag, channels, bits)
        del self._buffer[: 8 + size + size % 2]
        return True


class SpeechEndpoint:
    """Any server with OpenAI's `POST /v1/audio/speech`; one request a sentence."""

    def __init__(self, settings: TtsSettings) -> None:
        """Raises AvatarError where the address is no address."""
        parts = urlsplit(settings.url or "")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise AvatarError(f"The speech endpoint '{settings.url}' is not an address; give it as http://host:port/v1.")
        path = parts.path.rstrip("/")
        if not path.endswith("/audio/speech"):
            path = (path or "/v1") + "/audio/speech"
        self._host = parts.netloc.rpartition("@")[2]
        self._url = parts._replace(path=path, fragment="").geturl()
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None

    async def speak(self, text: str, *, voice: str | None = None) -> AsyncGenerator[Piece, None]:
        """Text -> its speech as it arrives."""
        for sentence in split_sentences(check_text(text)):
            async with aclosing(self._sentence(sentence, voice or self._settings.voice or "alloy")) as pieces:
                async for piece in pieces:
                    yield piece

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _sentence(self, sentence: str, voice: str) -> AsyncGenerator[Piece, None]:
        import aiohttp

        settings = self._settings
        if self._session is None:
            limits = aiohttp.ClientTimeout(total=None, sock_connect=settings.timeout, sock_read=settings.timeout)
            self._session = aiohttp.ClientSession(timeout=limits)
        headers = {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
        order = {"model": settings.model, "input": sentence, "voice": voice, "response_format": settings.response_format, "speed": settings.speed}
        try:
            async with self._session.post(self._url, json=order, headers=headers, allow_redirects=False) as response:
                await self._refuse(response)
                async with aclosing(self._pieces(response)) as pieces:
                    async for piece in pieces:
                        yield piece
        except TimeoutError:
            raise AvatarError(f"The speech endpoint at {self._host} was silent for {settings.timeout:g} s; try again or choose another.") from None
        except aiohttp.ClientError as error:
            raise AvatarError(f"The speech endpoint at {self._host} cannot be reached ({type(error).__name__}); check that it runs.") from error

    async def _pieces(self, response: aiohttp.ClientResponse) -> AsyncGenerator[Piece, None]:
        """The body as pieces, WAV or bare 16-bit samples, whichever it turns out to be."""
        head = await response.content.read(_READ)
        while 0 < len(head) < 4 and (more := await response.content.read(_READ)):
            head += more
        wav = WavReader() if head[:4] == b"RIFF" else None
        rate = wav.rate if wav else _named_rate(response.headers.get("Content-Type", ""), self._settings.pcm_rate)
        seconds, rest, data = 0.0, b"", head
        while data:
            if wav:
                pcm, rate = wav.feed(data), wav.rate
            else:
                data = rest + data
                rest = data[len(data) // 2 * 2 :]
                pcm = np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype(np.float32) / 32768
            if len(pcm):
                seconds += len(pcm) / rate
                yield Piece(pcm, rate)
            if seconds > SOUND_LIMIT:
                raise AvatarError(f"The speech endpoint at {self._host} sent over {SOUND_LIMIT:g} s of sound for one sentence; check its settings.")
            data = await response.content.read(_READ)
        if seconds == 0:
            raise AvatarError(f"The speech endpoint at {self._host} sent no sound; check its model and voice.")

    async def _refuse(self, response: aiohttp.ClientResponse) -> None:
        """Raise AvatarError for an answer that is not sound."""
        kind = response.content_type
        if response.status in (401, 403):
            raise AvatarError(f"The speech endpoint at {self._host} refused the key; check the API key.")
        if response.status != 200:
            said = await _error_words(response)
            raise AvatarError(f"The speech endpoint at {self._host} answered {response.status}{said}; check its address, model and voice.")
        if kind in ("audio/mpeg", "audio/mp3", "audio/ogg", "audio/opus", "audio/aac", "audio/flac", "application/json") or kind.startswith("text/"):
            raise AvatarError(f"The speech endpoint at {self._host} sent {kind} and not pcm or wav; set its response format.")


async def _error_words(response: aiohttp.ClientResponse) -> str:
    """What the endpoint itself says is wrong, shortened, as " (...)"; nothing where it says nothing."""
    body = (await response.content.read(4 * _WORDS)).decode("utf-8", "replace")
    found = re.search(r'"(?:message|detail|error)"\s*:\s*"((?:[^"\\]|\\.)*)"', body)
    words = " ".join((found.group(1) if found else "").split())[:_WORDS].rstrip(".;")
    return f" ({words})" if words else ""


def _named_rate(content_type: str, default: int) -> int:
    """Hz from "audio/pcm; rate=24000" or "audio/L16;rate=16000"."""
    found = re.search(r"rate=(\d{4,6})", content_type)
    return int(found.group(1)) if found else default
