"""Clips and their tracks -> the reference, the crop, and the pictures in pairs: the work behind `dataset.collect`, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from engine.composite import Fit, frame_portrait
from engine.drivers import body as shoulders
from engine.drivers.rigid import metric
from engine.pose import Float64Array
from engine.types import AvatarError, FloatArray, Motion, UInt8Array
from exporters.data import filters, sound, stages, storage
from exporters.data.coarse import Coarse
from exporters.data.footage import Footage, pictures, watch
from exporters.data.motions import Heads, calibrate, heads, motions, table

FEWER, SMALLER = 0.7, 0.2
"""Logs of a clip's usable frames and of its face's size by which it makes a worse reference than another."""
Progress = Callable[[str, int, int], None]
"""(what is being done, how much of it is done, out of how much)."""
Runs = list[tuple[int, int]]
"""[start, stop) of consecutive frames."""
Rect = tuple[int, int, int, int]
"""x, y, width, height px; may reach beyond the picture."""

ANOTHER_SHOT = 10.0
"""s: more than any filter reaches."""
CROWDED = 0.5
"""Share of the frames with a second face at which a clip is not one person's."""


@dataclass(slots=True)
class Source:
    """One clip on its way."""

    path: Path
    name: str
    footage: Footage
    rect: Rect = (0, 0, 1, 1)  # the crop
    neutral: int = 0  # its frame that is most like a portrait

    def clock(self) -> FloatArray:
        """[N] s of every frame, ANOTHER_SHOT more behind each cut, so that no filter reaches across."""
        clock: FloatArray = self.footage.time + np.float32(ANOTHER_SHOT) * np.cumsum(filters.cuts(self.footage)).astype(np.float32)
        return clock

    def points(self) -> Float64Array:
        """[N, 478, 3] landmarks in crop heights."""
        height, width = (int(n) for n in self.footage.size)
        x, y, _, down = self.rect
        moved: Float64Array = (metric(self.footage.face, width / height) * height - (x, y, 0.0)) / down
        return moved

    def body(self) -> FloatArray:
        """[N, 33, 4] pose landmarks in crop heights."""
        height, width = (int(n) for n in self.footage.size)
        x, y, _, down = self.rect
        unit, shift = np.array([width, height, width, down], np.float32), np.array([x, y, 0.0, 0.0], np.float32)
        moved: FloatArray = (self.footage.body * unit - shift) / np.float32(down)
        return moved

    def face(self, size: tuple[int, int]) -> FloatArray:
        """[N, 478, 2] landmarks in px of the crop at `size` (H, W)."""
        points: FloatArray = (self.points()[..., :2] * size[0]).astype(np.float32)
        return points

    def picture(self, frame: int) -> UInt8Array:
        """A grid frame's whole picture."""
        for number, picture in pictures(self.path):
            if number == frame and picture is not None:
                return picture.rgb
        raise AvatarError(f"'{self.path.name}' has changed while it was read; start again.")

    def crop(self, picture: UInt8Array, size: tuple[int, int]) -> UInt8Array:
        """[H, W, 3] the crop of a picture, sampled as the puppet samples a portrait."""
        cut = Fit.of(self.rect, (picture.shape[0], picture.shape[1])).cut(picture)
        how = cv2.INTER_AREA if cut.shape[0] > size[0] else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(cut, (size[1], size[0]), interpolation=how), np.uint8)


