"""How far every backend and precision is from PyTorch, on seeded random weights: `python -m exporters.graphs.table --preset compact --steps 1 2 4`.

Every graph is traced once and exported for each backend into a folder that is thrown away. A row, then one JSON line, as in `benchmarks`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from engine.types import AvatarError
from exporters.graphs import export as exporter
from exporters.graphs import precision, subject_diffusion
from exporters.graphs.closed_loop import WINDOWS
from exporters.graphs.export import PRECISIONS, Order
from exporters.graphs.subject_diffusion import LIVE
from exporters.graphs.to_onnx import Onnx, to_onnx
from exporters.graphs.to_tensorrt import STANDARD

BACKENDS = ("onnxruntime", "openvino", "tensorrt_rtx")
DEVIATION = 0.05
"""Of layers where training would have begun with zeros: they would hide all the others."""
HEAD = (
    "steps",
    "backend",
    "precision",
    "off PyTorch, relative",
    "pictures, dB",
    f"{WINDOWS} windows of its own past: relative",
    "pictures, dB",
    "growth",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m exporters.graphs.table", description="How far every backend and precision is from PyTorch.")
    parser.add_argument("--preset", default="compact")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--backend", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--precision", nargs="+", choices=["fp32", "fp16", "bf16", "int8"], default=["fp32", "fp16", "bf16", "int8"])
    parser.add_argument("--modelopt", metavar="PYTHON", help="of an environment with NVIDIA ModelOpt; without one, fp16 and bf16 ONNX are left out")
    given = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            for row in measured(given, Path(folder)):
                rows.append(row)
                print(_line(row), flush=True)
        except AvatarError as error:
            print(f"table: {error}", file=sys.stderr)
            return 2
    print(json.dumps({"preset": given.preset, "rows": rows}))
    return 0


def measured(given: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for every number of steps, backend and precision. Raises AvatarError where a graph cannot be traced."""
    from engine.generators.diffusion.graphs import graphs

    remembered: dict[str, Onnx] = {}
    for steps in given.steps:
        recipe = random_recipe(given.preset, steps)
        home = folder / str(steps)
        home.mkdir()
        specs = graphs(recipe)
        traced = remembered | {name: to_onnx(spec, home / f"{name}.onnx") for name, spec in specs.items() if name not in remembered}
        remembered = {name: made for name, made in traced.items() if name != LIVE}  # what is made of a portrait knows no steps
        for backend in given.backend:
            for kind in PRECISIONS[backend]:
                if kind in given.precision and not (kind in ("fp16", "bf16") and backend != "openvino" and not _has_modelopt(given.modelopt)):
                    yield {"steps": steps, "backend": backend, "precision": kind} | _row(recipe, backend, kind, traced, given.modelopt, home / "out")


def random_recipe(preset: str, steps: int) -> Any:
    """A recipe of seeded random weights, none of them zero, fp32 on the CPU. Raises AvatarError for an unknown preset."""
    import torch

    from engine.generators.diffusion import networks as weights_of
    from engine.generators.diffusion import presets, sampler, stream

    networks = weights_of.build(presets.preset(preset))
    torch.manual_seed(0)
    for parameter in networks.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=DEVIATION)
    networks.denoiser.freeze(networks.preset.window)
    return stream.Recipe(networks, sampler.levels(networks.preset.noise, steps), False, torch.float32, torch.device("cpu"))


def _has_modelopt(python: str | None) -> bool:
    try:
        precision.modelopt(python)
    except AvatarError:
        return False
    return True


def _row(recipe: Any, backend: str, kind: str, traced: Mapping[str, Onnx], modelopt: str | None, out: Path) -> dict[str, Any]:
    """What the manifest says of the live graph, or why there is none."""
    order = Order(cast(exporter.Backend, backend), kind, STANDARD, WINDOWS, (), modelopt, None, lambda line: None)
    subject = subject_diffusion.of(recipe, {"weights": {}})
    try:
        made = exporter.export_subject(subject, out / f"{backend}-{kind}", order, traced=traced).artifact(LIVE)
    except AvatarError as error:
        return {"refused": str(error)}
    return {"measured": made.measured, "bytes": sum(file.stat().st_size for file in (out / f"{backend}-{kind}").rglob(f"{LIVE}.*"))}


def _line(row: Mapping[str, Any]) -> str:
    cells = [str(row["steps"]), row["backend"].replace("_", "-"), row["precision"]]
    if "refused" in row:
        return "| " + " | ".join([*cells, f"not written: {row['refused']}", "", "", "", ""]) + " |"
    told = row["measured"]
    own: Any = next((told[name] for name in ("engine", "openvino", row["precision"], "onnx") if name in told), {})
    stream = told.get("stream", {})
    if isinstance(own, str):
        return "| " + " | ".join([*cells, own, "", "", "", ""]) + " |"
    numbers = [_number(own.get("rel_l2"), ".1e"), _decibels(own.get("psnr"))]
    numbers += [_number(stream.get("rel_l2"), ".1e"), _decibels(stream.get("psnr")), _number(stream.get("growth"), ".2f")]
    return "| " + " | ".join([*cells, *numbers]) + " |"


def _number(value: Any, form: str) -> str:
    return "" if value is None else format(value, form)


def _decibels(value: Any) -> str:
    return value if isinstance(value, str) else _number(value, ".1f")


if __name__ == "__main__":
    raise SystemExit(main())
