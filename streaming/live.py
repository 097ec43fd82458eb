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
from dataclasses import replace
from typing import Any

import numpy as np

from engine.config import Background
from engine.persona import Persona
from engine.session import Session
from engine.types import AudioChunk, Drive, Output, VideoFrame
from streaming.face import HeldFace
from streaming.outlet import Outlet
from streaming.pacing import RATE, Pacer
from streaming.rtc import ReceivedVideo
from streaming.settings import ServerSettings
from streaming.sound import SoundStream
from streaming.stats import Stats
from streaming.worker import Pool, Stepper, StepTimes, sentence

BODY_EVERY = 3
"""Body tracking looks at every third camera frame: 10 a second, shoulders are slow."""
SOUND_WAITING = 100
"""Blocks of 20 ms a stalled worker may leave unheard: 2 s."""
FACE_LOST = 0.5
"""s without a face after which the page is told."""


class Live:
    """A persona being driven. Made by the studio; `attach` sinks to `outlet.sinks`."""

    def __init__(self, persona: Persona, *, settings: ServerSettings, pool: Pool, bodies: Pool, stepper: Stepper, echo: bool = False) -> None:
        self.id = secrets.token_hex(8)
        self.resume_token = secrets.token_urlsafe(24)
        self.persona = persona
        self.settings = settings
        self.echo = echo
        self.session: Session  # set by the studio, on the stepper's thread
        self.stepper = stepper
        self.sound = SoundStream()
        self.stats = Stats(started=time.monotonic())
        spec = stepper.generator.spec
        self.pacer = Pacer(self.stats, fps=spec.fps, chunk=spec.chunk, declared_lag=_look_ahead() + (spec.chunk + spec.delay) / spec.fps + 0.02)
        self.outlet = Outlet(self.pacer, on_tick=self._tick)
        self.closed = False
        self.on_event: Callable[[dict[str, Any]], None] = lambda _: None  # messages for the page; set by the peer
        self.on_failed: Callable[[str], None] = lambda _: None  # the session died; set by the studio
        self.barge_in = True
        self.return_voice = False
        self.face_state = "lost"
        self._face_seen = 0.0
        self._pool, self._bodies = pool, bodies
        self._loop = asyncio.get_running_loop()
        self._mail: ReceivedVideo | None = None  # the one slot between the loop and the trackers
        self._tracking = False
        self._lock = threading.Lock()  # guards the two above
        self._face_lock = threading.Lock()  # held while a tracker uses the session
        self._body_lock = threading.Lock()
        self._frames = 0
        self._to_hear: deque[AudioChunk] = deque(maxlen=SOUND_WAITING)
        self._camera_due = 0.0

    # -- what arrives (loop) -------------------------------------------------------------------------------------------

    def camera(self, received: ReceivedVideo) -> None:
        """A camera picture; the newest waits for a tracker, the one before it is dropped."""
        if self.closed:
            return
        self.stats.camera.hit(received.arrival)
        self.stats.counts["camera"] += 1
        self.stats.stage("uplink", received.arrival - received.capture)
        if self._too_fast(received.arrival):
            return
        if self.echo:
            self._frames += 1
            frame = VideoFrame(np.zeros((0, 0, 3), np.uint8), received.capture, self._frames)
            self.pacer.put(Output([frame], [], "camera", received.capture), now=time.monotonic(), raw=received.frame)
            self.outlet.poke()
            return
        if self.session.settings.drive == "voice":
            return
        with self._lock:
            if self._mail is not None:
                self.stats.drop("camera")
            self._mail = received
            if self._tracking:
                return
            self._tracking = True
        self._pool.submit(self._track)

    def _too_fast(self, now: float) -> bool:
        """Thin out a camera that is faster than the limit."""
        interval = 1.0 / self.settings.limits.camera_fps
        if now < self._camera_due - 0.25 * interval:
            self.stats.drop("camera_fps")
            return True
        self._camera_due = max(self._camera_due + interval, now)
        return False

    def mic(self, chunk: AudioChunk) -> None:
        """Sound of the microphone."""
        if not self.closed:
            self.sound.hear(chunk, now=time.monotonic())

    def _tick(self, now: float) -> None:
        for block, start in self.sound.blocks(now=now):
            self.pacer.sound(block, start, now=now)
            if not self.echo:
                self._to_hear.append(AudioChunk(block.sum(axis=0), RATE, start / RATE))
        if self._to_hear:
            self.stepper.wake()

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
            frame = VideoFrame(_rgb(received, self.settings.limits.camera_pixels), received.capture, self._frames)
            signal = self.session.track(frame, now=time.monotonic())
        self.stats.stage("track", time.monotonic() - started)
        self.stats.counts["tracked"] += 1
        self.stepper.wake()
        confidence = 0.0 if signal.motion is None else float(signal.motion.confidence[0])
        self._post(self._saw, confidence)
        if self.session.settings.track_body and self._frames % BODY_EVERY == 0 and self._body_lock.acquire(blocking=False):
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
            self.session.hear(self._to_hear.popleft())

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
        state = "seen" if now - self._face_seen < FACE_LOST else "lost"
        if state != self.face_state:
            self.face_state = state
            self.tell_state()

    def _fail(self, reason: str) -> None:
        if not self.closed:
            self.on_failed(reason)

    def tell_state(self) -> None:
        """Send the page what it shows as state."""
        self.on_event({"type": "state", "speaking": self.sound.speaking, "drive": self.drive, "face": self.face_state, "neutral": self.neutral_state})

    # -- settings (loop) -----------------------------------------------------------------------------------------------

    @property
    def drive(self) -> Drive:
        """Who moves the face."""
        return self.session.settings.drive

    @property
    def neutral_state(self) -> str:
        """ "set" once the face driver has chosen its neutral."""
        return "set" if getattr(self.session.face, "calibrated", True) else "searching"

    def set_drive(self, drive: Drive) -> None:
        """Change who moves the face."""
        self.session.configure(drive=drive)
        self.tell_state()

    def set_background(self, background: Background) -> None:
        """Change what stands behind the person."""
        self.session.configure(background=background)

    def set_neutral(self) -> None:
        """Take the driver's present face as the neutral one; done on a tracking thread."""

        def job() -> None:
            with self._face_lock:
                if not self.closed:
                    self.session.set_neutral()

        self._pool.submit(job)

    def interrupt(self) -> None:
        """Stop speaking now: what was not sent is thrown away."""
        self.sound.interrupt()
        self.session.interrupt()
        self.pacer.interrupt(now=time.monotonic())
        self.tell_state()

    def snapshot(self) -> dict[str, Any]:
        """For /stats and the page."""
        now = time.monotonic()
        drops = {**self.stats.drops, "mic": self.sound.mic.dropped, "mic_late": self.sound.late, "window": self.session.window.dropped}
        return {
            **replace_drops(self.stats.snapshot(now), drops),
            "persona": self.persona.name,
            "drive": self.drive,
            "speaking": self.sound.speaking,
            "face": self.face_state,
            "lag_ms": round(1000 * self.pacer.playhead.lag(now), 1),
            "grid": self.pacer.grid,
        }

    def close(self) -> None:
        """Stop at once on the loop; the stepper frees the row and the trackers."""
        self.closed = True
        self.outlet.close()
        self.sound.interrupt()


def replace_drops(snapshot: dict[str, Any], drops: dict[str, int]) -> dict[str, Any]:
    """The snapshot with the drops that are counted elsewhere; zeros left out."""
    return {**snapshot, "drops": {cause: count for cause, count in drops.items() if count}}


def _look_ahead() -> float:
    from engine.drivers.speech import LOOK_AHEAD

    return LOOK_AHEAD


def _rgb(received: ReceivedVideo, most_pixels: int) -> Any:
    """[H, W, 3] of a camera picture, scaled down to at most `most_pixels`."""
    frame = received.frame
    pixels = frame.width * frame.height
    if pixels > most_pixels:
        scale = (most_pixels / pixels) ** 0.5
        frame = frame.reformat(width=max(2, int(frame.width * scale) & ~1), height=max(2, int(frame.height * scale) & ~1))
    return frame.to_ndarray(format="rgb24")
