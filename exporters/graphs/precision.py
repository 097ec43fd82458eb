"""Narrower numbers, written into the ONNX graph itself: TensorRT takes its precision from there and from nowhere else.

fp16 and bf16 by NVIDIA ModelOpt's AutoCast, which keeps in fp32 what the calibration shows to need it; int8 by ONNX Runtime's static
quantiser, symmetric, as quantise / dequantise pairs.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from engine.types import AvatarError, Runner
from exporters.graphs import parity
from exporters.graphs.lint import lint
from exporters.graphs.manifest import told_if_full, versions
from exporters.graphs.parity import LIMITS, Arrays, Measured
from exporters.graphs.to_onnx import SEEDS, Onnx, digest, onnx_runner

Half = Literal["fp16", "bf16"]
MODELOPT = "AVATAR_MODELOPT"
"""Environment variable: the Python of an environment with NVIDIA ModelOpt, whose pins are others than this project's."""
MODELOPT_MODULE = "modelopt.onnx.autocast"
HOW = "python3 -m venv modelopt && modelopt/bin/pip install 'nvidia-modelopt[onnx]==0.47.0' torch, then set AVATAR_MODELOPT=modelopt/bin/python"
PATIENCE = 3600
"""s that a conversion may take."""
SENSITIVE = r"(time_emb_proj|time_embedding|conv_in|conv_out|conv_shortcut|norm_out)(/|\.)"
"""Modules that lose most in 8 bits (the exceptions of NVIDIA's diffusion demo): first, last and those of the noise level."""
INT8_OPERATORS = ("Conv", "MatMul", "Gemm")


@dataclass(frozen=True, slots=True)
class Converted:
    """A graph in another precision."""

    onnx: Onnx
    precision: str
    recipe: dict[str, Any]  # how it was made: part of the key
    measured: Measured | None  # None where no runtime on this machine can run it


