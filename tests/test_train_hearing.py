"""Training presets that listen with a network of their own (the layouts of EchoMimic and Hallo): what frames hear, where, and what stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from benchmarks.media import babble
from engine.types import AvatarError
from tests.conftest import require

pytestmark = pytest.mark.torch
for part in ("torch", "diffusers", "transformers", "accelerate", "onnx", "onnxruntime"):
    require(part)

import torch  # noqa: E402

from engine.generators import load  # noqa: E402
from engine.generators.diffusion import networks as weights_of  # noqa: E402
from engine.generators.diffusion.listening import heard_in  # noqa: E402
from engine.generators.diffusion.networks import Face  # noqa: E402
from engine.generators.diffusion.presets import PRESETS, TINY, Preset  # noqa: E402
from exporters.data.dataset import Clip, Dataset  # noqa: E402
from exporters.data.sound import LOUDEST  # noqa: E402
from exporters.training import hearing, objectives  # noqa: E402
from exporters.training.batches import Batch, Batches, Chances, Pattern  # noqa: E402
from exporters.training.learner import Settings  # noqa: E402
from exporters.training.losses import Weights  # noqa: E402
from exporters.training.train import Budget, Recipe, train  # noqa: E402
from tests import recognisers  # noqa: E402
from tests.clips import acting, person  # noqa: E402
from tests.faces import portrait  # noqa: E402
from tests.networks import seeded  # noqa: E402
from tests.test_audio_driven import ECHO, HALLO_TINY, signals  # noqa: E402

SIZE, FRAMES, TAUGHT, FPS = TINY.size, 60, 44, 25
BOTH = pytest.mark.parametrize("made", [ECHO, HALLO_TINY], ids=["echomimic", "hallo"])
QUICK = Settings(recipe="teacher", patterns=(Pattern(3, 1, halved=True), Pattern(1, 6)), rate=6e-3, average=0.5, weights=Weights(critic=0.1))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The built-in portrait, whose mouth opens with the sound, which is babble."""
    from engine.drivers.portrait import find_face

    pcm = babble(FRAMES / FPS + 0.2, rate=16_000).pcm
    loud = np.array([np.abs(pcm[k * 640 : (k + 1) * 640]).max() for k in range(FRAMES + 1)])

    def speaking(time: float) -> Any:
        return replace(acting(time), mouth=np.array([loud[round(time * FPS)], 0, 0, 0], np.float32))

    frames = np.stack([cv2.resize(one.rgb, SIZE[::-1], interpolation=cv2.INTER_AREA) for one in person(size=(128, 128), count=FRAMES, act=speaking)])
    face = (find_face(portrait()).points * np.array(SIZE[::-1]) / portrait().shape[0]).astype(np.float32)
    faces, kept = np.tile(face, (FRAMES, 1, 1)), np.ones(FRAMES, bool)
    motion = np.linspace(1, 2, FRAMES)[:, None].repeat(16, 1).astype(np.float32)
    sound, speech = np.rint(pcm * LOUDEST).astype(np.int16), np.zeros((FRAMES, 16, 80), np.float32)
    parts = ([(0, TAUGHT)], [(TAUGHT + 4, FRAMES)])
    clip = Clip("clip", frames, frames, np.zeros_like(frames), faces, speech, motion, faces, kept, *parts, sound=sound)
    return Dataset(tmp_path_factory.mktemp("set"), SIZE, FPS, frames[0], [(20.0, frames[9])], [clip], {"key": "babble"})


def begun(made: Preset, folder: Path, monkeypatch: pytest.MonkeyPatch, *, seed: int = 0) -> Path:
    """Weights as an import leaves them: with a listening network, and Hallo's with a recogniser."""
    monkeypatch.setitem(PRESETS, made.name, made)
    networks = seeded(made, seed)
    if made.image_encoder == "face":
        networks.recogniser = folder / "faces.onnx"
        networks.recogniser.write_bytes(recognisers.model(length=512).SerializeToString())
    weights_of.save(networks, folder / "begin", origin={"made_by": "a test"})
    return folder / "begin"


def batches(data: Dataset, networks: weights_of.Networks, **more: Any) -> Batches:
    made = networks.preset
    heard, face = hearing.heard(data, networks), hearing.face_in(data, networks)
    return Batches(data, seed=0, channels=made.channels, depth=made.depth, condition=made.condition, heard=heard, face=face, **more)


@torch.no_grad()
def loss(data: Dataset, networks: weights_of.Networks) -> float:
    """Of the same pictures at the same noise levels."""
    asked = batches(data, networks, patterns=QUICK.patterns, chances=Chances(0, 0))
    judge = objectives.Denoise(QUICK.weights, seed=1)
    return sum(float(term) for k in range(3) for term in judge.loss(networks, asked.at(1000 + k), k)[0].values())


