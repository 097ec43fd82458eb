"""From video to training data: the pairs fit, bad frames and bad files are told, and nothing half done is taken for whole."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pytest

import avatar
from engine.composite import Fit
from engine.drivers.resample import RATE
from engine.drivers.rigid import RIGID
from engine.drivers.speech import LOG_FLOOR
from engine.drivers.tracker import FaceTracker
from engine.generators.puppet.assets import PuppetAssets
from engine.generators.puppet.generator import Puppet
from engine.generators.puppet.look import TERMS
from engine.types import AvatarError, Signal, UInt8Array, VideoFrame, still_motion
from exporters.data import look as looks
from exporters.data import pairs, plates, stages, storage
from exporters.data.coarse import Coarse
from exporters.data.dataset import Dataset, collect, open_dataset
from exporters.data.filters import REASONS
from tests.clips import acting, film, person
from tests.conftest import require_for
from tests.faces import scene
from tests.test_media import disk_of, tone, write_clip, write_wav

SIZE = (128, 112)
BLURRED = range(12, 15)
A, B = 52, 24
"""Frames of the two clips."""


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two clips of one person: in the second, silent one they sit further away and to the side."""
    folder = tmp_path_factory.mktemp("videos")
    frames = person(count=A)

    def soften(rgb: UInt8Array, number: int) -> UInt8Array:
        return np.asarray(cv2.GaussianBlur(rgb, (0, 0), 4.0), np.uint8) if number in BLURRED else rgb

    def away(rgb: UInt8Array, number: int) -> UInt8Array:
        wide = np.full((288, 384, 3), 90, np.uint8)
        wide[68:268, 150:350] = cv2.resize(rgb, (200, 200), interpolation=cv2.INTER_AREA)
        return wide

    film(folder / "a.mp4", frames, change=soften)
    film(folder / "b clip.mp4", frames[:B], change=away, sound=False)
    (folder / "notes.txt").write_text("not a clip")
    return folder


