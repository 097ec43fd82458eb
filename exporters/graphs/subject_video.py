"""What weights of the generator video export: the live step, whose past is fed back to it outside of the graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.driving import map_options
from engine.types import Runner, Signal, UInt8Array
from exporters.graphs.closed_loop import Stream
from exporters.graphs.parity import Arrays
from exporters.graphs.precision import SENSITIVE
from exporters.graphs.rehearsal import SEEN, rehearsal
from exporters.graphs.subject import Subject

DENSE = "smplx"
"""Condition pictures that nobody has of the rehearsal: its own pictures stand for them, which move as a body does."""


def subject(weights: Path, *, steps: int | None = None, window: int | None = None, overlap: int | None = None) -> Subject:
    """Of a folder of weights. `steps`, `window` and `overlap` as the generator has them, by default what the weights were taught.

    Raises AvatarError where it is not whole, or for what does not fit together.
    """
    from engine.generators import load

    asked = {"steps": steps, "window": window, "overlap": overlap}
    return of(load("video", weights=weights, device="cpu", precision="fp32", mode="eager", **asked))


def of(generator: Any) -> Subject:
    """Of a generator (`video.generator.Video`, fp32, CPU, eager)."""
    from engine.generators.video import live
    from engine.generators.video.weights import MANIFEST

    system, plan = generator.system, generator.plan
    played = _Played(generator)

    def inputs(graph: str, runner: Runner, moments: Sequence[int]) -> list[dict[str, Any]]:
        kept: dict[int, dict[str, Any]] = {}
        made = played(runner, keep=kept, moments=moments)
        for moment in range(max(moments) + 1):
            made(moment)
        return [kept[moment] for moment in moments]

    told = [
        *(["--window", plan.window, "--overlap", plan.overlap] if (plan.window, plan.overlap) != _usual(generator) else []),
        "--steps",
        plan.steps,
    ]
    return Subject(
        generator="video",
        about=f"{system.name}, {plan.steps}-step, windows of {plan.window} with {plan.overlap} past",
        specs=live.graphs(system, plan),
        narrowed=(live.GRAPH,),
        inputs=inputs,
        seen=SEEN,
        config={"generator": "video", "preset": system.name, "steps": plan.steps, "window": plan.window, "overlap": plan.overlap},
        source={"weights": {MANIFEST: system.origin}},
        serve=" " + " ".join(str(word) for word in told) + map_options(system.maps),
        keep={"int8": SENSITIVE},
        streams={live.GRAPH: played},
    )


def _usual(generator: Any) -> tuple[int, int]:
    """(window, overlap) that the generator takes where nobody asks."""
    from engine.generators.video.clips import How

    plan = How().plan(generator.system.taught, generator.system.frames)
    return plan.window, plan.overlap


class _Played:
    """The generator's own live loop about a runner of its step, on the rehearsal."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator
        self._identity: Any = None
        self._conditions: list[UInt8Array] = []  # [N, H, W, layers] a step
        self._moments: Iterator[Signal] | None = None

    def __call__(self, runner: Runner, *, keep: dict[int, dict[str, Any]] | None = None, moments: Sequence[int] = ()) -> Stream:
        """`keep` gets the inputs of the steps that `moments` counts."""
        import torch

        from engine.generators.video.live import Row
        from engine.generators.video.live import Stream as Memory

        generator, seen = self._generator, dict[str, Any]()
        now = [0]

        def spied(inputs: Mapping[str, Any]) -> dict[str, Any]:
            if keep is not None and now[0] in moments:
                keep[now[0]] = {name: np.array(value) for name, value in inputs.items()}
            made = runner(inputs)
            seen.clear()
            seen.update({name: np.array(value) for name, value in made.items()})
            return made

        memory = Memory.of(generator.system, generator.plan, rows=1, device=torch.device("cpu"))
        row = Row(memory, spied, generator.graph, arrays=True)

        def step(window: int) -> Arrays:
            now[0] = window
            conditions = self._asked(window)
            if not window:
                memory.seat(self._identity.features.known)
                memory.begin(generator.noise(), self._rest)
            row(conditions)
            return dict(seen)

        return step

    def _asked(self, window: int) -> UInt8Array:
        """Conditions of a step."""
        from engine.conditions.ease import Ease
        from engine.persona import demo_portrait

        generator, system = self._generator, self._generator.system
        if self._moments is None:
            self._moments, self._ease = _signals(system.needs), Ease()
            self._identity = generator.prepare(demo_portrait())
        anchor = self._identity.features.anchor
        while len(self._conditions) <= window:
            chunk = [next(self._moments) for _ in range(generator.plan.new)]
            if not self._conditions:
                self._rest = system.rest(chunk[0], anchor)
            self._conditions.append(np.stack([system.condition(signal, anchor, self._ease) for signal in chunk]))
        return self._conditions[window]


def _signals(needs: Sequence[str]) -> Iterator[Signal]:
    from dataclasses import replace

    for moment in rehearsal():
        yield replace(moment.signal, maps={DENSE: moment.rgb}) if "maps" in needs else moment.signal


__all__ = ["of", "subject"]
