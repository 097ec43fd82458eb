"""Training of the networks that see whole clips: what is taught is what is rendered and streamed, and the run is the loop's."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.types import AvatarError, UInt8Array
from tests.conftest import require

pytestmark = pytest.mark.torch
require("torch")
require("diffusers")
require("transformers")
require("accelerate")

import torch  # noqa: E402

import avatar  # noqa: E402
from engine.generators.video import clips, generator, live, presets, sampling, vividpose_sampling  # noqa: E402
from engine.generators.video import networks as weights_of  # noqa: E402
from engine.generators.video.rolling import UniAnimateSteps, VividPoseSteps  # noqa: E402
from engine.generators.video.weights import Plan, read_manifest  # noqa: E402
from exporters.data.dataset import Clip, Dataset  # noqa: E402
from exporters.training import runs  # noqa: E402
from exporters.training.batches import Pattern  # noqa: E402
from exporters.training.judge import Run  # noqa: E402
from exporters.training.learner import Learner  # noqa: E402
from exporters.training.settings import Settings  # noqa: E402
from exporters.training.train import Budget, Report, train  # noqa: E402
from exporters.training.whole import objectives  # noqa: E402
from exporters.training.whole.matching import Matching  # noqa: E402
from exporters.training.whole.pupils import goal  # noqa: E402
from exporters.training.whole.windows import Reference, slower  # noqa: E402

SIZE = presets.TINY.size
CASES: dict[str, dict[str, Any]] = {"unianimate": {}, "vividpose": {"preset": "tiny_vividpose", "window": (4, 3)}}
FRAMES, TAUGHT = 96, 72
QUICK = Settings(preset="tiny_unianimate", recipe="teacher", steps=3, rate=6e-3, average=0.9, window=(8, 6))


def person(time: float) -> tuple[UInt8Array, Any, Any]:
    """(a picture [H, W, 3] of a bright head that sways before stripes, its face's points [478, 2], its body's [33, 3])"""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    middle = np.array([24 + 9 * np.sin(time / 5), 13.0])
    angle = np.linspace(0, 2 * np.pi, 478)
    face = (middle + 7 * np.stack([np.cos(angle), np.sin(angle)], 1)).astype(np.float32)
    inside = ((np.stack([x, y], -1) - middle) ** 2).sum(-1) < 49
    colours = np.where(inside[..., None], (230, 180, 140), np.stack([60 + 40 * np.sin(x / 4), 80 + 0 * x, 120 + 40 * np.cos(y / 5)], -1))
    body = np.ones((33, 3), np.float32)
    body[:, :2] = middle + np.stack([np.linspace(-9, 9, 33), np.full(33, 15.0)], 1)
    return colours.clip(0, 255).astype(np.uint8), face, body


@pytest.fixture(scope="module")
def data() -> Dataset:
    shown, faces, bodies = (np.stack(each) for each in zip(*(person(t) for t in range(FRAMES)), strict=True))
    motion = np.linspace(1, 2, FRAMES)[:, None].repeat(16, 1).astype(np.float32)
    speech, kept = np.full((FRAMES, 16, 80), -10.0, np.float32), np.ones(FRAMES, bool)
    coarse = np.repeat(shown[:1], FRAMES, 0)
    held = [(TAUGHT, FRAMES)]
    maps = {"smplx": np.asarray(255 - shown, np.uint8)}
    clip = Clip("sway", shown, coarse, np.zeros_like(shown), faces, speech, motion, faces, kept, [(0, TAUGHT)], held, bodies, maps=maps)
    return Dataset(Path("nowhere"), SIZE, 25, shown[0], [], [clip], {"key": "sway"})


def run(data: Dataset, out: Path, updates: int, **changes: Any) -> list[dict[str, float]]:
    """Train for so many updates -> the log."""
    train(data, out, budget=Budget(updates=updates), settings=replace(QUICK, **changes), device="cpu")
    return [json.loads(line) for line in (out / runs.LOG).read_text().splitlines()]


def learner(data: Dataset, **changes: Any) -> tuple[Learner, Any]:
    """With its batches."""
    made = Learner(replace(QUICK, **changes), SIZE, start=None, teacher=None, device="cpu")
    return made, made.lesson.batches(data)


@pytest.mark.parametrize("recipe", ["teacher", "appearance"])
@pytest.mark.parametrize("system", CASES)
def test_a_loss_falls(data: Dataset, system: str, recipe: Any) -> None:
    """The same windows at the same levels, before and after."""
    made, batches = learner(data, **CASES[system], recipe=recipe, steps=2)
    judge, _ = made.lesson.objective(made.average)

    @torch.no_grad()
    def loss() -> float:
        asked = [batches.at(1000 + k) for k in range(3)]
        for batch in asked:
            made.lesson.read(batch)
        return sum(float(term) for k, batch in enumerate(asked) for term in judge.loss(made.networks, batch, 1000 + k)[0].values())

    before = loss()
    for update in range(16):
        made.update([(update, batches.at(update))], update, texture=False)
    assert loss() < 0.9 * before


@pytest.mark.parametrize("system", CASES)
def test_what_is_judged_is_what_streams(data: Dataset, tmp_path: Path, system: str) -> None:
    """Published, and asked chunk by chunk with the same conditions, the weights show to the pixel what held-out frames were judged by."""
    made, batches = learner(data, **CASES[system], recipe="appearance", steps=2)
    lesson: Any = made.lesson
    window, past = made.settings.window or (0, 0)
    run = Run(batches.take(0, 36, 36 + 2 * (window - past) + 1), *[np.zeros(0)] * 4)  # type: ignore[arg-type]
    judged = lesson.make(made.average, run, 2)
    origin = {"steps": "2", **lesson.origin()}
    lesson.save(made.average, tmp_path / "w", origin=origin, data=data, trust=None)
    served = generator.Video(weights=tmp_path / "w", device="cpu")
    assert (served.plan, served.spec.chunk) == (Plan(2, window, past), window - past)
    reference, first = batches.references[0], run.batch.coarse[0].numpy()
    points = (reference.face,) if system == "vividpose" else ()
    portrait = served.system.networks.prepare(reference.picture, *points)  # type: ignore[attr-defined]
    known = _known(served.system, portrait, reference)
    state = served.allocate(1)
    row = state.stream.row(0)
    row.seat(known)
    rest = reference.condition if system == "unianimate" else np.concatenate([reference.condition[..., :3], first[..., 3:]], 2)
    row.begin(served._steps.drawn((window, *served.system.latent)), rest)
    step, conditions = live.Row(row, state.runner, served.graph, arrays=False), run.batch.coarse.numpy()
    new = window - past
    shown = [step(conditions[k : k + new]) for k in range(0, 2 * new, new)]
    assert np.abs(np.concatenate(shown).astype(int) - judged[: 2 * new]).max() <= 1


def _known(system: Any, portrait: Any, reference: Reference) -> clips.Known:
    """As `clips.System.known`, of a portrait whose pose is the reference's."""
    if hasattr(system, "_own"):
        system._own = lambda anchor: reference.condition[..., ::-1]
    found: clips.Known = system.known(portrait, None)
    return found


