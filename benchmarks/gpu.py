"""The diffusion generator on a GPU: `python -m benchmarks.gpu --json F`. It runs on a CPU too, with `--preset tiny` in a moment.

Needs the wheels of torch, diffusers, safetensors and numpy and what they bring, and nothing else: no puppet (conditions are random
pictures), no tracker, no video, no transformers. Weights are random; a step's time does not depend on them. Tables: the modes side by
side for every precision, decoder and number of steps; sessions in one batch; the compact preset; what the caches save. Milliseconds
are wall time from a condition on the host to the picture on the host. The most wanted rows come first, and after --limit seconds
what is left is left out, by name. A row that fails says why, and the others go on.
"""

from __future__ import annotations

import argparse
import gc
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks import bare, floor, window
from benchmarks.common import Laps, Table, percentiles, report, start
from engine.backends import pytorch
from engine.generators.diffusion.autoencoder import autoencoder
from engine.generators.diffusion.layout import Latent
from engine.generators.diffusion.presets import PRESETS, Preset, preset

MODES: tuple[pytorch.Mode, ...] = ("cudagraph", "eager", "compile")
"""The slowest to prepare last."""
WARM_UP = pytorch.WARM_UPS + 2
"""Steps thrown away: kernels are chosen, a graph is captured."""
MB = 1e6


@dataclass(frozen=True, slots=True)
class Case:
    """One row."""

    preset: str
    decoder: str
    precision: str
    steps: int
    mode: pytorch.Mode
    sessions: int


@dataclass
class Bench:
    """Networks of one precision at a time, and what was measured."""

    options: argparse.Namespace
    device: Any
    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    end: float = 0.0
    _work: dict[tuple[Any, ...], floor.Work] = field(default_factory=dict)
    _kept: tuple[tuple[str, str], Any, dict[str, Any], Any] | None = None  # (preset, precision), networks, decoders, compiled denoiser

    def networks(self, case: Case) -> Any:
        """Those of a case: made once a preset and precision, whatever decoder and mode they then get."""
        key = (case.preset, case.precision)
        if self._kept is None or self._kept[0] != key:
            self._kept = None
            self.tidy()
            made = self.sized(case, decoder=None)
            networks = bare.random_networks(made, precision=case.precision, device=self.device)
            self._kept = (key, networks, {made.latent: networks.autoencoder}, networks.denoiser)
        _, networks, decoders, eager = self._kept
        made = self.sized(case, decoder=case.decoder)
        if made.latent not in decoders:
            decoders[made.latent] = autoencoder(made).eval().requires_grad_(False).to(self.device, bare.KINDS[case.precision])
        networks.preset, networks.autoencoder = bare.lean(made), decoders[made.latent]
        if case.mode == "compile" and "compiled" not in decoders:
            decoders["compiled"] = pytorch.compiled(eager)
        networks.denoiser = decoders["compiled"] if case.mode == "compile" else eager
        return networks

    def sized(self, case: Case, *, decoder: str | None) -> Preset:
        """The preset of a case."""
        made = preset(case.preset)
        if self.options.size and case.preset == self.options.preset:
            made = replace(made, size=(self.options.size, self.options.size))
        return made if decoder is None or made.latent == "pixel" else replace(made, latent=cast(Latent, decoder))

    def tidy(self) -> None:
        """Give memory back, so that the next row's peak is its own."""
        gc.collect()
        if self.device.type == "cuda":
            import torch

            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def floor(self, case: Case) -> tuple[floor.Work, float]:
        """What a step has to do, and its least time in ms."""
        key = (case.preset, case.decoder, case.precision, case.steps, case.sessions)
        if key not in self._work:
            made = self.sized(case, decoder=case.decoder)
            self._work[key] = floor.work(made, steps=case.steps, precision=case.precision, rows=case.sessions)
        return self._work[key], floor.rates(str(self.device), case.precision).floor_ms(self._work[key])

    def run(self, case: Case) -> dict[str, Any] | None:
        """Measure a case; None where there is no time left."""
        if time.perf_counter() > self.end:
            self.left_out.append(" ".join(str(value) for value in _fields(case).values()))
            return None
        self.tidy()
        row: dict[str, Any] = {**_fields(case), "error": None}
        try:
            row |= self.measured(case)
        except Exception as error:  # one row's trouble (memory, a compiler that is missing) is that row's result
            row["error"] = _short(error)
        self.rows.append(row)
        print(f"{row.get('ms', {}).get('p50')} ms: {' '.join(str(value) for value in _fields(case).values())} {row['error'] or ''}", file=sys.stderr)
        return row

    def measured(self, case: Case) -> dict[str, Any]:
        """Of a case."""
        pytorch.check_mode(case.mode, self.device)
        networks = self.networks(case)
        one = bare.bare(networks, steps=case.steps, precision=case.precision, mode=case.mode, device=self.device, rows=case.sessions)
        for _ in range(WARM_UP):
            one.step()
        laps, end = Laps(), time.perf_counter() + self.options.seconds
        while len(laps.wall_ms) < 3 or (time.perf_counter() < end and len(laps.wall_ms) < self.options.frames):
            with laps:
                one.step()
        peak = None
        if self.device.type == "cuda":
            import torch

            peak = torch.cuda.max_memory_allocated(self.device) / MB
        work, least = self.floor(case)
        p50 = float(np.median(laps.wall_ms))
        return {
            "ms": percentiles(laps.wall_ms),
            "laps": len(laps.wall_ms),
            "fps": 1000 * networks.preset.chunk / p50,  # of every session
            "gflop": work.gflop,
            "mbytes": work.mbytes,
            "floor_ms": least,
            "over_floor": float(np.median(window.judged(laps, str(self.device)))) / least,
            "session_mb": one.stream.bytes / case.sessions / MB,
            "peak_mb": peak,
        }


