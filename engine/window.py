"""Irregular signals -> the generator's frame grid. Knows times, not pictures or sound.

Two grids. *Camera*: a frame is due the moment a camera signal arrives; nothing is held. *Voice*: frames are due on the
audio clock, 1/fps apart, as soon as the sound they show (and the look-ahead its features need) has been heard. Where
neither camera nor sound arrives, the voice grid runs on the wall clock, so that the portrait never freezes.
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
    _pending: list[Signal] = field(default_factory=list)
    _camera_seen: float = float("-inf")
    _next: float | None = None  # time of the next frame of the voice grid

    def see(self, signal: Signal, *, now: float) -> None:
        """A camera signal arrives; with the chunk already full the oldest one is dropped and counted."""
        self._camera_seen = now
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
