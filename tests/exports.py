"""Graphs of a small generator as ONNX, for every test of what is made of them: traced once a process."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from engine.generators.diffusion.presets import PRESETS, TINY
from engine.types import GraphSpec
from tests.conftest import require, require_for

MINI = replace(
    TINY,
    name="mini",
    size=(16, 24),
    steps=1,
    residual=True,
    scale=4.0,
    unet=replace(TINY.unet, channels=(16,), attention=(False,), motion=(False,)),
)
"""As TINY, with one level, whose middle alone has attention: what an export takes is time for every operation. As in COMPACT, what its random
weights make is added to the condition, at a quarter of its size."""


@contextmanager
def known() -> Iterator[None]:
    """MINI among the presets, for as long as weights of it may be loaded."""
    outermost = MINI.name not in PRESETS
    PRESETS[MINI.name] = MINI
    try:
        yield
    finally:
        if outermost:
            del PRESETS[MINI.name]


@cache
def place() -> Path:
    """A folder that goes with the process."""
    folder = Path(tempfile.mkdtemp(prefix="exports-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def weights() -> Path:
    """A folder of weights of MINI, none of whose layers is zero."""
    from engine.generators.diffusion.networks import save
    from tests.networks import seeded

    save(seeded(MINI), place() / "weights", origin={})
    return place() / "weights"


@cache
def recipe() -> Any:
    """Of those weights."""
    from exporters.graphs.subject_diffusion import recipe_of

    with known():
        return recipe_of(weights())[0]


@cache
def exported() -> dict[str, Any]:
    """Every graph as ONNX, by name."""
    from engine.generators.diffusion.graphs import graphs
    from exporters.graphs.to_onnx import to_onnx

    return {name: to_onnx(spec, place() / f"{name}.onnx") for name, spec in graphs(recipe()).items()}


@cache
def pytorch() -> Any:
    """The step in PyTorch."""
    from exporters.graphs.to_onnx import reference

    spec: GraphSpec = exported()["step"].spec
    return reference(spec, spec.build())


@cache
def recorded(*windows: int) -> list[dict[str, Any]]:
    """Inputs of the step, as a stream has them."""
    from exporters.graphs import closed_loop

    return closed_loop.recorded(recipe(), pytorch(), windows)


def again(spec: GraphSpec, path: Path, **_: Any) -> Any:
    """As `to_onnx`, with the graphs that there are."""
    made = exported()[path.stem]
    assert made.spec.inputs == spec.inputs
    shutil.copy(made.path, path)
    return replace(made, spec=spec, path=path, files=(path,))


FOLDED = (".motion_modules.", ".time_embedding.", ".time_emb_proj")
"""Layers that `with_weights` knows nothing of."""


def with_weights(made: Any, networks: Any, path: Path) -> Any:
    """One of the graphs with the matrices and kernels of other networks of MINI in place of its own, compared with PyTorch: what tracing those
    would give, without its time. What was folded stays: the tables of temporal attention, and all that a level of noise goes through."""
    import onnx
    from onnx import numpy_helper

    from engine.generators.diffusion.graphs import graphs
    from exporters.graphs.to_onnx import compared, digest

    before, after = (dict(each.named_parameters()) for each in (recipe().networks, networks))
    known = {}
    for name, value in before.items():
        if value.ndim > 1:
            known[value.numpy().tobytes()] = after[name].numpy()
            known[value.numpy().T.tobytes()] = after[name].numpy().T
    model = onnx.load(made.path)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.tobytes() in known:
            new = known[array.tobytes()].reshape(array.shape)
            tensor.CopyFrom(numpy_helper.from_array(new.copy(), tensor.name))
    onnx.save(model, path)
    spec = graphs(replace(recipe(), networks=networks))[path.stem]
    measured = compared(spec, spec.build(), path)
    return replace(made, spec=spec, path=path, files=(path,), sha256=digest([path]), measured=measured)


# -- fixtures: a test file that uses them imports them by name ------------------------------------------------------------


@pytest.fixture(name="_installed", autouse=True, scope="module")
def given_parts() -> None:
    """All that exports need, or the file is skipped."""
    require_for("diffusion")
    for part in ("onnx", "onnxscript", "onnxruntime"):
        require(part)


@pytest.fixture(name="recipe", scope="module")
def given_recipe() -> Any:
    """See `recipe`."""
    return recipe()


@pytest.fixture(name="exported", scope="module")
def given_exported() -> dict[str, Any]:
    """Every graph as ONNX: traced once, compared, and taken by all that follows."""
    return exported()


@pytest.fixture(name="pytorch", scope="module")
def given_pytorch() -> Any:
    """The step in PyTorch."""
    return pytorch()


@pytest.fixture(name="traced")
def given_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports take the ONNX graphs that there are."""
    from exporters.graphs import export

    monkeypatch.setattr(export, "to_onnx", again)


@pytest.fixture(name="calibration", scope="module")
def given_calibration() -> list[dict[str, Any]]:
    """Inputs of the step, to learn ranges from."""
    return recorded(0, 2, 5, 9)


@pytest.fixture(name="judged", scope="module")
def given_judged() -> list[dict[str, Any]]:
    """Others, to measure on."""
    return recorded(1, 8, 14)


__all__ = [
    "FOLDED",
    "MINI",
    "again",
    "exported",
    "given_calibration",
    "given_exported",
    "given_judged",
    "given_parts",
    "given_pytorch",
    "given_recipe",
    "given_traced",
    "known",
    "place",
    "pytorch",
    "recipe",
    "recorded",
    "weights",
    "with_weights",
]