def _fields(case: Case) -> dict[str, Any]:
    return {name: getattr(case, name) for name in ("preset", "decoder", "precision", "steps", "mode", "sessions")}


def decoders_of(name: str, wanted: Sequence[str]) -> Sequence[str]:
    """Those of a preset: it has a choice only where it works on an autoencoder's latents."""
    return ("pixel",) if preset(name).latent == "pixel" else wanted


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """All rows, the most wanted first of each precision."""
    best = options.modes[0]
    decoders = decoders_of(options.preset, options.decoders)
    for precision in options.precisions:
        for mode in options.modes:
            for steps in options.steps:
                for decoder in decoders:
                    yield Case(options.preset, decoder, precision, steps, mode, 1)
            if mode == best and precision == options.precisions[0]:
                for steps in options.steps[:2]:
                    for sessions in options.sessions:
                        if sessions > 1:
                            yield Case(options.preset, decoders[0], precision, steps, best, sessions)
    if options.preset != "compact" and not options.alone:
        for precision in options.precisions:
            for mode in options.modes:
                for steps in options.steps[:2]:
                    yield Case("compact", "pixel", precision, steps, mode, 1)


def modes_table(rows: Sequence[dict[str, Any]], modes: Sequence[str]) -> Table:
    """One session, the modes side by side."""
    columns = ("preset", "decoder", "precision", "steps", *(f"{mode} ms" for mode in modes), "best fps", "GFLOP", "MB", "floor ms", "over floor")
    table = Table(columns, title="one session, ms a frame (p50)")
    single: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        if row["sessions"] == 1:
            single.setdefault(tuple(row[name] for name in ("preset", "decoder", "precision", "steps")), {})[row["mode"]] = row
    for key, by_mode in single.items():
        good = [row for row in by_mode.values() if row["error"] is None]
        times = [by_mode[mode]["ms"]["p50"] if mode in by_mode and by_mode[mode]["error"] is None else None for mode in modes]
        best = max(good, key=lambda row: float(row["fps"]), default=None)
        table.add(*key, *times, *((best[name] for name in ("fps", "gflop", "mbytes", "floor_ms", "over_floor")) if best else [None] * 5))
    return table


def sessions_table(rows: Sequence[dict[str, Any]], mode: str) -> tuple[Table, float | None]:
    """Sessions in one batch -> (the table, MB that each session after the first costs at its peak)."""
    what = ("preset", "decoder", "precision", "steps")
    columns = (*what, "sessions", "ms a step", "fps a session", "state MB a session", "peak MB", "MB more a session")
    table = Table(columns, title=f"sessions in one batch, {mode}")
    many = {tuple(row[name] for name in what) for row in rows if row["sessions"] > 1}
    extra = None
    alone: dict[tuple[Any, ...], float | None] = {}
    for row in sorted(rows, key=lambda row: (row["steps"], row["sessions"])):
        key = tuple(row[name] for name in what)
        if key not in many or row["mode"] != mode or row["error"] is not None:
            continue
        first = alone.setdefault(key, row["peak_mb"] if row["sessions"] == 1 else None)
        more = (row["peak_mb"] - first) / (row["sessions"] - 1) if first is not None and row["sessions"] > 1 else None
        extra = more if more is not None else extra
        table.add(*key, row["sessions"], row["ms"]["p50"], row["fps"], row["session_mb"], row["peak_mb"], more)
    return table, extra


