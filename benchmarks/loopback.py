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
import queue
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import av
import numpy as np

from benchmarks import delivery, media
from benchmarks.common import MS, Panel, Table, arguments, minus, percentiles, plot, report
from benchmarks.peers import CAMERA_SIZE, FPS, SOUND_RATE, Call, Camera, Microphone, Server, camera_loop, sound_of
from engine.types import FloatArray, UInt8Array

SETTLE = 3.0
"""s at the start of each block that are not measured: bitrates and the neutral come to rest."""
BLOCK_SECONDS = 15.0
BLOCKS = 3
VOICE_SECONDS = 40.0
CLICK_PERIOD = 1.0
CLICK_SECONDS = 0.02
BURST_SECONDS = 0.35
BURST_ATTACK = 0.02
VOICE_LOOP = 60.0
"""s after which the bursts repeat."""
LEAST_SOUND = 0.02
"""Level by which a burst must rise to be heard."""
LEAST_OPENING = 0.015
"""Face heights by which the mouth must open to be seen."""
SEARCH = 0.8
"""s after a burst in which mouth and returned sound are looked for."""
LOOK_QUEUE = 30
CAMERA_LOOP = 150
"""Pictures of the camera's loop before it runs backwards."""


@dataclass(slots=True)
class Block:
    """One measured block of a camera drive or its echo."""

    echo: bool
    delays: list[float]  # ms
    gaps: list[float]  # s
    sent_fps: float
    first_frame_s: float
    offsets: list[tuple[float, float]]  # (s, ms): sound minus picture of each click
    cpu_cores: float
    stages: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Voice:
    """One measured block of a voice drive."""

    mic_to_photon: list[float] = field(default_factory=list)  # ms
    offsets: list[tuple[float, float]] = field(default_factory=list)  # (s, ms): sound minus mouth
    bursts: int = 0
    gaps: list[float] = field(default_factory=list)
    first_frame_s: float = 0.0
    not_looked_at: int = 0


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


class Mouth:
    """Tracks the mouth in returned pictures, on a thread of its own, so that the caller stays in time."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.opening: list[float] = []
        self.missed = 0
        self._queue: queue.Queue[tuple[float, av.VideoFrame] | None] = queue.Queue(LOOK_QUEUE)
        self._thread = threading.Thread(target=self._run, name="mouth", daemon=True)
        self._thread.start()

    def look(self, frame: av.VideoFrame, now: float) -> None:
        """A returned picture; one too many is passed over and counted."""
        try:
            self._queue.put_nowait((now, frame))
        except queue.Full:
            self.missed += 1

    def close(self) -> None:
        """Finish what waits."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        from benchmarks.measure import opening, track
        from engine.drivers.face import FaceTracker

        tracker = FaceTracker()
        while (item := self._queue.get()) is not None:
            rgb = np.asarray(item[1].to_ndarray(format="rgb24"), np.uint8)
            self.times.append(item[0])
            self.opening.append(opening(track([rgb], tracker)[0]))
        tracker.close()


def clicks(first: int, count: int) -> FloatArray:
    """A 20 ms tone at the start of every second, sharp at its beginning."""
    t = (first + np.arange(count)) / SOUND_RATE
    since = t % CLICK_PERIOD
    tone: FloatArray = np.where(since < CLICK_SECONDS, 0.6 * np.sin(2 * np.pi * 1000 * since), 0.0).astype(np.float32)
    return tone


@dataclass(frozen=True, slots=True)
class Bursts:
    """A minute of "ah" after irregular pauses, repeated."""

    pcm: FloatArray
    starts: tuple[float, ...]  # s within the minute

    @classmethod
    def make(cls, *, seed: int = 5) -> Bursts:
        """Known onsets."""
        rng = np.random.default_rng(seed)
        pcm = np.zeros(round(VOICE_LOOP * SOUND_RATE), np.float32)
        starts = []
        t = 1.0
        vowel = media.vowel(BURST_SECONDS, rate=SOUND_RATE, attack=BURST_ATTACK)
        while t < VOICE_LOOP - 1.0:
            a = round(t * SOUND_RATE)
            pcm[a : a + len(vowel)] = vowel
            starts.append(a / SOUND_RATE)
            t += rng.uniform(1.2, 1.7)
        return cls(pcm, tuple(starts))

    def source(self, first: int, count: int) -> FloatArray:
        """For the microphone."""
        found: FloatArray = self.pcm[(first + np.arange(count)) % len(self.pcm)]
        return found

    def onsets(self, start: float, until: float) -> list[float]:
        """Times at which bursts rose to half, for a microphone that began at `start`."""
        half = BURST_ATTACK * delivery.HALF
        rounds = int((until - start) / VOICE_LOOP) + 1
        return [t for k in range(rounds) for s in self.starts if (t := start + k * VOICE_LOOP + s + half) < until]


async def camera_block(http: aiohttp.ClientSession, server: Server, pictures: Sequence[UInt8Array], *, echo: bool, seconds: float) -> Block:
    """Call, let it settle, measure."""
    camera, microphone = Camera(pictures, size=CAMERA_SIZE), Microphone(clicks)
    offer: dict[str, Any] = {"drive": "camera"} | ({"generator": "echo"} if echo else {})
    async with Call(http, server.url, camera, microphone, offer) as call:
        await asyncio.sleep(SETTLE)
        since, cpu = time.monotonic(), server.usage()[0]
        await asyncio.sleep(seconds)
        until = time.monotonic()
        cores = (server.usage()[0] - cpu) / (until - since)
        stages = await _stages(http, server, call.session)
        await asyncio.sleep(0.5)
    found = delivery.delays(call.seen, camera.taken, since=since, until=until)
    sent = sum(since <= t <= until for t in camera.taken.values()) / (until - since)
    offsets = _click_offsets(call, camera, microphone, since=since, until=until)
    gaps = delivery.intervals(call.seen, since=since, until=until)
    return Block(echo, found, gaps, sent, call.first_frame_s or float("nan"), offsets, cores, stages)