@pytest.mark.parametrize(("made", "recipe"), [(ECHO, "matching"), (HALLO_TINY, "consistency")], ids=["echomimic", "hallo"])
def test_it_learns_and_its_weights_listen_as_before_and_speak(
    made: Preset, recipe: Recipe, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher, and a few-step student of it."""
    begin = begun(made, tmp_path, monkeypatch)
    before = weights_of.load(begin)

    def taught(recipe: Recipe, updates: int, start: Path) -> Path:
        settings = replace(QUICK, preset=made.name, recipe=recipe)
        teacher = None if recipe in ("teacher", "appearance") else start
        train(data, tmp_path / recipe, budget=Budget(updates=updates), settings=settings, start=start, teacher=teacher, device="cpu")
        return tmp_path / recipe / "weights"

    teacher = taught("teacher", 8, begin)
    assert loss(data, weights_of.load(teacher)) < 0.9 * loss(data, before)
    student = taught(recipe, 1, teacher)
    after = weights_of.load(student)
    assert before.listener is not None
    assert after.listener is not None
    assert hearing.key_of(after.listener) == hearing.key_of(before.listener)
    moved = {name.split(".")[0] for name, value in after.state_dict().items() if not torch.equal(value, before.state_dict()[name])}
    assert moved == ({"denoiser", "guider"} | ({"speech"} if made is HALLO_TINY else set()))
    assert (after.recogniser is not None) is (made is HALLO_TINY)
    generator: Any = load("diffusion", weights=student, mode="eager")
    state = generator.allocate(1)
    generator.admit(state, 0, generator.prepare(portrait()))
    frames = [generator.step(state, [[one]])[0][0] for one in signals(babble(0.4, rate=16_000).pcm, 8, made.fps)]
    assert all(frame.rgb.std() > 1 for frame in frames)


@BOTH
def test_frames_hear_their_own_sound_which_is_listened_to_once(made: Preset, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = weights_of.load(begun(made, tmp_path, monkeypatch, seed=3))
    hearing.prepare(data, networks)
    found = hearing.heard(data, networks)
    assert found is not None
    assert data.clips[0].sound is not None
    assert networks.listener is not None
    pcm = data.clips[0].sound[: FRAMES * 640].astype(np.float32) / LOUDEST
    want = heard_in(networks.listener, pcm, replace(made, fps=FPS))[:FRAMES].numpy()
    assert np.abs(found[0] - want).max() < 2e-3 * np.abs(want).max()
    monkeypatch.setattr(hearing, "heard_in", lambda *_: pytest.fail("it was listened to already"))
    hearing.prepare(data, networks)
    batch = batches(data, networks, chances=Chances(0, 0)).take(0, 5, 9)
    assert np.abs(batch.speech.numpy() - want[5:9]).max() < 2e-3 * np.abs(want).max()


@BOTH
def test_a_long_sound_goes_in_pieces_that_overlap(made: Preset, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = seeded(made)
    assert data.clips[0].sound is not None
    asked = list[int]()

    def spy(network: Any, pcm: Any, preset: Preset) -> Any:
        asked.append(len(pcm) // 640)
        return heard_in(network, pcm, preset)

    monkeypatch.setattr(hearing, "heard_in", spy)
    monkeypatch.setattr(hearing, "PIECE", 1)
    monkeypatch.setattr(hearing, "AROUND", 1)
    pieces = list(hearing._pieces(data.clips[0].sound, networks, count=FRAMES, fps=FPS))
    assert [len(piece) for piece in pieces] == [25, 25, 10]
    assert asked == [50, 60, 35]


def test_masks_of_parts_are_the_parts_of_masks() -> None:
    made = HALLO_TINY
    coded = [torch.arange(h * w, dtype=torch.float32).view(1, h, w).expand(3, -1, -1) for h, w in made.level_sizes]
    face = Face(None, torch.cat([one.flatten(1) for one in coded], 1)[None])
    (height, width), corners = made.size, ((8, 16), (8, 16), (0, 24), (0, 24))
    truth = torch.zeros(4, 3, height // 2, width // 2)
    batch = Batch(2, 2, truth, truth, truth, truth, truth, truth, corners=corners, face=face)
    got = objectives.branches(made, batch)
    assert got is not None
    for row, (y, x) in enumerate(((8, 16), (0, 24))):
        want = []
        for level, one in enumerate(coded):
            px = made.patch << level
            want.append(one[:, y // px : y // px + height // 2 // px, x // px : x // px + width // 2 // px].flatten(1))
        assert torch.equal(got[row], torch.cat(want, 1))
    assert objectives.branches(ECHO, batch) is None


def test_the_mask_stays_where_the_portraits_face_is_and_some_rows_are_told_nothing(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = weights_of.load(begun(ECHO, tmp_path, monkeypatch))
    hearing.prepare(data, networks)
    made = batches(data, networks, patterns=(Pattern(8, 2),), chances=Chances(speech=1.0, coarse=0.0))
    seen = [made.at(k) for k in range(12)]
    assert {tuple(one.coarse.shape[1:]) for one in seen} == {(*SIZE, 1)}
    assert seen[0].coarse.unique().tolist() == [0, 255]
    assert all(torch.equal(one.coarse, seen[0].coarse) for one in seen)
    untold = torch.cat([one.unguided for one in seen if one.unguided is not None])
    assert 0.02 < float(untold.float().mean()) < 0.25, "few, whatever the chances: there is always some sound live"
    batch = next(one for one in seen if one.unguided is not None and one.unguided.any())
    view, row = objectives.scene(networks, batch), int(torch.nonzero(batch.unguided)[0])
    assert view.spoken is not None
    assert not view.spoken[row].any()
    assert not view.hint[row].any()
    assert view.spoken[~batch.unguided].abs().sum((1, 2)).min() > 0  # type: ignore[operator]


def test_what_cannot_be_heard_is_refused(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = begun(ECHO, tmp_path, monkeypatch)
    other = tmp_path / "other"
    weights_of.save(seeded(ECHO, 7), other, origin={})
    settings = replace(QUICK, preset=ECHO.name)

    def run(data: Dataset, **more: Any) -> None:
        train(data, tmp_path / "run", budget=Budget(updates=1), device="cpu", **{"settings": settings, "start": begin, **more})

    with pytest.raises(AvatarError, match="holds no sound, which 'tiny_echo' listens to; collect it again"):
        run(replace(data, clips=[replace(data.clips[0], sound=None)]))
    with pytest.raises(AvatarError, match="training leaves as it is; give weights that have one with --start"):
        run(data, start=None)
    with pytest.raises(AvatarError, match="listens with another network"):
        run(data, settings=replace(settings, recipe="consistency"), teacher=other)
