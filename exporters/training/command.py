"""`avatar train`, stage by stage: collect, train, and say what came of it."""

from __future__ import annotations

import argparse
import importlib.util
import math
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine import persona as personas
from engine.backends.engines import generator_of
from engine.generators.diffusion.presets import FACEID, PRESETS, Preset, plain_name, preset
from engine.generators.diffusion.taught import preset_of
from engine.generators.video.presets import UniAnimate
from engine.generators.video.vividpose_presets import VividPose
from engine.types import AvatarError
from exporters.data import maps
from exporters.data.dataset import Dataset, collect, open_dataset
from exporters.data.storage import SCENE
from exporters.training import whole
from exporters.training.crew import crew
from exporters.training.keep import keep_network, keep_puppet, shown_by

if TYPE_CHECKING:  # PyTorch is for training: whoever only collects needs none
    from exporters.training.judge import Judged
    from exporters.training.settings import Settings
    from exporters.training.train import Report

DATA, RUN, PUPPET, WEIGHTS = "data", "run", "puppet", "weights"
MINUTES = 15.0
MOST_STEPS = 1000
"""Denoising steps a frame: as many as there are noise levels."""
DIFFUSION, VIDEO = "diffusion", "video"
"""The generators that are trained here: frame by frame, and whole clips."""
STUDENT_STEPS = 2
"""Denoising steps a frame of what is trained."""
QUIET = 10.0
"""s between two lines of progress."""


def teach(videos: Sequence[Path], out: Path, options: argparse.Namespace, *, tell: Callable[[str], None]) -> None:
    """Collect into `out/data`, train into `out/run`. `options`: those of the command. Raises AvatarError for whatever cannot be used.

    Where a launcher has started several processes, the first one collects, speaks and writes.
    """
    _check(options)
    name, source = options.name or out.resolve().name, f"avatar train {out.resolve()}"
    if options.consent is not None:
        personas.check_new(name, options.consent, source=source)
    made = _made(options)
    _check_maps(options, made, out / DATA)
    together = crew(options.device)
    tell = tell if together.main else _silent

    def collected() -> None:
        if options.stage != "train":
            collect(videos, out / DATA, size=made.size, progress=_collecting(tell), maps=options.maps, hands=whole.shows_hands(made))

    together.first(collected)
    data = open_dataset(out / DATA)
    for sentence in data.report.get("sentences", ()):
        tell(str(sentence))
    if whole.shows_hands(made) and any(clip.hands is None for clip in data.clips):
        tell("Nobody looked for hands when these clips were collected, so the skeletons have none; leave --stage train out, and they are looked for.")
    if options.stage == "data":
        if options.consent is not None and together.main:
            keep_puppet(data, out / PUPPET, name=name, source=source, consent=options.consent, tell=tell)
        return
    from exporters.training.train import Budget, train

    settings = _settings(options, made)
    minutes = options.minutes if options.minutes is not None or options.updates is not None else MINUTES
    judged = train(
        data,
        out / RUN,
        budget=Budget(minutes=minutes, updates=options.updates),
        settings=settings,
        start=options.start,
        teacher=options.teacher,
        recogniser=options.recogniser,
        device=options.device,
        progress=_Training(out, tell),
    )
    together.close()
    if not together.main:
        return
    for sentence in _verdict(data, judged):
        tell(sentence)
    if options.recogniser is not None:
        tell(_recognised(judged))
    if options.consent is None:
        _how_on(data, out, made, options.recipe, tell)
    else:
        keep_network(data, out / RUN / WEIGHTS, preset=made, recipe=options.recipe, name=name, source=source, consent=options.consent, tell=tell)


def _check(options: argparse.Namespace) -> None:
    """Before an hour of work. Raises AvatarError."""
    _check_name(options.preset)
    _check_whole(options)
    if options.stage != "data" and importlib.util.find_spec("torch") is None:
        without = "--stage data needs none and keeps the puppet that the clip taught"
        raise AvatarError(f"Training networks needs PyTorch, which is not installed: make torch. Or leave them out: {without}.")
    if options.minutes is not None and options.minutes <= 0 or options.updates is not None and options.updates <= 0:
        raise AvatarError("Training takes some time: give --minutes or --updates above 0.")
    if options.rate is not None and not 0 < options.rate < math.inf:
        raise AvatarError("The learning rate must be above 0; leave --rate out to use the one that was found good.")
    if options.steps is not None and not 1 <= options.steps <= MOST_STEPS:
        raise AvatarError(f"A frame takes 1 to {MOST_STEPS} denoising steps; give such a number to --steps, or leave it out.")
    if options.identity is not None and (options.recogniser is None or not 0 <= options.identity < math.inf):
        raise AvatarError("The identity loss needs a recogniser and a weight of 0 or more: give --recogniser FILE, or leave --identity out.")
    if options.recogniser is not None and options.stage != "data":
        from exporters.training import identity

        identity.load(options.recogniser)
    if options.learn == "temporal" and (alone := next((name for name in ("longest", "window") if getattr(options, name) == 1), None)):
        raise AvatarError(f"What carries motion on learns from several frames: give --{alone} 2 or more, or leave it out.")
    if options.stage != "data":
        _check_weights(options)
    if options.accumulate < 1 or (options.longest is not None and options.longest < 1):
        raise AvatarError("An update sees at least one batch of one frame: give --accumulate and --longest 1 or more.")


