"""What serves a persona: its own generator and weights, and the backend that the rule finds."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from engine import serving
from engine.backends import engines
from engine.persona import WEIGHTS, demo_portrait, load_persona, make_persona
from engine.serving import choose, weights_of
from engine.types import AvatarError
from tests.test_persona import Stamp

pytestmark = pytest.mark.usefixtures("no_gpu")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_cuda", lambda: False)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder that looks like a compact preset's weights."""
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "weights.json").write_text('{"preset": "compact", "sha256": {"denoiser": "0"}, "origin": {}}')
    return folder


def installed(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], exported: Mapping[str, Path]) -> None:
    """Only these backends, and only these engines."""

    class Backend:
        def __init__(self, name: str) -> None:
            self.name = name

        def available(self) -> str | None:
            return None if self.name in names else f"{self.name} is not installed."

    def find(weights: Path, name: str, **asked: Any) -> engines.Search:
        found: Any = exported.get(name)
        assert asked["steps"] == 2
        return _Search(weights, name, 2, found, ())

    class _Search(engines.Search):
        @property
        def told(self) -> str:
            return f"{self.backend} in {self.engine}" if self.engine else super().told

    monkeypatch.setattr(serving, "backend", Backend)
    monkeypatch.setattr(engines, "find", find)


class Engine:
    """An exported one."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)


def test_a_persona_without_weights_is_the_puppet_s(tmp_path: Path) -> None:
    make_persona(Stamp(), demo_portrait(), name="plain", folder=tmp_path)
    assert choose(None, {}, persona="plain", folder=tmp_path) == serving.Choice("puppet", {}, ())
    assert choose(None, {}).generator == "puppet"


def test_a_persona_keeps_its_weights_and_brings_its_generator(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, (), {})
    make_persona(Stamp(), demo_portrait(), name="taught", folder=tmp_path / "home", weights=weights)
    shutil.rmtree(weights)  # the persona has its own copy
    choice = choose(None, {"steps": 2}, persona="taught", folder=tmp_path / "home")
    assert (choice.generator, choice.options["weights"]) == ("diffusion", tmp_path / "home" / "taught" / WEIGHTS)
    assert choose("puppet", {}, persona="taught", folder=tmp_path / "home").generator == "puppet", "what was asked for wins"


def test_without_pytorch_the_taught_puppet_is_shown_and_said(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_persona(Stamp(), demo_portrait(), name="taught", folder=tmp_path / "home", weights=weights)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    choice = choose(None, {}, persona="taught", folder=tmp_path / "home")
    assert (choice.generator, dict(choice.options)) == ("puppet", {})
    assert "make torch" in choice.told[0]
    assert choose("diffusion", {"backend": "pytorch"}, persona="taught", folder=tmp_path / "home").generator == "diffusion", "it was asked for"


def test_a_persona_of_the_taught_puppet_needs_no_network(tmp_path: Path, weights: Path) -> None:
    (weights / "weights.json").write_text('{"preset": null, "sha256": {}, "origin": {}}')
    make_persona(Stamp(), demo_portrait(), name="taught", folder=tmp_path / "home", weights=weights)
    assert choose(None, {}, persona="taught", folder=tmp_path / "home") == serving.Choice("puppet", {}, ())


@pytest.mark.parametrize(
    ("generator", "preset", "sentence"),
    [
        ("diffusion", "unianimate", "'unianimate' is a preset of the generator 'video', not of 'diffusion'; give --generator video."),
        ("video", "champ+faceid", "'champ+faceid' is a preset of the generator 'diffusion', not of 'video'; give --generator diffusion."),
        ("video", "tiny", "of the generators 'diffusion' and 'reenact', not of 'video'; give --generator diffusion or reenact."),
        (None, "liveportrait", "of the generator 'reenact', not of 'puppet'; give --generator reenact."),
    ],
)
def test_a_preset_of_another_generator_names_that_one(generator: str | None, preset: str, sentence: str) -> None:
    with pytest.raises(AvatarError, match=re.escape(sentence)):
        choose(generator, {"preset": preset})
    assert choose("video", {"preset": "tiny_vividpose"}).generator == "video"


@pytest.mark.parametrize("name", serving.OTHERS)
def test_a_persona_with_weights_of_another_generator_brings_that_one(name: str, tmp_path: Path, weights: Path) -> None:
    (weights / "weights.json").write_text(f'{{"generator": "{name}", "preset": "x", "sha256": {{"denoiser": "0"}}, "origin": {{}}}}')
    make_persona(Stamp(), demo_portrait(), name="moved", folder=tmp_path / "home", weights=weights)
    own = {"weights": tmp_path / "home" / "moved" / WEIGHTS}
    for asked in (None, name):
        assert choose(asked, {}, persona="moved", folder=tmp_path / "home") == serving.Choice(name, own, ())
    assert choose("puppet", {}, persona="moved", folder=tmp_path / "home").options == {}


def test_weights_that_are_lost_or_swapped_are_refused(tmp_path: Path, weights: Path) -> None:
    make_persona(Stamp(), demo_portrait(), name="taught", folder=tmp_path / "home", weights=weights)
    manifest = tmp_path / "home" / "taught" / WEIGHTS / "weights.json"
    manifest.write_text(manifest.read_text() + " ")
    reads: tuple[Callable[..., Any], ...] = (weights_of, partial(load_persona, Stamp()))
    for read in reads:
        with pytest.raises(AvatarError, match="not those that the persona 'taught' was made with"):
            read("taught", folder=tmp_path / "home")
    manifest.unlink()
    for read in reads:
        with pytest.raises(AvatarError, match="has lost its weights"):
            read("taught", folder=tmp_path / "home")


@pytest.mark.parametrize(
    ("names", "exported", "expected"),
    [
        (("openvino", "onnxruntime"), ("openvino", "onnxruntime"), {"backend": "openvino", "graphs": Path("openvino")}),
        (("openvino", "onnxruntime"), ("onnxruntime",), {"backend": "openvino"}),
        (("onnxruntime",), ("onnxruntime",), {"backend": "onnxruntime", "graphs": Path("onnxruntime")}),
        (("onnxruntime",), (), {}),
    ],
)
def test_on_a_cpu(weights: Path, names: Any, exported: Any, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, names, {name: Engine(name) for name in exported})  # type: ignore[misc]
    choice = choose("diffusion", {"weights": weights})
    assert dict(choice.options) == {"weights": weights, **expected}
    assert "Backend: " in choice.told[-1]
    if "openvino" in names and "openvino" not in exported:
        assert f"avatar export --weights {weights} --backend openvino --steps 2" in choice.told[0]


def test_on_a_gpu(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, ("openvino",), {})
    monkeypatch.setattr(serving, "_cuda", lambda: True)
    missing = choose("diffusion", {"weights": weights})
    assert "backend" not in missing.options
    assert "avatar export" in missing.told[0]
    assert choose("diffusion", {"weights": weights, "device": "cpu"}).options["backend"] == "openvino"
    installed(monkeypatch, (), {"tensorrt": Engine("plan")})  # type: ignore[dict-item]
    assert choose("diffusion", {"weights": weights}).options["graphs"] == Path("plan")


@pytest.mark.parametrize("asked", [{"backend": "pytorch"}, {"mode": "eager"}, {"stream_batch": True}])
def test_who_has_chosen_is_left_alone(weights: Path, asked: dict[str, Any]) -> None:
    choice = choose("diffusion", {"weights": weights, **asked})
    assert dict(choice.options) == {"weights": weights, **asked}
    assert choice.told == ()


def test_what_holds_no_network_is_said(weights: Path) -> None:
    (weights / "weights.json").write_text('{"preset": null, "sha256": {}, "origin": {}}')
    with pytest.raises(AvatarError, match="no network; use --generator puppet"):
        choose("diffusion", {"weights": weights})


def test_a_gpu_that_is_not_there_is_left_to_pytorch_to_say(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, ("openvino",), {})
    assert "backend" not in choose("diffusion", {"weights": weights, "device": "cuda"}).options


def test_a_folder_that_holds_no_weights(tmp_path: Path) -> None:
    with pytest.raises(AvatarError, match="holds no weights"):
        choose("diffusion", {"weights": tmp_path})
