"""Every source of sound of a session -> one stream without gaps, 20 ms a block. Pure: the time is passed in.

The stream is addressed by sample number on the session clock. Bus 0 is the microphone, at the instant it was spoken; bus 1
is whatever the avatar says (text, files). Where nothing sounds there is silence, so that the session's clock runs on.
"""

from __future__ import annotations

import cmath
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from engine.drivers.speech import LOOK_AHEAD, SpeechDriver
from engine.types import AudioChunk, FloatArray
from streaming.pacing import BLOCK, BLOCK_SECONDS, MAX_BEND, RATE

MIC_GONE = 0.25
"""s without a packet after which nobody waits for the microphone any more."""
MIC_LATEST = 0.2
"""s the stream waits for a microphone packet at most; what comes later is dropped and counted."""
CATCH_UP = 0.1
"""s a second by which the stream catches up with the clock once it need not wait for a microphone: 10 %, so that frames do not burst."""
MIC_JUMP = 0.06
"""s between where a packet should be and where it says it is, above which a gap or an overlap is assumed instead of clock drift."""
MIC_SECONDS = 2.0
STALL = 0.5
"""s without a tick after which the stream starts afresh at the clock instead of making good what was missed."""
GUARD = 0.008
"""s between the arrival of a packet and the tick that sends it on."""
PHASE_TOLERANCE = 0.005
"""s by which the ticks may lie beside the best phase: a drift of 50 ppm takes a minute and a half for that."""
PHASE_PACKETS = 25
BARGE_VOICED = 0.6
"""Voicedness of the microphone that counts as speech ..."""
BARGE_BLOCKS = 6
"""... and blocks of 20 ms in a row of it that interrupt an utterance."""
Pcm16 = npt.NDArray[np.int16]


@dataclass(slots=True)
class Microphone:
    """Packets with capture times -> samples at their place on the session clock, drift taken out by slow resampling."""

    samples: deque[FloatArray] = field(default_factory=deque)
    start: float = 0.0  # sample number of the first one kept
    count: int = 0
    seen: float = float("-inf")  # s, arrival of the last packet
    dropped: int = 0  # packets too late or too many
    _error: float = 0.0  # s, smoothed distance between said and expected time

    @property
    def end(self) -> float:
        """Sample number after the last one."""
        return self.start + self.count

    def put(self, chunk: AudioChunk, *, now: float) -> None:
        """A packet; any rate."""
        pcm = chunk.pcm if chunk.rate == RATE else _resample(chunk.pcm, round(len(chunk.pcm) * RATE / chunk.rate))
        fresh = now - self.seen > MIC_GONE or not self.count
        self.seen = now
        place = chunk.time * RATE
        error = (place - self.end) / RATE
        if fresh or abs(error) > MIC_JUMP:
            if not fresh and error > 0:
                self._append(np.zeros(round(error * RATE), np.float32))
            elif not fresh and -error < len(pcm) / RATE:
                pcm = pcm[round(-error * RATE) :]
            else:
                self.samples.clear()
                self.start, self.count = place, 0
            self._error = 0.0
        else:
            self._error += 0.02 * (error - self._error)
            bend = float(np.clip(self._error, -MAX_BEND, MAX_BEND)) if abs(self._error) > 0.002 else 0.0
            if bend:
                pcm = _resample(pcm, round(len(pcm) * (1.0 + bend)))
        self._append(pcm)
        while self.count > MIC_SECONDS * RATE:
            self._shift()
            self.dropped += 1

    def take(self, start: int, count: int) -> FloatArray:
        """[count] samples from sample number `start`; silence where there are none. What lies before is forgotten."""
        out = np.zeros(count, np.float32)
        while self.samples and self.start + len(self.samples[0]) <= start:
            self._shift()
        at = self.start
        for piece in self.samples:
            low = round(at) - start
            if low >= count:
                break
            source = piece[max(0, -low) :]
            target = out[max(0, low) : max(0, low) + len(source)]
            target[:] = source[: len(target)]
            at += len(piece)
        return out

    def _append(self, pcm: FloatArray) -> None:
        self.samples.append(pcm)
        self.count += len(pcm)

    def _shift(self) -> None:
        gone = len(self.samples.popleft())
        self.start += gone
        self.count -= gone


def _resample(pcm: FloatArray, count: int) -> FloatArray:
    """Linear: enough for 8 to 48 kHz speech and for stretches below 1 %."""
    if count == len(pcm) or not len(pcm):
        return pcm
    return np.interp(np.arange(count) * (len(pcm) / count), np.arange(len(pcm)), pcm).astype(np.float32)


