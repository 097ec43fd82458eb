"""What every test file may use."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil

import pytest

PROGRAMS = {"chromium": ("chromium", "chromium-browser", "google-chrome"), "espeak-ng": ("espeak-ng",)}
"""Part -> names it goes by."""
LIVE = (
    *("benchmark_runs", "impairments", "offers", "page", "page_manners", "peer", "record_page"),
    *("rtc", "rtc_calls", "server_media", "speaker"),
)
"""Test files that keep real time: they run one after another on an otherwise idle machine, the others side by side."""
LONGEST = (
    *("studio_photos", "import", "import_refused", "export_single", "identity_tokens", "import_faceid"),
    *("benchmark_training", "train", "train_hearing", "large"),
    *("export_rtx", "export", "diffusion_session", "import_body", "import_audio", "compiled", "crew", "portraits", "takes"),
)
"""Test files that take longest. They come first, so that at the end nobody waits for one that began late."""
NEEDED = {
    "diffusion": ("torch", "diffusers"),
    "lipsync": ("torch", "diffusers", "transformers"),
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "pytorch": ("torch",),
    "reenact": ("torch",),
    "video": ("torch", "diffusers", "transformers"),
}
"""Generator or backend -> modules that a bare machine may lack."""


def found(name: str) -> str | None:
    """Where a part that a bare machine may lack is (one of PROGRAMS, or any module's name), or None."""
    if name in PROGRAMS:
        return next((path for program in PROGRAMS[name] if (path := shutil.which(program))), None)
    return name if importlib.util.find_spec(name) else None


def require(name: str) -> str:
    """The part's place, or the test is skipped with its name; where REQUIRE (comma separated) lists it, a missing part is a failure."""
    if place := found(name):
        return place
    if name in os.environ.get("REQUIRE", "").split(","):
        pytest.fail(f"{name} is missing and REQUIRE lists it: install it.")
    pytest.skip(f"{name} is not installed")


def require_for(name: str) -> None:
    """As `require`, for all that a generator or a backend needs."""
    for part in NEEDED.get(name, ()):
        require(part)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is LIVE, and put what is LONGEST first."""
    for item in items:
        if _name(item) in LIVE:
            item.add_marker(pytest.mark.live)
    items.sort(key=lambda item: LONGEST.index(_name(item)) if _name(item) in LONGEST else len(LONGEST))


def pytest_collection_finish() -> None:
    """What the imports left stays to the end, so that no collection of garbage has to look at its million objects again."""
    gc.freeze()


def _name(item: pytest.Item) -> str:
    """Of its file."""
    return item.path.stem.removeprefix("test_")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests' networks are small: a second thread would wait for longer than it computes."""
    if found("torch"):
        import torch

        torch.set_num_threads(1)
