"""What is installed, what works here, and what to do about the rest. Looks without changing anything."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass

from engine.types import AvatarError


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report."""

    part: str
    ok: bool | None  # None: optional and absent
    detail: str  # what was found, or what to do


REQUIRED = ("numpy", "aiortc", "av", "aiohttp", "opencv-contrib-python-headless", "mediapipe", "protobuf", "librosa", "numba", "scipy", "pillow")
OPTIONAL = {
    "onnxruntime": "pip install 'avatar-engine[onnx]' to run ONNX graphs",
    "torch": "pip install 'avatar-engine[torch]' for the diffusion generators",
    "pyvirtualcam": "pip install 'avatar-engine[camera]' for --virtual-camera",
}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages() -> list[Check]:
    checks = []
    for package in REQUIRED:
        found = _version(package)
        advice = "pip install --no-deps mediapipe==0.10.21" if package == "mediapipe" else f"pip install {package}, or run `make venv`"
        checks.append(Check(package, found is not None, found or advice))
    gui = _version("opencv-contrib-python") or _version("opencv-python")
    if gui:
        checks.append(
            Check("opencv", False, "the GUI build of OpenCV is installed over the headless one: pip uninstall opencv-python opencv-contrib-python")
        )
    for package, advice in OPTIONAL.items():
        found = _version(package)
        checks.append(Check(package, True if found else None, found or advice))
    return checks


def _attempt(part: str, action: Callable[[], str]) -> Check:
    start = time.perf_counter()
    try:
        detail = action()
    except (AvatarError, ImportError, OSError, RuntimeError) as error:
        return Check(part, False, str(error))
    return Check(part, True, f"{detail} ({time.perf_counter() - start:.1f} s)")


def _face() -> str:
    from engine.drivers.face import FaceTracker
    from engine.persona import demo_portrait

    tracker = FaceTracker(still=True)
    try:
        found = tracker.detect(demo_portrait())
    finally:
        tracker.close()
    if len(found) != 1:
        raise RuntimeError("the tracker does not find the face of the built-in portrait: reinstall mediapipe==0.10.21")
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
    import numpy as np

    from engine.drivers.speech import LOOK_AHEAD, SpeechDriver
    from engine.types import AudioChunk

    driver = SpeechDriver()
    driver.hear(AudioChunk(np.zeros(16_000, np.float32), 16_000, 0.0))
    driver.at(0.5)
    return f"look-ahead {1000 * LOOK_AHEAD:.0f} ms"


def _generator(name: str) -> Callable[[], str]:
    def run() -> str:
        from engine.generators import load
        from engine.persona import demo_portrait, make_persona

        generator = load(name)
        make_persona(generator, demo_portrait(), name="doctor")
        return f"prepares the built-in portrait at {generator.spec.size[1]}x{generator.spec.size[0]}"

    return run


def examine() -> list[Check]:
    """Every check, in the order of the report."""
    from engine import backends, generators

    checks = [Check("python", True, f"{platform.python_version()} on {platform.machine()}, {os.cpu_count()} cores")]
    checks += _packages()
    checks += [_attempt("driver face", _face), _attempt("driver body", _body), _attempt("driver speech", _speech)]
    checks += [_attempt(f"generator {name}", _generator(name)) for name in sorted(generators.NAMES)]
    for name in sorted(backends.NAMES):
        missing = backends.backend(name).available()
        checks.append(Check(f"backend {name}", None if missing else True, missing or "works"))
    espeak = shutil.which("espeak-ng") or _version("espeakng-loader")
    checks.append(Check("text to speech", bool(espeak), "espeak-ng" if espeak else "pip install espeakng-loader, or apt install espeak-ng"))
    return checks