def _check_name(name: str | None) -> None:
    """Raise AvatarError for a preset that there is not."""
    plain = plain_name(name or "compact")
    if name != plain and plain in whole.PRESETS:
        raise AvatarError(f"'{plain}' is of whole clips, and reads no face's tokens but its own; leave {FACEID} out.")
    if plain not in PRESETS and plain not in whole.PRESETS:
        raise AvatarError(f"There is no preset called '{plain}'; choose one of: {', '.join(sorted({*PRESETS, *whole.PRESETS}))}.")


def _generator(options: argparse.Namespace) -> str:
    """The generator that is taught. Raises AvatarError for one that is not taught here, and where two are named."""
    told = {} if options.preset is None else {f"'{options.preset}'": VIDEO if options.preset in whole.PRESETS else DIFFUSION}
    told |= {f"'{folder}'": generator_of(folder) for folder in (options.start, options.teacher) if folder is not None}
    for what, generator in told.items():
        if generator not in (DIFFUSION, VIDEO):
            raise AvatarError(f"avatar train teaches '{DIFFUSION}' and '{VIDEO}' alone, and {what} is of '{generator}'.")
    if len(set(told.values())) > 1:
        raise AvatarError(f"{' and '.join(f'{what} is of {generator!r}' for what, generator in told.items())}: give what belongs together.")
    return next(iter(told.values()), DIFFUSION)


def _made(options: argparse.Namespace) -> Preset | UniAnimate | VividPose:
    """The size that is taught. Raises AvatarError for one that there is not."""
    if _generator(options) == VIDEO:
        return whole.chosen(options.preset, [folder for folder in (options.start, options.teacher) if folder is not None])
    return preset_of(options.start) if options.start and not options.preset else preset(options.preset or "compact")


def _check_whole(options: argparse.Namespace) -> None:
    """What does not go with the generator that is taught. Raises AvatarError."""
    if isinstance(made := _made(options), Preset):
        if options.window is not None or options.overlap is not None:
            raise AvatarError(f"'{made.name}' is taught frame by frame: leave --window and --overlap out, or give --longest.")
        return
    if options.longest is not None:
        raise AvatarError(f"'{made.name}' is taught window by window: give --window instead of --longest.")
    if options.overlap is not None and options.recipe == "teacher":
        raise AvatarError("A teacher sees whole windows, with nothing past: leave --overlap out.")
    whole.check(made.name, options.recipe, started=options.start is not None or options.stage == "data", taught=options.teacher is not None)
    least = 1 if options.recipe == "teacher" else 2
    if options.window is not None and options.window < least or options.overlap is not None and options.overlap < 0:
        raise AvatarError(f"A window has at least {least} frame{'s' * (least > 1)}: give another --window or --overlap.")
    if options.window is not None and options.overlap is not None and options.overlap >= options.window:
        raise AvatarError(f"A window of {options.window} frames cannot have {options.overlap} of them past; give another --window or --overlap.")


def _check_maps(options: argparse.Namespace, made: Preset | UniAnimate | VividPose, data: Path) -> None:
    """Raise AvatarError for condition pictures that the preset does not read, and for those that it reads and nobody makes."""
    from engine.driving import map_files

    given, read = map_files(options.maps), whole.maps_of(made)
    if unread := [name for name in given if name not in read]:
        reads = f"reads {', '.join(read)}" if read else "reads no condition pictures"
        raise AvatarError(f"The preset '{made.name}' {reads}; leave --maps {unread[0]}=FILE out, or name another preset with --preset.")
    if given and options.stage == "train":
        raise AvatarError("Condition pictures are made with the data; leave --maps out, or leave --stage train out.")
    maps.check(read, {*given, *maps.names_in(data)}, preset=made.name)


def _check_weights(options: argparse.Namespace) -> None:
    """Those that a run goes on from or learns from, by their manifests, and the device. Raises AvatarError."""
    from engine.backends.pytorch import device
    from engine.generators.diffusion.networks import RECOGNISER
    from exporters.training.grow import grows
    from exporters.training.hearing import check_ears
    from exporters.training.lesson import check_begun, check_recogniser, check_teacher

    device(options.device)
    if not isinstance(made := _made(options), Preset):
        return
    check_begun(made, options.start)
    check_teacher(options.recipe, options.teacher)
    if options.preset is not None:
        check_ears(preset(options.preset), options.start)
    if (options.steps or STUDENT_STEPS) < made.noise.least:
        raise AvatarError(f"A frame of the preset '{made.name}' takes {made.noise.least} denoising steps or more; give such a number to --steps.")
    kept = None if options.start is None else options.start / RECOGNISER
    check_recogniser(made, kept if kept is not None and kept.is_file() else options.recogniser)
    for weights in (options.start, options.teacher):
        theirs = "" if weights is None else preset_of(weights).name
        if theirs not in ("", made.name) and not grows(made.name, theirs):
            how = "give others" if options.preset is None else "leave --preset out, or give others"
            raise AvatarError(f"The weights in {weights} are for the preset '{theirs}', not '{made.name}'; {how}.")


