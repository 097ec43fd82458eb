"""Does the portrait follow its driver? Drives portraits with clips and speech, tracks the pictures that come out, compares.

Everything runs through a real Session, causally and in order, as the server would run it: the neutral is found while the clip
plays. `--offline` lets the driver see the whole clip once before. The definitions are in benchmarks/measure.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import media
from benchmarks.common import Panel, Table, arguments, plot, report
from benchmarks.measure import CHANNELS, Float64Array, Following, Series, best_lag, correlation, follow, head_mask, measure, psnr, track
from benchmarks.sheet import Pair, contact_sheet
from engine.types import AudioChunk, AvatarError, Signal, UInt8Array, VideoFrame, still_motion

BODY_EVERY = 3
"""Camera frames a reading of the shoulders serves, as in the server."""
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


def neutral_psnr(generator: str, stage: Stage, *, size: int) -> float:
    """dB inside the head of the portrait driven at its own expression, its rest state off, against the portrait."""
    from engine.drivers.face import FaceTracker
    from engine.generators import load

    plain = load(generator, size=(size, size), rest=False)
    from engine.persona import make_persona

    persona = make_persona(plain, stage.portrait, name=stage.name)
    state = plain.allocate(1)
    plain.admit(state, 0, persona.identity)
    (frames,) = plain.step(state, [[Signal(0.0, 1, motion=still_motion())]])
    if frames is None:
        raise RuntimeError("the generator left the only row idle")
    tracker = FaceTracker(still=True)
    face = track([persona.identity.portrait], tracker)[0]
    tracker.close()
    return psnr(frames[0].rgb, persona.identity.portrait, head_mask(face, frames[0].rgb.shape, grow=HEAD_GROW))


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


def highlights(run: Driven, *, evenly: int = 6) -> list[tuple[Pair, str]]:
    """Frames worth a look: evenly spaced ones, then the driver's extremes of every channel that moves."""
    picks: dict[int, str] = {int(i): "" for i in np.linspace(0, len(run.pairs) - 1, evenly)}
    for name in CHANNELS:
        if run.following.correlation[name] is None:
            continue
        values = run.driver.channel(name)
        ends = {"jaw": (np.nanargmax,), "eye_left": (np.nanargmin,), "eye_right": (np.nanargmin,)}.get(name, (np.nanargmin, np.nanargmax))
        picks |= {int(end(values)): name for end in ends}

    def text(i: int, name: str) -> str:
        if not name:
            return f"{i}"
        return f"{i} {name}\ndriver {run.driver.channel(name)[i]:.3g} avatar {run.output.channel(name)[i]:.3g}"

    return [(run.pairs[i], text(i, name)) for i, name in picks.items()]