def build(paths: Sequence[Path], folder: Path, plan: dict[str, Any], tell: Progress) -> None:
    """All stages that are not done yet, then the index. Raises AvatarError as `dataset.collect` says."""
    size: tuple[int, int] = (plan["size"][0], plan["size"][1])
    names = [video["name"] for video in plan["videos"]]
    sources = [_tracked(path, video, folder, tell) for path, video in zip(paths, plan["videos"], strict=True)]
    first = _refer(sources, size, folder)
    seen = [heads(s.points(), s.clock()) for s in sources]
    calibration = calibrate(seen, [s.clock() for s in sources], (first, sources[first].neutral), _neutral_body(sources[first]))
    made = [motions(h, s.clock(), s.footage.mouth, s.body(), calibration) for h, s in zip(seen, sources, strict=True)]
    judged = [filters.judge(s.footage, s.face(size) / (size[1], size[0]), m, s.neutral) for s, m in zip(sources, made, strict=True)]
    report = filters.report([s.path.name for s in sources], [s.footage for s in sources], judged)
    if report["seconds"] < plan["least"]:
        raise AvatarError(
            f"There are only {report['seconds']:.1f} s of good frames{filters.why(report['dropped'])}; "
            f"record at least {plan['least']:.0f} s of one well-lit face before a camera that stands still."
        )
    storage.enough_room(folder, frames=sum(len(s.footage) for s in sources), size=size)
    portrait = _store_reference(folder, sources, first, seen, made, size)
    parts = {source.name: filters.split(verdict.kept) for source, verdict in zip(sources, judged, strict=True)}
    for source in sources:
        _store_frames(folder / "clips" / source.name / "frames.npy", source, size, tell)
        sound.keep(source.path, folder / "clips" / source.name)
    still = made[first][sources[first].neutral]
    assert still is not None
    _store_coarse(folder, sources, first, made, parts, Coarse(portrait, sources[first].face(size)[sources[first].neutral], still), report, tell)
    for source, motion, verdict, told in zip(sources, made, judged, report["clips"], strict=True):
        home = folder / "clips" / source.name
        told["name"] = source.name
        told["coarse_db"] = storage.likeness(home / "frames.npy", home / "coarse.npy", verdict.kept)
        if (home / "rest.npz").exists():
            continue
        train, held_out = parts[source.name]
        face = source.face(size)
        face[~verdict.kept] = np.nan
        storage.write_arrays(
            home / "rest.npz",
            speech=source.footage.speech,
            motion=table(motion),
            face=face,
            kept=verdict.kept,
            reason=verdict.reason,
            train=np.array(train, np.int64).reshape(-1, 2),
            held_out=np.array(held_out, np.int64).reshape(-1, 2),
            rect=np.array(source.rect),
        )
    storage.finish(folder, {**plan, "clips": names, "report": report})


# -- what was seen ------------------------------------------------------------------------------------------------------


def _tracked(path: Path, video: dict[str, str], folder: Path, tell: Progress) -> Source:
    """Stage 1. Raises AvatarError for a clip that shows nobody, or more than one."""
    home = storage.track(folder, video)
    if not home.exists():
        storage.write_arrays(home, **watch(path, tick=partial(tell, f"tracking {path.name}")).arrays())
    footage = Footage(**storage.read_arrays(home))
    if not np.isfinite(footage.face[:, 0, 0]).any():
        raise AvatarError(f"No face was found in '{path.name}'; use a clip where one face looks towards the camera and is well lit.")
    if float(np.mean(footage.crowd > filters.RIVAL)) > CROWDED:
        raise AvatarError(f"There are two faces in '{path.name}'; use a clip that shows one person alone.")
    height, width = (int(n) for n in footage.size)
    return Source(path, video["name"], footage, (0, 0, width, height))


# -- the reference ------------------------------------------------------------------------------------------------------


def _refer(sources: list[Source], size: tuple[int, int], folder: Path) -> int:
    """Choose every clip's neutral frame and crop -> number of the clip whose neutral is the reference."""
    seen = [heads(s.points(), s.clock()) for s in sources]
    costs = [filters.cost(s.footage, h) for s, h in zip(sources, seen, strict=True)]
    for source, cost in zip(sources, costs, strict=True):
        if not np.isfinite(cost).any():
            raise AvatarError(f"No frame of '{source.path.name}' shows one whole, uncovered face; record the clip again.")
        source.neutral = int(np.argmin(cost))
    usable = np.log([np.isfinite(cost).sum() for cost in costs])
    across = np.log([np.exp(h.vector[s.neutral, 5]) * s.footage.size[0] for s, h in zip(sources, seen, strict=True)])  # px of the face
    lacking = ((usable.max() - usable) / FEWER) ** 2 + ((across.max() - across) / SMALLER) ** 2
    first = int(np.argmin([cost[s.neutral] + lack for s, cost, lack in zip(sources, costs, lacking, strict=True)]))
    if (home := folder / storage.REFERENCE).exists():
        x, y, width, height = (int(value) for value in storage.read_arrays(home)["rect"])
    else:
        picture = sources[first].picture(sources[first].neutral)
        scene, _ = frame_portrait(picture, size=size)
        x, y, width, height = scene.fit.scaled(scene.size, (picture.shape[0], picture.shape[1])).rect
    sources[first].rect = (x, y, width, height)
    before, here = seen[first].vector[sources[first].neutral], float(sources[first].footage.size[0])
    for number, source in enumerate(sources):
        if number == first:
            continue
        # Its neutral head lies in its crop where the reference's does, and as large.
        now, there = seen[number].vector[source.neutral], float(source.footage.size[0])
        larger = float(np.exp(now[5] - before[5])) * there / here
        left, top = now[3] * there - (before[3] * here - x) * larger, now[4] * there - (before[4] * here - y) * larger
        source.rect = (round(left), round(top), round(width * larger), round(height * larger))
    return first


