"""How far apart two runs of one graph are, and how far apart they may be."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.types import AvatarError, Runner

Arrays = Mapping[str, npt.NDArray[Any]]
SIGNS = ("magnitude",)
"""Outputs of which only it matters whether they are numbers (`graphs.step_spec`): means of a picture, whose last digits are the order of a sum."""
PICTURES = ("picture",)
"""Outputs that are pictures: of bytes, or of numbers on the bytes' scale, 0 to 255, which are judged by the bytes that they become as well."""
BYTE = 255.0
"""Peak of a picture's values."""


@dataclass(frozen=True, slots=True)
class Error:
    """One output against the reference's."""

    max_abs: float  # largest difference of one value
    rel_l2: float  # L2 norm of the difference over that of the reference
    differing: float  # share of the values that are not the same; of pictures, of bytes
    psnr: float | None = None  # dB, of pictures only; infinite where nothing differs
    rounded: bool = False  # bytes, of which `rel_l2` says how they were rounded and no more

    def worse(self, other: Error) -> Error:
        """The worse of both in everything."""
        psnr = None if self.psnr is None or other.psnr is None else min(self.psnr, other.psnr)
        return Error(max(self.max_abs, other.max_abs), max(self.rel_l2, other.rel_l2), max(self.differing, other.differing), psnr, self.rounded)


@dataclass(frozen=True, slots=True)
class Limit:
    """What an artifact may differ by. Bytes are rounded numbers: a hair's breadth before the rounding is a whole step after it."""

    rel_l2: float
    max_abs: float = math.inf
    differing: float = 1.0  # share of bytes that may be one step off ...
    psnr: float = 0.0  # ... and dB that pictures of bytes must reach


LIMITS = {
    "fp32": Limit(1e-5, 1e-4, 1e-3, 60.0),
    "engine": Limit(1e-3, psnr=50.0),
    "fp16": Limit(1e-2, psnr=40.0),
    "bf16": Limit(5e-2, psnr=30.0),
    "int8": Limit(math.inf, psnr=30.0),
}
"""By precision. fp32 leaves room for another order of the same sums, "engine", which is fp32 on a GPU, for kernels that are chosen by speed;
the others for what the number format itself loses. In 8 bits the pictures alone decide, on inputs that no range was fitted to: what a network
remembers is coarse, which matters only by what it does to later pictures, and a stream shows that."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The worst over several inputs, by output."""

    inputs: int
    errors: dict[str, Error]

    @property
    def worst(self) -> tuple[str, Error]:
        """The output with the largest relative error; pictures, which are mostly rounded, only where there is nothing else."""
        numbers = {name: error for name, error in self.errors.items() if error.psnr is None}
        return max((numbers or self.errors).items(), key=lambda item: item[1].rel_l2)

    @property
    def psnr(self) -> float | None:
        """dB of the worst picture, where there are any."""
        return min((error.psnr for error in self.errors.values() if error.psnr is not None), default=None)

    def told(self) -> dict[str, Any]:
        """For a manifest: the worst of all outputs. Raises nothing."""
        name, error = self.worst
        most = max(each.max_abs for each in self.errors.values() if (each.psnr is None) == (error.psnr is None))
        told: dict[str, Any] = {"inputs": self.inputs, "rel_l2": error.rel_l2, "rel_l2_of": name, "max_abs": most}
        if self.psnr is not None:
            told["psnr"] = self.psnr if math.isfinite(self.psnr) else "identical"
        return told


def compare(reference: Arrays, found: Arrays, *, what: str) -> dict[str, Error]:
    """Every output of the reference against the one found, but for SIGNS, which only must be numbers too.

    Raises AvatarError where one is missing, of another shape or not a number.
    """
    errors = {name: _error(name, want, found.get(name), what) for name, want in reference.items()}
    return {name: error for name, error in errors.items() if name not in SIGNS}


def _error(name: str, want: npt.NDArray[Any], got: npt.NDArray[Any] | None, what: str) -> Error:
    if got is None or got.shape != want.shape:
        shape = "missing" if got is None else f"{list(got.shape)}"
        raise AvatarError(f"Output '{name}' of {what} is {shape}, in PyTorch {list(want.shape)}; nothing was written: this is a defect, report it.")
    a, b = want.astype(np.float64), got.astype(np.float64)
    if not np.isfinite(b).all():
        where = "already in PyTorch: check the weights" if not np.isfinite(a).all() else "but not in PyTorch: choose a wider precision"
        raise AvatarError(f"Output '{name}' of {what} holds values that are no numbers, {where}; nothing was written.")
    apart = np.abs(a - b)
    norm, gap = float(np.linalg.norm(a)), float(np.linalg.norm(a - b))
    rel = gap / norm if norm > 0 else (0.0 if gap == 0 else math.inf)
    psnr, differs = None, apart > 0
    if want.dtype == np.uint8 or name in PICTURES:
        mean = float((apart**2).mean()) if apart.size else 0.0
        psnr, differs = 10 * math.log10(BYTE**2 / mean) if mean > 0 else math.inf, np.rint(a) != np.rint(b)
    return Error(float(apart.max(initial=0.0)), rel, float(differs.mean()) if apart.size else 0.0, psnr, want.dtype == np.uint8)


def measure(reference: Runner, tested: Runner, inputs: Iterable[Arrays], *, what: str) -> Measured:
    """Both on the same inputs. Raises AvatarError where they cannot be compared."""
    errors: dict[str, Error] = {}
    count = 0
    for given in inputs:
        now = compare(reference(given), tested(given), what=what)
        errors = {name: error.worse(errors[name]) if name in errors else error for name, error in now.items()}
        count += 1
    if not errors:
        raise AvatarError(f"There was nothing to compare {what} on; give at least one input.")
    return Measured(count, errors)


def check(measured: Measured, limit: Limit, *, what: str) -> None:
    """Raise AvatarError, with the output and its error, where a limit is passed, and where pictures decide and there are none."""
    if math.isinf(limit.rel_l2) and measured.psnr is None:
        raise AvatarError(f"There are no pictures to judge {what} by; nothing was written: export this graph in fp32.")
    for name, error in measured.errors.items():
        if error.psnr is None:
            bad = error.rel_l2 > limit.rel_l2 or error.max_abs > limit.max_abs
            said = f"by {error.max_abs:.2g} at most and {error.rel_l2:.2g} relative"
            allowed = f"{limit.rel_l2:g} relative" + (f" and {limit.max_abs:g} at most" if math.isfinite(limit.max_abs) else "")
        else:
            bad = error.psnr < limit.psnr or error.differing > limit.differing or (not error.rounded and error.rel_l2 > limit.rel_l2)
            said = f"by {error.max_abs:.3g} steps at most in {error.differing:.2%} of its bytes, PSNR {error.psnr:.1f} dB"
            said += "" if error.rounded else f" and {error.rel_l2:.2g} relative"
            allowed = f"{limit.differing:.2%} and {limit.psnr:g} dB" + ("" if error.rounded else f" and {limit.rel_l2:g} relative")
        if bad:
            raise AvatarError(
                f"Output '{name}' of {what} differs from PyTorch {said}, more than the {allowed} allowed; nothing was written:"
                " choose a wider precision, or report it where it is fp32."
            )


__all__ = ["LIMITS", "PICTURES", "Arrays", "Error", "Limit", "Measured", "check", "compare", "measure"]
