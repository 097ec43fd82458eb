"""The lesson of the generator `video`: windows of frames, a teacher that renders offline and a student that streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.generators.video import sampling, vividpose_sampling
from engine.generators.video.clips import How
from engine.generators.video.presets import UniAnimate
from engine.generators.video.vividpose_presets import VividPose
from engine.generators.video.weights import Plan
from engine.types import AvatarError, UInt8Array
from exporters.training.batches import PATTERNS, Batch, Pattern
from exporters.training.memory import LARGE, recompute
from exporters.training.objectives import Following, Objective, same_encoder
from exporters.training.settings import Settings
from exporters.training.whole import PRESETS, check, maps_of
from exporters.training.whole.matching import Matching
from exporters.training.whole.objectives import Appearance, Denoise, Desk, Rolls, streamed
from exporters.training.whole.pupils import Pupil
from exporters.training.whole.unianimate import UniAnimatePupil
from exporters.training.whole.windows import Windows, slower

if TYPE_CHECKING:
    from engine.generators.diffusion.trust import Trust
    from exporters.data.dataset import Dataset
    from exporters.training.judge import Run

RATES = {UniAnimate: 5e-5, VividPose: 1e-5}
"""Learning rates: that of UniAnimate's paper, and one that is usual with Stable Video Diffusion."""
TEACHER_STEPS = {UniAnimate: sampling.STEPS, VividPose: vividpose_sampling.STEPS}
"""Of the published samplers, which a teacher is judged by."""
RUNS_JUDGED = 4
"""Held-out runs that are looked at, at most: a teacher takes a minute for each."""


def asked(settings: Settings, made: UniAnimate | VividPose, *, steps: int | None, window: int | None, overlap: int | None) -> Settings:
    """The settings of a run for a size; None: what the system has."""
    how, kind = How(window=window, overlap=overlap).plan(None, made.frames), type(made)
    usual = TEACHER_STEPS[kind] if settings.recipe == "teacher" else settings.steps
    size = None if window is None and overlap is None else (how.window, how.overlap)
    return replace(settings, reference=True, rate=RATES[kind], steps=steps or usual, window=size)


