"""What is exported: the graphs of one generator with its weights, and all that only this generator knows about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

from engine.backends import engines
from engine.types import AvatarError, GraphSpec, Runner
from exporters.graphs.closed_loop import Stream

MAKERS = {
    "diffusion": "exporters.graphs.subject_diffusion",
    "lipsync": "exporters.graphs.subject_lipsync",
    "reenact": "exporters.graphs.subject_reenact",
    "video": "exporters.graphs.subject_video",
}
"""Generator -> the module whose `subject(weights, **asked)` says what its weights export."""


def nothing_beside(folder: Path) -> Sequence[Mapping[str, Any]]:
    """For `Subject.leave`."""
    return ()


@dataclass(frozen=True, slots=True)
class Subject:
    """Networks in fp32 on the CPU, as an export needs to know them."""

    generator: str
    about: str  # preset and layout, for a person
    specs: Mapping[str, GraphSpec]  # all graphs, by name
    narrowed: tuple[str, ...]  # those that take the precision which is asked for: the others stay in fp32
    inputs: Callable[[str, Runner, Sequence[int]], list[dict[str, Any]]]
    """Graph, PyTorch's runner of it, numbers of moments -> what the graph is given then in real use; fewer where there are no more, or none."""
    seen: str  # what these are, for the manifest
    config: Mapping[str, Any]  # of the keys and the manifest: preset, size ...
    source: Mapping[str, Any]  # {"weights": {name: sha256}, ...}: of the keys and the manifest
    serve: str = ""  # options of `avatar serve` that belong to it
    keep: Mapping[str, str] = field(default_factory=dict)  # precision -> regular expression of nodes that stay in fp32 in a narrowed graph too
    streams: Mapping[str, Callable[[Runner], Stream]] = field(default_factory=dict)  # graph that is fed with its own past -> that, about a runner
    adapters: tuple[Mapping[str, Any], ...] = ()  # sha256 and scale of every fused LoRA
    leave: Callable[[Path], Sequence[Mapping[str, Any]]] = nothing_beside
    """Puts what serving needs beside the graphs into an export's folder -> what the manifest says of it, as `engines.ADAPTERS`."""

    @property
    def layout(self) -> dict[str, Any]:
        """All that tells apart two exports of the same weights: for keys."""
        return dict(self.config) | {name: value for name, value in self.source.items() if name != "weights"}


def subject_of(weights: Path, **asked: Any) -> Subject:
    """What the weights in a folder export, by whose they are. `asked`: options of that generator's, None for its own.

    Raises AvatarError for a folder without weights, for options that its generator does not have, and for what does not fit together.
    """
    name = engines.generator_of(weights)
    if name not in MAKERS:
        raise AvatarError(f"The weights in {weights} are of '{name}', which cannot be exported; choose weights of {', '.join(MAKERS)}.")
    make: Callable[..., Subject] = import_module(MAKERS[name]).subject
    given = {option: value for option, value in asked.items() if value is not None}
    if odd := next((option for option in given if option not in signature(make).parameters), None):
        told = WORDS.get(odd, f"--{odd}")
        whose = OWNERS.get(odd, "the diffusion generator")
        raise AvatarError(f"{told} is for {whose}, and the weights in {weights} are of '{name}'; leave it out.")
    return make(weights, **given)


WORDS = {"adapt": "--lora"}
"""Options that a person knows by another name."""
OWNERS = dict.fromkeys(("window", "overlap"), "the generator 'video'")
"""Options that are not the diffusion generator's."""


__all__ = ["MAKERS", "Subject", "nothing_beside", "subject_of"]
