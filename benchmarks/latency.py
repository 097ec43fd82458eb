"""What a frame costs: every generator's step at several sizes, every driver, and the whole chain from picture to picture.

CPU times are those of the whole process (trackers work on threads of their own), so nothing else may run in it; wall times on
a shared machine are upper bounds. The ratios compare work of one run and carry over to other machines best.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import media
from benchmarks.common import Laps, Panel, Table, arguments, percentiles, plot, report, start
from engine.config import BODY_EVERY
from engine.types import AudioChunk, Motion, Signal, UInt8Array, VideoFrame

SIZES = (256, 512, 768)
CHAIN_SIZE = 512
"""px at which the whole chain runs."""
WARM_UP = 5
"""Frames thrown away: caches, compilation, the trackers' first search."""
FRAMES = 150
SOUND_STEP = 1.0 / media.FPS
"""s of sound heard and read per frame."""


@dataclass(frozen=True, slots=True)
class Row:
    """One generator at one size."""

    generator: str
    made: dict[str, str | None]  # preset, backend, precision
    size: tuple[int, int]
    steps: int  # network evaluations a frame
    laps: Laps
    prepare_s: float
    floor_ms: float

    def fields(self) -> dict[str, Any]:
        """As in the JSON line."""
        return {
            "generator": self.generator,
            **self.made,
            "size": list(self.size),
            "steps": self.steps,
            "laps": len(self.laps.wall_ms),
            "step_ms": percentiles(self.laps.wall_ms),
            "cpu_ms": percentiles(self.laps.cpu_ms),
            "floor_ms": self.floor_ms,
            "prepare_s": self.prepare_s,
        }


def step_time(name: str, size: int, motions: Sequence[Motion], *, portrait: UInt8Array) -> Row:
    """Step a generator along known motion."""
    from engine.generators import load
    from engine.persona import make_persona

    generator = load(name, size=(size, size))
    preparing = Laps()
    with preparing:
        persona = make_persona(generator, portrait, name=name)
    state = generator.allocate(1)
    generator.admit(state, 0, persona.identity)
    laps = Laps()
    chunk = generator.spec.chunk
    signals = [Signal(i / media.FPS, i + 1, motion=motion) for i, motion in enumerate(motions)]
    for i in range(0, len(signals) - chunk + 1, chunk):
        lap = laps if i >= WARM_UP * chunk else Laps()
        with lap:
            generator.step(state, [signals[i : i + chunk]])
    # A generator without networks names none of these: it is compiled by numba and works on bytes.
    made = {word: getattr(generator, word, default) for word, default in (("preset", None), ("backend", "numba"), ("precision", "uint8"))}
    return Row(
        name, made, generator.spec.size, int(getattr(generator, "steps", 1)), laps, preparing.wall_ms[0] / 1000, warp_floor(persona.identity.portrait)
    )


def warp_floor(picture: UInt8Array, *, rounds: int = 30) -> float:
    """Median CPU ms of one bilinear remap and one blend of the frame: less than that no warping generator can cost."""
    import cv2

    height, width = picture.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32) + 0.3, np.arange(height, dtype=np.float32) + 0.3)
    share = np.full((height, width), 0.5, np.float32)
    laps = Laps()
    for _ in range(rounds):
        with laps:
            warped = cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            cv2.blendLinear(warped, picture, share, 1 - share)
    return float(np.median(laps.cpu_ms))


def timed(work: Callable[[VideoFrame], object], frames: Iterator[VideoFrame]) -> Laps:
    """Time a driver over camera frames, the first ones thrown away."""
    laps = Laps()
    for i, frame in enumerate(frames):
        with laps if i >= WARM_UP else Laps():
            work(frame)
    return laps


def camera(clip: media.Clip, count: int) -> Iterator[VideoFrame]:
    """`count` frames of a clip that is repeated as needed."""

    def endless() -> Iterator[UInt8Array]:
        while True:
            yield from clip.pictures()

    return (VideoFrame(rgb, i / clip.fps, i + 1) for i, rgb in enumerate(islice(endless(), count)))


def driver_times(clip: media.Clip, count: int) -> dict[str, Laps]:
    """Face, body and speech drivers, each alone."""
    from engine.drivers.body import BodyDriver
    from engine.drivers.face import FaceDriver
    from engine.drivers.speech import SpeechDriver

    face, body, heard = FaceDriver(), BodyDriver(), SpeechDriver()
    found = {"face": timed(face, camera(clip, count)), "body": timed(body, camera(clip, count))}
    face.close()
    body.close()
    sound = media.babble((count + 1) * SOUND_STEP, rate=48_000)
    samples = round(SOUND_STEP * sound.rate)

    def listen(frame: VideoFrame) -> None:
        start = (frame.id - 1) * samples
        heard.hear(AudioChunk(sound.pcm[start : start + samples], sound.rate, start / sound.rate))
        heard.at(frame.id * SOUND_STEP)

    blank = np.zeros((2, 2, 3), np.uint8)
    found["speech"] = timed(listen, (VideoFrame(blank, i * SOUND_STEP, i + 1) for i in range(count)))
    return found


