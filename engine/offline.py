"""Offline rendering: the same session as live, fed from a file as fast as it goes, with the sound kept."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.batch import Batch
from engine.config import BODY_EVERY, OperatorSettings, SessionSettings
from engine.drivers.readings import beside
from engine.media import Writer, audio_samples, first_picture_time, probe, video_frames
from engine.persona import Persona
from engine.session import Session
from engine.types import AudioChunk, AvatarError, Drive, FloatArray, Generator, Output, Signal, VideoFrame

if TYPE_CHECKING:
    from engine.drivers.maps import Maps

SOUND_RATE = 48_000
"""Hz of the rendered file's sound."""
SOUND_STEP = SOUND_RATE // 50
"""Samples a push: 20 ms, as a live microphone would."""
CLOSING = 0.5
"""s of silence after a voice, in which the lips close."""
AUDIBLE = 1e-4
"""Samples above this are sound: -80 dB of full scale, under the noise of any microphone."""
FEW_FACES = 0.5
"""Share of frames with a face below which it is said, since the idle motion of the rest is no mistake of the portrait's."""
RECORDING = ".npz"
"""Suffix of recorded signals, see engine.drivers.replay."""

Progress = Callable[[int, int], None]
"""(frames done, frames expected, 0 where nobody knows) after every frame."""


def render(
    generator: Generator,
    persona: Persona,
    drive: str | Path,
    out: str | Path,
    *,
    settings: SessionSettings | None = None,
    operator: OperatorSettings | None = None,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
    record: str | Path | None = None,
    makers: Mapping[str, Callable[[], Any]] | None = None,
    maps: Maps | None = None,
) -> int:
    """Drive a persona with a clip, a sound file or recorded signals (.npz) and write the result -> number of frames.

    A file with video drives with its camera unless `settings.drive` is "voice"; a sound file drives with its voice. `notice` is told
    what is worth knowing about a result that is no mistake; `record`: an .npz that the face's signals are written to;
    `makers`: of the drivers of "body" and "hands" to use instead of MediaPipe's; `maps`: condition pictures to play beside the drive, closed
    with it. Raises AvatarError for a file that cannot drive or be written, before anything is rendered, and for a camera drive without a face.
    """
    keep_apart(out, drive, record)
    if record is not None:
        keep_apart(record, drive)
    with contextlib.ExitStack() as stack:
        recorder = None if record is None else stack.enter_context(_Recorder(Path(record)))
        writer = stack.enter_context(Writer(out, audio_rate=SOUND_RATE))
        run = stack.enter_context(_run(generator, persona, drive, settings, operator, makers, maps, record=recorder is not None))
        sound, watch = run.source.sound, run.watch
        if not len(sound):
            writer.audio_rate = None
        done = heard = 0
        for frame in run.frames:
            # Sound and picture go into the file side by side: a player need not seek, and the writer need not hold all of one back.
            until = max(heard, round(frame.time * SOUND_RATE))
            writer.write_audio(AudioChunk(sound[heard:until], SOUND_RATE, heard / SOUND_RATE))
            heard = until
            writer.write_frame(frame)
            done += 1
            if progress is not None:
                progress(done, run.expected and max(run.expected, done))
        writer.write_audio(AudioChunk(sound[heard:], SOUND_RATE, heard / SOUND_RATE))
        if watch is not None:
            _judge(run, watch, Path(drive).name, notice=notice)
            if recorder is not None:
                recorder.signals = watch.signals
    return done


def run_through(
    generator: Generator,
    persona: Persona,
    drive: str | Path,
    *,
    settings: SessionSettings | None = None,
    makers: Mapping[str, Callable[[], Any]] | None = None,
    maps: Maps | None = None,
) -> None:
    """Ask a generator for every frame that `render` would ask it for, and write none. Raises AvatarError as `render` does."""
    with _run(generator, persona, drive, settings, None, makers, maps, record=False) as run:
        for _ in run.frames:
            pass
        if run.watch is not None:
            _judge(run, run.watch, Path(drive).name, notice=None)


@dataclass(frozen=True, slots=True)
class _Run:
    """A session on its way through a drive."""

    session: Session
    source: _Source
    watch: _Watch | None  # None where a voice drives
    frames: Iterator[VideoFrame]
    expected: int  # frames; 0 where nobody knows