async def _stages(http: aiohttp.ClientSession, server: Server, session: str) -> dict[str, Any]:
    """What the server says of this session."""
    async with http.get(f"{server.url}/stats") as answer:
        if answer.status != 200:
            return {}
        said = await answer.json()
    sessions = said.get("sessions", [])
    if isinstance(sessions, dict):
        return dict(sessions.get(session, {}))
    return next((dict(one) for one in sessions if isinstance(one, dict) and one.get("sessionid", one.get("id")) == session), {})


def _click_offsets(call: Call, camera: Camera, microphone: Microphone, *, since: float, until: float) -> list[tuple[float, float]]:
    """(s, ms) of each click: how much later its sound came back than the pictures taken around it."""
    if microphone.start is None:
        return []
    times, level = delivery.envelope(*sound_of(call.packets))
    first_sight: dict[int, float] = {}
    for one in call.seen:
        if one.number is not None:
            first_sight.setdefault(one.number, one.time)
    taken = np.array([(camera.taken[n], t - camera.taken[n]) for n, t in first_sight.items() if n in camera.taken])
    if not len(taken):
        return []
    found = []
    for k in range(int((until - microphone.start) / CLICK_PERIOD) + 1):
        clicked = microphone.start + k * CLICK_PERIOD
        near = np.abs(taken[:, 0] - clicked) < CLICK_PERIOD / 2
        if clicked < since or not near.any():
            continue
        heard = delivery.rise(times, level, since=clicked, until=min(clicked + SEARCH, until), least=LEAST_SOUND)
        if heard is not None:
            found.append((clicked, (heard - clicked - float(np.median(taken[near, 1]))) * MS))
    return found


async def voice_block(http: aiohttp.ClientSession, server: Server, pictures: Sequence[UInt8Array], *, seconds: float) -> Voice:
    """Bursts of a vowel drive the mouth; the camera is on but does not drive."""
    bursts = Bursts.make()
    mouth = Mouth()
    camera, microphone = Camera(pictures, size=CAMERA_SIZE), Microphone(bursts.source)
    try:
        async with Call(http, server.url, camera, microphone, {"drive": "voice"}, look=mouth.look) as call:
            await asyncio.sleep(SETTLE)
            since = time.monotonic()
            await asyncio.sleep(seconds)
            until = time.monotonic()
            await asyncio.sleep(1.0)
    finally:
        mouth.close()
    result = Voice(gaps=delivery.intervals([delivery.Seen(s.time, None) for s in call.seen], since=since, until=until))
    result.first_frame_s, result.not_looked_at = call.first_frame_s or float("nan"), mouth.missed
    sound_times, level = delivery.envelope(*sound_of(call.packets))
    mouth_times, opening = np.asarray(mouth.times), np.asarray(mouth.opening)
    for onset in bursts.onsets(microphone.start or since, until - SEARCH):
        if onset < since:
            continue
        result.bursts += 1
        seen = delivery.rise(mouth_times, opening, since=onset - 0.05, until=onset + SEARCH, least=LEAST_OPENING)
        heard = delivery.rise(sound_times, level, since=onset, until=onset + SEARCH, least=LEAST_SOUND)
        if seen is not None:
            result.mic_to_photon.append((seen - onset) * MS)
        if seen is not None and heard is not None:
            result.offsets.append((onset, (heard - seen) * MS))
    return result


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
    growth, growth_error = delivery.slope(meter.times, meter.rss)
    clicks_ms = [ms for b in avatar for _, ms in b.offsets]
    return {
        "fps": _fps(gaps),
        "stall_ratio": delivery.stall_ratio(gaps, fps=FPS),
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
        "cpu_cores": float(np.mean([b.cpu_cores for b in avatar])) if avatar else None,
        "interval_p95_ms": float(np.percentile(gaps, 95)) * MS if gaps else None,
        "longest_gap_ms": max(gaps) * MS if gaps else None,
        "sent_fps": float(np.mean([b.sent_fps for b in avatar])) if avatar else None,
        "echo_fps": _fps(echo_gaps),
        "echo_stall_ratio": delivery.stall_ratio(echo_gaps, fps=FPS) if echo else None,
        "voice": {
            "fps": _fps([g for v in voices for g in v.gaps]),
            "bursts": sum(v.bursts for v in voices),
            "seen": sum(len(v.mic_to_photon) for v in voices),
            "heard_and_seen": len(offsets),
            "not_looked_at": sum(v.not_looked_at for v in voices),
        },
        "server": avatar[-1].stages if avatar else {},
    }


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
    rest.add("server CPU, cores", result["cpu_cores"])
    return [delay, flow, rest]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark -> exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = arguments("loopback", __doc__)
    parser.add_argument("--seconds", type=float, default=BLOCK_SECONDS, help="of each measured block")
    parser.add_argument("--blocks", type=int, default=BLOCKS, help="pairs of an avatar and an echo block")
    parser.add_argument("--voice-seconds", type=float, default=VOICE_SECONDS, help="of the voice's block; 0 leaves it out")
    parser.add_argument("--minutes", type=float, default=0.0, help="a voice block of so many minutes, for drift and memory")
    parser.add_argument("--clip", type=Path, metavar="F", help="the camera's picture (default: a clip made here)")
    parser.add_argument("--serve", nargs="*", default=[], metavar="OPTION", help="further options of `avatar serve`, as one quoted word each")
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
    raise SystemExit(main())
