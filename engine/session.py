"""One person's drive: drivers -> window -> a row of a batch -> composite -> Output.

No threads of its own. Safe to call from three sides at once: a tracking thread (`track`, `track_body`), whoever brings the
sound (`hear`) and the thread that steps the batch (`due`, `finish`, through `render`).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from engine.batch import Batch
from engine.composite import compose
from engine.config import OperatorSettings, SessionSettings
from engine.drivers.mix import Mixer
from engine.drivers.speech import LOOK_AHEAD, SpeechDriver
from engine.persona import Persona
from engine.types import AudioChunk, FaceSource, Grid, Output, Signal, UInt8Array, VideoFrame
from engine.window import Due, Window

HEARD_AT_ONCE = 0.1
"""s of sound taken at a time; the window would take more for a stall and jump to its end."""


class Session:
    """A persona, driven. Make one with `Session(batch, persona)`; `close` gives its row back.

    `push_video` and `push_audio` do the whole way in one call; a server calls the halves from its own threads and steps
    many sessions of one batch with `render`.
    """

    def __init__(
        self,
        batch: Batch,
        persona: Persona,
        *,
        settings: SessionSettings | None = None,
        operator: OperatorSettings | None = None,
        face: FaceSource | None = None,
        body: Any = None,
        seed: int = 0,
    ) -> None:
        """`face`, `body`: drivers to use instead of the MediaPipe ones (a replay, a fake), made lazily otherwise."""
        self.persona = persona
        self.batch = batch
        self.row = batch.admit(persona.identity)
        self.settings = settings or SessionSettings()
        self.operator = operator or OperatorSettings()
        spec = batch.generator.spec
        self.speech = SpeechDriver()
        self.window = Window(fps=spec.fps, chunk=spec.chunk, look_ahead=LOOK_AHEAD)
        self.mixer = Mixer(seed=seed)
        self.body_reading: Any = None
        self._grid: Grid | None = None  # of the last frames
        self._images: dict[int, UInt8Array | None] = {}  # camera frame -> its picture, while a strip of it is carried
        self._face = face
        self._body = body
        self._lock = threading.Lock()

    # -- what arrives -------------------------------------------------------------------------------------------------

    def track(self, frame: VideoFrame, *, now: float | None = None) -> Signal:
        """Read face and head from a camera frame and put the signal on the grid (tracking thread, about 5 ms)."""
        signal = self.face(frame)
        if self.operator.carry_strip:
            signal = replace(signal, image=frame.rgb)
        with self._lock:
            self.window.see(signal, now=frame.time if now is None else now)
        return signal

    def track_body(self, frame: VideoFrame) -> None:
        """Read the shoulders from a camera frame; later signals carry them (tracking thread, about 25 ms, not on every frame)."""
        reading = self.body(frame)
        with self._lock:
            self.body_reading = reading

    def hear(self, chunk: AudioChunk) -> None:
        """Sound arrives: the microphone's, a file's or a synthesiser's. Chunks are contiguous in time."""
        self.speech.hear(chunk, read=self.settings.drive != "camera")

    def configure(self, **changes: Any) -> None:
        """Change settings by name (see SessionSettings); an unknown name raises TypeError."""
        self.settings = replace(self.settings, **changes)

    @property
    def neutral_state(self) -> str:
        """ "searching" or "set"; asking makes no driver, also after `close`."""
        return "searching" if self._face is None else self._face.neutral_state

    def set_neutral(self) -> None:
        """Take the driver's present face and shoulders as the neutral ones."""
        self.face.set_neutral()
        if self._body is not None:
            self._body.set_neutral()

    def interrupt(self) -> None:
        """Forget the sound that was heard but not yet shown; the lips close with it."""
        with self._lock:
            self.speech.clear()
            self.window.reset()

    # -- what leaves --------------------------------------------------------------------------------------------------

    def due(self, now: float) -> Due | None:
        """The signals that are due at `now`, mixed from every driver, or None."""
        with self._lock:
            due = self.window.due(now=now, heard_until=self.speech.heard_until, drive=self.settings.drive)
            reading = self.body_reading
        if due is None:
            return None
        mixed = [self.mixer.mix(s, grid=due.grid, drive=self.settings.drive, speech=self.speech, body=reading) for s in due.signals]
        return replace(due, signals=[self._settle(signal) for signal in mixed])

    def _settle(self, signal: Signal) -> Signal:
        """Less of the shoulders' motion where the picture goes on below the crop, as it does not move there."""
        share = self.persona.scene.body_share
        if share == 1.0 or signal.motion is None:
            return signal
        return replace(signal, motion=replace(signal.motion, body=signal.motion.body * share))

    def begin(self, due: Due) -> None:
        """Where the grid changes, frames that a generator still holds belong to another clock: they are given up."""
        if due.grid != self._grid and self._grid is not None and self.batch.generator.spec.delay:
            self.batch.reset(self.row)
        self._grid = due.grid

    def finish(self, due: Due, frames: Sequence[VideoFrame]) -> Output:
        """Composite the generator's frames into the persona's scene and put their sound beside them."""
        spec = self.batch.generator.spec
        if self.operator.carry_strip:  # a generator with a delay shows earlier signals, so their pictures wait for it
            self._images |= {signal.id: signal.image for signal in due.signals}
            for old in list(self._images)[: -(spec.delay + spec.chunk)]:
                del self._images[old]
        done = [compose(self.persona.scene, frame, self.settings, self.operator, driving=self._images.get(frame.id)) for frame in frames]
        start = frames[0].time  # the sound of what is shown, not of what was asked
        if due.grid == "camera":
            return Output(done, [], "camera", sound_time=start)
        span = len(done) / spec.fps
        return Output(done, self.speech.sound(start, start + span), "voice", sound_time=start)

    # -- the whole way in one call -------------------------------------------------------------------------------------

    def push_video(self, frame: VideoFrame) -> Output | None:
        """Track, generate and composite one camera frame. None while a chunk is still filling."""
        self.track(frame)
        return render(self.batch, [self], now=frame.time).get(self.row)

    def push_audio(self, chunk: AudioChunk) -> list[Output]:
        """Hear a chunk of any length and make every frame it completes."""
        outputs = []
        piece = max(1, round(HEARD_AT_ONCE * chunk.rate))
        for start in range(0, len(chunk.pcm), piece):
            heard = AudioChunk(chunk.pcm[start : start + piece], chunk.rate, chunk.time + start / chunk.rate)
            self.hear(heard)
            while (output := render(self.batch, [self], now=heard.time + heard.duration).get(self.row)) is not None:
                outputs.append(output)
        return outputs

    def close(self) -> None:
        """Give the row and the trackers back, each whatever becomes of the others. Call from the thread that steps the batch."""
        drivers, self._face, self._body = (self._face, self._body), None, None
        with ExitStack() as last:
            last.callback(self.batch.release, self.row)
            for driver in drivers:
                if driver is not None:
                    last.callback(driver.close)

    # -- drivers, made on first use -------------------------------------------------------------------------------------

    @property
    def face(self) -> FaceSource:
        """The face driver of this session."""
        if self._face is None:
            from engine.drivers.face import FaceDriver

            self._face = FaceDriver()
        return self._face

    @property
    def body(self) -> Any:
        """The body driver of this session."""
        if self._body is None:
            from engine.drivers.body import BodyDriver

            self._body = BodyDriver()
        return self._body


def render(batch: Batch, sessions: Sequence[Session], *, now: float) -> dict[int, Output]:
    """One step of a batch: every session that has frames due is stepped in one generator call -> {row: Output}."""
    due = {session.row: (session, ready) for session in sessions if (ready := session.due(now)) is not None}
    if not due:
        return {}
    for session, ready in due.values():
        session.begin(ready)
    frames = batch.step({row: ready.signals for row, (_, ready) in due.items()})
    return {row: session.finish(ready, frames[row]) for row, (session, ready) in due.items()}
