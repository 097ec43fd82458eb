"""A session's trackers: one slot for the newest camera picture, one job for the face, the body and the hands at a time, on threads of their own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from engine.config import BODY_EVERY
from engine.drivers.calibrate import CHOSEN_FRAMES, CHOSEN_PATIENCE
from engine.drivers.readings import STALE
from engine.types import Signal, UInt8Array, VideoFrame
from streaming.rtc import ReceivedVideo
from streaming.worker import Pool

if TYPE_CHECKING:
    from streaming.live import Live

NEUTRAL_FRAMES = CHOSEN_FRAMES + CHOSEN_PATIENCE + 1
"""Pictures with a face after which a neutral that was asked for has been taken for certain, blinks passed over."""
LATE_READINGS = 2
"""In a row that came too late to count, after which the person is told: one alone is a busy moment."""
NO_FACE = "There is no face in view, so no neutral could be set; look into the camera and try again."


class Tracking:
    """`bring` and `set_neutral` on the loop; the jobs run on the pools. Body and hands never delay a face: they have their own pool."""

    def __init__(self, live: Live, *, faces: Pool, bodies: Pool) -> None:
        self._live = live
        self._faces, self._bodies = faces, bodies
        self._slot: ReceivedVideo | None = None
        self._busy = False
        self._lock = threading.Lock()  # guards the two above
        self._face_lock = threading.Lock()  # held while a face job uses the session
        self._body_lock = threading.Lock()  # held from the moment a body job is handed in
        self._hands_lock = threading.Lock()  # the same for the hands
        self._hands_at = float("-inf")  # the picture whose hands were read last
        self._late = {"body": 0, "hands": 0}  # readings in a row that came too late to count
        self._frames = 0
        self._last: Signal | None = None
        self._neutral_asked = False  # a neutral is being taken, and the person waits to hear of it
        self._neutral_needs = 0  # pictures with a face until it has been taken

    def bring(self, received: ReceivedVideo) -> None:
        """A camera picture; the one that still waits for a tracker gives way to it and is counted."""
        with self._lock:
            if self._slot is not None:
                self._live.stats.drop("camera")
            self._slot = received
            if self._busy:
                return
            self._busy = True
        self._faces.submit(self._track)

    def set_neutral(self) -> None:
        """Take the person's face of the next moments as the neutral one; they are told when it has been taken, or that it was not."""
        if self._live.face_state != "seen":
            self._live.tell(NO_FACE, "error")
            return
        if not self._neutral_asked:
            self._neutral_asked = True
            self._faces.submit(self._choose_neutral)

    def face_lost(self) -> None:
        """Nobody is to be seen: a neutral that was being taken is given up."""
        if self._neutral_asked:
            self._neutral_asked = False
            self._live.tell(NO_FACE, "error")

    def _neutral_taken(self) -> None:
        if self._neutral_asked:
            self._neutral_asked = False
            self._live.tell("Neutral set.")

    @contextmanager
    def idle(self) -> Iterator[None]:
        """No tracker uses the session inside."""
        with self._face_lock, self._body_lock, self._hands_lock:
            yield

    # -- jobs (pool threads) -------------------------------------------------------------------------------------------

    def _choose_neutral(self) -> None:
        live = self._live
        try:
            with self._face_lock:
                if not live.closed:
                    live.session.set_neutral()
                    self._neutral_needs = NEUTRAL_FRAMES
        except Exception as error:  # a tracker that fails ends its own session, no other
            live.failed(error)

    def _track(self) -> None:
        with self._lock:
            received, self._slot = self._slot, None
            if received is None or self._live.closed:
                self._busy = False
                return
        try:
            self._track_face(received)
        except Exception as error:  # as above
            self._live.failed(error)
            return
        with self._lock:
            if self._slot is None:
                self._busy = False
                return
        self._faces.submit(self._track)  # behind the other sessions' pictures

    def _track_face(self, received: ReceivedVideo) -> None:
        live = self._live
        started = time.monotonic()
        live.stats.stage("wait", started - received.arrival)
        with self._face_lock:
            if live.closed:
                return
            self._frames += 1
            frame = VideoFrame(camera_rgb(received, live.settings.limits.camera_pixels), received.capture, self._frames)
            signal = live.session.track(frame, now=time.monotonic())
            seen = signal.motion is not None and float(signal.motion.confidence[0]) > 0.0
            held = self._last is not None and signal.motion is self._last.motion  # see face.HeldFace
            self._last = signal
            if self._neutral_needs and seen and not held:
                self._neutral_needs -= 1
                if not self._neutral_needs:
                    live.post(self._neutral_taken)
        live.stepper.wake()
        live.stats.stage("track", time.monotonic() - started)
        live.stats.counts["tracked"] += 1
        live.post(live.tracked, seen)
        self._track_others(frame)

    def _track_others(self, frame: VideoFrame) -> None:
        """Hand in the body's and the hands' jobs, each where it is its turn, something shows it, and its last one is done."""
        session, every = self._live.session, self._live.ladder.rung.body_every
        if self._frames % every == 0 and session.wants("body") and self._body_lock.acquire(blocking=False):
            self._bodies.submit(lambda: self._job("body", session.track_body, frame, self._body_lock))
        # The ladder slows the hands down as much as the body.
        hands_due = self._frames - self._hands_at >= session.hands_every * every / BODY_EVERY
        if hands_due and session.wants("hands") and self._hands_lock.acquire(blocking=False):
            self._hands_at = self._frames
            self._bodies.submit(lambda: self._job("hands", session.track_hands, frame, self._hands_lock))

    def _job(self, stage: str, track: Callable[[VideoFrame], None], frame: VideoFrame, lock: threading.Lock) -> None:
        """Runs with the lock held, which it gives back."""
        live = self._live
        try:
            if not live.closed:
                started = time.monotonic()
                track(frame)
                took = time.monotonic() - started
                live.stats.stage(stage, took)
                self._judge(stage, took)
        except Exception as error:  # as above
            live.failed(error)
        finally:
            lock.release()

    def _judge(self, stage: str, took: float) -> None:
        """Tell once where readings always come too late to count: nothing of them would be seen, and nobody would know why."""
        self._late[stage] = self._late[stage] + 1 if took > STALE else 0
        if self._late[stage] == LATE_READINGS:
            what, them = ("The body", "it") if stage == "body" else ("The hands", "them")
            other = "use a GPU for DWPose, or start the server without --dwpose" if self._live.settings.dwpose else "use a faster machine"
            slow = f"{what} cannot be followed: reading {them} takes {took:.1f} s a picture here, and what is older than {STALE} s does not count"
            self._live.post(self._live.tell, f"{slow}; {other}.", "error")


def camera_rgb(received: ReceivedVideo, most_pixels: int) -> UInt8Array:
    """[H, W, 3] of a camera picture, scaled down to at most `most_pixels`."""
    frame = received.frame
    pixels = frame.width * frame.height
    if pixels > most_pixels:
        scale = (most_pixels / pixels) ** 0.5
        frame = frame.reformat(width=max(2, int(frame.width * scale) & ~1), height=max(2, int(frame.height * scale) & ~1))
    return np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
