"""The reenacting generator: the portrait's volume is made once; a frame is a motion, a warp and a painting."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from engine.backends import pytorch  # before torch: see there
from engine.backends.exported import ON_A_GPU
from engine.drivers.portrait import find_face
from engine.generators.reenact import driving
from engine.generators.reenact.crop import SOURCE_SCALE, SOURCE_UP, Paste, Square, eye_ratios, lip_ratio, mouth_width
from engine.generators.reenact.driving import Drive, Face
from engine.generators.reenact.formulas import Reading, Region, check_region
from engine.types import AvatarError, FloatArray, GeneratorSpec, Identity, MissingPart, Signal, UInt8Array, VideoFrame, still_motion

try:
    import torch

    from engine.generators.reenact import running
    from engine.generators.reenact.networks import UNTRAINED
    from engine.generators.reenact.running import Desk
except ImportError as error:
    raise MissingPart(f"The generator 'reenact' needs PyTorch ({error}); pip install 'avatar-engine[torch]'.") from error

logger = logging.getLogger(__name__)

VERSION = "1"
"""Of the features: cached ones of another version are made anew."""
NOTICE = "These weights are untrained: the picture shows that the engine runs, not what it can do. Import LivePortrait's and give --weights."
PARTED = 0.03
"""Lip ratio from which a portrait's lips count as open, and close at rest (the published threshold)."""
EYES_BETWEEN = ((33, 133), (362, 263))


@dataclass(frozen=True, slots=True)
class Features:
    """One portrait, ready."""

    face: Face
    volume: npt.NDArray[Any]  # [1, C, D, h, w] float32
    rest: tuple[FloatArray, FloatArray]  # [21, 3] what retargeting says of lips and eyes at rest, which is taken off
    square: Square  # of the portrait, px
    squeeze: FloatArray  # [2] px of a frame a px of the portrait
    paste: Paste


@dataclass(slots=True)
class Seat:
    """One session: whom it shows, and what it remembers of its driver."""

    features: Features
    volume: Any  # where the networks read it
    drive: Drive = field(default_factory=Drive)


@dataclass
class State:
    """Rows of sessions; None where nobody sits."""

    rows: list[Seat | None]
    desk: Desk


