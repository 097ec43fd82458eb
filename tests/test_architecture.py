"""The house stands as drawn: who may import whom, what importing costs, and what the public names are."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from engine import generators
from tests.conftest import require_for

ROOT = Path(__file__).parent.parent
PACKAGES = ("engine", "streaming", "exporters", "benchmarks")
HEAVY = {
    *("torch", "diffusers", "transformers", "onnxruntime", "openvino", "tensorrt"),
    *("mediapipe", "librosa", "numba", "cv2", "soxr", "matplotlib", "av", "aiortc", "aiohttp"),
}

# room -> the rooms its files may import; a file's room is the longest prefix that matches
ALLOWED: dict[str, set[str]] = {
    "engine.types": set(),
    "engine.pose": set(),
    "engine.config": {"engine.types"},
    "engine.media": {"engine.types"},
    "engine.picture": {"engine.types"},
    "engine.window": {"engine.types"},
    "engine.batch": {"engine.types"},
    "engine.drivers": {"engine.types", "engine.pose", "engine.config"},
    "engine.backends": {"engine.types"},
    "engine.recogniser": {"engine.types"},
    "engine.conditions": {"engine.types", "engine.pose", "engine.drivers"},
    "engine.generators": {
        "engine.types",
        "engine.pose",
        "engine.config",
        "engine.drivers",
        "engine.backends",
        "engine.window",
        "engine.recogniser",
        "engine.conditions",
    },
    "engine.blend": {"engine.types"},
    "engine.badge": set(),
    "engine.composite": {"engine.types", "engine.pose", "engine.config", "engine.drivers", "engine.picture", "engine.blend", "engine.badge"},
    "engine.persona": {"engine.types", "engine.config", "engine.composite", "engine.picture", "engine.drivers", "engine.generators"},
    "engine.session": {
        "engine.types",
        "engine.pose",
        "engine.config",
        "engine.window",
        "engine.batch",
        "engine.composite",
        "engine.persona",
        "engine.drivers",
    },
    "engine.offline": {"engine"},
    "engine.doctor": {"engine"},
    "engine": {"engine"},
    "streaming.rtc": {"engine.types"},
    "streaming": {"engine"},
    "exporters": {"engine"},
    "exporters.data": {"engine", "exporters.files"},
    "exporters.graphs": {"engine", "exporters.published"},
    "exporters.portraits": {"engine", "exporters.files", "exporters.graphs.lora"},
    "exporters.published": {"engine", "exporters.files", "exporters.portraits"},
    "exporters.training": {"engine", "exporters.files", "exporters.data"},
    "benchmarks": {"engine", "streaming"},
    "benchmarks.trained": {"engine", "exporters", "benchmarks"},
    "benchmarks.training": {"engine", "exporters", "benchmarks"},
    "benchmarks.training_room": {"engine", "exporters", "benchmarks"},
    "avatar": {"engine", "streaming", "exporters", "benchmarks"},
}


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _files() -> list[Path]:
    return [ROOT / "avatar.py", *(file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py")))]


def _imports(path: Path, *, top_level_only: bool) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names if node.module in PACKAGES}
    return found


def _inside(name: str, room: str) -> bool:
    return name == room or name.startswith(room + ".")


@pytest.mark.parametrize("path", _files(), ids=_module)
def test_imports_keep_to_the_house_rules(path: Path) -> None:
    module = _module(path)
    room = max((room for room in ALLOWED if _inside(module, room)), key=len)
    own = room if room in ("engine", *PACKAGES) or "." in room else module
    for name in _imports(path, top_level_only=False):
        if name.split(".")[0] not in (*PACKAGES, "avatar") or name in PACKAGES or _inside(name, own):
            continue
        assert any(_inside(name, allowed) for allowed in ALLOWED[room]), f"{module} may not import {name}"


def test_generators_know_no_other_generator() -> None:
    folder = ROOT / "engine" / "generators"
    for path in folder.rglob("*.py"):
        for name in _imports(path, top_level_only=False):
            if _inside(name, "engine.generators") and name != "engine.generators":
                mine = ".".join(_module(path).split(".")[:3])
                assert _inside(name, mine), f"{_module(path)} reaches into {name}; use the registry's load(name)"


def test_importing_engine_is_light_and_fast() -> None:
    code = f"import sys, engine, engine.types, engine.config; print(sorted({HEAVY!r} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]", f"import engine loads {out.stdout}"


def test_public_names_are_the_declared_ones() -> None:
    import engine

    assert engine.__all__ == sorted(engine.__all__)
    for name in engine.__all__:
        assert getattr(engine, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        engine.nonsense  # noqa: B018


def test_the_registries_name_modules_that_load() -> None:
    from engine import backends
    from engine.types import AvatarError

    for name in backends.NAMES:
        assert callable(backends.backend(name).load)
    with pytest.raises(AvatarError, match="choose one of"):
        generators.load("nonsense")
    with pytest.raises(AvatarError, match="choose one of"):
        backends.backend("nonsense")


@pytest.mark.parametrize("name", sorted(generators.NAMES))
def test_every_generator_of_the_registry_is_one(name: str) -> None:
    from engine.types import Generator

    require_for(name)
    assert isinstance(generators.load(name), Generator)


@pytest.mark.parametrize("path", _files(), ids=_module)
def test_no_file_grows_into_a_house_of_its_own(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 420, "split it: about 300 lines a file"
