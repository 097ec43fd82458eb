"""Training presets that are driven by condition pictures, and those that read their portrait at every noise level: what they see is what they see
live."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.generators.diffusion.conditions import Ease, painter
from engine.types import AvatarError, Signal, UInt8Array, VideoFrame
from tests.conftest import require
from tests.test_maps import write_network
from tests.test_train import QUICK, data  # noqa: F401

pytestmark = pytest.mark.torch
require("torch")
require("diffusers")
require("accelerate")

import cv2  # noqa: E402
import torch  # noqa: E402

from engine.drivers.maps import Maps, Network  # noqa: E402
from engine.generators.diffusion import networks as weights_of  # noqa: E402
from engine.generators.diffusion import presets, stream  # noqa: E402
from engine.generators.diffusion.attention import Sources  # noqa: E402
from engine.generators.diffusion.presets import Preset  # noqa: E402
from engine.generators.diffusion.sampler import levels  # noqa: E402
from exporters.data import maps, storage  # noqa: E402
from exporters.data.dataset import Dataset  # noqa: E402
from exporters.training import objectives  # noqa: E402
from exporters.training.batches import Batch, Batches, Pattern  # noqa: E402
from exporters.training.judge import Run, generate, sheet, tiled  # noqa: E402
from exporters.training.learner import Learner  # noqa: E402
from exporters.training.train import Budget, Recipe, train  # noqa: E402
from tests.networks import error, seeded  # noqa: E402
from tests.test_switches import EACH, MAGIC, SUMMED  # noqa: E402

SIZE = presets.TINY.size
SAME = 1e-5
FED = replace(EACH, name="fed", condition="densepose")
"""Reads its portrait at every noise level by tokens of a pooled encoder, and no ControlNet."""


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    for made in (SUMMED, MAGIC, FED):
        monkeypatch.setitem(presets.PRESETS, made.name, made)


@pytest.fixture
def mapped(data: Dataset) -> Dataset:  # noqa: F811
    """With pictures by every name, of noise."""
    (clip,) = data.clips
    rng = np.random.default_rng(3)
    names = {name for made in (SUMMED, MAGIC) for name in made.maps}
    held = {name: rng.integers(0, 256, clip.frames.shape).astype(np.uint8) for name in sorted(names)}
    return replace(data, clips=[replace(clip, maps=held)])


def batches(data: Dataset, made: Preset, **more: Any) -> Batches:  # noqa: F811
    return Batches(data, seed=0, depth=made.depth, channels=made.channels, condition=made.condition, maps=made.maps, hears=False, **more)


def rows_of(data: Dataset, made: Preset, rows: int = 3, frames: int = 2) -> Batch:  # noqa: F811
    """Runs of halves of pictures."""
    return batches(data, made, patterns=(Pattern(rows, frames, halved=True),)).at(5)


def learner(networks: weights_of.Networks, **changes: Any) -> Learner:
    settings = replace(QUICK, preset=networks.preset.name, **{"recipe": "teacher", **changes})
    return Learner(settings, SIZE, start=networks, teacher=None, device="cpu")


# -- condition pictures ---------------------------------------------------------------------------------------------------


def test_the_guider_sees_in_training_what_it_sees_live(data: Dataset, tmp_path: Path) -> None:  # noqa: F811
    """The same frame, through a live session's painter and through a data set's batches; four maps, each from another network."""
    made, networks = SUMMED, seeded(SUMMED)
    (clip,) = data.clips
    paths = {name: write_network(tmp_path / f"{name}.onnx", gives=gives) for name, gives in zip(made.maps, (1, 3, 1, 3), strict=True)}
    sources = {name: Network(path, size=SIZE) for name, path in paths.items()}
    held: dict[str, UInt8Array] = {}
    for k, (name, source) in enumerate(sources.items()):
        held[name] = np.stack([255 - source(VideoFrame(frame, 0.0)) // np.uint8(k + 1) for frame in clip.frames[:9]])
    taught = batches(replace(data, clips=[replace(clip, maps=dict(reversed(held.items())))]), made).take(0, 2, 9)
    live = painter(made)
    for k, frame in enumerate(clip.frames[2:9]):
        found = Maps(sources)(VideoFrame(frame, k / 25))
        signal = Signal(k / 25, maps={name: np.asarray(255 - picture // (n + 1), np.uint8) for n, (name, picture) in enumerate(found.items())})
        condition = torch.from_numpy(live(signal, None, Ease()))[None]
        assert torch.equal(condition[0], taught.coarse[k])
        hint, _ = stream.heard_and_seen(networks, condition, None, torch.float32)
        assert error(objectives.scene(networks, taught).hint[k], hint[0]) < SAME


def test_maps_train_and_go_on_with_the_same_alone(mapped: Dataset, tmp_path: Path) -> None:
    place = replace(mapped, folder=tmp_path / "data")
    storage.write_json(place.folder / maps.INDEX, {name: {"waves": "1"} for name in SUMMED.maps})
    quick = replace(QUICK, preset=SUMMED.name, patterns=(Pattern(2, 1, halved=True),))

    def run(updates: int) -> None:
        train(place, tmp_path / "run", budget=Budget(updates=updates), settings=quick, device="cpu")

    run(2)
    served = weights_of.load(tmp_path / "run" / "weights")
    assert any(bool(layer.weight.any()) for layer in served.guider.last())
    assert served.taught is None
    run(3)
    storage.write_json(place.folder / maps.INDEX, {name: {"waves": "2"} for name in SUMMED.maps})
    with pytest.raises(AvatarError, match=r"other settings \(.*maps"):
        run(4)


def test_a_set_without_them_is_one_sentence(mapped: Dataset, tmp_path: Path) -> None:
    (clip,) = mapped.clips
    some = replace(mapped, clips=[replace(clip, maps={name: clip.maps[name] for name in ("depth", "dwpose")})])
    with pytest.raises(AvatarError, match="there is no normal and no semantic; give what makes each with --maps NAME=FILE"):
        train(some, tmp_path, budget=Budget(updates=1), settings=replace(QUICK, preset=SUMMED.name), device="cpu")


# -- a portrait that is read at every noise level ---------------------------------------------------------------------------


def test_the_preview_shows_every_map(mapped: Dataset, tmp_path: Path) -> None:
    """Small, beside each other, in the row between the puppet and what is made of them."""
    (clip,) = mapped.clips
    held = {name: np.full_like(clip.frames, 40 + 50 * k) for k, name in enumerate(SUMMED.maps)}
    taught = batches(replace(mapped, clips=[replace(clip, maps=held)]), SUMMED).take(0, 0, 2)
    none: Any = np.zeros(0)
    sheet(tmp_path / "preview.png", [Run(taught, none, none, none, clip.coarse[:2])], {2: [np.asarray(clip.frames[:2])]}, columns=2)
    picture = cv2.imread(str(tmp_path / "preview.png"))
    assert picture is not None
    assert picture.shape == (4 * SIZE[0], 2 * SIZE[1], 3)
    shown, (h, w) = tiled(taught.coarse.numpy()), (SIZE[0] // 2, SIZE[1] // 2)
    assert np.array_equal(picture[2 * SIZE[0] - 2 : 2 * SIZE[0], : SIZE[1]], shown[0, -2:]), "below the name"
    for frame in shown:
        assert [set(frame[y : y + h, x : x + w].ravel()) for y in (0, h) for x in (0, w)] == [{40}, {90}, {140}, {190}]
    assert np.array_equal(tiled(shown), shown)
    assert tiled(shown[..., :1]).shape == shown.shape


@pytest.mark.parametrize("made", [FED, MAGIC], ids=["fed", "magic"])
def test_every_row_reads_its_portrait_at_its_own_level(mapped: Dataset, made: Preset) -> None:
    """As it would alone; and all of them at one level as if each had been told it."""
    networks = seeded(made)
    batch = rows_of(mapped, made)
    view = objectives.scene(networks, batch)
    assert view.reference == []
    t = torch.tensor([900.0, 900.0, 500.0, 500.0, 20.0, 20.0])
    x = torch.randn(objectives.encode(networks, batch).shape, generator=torch.Generator().manual_seed(0))
    said = objectives.answer(networks, view, x, t)
    bank, tokens = networks.read(batch.portrait, t[::2])
    count = len(bank) // 3
    for row in range(3):
        kept = networks.cached(bank[row * count : (row + 1) * count], tokens)
        mine = slice(2 * row, 2 * row + 2)
        alone = replace(batch, rows=1, truth=batch.truth[mine], coarse=batch.coarse[mine], speech=batch.speech[mine], corners=batch.corners[mine])
        sight = objectives.scene(networks, alone)
        sources = Sources(2, kept.reference, kept.identity)
        wanted = networks.denoise(x[mine], t[mine], sight.hint, sources, sight.window(made.window))
        assert error(said[mine], wanted) < SAME, row
    one = objectives.answer(networks, view, x, torch.tensor(500.0))
    assert error(one, objectives.answer(networks, view, x, torch.full((6,), 500.0))) < SAME
    assert error(one[:2], said[:2]) > 1e-3, "the level matters"


def test_the_rollout_is_what_a_live_stream_does(mapped: Dataset) -> None:
    networks = seeded(MAGIC)
    clip, batch = mapped.clips[0], batches(mapped, MAGIC).take(0, 0, 9)
    seen = Run(batch, clip.points[:9], np.ones((9, 3), np.float32), np.ones((9, *SIZE), np.float32), clip.coarse[:9])
    recipe = stream.Recipe(networks, levels(MAGIC.noise, 2), False, torch.float32, torch.device("cpu"))
    cache = recipe.remember(batch.portrait)
    live = stream.open_stream(recipe, 1, cache)
    stream.seat(live, 0, cache)
    live.active[0] = True
    for i in range(9):
        live.condition[0] = batch.coarse[i][None]
        stream.step(recipe, live)
    trained = generate(networks, seen, 2)[-1]
    assert np.abs(trained.astype(int) - live.out[0, 0].numpy().astype(int)).max() <= 1


@pytest.mark.parametrize("learns", [True, False])
def test_gradients_reach_the_reference_network_where_it_learns(mapped: Dataset, learns: bool) -> None:
    taught = learner(seeded(MAGIC), reference=learns)
    batch = rows_of(mapped, MAGIC)
    taught._backward(batch, 1, 1.0, texture=False)
    assert batch.bank is None
    gradients = {name.split(".")[0] for name, one in taught.networks.named_parameters() if one.grad is not None and bool(one.grad.any())}
    assert gradients == {"denoiser", "guider", "controlnet", *(("reference",) if learns else ())}


def test_what_does_not_change_is_looked_at_once(mapped: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    taught = learner(seeded(MAGIC), reference=True)
    calls, encode = list[int](), taught.networks.encode

    def counted(picture: torch.Tensor) -> torch.Tensor:
        calls.append(len(picture))
        return encode(picture)

    monkeypatch.setattr(taught.networks, "encode", counted)
    batch = rows_of(mapped, MAGIC)
    taught.lesson.read(batch)
    first = batch.latents, batch.tokens, batch.bank
    taught.lesson.read(batch)
    second = batch.latents, batch.tokens, batch.bank
    batch.latents = batch.tokens = batch.bank = None
    assert calls == [1]
    assert first[0] is second[0]
    assert first[1] is second[1] is not None
    plain = objectives.scene(taught.networks, batch)
    batch.latents, batch.tokens, batch.bank = first
    kept, t = objectives.scene(taught.networks, batch), torch.tensor(400.0)
    x = torch.zeros(objectives.encode(taught.networks, batch).shape)
    with torch.no_grad():
        assert error(objectives.answer(taught.networks, kept, x, t), objectives.answer(taught.networks, plain, x, t)) < SAME


@pytest.mark.parametrize(("recipe", "made"), [("consistency", MAGIC), ("matching", MAGIC), ("consistency", presets.TINY), ("matching", presets.TINY)])
def test_a_teacher_reads_the_portrait_by_its_own_network(mapped: Dataset, recipe: Recipe, made: Preset) -> None:
    """Also where the student's does not learn, so that what it reads is kept: another reference network of the teacher, another loss."""
    student, losses = seeded(made), list[float]()
    batch = rows_of(mapped, made)
    with torch.no_grad():
        batch.latents, batch.tokens = student.encode(batch.portrait), student.tokens(batch.portrait)
        batch.bank = None if made.reference_each else student.reread(batch.latents, batch.tokens)
        for stronger in (1.0, 3.0):
            teacher = copy.deepcopy(student)
            teacher.reference.conv_in.weight.mul_(stronger)
            if recipe == "matching":
                objective: Any = objectives.Matching(teacher, steps=2, seed=0)
                objective.follower.denoiser.conv_out.weight.mul_(1.1)
            else:
                objective = objectives.Consistency(teacher, student, seed=0)
            losses.append(float(objective.loss(student, batch, 1)[0][recipe]))
    assert losses[1] != pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("recipe", ["teacher", "consistency", "matching"])
