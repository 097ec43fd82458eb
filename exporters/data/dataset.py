"""A minute of video of one person -> pairs to learn from: the puppet's frame, the real frame, what was heard and tracked.

    folder/
      plan.json            what it is made of: hashes of the videos, size, format; written first
      tracks/<hash>.npz    stage 1, by the video's hash: what was seen and heard (`footage.Footage`)
      scene.png            stage 2: the reference frame, uncropped, and
      reference.npz          its crop, the portrait and further views
      clips/<clip>/        stage 3: frames.npy, sound.npz; stage 4, with the assets: guide.npy, points.npz, coarse.npy, rest.npz; later, by
                             training: heard-<network>.npy, what frames hear by a preset's own listening network (`hearing`)
      clips/<clip>/hands.npz   where they were asked for (`hands`)
    clips/<clip>/map-*.npy, maps.json    likewise condition pictures (`maps`)
      assets.npz           stage 4: what the training part teaches the puppet (`stages.learnt`), and, until the set is whole,
      apart.npz              what each part of it does not teach
      dataset.json         written last: the folder is whole

Every file is written aside, flushed and renamed, so a file that is there is whole, and a run that was killed goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.generators.puppet.assets import PuppetAssets
from engine.types import FloatArray, UInt8Array
from exporters.data import hands as hands_of
from exporters.data import maps as condition_maps
from exporters.data import pairs, sound, stages, storage
from exporters.data.footage import FPS
from exporters.data.painted import body_of
from exporters.data.regions import Likeness

LEAST_SECONDS = 10.0
"""s of good frames that a data set needs."""
FORMAT = 4


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip's N frames, 25 a second."""

    name: str
    frames: UInt8Array  # [N, H, W, 3] real pictures, the crop, RGB; mapped from the disk
    coarse: UInt8Array  # [N, H, W, 3] what the puppet makes of each frame's motion, with a look learnt elsewhere; mapped from the disk
    guide: UInt8Array  # [N, H, W, 3] what it is made of (`puppet.guide`); mapped from the disk
    points: FloatArray  # [N, 478, 2] px of the puppet's face
    speech: FloatArray  # [N, 16, 80] log-mel as a live session has it; -10 where there is no sound
    motion: FloatArray  # [N, 16] head 6, eyes 2, gaze 2, brows 2, mouth 4 as in `Motion`; NaN where there is no face
    face: FloatArray  # [N, 478, 2] px of the crop, in the real picture; NaN where dropped
    kept: npt.NDArray[np.bool_]  # [N]
    train: list[tuple[int, int]]  # [start, stop) runs of consecutive kept frames
    held_out: list[tuple[int, int]]
    body: FloatArray | None = None  # [N, 33, 3] px of the crop, pose landmarks in the real picture, and how well they are seen; None: nobody looked
    sound: sound.Sound | None = None  # [M] at 16 kHz from the first frame on, 32767 is 1; None: collected before it was kept
    hands: FloatArray | None = None  # [N, 2, 21, 2] px of the crop, in the real picture, NaN where one is not seen; None: nobody looked
    maps: Mapping[str, UInt8Array] = field(default_factory=dict)  # name -> [N, H, W, 3] RGB condition pictures of the frames, mapped from the disk


@dataclass(frozen=True, slots=True)
class Dataset:
    """What `collect` made of one person's clips."""

    folder: Path
    size: tuple[int, int]  # (H, W) px
    fps: int
    portrait: UInt8Array  # [H, W, 3] the reference crop, what the puppet's `prepare` was given
    views: list[tuple[float, UInt8Array]]  # (yaw in degrees, crop [H, W, 3]) of other heads
    clips: list[Clip]
    report: dict[str, Any]  # frames, kept, seconds, dropped by reason; sentences for a person
    assets: PuppetAssets | None = None  # what the training part taught the puppet, and `coarse` is made with; None where nothing helped

    @property
    def stages(self) -> dict[str, Likeness]:
        """How like the person the puppet's held-out frames are, by `stages.STAGES`: puppet alone, plate, assets."""
        return {name: Likeness(**told) for name, told in self.report.get("held_out", {}).items()}


def open_dataset(folder: Path) -> Dataset:
    """Read what `collect` wrote. Raises AvatarError where it is not there, not whole, or damaged."""
    index = storage.read_index(Path(folder), version=FORMAT)
    reference = storage.read_arrays(folder / storage.REFERENCE)
    clips = []
    for name, video in zip(index["clips"], index["videos"], strict=True):
        place = folder / "clips" / name
        rest = storage.read_arrays(place / "rest.npz")
        frames, coarse, guide = (storage.mapped(place / file) for file in ("frames.npy", "coarse.npy", storage.GUIDE))
        points = storage.read_arrays(place / storage.POINTS)["points"]
        train, held_out = ([(int(a), int(b)) for a, b in rest[name]] for name in ("train", "held_out"))
        speech, motion, face, kept = (rest[name] for name in ("speech", "motion", "face", "kept"))
        track = storage.read_arrays(storage.track(folder, video))
        body, hands = body_of(track, face, kept), hands_of.kept(place, track, face, kept)
        maps = condition_maps.read(folder, name, frames.shape)
        clips.append(Clip(name, frames, coarse, guide, points, speech, motion, face, kept, train, held_out, body, sound.kept(place), hands, maps))
    views = [(float(yaw), view) for yaw, view in zip(reference["yaws"], reference["views"], strict=True)]
    height, width = index["size"]
    assets = stages.read(folder / storage.ASSETS)
    return Dataset(folder, (height, width), index["fps"], reference["portrait"], views, clips, index["report"], assets)


def collect(
    videos: Sequence[Path],
    folder: Path,
    *,
    size: tuple[int, int] = (256, 256),
    progress: Callable[[str, int, int], None] | None = None,
    least: float = LEAST_SECONDS,
    maps: Sequence[str] = (),
    hands: bool = False,
) -> Dataset:
    """Clips of one person (files, or folders of them) -> a data set in `folder`.

    About 0.1 s of CPU a frame. Killed and called again it goes on where it stopped; called on a whole data set of the same videos and size
    it only opens it; with others it begins anew where the set was unfinished and refuses where it was whole. `size`: (H, W) px of the frames;
    `progress` is told (what is being done, how much of it is done, out of how much); `least`: s of good frames that are needed;
    `maps`: NAME=FILE of condition pictures (`maps.find`), and `hands`: whether these are looked for too (10 to 45 ms more a frame); both are made
    where they are not there, also in a set that was whole without them.
    Raises AvatarError for videos and files that cannot be used, for a folder that holds something else, and where the disk is full.
    """
    tell = progress or (lambda what, done, total: None)
    paths = storage.find_videos(videos)
    sources = condition_maps.find(maps, paths, Path(folder), size=size)
    named = storage.identify(paths, tell)
    plan = {"format": FORMAT, "size": list(size), "fps": FPS, "least": least, "videos": named}
    with storage.workplace(Path(folder), plan) as whole:
        if not whole:
            pairs.build(paths, Path(folder), plan, tell)
        else:  # one that was collected before sound was kept gets it
            for path, name in zip(paths, storage.read_index(Path(folder), version=FORMAT)["clips"], strict=True):
                sound.keep(path, Path(folder) / "clips" / name)
        for path, video in zip(paths, named if hands else (), strict=hands):
            hands_of.keep(path, Path(folder), video, tell)
        condition_maps.add(Path(folder), sources, paths, named, tell)
    return open_dataset(Path(folder))


__all__ = ["LEAST_SECONDS", "Clip", "Dataset", "collect", "open_dataset"]
