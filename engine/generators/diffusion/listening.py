"""What frames hear beside log-mel: a listening network's features, of a whole sound or of a session's, frame by frame."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from engine.drivers import wav2vec, whisper
from engine.drivers.sound import Sound
from engine.drivers.speech import LOOK_AHEAD
from engine.generators.diffusion.presets import Ears, Preset
from engine.types import FloatArray, Signal

LATE = 1e-6
"""Frames by which sound may miss the grid by rounding."""


def listener(ears: Ears) -> whisper.Encoder | wav2vec.Encoder | None:
    """The network of some ears; None where log-mel is all they hear."""
    if ears.kind == "mel":
        return None
    if ears.kind == "whisper":
        return whisper.Encoder(width=ears.width, layers=ears.layers, heads=ears.heads, positions=ears.positions)
    return wav2vec.Encoder(width=ears.width, layers=ears.layers, heads=ears.heads, convolutions=ears.convolutions)


@torch.no_grad()
def heard_in(network: nn.Module, pcm: FloatArray, made: Preset) -> Tensor:
    """A whole sound [N] at 16 kHz -> [F, *`Ears.heard`] what its frames hear, as the published code finds it; F may go on after its end."""
    if isinstance(network, whisper.Encoder):
        return whisper.frame_states(whisper.clip_states(network, pcm), fps=made.fps)
    assert isinstance(network, wav2vec.Encoder)
    clip = made.sampling.window if made.sampling.carried else 1
    return wav2vec.frame_layers(wav2vec.clip_layers(network, pcm, fps=made.fps, clip=clip))


@dataclass(slots=True)
class Ear:
    """What one session has heard, and its signals whose sound has not all been heard."""

    sound: Sound = field(default_factory=Sound)
    waiting: deque[Signal] = field(default_factory=deque)


class Listening:
    """Sessions' sound through a listening network: a frame waits until all that its features need has been heard."""

    def __init__(self, network: nn.Module, made: Preset) -> None:
        self._network, self._made = network, made
        reach = whisper.REACH if isinstance(network, whisper.Encoder) else wav2vec.RIGHT / made.fps
        behind = math.ceil((reach - LOOK_AHEAD) * made.fps - LATE)
        self.delay = max(0, math.ceil(behind / made.chunk) * made.chunk)  # frames between a signal and the one that is made of it

    def later(self, ear: Ear, chunk: Sequence[Signal]) -> list[Signal]:
        """A session's newest signals -> those of `delay` frames ago. Before its first one there is that one's own motion, in silence."""
        if not ear.waiting:
            first = chunk[0]
            back = range(self.delay, 0, -1)
            ear.waiting.extend(replace(first, time=first.time - k / self._made.fps, pcm=None, speech=None) for k in back)
        for signal in chunk:
            ear.sound.hear(signal)
            ear.waiting.append(signal)
        return [ear.waiting.popleft() for _ in chunk]

    @torch.no_grad()
    def heard(self, ear: Ear, chunk: Sequence[Signal]) -> FloatArray:
        """[c, *`Ears.heard`] of frames whose sound has been heard."""
        found = [self._features(ear.sound, ear.sound.seconds(signal.time)) for signal in chunk]
        return np.stack([x.float().cpu().numpy() for x in found])

    def _features(self, sound: Sound, time: float) -> Tensor:
        if isinstance(self._network, whisper.Encoder):
            states = whisper.clip_states(self._network, sound.read(*whisper.span(time)))
            own: Tensor = states[whisper.LEFT - whisper.BEFORE : whisper.LEFT + whisper.AFTER].flatten(0, 1)
            return own
        assert isinstance(self._network, wav2vec.Encoder)
        fps = self._made.fps
        layers = wav2vec.clip_layers(self._network, sound.read(*wav2vec.span(time, fps=fps)), fps=fps)
        return wav2vec.frame_layers(layers)[wav2vec.LEFT]


__all__ = ["Ear", "Listening", "heard_in", "listener"]
