"""How good a network is on motion it has not seen, in figures and in a picture to look at."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch

from engine.generators.diffusion.autoencoder import to_pixels
from engine.generators.diffusion.networks import Networks
from engine.generators.diffusion.sampler import levels
from engine.generators.diffusion.trust import Trust, blend
from engine.types import FloatArray, UInt8Array
from exporters.data.regions import mouth
from exporters.training.batches import Batch, Batches, spans, unit
from exporters.training.identity import IdentityLoss
from exporters.training.losses import sharpness
from exporters.training.objectives import rollout, scene, seen

RUN_FRAMES, RUNS_EACH = 17, 6
"""Frames of a run that is judged now and then, just longer than the window, and how many runs of each clip: evenly spread over what was held
out, as three places may all be hard ones."""
PIECE, PIECES = 25, 24
"""Frames of a run where all that was held out is judged, each of which begins with an empty window, as a session does; and how many of them at
most, evenly spread: two megabytes a frame are held."""

FACE_EVERY = 5
"""Frames of a run from one face to the next that a recogniser looks at: it takes longer than a small generator does."""

PEAK = 255.0
"""Of a picture's values."""


@dataclass(frozen=True, slots=True)
class Run:
    """N consecutive frames that no step trains on."""

    batch: Batch
    points: FloatArray  # [N, 478, 2] px of the puppet's face
    confidence: FloatArray  # [N, 3] see `trust`
    mouth: FloatArray  # [N, H, W] 0..1, in the real pictures
    puppet: UInt8Array  # [N, H, W, 3] its frames


@dataclass(frozen=True, slots=True)
class Figures:
    """Of held-out frames."""

    features_db: float  # PSNR of mouth and eyes
    mouth_db: float  # of the mouth alone
    crop_db: float  # PSNR of the whole picture
    sharp: float  # high-frequency energy of the face, truth = 1
    identity: float | None = None  # mean cosine between a recogniser's vectors of it and of the real face; None where there is no recogniser


@dataclass(frozen=True, slots=True)
class Judged:
    """The puppet beside the network, by number of steps."""

    puppet: Figures
    made: dict[int, Figures]

    def gain(self, steps: int) -> tuple[float, float]:
        """dB over the puppet: mouth and eyes, whole picture."""
        return self.made[steps].features_db - self.puppet.features_db, self.made[steps].crop_db - self.puppet.crop_db


