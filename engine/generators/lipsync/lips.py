"""A model ready to run: what it knows of a face, what it makes of a frame's sound, and the picture of both. One frame a call.

A frame a call keeps sessions apart exactly: what one is shown never depends on how many others there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from engine.backends import backend, exported, half_the_cores, pytorch
from engine.backends.exported import Exported
from engine.generators.lipsync import musetalk, wav2lip
from engine.generators.lipsync.graphs import graphs
from engine.generators.lipsync.networks import Networks
from engine.generators.lipsync.sizes import MuseTalkSize
from engine.generators.lipsync.sound import Sound
from engine.types import AvatarError, FloatArray, GraphSpec, Runner, UInt8Array

Backend = Literal["pytorch", "openvino", "onnxruntime", "tensorrt"]
Array = npt.NDArray[Any]
NOISE_SEED = 0
"""Of the one noise that latents are drawn with: the same for every face, against flicker."""


@dataclass(slots=True)
class Lips:
    """One model, loaded."""

    networks: Networks
    runners: dict[str, Runner]  # by the graph's name
    noise: FloatArray | None  # [1, 8, s, s]; None for a model without latents

    @property
    def side(self) -> int:
        """px of the crop that `see` takes."""
        size = self.networks.size
        return size.side if isinstance(size, MuseTalkSize) else wav2lip.SIDE

    @property
    def reach(self) -> float:
        """s of sound after a frame's time that its lips need."""
        return reach(self.networks)

    def another(self) -> Lips:
        """The same for another thread, at the same time."""
        return Lips(self.networks, {name: _another(runner) for name, runner in self.runners.items()}, self.noise)

    def see(self, face: UInt8Array) -> Array:
        """The crop of a face [side, side, 3] RGB -> what `paint` takes of it."""
        if self.noise is None:
            return face[None]
        return self._run("encode", face=face[None], noise=self.noise)

    def hear(self, sound: Sound, time: float) -> Array:
        """The sound of the frame at `time` s -> what `paint` takes of it."""
        at = sound.seconds(time)
        if self.noise is None:
            return np.ascontiguousarray(wav2lip.heard(sound.read(*wav2lip.span(at)))[None])
        mel = musetalk.heard(sound.read(*musetalk.span(at)), positions=self.networks.size.positions)  # type: ignore[union-attr]
        return self._run("listen", mel=mel[None])

    def paint(self, seen: Array, heard: Array) -> FloatArray:
        """The speaking face [side, side, 3] RGB 0..255."""
        picture: FloatArray = self._run("step", face=seen, mel=heard)[0] if self.noise is None else self._run("step", latents=seen, tokens=heard)[0]
        return picture

    def _run(self, graph: str, **given: Array) -> Array:
        """A graph's one result, a copy."""
        (made,) = self.runners[graph]({name: np.ascontiguousarray(array) for name, array in given.items()}).values()
        return np.array(made, order="C")  # PyTorch's own order, kept, would have the next graph sum in another one than what was packed


def reach(networks: Networks) -> float:
    """s of sound after a frame's time that a model's lips need."""
    return musetalk.REACH if networks.size.kind == "musetalk" else wav2lip.REACH


def _another(runner: Runner) -> Runner:
    make: Callable[[], Runner] = getattr(runner, "another", lambda: runner)
    return make()


def check(name: str, *, device: str | None, graphs: object = None) -> None:
    """Raise AvatarError for a backend that does not exist, a device it cannot run on, or an export (`graphs`) where there is none, or too many."""
    if name not in get_args(Backend):
        raise AvatarError(f"The lips generator has no backend called '{name}'; choose one of: {', '.join(get_args(Backend))}.")
    exported.check(name, graphs=graphs, device=device)


def load(networks: Networks, *, name: str, device: Any, precision: str, held: Exported | None = None) -> Lips:
    """The model's graphs on a backend, PyTorch's each run once so that no frame waits for it. Raises AvatarError where they cannot be had.

    `held`: an export, which runs instead of the networks: of these nothing is needed but their shapes.
    """
    if held is not None:
        loaded = {graph: held.runner(graph, spec, at_once=2) for graph, spec in graphs(networks).items()}
        return Lips(networks, loaded, noise_of(networks))
    runners = {graph: _runner(graph, spec, name=name, device=device, precision=precision) for graph, spec in graphs(networks).items()}
    return Lips(networks, runners, noise_of(networks))


def noise_of(networks: Networks) -> FloatArray | None:
    """See `Lips.noise`."""
    if not isinstance(networks.size, MuseTalkSize):
        return None
    latent = networks.size.latent
    return np.random.default_rng(NOISE_SEED).standard_normal((1, 8, latent, latent), np.float32)


def _runner(graph: str, spec: GraphSpec, *, name: str, device: Any, precision: str) -> Runner:
    if name == "openvino":
        runner: Runner = backend(name).load(spec, precision=precision, threads=half_the_cores(), at_once=2)
        return runner
    # Faces are also looked at by threads that prepare portraits, so what reads them keeps no buffers of its own.
    mode = "eager" if graph == "encode" and device.type != "cpu" else pytorch.best_mode(device)
    runner = backend("pytorch").load(spec, mode=mode, device_name=str(device))
    call: Callable[[dict[str, Any]], Any] = runner
    call(spec.examples())
    return runner


__all__ = ["Backend", "Lips", "check", "load", "noise_of", "reach"]