def chain_times(name: str, clip: media.Clip, count: int, *, portrait: UInt8Array) -> dict[str, Laps]:
    """Camera picture in, finished avatar picture out, through a Session; without and with the shoulders."""
    from engine.batch import Batch
    from engine.config import SessionSettings
    from engine.generators import load
    from engine.persona import make_persona
    from engine.session import Session

    generator = load(name, size=(CHAIN_SIZE, CHAIN_SIZE))
    persona = make_persona(generator, portrait, name=name)
    found = {}
    for label, with_body in (("chain", False), ("chain_body", True)):
        session = Session(Batch(generator, rows=1), persona, settings=SessionSettings(track_body=with_body))

        def one(frame: VideoFrame, session: Session = session, with_body: bool = with_body) -> None:
            if with_body and frame.id % BODY_EVERY == 0:
                session.track_body(frame)
            session.push_video(frame)

        found[label] = timed(one, camera(clip, count))
        session.close()
    return found


def ratios(rows: Sequence[Row], drivers: Mapping[str, Laps], chains: Mapping[str, Laps]) -> dict[str, float | None]:
    """Shares and factors within this run, of means, since a body reading falls on every third frame only."""

    def mean(laps: Laps | None) -> float:
        return float(np.mean(laps.cpu_ms)) if laps is not None and laps.cpu_ms else float("nan")

    main = next((row for row in rows if row.size[0] == CHAIN_SIZE), None)
    chain, with_body = mean(chains.get("chain")), mean(chains.get("chain_body"))
    step = mean(main.laps if main else None)
    return {
        "generator_share": step / chain,
        "face_share": mean(drivers.get("face")) / chain,
        "body_share": (with_body - chain) / with_body,
        "body_extra_cpu_ms": with_body - chain,
        "step_over_floor": float(np.median(main.laps.cpu_ms)) / main.floor_ms if main else None,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark -> exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    from engine.generators import NAMES

    parser = arguments("latency", __doc__)
    parser.add_argument("--generator", nargs="+", default=sorted(NAMES), choices=sorted(NAMES))
    parser.add_argument("--size", nargs="+", type=int, default=list(SIZES), help="px of the square frames")
    parser.add_argument("--frames", type=int, default=FRAMES)
    parser.add_argument("--portrait", metavar="P", help="a picture (default: the built-in one)")
    parser.add_argument("--clip", type=Path, metavar="F", help="the camera picture (default: a clip made here)")
    options = parser.parse_args(words)
    count = options.frames + WARM_UP
    portrait = media.demo() if options.portrait is None else media.read_picture(options.portrait)
    clip = media.read_clip(options.clip) if options.clip else media.moving_portrait(min(count / media.FPS, media.CLIP_SECONDS))[0]
    motions = media.script(count / media.FPS)
    rows = [step_time(name, size, motions, portrait=portrait) for name in options.generator for size in options.size]
    drivers = driver_times(clip, count)
    chains = {name: chain_times(name, clip, count, portrait=portrait) for name in options.generator}
    first = chains[options.generator[0]]
    result = {
        "rows": [row.fields() for row in rows],
        "drivers": {name: {"cpu_ms": percentiles(laps.cpu_ms), "wall_ms": percentiles(laps.wall_ms)} for name, laps in drivers.items()},
        "chain": _chains(chains),
        "ratios": ratios(rows, drivers, first),
    }
    report("latency", words, result, tables=_tables(rows, drivers, chains), json_file=options.json)
    if options.plot is not None:
        lines = {f"{row.generator} {row.size[0]}": (list(range(len(row.laps.cpu_ms))), row.laps.cpu_ms) for row in rows}
        plot([Panel("step", "frame", "CPU ms", lines)], options.plot)
    return 0


def _chains(chains: Mapping[str, Mapping[str, Laps]]) -> dict[str, Any]:
    return {
        name: {
            label: {"cpu_ms": percentiles(laps.cpu_ms), "cpu_ms_mean": float(np.mean(laps.cpu_ms)), "wall_ms": percentiles(laps.wall_ms)}
            for label, laps in both.items()
        }
        for name, both in chains.items()
    }


def _tables(rows: Sequence[Row], drivers: Mapping[str, Laps], chains: Mapping[str, Mapping[str, Laps]]) -> list[Table]:
    steps = Table(("generator", "size", "cpu p50", "cpu p95", "wall p50", "wall p95", "wall p99", "floor", "prepare s"), title="a step, ms")
    for row in rows:
        cpu, wall = percentiles(row.laps.cpu_ms), percentiles(row.laps.wall_ms)
        steps.add(row.generator, row.size[0], cpu["p50"], cpu["p95"], wall["p50"], wall["p95"], wall["p99"], row.floor_ms, row.prepare_s)
    parts = Table(
        ("part", "cpu p50", "cpu p95", "cpu mean", "wall p50", "wall p95"), title=f"drivers, and the whole chain at {CHAIN_SIZE} px, ms a frame"
    )
    named = dict(drivers)
    for name, both in chains.items():
        named |= {f"{name}: face to picture": both["chain"], f"{name}: with shoulders every {BODY_EVERY} frames": both["chain_body"]}
    for name, laps in named.items():
        cpu, wall = percentiles(laps.cpu_ms), percentiles(laps.wall_ms)
        parts.add(name, cpu["p50"], cpu["p95"], float(np.mean(laps.cpu_ms)), wall["p50"], wall["p95"])
    return [steps, parts]


if __name__ == "__main__":
    start(main)
