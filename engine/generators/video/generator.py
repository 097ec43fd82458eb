"""Video systems behind the contract of a generator: live by a rolling window (`rolling`), whole clips at leisure as published."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from engine.backends import pytorch  # before torch: see there
from engine.conditions.ease import Ease
from engine.conditions.place import Anchor, anchor_of
from engine.types import AvatarError, GeneratorSpec, Identity, MissingPart, Signal, UInt8Array, VideoFrame

try:
    from torch import Tensor

    from engine.generators.video import presets, vividpose_presets
    from engine.generators.video.clips import How, Known, Make, System
    from engine.generators.video.live import Row, Stream
    from engine.generators.video.running import KINDS, Asked, Backend, within_memory
    from engine.generators.video.sampling import Progress
    from engine.generators.video.unianimate_clips import UniAnimateClips
    from engine.generators.video.vividpose_clips import VividPoseClips
    from engine.generators.video.weights import UNTRAINED, Plan, read_manifest
except ImportError as error:
    raise MissingPart(f"The generator 'video' needs PyTorch and diffusers ({error}); pip install 'avatar-engine[torch]'.") from error

logger = logging.getLogger(__name__)

FPS = 15
"""Frames a second: UniAnimate's published script takes every second frame of a clip; VividPose's rate is not told."""
STATE = "state.safetensors"
"""Of the folder that a rendering goes on from."""
AS_PUBLISHED = (
    "These weights were made for {steps} steps with guidance, and nobody has taught them to run live: in {few} without guidance the picture is soft. "
    "As published a picture leaves {delay:.1f} s after its motion at the earliest, since {window} frames are made at once and each sees the others, "
    "and they take {evaluations} evaluations of the network; here {new} frames are made at once ({wait:.2f} s), beside {overlap} of the past, in "
    "{few}. `avatar render --offline` does it as published."
)
"""Delay of the published mode: a frame waits for the last one of its window."""


def _make_of(name: str, folder: Path | None = None) -> Make:
    """Whose a preset is, that weights in `folder` are for where there are some. Raises AvatarError for an unknown one."""
    systems: list[tuple[Make, Iterable[str]]] = [(UniAnimateClips, presets.PRESETS), (VividPoseClips, vividpose_presets.PRESETS)]
    makes = {each: make for make, names in systems for each in names}
    if name not in makes and folder is not None:
        raise AvatarError(f"The weights in {folder} ('{name}') are another generator's; choose that one with --generator, or other weights.")
    if name not in makes:
        raise AvatarError(f"The generator 'video' has no preset '{name}'; choose one of: {', '.join(sorted(makes))}.")
    return makes[name]


@dataclass(frozen=True, slots=True)
class Features:
    """One portrait, ready."""

    made: Any  # of the system
    anchor: Anchor
    known: Known  # for a live stream


@dataclass
class State:
    """Rows of sessions."""

    stream: Stream
    runner: Any
    seated: list[Identity | None]
    rows: dict[int, Row] = field(default_factory=dict)  # those that have been stepped
    eases: dict[int, Ease] = field(default_factory=dict)  # of rows that have begun: what their conditions remember
    proven: set[int] = field(default_factory=set)  # rows that have made a picture since they began
    lost: int = 0  # times that a row's past was given up because its numbers were none


class Video:
    """A body by UniAnimate or VividPose. Input: face, body and hands of every frame, for VividPose pictures of SMPL-X too."""

    def __init__(
        self,
        preset: str | None = None,
        *,
        weights: str | Path | None = None,
        steps: int | None = None,
        precision: str | None = None,
        mode: pytorch.Mode | None = None,
        device: str | None = None,
        backend: Backend = "pytorch",
        graphs: str | Path | None = None,
        seed: int = 0,
        window: int | None = None,
        overlap: int | None = None,
        first_guidance: float | None = None,
    ) -> None:
        """`preset`: unianimate, unianimate_large, vividpose, vividpose_xt, tiny_unianimate (default) or tiny_vividpose; of random weights (by
        `seed`) where `weights`, a folder, is not given. `window`, `overlap`: frames that the network sees at once, and how many of them are
        past, or over a long clip the next window's too. `steps`: live. `first_guidance`: of VividPose's first frame, at leisure. None: what
        the weights were made for. `backend`, `graphs`: what runs the live step, and the folder of its export. Raises AvatarError for a misfit.
        """
        asked = Asked.of(backend, mode=mode, device=device, precision=precision, graphs=graphs)
        if first_guidance is not None and not 0.0 <= first_guidance < math.inf:
            raise AvatarError(f"Guidance is a scale of 0 or more, not {first_guidance:g}; 1 is none.")
        self.how = How(steps=steps, first_guidance=first_guidance, window=window, overlap=overlap)
        folder = None if weights is None else Path(weights)
        preset = presets.TINY.name if preset is None and folder is None else preset
        make = _make_of(read_manifest(folder).preset, folder) if folder is not None else _make_of(cast(str, preset))
        if preset is not None and _make_of(preset) is not make:
            raise AvatarError(f"The weights in {folder} are not for the preset '{preset}'; leave --preset out.")
        self.system: System = make(preset, folder, seed)
        self.system.check(self.how)
        self.plan: Plan = self.how.plan(self.system.taught, self.system.frames)
        self.steps = self.plan.steps
        self._steps = self.system.steps(self.steps)
        within_memory("hold the weights", lambda: self.system.place(asked.device, KINDS[asked.precision]), ways="a smaller preset or --device cpu")
        self.device, self.mode, self.backend, self._arrays = asked.device, asked.mode, asked.told, asked.arrays
        self.graph, self._runner, self.precision = asked.runner(self.system, self.plan)
        self.preset, self.trained = self.system.name, self.system.origin != UNTRAINED
        self.weights = f"{self.system.origin} {'' if self.trained else seed} {self.system.name} {asked.precision}"
        self.notice = self.system.notice
        self.spec = GeneratorSpec(
            name="video",
            size=self.system.size,
            fps=FPS,
            chunk=self.plan.new,
            needs=self.system.needs,
            together=self.device.type != "cpu",
            warm_up={"cudagraph": pytorch.WARM_UPS + 1, "eager": 1}.get(self.mode, 2),
            notice=self._told_live(),
            maps=self.system.maps,
            more_maps=self.system.more_maps,
        )

    def _told_live(self) -> str:
        """What whoever watches these weights live must know."""
        system, plan = self.system, self.plan
        if not self.trained or system.taught is not None:
            return system.notice
        published = system.published
        told = AS_PUBLISHED.format(
            steps=published.steps,
            few=f"{plan.steps} step{'s' * (plan.steps > 1)}",
            delay=(published.window - 1) / FPS,
            window=published.window,
            evaluations=published.evaluations,
            new=plan.new,
            wait=plan.new / FPS,
            overlap=plan.overlap,
        )
        return f"{system.notice} {told}".strip()

    # -- slow, once -----------------------------------------------------------------------------------------------------

    def prepare(self, portrait: UInt8Array) -> Identity:
        """Portrait [H, W, 3] of any size -> Identity. Raises AvatarError where no face is found."""
        anchor = anchor_of(portrait)
        told = f"video {self.spec.size} {self.weights}"
        key = hashlib.sha256(np.ascontiguousarray(portrait).tobytes() + told.encode()).hexdigest()

        def features() -> tuple[UInt8Array, Features]:
            picture, made = self.system.prepare(portrait, anchor)
            return picture, Features(made, anchor, self.system.known(made, anchor))

        return Identity(key, *within_memory("prepare a portrait", features, ways="a smaller preset"))

    def check_leisure(self, *, steps: int | None, guidance: float | None) -> None:
        """See `engine.whole`. Raises AvatarError for weights that were taught to run live, which know nothing of the published steps, and for
        steps that there are not."""
        if self.system.taught is not None:
            raise AvatarError(f"These weights were taught to run live, in {self.plan.steps} steps a frame; leave --offline out.")
        self.system.check_clip(replace(self.how, steps=steps, guidance=guidance))

    def at_leisure(
        self,
        identity: Identity,
        signals: Sequence[Signal],
        *,
        kept: Path,
        steps: int | None,
        guidance: float | None,
        progress: Progress | None = None,
    ) -> Callable[[int], UInt8Array]:
        """See `engine.whole`. Raises AvatarError as `check_leisure`."""
        self.check_leisure(steps=steps, guidance=guidance)
        if not signals:
            raise AvatarError("The drive has no frame to render; choose a longer one.")
        features: Features = identity.features
        kept.mkdir(exist_ok=True)
        how = replace(self.how, steps=steps, guidance=guidance)
        frames = self.system.render(features.made, features.anchor, signals, how=how, state=kept / STATE, progress=progress)
        return lambda number: cast(UInt8Array, frames[number])

    # -- fast, many -----------------------------------------------------------------------------------------------------

    def allocate(self, rows: int) -> State:
        """A State for `rows` sessions."""
        another: Callable[[], Any] = getattr(self._runner, "another", lambda: self._runner)
        ways = "fewer sessions (--max-sessions)"
        stream = within_memory(
            f"hold {rows} sessions", lambda: Stream.of(self.system, self.plan, rows=rows, device=self.device), ways=f"{ways} or a smaller preset"
        )
        return State(stream, another(), [None] * rows)

    def noise(self) -> Tensor:
        """[W, C, h, w] of a stream's frames where it begins: the same for all."""
        return self._steps.drawn((self.plan.window, *self.system.latent))

    def admit(self, state: State, row: int, identity: Identity) -> None:
        """Seat an identity in a row and reset it."""
        features: Features = identity.features
        state.stream.row(row).seat(features.known)
        state.seated[row] = identity
        self.reset(state, row)

    def reset(self, state: State, row: int) -> None:
        """Forget the row's past; the identity stays. It begins anew with its next signal."""
        state.eases.pop(row, None)
        state.proven.discard(row)

    def evict(self, state: State, row: int) -> None:
        """The row's session has ended: nothing of who sat there stays."""
        self.reset(state, row)
        state.seated[row] = None
        state.stream.row(row).vacate()

    def step(self, state: State, signals: Sequence[Sequence[Signal] | None]) -> list[list[VideoFrame] | None]:
        """One chunk for every row that has signals. A row whose numbers stop being numbers begins anew, and shows its portrait meanwhile.

        Raises AvatarError where a new beginning does not help, or memory runs out; the rows can be stepped again all the same.
        """
        if any(state.seated[row] is None for row, chunk in enumerate(signals) if chunk is not None):
            raise AvatarError("A signal came for a row where no portrait is seated; admit an identity first.")
        return [None if chunk is None else self._chunk(state, row, chunk) for row, chunk in enumerate(signals)]

    def _chunk(self, state: State, row: int, chunk: Sequence[Signal]) -> list[VideoFrame]:
        identity = cast(Identity, state.seated[row])
        try:
            conditions = self._conditions(state, row, identity.features.anchor, chunk)
            if row not in state.rows:
                state.rows[row] = Row(state.stream.row(row), state.runner, self.graph, arrays=self._arrays)
            pictures = within_memory("make a frame", lambda: state.rows[row](conditions), ways="a shorter --window, or a smaller preset")
        except Exception:
            self.reset(state, row)  # what a broken step has left fits neither the frames before it nor those after
            raise
        if pictures is None:
            self._give_up(state, row)
            pictures = np.stack([identity.portrait] * len(chunk))
        else:
            state.proven.add(row)
        return [VideoFrame(picture, signal.time, signal.id) for picture, signal in zip(pictures, chunk, strict=True)]

    def _conditions(self, state: State, row: int, anchor: Anchor, chunk: Sequence[Signal]) -> UInt8Array:
        """[N, H, W, layers] of a row, whose past begins with its first signal."""
        if row not in state.eases:
            state.stream.row(row).begin(self.noise(), self.system.rest(chunk[0], anchor))
            state.eases[row] = Ease()
        return np.stack([self.system.condition(signal, anchor, state.eases[row]) for signal in chunk])

    def _give_up(self, state: State, row: int) -> None:
        hopeless = row not in state.proven
        self.reset(state, row)
        if not state.lost:
            logger.warning("The numbers of a picture were not finite, so its session's past was given up; further times are counted, not told.")
        state.lost += 1
        if hopeless:
            other = "use --precision fp32" if self.precision != "fp32" else "import or train them again"
            raise AvatarError(f"These weights make no picture in {self.precision}: even at a new beginning their numbers are not finite; {other}.")


__all__ = ["State", "Video"]
