"""What a frame costs: every generator's step at several sizes, every driver, and the whole chain from picture to picture.

CPU times are those of the whole process (trackers work on threads of their own), so nothing else may run in it; wall times on
a shared machine are upper bounds. The ratios compare work of one run and carry over to other machines best. Generators with networks are
measured where PyTorch is installed, at their own size, with random weights where none are given (they cost the same); their chain from
picture to picture only where --generator names them. What a generator takes beside the options below: --option NAME=VALUE.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np

from benchmarks import media
from benchmarks.common import Laps, Panel, Table, arguments, percentiles, plot, report, start
from benchmarks.steps import DIFFUSION, LEAST_LAPS, WARM_UP, Row, Running, missing, step_time
from engine.config import BODY_EVERY
from engine.types import AudioChunk, UInt8Array, VideoFrame

SIZES = (256, 512, 768)
CHAIN_SIZE = 512
"""px at which the whole chain runs, but for generators with networks, which have a size of their own."""
FRAMES = 150
SOUND_STEP = 1.0 / media.FPS
"""s of sound heard and read per frame."""
CHAIN_SECONDS = 30.0
"""s after which a part of a slow generator's chain ends."""
FULL = {DIFFUSION: "compact", "reenact": "liveportrait"}
"""Presets that are measured by default, where a generator's own default is a small one for trials."""
STEPS = (1, 2)
"""Denoising steps a frame that are measured by default."""


def timed(work: Callable[[VideoFrame], object], frames: Iterator[VideoFrame]) -> Laps:
    """Time a driver over camera frames, the first ones thrown away; it ends early where it is slow."""
    laps, end = Laps(), time.perf_counter() + CHAIN_SECONDS
    for i, frame in enumerate(frames):
        if i >= WARM_UP + LEAST_LAPS and time.perf_counter() > end:
            break
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


@dataclass(frozen=True, slots=True)
class Chain:
    """Camera picture in, finished avatar picture out."""

    size: tuple[int, int]
    alone: Laps  # the face
    with_body: Laps  # and the shoulders, every BODY_EVERY frames


def chain_times(name: str, wanted: Mapping[str, Any], clip: media.Clip, count: int, *, portrait: UInt8Array) -> Chain:
    """Camera picture in, finished avatar picture out, through a Session; without and with the shoulders."""
    from engine.batch import Batch
    from engine.config import SessionSettings
    from engine.generators import load
    from engine.persona import make_persona
    from engine.session import Session

    generator = load(name, **wanted)
    persona = make_persona(generator, portrait, name=name)
    found = []
    for with_body in (False, True):
        session = Session(Batch(generator, rows=1), persona, settings=SessionSettings(track_body=with_body))

        def one(frame: VideoFrame, session: Session = session, with_body: bool = with_body) -> None:
            if with_body and frame.id % BODY_EVERY == 0:
                session.track_body(frame)
            session.push_video(frame)

        found.append(timed(one, camera(clip, count)))
        session.close()
    return Chain(generator.spec.size, *found)


def ratios(main: Row | None, drivers: Mapping[str, Laps], chain: Chain) -> dict[str, float | None]:
    """Shares and factors within this run, of means, since a body reading falls on every third frame only. `main`: the chain's own step."""

    def mean(laps: Laps | None) -> float:
        return float(np.mean(laps.cpu_ms)) if laps is not None and laps.cpu_ms else float("nan")

    alone, with_body = mean(chain.alone), mean(chain.with_body)
    return {
        "generator_share": mean(main.laps if main else None) / alone,
        "face_share": mean(drivers.get("face")) / alone,
        "body_share": (with_body - alone) / with_body,
        "body_extra_cpu_ms": with_body - alone,
        "step_over_floor": main.over_floor if main else None,
    }


