"""Trains a diffusion generator on a data set: a loop that resumes exactly, stops in words, and shows what it does."""

from __future__ import annotations

import math
import shutil
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from engine.backends.engines import origin_of
from engine.recogniser import digest
from engine.types import AvatarError
from exporters.data import maps
from exporters.data.dataset import Dataset
from exporters.data.storage import alone
from exporters.training import runs
from exporters.training.batches import Batch, Batches
from exporters.training.crew import Stop
from exporters.training.judge import Judged, held_out, judge, sheet
from exporters.training.keep import carry_engines, seen_by
from exporters.training.learner import CRITIC_AFTER, Learner
from exporters.training.settings import Recipe, Settings

CHECKPOINT_SECONDS, LOOK_SECONDS = 60.0, 150.0
CHECKPOINT_TIMES, LOOK_TIMES = 20.0, 10.0
"""Times as long as it takes to write a checkpoint, or to look, until the next one: of a large generator both take minutes."""
WORSE, RECENT = 4.0, 40
"""A run has diverged when the mean loss of the RECENT updates is WORSE times as high as it ever was."""
PREVIEW = "preview.jpg"


@dataclass(frozen=True, slots=True)
class Budget:
    """When to stop: whichever comes first."""

    minutes: float | None = None
    updates: int | None = None

    def share(self, done: runs.Progress) -> float:
        """0..1 of it that is used up."""
        by_time = done.seconds / (60 * self.minutes) if self.minutes else 0.0
        by_count = done.updates / self.updates if self.updates else 0.0
        return min(1.0, max(by_time, by_count))


@dataclass(frozen=True, slots=True)
class Report:
    """What a person who waits is told after every update; each process is."""

    updates: int
    share: float  # 0..1 of the budget
    loss: float
    judged: Judged | None  # where held-out frames were looked at just now


def train(
    data: Dataset,
    out: Path,
    *,
    budget: Budget,
    settings: Settings | None = None,
    start: Path | None = None,
    teacher: Path | None = None,
    recogniser: Path | None = None,
    device: str | None = None,
    progress: Callable[[Report], None] | None = None,
) -> Judged:
    """Train on `data` into the folder `out` (checkpoint, log, previews, and at the end `weights/`) -> figures of the averaged weights.

    Called again with the same settings it goes on where it was killed; half as many processes that accumulate twice as many batches are the
    same. Every process calls it, and all get the answer. `start`: weights to go on from (an import, or a teacher); `teacher`: weights that
    consistency and matching learn from; `recogniser`: see `IdentityLoss`. Raises AvatarError where it cannot go on; the last checkpoint is kept.
    """
    settings = settings or Settings()
    known = _known(settings, data, start, teacher, recogniser)
    learner = Learner(settings, data.size, start=start, teacher=teacher, device=device, recogniser=recogniser)
    lesson = learner.lesson
    if lesson.maps:
        for clip in data.clips:
            maps.check(lesson.maps, clip.maps, preset=settings.preset)
        known["maps"] = maps.key_of(data, lesson.maps)
    if lesson.hands and any(clip.hands is not None for clip in data.clips):
        known["hands"] = "tracked"
    known["batches"] = settings.accumulate * learner.crew.count
    learner.crew.first(lambda: lesson.prepare(data))
    batches = lesson.batches(data)
    with alone(out, doing="training in") if learner.crew.main else nullcontext():
        done = runs.Progress()
        if (state := runs.load(out, settings=known)) is not None:
            done = runs.Progress(**state.pop("progress"))
            learner.restore(state)
        run = _Run(data, out, learner, batches, done, known)
        try:
            run.until(budget, progress or (lambda report: None))
        except KeyboardInterrupt:
            run.keep()
            raise
        run.keep()
        return learner.crew.first(run.finish)


