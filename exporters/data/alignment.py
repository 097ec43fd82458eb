"""Where a person's outline really goes in a clip, against where their puppet puts it: seen by optical flow, learnt as maps of a few drives.

Head, hair, neck and shoulders lie elsewhere than the puppet thinks: its depths and pivots are guesses, and a camera close by sees another
perspective. All of that is smooth over the picture and goes with the pose, so it is fitted by least squares to the flow between the
puppet's frames and the real ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from engine.generators.puppet.assets import DRIVES, HEAD_DRIVES, NODES, PuppetAssets, drives, splines, spread
from engine.generators.puppet.generator import Puppet
from engine.generators.puppet.paint import Canvas
from engine.generators.puppet.pose import Pose
from engine.types import FloatArray, Identity, Motion, Signal, UInt8Array

Float64Array = npt.NDArray[np.float64]

STRENGTH = 20.0
"""Squared grey levels a pixel at which the flow at a place is half believed: what has no texture has no flow."""
NEAR = 0.012
"""Deviation of the window that strength is taken in, and how far a vertex may be from what is to be seen at its place; picture widths."""
COVERED = 0.15
"""Matte around a vertex below which it shows nothing of the person."""
AGREES = 0.004
"""Picture widths that flow there and back may differ by."""
RIDGE = 1.25e-4
"""Weight of the maps' size against a vertex of one frame: a coefficient that the clip says nothing about is 0."""
BENDING = 3.0
"""The same of the maps' curvature, against RIDGE."""
MARGIN = 0.1
"""UNITs beyond the clip's own drives that the maps go on for."""
DARK = 128.0
"""Grey level that tells dark people's rims from light ones: both are shown before what they are not."""


class Actor:
    """The puppet of one identity, moved frame by frame."""

    def __init__(self, puppet: Puppet, identity: Identity) -> None:
        self.puppet, self.identity = puppet, identity
        self._state = puppet.allocate(1)
        puppet.admit(self._state, 0, identity)

    def taught(self, assets: PuppetAssets) -> Actor:
        """The same with other maps; made ready in no time."""
        features = self.identity.features
        height, width = self.puppet.spec.size
        flat = features.uv - np.float32((features.texture.shape[1] - width) / 2)
        changed = replace(features, offsets=spread(assets, flat, (height, width)), driven=np.stack([assets.low, assets.high]))
        return Actor(self.puppet, replace(self.identity, features=changed))

    def frame(self, motion: Motion) -> tuple[UInt8Array, UInt8Array]:
        """(rgb [H, W, 3], alpha [H, W])."""
        frames = self.puppet.step(self._state, [[Signal(0.0, motion=motion)]])[0]
        assert frames is not None
        alpha = frames[0].alpha
        assert alpha is not None
        return frames[0].rgb, alpha

    @property
    def last(self) -> tuple[Pose, Canvas]:
        """Where the last frame's vertices went, and what came to be seen."""
        row = self._state.rows[0]
        assert row is not None
        assert row.pose is not None
        return row.pose, row.canvas


@dataclass(frozen=True, slots=True)
class Observed:
    """T frames, N vertices."""

    drives: Float64Array  # [T, 13]
    offsets: FloatArray  # [T, N, 2] px from where the puppet alone puts a vertex to where the person has it
    weights: FloatArray  # [T, N] how far that is believed

    def of(self, frames: Sequence[int]) -> Observed:
        """Some of the frames."""
        at = list(frames)
        return Observed(self.drives[at], self.offsets[at], self.weights[at])


def observe(actor: Actor, pictures: Sequence[UInt8Array], mattes: Sequence[UInt8Array], motions: Sequence[Motion]) -> Observed:
    """Real pictures [H, W, 3] and mattes [H, W] beside the puppet's frames of the same motions."""
    features = actor.identity.features
    height, width = actor.puppet.spec.size
    pad = float(features.texture.shape[1] - width) / 2
    flat = features.uv - np.float32(pad)
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # Kroeger et al. 2016, "Fast optical flow using dense inverse search"
    asked, offsets, weights = [], [], []
    for rgb, matte, motion in zip(pictures, mattes, motions, strict=True):
        made, alpha = actor.frame(motion)
        pose, canvas = actor.last
        at = np.ascontiguousarray(pose.points[:, :2], np.float32)
        ours, theirs = _shown(made, alpha, rgb, matte)
        ahead, back = flow.calc(ours, theirs, None), flow.calc(theirs, ours, None)
        way = _sampled(ahead, at)
        apart = np.linalg.norm(way + _sampled(back, at + way), axis=1) / (AGREES * width)
        strong = _sampled(_strength(ours, NEAR * width), at)
        covered = _sampled(cv2.GaussianBlur(alpha.astype(np.float32) / 255.0, (0, 0), NEAR * width), at) > COVERED
        shown = np.linalg.norm(_sampled(canvas.sampling, at) - np.float32(pad) - flat, axis=1) < NEAR * width
        inside = (at > 1).all(1) & (at < (width - 2, height - 2)).all(1)
        drive = drives(motion)
        before = (features.offsets @ np.clip(drive, *features.driven)).T if features.offsets.size else 0.0
        asked.append(drive)
        offsets.append((way + before).astype(np.float32))
        weights.append((strong / (strong + STRENGTH) * np.exp(-(apart**2)) * (covered & shown & inside)).astype(np.float32))
    return Observed(np.array(asked, np.float64), np.stack(offsets), np.stack(weights))


