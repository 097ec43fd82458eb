"""A live step of a video system: its graph, as every backend sees it, and what a stream remembers between two steps.

The graph is pure: a window's conditions and what is past of it go in, the new frames come out. What a stream remembers lies in `Stream`, of
fixed shapes, and moves on outside of the graph, in place. A window fills an accelerator by itself, so rows are stepped one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.generators.video.clips import Known, System
from engine.generators.video.pictures import to_bytes
from engine.generators.video.rolling import moved_on, roll, turned
from engine.generators.video.weights import Plan
from engine.types import GraphSpec, Runner, UInt8Array

GRAPH = "step"
"""Its name in `graphs` and in an export's manifest."""
PAST = "past"
"""The input that there is only where a window has a past."""


def graphs(system: System, plan: Plan) -> dict[str, GraphSpec]:
    """All that a backend runs, by name; what is made of a portrait is PyTorch's."""
    return {GRAPH: step_spec(system, plan)}


def step_spec(system: System, plan: Plan) -> GraphSpec:
    """The graph of a live step of one session: W frames, of which P are past and N new.

    In: `pictures` uint8 [1, W, H, W', layers], what the frames are driven by; `past` [1, P, C, h, w], clean latents; `noise` [1, W, C, h, w],
    the frames' own; what the network knows of the portrait, see `System.known_shapes`.
    Out: `picture` uint8 [N, H, W', 3]; `latents` [1, N, C, h, w], clean; `magnitude` [1], no finite number where a latent or a pixel was none.
    """
    inputs: dict[str, tuple[tuple[int, ...], str]] = {"pictures": ((1, plan.window, *system.size, system.layers), "uint8")}
    if plan.overlap:
        inputs[PAST] = ((1, plan.overlap, *system.latent), "float32")
    inputs["noise"] = ((1, plan.window, *system.latent), "float32")
    inputs |= {name: (shape, "float32") for name, shape in system.known_shapes().items()}
    name = f"{system.name} {plan.steps}-step"
    return GraphSpec(name, inputs, ("picture", "latents", "magnitude"), lambda: Step(system, plan, tuple(inputs)))


class Step(nn.Module):
    """A live step with a flat signature."""

    def __init__(self, system: System, plan: Plan, names: tuple[str, ...]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(system.parts())  # those alone that are run: whatever traces it walks through all that it holds
        self._system, self._plan, self._names, self._steps = system, plan, names, system.steps(plan.steps)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """In the order of `step_spec`'s inputs -> in the order of its outputs."""
        given, kept, steps = dict(zip(self._names, tensors, strict=True)), self._plan.overlap, self._steps
        noise = given["noise"]
        call = self._system.call(steps, given["pictures"], given)
        portrait = given.get("portrait", noise[:, 0])  # of systems that do not begin with it
        begun = steps.begun(portrait[:, None], noise[:, kept:])
        latents = roll(steps, call, past=given.get(PAST, noise[:, :0]), noise=noise[:, :kept], begun=begun)
        picture = self._system.seen(latents[0])
        magnitude = latents.abs().mean((1, 2, 3, 4)) + picture.float().abs().mean()
        return to_bytes(picture), latents, magnitude


@dataclass(frozen=True, slots=True)
class Stream:
    """What rows of sessions remember, float32 but for the pictures; written in place."""

    plan: Plan
    pictures: Tensor  # [B, W, H, W', layers] uint8: what the frames of the next window are driven by
    past: Tensor  # [B, P, C, h, w] their clean latents, as far as they are past
    noise: Tensor  # [B, W, C, h, w] their own, in their order
    still: Tensor  # [B, C, h, w] latents of the portrait
    given: Mapping[str, Tensor]  # [B, ..] what the network reads of it

    @classmethod
    def of(cls, system: System, plan: Plan, *, rows: int, device: torch.device) -> Stream:
        """Rows where nobody sits."""

        def empty(*shape: int) -> Tensor:
            return torch.zeros(rows, *shape, device=device)

        return cls(
            plan,
            torch.zeros(rows, plan.window, *system.size, system.layers, dtype=torch.uint8, device=device),
            empty(plan.overlap, *system.latent),
            empty(plan.window, *system.latent),
            empty(*system.latent),
            {name: empty(*shape[1:]) for name, shape in system.known_shapes().items()},
        )

    def row(self, number: int) -> Stream:
        """One of them, a view."""
        at = slice(number, number + 1)
        given = {name: tensor[at] for name, tensor in self.given.items()}
        return Stream(self.plan, self.pictures[at], self.past[at], self.noise[at], self.still[at], given)

    def seat(self, known: Known) -> None:
        """Who sits in a row, of which this is the view."""
        self.still[0].copy_(known.still)
        for name, tensor in self.given.items():
            tensor.copy_(known.given[name])

    def begin(self, noise: Tensor, rest: UInt8Array) -> None:
        """A row's past: its portrait, standing still for as long as anybody remembers. `noise` [W, C, h, w], `rest` [H, W', layers]."""
        self.past.copy_(self.still[:, None].expand_as(self.past))
        self.noise[0].copy_(noise)
        self.pictures.copy_(torch.from_numpy(rest).expand_as(self.pictures))

    def vacate(self) -> None:
        """Nothing of who sat in a row stays."""
        for tensor in (self.pictures, self.past, self.noise, self.still, *self.given.values()):
            tensor.zero_()

    def asked(self, conditions: UInt8Array) -> None:
        """What a row's new frames are driven by, [N, H, W', layers]."""
        self.pictures[0, self.plan.overlap :].copy_(torch.from_numpy(conditions))

    def move_on(self, latents: Tensor) -> None:
        """A row's new frames, clean latents [1, N, C, h, w], become past."""
        new, kept = self.plan.new, self.plan.overlap
        self.past.copy_(moved_on(self.past, latents))
        self.noise.copy_(turned(self.noise, new))
        self.pictures[:, :kept].copy_(self.pictures[:, new:].clone())


class Row:
    """The live step of one row, for one caller at a time."""

    def __init__(self, row: Stream, runner: Runner, spec: GraphSpec, *, arrays: bool) -> None:
        """`arrays`: whether the runner takes NumPy's; it is given the same ones, views of the row, in every call."""
        self._row, self._runner = row, runner
        held: dict[str, Any] = {"pictures": row.pictures, PAST: row.past, "noise": row.noise, **row.given}
        self._given = {name: held[name].numpy() if arrays else held[name] for name in spec.inputs}

    @torch.no_grad()
    def __call__(self, conditions: UInt8Array) -> UInt8Array | None:
        """Conditions [N, H, W', layers] -> frames [N, H, W', 3]; None, and the row as it was, where the numbers are none."""
        row = self._row
        row.asked(conditions)
        made = {name: torch.as_tensor(value) for name, value in self._runner(self._given).items()}
        if not bool(made["magnitude"].isfinite().all()):
            return None
        row.move_on(made["latents"])
        frames: UInt8Array = made["picture"].cpu().numpy().copy()
        return frames


__all__ = ["GRAPH", "PAST", "Row", "Step", "Stream", "graphs", "step_spec"]
