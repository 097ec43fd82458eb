"""A face -> a vector that is alike for pictures of one person: recognisers of ArcFace's kind, from a file that the user has.

They read faces of 112 x 112 px, RGB, which five points are brought to the same places of (Deng et al. 2019, arXiv 1801.07698). ONNX files run
through ONNX Runtime; to learn from one see `exporters.training.identity`.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.types import AvatarError, FloatArray, MissingPart, UInt8Array

SIDE = 112
"""px of an aligned face."""
# fmt: off
TEMPLATE: FloatArray = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float32)
# fmt: on
"""px of an aligned face where eyes, tip of the nose and corners of the mouth lie, the picture's left one first (published with InsightFace)."""
MARKS = ((33, 133), (362, 263), (4,), (61,), (291,))
"""Face mesh points whose means they are: an eye is the middle of its corners, since the iris goes where the person looks."""
MIDDLE = 127.5
"""Of pixel values: a recogniser reads (x - MIDDLE) / MIDDLE. Some were trained with 128, which is the same to 0.4 %."""
LEAST_LENGTH = 8
"""Numbers of a vector; less tells no people apart (what tells ages gives 3)."""
ITS_OWN = 8
"""First nodes of a graph that normalise its pixels, where it does so itself, as MXNet's exports do."""
GIVE = "give the recogniser itself, such as w600k_r50.onnx or glintr100.onnx"


# -- alignment ----------------------------------------------------------------------------------------------------------


def five_points(face: npt.NDArray[Any]) -> FloatArray:
    """Face points [..., 478, 2] px -> [..., 5, 2] px, as TEMPLATE; NaN where they are."""
    return np.asarray(np.stack([face[..., list(points), :].mean(-2) for points in MARKS], -2), np.float32)


def fit(five: npt.NDArray[Any]) -> FloatArray:
    """Five points [..., 5, 2] px -> [..., 2, 3], from px of the aligned face to px of the picture, both counted from the middle of the first pixel.

    The inverse of the similarity that brings them nearest to TEMPLATE, by least squares and never mirrored. NaN where points are, or all are one.
    """
    there, here = (np.asarray(x, np.float64) @ np.array([1, 1j]) for x in (five, TEMPLATE))
    middle, home = there.mean(-1, keepdims=True), here.mean()
    apart = there - middle
    with np.errstate(divide="ignore", invalid="ignore"):
        turn = (np.abs(apart) ** 2).sum(-1) / (apart.conj() * (here - home)).sum(-1)  # as complex numbers: scale and angle in one
        turn = np.where(np.isfinite(turn), turn, complex(np.nan, np.nan))
        off = middle[..., 0] - turn * home
    rows = (np.stack([turn.real, -turn.imag, off.real], -1), np.stack([turn.imag, turn.real, off.imag], -1))
    return np.asarray(np.stack(rows, -2), np.float32)


def aligned(picture: UInt8Array, face: FloatArray) -> UInt8Array:
    """A picture [H, W, 3] and its face points [478, 2] px -> [112, 112, 3]; grey where it ends. Raises AvatarError where there is no face."""
    import cv2

    matrix = fit(five_points(face))
    if not np.isfinite(matrix).all():
        raise AvatarError("There is no face to recognise in this picture; choose one that shows it from the front.")
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(picture, matrix, (SIDE, SIDE), flags=flags, borderValue=(MIDDLE,) * 3), np.uint8)


def similarity(some: FloatArray, others: FloatArray) -> FloatArray:
    """Vectors [..., D] each -> [...] cosines, 1 for the same."""
    norms = np.linalg.norm(some, axis=-1) * np.linalg.norm(others, axis=-1)
    return np.asarray((some * others).sum(-1) / np.maximum(norms, 1e-12), np.float32)


# -- files --------------------------------------------------------------------------------------------------------------


