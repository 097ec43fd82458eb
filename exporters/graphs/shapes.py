"""Lengths that stay free in an exported graph. Everything is fixed unless it is declared here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from engine.types import AvatarError, GraphSpec


@dataclass(frozen=True, slots=True)
class Dynamic:
    """One free number n: some axes of some inputs are n times as long as the spec says. A reference of several portraits is such a length."""

    axes: Mapping[str, int]  # input -> its free axis
    minimum: int
    optimum: int  # what an engine is tuned for
    maximum: int

    @property
    def corners(self) -> tuple[int, ...]:
        """The n that are checked."""
        return tuple(sorted({self.minimum, self.optimum, self.maximum}))


def check(spec: GraphSpec, dynamic: Dynamic) -> None:
    """Raise AvatarError where a declaration does not fit the spec."""
    if not 1 <= dynamic.minimum <= dynamic.optimum <= dynamic.maximum or dynamic.maximum < 2:
        raise AvatarError(f"A free length needs 1 <= minimum <= optimum <= maximum, and a maximum above 1, not {dynamic.corners}.")
    for name, axis in dynamic.axes.items():
        if name not in spec.inputs or not 0 <= axis < len(spec.inputs[name][0]):
            raise AvatarError(f"Graph '{spec.name}' has no input '{name}' with an axis {axis} to leave free; choose from {', '.join(spec.inputs)}.")


def free_axes(spec: GraphSpec, dynamic: Dynamic | None) -> dict[str, tuple[int, ...]]:
    """Input -> its free axes."""
    if dynamic is None:
        return {}
    check(spec, dynamic)
    return {name: (axis,) for name, axis in dynamic.axes.items()}


def sized(spec: GraphSpec, dynamic: Dynamic | None, n: int) -> GraphSpec:
    """The spec at one value of the free number."""
    if dynamic is None:
        return spec

    def shape(name: str) -> tuple[int, ...]:
        return tuple(size * (n if dynamic.axes.get(name) == axis else 1) for axis, size in enumerate(spec.inputs[name][0]))

    return replace(spec, inputs={name: (shape(name), dtype) for name, (_, dtype) in spec.inputs.items()})


def sizes(spec: GraphSpec, dynamic: Dynamic | None) -> list[GraphSpec]:
    """The spec at every corner of a free length, or as it is."""
    return [spec] if dynamic is None else [sized(spec, dynamic, n) for n in dynamic.corners]


__all__ = ["Dynamic", "check", "free_axes", "sized", "sizes"]