def _settings(options: argparse.Namespace, made: Preset | UniAnimate | VividPose) -> Settings:
    """Of the run that the command asks for."""
    from exporters.training.settings import Settings

    settings = Settings(
        recipe=options.recipe,
        steps=options.steps or STUDENT_STEPS,
        preset=made.name,
        precision=options.precision,
        reference=options.start is not None,
        learn=options.learn,
        accumulate=options.accumulate,
        checkpointing=options.checkpointing,
    )
    if not isinstance(made, Preset):
        from exporters.training.whole.lesson import asked

        settings = asked(settings, made, steps=options.steps, window=options.window, overlap=options.overlap)
    if options.rate is not None:
        settings = replace(settings, rate=options.rate)
    if options.identity is not None:
        settings = replace(settings, weights=replace(settings.weights, identity=options.identity))
    if options.longest is not None:
        settings = replace(settings, patterns=tuple(replace(one, frames=min(one.frames, options.longest)) for one in settings.patterns))
    return settings


def _silent(text: str) -> None:
    """A process that does not speak."""


def _collecting(tell: Callable[[str], None]) -> Callable[[str, int, int], None]:
    told = [0.0]

    def progress(what: str, done: int, total: int) -> None:
        if time.monotonic() - told[0] > QUIET or done == total:
            told[0] = time.monotonic()
            tell(f"{what}: {done}/{total}" if total else f"{what}: {done}")

    return progress


class _Training:
    """A line now and then, and one for every look at held-out frames."""

    def __init__(self, out: Path, tell: Callable[[str], None]) -> None:
        self.out, self.tell, self.told, self.losses = out, tell, time.monotonic(), list[float]()

    def __call__(self, report: Report) -> None:
        self.losses.append(report.loss)
        if report.judged is not None:
            self.tell(f"{report.share:4.0%}  held-out frames over the puppet: {_gains(report.judged)}; look at {self.out / RUN / 'preview.jpg'}")
        if time.monotonic() - self.told > QUIET:
            self.tell(f"{report.share:4.0%}  update {report.updates}, loss {sum(self.losses) / len(self.losses):.4f}")
            self.told, self.losses = time.monotonic(), []


def _gains(judged: Judged) -> str:
    """dB by number of steps."""
    parts = []
    for steps in sorted(judged.made):
        features, crop = judged.gain(steps)
        parts.append(f"{steps} step{'s' * (steps > 1)} {features:+.1f} dB mouth and eyes, {crop:+.1f} dB picture")
    return "; ".join(parts)


def _verdict(data: Dataset, judged: Judged) -> list[str]:
    """What all held-out frames say: over the puppet that the clip taught, and over the puppet alone."""
    puppet, alone = judged.puppet, data.stages.get("puppet")
    told = [f"Held-out frames: puppet {puppet.features_db:.1f} dB mouth and eyes, {puppet.crop_db:.1f} dB picture; {_gains(judged)}."]
    each = {"puppet": puppet, **{f"{steps} step{'s' * (steps > 1)}": judged.made[steps] for steps in sorted(judged.made)}}
    fine = ", ".join(f"{name} {one.mouth_db:.1f} dB, {one.sharp:.2f}" for name, one in each.items())
    told.append(f"The mouth alone, and how sharp the face is (the truth is 1): {fine}.")
    if alone is not None:
        best = judged.made[max(judged.made)]
        features, crop = best.features_db - alone.features_db, best.crop_db - alone.crop_db
        told.append(f"Over the puppet alone: {features:+.1f} dB mouth and eyes, {crop:+.1f} dB picture.")
    return told


def _recognised(judged: Judged) -> str:
    """How like the person the held-out faces are to the recogniser."""
    named = {"puppet": judged.puppet, **{f"{steps} step{'s' * (steps > 1)}": one for steps, one in sorted(judged.made.items())}}
    told = [f"{name} {one.identity:.3f}" for name, one in named.items() if one.identity is not None]
    if not told:
        return "The recogniser saw no whole face in the held-out frames, so it taught and measured little; film with more room around the head."
    return f"Held-out faces to the recogniser, 1 for the person: {', '.join(told)}."


def _how_on(data: Dataset, out: Path, made: Preset | UniAnimate | VividPose, recipe: str, tell: Callable[[str], None]) -> None:
    """What to type next."""
    portrait, weights = shlex.quote(str(data.folder / SCENE)), shlex.quote(str(out / RUN / WEIGHTS))
    generator = DIFFUSION if isinstance(made, Preset) else VIDEO
    options = f"--generator {generator} --weights {weights}"
    tell(f"Keep it: avatar persona create me --portrait {portrait} {options} --consent 'I am the person in the picture'")
    tell(shown_by(f"{options} --persona me", made, recipe=recipe))


__all__ = ["teach"]