def options_of(words: Sequence[str]) -> argparse.Namespace:
    """What the command line asks for."""
    from engine.backends import pytorch
    from engine.generators import NAMES

    parser = arguments("latency", __doc__)
    parser.add_argument("--generator", nargs="+", choices=sorted(NAMES), help="default: every one that can run here")
    parser.add_argument("--size", nargs="+", type=int, help=f"px of the square frames (default: {SIZES}; where there are networks: their own)")
    parser.add_argument("--option", nargs="+", default=[], type=_option, metavar="NAME=VALUE", help="of the generators' own, such as model=musetalk")
    parser.add_argument("--frames", type=int, default=FRAMES, help="frames a row, fewer where a generator is slow")
    parser.add_argument("--portrait", metavar="P", help="a picture (default: the built-in one)")
    parser.add_argument("--clip", type=Path, metavar="F", help="the camera picture (default: a clip made here)")
    parser.add_argument("--stream-frames", type=int, default=0, metavar="N", help="also compare a stream's last frames with its first (default: no)")
    networks = parser.add_argument_group("of generators with networks")
    networks.add_argument("--preset", help=f"size of the networks (default: {', '.join(f'{name} {own}' for name, own in FULL.items())})")
    networks.add_argument("--weights", metavar="DIR", help="a folder of weights (default: random ones)")
    networks.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="default: what suits the device")
    networks.add_argument("--mode", choices=get_args(pytorch.Mode), help="of PyTorch (default: the device's best)")
    networks.add_argument("--backend", nargs="+", default=["pytorch"], choices=("pytorch", "openvino", "onnxruntime"), help="default: pytorch")
    networks.add_argument("--graphs", metavar="DIR", help="exported graphs for the other backends")
    networks.add_argument("--device", help="default: the GPU where there is one")
    diffusion = parser.add_argument_group("diffusion")
    diffusion.add_argument("--steps", nargs="+", type=int, default=list(STEPS), help="denoising steps a frame")
    diffusion.add_argument("--rows", type=int, default=1, metavar="B", help="sessions in one batch")
    return parser.parse_args(words)


def _option(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"'{word}' is no option; write NAME=VALUE, such as model=musetalk")
    return name.replace("-", "_"), value


