"""The hands of a data set's clips, for presets whose skeletons have them: looked for in the whole pictures, as a live session looks for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from engine.config import BODY_EVERY, HANDS_EVERY
from engine.drivers.hands import MOST, HandsDriver, HandsReading
from engine.drivers.readings import hands_at, same_hand
from engine.types import HAND_POINTS, AvatarError, FloatArray
from exporters.data import storage
from exporters.data.footage import pictures
from exporters.data.painted import into_crop

if TYPE_CHECKING:
    from exporters.data.pairs import Progress

FILE = "hands.npz"
"""In the folder of a clip; data sets that were collected before, or for presets that show none, have none."""


def keep(video: Path, folder: Path, named: Mapping[str, str], tell: Progress) -> None:
    """Write what is seen of a video's hands into the folder of its clip, if it is not there; `named`: see `storage.identify`."""
    home = folder / "clips" / named["name"]
    if not (home / FILE).exists():
        found = watch(video, storage.read_arrays(storage.track(folder, named)), partial(tell, f"looking for hands in {video.name}"))
        storage.write_arrays(home / FILE, hands=found)


def kept(home: Path, track: Mapping[str, npt.NDArray[Any]], face: FloatArray, good: npt.NDArray[np.bool_]) -> FloatArray | None:
    """What `keep` wrote, in px of the clip's crop [N, 2, 21, 2], NaN where a hand is not seen; None where nobody looked. `track`, `face`, `good`: see
    `painted.body_of`. Raises AvatarError where it is damaged."""
    if not (home / FILE).exists():
        return None
    hands = storage.read_arrays(home / FILE).get("hands")
    if hands is None or hands.shape != (len(face), MOST, HAND_POINTS, 3):
        raise AvatarError(f"'{home / FILE}' is damaged; remove it and collect again.")
    way = into_crop(track, face, good)
    if way is None:
        return np.full((*hands.shape[:3], 2), np.nan, np.float32)
    seen = hands[..., :2].any((2, 3))
    return np.where(seen[..., None, None], way(hands[..., :2]), np.float32(np.nan)).astype(np.float32)


def watch(video: Path, track: Mapping[str, npt.NDArray[Any]], tick: Callable[[int, int], None]) -> FloatArray:
    """[N, 2, 21, 3] as in `Signal.hands`, of every frame; all zero for a hand that is not seen."""
    count = len(track["time"])
    found, looks = np.zeros((count, MOST, HAND_POINTS, 3), np.float32), list[int]()
    reading: HandsReading | None = None
    looked, driver = -BODY_EVERY, HandsDriver()
    before = 0  # the picture that was looked at last: a slower camera shows it in several frames
    try:
        for number, picture in pictures(video):
            if number >= count:
                break
            here = picture is not None and picture.id == track["shown"][number]
            every = HANDS_EVERY if reading is not None and reading.followed else BODY_EVERY
            if picture is not None and here and picture.id != before and number - looked >= every:
                face = track["face"][number]
                seen = {"face": face, "mouth": float(track["mouth"][number])} if np.isfinite(face).all() else {}
                reading, looked, before = driver(picture, **seen), number, picture.id
                looks.append(number)
            if here and reading is not None:
                shown, _ = hands_at(reading, float(track["time"][number]))
                found[number] = 0.0 if shown is None else shown
            tick(number + 1, count)
    finally:
        driver.close()
    _bridge(found, looks, track["time"])
    return found


def _bridge(found: FloatArray, looks: list[int], time: FloatArray) -> None:
    """The frames between two looks at the same hand are filled in straight."""
    for a, b in zip(looks[:-1], looks[1:], strict=True):
        if not 1 < b - a <= 2 * HANDS_EVERY:
            continue
        for slot in range(MOST):
            if same_hand(found[a, slot], found[b, slot]):
                share = ((time[a + 1 : b] - time[a]) / (time[b] - time[a]))[:, None, None]
                found[a + 1 : b, slot] = found[a, slot] + share * (found[b, slot] - found[a, slot])


__all__ = ["FILE", "keep", "kept", "watch"]
