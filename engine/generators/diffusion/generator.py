"""The diffusion generator: few steps a frame, a reference that is read once, a sliding window of the past."""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import cv2
import numpy as np
import numpy.typing as npt

from engine.backends import half_the_cores, pytorch  # before torch: see there
from engine.generators import load as load_generator
from engine.generators.diffusion.conditions import Ease, anchor_of, painter
from engine.generators.diffusion.hearing import log_mel
from engine.generators.diffusion.presets import Decoder, resized
from engine.generators.diffusion.presets import preset as preset_named
from engine.generators.diffusion.trust import Ask, Guiding
from engine.generators.diffusion.trust import row as trusted_row
from engine.types import AvatarError, FloatArray, Generator, GeneratorSpec, Identity, MissingPart, Signal, UInt8Array, VideoFrame

try:
    import torch

    from engine.generators.diffusion import adapters as loras
    from engine.generators.diffusion import compiled
    from engine.generators.diffusion import networks as weights_of
    from engine.generators.diffusion import stream as streams
    from engine.generators.diffusion.autoencoder import to_unit
    from engine.generators.diffusion.face_of import kept_tokens, scale_of, seen_face
    from engine.generators.diffusion.features import VERSION, Features, pack, unpack
    from engine.generators.diffusion.listening import Ear, Listening
    from engine.generators.diffusion.memory import within_memory
    from engine.generators.diffusion.networks import UNTRAINED, Cache
    from engine.generators.diffusion.sampler import levels
    from engine.generators.diffusion.staging import Staging
except ImportError as error:
    raise MissingPart(f"The diffusion generator needs PyTorch and diffusers ({error}); pip install 'avatar-engine[torch]'.") from error

logger = logging.getLogger(__name__)

T = TypeVar("T")
Precision = Literal["fp32", "bf16", "fp16", "int8"]
KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""PyTorch's; other backends get fp32 networks and are asked for a precision."""


@dataclass
class State:
    """Rows of sessions."""

    stream: streams.Stream | None  # made with the first identity, whose caches tell the shapes
    base: Any  # the State of the generator whose frames are the condition
    rows: list[Identity | None]
    run: dict[int | None, Callable[[], None]] = field(default_factory=dict)  # row, or None for all at once -> its prepared step
    ends: Staging | None = None  # where pictures go in and out; made with the stream
    pool: Any = None  # that the graphs of all of `run` share: one of them runs at a time, and none keeps anything there
    shown: list[deque[list[Ask]]] = field(default_factory=list)  # a row: chunks that the stream batch still holds
    eases: dict[int, Ease] = field(default_factory=dict)  # row -> what its painted condition remembers
    ears: dict[int, Ear] = field(default_factory=dict)  # row -> what it has heard, where a network listens
    proven: set[int] = field(default_factory=set)  # rows that have made a picture since their past began
    lost: int = 0  # times that a row's past was given up because its numbers were none


