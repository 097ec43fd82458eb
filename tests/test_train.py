"""Training on a made-up clip: what is taught, where gradients go, and that a run survives whatever happens to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.generators.diffusion.trust import Trust
from engine.types import AvatarError, UInt8Array
from tests.conftest import require

pytestmark = pytest.mark.torch
require("torch")
require("diffusers")

import torch  # noqa: E402

from engine.generators.diffusion import networks as weights_of  # noqa: E402
from engine.generators.diffusion import presets, stream  # noqa: E402
from engine.generators.diffusion.autoencoder import to_unit  # noqa: E402
from engine.generators.diffusion.sampler import Levels, levels  # noqa: E402
from exporters.data.dataset import Clip, Dataset  # noqa: E402
from exporters.training import objectives, runs  # noqa: E402
from exporters.training.batches import Batches, Chances, Pattern  # noqa: E402
from exporters.training.judge import Run, figures, generate, held_out  # noqa: E402
from exporters.training.learner import Learner  # noqa: E402
from exporters.training.losses import Critic, Weights, even, pictures, psnr, regions, sharpness, weigh  # noqa: E402
from exporters.training.train import Budget, Recipe, Report, Settings, train  # noqa: E402

SIZE = presets.TINY.size
FRAMES, TAUGHT = 60, 44
QUICK = Settings(preset="tiny", patterns=(Pattern(3, 1, halved=True), Pattern(1, 8)), rate=3e-3, average=0.9)


def waves(time: float, off: float) -> UInt8Array:
    """A picture [H, W, 3] that moves with the time; `off` is what the puppet lacks."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    colours = (127 + 90 * np.sin(x / 5 + time / 6), 127 + 90 * np.cos(y / 4 - time / 9), np.full(SIZE, 120.0 + off))
    return np.asarray(np.stack(colours, -1).clip(0, 255), np.uint8)


@pytest.fixture(scope="module")
def data() -> Dataset:
    """A clip whose real frames are bluer than the puppet's, by as much as the person speaks loudly."""
    loud = np.sin(np.arange(FRAMES) / 4) ** 2
    speech = np.full((FRAMES, 16, 80), -10.0, np.float32) + 8 * loud[:, None, None].astype(np.float32)
    coarse = np.stack([waves(t, 0.0) for t in range(FRAMES)])
    truth = np.stack([waves(t, 60.0 * loud[t]) for t in range(FRAMES)])
    face = np.random.default_rng(1).uniform(8, 24, (478, 2)).astype(np.float32)
    motion = np.linspace(1, 2, FRAMES)[:, None].repeat(16, 1).astype(np.float32)
    kept = np.ones(FRAMES, bool)
    faces = np.tile(face, (FRAMES, 1, 1))
    clip = Clip("waves", truth, coarse, np.zeros_like(coarse), faces, speech, motion, faces, kept, [(0, TAUGHT)], [(TAUGHT + 4, FRAMES)])
    return Dataset(Path("nowhere"), SIZE, 25, coarse[0], [(20.0, coarse[9])], [clip], {"key": "waves"})


def run(data: Dataset, out: Path, updates: int, **changes: Any) -> list[dict[str, float]]:
    """Train for so many updates -> the log."""
    train(data, out, budget=Budget(updates=updates), settings=replace(QUICK, **changes), device="cpu")
    return [json.loads(line) for line in (out / runs.LOG).read_text().splitlines()]


def networks(seed: int = 0) -> weights_of.Networks:
    """Of the tiny preset, with weights that are nowhere zero."""
    made = weights_of.build(presets.TINY, seed=seed)
    with torch.no_grad():
        for parameter in (*made.guider.conv_out.parameters(), *made.denoiser.conv_out.parameters()):
            parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(seed))
    return made


# -- what is learnt -----------------------------------------------------------------------------------------------------------