@contextlib.contextmanager
def _run(
    generator: Generator,
    persona: Persona,
    drive: str | Path,
    settings: SessionSettings | None,
    operator: OperatorSettings | None,
    makers: Mapping[str, Callable[[], Any]] | None,
    maps: Maps | None,
    *,
    record: bool,
) -> Iterator[_Run]:
    with contextlib.ExitStack() as stack:
        if maps is not None:
            stack.callback(maps.close)
        settings = settings or SessionSettings(drive=natural_drive(drive))
        source = _open(Path(drive), settings)
        watch = None if settings.drive == "voice" else _Watch(source.face, keep=record, maps=maps)
        if record and watch is None:
            raise AvatarError("A voice leaves no signals of a face to record; leave out --record-signals or drive with the camera.")
        if maps is not None and watch is None:
            raise AvatarError("Condition pictures are played beside a driving picture; leave out --maps or drive with the camera.")
        others = {} if watch is None or source.face is not None else {part: make() for part, make in (makers or {}).items()}
        session = Session(Batch(generator, rows=1), persona, settings=settings, operator=operator, face=watch, **others)
        stack.callback(session.close)
        fps = generator.spec.fps
        expected = round(len(source.sound) / SOUND_RATE * fps) if watch is None else source.expected(fps)
        yield _Run(session, source, watch, _voice(session, source.sound) if watch is None else _camera(session, source, watch), expected)


def natural_drive(drive: str | Path) -> Drive:
    """Who moves the face where nobody says: the picture where there is one."""
    return "camera" if _recorded(Path(drive)) or probe(drive).has_video else "voice"


def keep_apart(out: str | Path, *inputs: str | Path | None) -> None:
    """Raise AvatarError where a file that is read (or written besides) is the one to write: it would be lost."""
    for name in inputs:
        if name is None:
            continue
        with contextlib.suppress(OSError, ValueError):  # a file that is not there is told elsewhere
            same = Path(out).absolute() == Path(name).absolute() or os.path.samefile(out, name)
            if same:
                raise AvatarError(f"'{out}' is named twice, and writing it would destroy '{name}'; write to another file.")


# -- what drives ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Source:
    """An opened drive; pictures and sound on one clock whose 0 is the first picture, or the first sound where there is no picture."""

    frames: Callable[[], Iterator[VideoFrame]]
    count: int  # frames, an estimate; 0 where nobody knows
    sound: FloatArray  # [N] at SOUND_RATE
    face: Any = None  # the driver that reads the frames; None: the session's own
    fps: float = 0.0  # pictures a second on average; 0 where nobody knows

    def expected(self, most: int) -> int:
        """Frames that a generator of `most` a second makes of it; 0 where nobody knows."""
        return round(self.count * min(1.0, most / self.fps)) if self.fps > 0 else self.count

    @property
    def audible(self) -> bool:
        return bool(np.any(np.abs(self.sound) > AUDIBLE))


def _recorded(drive: Path) -> bool:
    return drive.suffix.lower() == RECORDING


def _open(drive: Path, settings: SessionSettings) -> _Source:
    if _recorded(drive):
        return _open_recording(drive, settings)
    clip = probe(drive)
    if settings.drive != "voice" and not clip.has_video:
        raise AvatarError(f"'{drive.name}' has no video; drive with the voice instead (--drive-mode voice).")
    sound = np.zeros(0, np.float32)
    if clip.has_audio:
        try:
            sound = audio_samples(drive, rate=SOUND_RATE, origin=first_picture_time(drive) if clip.has_video else None)
        except AvatarError:
            if settings.drive != "camera":  # which needs no sound, so that an empty track is none
                raise
    source = _Source(lambda: video_frames(drive), clip.frames, sound, fps=clip.fps)
    if settings.drive == "voice" and not source.audible:
        raise AvatarError(f"'{drive.name}' is silent, so there is nothing for the lips to say; choose a file with speech.")
    return source


def _open_recording(drive: Path, settings: SessionSettings) -> _Source:
    from engine.drivers import replay

    if settings.drive == "voice":
        raise AvatarError(f"'{drive.name}' holds no voice, only signals of a face; leave out --drive-mode voice.")
    face = replay.ReplayDriver(drive, loop=False)
    times = [signal.time for signal in replay.load(drive)]
    if not np.all(np.isfinite(times)) or np.any(np.diff(times) <= 0):
        raise AvatarError(f"The times in the recording {drive} do not go forward; record it again.")
    blank = np.zeros((2, 2, 3), np.uint8)
    frames = [VideoFrame(blank, time - times[0], number) for number, time in enumerate(times, 1)]
    return _Source(lambda: iter(frames), len(frames), np.zeros(0, np.float32), face)


# -- what is done with it -------------------------------------------------------------------------------------------------


def _chunks(sound: FloatArray) -> Iterator[AudioChunk]:
    for start in range(0, len(sound), SOUND_STEP):
        yield AudioChunk(sound[start : start + SOUND_STEP], SOUND_RATE, start / SOUND_RATE)


