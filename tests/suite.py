"""The whole suite: what keeps real time by itself, the rest on all cores. The last line counts the tests; the exit status is 0 where all passed.

Arguments go on to pytest; where they name tests, pytest alone runs them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

NOTHING_RAN = 5
"""pytest's exit status where no test was chosen."""


def main(arguments: Sequence[str]) -> int:
    """Run both halves, whatever the first comes to."""
    if any(Path(one.split("::")[0]).exists() for one in arguments):
        return subprocess.call([sys.executable, "-m", "pytest", *arguments])
    totals, status = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0), 0
    with tempfile.TemporaryDirectory() as folder:
        beside = ["-n", str(os.cpu_count() or 1), "--dist", "loadfile", "--no-loadscope-reorder"]
        halves: tuple[tuple[str, list[str]], ...] = (("not live", beside), ("live", []))
        for mark, how in halves:
            report = Path(folder) / f"{mark}.xml"
            # One thread a process: the processes already fill the cores.
            alone = {**os.environ, "OMP_NUM_THREADS": "1"} if how else dict(os.environ)
            ended = subprocess.call([sys.executable, "-m", "pytest", "-m", mark, f"--junitxml={report}", *how, *arguments], env=alone)
            status = status or (0 if ended == NOTHING_RAN else ended)
            if report.exists() and (suite := ElementTree.parse(report).getroot().find("testsuite")) is not None:
                totals = {name: count + int(suite.get(name, 0)) for name, count in totals.items()}
    failed = totals["failures"] + totals["errors"]
    print(f"{totals['tests'] - failed - totals['skipped']} passed, {failed} failed, {totals['skipped']} skipped", flush=True)
    return status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
