"""The path of a large generator at a small size: published layout -> import -> teacher -> student -> live, with painted conditions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.conditions.place import Anchor, place
from engine.generators import load
from engine.generators.diffusion.layout import Condition
from engine.persona import demo_portrait
from engine.pose import rotation
from engine.types import AvatarError, FloatArray, Signal, still_motion
from tests.checkpoints import SMALL, _installed, _once, _small, given_imported  # noqa: F401
from tests.conftest import require

pytestmark = pytest.mark.torch
require("torch")
require("diffusers")
require("transformers")
require("accelerate")

import torch  # noqa: E402

from engine.drivers.rigid import MEAN_RIGID, RIGID  # noqa: E402
from engine.generators.diffusion import networks as weights_of  # noqa: E402
from engine.generators.diffusion.temporal import MotionModule  # noqa: E402
from exporters.data.dataset import Clip, Dataset  # noqa: E402
from exporters.data.painted import body_of, painted  # noqa: E402
from exporters.training import memory, objectives, runs  # noqa: E402
from exporters.training.batches import Batches, Chances, Pattern  # noqa: E402
from exporters.training.learner import Learner, Settings  # noqa: E402
from exporters.training.train import Budget, train  # noqa: E402

SIDE, FRAMES = 64, 24
PATTERNS = (Pattern(2, 1), Pattern(1, 5))
SETTINGS = Settings(preset=SMALL.name, patterns=PATTERNS, rate=1e-4, average=0.5, reference=True, steps=2)


def head(time: float, anchor: FloatArray) -> FloatArray:
    """[478, 3] the mean head's look-alike `anchor` (unit widths about 0), turned and shifted a little."""
    turned: FloatArray = (anchor @ rotation(12 * np.sin(time), 4 * np.cos(time), 0.0).T).astype(np.float32)
    return turned


@pytest.fixture(scope="module")
def data() -> Dataset:
    """A head of blobs that turns before shoulders that stand still, 64 px; what is seen is what was tracked."""
    rng = np.random.default_rng(3)
    face = rng.normal(0, 0.2, (478, 3)).astype(np.float32)
    face[RIGID] = MEAN_RIGID
    faces = np.stack([26 * head(t / 4, face)[:, :2] + (32, 26) for t in range(FRAMES)]).astype(np.float32)
    body = np.zeros((FRAMES, 33, 3), np.float32)
    body[:, 11], body[:, 12] = (52, 56, 1), (12, 56, 1)
    y, x = np.mgrid[:SIDE, :SIDE]
    truth = np.stack([np.stack([90 + 60 * np.sin((x - one[1, 0]) / 9), 120 + 0.0 * x, 60 + y], -1) for one in faces]).clip(0, 255).astype(np.uint8)
    coarse = np.roll(truth, 2, axis=2)
    quiet, motion = np.full((FRAMES, 16, 80), -10.0, np.float32), np.linspace(0, 1, FRAMES)[:, None].repeat(16, 1).astype(np.float32)
    kept = np.ones(FRAMES, bool)
    clip = Clip("head", truth, coarse, np.zeros_like(coarse), faces, quiet, motion, faces, kept, [(0, 17)], [(18, FRAMES)], body)
    return Dataset(Path("nowhere"), (SIDE, SIDE), 25, truth[0], [], [clip], {"key": "head"})


def batches(data: Dataset, condition: Condition = "skeleton", **more: Any) -> Batches:
    return Batches(data, seed=0, channels=3, depth=SMALL.depth, patterns=PATTERNS, condition=condition, **more)


# -- painted conditions -----------------------------------------------------------------------------------------------------


def test_a_painted_condition_lies_on_the_picture_it_belongs_to(data: Dataset) -> None:
    clip, made = data.clips[0], batches(data).take(0, 2, 6)
    assert tuple(made.coarse.shape) == (4, SIDE, SIDE, 3)
    for k, picture in enumerate(made.coarse.numpy()):
        for point in clip.face[2 + k][[61, 291, 33, 263]].astype(int):  # corners of lips and eyes: dots of the 68
            assert (picture[point[1], point[0]] == 255).all()
        assert picture[56, 12].any(), "a shoulder"
        assert not picture[4, 4].any(), "on black"
    assert not torch.equal(made.coarse[0], made.coarse[3])
    marks = batches(data, "landmarks").take(0, 2, 6).coarse
    assert marks.any()
    assert not torch.equal(marks, made.coarse)
    dots = batches(data, "dots").take(0, 2, 6).coarse
    assert tuple(dots.shape) == (4, SIDE, SIDE, 6)
    assert dots[..., 3:].any(), "the mouth"


