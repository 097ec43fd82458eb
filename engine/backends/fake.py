"""A backend without a model: `build()` returns a plain function of arrays. It ships so that anything above a backend can be tested."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from engine.backends import check_inputs
from engine.types import GraphSpec, Runner


def available() -> str | None:
    """Always."""
    return None


class _Fake:
    def __init__(self, spec: GraphSpec) -> None:
        self._spec = spec
        self._call: Callable[[Mapping[str, Any]], dict[str, Any]] = spec.build()

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        check_inputs(self._spec, inputs)
        results = self._call(inputs)
        return {name: results[name] for name in self._spec.outputs}


def load(spec: GraphSpec, **_: Any) -> Runner:
    """Run `spec.build()` itself."""
    return _Fake(spec)
