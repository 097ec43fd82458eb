"""Irregular signals -> the generator's frame grid. Knows times, not pictures or sound.

Two grids. *Camera*: a frame is due the moment a camera signal arrives; nothing is held. A camera that is faster than the generator's
fps is thinned to it, evenly (`Cadence`): what the generator remembers of the past was made for that rate. *Voice*: frames are due on
the audio clock, 1/fps apart, as soon as the sound they show (and the look-ahead its features need) has been heard. Where neither
camera nor sound arrives, the voice grid runs on the wall clock, so that the portrait never freezes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.types import Drive, Grid, Signal

CAMERA_GONE = 0.25
"""s without a camera signal after which the camera no longer paces the frames: 7 frames at 30 fps, above any normal jitter."""
SILENT_SOURCE = 0.3
"""s without sound after which the voice grid runs on the wall clock."""
RE_ANCHOR = 0.5
"""s the voice grid may lie behind before it jumps to the present instead of hurrying through the past."""
EARLY = 0.25
"""Share of an interval that a camera frame may come before its turn: jitter of a camera that is as fast as the generator costs no frame."""


@dataclass(slots=True)
class Cadence:
    """Which of a stream's frames are let through, so that over time they are no more than `fps` a second.

    Turns lie 1/fps apart and every frame let through takes one, so that what is left out is spread evenly: of 30 a second for 25, each
    sixth; a rule of least distance would leave 15. A frame that comes late leaves the turns where they were; where the stream is slower,
    at most one turn is saved up.
    """

    fps: float
    _turn: float | None = None  # s, of the next frame

    def admits(self, time: float) -> bool:
        """Whether the frame that comes at `time` s is let through; to be asked once a frame, in order."""
        interval = 1.0 / self.fps
        if self._turn is None or abs(time - self._turn) > RE_ANCHOR:
            self._turn = time + interval
            return True
        if time < self._turn - EARLY * interval:
            return False
        self._turn = max(self._turn + interval, time)
        return True


@dataclass(frozen=True, slots=True)
class Due:
    """Frames that must be made now."""

    grid: Grid
    signals: list[Signal]  # `chunk` of them; on the voice grid they carry only their time


@dataclass(slots=True)
class Window:
    """Collects signals until a generator's chunk is due. Not thread-safe: its session locks."""

    fps: float
    chunk: int = 1
    look_ahead: float = 0.0  # s of sound after a frame's time that its features need
    dropped: int = 0  # camera signals overwritten by newer ones before they were due
    thinned: int = 0  # camera signals left out because the camera is faster than `fps`
    _pending: list[Signal] = field(default_factory=list)
    _camera_seen: float = float("-inf")
    _next: float | None = None  # time of the next frame of the voice grid
    _cadence: Cadence = field(default_factory=lambda: Cadence(1.0))

    def see(self, signal: Signal, *, now: float) -> None:
        """A camera signal arrives at `now` s; with the chunk already full the oldest one is dropped and counted.

        One that comes before its turn takes the place of the newest in a full chunk that still waits, and is left out where none does.
        """
        self._camera_seen = now
        self._cadence.fps = self.fps
        if not self._cadence.admits(now):
            self.thinned += 1
            if len(self._pending) == self.chunk:
                self._pending[-1] = signal
            return
        self._pending.append(signal)
        if len(self._pending) > self.chunk:
            self._pending.pop(0)
            self.dropped += 1

    def camera_alive(self, now: float) -> bool:
        """Whether the camera still paces the frames."""
        return now - self._camera_seen < CAMERA_GONE

    def due(self, *, now: float, heard_until: float, drive: Drive) -> Due | None:
        """The frames that are due at `now`, or None. `heard_until`: end of the sound heard so far, -inf for none."""
        if drive != "voice" and self.camera_alive(now):
            self._next = None
            return self._take_camera()
        self._pending.clear()
        return self._take_voice(now, heard_until)

    def _take_camera(self) -> Due | None:
        if len(self._pending) < self.chunk:
            return None
        taken, self._pending = self._pending, []
        return Due("camera", taken)

    def _take_voice(self, now: float, heard_until: float) -> Due | None:
        clock = now if now - heard_until > SILENT_SOURCE else heard_until - self.look_ahead
        step = 1.0 / self.fps
        span = (self.chunk - 1) * step
        if self._next is None or clock - self._next > RE_ANCHOR or self._next - clock > RE_ANCHOR:
            self._next = clock - span
        # The sound of the last frame of the chunk must have been heard to its end, since both leave together.
        if self._next + span + step > clock + 1e-9:
            return None
        times = [self._next + k * step for k in range(self.chunk)]
        self._next = times[-1] + step
        return Due("voice", [Signal(time=t) for t in times])

    def wait(self, *, now: float, heard_until: float) -> float:
        """Seconds until the voice grid can next be due if sound keeps arriving; 0 for "now"."""
        if self._next is None:
            return 0.0
        clock = now if now - heard_until > SILENT_SOURCE else heard_until - self.look_ahead
        return max(0.0, self._next + self.chunk / self.fps - clock)

    def reset(self) -> None:
        """Forget what is pending; the next frame starts a new grid."""
        self._pending.clear()
        self._next = None
