"""Training alone, on random pictures: `python -m benchmarks.training --preset animate_anyone --device cuda --json F`.

Needs the wheels of torch, diffusers, accelerate, safetensors and numpy and what they bring, and nothing else: no video, no tracker, no puppet, no
transformers (the identity's token comes from a small stand-in, which costs a step nothing). Weights are random, and so are the pictures: a step
takes as long. Every kind of batch that training takes in turn is timed by itself, teacher and student, with the critic where it takes part; steps a
second are of all kinds in their turns. Memory is the GPU's at its highest, or the process's on a CPU. `--estimate` measures no time: it reckons
the memory of a preset, at any size and on any machine (`training_room`).
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import resource
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Table, report, start
from benchmarks.training_room import GB, Room, random_batch, room, trainable
from engine.backends import pytorch
from engine.generators.diffusion.presets import PRESETS, Preset, check, preset
from exporters.training.batches import PATTERNS, Pattern
from exporters.training.learner import CRITIC_AFTER, Learner, Settings

WARM_UP, LEAST = 2, 3
"""Updates thrown away, and those that count at least."""
KIB = 1024


@dataclass(frozen=True, slots=True)
class Case:
    """One row: a kind of batch, learnt from in one way."""

    recipe: str
    precision: str
    pattern: Pattern
    critic: bool

    def fields(self) -> dict[str, Any]:
        """As in the JSON line."""
        kind = {"rows": self.pattern.rows, "frames": self.pattern.frames, "halved": self.pattern.halved}
        return {"recipe": self.recipe, "precision": self.precision, **kind, "critic": self.critic}


def kinds(options: argparse.Namespace) -> dict[Pattern, float]:
    """What training takes in turn -> the share of the updates that it has."""
    longest = options.longest or max(one.frames for one in PATTERNS)
    every = [replace(one, frames=min(one.frames, longest)) for one in PATTERNS]
    return {one: every.count(one) / len(every) for one in dict.fromkeys(every)}


def settings_of(options: argparse.Namespace, made: Preset, recipe: Any, precision: Any) -> Settings:
    """Of a run like those of `avatar train --start`."""
    shared = {"learn": options.learn, "checkpointing": options.checkpointing, "reference": options.reference}
    return Settings(recipe=recipe, preset=made.name, precision=precision, steps=options.steps, **shared)


def measured(options: argparse.Namespace, made: Preset, recipe: str, precision: str, device: Any) -> Iterator[dict[str, Any]]:
    """Rows of one way of learning: every kind of batch, without and with the critic."""
    from benchmarks.bare import lean

    settings = settings_of(options, made, recipe, precision)
    _tidy(device)
    networks = trainable(lean(made), device)
    learner = Learner(settings, made.size, start=networks, teacher=None, device=str(device))
    critics = (False, True) if learner.module.critic is not None else (False,)
    for pattern in kinds(options):
        batch = random_batch(networks.preset, pattern, device)
        for critic in critics:
            case = Case(recipe, precision, pattern, critic)
            try:
                seconds, peak = _timed(learner, batch, critic, options.seconds, device)
                yield {**case.fields(), "seconds": seconds, "frames_s": pattern.rows * pattern.frames / seconds, "peak_gb": peak / GB, "error": None}
            except Exception as error:  # a kind that does not fit leaves the others
                yield {
                    **case.fields(),
                    "seconds": None,
                    "frames_s": None,
                    "peak_gb": None,
                    "error": (str(error) or type(error).__name__).splitlines()[0][:160],
                }
                _tidy(device)


def _timed(learner: Learner, batch: Any, critic: bool, seconds: float, device: Any) -> tuple[float, float]:
    """(median s of an update, bytes at the highest)."""
    import torch

    laps: list[float] = []
    _forget_peak(device)
    end = time.perf_counter() + seconds
    for number in range(WARM_UP + 1000):
        since = time.perf_counter()
        if number >= WARM_UP + LEAST and since > end:
            break
        learner.update([(number, batch)], number, texture=critic)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number >= WARM_UP:
            laps.append(time.perf_counter() - since)
    return float(np.median(laps)), _peak(device)


def _forget_peak(device: Any) -> None:
    """Begin anew with the highest; a CPU's process cannot where the system does not let it, and then it is the highest so far."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def _peak(device: Any) -> float:
    import torch

    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    lines = Path("/proc/self/status").read_text().splitlines() if Path("/proc/self/status").exists() else []
    highest = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return float((highest[0] if highest else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * KIB)


def _tidy(device: Any) -> None:
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def summary(rows: Sequence[dict[str, Any]], shares: dict[Pattern, float]) -> list[dict[str, Any]]:
    """A row for each way of learning: updates a second over all kinds of batches, in their turns and with their share of the critic."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["recipe"], row["precision"]), []).append(row)
    made = []
    for (recipe, precision), own in found.items():
        whole = all(row["error"] is None for row in own)
        judged = any(row["critic"] for row in own)
        mean = 0.0
        for row in own if whole else ():
            pattern = Pattern(row["rows"], row["frames"], row["halved"])
            mean += shares[pattern] * row["seconds"] * ((1 - CRITIC_AFTER if row["critic"] else CRITIC_AFTER) if judged else 1.0)
        peak = max((row["peak_gb"] for row in own if row["error"] is None), default=None)
        made.append({"recipe": recipe, "precision": precision, "updates_s": 1 / mean if whole else None, "peak_gb": peak})
    return made


def tables_of(rows: Sequence[dict[str, Any]], ways: Sequence[dict[str, Any]]) -> list[Table]:
    """For people."""
    columns = ("recipe", "precision", "rows", "frames", "halved", "critic", "s an update", "frames a s", "peak GB")
    each = Table(columns, title="every kind of batch", notes=[f"Failed: {row['error']}" for row in rows if row["error"]])
    for row in rows:
        words = ("yes" if row["halved"] else "no", "yes" if row["critic"] else "no")
        each.add(row["recipe"], row["precision"], row["rows"], row["frames"], *words, row["seconds"], row["frames_s"], row["peak_gb"])
    whole = Table(("recipe", "precision", "updates a s", "peak GB"), title="all kinds in their turns")
    for way in ways:
        whole.add(way["recipe"], way["precision"], way["updates_s"], way["peak_gb"])
    return [each, whole]


def estimates(options: argparse.Namespace, made: Preset) -> tuple[list[dict[str, Any]], list[Table]]:
    """The memory of the largest kind of batch, by what learns."""
    largest = max(kinds(options), key=lambda one: one.rows * one.frames / (4 if one.halved else 1))
    columns = ("recipe", "learn", "precision", "frames", "weights", "gradients", "Adam", "average", "copies", "batch", "GB in all")
    table, rows = Table(columns, title=f"{made.name} at {made.size[1]} x {made.size[0]}, GB a process"), []
    for recipe in options.recipes:
        for learn in options.learn_all or [options.learn]:
            for precision in options.precisions:
                settings = replace(settings_of(options, made, recipe, precision), learn=learn)
                found: Room = room(made, settings, largest)
                parts = [x / GB for x in (found.weights, found.gradients, found.adam, found.average, found.copies, found.batch, found.total)]
                table.add(recipe, learn, precision, largest.rows * largest.frames, *parts)
                names = ("weights", "gradients", "adam", "average", "copies", "batch", "total")
                rows.append({"recipe": recipe, "learn": learn, "precision": precision, **dict(zip(names, parts, strict=True))})
    return rows, [table]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark -> exit status."""
    import torch

    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="F", help="also write the JSON line to this file")
    parser.add_argument("--preset", default="compact", choices=sorted(PRESETS))
    parser.add_argument("--size", type=int, help="px of the square frames (default: the preset's)")
    parser.add_argument("--device", help="default: the GPU where there is one")
    parser.add_argument(
        "--recipes", nargs="+", choices=("teacher", "appearance"), default=["teacher", "appearance"], help="the student's is appearance"
    )
    parser.add_argument("--precisions", nargs="+", choices=("no", "bf16"), default=["no", "bf16"])
    parser.add_argument("--steps", type=int, default=2, help="denoising steps of the student")
    parser.add_argument("--learn", choices=("all", "spatial", "temporal"), default="all")
    parser.add_argument("--longest", type=int, help="frames a batch has at most, as `avatar train --longest`")
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, help="default: for large networks")
    parser.add_argument("--reference", action=argparse.BooleanOptionalAction, default=True, help="whether the reference network learns too")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each kind of batch")
    parser.add_argument("--estimate", action="store_true", help="reckon the memory instead, for all parts that can learn")
    options = parser.parse_args(words)
    options.learn_all = ["all", "spatial", "temporal"] if options.estimate and "--learn" not in words else []
    made = preset(options.preset)
    if options.size is not None:
        made = replace(made, size=(options.size, options.size))
        check(made)
    shape = {"preset": made.name, "size": list(made.size), "torch": torch.__version__}
    repeat = shlex.join(["python", "-m", "benchmarks.training", *words])
    if options.estimate:
        rows, tables = estimates(options, made)
        report("training", words, {**shape, "estimate": rows}, tables=tables, json_file=options.json, repeat=repeat)
        return 0
    device = pytorch.device(options.device)
    rows = [row for recipe in options.recipes for precision in options.precisions for row in measured(options, made, recipe, precision, device)]
    ways = summary(rows, kinds(options))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    result = {**shape, "device": name, "learn": options.learn, "ways": ways, "rows": rows}
    report("training", words, result, tables=tables_of(rows, ways), json_file=options.json, repeat=repeat)
    return 0


if __name__ == "__main__":
    start(main)