def test_every_recipe_teaches_all_that_reads_and_is_told(mapped: Dataset, tmp_path: Path, recipe: Recipe) -> None:
    weights_of.save(seeded(MAGIC), tmp_path, origin={})
    settings = replace(QUICK, preset=MAGIC.name, recipe=recipe, reference=True)
    taught = Learner(settings, SIZE, start=tmp_path, teacher=None if recipe == "teacher" else tmp_path, device="cpu")
    before = copy.deepcopy(taught.networks)
    told = taught.update([(0, rows_of(mapped, MAGIC, rows=2))], 0, texture=False)
    assert np.isfinite(list(told.values())).all()
    check_learnt(before, taught.networks)


def test_such_a_run_is_judged_published_and_goes_on(mapped: Dataset, tmp_path: Path) -> None:
    """With leading spacing, where one step a frame cannot be."""
    weights_of.save(seeded(MAGIC), tmp_path / "begin", origin={})
    settings = replace(QUICK, preset=MAGIC.name, reference=True, patterns=(Pattern(2, 2, halved=True),))
    for updates in (1, 2):
        judged = train(mapped, tmp_path / "run", budget=Budget(updates=updates), settings=settings, start=tmp_path / "begin", device="cpu")
        assert list(judged.made) == [2]
    check_learnt(weights_of.load(tmp_path / "begin"), weights_of.load(tmp_path / "run" / "weights"))


def check_learnt(before: weights_of.Networks, after: weights_of.Networks) -> None:
    for part in ("denoiser", "controlnet", "reference"):
        was, now = before.parts()[part].state_dict(), after.parts()[part].state_dict()
        assert any(not torch.equal(was[key], now[key]) for key in was), part
