"""Pictures and sound leave together: the pacer, and the whole way in virtual time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batch import Batch
from engine.config import SessionSettings
from engine.session import Session, render
from engine.types import AudioChunk, FloatArray, Grid, Output, VideoFrame
from engine.window import Window
from streaming.pacing import BLOCK, BLOCK_SECONDS, RATE, Pacer, Picture, SoundRing
from streaming.sound import SoundStream
from streaming.stats import Stats
from tests.fakes import FakeGenerator, fake_persona
from tests.voices import START, packets, vowel

PIXEL = np.zeros((2, 2, 3), np.uint8)


def output(sound_time: float, *, grid: Grid, frames: int = 1, motion_time: float | None = None) -> Output:
    """Frames that show `sound_time`."""
    return Output([VideoFrame(PIXEL, motion_time or sound_time, id=k + 1) for k in range(frames)], [], grid, sound_time)


@dataclass
class Stage:
    """A virtual second hand: sound blocks every 20 ms, frames whenever a test says, everything that left noted."""

    pacer: Pacer = field(default_factory=lambda: Pacer(Stats(started=START), fps=30.0, declared_lag=0.15))
    now: float = START
    signal: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]] = np.zeros_like  # sound at instants
    left: list[tuple[float, Picture]] = field(default_factory=list)
    heard: list[FloatArray] = field(default_factory=list)
    _next_block: float = START
    _next_source: int = round(START * RATE)

    def run(self, seconds: float, *, outputs: list[tuple[float, Output]], step: float = 0.001) -> None:
        """Let time pass; `outputs`: (when ready, what)."""
        waiting = sorted(outputs, key=lambda pair: pair[0])
        until = self.now + seconds
        while self.now < until:
            while (self._next_source + BLOCK) / RATE <= self.now:
                times = (self._next_source + np.arange(BLOCK)) / RATE
                wave = self.signal(times).astype(np.float32)
                self.pacer.sound(np.stack([wave, np.zeros(BLOCK, np.float32)]), self._next_source)
                self._next_source += BLOCK
            while waiting and waiting[0][0] <= self.now:
                self.pacer.put(waiting.pop(0)[1], now=self.now)
            if (picture := self.pacer.picture(now=self.now)) is not None:
                self.left.append((self.now, picture))
            while self._next_block <= self.now:
                self.heard.append(self.pacer.block(now=self._next_block))
                self._next_block += BLOCK_SECONDS
            self.now += step

    @property
    def offsets(self) -> FloatArray:
        """ms of sound minus picture as they left."""
        return np.array(self.pacer.stats.av_offset, np.float32)


def test_camera_pictures_are_never_held() -> None:
    stage = Stage()
    rng = np.random.default_rng(1)
    outputs = [(START + k / 30 + 0.02 + 0.01 * rng.random(), output(START + k / 30, grid="camera")) for k in range(60)]
    stage.run(2.2, outputs=outputs)
    assert len(stage.left) == 60
    for (ready, _), (left, _) in zip(outputs, stage.left, strict=True):
        assert left - ready < 0.0021


def test_a_newer_camera_picture_takes_the_slot_and_the_old_one_is_counted() -> None:
    pacer = Pacer(Stats())
    pacer.put(output(1.0, grid="camera"), now=1.02)
    pacer.put(output(1.03, grid="camera"), now=1.05)
    assert pacer.wait(now=1.05) == 0.0
    picture = pacer.picture(now=1.05)
    assert picture is not None
    assert picture.motion_time == 1.03
    assert pacer.picture(now=1.06) is None
    assert pacer.wait(now=1.06) is None
    assert pacer.stats.drops == {"grid": 0, "slot": 1} or pacer.stats.drops == {"slot": 1}


def test_the_returned_voice_follows_the_camera_pictures_delay() -> None:
    stage = Stage()
    stage.run(4.0, outputs=[(START + k / 30 + 0.07, output(START + k / 30, grid="camera")) for k in range(120)])
    assert stage.pacer.playhead.target == pytest.approx(0.07, abs=0.012)
    assert np.abs(stage.offsets[-60:]).max() < 15.0


def test_in_speech_the_delay_changes_only_by_half_a_percent() -> None:
    # Loud all the time: no silence to hide a change in. The pictures' delay jumps from 60 to 160 ms.
    stage = Stage(signal=lambda t: np.sin(2 * np.pi * 200 * t))
    early = [(START + k / 30 + 0.06, output(START + k / 30, grid="camera")) for k in range(60)]
    late = [(START + k / 30 + 0.16, output(START + k / 30, grid="camera")) for k in range(60, 300)]
    stage.run(10.2, outputs=early + late)
    playhead = stage.pacer.playhead
    assert playhead.target == pytest.approx(0.16, abs=0.012)
    # 8 s at 0.5 % make good 40 ms at most
    assert 0.03 < playhead.bent <= 8.3 * 0.005
    sound = np.concatenate([block[0] for block in stage.heard[20:]])
    assert np.abs(np.diff(sound)).max() < 0.05, "no click"


def test_in_silence_the_delay_jumps_at_once() -> None:
    stage = Stage()
    early = [(START + k / 30 + 0.06, output(START + k / 30, grid="camera")) for k in range(60)]
    late = [(START + k / 30 + 0.16, output(START + k / 30, grid="camera")) for k in range(60, 150)]
    stage.run(5.2, outputs=early + late)
    assert np.abs(stage.offsets[-30:]).max() < 15.0
    assert stage.pacer.playhead.bent < 0.012


def test_voice_pictures_leave_with_their_sound() -> None:
    stage = Stage(signal=lambda t: 1.0 * (np.sin(2 * np.pi * 3 * t) > 0.6))
    rng = np.random.default_rng(2)
    outputs = [(START + k / 30 + 0.11 + 0.03 * rng.random(), output(START + k / 30, grid="voice")) for k in range(150)]
    stage.run(5.4, outputs=outputs)
    assert len(stage.left) >= 147
    assert np.abs(stage.offsets[30:]).max() < 20.0
    gaps = np.diff([left for left, _ in stage.left[30:]])
    assert np.abs(gaps - 1 / 30).max() < 0.012, "an even rhythm, whatever the generator's jitter"


def test_the_voice_lag_grows_with_the_generator_and_stays_bounded() -> None:
    stage = Stage()
    quick = [(START + k / 30 + 0.12, output(START + k / 30, grid="voice")) for k in range(90)]
    slow = [(START + k / 30 + 0.25, output(START + k / 30, grid="voice")) for k in range(90, 240)]
    stage.run(8.6, outputs=quick + slow)
    assert stage.pacer.playhead.target == pytest.approx(0.25, abs=0.02)
    assert np.abs(stage.offsets[-60:]).max() < 20.0


def test_chunks_are_spread_over_their_time() -> None:
    pacer = Pacer(Stats(started=START), fps=30.0, chunk=4)
    stage = Stage(pacer=pacer)
    stage.run(2.5, outputs=[(START + (k + 4) / 30 + 0.05, output(START + k / 30, grid="camera", frames=4)) for k in range(0, 60, 4)])
    assert len(stage.left) == 60
    assert np.abs(np.diff([left for left, _ in stage.left]) - 1 / 30).max() < 0.004


@pytest.mark.parametrize("grid", ["camera", "voice"])
def test_a_chunk_of_slower_frames_leaves_as_evenly_and_with_its_sound(grid: Grid) -> None:
    """A camera in poor light, or a session that was slowed: 10 frames a second for a generator of 15."""
    stage = Stage(pacer=Pacer(Stats(started=START), fps=15.0, chunk=4))
    outputs = []
    for k in range(0, 40, 4):
        at = [START + (k + j) / 10 for j in range(4)]
        outputs.append((at[-1] + 0.15, Output([VideoFrame(PIXEL, time, id=1) for time in at], [], grid, at[0])))
    stage.run(6.0, outputs=outputs)
    left = stage.left[-24:]  # the lag has been measured
    assert len(left) == 24
    assert np.abs(np.diff([now for now, _ in left]) - 1 / 10).max() < 0.01
    assert np.allclose([picture.sound_time for _, picture in left], [picture.motion_time for _, picture in left])


def test_a_stall_within_a_chunk_is_not_played_again() -> None:
    pacer = Pacer(Stats(started=START), fps=15.0, chunk=2)
    pacer.put(Output([VideoFrame(PIXEL, time, id=1) for time in (START, START + 5.0)], [], "camera", START), now=START + 5.0)
    assert pacer.picture(now=START + 5.0) is not None
    assert 0.0 < (pacer.wait(now=START + 5.0) or 0.0) <= 0.2 + 1e-6


def test_the_queue_is_bounded_and_its_drops_are_counted() -> None:
    pacer = Pacer(Stats())
    pacer.playhead.target = 5.0  # nothing becomes due
    for k in range(100):
        pacer.put(output(10.0 + k / 30, grid="voice"), now=10.0 + k / 30)
    assert len(pacer._queue) <= 15
    assert pacer.stats.drops["queue"] == 85


def test_interrupting_silences_the_utterance_within_a_packet_and_spares_the_microphone() -> None:
    pacer = Pacer(Stats())
    loud = np.ones((2, BLOCK), np.float32) * 0.5
    first = round(START * RATE)
    for k in range(10):
        pacer.sound(loud, first + k * BLOCK)
    now = START + 0.2
    pacer.playhead.target = 0.15
    pacer.block(now=now)
    pacer.put(output(START + 0.1, grid="voice"), now=now)
    pacer.interrupt(now=now)
    assert pacer.picture(now=now + 1) is None
    assert pacer.stats.drops["interrupt"] == 1
    blocks = [pacer.block(now=now + k * BLOCK_SECONDS) for k in range(1, 4)]
    assert np.abs(blocks[1][1]).max() == 0.0
    assert np.abs(blocks[1][0]).max() > 0.4


def test_a_grid_change_drops_what_waited_and_keeps_the_rhythm() -> None:
    stage = Stage()
    camera = [(START + k / 30 + 0.05, output(START + k / 30, grid="camera")) for k in range(60)]
    voice = [(START + k / 30 + 0.15, output(START + k / 30, grid="voice")) for k in range(62, 120)]
    back = [(START + k / 30 + 0.05, output(START + k / 30, grid="camera")) for k in range(126, 200)]
    stage.run(7.0, outputs=camera + voice + back)
    assert np.diff([left for left, _ in stage.left]).max() < 0.25
    assert np.abs(stage.offsets[-30:]).max() < 15.0


def test_when_the_voice_takes_over_in_mid_speech_sound_waits_for_its_picture() -> None:
    stage = Stage(signal=lambda t: np.sin(2 * np.pi * 200 * t))
    camera = [(START + k / 30 + 0.05, output(START + k / 30, grid="camera")) for k in range(90)]
    voice = [(START + k / 30 + 0.2, output(START + k / 30, grid="voice")) for k in range(90, 180)]
    stage.run(5.5, outputs=camera + voice)
    assert np.abs(stage.offsets[-40:]).max() < 20.0
    sound = np.concatenate([block[0] for block in stage.heard[20:]])
    assert np.abs(np.diff(sound)).max() < 0.05, "it fades out and in, without a click"
    edges = np.flatnonzero(np.diff(np.abs(sound) < 1e-6))
    pauses = [b - a for a, b in zip(edges, edges[1:], strict=False) if b - a > 200 and np.abs(sound[a + 1 : b]).max() < 1e-6]
    assert len(pauses) == 1
    assert 0.08 < pauses[0] / RATE < 0.25


def test_sound_that_is_late_is_waited_for_and_not_lost() -> None:
    pacer = Pacer(Stats(started=START))
    pacer.playhead.target = 0.05
    ramp = np.linspace(0.1, 1.0, 50 * BLOCK, dtype=np.float32)
    first = round(START * RATE)
    heard: list[FloatArray] = []
    for k in range(60):
        if k < 20 or k >= 25:  # nothing arrives for 100 ms, then all of it at once
            for j in range(20, 26) if k == 25 else (k,):
                if j < 50:
                    pacer.sound(np.stack([ramp[j * BLOCK : (j + 1) * BLOCK]] * 2), first + j * BLOCK)
        heard.append(pacer.block(now=START + (k + 1) * BLOCK_SECONDS)[0])
    sound = np.concatenate(heard)
    loud = sound[sound > 0.12]
    assert len(loud) > 46 * BLOCK, "only the fades are missing"
    assert pacer.stats.drops["sound_starved"] >= 2


@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 2500)), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_the_ring_is_a_window_on_an_endless_line(pieces: list[tuple[int, int]]) -> None:
    ring = SoundRing(np.zeros((2, 8000), np.float32))
    line = np.zeros((2, 400_000), np.float32)
    at = 0
    for gap, count in pieces:
        block = np.random.default_rng(at).random((2, count), np.float32) + 0.5
        at += gap
        ring.write(block, at)
        line[:, at : at + count] = block
        at += count
    start = max(0, at - 8000)
    if ring.end is not None and pieces[-1][0] <= 3000:
        np.testing.assert_array_equal(ring.read(start, at - start)[:, -pieces[-1][1] :], line[:, start:at][:, -pieces[-1][1] :])
    assert not ring.read(at, 100).any()


def test_overlapping_sound_is_cut_and_not_written_twice() -> None:
    ring = SoundRing()
    ring.write(np.full((2, 100), 1.0, np.float32), 1000)
    ring.write(np.full((2, 100), 2.0, np.float32), 1050)
    assert ring.end == 1150
    assert ring.read(1000, 150)[0].tolist() == [1.0] * 100 + [2.0] * 50


# -- the whole way in virtual time ---------------------------------------------------------------------------------------------


@dataclass
class Chain:
    """Microphone -> sound stream -> the engine's window -> a generator that takes a while -> pacer, on one virtual clock."""

    window: Window = field(default_factory=lambda: Window(fps=30.0, look_ahead=0.08))
    stream: SoundStream = field(default_factory=SoundStream)
    pacer: Pacer = field(default_factory=lambda: Pacer(Stats(started=START), fps=30.0, declared_lag=0.15))
    left: list[tuple[float, Picture]] = field(default_factory=list)
    heard: list[float] = field(default_factory=list)  # level of each block that left

    def run(self, seconds: float, *, mic: list[tuple[float, AudioChunk]], work: Callable[[int], float], tick: float = 0.004) -> None:
        """`work(k)`: s the generator takes for its k-th frame."""
        heard_until = float("-inf")
        next_block = free = START
        ready: deque[tuple[float, Output]] = deque()
        waiting = deque(mic)
        made = 0
        for k in range(round(seconds / tick)):
            now = START + k * tick
            while waiting and waiting[0][0] <= now:
                self.stream.hear(waiting.popleft()[1], now=now)
            for block, start in self.stream.blocks(now=now):
                self.pacer.sound(block, start)
                heard_until = (start + block.shape[1]) / RATE
            if now >= free and (due := self.window.due(now=now, heard_until=heard_until, drive="voice")) is not None:
                free = now + work(made)
                made += 1
                ready.append((free, output(due.signals[0].time, grid="voice")))
            while ready and ready[0][0] <= now:
                self.pacer.put(ready.popleft()[1], now=now)
            if (picture := self.pacer.picture(now=now)) is not None:
                self.left.append((now, picture))
            while next_block <= now:
                self.heard.append(float(np.abs(self.pacer.block(now=next_block)[0]).max()))
                next_block += BLOCK_SECONDS

    def steady(self) -> tuple[FloatArray, FloatArray]:
        """(ms of sound minus picture, s between pictures) once it has settled: the last 8 s."""
        gaps = np.diff([left for left, _ in self.left[-240:]])
        return np.array(self.pacer.stats.av_offset, np.float32)[-240:], gaps.astype(np.float32)


