"""What `serve` and `render` are told about what drives, made into drivers. Everything heavy is imported when it is used."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.config import Background
    from engine.drivers.dwpose import DWPose
    from engine.drivers.maps import Maps
    from engine.types import GeneratorSpec

Maker = Callable[[], Any]
NETWORK = ".onnx"
"""Ending of a file that makes condition pictures; others are clips of them."""


def dwpose_makers(folder: str | Path | None) -> dict[str, Maker]:
    """Makers of the drivers of "body" and "hands" of any number of sessions, on networks that are loaded once, with the first driver; none for None.

    Raises AvatarError at once where a file is missing; the makers where one is damaged or another network.
    """
    if folder is None:
        return {}
    from engine.drivers.dwpose import DWPose, files
    from engine.drivers.dwpose_drivers import DWPoseBody, DWPoseHands

    files(folder)
    lock, loaded = threading.Lock(), list[DWPose]()

    def networks() -> DWPose:
        with lock:
            if not loaded:
                loaded.append(DWPose(folder))
            return loaded[0]

    return {"body": lambda: DWPoseBody(networks()), "hands": lambda: DWPoseHands(networks())}


def background(value: str) -> Background:
    """`--background`. Raises AvatarError for what is neither a kind, nor a colour, nor a picture that can be read."""
    from engine.config import Background
    from engine.picture import read_picture
    from engine.types import AvatarError

    if value in ("keep", "blur"):
        return Background(kind="keep" if value == "keep" else "blur")
    if value.startswith("#"):
        try:
            red, green, blue = bytes.fromhex(value[1:])
        except ValueError:
            raise AvatarError(f"'{value}' is not a colour; write it as #rrggbb, for example #00b140.") from None
        return Background(kind="colour", colour=(red, green, blue))
    return Background(kind="picture", picture=read_picture(value))


def open_maps(chosen: Sequence[str], *, size: tuple[int, int], drive: str | Path) -> Maps | None:
    """`--maps NAME=FILE ...`: recorded clips, or networks (.onnx), for a generator's frames of `size` (H, W); None where there are none.

    Raises AvatarError for a name that is none, a file that cannot be read, a network beside recorded signals, which have no pictures, and a
    clip that is shorter than the drive.
    """
    if not chosen:
        return None
    from engine.drivers.maps import HELD, Maps, MapSource, Network, Recorded
    from engine.media import probe, video_frames
    from engine.offline import RECORDING
    from engine.types import AvatarError

    sources: dict[str, MapSource] = {}
    recorded = Path(drive).suffix.lower() == RECORDING
    for name, file in map_files(chosen).items():
        if Path(file).suffix.lower() == NETWORK:
            if recorded:
                raise AvatarError(f"Recorded signals have no pictures for '{file}' to read; drive with a clip, or give a clip of condition pictures.")
            sources[name] = Network(file, size=size)
            continue
        clip = probe(file)
        if not clip.has_video:
            raise AvatarError(f"'{clip.path.name}' has no video; give a clip of condition pictures.")
        length = 0.0 if recorded else probe(drive).duration
        if clip.duration + HELD < length:
            raise AvatarError(f"'{clip.path.name}' is {clip.duration:.1f} s long and the drive {length:.1f} s; record it over all of the drive.")
        sources[name] = Recorded(clip.path.name, video_frames(file), size=size)
    return Maps(sources)


def map_options(names: Sequence[str]) -> str:
    """The options by which weights that are driven by these condition pictures are served, in words; empty for most."""
    return "".join(f" --maps {name}=FILE{NETWORK}" for name in names)


def live_maps(chosen: Sequence[str], spec: GeneratorSpec) -> Maps | None:
    """The same for live sessions, which share the networks; None for a generator that is not driven by condition pictures.

    Raises AvatarError for a clip, which a camera has not beside it, a damaged file, a name that the generator needs and is not there, and one
    that it does not read.
    """
    from engine.types import AvatarError

    given = live_map_files(chosen)
    told = ", ".join(spec.maps)
    if "maps" not in spec.needs:
        if given:
            raise AvatarError(f"The generator '{spec.name}' reads no condition pictures with these weights; leave --maps out.")
        return None
    if not given or (missing := [name for name in spec.maps if name not in given]):
        what = f"These weights are driven by condition pictures{f' ({told})' if told else ''}"
        lacking = f", and there is no {' and no '.join(missing)}" if given else ""
        how = map_options(spec.maps or ("NAME",))
        raise AvatarError(f"{what}{lacking}; give a network for each with{how}, or use `avatar render`, which takes clips of them too.")
    if spec.maps and (unread := [name for name in given if name not in (*spec.maps, *spec.more_maps)]):
        raise AvatarError(f"These weights are driven by {told} and read no {' and no '.join(unread)}; leave that --maps out.")
    from engine.drivers.maps import Maps, Network

    return Maps({name: Network(file, size=spec.size, threads=1) for name, file in given.items()})


def live_map_files(chosen: Sequence[str]) -> dict[str, str]:
    """Those of `chosen` by name. Raises AvatarError for one that is no network, as for a name that is none."""
    from engine.types import AvatarError

    files = map_files(chosen)
    for name, file in files.items():
        if Path(file).suffix.lower() != NETWORK:
            raise AvatarError(f"'{file}' is no network, and a camera has no clip beside it; give an ONNX file that makes {name} of a picture.")
    return files


def map_files(chosen: Sequence[str]) -> dict[str, str]:
    """`--maps NAME=FILE ...` by name. Raises AvatarError for a name that is none, or twice."""
    from engine.drivers.maps import NAMES
    from engine.types import AvatarError

    made: dict[str, str] = {}
    for entry in chosen:
        name, _, file = entry.partition("=")
        if name not in NAMES or not file or name in made:
            raise AvatarError(f"'{entry}' names no condition pictures; write --maps NAME=FILE, each name once, with one of: {', '.join(NAMES)}.")
        made[name] = file
    return made


__all__ = ["background", "dwpose_makers", "live_map_files", "live_maps", "map_files", "map_options", "open_maps"]