class Reenact:
    """A generator of the LivePortrait kind. Input: the driver's picture and face where there are any, else `Signal.motion`."""

    def __init__(
        self,
        preset: str | None = None,
        *,
        size: tuple[int, int] | None = None,
        weights: str | Path | None = None,
        precision: str | None = None,
        mode: pytorch.Mode | None = None,
        device: str | None = None,
        backend: running.Backend | None = None,
        graphs: str | Path | None = None,
        region: Region = "all",
        calibrated: bool = True,
        seed: int = 0,
    ) -> None:
        """`preset`: of random weights (seeded by `seed`) where `weights`, an imported folder, is not given; default tiny, which costs little.
        `backend`: default PyTorch, and for published ONNX files ONNX Runtime. `graphs`: the folder of an export, which it then runs.

        `size` (H, W) px of the frames, instead of the preset's. `mode`: see `engine.backends.pytorch`. `region`: what of a driver's picture is
        taken. `calibrated`: their change from their neutral, else their own pose and expression. Raises AvatarError for a misfit.
        """
        check_region(region)
        folder = None if weights is None else Path(weights)
        asked = running.Asked(backend, mode, device, precision, None if graphs is None else Path(graphs))
        opened, chosen, mode, self.device, precision = running.opened(folder, asked, preset=preset or "tiny", seed=seed)
        made = opened.preset
        if preset is not None and preset != made.name:
            raise AvatarError(f"The weights in {weights} are for the preset '{made.name}', not '{preset}'; leave --preset out.")
        self.preset, self.precision, self.mode = made.name, precision, mode
        self.backend = f"pytorch {mode}" if chosen == "pytorch" else chosen
        self.trained = opened.origin != UNTRAINED
        self.weights = f"{opened.origin} {'' if self.trained else seed} {made.name} {precision}"
        self._made, self._region, self._calibrated = made, region, calibrated
        self._runners, self.networks = opened.runners, opened.networks
        # Portraits are prepared beside the live thread, one at a time.
        self._preparing, self._slow = threading.Lock(), Desk(self._runners, mode="eager" if chosen == "pytorch" else None)
        self.spec = GeneratorSpec(
            name="reenact",
            size=size or made.size,
            fps=30,
            needs=("motion", "face", "image"),
            together=self.device.type != "cpu",
            warm_up=pytorch.WARM_UPS + 1 if mode == "cudagraph" or chosen in ON_A_GPU else 1,
            notice="" if self.trained else NOTICE,
        )
        if min(self.spec.size) < 1:
            raise AvatarError(f"A picture of {self.spec.size[0]} x {self.spec.size[1]} px cannot be made; give a height and a width above 0.")

    # -- slow, once -----------------------------------------------------------------------------------------------------

    def prepare(self, portrait: UInt8Array) -> Identity:
        """Portrait [H, W, 3] of any size -> Identity. Raises AvatarError where no face is found."""
        points = find_face(portrait).points
        square = Square.around(points, scale=SOURCE_SCALE, up=SOURCE_UP, upright=True)
        height, width = self.spec.size
        how = cv2.INTER_AREA if portrait.shape[0] > height else cv2.INTER_CUBIC
        still = np.ascontiguousarray(cv2.resize(portrait, (width, height), interpolation=how), np.uint8)
        squeeze = np.array([width / portrait.shape[1], height / portrait.shape[0]], np.float32)
        crop = square.cut(portrait, self._made.side)[None]
        with self._preparing:
            volume = self._slow("appearance", 1, {"picture": crop})["volume"].copy()
            reading = Reading.of(self._slow("motion", 1, {"picture": crop}))
            face = _face(reading, square, points)
            rest = self._at_rest(face)
        key = hashlib.sha256(np.ascontiguousarray(portrait).tobytes() + f"reenact {VERSION} {self.spec.size} {self.weights}".encode()).hexdigest()
        paste = Paste.of(still, square, squeeze, self._made.picture)
        return Identity(key, still, Features(face, volume, rest, square, squeeze, paste))

    def _at_rest(self, face: Face) -> tuple[FloatArray, FloatArray]:
        """What retargeting says of a motion that is none, so that the portrait rests as it is; only open lips close."""
        lips, eyes = driving.asked_of(face, still_motion())
        said = self._slow("retarget", 1, {"source": face.points[None], "lips": lips[None], "eyes": eyes[None]})
        at_rest = said["lips_moved"][0].copy()
        return at_rest if face.lips < PARTED else np.zeros_like(at_rest), said["eyes_moved"][0].copy()

    def pack(self, identity: Identity) -> dict[str, npt.NDArray[Any]]:
        """What `np.savez` can keep of an identity, without pickle."""
        kept: Features = identity.features
        arrays: dict[str, Any] = {"key": identity.key, "version": VERSION, "weights": self.weights, "volume": kept.volume}
        arrays |= {"rest": np.stack(kept.rest), "squeeze": kept.squeeze}
        for name, part in (("square", kept.square), ("face", kept.face), ("reading", kept.face.reading)):
            arrays |= {f"{name}.{each.name}": getattr(part, each.name) for each in fields(part) if each.name != "reading"}
        return {name: np.asarray(array) for name, array in arrays.items()}

    def unpack(self, portrait: UInt8Array, arrays: dict[str, npt.NDArray[Any]]) -> Identity:
        """The inverse of `pack`. Raises AvatarError for arrays of another version or of other weights."""
        if str(arrays.get("version", "")) != VERSION or str(arrays.get("weights", "")) != self.weights:
            raise AvatarError("These features were made with other weights; prepare the portrait again.")

        def part(name: str) -> dict[str, Any]:
            held = {key.removeprefix(f"{name}."): array for key, array in arrays.items() if key.startswith(f"{name}.")}
            return {key: array if array.ndim else float(array) for key, array in held.items()}

        square = Square(**part("square"))
        face = Face(reading=Reading(**part("reading")), **part("face"))
        paste = Paste.of(portrait, square, arrays["squeeze"], self._made.picture)
        rest = (arrays["rest"][0], arrays["rest"][1])
        return Identity(str(arrays["key"]), portrait, Features(face, arrays["volume"], rest, square, arrays["squeeze"], paste))

    # -- fast, many -----------------------------------------------------------------------------------------------------

    def allocate(self, rows: int) -> State:
        """A State for `rows` sessions."""
        return State([None] * rows, Desk(self._runners))

    def admit(self, state: State, row: int, identity: Identity) -> None:
        """Seat an identity in a row."""
        features: Features = identity.features
        volume = features.volume if self.device.type == "cpu" else _within_memory(lambda: torch.from_numpy(features.volume).to(self.device))
        state.rows[row] = Seat(features, volume)

    def reset(self, state: State, row: int) -> None:
        """Forget the driver; the identity stays."""
        if (seat := state.rows[row]) is not None:
            seat.drive = Drive()

    def evict(self, state: State, row: int) -> None:
        """Let go of the portrait; with the last one, of what the runners were given."""
        state.rows[row] = None
        if not any(state.rows):
            state.desk.clear()

    def step(self, state: State, signals: Sequence[Sequence[Signal] | None]) -> list[list[VideoFrame] | None]:
        """One frame for every signal of every row; without a picture and a motion the portrait is at rest."""
        asked = [row for row, chunk in enumerate(signals) if chunk is not None]
        if any(state.rows[row] is None for row in asked):
            raise AvatarError("A signal came for a row where no portrait is seated; admit an identity first.")
        made: list[list[VideoFrame] | None] = [None] * len(signals)
        # A CPU gains nothing from a batch.
        for group in [asked] if self.spec.together and asked else [[row] for row in asked]:
            chosen = [cast(Sequence[Signal], signals[row])[0] for row in group]
            seats = [cast(Seat, state.rows[row]) for row in group]
            pictures = _within_memory(lambda seats=seats, chosen=chosen: self._frames(state.desk, seats, chosen))
            for row, seat, signal, picture in zip(group, seats, chosen, pictures, strict=True):
                made[row] = [VideoFrame(seat.features.paste(picture), signal.time, signal.id)]
        return made

    def _frames(self, desk: Desk, seats: Sequence[Seat], signals: Sequence[Signal]) -> UInt8Array:
        """[N, 2 side, 2 side, 3] of as many sessions in one call of each graph."""
        n = len(seats)
        source = np.stack([seat.features.face.points for seat in seats])
        of_pictures = self._pictured(desk, seats, signals)
        asked = [driving.asked_of(seat.features.face, signal.motion or still_motion()) for seat, signal in zip(seats, signals, strict=True)]
        lips, eyes = (np.stack(part) for part in zip(*asked, strict=True))
        moved = desk("retarget", n, {"source": source, "lips": lips, "eyes": eyes})
        driven = np.empty_like(source)
        for k, (seat, signal) in enumerate(zip(seats, signals, strict=True)):
            rest = seat.features.rest
            retargeted = moved["lips_moved"][k] - rest[0], moved["eyes_moved"][k] - rest[1]
            driven[k] = driving.mixed(seat.drive, seat.features.face, signal, of_pictures.get(k), retargeted)
        points = desk("stitch", n, {"source": source, "driven": driven})["points"]
        for k, seat in enumerate(seats):
            if not np.isfinite(points[k]).all():  # a picture that the extractor cannot read, or weights that are none
                seat.drive, points[k] = Drive(), source[k]
        return self._painted(desk, seats, source, points)

    def _pictured(self, desk: Desk, seats: Sequence[Seat], signals: Sequence[Signal]) -> dict[int, FloatArray]:
        """Index -> keypoints of the signals whose picture shows the driver's face."""
        squares = {k: square for k, signal in enumerate(signals) if (square := driving.square_of(signal)) is not None}
        if not squares:
            return {}
        crops = np.stack([square.cut(cast(UInt8Array, signals[k].image), self._made.side) for k, square in squares.items()])
        said = desk("motion", len(crops), {"picture": crops})
        made = {}
        for i, (k, square) in enumerate(squares.items()):
            seat = seats[k]
            read = Reading.of(said, i)
            made[k] = driving.pictured(seat.drive, seat.features.face, read, square, signals[k], region=self._region, calibrated=self._calibrated)
        return made

    def _painted(self, desk: Desk, seats: Sequence[Seat], source: FloatArray, points: FloatArray) -> UInt8Array:
        given: Mapping[str, Any]
        if self.device.type == "cpu":
            given = {"volume": seats[0].volume, "source": source, "driven": np.ascontiguousarray(points)}
            return cast(UInt8Array, desk("render", 1, given)["picture"])
        volume = torch.cat([seat.volume for seat in seats])
        given = {"volume": volume, "source": torch.from_numpy(source), "driven": torch.from_numpy(points)}
        picture: UInt8Array = desk("render", len(seats), given)["picture"].cpu().numpy()
        return picture


def _face(reading: Reading, square: Square, points: FloatArray) -> Face:
    """A portrait's face from its reading and its mesh [478, 2] px."""
    between = np.mean([points[list(corners)].mean(0) for corners in EYES_BETWEEN], 0)
    width = float(np.linalg.norm(points[454] - points[234])) * 2 / square.side
    middle = square.inside(np.asarray(between, np.float32)[None])[0]
    return Face(reading, reading.points, eye_ratios(points), lip_ratio(points), mouth_width(points), middle, width)


def _within_memory(call: Any) -> Any:
    """`call()`; where a GPU's memory is not enough, a sentence."""
    try:
        return call()
    except torch.OutOfMemoryError:
        pass
    raise AvatarError("The memory of this GPU is not enough; use fewer sessions (--max-sessions), --precision fp16 or --device cpu.")


__all__ = ["Features", "Reenact", "Seat", "State"]
