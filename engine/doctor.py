"""What is installed, what works here, and what to do about the rest. Looks without changing anything."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.types import AvatarError, GraphSpec, MissingPart

PACKAGE = "avatar-engine"
ASIDE = {"mediapipe": "==0.10.21"}
"""Pins that stand outside of the package's requirements: MediaPipe is installed with --no-deps (see pyproject.toml)."""
OPTIONAL = {
    "onnx": "to run ONNX graphs",
    "torch": "for the diffusion generators",
    "camera": "for --virtual-camera",
}
"""Extras -> what for. The developers' own is not looked at."""
AGAIN = "run `make venv` in the checkout to install the versions that belong together"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report."""

    part: str
    ok: bool | None  # None: optional and absent
    detail: str  # what was found, or what to do


def examine() -> list[Check]:
    """Every check, in the order of the report. Raises nothing: a part that is broken, in whatever way, is a line."""
    checks = [Check("python", True, f"{platform.python_version()} on {platform.machine()}, {os.cpu_count()} cores")]
    checks += _packages()
    checks += [
        _attempt("driver face", _face, "pip install --no-deps --force-reinstall mediapipe==0.10.21"),
        _attempt("driver body", _body, "pip install --no-deps --force-reinstall mediapipe==0.10.21"),
        _attempt("driver speech", _speech, AGAIN),
        _attempt("H.264 encoder", _encoder, "pip install --force-reinstall av==18.1.0, whose wheel carries x264"),
    ]
    checks += [_attempt(f"generator {name}", _generator(name), AGAIN) for name in _names("generators")]
    checks += [_backend(name) for name in _names("backends")]
    checks += _memory()
    espeak = shutil.which("espeak-ng") or _version("espeakng-loader")
    checks.append(Check("text to speech", bool(espeak), "espeak-ng" if espeak else "pip install espeakng-loader, or apt install espeak-ng"))
    return checks


# -- packages -------------------------------------------------------------------------------------------------------------


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages() -> list[Check]:
    try:
        lines = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return [Check(PACKAGE, False, f"is not installed, so its requirements are unknown; {AGAIN}")]
    needed, extras = _requirements(lines)
    checks = [_package(package, pin) for package, pin in {**needed, **ASIDE}.items()]
    gui = _version("opencv-contrib-python") or _version("opencv-python")
    if gui:
        advice = "pip uninstall opencv-python opencv-contrib-python, then pip install --force-reinstall --no-deps opencv-contrib-python-headless"
        checks.append(Check("opencv", False, f"the GUI build of OpenCV is installed over the headless one: {advice}"))
    for extra, purpose in OPTIONAL.items():
        for package, pin in extras.get(extra, {}).items():
            absent = Check(package, None, f"pip install '{PACKAGE}[{extra}]' {purpose}")
            checks.append(absent if _version(package) is None else _package(package, pin))
    return checks


def _package(package: str, pin: str) -> Check:
    found = _version(package)
    # MediaPipe's own requirements would bring OpenCV's GUI build and jax.
    install = f"pip install {'--no-deps ' if package in ASIDE else ''}'{package}{pin}'"
    if found is None:
        return Check(package, False, f"is not installed: {install}, or {AGAIN}")
    if not meets(found, pin):
        return Check(package, False, f"{found} is installed, {pin} is needed: {install}, or {AGAIN}")
    return Check(package, True, found)


def _requirements(lines: list[str]) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Requirements (PEP 508, as this package writes them) -> ({package: pin}, {extra: {package: pin}})."""
    needed: dict[str, str] = {}
    extras: dict[str, dict[str, str]] = {}
    for line in lines:
        requirement, _, marker = line.partition(";")
        name = re.match(r"[\w.-]+", requirement)
        if name is None:
            continue
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", marker)
        home = extras.setdefault(extra[1], {}) if extra else needed
        home[name[0]] = re.sub(r"\[.*?\]|\s", "", requirement[name.end() :])
    return needed, extras


def meets(version: str, pin: str) -> bool:
    """Whether "1.26.4" is within "==1.26.4" or ">=1,<2". Numbers only: what follows them ("rc1", "+cu128") is not compared."""
    have = _numbers(version)
    tests: Mapping[str, Callable[[list[int], list[int]], bool]] = {
        "==": lambda a, b: a == b,
        "!=": lambda a, b: a != b,
        ">=": lambda a, b: a >= b,
        "<=": lambda a, b: a <= b,
        ">": lambda a, b: a > b,
        "<": lambda a, b: a < b,
    }
    for part in filter(None, pin.split(",")):
        sign = re.match(r"[=!<>]=|[<>]", part)
        if sign is None:
            continue
        want = _numbers(part[sign.end() :])
        length = max(len(have), len(want))
        if not tests[sign[0]](have + [0] * (length - len(have)), want + [0] * (length - len(want))):
            return False
    return True


def _numbers(version: str) -> list[int]:
    found = re.match(r"\d+(\.\d+)*", version)
    return [int(number) for number in found[0].split(".")] if found else []


# -- parts ----------------------------------------------------------------------------------------------------------------


def _attempt(part: str, action: Callable[[], str], advice: str) -> Check:
    """Run it. Whatever it raises is the report's, since a damaged installation may raise anything."""
    start = time.perf_counter()
    try:
        detail = action()
    except MissingPart as error:
        return Check(part, None, str(error))
    except AvatarError as error:  # says what to do
        return Check(part, False, str(error))
    except Exception as error:
        return Check(part, False, f"{_named(error)}; {advice}")
    return Check(part, True, f"{detail} ({time.perf_counter() - start:.1f} s)")