def test_a_run_goes_on_and_publishes_a_student_with_its_plan(data: Dataset, tmp_path: Path) -> None:
    """As if it had never stopped; and the weights say how a stream asks them."""
    wanted = replace(QUICK, recipe="appearance", steps=2)
    whole = run(data, tmp_path / "whole", 3, recipe="appearance", steps=2)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "parts", budget=Budget(updates=3), settings=wanted, device="cpu", progress=_stop_at(2))
    parts = run(data, tmp_path / "parts", 3, recipe="appearance", steps=2)
    assert [one["loss"] for one in parts] == [one["loss"] for one in whole]
    mine, theirs = (weights_of.load(tmp_path / name / "weights") for name in ("whole", "parts"))
    assert all(torch.equal(mine.denoiser.state_dict()[key], value) for key, value in theirs.denoiser.state_dict().items())
    begun = weights_of.build(presets.TINY)
    assert not torch.equal(mine.denoiser.out[2].weight, begun.denoiser.out[2].weight)
    assert torch.equal(mine.autoencoder.quant_conv.weight, begun.autoencoder.quant_conv.weight), "what does not learn stays"
    origin = read_manifest(tmp_path / "whole" / "weights").origin
    assert (origin["recipe"], origin["steps"], origin["window"], origin["overlap"]) == ("appearance", "2", "8", "6")
    assert "made_for" not in origin
    assert (tmp_path / "whole" / "preview.jpg").stat().st_size > 1000


