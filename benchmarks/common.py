"""What every benchmark shares: percentiles, clocks, the table for people, the JSON line for machines, and the plot.

A benchmark prints its tables, then exactly one JSON line as the last line of its output. The line always names the machine,
the commit and the command, so that a figure can be found again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from engine.types import AvatarError

PERCENTILES = (50, 95, 99)
MS = 1000.0
"""Milliseconds in a second."""
ROOT = Path(__file__).resolve().parent.parent
PANELS_DOWN = 8
"""Panels of a plot under each other before there is another column."""
DIGITS = 4
"""Significant digits of a number in the JSON line: more would be noise."""


def percentiles(values: Iterable[float]) -> dict[str, float | None]:
    """{"p50", "p95", "p99"} of finite values, by linear interpolation (Hyndman and Fan 1996, type 7); None where there is no value."""
    data = np.asarray([v for v in values if math.isfinite(v)], np.float64)
    if data.size == 0:
        return {f"p{p}": None for p in PERCENTILES}
    return {f"p{p}": float(np.percentile(data, p)) for p in PERCENTILES}


def minus(a: Mapping[str, float | None], b: Mapping[str, float | None]) -> dict[str, float | None]:
    """Percentile by percentile: an approximation of the percentiles of the difference, since the two were not measured in pairs."""
    return {name: None if (x := a[name]) is None or (y := b[name]) is None else x - y for name in a}


@dataclass(slots=True)
class Laps:
    """Wall and CPU milliseconds of repeated work. CPU is that of the whole process: trackers work on threads of their own."""

    wall_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    _wall: float = 0.0
    _cpu: float = 0.0

    def __enter__(self) -> Laps:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu_ms.append((time.process_time() - self._cpu) * MS)
        self.wall_ms.append((time.perf_counter() - self._wall) * MS)


@dataclass(slots=True)
class Table:
    """Columns of text, numbers right-aligned."""

    columns: Sequence[str]
    title: str = ""
    notes: Sequence[str] = ()  # lines below
    rows: list[list[str]] = field(default_factory=list)

    def add(self, *cells: Any) -> None:
        """One row; None becomes "n/a", floats get a readable number of digits. Raises ValueError on a wrong count."""
        if len(cells) != len(self.columns):
            raise ValueError(f"a row of {len(cells)} cells in a table of {len(self.columns)} columns")
        self.rows.append([show(cell) for cell in cells])

    def __str__(self) -> str:
        lines = [list(self.columns), *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        numeric = [all(_numeric(row[i]) for row in self.rows) and bool(self.rows) for i in range(len(self.columns))]
        text = ["  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in zip(line, widths, numeric, strict=True)).rstrip() for line in lines]
        text.insert(1, "  ".join("-" * w for w in widths))
        return "\n".join([*([self.title] if self.title else []), *text, *self.notes])


def show(value: Any) -> str:
    """A cell of a table."""
    if value is None:
        return "n/a"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "n/a"
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"
    return str(value)


def _numeric(text: str) -> bool:
    return text == "n/a" or text.lstrip("+-").replace(".", "", 1).isdigit()


def arguments(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with the options every benchmark has."""
    parser = argparse.ArgumentParser(prog=f"avatar bench {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="F", help="also write the JSON line to this file")
    parser.add_argument("--plot", type=Path, metavar="F.png", help="draw the result (needs matplotlib)")
    return parser


def start(main: Callable[[], int]) -> NoReturn:
    """Run a benchmark as a program: a person's mistake is one sentence and status 2, as from the front door."""
    try:
        status = main()
    except AvatarError as error:
        print(f"avatar: {error}", file=sys.stderr)
        status = 2
    raise SystemExit(status)


def machine() -> str:
    """The machine in words: processor, cores this process may use, memory, system; no host name."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else math.nan
    return f"{model}, {cores} cores, {memory:.0f} GiB, {platform.system()} {platform.release()}, Python {platform.python_version()}"


def commit() -> str:
    """Short hash of the checked-out commit, "+changes" where the tree differs, "unknown" outside a repository."""
    try:
        name = _git("rev-parse", "--short=12", "HEAD")
        return name + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True, timeout=10).stdout.strip()


def command(name: str, argv: Sequence[str]) -> str:
    """The command that repeats a run."""
    return shlex.join(["python", "avatar.py", "bench", name, *argv])


def plain(value: Any) -> Any:
    """Ready for JSON: NumPy scalars become numbers, numbers are rounded, NaN and infinities become None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, np.integer):
        return int(value)
    number = float(value)
    return float(f"{number:.{DIGITS}g}") if math.isfinite(number) else None


def report(
    name: str, argv: Sequence[str], result: Mapping[str, Any], *, tables: Sequence[Table], json_file: Path | None = None, repeat: str | None = None
) -> None:
    """Print machine, commit and command, the tables, and the JSON line last; write the line to `json_file` where given.

    `repeat`: the command, where it is not `avatar bench`.
    """
    stamped = {"benchmark": name, **plain(result), "machine": machine(), "commit": commit(), "command": repeat or command(name, argv)}
    line = json.dumps(stamped, allow_nan=False)
    print(f"machine: {stamped['machine']}\ncommit:  {stamped['commit']}\ncommand: {stamped['command']}")
    for table in tables:
        print(f"\n{table}")
    print(f"\n{line}", flush=True)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(line + "\n")


@dataclass(frozen=True, slots=True)
class Panel:
    """One axes of a plot: lines over x, or points where `style` is "."."""

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]  # label -> (x, y)
    style: str = "-"


def plot(panels: Sequence[Panel], path: Path) -> None:
    """Draw panels under each other into a PNG. Raises AvatarError where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError as error:
        raise AvatarError("--plot needs matplotlib; install it with `pip install matplotlib` or leave --plot out.") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    across = math.ceil(len(panels) / PANELS_DOWN)
    down = math.ceil(len(panels) / across)
    figure, axes = pyplot.subplots(down, across, figsize=((10 if across == 1 else 6 * across), 2.6 * down), squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, panel in zip(axes.flat, panels, strict=False):
        for label, (x, y) in panel.lines.items():
            axis.plot(x, y, panel.style, label=label, linewidth=1, markersize=3)
        axis.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
        axis.grid(alpha=0.3)
        if len(panel.lines) > 1:
            axis.legend(loc="upper right", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