def planned(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What a generator is loaded with, a row of the table each: of what was asked for, all that it takes."""
    from engine.generators import takes

    known = takes(name)
    networks = "backend" in known
    asked = {"preset": options.preset or FULL.get(name), "weights": options.weights, "precision": options.precision, "device": options.device}
    if options.weights and not options.preset:
        del asked["preset"]
    same = {word: value for word, value in asked.items() if word in known and value is not None} | dict(options.option)
    sizes = [{"size": (size, size)} for size in options.size or (() if networks else SIZES) if "size" in known] or [{}]
    steps = [{"steps": steps} for steps in options.steps] if "steps" in known else [{}]
    own = {"pytorch": {"mode": options.mode}}
    backends = [{"backend": backend, **own.get(backend, {"graphs": options.graphs})} for backend in options.backend] if networks else [{}]
    backends = [{word: value for word, value in backend.items() if word in known and value is not None} for backend in backends]
    return [{**same, **backend, **size, **count} for size in sizes for count in steps for backend in backends]


def caches_of(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """What the diffusion generator's caches save, at the first size asked for -> (the fields, a line for people)."""
    from dataclasses import replace

    from benchmarks import bare, window
    from engine.backends import pytorch
    from engine.generators.diffusion.presets import preset

    made, device = preset(options.preset or FULL[DIFFUSION]), pytorch.device(options.device)
    precision = options.precision or ("fp16" if device.type == "cuda" else "fp32")
    if options.size:
        made = replace(made, size=(options.size[0], options.size[0]))
    networks = bare.random_networks(made, precision=precision, device=device)
    found = window.caches(networks, steps=made.steps, precision=precision, device=device)
    named = {"preset": made.name, "size": list(made.size), "steps": made.steps, "frames": found.frames, "precision": precision}
    times = {"step_ms": found.step_ms, "window_ms": found.window_ms, "reference_ms": found.reference_ms}
    line = (
        f"{made.name} {made.size[0]} px, {made.steps} steps: without the ring of {found.frames} frames a step costs {found.window:.1f} times, "
        f"without the reference's cache {found.reference:.2f} times."
    )
    return {**named, **times, "window": found.window, "reference": found.reference}, line


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark -> exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    from benchmarks.window import growth
    from engine.generators import NAMES, takes

    options = options_of(words)
    lacking = {name: why for name in sorted(NAMES) if options.generator is None and (why := missing(name))}
    names = options.generator or sorted(set(NAMES) - set(lacking), key=lambda name: ("backend" in takes(name), name))
    notes = [f"Left out: {name}. {why}" for name, why in lacking.items()]
    count = options.frames + WARM_UP
    portrait = media.demo() if options.portrait is None else media.read_picture(options.portrait)
    clip = media.read_clip(options.clip) if options.clip else media.moving_portrait(min(count / media.FPS, media.CLIP_SECONDS))[0]
    motions = media.script(count / media.FPS)
    rows: list[Row] = []
    stream: Mapping[str, Any] | None = None
    for name in names:
        for i, wanted in enumerate(planned(name, options)):
            running = Running(name, wanted, motions, portrait=portrait, clip=clip, rows=options.rows if name == DIFFUSION else 1)
            rows.append(step_time(running, name=name, frames=options.frames))
            if options.stream_frames and name == names[-1] and i == 0:
                stream = {"row": _label(rows[-1]), **growth(running.step, options.stream_frames, device=running.device)}
    drivers = driver_times(clip, count)
    chains = {}
    for name in names:
        wanted = planned(name, options)[0]
        networks = "backend" in wanted
        if options.generator is not None or not networks:
            wanted = wanted if networks else wanted | {"size": (CHAIN_SIZE, CHAIN_SIZE)}
            chains[name] = chain_times(name, wanted, clip, count, portrait=portrait)
    first, chain = next(iter(chains.items()))
    shares = ratios(next((row for row in rows if (row.generator, row.size) == (first, chain.size)), None), drivers, chain)
    result: dict[str, Any] = {"rows": [row.fields() for row in rows], "notes": notes}
    if DIFFUSION in names:
        caches, line = caches_of(options)
        shares |= {"window": caches["window"], "reference": caches["reference"]}
        result["caches"] = caches
        notes.append(line)
    if stream is not None:
        result["stream"] = stream
        notes.append(f"A stream of {stream['frames']} frames: its end takes {stream['ratio']:.3f} times as long as its beginning.")
    result |= {
        "rates": next((dict(row.floor.rates) for row in rows if row.floor.rates), None),
        "drivers": {name: {"cpu_ms": percentiles(laps.cpu_ms), "wall_ms": percentiles(laps.wall_ms)} for name, laps in drivers.items()},
        "chain": {
            name: {"size": list(chain.size), "chain": _fields(chain.alone), "chain_body": _fields(chain.with_body)} for name, chain in chains.items()
        },
        "ratios": shares,
    }
    report("latency", words, result, tables=_tables(rows, drivers, chains, notes), json_file=options.json)
    if options.plot is not None:
        lines = {_label(row): (list(range(len(row.laps.cpu_ms))), row.laps.cpu_ms) for row in rows}
        plot([Panel("step", "frame", "CPU ms", lines)], options.plot)
    return 0


def _fields(laps: Laps) -> dict[str, Any]:
    return {"cpu_ms": percentiles(laps.cpu_ms), "cpu_ms_mean": float(np.mean(laps.cpu_ms)), "wall_ms": percentiles(laps.wall_ms)}


def _label(row: Row) -> str:
    """A row's name for people."""
    if row.made["preset"] is None:
        return row.generator
    batch = f", {row.rows} sessions" if row.rows > 1 else ""
    chunk = f", {row.chunk} frames at once" if row.chunk > 1 else ""
    what = f"{row.made['preset']} {row.steps} step{'s' if row.steps > 1 else ''}{chunk}"
    return f"{what}, {row.made['backend']} {row.made['precision']} {row.device}{batch}"


def _tables(rows: Sequence[Row], drivers: Mapping[str, Laps], chains: Mapping[str, Chain], notes: Sequence[str]) -> list[Table]:
    columns = ("generator", "size", "cpu p50", "cpu p95", "wall p50", "wall p95", "wall p99", "GFLOP", "MB", "floor", "over floor", "prepare s")
    steps = Table(columns, title="a step, ms", notes=notes)
    for row in rows:
        cpu, wall = percentiles(row.laps.cpu_ms), percentiles(row.laps.wall_ms)
        times = (cpu["p50"], cpu["p95"], wall["p50"], wall["p95"], wall["p99"])
        steps.add(_label(row), row.size[0], *times, row.floor.gflop, row.floor.mbytes, row.floor.ms, row.over_floor, row.prepare_s)
    parts = Table(("part", "cpu p50", "cpu p95", "cpu mean", "wall p50", "wall p95"), title="drivers, and the whole chain, ms a frame")
    named = dict(drivers)
    for name, chain in chains.items():
        at = f"{name} {chain.size[0]} px"
        named |= {f"{at}: face to picture": chain.alone, f"{at}: with shoulders every {BODY_EVERY} frames": chain.with_body}
    for name, laps in named.items():
        cpu, wall = percentiles(laps.cpu_ms), percentiles(laps.wall_ms)
        parts.add(name, cpu["p50"], cpu["p95"], float(np.mean(laps.cpu_ms)), wall["p50"], wall["p95"])
    return [steps, parts]


if __name__ == "__main__":
    start(main)