def caches(bench: Bench) -> dict[str, Any] | None:
    """What ring and reference cache save, at the preset's own number of steps; None where there is no time left, or it fails."""
    options, steps = bench.options, preset(bench.options.preset).steps
    case = Case(options.preset, decoders_of(options.preset, options.decoders)[0], options.precisions[0], steps, "eager", 1)
    if time.perf_counter() > bench.end:
        bench.left_out.append("caches")
        return None
    bench.tidy()
    try:
        networks = bench.networks(case)
        found = window.caches(networks, steps=steps, precision=case.precision, device=bench.device, seconds=2 * options.seconds)
    except Exception as error:
        bench.left_out.append(f"caches ({_short(error)})")
        return None
    named = {name: value for name, value in _fields(case).items() if name not in ("mode", "sessions")}
    return {**named, "frames": found.frames, "step_ms": found.step_ms, "window": found.window, "reference": found.reference}


def _short(error: Exception) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark -> exit status."""
    import torch

    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="F", help="also write the JSON line to this file")
    parser.add_argument("--preset", default="animate_anyone", choices=sorted(PRESETS))
    parser.add_argument("--size", type=int, help="px of the square frames (default: the preset's)")
    parser.add_argument("--device", help="default: the GPU where there is one")
    parser.add_argument("--precisions", nargs="+", choices=sorted(bare.KINDS), help="default: fp16 bf16, on a CPU fp32")
    parser.add_argument(
        "--modes", nargs="+", choices=("eager", "script", "compile", "cudagraph"), help="default: cudagraph eager compile, on a CPU eager"
    )
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 2, 4], help="denoising steps a frame")
    parser.add_argument("--decoders", nargs="+", default=["tiny", "kl"], choices=("tiny", "kl"))
    parser.add_argument("--sessions", nargs="+", type=int, default=[1, 2, 3, 4, 6], help="in one batch")
    parser.add_argument("--frames", type=int, default=100, help="of a row, at most")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a row, at most")
    parser.add_argument("--limit", type=float, default=480.0, help="s after which no row begins")
    parser.add_argument("--alone", action="store_true", help="without the compact preset")
    options = parser.parse_args(words)
    device = pytorch.device(options.device)
    on_gpu = device.type == "cuda"
    options.precisions = options.precisions or (["fp16", "bf16"] if on_gpu else ["fp32"])
    options.modes = options.modes or (list(MODES) if on_gpu else ["eager"])
    bench = Bench(options, device, end=time.perf_counter() + options.limit)
    saved = None
    for i, case in enumerate(cases(options)):
        bench.run(case)
        if i == 0:  # early, while there is time for it, and on networks that are there
            saved = caches(bench)
    sessions, extra = sessions_table(bench.rows, options.modes[0])
    notes = [f"Left out: {name}" for name in bench.left_out]
    notes += [f"Failed: {' '.join(str(v) for v in list(row.values())[:6])}: {row['error']}" for row in bench.rows if row["error"]]
    if saved is not None:
        notes.append(
            f"{saved['preset']}, {saved['steps']} steps: without the ring of {saved['frames']} frames a step costs {saved['window']:.1f} times, "
            f"without the reference's cache {saved['reference']:.2f} times."
        )
    tables = [modes_table(bench.rows, options.modes), replace(sessions, notes=notes)]
    result = {
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "torch": torch.__version__,
        "rates": [floor.rates(str(device), precision).fields() for precision in options.precisions],
        "rows": bench.rows,
        "caches": saved,
        "mb_a_session": extra,
        "left_out": bench.left_out,
    }
    repeat = shlex.join(["python", "-m", "benchmarks.gpu", *words])
    report("gpu", words, result, tables=tables, json_file=options.json, repeat=repeat)
    return 0


if __name__ == "__main__":
    start(main)
