"""The doctor: well on this machine, and useful on the broken ones it is for."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import numpy as np
import pytest

import avatar
from engine import backends, doctor
from engine.types import AvatarError
from tests.conftest import require, require_for


def _report(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """{part: line}"""
    lines = capsys.readouterr().out.splitlines()
    return {line[8:41].strip(): line for line in lines}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the parts that take seconds."""
    for part in ("_face", "_body", "_speech"):
        monkeypatch.setattr(doctor, part, lambda: "works")
    monkeypatch.setattr(doctor, "_generator", lambda _: lambda: "works")


def test_the_doctor_finds_nothing_wrong_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert avatar.main(["doctor"]) == 0
    report = capsys.readouterr().out
    assert "PROBLEM" not in report
    for part in ("generator puppet", "H.264 encoder", "backend fake", "driver face"):
        assert f"ok      {part}" in report


@pytest.mark.parametrize(
    "error", [KeyError("face"), ValueError("numpy.dtype size changed\nmay indicate"), AttributeError("x"), TypeError(), OSError(2, "gone")]
)
@pytest.mark.usefixtures("quick")
def test_whatever_breaks_is_a_line(error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise error

    monkeypatch.setattr(doctor, "_face", fail)
    assert avatar.main(["doctor"]) == 1
    line = _report(capsys)["driver face"]
    assert line.startswith("PROBLEM")
    assert type(error).__name__ in line
    assert "pip install" in line


@pytest.mark.usefixtures("quick")
def test_versions_are_held_against_the_pins(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    other = {"numpy": "2.1.0", "protobuf": "5.29.1", "mediapipe": "0.10.14", "aiohttp": "3.14.9", "onnxruntime": "1.2"}

    def version(package: str) -> str:
        if package in ("librosa", "torch"):
            raise importlib.metadata.PackageNotFoundError(package)
        return other.get(package) or real(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert avatar.main(["doctor"]) == 1
    report = _report(capsys)
    for package, pin in (("numpy", "==1.26.4"), ("protobuf", ">=4.25.3"), ("mediapipe", "==0.10.21"), ("onnxruntime", ">=1.20")):
        assert report[package].startswith("PROBLEM")
        assert other[package] in report[package]
        assert pin in report[package]
    assert report["aiohttp"].startswith("ok")
    assert report["librosa"].startswith("PROBLEM")
    assert "not installed" in report["librosa"]
    assert report["torch"].startswith("absent")
    assert "avatar-engine[torch]" in report["torch"]


@pytest.mark.parametrize(
    ("version", "pin", "within"),
    [
        ("1.26.4", "==1.26.4", True),
        ("1.26", "==1.26.0", True),
        ("2.13.0+cu128", "==2.13.0", True),
        ("1.26.5", "==1.26.4", False),
        ("3.14.5", ">=3.14,<4", True),
        ("3.9.1", ">=3.14,<4", False),
        ("4.0", "<4,>=3.14", False),
        ("10", ">=9", True),
        ("1", "", True),
    ],
)
def test_a_version_meets_a_pin(version: str, pin: str, within: bool) -> None:
    assert doctor.meets(version, pin) is within


@pytest.mark.parametrize("name", sorted(doctor.GRAPHS))
def test_a_backend_that_loads_but_reckons_wrong_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "onnxruntime":
        require("onnxruntime")
    require_for(name)
    assert doctor._backend(name).ok is True

    class Wrong:
        def available(self) -> None:
            return None

        def load(self, spec: Any) -> Any:
            return lambda inputs: {"y": np.zeros((1, 2), np.float32)}

    monkeypatch.setattr(backends, "backend", lambda _: Wrong())
    check = doctor._backend(name)
    assert check.ok is False
    assert "doubling" in check.detail


def test_a_backend_that_cannot_load_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> Any:
        raise SystemError("the library is of another ABI")

    monkeypatch.setattr(backends, "backend", fail)
    check = doctor._backend("fake")
    assert check.ok is False
    assert "SystemError: the library" in check.detail


@pytest.mark.usefixtures("quick")
def test_an_encoder_that_is_not_there_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import av

    def fail(*_: object) -> Any:
        raise av.codec.codec.UnknownCodecError("libx264")

    monkeypatch.setattr(av.CodecContext, "create", fail)
    check = next(check for check in doctor.examine() if check.part == "H.264 encoder")
    assert check.ok is False
    assert "UnknownCodecError" in check.detail


def test_a_sentence_for_people_stays_as_it_is() -> None:
    def fail() -> str:
        raise AvatarError("Do this.")

    assert doctor._attempt("part", fail, "advice").detail == "Do this."
