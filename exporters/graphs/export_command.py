"""`avatar export`: weights, or a persona that has some, become engines for one backend; then it says what they are worth and how to serve them."""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from engine.backends import engines, trt
from engine.backends.artifact import Manifest
from engine.types import AvatarError
from exporters.graphs import export as exporter
from exporters.graphs.closed_loop import WINDOWS
from exporters.graphs.export import Order
from exporters.graphs.lora_option import asked
from exporters.graphs.subject import Subject, subject_of
from exporters.graphs.subject_diffusion import Adapt, adapted_by
from exporters.graphs.to_tensorrt import GIB, Settings


def export(options: argparse.Namespace, *, tell: Callable[[str], None]) -> Path:
    """Do what the command's options ask for -> the folder of the engines.

    They go to `<weights>/engines/<backend>-<key>`, or to `options.out`. Raises AvatarError, one sentence, with that folder as it was, for
    whatever cannot be used or made, or is further from PyTorch than its precision may be.
    """
    weights = options.weights if options.persona is None else weights_of(options.persona)
    order, adapt = _order(options, tell), adapted_by([asked(text) for text in options.lora or ()], tell)
    if options.refit_from is not None:
        subject, order = _refitted(weights, options, order, adapt)
    else:
        exporter.check(order)
        subject = subject_of(weights, steps=options.steps, decoder=options.decoder, adapt=adapt, window=options.window, overlap=options.overlap)
    out = Path(options.out) if options.out else weights / engines.HOME / f"{options.backend}-{exporter.request(subject, order)}"
    tell(f"{subject.about}, for {options.backend} in {order.precision}; this takes some minutes ...")
    manifest = exporter.export_subject(subject, out, order)
    for line in report(manifest, out):
        tell(line)
    tell(_how_to_serve(weights, subject, manifest, out))
    return out


def _refitted(weights: Path, options: argparse.Namespace, order: Order, adapt: Adapt | None) -> tuple[Subject, Order]:
    """What `--refit-from` asks for."""
    from exporters.graphs import refit

    if options.out and Path(options.out).resolve() == options.refit_from.resolve():
        raise AvatarError(f"{options.out} holds the engine that is refitted, which stays as it is; choose another folder with --out.")
    if options.window is not None or options.overlap is not None:
        raise AvatarError("--window and --overlap are for the generator 'video', whose engines are built anew; leave --refit-from out.")
    given = {name: getattr(options, name) for name in ("precision", "steps", "decoder")}
    engine = refit.held(options.refit_from, weights, order, **given)
    return refit.refitted(engine, weights, order, adapt=adapt)


def weights_of(name: str) -> Path:
    """The folder of a persona's own weights. Raises AvatarError where it has none, or other ones than it was made with."""
    from engine.serving import weights_of as own

    folder = own(name)  # a persona that has lost its portrait, or has another one's, is refused there
    if folder is None:
        raise AvatarError(f"The persona '{name}' has no weights of its own; give the folder that has them with --weights.")
    return folder


def _order(options: argparse.Namespace, tell: Callable[[str], None]) -> Order:
    if options.workspace is not None and not options.workspace > 0:
        raise AvatarError(f"A workspace of {options.workspace:g} GB is none; give some GB.")
    given: dict[str, Any] = {
        "level": options.level,
        "workspace": None if options.workspace is None else round(options.workspace * GIB),
        "refit": options.refit,
        "same_capability": options.same_capability,
        "targets": tuple(options.target or ()) or None,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    if (chosen or options.timing_cache) and not options.backend.startswith("tensorrt"):
        odd = next(iter(chosen), "timing_cache").replace("targets", "target").replace("_", "-")
        raise AvatarError(f"--{odd} is for TensorRT's builder; leave it out with {options.backend}.")
    if (chosen or options.timing_cache) and options.refit_from is not None:
        odd = next(iter(chosen), "timing_cache").replace("targets", "target").replace("_", "-")
        raise AvatarError(f"--{odd} is for TensorRT's builder, which --refit-from does without; leave it out.")
    return Order(
        cast(exporter.Backend, options.backend.replace("-", "_")),
        options.precision or "fp32",
        Settings(**chosen),
        WINDOWS,
        (),
        options.modelopt,
        options.timing_cache,
        tell,
    )


# -- what is said -----------------------------------------------------------------------------------------------------------


def report(manifest: Manifest, out: Path) -> list[str]:
    """Lines for a person: every graph with its size and how far it is from PyTorch."""
    lines = []
    for name, made in manifest.artifacts.items():
        size = sum((out / manifest.folder / file).stat().st_size for file in made.files)
        lines.append(f"{name} in {made.precision}, {size / 1e6:.1f} MB: {measured(made.measured)}")
    return lines


def measured(told: Mapping[str, Any]) -> str:
    """What an artifact's manifest says of its errors, the one of its own precision last."""
    words = {
        "onnx": "as ONNX",
        "openvino": "as OpenVINO runs it",
        "before": "the engine before, with its own weights,",
        "engine": "the engine",
        "stream": f"fed with its own past for {WINDOWS} windows",
    }
    parts = []
    for name, errors in told.items():
        if name != "build":
            parts.append(f"{words.get(name, f'as {name} ONNX')} {errors if isinstance(errors, str) else _errors(errors)}")
    return "; ".join(parts)


def _errors(errors: Mapping[str, Any]) -> str:
    parts = [f"{errors['rel_l2']:.1e} off PyTorch"]
    if "max_abs" in errors:
        parts.append(f"{errors['max_abs']:.1e} at most")
    if isinstance(errors.get("psnr"), float) and math.isfinite(errors["psnr"]):
        parts.append(f"pictures {errors['psnr']:.1f} dB")
    elif "psnr" in errors:
        parts.append("pictures identical")
    if "growth" in errors:
        parts.append(f"growth {errors['growth']:.2f}")
    return ", ".join(parts)


def _how_to_serve(weights: Path, subject: Subject, manifest: Manifest, out: Path) -> str:
    """What to type next, or why that is not to be had here."""
    name = next(name for name, kinds in engines.BUILT_FOR.items() if manifest.backend in kinds)
    missing = trt.available() if name == "tensorrt" else None
    if missing:
        return f"Built, and not run: {missing}"
    where = f"--weights {shlex.quote(str(weights))}{subject.serve} --backend {name} --graphs {shlex.quote(str(out))}"
    return f"Serve it: avatar serve --generator {subject.generator} {where}"


__all__ = ["export", "measured", "report", "weights_of"]
