"""What training a network on a person's clip gains: `python -m benchmarks.trained DATA --weights DIR [--teacher DIR] [--strip F.jpg]`.

DATA is what `avatar train` collected (`OUT/data`), the weights what it trained (`OUT/run/weights`). On held-out frames, in runs that begin with
an empty window as a session does: PSNR of mouth and eyes, of the mouth alone, of the whole picture; high-frequency energy of the face beside the
truth's; how far the lips lie from the truth's where the face tracker looks again at both; and, with the drive held still, how much the face
flickers. The puppet is the one that the clip taught, which is the networks' condition.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.common import Table, report, start
from engine.backends import pytorch  # noqa: F401  before torch: see there
from engine.drivers.outlines import LIPS
from engine.drivers.tracker import FaceTracker
from engine.generators.diffusion import networks as weights_of
from engine.types import AvatarError, FloatArray, UInt8Array
from exporters.data.dataset import Dataset, open_dataset
from exporters.training.batches import SILENCE, Batches
from exporters.training.judge import Run, figures, generate, held_out, real
from exporters.training.keep import seen_by

LOOK, LOOKED_AT = 1.7, 384
"""Side of what the tracker is shown, in face widths, and in px."""
EVERY = 5
"""Frames from one that the tracker looks at to the next."""
STILL = 25
"""Frames of a drive that holds still; the first third is left out, while the window fills."""
JAW, EYE = (13, 14), (159, 145)
"""Face mesh points above and below."""
JAWS, TILE = (1.0, 0.97, 0.93, 0.85, 0.6, 0.0), 192
"""Frames of the strip, by their share of all with the jaw less open (then the eyes shut, and wide), and px of each."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to make the frames."""

    name: str
    evaluations: int  # of the denoiser, a frame
    pictures: list[UInt8Array]  # of every run [N, H, W, 3]
    flicker: float  # grey levels a frame inside the face, while nothing moves


