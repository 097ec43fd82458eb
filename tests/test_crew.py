"""Several processes on one run are one run: real ones, over the loopback, as a launcher starts them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import avatar
from tests.conftest import require

pytestmark = pytest.mark.torch
require("torch")
require("diffusers")
require("accelerate")

import torch  # noqa: E402

from engine.generators.diffusion.presets import TINY  # noqa: E402
from exporters.data.dataset import Dataset  # noqa: E402
from exporters.training import command, runs  # noqa: E402
from exporters.training.crew import Crew, _buckets  # noqa: E402
from exporters.training.train import Budget, train  # noqa: E402
from tests.test_train import data  # noqa: E402, F401

LONGEST_WAIT = 300.0
"""s for processes that take ten: a machine may be busy."""
WORDS = ["train", "--video", "a.mp4", "--preset", "tiny", "--updates", "5", "--longest", "4", "--device", "cpu"]
WORKER = """
import os, signal, sys
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads(1)
import avatar
from exporters.training import command
from tests.test_train import data
rank = int(os.environ["RANK"])

def collect(videos, folder, *, size, progress, maps, hands):
    assert size == data.__wrapped__().size
    folder.mkdir(parents=True)  # a second time it would fail

class Watched(command._Training):
    def __call__(self, report):
        super().__call__(report)
        if rank == 1 and report.updates == 4:
            os.kill(os.getpid(), signal.SIGINT)

command.collect, command.open_dataset, command._Training = collect, lambda folder: data.__wrapped__(), Watched
command.QUIET = 0.0
sys.exit(avatar.main({words!r}))
"""
LOSER = """
import atexit, os, sys, time
sys.path.insert(0, {root!r})
from engine.types import AvatarError
atexit.register(lambda: print("threads", "torch.distributed" in sys.modules and sys.modules["torch.distributed"].is_initialized()))
from exporters.training.crew import crew
one = crew("cpu")
assert one.first(lambda: "collected") == "collected"
assert one.agree(one.rank + 0.5, False) == (0.5, False)
if one.rank == 1:
    os._exit(7)
try:
    one.mean([1.0])
except AvatarError as error:
    print(error)
    sys.exit(2)
"""
QUITTER = """
import os, sys
sys.path.insert(0, {root!r})
from exporters.training.crew import crew
def full():
    print("told", flush=True)
    raise OSError("disk full")
crew("cpu").first(full)
"""


def launched(program: str, **words: object) -> list[tuple[int, str, str]]:
    """Two processes of a program -> (exit status, what was said, what went wrong) of both."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    code = program.format(root=str(Path(__file__).parent.parent), **words)
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=LONGEST_WAIT) for process in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()
    return [(process.returncode, *both) for process, both in zip(started, said, strict=True)]


def log_of(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / command.RUN / runs.LOG).read_text().splitlines()]


def test_two_processes_learn_what_one_does_from_both_their_batches(data: Dataset, tmp_path: Path) -> None:  # noqa: F811
    """Ctrl-C in one of them stops both after the same update, and one process goes on from there: the curve is one that was never stopped."""
    ended = launched(WORKER, words=[*WORDS, "--out", str(tmp_path / "two")])
    assert [status for status, _, _ in ended] == [130, 130], ended
    assert ended[1][1] == "", "one of them speaks"
    assert "update 4, loss" in ended[0][1]
    options = avatar._parser().parse_args([*WORDS, "--accumulate", "2", "--out", str(tmp_path / "two")])
    settings = command._settings(options, TINY)
    for out in ("whole", "two"):
        train(data, tmp_path / out / command.RUN, budget=Budget(updates=5), settings=settings, device="cpu")
    whole, two = log_of(tmp_path / "whole"), log_of(tmp_path / "two")
    assert [one["update"] for one in two] == list(range(5))
    assert "critic" in two[3]
    assert two[0] == pytest.approx(whole[0], rel=1e-5), "the mean of both, in every term and in the gradient"
    for mine, theirs in zip(two, whole, strict=True):  # Adam's first steps go as far for a rounding error as for a gradient
        assert mine == pytest.approx(theirs, rel=0.02)
    alone = replace(settings, accumulate=1)
    train(data, tmp_path / "alone" / command.RUN, budget=Budget(updates=1), settings=alone, device="cpu")
    assert log_of(tmp_path / "alone")[0]["loss"] != pytest.approx(two[0]["loss"], rel=1e-3), "the second's batches count"


def test_one_that_is_lost_takes_the_others_along() -> None:
    ended = launched(LOSER)
    assert [status for status, _, _ in ended] == [2, 7], ended
    assert "Another process of this run has ended" in ended[0][1]
    assert "threads False" in ended[0][1], "a thread that outlives Python aborts the process, now and then"


def test_where_the_first_fails_the_others_leave_without_a_word() -> None:
    ended = launched(QUITTER)
    assert ended[0][0] == 1
    assert "disk full" in ended[0][2]
    assert ended[1] == (2, "", "")


def test_alone_nothing_is_shared() -> None:
    crew = Crew()
    assert crew.first(lambda: 7) == 7
    assert crew.agree(0.5, True) == (0.5, True)
    assert crew.mean([1.0, 2.0]) == [1.0, 2.0]
    assert "not" in str(crew.fail("It did not work."))


def test_buckets_keep_kinds_apart_and_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporters.training.crew.BUCKET", 40)
    grads = [torch.zeros(size, dtype=kind) for size, kind in ((8, torch.float32), (8, torch.float32), (4, torch.float32), (3, torch.float16))]
    made = list(_buckets(grads))
    assert [len(bucket) for bucket in made] == [2, 1, 1]
    assert [one for bucket in made for one in bucket] == grads
