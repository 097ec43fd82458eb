"""What a data set's training part teaches the puppet, kept beside the reference, and how like the person the puppet is at every stage."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from engine.generators.puppet.assets import PuppetAssets, pack, unpack
from engine.types import AvatarError, FloatArray, Motion, UInt8Array
from exporters.data import look as looks
from exporters.data import plates, storage
from exporters.data.coarse import Coarse
from exporters.data.regions import Likeness, likeness

STAGES = {
    "puppet": "alone",
    "plate": "with the clip's background",
    "assets": "with its shoulders and outline too",
    "look": "with how the looks change too",
}
"""In order, in words. The first has its head laid where the real one is, the others move as they do live; `coarse.npy` is made with the last.
Where nothing helps there is only the first."""


@dataclass(frozen=True, slots=True)
class Part:
    """One clip of a data set, N frames."""

    real: UInt8Array  # [N, H, W, 3]
    faces: FloatArray  # [N, 478, 2] px
    motions: Sequence[Motion | None]  # [N] as the tracker has them
    laid: Sequence[Motion | None]  # [N] as `Coarse.acted` has them without assets
    train: list[int]  # frames that may be learnt from
    held_out: list[int]


@dataclass(frozen=True, slots=True)
class Findings:
    """What a data set's training part taught."""

    assets: PuppetAssets | None  # None: nothing helps
    apart: looks.Apart  # first frame of the clip that the portrait is of, look: `look.Learnt`


def learnt(path: Path, portrait: UInt8Array, part: Part, plain: Coarse, tell: Callable[[str, int, int], None]) -> Findings:
    """What is kept at `path`, or else is learnt from the training frames of the clip that the portrait is of, and kept.

    What lies beside it (APART) is only needed until the set is whole.
    """
    beside = path.with_name(storage.APART)
    if not path.exists():
        storage.clear(beside)  # of a try that came no further
        frames, made, apart = part.train, None, looks.Apart()
        if sum(part.motions[k] is not None for k in frames) >= plates.FEWEST:
            pictures, motions = [part.real[k] for k in frames], [part.motions[k] for k in frames]
            lesson = plates.Lesson(pictures, motions, part.faces[frames], lambda k: plain.frame(part.laid[frames[k]]))
            made = plates.learn(portrait, lesson, progress=tell)
            if made is not None:
                made, apart = _with_looks(made, part, plain.with_assets(made), tell)
        looks_apart = np.stack([one for _, one in apart]) if apart else PuppetAssets.no_look()[None][:0]
        storage.write_arrays(beside, starts=np.array([start for start, _ in apart], np.int64), looks=looks_apart)
        storage.write_arrays(path, learnt=np.array(made is not None), **({} if made is None else pack(made)))
    held = storage.read_arrays(beside)
    return Findings(read(path), [(int(start), one) for start, one in zip(held["starts"], held["looks"], strict=True)])


def _with_looks(assets: PuppetAssets, part: Part, taught: Coarse, tell: Callable[[str, int, int], None]) -> tuple[PuppetAssets, looks.Apart]:
    acted = [(k, motion) for k in part.train if (motion := part.motions[k]) is not None]
    frames = [k for k, _ in acted]
    study = looks.Study([motion for _, motion in acted], [part.real[k] for k in frames], part.faces[frames], lambda i: taught.seen(acted[i][1]))
    found = looks.learn(assets, study, progress=tell)
    return found.assets, [(frames[start], one) for start, one in found.apart]


def unlearnt(taught: Coarse, part: Part, apart: looks.Apart) -> Callable[[int], Coarse]:
    """Which puppet shows each frame of the clip that was learnt from: for frames to train on, one whose look was not learnt
    from their own part."""
    if taught.assets is None or not apart:
        return lambda frame: taught
    made = [taught.with_assets(replace(taught.assets, look=one)) for _, one in apart]
    starts, train = [start for start, _ in apart], set(part.train)
    return lambda frame: made[max(0, bisect_right(starts, frame) - 1)] if frame in train else taught


def read(path: Path) -> PuppetAssets | None:
    """What `learnt` kept. Raises AvatarError where it is not that."""
    arrays = storage.read_arrays(path)
    try:
        return unpack(arrays) if arrays["learnt"] else None
    except (AvatarError, KeyError) as error:
        raise AvatarError(f"'{path}' is damaged; remove the data set and make it again.") from error


def figures(parts: Sequence[Part], plain: Coarse, taught: Coarse) -> dict[str, dict[str, float]]:
    """STAGES -> `Likeness` of the held-out frames, in dB; empty where none is held out. Nothing of these frames was learnt from."""
    at = [(part, k) for part in parts for k in part.held_out]
    if not at:
        return {}
    ways: dict[str, Callable[[Part, int], UInt8Array]] = {"puppet": lambda part, k: plain.frame(part.laid[k])}
    if taught.assets is not None:
        known = taught.with_assets(plates.unmoved(taught.assets.plate))
        ways["plate"] = lambda part, k: known.frame(part.motions[k])
        still = taught.with_assets(replace(taught.assets, look=PuppetAssets.no_look()))
        ways["assets"] = lambda part, k: still.frame(part.motions[k])
        if len(taught.assets.look):
            ways["look"] = lambda part, k: taught.frame(part.motions[k])
    faces = np.stack([part.faces[k] for part, k in at])
    found = {name: likeness(((show(part, k), part.real[k]) for part, k in at), faces) for name, show in ways.items()}
    return {name: {key: round(value, 3) for key, value in asdict(one).items()} for name, one in found.items()}


def in_words(told: dict[str, dict[str, float]]) -> str:
    """A sentence for a person."""
    if "assets" not in told:
        return "The clip teaches the puppet nothing that makes it more like the person, so it is used as it is."
    parts = [f"{told[name]['crop_db']:.1f} dB (mouth and eyes {told[name]['features_db']:.1f}) {how}" for name, how in STAGES.items() if name in told]
    return f"The puppet on held-out frames: {', '.join(parts)}."


__all__ = ["STAGES", "Findings", "Likeness", "Part", "figures", "in_words", "learnt", "read", "unlearnt"]