def test_without_speech_no_condition_is_taken_away(data: Dataset) -> None:
    always = Chances(speech=0.0, coarse=1.0)
    mute, hearing = (batches(data, chances=always, hears=hears).at(1) for hears in (False, True))
    assert not torch.equal(mute.coarse[0], mute.coarse[-1])
    assert torch.equal(hearing.coarse[0], hearing.coarse[-1])


def test_training_paints_where_a_live_session_does(data: Dataset) -> None:
    """The clip's crop of a larger camera picture: the body's place in it follows from the face's, and the live rule puts both where they are."""
    clip, (width, height) = data.clips[0], (320, 240)
    corner, larger = np.array([70.0, 40.0], np.float32), 2.0  # the crop in the camera's picture
    unit = np.array([width, height], np.float32)
    whole = np.concatenate([(clip.face * larger + corner) / unit, np.zeros((FRAMES, 478, 1), np.float32)], 2)
    body = np.zeros((FRAMES, 33, 4), np.float32)
    assert clip.body is not None
    body[..., :2], body[..., 3] = (clip.body[..., :2] * larger + corner) / unit, clip.body[..., 2]
    body[5] = np.nan
    found = body_of({"size": np.array([height, width]), "face": whole, "body": body}, clip.face, clip.kept)
    assert found[4, 11:13] == pytest.approx(clip.body[4, 11:13], abs=0.01)
    assert not found[5].any(), "nobody was seen"
    anchor = Anchor(
        np.concatenate([clip.face[0] / SIDE, np.zeros((478, 1), np.float32)], 1),
        np.concatenate([clip.body[0, :, :2] / SIDE, np.zeros((33, 1), np.float32), clip.body[0, :, 2:]], 1),
    )
    # A flat face has no depth to fit, so only a still one tells: the neutral.
    live = place(Signal(0.0, face=whole[0], body=body[0], aspect=width / height, motion=None), anchor, (SIDE, SIDE))
    assert (live.face_from, live.body_from) == ("driver", "head")
    assert live.face == pytest.approx(clip.face[0], abs=0.5)
    assert live.body[11:13] == pytest.approx(found[0, 11:13], abs=0.5)


def test_a_frame_without_a_face_is_black(data: Dataset) -> None:
    cases: list[tuple[Condition, int]] = [("skeleton", 3), ("dots", 6)]
    clip = replace(data.clips[0], face=np.full((1, 478, 2), np.nan, np.float32))
    for condition, channels in cases:
        picture = painted(condition, clip, range(1), (16, 16))
        assert picture.shape == (1, 16, 16, channels)
        assert not picture.any()


# -- from published weights to a live student -------------------------------------------------------------------------------------


def log_of(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / runs.LOG).read_text().splitlines()]