@pytest.fixture(scope="module")
def made(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return collect([videos], tmp_path_factory.mktemp("made") / "set", size=SIZE, least=2.0)


# -- what is in it --------------------------------------------------------------------------------------------------------


def test_every_array_has_its_shape_and_pictures_stay_on_the_disk(made: Dataset) -> None:
    assert (made.size, made.fps, made.portrait.shape) == (SIZE, 25, (*SIZE, 3))
    assert [clip.name for clip in made.clips] == ["a", "b_clip"]
    for clip, count in zip(made.clips, (A, B), strict=True):
        assert len(clip.kept) == pytest.approx(count, abs=1)
        count = len(clip.kept)
        for pictures in (clip.frames, clip.coarse):
            assert isinstance(pictures, np.memmap)
            assert (pictures.shape, pictures.dtype) == ((count, *SIZE, 3), np.uint8)
        assert (clip.speech.shape, clip.motion.shape, clip.face.shape) == ((count, 16, 80), (count, 16), (count, 478, 2))
        assert clip.sound is not None
        assert np.isnan(clip.face[~clip.kept]).all()
        assert np.isfinite(clip.face[clip.kept]).all()
    assert made.views, "the head turned by 12 degrees"
    assert {view.shape for _, view in made.views} == {(*SIZE, 3)}
    assert all(min(abs(abs(yaw) - 12), abs(abs(yaw) - 24)) <= 5 for yaw, _ in made.views)


def test_the_end_of_each_clip_is_held_out_a_window_later(made: Dataset) -> None:
    for clip in made.clips:
        train = np.concatenate([np.arange(*run) for run in clip.train])
        test = np.concatenate([np.arange(*run) for run in clip.held_out])
        assert clip.kept[train].all()
        assert clip.kept[test].all()
        assert len(test) == round(0.2 * clip.kept.sum())
        assert test.min() - train.max() > 16
    assert len(made.clips[0].train) == 2, "the blurred frames part it"


def test_blurred_frames_are_dropped_and_told(made: Dataset) -> None:
    dropped = np.flatnonzero(~made.clips[0].kept)
    assert set(BLURRED) <= set(dropped.tolist()) <= set(range(BLURRED.start - 1, BLURRED.stop + 1))
    assert made.report["dropped"] == {"blurred": len(dropped)}
    assert made.report["clips"][0]["dropped"] == {"blurred": len(dropped)}
    assert made.report["clips"][0]["spans"] == [[dropped[0], dropped[-1] + 1, "blurred"]]
    assert f"a.mp4: {A - len(dropped)} of {A} frames kept" in made.report["sentences"][0]
    assert any("no sound" in sentence for sentence in made.report["sentences"])


def test_the_portrait_is_a_frame_at_rest_before_the_held_out_ones(made: Dataset) -> None:
    held = storage.read_arrays(made.folder / "reference.npz")
    clip = made.clips[0]
    assert str(held["clip"]) == clip.name, "the larger face in the longer clip"
    frame = int(held["frame"])
    assert clip.kept[frame]
    assert frame < clip.held_out[0][0]
    assert np.array_equal(clip.frames[frame], made.portrait)
    assert np.array_equal(storage.read_arrays(made.folder / "clips" / clip.name / "rest.npz")["rect"], held["rect"])
    assert np.abs(clip.motion[frame, :6]).max() < 0.05, "the reference is the neutral"
    assert clip.motion[frame, 12] < 0.03, "shut lips"
    picture = cv2.cvtColor(cv2.imread(str(made.folder / "scene.png")), cv2.COLOR_BGR2RGB)
    x, y, width, height = held["rect"]
    assert width / height == pytest.approx(SIZE[1] / SIZE[0], rel=0.02)
    inside = cv2.resize(Fit.of((x, y, width, height), picture.shape[:2]).cut(picture), (SIZE[1], SIZE[0]), interpolation=cv2.INTER_AREA)
    assert np.array_equal(inside, made.portrait)


def test_coarse_and_real_heads_lie_on_each_other_in_every_clip(made: Dataset) -> None:
    tracker = FaceTracker()
    for clip in made.clips:
        apart = []
        for k in np.flatnonzero(clip.kept)[::5]:
            seen = tracker.detect(np.ascontiguousarray(clip.coarse[k])) and tracker.detect(np.ascontiguousarray(clip.coarse[k]))
            assert seen
            apart.append((seen[0][:, :2] * (SIZE[1], SIZE[0]) - clip.face[k])[RIGID].mean(0))
        assert np.abs(np.mean(apart, 0)).max() < 1.0, "place"
        assert np.linalg.norm(apart, axis=1).max() < 2.5
    tracker.close()


def test_shoulders_that_stand_still_do_so_in_the_puppet_s_frames(made: Dataset) -> None:
    speaking, _ = made.report["clips"]
    assert speaking["coarse_db"] > 23.0, "a tracker reads a turning head as a leaning body: 19 dB if it is believed"


def test_a_person_who_is_the_puppet_teaches_it_nothing(made: Dataset) -> None:
    assert made.assets is None
    assert list(made.stages) == ["puppet"]
    assert made.stages["puppet"].crop_db > 20.0
    assert any("teaches the puppet nothing" in sentence for sentence in made.report["sentences"])


def test_the_training_part_teaches_the_puppet_and_both_stages_are_told(made: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, wall = made.clips[0], np.full((*SIZE, 3), 40, np.uint8)
    shown: list[int] = []

    def learn(portrait: UInt8Array, lesson: plates.Lesson, *, progress: Any) -> PuppetAssets:
        assert np.array_equal(portrait, made.portrait)
        shown.extend(int(picture[0, 0, 0]) for picture in lesson.pictures)
        return plates.unmoved(wall)

    monkeypatch.setattr(plates, "learn", learn)
    motion = replace(still_motion(), head=np.array([12, 0, 0, 0, 0, 0], np.float32))
    count = len(clip.kept)
    real = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, *SIZE, 3))
    part = stages.Part(
        real, np.tile(clip.face[0], (count, 1, 1)), [motion] * count, [still_motion()] * count, list(range(20)), list(range(40, count))
    )
    plain = Coarse(made.portrait, clip.face[0], still_motion())
    assets = stages.learnt(tmp_path / "assets.npz", made.portrait, part, plain, lambda what, done, total: None).assets
    assert shown == list(range(20)), "the training part alone"
    assert assets is not None
    taught = plain.with_assets(assets)
    assert taught.acted(part.motions, np.zeros(count, np.float32), part.faces, real) is part.motions, "as they come live"
    puppet = Puppet(SIZE)
    state = puppet.allocate(1)
    puppet.admit(state, 0, puppet.prepare(made.portrait, assets))
    live = puppet.step(state, [[Signal(0.0, motion=motion)]])[0]
    assert live is not None
    assert np.array_equal(taught.frame(motion), live[0].rgb)
    assert not np.array_equal(taught.frame(motion), plain.frame(motion))
    told = stages.figures([part], plain, taught)
    assert list(told) == list(stages.STAGES)
    assert told["assets"] == told["plate"] != told["puppet"]
    assert "held-out frames" in stages.in_words(told)


