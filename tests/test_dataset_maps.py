"""Condition pictures of a data set: the right one at every frame, cut as the frame is, and made anew by another file alone."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.drivers.maps import Network
from engine.generators.diffusion.presets import CHAMP, COMPACT
from engine.types import BODY_POINTS, AvatarError, UInt8Array, VideoFrame
from exporters.data import maps, storage
from exporters.data.dataset import FORMAT, Dataset, collect, open_dataset
from exporters.data.footage import FPS
from exporters.files import sha256
from exporters.training.command import _check_maps
from tests.clips import film
from tests.test_maps import write_network

WHOLE, SIZE, RECT = (64, 96), (32, 48), (36, 20, 48, 32)
"""(H, W) of the video and of the data set's frames, and x, y, width, height of its crop."""
SHOWN = [1, 1, 2, 3, 4, 6, 7, 8]
"""Number of the video's picture in every frame: one is shown twice, one left out. The last two frames are its eighth picture and none."""
KEPT = [True, True, True, False, True, True, True, True]
EDGE = 60
"""px of the video where its pictures change their shade."""


def pictures(seed: int, *, count: int = 8, size: tuple[int, int] = WHOLE) -> list[VideoFrame]:
    """Picture k, counted from 1, is 25 k + seed on the left of the edge and its inverse on the right."""
    made = []
    for k in range(1, count + 1):
        rgb = np.full((*size, 3), 25 * k + seed, np.uint8)
        rgb[:, EDGE * size[1] // WHOLE[1] :] = 255 - 25 * k - seed
        made.append(VideoFrame(rgb, (k - 1) / 30))
    return made


@dataclass(frozen=True)
class Place:
    """A data set that is whole, of videos that lie beside it."""

    folder: Path
    videos: list[Path]

    def collect(self, *chosen: str) -> Dataset:
        """Asked again, now with condition pictures."""
        return collect(self.videos, self.folder, size=SIZE, least=1.0, maps=chosen)

    def file(self, clip: str) -> Path:
        """Of the only pictures that a clip has."""
        (found,) = (self.folder / "clips" / clip).glob("map-*.npy")
        return found


def written(root: Path, *names: str) -> Place:
    """As if it had been collected."""
    videos = [film(root / f"{name}.mp4", pictures(3 * k), sound=False) for k, name in enumerate(names)]
    told = [{"name": name, "sha256": sha256(video)} for name, video in zip(names, videos, strict=True)]
    plan = {"format": FORMAT, "size": list(SIZE), "fps": FPS, "least": 1.0, "videos": told}
    folder, count = root / "data", len(SHOWN)
    for one in told:
        home = folder / "clips" / one["name"]
        frames = np.random.default_rng(0).integers(0, 256, (count, *SIZE, 3)).astype(np.uint8)
        for name in ("frames.npy", "coarse.npy", "guide.npy"):
            with storage.frames_file(home / name, frames.shape) as write:
                for frame in frames:
                    write(frame)
        face = np.tile(np.random.default_rng(1).uniform(8, 24, (478, 2)).astype(np.float32), (count, 1, 1))
        storage.write_arrays(home / "points.npz", points=face)
        rest = {"speech": np.zeros((count, 16, 80), np.float32), "motion": np.zeros((count, 16), np.float32), "face": face}
        runs = {name: np.zeros((0, 2), np.int64) for name in ("train", "held_out")}
        storage.write_arrays(home / "rest.npz", **rest, **runs, kept=np.array(KEPT), rect=np.array(RECT))
        unit = np.concatenate([(face + RECT[:2]) / WHOLE[::-1], face[..., :1]], 2)
        seen = {"face": unit, "body": np.full((count, BODY_POINTS, 4), np.nan), "shown": np.array(SHOWN)}
        storage.write_arrays(folder / "tracks" / f"{one['sha256']}.npz", **seen, size=np.array(WHOLE))
    storage.write_arrays(folder / "reference.npz", portrait=np.zeros((*SIZE, 3), np.uint8), yaws=np.zeros(0), views=np.zeros((0, *SIZE, 3), np.uint8))
    storage.write_arrays(folder / "assets.npz", learnt=np.array(False))
    storage.write_json(folder / "plan.json", plan)
    storage.finish(folder, {**plan, "clips": list(names), "report": {}})
    return Place(folder, videos)


@pytest.fixture
def one(tmp_path: Path) -> Place:
    return written(tmp_path, "a")


def check_recorded(held: UInt8Array, seed: int) -> None:
    """Every frame has the map of its own picture, whose edge lies where the crop has it; a dropped frame has none."""
    assert held.shape == (len(SHOWN), *SIZE, 3)
    edge = EDGE - RECT[0]
    for k, (number, kept) in enumerate(zip(SHOWN, KEPT, strict=True)):
        left, right = float(held[k, :, : edge - 2].mean()), float(held[k, :, edge + 2 :].mean())
        assert (left, right) == pytest.approx((25 * number + seed, 255 - 25 * number - seed) if kept else (0, 0), abs=4), k


def test_a_network_sees_the_frames_as_they_lie_in_the_set(one: Place, tmp_path: Path) -> None:
    network = write_network(tmp_path / "n.onnx", gives=3)
    (clip,) = one.collect(f"depth={network}").clips
    assert isinstance(clip.maps["depth"], np.memmap)
    live = Network(network, size=SIZE)
    for k, kept in enumerate(KEPT):
        expected = live(VideoFrame(np.array(clip.frames[k]), 0.0)) if kept else np.zeros((*SIZE, 3), np.uint8)
        np.testing.assert_array_equal(clip.maps["depth"][k], expected)


@pytest.mark.parametrize("size", [WHOLE, (128, 192), (32, 48)])
def test_a_clip_is_cut_as_the_video_is_and_goes_with_it_picture_by_picture(one: Place, tmp_path: Path, size: tuple[int, int]) -> None:
    """Whatever times its pictures have."""
    other = [VideoFrame(frame.rgb, 2 * frame.time) for frame in pictures(10, size=size)]
    clip = film(tmp_path / "depth.mp4", other, sound=False)
    data = one.collect(f"depth={clip}")
    check_recorded(data.clips[0].maps["depth"], 10)
    assert open_dataset(one.folder).clips[0].maps.keys() == {"depth"}


def test_of_several_videos_a_folder_has_a_clip_for_each(tmp_path: Path) -> None:
    two, folder = written(tmp_path, "a", "b"), tmp_path / "normals"
    folder.mkdir()
    single = film(folder / "b.mp4", pictures(20), sound=False)
    with pytest.raises(AvatarError, match=r"'b\.mp4' is one clip, and there are 2 videos; give a folder .* --maps normal=FOLDER"):
        two.collect(f"normal={single}")
    with pytest.raises(AvatarError, match=r"has no clip called 'a'; put one there for 'a\.mp4', such as a\.mp4"):
        two.collect(f"normal={folder}")
    film(folder / "a.mp4", pictures(10), sound=False)
    network = write_network(tmp_path / "n.onnx")
    data = two.collect(f"normal={folder}", f"depth={network}")
    for clip, seed in zip(data.clips, (10, 20), strict=True):
        check_recorded(clip.maps["normal"], seed)
        assert clip.maps.keys() == {"normal", "depth"}
    film(folder / "a.mov", pictures(10), sound=False)
    with pytest.raises(AvatarError, match="has 2 clips called 'a'"):
        two.collect(f"normal={folder}")


def test_files_that_cannot_be_used_are_one_sentence_and_leave_the_set_as_it_is(one: Place, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no clip")
    film(tmp_path / "short.mp4", pictures(0, count=6), sound=False)
    film(tmp_path / "square.mp4", pictures(0, size=(64, 64)), sound=False)
    write_network(tmp_path / "two.onnx", gives=2)
    for name, sentence in (
        ("absent.mp4", "There is no file"),
        ("text.mp4", "not a media file"),
        ("short.mp4", r"'short\.mp4' has 6 pictures and 'a\.mp4' 8; record one for every picture of the video"),
        ("square.mp4", r"'square\.mp4' is 64 x 64 and 'a\.mp4' 96 x 64; record pictures of the video's shape"),
        ("two.onnx", "gives .* and a condition picture is"),
    ):
        with pytest.raises(AvatarError, match=sentence):
            one.collect(f"depth={tmp_path / name}")
    assert open_dataset(one.folder).clips[0].maps == {}


def test_asked_again_nothing_is_made_and_another_file_makes_others(one: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = film(tmp_path / "depth.mp4", pictures(10), sound=False)
    data = one.collect(f"depth={clip}")
    first, key = one.file("a"), maps.key_of(data, ["depth"])
    stamp = first.stat().st_mtime_ns
    with monkeypatch.context() as patched:
        patched.setattr(maps, "picture_count", lambda path: pytest.fail("counted again"))
        one.collect(f"depth={clip}")
        assert one.collect().clips[0].maps.keys() == {"depth"}, "and not asked for they stay"
    assert first.stat().st_mtime_ns == stamp
    other = one.collect(f"depth={film(tmp_path / 'other.mp4', pictures(30), sound=False)}")
    check_recorded(other.clips[0].maps["depth"], 30)
    assert maps.key_of(other, ["depth"]) != key
    assert not first.exists()
    assert maps.key_of(other, ["normal"]) == maps.key_of(data, ["normal"]), "of pictures that nobody reads nothing depends"


def test_killed_in_between_it_goes_on_with_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = written(tmp_path, "a", "b")
    network = write_network(tmp_path / "n.onnx")
    made, seen = maps._by_network, list[int]()

    def counted(path: Path, frames: UInt8Array, kept: Any) -> object:
        seen.append(len(frames))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return made(path, frames, kept)

    monkeypatch.setattr(maps, "_by_network", counted)
    with pytest.raises(KeyboardInterrupt):
        two.collect(f"depth={network}")
    assert all(clip.maps == {} for clip in open_dataset(two.folder).clips), "not whole yet"
    assert all(len(clip.maps) == 1 for clip in two.collect(f"depth={network}").clips)
    assert len(seen) == 3


def test_a_damaged_file_is_told_and_made_again(one: Place, tmp_path: Path) -> None:
    network = write_network(tmp_path / "n.onnx")
    one.collect(f"depth={network}")
    path = one.file("a")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(AvatarError, match="is damaged; collect again with --maps depth=FILE"):
        open_dataset(one.folder)
    assert one.collect(f"depth={network}").clips[0].maps.keys() == {"depth"}


def test_a_set_that_does_not_know_its_crop_takes_networks_alone(one: Place, tmp_path: Path) -> None:
    home = one.folder / "clips" / "a" / "rest.npz"
    storage.write_arrays(home, **{name: held for name, held in storage.read_arrays(home).items() if name != "rect"})
    index = json.loads((one.folder / "dataset.json").read_text())
    index["files"]["clips/a/rest.npz"] = home.stat().st_size
    storage.write_json(one.folder / "dataset.json", index)
    clip = film(tmp_path / "depth.mp4", pictures(10), sound=False)
    with pytest.raises(AvatarError, match="collect it anew"):
        one.collect(f"depth={clip}")
    assert one.collect(f"depth={write_network(tmp_path / 'n.onnx')}").clips[0].maps


def test_the_command_knows_what_its_preset_reads(one: Place, tmp_path: Path) -> None:
    def asked(*chosen: str, stage: str = "all") -> argparse.Namespace:
        return argparse.Namespace(maps=list(chosen), stage=stage)

    with pytest.raises(AvatarError, match=r"'champ' is driven by .* there is no depth and no normal; give what makes each with --maps NAME=FILE"):
        _check_maps(asked("semantic=x.mp4", "dwpose=x.mp4"), CHAMP, one.folder)
    with pytest.raises(AvatarError, match="'compact' reads no condition pictures; leave --maps depth=FILE out"):
        _check_maps(asked("depth=x.mp4"), COMPACT, one.folder)
    with pytest.raises(AvatarError, match="'champ' reads depth, normal, semantic, dwpose; leave --maps densepose=FILE out"):
        _check_maps(asked("densepose=x.mp4"), CHAMP, one.folder)
    network = write_network(tmp_path / "n.onnx")
    every = [f"{name}={network}" for name in CHAMP.maps]
    _check_maps(asked(*every), CHAMP, one.folder)
    one.collect(*every)
    _check_maps(asked(), CHAMP, one.folder)
    with pytest.raises(AvatarError, match="made with the data; leave --maps out, or leave --stage train out"):
        _check_maps(asked(*every, stage="train"), CHAMP, one.folder)


def test_a_set_that_is_begun_anew_with_other_videos_has_none(one: Place, tmp_path: Path) -> None:
    """They were of frames that are gone; that they are wanted again is told before hours of collecting."""
    network = write_network(tmp_path / "n.onnx")
    one.collect(*(f"{name}={network}" for name in CHAMP.maps))
    plan = json.loads((one.folder / storage.PLAN).read_text())
    (one.folder / storage.INDEX).unlink()  # nobody knows any more whether it is whole
    with pytest.raises(AvatarError, match="'champ' is driven by condition pictures, and there is no depth"):
        _check_maps(argparse.Namespace(maps=[], stage="all"), CHAMP, one.folder)
    with storage.workplace(one.folder, plan):
        assert (one.folder / maps.INDEX).exists(), "of the same videos it goes on"
    with storage.workplace(one.folder, {**plan, "videos": [{"name": "b", "sha256": "0"}]}) as whole:
        assert not whole
        assert not (one.folder / maps.INDEX).exists()