def to_half(
    source: Onnx,
    path: Path,
    *,
    reference: Runner,
    calibration: Iterable[Arrays] = (),
    recorded: Sequence[Arrays] = (),
    kind: Half = "fp16",
    keep: str = "",
    python: str | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Converted:
    """The graph in fp16 or bf16, inputs and outputs as they were, in a new file.

    `keep`: regular expression of nodes that stay in fp32. `calibration`: inputs that show which values grow too large; random ones where there
    are none. `recorded`: those that it is measured on, by default the same. `reference`: PyTorch. Raises AvatarError, with nothing written,
    without ModelOpt, and where the error is over the limit.
    """
    command, version = modelopt(python)
    inputs = list(calibration) or [source.spec.examples(seed) for seed in SEEDS]
    recipe = {"kind": kind, "by": f"modelopt {version}", "keep": keep, "keep_io_types": True, "calibration": digest_of(inputs)}
    with told_if_full(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=".half-") as folder:
        home = Path(folder)
        (home / "inputs").mkdir()
        for number, given in enumerate(inputs):
            np.savez(home / "inputs" / f"{number:04}.npz", **given)
        draft = home / path.name
        command += ["--onnx_path", str(source.path), "--output_path", str(draft), "--low_precision_type", kind, "--keep_io_types"]
        command += ["--calibration_data", str(home / "inputs"), "--providers", "cpu", *(["--nodes_to_exclude", f".*({keep}).*"] if keep else [])]
        tell(f"{source.spec.name}: ModelOpt converts to {kind} ...")
        said = _run(command)
        share = re.findall(r"Converted (\d+)/(\d+) nodes", said)
        if not draft.is_file() or not share:
            raise AvatarError(f"ModelOpt did not convert '{source.spec.name}' to {kind} ({_last(said)}); export fp32, or try another ModelOpt.")
        recipe["nodes"] = "/".join(share[-1])
        tell(f"{source.spec.name}: {recipe['nodes']} nodes are {kind}")
        _size_anew(draft)
        # ONNX Runtime has no bf16 kernels for the CPU: such a graph is measured as an engine, on the GPU.
        made = _checked(source, draft, path, precision=kind, inputs=(recorded or inputs) if kind == "fp16" else [], reference=reference)
    return Converted(made, kind, recipe, made.measured if kind == "fp16" else None)


def _size_anew(draft: Path) -> None:
    """What a file says of its tensors' sizes, inferred once more: beside a resize, ModelOpt takes some for unknown."""
    import onnx

    from exporters.graphs.lint import load

    model = load(draft)
    del model.graph.value_info[:]
    onnx.save(onnx.shape_inference.infer_shapes(model, data_prop=True), str(draft))


def modelopt(python: str | None) -> tuple[list[str], str]:
    """The command and the version. Raises AvatarError where there is none."""
    chosen = python or os.environ.get(MODELOPT) or (sys.executable if importlib.util.find_spec("modelopt") else None)
    if not chosen:
        raise AvatarError(f"fp16 and bf16 need NVIDIA ModelOpt in an environment of its own: {HOW}; or export in fp32.")
    code = f"import importlib.metadata as m, {MODELOPT_MODULE}; print('version', m.version('nvidia-modelopt'))"
    try:
        said = _run([chosen, "-c", code])
    except OSError as error:
        raise AvatarError(f"{chosen} is no Python that can be run ({error.strerror or error}); {HOW}.") from error
    found = re.search(r"^version (\S+)", said, re.MULTILINE)
    if found is None:
        raise AvatarError(f"{chosen} has no working NVIDIA ModelOpt ({_last(said)}); {HOW}.")
    return [chosen, "-m", MODELOPT_MODULE], found[1]


def _run(command: Sequence[str]) -> str:
    """All that a program says."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired as error:
        raise AvatarError(f"{Path(command[0]).name} {' '.join(command[1:3])} gave no answer in {PATIENCE} s; try it by hand.") from error
    return done.stdout


def _last(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else "it said nothing"


def to_int8(
    source: Onnx,
    path: Path,
    *,
    calibration: Iterable[Arrays],
    recorded: Sequence[Arrays],
    reference: Runner,
    keep: str = SENSITIVE,
    tell: Callable[[str], None] = lambda line: None,
) -> Converted:
    """Convolutions and matrix products in 8 bits, symmetric, weights by channel, in a new file.

    `calibration`: real inputs, through the real sampler; `recorded`: others of the same kind, on which the error is measured. Raises
    AvatarError, with nothing written, without either, and where the error is over the limit.
    """
    inputs = list(calibration)
    if not inputs:
        raise AvatarError("int8 needs inputs to calibrate on; give a recording, or export in another precision.")
    if not recorded:
        raise AvatarError("int8 is measured on inputs that it was not calibrated on; give some of those too.")
    kept = [node for node in _node_names(source.path) if re.search(keep, node)] if keep else []
    by = f"onnxruntime {versions(['onnxruntime']).get('onnxruntime')}"
    recipe: dict[str, Any] = {"kind": "int8", "by": by, "format": "QDQ symmetric, weights by channel", "operators": list(INT8_OPERATORS)}
    recipe |= {"keep": keep, "calibration": digest_of(inputs), "inputs": len(inputs)}
    with told_if_full(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=".int8-") as folder:
        draft = Path(folder) / path.name
        tell(f"{source.spec.name}: calibrating on {len(inputs)} inputs ...")
        _quantise(source.path, draft, inputs, kept)
        made = _checked(source, draft, path, precision="int8", inputs=recorded, reference=reference)
    return Converted(made, "int8", recipe, made.measured)


def _quantise(source: Path, draft: Path, inputs: Sequence[Arrays], kept: Sequence[str]) -> None:
    import logging

    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        """One set of inputs after the other."""

        def __init__(self) -> None:
            self._left = iter(inputs)

        def get_next(self) -> Any:
            given = next(self._left, None)
            return None if given is None else dict(given)

    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)  # it advises to optimise the graph first, which `tidy` did
    try:
        quantization.quantize_static(
            str(source),
            str(draft),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(INT8_OPERATORS),
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            nodes_to_exclude=list(kept),
            # TensorRT takes neither zero points nor biases in 32 bits.
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
        )
    except Exception as error:  # whatever the quantiser raises
        if isinstance(error, OSError):
            raise
        raise AvatarError(f"ONNX Runtime cannot quantise {source.name} ({_last(str(error))}); export in another precision.") from error
    finally:
        root.setLevel(before)


def _node_names(path: Path) -> list[str]:
    from exporters.graphs.lint import load

    return [str(node.name) for node in load(path).graph.node]


def _checked(source: Onnx, draft: Path, path: Path, *, precision: str, inputs: Sequence[Arrays], reference: Runner) -> Onnx:
    """Lint and measure a converted graph, then move it to its place."""
    facts = lint(draft, source.spec, dynamic=source.dynamic)
    what = f"the {precision} graph '{source.spec.name}'"
    measured = source.measured
    if inputs:
        measured = parity.measure(reference, onnx_runner(source.spec, draft), inputs, what=what)
        parity.check(measured, LIMITS[precision], what=what)
    files = sorted((file for file in draft.parent.iterdir() if file.is_file()), key=lambda file: file != draft)
    for file in reversed(files):
        file.replace(path.parent / file.name)
    files = [path.parent / file.name for file in files]
    return replace(source, path=path, files=tuple(files), sha256=digest(files), facts=facts, measured=measured)


def digest_of(inputs: Iterable[Arrays]) -> str:
    """sha256 of a set of inputs, for the key."""
    whole = hashlib.sha256()
    for given in inputs:
        for name in sorted(given):
            whole.update(f"{name} {given[name].dtype} {given[name].shape}".encode())
            whole.update(np.ascontiguousarray(given[name]).tobytes())
    return whole.hexdigest()


__all__ = ["MODELOPT", "SENSITIVE", "Converted", "digest_of", "modelopt", "to_half", "to_int8"]
