"""Which frames of a clip are good enough to learn from, which one is the portrait, and which are kept for the test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.drivers.calibrate import FRONTAL, LOWERED, OPEN_QUANTILE, PARTED, SLOW, STEADY, WIDTH_SPREAD
from engine.drivers.express import ASIDE_YAW
from engine.drivers.measure import measure
from engine.drivers.portrait import RIVAL
from engine.pose import Float64Array
from engine.types import FloatArray, Motion
from exporters.data.footage import FPS, Footage
from exporters.data.motions import Heads

BoolArray = npt.NDArray[np.bool_]

REASONS = ("no whole picture", "no face", "two faces", "cut off", "blurred", "scene cut", "camera moved", "extreme pose", "mouth covered")
"""Why a frame is dropped; the first that holds is the one that is counted. Numbers in `Judged.reason` start at 1; 0 = kept."""
TURN_MOST = np.array([30.0, 22.0, 32.0])
"""Degrees of yaw, pitch and roll from the portrait beyond which the puppet's frame is a ruin."""
SHIFT_MOST, NEARER_MOST = 0.5, 0.3
"""Face widths, and log of the scale, beyond which the head has left the puppet's reach."""
CUT_OFF = 0.04
"""Share of the face's points that may lie outside the picture or the crop."""
SHARP_SHARE = 0.6
"""Of the clip's usual sharpness; below it the face is blurred."""
COVERED = 0.5
"""Confidence of the mouth below which something lies over it."""
CUT, CUT_TIMES = 18.0, 6.0
"""Mean grey levels of change, and times the clip's usual change, that are a cut."""
STILL = np.array([0.008, 0.008, 0.008, 0.5])
"""Picture heights (x, y), log scale and degrees the camera may have moved since the reference frame: 2 px of 256."""
MANY = 0.1
"""Share of a clip's frames whose loss is worth a word."""
SLOW_CAMERA, BREAKS_OFF = 22.0, 1.5
"""Pictures a second, and s between the file's length and what is read of it, from which it is said."""
HELD_OUT, WINDOW = 0.2, 16
"""Share of the kept frames at the end of each clip that is held out, and frames left out before them."""
REFERENCE_FROM = 0.75
"""Share of a clip's usable frames, from its start, in which the reference is looked for: the held-out ones stay unseen."""
ASIDE, NEARER, SOFT, EXPRESSED, FAR = 0.2, 0.1, 0.15, 0.06, 3.0
"""What costs 1 in a reference: face widths and log of the scale from the head's usual place, share of sharpness lacking, and inter-ocular
distances (of gaze: eye widths) of brows, corners of the mouth and gaze away from their usual places. A camera that moved costs at most FAR^2."""
USUALLY_BEST, SHUT = 0.9, 0.1
"""Quantiles of the sharpness that counts as full, and of the lip gap that counts as shut."""
VIEW_YAWS, VIEW_REACH = (-24.0, -12.0, 12.0, 24.0), 5.0
"""Degrees of yaw of the further views, and how far one may be off."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One clip's frames."""

    reason: npt.NDArray[np.uint8]  # [N] 0 = kept, else 1 + index in REASONS

    @property
    def kept(self) -> BoolArray:
        """[N] whether a frame is good enough."""
        kept: BoolArray = np.equal(self.reason, 0)
        return kept

    def spans(self) -> list[tuple[int, int, str]]:
        """[start, stop) of every stretch of frames dropped for one reason."""
        return sorted((a, b, name) for k, name in enumerate(REASONS, 1) for a, b in runs(self.reason == k))

    def counts(self) -> dict[str, int]:
        """Dropped frames by reason, those that occur."""
        return {name: int((self.reason == k).sum()) for k, name in enumerate(REASONS, 1) if (self.reason == k).any()}


def cuts(footage: Footage) -> BoolArray:
    """[N] frames that are the first of a new shot."""
    usual = max(1.0, float(np.median(footage.change)))
    found: BoolArray = (footage.change > CUT) & (footage.change > CUT_TIMES * usual)
    return found


