"""Text -> speech, sentence by sentence, cancellable at once.

    synthesizer = make_synthesizer(TtsSettings())
    async for piece in synthesizer.speak("Hello. How are you?"):
        piece.pcm, piece.rate      # float32 mono -1..1, Hz; pieces follow each other without a gap
    await synthesizer.close()

To stop an utterance, cancel the task that reads it or `aclose()` the iterator: the process or the request behind it ends at once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from engine.types import AvatarError, FloatArray

TEXT_LIMIT = 4_000
"""Characters of one utterance."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some speech; the pieces of one utterance follow each other without a gap and have one rate."""

    pcm: FloatArray  # [N] -1..1
    rate: int  # Hz


@dataclass(frozen=True, slots=True)
class TtsSettings:
    """Where speech comes from. Without `url`: espeak-ng in a process of its own."""

    url: str | None = None  # an OpenAI-compatible endpoint, up to and including /v1 (or the full .../audio/speech)
    api_key: str | None = None
    model: str = "tts-1"
    voice: str | None = None  # the voice where `speak` names none; espeak-ng: "en-us", "de", "en+f3" ...
    timeout: float = 20.0  # s until the first sound of a sentence, and between two pieces
    speed: float = 1.0  # 0.5..2


class Synthesizer(Protocol):
    """Speaks texts one after another or several at once."""

    def speak(self, text: str, *, voice: str | None = None) -> AsyncIterator[Piece]:
        """Text -> its speech as it is made. Raises AvatarError (on first iteration) in words for a person."""
        ...

    async def close(self) -> None:
        """End every process and connection."""
        ...


def make_synthesizer(settings: TtsSettings | None = None) -> Synthesizer:
    """The synthesiser that the settings name. Cheap: nothing is started before the first text."""
    raise AvatarError("Speech from text is not available in this version.")