def summary(driven: Sequence[Driven], spoken: Sequence[Spoken], still_rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The fixed fields: of every figure the worst over all portraits and drives; then every run for itself."""

    def worst(values: Sequence[float | int | None], *, lowest: bool) -> float | int | None:
        known = [value for value in values if value is not None and np.isfinite(value)]
        return (min(known) if lowest else max(known)) if known else None

    def latest(values: Sequence[int | None]) -> int | None:
        return max((value for value in values if value is not None), key=abs, default=None)

    return {
        "correlation": {name: worst([run.following.correlation[name] for run in driven], lowest=True) for name in CHANNELS},
        "lag_frames": latest([run.following.lag_frames for run in driven]),
        "neutral_psnr_db": worst([row["neutral_psnr_db"] for row in still_rows], lowest=True),
        "shimmer": worst([row["shimmer"] for row in still_rows], lowest=False),
        "shimmer_noisy": worst([row["shimmer_noisy"] for row in still_rows], lowest=False),
        "speech_correlation": worst([run.correlation for run in spoken], lowest=True),
        "speech_lag_frames": latest([run.lag_frames for run in spoken]),
        "silence_gap": worst([run.silence_gap for run in spoken], lowest=False),
        "rows": [
            {"portrait": r.portrait, "drive": r.drive, **asdict(r.following), "lost": {"driver": r.driver.lost, "output": r.output.lost}}
            for r in driven
        ],
        "still": list(still_rows),
        "speech": [
            {"portrait": r.portrait, "speech": r.speech, "correlation": r.correlation, "lag_frames": r.lag_frames, "silence_gap": r.silence_gap}
            for r in spoken
        ],
    }


def tables(driven: Sequence[Driven], spoken: Sequence[Spoken], still_rows: Sequence[dict[str, Any]]) -> list[Table]:
    """What people read."""
    found = []
    if driven:
        table = Table(
            ("portrait", "drive", *CHANNELS, "lag", "lost"), title="correlation of the avatar with its driver (n/a: the driver hardly moves)"
        )
        gains = Table(("portrait", "drive", *CHANNELS), title="gain: movement of the avatar per movement of its driver")
        for run in driven:
            f = run.following
            table.add(run.portrait, run.drive, *(f.correlation[n] for n in CHANNELS), f.lag_frames, run.output.lost)
            gains.add(run.portrait, run.drive, *(f.gain[n] for n in CHANNELS))
        found += [table, gains]
    if still_rows:
        table = Table(("portrait", "neutral PSNR dB", "shimmer", "shimmer, noisy camera"), title="at rest (shimmer: grey levels a frame in the head)")
        for row in still_rows:
            table.add(row["portrait"], row["neutral_psnr_db"], row["shimmer"], row["shimmer_noisy"])
        found.append(table)
    if spoken:
        table = Table(("portrait", "speech", "correlation", "lag", "lip gap in silence"), title="speech envelope against mouth opening")
        for said in spoken:
            table.add(said.portrait, said.speech, said.correlation, said.lag_frames, said.silence_gap)
        found.append(table)
    return found


def panels(driven: Sequence[Driven], spoken: Sequence[Spoken]) -> list[Panel]:
    """Driver and avatar over time, each about its own mean; speech and mouth."""
    drawn = []
    for run in driven:
        for name in CHANNELS:
            if run.following.correlation[name] is None:
                continue
            pair = {"driver": run.driver.channel(name), "avatar": run.output.channel(name)}
            lines = {label: (np.arange(len(v)).tolist(), (v - np.nanmean(v)).tolist()) for label, v in pair.items()}
            drawn.append(Panel(f"{run.drive} -> {run.portrait}: {name}", "frame", "about its mean", lines))
    for said in spoken:
        both = {"envelope": said.envelope, "mouth": said.opening}
        scaled = {label: (said.times.tolist(), (v / max(1e-9, float(np.nanmax(v)))).tolist()) for label, v in both.items()}
        drawn.append(Panel(f"{said.speech} -> {said.portrait}", "s", "share of its greatest", scaled))
    return drawn


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = arguments("quality", __doc__)
    parser.add_argument(
        "--portrait", nargs="+", default=[], metavar="P", help="pictures, or frames of videos as clip.mp4@12 (default: the built-in one)"
    )
    parser.add_argument("--drive", nargs="+", default=[], metavar="F", help="clips and sound files (default: a clip and a sentence made here)")
    parser.add_argument("--generator", default="puppet")
    parser.add_argument("--size", type=int, default=512, help="px of the generator's square frames")
    parser.add_argument("--limit", type=int, help="at most so many frames of a clip")
    parser.add_argument("--offline", action="store_true", help="let the driver see the whole clip once before it is measured")
    parser.add_argument("--no-body", action="store_true", help="leave the shoulders still")
    parser.add_argument("--skip", nargs="+", default=[], choices=("clips", "still", "speech"), help="leave parts out")
    parser.add_argument("--sheet", type=Path, metavar="F.png", help="write a contact sheet of each run: the driver above, the avatar below")
    return parser.parse_args(argv)


def _drives(options: argparse.Namespace) -> tuple[list[media.Clip], list[tuple[str, AudioChunk]]]:
    """Clips and sounds to drive with: those given, else made here."""
    from engine.media import probe

    paths = [Path(name) for name in options.drive]
    clips = [media.read_clip(path, limit=options.limit) for path in paths if probe(path).has_video]
    sounds = [(path.stem, media.read_sound(path)) for path in paths if not probe(path).has_video]
    if not clips and "clips" not in options.skip:
        made, _ = media.moving_portrait(media.CLIP_SECONDS if options.limit is None else options.limit / media.FPS)
        clips = [made]
    if not sounds and "speech" not in options.skip:
        spoken, voice = media.speech()
        sounds = [(voice, spoken)]
    return clips, sounds


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark -> exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = _options(words)
    clips, sounds = _drives(options)
    driven: list[Driven] = []
    spoken: list[Spoken] = []
    still_rows: list[dict[str, Any]] = []
    for portrait in options.portrait or [None]:
        picture = media.demo() if portrait is None else media.read_picture(portrait)
        stage = Stage(
            options.generator, picture, name="built-in" if portrait is None else Path(portrait).name, size=options.size, body=not options.no_body
        )
        for clip in clips if "clips" not in options.skip else ():
            driven.append(drive_with_clip(stage, clip, rehearse=options.offline))
            if options.sheet is not None:
                several = len(clips) * max(1, len(options.portrait)) > 1
                name = f"{options.sheet.stem}-{clip.name}-{Path(stage.name).stem}.png" if several else options.sheet.name
                contact_sheet(highlights(driven[-1]), options.sheet.with_name(name))
        if "still" not in options.skip:
            shown = next(clips[0].pictures()) if clips else picture
            still_rows.append(
                {
                    "portrait": stage.name,
                    "neutral_psnr_db": neutral_psnr(options.generator, stage, size=options.size),
                    "shimmer": still(stage, shown, noise=0.0),
                    "shimmer_noisy": still(stage, shown, noise=CAMERA_NOISE),
                }
            )
        if "speech" not in options.skip:
            spoken += [drive_with_speech(stage, sound, name=name) for name, sound in sounds]
    result = summary(driven, spoken, still_rows)
    report("quality", words, result, tables=tables(driven, spoken, still_rows), json_file=options.json)
    if options.plot is not None and (drawn := panels(driven, spoken)):
        plot(drawn, options.plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
