"""Condition pictures of a data set: depth, normals, DensePose and the like of every kept frame, as a preset that is driven by them sees them live.

They come from a network of the user's, which reads the frames as they lie in the set, or from clips of them, one picture for every picture of
the video, which are cut as its frames are. They lie beside the frames, by what they were made of, and `maps.json` says which of them are the set's:

    clips/<clip>/map-<name>-<key>.npy   [N, H, W, 3] uint8, black where a frame was dropped; written whole or not at all
    maps.json                           name -> clip -> key; written last
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from engine.composite import Fit
from engine.drivers.maps import SHAPE, Network, squeezed
from engine.driving import NETWORK, map_files
from engine.media import picture_count, probe, video_frames
from engine.types import AvatarError, UInt8Array, VideoFrame
from exporters.data import storage
from exporters.files import sha256

if TYPE_CHECKING:
    from exporters.data.dataset import Dataset
    from exporters.data.pairs import Progress

INDEX, PREFIX = storage.MAPS, "map-"
WAY = 1
"""Of making them: another number makes them anew."""
Keys = dict[str, dict[str, str]]
"""Name of the pictures -> clip -> what they were made of."""


@dataclass(frozen=True, slots=True)
class Source:
    """What makes one kind of condition pictures."""

    name: str
    files: tuple[Path, ...]  # a clip for every video, or one network for all

    @property
    def network(self) -> Path | None:
        """None where they are recorded."""
        return self.files[0] if self.files[0].suffix.lower() == NETWORK else None


def find(chosen: Sequence[str], videos: Sequence[Path], folder: Path, *, size: tuple[int, int]) -> list[Source]:
    """`--maps NAME=FILE ...` for these videos, whose frames become (H, W) = `size` in the data set in `folder`, which may be there or not.

    FILE is a network (.onnx), a clip where there is one video, or a folder with a clip for each of them, called as it is. Raises AvatarError for
    whatever cannot be used. Clips whose pictures the set has already are not counted again, which takes a few ms a picture.
    """
    found, pairs = list[Source](), list[tuple[Path, Path]]()
    made = {key for each in _keys(folder).values() for key in each.values()}
    for name, file in map_files(chosen).items():
        path = Path(file)
        if path.is_dir():
            clips = tuple(_beside(path, video, videos) for video in videos)
        elif not path.is_file():
            raise AvatarError(f"There is no file '{path}'; check --maps.")
        elif path.suffix.lower() == NETWORK:
            Network(path, size=size)
            clips = (path,)
        elif len(videos) > 1:
            what = f"'{path.name}' is one clip, and there are {len(videos)} videos"
            raise AvatarError(f"{what}; give a folder with a clip for each of them, called as it is: --maps {name}=FOLDER.")
        else:
            clips = (path,)
        source = Source(name, clips)
        if source.network is None:
            new = [(clip, video) for clip, video in zip(clips, videos, strict=True) if _digest(clip) not in made]
            for clip, video in new:
                _check_shape(clip, video)
            pairs += new
        found.append(source)
    _check_counts(pairs)
    return found


def check(needed: Sequence[str], there: Container[str], *, preset: str) -> None:
    """Raise AvatarError where the preset reads condition pictures, `needed`, that are not among those there are."""
    if missing := [name for name in needed if name not in there]:
        how = "give what makes each with --maps NAME=FILE, an ONNX network or a clip of them"
        raise AvatarError(f"The preset '{preset}' is driven by condition pictures, and there is no {' and no '.join(missing)}; {how}.")


def add(folder: Path, sources: Sequence[Source], videos: Sequence[Path], named: Sequence[Mapping[str, str]], tell: Progress) -> None:
    """Make what is not there yet, in a data set that is whole; of `videos`, whose clips are `named` (`storage.identify`), each network or clip
    makes its own. Called again it goes on with the first that is missing. Raises AvatarError as `find` does, and where the disk is full."""
    if not sources:
        return
    keys = _keys(folder)
    homes = [folder / "clips" / clip["name"] for clip in named]
    rests = [storage.read_arrays(home / "rest.npz") for home in homes]
    shapes = [storage.mapped(home / "frames.npy").shape for home in homes]
    digests = {file: _digest(file) for source in sources for file in source.files}
    wanted: list[tuple[Source, int, str]] = []
    for source in sources:
        each = [digests[file] for file in source.files] * (len(homes) if source.network else 1)
        keys[source.name] = {home.name: key for home, key in zip(homes, each, strict=True)}
        wanted += [(source, k, key) for k, key in enumerate(each) if _opened(_path(homes[k], source.name, key), shapes[k]) is None]
    storage.room(folder, sum(int(np.prod(shapes[k])) for _, k, _ in wanted), what="The condition pictures need")
    for source, k, key in wanted:
        home, kept = homes[k], rests[k]["kept"]
        told = partial(tell, f"making the {source.name} pictures of {home.name}")
        if source.network is None:
            track = storage.read_arrays(folder / storage.TRACKS / f"{named[k]['sha256']}.npz")
            made = _recorded(source.files[k], track, rests[k], shapes[k][1:3])
        else:
            made = _by_network(source.network, storage.mapped(home / "frames.npy"), kept)
        with storage.frames_file(_path(home, source.name, key), shapes[k]) as write:
            for number, picture in enumerate(made, 1):
                write(picture)
                told(number, len(kept))
    storage.write_json(folder / INDEX, keys)
    current = {_path(home, name, each[home.name]) for name, each in keys.items() for home in homes}
    storage.clear(*(path for home in homes for path in home.glob(f"{PREFIX}*.npy") if path not in current))


def read(folder: Path, clip: str, shape: tuple[int, ...]) -> dict[str, UInt8Array]:
    """By name, of one clip, mapped from the disk, [N, H, W, 3] = `shape`. Raises AvatarError where one is damaged."""
    found = {}
    for name, each in _keys(folder).items():
        held = _opened(path := _path(folder / "clips" / clip, name, each.get(clip, "")), shape)
        if held is None:
            raise AvatarError(f"'{path}' is damaged; collect again with --maps {name}=FILE.")
        found[name] = held
    return found


def names_in(folder: Path) -> tuple[str, ...]:
    """Of those that a data set has; none where there is no set, or one that is not whole, which may yet be begun anew with other videos."""
    return tuple(_keys(folder)) if (folder / storage.INDEX).exists() else ()


def key_of(data: Dataset, names: Sequence[str]) -> str:
    """Names what the pictures that a run learns from were made of."""
    keys = _keys(data.folder)
    return hashlib.sha256(json.dumps([keys.get(name) for name in names], sort_keys=True).encode()).hexdigest()[:16]


# -- one clip -------------------------------------------------------------------------------------------------------------


def _by_network(path: Path, frames: UInt8Array, kept: npt.NDArray[np.bool_]) -> Iterator[UInt8Array]:
    """What a network makes of every kept frame [N, H, W, 3]: it sees them as a live one sees the driving picture, in the generator's size."""
    size = frames.shape[1], frames.shape[2]
    network, black = Network(path, size=size), np.zeros((*size, 3), np.uint8)
    for k, frame in enumerate(frames):
        yield network(VideoFrame(np.asarray(frame), 0.0)) if kept[k] else black


