"""What a generator is driven with: known motion, and as much of a camera and a microphone as it needs, read before anything is timed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import islice

from benchmarks import media
from engine.types import AudioChunk, Motion, Signal, VideoFrame

LOOKED_AT = 60
"""Camera pictures that are kept at most; they come again and again."""
SEEN = ("face", "image", "head")
HEARD = ("pcm", "speech")


def signals(needs: Collection[str], motions: Sequence[Motion], clip: media.Clip) -> list[Signal]:
    """One signal a motion, at media.FPS. `needs`: fields of Signal (see `GeneratorSpec.needs`); what none of them asks for is left out."""
    made = [Signal(i / media.FPS, i + 1, motion=motion) for i, motion in enumerate(motions)]
    if set(SEEN) & set(needs):
        seen = _seen(clip)
        made = [replace(seen[i % len(seen)], time=each.time, id=each.id, motion=each.motion) for i, each in enumerate(made)]
    return _heard(made) if set(HEARD) & set(needs) else made


def _seen(clip: media.Clip) -> list[Signal]:
    """Of a camera, as a session hands it on: what the face driver reads, and the picture."""
    from engine.drivers.face import FaceDriver

    driver = FaceDriver()
    pictures = enumerate(islice(clip.pictures(), LOOKED_AT))
    read = [replace(driver(VideoFrame(rgb, i / clip.fps, i + 1)), image=rgb) for i, rgb in pictures]
    driver.close()
    return read


def _heard(made: Sequence[Signal]) -> list[Signal]:
    """With somebody who babbles all the while."""
    from engine.drivers.speech import LOOK_AHEAD, SpeechDriver

    driver, found = SpeechDriver(), []
    sound = media.babble(len(made) / media.FPS + 1.0)
    heard = 0
    for signal in made:
        until = round((signal.time + LOOK_AHEAD + 1.0 / media.FPS) * sound.rate)
        driver.hear(AudioChunk(sound.pcm[heard:until], sound.rate, heard / sound.rate))
        heard = until
        reading = driver.at(signal.time)
        found.append(replace(signal, speech=reading.logmel, pcm=reading.pcm))
    return found


__all__ = ["HEARD", "SEEN", "signals"]