def contenders(data: Dataset, runs: Sequence[Run], batches: Batches, options: argparse.Namespace) -> list[Contender]:
    """The puppet, the teacher where there is one, the student at every number of steps."""
    found = [Contender("puppet", 0, [run.puppet for run in runs], 0.0)]
    asked = [("student", options.weights, count) for count in options.steps]
    if options.teacher is not None:
        asked.insert(0, ("teacher", options.teacher, options.teacher_steps))
    still = _held_still(runs[0])
    for who, weights, steps in asked:
        networks = weights_of.load(weights)
        if networks.preset.size != data.size:
            raise AvatarError(f"The weights in {weights} make pictures of another size than the data set's; collect it with their preset.")
        at_rest = generate(networks, still, steps)[STILL // 3 :].astype(np.float32).mean(-1)
        face = still.batch.areas[STILL // 3 + 1 :, 1].numpy()
        flicker = float((np.abs(np.diff(at_rest, axis=0)) * face).sum() / face.sum())
        found.append(Contender(f"{who}, {steps} step{'s' * (steps > 1)}", steps, [generate(networks, run, steps) for run in runs], flicker))
    return found


def _held_still(run: Run) -> Run:
    """Its first frame for STILL frames, in silence."""

    def held(x: Any) -> Any:
        return x[:1].repeat(STILL, *[1] * (x.ndim - 1)) if hasattr(x, "dim") else np.repeat(x[:1], STILL, 0)

    batch = run.batch
    speech = held(batch.speech)
    speech[:] = SILENCE
    names = ("truth", "coarse", "areas", "fits")
    batch = replace(batch, rows=1, frames=STILL, speech=speech, **{name: held(getattr(batch, name)) for name in names})
    return Run(batch, held(run.points), held(run.confidence), held(run.mouth), held(run.puppet))


def lips(tracker: FaceTracker, picture: UInt8Array, points: FloatArray) -> FloatArray | None:
    """Where the tracker sees them [L, 2], in face widths; None where it sees no face. `points`: about where the face is, px."""
    low, high = points.min(0), points.max(0)
    side = LOOK * float(high[0] - low[0])
    corner = (low + high) / 2 - side / 2
    shown = cv2.warpAffine(
        picture,
        np.array([[LOOKED_AT / side, 0, -corner[0] * LOOKED_AT / side], [0, LOOKED_AT / side, -corner[1] * LOOKED_AT / side]]),
        (LOOKED_AT, LOOKED_AT),
        flags=cv2.INTER_CUBIC,
    )
    faces = tracker.detect(np.asarray(shown, np.uint8))
    return None if not faces else np.asarray(faces[0][list(LIPS), :2] * LOOK, np.float32)


def lip_errors(runs: Sequence[Run], every: Sequence[Contender]) -> list[float | None]:
    """Mean distance of the lips from the truth's, % of the face's width, over frames where the tracker sees a face in all of them."""
    apart: list[list[float]] = []
    tracker = FaceTracker(still=True)
    try:
        for number, run in enumerate(runs):
            truth = real([run])
            for k in range(0, len(truth), EVERY):
                seen = [lips(tracker, picture, run.points[k]) for picture in (truth[k], *(one.pictures[number][k] for one in every))]
                if all(one is not None for one in seen):
                    wanted, *made = (np.asarray(one) for one in seen)
                    apart.append([100 * float(np.linalg.norm(one - wanted, axis=1).mean()) for one in made])
    finally:
        tracker.close()
    return [None] * len(every) if not apart else [float(x) for x in np.mean(apart, 0)]


def strip(path: Path, runs: Sequence[Run], every: Sequence[Contender]) -> None:
    """A row a contender and the truth below."""
    points = np.concatenate([run.points for run in runs])
    width = np.ptp(points[..., 0], axis=1)
    jaw, eyes = (np.linalg.norm(points[:, a] - points[:, b], axis=1) / width for a, b in (JAW, EYE))
    picks = [*np.argsort(jaw)[[round(share * (len(jaw) - 1)) for share in JAWS]], int(eyes.argmin()), int(eyes.argmax())]
    rows = [(one.name, np.concatenate(one.pictures)) for one in every] + [("truth", real(runs))]
    lines = []
    for name, pictures in rows:
        tiles = [_face(pictures[k], points[k]) for k in picks]
        line = np.ascontiguousarray(np.concatenate(tiles, 1))
        for colour, thick in ((0, 3), (255, 1)):
            cv2.putText(line, name, (6, TILE - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (colour,) * 3, thick, cv2.LINE_AA)
        lines.append(line)
    if not cv2.imwrite(str(path), np.concatenate(lines)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88]):
        raise AvatarError(f"The strip could not be written to {path}; name a .jpg or .png in a folder that is there.")


def _face(picture: UInt8Array, points: FloatArray) -> UInt8Array:
    """[TILE, TILE, 3]"""
    low, high = points.min(0), points.max(0)
    side, middle = 1.15 * float((high - low).max()), (low + high) / 2
    scale = TILE / side
    turn = np.array([[scale, 0, TILE / 2 - scale * middle[0]], [0, scale, TILE / 2 - scale * middle[1]]])
    return np.asarray(cv2.warpAffine(picture, turn, (TILE, TILE), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def main(argv: Sequence[str] | None = None) -> int:
    """The command -> exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trained", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that `avatar train` collected into")
    parser.add_argument("--weights", type=Path, required=True, metavar="DIR")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2], help="of the student (default: 1 2)")
    parser.add_argument("--teacher", type=Path, metavar="DIR", help="weights of the recipe 'teacher'")
    parser.add_argument("--teacher-steps", type=int, default=20, help="(default: 20)")
    parser.add_argument("--runs", type=int, metavar="N", help="of 25 frames that are looked at, evenly spread (default: all)")
    parser.add_argument("--strip", type=Path, metavar="F.jpg", help="write the faces side by side")
    parser.add_argument("--json", type=Path, metavar="F", help="also write the JSON line to this file")
    options = parser.parse_args(words)
    data = open_dataset(options.data)
    made = weights_of.load(options.weights).preset
    if made.condition != "puppet":
        raise AvatarError("Only networks over the puppet are compared with it; give weights of such a preset.")
    batches = Batches(data, seed=0, channels=made.channels, depth=made.depth, condition=made.condition)
    runs = held_out(batches, seen_by(data), all_of_it=True)
    runs = [runs[k] for k in sorted({round(x) for x in np.linspace(0, len(runs) - 1, options.runs or len(runs))})]
    every = contenders(data, runs, batches, options)
    table = Table(("", "evaluations", "mouth and eyes dB", "mouth dB", "picture dB", "sharpness", "lips off %", "flicker"))
    table.notes = ("lips off: of the face's width, as the tracker sees both; flicker: grey levels a frame while nothing moves",)
    rows = []
    for one, off in zip(every, lip_errors(runs, every), strict=True):
        told = figures(one.pictures, runs)
        rows.append({"name": one.name, "evaluations": one.evaluations, "features_db": told.features_db, "mouth_db": told.mouth_db})
        rows[-1] |= {"crop_db": told.crop_db, "sharp": told.sharp, "lips_off": off, "flicker": one.flicker}
        table.add(*rows[-1].values())
    if options.strip is not None:
        strip(options.strip, runs, every)
    report("trained", words, {"rows": rows}, tables=[table], json_file=options.json, repeat=" ".join(["python -m benchmarks.trained", *words]))
    return 0


if __name__ == "__main__":
    start(main)
