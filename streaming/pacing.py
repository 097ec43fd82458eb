"""When a picture and its sound leave. Pure: no clock, no loop, no threads; every call is told the time.

One playhead says which instant of the session's sound is leaving now: `position(now) = now - lag`.

*Camera grid*: a picture leaves the moment it is ready (one slot, newest wins); the playhead follows the measured time from
capture to leaving, so that the voice arrives with its picture. *Voice grid*: a picture leaves when the playhead reaches its
sound. The lag changes only in silence, or by resampling of at most MAX_BEND. Aiortc's lip sync is send-time sync
(measured: a late picture stays late whatever its pts), so both must leave together.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.types import FloatArray, Grid, Output, UInt8Array
from streaming.stats import Stats, quantiles

RATE = 48_000
"""Hz of all sound inside the server."""
BLOCK = RATE // 50
"""Samples of one packet: 20 ms."""
BLOCK_SECONDS = BLOCK / RATE
RING_SECONDS = 2.0
MAX_BEND = 0.005
"""Largest resampling of the returned voice: 0.5 % is 9 cents, below what is heard as a change of pitch."""
BEND_HORIZON = 2.0
"""s over which an error of the lag is worked off, where MAX_BEND allows."""
DEAD_BAND = 0.003
"""s of lag error that is left alone."""
RETARGET = 0.008
"""s by which the measured lag must differ from the aimed one before the aim moves."""
HOPELESS = 0.7
"""s of lag error (a stalled machine, a client that slept) after which the playhead jumps."""
QUIET = 0.003
"""Level (RMS) below which sound counts as silence: -50 dBFS."""
QUIET_SHARE = 0.06
"""... or below this share of the recent speech level (-24 dB): the pause between two words."""
QUEUE_SECONDS = 0.5
"""Rendered pictures that may wait for their sound; older ones go."""
SLOWEST = 3.0
"""Times its usual length that a frame of a chunk may last: a camera in poor light or a session that was slowed; what is longer is a stall."""
LAG_SAMPLES = 45
"""Pictures over which the lag is measured: 1.5 s."""
SOUND_SAMPLES = 150
"""Blocks over which the arrival of sound is measured: 3 s. Of these the second worst counts, since a block too late is a hole."""
MARGIN = 0.004
"""s added to the measured lag of the voice grid against jitter of the event loop."""
FADE = RATE // 200
"""Samples of the ramp where sound is cut: 5 ms."""
RAMP = np.linspace(0.0, 1.0, FADE, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Picture:
    """One rendered picture on its way out."""

    rgb: UInt8Array | None  # [H, W, 3]
    id: int  # of the camera frame it shows, 0 where there is none
    motion_time: float  # s, when that motion was captured
    sound_time: float  # s, the instant of sound that belongs with it
    ready: float  # s, when it came from the generator
    grid: Grid
    raw: Any = None  # an av.VideoFrame that is sent as it is (echo), then rgb is None


@dataclass(slots=True)
class SoundRing:
    """The last seconds of sound on two buses (0: the microphone, 1: utterances), addressed by sample number on the session clock."""

    samples: FloatArray = field(default_factory=lambda: np.zeros((2, int(RING_SECONDS * RATE)), np.float32))
    end: int | None = None  # first sample not yet written

    def write(self, block: FloatArray, start: int) -> None:
        """block [2, N] at sample `start`; a gap becomes silence, what lies before the end is ignored."""
        if self.end is None or start - self.end > self.samples.shape[1]:
            self.samples[:] = 0
            self.end = start
        if start > self.end:
            self._place(np.zeros((2, start - self.end), np.float32))
        self._place(block[:, self.end - start :])

    def _place(self, block: FloatArray) -> None:
        assert self.end is not None
        size = self.samples.shape[1]
        at = self.end % size
        first = min(block.shape[1], size - at)
        self.samples[:, at : at + first] = block[:, :first]
        self.samples[:, : block.shape[1] - first] = block[:, first:]
        self.end += block.shape[1]

    def read(self, start: int, count: int) -> FloatArray:
        """[2, count]; silence where nothing was written or it is too long ago."""
        out = np.zeros((2, count), np.float32)
        if self.end is None:
            return out
        size = self.samples.shape[1]
        low, high = max(start, self.end - size), min(start + count, self.end)
        if high > low:
            where = np.arange(low, high) % size
            out[:, low - start : high - start] = self.samples[:, where]
        return out

    def erase(self, bus: int, start: int) -> None:
        """Silence one bus from sample `start` on, over a short ramp."""
        if self.end is None or start >= self.end:
            return
        size = self.samples.shape[1]
        where = np.arange(max(start, self.end - size), self.end) % size
        ramp = np.zeros(len(where), np.float32)
        ramp[:FADE] = RAMP[::-1][: len(where)]
        self.samples[bus, where] *= ramp


@dataclass(slots=True)
class Playhead:
    """Reads the ring `lag` behind the clock and steers the lag towards `target`."""

    ring: SoundRing = field(default_factory=SoundRing)
    target: float = 0.06  # s
    hold: bool = False  # a grid change may make the sound wait even inside speech
    starved: int = 0  # blocks whose sound had not arrived
    bent: float = 0.0  # s by which resampling has moved the lag so far
    jumped: float = 0.0  # s by which silence was skipped or inserted
    _next: float | None = None  # sample number of the next block
    _still: bool = False  # the last block ended in silence that is not in the ring
    _asked: float = 0.0  # s, when the last block was read
    _level: float = 0.0  # recent level of speech

    def position(self, now: float) -> float:
        """s on the session clock of the sound that leaves at `now`."""
        if self._next is None:
            return now - self.target
        return (self._next - BLOCK) / RATE + min(now - self._asked, 2 * BLOCK_SECONDS)

    def lag(self, now: float) -> float:
        """s between an instant of sound and its leaving."""
        return now - self.position(now)

    def block(self, now: float) -> FloatArray:
        """[2, BLOCK]: the sound that leaves at `now`."""
        wanted = (now - self.target) * RATE
        if self._next is None or abs(wanted - self._next) > HOPELESS * RATE:
            self._next = wanted
        error = wanted - self._next  # > 0: too far behind
        self._asked = now
        self.hold = self.hold and error < -DEAD_BAND * RATE
        if abs(error) <= DEAD_BAND * RATE:
            return self._play(BLOCK)
        if error > 0 and (span := self._quiet_span(int(error))) > 0:
            self._next += span
            self.jumped += span / RATE
            return self._play(BLOCK)
        if error < 0 and (self.hold or self._quiet_span(BLOCK) >= BLOCK):
            return self._wait(int(-error))
        bend = float(np.clip(error / RATE / BEND_HORIZON, -MAX_BEND, MAX_BEND))
        self.bent += abs(bend) * BLOCK_SECONDS
        return self._play(BLOCK * (1.0 + bend))

    def _play(self, count: float) -> FloatArray:
        """A block from `count` samples; where they have not all arrived the rest is silence, and the playhead waits there."""
        assert self._next is not None
        out = np.zeros((2, BLOCK), np.float32)
        start, end = int(self._next), self._next + count
        here = BLOCK
        if self.ring.end is not None and end > self.ring.end + 1:
            end = max(self._next, float(self.ring.end))
            here = int((end - self._next) / count * BLOCK)
            self.starved += self._level > QUIET
        source = self.ring.read(start, int(np.ceil(end)) - start + 1)
        if count == BLOCK and self._next == start:
            out[:, :here] = source[:, :here]
        else:
            at = self._next - start + np.arange(here) * (count / BLOCK)
            out[:, :here] = [np.interp(at, np.arange(source.shape[1]), bus) for bus in source]
        if self._still:
            out[:, :FADE] *= RAMP
        self._still = here < BLOCK
        if self._still:
            fade = min(here, FADE)
            out[:, here - fade : here] *= RAMP[::-1][:fade]
        self._next = end if count != BLOCK else float(round(end))
        self._level = max(_level(out), self._level * 0.998)  # forgets speech over about 10 s
        return out

    def _wait(self, missing: int) -> FloatArray:
        """A block with up to `missing` samples of silence in it, during which the playhead stands still."""
        assert self._next is not None
        head = 0 if self._still else FADE  # of the sound that ends here
        still = min(missing, BLOCK - head)
        tail = BLOCK - still - head
        out = np.zeros((2, BLOCK), np.float32)
        sound = self.ring.read(int(self._next), head + tail)
        out[:, :head] = sound[:, :head] * RAMP[::-1][:head]
        out[:, BLOCK - tail :] = sound[:, head:]
        fade = min(tail, FADE)
        out[:, BLOCK - tail : BLOCK - tail + fade] *= RAMP[:fade]
        self._still = tail == 0
        self._next += head + tail
        self.jumped += still / RATE
        return out

    def _quiet_span(self, most: int) -> int:
        """Samples of silence from the playhead on, at most `most`, in steps of 5 ms; only sound that has arrived counts."""
        assert self._next is not None
        if self.ring.end is not None:
            most = min(most, self.ring.end - int(self._next) - BLOCK) if self._next < self.ring.end else most
        if most <= 0:
            return 0
        sound = self.ring.read(int(self._next), most)
        threshold = max(QUIET, QUIET_SHARE * self._level)
        for at in range(0, most, FADE):
            if _level(sound[:, at : at + FADE]) > threshold:
                return at
        return most


def _level(sound: FloatArray) -> float:
    """RMS of the louder bus."""
    return float(np.sqrt(np.max(np.mean(np.square(sound), axis=1)))) if sound.size else 0.0


@dataclass(slots=True)
class Pacer:
    """Decides what leaves when; owned by the event loop."""

    stats: Stats
    fps: float = 30.0
    chunk: int = 1
    declared_lag: float = 0.15
    """s: look-ahead + chunk / fps + delay / fps of the generator, before anything was measured."""
    playhead: Playhead = field(default_factory=Playhead)
    grid: Grid = "voice"
    _queue: deque[tuple[Picture, float]] = field(default_factory=deque)  # (picture, earliest time to leave on the camera grid)
    _lags: deque[float] = field(default_factory=lambda: deque(maxlen=LAG_SAMPLES))  # s from sound time to leaving (camera) or to being ready (voice)
    _sound_lags: deque[float] = field(default_factory=lambda: deque(maxlen=SOUND_SAMPLES))  # s: the least lag at which a block would have been whole

    def __post_init__(self) -> None:
        self.playhead.target = self.declared_lag

    # -- in ------------------------------------------------------------------------------------------------------------

    def sound(self, block: FloatArray, start: int) -> None:
        """block [2, N] of the session's sound beginning at sample `start`."""
        self.playhead.ring.write(block, start)

    def put(self, output: Output, *, now: float, raw: Any = None) -> None:
        """What the generator made, the moment it reaches the loop."""
        if output.grid != self.grid:
            self._change_grid(output.grid)
        if output.grid == "camera":
            self.stats.drop("slot", len(self._queue))
            self._queue.clear()
        else:
            self._lags.append(now - output.sound_time)
            self._aim()
        for k, frame in enumerate(output.frames):
            # As far apart as their motion was, where that is slower than the generator's own rate: even frames, and in step with their sound.
            later = float(np.clip(frame.time - output.frames[0].time, k / self.fps, SLOWEST * k / self.fps))
            picture = Picture(None if raw is not None else frame.rgb, frame.id, frame.time, output.sound_time + later, now, output.grid, raw)
            self._queue.append((picture, now + later))
        while len(self._queue) > max(self.chunk, QUEUE_SECONDS * self.fps):
            self._queue.popleft()
            self.stats.drop("queue")

    def interrupt(self, *, now: float) -> None:
        """Throw away what was rendered but not sent, and the utterance's sound with it."""
        self.stats.drop("interrupt", len(self._queue))
        self._queue.clear()
        self.playhead.ring.erase(1, int(self.playhead.position(now) * RATE))

    # -- out -----------------------------------------------------------------------------------------------------------

    def wait(self, *, now: float) -> float | None:
        """s until a picture may leave; 0 for now; None while there is none."""
        if not self._queue:
            return None
        return max(0.0, self._leaves(self._queue[0], now) - now)

    def picture(self, *, now: float) -> Picture | None:
        """The picture that leaves now: the newest that is due; older due ones are counted as late."""
        chosen: Picture | None = None
        while self._queue and self._leaves(self._queue[0], now) <= now + 1e-4:
            if chosen is not None:
                self.stats.drop("late")
            chosen = self._queue.popleft()[0]
        if chosen is not None:
            self._left(chosen, now)
        return chosen

    def block(self, *, now: float) -> FloatArray:
        """[2, BLOCK] of sound that leaves now; to be asked every BLOCK_SECONDS."""
        starved = self.playhead.starved
        if (end := self.playhead.ring.end) is not None:
            self._sound_lags.append(now + BLOCK_SECONDS - end / RATE)
        block = self.playhead.block(now)
        self.stats.drop("sound_starved", self.playhead.starved - starved)
        return block

    # -- inside --------------------------------------------------------------------------------------------------------

    def _leaves(self, entry: tuple[Picture, float], now: float) -> float:
        picture, earliest = entry
        if picture.grid == "camera":
            return earliest
        # Its sound leaves when the playhead, which stands `lag` behind the clock, gets there.
        return picture.sound_time + self.playhead.lag(now)

    def _left(self, picture: Picture, now: float) -> None:
        if picture.grid == "camera":
            self._lags.append(now - picture.sound_time)
            self._aim()
        stats = self.stats
        stats.stage("pace", now - picture.ready)
        stats.stage("total", now - picture.motion_time)
        stats.av_offset.append(1000.0 * (self.playhead.position(now) - picture.sound_time))
        stats.sent.hit(now)
        stats.counts["sent"] += 1
        if stats.first_sent is None:
            stats.first_sent = now

    def _aim(self) -> None:
        """Move the aimed lag to the measured one: the median on the camera grid (pictures leave on their own time), p95 on the voice grid."""
        if self.grid == "camera":
            lag = float(np.median(self._lags))
        else:
            measured = quantiles(self._lags)["p95"] + MARGIN
            lag = measured if len(self._lags) >= LAG_SAMPLES // 3 else max(measured, self.declared_lag)
        # Sound that has not arrived cannot leave.
        if self._sound_lags:
            lag = max(lag, quantiles(self._sound_lags)["p99"] + MARGIN)
        if abs(lag - self.playhead.target) > RETARGET:
            self.playhead.target = lag

    def _change_grid(self, grid: Grid) -> None:
        self.stats.drop("grid", len(self._queue))
        self._queue.clear()
        self._lags.clear()
        self.playhead.hold = grid == "voice"
        self.grid = grid