def test_the_voice_comes_back_in_step_and_soon() -> None:
    chain = Chain()
    rng = np.random.default_rng(3)
    chain.run(20.0, mic=packets(20.0, delay=0.045), work=lambda _: 0.012 + 0.006 * rng.random())
    offsets, gaps = chain.steady()
    assert np.abs(offsets).max() < 20.0
    assert np.quantile(gaps, 0.99) < 0.05
    assert len(chain.left) > 0.98 * 20 * 30 - 8
    # 45 ms on the way, 20 ms of packet, 80 ms of look-ahead, a frame of 33 ms, 18 ms of work, one block of 20 ms
    assert chain.pacer.playhead.target < 0.235
    assert chain.pacer.playhead.starved == 0


@pytest.mark.parametrize("drift", [3e-4, -3e-4])
def test_minutes_of_a_drifting_sound_card_leave_sound_and_picture_together(drift: float) -> None:
    chain = Chain()
    chain.run(180.0, mic=packets(180.0, delay=0.045, drift=drift), work=lambda _: 0.015, tick=0.01)
    offsets, _ = chain.steady()
    assert np.abs(offsets).max() < 25.0, "300 ppm over 3 minutes are 54 ms"
    assert len(chain.heard) - sum(level > 0.2 for level in chain.heard) < 40, "no holes in the sound"


