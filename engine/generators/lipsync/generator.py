"""The lips generator: a face, and a mouth in it that says what is heard."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import cv2
import numpy as np
import numpy.typing as npt

from engine.backends import exported, half_the_cores, pytorch  # before torch: see there
from engine.backends.artifact import sha256
from engine.drivers.portrait import find_face
from engine.drivers.speech import LOOK_AHEAD
from engine.generators import load as load_generator
from engine.generators.lipsync import loop as loops
from engine.generators.lipsync.bases import Clock, Features, Follower, Shown, locate, mouth_region, mute, others, own, pack, unpack
from engine.generators.lipsync.face import crop, need, paste
from engine.generators.lipsync.sizes import Kind, size_of
from engine.generators.lipsync.sound import Gate, Sound
from engine.types import AvatarError, FloatArray, Generator, GeneratorSpec, Identity, MissingPart, Signal, UInt8Array, VideoFrame

try:
    import torch

    from engine.generators.lipsync import lips
    from engine.generators.lipsync import networks as weights_of
    from engine.generators.lipsync.networks import UNTRAINED
except ImportError as error:
    raise MissingPart(f"The lips generator needs PyTorch, diffusers and transformers ({error}); pip install 'avatar-engine[torch]'.") from error

Precision = Literal["fp32", "bf16", "fp16"]
KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SIZE = (512, 512)
FPS = 25
"""That both models were trained at."""
VERSION = "1"
"""Of what is prepared."""
NAME = "lipsync"
NOTICE = (
    "These lips are untrained: the mouth shows that the engine runs, not what it can do. Import published weights (avatar import wav2lip or "
    "musetalk) and give them with --weights."
)


@dataclass
class Row:
    """One session."""

    identity: Identity
    sound: Sound = field(default_factory=Sound)
    gate: Gate = field(default_factory=Gate)
    clock: Clock = field(default_factory=Clock)
    waiting: deque[Shown] = field(default_factory=deque)  # pictures whose sound has not all been heard
    follower: Follower | None = None  # of faces in another generator's frames


@dataclass
class State:
    """Rows of sessions; None where nobody sits."""

    rows: list[Row | None]
    base: Any  # the State of the generator whose frames are spoken over
    lips: lips.Lips  # this State's own way to the networks, which other threads do not share


class Lipsync:
    """Speech (`Signal.pcm`) moves the lips of a portrait, of its idle loop, or of another generator's frames."""

    def __init__(
        self,
        model: str | None = None,
        *,
        weights: str | Path | None = None,
        over: str | None = None,
        loop: str | Path | None = None,
        backend: lips.Backend = "pytorch",
        graphs: str | Path | None = None,
        precision: str | None = None,
        device: str | None = None,
        seed: int = 0,
    ) -> None:
        """`model` wav2lip (default) or musetalk, of random weights (by `seed`) where `weights`, an imported folder, is not given.

        `over`: a generator of the registry whose frames get the lips, such as puppet, or NAME=DIR with its weights: the head from the camera.
        `loop`: a video of the portrait's person, idle, played forth and back. Neither: the portrait itself. `graphs`: the folder of an export,
        which `backend` then runs instead of the networks. Raises AvatarError for a misfit.
        """
        lips.check(backend, device=device, graphs=graphs)
        self.device = pytorch.device(device if backend == "pytorch" else "cpu")
        if self.device.type == "cpu":
            torch.set_num_threads(half_the_cores())
        folder = None if weights is None else Path(weights)
        if graphs is None:
            self.precision: str = _precision(precision, backend=backend, on=self.device)
            networks = weights_of.build(size_of(model or "wav2lip"), seed=seed) if folder is None else weights_of.load(folder)
            networks.module.to(self.device, KINDS[self.precision] if backend == "pytorch" else torch.float32)
            held = None
        else:
            networks = weights_of.empty(size_of(model or "wav2lip")) if folder is None else weights_of.described(folder)
            held = exported.opened(Path(graphs), backend, origin=networks.origin, precision=precision)
            self.precision = held.manifest.precision
        if model is not None and model != networks.size.name:
            raise AvatarError(f"The weights in {weights} are for the model '{networks.size.name}', not '{model}'; leave --model out.")
        self.trained = networks.origin != UNTRAINED
        self.kind: Kind = networks.size.kind
        self.preset, self.backend = networks.size.name, backend
        self._lips = lips.load(networks, name=backend, device=self.device, precision=self.precision, held=held)
        self._base = _base(over)
        if self._base is not None and loop is not None:
            raise AvatarError("A loop moves the portrait itself, and so does another generator; leave --loop or --over out.")
        self.loop = None if loop is None else Path(loop)
        base = None if self._base is None else self._base.spec
        # All that what is prepared depends on, beside the portrait.
        whose = f"{over or ''} {getattr(self._base, 'weights', '')} {_hash(self.loop)}"
        self.weights = f"{networks.origin} {'' if self.trained else seed} {networks.size.name} {self.precision} {whose}"
        # The camera's pictures are not held for sound to come, so over a face that it drives a frame waits for all that its lips need.
        ahead = self._lips.reach - (LOOK_AHEAD if base is None else 0.0)
        own_delay, base_delay = math.ceil(ahead * FPS - 1e-6), 0 if base is None else base.delay
        self._wait = max(0, own_delay - base_delay)
        self.spec = GeneratorSpec(
            name=NAME,
            size=SIZE if base is None else base.size,
            fps=FPS,
            delay=self._wait + base_delay,
            needs=("pcm",) if base is None else tuple(dict.fromkeys(("pcm", *base.needs))),
            together=self.device.type != "cpu",
            warm_up=pytorch.WARM_UPS + 2 if self.device.type != "cpu" or backend in exported.ON_A_GPU else 2,
            notice=" ".join(filter(None, ("" if self.trained else NOTICE, "" if base is None else base.notice))),
        )

    # -- slow, once -----------------------------------------------------------------------------------------------------

    def prepare(self, portrait: UInt8Array) -> Identity:
        """Portrait [H, W, 3] of any size -> Identity. Raises AvatarError where no face is found, or the loop is not the portrait's."""
        height, width = self.spec.size
        made_by = f"lipsync {VERSION} {self.spec.size} {self.weights}"
        key = hashlib.sha256(np.ascontiguousarray(portrait).tobytes() + made_by.encode())
        if self._base is not None:
            base = self._base.prepare(portrait)
            key.update(base.key.encode())
            region = mouth_region(find_face(portrait).points)
            return Identity(key.hexdigest(), base.portrait, Features((), (), (), base, region))
        how = cv2.INTER_AREA if portrait.shape[0] > height else cv2.INTER_CUBIC
        rgb = np.ascontiguousarray(cv2.resize(portrait, (width, height), interpolation=how), np.uint8)
        points = find_face(portrait).points * np.array([width / portrait.shape[1], height / portrait.shape[0]], np.float32)
        pictures, faces = [rgb], points[None]
        if self.loop is not None:
            pictures, faces = self._looped(self.loop, points)
        places = tuple(need(each, self.spec.size, kind=self.kind) for each in faces)
        model = self._lips.another()  # several portraits may be prepared at once
        seen = tuple(model.see(crop(each, where, self._lips.side, kind=self.kind)) for each, where in zip(pictures, places, strict=True))
        return Identity(key.hexdigest(), rgb, Features(tuple(pictures), places, seen))

    def _looped(self, path: Path, points: FloatArray) -> tuple[list[UInt8Array], FloatArray]:
        pictures = loops.read(path, fps=FPS)
        tracked = loops.track(pictures)
        pictures, tracked = loops.framed(pictures, tracked, points, self.spec.size)
        first, last = loops.turns(tracked)
        return pictures[first : last + 1], tracked[first : last + 1]

    def pack(self, identity: Identity) -> dict[str, npt.NDArray[Any]]:
        """What `np.savez` can keep of an identity, without pickle."""
        kept = {"key": np.array(identity.key), "version": np.array(VERSION), "weights": np.array(self.weights)}
        features: Features = identity.features
        if self._base is None or features.base is None:
            return kept | pack(features)
        told = cast(Any, self._base).pack(features.base) if hasattr(self._base, "pack") else {}
        return kept | pack(features) | {f"base.{name}": array for name, array in told.items()} | {"base_portrait": features.base.portrait}

    def unpack(self, portrait: UInt8Array, arrays: dict[str, npt.NDArray[Any]]) -> Identity:
        """The inverse of `pack`. Raises AvatarError for arrays of another version, or of other weights, loop or generator."""
        if str(arrays.get("version", "")) != VERSION or str(arrays.get("weights", "")) != self.weights:
            raise AvatarError("These features were made with other weights or over another face; prepare the portrait again.")
        base = None
        if self._base is not None:
            parts = {name.removeprefix("base."): array for name, array in arrays.items() if name.startswith("base.")}
            base = cast(Any, self._base).unpack(arrays["base_portrait"], parts) if parts else self._base.prepare(arrays["base_portrait"])
        return Identity(str(arrays["key"]), portrait, unpack(arrays, base))

    # -- fast, many -----------------------------------------------------------------------------------------------------

    def allocate(self, rows: int) -> State:
        """A State for `rows` sessions."""
        return State([None] * rows, None if self._base is None else self._base.allocate(rows), self._lips.another())

    def admit(self, state: State, row: int, identity: Identity) -> None:
        """Seat an identity in a row and reset it."""
        features: Features = identity.features
        if self._base is not None and features.base is not None:
            self._base.admit(state.base, row, features.base)
        state.rows[row] = self._seat(identity)

    def reset(self, state: State, row: int) -> None:
        """Forget the row's past; the identity stays."""
        seat = state.rows[row]
        if seat is None:
            return
        if self._base is not None:
            self._base.reset(state.base, row)
        _free(seat)
        state.rows[row] = self._seat(seat.identity)

    def evict(self, state: State, row: int) -> None:
        """The row's session has ended: nothing of who sat there stays."""
        seat = state.rows[row]
        if seat is None:
            return
        if self._base is not None:
            self._base.evict(state.base, row)
        _free(seat)
        state.rows[row] = None

    def step(self, state: State, signals: Sequence[Sequence[Signal] | None]) -> list[list[VideoFrame] | None]:
        """One frame for every row that has a signal; the lips are those of `spec.delay` frames ago, and so are the time and the picture."""
        asked = {row: chunk[0] for row, chunk in enumerate(signals) if chunk is not None}
        if any(state.rows[row] is None for row in asked):
            raise AvatarError("A signal came for a row where no portrait is seated; admit an identity first.")
        seats = {row: seat for row in asked if (seat := state.rows[row]) is not None}
        shown = self._pictures(state, seats, asked)
        made: list[list[VideoFrame] | None] = [None] * len(signals)
        for row, seat in seats.items():
            seat.sound.hear(asked[row])
            made[row] = [self._frame(state.lips, seat, shown[row])]
        return made

    def _pictures(self, state: State, seats: dict[int, Row], asked: dict[int, Signal]) -> dict[int, Shown]:
        """Row -> the picture for its signal, before its lips are moved."""
        if self._base is None:
            return {row: own(seat.identity.features, seat.clock, asked[row], fps=FPS) for row, seat in seats.items()}
        muted = [[mute(asked[row], seats[row].identity.features.region)] if row in seats else None for row in range(len(state.rows))]
        return others(self._base, state.base, muted)

    def _frame(self, model: lips.Lips, seat: Row, newest: Shown) -> VideoFrame:
        """The picture whose sound has been heard by now, speaking. Until there is one, the newest, as if it had been asked for in time."""
        seat.waiting.append(newest)
        if len(seat.waiting) <= self._wait:
            return replace(newest.frame, time=newest.frame.time - self._wait / FPS, rgb=newest.frame.rgb.copy())
        shown = seat.waiting.popleft()
        frame = shown.frame
        share = seat.gate(frame.time, seat.sound.voiced(frame.time))
        where = locate(shown, seat.follower, kind=self.kind) if share > 0 else None
        if where is None:
            return replace(frame, rgb=frame.rgb.copy())
        if shown.seen is None:
            shown.seen = model.see(crop(frame.rgb, where, model.side, kind=self.kind))
        answer = model.paint(shown.seen, model.hear(seat.sound, frame.time))
        return replace(frame, rgb=paste(frame.rgb, where, answer, share))

    def _seat(self, identity: Identity) -> Row:
        lost = self._base is not None and not hasattr(self._base, "points")
        return Row(identity, follower=Follower() if lost else None)


