"""A portrait on a generator, driven through a real Session by a clip, a voice, or a picture that stands still; tracked and compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import media
from benchmarks.measure import Float64Array, Following, Series, best_lag, correlation, follow, head_mask, measure, psnr, track
from benchmarks.sheet import Pair
from engine.config import BODY_EVERY
from engine.types import AudioChunk, AvatarError, Signal, UInt8Array, VideoFrame, still_motion

STILL_SECONDS = 4.0
STILL_WARM_UP = 2.0
"""s of a still driver before shimmer is measured: smoothing and calibration come to rest."""
CAMERA_NOISE = 2.0
"""Grey levels of Gaussian noise a pixel: an indoor webcam."""
HEAD_GROW = 1.25
"""The face oval, enlarged to take in hair and ears."""
SILENCE_SECONDS = 4.0
ROOM_NOISE = 0.003
"""Root mean square of a quiet room's microphone: -50 dBFS."""
SOUND_STEP = 0.02
"""s a push of sound, as a microphone's packets."""


@dataclass(frozen=True, slots=True)
class Driven:
    """One portrait driven by one clip."""

    portrait: str
    drive: str
    following: Following
    driver: Series
    output: Series
    pairs: list[Pair]


@dataclass(frozen=True, slots=True)
class Spoken:
    """One portrait driven by one voice."""

    portrait: str
    speech: str
    correlation: float  # envelope against inner lip opening, at the lag
    lag_frames: int | None
    silence_gap: float  # 95th percentile of the inner lip opening in silence and room noise, face heights
    times: npt.NDArray[np.float64]
    envelope: npt.NDArray[np.float64]
    opening: npt.NDArray[np.float64]


class Stage:
    """A generator with one portrait on it; every run gets a fresh Session."""

    def __init__(self, generator: str, portrait: UInt8Array, *, name: str, size: int, body: bool = True) -> None:
        from engine.generators import load
        from engine.persona import make_persona

        self.name = name
        self.body = body
        self.generator = load(generator, size=(size, size))
        self.portrait = portrait
        self.persona = make_persona(self.generator, portrait, name=name)

    def session(self, drive: str) -> Any:
        """A Session of its own batch, driven by "camera" or "voice"."""
        from engine.batch import Batch
        from engine.config import SessionSettings
        from engine.session import Session

        return Session(Batch(self.generator, rows=1), self.persona, settings=SessionSettings(drive=drive, track_body=self.body))  # type: ignore[arg-type]

    def crop(self, rgb: UInt8Array) -> UInt8Array:
        """The driven part of a finished picture: in a full figure the face is too small for the tracker."""
        x0, y0, x1, y1 = self.persona.scene.fit.box
        return np.ascontiguousarray(rgb[y0:y1, x0:x1])

    def follow_camera(self, clip: media.Clip, *, rehearse: bool = False) -> Iterator[tuple[UInt8Array, UInt8Array]]:
        """(driving picture, avatar's crop) of every frame. `rehearse`: the driver sees the whole clip once before."""
        session = self.session("camera")
        waiting: dict[int, UInt8Array] = {}
        try:
            offset = 0.0
            if rehearse:
                for i, rgb in enumerate(clip.pictures()):
                    session.face(VideoFrame(rgb, i / clip.fps, i + 1))
                    offset = (i + 2) / clip.fps
            for i, rgb in enumerate(clip.pictures()):
                frame = VideoFrame(rgb, offset + i / clip.fps, i + 1)
                waiting[i] = rgb
                if self.body and i % BODY_EVERY == 0:
                    session.track_body(frame)
                output = session.push_video(frame)
                for made in () if output is None else output.frames:
                    yield waiting.pop(round((made.time - offset) * clip.fps)), self.crop(made.rgb)
        finally:
            session.close()

    def follow_voice(self, sound: AudioChunk) -> Iterator[tuple[float, UInt8Array]]:
        """(time, avatar's crop) of every frame of a voice."""
        session = self.session("voice")
        step = round(SOUND_STEP * sound.rate)
        try:
            for start in range(0, len(sound.pcm), step):
                for output in session.push_audio(AudioChunk(sound.pcm[start : start + step], sound.rate, start / sound.rate)):
                    yield from ((frame.time, self.crop(frame.rgb)) for frame in output.frames)
        finally:
            session.close()