def judge(footage: Footage, crop_face: FloatArray, made: list[Motion | None], neutral: int) -> Judged:
    """`crop_face` [N, 478, 2]: 0..1 of the crop; `neutral`: the frame of this clip whose camera is the one to keep to."""
    count = len(footage)
    head = np.array([np.full(6, np.nan) if m is None else m.head for m in made]).reshape(count, 6)
    with np.errstate(invalid="ignore"):
        unseen = ~np.isfinite(head[:, 0])
        outside = np.maximum(_outside(crop_face), _outside(footage.face)) > CUT_OFF
        extreme = (np.abs(head[:, :3]) > TURN_MOST).any(1) | (np.abs(head[:, 3:5]) > SHIFT_MOST).any(1) | (np.abs(head[:, 5]) > NEARER_MOST)
    usual = float(np.median(footage.sharp[~unseen])) if (~unseen).any() else 0.0
    tests = (
        footage.shown == 0,
        unseen,
        footage.crowd > RIVAL,
        outside,
        footage.sharp < SHARP_SHARE * usual,
        cuts(footage),
        camera_moved(footage, neutral),
        extreme,
        footage.mouth < COVERED,
    )
    reason = np.zeros(count, np.uint8)
    for number, test in enumerate(tests, 1):
        reason[(reason == 0) & test] = number
    return Judged(reason)


def _outside(face: FloatArray) -> FloatArray:
    """[N] share of the points [N, 478, >= 2] that lie outside 0..1."""
    inside = ((face[..., :2] >= 0.0) & (face[..., :2] <= 1.0)).all(2)
    share: FloatArray = 1.0 - inside.mean(1)
    return share


def camera_moved(footage: Footage, neutral: int) -> BoolArray:
    """[N] frames whose background does not lie where it does in the neutral frame. A plain background tells nothing."""
    place = footage.place[neutral]
    if place < 0:
        return np.zeros(len(footage), bool)
    way = np.abs(footage.moved - footage.moved[neutral])
    gone: BoolArray = (footage.place != place) | (way > STILL).any(1)
    return gone


def cost(footage: Footage, heads: Heads) -> Float64Array:
    """[N] how far a frame is from a frontal, still, neutral, sharp one with shut lips and open eyes; inf where it cannot be the reference."""
    total = np.full(len(footage), np.inf)
    seen = heads.seen & (footage.shown > 0) & (footage.crowd <= RIVAL) & (footage.mouth >= COVERED) & (_outside(footage.face) <= CUT_OFF)
    if seen.any():
        places, times = np.unique(footage.place[seen], return_counts=True)
        seen &= footage.place == places[np.argmax(times)]
    at = np.flatnonzero(seen)
    if not len(at):
        return total
    total[at] = _pose_cost(heads.vector[at]) + _face_cost(heads.shape[at])
    sharp = footage.sharp[at] / max(1e-6, float(np.quantile(footage.sharp[at], USUALLY_BEST)))
    total[at] += (np.maximum(0.0, 1.0 - sharp) / SOFT) ** 2
    camera = np.abs(footage.moved[at] - np.median(footage.moved[at], axis=0)) / STILL
    total[at] += np.minimum(camera, FAR).max(1) ** 2
    total[at[int(np.ceil(REFERENCE_FROM * len(at))) :]] = np.inf
    return total


def _pose_cost(vector: Float64Array) -> Float64Array:
    """[M] of head vectors [M, 6]: turned, away from where the head mostly is, in motion."""
    usual = np.median(vector, axis=0)
    # The tracker's yaw and pitch are off by as much as faces differ, and a camera may stand a little aside.
    straight = (np.clip(usual[0], -ASIDE_YAW, ASIDE_YAW), usual[1], 0.0)
    turned = ((vector[:, :3] - straight) / FRONTAL) ** 2
    shift = (vector[:, 3:5] - usual[3:5]) / np.exp(vector[:, 5:6]) / ASIDE
    speed = np.abs(np.gradient(vector[:, :3], axis=0)).max(1) * FPS if len(vector) > 1 else np.zeros(1)
    away = (shift**2).sum(1) + ((vector[:, 5] - usual[5]) / NEARER) ** 2
    total: Float64Array = turned.sum(1) + away + (np.maximum(0.0, speed - STEADY) / SLOW) ** 2
    return total