def _free(seat: Row) -> None:
    if seat.follower is not None:
        seat.follower.close()


def _precision(asked: str | None, *, backend: str, on: Any) -> Precision:
    """What was asked for, or what suits the device. Raises AvatarError for one that does not exist."""
    found = asked or ("fp16" if on.type == "cuda" else "fp32")
    if found not in KINDS or (backend != "pytorch" and found == "fp16"):
        choice = "fp32, bf16" + ", fp16" * (backend == "pytorch")
        raise AvatarError(f"The lips generator has no precision called '{found}' on {backend}; choose one of: {choice}.")
    return found  # type: ignore[return-value]


def _base(over: str | None) -> Generator | None:
    """The generator whose frames are spoken over, by NAME or NAME=DIR. Raises AvatarError for one that cannot be."""
    if over is None:
        return None
    over, _, weights = over.partition("=")
    if over == NAME:
        raise AvatarError("Lips cannot be put over lips; choose another generator with --over, such as puppet.")
    base = load_generator(over, **({"weights": weights} if weights else {}))
    if base.spec.chunk != 1:
        raise AvatarError(f"The generator '{over}' makes {base.spec.chunk} frames at a time, and lips are put into one; choose another with --over.")
    return base


def _hash(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return sha256(path)
    except OSError as error:
        raise AvatarError(f"The loop {path} cannot be read ({error.strerror or error}); check the path and its permissions.") from error


__all__ = ["Lipsync", "Row", "State"]