def _shown(made: UInt8Array, alpha: UInt8Array, rgb: UInt8Array, matte: UInt8Array) -> tuple[UInt8Array, UInt8Array]:
    """Both people in grey before the same plain ground, which stands out from their rims: the background says nothing of them."""
    greys = [np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.float32) for picture in (made, rgb)]
    size = max(3, round(NEAR * alpha.shape[1]))
    rim = (alpha == 255) & (cv2.erode(alpha, np.ones((size, size), np.uint8)) < 255)
    ground = 255.0 if not rim.any() or float(greys[0][rim].mean()) < DARK else 0.0
    shares = (alpha / np.float32(255), matte / np.float32(255))
    ours, theirs = (np.asarray(g * a + ground * (1 - a), np.uint8) for g, a in zip(greys, shares, strict=True))
    return ours, theirs


def _strength(grey: UInt8Array, sigma: float) -> FloatArray:
    """[H, W] mean squared gradient, grey levels a pixel."""
    found = sum(cv2.Sobel(grey, cv2.CV_32F, *axis, scale=1 / 8) ** 2 for axis in ((1, 0), (0, 1)))
    return np.asarray(cv2.GaussianBlur(found, (0, 0), sigma), np.float32)


def _sampled(image: FloatArray, at: FloatArray) -> FloatArray:
    """[N] or [N, 2] values of an image at points [N, 2] px."""
    x, y = np.ascontiguousarray(at[:, :1]), np.ascontiguousarray(at[:, 1:])
    return np.asarray(cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[:, 0], np.float32)


def fit(seen: Observed, flat: FloatArray, size: tuple[int, int], plate: UInt8Array) -> PuppetAssets:
    """Observed offsets of vertices that lie at flat [N, 2] px of the portrait of `size` (H, W) -> the maps that explain them best."""
    from scipy.linalg import solveh_banded

    banded, right = _equations(seen, splines(flat, size).astype(np.float64))
    solved = solveh_banded(banded, right, overwrite_ab=True, overwrite_b=True, check_finite=False)
    maps = (solved.reshape(NODES, NODES, len(DRIVES), 2).transpose(0, 1, 3, 2) / size[1]).astype(np.float32)
    low, high = (seen.drives.min(0) - MARGIN).astype(np.float32), (seen.drives.max(0) + MARGIN).astype(np.float32)
    return PuppetAssets(plate, np.ascontiguousarray(maps[..., :HEAD_DRIVES]), np.ascontiguousarray(maps[..., HEAD_DRIVES:]), low, high)


def _equations(seen: Observed, basis: Float64Array) -> tuple[Float64Array, Float64Array]:
    """The normal equations of all coefficients, node by node and drive by drive: (upper bands [., NODES² 13], right side [NODES² 13, 2])."""
    frames, count = seen.drives.shape
    nodes = NODES * NODES
    products = (seen.drives[:, :, None] * seen.drives[:, None, :]).reshape(frames, -1)
    of_vertices = seen.weights.T.astype(np.float64) @ products  # [N, 13²]
    wanted = np.einsum("ti,tnc->nic", seen.drives, seen.weights[..., None] * seen.offsets, optimize=True)
    right = (basis.T @ wanted.reshape(len(basis), -1)).reshape(nodes * count, 2)
    bend = np.diff(np.eye(NODES), 2, axis=0)
    stiff = np.kron(bend.T @ bend, np.eye(NODES)) + np.kron(np.eye(NODES), bend.T @ bend)
    ridge = RIDGE * frames
    most = 3 * NODES + 3  # nodes whose splines overlap are at most so far apart in the order of rows
    banded = np.zeros(((most + 1) * count, nodes * count))
    for apart in sorted({down * NODES + across for down in range(4) for across in range(-3, 4) if down * NODES + across >= 0}):
        pairs = basis[:, : nodes - apart] * basis[:, apart:]
        blocks = (pairs.T @ of_vertices).reshape(-1, count, count)
        smooth = ridge * (BENDING * np.diagonal(stiff, apart) + float(apart == 0))
        columns = np.arange(apart, nodes) * count
        for i in range(count):
            blocks[:, i, i] += smooth
            for j in range(i if apart == 0 else 0, count):
                banded[len(banded) - 1 - apart * count + i - j, columns + j] = blocks[:, i, j]
    return banded, right


__all__ = ["Actor", "Observed", "fit", "observe"]