def test_a_stalling_generator_recovers_without_a_queue() -> None:
    chain = Chain()
    chain.run(20.0, mic=packets(20.0, delay=0.045), work=lambda k: 0.6 if k == 150 else 0.015)
    offsets, gaps = chain.steady()
    assert np.abs(offsets).max() < 20.0
    assert np.quantile(gaps, 0.99) < 0.05
    assert len(chain.pacer._queue) < 8
    assert chain.pacer.playhead.target < 0.25


def test_interrupting_closes_the_lips_with_the_sound() -> None:
    """A real session in virtual time: it sings, is interrupted, and no open mouth leaves any more than sound does."""
    generator = FakeGenerator()
    session = Session(Batch(generator, rows=1), fake_persona(generator, "red"), settings=SessionSettings(drive="voice"))
    pacer = Pacer(Stats(started=START), fps=30.0, declared_lag=0.2)
    sung = np.repeat(vowel("a", pitch=120, seconds=4.0), RATE // 16_000)
    heard, asked, open_mouths, loud = 0, START + 2.0, list[float](), list[float]()
    for k in range(600):
        now = START + 0.005 * k
        if k == 400:
            session.interrupt()
            pacer.interrupt(now=now)
        while (START * RATE + heard + BLOCK) / RATE <= now:
            block = sung[heard : heard + BLOCK] if now < asked else np.zeros(BLOCK, np.float32)
            session.hear(AudioChunk(block, RATE, START + heard / RATE))
            pacer.sound(np.stack([np.zeros(BLOCK, np.float32), block]), round(START * RATE) + heard)
            heard += BLOCK
        if (made := render(session.batch, [session], now=now).get(session.row)) is not None:
            pacer.put(made, now=now + 0.01)
        picture = pacer.picture(now=now)
        if picture is not None and picture.rgb is not None and picture.rgb.min(axis=2).max() == 255:
            open_mouths.append(now)
        if k % 4 == 0 and np.abs(pacer.block(now=now)).max() > 0.01:
            loud.append(now)
    session.close()
    for last in (max(open_mouths), max(loud)):
        assert asked - 0.1 < last < asked + 0.1