def test_a_student_learns_what_the_puppet_lacks_and_its_weights_serve(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a residual, as `compact` has it, a run begins at the puppet's picture and ends above it, on frames it has not seen."""
    residual = replace(presets.TINY, residual=True, noise=presets.COMPACT.noise, scale=presets.COMPACT.scale)
    monkeypatch.setitem(presets.PRESETS, "tiny", residual)
    held = held_out(Batches(data, seed=0, depth=8), Trust.of(data.clips[0].motion))
    puppet = figures([run.puppet for run in held], held)
    begun = figures([generate(weights_of.build(residual), run, 2) for run in held], held)
    assert begun.crop_db == pytest.approx(puppet.crop_db, abs=0.1)
    run(data, tmp_path, 40, rate=6e-3, weights=Weights(critic=0.0))
    served = weights_of.load(tmp_path / "weights")
    assert figures([generate(served, run, 2) for run in held], held).crop_db > puppet.crop_db + 3.0
    assert (tmp_path / "preview.jpg").stat().st_size > 1000


def test_the_rollout_is_what_a_live_stream_does(data: Dataset) -> None:
    made, batch = networks(), Batches(data, seed=0, depth=8).take(0, 0, 9)
    seen = Run(batch, data.clips[0].points[:9], np.ones((9, 3), np.float32), np.ones((9, *SIZE), np.float32), data.clips[0].coarse[:9])
    at = levels(made.preset.noise, 2)
    recipe = stream.Recipe(made, at, False, torch.float32, torch.device("cpu"))
    cache = made.remember(batch.portrait)
    live = stream.open_stream(recipe, 1, cache)
    stream.seat(live, 0, cache)
    live.active[0] = True
    for i in range(9):
        live.condition[0], live.speech[0] = batch.coarse[i][None], batch.speech[i][None]
        stream.step(recipe, live)
    trained = generate(made, seen, 2)[-1]
    assert np.abs(trained.astype(int) - live.out[0, 0].numpy().astype(int)).max() <= 1


def test_only_the_exit_step_carries_gradients(data: Dataset) -> None:
    made, batch = networks().requires_grad_(True), Batches(data, seed=0, depth=8).take(0, 0, 3)
    told: list[tuple[float, bool]] = []
    made.denoiser.conv_out.register_forward_hook(lambda _, given, out: told.append((0.0, bool(out.requires_grad))))
    at = levels(made.preset.noise, 4)
    objectives.rollout(made, at, objectives.scene(made, batch), exit=2)
    assert [grad for _, grad in told] == [False, False, True]


def test_every_exit_is_drawn(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """About as often as the others, and by an update's number alone."""
    exits = list[int]()

    def spy(made: weights_of.Networks, at: Levels, view: objectives.Scene, *, exit: int) -> torch.Tensor:
        assert len(at) == 4
        exits.append(exit)
        return objectives.first_noise(made.preset, view.batch)

    monkeypatch.setattr(objectives, "rollout", spy)
    made, batch = networks(), Batches(data, seed=0, depth=8).take(0, 0, 1)
    taught = objectives.Appearance(4, Weights(), seed=3)
    view = objectives.scene(made, batch)
    monkeypatch.setattr(objectives, "scene", lambda *_: view)
    for update in (*range(60), 7, 8, 9):
        taught.loss(made, batch, update)
    assert exits[60:] == exits[7:10]
    assert min(exits[:60].count(exit) for exit in range(4)) >= 6
    assert set(exits) == {0, 1, 2, 3}


@pytest.mark.parametrize("recipe", ["teacher", "consistency", "matching"])
def test_every_recipe_changes_the_weights_and_stays_finite(data: Dataset, tmp_path: Path, recipe: Recipe) -> None:
    """And leaves the weights it starts from as they are."""
    weights_of.save(networks(), tmp_path / "begin", origin={"made_by": "a test"})
    begin = tmp_path / "begin"
    out = tmp_path / recipe
    teacher = None if recipe == "teacher" else begin
    train(data, out, budget=Budget(updates=4), settings=replace(QUICK, recipe=recipe, steps=2), start=begin, teacher=teacher, device="cpu")
    log = [json.loads(line) for line in (out / runs.LOG).read_text().splitlines()]
    assert all(np.isfinite(list(one.values())).all() for one in log)
    before, after = weights_of.load(begin), weights_of.load(out / "weights")
    assert not torch.equal(before.denoiser.conv_out.weight, after.denoiser.conv_out.weight)
    assert torch.equal(before.denoiser.conv_out.weight, weights_of.load(begin).denoiser.conv_out.weight)


def test_a_teacher_learns_to_denoise(data: Dataset) -> None:
    """The same pictures at the same noise levels, before and after."""
    settings = replace(QUICK, recipe="teacher", rate=6e-3, weights=Weights(critic=0.0), patterns=(Pattern(3, 1, halved=True),))
    learner, batches = (
        Learner(settings, SIZE, start=networks(), teacher=None, device="cpu"),
        Batches(data, seed=0, depth=8, patterns=settings.patterns),
    )
    asked, judge = [batches.at(1000 + k) for k in range(4)], objectives.Denoise(settings.weights, seed=1)

    @torch.no_grad()
    def loss() -> float:
        return sum(float(term) for k, batch in enumerate(asked) for term in judge.loss(learner.networks, batch, k)[0].values())

    before = loss()
    for update in range(10):
        learner.update([(update, batches.at(update))], update, texture=False)
    assert loss() < 0.7 * before


def test_a_recipe_without_its_teacher_says_so(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(AvatarError, match="--recipe teacher"):
        run(data, tmp_path, 1, recipe="consistency")


def test_matching_pushes_nothing_where_teacher_and_follower_agree() -> None:
    x, same = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert objectives.matching_gradient(x, same, same).abs().max() == 0
    assert objectives.matching_gradient(x, same, same + 1).abs().min() > 0


class Knowing:
    """Instead of `objectives.answer`: a network that knows the clean latents, and tells them in its `prediction`, `off` by so much."""

    def __init__(self, clean: torch.Tensor, path: Levels, off: float) -> None:
        self.clean, self.path, self.off = clean, path, off
        self.noise: torch.Tensor | None = None  # what the teacher, who is asked first, sees

    def __call__(self, made: weights_of.Networks, view: objectives.Scene, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        index = (t[:, None] - self.path.t).abs().argmin(1)
        alpha, sigma = (share[index].view(-1, 1, 1, 1) for share in (self.path.alpha, self.path.sigma))
        if self.noise is None:
            self.noise = (x - alpha * self.clean) / sigma
            return self.told(alpha, sigma, self.clean)
        return self.told(alpha, sigma, self.clean + self.off * t.view(-1, 1, 1, 1) / 1000)

    def told(self, alpha: torch.Tensor, sigma: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        """The answer that says `clean`."""
        assert self.noise is not None
        return {"v": alpha * self.noise - sigma * clean, "x0": clean, "flow": self.noise - clean}[self.path.prediction]


@pytest.mark.parametrize("prediction", ["v", "x0", "flow"])
def test_consistency_is_met_by_whoever_knows_the_picture(data: Dataset, monkeypatch: pytest.MonkeyPatch, prediction: Any) -> None:
    """At every noise level: from there the teacher's step leads to where the same picture is behind the next one. Another answer at each is not."""
    made = networks()
    made.preset = replace(made.preset, noise=replace(made.preset.noise, prediction=prediction))
    batch, taught = Batches(data, seed=0, depth=8, patterns=(Pattern(8, 1),)).at(0), objectives.Consistency(made, made, seed=0)
    monkeypatch.setattr(objectives, "scene", lambda *_: None)
    asked = dict[float, float]()
    for off in (0.0, 5.0):
        monkeypatch.setattr(objectives, "answer", Knowing(objectives.encode(made, batch), taught.path, off))
        asked[off] = float(taught.loss(made, batch, 4)[0]["consistency"])
    assert asked[0.0] < 1e-6
    assert asked[5.0] > 1e-3


def test_consistency_is_not_met_by_saying_nothing(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """A student that says the same of everything agrees with itself; the end of the teacher's path, which is the picture, tells it apart."""
    noise = replace(presets.TINY.noise, prediction="x0")
    silent, teacher = (weights_of.build(replace(presets.TINY, noise=noise)) for _ in range(2))
    batch, taught = Batches(data, seed=0, depth=8, patterns=(Pattern(24, 1),)).at(0), objectives.Consistency(teacher, silent, seed=0)
    monkeypatch.setattr(objectives, "scene", lambda *_: None)
    clean = objectives.encode(teacher, batch)
    monkeypatch.setattr(objectives, "answer", lambda made, view, x, t: clean if made is teacher else torch.zeros_like(x))
    assert sum(float(taught.loss(silent, batch, update)[0]["consistency"]) for update in range(20)) > 1e-3


# -- what it is judged by -----------------------------------------------------------------------------------------------------


def test_regions_cover_mouth_eyes_and_face() -> None:
    face = np.zeros((478, 2), np.float32) + 100.0
    angle = np.linspace(0, 2 * np.pi, 478)
    face += 60 * np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    inside, whole = regions(face, (200, 200))
    assert whole[100, 100] == 1
    assert whole[5, 5] == 0
    assert inside.max() == 1
    assert regions(np.full((478, 2), np.nan, np.float32), (20, 20)).max() == 0


def test_an_error_in_the_mouth_counts_more() -> None:
    areas = torch.zeros(1, 2, 16, 16)
    areas[:, :, 4:8, 4:8] = 1
    weight = weigh(areas, Weights())
    assert float(weight.mean()) == pytest.approx(1.0)
    truth = torch.zeros(1, 3, 16, 16)
    inside, outside = truth.clone(), truth.clone()
    inside[..., 5, 5] = outside[..., 12, 12] = 1.0
    squares = [float(pictures(made, truth, weight, Weights())["square"]) for made in (inside, outside)]
    assert squares[0] == pytest.approx(10 * squares[1], rel=1e-4)
    assert all(float(term) == 0 for term in pictures(truth, truth, weight, Weights()).values())


def test_a_condition_far_off_does_not_outshout_the_others() -> None:
    truth = torch.zeros(3, 3, 8, 8)
    coarse = torch.stack([torch.full((3, 8, 8), off) for off in (0.1, 0.2, 2.0)])
    share = even(torch.ones(3, 1, 8, 8), coarse, truth).mean((1, 2, 3))
    assert share.tolist() == pytest.approx([1.0, 1.0, 0.01], rel=1e-4)
    assert even(torch.ones(3, 1, 8, 8), truth, truth).isfinite().all()


def test_a_guider_of_the_puppets_frame_reads_around_zero() -> None:
    guider = weights_of.build(presets.COMPACT).guider
    seen = list[torch.Tensor]()
    guider.conv_in.register_forward_hook(lambda module, given, made: seen.append(given[0]))
    guider(torch.full((1, 6, 32, 32), 0.75))
    assert float(seen[0].min()) == float(seen[0].max()) == 0.5


def test_figures_know_blur_from_sharpness() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (1, 32, 32, 3)).astype(np.uint8)
    where = np.ones((1, 32, 32), np.float32)
    blurred = np.repeat(np.repeat(picture[:, ::4, ::4], 4, 1), 4, 2)
    assert sharpness(blurred, where) < 0.7 * sharpness(picture, where)
    assert psnr(picture, picture) > 90
    assert psnr(np.zeros_like(picture), np.full_like(picture, 255)) == pytest.approx(0, abs=0.01)


def test_the_critic_learns_to_tell(data: Dataset) -> None:
    batch = Batches(data, seed=0, depth=8, chances=Chances(0, 0)).take(0, 0, 8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        critic = Critic(8)
    coarse = to_unit(batch.coarse)
    optimiser = torch.optim.Adam(critic.parameters(), 5e-3)
    losses = []
    for _ in range(30):
        loss = critic.judge(batch.truth * 0.2, batch.truth, coarse)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


# -- conditions that go missing -----------------------------------------------------------------------------------------------


def test_batches_depend_on_seed_and_number_alone(data: Dataset) -> None:
    first, again, other = (Batches(data, seed=seed, depth=8).at(7) for seed in (1, 1, 2))
    assert torch.equal(first.truth, again.truth)
    assert torch.equal(first.speech, again.speech)
    assert not torch.equal(first.truth, other.truth)


def test_half_a_picture_is_the_same_half_of_everything(data: Dataset) -> None:
    made = presets.TINY
    chosen = Chances(0, 0)
    whole = Batches(data, seed=0, depth=made.depth, patterns=(Pattern(6, 2),), chances=chosen).at(3)
    part = Batches(data, seed=0, depth=made.depth, patterns=(Pattern(6, 2, halved=True),), chances=chosen).at(3)
    assert part.truth.shape[2:] == (made.size[0] // 2, made.size[1] // 2)
    assert len(set(part.corners)) > 1
    noise, (h, w) = objectives.first_noise(made, whole), (made.latent_size[0] // 2, made.latent_size[1] // 2)
    for k, (y, x) in enumerate(part.corners):
        assert y % made.depth == x % made.depth == 0
        assert part.corners[k] == part.corners[k - k % 2], "all frames of a row alike"
        rows, columns = slice(y, y + made.size[0] // 2), slice(x, x + made.size[1] // 2)
        assert torch.equal(part.truth[k], whole.truth[k, :, rows, columns])
        assert torch.equal(part.coarse[k], whole.coarse[k, rows, columns])
        assert torch.equal(part.areas[k], whole.areas[k, :, rows, columns])
        y, x = y // made.patch, x // made.patch
        assert torch.equal(objectives.first_noise(made, part)[k], noise[k, :, y : y + h, x : x + w])


def test_held_out_frames_are_never_taught(data: Dataset) -> None:
    batches = Batches(data, seed=0, depth=8, patterns=(Pattern(4, 1),), chances=Chances(0, 0))
    secret = {frame.tobytes() for frame in np.asarray(data.clips[0].frames[TAUGHT:])}
    for step in range(40):
        shown = ((batches.at(step).truth.permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
        assert not any(np.ascontiguousarray(frame).tobytes() in secret for frame in shown)


def test_voice_and_camera_are_taken_away_sometimes(data: Dataset) -> None:
    deaf = Batches(data, seed=0, depth=8, patterns=(Pattern(1, 2),), chances=Chances(speech=1.0, coarse=0.0)).at(0)
    assert float(deaf.speech.max()) == -10.0
    still = Batches(data, seed=0, depth=8, patterns=(Pattern(1, 2),), chances=Chances(speech=0.0, coarse=1.0)).at(3)
    assert torch.equal(still.coarse[0], still.coarse[1])
    assert not torch.equal(still.truth[0], still.truth[1])


# -- whatever happens to a run ------------------------------------------------------------------------------------------------


def test_a_run_goes_on_as_if_it_had_never_stopped(data: Dataset, tmp_path: Path) -> None:
    """Also past the update at which the critic joins in."""
    whole = run(data, tmp_path / "whole", 6)

    def interrupt(report: Report) -> None:
        if report.updates == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "parts", budget=Budget(updates=6), settings=QUICK, device="cpu", progress=interrupt)
    parts = run(data, tmp_path / "parts", 6)
    assert [one["loss"] for one in parts] == [one["loss"] for one in whole]
    assert "critic" in whole[-1]
    mine, theirs = (weights_of.load(tmp_path / name / "weights").denoiser.state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_other_settings_do_not_go_on(data: Dataset, tmp_path: Path) -> None:
    run(data, tmp_path, 1)
    with pytest.raises(AvatarError, match="other settings .*rate"):
        run(data, tmp_path, 2, rate=1e-5)


def test_a_damaged_checkpoint_is_said(data: Dataset, tmp_path: Path) -> None:
    run(data, tmp_path, 1)
    path = tmp_path / runs.CHECKPOINT
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(AvatarError, match="is damaged"):
        run(data, tmp_path, 2)


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.save(tmp_path, {"updates": 1}, settings={})

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(AvatarError, match="Make room"):
        runs.save(tmp_path, {"updates": 2}, settings={})
    monkeypatch.undo()
    kept = runs.load(tmp_path, settings={})
    assert kept is not None
    assert kept["updates"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [runs.CHECKPOINT]


def test_a_loss_that_is_no_number_stops_in_words(data: Dataset, tmp_path: Path) -> None:
    run(data, tmp_path, 2)
    with pytest.raises(AvatarError, match="no number any more at update"):
        run(data, tmp_path / "wild", 40, rate=1e12, clip=1e12)


def test_a_dataset_of_another_size_is_refused(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(AvatarError, match="collect it anew"):
        run(replace(data, size=(64, 64)), tmp_path, 1)


KILLED = """
import sys
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads(1)
from exporters.training import train as trainer
from tests.test_train import QUICK, data
trainer.CHECKPOINT_SECONDS = 0.0
trainer.train(data.__wrapped__(), __import__("pathlib").Path({out!r}), budget=trainer.Budget(updates=12), settings=QUICK, device="cpu")
"""


def test_a_run_that_is_killed_goes_on(data: Dataset, tmp_path: Path) -> None:
    root, out = str(Path(__file__).parent.parent), tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", KILLED.format(root=root, out=str(out))], env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        until = time.monotonic() + 90
        while not (out / runs.CHECKPOINT).exists() or len((out / runs.LOG).read_text().splitlines()) < 3:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    log = run(data, out, 12)
    assert [one["update"] for one in log] == list(range(12))
    assert [one["loss"] for one in log] == [one["loss"] for one in run(data, tmp_path / "whole", 12)]