class Whole:
    """As `lesson.Lesson`."""

    runs: int | None = RUNS_JUDGED

    def __init__(self, settings: Settings, size: tuple[int, int], *, start: Path | None, teacher: Path | None, recogniser: Path | None) -> None:
        """Raises AvatarError for what is missing, does not fit, or is not offered."""
        self.teacher, self.recogniser = teacher, recogniser
        check(settings.preset, settings.recipe, started=start is not None, taught=teacher is not None)
        self.settings, self.pupil = settings, _pupil(settings, start, recogniser)
        if settings.recipe != "teacher":
            self.pupil.few(settings.steps)  # whether there are as many
        if self.pupil.size != size:
            (height, width), (h, w) = self.pupil.size, size
            raise AvatarError(f"The dataset's pictures are {w} x {h} px, the preset's {width} x {height}; collect it anew.")
        self.pupil.choose(settings)
        self.networks = self.pupil.networks
        self.weights = replace(settings.weights, critic=0.0)  # pictures for the critic alone would cost more than all the rest
        self.desk = Desk(self.pupil, [], {})
        self.maps = maps_of(PRESETS[settings.preset])
        self.hands = True

    def objective(self, average: Any) -> tuple[Objective, Following | None]:
        """See `Lesson`."""
        settings = self.settings
        if settings.recipe == "teacher":
            return Denoise(self.desk, settings.weights, settings.seed), None
        if settings.recipe == "appearance":
            return Appearance(self.rolls, settings.weights), None
        teacher = _pupil(settings, self.teacher, self.recogniser).networks
        if not same_encoder(self.networks.autoencoder, teacher.autoencoder):
            raise AvatarError(f"The teacher in {self.teacher} has another autoencoder than the student; start both from the same import (--start).")
        matching = Matching(teacher, self.rolls)
        return matching, matching

    @property
    def rolls(self) -> Rolls:
        """How the student streams."""
        past, new = self.window
        return Rolls(self.desk, self.settings.steps, past, new, self.settings.seed)

    @property
    def window(self) -> tuple[int, int]:
        """(past, new) frames of a stream's window."""
        plan = Plan(self.settings.steps, *self.settings.window) if self.settings.window else How().plan(None, self.pupil.frames)
        return plan.overlap, plan.new

    @property
    def frames(self) -> int:
        """Of a teacher's window."""
        return self.pupil.frames if self.settings.window is None else self.settings.window[0]

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """Of a batch: a window for a teacher, and some chunks more for a student. Raises AvatarError for others of a student."""
        settings, student = self.settings, self.settings.recipe != "teacher"
        frames = self.rolls.frames if student else self.frames
        if settings.patterns is PATTERNS:  # those are of another generator
            return (Pattern(1, frames),)
        if student and (other := next((one.frames for one in settings.patterns if one.frames != frames), None)):
            raise AvatarError(
                f"A student of whole clips learns from {frames} frames at a time, not from {other}; give such patterns, or another window."
            )
        return settings.patterns

    def recompute(self, networks: Any, wanted: bool | None) -> None:
        """See `Lesson`."""
        parts = [networks.denoiser, *([networks.reference] if hasattr(networks, "reference") else [])]
        if sum(one.numel() for one in networks.denoiser.parameters()) >= LARGE if wanted is None else wanted:
            recompute(parts, self.pupil.blocks)

    def read(self, batch: Batch) -> None:
        """Each reference is looked at once."""
        if batch.view not in self.desk.kept:
            self.desk.kept[batch.view] = self.pupil.kept(self.networks, self.desk.references[batch.view])

    def prepare(self, data: Dataset) -> None:
        """See `Lesson`: there is nothing to find."""

    def batches(self, data: Dataset) -> Windows:
        """See `Lesson`; at about the rate that the generator shows."""
        found = Windows(slower(data), seed=self.settings.seed, depth=self.pupil.depth, patterns=self.patterns, paint=self.pupil.paint)
        self.desk.references = found.references
        return found

    def counts(self) -> Sequence[int]:
        """See `Lesson`."""
        return [self.settings.steps]

    def make(self, networks: Any, run: Run, steps: int) -> UInt8Array:
        """See `Lesson`: by the published sampler, or as streamed."""
        batch = run.batch.to(next(networks.denoiser.parameters()).device)
        self.read(batch)
        if self.settings.recipe == "teacher":
            told = self.desk.told(networks, batch)
            rendered: UInt8Array = networks.decode(self.pupil.render(networks, told, batch.coarse, steps, window=self.frames))
            return rendered
        past, new = self.window
        latents = streamed(self.desk, networks, batch, steps=steps, past=past, new=new)
        frames: UInt8Array = np.concatenate([networks.decode(chunk) for chunk in latents.split(new)])[: batch.frames]
        return frames

    def origin(self) -> dict[str, str]:
        """How a stream asks a student, or the windows of a teacher."""
        if self.settings.recipe == "teacher":
            return {"window": str(self.frames)}
        past, new = self.window
        return {"window": str(past + new), "overlap": str(past)}

    def save(self, average: Any, folder: Path, *, origin: dict[str, str], data: Dataset, trust: Trust) -> None:
        """See `Lesson`."""
        self.pupil.save(average, folder, origin=origin)


def _pupil(settings: Settings, start: Path | None, recogniser: Path | None) -> Pupil:
    if isinstance(PRESETS[settings.preset], UniAnimate):
        return UniAnimatePupil(settings.preset, start, settings.seed)
    from exporters.training.whole.vividpose import VividPosePupil  # which takes diffusers' blocks apart

    return VividPosePupil(settings.preset, start, settings.seed, recogniser)


__all__ = ["Whole", "asked"]
