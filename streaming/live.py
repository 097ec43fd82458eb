"""One live session: what arrives, what is computed, what leaves. Knows no transport; a peer or a test brings frames and sound.

Loop side: `camera`, `mic`, the settings, `close`. Worker side: the Seat methods and the tracking jobs. What crosses is one
slot for the camera picture (newest wins), a short deque of sound, and `call_soon_threadsafe` back.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.drivers.speech import LOOK_AHEAD, SpeechDriver
from engine.persona import Persona
from engine.session import Session
from engine.types import AudioChunk, Drive, FloatArray, Output, VideoFrame
from streaming.chat import Chat
from streaming.ladder import Ladder
from streaming.outlet import Outlet
from streaming.pacing import RATE, Pacer
from streaming.rtc import ReceivedVideo
from streaming.sound import SoundStream
from streaming.speaker import Speaker
from streaming.stats import Stats
from streaming.worker import Stepper, StepTimes, sentence

if TYPE_CHECKING:
    from streaming.studio import Studio

SOUND_WAITING = 100
"""Blocks of 20 ms a stalled worker may leave unheard: 2 s."""
FACE_LOST = 0.5
"""s without a face after which the page is told."""
BARGE_VOICED = 0.6
"""Voicedness of the microphone that counts as speech ..."""
BARGE_BLOCKS = 6
"""... and blocks of 20 ms in a row of it that interrupt an utterance."""
CAPTURE_JUMP = 1.0
"""s between capture and arrival that is not believed (a sender's clock that jumped)."""


class Live:
    """A persona being driven. Made by the studio; sinks are put into `outlet.sinks`."""

    def __init__(self, persona: Persona, *, studio: Studio, stepper: Stepper, echo: bool = False) -> None:
        self.id = secrets.token_hex(8)
        self.resume_token = secrets.token_urlsafe(24)
        self.persona = persona
        self.settings = studio.settings
        self.echo = echo
        self.session: Session  # set by the studio, on the stepper's thread
        self.stepper = stepper
        self.sound = SoundStream()
        self.stats = Stats(started=time.monotonic())
        spec = stepper.generator.spec
        self.pacer = Pacer(self.stats, fps=spec.fps, chunk=spec.chunk, declared_lag=LOOK_AHEAD + (spec.chunk + spec.delay) / spec.fps + 0.02)
        self.outlet = Outlet(self.pacer, on_tick=self._tick)
        self.speaker = Speaker(self.sound, synthesizer=studio.synthesizer, chat=Chat(studio.settings), notice=lambda text: self.tell(text, "error"))
        self.ladder = Ladder()
        self.closed = False
        self.connected = False  # whether a person is there; set by the peer
        self._failed = False
        self.on_event: Callable[[dict[str, Any]], None] = lambda _: None  # messages for the page; set by the peer
        self.on_failed: Callable[[str], None] = lambda _: None  # the session died; set by the studio
        self.barge_in = True
        self.return_voice = False
        self.face_state = "lost"
        self._told: dict[str, Any] = {}
        self._face_seen = 0.0
        self._studio = studio
        self._pool, self._bodies = studio.pool, studio.bodies
        self._loop = asyncio.get_running_loop()
        self._mail: ReceivedVideo | None = None  # the one slot between the loop and the trackers
        self._tracking = False
        self._lock = threading.Lock()  # guards the two above
        self._face_lock = threading.Lock()  # held while a tracker uses the session
        self._body_lock = threading.Lock()
        self._frames = 0
        self._captured = float("-inf")
        self._camera_due = 0.0
        self._to_hear: deque[tuple[FloatArray, int]] = deque(maxlen=SOUND_WAITING)
        self._ears: SpeechDriver | None = None  # hears the microphone alone while something is being said
        self._voiced = 0
        self._judged = (time.monotonic(), 0, 0, 0.0)  # time, frames sent, camera frames, busy seconds at the last look

    @property
    def resting(self) -> bool:
        """See worker.Seat."""
        return self.echo or not self.outlet.sinks

    # -- what arrives (loop) -------------------------------------------------------------------------------------------

    def camera(self, received: ReceivedVideo) -> None:
        """A camera picture; the newest waits for a tracker, the one before it is dropped."""
        if self.closed:
            return
        stats = self.stats
        stats.camera.hit(received.arrival)
        stats.counts["camera"] += 1
        capture = received.capture if 0.0 <= received.arrival - received.capture < CAPTURE_JUMP else received.arrival
        stats.stage("uplink", received.arrival - capture)
        if self._too_fast(received.arrival):
            stats.drop("camera_fps")
            return
        if capture <= self._captured:  # a mapped clock may be corrected backwards; the grid only runs forwards
            capture = self._captured + 1e-4
        self._captured = capture
        if self.echo:
            self._frames += 1
            frame = VideoFrame(np.zeros((0, 0, 3), np.uint8), capture, self._frames)
            self.pacer.put(Output([frame], [], "camera", capture), now=time.monotonic(), raw=received.frame)
            self.outlet.poke()
        elif self.session.settings.drive != "voice":
            self._mail_in(ReceivedVideo(received.frame, capture, received.rtp, received.arrival))

    def _mail_in(self, received: ReceivedVideo) -> None:
        with self._lock:
            if self._mail is not None:
                self.stats.drop("camera")
            self._mail = received
            if self._tracking:
                return
            self._tracking = True
        self._pool.submit(self._track)

    def _too_fast(self, now: float) -> bool:
        """Thin out a camera that is faster than the limit or the ladder allows."""
        interval = 1.0 / min(self.settings.limits.camera_fps, self.ladder.rung.fps)
        if now < self._camera_due - 0.25 * interval:
            return True
        self._camera_due = max(self._camera_due + interval, now)
        return False

    def mic(self, chunk: AudioChunk) -> None:
        """Sound of the microphone."""
        if not self.closed:
            now = time.monotonic()
            self.sound.hear(chunk, now=now)
            self._pass_sound(now)

    def _pass_sound(self, now: float) -> None:
        """Whatever sound is complete goes to the pacer and to the session."""
        for block, start in self.sound.blocks(now=now):
            self.pacer.sound(block, start)
            if not self.echo:
                self._to_hear.append((block, start))
        if self._to_hear:
            self.stepper.wake()

    def _tick(self, now: float) -> None:
        self._pass_sound(now)
        self.tell_state()

    # -- tracking jobs (pool threads) ----------------------------------------------------------------------------------

    def _track(self) -> None:
        with self._lock:
            received, self._mail = self._mail, None
            if received is None or self.closed:
                self._tracking = False
                return
        try:
            self._track_one(received)
        except Exception as error:  # a tracker that fails ends its own session, no other
            self._post(self._fail, sentence(error))
            return
        with self._lock:
            if self._mail is None:
                self._tracking = False
                return
        self._pool.submit(self._track)

    def _track_one(self, received: ReceivedVideo) -> None:
        started = time.monotonic()
        self.stats.stage("wait", started - received.arrival)
        with self._face_lock:
            if self.closed:
                return
            self._frames += 1
            frame = VideoFrame(camera_rgb(received, self.settings.limits.camera_pixels), received.capture, self._frames)
            signal = self.session.track(frame, now=time.monotonic())
        self.stats.stage("track", time.monotonic() - started)
        self.stats.counts["tracked"] += 1
        self.stepper.wake()
        self._post(self._saw, 0.0 if signal.motion is None else float(signal.motion.confidence[0]))
        due = self._frames % self.ladder.rung.body_every == 0
        if due and self.session.settings.track_body and self._body_lock.acquire(blocking=False):
            self._bodies.submit(lambda: self._track_body(frame))

    def _track_body(self, frame: VideoFrame) -> None:
        """Runs with the body lock held, which it gives back."""
        try:
            if not self.closed:
                started = time.monotonic()
                self.session.track_body(frame)
                self.stats.stage("body", time.monotonic() - started)
        except Exception as error:  # as above
            self._post(self._fail, sentence(error))
        finally:
            self._body_lock.release()

    # -- the Seat (stepper thread) -------------------------------------------------------------------------------------

    def listen(self) -> None:
        """See worker.Seat."""
        while self._to_hear:
            block, start = self._to_hear.popleft()
            self.session.hear(AudioChunk(block.sum(axis=0), RATE, start / RATE))
            if self.barge_in and self.sound.speaking:
                self._watch_mic(AudioChunk(block[0], RATE, start / RATE))
            elif self._ears is not None:
                self._ears, self._voiced = None, 0

    def _watch_mic(self, chunk: AudioChunk) -> None:
        """Somebody who speaks over the avatar interrupts it."""
        if self._ears is None:
            self._ears = SpeechDriver()
        self._ears.hear(chunk)
        voiced = self._ears.at(chunk.time + chunk.duration - LOOK_AHEAD).voiced
        self._voiced = self._voiced + 1 if voiced > BARGE_VOICED else 0
        if self._voiced == BARGE_BLOCKS:
            self._post(self.interrupt)

    def deliver(self, output: Output, times: StepTimes) -> None:
        """See worker.Seat."""
        self.stats.stage("step", times.step)
        self.stats.stage("compose", times.compose)
        self.stats.counts["rendered"] += len(output.frames)
        self._post(self._leave, output, time.monotonic())

    def shut(self) -> None:
        """See worker.Seat."""
        self.closed = True
        with self._face_lock, self._body_lock:
            self.session.close()

    def failed(self, error: Exception) -> None:
        """See worker.Seat."""
        self._post(self._fail, sentence(error))

    def _post(self, function: Callable[..., None], *args: Any) -> None:
        """Call on the loop, soon; nothing where the loop is gone already."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *args)

    # -- back on the loop ----------------------------------------------------------------------------------------------

    def _leave(self, output: Output, rendered: float) -> None:
        if self.closed:
            return
        now = time.monotonic()
        self.stats.stage("handoff", now - rendered)
        self.pacer.put(output, now=now)
        self.outlet.poke()

    def _saw(self, confidence: float) -> None:
        now = time.monotonic()
        if confidence > 0.0:
            self._face_seen = now
        self.face_state = "seen" if now - self._face_seen < FACE_LOST else "lost"

    def _fail(self, reason: str) -> None:
        if not self._failed:
            self._failed = True
            self.on_failed(reason)

    # -- words for the page --------------------------------------------------------------------------------------------

    def tell(self, text: str, level: str = "info") -> None:
        """A sentence for the person."""
        self.on_event({"type": "notice", "level": level, "text": text})

    def tell_state(self, *, always: bool = False) -> None:
        """Send the page what it shows as state, where it has changed."""
        state = {"speaking": self.sound.speaking, "drive": self.drive, "face": self.face_state, "neutral": self.neutral_state}
        if always or state != self._told:
            self._told = state
            self.on_event({"type": "state", **state})

    # -- settings (loop) -----------------------------------------------------------------------------------------------

    @property
    def drive(self) -> Drive:
        """Who moves the face."""
        return self.session.settings.drive

    @property
    def neutral_state(self) -> str:
        """ "set" once the face driver has chosen its neutral."""
        return "set" if getattr(self.session.face, "calibrated", True) else "searching"

    def set_neutral(self) -> None:
        """Take the driver's present face as the neutral one; done on a tracking thread."""

        def job() -> None:
            with self._face_lock:
                if not self.closed:
                    self.session.set_neutral()

        self._pool.submit(job)

    def interrupt(self) -> None:
        """Stop speaking now: what was not sent is thrown away."""
        if self.closed:
            return
        self.speaker.cancel()
        self.session.interrupt()
        self.pacer.interrupt(now=time.monotonic())
        self.tell_state()

    def judge(self) -> None:
        """Once a second: does the session keep up? The ladder decides what gives way."""
        if self.resting or self.closed:
            return
        now, sent, camera, busy = time.monotonic(), self.stats.counts["sent"], self.stats.counts["camera"], self._studio.load()
        before, sent_before, camera_before, busy_before = self._judged
        span = now - before
        worked = max(busy.get(self.stepper.name, 0.0), busy["tracker"])
        self._judged = (now, sent, camera, worked)
        fps = self.stepper.generator.spec.fps
        wanted = min(fps, (camera - camera_before) / span) if self.pacer.grid == "camera" else fps
        if span < 0.5 or not self.ladder.observe(wanted=wanted, made=(sent - sent_before) / span, busy=min(1.0, (worked - busy_before) / span)):
            return
        rung = self.ladder.rung
        self.session.configure(track_every=rung.track_every, output_scale=rung.output_scale)
        self.session.window.fps = min(fps, rung.fps)

    def snapshot(self) -> dict[str, Any]:
        """For /stats and the page."""
        now = time.monotonic()
        snapshot = self.stats.snapshot(now)
        drops = {**snapshot["drops"], "mic": self.sound.mic.dropped, "mic_late": self.sound.late, "window": self.session.window.dropped}
        snapshot["drops"] = {cause: count for cause, count in drops.items() if count}
        playhead = self.pacer.playhead
        return {
            **snapshot,
            "ladder": {"rung": self.ladder.index, "name": self.ladder.rung.name, "why": self.ladder.why, "steps": self.ladder.steps},
            "persona": self.persona.name,
            "generator": "echo" if self.echo else self.stepper.generator.spec.name,
            "ai_generated": True,
            "drive": self.drive,
            "grid": self.pacer.grid,
            "speaking": self.sound.speaking,
            "face": self.face_state,
            "neutral": self.neutral_state,
            "connected": self.connected,
            "voice": {
                "lag_ms": round(1000 * playhead.lag(now), 1),
                "aim_ms": round(1000 * playhead.target, 1),
                "bent_ms": round(1000 * playhead.bent, 1),
                "jumped_ms": round(1000 * playhead.jumped, 1),
            },
        }

    def wait_idle(self) -> None:
        """Wait until no tracker uses the session; after `close`, off the loop, so that the stepper need not wait."""
        with self._face_lock, self._body_lock:
            pass

    def close(self) -> None:
        """Stop at once on the loop; the stepper frees the row and the trackers."""
        self.closed = True
        self.outlet.close()
        self.speaker.cancel()


def camera_rgb(received: ReceivedVideo, most_pixels: int) -> Any:
    """[H, W, 3] of a camera picture, scaled down to at most `most_pixels`."""
    frame = received.frame
    pixels = frame.width * frame.height
    if pixels > most_pixels:
        scale = (most_pixels / pixels) ** 0.5
        frame = frame.reformat(width=max(2, int(frame.width * scale) & ~1), height=max(2, int(frame.height * scale) & ~1))
    return frame.to_ndarray(format="rgb24")
