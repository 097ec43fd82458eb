"""Two peers over a bad network (tests/shim.py): pictures keep coming, nothing piles up, nothing is left behind.

Bounds are wide where a busy machine could move them; what they tell apart is "keeps going" from "collapses": with plain aiortc
the 1 Mbit/s link shows no picture in 14 s, and the outage freezes until 512 packets have piled up.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import pytest

from streaming.rtc.decode import VIDEO_LIMIT
from streaming.rtc.jitter import MAX_PACKETS
from streaming.rtc.readers import VIDEO_QUEUE
from tests.peers import LOCAL, Call, call
from tests.shim import CLEAR, Impairment, impaired_network

ROUND_TRIP = 0.02
OUTAGE = 3.0
BACK_WITHIN = 2.0


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run on a fresh loop; no task and no decoder thread may be left."""

    async def checked() -> None:
        await main()
        await asyncio.sleep(0.05)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left

    asyncio.run(checked())
    assert not [t.name for t in threading.enumerate() if t.name.endswith("-decoder")]


@dataclass(frozen=True)
class Case:
    """An impairment and what must hold under it."""

    name: str
    what: Impairment
    fps: float  # at least, after `settle` s
    gap: float  # s without a picture at most, after `settle`
    settle: float = 0.3
    watch: float = 1.8
    codec: str = "H264"
    size: int = 256


CASES = [
    Case("clear", CLEAR, fps=25, gap=0.4),
    Case("every 10th lost", Impairment(drop_every=10, delay=ROUND_TRIP / 2), fps=22, gap=0.6),
    Case("every 10th lost, VP8", Impairment(drop_every=10, delay=ROUND_TRIP / 2), fps=22, gap=0.6, codec="VP8"),
    Case("bursts of 8", Impairment(burst_every=100, burst=8, delay=ROUND_TRIP / 2), fps=15, gap=1.3),
    Case("200 ms jitter", Impairment(jitter=0.2), fps=20, gap=0.8),
    Case("reorder", Impairment(reorder_every=5, delay=ROUND_TRIP / 2), fps=22, gap=0.5),
    Case("1 Mbit/s", Impairment(rate=1e6, delay=ROUND_TRIP / 2), fps=20, gap=1.3, settle=2.5, size=512),
    Case("300 kbit/s", Impairment(rate=3e5, delay=ROUND_TRIP / 2), fps=15, gap=1.5, settle=4.0, watch=2.0),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_pictures_keep_coming(case: Case) -> None:
    async def main() -> None:
        with impaired_network() as network:
            async with call(network, codec=case.codec, size=case.size) as c:
                c.down.impairment = case.what
                c.up.impairment = Impairment(delay=case.what.delay)
                await asyncio.sleep(case.settle)
                start, before = time.monotonic(), len(c.seen.arrivals) + c.seen.passed_over
                await asyncio.sleep(case.watch)
                end, after = time.monotonic(), len(c.seen.arrivals) + c.seen.passed_over
                _bounded(c)
                fps = (after - before) / (end - start)
                gap = c.seen.longest_gap(start, end)
                assert fps >= case.fps, f"{fps:.1f} fps, {c.stats()}"
                assert gap <= case.gap, f"{gap:.2f} s without a picture, {c.stats()}"

    run(main)


@pytest.mark.parametrize("codec", ["H264", "VP8"])
def test_the_picture_is_back_after_an_outage(codec: str) -> None:
    async def main() -> None:
        with impaired_network() as network:
            async with call(network, codec=codec) as c:
                await asyncio.sleep(0.7)
                c.down.impairment = c.up.impairment = Impairment(down=True)
                await asyncio.sleep(OUTAGE)
                back = time.monotonic()
                c.down.impairment = c.up.impairment = Impairment(delay=ROUND_TRIP / 2)
                await asyncio.sleep(BACK_WITHIN)
                arrived = c.seen.since(back)
                assert len(arrived) > 5, f"{len(arrived)} pictures within {BACK_WITHIN} s of the outage's end, {c.stats()}"
                _bounded(c)

    run(main)


def test_a_narrow_link_is_not_flooded_with_retransmissions() -> None:
    async def main() -> None:
        with impaired_network() as network:
            async with call(network, size=512) as c:
                c.down.impairment = Impairment(rate=3e5, delay=ROUND_TRIP / 2)
                await asyncio.sleep(2.5)
                stats = c.stats()
                assert stats.target_bitrate < LOCAL.start_bitrate / 2, stats
                assert stats.retransmissions_refused > 0, stats
                assert stats.retransmitted < 0.5 * stats.packets_sent, stats

    run(main)


def test_a_viewer_that_vanishes_stops_nobody() -> None:
    """The other side's sockets close without a word: sending goes on into the void, and closing works."""

    async def main() -> None:
        with impaired_network() as network:
            async with call(network) as c:
                await asyncio.sleep(0.3)
                c.down.impairment = c.up.impairment = Impairment(down=True)
                await asyncio.sleep(0.5)
                started = time.monotonic()
                await asyncio.gather(c.sender.close(), c.receiver.close())
                assert time.monotonic() - started < 3

    run(main)


def _bounded(c: Call) -> None:
    receiver: Any = c.receiver.getReceivers()[0]
    assert receiver.waiting.qsize() <= VIDEO_LIMIT
    assert receiver.track.bounded.qsize() <= VIDEO_QUEUE
    assert c.seen.queued <= MAX_PACKETS