def _face_cost(shapes: Float64Array) -> Float64Array:
    """[M] of shapes [M, 478, 3]: lids, lips, brows and gaze away from rest."""
    faces = [measure(shape) for shape in shapes]
    lids, gaps = np.stack([face.lids for face in faces]), np.array([face.gap for face in faces])
    widths, corners = np.array([face.width for face in faces]), np.array([face.corners for face in faces])
    brows, gaze = np.stack([face.brows for face in faces]), np.stack([face.gaze.mean(0) for face in faces])
    total: Float64Array = (np.abs(1.0 - lids / np.quantile(lids, OPEN_QUANTILE, axis=0)) / LOWERED).max(1) ** 2
    total += (np.maximum(0.0, gaps - np.quantile(gaps, SHUT)) / PARTED) ** 2
    total += ((widths - np.median(widths)) / WIDTH_SPREAD) ** 2
    for values in (corners[:, None], brows, gaze):
        total += (((values - np.median(values, axis=0)) / EXPRESSED) ** 2).mean(1)
    return total


def split(kept: BoolArray) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(train, held out) runs [start, stop) of consecutive kept frames: the last HELD_OUT of the kept ones, WINDOW frames before them in neither."""
    order = np.flatnonzero(kept)
    last = round(HELD_OUT * len(order))
    if not last:
        return runs(kept), []
    first = int(order[len(order) - last])
    train, test = kept.copy(), kept.copy()
    train[max(0, first - WINDOW) :] = False
    test[:first] = False
    return runs(train), runs(test)


def runs(flags: BoolArray) -> list[tuple[int, int]]:
    """[start, stop) of every stretch of true values."""
    edges = np.flatnonzero(np.diff(np.r_[False, flags, False].astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def views(costs: Float64Array, yaws: FloatArray) -> list[int]:
    """Frames that show the head turned by about each of VIEW_YAWS, the best of each."""
    found = []
    for yaw in VIEW_YAWS:
        with np.errstate(invalid="ignore"):
            near = np.flatnonzero((np.abs(yaws - yaw) < VIEW_REACH) & np.isfinite(costs))
        if len(near):
            found.append(int(near[np.argmin(costs[near])]))
    return found


# -- what a person should know --------------------------------------------------------------------------------------------


def report(files: list[str], clips: list[Footage], judged: list[Judged]) -> dict[str, Any]:
    """Seconds kept, frames dropped by reason, the same for each clip, and sentences for a person."""
    dropped: dict[str, int] = {}
    told: list[dict[str, Any]] = []
    sentences: list[str] = []
    for file, footage, verdict in zip(files, clips, judged, strict=True):
        counts, kept = verdict.counts(), int(verdict.kept.sum())
        dropped = {reason: dropped.get(reason, 0) + counts.get(reason, 0) for reason in REASONS if reason in dropped or reason in counts}
        told.append({"file": file, "frames": len(footage), "kept": kept, "dropped": counts, "spans": verdict.spans()})
        sentences.append(f"{file}: {kept} of {len(footage)} frames kept, {kept / FPS:.1f} s{why(counts)}.")
        sentences += [f"{file}: {sentence}" for sentence in notices(footage, counts)]
    kept = sum(int(verdict.kept.sum()) for verdict in judged)
    return {"frames": sum(map(len, clips)), "kept": kept, "seconds": kept / FPS, "dropped": dropped, "clips": told, "sentences": sentences}


def why(counts: dict[str, int]) -> str:
    """In words."""
    return f" (dropped: {', '.join(f'{number} {reason}' for reason, number in counts.items())})" if counts else ""


def notices(footage: Footage, counts: dict[str, int]) -> Iterator[str]:
    """What is no mistake of a clip but makes it worth less."""
    if counts.get("camera moved", 0) > MANY * len(footage):
        yield "The camera moved; put it on something that stands still."
    if (footage.place < 0).all():
        yield "The background is too plain to tell whether the camera moved."
    if not footage.heard:
        yield "There is no sound that can be read, so nothing of the voice can be learnt."
    shown = footage.shown[footage.shown > 0]
    if (rate := FPS * len(np.unique(shown)) / max(1, len(shown))) < SLOW_CAMERA:
        yield f"The camera gave only {rate:.0f} pictures a second, so some stand twice; more light makes it faster."
    if (lost := counts.get(REASONS[0], 0)) > BREAKS_OFF * FPS:
        yield f"{lost / FPS:.1f} s of the pictures are missing or damaged; copy the file again, or record it again."
    if len(footage) / FPS < footage.duration - BREAKS_OFF:
        yield f"Only the first {len(footage) / FPS:.0f} of {float(footage.duration):.0f} s can be read; the file is damaged."


__all__ = ["HELD_OUT", "REASONS", "RIVAL", "WINDOW", "Judged", "cost", "cuts", "judge", "notices", "report", "runs", "split", "views", "why"]
