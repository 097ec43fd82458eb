"""ONNX -> OpenVINO IR. Weights stay fp32 in the file; bf16 is a wish to the runtime on a CPU with AMX, int8 is in the file (NNCF)."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from engine.backends import backend, ov
from engine.types import AvatarError, Runner
from exporters.graphs import parity
from exporters.graphs.manifest import told_if_full, versions
from exporters.graphs.parity import LIMITS, Arrays, Measured
from exporters.graphs.precision import SENSITIVE, digest_of
from exporters.graphs.to_onnx import SEEDS, Onnx

NNCF = "int8 for OpenVINO needs NNCF; pip install nncf==3.4.0, or export in another precision."


@dataclass(frozen=True, slots=True)
class Converted:
    """A graph as OpenVINO reads it."""

    files: tuple[Path, Path]  # .xml, .bin
    recipe: dict[str, Any]  # how it was made: part of the key
    measured: Measured | None  # None where this CPU does not compute in the precision


def available(precision: str = "fp32") -> str | None:
    """None, or what to install."""
    return ov.available() or (NNCF if precision == "int8" and importlib.util.find_spec("nncf") is None else None)


def to_openvino(
    source: Onnx,
    path: Path,
    *,
    reference: Runner,
    precision: str = "fp32",
    calibration: Iterable[Arrays] = (),
    recorded: Sequence[Arrays] = (),
    keep: str = SENSITIVE,
    tell: Callable[[str], None] = lambda line: None,
) -> Converted:
    """The graph in new files: `path` (.xml), and a .bin beside it.

    `reference`: PyTorch. `recorded`: real inputs to measure on, for int8 others than those it was calibrated on; all but int8 are measured on
    random ones too. `keep`: regular expression of nodes that stay in fp32 in int8. Raises AvatarError, with nothing written, where the graph is
    not taken or the error is over the limit of `precision`.
    """
    missing = available(precision)
    if missing:
        raise AvatarError(missing)
    if precision not in ov.HINTS:
        raise AvatarError(f"OpenVINO is exported as one of: {', '.join(ov.HINTS)}; not as '{precision}'.")
    library, spec, what = ov.library(), source.spec, f"the OpenVINO graph '{source.spec.name}'"
    tell(f"{spec.name}: OpenVINO converts ...")
    model = _converted(source)
    calibrated = list(calibration)
    recipe: dict[str, Any] = {"kind": precision, "by": f"openvino {library.__version__.split('-')[0]}", "hint": ov.HINTS[precision]}
    if precision == "int8":
        if calibrated and not recorded:
            raise AvatarError("int8 is measured on inputs that it was not calibrated on; give some of those too.")
        recipe |= {"quantiser": f"nncf {versions(['nncf']).get('nncf')}", "keep": keep, "calibration": digest_of(calibrated)}
        model = _quantised(model, calibrated, keep)
    with told_if_full(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=".openvino-") as folder:
        draft = Path(folder) / path.name
        try:
            library.save_model(model, draft, compress_to_fp16=False)
        except RuntimeError as error:  # also for a full disk
            raise AvatarError(f"OpenVINO cannot write {path.name} ({_line(error)}); check the room on the disk.") from error
        try:
            ov.check_precision(precision)
        except AvatarError as error:
            tell(f"{spec.name}: not measured. {error}")
            measured = None
        else:
            inputs = recorded if precision == "int8" else chain((spec.examples(seed) for seed in SEEDS), recorded)
            measured = parity.measure(reference, backend("openvino").load(spec, precision=precision, path=draft), inputs, what=what)
            parity.check(measured, LIMITS[precision], what=what)
        files = (path, path.with_suffix(".bin"))
        for file in reversed(files):
            (Path(folder) / file.name).replace(file)
    return Converted(files, recipe, measured)


def _converted(source: Onnx) -> Any:
    try:
        model = ov.library().convert_model(source.path)
    except Exception as error:  # the frontend has its own kinds
        raise AvatarError(f"OpenVINO cannot take the graph '{source.spec.name}' ({_line(error)}); choose another backend.") from error
    for port, name in zip((*model.inputs, *model.outputs), (*source.spec.inputs, *source.spec.outputs), strict=True):
        port.get_tensor().set_names({name})
    return model


def _quantised(model: Any, calibration: Sequence[Arrays], keep: str) -> Any:
    if not calibration:
        raise AvatarError("int8 needs inputs to calibrate on; give a recording, or export in another precision.")
    import logging

    import nncf

    nncf.set_log_level(logging.ERROR)
    kept = nncf.IgnoredScope(patterns=[f".*({keep}).*"] if keep else [], validate=False)
    inputs = nncf.Dataset([dict(given) for given in calibration])
    try:
        with contextlib.redirect_stdout(sys.stderr):  # its progress
            return nncf.quantize(model, inputs, subset_size=len(calibration), model_type=nncf.ModelType.TRANSFORMER, ignored_scope=kept)
    except Exception as error:  # whatever the quantiser raises
        raise AvatarError(f"NNCF cannot quantise the graph ({_line(error)}); export in another precision.") from error


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".")


__all__ = ["Converted", "available", "to_openvino"]
