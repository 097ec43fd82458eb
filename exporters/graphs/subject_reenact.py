"""What weights of the reenacting generator export: five graphs that remember nothing, of which the one that paints can be narrowed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.types import AvatarError, Runner
from exporters.graphs.rehearsal import SEEN, rehearsal
from exporters.graphs.subject import Subject


def subject(weights: Path) -> Subject:
    """Of a folder of weights. Raises AvatarError where it holds published ONNX files, which are no networks, or is not whole."""
    from engine.generators import load
    from engine.generators.reenact import graphs, networks

    if networks.release(weights) is not None:
        raise AvatarError(f"{weights} holds published ONNX files, which ONNX Runtime runs as they are; import the .pth files to export graphs.")
    generator: Any = load("reenact", weights=weights, backend="pytorch", mode="eager", device="cpu", precision="fp32")
    held: networks.Networks = generator.networks
    held.sampled_as("gather")  # runtimes have no look-up of volumes
    seen = _Seen(generator)

    def inputs(graph: str, runner: Runner, moments: Sequence[int]) -> list[dict[str, Any]]:
        return seen(graph, moments)

    return Subject(
        generator="reenact",
        about=held.preset.name,
        specs=graphs.graphs(held),
        narrowed=graphs.NARROWED,
        inputs=inputs,
        seen=SEEN,
        config={"generator": "reenact", "preset": held.preset.name, "side": held.preset.side},
        source={"weights": {networks.MANIFEST: held.origin}},
        keep={"int8": graphs.MOTIONS, "fp16": graphs.PLACES, "bf16": graphs.PLACES},
    )


class _Seen:
    """What every graph is given while the portrait follows a rehearsal; nothing is painted meanwhile."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator
        self._kept: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._steps: Iterator[None] | None = None

    def __call__(self, graph: str, moments: Sequence[int]) -> list[dict[str, Any]]:
        """Inputs of a graph at some moments; what is given once a portrait, at the first alone."""
        self._steps = self._steps or self._driven()
        while len(self._kept["render"]) <= max(moments):
            next(self._steps)
        kept = self._kept[graph]
        return [kept[moment] for moment in moments if moment < len(kept)]

    def _driven(self) -> Iterator[None]:
        from engine.generators.reenact.graphs import graphs
        from engine.persona import demo_portrait

        generator, made = self._generator, self._generator.networks.preset
        specs, painted = graphs(generator.networks), np.zeros((1, made.picture, made.picture, 3), np.uint8)
        identity = generator.prepare(demo_portrait())
        self._kept["appearance"].append({"picture": identity.features.square.cut(demo_portrait(), made.side)[None]})
        state = generator.allocate(1)
        run = state.desk

        def noted(graph: str, rows: int, given: Mapping[str, Any]) -> dict[str, Any]:
            self._kept[graph].append({name: np.array(given[name]) for name in specs[graph].inputs})
            return {"picture": painted} if graph == "render" else run(graph, rows, given)

        state.desk = noted
        generator.admit(state, 0, identity)
        for moment in rehearsal():
            generator.step(state, [[moment.signal]])
            yield


__all__ = ["subject"]