@pytest.mark.parametrize("system", CASES)
def test_a_teacher_says_its_windows_and_is_judged_by_them(data: Dataset, tmp_path: Path, system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[tuple[int, int]]()
    module: Any = sampling if system == "unianimate" else vividpose_sampling
    sample = module.sample

    def spy(*given: Any, **told: Any) -> Any:
        asked.append((told["size"], told["overlap"]))
        return sample(*given, **told)

    monkeypatch.setattr(module, "sample", spy)
    changes = CASES[system] | {"window": (5, 4)}
    train(data, tmp_path, budget=Budget(updates=1), settings=replace(QUICK, steps=1, **changes), device="cpu")
    manifest = read_manifest(tmp_path / "weights")
    assert (manifest.window, manifest.taught) == (5, None)
    assert set(asked) == {(5, 2)}


def _stop_at(updates: int) -> Any:
    def progress(report: Report) -> None:
        if report.updates == updates:
            raise KeyboardInterrupt

    return progress


def told_of(made: Learner) -> list[tuple[float, bool]]:
    """Whatever the denoiser is asked from now on: (noise level, whether its answer has a gradient)."""
    asked = list[tuple[float, bool]]()
    made.networks.denoiser.register_forward_hook(lambda _, given, out: asked.append((float(given[1][0]), bool(out.requires_grad))))
    return asked


def test_a_student_s_last_step_alone_carries_gradients_and_its_past_is_its_own(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    made, batches = learner(data, recipe="appearance", steps=3)
    judge, _ = made.lesson.objective(made.average)
    levels, asked = list(UniAnimateSteps.few(3).told), told_of(made)
    pasts, before = list[torch.Tensor](), objectives.rolled
    made_of = list[torch.Tensor]()

    def spy(steps: Any, call: Any, past: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        pasts.append(past)
        made_of.append(before(steps, call, past, *rest, **more))
        return made_of[-1]

    monkeypatch.setattr(objectives, "rolled", spy)
    exits, begun = set[int](), list[bool]()
    for step in range(12):
        for held in (asked, pasts, made_of):
            held.clear()
        batch = batches.at(step)
        made.lesson.read(batch)
        judge.loss(made.networks, batch, step)
        own = len(pasts) - 1
        quiet, last = asked[: 3 * own], asked[3 * own :]
        exits.add(len(last) - 1)
        begun.append(own == 0)
        assert [level for level, _ in last] == levels[: len(last)]
        assert [grad for _, grad in last] == [False] * (len(last) - 1) + [True]
        assert not any(grad for _, grad in quiet)
        for chunk in range(own):
            assert torch.equal(pasts[chunk + 1], torch.cat([pasts[chunk][:, 2:], made_of[chunk]], 1)), "what it made itself, behind what was there"
        if own:
            assert torch.equal(pasts[0], made.lesson.desk.truth(made.networks, batch)[:, :6])  # type: ignore[attr-defined]
            assert own <= 3
    assert exits == {0, 1, 2}
    assert 0 < sum(begun) < 8, "the beginning of a stream now and then"


def test_a_teacher_sees_no_reference_now_and_then(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    made, batches = learner(data)
    judge, _ = made.lesson.objective(made.average)
    batch, dropped = batches.at(0), list[bool]()
    made.lesson.read(batch)
    call = made.lesson.pupil.call  # type: ignore[attr-defined]

    def spy(networks: Any, told: Any, steps: Any, condition: Any, *, dropped: bool) -> Any:
        seen.append(dropped)
        return lambda step, x: torch.zeros_like(x)

    seen = dropped
    monkeypatch.setattr(made.lesson.pupil, "call", spy)  # type: ignore[attr-defined]
    monkeypatch.setattr(made.lesson.pupil, "encode", lambda networks, pictures: torch.zeros(len(pictures), 4, 4, 6))  # type: ignore[attr-defined]
    for step in range(200):
        judge.loss(made.networks, batch, step)
    assert 8 <= sum(dropped) <= 36
    with torch.no_grad():
        asked = torch.randn(1, 8, 4, 4, 6, generator=torch.Generator().manual_seed(0))
        level, conditions = UniAnimateSteps.few(1), batch.coarse[None]
        told = made.lesson.desk.told(made.networks, batch)  # type: ignore[attr-defined]
        blind = call(made.networks, told, level, conditions, dropped=True)(0, asked)
        given = made.networks.given(made.lesson.desk.kept[batch.view], batch.coarse[0].numpy())  # type: ignore[attr-defined]
        published = made.networks.denoiser(asked, torch.tensor([level.told[0]]), given.unguided)
    assert torch.allclose(blind, published, atol=1e-5), "as guidance's other half"


@pytest.mark.parametrize("steps", [UniAnimateSteps.few(4), VividPoseSteps.few(4)])
def test_the_answer_that_is_wanted_says_the_truth(steps: Any) -> None:
    x, clean = torch.randn(2, 1, 3, 4, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for step in range(4):
        assert torch.allclose(steps.clean(step, x, goal(steps, step, x, clean)), clean, atol=1e-9)


def test_every_second_frame_is_learnt_from_and_none_is_lost(data: Dataset) -> None:
    """As UniAnimate takes them, and at the rate that is shown."""
    even, odd = slower(data).clips
    assert np.array_equal(even.frames[3], data.clips[0].frames[6])
    assert np.array_equal(odd.face[3], data.clips[0].face[7])
    assert (even.train, odd.train) == ([(0, 36)], [(0, 36)])
    assert (even.held_out, odd.held_out) == ([(36, 48)], [])


def test_hands_are_painted_in_what_is_learnt_from_and_not_in_portraits(data: Dataset, tmp_path: Path) -> None:
    """Of a portrait nobody looks for hands, live; and a run without them does not go on with them."""
    (clip,) = data.clips
    hands = np.full((FRAMES, 2, 21, 2), np.nan, np.float32)
    hands[:, 1] = np.stack([np.linspace(32, 44, 21), np.linspace(16, 28, 21)], 1)
    seen = replace(data, clips=[replace(clip, hands=hands)])
    (_, without), (_, among) = learner(data), learner(seen)
    bare, full = (batches.take(0, 0, 4).coarse.numpy() for batches in (without, among))
    x, y = hands[0, 1].astype(int).T
    assert (full[:, y, x] == (255, 0, 0)).all(), "red and blue change places"
    assert not (bare[:, y, x] == (255, 0, 0)).all()
    for one, other in zip(without.references, among.references, strict=True):
        assert np.array_equal(one.condition, other.condition)
    run(data, tmp_path, 1)
    with pytest.raises(AvatarError, match=r"other settings \(hands none instead of tracked\)"):
        run(seen, tmp_path, 2)
    run(seen, tmp_path / "new", 1)


REFUSED = {
    "recipe": (["--preset", "tiny_unianimate", "--recipe", "consistency"], "by --recipe teacher, appearance or matching, not 'consistency'"),
    "start": (["--preset", "unianimate"], "goes on from imported weights"),
    "teacher": (["--preset", "tiny_unianimate", "--teacher", "{weights}"], "learns from no teacher; leave --teacher out"),
    "alone": (
        ["--recipe", "matching", "--teacher", "{weights}", "--preset", "unianimate"],
        "are for the preset 'tiny_unianimate', not for 'unianimate'",
    ),
    "other": (["--preset", "tiny_vividpose", "--start", "{weights}"], "are for the preset 'tiny_unianimate', not for 'tiny_vividpose'"),
    "none": (["--preset", "tiny_unianimate", "--recipe", "matching"], "learns from a teacher; give its weights with --teacher"),
    "two": (["--preset", "compact", "--start", "{weights}"], "is of 'diffusion' and '{weights}' is of 'video': give what belongs together"),
    "longest": (["--preset", "tiny_unianimate", "--longest", "4"], "give --window instead of --longest"),
    "window": (["--preset", "tiny_unianimate", "--window", "4", "--overlap", "4"], "cannot have 4 of them past"),
    "short": (["--preset", "tiny_unianimate", "--window", "1"], "A window has at least 2 frames"),
    "single": (["--preset", "tiny_unianimate", "--recipe", "teacher", "--learn", "temporal", "--window", "1"], "give --window 2 or more"),
    "maps": (["--preset", "tiny_vividpose"], "there is no smplx; give what makes each with --maps"),
    "past": (["--preset", "tiny_unianimate", "--recipe", "teacher", "--overlap", "2"], "nothing past: leave --overlap out"),
    "frames": (["--preset", "compact", "--window", "4"], "taught frame by frame: leave --window and --overlap out"),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    weights_of.save(weights_of.build(presets.TINY), folder, origin={})
    return folder


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_offered_is_one_sentence(name: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, told = REFUSED[name]
    asked = [word.format(weights=weights) for word in words]
    assert avatar.main(["train", "--video", "x.mp4", "--out", str(tmp_path / "out"), *asked]) == 2
    said = capsys.readouterr().err
    assert told.format(weights=weights) in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_window_that_no_clip_is_long_enough_for_says_so(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(AvatarError, match="has 36 of them at about 15 a second, and 40 are taught at a time: film longer"):
        run(data, tmp_path, 1, window=(40, 30))


def test_patterns_of_another_length_than_a_student_s_are_told(data: Dataset) -> None:
    lesson: Any = learner(data, recipe="appearance", steps=2)[0].lesson
    frames = lesson.patterns[0].frames
    lesson = learner(data, recipe="appearance", steps=2, patterns=(Pattern(2, frames),))[0].lesson
    assert lesson.patterns == (Pattern(2, frames),)
    with pytest.raises(AvatarError, match=f"learns from {frames} frames at a time, not from {frames + 1}; give such patterns"):
        learner(data, recipe="appearance", steps=2, patterns=(Pattern(2, frames), Pattern(1, frames + 1)))
    teacher: Any = learner(data, patterns=(Pattern(2, 5),))[0].lesson
    assert teacher.patterns == (Pattern(2, 5),), "a teacher has no stream to keep to"


@pytest.mark.parametrize("recipe", ["appearance", "matching"])
def test_a_stream_without_a_past_is_taught_too(data: Dataset, weights: Path, tmp_path: Path, recipe: Any) -> None:
    """Nothing lies behind its windows, so that there is no chunk to make before the one that is learnt from."""
    settings = replace(QUICK, recipe=recipe, steps=2, window=(2, 0))
    teacher = weights if recipe == "matching" else None
    train(data, tmp_path / "run", budget=Budget(updates=2), settings=settings, start=weights, teacher=teacher, device="cpu")
    log = [json.loads(line) for line in (tmp_path / "run" / runs.LOG).read_text().splitlines()]
    assert all(one["loss"] > 0 for one in log)


def test_a_teacher_draws_a_student(data: Dataset, weights: Path, tmp_path: Path) -> None:
    """Whose weights go on from an import, in half precision where that is asked."""
    settings = replace(QUICK, recipe="matching", steps=2, precision="bf16")
    train(data, tmp_path / "run", budget=Budget(updates=1), settings=settings, start=weights, teacher=weights, device="cpu")
    log = [json.loads(line) for line in (tmp_path / "run" / runs.LOG).read_text().splitlines()]
    assert all(np.isfinite(list(one.values())).all() for one in log)
    before, after = weights_of.load(weights), weights_of.load(tmp_path / "run" / "weights")
    assert not torch.equal(before.denoiser.out[2].weight, after.denoiser.out[2].weight)
    assert after.taught == Plan(2, 8, 6)
    weights_of.save(weights_of.build(presets.TINY, seed=1), tmp_path / "other", origin={})
    with pytest.raises(AvatarError, match="has another autoencoder than the student; start both from the same import"):
        train(data, tmp_path / "2", budget=Budget(updates=1), settings=settings, start=weights, teacher=tmp_path / "other", device="cpu")


@pytest.mark.parametrize("system", CASES)
def test_a_student_that_is_its_teacher_is_not_pushed(data: Dataset, system: str) -> None:
    """Before the follower has learnt anything else, and without guidance."""
    made, batches = learner(data, **CASES[system], recipe="appearance", steps=2)
    lesson: Any = made.lesson
    lesson.pupil.guidance = 1.0
    judge, batch = Matching(copy.deepcopy(made.networks), lesson.rolls), batches.at(0)
    lesson.read(batch)
    assert float(judge.loss(made.networks, batch, 0)[0]["matching"].detach()) < 1e-9
    lesson.pupil.guidance = 2.0
    assert float(judge.loss(made.networks, batch, 0)[0]["matching"].detach()) > 1e-4
    judge.follow(made.networks, batch, 0).backward()
    learnt = {name.split(".")[0] for name, one in judge.follower.named_parameters() if one.grad is not None}
    assert learnt == {"denoiser", "reference"} & {name for name, _ in made.networks.named_children()}


@pytest.mark.parametrize("system", CASES)
def test_what_carries_motion_on_and_what_does_not_are_all_that_learns(data: Dataset, system: str) -> None:
    learnt = {}
    for part in ("all", "spatial", "temporal"):
        made, _ = learner(data, **CASES[system], learn=part, reference=True)
        learnt[part] = {name for name, one in made.networks.named_parameters() if one.requires_grad}
    assert learnt["spatial"] | learnt["temporal"] == learnt["all"]
    assert not learnt["spatial"] & learnt["temporal"]
    assert {name.split(".")[0] for name in learnt["all"]} == {"denoiser", "reference"} & {name for name, _ in made.networks.named_children()}


@pytest.mark.parametrize("system", CASES)
def test_what_is_computed_again_gives_the_same_gradients(data: Dataset, system: str) -> None:
    found = []
    for again in (False, True):
        made, batches = learner(data, **CASES[system], recipe="appearance", steps=2, checkpointing=again, reference=True)
        made._backward(batches.at(1), 1, 1.0, texture=False)
        found.append({name: one.grad for name, one in made.networks.named_parameters() if one.grad is not None})
    kept, anew = found
    assert kept.keys() == anew.keys()
    assert all(torch.allclose(value, anew[name], rtol=1e-4, atol=1e-7) for name, value in kept.items())
