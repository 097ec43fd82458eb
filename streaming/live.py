"""One live session: what arrives, what is computed, what leaves. Knows no transport; a peer or a test brings frames and sound.

Loop side: `camera`, `mic`, the settings, `close`. Worker side: the Seat methods, and the tracking jobs of `tracking.py`. What
crosses is one slot for the camera picture (newest wins), a short deque of sound, and `call_soon_threadsafe` back.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.drivers.speech import LOOK_AHEAD
from engine.persona import Persona
from engine.session import Session
from engine.types import AudioChunk, Drive, FloatArray, Output, VideoFrame
from engine.window import Cadence
from streaming.chat import Chat
from streaming.ladder import Ladder, Look, overrun
from streaming.outlet import Outlet
from streaming.pacing import RATE, Pacer
from streaming.rtc import ReceivedVideo
from streaming.sound import BargeIn, Phase, SoundStream
from streaming.speaker import Speaker
from streaming.stats import Stats
from streaming.tracking import Tracking
from streaming.tracks import AvatarVideo
from streaming.worker import Stepper, StepTimes, sentence

if TYPE_CHECKING:
    from streaming.studio import Studio

SOUND_WAITING = 100
"""Blocks of 20 ms a stalled worker may leave unheard: 2 s."""
FACE_LOST = 0.5
"""s of pictures without a face after which the page is told."""
CAMERA_LOST = 2.0
"""s without a picture after which it is told as well; a busy machine looks at one now and then."""
RECENT_STEPS = 15
"""Steps of the generator that say what one takes now."""
CAPTURE_JUMP = 1.0
"""s between capture and arrival that is not believed (a sender's clock that jumped)."""


class Live:
    """A persona being driven. Made by the studio; sinks are put into `outlet.sinks`."""

    def __init__(self, persona: Persona, *, studio: Studio, stepper: Stepper, echo: bool = False) -> None:
        self.id = secrets.token_hex(8)
        self.resume_token = secrets.token_urlsafe(24)
        self.view_id = secrets.token_hex(8)  # opens the picture and nothing else
        self.persona = persona
        self.settings = studio.settings
        self.echo = echo
        self.session: Session  # set by the studio, on the stepper's thread
        self.stepper = stepper
        self.sound = SoundStream()
        self._mic_phase = Phase()
        self._said_until = 0.0  # s, end of the last utterance's sound so far
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
        self.link: Callable[[], dict[str, Any]] = dict  # what the connection says of itself; set by the peer
        self.losses: Callable[[], Mapping[str, int]] = dict  # what it has received and given up, by cause; set by its channel
        self.barge_in = True
        self.return_voice = False
        self._told: dict[str, Any] = {}
        self._face_seen = float("-inf")  # s
        self._face_in_view = False  # in the picture that was tracked last
        self._studio = studio
        self._loop = asyncio.get_running_loop()
        self.tracking = Tracking(self, faces=studio.pool, bodies=studio.bodies)
        self._captured = float("-inf")
        self._cadence = Cadence(self._fastest)
        self._to_hear: deque[tuple[FloatArray, int]] = deque(maxlen=SOUND_WAITING)
        self._barging = BargeIn()

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
            frame = VideoFrame(np.zeros((0, 0, 3), np.uint8), capture, stats.counts["camera"])
            self.pacer.put(Output([frame], [], "camera", capture), now=time.monotonic(), raw=received.frame)
            self.outlet.poke()
        elif self.session.settings.drive != "voice":
            self.tracking.bring(ReceivedVideo(received.frame, capture, received.rtp, received.arrival))

    @property
    def _fastest(self) -> float:
        """Camera pictures a second that are worth tracking: what the limits, the ladder and the generator allow."""
        fastest = min(self.settings.limits.camera_fps, self.ladder.rung.fps)
        return fastest if self.echo else min(fastest, self.stepper.generator.spec.fps)

    def _too_fast(self, now: float) -> bool:
        self._cadence.fps = self._fastest
        return not self._cadence.admits(now)

    def mic(self, chunk: AudioChunk) -> None:
        """Sound of the microphone."""
        if not self.closed:
            now = time.monotonic()
            self.sound.hear(chunk, now=now)
            self._pass_sound(now)
            self._mic_phase.hit(now)
            if (phase := self._mic_phase.better_than(self.outlet.phase)) is not None:
                self.outlet.phase = phase

    def _pass_sound(self, now: float) -> None:
        """Whatever sound is complete goes to the pacer and to the session."""
        for block, start in self.sound.blocks(now=now):
            self.pacer.sound(block, start)
            if block[1].any():
                self._said_until = (start + block.shape[1]) / RATE
            if not self.echo:
                if len(self._to_hear) == SOUND_WAITING and not self.resting:
                    self.stats.drop("hearing")
                self._to_hear.append((block, start))
        if self._to_hear:
            self.stepper.wake()

    def _tick(self, now: float) -> None:
        self._pass_sound(now)
        if self.pacer.playhead.position(now) >= self._said_until:
            self._said_until = 0.0  # over is over, also where the lag grows afterwards
        self.tell_state()

    # -- the Seat (stepper thread) -------------------------------------------------------------------------------------

    def listen(self) -> None:
        """See worker.Seat."""
        while self._to_hear:
            block, start = self._to_hear.popleft()
            self.session.hear(AudioChunk(block.sum(axis=0), RATE, start / RATE))
            if not (self.barge_in and self.sound.speaking):
                self._barging.rest()
            elif self._barging.hears(AudioChunk(block[0], RATE, start / RATE)):
                self.post(self.interrupt)

    def deliver(self, output: Output, times: StepTimes) -> None:
        """See worker.Seat."""
        self.stats.stage("step", times.step)
        self.stats.stage("compose", times.compose)
        self.stats.counts["rendered"] += len(output.frames)
        self.post(self._leave, output, time.monotonic())

    def shut(self) -> None:
        """See worker.Seat."""
        self.closed = True
        with self.tracking.idle():
            self.session.close()

    def failed(self, error: Exception) -> None:
        """The session cannot go on: a tracker or the generator failed; any thread."""
        self.post(self._fail, sentence(error))

    def post(self, function: Callable[..., None], *args: Any) -> None:
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

    def tracked(self, seen: bool) -> None:
        """A camera picture was tracked, and a face seen in it or not."""
        self._face_in_view = seen
        if seen:
            self._face_seen = time.monotonic()

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
        state = {"speaking": self.speaking, "drive": self.drive, "face": self.face_state, "neutral": self.neutral_state}
        if state["face"] == "lost":
            self.tracking.face_lost()
        if always or state != self._told:
            self._told = state
            self.on_event({"type": "state", **state})

    # -- settings (loop) -----------------------------------------------------------------------------------------------

    @property
    def drive(self) -> Drive:
        """Who moves the face."""
        return self.session.settings.drive

    @property
    def face_state(self) -> str:
        """ "seen" or "lost"."""
        return "seen" if time.monotonic() - self._face_seen < (CAMERA_LOST if self._face_in_view else FACE_LOST) else "lost"

    @property
    def neutral_state(self) -> str:
        """ "set" once the face driver has chosen its neutral, else "searching"."""
        return self.session.neutral_state

    @property
    def speaking(self) -> bool:
        """Whether an utterance is being heard by the viewers, or still to be."""
        return self.speaker.speaking or self.pacer.playhead.position(time.monotonic()) < self._said_until

    def interrupt(self) -> None:
        """Stop speaking now: what was not sent is thrown away."""
        if self.closed:
            return
        self._said_until = 0.0
        self.speaker.cancel()
        self.session.interrupt()
        self.pacer.interrupt(now=time.monotonic())
        self.tell_state()

    def judge(self) -> None:
        """Once a second: does the session keep up? The ladder decides what gives way."""
        if self.resting or self.closed:
            return
        link, busy = self.link(), self._studio.load()
        # What the sender took on, not what the pacer let go: an encoder that is too slow shows only there.
        sent = link["frames_sent"] + link["frames_skipped"] if link else self.stats.counts["sent"]
        worked = {name: busy[name] for name in (self.stepper.name, "tracker") if name in busy}
        worked["encoder"] = max((sink.busy for sink in self.outlet.sinks if isinstance(sink, AvatarVideo)), default=0.0)
        spec = self.stepper.generator.spec
        look = Look(time.monotonic(), self.stats.counts["camera"], sent, worked)
        if self.ladder.judge(look, fps=spec.fps, follows_camera=self.pacer.grid == "camera"):
            rung = self.ladder.rung
            self.session.configure(track_every=rung.track_every, output_scale=rung.output_scale)
            self.session.window.fps = min(spec.fps, rung.fps)

    def _count_drops(self, link: Mapping[str, Any]) -> None:
        """Bring together what others count."""
        sound = {"mic": self.sound.mic.dropped, "mic_late": self.sound.late}
        window = self.session.window
        camera = {"window": window.dropped, "camera_fps": window.thinned}
        totals = {**sound, **camera, "link": link.get("frames_skipped", 0), **self.losses()}
        for cause, total in totals.items():
            self.stats.drop_total(cause, total)

    def _overrun(self) -> str:
        """What the ladder cannot mend, in words, once it has tried."""
        times = list(self.stats.stages["step"])[-RECENT_STEPS:]
        if not self.ladder.index or not times:
            return ""
        spec = self.stepper.generator.spec
        return overrun(median(times) / 1000, chunk=spec.chunk, fps=spec.fps)

    def snapshot(self) -> dict[str, Any]:
        """For /stats and the page."""
        now, link = time.monotonic(), self.link()
        self._count_drops(link)
        playhead = self.pacer.playhead
        return {
            **self.stats.snapshot(now),
            "link": link,
            "ladder": {"rung": self.ladder.index, "name": self.ladder.rung.name, "why": self.ladder.why, "steps": self.ladder.steps},
            "overrun": self._overrun(),
            "persona": self.persona.name,
            "generator": "echo" if self.echo else self.stepper.generator.spec.name,
            "ai_generated": True,
            "drive": self.drive,
            "grid": self.pacer.grid,
            "speaking": self.speaking,
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
        with self.tracking.idle():
            pass

    def close(self) -> None:
        """Stop at once on the loop; the stepper frees the row and the trackers."""
        self.closed = True
        self.outlet.close()
        self.speaker.cancel()
