"""The puppet: any portrait, no weights, real time on a plain CPU."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from engine.generators.puppet import features as feature_arrays
from engine.generators.puppet import guide as guides
from engine.generators.puppet import look as looks
from engine.generators.puppet.assets import PuppetAssets
from engine.generators.puppet.assets import pack as pack_assets
from engine.generators.puppet.assets import unpack as unpack_assets
from engine.generators.puppet.build import build
from engine.generators.puppet.features import Features
from engine.generators.puppet.find import find_face
from engine.generators.puppet.paint import Canvas, paint
from engine.generators.puppet.pose import Pose, corrected, place
from engine.generators.puppet.response import listen
from engine.types import AvatarError, FloatArray, GeneratorSpec, Identity, Motion, Signal, UInt8Array, VideoFrame, still_motion

FACE_POINTS = 478
"""Of MediaPipe's face mesh, which the puppet's own begins with."""
VERSION = "7"
"""Of the features: cached ones of another version are made anew."""


@dataclass
class Row:
    """One session: whom it shows, its buffers, and the last pose (for those who look)."""

    features: Features
    canvas: Canvas
    pose: Pose | None = None


@dataclass
class State:
    """Rows of sessions; None where nobody sits."""

    rows: list[Row | None] = field(default_factory=list)


class Puppet:
    """A 2.5D layered puppet. Input: `Signal.motion`. See `Generator` for the verbs."""

    def __init__(self, size: tuple[int, int] = (512, 512), *, rest: bool = True, respond: bool = True) -> None:
        """`size` (H, W) px.

        `rest`: a portrait that smiles or shows its teeth closes its lips at rest. `respond`: measure at set-up what a tracker reads
        back from the portrait, and correct motions by it.
        """
        self.spec = GeneratorSpec(name="puppet", size=size, fps=30)
        self.rest = rest
        self.respond = respond

    # -- slow, once -----------------------------------------------------------------------------------------------------

    def prepare(self, portrait: UInt8Array, assets: PuppetAssets | None = None) -> Identity:
        """Portrait [H, W, 3] of any size -> Identity, in 2 to 3 s of CPU. Raises AvatarError where no face is found.

        `assets`: what a clip of the same person, with the portrait one of its frames, taught (`exporters.data.plates`).
        """
        height, width = self.spec.size
        how = cv2.INTER_AREA if portrait.shape[0] > height else cv2.INTER_CUBIC
        rgb = np.asarray(cv2.resize(portrait, (width, height), interpolation=how), np.uint8)
        # The tracker sees most in the picture as it came: not squeezed into the frame's size and shape.
        squeeze = np.array([width / portrait.shape[1], height / portrait.shape[0], width / portrait.shape[1]], np.float32)
        features = build(rgb, find_face(np.ascontiguousarray(portrait)) * squeeze, assets)
        if self.respond and assets is None:  # assets know how the person really moves, and the tracker reads that
            row = self._seat(features)
            response, coupling = listen(lambda motion: self._frame(row, motion)[0])
            features = replace(features, response=response, coupling=coupling)
        made_by = f"puppet {VERSION} {self.spec.size} {self.respond}"
        digest = hashlib.sha256(np.ascontiguousarray(portrait).tobytes() + made_by.encode())
        for name, array in {} if assets is None else pack_assets(assets).items():
            digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
        return Identity(digest.hexdigest(), rgb, features)

    @staticmethod
    def read_assets(arrays: dict[str, npt.NDArray[Any]]) -> PuppetAssets:
        """What is kept beside weights or in a data set -> what `prepare` takes. Raises AvatarError for other arrays."""
        return unpack_assets(arrays)

    @staticmethod
    def pack(identity: Identity) -> dict[str, npt.NDArray[Any]]:
        """What `np.savez` can keep of an identity, without pickle."""
        return {**feature_arrays.pack(identity.features), "key": np.array(identity.key), "version": np.array(VERSION)}

    @staticmethod
    def unpack(portrait: UInt8Array, arrays: dict[str, npt.NDArray[Any]]) -> Identity:
        """The inverse of `pack`; `portrait` is `identity.portrait`. Raises AvatarError for arrays that another version packed."""
        if str(arrays.get("version", "")) != VERSION:
            raise AvatarError("These features were made by another version of the puppet; prepare the portrait again.")
        return Identity(str(arrays["key"]), portrait, feature_arrays.unpack(arrays))

    # -- fast, many -----------------------------------------------------------------------------------------------------

    def allocate(self, rows: int) -> State:
        """A State for `rows` sessions. The first one loads (or compiles, once a machine) the hot loops, so that no step waits for them."""
        warm()
        return State([None] * rows)

    def admit(self, state: State, row: int, identity: Identity) -> None:
        """Seat an identity in a row."""
        state.rows[row] = self._seat(identity.features)

    def reset(self, state: State, row: int) -> None:
        """Nothing to forget: a frame depends on its own signal alone."""

    def evict(self, state: State, row: int) -> None:
        """Let go of the portrait and its buffers."""
        state.rows[row] = None

    def step(self, state: State, signals: Sequence[Sequence[Signal] | None]) -> list[list[VideoFrame] | None]:
        """One frame for every signal of every row; a signal without motion shows the portrait at rest."""
        made: list[list[VideoFrame] | None] = []
        for row, chunk in zip(state.rows, signals, strict=True):
            if chunk is None:
                made.append(None)
                continue
            if row is None:
                raise AvatarError("A signal came for a row where no portrait is seated; admit an identity first.")
            frames = []
            for signal in chunk:
                rgb, alpha = self._frame(row, signal.motion or still_motion())
                frames.append(VideoFrame(rgb, signal.time, signal.id, alpha))
            made.append(frames)
        return made

    def guide(self, state: State, row: int, frame: VideoFrame) -> UInt8Array:
        """What a row's last frame is made of, [H, W, 3], for networks that mend it (`guide.draw`); good until the next step."""
        seat = state.rows[row]
        if seat is None or seat.pose is None or frame.alpha is None:
            raise AvatarError("There is no frame yet to be guided by; step the row first.")
        pad = float(seat.features.texture.shape[1] - frame.alpha.shape[1]) / 2
        return guides.draw(seat.pose.points, seat.canvas.sampling, frame.alpha, pad)

    def origins(self, state: State, row: int, frame: VideoFrame) -> FloatArray:
        """[H, W, 2] px of the portrait that the pixels of a row's last frame come from."""
        seat = state.rows[row]
        if seat is None or frame.alpha is None:
            raise AvatarError("There is no frame yet that comes from anywhere; step the row first.")
        return self._origins(seat, frame.alpha)

    def points(self, state: State, row: int) -> FloatArray:
        """[478, 2] px: the face mesh of a row's last frame."""
        seat = state.rows[row]
        if seat is None or seat.pose is None:
            raise AvatarError("There is no frame yet whose points could be asked for; step the row first.")
        return seat.pose.points[:FACE_POINTS, :2]

    def _seat(self, features: Features) -> Row:
        return Row(features, Canvas.of(*self.spec.size))

    def _frame(self, row: Row, motion: Motion) -> tuple[UInt8Array, UInt8Array]:
        """(rgb [H, W, 3], alpha [H, W]) of one motion."""
        asked, motion = motion, corrected(row.features, motion)
        row.pose = place(row.features, motion, rest=self.rest)
        rgb, alpha = paint(row.features, row.canvas, row.pose, motion)
        if len(row.features.look):
            looks.apply(rgb, alpha, looks.change(row.features.look, row.features.look_range, asked), self._origins(row, alpha))
        return rgb, alpha

    @staticmethod
    def _origins(row: Row, alpha: UInt8Array) -> FloatArray:
        pad = float(row.features.texture.shape[1] - alpha.shape[1]) / 2
        return looks.origins(row.canvas.sampling, alpha, pad)


@lru_cache(maxsize=1)
def warm() -> None:
    """Run every compiled loop once on nothing."""
    puppet = Puppet((8, 8), respond=False)
    puppet._frame(puppet._seat(feature_arrays.blank()), still_motion())
    looks.warm()


__all__ = ["Puppet", "Row", "State", "warm"]