def test_frames_to_train_on_are_shown_with_a_look_learnt_elsewhere(made: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, count = made.clips[0], len(made.clips[0].kept)
    a, b = (np.full((TERMS, *SIZE, 3), value, np.float16) for value in (1, 2))
    monkeypatch.setattr(plates, "learn", lambda portrait, lesson, progress: plates.unmoved(np.zeros((*SIZE, 3), np.uint8)))
    monkeypatch.setattr(looks, "learn", lambda assets, study, progress: looks.Learnt(replace(assets, look=a + b), [(0, a), (6, b)]))
    train = list(range(7, 30))
    acted = [None if k in (7, 10) else still_motion() for k in range(count)]  # the study begins at frame 8 and lacks frame 10
    part = stages.Part(clip.frames, np.tile(clip.face[0], (count, 1, 1)), acted, acted, train, list(range(32, count)))
    plain = Coarse(made.portrait, clip.face[0], still_motion())
    for _ in range(2):  # learnt, then read
        found = stages.learnt(tmp_path / "assets.npz", made.portrait, part, plain, lambda what, done, total: None)
        assert found.assets is not None
        assert [start for start, _ in found.apart] == [8, 15]
        taught = plain.with_assets(found.assets)
        by = stages.unlearnt(taught, part, found.apart)
        shown = {k: by(k).assets for k in (7, 8, 14, 15, 29)}
        assert [float(one.look[0, 0, 0, 0]) for one in shown.values() if one is not None] == [1, 1, 1, 2, 2]
        assert by(3) is by(31) is by(40) is taught


def test_a_set_that_is_not_whole_keeps_what_it_still_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / storage.TRACKS).mkdir()
    (tmp_path / storage.APART).write_bytes(b"needed")
    with monkeypatch.context() as broken:
        broken.setattr(storage, "write_json", lambda path, held: (_ for _ in ()).throw(AvatarError("the disk is full")))
        with pytest.raises(AvatarError, match="disk is full"):
            storage.finish(tmp_path, {"videos": []})
    assert (tmp_path / storage.APART).exists()
    storage.finish(tmp_path, {"videos": []})
    assert not (tmp_path / storage.APART).exists()
    assert json.loads((tmp_path / storage.INDEX).read_text())["files"] == {}


def test_a_clip_that_teaches_nothing_leaves_the_puppet_as_it_is(made: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plates, "learn", lambda portrait, lesson, progress: None)
    plain = cast(Any, _Blank(made.portrait))
    part = stages.Part(made.clips[0].frames, made.clips[0].face, [still_motion()] * 20, [still_motion()] * 20, list(range(15)), [16, 17])
    assert stages.learnt(tmp_path / "assets.npz", made.portrait, part, plain, lambda what, done, total: None).assets is None
    assert stages.read(tmp_path / "assets.npz") is None, "and it is not learnt again"
    told = stages.figures([part], plain, plain)
    assert list(told) == ["puppet"]
    assert "nothing" in stages.in_words(told)


