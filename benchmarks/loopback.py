"""Motion-to-photon through real peers: a caller in this process, the server in its own, RTP over 127.0.0.1 between them.

Camera pictures carry their number in a bar code, the server copies that strip into the avatar's picture, and the caller reads
it back. In the same run the server sends the camera back untouched (echo), in alternating blocks: added = avatar minus echo,
percentile by percentile, which is an approximation, since the two were not measured in pairs. "Photon" is the decoded picture
in the caller; a display would add its own delay. Then a voice drives: bursts of a vowel, from the microphone to the mouth that
the caller's tracker sees, and to the sound that comes back with it.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from benchmarks import delivery, media
from benchmarks.blocks import CAMERA_LOOP, Block, Voice, camera_block, voice_block
from benchmarks.common import MS, Panel, Table, arguments, minus, percentiles, plot, report, start
from benchmarks.peers import FPS, Server, camera_loop

BLOCK_SECONDS = 15.0
BLOCKS = 3
VOICE_SECONDS = 40.0


class Meter:
    """Resident memory of the server once a second."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.times: list[float] = []
        self.rss: list[float] = []

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self.rss.append(self.server.usage()[1])
            self.times.append(time.monotonic())
            await asyncio.sleep(1.0)


async def run(options: argparse.Namespace) -> tuple[list[Block], list[Voice], Meter]:
    """Start the server, alternate the blocks, then the voice."""
    clip = media.read_clip(options.clip) if options.clip else media.moving_portrait(CAMERA_LOOP / media.FPS)[0]
    pictures = camera_loop(clip, limit=CAMERA_LOOP)
    server = Server.start(sessions=2, options=options.serve, log=options.log)
    meter = Meter(server)
    blocks: list[Block] = []
    voices: list[Voice] = []
    try:
        async with aiohttp.ClientSession() as http:
            await server.ready(http)
            measuring = asyncio.create_task(meter.run())
            for number in range(options.blocks):
                for echo in (False, True):
                    blocks.append(await camera_block(http, server, pictures, echo=echo, seconds=options.seconds))
                    _say(f"block {number + 1}/{options.blocks} {'echo' if echo else 'avatar'}: p50 {percentiles(blocks[-1].delays)['p50']} ms")
            length = options.minutes * 60 if options.minutes else options.voice_seconds
            if length:
                voices.append(await voice_block(http, server, pictures, seconds=length))
            measuring.cancel()
    finally:
        server.stop()
    return blocks, voices, meter


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def summary(blocks: Sequence[Block], voices: Sequence[Voice], meter: Meter) -> dict[str, Any]:
    """The fixed fields, and more."""
    avatar, echo = [b for b in blocks if not b.echo], [b for b in blocks if b.echo]
    both = {name: percentiles([d for b in group for d in b.delays]) for name, group in (("avatar", avatar), ("echo", echo))}
    gaps = [g for b in avatar for g in b.gaps]
    echo_gaps = [g for b in echo for g in b.gaps]
    offsets = [pair for v in voices for pair in v.offsets]
    drift, error = delivery.slope(*zip(*offsets, strict=True)) if offsets else (None, None)
    growth, growth_error = delivery.slope(*_steady(meter, voices))
    clicks_ms = [ms for b in avatar for _, ms in b.offsets]
    return {
        "fps": _fps(gaps),
        "stall_ratio": delivery.stall_ratio(gaps, fps=FPS) if avatar else None,
        "motion_to_photon_ms": both["avatar"],
        "echo_ms": both["echo"],
        "added_ms": minus(both["avatar"], both["echo"]),
        "mic_to_photon_ms": percentiles([ms for v in voices for ms in v.mic_to_photon]),
        "av_offset_ms": {
            "p50": percentiles([ms for _, ms in offsets])["p50"],
            "p5": float(np.percentile([ms for _, ms in offsets], 5)) if offsets else None,
            "p95": percentiles([ms for _, ms in offsets])["p95"],
            "drift_per_hour": drift,
            "drift_error": error,
            "camera_p50": percentiles(clicks_ms)["p50"],
        },
        "start_to_first_frame_s": percentiles([b.first_frame_s for b in avatar])["p50"],
        "rss_mb": max(meter.rss, default=None),
        "rss_growth_mb_per_hour": growth,
        "rss_growth_error": growth_error,
        "cpu_cores": _mean([b.cpu_cores for b in avatar]),
        "cpu_ms_per_frame": {"avatar": _mean([b.cpu_ms for b in avatar]), "echo": _mean([b.cpu_ms for b in echo])},
        "caller_cores": _mean([b.caller_cores for b in avatar]),
        "rss_mb_after_block": [b.rss_mb for b in blocks],
        "interval_p95_ms": float(np.percentile(gaps, 95)) * MS if gaps else None,
        "longest_gap_ms": max(gaps) * MS if gaps else None,
        "sent_fps": _mean([b.sent_fps for b in avatar]),
        "echo_fps": _fps(echo_gaps),
        "echo_stall_ratio": delivery.stall_ratio(echo_gaps, fps=FPS) if echo else None,
        "voice": {
            "fps": _fps([g for v in voices for g in v.gaps]),
            "bursts": sum(v.bursts for v in voices),
            "seen": sum(len(v.mic_to_photon) for v in voices),
            "heard_and_seen": len(offsets),
            "not_looked_at": sum(v.not_looked_at for v in voices),
            "cpu_ms_per_frame": _mean([v.cpu_ms for v in voices]),
            "server": voices[-1].stages if voices else {},
        },
        "server": avatar[-1].stages if avatar else {},
    }


