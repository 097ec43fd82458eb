"""TensorRT and TensorRT for RTX: two libraries with one strongly typed interface. Where each is, how it is loaded, and what GPU is here.

TensorRT (`import tensorrt`) serves data-centre and desktop GPUs; an engine is bound to one version and one kind of GPU. TensorRT for RTX serves
GeForce and RTX GPUs; it compiles ahead of time, without a GPU, for several compute capabilities, and finishes on the GPU it runs on.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from engine.types import AvatarError, MissingPart

Flavour = Literal["tensorrt", "tensorrt_rtx"]
NAMED: Mapping[str, str] = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}
MODULES: Mapping[str, tuple[str, ...]] = {"tensorrt": ("tensorrt",), "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
INSTALL: Mapping[str, str] = {
    "tensorrt": "install NVIDIA's package (https://developer.nvidia.com/tensorrt, or pip install tensorrt-cu13 where its index has it)",
    "tensorrt_rtx": "pip install 'avatar-engine[tensorrt-rtx]' once you accept NVIDIA's licence, or install NVIDIA's SDK",
}
CARRIER = "onnxruntime_ep_nv_tensorrt_rtx"
"""A package that carries TensorRT for RTX's libraries. It is never imported: its own library needs a driver, the two below do not."""
CARRIED = ("libtensorrt_rtx.so.*", "libtensorrt_onnxparser_rtx.so.*")
"""In the order in which they need each other."""
DRIVER = "libcuda.so.1"
KEPT_MESSAGES = 200
ATTRIBUTES = {"major": 75, "minor": 76, "processors": 16}
"""CUdevice_attribute of the CUDA driver's interface."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """What an engine is bound to."""

    name: str
    sm: str  # compute capability, "8.9"
    processors: int  # streaming multiprocessors
    cuda: int  # major version that the driver knows

    def told(self) -> dict[str, Any]:
        """For a key."""
        return asdict(self)


def missing(flavour: Flavour) -> str | None:
    """None where the library is installed, else one sentence. It is not loaded, so a broken one is not found out here."""
    for module in MODULES[flavour]:
        if importlib.util.find_spec(module) is not None and (module != "tensorrt_rtx_bindings" or importlib.util.find_spec(CARRIER)):
            return None
    if flavour == "tensorrt_rtx" and importlib.util.find_spec("tensorrt_rtx_bindings"):
        return f"TensorRT for RTX is half installed: the bindings lack their libraries; {INSTALL[flavour]}."
    return f"{NAMED[flavour]} is not installed; {INSTALL[flavour]}."


@cache
def library(flavour: Flavour) -> Any:
    """The Python module. Raises MissingPart where it is not installed, AvatarError where it does not load."""
    told = missing(flavour)
    if told:
        raise MissingPart(told)
    name = next(module for module in MODULES[flavour] if importlib.util.find_spec(module))
    try:
        if name == "tensorrt_rtx_bindings":
            _preload()
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise AvatarError(f"{NAMED[flavour]} is installed but does not load ({said}); {INSTALL[flavour]}.") from error


def _preload() -> None:
    """The libraries beside the bindings, which find them by name only once they are loaded."""
    spec = importlib.util.find_spec(CARRIER)
    folders = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    for pattern in CARRIED:
        found = next((path for folder in folders for path in sorted(folder.glob(pattern))), None)
        if found is None:
            raise ImportError(f"{CARRIER} has no {pattern}")
        ctypes.CDLL(str(found), mode=ctypes.RTLD_GLOBAL)


def version(trt: Any) -> str:
    """Of a loaded library, all four numbers."""
    return str(trt.__version__)


def logger(trt: Any) -> Any:
    """A logger of the library that keeps what it is told: `.errors`, the newest last."""

    class Kept(trt.ILogger):  # type: ignore[misc]
        """Errors are kept, the rest is dropped."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            """Called by the library, from any of its threads."""
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(" ".join(message.split()))
                del self.errors[:-KEPT_MESSAGES]

    return Kept()


def said(log: Any) -> str:
    """The most telling of the kept errors: not about a missing driver, which a build without a GPU always reports."""
    errors = [error for error in log.errors if "cudaError 35" not in error] or log.errors
    return str(errors[-1]).rstrip(".") if errors else "it gave no reason"


# -- the GPU ----------------------------------------------------------------------------------------------------------------


def driver(name: str = DRIVER) -> Any:
    """NVIDIA's driver library, ready, or None."""
    try:
        cuda = ctypes.CDLL(name)
        return cuda if cuda.cuInit(0) == 0 else None
    except (OSError, AttributeError):  # absent, or something else of that name
        return None


def gpu(index: int = 0, *, cuda: Any = None) -> Gpu | None:
    """The GPU of this machine, or None. `cuda`: the driver library, looked for where it is not given."""
    cuda = driver() if cuda is None else cuda
    if cuda is None:
        return None
    device, number = ctypes.c_int(), ctypes.c_int()
    if cuda.cuDeviceGet(ctypes.byref(device), index) != 0:
        return None
    name = ctypes.create_string_buffer(256)
    cuda.cuDeviceGetName(name, len(name), device)
    values = {}
    for key, attribute in ATTRIBUTES.items():
        cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        values[key] = number.value
    cuda.cuDriverGetVersion(ctypes.byref(number))
    return Gpu(name.value.decode(), f"{values['major']}.{values['minor']}", values["processors"], number.value // 1000)


__all__ = ["NAMED", "Flavour", "Gpu", "driver", "gpu", "library", "logger", "missing", "said", "version"]