def digest(path: Path) -> str:
    """sha256 of a file. Raises AvatarError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        hint = GIVE if path.is_dir() else "check its name and permissions"
        raise AvatarError(f"The recogniser '{path}' cannot be read ({error.strerror or error}); {hint}.") from error


class Recogniser:
    """An ONNX file, ready to run on the CPU."""

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        """`threads` 0 lets ONNX Runtime choose. Raises AvatarError where the file is no recogniser."""
        missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
        if missing:
            raise MissingPart(f"A recogniser in ONNX needs {' and '.join(missing)}; pip install 'avatar-engine[export]'.")
        self.path, self.key = path, digest(path)
        self._session = _session(path, threads)
        self._input, self.together = _taken(path, self._session.get_inputs())
        if (given := len(self._session.get_outputs())) != 1:
            raise AvatarError(f"'{path}' gives {given} outputs, and a recogniser gives one vector; {GIVE}.")
        self.normalises = _normalises(path)
        probe = self(np.zeros((1, SIDE, SIDE, 3), np.uint8))
        self.length = probe.shape[1]

    def __call__(self, faces: UInt8Array) -> FloatArray:
        """Aligned faces [N, 112, 112, 3] RGB -> vectors [N, D] as the network gives them, of any length."""
        x = faces.transpose(0, 3, 1, 2).astype(np.float32)
        if not self.normalises:
            x = (x - MIDDLE) / MIDDLE
        pieces = [x] if self.together else np.split(x, len(x))
        try:
            made = [np.asarray(self._session.run(None, {self._input: piece})[0]) for piece in pieces]
        except Exception as error:  # whatever a graph raises that another runtime was happy with
            said = str(error).splitlines()[0]
            raise AvatarError(f"ONNX Runtime cannot run '{self.path}' ({said}); {GIVE}.") from error
        vectors: FloatArray = np.concatenate(made).astype(np.float32)
        check_vectors(self.path, vectors.shape, len(faces))
        return vectors.reshape(len(faces), -1)


def check_vectors(path: Path, shape: tuple[int, ...], count: int) -> None:
    """Raise AvatarError where [N, D] or [N, D, 1, 1] is not one vector for each of `count` pictures."""
    if len(shape) < 2 or shape[0] != count or shape[1] < LEAST_LENGTH or any(side != 1 for side in shape[2:]):
        raise AvatarError(f"'{path}' gives {list(shape)} numbers for {count} face{'s' * (count > 1)}, not a vector for each; {GIVE}.")


def check_length(recogniser: Recogniser, length: int, *, reader: str) -> None:
    """Raise AvatarError for one whose vectors are not of the length that `reader` reads."""
    if recogniser.length != length:
        raise AvatarError(f"'{recogniser.path}' gives {recogniser.length} numbers for a face, and '{reader}' reads {length}; {GIVE}.")


def _session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others share the cores
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever a damaged or foreign file raises
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise AvatarError(f"ONNX Runtime cannot load '{path}' ({said}); {GIVE}.") from error


def _taken(path: Path, inputs: list[Any]) -> tuple[str, bool]:
    """(name of the input, whether it takes any number of faces at once). Raises AvatarError where it takes something else."""
    if len(inputs) != 1:
        raise AvatarError(f"'{path}' takes {len(inputs)} inputs, and a recogniser takes one picture; {GIVE}.")
    port = inputs[0]
    free = [isinstance(side, int) for side in port.shape]
    fits = len(port.shape) == 4 and all(
        not known or side == want for known, side, want in zip(free[1:], port.shape[1:], (3, SIDE, SIDE), strict=True)
    )
    if not fits or port.type != "tensor(float)":
        said = " x ".join(str(side) if known else "any" for known, side in zip(free, port.shape, strict=True))
        raise AvatarError(f"'{path}' takes {said} of {port.type}, and a recogniser takes any x 3 x {SIDE} x {SIDE} of tensor(float); {GIVE}.")
    if free[0] and port.shape[0] != 1:
        raise AvatarError(f"'{path}' takes {port.shape[0]} faces at once; export it for one, or for any number.")
    return str(port.name), not free[0]


def _normalises(path: Path) -> bool:
    """Whether the graph itself brings 0..255 to its own range: InsightFace's rule, by operators instead of their names."""
    import onnx

    first = {node.op_type for node in onnx.load(str(path), load_external_data=False).graph.node[:ITS_OWN]}
    return "Sub" in first and bool(first & {"Mul", "Div"})


__all__ = [
    *("GIVE", "MIDDLE", "SIDE", "TEMPLATE", "Recogniser", "aligned", "check_length", "check_vectors", "digest", "fit", "five_points"),
    "similarity",
]