def _recorded(clip: Path, track: Mapping[str, npt.NDArray[Any]], rest: Mapping[str, npt.NDArray[Any]], size: tuple[int, ...]) -> Iterator[UInt8Array]:
    """The pictures of a clip for every frame, picture for picture, cut as the video's are."""
    if "rect" not in rest:
        raise AvatarError("The data set was collected before it kept where its frames were cut from; collect it anew, in another folder.")
    x, y, width, height = (int(value) for value in rest["rect"])
    whole = int(track["size"][0]), int(track["size"][1])
    fit, black = Fit.of((x, y, width, height), whole), np.zeros((*size, 3), np.uint8)
    pictures, now, made = video_frames(clip), 0, black
    for number, good in zip(track["shown"], rest["kept"], strict=True):
        if not good:
            yield black
            continue
        if now != number:  # a slower video shows a picture in several frames
            picture = next((one for one in pictures if one.id == number), None)
            if picture is None:
                raise AvatarError(f"'{clip.name}' cannot be read to its end; record it again.")
            now, made = int(number), squeezed(fit.cut(squeezed(picture.rgb, whole)), size)
        yield made


def _beside(folder: Path, video: Path, videos: Sequence[Path]) -> Path:
    """The clip in a folder that belongs to a video, by its name. Raises AvatarError where there is not exactly one."""
    if sum(other.stem == video.stem for other in videos) > 1:
        raise AvatarError(f"Two videos are called '{video.stem}', so that no clip in '{folder}' is one's alone; rename one of them.")
    clips = [path for path in sorted(folder.iterdir()) if path.stem == video.stem and path.suffix.lower() in storage.SUFFIXES]
    if len(clips) != 1:
        there = "no clip" if not clips else f"{len(clips)} clips"
        raise AvatarError(f"The folder '{folder}' has {there} called '{video.stem}'; put one there for '{video.name}', such as {video.stem}.mp4.")
    return clips[0]


