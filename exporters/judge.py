"""How good a network is on motion it has not seen, in figures and in a picture to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch

from engine.generators.diffusion.autoencoder import to_pixels
from engine.generators.diffusion.networks import Networks
from engine.generators.diffusion.sampler import levels
from engine.generators.diffusion.stream import shown
from engine.types import UInt8Array
from exporters.batches import Batch, Batches, spans
from exporters.losses import psnr, sharpness
from exporters.objectives import rollout, scene

RUN, RUNS = 20, 3
"""Frames of a run that is judged, and how many runs of each clip: evenly spread over what was held out."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Of held-out frames."""

    features_db: float  # PSNR of mouth and eyes
    crop_db: float  # PSNR of the whole picture
    sharp: float  # high-frequency energy of the face, truth = 1


@dataclass(frozen=True, slots=True)
class Judged:
    """The puppet beside the network, by number of steps."""

    puppet: Figures
    made: dict[int, Figures]

    def gain(self, steps: int) -> tuple[float, float]:
        """dB over the puppet: mouth and eyes, whole picture."""
        return self.made[steps].features_db - self.puppet.features_db, self.made[steps].crop_db - self.puppet.crop_db


def held_out(batches: Batches, *, run: int = RUN, runs: int = RUNS) -> list[Batch]:
    """Runs of frames that no step trains on."""
    found = []
    for clip, start, stop in spans(batches.data.clips, 2, held_out=True):
        length = min(run, stop - start)
        firsts = sorted({int(x) for x in np.linspace(start, stop - length, runs)})
        found += [batches.take(clip, first, first + length) for first in firsts]
    return found


@torch.no_grad()
def generate(networks: Networks, batch: Batch, steps: int) -> UInt8Array:
    """All steps of a run of frames, as streamed -> [N, H, W, 3]."""
    at = levels(networks.preset.noise, steps).to(batch.truth.device)
    clean = rollout(networks, at, scene(networks, batch), exit=steps - 1)
    made: UInt8Array = to_pixels(shown(networks, clean, batch.coarse)).cpu().numpy()
    return made


def figures(made: Sequence[UInt8Array], runs: Sequence[Batch]) -> Figures:
    """Over all runs together."""
    pictures, truth = np.concatenate(made), np.concatenate([to_pixels(run.truth).cpu().numpy() for run in runs])
    features, face = np.concatenate([run.areas.cpu().numpy() for run in runs]).transpose(1, 0, 2, 3)
    return Figures(psnr(pictures, truth, features), psnr(pictures, truth), sharpness(pictures, face) / max(sharpness(truth, face), 1e-6))


def judge(networks: Networks, runs: Sequence[Batch], steps: Sequence[int]) -> tuple[Judged, dict[int, list[UInt8Array]]]:
    """-> (figures, the pictures they are of)."""
    made = {count: [generate(networks, run, count) for run in runs] for count in steps}
    puppet = figures([run.coarse.cpu().numpy() for run in runs], runs)
    return Judged(puppet, {count: figures(pictures, runs) for count, pictures in made.items()}), made


def sheet(path: Path, runs: Sequence[Batch], made: dict[int, list[UInt8Array]], *, columns: int = 8) -> None:
    """A picture for people: rows puppet, every number of steps, truth; columns frames with much motion first."""
    truth = np.concatenate([to_pixels(run.truth).cpu().numpy() for run in runs])
    coarse = np.concatenate([run.coarse.cpu().numpy() for run in runs])
    picks = np.linspace(0, len(truth) - 1, min(columns, len(truth))).astype(int)
    rows: list[tuple[str, npt.NDArray[np.uint8]]] = [("puppet", coarse)]
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


__all__ = ["Figures", "Judged", "figures", "generate", "held_out", "judge", "sheet"]