def _named(error: Exception) -> str:
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _names(registry: str) -> list[str]:
    from importlib import import_module

    return sorted(import_module(f"engine.{registry}").NAMES)


def _face() -> str:
    from engine.drivers.face import FaceTracker
    from engine.persona import demo_portrait

    tracker = FaceTracker(still=True)
    try:
        found = tracker.detect(demo_portrait())
    finally:
        tracker.close()
    if len(found) != 1:
        raise RuntimeError("the tracker does not find the face of the built-in portrait")
    return "finds the face of the built-in portrait"


def _body() -> str:
    from engine.drivers.body import BodyDriver
    from engine.persona import demo_portrait
    from engine.types import VideoFrame

    driver = BodyDriver()
    try:
        reading = driver(VideoFrame(demo_portrait(), 0.0))
    finally:
        driver.close()
    return "finds the shoulders of the built-in portrait" if reading is not None else "runs; sees no shoulders in the built-in portrait"


def _speech() -> str:
    from engine.drivers.speech import LOOK_AHEAD, SpeechDriver
    from engine.types import AudioChunk

    driver = SpeechDriver()
    driver.hear(AudioChunk(np.zeros(16_000, np.float32), 16_000, 0.0))
    driver.at(0.5)
    return f"look-ahead {1000 * LOOK_AHEAD:.0f} ms"


def _encoder() -> str:
    import av

    codec: Any = av.CodecContext.create("libx264", "w")
    codec.width, codec.height, codec.pix_fmt, codec.framerate = 64, 48, "yuv420p", 30
    picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8), format="rgb24")
    packets = [*codec.encode(picture), *codec.encode(None)]
    if not sum(packet.size for packet in packets):
        raise RuntimeError("x264 gives no packet for a picture")
    return "encodes a frame"


def _generator(name: str) -> Callable[[], str]:
    def run() -> str:
        from engine.generators import load
        from engine.persona import demo_portrait, make_persona

        generator = load(name)
        make_persona(generator, demo_portrait(), name="doctor")
        return f"prepares the built-in portrait at {generator.spec.size[1]}x{generator.spec.size[0]}"

    return run


# -- memory of an accelerator ---------------------------------------------------------------------------------------------

MEGABYTE = 1e6


def _memory() -> list[Check]:
    """What one session of each size of the diffusion generator keeps on its device, and how many that would be on this GPU."""
    from engine.generators.diffusion.budget import budget
    from engine.generators.diffusion.presets import PRESETS

    free, name = _gpu()
    checks = []
    for made in PRESETS.values():
        need = budget(made)
        detail = f"{need.total / MEGABYTE:.0f} MB a session in half precision, {need.window / MEGABYTE:.0f} of it the window of {made.window} frames"
        fits = f"; {free // need.total} sessions in the {free / MEGABYTE:.0f} MB free on {name}, less the weights" if free else ""
        checks.append(Check(f"memory {made.name}", True, f"{detail} ({made.steps} steps){fits}"))
    return checks


def _gpu() -> tuple[int, str]:
    """Free bytes and the name of the first NVIDIA GPU; 0 where PyTorch sees none."""
    try:
        import torch

        if not torch.cuda.is_available():
            return 0, ""
        return int(torch.cuda.mem_get_info()[0]), str(torch.cuda.get_device_name(0))
    except Exception:  # whatever a broken driver raises: the check of the generator says it
        return 0, ""


# -- backends -------------------------------------------------------------------------------------------------------------

DOUBLE_ONNX = (
    b'\x08\x08\x12\x00:=\n\x0e\n\x01x\n\x01x\x12\x01y"\x03Add\x12\x01gZ\x13\n\x01x\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x01\n\x02\x08\x02'
    b"b\x13\n\x01y\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x01\n\x02\x08\x02B\x04\n\x00\x10\r"
)
"""An ONNX file: y = x + x for x float32 [1, 2], opset 13 (made with onnx.helper and checked by the tests)."""


def _double(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {"y": inputs["x"] + inputs["x"]}


def _doubling_module() -> Any:
    import torch

    class Double(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x + x

    return Double()


GRAPHS: dict[str, Callable[[], Any]] = {
    "fake": lambda: _double,
    "onnxruntime": lambda: DOUBLE_ONNX,
    "openvino": lambda: DOUBLE_ONNX,
    "pytorch": _doubling_module,
}
"""Backend -> `GraphSpec.build` of the graph that is tried on it."""


def _backend(name: str) -> Check:
    from engine import backends

    part = f"backend {name}"
    advice = f"reinstall what it runs on, or {AGAIN}"
    try:
        missing = backends.backend(name).available()
    except Exception as error:
        return Check(part, False, f"{_named(error)}; {advice}")
    if missing:
        return Check(part, None, missing)
    if name not in GRAPHS:
        return Check(part, True, "is installed; no graph was tried")

    def run() -> str:
        spec = GraphSpec("double", {"x": ((1, 2), "float32")}, ("y",), GRAPHS[name])
        x = np.array([[1.5, -2.0]], np.float32)
        y = np.asarray(backends.backend(name).load(spec)({"x": x})["y"])
        if not np.array_equal(y, 2 * x):
            raise RuntimeError(f"doubling {x.tolist()} gave {y.tolist()}")
        return "runs a graph"

    return _attempt(part, run, advice)
