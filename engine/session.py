"""One person's drive: drivers -> window -> a row of a batch -> composite -> Output.

No threads of its own. Safe to call from three sides at once: tracking threads (`track`, `track_body`, `track_hands`), whoever brings the
sound (`hear`) and the thread that steps the batch (`due`, `finish`, through `render`).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from engine.batch import Batch
from engine.composite import compose
from engine.config import BODY_EVERY, HANDS_EVERY, OperatorSettings, SessionSettings
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
        hands: Any = None,
        seed: int = 0,
    ) -> None:
        """`face`, `body`, `hands`: drivers to use instead of the MediaPipe ones (a replay, a fake), made lazily otherwise."""
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
        self.hands_reading: Any = None
        self._grid: Grid | None = None  # of the last frames
        self._held = 0  # frames of another grid that the generator still holds
        self._images: dict[int, UInt8Array | None] = {}  # camera frame -> its picture, while a strip of it is carried
        self._face = face
        self._body = body
        self._hands = hands
        self._seen: Signal | None = None  # what the face driver read last
        self._matte: Any = None
        self._lock = threading.Lock()

    # -- what arrives -------------------------------------------------------------------------------------------------

    def track(self, frame: VideoFrame, *, now: float | None = None) -> Signal:
        """Read face and head from a camera frame and put the signal on the grid (tracking thread, about 5 ms)."""
        signal = self.face(frame)
        if self.operator.carry_strip or "image" in self.batch.generator.spec.needs:
            signal = replace(signal, image=frame.rgb)
        with self._lock:
            self._seen = signal
            self.window.see(signal, now=frame.time if now is None else now)
        return signal

    def track_body(self, frame: VideoFrame) -> None:
        """Read the shoulders from a camera frame; later signals carry them (tracking thread, about 25 ms, not on every frame)."""
        reading = self.body(frame)
        with self._lock:
            self.body_reading = reading

    def track_hands(self, frame: VideoFrame) -> None:
        """Read the hands from a camera frame; later signals carry them (tracking thread, about 20 ms, once in `hands_every` frames)."""
        with self._lock:
            seen = self._seen
        face, mouth = (None, 1.0) if seen is None else (seen.face, seen.confidence.get("mouth", 1.0))
        reading = self.hands(frame, face=face, mouth=mouth)
        with self._lock:
            self.hands_reading = reading

    def wants(self, part: Literal["body", "hands"]) -> bool:
        """Whether a part is to be tracked: what nothing shows costs nothing. The shoulders move any generator unless they are to be left still."""
        return part in self.batch.generator.spec.needs or (part == "body" and self.settings.track_body)

    @property
    def listens(self) -> bool:
        """Whether sound says anything here: it drives, or the generator makes the lips of it whoever moves the face."""
        return self.settings.drive != "camera" or "pcm" in self.batch.generator.spec.needs

    @property
    def hands_every(self) -> int:
        """Camera frames that one reading of the hands serves now."""
        reading = self.hands_reading
        return HANDS_EVERY if reading is not None and reading.followed else BODY_EVERY

    def hear(self, chunk: AudioChunk) -> None:
        """Sound arrives: the microphone's, a file's or a synthesiser's. Chunks are contiguous in time."""
        self.speech.hear(chunk, read=self.listens)

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
            body, hands, seen = self.body_reading, self.hands_reading, self._seen
        if due is not None and due.grid != "camera" and "maps" in self.batch.generator.spec.needs:
            due = _mapped(due, None if seen is None else seen.maps)
        if due is None:
            return None
        signals, drive = due.signals, self.settings.drive
        if not self.settings.track_body:  # who needs their points gets them all the same
            body = None if body is None else replace(body, confidence=0.0)
            signals = [_unshouldered(signal) for signal in signals]
        readings: dict[str, Any] = {"speech": self.speech, "body": body, "hands": hands, "listening": self.listens}
        mixed = [self.mixer.mix(s, grid=due.grid, drive=drive, **readings) for s in signals]
        return replace(due, signals=[self._settle(signal) for signal in mixed])

    def _settle(self, signal: Signal) -> Signal:
        """Less of the shoulders' motion where the picture goes on below the crop, as it does not move there."""
        share = self.persona.scene.body_share
        if share == 1.0 or signal.motion is None:
            return signal
        return replace(signal, motion=replace(signal.motion, body=signal.motion.body * share))

    def begin(self, due: Due) -> None:
        """Where the grid changes, frames that a generator still holds have the times of another clock."""
        if due.grid != self._grid and self._grid is not None:
            self._held = self.batch.generator.spec.delay
        self._grid = due.grid

    def finish(self, due: Due, frames: Sequence[VideoFrame]) -> Output:
        """Composite the generator's frames into the persona's scene and put their sound beside them."""
        spec = self.batch.generator.spec
        if self.operator.carry_strip:  # a generator with a delay shows earlier signals, so their pictures wait for it
            self._images |= {signal.id: signal.image for signal in due.signals}
            for old in list(self._images)[: -(spec.delay + spec.chunk)]:
                del self._images[old]
        timed = [self._matted(frame) for frame in self._timed(due, frames)]
        done = [compose(self.persona.scene, frame, self.settings, self.operator, driving=self._images.get(frame.id)) for frame in timed]
        start = done[0].time  # the sound of what is shown, not of what was asked
        if due.grid == "camera":
            return Output(done, [], "camera", sound_time=start)
        end = done[-1].time + 1.0 / self.window.fps  # not the generator's rate: a session may be told to make fewer
        return Output(done, self.speech.sound(start, end), "voice", sound_time=start)

    def _timed(self, due: Due, frames: Sequence[VideoFrame]) -> list[VideoFrame]:
        """The frames; those of another grid, which the picture goes through on its way to this one, as if this one had asked for them in time."""
        spec = self.batch.generator.spec
        held, self._held = min(self._held, len(frames)), max(0, self._held - len(frames))
        early = [replace(f, time=signal.time - spec.delay / self.window.fps) for f, signal in zip(frames[:held], due.signals, strict=False)]
        return [*early, *frames[held:]]

    def _matted(self, frame: VideoFrame) -> VideoFrame:
        """With the matte of what the frame shows, where it has none and a background asks for one. Where the network sees nobody in the
        frame, the still portrait's matte is what remains (see `compose`)."""
        if frame.alpha is not None or self.settings.background.kind == "keep":
            return frame
        return replace(frame, alpha=self.matte(frame.rgb))

    # -- the whole way in one call -------------------------------------------------------------------------------------

    def push_video(self, frame: VideoFrame) -> Output | None:
        """Track, generate and composite one camera frame. None while a chunk is still filling."""
        self.track(frame)
        return render(self.batch, [self], now=frame.time).get(self.row)

    def push_signal(self, signal: Signal) -> Output | None:
        """The same for a camera frame that was read already."""
        with self._lock:
            self.window.see(signal, now=signal.time)
        return render(self.batch, [self], now=signal.time).get(self.row)

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
        drivers = (self._face, self._body, self._hands, self._matte)
        self._face = self._body = self._hands = self._matte = None
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

    @property
    def hands(self) -> Any:
        """The hands driver of this session."""
        if self._hands is None:
            from engine.drivers.hands import HandsDriver

            self._hands = HandsDriver()
        return self._hands

    @property
    def matte(self) -> Any:
        """What says who is the person in a frame, for generators that do not (see `engine.drivers.live_matte`)."""
        if self._matte is None:
            from engine.drivers.live_matte import LiveMatte

            self._matte = LiveMatte()
        return self._matte


def _mapped(due: Due, last: Mapping[str, UInt8Array] | None) -> Due | None:
    """A voice brings no condition pictures, so the camera's last ones are held; None before there are any."""
    signals = [signal if signal.maps is not None else replace(signal, maps=last) for signal in due.signals]
    return None if any(signal.maps is None for signal in signals) else replace(due, signals=signals)


def _unshouldered(signal: Signal) -> Signal:
    """The signal without the motion of the shoulders."""
    motion = signal.motion
    if motion is None or not motion.confidence[2]:
        return signal
    return replace(signal, motion=replace(motion, confidence=np.array([*motion.confidence[:2], 0.0], np.float32)))


def render(batch: Batch, sessions: Sequence[Session], *, now: float) -> dict[int, Output]:
    """One step of a batch: every session that has frames due is stepped in one generator call -> {row: Output}."""
    due = {session.row: (session, ready) for session in sessions if (ready := session.due(now)) is not None}
    if not due:
        return {}
    for session, ready in due.values():
        session.begin(ready)
    frames = batch.step({row: ready.signals for row, (_, ready) in due.items()})
    return {row: session.finish(ready, frames[row]) for row, (session, ready) in due.items()}