def test_nothing_lags(made: Dataset) -> None:
    clip = made.clips[0]
    yaw = np.array([acting(k / 25).head[0] for k in range(len(clip.kept))])
    kept = np.flatnonzero(clip.kept)[3:-3]

    def agreement(shift: int) -> float:
        return float(np.corrcoef(clip.motion[kept + shift, 0], yaw[kept])[0, 1])

    assert max(range(-3, 4), key=agreement) == 0
    assert agreement(0) > 0.97

    def apart(shift: int) -> float:
        upper = slice(0, SIZE[0] // 2)
        return float(np.mean([np.abs(clip.coarse[k + shift, upper].astype(int) - clip.frames[k, upper]).mean() for k in kept]))

    assert apart(0) < min(apart(-1), apart(1)) - 0.1


def test_a_blink_of_three_frames_is_one(made: Dataset) -> None:
    clip = made.clips[0]
    shut = [k for k in range(len(clip.kept)) if acting(k / 25).eyes[0] == 0.0]
    assert shut
    middle = shut[1]
    eyes = clip.motion[:, 6:8].mean(1)
    assert eyes[middle] < 0.35
    assert eyes[middle - 5] > 0.7
    assert eyes[middle + 5] > 0.7


def test_sound_stands_at_its_frames_and_silence_reads_as_silence(made: Dataset) -> None:
    speaking, silent = made.clips
    assert np.all(silent.speech == LOG_FLOOR)
    loud = 10 ** (speaking.speech[:, 9].max(1) / 2)  # the last row's window of 25 ms ends 80 ms after the frame, so this one lies on it
    agreement = {}
    for shift in (-0.02, -0.01, 0.0, 0.01, 0.02):
        voice = [max(0.0, np.sin(9.0 * (k / 25 + shift))) for k in range(len(loud))]
        agreement[shift] = float(np.corrcoef(loud[:-3], voice[:-3])[0, 1])
    assert max(agreement, key=lambda shift: agreement[shift]) == 0.0
    assert agreement[0.0] > 0.995
    assert speaking.sound is not None
    assert silent.sound is not None
    assert len(silent.sound) == 0
    assert len(speaking.sound) == pytest.approx(A / 25 * RATE, abs=0.1 * RATE)
    at = np.arange(len(speaking.sound)) / RATE
    wave = 0.3 * np.sin(2 * np.pi * 180 * at) * np.maximum(0.0, np.sin(9.0 * at))  # as `film` speaks
    assert float(np.corrcoef(speaking.sound, wave)[0, 1]) > 0.98, "not a quarter of a millisecond off"


def test_a_set_from_before_sound_was_kept_opens_and_gets_it_when_collected_again(made: Dataset, videos: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made.folder, tmp_path / "set")
    index = json.loads((folder / "dataset.json").read_text())
    for name in [name for name in index["files"] if name.endswith("sound.npz")]:
        (folder / name).unlink()
        del index["files"][name]
    (folder / "dataset.json").write_text(json.dumps(index))
    assert [clip.sound for clip in open_dataset(folder).clips] == [None, None]
    again = collect([videos], folder, size=SIZE, least=2.0)
    for clip, other in zip(again.clips, made.clips, strict=True):
        assert clip.sound is not None
        assert other.sound is not None
        assert np.array_equal(clip.sound, other.sound)


# -- again, other, broken ---------------------------------------------------------------------------------------------------


def _refuse_to_work(*arguments: Any) -> None:
    raise AssertionError("nothing is left to do")


def test_asked_again_it_is_only_opened(made: Dataset, videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "build", _refuse_to_work)
    again = collect([videos / "a.mp4", videos / "b clip.mp4"], made.folder, size=SIZE, least=2.0)
    assert again.report == made.report
    assert np.array_equal(again.portrait, made.portrait)


def test_other_settings_and_other_videos_are_told(made: Dataset, videos: Path, tmp_path: Path) -> None:
    with pytest.raises(AvatarError, match="another frame size"):
        collect([videos], made.folder, size=(64, 64), least=2.0)
    with pytest.raises(AvatarError, match="other videos"):
        collect([videos / "a.mp4"], made.folder, size=SIZE, least=2.0)
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(AvatarError, match="other files"):
        collect([videos], tmp_path)
    with pytest.raises(AvatarError, match="is a file"):
        collect([videos], videos / "a.mp4")


@pytest.mark.parametrize("name", ["clips/a/coarse.npy", "reference.npz", "assets.npz", "dataset.json"])
def test_a_damaged_set_is_not_opened(made: Dataset, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(made.folder, tmp_path / "set")
    (folder / name).write_bytes((folder / name).read_bytes()[:-10])
    with pytest.raises(AvatarError, match="is damaged"):
        open_dataset(folder)


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(AvatarError, match="There is no data set"):
        open_dataset(tmp_path / "absent")
    with pytest.raises(AvatarError, match="holds no data set"):
        open_dataset(tmp_path)


def test_what_an_unfinished_set_of_another_plan_leaves_is_cleared_but_for_the_tracks(made: Dataset, videos: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made.folder, tmp_path / "set")
    (folder / "dataset.json").unlink()
    with pytest.raises(AvatarError, match="at least 60 s"):
        collect([videos / "a.mp4"], folder, size=SIZE, least=60.0)
    assert {place.name for place in folder.iterdir()} == {"plan.json", "tracks"}
    assert len(list((folder / "tracks").iterdir())) == 2


@contextmanager
def killed_after(files: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The program ends as it is about to give a file its name, after so many others; what lies aside stays, as after kill -9."""
    whole_file, left = storage.whole_file, files

    @contextmanager
    def dying(path: Path) -> Iterator[Any]:
        nonlocal left
        if left:
            left -= 1
            with whole_file(path) as file:
                yield file
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(f".{path.name}.dead{storage.ASIDE}").open("wb") as file:
            yield file
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(storage, "whole_file", dying)
        yield


class _Blank:
    """Instead of the puppet, whose frames are not looked at here: dark alone, light when taught."""

    def __init__(self, portrait: UInt8Array, *rest: Any) -> None:
        self.portrait, self.assets = portrait, None

    def acted(self, motions: list[Any], *rest: Any) -> list[Any]:
        return [None] * len(motions)

    def with_assets(self, assets: Any) -> _Blank:
        taught = _Blank(self.portrait)
        taught.assets = assets
        return taught

    def frame(self, motion: Any) -> UInt8Array:
        return np.full_like(self.portrait, 0 if self.assets is None else 200)

    def write(self, path: Path, motions: list[Any], **more: Any) -> None:
        assert self.assets is not None
        assert any(motion is not None for motion in motions), "the taught puppet moves as it does live"
        with storage.frames_file(path.with_name(storage.GUIDE), (len(motions), *self.portrait.shape)) as write:
            for _ in motions:
                write(np.zeros_like(self.portrait))
        storage.write_arrays(path.with_name(storage.POINTS), points=np.zeros((len(motions), 478, 2), np.float32))
        with storage.frames_file(path, (len(motions), *self.portrait.shape)) as write:
            for number in range(len(motions)):
                write(np.full_like(self.portrait, number + (0 if self.assets is None else 100)))


def test_killed_at_any_file_it_goes_on_to_the_same_end(made: Dataset, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "Coarse", _Blank)
    taught = plates.unmoved(np.full((*SIZE, 3), 40, np.uint8))
    monkeypatch.setattr(plates, "learn", lambda portrait, lesson, progress: taught)
    monkeypatch.setattr(looks, "learn", lambda assets, study, progress: looks.Learnt(assets, []))
    folder = tmp_path / "set"
    folder.mkdir()
    shutil.copy(made.folder / "plan.json", folder)
    shutil.copytree(made.folder / "tracks", folder / "tracks")
    min((folder / "tracks").iterdir(), key=lambda track: track.stat().st_size).unlink()
    deaths = 0
    while not (folder / "dataset.json").exists():
        with pytest.raises(AvatarError, match="not complete"):
            open_dataset(folder)
        try:
            with killed_after(1 + deaths % 3, monkeypatch):  # a clip has three files that are written together
                collect([videos], folder, size=SIZE, least=2.0)
        except KeyboardInterrupt:
            deaths += 1
            assert deaths < 30
    done = open_dataset(folder)
    assert deaths >= 6
    assert not list(folder.rglob(f"*{storage.ASIDE}"))
    for clip, other in zip(done.clips, made.clips, strict=True):
        assert np.array_equal(clip.frames, other.frames)
        assert np.array_equal(clip.motion, other.motion, equal_nan=True)
        assert (clip.train, clip.held_out) == (other.train, other.held_out)
        assert clip.coarse[:, 0, 0, 0].tolist() == list(range(100, 100 + len(clip.kept))), "the taught puppet's"
    assert done.assets is not None
    assert np.array_equal(done.assets.plate, taught.plate)
    assert done.stages["puppet"] != done.stages["assets"]


def test_two_at_once_are_kept_apart(videos: Path, tmp_path: Path) -> None:
    plan = {"size": [64, 64]}
    with storage.workplace(tmp_path / "set", plan), pytest.raises(AvatarError, match="just now"), storage.workplace(tmp_path / "set", plan):
        pass


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half(made: Dataset, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    shutil.copy(made.folder / "plan.json", folder)
    shutil.copytree(made.folder / "tracks", folder / "tracks")
    with disk_of(2_000_000), pytest.raises(AvatarError, match="disk is full"):
        collect([videos], folder, size=SIZE, least=2.0)
    assert not list(folder.rglob("*.npy"))
    assert not list(folder.rglob(f"*{storage.ASIDE}"))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(AvatarError, match="needs .* MB"):
        collect([videos], folder, size=SIZE, least=2.0)


# -- bad videos ---------------------------------------------------------------------------------------------------------------


def _pair(path: Path) -> Path:
    frame = scene((160, 220, 380), (470, 240, 340))
    return film(path, [VideoFrame(frame, k / 25) for k in range(12)])


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no face": (lambda path: write_clip(path / "x.mp4", times=[k / 25 for k in range(12)]), "No face was found in 'x.mp4'"),
    "two faces": (lambda path: _pair(path / "x.mp4"), "two faces in 'x.mp4'"),
    "too short": (lambda path: film(path / "x.mp4", [VideoFrame(scene((320, 240, 460)), k / 25) for k in range(12)]), "only 0.5 s of good frames"),
    "sound only": (lambda path: write_wav(path / "x.wav", tone(0.5), rate=48_000), "has no video"),
    "a text": (lambda path: (path / "x.mp4").write_text("no media at all, but some words"), "not a media file"),
    "nothing": (lambda path: None, "no video in the folder"),
    "twice": (lambda path: [write_clip(path / f"{name}.mp4", times=[0.0, 0.1]) for name in "xy"], "the same clip"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_video_that_cannot_be_used_is_one_sentence(name: str, tmp_path: Path) -> None:
    make, sentence = BAD[name]
    place = tmp_path / "videos"
    place.mkdir()
    make(place)
    given = [place / "x.wav"] if name == "sound only" else [place]
    with pytest.raises(AvatarError, match=sentence) as told:
        collect(given, tmp_path / "set", size=(64, 64))
    assert len(str(told.value).splitlines()) == 1


def test_no_video_at_all(tmp_path: Path) -> None:
    with pytest.raises(AvatarError, match="No video was given"):
        collect([], tmp_path / "set")
    with pytest.raises(AvatarError, match="cannot be read"):
        collect([tmp_path / "absent.mp4"], tmp_path / "set")


def test_the_index_says_what_was_dropped_in_words_of_the_reasons(made: Dataset) -> None:
    index = json.loads((made.folder / "dataset.json").read_text())
    assert set(index["report"]["dropped"]) <= set(REASONS)
    assert index["report"]["seconds"] == pytest.approx(sum(clip.kept.sum() for clip in made.clips) / 25)


# -- and then a persona ------------------------------------------------------------------------------------------------------


@pytest.mark.torch
def test_the_command_keeps_the_taught_puppet_as_a_persona(made: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_for("diffusion")
    from engine import persona as personas
    from engine.generators import load
    from engine.serving import choose
    from exporters.training import command

    monkeypatch.setenv("AVATAR_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(command, "collect", lambda videos, folder, **more: replace(made, folder=folder))
    shutil.copytree(made.folder, tmp_path / "me" / "data")
    words = ["train", "--video", "a.mp4", "--out", "me", "--stage", "data", "--consent", "I am the person in the video."]
    options = avatar._parser().parse_args(words)
    told: list[str] = []
    for _ in range(2):  # asked again it replaces its own
        command.teach([Path("a.mp4")], tmp_path / "me", options, tell=told.append)
    assert told[-1] == "Show it: avatar serve --persona me"
    kept = personas.show("me")
    assert kept["consent"]["statement"] == "I am the person in the video."
    assert choose(None, {}, persona="me").generator == "puppet"
    identity = cast(Any, personas.load_persona(load("puppet", size=SIZE), "me").identity)
    assert bool(identity.features.known) == (made.assets is not None), "it is the taught one"
    with pytest.raises(AvatarError, match="already a persona called 'me'"):
        command.teach([Path("a.mp4")], tmp_path / "other", argparse.Namespace(**{**vars(options), "name": "me"}), tell=told.append)
    monkeypatch.setattr(personas, "make_persona", full)
    with pytest.raises(AvatarError, match="disk is full"):
        command.teach([Path("a.mp4")], tmp_path / "me", options, tell=told.append)
    assert personas.show("me")["created"] == kept["created"], "the earlier one goes when the new one is whole"


def full(*args: Any, **more: Any) -> None:
    """A persona that cannot be kept."""
    raise AvatarError("The disk is full.")
