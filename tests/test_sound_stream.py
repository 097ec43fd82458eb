"""The microphone and what is said as one stream without gaps; virtual time."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest

from engine.types import AudioChunk, FloatArray
from streaming.pacing import BLOCK, RATE
from streaming.sound import MIC_LATEST, Microphone, Phase, SoundStream, Utterance
from tests.voices import START, packets


def ticks(
    stream: SoundStream, seconds: float, *, start: float = START, mic: list[tuple[float, AudioChunk]] | None = None
) -> list[tuple[float, FloatArray, int]]:
    """Ticks of 5 ms -> (when, block, first sample)."""
    out: list[tuple[float, FloatArray, int]] = []
    waiting = list(mic or [])
    for k in range(round(seconds / 0.005)):
        now = start + 0.005 * k
        while waiting and waiting[0][0] <= now:
            stream.hear(waiting.pop(0)[1], now=now)
        out += [(now, block, first) for block, first in stream.blocks(now=now)]
    return out


def test_the_stream_has_no_gaps_and_keeps_up_with_the_clock() -> None:
    blocks = ticks(SoundStream(), 2.0)
    assert all(b[2] - a[2] == a[1].shape[1] for a, b in zip(blocks, blocks[1:], strict=False))
    assert len(blocks) in (99, 100)
    assert not np.any(blocks[-1][1])


def test_the_microphone_sounds_at_the_instant_it_was_captured() -> None:
    mic = packets(2.0, delay=0.09)
    blocks = ticks(SoundStream(), 2.2, mic=mic)
    for when, block, first in blocks[20:80]:
        t = np.arange(first, first + block.shape[1]) / RATE - START
        wanted = 0.5 * np.sin(2 * np.pi * 300 * t)
        assert np.abs(block[0] - wanted).max() < 0.03
        assert when - (first + block.shape[1]) / RATE < 0.09 + 0.006, "a block leaves as soon as its packet is there"


def test_a_block_ends_where_a_packet_ends() -> None:
    """Whatever the phase in which the microphone starts, nothing waits for the packet after its own."""
    mic = packets(1.0, delay=0.03, start=START + 0.313)
    blocks = [b for b in ticks(SoundStream(), 1.2, mic=mic) if START + 0.6 < b[0] < START + 1.2]
    waits = [when - (first + block.shape[1]) / RATE for when, block, first in blocks]
    assert max(waits) < 0.03 + 0.006


def test_a_lost_packet_is_silence_and_a_late_one_is_counted() -> None:
    mic = packets(2.0, delay=0.05)
    del mic[40]
    stream = SoundStream()
    blocks = ticks(stream, 2.1, mic=mic)
    assert all(b[2] - a[2] == a[1].shape[1] for a, b in zip(blocks, blocks[1:], strict=False))
    quiet = [first for _, block, first in blocks[20:90] if np.abs(block[0]).max() < 0.01]
    assert len(quiet) <= 2
    longest = max(b[0] - a[0] for a, b in zip(blocks[10:], blocks[11:], strict=False))
    assert longest <= MIC_LATEST


def test_a_microphone_that_falls_silent_does_not_stop_the_clock() -> None:
    blocks = ticks(SoundStream(), 4.0, mic=packets(1.0, delay=0.08))
    when, _, first = blocks[-1]
    assert when - (first + BLOCK) / RATE < 0.03, "caught up with the clock"
    after = [b for b in blocks if b[0] > START + 1.4]
    rate = (after[-1][2] - after[0][2]) / RATE / (after[-1][0] - after[0][0])
    assert rate < 1.12, "without a burst"


@pytest.mark.parametrize("drift", [2e-4, -2e-4])
def test_a_sound_card_of_another_speed_stays_in_step(drift: float) -> None:
    microphone = Microphone()
    worst = 0.0
    for arrival, chunk in packets(120.0, delay=0.05, drift=drift):
        microphone.put(chunk, now=arrival)
        microphone.take(int(microphone.end) - BLOCK, BLOCK)
        worst = max(worst, abs(microphone.end / RATE - (chunk.time + 0.02)))
    assert worst < 0.02, "200 ppm over two minutes are 24 ms; without correction this grows for ever"


@pytest.mark.parametrize("arrival", [0.0, 0.0071, 0.0199])
def test_ticks_come_shortly_after_the_packets(arrival: float) -> None:
    rng = np.random.default_rng(4)
    phase = Phase()
    for k in range(100):
        phase.hit(START + 0.02 * k + arrival + 0.001 * rng.standard_normal())
    best = phase.better_than((arrival - 0.002) % 0.02)
    assert best is not None
    assert 0.005 < (best - arrival) % 0.02 < 0.011
    assert phase.better_than(best) is None
    assert Phase().better_than(0.0) is None


def test_utterances_follow_each_other_and_an_unfinished_one_is_waited_for() -> None:
    stream = SoundStream()
    first, second = Utterance(), Utterance()
    first.pcm.append(np.full(BLOCK, 8000, np.int16))
    stream.say(first)
    second.pcm.append(np.full(BLOCK, 16000, np.int16))
    second.done = True
    stream.say(second)
    blocks = ticks(stream, 0.1)
    assert [round(float(block[1].max()), 2) for _, block, _ in blocks[:3]] == [0.24, 0.0, 0.0]
    assert stream.speaking
    first.done = True
    later = ticks(stream, 0.1, start=START + 0.1)
    assert max(float(block[1].max()) for _, block, _ in later) == pytest.approx(0.488, abs=0.01)
    assert not stream.speaking


def test_interrupting_empties_the_utterances() -> None:
    stream = SoundStream()
    stream.say(Utterance(deque([np.full(RATE, 8000, np.int16)])))
    ticks(stream, 0.1)
    stream.interrupt()
    assert not stream.speaking
    assert all(not np.any(block) for _, block, _ in ticks(stream, 0.1, start=START + 0.1))