@dataclass(slots=True)
class Phase:
    """When, within the 20 ms from packet to packet, the microphone's packets arrive: a circular mean that forgets over a second."""

    _sum: complex = 0j
    _count: int = 0

    def hit(self, now: float) -> None:
        """A packet arrives."""
        self._sum += 0.02 * (cmath.exp(2j * cmath.pi * (now % BLOCK_SECONDS) / BLOCK_SECONDS) - self._sum)
        self._count += 1

    def better_than(self, phase: float) -> float | None:
        """The phase (0..20 ms) at which a block should leave so that its packet has just arrived; None where `phase` is near it.

        Ticks that come just before the packets cost 20 ms of lag; ticks GUARD after them forgive that much jitter.
        """
        if self._count < PHASE_PACKETS or abs(self._sum) < 0.2:
            return None
        best = (cmath.phase(self._sum) / (2 * cmath.pi) * BLOCK_SECONDS + GUARD) % BLOCK_SECONDS
        apart = (phase - best + BLOCK_SECONDS / 2) % BLOCK_SECONDS - BLOCK_SECONDS / 2
        return best if abs(apart) > PHASE_TOLERANCE else None


@dataclass(slots=True)
class BargeIn:
    """Hears the microphone alone while the avatar says something, to notice a person who speaks over it."""

    _ears: SpeechDriver | None = None
    _voiced: int = 0  # blocks in a row

    def hears(self, chunk: AudioChunk) -> bool:
        """One block of the microphone -> whether it is the one that makes it an interruption."""
        if self._ears is None:
            self._ears = SpeechDriver()
        self._ears.hear(chunk)
        voiced = self._ears.at(chunk.time + chunk.duration - LOOK_AHEAD).voiced
        self._voiced = self._voiced + 1 if voiced > BARGE_VOICED else 0
        return self._voiced == BARGE_BLOCKS

    def rest(self) -> None:
        """Nothing is being said."""
        self._ears, self._voiced = None, 0


@dataclass(slots=True)
class Utterance:
    """Something the avatar says; samples are added while it is already speaking."""

    pcm: deque[Pcm16] = field(default_factory=deque)
    done: bool = False  # nothing more will be added

    @property
    def seconds(self) -> float:
        """Of sound that is there and was not taken."""
        return sum(map(len, self.pcm)) / RATE

    def take(self, count: int) -> FloatArray:
        """[at most count] samples, -1..1."""
        out: list[Pcm16] = []
        while count > 0 and self.pcm:
            piece = self.pcm.popleft()
            if len(piece) > count:
                self.pcm.appendleft(piece[count:])
                piece = piece[:count]
            out.append(piece)
            count -= len(piece)
        return np.concatenate(out).astype(np.float32) / 32768.0 if out else np.zeros(0, np.float32)


@dataclass(slots=True)
class SoundStream:
    """The session's sound, block by block."""

    mic: Microphone = field(default_factory=Microphone)
    late: int = 0  # blocks that went out without the microphone's packet
    _next: int | None = None  # sample number of the next block
    _wait: float = 0.0  # s behind the clock at which a block goes out even without the microphone
    _asked: float = 0.0
    _queue: deque[Utterance] = field(default_factory=deque)

    def say(self, utterance: Utterance) -> None:
        """Speak after whatever is still to be spoken."""
        self._queue.append(utterance)

    def interrupt(self) -> None:
        """Forget every utterance."""
        for utterance in self._queue:
            utterance.pcm.clear()
            utterance.done = True
        self._queue.clear()

    @property
    def speaking(self) -> bool:
        """Whether something is being said or still to be said."""
        return bool(self._queue)

    @property
    def utterances(self) -> int:
        """How many are being said or still to be said."""
        return len(self._queue)

    @property
    def seconds(self) -> float:
        """Of utterances' sound that is there and still to be said."""
        return sum(utterance.seconds for utterance in self._queue)

    def hear(self, chunk: AudioChunk, *, now: float) -> None:
        """A microphone packet with its capture time."""
        fresh = now - self.mic.seen > MIC_GONE
        self.mic.put(chunk, now=now)
        if fresh:
            self._wait = MIC_LATEST  # from now on blocks wait for their packet; the pause this makes is at most that long

    def blocks(self, *, now: float) -> list[tuple[FloatArray, int]]:
        """What can go out at `now`, in order: ([2, N], first sample number). N is 20 ms, or with a microphone up to where its
        last packet ends, so that nothing waits for the packet after its own. Call at least every 20 ms."""
        if self._next is None or now - self._asked > STALL:
            self._next = int((now - self._wait) * RATE)
        waiting = now - self.mic.seen < MIC_GONE
        self._wait = MIC_LATEST if waiting else max(0.0, self._wait - CATCH_UP * min(now - self._asked, BLOCK_SECONDS))
        self._asked = now
        arrived = int(min(self.mic.end, now * RATE)) if waiting else 0
        overdue = int((now - self._wait) * RATE)
        out: list[tuple[FloatArray, int]] = []
        while True:
            if arrived - self._next >= BLOCK // 2:
                count = arrived - self._next
                count = count if count < 2 * BLOCK else BLOCK
            elif overdue - self._next >= BLOCK:
                count = BLOCK
                self.late += waiting
            else:
                return out
            out.append((np.stack([self.mic.take(self._next, count), self._spoken(count)]), self._next))
            self._next += count

    def _spoken(self, count: int) -> FloatArray:
        out = np.zeros(count, np.float32)
        at = 0
        while self._queue and at < count:
            got = self._queue[0].take(count - at)
            out[at : at + len(got)] = got
            at += len(got)
            if not self._queue[0].pcm:
                if not self._queue[0].done:
                    break
                self._queue.popleft()
        return out
