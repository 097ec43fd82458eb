"""The loopback's blocks: one call each, settled, measured, closed. A camera drives (or is echoed), or a voice does."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import av
import numpy as np

from benchmarks import delivery, media
from benchmarks.common import MS
from benchmarks.peers import CAMERA_SIZE, SOUND_RATE, Call, Camera, Microphone, Server, sound_of
from engine.types import FloatArray, UInt8Array

SETTLE = 3.0
"""s at the start of each block that are not measured: bitrates and the neutral come to rest."""
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
    cpu_cores: float  # of the server
    cpu_ms: float = float("nan")  # of the server for each new picture that came back: holds on a busy machine too
    caller_cores: float = float("nan")  # of this process, which competes with the server where both share a machine
    rss_mb: float = float("nan")  # of the server at the end
    stages: dict[str, Any] = field(default_factory=dict)  # what the server says of the session


@dataclass(slots=True)
class Voice:
    """One measured block of a voice drive."""

    mic_to_photon: list[float] = field(default_factory=list)  # ms
    offsets: list[tuple[float, float]] = field(default_factory=list)  # (s, ms): sound minus mouth
    bursts: int = 0
    gaps: list[float] = field(default_factory=list)
    first_frame_s: float = 0.0
    not_looked_at: int = 0  # pictures that the mouth's tracker had no time for
    since: float = 0.0  # s, when measuring began
    cpu_ms: float = float("nan")  # of the server for each picture
    stages: dict[str, Any] = field(default_factory=dict)


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
        since, cpu, own = time.monotonic(), server.usage()[0], time.process_time()
        await asyncio.sleep(seconds)
        until, own = time.monotonic(), time.process_time() - own
        used, rss = server.usage()
        stages = await _stages(http, server, call.session)
        await asyncio.sleep(0.5)
    found = delivery.delays(call.seen, camera.taken, since=since, until=until)
    sent = sum(since <= t <= until for t in camera.taken.values()) / (until - since)
    offsets = _click_offsets(call, camera, microphone, since=since, until=until)
    gaps = delivery.intervals(call.seen, since=since, until=until)
    cores = (used - cpu) / (until - since)
    return Block(
        echo,
        found,
        gaps,
        sent,
        call.first_frame_s or float("nan"),
        offsets,
        cores,
        cpu_ms=(used - cpu) * MS / len(gaps),
        caller_cores=own / (until - since),
        rss_mb=rss,
        stages=stages,
    )


async def _stages(http: aiohttp.ClientSession, server: Server, session: str) -> dict[str, Any]:
    """What the server says of this session."""
    async with http.get(f"{server.url}/stats") as answer:
        if answer.status != 200:
            return {}
        said = await answer.json()
    return next((dict(one) for name, one in said.get("sessions", {}).items() if session.startswith(name)), {})


def _click_offsets(call: Call, camera: Camera, microphone: Microphone, *, since: float, until: float) -> list[tuple[float, float]]:
    """(s, ms) of each click: how much later its sound came back than the pictures taken around it."""
    if microphone.start is None:
        return []
    times, level = sound_of(call.packets)
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
            since, cpu = time.monotonic(), server.usage()[0]
            await asyncio.sleep(seconds)
            until, used = time.monotonic(), server.usage()[0]
            stages = await _stages(http, server, call.session)
            await asyncio.sleep(1.0)
    finally:
        mouth.close()
    result = Voice(gaps=delivery.intervals([delivery.Seen(s.time, None) for s in call.seen], since=since, until=until))
    result.first_frame_s, result.not_looked_at, result.since = call.first_frame_s or float("nan"), mouth.missed, since
    result.cpu_ms, result.stages = (used - cpu) * MS / len(result.gaps), stages
    sound_times, level = sound_of(call.packets)
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
