"""What weights of the lips generator export: Wav2Lip's one graph, or MuseTalk's three; the one that paints can be narrowed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.drivers.speech import LOOK_AHEAD
from engine.types import Runner
from exporters.graphs.precision import SENSITIVE
from exporters.graphs.rehearsal import FPS, SEEN, rehearsal
from exporters.graphs.subject import Subject


def subject(weights: Path) -> Subject:
    """Of a folder of weights. Raises AvatarError where it is not whole."""
    import torch

    from engine.generators.lipsync import graphs
    from engine.generators.lipsync import networks as weights_of

    networks = weights_of.load(weights)
    networks.module.to(torch.float32)
    seen = _Seen(networks)

    def inputs(graph: str, runner: Runner, moments: Sequence[int]) -> list[dict[str, Any]]:
        return seen(graph, moments)

    return Subject(
        generator="lipsync",
        about=networks.size.name,
        specs=graphs.graphs(networks),
        narrowed=graphs.NARROWED,
        inputs=inputs,
        seen=SEEN,
        config={"generator": "lipsync", "model": networks.size.name},
        source={"weights": {weights_of.MANIFEST: networks.origin}},
        keep={"int8": graphs.ENDS if networks.size.kind == "wav2lip" else SENSITIVE},
    )


class _Seen:
    """What every graph is given while a face moves and speaks; nothing is painted meanwhile."""

    def __init__(self, networks: Any) -> None:
        self._networks = networks
        self._kept: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._steps: Iterator[None] | None = None

    def __call__(self, graph: str, moments: Sequence[int]) -> list[dict[str, Any]]:
        """Inputs of a graph at some moments."""
        self._steps = self._steps or self._spoken()
        while len(self._kept["step"]) <= max(moments):
            next(self._steps)
        return [self._kept[graph][moment] for moment in moments]

    def _spoken(self) -> Iterator[None]:
        from engine.generators.lipsync import lips
        from engine.generators.lipsync.face import crop, need
        from engine.generators.lipsync.graphs import graphs
        from engine.generators.lipsync.sound import Sound
        from exporters.graphs.to_onnx import reference

        specs = graphs(self._networks)
        runners: dict[str, Runner] = {name: self._noted(name, reference(spec, spec.build())) for name, spec in specs.items() if name != "step"}
        runners["step"] = self._noted("step", lambda given: {"picture": np.zeros((1, 1, 1, 3), np.float32)})
        model, sound, kind = lips.Lips(self._networks, runners, lips.noise_of(self._networks)), Sound(), self._networks.size.kind
        late = math.ceil((model.reach - LOOK_AHEAD) * FPS)  # frames until all is heard that one needs
        faces = []
        for moment in rehearsal():
            where = need(moment.points, moment.rgb.shape, kind=kind)
            faces.append((moment.signal.time, crop(moment.rgb, where, model.side, kind=kind)))
            sound.hear(moment.signal)
            if len(faces) > late:
                time, face = faces.pop(0)
                model.paint(model.see(face), model.hear(sound, time))
                yield

    def _noted(self, graph: str, run: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Any:
        def noted(given: Mapping[str, Any]) -> dict[str, Any]:
            self._kept[graph].append({name: np.array(value) for name, value in given.items()})
            return run(given)

        return noted


__all__ = ["subject"]