def _steady(meter: Meter, voices: Sequence[Voice]) -> tuple[list[float], list[float]]:
    """Memory over the last voice block, its first fifth left out: no session comes or goes there."""
    if not voices or not meter.times:
        return [], []
    start = voices[-1].since + (meter.times[-1] - voices[-1].since) / 5
    kept = [(t, rss) for t, rss in zip(meter.times, meter.rss, strict=True) if t >= start]
    return [t for t, _ in kept], [rss for _, rss in kept]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _fps(gaps: Sequence[float]) -> float | None:
    return len(gaps) / sum(gaps) if gaps and sum(gaps) > 0 else None


def _tables(result: dict[str, Any]) -> list[Table]:
    delay = Table(("", "p50", "p95", "p99"), title="camera picture to decoded avatar picture, ms")
    for label, name in (("motion to photon", "motion_to_photon_ms"), ("bare echo", "echo_ms"), ("added (approximation)", "added_ms")):
        delay.add(label, *result[name].values())
    delay.add("microphone to mouth", *result["mic_to_photon_ms"].values())
    flow = Table(("", "avatar", "echo"), title="delivery")
    flow.add("fps", result["fps"], result["echo_fps"])
    flow.add("stalls (over 1.5 intervals)", result["stall_ratio"], result["echo_stall_ratio"])
    rest = Table(("what", "value"), title="the rest")
    offset = result["av_offset_ms"]
    rest.add("sound minus mouth, voice drives, ms p50", offset["p50"])
    rest.add("its drift, ms an hour", offset["drift_per_hour"])
    rest.add("standard error of the drift", offset["drift_error"])
    rest.add("sound minus picture, camera drives, ms p50", offset["camera_p50"])
    rest.add("bursts seen of all", f"{result['voice']['seen']} of {result['voice']['bursts']}")
    rest.add("start to first frame, s", result["start_to_first_frame_s"])
    rest.add("server memory, MB", result["rss_mb"])
    rest.add("its growth while one voice drives, MB an hour", result["rss_growth_mb_per_hour"])
    rest.add("server CPU, cores", result["cpu_cores"])
    rest.add("caller's CPU on the same machine, cores", result["caller_cores"])
    rest.add("server CPU a picture, ms", result["cpu_ms_per_frame"]["avatar"])
    rest.add("server CPU an echoed picture, ms", result["cpu_ms_per_frame"]["echo"])
    rest.add("server CPU a picture that a voice drives, ms", result["voice"]["cpu_ms_per_frame"])
    rest.add("drops", ", ".join(f"{cause} {count}" for cause, count in result["server"].get("drops", {}).items()) or "none")
    said = [("the last avatar block", result["server"]), ("the voice block", result["voice"]["server"])]
    return [delay, flow, rest, *(_stages(f"what the server says of {name}, ms", one) for name, one in said if one)]


def _stages(title: str, said: dict[str, Any]) -> Table:
    table = Table(("stage", "p50", "p95", "p99"), title=title)
    for name, values in said.get("stages", {}).items():
        if values:
            table.add(name, *(values.get(p) for p in ("p50", "p95", "p99")))
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark -> exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = arguments("loopback", __doc__)
    parser.add_argument("--seconds", type=float, default=BLOCK_SECONDS, help="of each measured block")
    parser.add_argument("--blocks", type=int, default=BLOCKS, help="pairs of an avatar and an echo block; 0 leaves them out")
    parser.add_argument("--voice-seconds", type=float, default=VOICE_SECONDS, help="of the voice's block; 0 leaves it out")
    parser.add_argument("--minutes", type=float, default=0.0, help="a voice block of so many minutes, for drift and memory")
    parser.add_argument("--clip", type=Path, metavar="F", help="the camera's picture (default: a clip made here)")
    parser.add_argument("--serve", type=shlex.split, default=[], metavar="OPTIONS", help="further options of `avatar serve`: --serve='--badge'")
    parser.add_argument("--log", type=Path, metavar="F", help="what the server prints")
    options = parser.parse_args(words)
    blocks, voices, meter = asyncio.run(run(options))
    result = summary(blocks, voices, meter)
    report("loopback", words, result, tables=_tables(result), json_file=options.json)
    if options.plot is not None:
        lines = {
            f"{'echo' if b.echo else 'avatar'} {i // 2 + 1}": (np.sort(b.delays).tolist(), np.linspace(0, 100, len(b.delays)).tolist())
            for i, b in enumerate(blocks)
        }
        panels = [Panel("motion to photon", "ms", "percent of pictures", lines)]
        if voices and voices[0].offsets:
            t, ms = zip(*voices[0].offsets, strict=True)
            panels.append(Panel("sound minus mouth", "s", "ms", {"offset": ([x - t[0] for x in t], list(ms))}, style="."))
        panels.append(Panel("server memory", "s", "MB", {"rss": ([x - meter.times[0] for x in meter.times], meter.rss)}))
        plot(panels, options.plot)
    return 0


if __name__ == "__main__":
    start(main)
