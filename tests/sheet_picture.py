"""Remake the README's contact sheet: python -m tests.sheet_picture. The built-in portrait in a dozen motions, nothing retouched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from engine.generators import load
from engine.persona import demo_portrait
from engine.types import Motion, Signal, UInt8Array, still_motion

FILE = Path(__file__).parent.parent / "docs" / "contact_sheet.jpg"
TILE, LABEL = 256, 24
HEAD = np.s_[0:430, 41:471]
"""What is shown of a frame of 512 px."""
ACROSS = 6
QUALITY = 88


def moved(
    *,
    head: tuple[float, ...] = (0, 0, 0, 0, 0, 0),
    eyes: tuple[float, float] = (1, 1),
    gaze: tuple[float, float] = (0, 0),
    brows: float = 0.0,
    mouth: tuple[float, ...] = (0, 0, 0, 0),
    body: tuple[float, ...] = (0, 0, 0, 0, 0, 0),
) -> Motion:
    """A motion by its parts, as in `Motion`."""
    parts = {"head": head, "eyes": eyes, "gaze": gaze, "brows": (brows, brows), "mouth": mouth, "body": body}
    return replace(still_motion(), **{name: np.array(value, np.float32) for name, value in parts.items()})


MOTIONS = {
    "at rest (the portrait smiles)": moved(),
    "looks aside": moved(head=(-18, 0, 0, 0, 0, 0), gaze=(-0.1, 0)),
    "looks to the other side": moved(head=(20, 2, 0, 0, 0, 0), gaze=(0.12, 0)),
    "nods": moved(head=(0, 12, 0, 0, 0, 0)),
    "looks up": moved(head=(-6, -12, 2, 0, 0, 0), brows=0.05),
    "tilts": moved(head=(4, 0, 15, 0.03, 0, 0), mouth=(0, 0.05, 0, 0.6)),
    "blinks": moved(eyes=(0, 0)),
    "winks and smiles": moved(eyes=(1, 0), mouth=(0, 0.08, 0, 0.9)),
    "a": moved(mouth=(0.42, 0.02, 0, 0), brows=0.04),
    "e": moved(mouth=(0.12, 0.12, 0, 0.2)),
    "o": moved(mouth=(0.24, -0.05, 0.5, 0)),
    "shrugs, wide eyes": moved(eyes=(1.35, 1.35), brows=0.12, mouth=(0.06, 0, 0, -0.5), body=(0, 0, 0, 0, 0.12, 0.12)),
}


def sheet() -> UInt8Array:
    """[H, W, 3] RGB of all motions."""
    puppet = load("puppet")
    state = puppet.allocate(1)
    puppet.admit(state, 0, puppet.prepare(demo_portrait()))
    cells = []
    for name, motion in MOTIONS.items():
        frames = puppet.step(state, [[Signal(0.0, motion=motion)]])[0]
        assert frames is not None
        label = np.full((LABEL, TILE, 3), 24, np.uint8)
        cv2.putText(label, name, (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (235, 235, 235), 1, cv2.LINE_AA)
        cells.append(np.concatenate([cv2.resize(frames[0].rgb[HEAD], (TILE, TILE), interpolation=cv2.INTER_AREA), label]))
    rows = [np.concatenate(cells[i : i + ACROSS], axis=1) for i in range(0, len(cells), ACROSS)]
    return np.asarray(np.concatenate(rows), np.uint8)


if __name__ == "__main__":
    cv2.imwrite(str(FILE), np.ascontiguousarray(sheet()[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