def _neutral_body(source: Source) -> Float64Array | None:
    body = source.body()[source.neutral]
    return shoulders.measure(body, aspect=1.0) if np.isfinite(body).all() else None


def _store_reference(
    folder: Path, sources: list[Source], first: int, seen: list[Heads], made: list[list[Motion | None]], size: tuple[int, int]
) -> UInt8Array:
    """Stage 2 -> the portrait [H, W, 3]."""
    home = folder / storage.REFERENCE
    if not home.exists():
        picture = sources[first].picture(sources[first].neutral)
        views: list[tuple[float, UInt8Array]] = []
        for source, h, motion in zip(sources, seen, made, strict=True):
            yaws = table(motion)[:, 0]
            for frame in filters.views(filters.cost(source.footage, h), yaws):
                views.append((float(yaws[frame]), source.crop(source.picture(frame), size)))
        if not (folder / storage.SCENE).exists():
            storage.write_picture(folder / storage.SCENE, picture)
        storage.write_arrays(
            home,
            portrait=sources[first].crop(picture, size),
            rect=np.array(sources[first].rect),
            clip=np.array(sources[first].name),
            frame=np.array(sources[first].neutral),
            yaws=np.array([yaw for yaw, _ in views], np.float32),
            views=np.stack([view for _, view in views]) if views else np.zeros((0, *size, 3), np.uint8),
        )
    portrait: UInt8Array = storage.read_arrays(home)["portrait"]
    return portrait


# -- pictures -----------------------------------------------------------------------------------------------------------


def _store_frames(home: Path, source: Source, size: tuple[int, int], tell: Progress) -> None:
    """Stage 3: the real pictures, black where there is none."""
    if home.exists():
        return
    count = len(source.footage)
    black = np.zeros((*size, 3), np.uint8)
    with storage.frames_file(home, (count, *size, 3)) as write:
        for number, picture in pictures(source.path):
            known = picture is not None and number < count and picture.id == source.footage.shown[number]
            write(source.crop(picture.rgb, size) if known and picture is not None else black)
            tell(f"cropping {source.path.name}", number + 1, count)


def _store_coarse(
    folder: Path,
    sources: list[Source],
    first: int,
    made: list[list[Motion | None]],
    split: dict[str, tuple[Runs, Runs]],
    plain: Coarse,
    report: dict[str, Any],
    tell: Progress,
) -> None:
    """Stage 4: what the training part teaches the puppet, then its frames; `report` gets the figures of the held-out part."""
    parts: list[stages.Part] = []
    portrait = plain.portrait
    for source, motion in zip(sources, made, strict=True):
        real, faces = storage.mapped(folder / "clips" / source.name / "frames.npy"), source.face((portrait.shape[0], portrait.shape[1]))
        laid = plain.acted(motion, source.clock(), faces, real)
        train, held_out = ([k for a, b in runs for k in range(a, b)] for runs in split[source.name])
        parts.append(stages.Part(real, faces, motion, laid, train, held_out))
    found = stages.learnt(folder / storage.ASSETS, portrait, parts[first], plain, tell)
    taught = plain if found.assets is None else plain.with_assets(found.assets)
    unlearnt = stages.unlearnt(taught, parts[first], found.apart)
    for source, part in zip(sources, parts, strict=True):
        home = folder / "clips" / source.name / "coarse.npy"
        if not home.exists():
            by = unlearnt if part is parts[first] else None
            acted = part.laid if found.assets is None else part.motions
            taught.write(home, acted, by=by, tick=partial(tell, f"moving the puppet as in {source.path.name}"))
    report["held_out"] = stages.figures(parts, plain, taught)
    if report["held_out"]:
        report["sentences"].append(stages.in_words(report["held_out"]))


__all__ = ["Source", "build"]