def drive_with_clip(stage: Stage, clip: media.Clip, *, rehearse: bool = False) -> Driven:
    """Drive, track both sides, compare."""
    from engine.drivers.face import FaceTracker

    pairs: list[Pair] = []
    drivers: list[Float64Array] = []
    outputs: list[Float64Array] = []
    faces: tuple[Float64Array, Float64Array] | None = None  # where the sheet looks: fixed, so that it shows the head's movement
    for_driver, for_output = FaceTracker(), FaceTracker()
    try:
        for driving, avatar in stage.follow_camera(clip, rehearse=rehearse):
            drivers.append(track([driving], for_driver)[0])
            outputs.append(track([avatar], for_output)[0])
            if faces is None and np.isfinite(drivers[-1]).all() and np.isfinite(outputs[-1]).all():
                faces = drivers[-1], outputs[-1]
            pairs.append(Pair.of(driving, avatar, faces=faces))
    finally:
        for_driver.close()
        for_output.close()
    try:
        driver, output = measure(np.stack(drivers)), measure(np.stack(outputs))
    except ValueError as error:
        raise AvatarError(f"No face was found in '{clip.name}' or in what '{stage.name}' made of it; drive with a clip of one face.") from error
    return Driven(stage.name, clip.name, follow(driver, output), driver, output, pairs)


def still(stage: Stage, picture: UInt8Array, *, noise: float, seconds: float = STILL_SECONDS, warm: float = STILL_WARM_UP, seed: int = 0) -> float:
    """Mean grey change from frame to frame inside the head while one picture is shown again and again."""
    from engine.drivers.face import FaceTracker

    rng = np.random.default_rng(seed)

    def noisy() -> Iterator[UInt8Array]:
        for _ in range(round(seconds * media.FPS)):
            yield np.clip(picture + rng.normal(0, noise, picture.shape), 0, 255).astype(np.uint8) if noise else picture

    before: npt.NDArray[np.float64] | None = None
    mask: npt.NDArray[np.bool_] | None = None
    changes = []
    for i, (_, avatar) in enumerate(stage.follow_camera(media.Clip("still", noisy, media.FPS))):
        if i < warm * media.FPS:
            continue
        if mask is None:
            tracker = FaceTracker(still=True)
            mask = head_mask(track([avatar], tracker)[0], avatar.shape, grow=HEAD_GROW)
            tracker.close()
        grey = avatar.mean(2)
        if before is not None:
            changes.append(float(np.abs(grey - before)[mask].mean()))
        before = grey
    return float(np.mean(changes))


def neutral_psnr(stage: Stage) -> float | None:
    """dB inside the head of the portrait driven at its own expression, its rest state off, against the portrait.

    None for a generator that has no rest state to turn off.
    """
    from engine.drivers.face import FaceTracker
    from engine.generators import load
    from engine.persona import make_persona

    if not hasattr(stage.generator, "rest"):
        return None
    plain = load(stage.generator.spec.name, size=stage.generator.spec.size, rest=False)
    identity = make_persona(plain, stage.portrait, name=stage.name).identity
    state = plain.allocate(1)
    plain.admit(state, 0, identity)
    (frames,) = plain.step(state, [[Signal(0.0, 1, motion=still_motion())]])
    if frames is None:
        raise RuntimeError("the generator left the only row idle")
    tracker = FaceTracker(still=True)
    face = track([identity.portrait], tracker)[0]
    tracker.close()
    return psnr(frames[0].rgb, identity.portrait, head_mask(face, frames[0].rgb.shape, grow=HEAD_GROW))


def drive_with_speech(stage: Stage, sound: AudioChunk, *, name: str, silence: float = SILENCE_SECONDS) -> Spoken:
    """Speak, track the mouth, compare with the sound's envelope; then say nothing and see that the lips stay shut."""
    times, opening = _mouth(stage, sound)
    inside = times < sound.duration - 1.0 / stage.generator.spec.fps
    times, opening = times[inside], opening[inside]
    loud = media.envelope(sound, times, span=1.0 / stage.generator.spec.fps)
    lag = best_lag([loud], [opening])
    _, silent = _mouth(stage, media.room(silence, loudness=ROOM_NOISE, rate=sound.rate))
    return Spoken(stage.name, name, correlation(loud, opening, lag or 0), lag, float(np.nanpercentile(silent, 95)), times, loud, opening)


def _mouth(stage: Stage, sound: AudioChunk) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    from engine.drivers.face import FaceTracker

    tracker = FaceTracker()
    made = [(time, track([avatar], tracker)[0]) for time, avatar in stage.follow_voice(sound)]
    tracker.close()
    if not made:
        raise AvatarError("The voice made no frame; give a sound file of at least a second.")
    return np.array([time for time, _ in made]), measure(np.stack([points for _, points in made])).jaw