def test_imported_weights_become_a_teacher_and_a_live_student(data: Dataset, imported: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    train(data, teacher, budget=Budget(updates=2), settings=replace(SETTINGS, recipe="teacher"), start=imported, device="cpu")
    log = log_of(teacher)
    assert set(log[0]) == {"update", "loss", "gradient", "latents"}, "an autoencoder's latents are compared as they are"
    student = tmp_path / "student"
    train(data, student, budget=Budget(updates=3), settings=SETTINGS, start=teacher / "weights", device="cpu")
    assert {"square", "critic"} <= set(log_of(student)[-1])
    assert all(np.isfinite(list(one.values())).all() for out in (teacher, student) for one in log_of(out))
    was, became, last = (weights_of.load(folder).state_dict() for folder in (imported, teacher / "weights", student / "weights"))
    for part in ("denoiser.conv_in.weight", "guider.conv_in.weight", "reference.conv_in.weight"):
        assert not torch.equal(was[part], became[part]), part
        assert not torch.equal(became[part], last[part]), part
    for part, value in was.items():
        if part.startswith(("autoencoder.", "image.")):
            assert torch.equal(value, last[part]), part
    held = torch.load(student / runs.CHECKPOINT, weights_only=True)
    assert not any("autoencoder" in name or "image" in name for name in (*held["module"], *held["average"])), "what never changes is not kept twice"
    assert not (student / "weights" / "assets.npz").exists(), "no puppet was taught"
    generator: Any = load("diffusion", weights=student / "weights", steps=2, mode="eager")
    state = generator.allocate(1)
    generator.admit(state, 0, generator.prepare(demo_portrait()))
    moved = [still_motion(), replace(still_motion(), head=np.array([20, 0, 0, 0.2, 0, 0], np.float32))]
    frames = [generator.step(state, [[Signal(k / 25, motion=motion)]])[0][0].rgb for k, motion in enumerate(moved)]
    assert all(len(np.unique(frame)) > 10 for frame in frames)
    assert not np.array_equal(*frames)


def learner(start: Path, **changes: Any) -> Learner:
    return Learner(replace(SETTINGS, **changes), (SIDE, SIDE), start=start, teacher=None, device="cpu")


def gradients(one: Learner, data: Dataset, turn: int) -> dict[str, Any]:
    """Of a batch, without a step."""
    one._backward(batches(data).at(turn), turn, 1.0, texture=False)
    return {name: parameter.grad for name, parameter in one.networks.named_parameters() if parameter.grad is not None}


def test_what_is_computed_again_gives_the_same_gradients(data: Dataset, imported: Path) -> None:
    kept, again = (gradients(learner(imported, checkpointing=on), data, 1) for on in (False, True))
    assert kept.keys() == again.keys()
    for name, value in kept.items():
        assert torch.allclose(value, again[name], rtol=1e-4, atol=1e-7), name


def test_each_stage_learns_its_part(data: Dataset, imported: Path) -> None:
    """Animate Anyone's: single pictures first, then how they follow each other."""
    motion = ("motion_modules", "denoiser.mid_block.motion_modules")
    spatial, temporal = (set(gradients(learner(imported, learn=learn, recipe="teacher"), data, 1)) for learn in ("spatial", "temporal"))
    assert temporal
    assert all("motion_modules" in name for name in temporal), motion
    assert not any("motion_modules" in name for name in spatial)
    assert {name.split(".")[0] for name in spatial} == {"denoiser", "guider", "reference"}
    frozen = learner(imported, learn="temporal", recipe="teacher")
    assert frozen.average.denoiser.conv_in.weight is frozen.networks.denoiser.conv_in.weight, "what never changes is there once"
    one = next(module for module in frozen.networks.denoiser.modules() if isinstance(module, MotionModule))
    assert all(any(parameter is mine for mine in frozen.optimisers["generator"].param_groups[0]["params"]) for parameter in one.parameters())


def test_a_reference_that_stays_is_read_once(data: Dataset, imported: Path) -> None:
    """With the image encoder's token, and to the same end."""
    one, batch = learner(imported, reference=False), batches(data).at(1)
    asked = objectives.scene(one.networks, batch)
    one.lesson.read(batch)
    bank = batch.bank
    assert batch.bank is not None
    one.lesson.read(batch)
    assert batch.bank is bank
    kept = objectives.scene(one.networks, batch)
    for mine, theirs in zip((*kept.reference, *kept.identity), (*asked.reference, *asked.identity), strict=True):
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(mine, theirs, strict=True))
    assert kept.identity


def test_bf16_stays_close(data: Dataset, imported: Path) -> None:
    terms = [
        learner(imported, precision=precision, recipe="teacher")._backward(batches(data).at(1), 1, 1.0, texture=False) for precision in ("no", "bf16")
    ]
    assert terms[1]["loss"] == pytest.approx(terms[0]["loss"], rel=0.05)
    assert terms[1]["loss"] != terms[0]["loss"], "the arithmetic is another"


def test_weights_of_another_preset_are_refused(imported: Path) -> None:
    with pytest.raises(AvatarError, match=f"are for the preset '{SMALL.name}', not 'compact'"):
        learner(imported, preset="compact")


def test_a_teacher_of_other_latents_is_refused(imported: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, recipe="matching")
    Learner(settings, (SIDE, SIDE), start=imported, teacher=imported, device="cpu")
    other = weights_of.load(imported)
    with torch.no_grad():
        next(other.autoencoder.parameters()).mul_(1.01)
    weights_of.save(other, tmp_path, origin={})
    with pytest.raises(AvatarError, match="has another autoencoder than the student; start both from the same import"):
        Learner(settings, (SIDE, SIDE), start=imported, teacher=tmp_path, device="cpu")


def test_nothing_to_begin_with_is_refused_where_latents_are_another_network_s() -> None:
    with pytest.raises(AvatarError, match="goes on from imported weights, whose autoencoder it keeps"):
        Learner(SETTINGS, (SIDE, SIDE), start=None, teacher=None, device="cpu")


def test_only_large_networks_are_computed_again(imported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = weights_of.load(imported)
    assert not memory.recomputed(networks)
    monkeypatch.setattr(memory, "LARGE", 1000)
    assert memory.recomputed(networks)