def held_out(batches: Batches, trust: Trust, *, all_of_it: bool = False, most: int | None = None) -> list[Run]:
    """Runs of frames that no step trains on: some, or all of them; `most` at most, evenly."""
    found = list[tuple[int, int, int]]()
    pieces = spans(batches.data.clips, 2, held_out=True)
    for clip, start, stop in pieces:
        if all_of_it:
            places = [(first, min(first + PIECE, stop)) for first in range(start, stop, PIECE)]
            every = max(1, -(-len(places) * len(pieces) // PIECES))
            places = places[::every]
        else:
            length = min(RUN_FRAMES, stop - start)
            places = [(first, first + length) for first in sorted({int(x) for x in np.linspace(start, stop - length, RUNS_EACH)})]
        found += [(clip, *place) for place in places]
    if most is not None and len(found) > most:
        found = [found[k] for k in np.linspace(0, len(found) - 1, most).round().astype(int)]
    return [_run(batches, trust, *place) for place in found]


def _run(batches: Batches, trust: Trust, number: int, start: int, stop: int) -> Run:
    clip, size = batches.data.clips[number], batches.data.size
    confidence = np.stack([trust.confidence(motion) for motion in clip.motion[start:stop]])
    masks = np.stack([mouth(face, size) for face in clip.face[start:stop]])
    return Run(batches.take(number, start, stop), clip.points[start:stop], confidence, masks, clip.coarse[start:stop])


@torch.no_grad()
def generate(networks: Networks, run: Run, steps: int) -> UInt8Array:
    """All steps of a run of frames, as streamed and shown: where they cannot be believed it is the puppet, if that is their condition
    -> [N, H, W, 3]."""
    device = next(networks.parameters()).device
    batch = run.batch.to(device)
    at = levels(networks.preset.noise, steps).to(device)
    clean = rollout(networks, at, scene(networks, batch), exit=steps - 1)
    made = to_pixels(seen(networks, clean, batch)).cpu().numpy()
    if networks.preset.condition != "puppet":
        return np.asarray(made, np.uint8)
    each = zip(made, run.puppet, run.points, run.confidence, strict=True)
    return np.stack([blend(picture, puppet, points, believed) for picture, puppet, points, believed in each])


def real(runs: Sequence[Run]) -> UInt8Array:
    """Their true pictures, one after another [N, H, W, 3]."""
    return np.concatenate([to_pixels(run.batch.truth).cpu().numpy() for run in runs])


def figures(made: Sequence[UInt8Array], runs: Sequence[Run]) -> Figures:
    """Over all runs together."""
    squares, weights, sharp = np.zeros(3), np.zeros(3), np.zeros(2)
    for pictures, run in zip(made, runs, strict=True):
        truth = real([run])
        square = ((pictures.astype(np.float32) - truth.astype(np.float32)) ** 2).mean(-1)
        features, face = run.batch.areas.cpu().numpy().transpose(1, 0, 2, 3)
        for k, where in enumerate((features, run.mouth, np.ones_like(features))):
            squares[k], weights[k] = squares[k] + float((square * where).sum(dtype=np.float64)), weights[k] + float(where.sum(dtype=np.float64))
        much = float(face.sum(dtype=np.float64))
        sharp += sharpness(pictures, face) * much, sharpness(truth, face) * much
    features_db, mouth_db, crop_db = (float(10 * np.log10(PEAK**2 / max(s / max(w, 1e-6), 1e-6))) for s, w in zip(squares, weights, strict=True))
    return Figures(features_db, mouth_db, crop_db, float(sharp[0] / max(sharp[1], 1e-6)))


def judge(
    make: Callable[[Run, int], UInt8Array], runs: Sequence[Run], steps: Sequence[int], *, identity: IdentityLoss | None = None
) -> tuple[Judged, dict[int, list[UInt8Array]]]:
    """`make`: a run's frames in so many steps -> (figures, the pictures they are of)."""
    made = {count: [make(run, count) for run in runs] for count in steps}
    every = [[run.puppet for run in runs], *made.values()]
    puppet, *others = (figures(pictures, runs) for pictures in every)
    if identity is not None:
        puppet, *others = (replace(one, identity=alike) for one, alike in zip((puppet, *others), alikeness(every, runs, identity), strict=True))
    return Judged(puppet, dict(zip(made, others, strict=True))), made


@torch.no_grad()
def alikeness(every: Sequence[Sequence[UInt8Array]], runs: Sequence[Run], identity: IdentityLoss) -> list[float | None]:
    """Of several makings of the runs -> `Figures.identity` of each, over every FACE_EVERYth face that is whole; None where there is none."""
    found: list[list[float]] = [[] for _ in every]
    for run, *made in zip(runs, *every, strict=True):
        truth, fits = (held[::FACE_EVERY].to(identity.device) for held in (run.batch.truth, run.batch.fits))
        for cosines, one in zip(found, identity.compared([unit(pictures[::FACE_EVERY]).to(truth) for pictures in made], truth, fits), strict=True):
            cosines += one.tolist()
    return [sum(cosines) / len(cosines) if cosines else None for cosines in found]


def tiled(condition: UInt8Array) -> UInt8Array:
    """All pictures of a condition [N, H, W, K], small, in as many rows as columns -> [N, H, W, 3]; a single one, or a mask, as it is."""
    count, height, width, channels = condition.shape
    side = math.ceil(math.sqrt(channels // 3))
    if side <= 1:
        return np.broadcast_to(condition[..., :3], (count, height, width, 3))
    made, h, w = np.zeros((count, height, width, 3), np.uint8), height // side, width // side
    for k in range(channels // 3):
        y, x = h * (k // side), w * (k % side)
        for frame, picture in zip(made, condition[..., 3 * k : 3 * k + 3], strict=True):
            frame[y : y + h, x : x + w] = cv2.resize(picture, (w, h), interpolation=cv2.INTER_AREA)
    return made


def sheet(path: Path, runs: Sequence[Run], made: dict[int, list[UInt8Array]], *, columns: int = 8) -> None:
    """A picture for people: rows puppet, condition where that is another, every number of steps, truth; columns evenly over the runs."""
    truth, puppet = real(runs), np.concatenate([run.puppet for run in runs])
    asked = np.concatenate([run.batch.seen.cpu().numpy() for run in runs])
    picks = np.linspace(0, len(truth) - 1, min(columns, len(truth))).astype(int)
    rows: list[tuple[str, npt.NDArray[np.uint8]]] = [("puppet", puppet)]
    if not np.array_equal(asked, puppet):
        rows.append(("condition", tiled(np.concatenate([run.batch.coarse.cpu().numpy() for run in runs]))))
    rows += [(f"{count} step{'s' * (count > 1)}", np.concatenate(pictures)) for count, pictures in sorted(made.items())]
    rows.append(("truth", truth))
    lines = []
    for name, pictures in rows:
        line = np.concatenate([pictures[i] for i in picks], 1)
        cv2.putText(line, name, (6, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255), 3, cv2.LINE_AA)
        cv2.putText(line, name, (6, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
        lines.append(line)
    beside = path.with_name(f".{path.name}")
    encoded = cv2.imencode(path.suffix, np.ascontiguousarray(np.concatenate(lines)[..., ::-1]))[1]
    beside.write_bytes(encoded.tobytes())
    beside.replace(path)


__all__ = ["Figures", "Judged", "Run", "alikeness", "figures", "generate", "held_out", "judge", "real", "sheet", "tiled"]
