"""Whole connections between two peers: RTP times, capture times, shared encoding, bad packets."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from aiortc.mediastreams import VIDEO_TIME_BASE, MediaStreamError

from streaming import rtc
from tests.peers import LOCAL, Source, connected, frame_at
from tests.peers import negotiate as exchange

# -- whole connections -------------------------------------------------------------------------------------------------------------


def test_outgoing_rtp_is_what_arrives_also_across_the_wrap() -> None:
    async def main() -> None:
        a, b = rtc.make_peer_connection(LOCAL), rtc.make_peer_connection(LOCAL)
        source = Source()
        sender: Any = a.addTrack(source)
        sender.rtp_origin = (1 << 32) - 20_000  # wraps after 0.2 s
        rtc.prefer_codecs(a)
        got: list[rtc.ReceivedVideo] = []
        done = asyncio.Event()

        async def watch(track: Any) -> None:
            reader = rtc.LatestVideo(track)
            while len(got) < 15:
                got.append(await reader.read())
            done.set()

        tasks: list[Any] = []
        b.on("track", lambda track: tasks.append(asyncio.ensure_future(watch(track))))
        await exchange(a, b)
        async with asyncio.timeout(5):
            await done.wait()
        sent = {rtc.outgoing_rtp(sender, pts, VIDEO_TIME_BASE): at for pts, at in source.left.items()}
        assert all(g.rtp in sent for g in got)
        assert got[0].rtp > got[-1].rtp
        pts = [int(g.frame.pts or 0) for g in got]
        assert pts == sorted(pts)
        errors = [g.capture - sent[g.rtp] for g in got]
        assert abs(float(np.median(errors))) < 0.05
        assert rtc.sender_stats(sender).keyframes == 1
        await asyncio.gather(a.close(), b.close(), *tasks)

    asyncio.run(main())


def test_one_encode_serves_all_viewers() -> None:
    async def main() -> None:
        shared = rtc.SharedEncoder(settings=LOCAL)
        source = Source()
        seen: dict[str, list[float]] = {"early": [], "late": []}
        tasks: list[Any] = []
        pcs: list[Any] = []

        async def pump() -> None:
            while True:
                await shared.push(await source.recv())

        async def join(name: str) -> Any:
            a, b = rtc.make_peer_connection(LOCAL), rtc.make_peer_connection(LOCAL)
            pcs.extend((a, b))

            async def watch(track: Any) -> None:
                reader = rtc.LatestVideo(track)
                while True:
                    try:
                        seen[name].append((await reader.read()).arrival)
                    except MediaStreamError:
                        return

            b.on("track", lambda track: tasks.append(asyncio.ensure_future(watch(track))))
            a.addTrack(shared.track())
            rtc.prefer_codecs(a, video=("H264",))
            await exchange(a, b)
            await connected(a, b)
            return a

        pumping = asyncio.ensure_future(pump())
        await join("early")
        await _until(lambda: len(seen["early"]) > 10)
        second = await join("late")
        await _until(lambda: len(seen["late"]) > 10)
        assert shared.viewers == 2
        assert shared.keyframes <= 4
        assert shared.encoded <= len(source.left)
        await second.close()
        assert shared.viewers == 1
        start = len(seen["early"])
        await _until(lambda: len(seen["early"]) > start + 5)
        shared.close()
        assert shared.viewers == 0
        pumping.cancel()
        await asyncio.gather(*(pc.close() for pc in pcs), return_exceptions=False)
        await asyncio.gather(*tasks)

    asyncio.run(main())


async def _until(done: Callable[[], bool], within: float = 5.0) -> None:
    async with asyncio.timeout(within):
        while not done():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_a_viewer_with_a_full_link_rests_without_slowing_the_others() -> None:
    async def main() -> None:
        shared = rtc.SharedEncoder(settings=LOCAL)
        quick: Any = shared.track()
        slow: Any = shared.track()
        for i in range(30):
            await shared.push(frame_at(i))
            await quick.recv()
        assert slow.skipped >= 20  # never read: its queue was cleared, then it waits for a key picture
        slow.fall_behind()
        before = slow.skipped
        await shared.push(frame_at(31))
        assert slow.skipped == before + 1
        assert shared.keyframes <= 2
        shared.close()
        with pytest.raises(MediaStreamError):
            while True:
                await quick.recv()

    asyncio.run(main())


def test_malformed_packets_and_reports_change_nothing() -> None:
    """RTCP and RTP of nonsense go through the whole receiving path."""

    async def main() -> None:
        a, b = rtc.make_peer_connection(LOCAL), rtc.make_peer_connection(LOCAL)
        a.addTrack(Source())
        await exchange(a, b)
        await connected(a, b)
        transport: Any = b.getReceivers()[0].transport
        rng = np.random.default_rng(3)
        for length in itertools.chain(range(60), (200, 1200)):
            junk = bytes([0x80]) + rng.bytes(length)
            await transport._handle_rtp_data(junk, 0)
            await transport._handle_rtcp_data(junk)
        assert b.connectionState == "connected"
        await asyncio.gather(a.close(), b.close())

    asyncio.run(main())


def test_a_camera_that_changes_its_size_and_turns_is_followed() -> None:
    async def main() -> None:
        a, b = rtc.make_peer_connection(LOCAL), rtc.make_peer_connection(LOCAL)
        source = Source()
        a.addTrack(source)
        rtc.prefer_codecs(a)
        sizes: list[tuple[int, int]] = []
        tasks: list[Any] = []

        async def watch(track: Any) -> None:
            reader = rtc.LatestVideo(track)
            while True:
                try:
                    frame = (await reader.read()).frame
                except MediaStreamError:
                    return
                if not sizes or sizes[-1] != (frame.width, frame.height):
                    sizes.append((frame.width, frame.height))

        b.on("track", lambda track: tasks.append(asyncio.ensure_future(watch(track))))
        await exchange(a, b)
        for size, count in ((256, 1), (128, 2), (320, 3)):
            source.size = size
            await _until(lambda count=count: len(sizes) >= count)  # type: ignore[misc]
        assert sizes == [(256, 256), (128, 128), (320, 320)]
        await asyncio.gather(a.close(), b.close(), *tasks)

    asyncio.run(main())


def test_the_shared_stream_takes_the_rate_that_most_viewers_can() -> None:
    async def main() -> None:
        shared = rtc.SharedEncoder(settings=LOCAL)
        viewers: list[Any] = [shared.track() for _ in range(3)]
        await shared.push(frame_at(0))
        for viewer, target in zip(viewers, (200e3, 2e6, 900e3), strict=True):
            viewer.note_target(target)
        assert shared.target_bitrate == 900_000
        shared.close()
        assert shared.target_bitrate == 0

    asyncio.run(main())