class Diffusion:
    """A pose- and audio-driven generator of the Animate Anyone kind. Input: `Signal.motion` and `speech`, or landmarks."""

    def __init__(
        self,
        preset: str | None = None,
        *,
        size: tuple[int, int] | None = None,
        weights: str | Path | None = None,
        steps: int | None = None,
        stream_batch: bool = False,
        precision: Precision | None = None,
        mode: pytorch.Mode | None = None,
        device: str | None = None,
        decoder: Decoder | None = None,
        backend: compiled.Backend = "pytorch",
        graphs: str | Path | None = None,
        adapters: Sequence[loras.Adapter] = (),
        identity_scale: float | None = None,
        seed: int = 0,
    ) -> None:
        """`preset`: of random weights (seeded by `seed`) where `weights`, a folder, is not given; default compact. `steps` a frame.

        `size` (H, W) px instead of the preset's. `mode`: see `engine.backends.pytorch`. `decoder` tiny: the one that was imported
        beside the weights instead of their own. `backend`: what runs the live step; `graphs`: the folder of its exported graphs, which ONNX
        Runtime needs and OpenVINO not. `adapters`: LoRAs (`exporters.graphs.lora`), by default those in `graphs`. `identity_scale`: how much
        attention to a face's tokens counts in presets that read them (default 1, as published). Raises AvatarError for a misfit.
        """
        compiled.check(backend, mode=mode, device=device, batched=stream_batch, graphs=graphs)
        self.device = pytorch.device(device if backend == "pytorch" or backend in compiled.ON_A_GPU else "cpu")
        if self.device.type == "cpu":
            torch.set_num_threads(half_the_cores())
        if weights is None:
            networks = weights_of.build(preset_named(preset or "compact"), seed=seed, decoder=decoder)
        else:
            networks = weights_of.load(Path(weights), decoder=decoder)
        made = networks.preset
        if preset is not None and preset != made.name:
            raise AvatarError(f"The weights in {weights} are for the preset '{made.name}', not '{preset}'; leave --preset out.")
        folder = None if graphs is None else Path(graphs)
        self.adapters = loras.fuse(networks, adapters or loras.fused_in(folder, networks.origin))
        if size is not None:
            made = networks.preset = resized(made, size)
        asked, precision = precision, precision or ("fp16" if self.device.type == "cuda" else "fp32")
        kind = precision if backend == "pytorch" else "fp32"
        if kind not in KINDS:
            raise AvatarError(f"There is no precision called '{precision}'; choose one of: {', '.join(KINDS)}.")
        count = made.steps if steps is None else steps
        self.trained = networks.origin != UNTRAINED
        self.precision: str = precision
        self.preset, self.steps = made.name, count
        self.weights = f"{networks.origin} {seed if not self.trained else ''} {kind} {made.name} {made.size}{loras.mark(networks.adapters)}"
        networks.identity_scale = scale_of(made, identity_scale)
        if networks.identity_scale != 1.0:
            self.weights += f" face {networks.identity_scale:g}"
        if made.reference_each:
            self.weights += f" {count} steps"  # at whose levels the portrait was read
        networks = self._within_memory("hold the weights", partial(networks.to, self.device, KINDS[kind]), ways=("a smaller preset", "--device cpu"))
        networks.denoiser.freeze(made.window)
        self._listening = None if networks.listener is None else Listening(networks.listener, made)
        self._behind = (count - 1) * made.chunk if stream_batch and count > 1 else 0  # frames that a stream batch holds
        at = levels(made.noise, count).to(self.device)
        self.recipe = streams.Recipe(networks, at, stream_batch and count > 1, KINDS[kind], self.device)
        self.mode = mode or pytorch.best_mode(self.device)
        self.backend = f"pytorch {self.mode}" if backend == "pytorch" else backend
        self._graph = None if backend == "pytorch" else compiled.load(self.recipe, backend, precision=asked, folder=folder)
        if self._graph is not None:
            self.precision = self._graph.precision
        self._scripts: dict[tuple[int, ...], Any] = {}
        pytorch.check_mode(self.mode, self.device)
        if self.mode == "compile":
            networks.denoiser = pytorch.compiled(networks.denoiser)
        self._base: Generator | None = load_generator("puppet", size=made.size) if made.condition == "puppet" else None
        self._paint = None if self._base else painter(made)
        self._anchored = self._paint is not None and not made.maps  # whether the driver is brought to where the portrait is
        self._trust = networks.taught.trust if self._base and networks.taught else None
        self._taught = networks.taught
        self.spec = GeneratorSpec(
            name="diffusion",
            size=made.size,
            fps=made.fps,
            chunk=made.chunk,
            delay=self._behind + (self._listening.delay if self._listening else 0),
            needs=made.needs,
            together=self.device.type != "cpu" and backend == "pytorch",
            warm_up=pytorch.WARM_UPS + 1 if self.mode == "cudagraph" else 2,
            notice=weights_of.notice(networks, count),
            maps=made.maps,
        )
        self.notice = "" if self.trained else self.spec.notice

    # -- slow, once -----------------------------------------------------------------------------------------------------

    def prepare(self, portrait: UInt8Array, tokens: FloatArray | None = None) -> Identity:
        """Portrait [H, W, 3] of any size -> Identity. `tokens`: what `read_tokens` found of the person. Raises AvatarError where no face is found."""
        anchor = anchor_of(portrait) if self._anchored else None
        base = self._based(portrait) if self._base else None
        height, width = self.spec.size
        how = cv2.INTER_AREA if portrait.shape[0] > height else cv2.INTER_CUBIC
        rgb = np.ascontiguousarray(cv2.resize(portrait, (width, height), interpolation=how), np.uint8)
        made_by = f"diffusion {VERSION} {self.recipe.preset} {self.weights}"
        told = b"" if tokens is None else tokens.tobytes()
        key = hashlib.sha256(np.ascontiguousarray(portrait).tobytes() + made_by.encode() + told).hexdigest()
        face = seen_face(self.recipe.networks, portrait, anchor, tokens)

        def remembered() -> Cache:
            picture = to_unit(torch.from_numpy(rgb)[None].to(self.device)).to(self.recipe.dtype)
            # Kept on the host: a session's row gets a copy on its device, and portraits that nobody shows take no room there.
            return self.recipe.remember(picture, face).to("cpu")

        return Identity(key, rgb, Features(self._within_memory("prepare a portrait", remembered), base, anchor))

    def read_tokens(self, data: bytes) -> FloatArray | None:
        """Of a persona's `identity.npz` what fits these weights, for `prepare`. Raises AvatarError for a damaged file."""
        return kept_tokens(self.recipe.networks, data) if self.recipe.preset.unet.face_dim else None

    def _based(self, portrait: UInt8Array) -> Identity:
        """The portrait for the generator whose frames are the condition, with what that was taught of its person."""
        base = cast(Any, self._base)
        if self._taught is not None and self._taught.suits(portrait):
            return cast(Identity, base.prepare(portrait, base.read_assets(dict(self._taught.arrays))))
        if self._taught is not None and self._taught.arrays:
            logger.warning("These weights were trained for another portrait: what they know of its background and outline is left out.")
        return cast(Identity, base.prepare(portrait))

    def pack(self, identity: Identity) -> dict[str, npt.NDArray[Any]]:
        """What `np.savez` can keep of an identity, without pickle."""
        return pack(identity, weights=self.weights, base=self._base)

    def unpack(self, portrait: UInt8Array, arrays: dict[str, npt.NDArray[Any]]) -> Identity:
        """The inverse of `pack`. Raises AvatarError for arrays of another version or of other weights."""
        return unpack(portrait, arrays, weights=self.weights, base=self._base, dtype=self.recipe.dtype)

    def check_leisure(self, *, steps: int | None, guidance: float | None) -> None:
        """See `engine.whole`. Raises AvatarError where another backend than PyTorch was asked for, or for steps that there are not."""
        from engine.generators.diffusion import leisure

        if self._graph is not None:
            raise AvatarError(f"A whole clip is rendered by PyTorch, and this generator runs on {self.backend}; load it without a backend.")
        levels(self.recipe.preset.noise, leisure.sampling_of(self, steps=steps, guidance=guidance).steps)

    def at_leisure(
        self,
        identity: Identity,
        signals: Sequence[Signal],
        *,
        kept: Path,
        steps: int | None = None,
        guidance: float | None = None,
        progress: Any = None,
    ) -> Callable[[int], UInt8Array]:
        """See `engine.whole`. Raises AvatarError as `check_leisure`, and where the memory is not enough."""
        from engine.generators.diffusion import leisure

        self.check_leisure(steps=steps, guidance=guidance)
        how = leisure.sampling_of(self, steps=steps, guidance=guidance)
        return leisure.render(self, identity, signals, how=how, kept=kept, progress=progress)

    def asks(self, identity: Identity) -> Callable[[Signal], Ask]:
        """What the networks are asked for, signal by signal of a stream."""
        state = self.allocate(1)
        state.rows[0] = identity
        if self._base is not None:
            self._base.admit(state.base, 0, identity.features.base)
        return lambda signal: self._conditions(state, [[signal]])[0][0]

    # -- fast, many -----------------------------------------------------------------------------------------------------

    def allocate(self, rows: int) -> State:
        """A State for `rows` sessions; its tensors are made, all of them, when the first identity shows their shapes."""
        return State(None, self._base.allocate(rows) if self._base else None, [None] * rows, shown=[deque() for _ in range(rows)])

    def admit(self, state: State, row: int, identity: Identity) -> None:
        """Seat an identity in a row and reset it."""
        features: Features = identity.features

        def seated() -> None:
            if state.stream is None:
                stream = streams.open_stream(self.recipe, len(state.rows), features.cache)
                state.stream, state.ends = stream, Staging.of(stream)
            streams.seat(state.stream, row, features.cache)

        self._within_memory(f"hold {len(state.rows)} sessions at once", seated)
        if self._base is not None and features.base is not None:
            self._base.admit(state.base, row, features.base)
        state.rows[row] = identity
        self.reset(state, row)

    def reset(self, state: State, row: int) -> None:
        """Forget the row's past; the identity stays."""
        if state.stream is not None:
            streams.forget(state.stream, row)
        state.shown[row].clear()
        state.eases.pop(row, None)
        state.ears.pop(row, None)
        state.proven.discard(row)
        if self._base is not None:
            self._base.reset(state.base, row)

    def evict(self, state: State, row: int) -> None:
        """The row's session has ended: nothing of who sat there stays."""
        if self._base is not None and state.rows[row] is not None:
            self._base.evict(state.base, row)
        state.rows[row] = None
        state.shown[row].clear()
        state.eases.pop(row, None)
        state.ears.pop(row, None)
        state.proven.discard(row)
        if state.stream is not None:
            streams.vacate(state.stream, row)

    def step(self, state: State, signals: Sequence[Sequence[Signal] | None]) -> list[list[VideoFrame] | None]:
        """One chunk for every row that has signals. A row whose numbers stop being numbers begins anew, and shows its condition meanwhile.

        Raises AvatarError where a new beginning does not help, or memory runs out; the rows can be stepped again all the same.
        """
        ends = state.ends
        asked = [row for row, chunk in enumerate(signals) if chunk is not None]
        if any(state.rows[row] is None for row in asked) or (asked and ends is None):
            raise AvatarError("A signal came for a row where no portrait is seated; admit an identity first.")
        if not asked or ends is None:
            return [None] * len(signals)
        signals = self._later(state, signals)
        for row, asks in self._conditions(state, signals).items():
            ends.put(row, np.stack([ask.picture for ask in asks]), self._heard(state, row, cast(Sequence[Signal], signals[row])))
            state.shown[row].append(asks)
        try:
            pictures, finite = self._within_memory("make a frame", lambda: self._run(state, ends, asked))
        except Exception:
            for row in asked:  # what a broken step has left fits neither the pictures before it nor those after
                self.reset(state, row)
            raise
        made = [self._told(state, row, pictures[row] if finite[row] else None) if row in asked else None for row in range(len(signals))]
        self._give_up(state, [row for row in asked if not finite[row]])
        return made

    def _later(self, state: State, signals: Sequence[Sequence[Signal] | None]) -> Sequence[Sequence[Signal] | None]:
        """The signals that frames are made of now: where a network listens, those whose sound it has heard to the end."""
        listening = self._listening
        if listening is None:
            return signals
        return [None if chunk is None else listening.later(state.ears.setdefault(row, Ear()), chunk) for row, chunk in enumerate(signals)]

    def _heard(self, state: State, row: int, chunk: Sequence[Signal]) -> npt.NDArray[np.float32]:
        """[c, *`Ears.heard`]: log-mel, or what the listening network makes of a row's sound."""
        return log_mel(chunk) if self._listening is None else self._listening.heard(state.ears[row], chunk)

    def _run(self, state: State, ends: Staging, asked: Sequence[int]) -> tuple[UInt8Array, list[bool]]:
        """Step the rows that have a chunk -> see `Staging.fetch`."""
        ends.send(asked)
        # A CPU gains nothing from a batch and would pay for idle rows; an accelerator takes all rows at once, where there are several.
        for row in [None] if self.spec.together and len(asked) > 1 else asked:
            if row not in state.run:
                state.run[row] = self._prepared(state, ends.stream if row is None else ends.stream.row(row))
            state.run[row]()
        return ends.fetch(asked)

    def _give_up(self, state: State, rows: Sequence[int]) -> None:
        """Rows whose numbers are none begin anew: what a past holds once, it says in every frame until it has left the window."""
        hopeless = [row for row in rows if row not in state.proven]
        for row in rows:
            self.reset(state, row)
        if rows and not state.lost:
            logger.warning("The numbers of a picture were not finite, so its session's past was given up; further times are counted, not told.")
        state.lost += len(rows)
        if hopeless:
            other = {"fp16": "use --precision bf16 or fp32", "fp32": "import or train them again"}.get(self.precision, "use --precision fp32")
            raise AvatarError(f"These weights make no picture in {self.precision}: even at a new beginning their numbers are not finite; {other}.")

    def _within_memory(self, what: str, call: Callable[[], T], **more: Any) -> T:
        return within_memory(what, call, device=self.device, precision=self.precision, **more)

    def _prepared(self, state: State, stream: streams.Stream) -> Callable[[], None]:
        """The step of a stream, or of one row's view of it."""
        if self._graph is not None:
            return self._graph.prepared(stream)
        if self.mode == "cudagraph" and state.pool is None:
            state.pool = torch.cuda.graph_pool_handle()
        module = streams.Step(self.recipe, stream).eval()
        if self.mode == "script":
            # One trace serves every row and every State of as many rows: it reads and writes what it is given.
            shape = tuple(stream.condition.shape)
            if shape not in self._scripts:
                self._scripts[shape] = pytorch.scripted(module, stream.tensors())
            module = self._scripts[shape]
        return pytorch.prepared(module, stream.tensors(), mode=self.mode, pool=state.pool)

    def _conditions(self, state: State, signals: Sequence[Sequence[Signal] | None]) -> dict[int, list[Ask]]:
        """Row -> what is asked for with each of its signals."""
        asked: dict[int, list[Ask]] = {row: [] for row, chunk in enumerate(signals) if chunk is not None}
        if self._base is not None:
            for k in range(max(len(chunk) for chunk in signals if chunk is not None)):  # one by one: the puppet's guide is its last frame's
                frames = self._base.step(state.base, [None if chunk is None else [chunk[k]] for chunk in signals])
                for row, asks in asked.items():
                    asks.append(self._ask(state, row, cast(list[VideoFrame], frames[row])[0], cast(Sequence[Signal], signals[row])[k]))
            return asked
        assert self._paint is not None
        for row, asks in asked.items():
            anchor, ease = cast(Identity, state.rows[row]).features.anchor, state.eases.setdefault(row, Ease())
            for signal in cast(Sequence[Signal], signals[row]):
                picture = self._paint(signal, anchor, ease)
                asks.append(Ask(VideoFrame(picture, signal.time, signal.id), picture))
        return asked

    def _ask(self, state: State, row: int, frame: VideoFrame, signal: Signal) -> Ask:
        """Over the puppet's frame."""
        puppet = cast(Guiding, self._base)
        picture = np.concatenate([frame.rgb, puppet.guide(state.base, row, frame)], 2) if self.recipe.preset.guide else frame.rgb
        if self._trust is None or signal.motion is None:
            return Ask(frame, picture)
        return Ask(frame, picture, puppet.points(state.base, row).copy(), self._trust.confidence(trusted_row(signal.motion)))

    def _told(self, state: State, row: int, pictures: UInt8Array | None) -> list[VideoFrame]:
        """The pictures with the time of the motion they show. Where there are none, as until a stream batch is full, they are the
        conditions, or the portrait."""
        waiting = state.shown[row]
        filling = len(waiting) * self.spec.chunk <= self._behind
        shown = waiting[-1] if filling else waiting.popleft()
        if filling or pictures is None:
            still = cast(Identity, state.rows[row]).portrait
            early = self._behind / self.spec.fps if filling else 0.0  # what comes first is shown as if it had been asked for in time
            frames = [ask.frame for ask in shown]
            return [replace(frame, time=frame.time - early, rgb=frame.rgb if self._base is not None else still.copy()) for frame in frames]
        state.proven.add(row)
        return [ask.answered(picture) for picture, ask in zip(pictures, shown, strict=True)]


__all__ = ["Diffusion", "State"]
