"""How many sessions one machine carries: callers are added until more than 1 % of their pictures are late.

Every caller is a process of its own with a camera of 30 pictures a second, on the same machine as the server, so that its
encoding and decoding count against the server: the figure is a lower bound. A picture is late when it comes more than 1.5
intervals after the one before. A camera that its own machine could not serve in time is told apart by the pictures it sent.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import shlex
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from benchmarks import delivery, media
from benchmarks.blocks import CAMERA_LOOP, SETTLE, clicks
from benchmarks.common import Panel, Table, arguments, percentiles, plot, report, start
from benchmarks.peers import CAMERA_SIZE, FPS, Call, Camera, Microphone, Server, camera_loop

LATE = 0.01
"""Share of late pictures that ends the search."""
SECONDS = 15.0
MOST = 8
"""Sessions at which the search ends in any case."""
STAGGER = 0.7
"""s between callers: people do not all press Start at once."""


@dataclass(frozen=True, slots=True)
class Caller:
    """What one caller saw."""

    gaps: list[float]  # s between new pictures
    delays: list[float]  # ms
    sent_fps: float


@dataclass(frozen=True, slots=True)
class Load:
    """What so many callers saw together."""

    sessions: int
    callers: list[Caller]
    cpu_cores: float  # of the server
    rss_mb: float

    @property
    def late(self) -> float:
        """Share of late pictures over all callers."""
        return delivery.stall_ratio([gap for caller in self.callers for gap in caller.gaps], fps=FPS)

    @property
    def fps(self) -> float:
        """Of the caller that got the fewest pictures."""
        return min(len(caller.gaps) / sum(caller.gaps) for caller in self.callers)

    def fields(self) -> dict[str, Any]:
        """As in the JSON line."""
        delays = [delay for caller in self.callers for delay in caller.delays]
        sent = min(caller.sent_fps for caller in self.callers)
        return {
            "sessions": self.sessions,
            "fps": self.fps,
            "late": self.late,
            "motion_to_photon_ms": percentiles(delays),
            "sent_fps": sent,
            "cpu_cores": self.cpu_cores,
            "rss_mb": self.rss_mb,
        }


def caller(url: str, pictures: str, wait: float, seconds: float, settle: float) -> Caller:
    """One call in a process of its own: `wait`, connect, let `settle` seconds pass, measure."""
    return asyncio.run(_call(url, pictures, wait, seconds, settle))


async def _call(url: str, pictures: str, wait: float, seconds: float, settle: float) -> Caller:
    loop = np.load(pictures, mmap_mode="r")
    camera = Camera([np.asarray(picture, np.uint8) for picture in loop], size=CAMERA_SIZE)
    await asyncio.sleep(wait)
    async with aiohttp.ClientSession() as http, Call(http, url, camera, Microphone(clicks), {"drive": "camera"}) as call:
        await asyncio.sleep(settle)
        since = asyncio.get_running_loop().time()
        await asyncio.sleep(seconds)
        until = asyncio.get_running_loop().time()
    sent = sum(since <= time <= until for time in camera.taken.values()) / (until - since)
    gaps = delivery.intervals(call.seen, since=since, until=until)
    return Caller(gaps, delivery.delays(call.seen, camera.taken, since=since, until=until), sent)


async def load(server: Server, sessions: int, *, pictures: Path, seconds: float) -> Load:
    """So many callers at once."""
    spread = STAGGER * (sessions - 1)
    with ProcessPoolExecutor(sessions, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = asyncio.get_running_loop()
        # Those who come first wait for the last one, so that all measure the same span.
        waits = [(STAGGER * k, SETTLE + spread - STAGGER * k) for k in range(sessions)]
        calls = [running.run_in_executor(pool, caller, server.url, str(pictures), wait, seconds, settle) for wait, settle in waits]
        await asyncio.sleep(spread + SETTLE)
        before, start = server.usage()[0], running.time()
        await asyncio.sleep(0.8 * seconds)
        cpu, rss = server.usage()
        cores = (cpu - before) / (running.time() - start)
        return Load(sessions, list(await asyncio.gather(*calls)), cores, rss)


async def run(options: Any) -> list[Load]:
    """Add callers until too many pictures are late."""
    clip = media.read_clip(options.clip) if options.clip else media.moving_portrait(CAMERA_LOOP / media.FPS)[0]
    loads: list[Load] = []
    server = Server.start(sessions=options.most, options=options.serve, log=options.log)
    try:
        with tempfile.TemporaryDirectory() as folder:
            pictures = Path(folder) / "camera.npy"
            np.save(pictures, np.stack(camera_loop(clip, limit=CAMERA_LOOP)))
            async with aiohttp.ClientSession() as http:
                await server.ready(http)
            for sessions in range(1, options.most + 1):
                loads.append(await load(server, sessions, pictures=pictures, seconds=options.seconds))
                print(f"{sessions} sessions: {loads[-1].fps:.1f} fps, {100 * loads[-1].late:.1f} % late", file=sys.stderr, flush=True)
                if loads[-1].late > options.late and not options.all:
                    break
    finally:
        server.stop()
    return loads


def summary(loads: Sequence[Load], *, late: float = LATE) -> dict[str, Any]:
    """The fixed fields: the most sessions before the first load with too many late pictures, and the slowest session's fps there."""
    carried: Load | None = None
    for one in loads:
        if one.late > late:
            break
        carried = one
    return {
        "sessions": carried.sessions if carried else 0,
        "fps": carried.fps if carried else None,
        "late_limit": late,
        "rows": [one.fields() for one in loads],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark -> exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = arguments("capacity", __doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="measured for each number of sessions")
    parser.add_argument("--most", type=int, default=MOST, help="sessions at which to stop in any case")
    parser.add_argument("--late", type=float, default=LATE, help="share of late pictures that is too many")
    parser.add_argument("--all", action="store_true", help="go on to --most whatever happens")
    parser.add_argument("--clip", type=Path, metavar="F", help="the cameras' picture (default: a clip made here)")
    parser.add_argument("--serve", type=shlex.split, default=[], metavar="OPTIONS", help="further options of `avatar serve`: --serve='--badge'")
    parser.add_argument("--log", type=Path, metavar="F", help="what the server prints")
    options = parser.parse_args(words)
    loads = asyncio.run(run(options))
    result = summary(loads, late=options.late)
    table = Table(("sessions", "fps of the slowest", "late %", "p50 ms", "p95 ms", "camera fps", "server cores", "server MB"), title="capacity")
    for row in result["rows"]:
        delay = row["motion_to_photon_ms"]
        cells = (row["sessions"], row["fps"], 100 * row["late"], delay["p50"], delay["p95"], row["sent_fps"], row["cpu_cores"], row["rss_mb"])
        table.add(*cells)
    report("capacity", words, result, tables=[table], json_file=options.json)
    if options.plot is not None:
        x = [one.sessions for one in loads]
        lines = {"fps of the slowest": (x, [one.fps for one in loads]), "late, %": (x, [100 * one.late for one in loads])}
        plot([Panel("capacity", "sessions", "", lines)], options.plot)
    return 0


if __name__ == "__main__":
    start(main)