def _voice(session: Session, sound: FloatArray) -> Iterator[VideoFrame]:
    # Silence at the end lets the look-ahead run out, the lips close, and the generator give up the frames that it still holds.
    spec = session.batch.generator.spec
    tail = np.zeros(round(SOUND_RATE * (CLOSING + (spec.delay + spec.chunk) / spec.fps)), np.float32)
    length = len(sound) / SOUND_RATE
    for chunk in _chunks(np.concatenate([sound, tail])):
        for output in session.push_audio(chunk):
            yield from (frame for frame in output.frames if 0.0 <= frame.time < length)


def _camera(session: Session, source: _Source, watch: _Watch) -> Iterator[VideoFrame]:
    """As many frames as the source has pictures that the generator is asked for (see `engine.window`), each with its picture's time."""
    spec = session.batch.generator.spec
    chunks = _chunks(source.sound)
    heard, asked, hands_at = 0.0, 0, -BODY_EVERY
    made = -spec.delay  # what a delayed generator shows before it has the first motion answers no picture
    for frame in source.frames():
        while session.listens and heard < frame.time + session.window.look_ahead:
            chunk = next(chunks, None)
            if chunk is None:
                break
            session.hear(chunk)
            heard = chunk.time + chunk.duration
        if source.face is None:
            if session.wants("body") and asked % BODY_EVERY == 0:
                session.track_body(frame)
            if session.wants("hands") and asked - hands_at >= session.hands_every:
                session.track_hands(frame)
                hands_at = asked
        asked += 1
        for answer in _frames(session.push_video(frame)):
            made += 1
            if made > 0:
                yield answer
        watch.keep(session)
    asked -= session.window.thinned
    # The last ones it still holds, as does a chunk that has not filled: the last signal once more, and again, brings them out.
    signal = watch.last
    while signal is not None and made < asked:
        signal = replace(signal, time=signal.time + 1.0 / spec.fps)
        for answer in _frames(session.push_signal(signal)):
            made += 1
            if 0 < made <= asked:
                yield answer


def _frames(output: Output | None) -> list[VideoFrame]:
    return [] if output is None else output.frames


class _Watch:
    """A face driver that counts where it sees a face, and keeps its signals on request."""

    def __init__(self, face: Any, *, keep: bool, maps: Maps | None = None) -> None:
        from engine.drivers.face import FaceDriver
        from engine.drivers.maps import FaceAndMaps

        self._face = face or FaceDriver()
        if maps is not None:
            self._face = FaceAndMaps(self._face, maps)
        self._keep = keep
        self.frames = self.seen = 0
        self.last: Signal | None = None
        self.signals: list[Signal] = []

    def __call__(self, frame: VideoFrame) -> Signal:
        signal: Signal = self._face(frame)
        self.frames, self.last = self.frames + 1, signal
        self.seen += signal.motion is not None and float(signal.motion.confidence[0]) > 0.0
        return signal

    def keep(self, session: Session) -> None:
        """Keep the last signal, where signals are kept, with what the session's other drivers know of its instant."""
        if self._keep and self.last is not None:
            self.signals.append(beside(self.last, body=session.body_reading, hands=session.hands_reading))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._face, name)


def _judge(run: _Run, watch: _Watch, name: str, *, notice: Callable[[str], None] | None) -> None:
    """Raise AvatarError, or tell, where too few faces are seen for what moves the portrait."""
    needs = set(run.session.batch.generator.spec.needs)
    followed = bool(needs & {"motion", "face"})
    spoken = run.source.audible and (run.session.settings.drive == "auto" or not followed)
    share = watch.seen / max(1, watch.frames)
    if not watch.seen and watch.frames and not spoken and (followed or "pcm" in needs):
        raise AvatarError(f"No face was found in '{name}', so there is nothing to follow; choose a clip with a face, larger and better lit.")
    if followed and share < FEW_FACES and notice is not None:
        notice(f"A face was found in only {share:.0%} of the frames of '{name}'; in the others the portrait idles.")


class _Recorder:
    """Writes signals when the rendering has gone well; told before it begins where it cannot."""

    def __init__(self, path: Path) -> None:
        self.signals: list[Signal] = []
        self._path = path
        self._partial = path.with_name(f".{path.stem[:60]}-{os.getpid()}.part") if path.name else path
        if not _recorded(path):
            raise AvatarError(f"Signals are recorded in an {RECORDING} file; name it so instead of '{path}'.")
        if path.is_dir():
            raise AvatarError(f"'{path}' is a folder; name a file in it, such as {path / ('signals' + RECORDING)}.")

    def __enter__(self) -> _Recorder:
        self._attempt(self._partial.touch)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        from engine.drivers.replay import save

        try:
            if kind is None:
                self._attempt(lambda: save(self._partial, self.signals))
                self._attempt(lambda: self._partial.replace(self._path))
        finally:
            with contextlib.suppress(OSError):
                self._partial.unlink(missing_ok=True)

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            raise AvatarError(f"'{self._path}' cannot be written ({error.strerror or error}); record elsewhere.") from error