class _Run:
    """A run in progress."""

    def __init__(self, data: Dataset, out: Path, learner: Learner, batches: Batches, done: runs.Progress, known: dict[str, Any]) -> None:
        self.data, self.out, self.learner, self.batches, self.done, self.known = data, out, learner, batches, done, known
        self.trust = seen_by(data)
        self.held = held_out(batches, self.trust, most=learner.lesson.runs)
        self.main = learner.crew.main
        self.log: Callable[..., None] = runs.Log(out, updates=done.updates) if self.main else _silent
        self.board = _board(out, done.updates) if self.main else _silent
        self.watch, self.since, self.rate = _Watch(done), time.monotonic(), learner.settings.rate
        self.saved = self.looked = done.seconds
        self.took = self.looking = 0.0  # s to write the last checkpoint, and to look last
        self.whole = True  # whether no update is half done

    def until(self, budget: Budget, progress: Callable[[Report], None]) -> None:
        """Update after update."""
        crew, done = self.learner.crew, self.done
        with Stop() as stop:
            while True:
                share, ended = crew.agree(budget.share(done), bool(stop))
                if ended:
                    raise KeyboardInterrupt
                if share >= 1.0:
                    return
                self.whole = False
                if done.critic_from < 0 and share >= CRITIC_AFTER:
                    done.critic_from = done.updates  # and stays, however long the run is made later
                told = self.learner.update(self.parts(), done.updates, texture=done.critic_from >= 0)
                # Without the critic's term, which may be below zero, and with a gradient that must be a number.
                if complaint := self.watch(told["loss"] - told.get("critic", 0.0) + 0.0 * told["gradient"]):
                    again = f"remove {self.out} (what was collected from the clips is kept) and train again with a lower --rate than {self.rate:g}"
                    raise crew.fail(f"{complaint} at update {done.updates}; {again}.")
                self.log(done.updates, **told)
                self.board(done.updates, **told)
                done.updates += 1
                self.whole = True
                self.stop_clock()
                judged = None
                if self.main and done.seconds - self.looked > max(LOOK_SECONDS, LOOK_TIMES * self.looking):
                    judged, self.looked = self.look(), done.seconds
                    now = time.monotonic()
                    self.looking, self.since = now - self.since, now  # looking is not training
                progress(Report(done.updates, budget.share(done), told["loss"], judged))
                if done.seconds - self.saved > max(CHECKPOINT_SECONDS, CHECKPOINT_TIMES * self.took):
                    self.keep()

    def parts(self) -> list[tuple[int, Batch]]:
        """This process's batches of the next update, with their numbers. Neighbours have neighbouring ones, so that it does not matter who has
        which; all have the same pattern, so that nobody waits."""
        crew, update, each = self.learner.crew, self.done.updates, self.learner.settings.accumulate
        numbers = [(update * each + k) * crew.count + crew.rank for k in range(each)]
        return [(number, self.batches.at(number, turn=update).to(self.learner.accelerator.device)) for number in numbers]

    def stop_clock(self) -> None:
        """Add the time since the last call to the run's seconds."""
        now = time.monotonic()
        self.done.seconds, self.since = self.done.seconds + now - self.since, now

    def keep(self) -> None:
        """Write a checkpoint, unless an update was broken off: then the one before is the newest that is exact."""
        self.saved = self.done.seconds
        if self.main and self.whole:
            since = time.monotonic()
            runs.save(self.out, {**self.learner.state(), "progress": asdict(self.done)}, settings=self.known)
            self.took = time.monotonic() - since

    def look(self, *, all_of_it: bool = False) -> Judged:
        """Held-out frames through the averaged weights, in figures and as a picture. Only the first process has them."""
        lesson = self.learner.lesson
        held = held_out(self.batches, self.trust, all_of_it=True, most=lesson.runs) if all_of_it else self.held
        judged, made = judge(partial(lesson.make, self.learner.average), held, lesson.counts(), identity=self.learner.identity)
        sheet(self.out / PREVIEW, held, made)
        self.board(self.done.updates, **_told(judged))
        return judged

    def finish(self) -> Judged:
        """Judge and publish."""
        judged = self.look(all_of_it=True)
        self.publish(judged)
        return judged

    def publish(self, judged: Judged) -> None:
        """The averaged weights with where they come from."""
        settings = self.learner.settings
        origin = {"made_by": "avatar train", "recipe": settings.recipe, "dataset": str(self.known["dataset"]), "updates": str(self.done.updates)}
        origin["steps"] = str(settings.steps)
        if settings.recipe == "teacher":
            origin["made_for"] = f"{settings.steps} steps"
        origin |= self.learner.lesson.origin()
        origin |= {name: f"{value:.3f}" for name, value in _told(judged).items()}
        save, average = self.learner.lesson.save, self.learner.average
        _publish(self.out / "weights", lambda folder: save(average, folder, origin=origin, data=self.data, trust=self.trust))


def _publish(weights: Path, write: Callable[[Path], None]) -> None:
    """A folder that lands whole, in place of an earlier one; engines of the same weights stay. Raises AvatarError for a full disk."""
    aside, before = (weights.with_name(f".{weights.name}.{what}") for what in ("new", "old"))
    for left in (aside, before):
        shutil.rmtree(left, ignore_errors=True)
    try:
        write(aside)
        if weights.exists():
            carry_engines(weights, aside)
            weights.rename(before)
        aside.rename(weights)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        kept = "the checkpoint is kept: make room and start the same command again"
        raise AvatarError(f"The weights could not be written to {weights} ({error}); {kept}.") from error
    shutil.rmtree(before, ignore_errors=True)


class _Watch:
    """Notices a loss that is no number, or that has run away."""

    def __init__(self, done: runs.Progress) -> None:
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.done = done

    def __call__(self, loss: float) -> str:
        """What is wrong, or nothing."""
        if not math.isfinite(loss):
            return "The loss is no number any more"
        self.recent.append(loss)
        mean = sum(self.recent) / len(self.recent)
        if len(self.recent) < RECENT:
            return ""
        self.done.best = min(self.done.best, mean)
        return f"The loss has diverged ({mean:.3g}, it was {self.done.best:.3g})" if mean > WORSE * self.done.best else ""


def _known(settings: Settings, data: Dataset, start: Path | None, teacher: Path | None, recogniser: Path | None) -> dict[str, Any]:
    """What must be the same for a run to go on."""
    # Not what changes no number, and `accumulate` together with how many processes there are; nor what runs from before it was there cannot name.
    apart = {"checkpointing", "accumulate"} | ({"window"} if settings.window is None else set())
    flat: dict[str, Any] = {key: repr(value) for key, value in asdict(settings).items() if key not in apart}
    hashes = {name: origin_of(path) if path else "" for name, path in (("start", start), ("teacher", teacher))}
    hashes["recogniser"] = digest(recogniser) if recogniser else ""
    return {**flat, **hashes, "dataset": str(data.report.get("key", data.folder))}


def _silent(update: int, **values: float) -> None:
    """The log of a process that does not write."""


def _board(out: Path, updates: int) -> Callable[..., None]:
    """Where TensorBoard is installed, the same as the log, for its curves; else nothing: the log has it all. What is done again is told once."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return lambda update, **values: None
    writer = SummaryWriter(str(out / "tensorboard"), purge_step=updates)

    def write(update: int, **values: float) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, update)

    return write


def _told(judged: Judged) -> dict[str, float]:
    """Flat, for curves."""
    every = {"puppet": judged.puppet, **{f"steps_{count}": one for count, one in judged.made.items()}}
    return {f"held_out/{name}/{key}": value for name, one in every.items() for key, value in asdict(one).items() if value is not None}


__all__ = ["Budget", "Recipe", "Report", "Settings", "train"]