def _check_counts(pairs: Sequence[tuple[Path, Path]]) -> None:
    """Raise AvatarError where a clip, which is matched to its video picture by picture, has more or fewer. Both are decoded."""
    counts = {path: picture_count(path) for pair in pairs for path in pair}
    for clip, video in pairs:
        if counts[clip] != counts[video]:
            told = f"'{clip.name}' has {counts[clip]} pictures and '{video.name}' {counts[video]}"
            raise AvatarError(f"{told}; record one for every picture of the video, and no more.")


def _check_shape(clip: Path, video: Path) -> None:
    """Raise AvatarError where a clip has no pictures, or of another shape than the video's."""
    if not probe(clip).has_video:
        raise AvatarError(f"'{clip.name}' has no video; give a clip of condition pictures.")
    sizes = []
    for path in (clip, video):
        first = next(video_frames(path), None)
        if first is None:
            raise AvatarError(f"Not one picture of '{path.name}' can be decoded; convert it to an ordinary MP4 and try again.")
        sizes.append(first.rgb.shape[:2])
    (height, width), (down, across) = sizes
    if abs(width / height * down / across - 1.0) > SHAPE:
        raise AvatarError(f"'{clip.name}' is {width} x {height} and '{video.name}' {across} x {down}; record pictures of the video's shape.")


# -- files ----------------------------------------------------------------------------------------------------------------


def _digest(file: Path) -> str:
    """Names pictures by what makes them."""
    try:
        return hashlib.sha256(f"{WAY} {sha256(file)}".encode()).hexdigest()[:16]
    except OSError as error:
        raise AvatarError(f"'{file}' cannot be read ({error.strerror or error}); check its name and permissions.") from error


def _path(home: Path, name: str, key: str) -> Path:
    return home / f"{PREFIX}{name}-{key}.npy"


def _keys(folder: Path) -> Keys:
    path = folder / INDEX
    if not path.exists():
        return {}
    try:
        return {str(name): {str(clip): str(key) for clip, key in each.items()} for name, each in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise AvatarError(f"'{path}' is damaged; remove it and collect again with --maps.") from error


def _opened(path: Path, shape: tuple[int, ...]) -> UInt8Array | None:
    """None where it is not there, not whole, or of another clip."""
    try:
        held: UInt8Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return held if held.shape == shape and held.dtype == np.uint8 else None


__all__ = ["INDEX", "Source", "add", "check", "find", "key_of", "names_in", "read"]
