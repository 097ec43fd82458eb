"""Which engine serves these weights here: the newest that fits, and for every other a sentence that says why not."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.backends import artifact, engines, ov, trt, trt_library
from engine.backends import backend as backend_named
from engine.backends.artifact import EXPORTER, MANIFEST, Artifact, Manifest
from engine.backends.engines import find
from engine.backends.trt_library import Gpu
from engine.types import AvatarError, GraphSpec
from exporters.graphs import to_tensorrt
from exporters.graphs.manifest import facts, file_hashes, publishing
from tests.trt_fake import Library

SPEC = GraphSpec("toy 2-step", {"x": ((1, 2), "float32")}, ("y",), lambda: None)
H200 = Gpu("NVIDIA H200", "9.0", 132, 13)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of weights, as far as an engine is concerned, on a machine that has every backend."""
    for name in ("onnxruntime", "openvino"):
        monkeypatch.setattr(backend_named(name), "available", lambda: None)
    monkeypatch.setattr(ov, "check_precision", lambda precision: None)
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / engines.WEIGHTS).write_text('{"preset": "toy"}\n')
    return folder


def engine(weights: Path, name: str, *, backend: str = "onnxruntime", time: str = "2026-01-01T00:00:00+00:00", **other: Any) -> Path:
    """An export of the toy beside weights, as the exporter writes it; `other` of its source, facts (target) or precision."""
    precision = other.pop("precision", "fp32")
    source = {"weights": {engines.WEIGHTS: engines.origin_of(weights)}, "decoder": "own", "steps": 2} | other.pop("source", {})
    known = facts(
        SPEC, weights=source["weights"], onnx="1", config={}, precision={"kind": precision}, opset=20, target=other.pop("target", None)
    ) | other.pop("facts", {})
    assert not other
    folder = weights / engines.HOME / name
    with publishing(folder) as publication:
        path = publication.folder / "step.bin"
        path.write_bytes(name.encode())
        made = Artifact(SPEC.name, file_hashes([path]), dict(SPEC.inputs), SPEC.outputs, precision, known)
        publication.commit(Manifest(backend, precision, "", {engines.LIVE: made}, source, {"time": time}))
    return folder


def test_nothing_exported_names_the_command(weights: Path) -> None:
    found = find(weights, "openvino", steps=2)
    assert found.engine is None
    assert found.refused == ()
    assert found.told.endswith(f"Make one: avatar export --weights {weights} --backend openvino --steps 2")
    assert "None was exported into" in found.told


def test_the_newest_that_fits_is_taken(weights: Path) -> None:
    engine(weights, "onnxruntime-b", time="2026-01-02T00:00:00+00:00")
    newest = engine(weights, "onnxruntime-a", time="2026-01-03T00:00:00+00:00", precision="int8")
    engine(weights, "openvino-c", backend="openvino", time="2026-01-04T00:00:00+00:00")
    found = find(weights, "onnxruntime", steps=2, spec=SPEC)
    assert found.engine is not None
    assert (found.engine.folder, found.engine.precision) == (newest, "int8")
    assert "onnxruntime-a (int8, 2026-01-03" in found.told
    other = find(weights, "onnxruntime", steps=2, precision="fp32")
    assert other.engine is not None
    assert other.engine.folder.name == "onnxruntime-b"
    assert other.refused == ("onnxruntime-a: It has precision int8, and fp32 is asked for.",)


def _edited(folder: Path) -> None:
    told = json.loads((folder / MANIFEST).read_text())
    told["precision"] = "int8"
    (folder / MANIFEST).write_text(json.dumps(told))


def _cut(folder: Path) -> None:
    (folder / MANIFEST).write_text("{")


def _file(content: bytes | None) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = next(folder.rglob("step.bin"))
        path.unlink() if content is None else path.write_bytes(content)

    return spoil


SPOILED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a manifest edited by hand": (_edited, "was changed after it was written"),
    "a graph edited by hand": (_file(b"other bytes"), "is not the file that was exported"),
    "a graph missing": (_file(None), "step.bin is missing"),
    "a manifest cut short": (_cut, "is damaged"),
}


@pytest.mark.parametrize("how", sorted(SPOILED))
def test_what_was_tampered_with_is_refused_and_an_older_one_taken(weights: Path, how: str) -> None:
    older = engine(weights, "onnxruntime-old")
    newer = engine(weights, "onnxruntime-new", time="2026-01-09T00:00:00+00:00")
    spoil, sentence = SPOILED[how]
    spoil(newer)
    found = find(weights, "onnxruntime", steps=2)
    assert found.engine is not None
    assert found.engine.folder == older
    assert len(found.refused) == 1
    assert found.refused[0].startswith("onnxruntime-new: ")
    assert sentence in found.refused[0]
    spoil(older)
    assert find(weights, "onnxruntime", steps=2).told.count(sentence) == 2


def test_an_engine_is_read_through_once_however_often_it_is_looked_for(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And again when anything of a file has changed, even where its contents' time was put back."""
    folder = engine(weights, "onnxruntime-x")
    read: list[str] = []
    hashed = artifact.sha256

    def counted(path: Path) -> str:
        read.append(path.name)
        return hashed(path)

    monkeypatch.setattr(artifact, "sha256", counted)

    def load() -> None:
        manifest = artifact.read(folder)
        artifact.verified(folder, manifest, manifest.artifact(engines.LIVE))

    load()
    load()
    assert read == ["step.bin"] * 2, "touched just now: its clock may not tell the next change"
    monkeypatch.setattr(artifact, "SETTLED", 0.0)
    read.clear()
    for _ in range(2):
        assert find(weights, "onnxruntime", steps=2).engine is not None
        load()
    assert read == ["step.bin"]
    path = next(folder.rglob("step.bin"))
    before, content = path.stat(), path.read_bytes()
    while path.stat().st_ctime_ns == before.st_ctime_ns:
        path.write_bytes(content[::-1])
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    with pytest.raises(AvatarError, match="is not the file that was exported"):
        load()
    assert "is not the file that was exported" in find(weights, "onnxruntime", steps=2).told


FOREIGN: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "other weights": ({"source": {"weights": {engines.WEIGHTS: "ab" * 32}}}, {}, r"exported from other weights \(abababababab\) than those in .* \("),
    "other steps": ({"source": {"steps": 1}}, {}, "It has steps 1, and 2 is asked for"),
    "another decoder": ({"source": {"decoder": "tiny"}}, {}, "It has decoder tiny, and own is asked for"),
    "another exporter": ({"facts": {"exporter": EXPORTER + 1}}, {}, "another version of the exporter"),
    "another size": ({}, {"spec": replace(SPEC, inputs={"x": ((1, 3), "float32")})}, r"float32\[1, 2\] where float32\[1, 3\] is asked for"),
}


@pytest.mark.parametrize("what", sorted(FOREIGN))
def test_an_engine_of_something_else_is_refused_in_words(weights: Path, what: str) -> None:
    made, asked, sentence = FOREIGN[what]
    engine(weights, "onnxruntime-x", **made)
    found = find(weights, "onnxruntime", steps=2, **asked)
    assert found.engine is None
    with pytest.raises(AvatarError, match=sentence):
        raise AvatarError(found.told)
    assert "\n" not in found.told


def test_weights_that_were_trained_further_leave_their_engines_behind(weights: Path) -> None:
    engine(weights, "onnxruntime-x")
    assert find(weights, "onnxruntime", steps=2).engine is not None
    before = engines.origin_of(weights)
    (weights / engines.WEIGHTS).write_text('{"preset": "toy", "updates": 2}\n')
    found = find(weights, "onnxruntime", steps=2)
    assert found.engine is None
    assert before[:12] in found.told
    assert find(weights, "onnxruntime", steps=2, origin=before).engine is not None


def test_what_this_machine_cannot_run_is_said(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine(weights, "openvino-x", backend="openvino", precision="bf16")

    def lacks(precision: str) -> None:
        raise AvatarError(f"This CPU has no {precision} arithmetic.")

    monkeypatch.setattr(ov, "check_precision", lacks)
    assert "This CPU has no bf16 arithmetic" in find(weights, "openvino", steps=2).told
    monkeypatch.setattr(backend_named("openvino"), "available", lambda: "OpenVINO is not installed.")
    assert "OpenVINO is not installed" in find(weights, "openvino", steps=2).told


def _target(flavour: str, gpu: Gpu | None, **builder: Any) -> dict[str, Any]:
    built = {**to_tensorrt.STANDARD.told(), **builder}
    return {"flavour": flavour, "library": "11.4.0.106", "builder": built, "profiles": {}, "plugins": [], "gpu": gpu.told() if gpu else {}}


def test_an_engine_of_another_gpu_or_version_is_refused(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, here = Library({}), [H200]
    monkeypatch.setattr(trt_library, "library", lambda flavour: library)
    monkeypatch.setattr(trt_library, "gpu", lambda *_: here[0])
    monkeypatch.setattr(trt, "available", lambda: None)
    mine = engine(weights, "tensorrt-mine", backend="tensorrt", target=_target("tensorrt", H200))
    found = find(weights, "tensorrt", steps=2)
    assert found.engine is not None
    assert found.engine.folder == mine
    here[0] = replace(H200, name="NVIDIA L4", sm="8.9", processors=58)
    told = find(weights, "tensorrt", steps=2).told
    assert "built for GPU NVIDIA H200, here it is NVIDIA L4; compute capability 9.0, here it is 8.9" in told
    assert "--backend tensorrt --steps 2" in told
    rtx = engine(weights, "tensorrt-rtx-x", backend="tensorrt_rtx", target=_target("tensorrt_rtx", None, targets=["8.9"]))
    found = find(weights, "tensorrt", steps=2)
    assert found.engine is not None
    assert found.engine.folder == rtx
    library.__version__ = "11.5.0.1"
    assert "built for TensorRT for RTX 11.4.0.106, here it is 11.5.0.1" in find(weights, "tensorrt", steps=2).told


def test_without_a_gpu_it_says_what_is_missing(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt_library, "library", lambda flavour: Library({}))
    monkeypatch.setattr(trt_library, "gpu", lambda *_: None)
    monkeypatch.setattr(trt, "available", lambda: "TensorRT engines cannot run here: there is no NVIDIA GPU.")
    engine(weights, "tensorrt-rtx-x", backend="tensorrt_rtx", target=_target("tensorrt_rtx", None))
    assert "there is no NVIDIA GPU" in find(weights, "tensorrt", steps=2).told


def test_what_is_no_engine_is_passed_over(weights: Path) -> None:
    (weights / engines.HOME / "onnxruntime-killed" / ".partial").mkdir(parents=True)  # an export that was killed
    (weights / engines.HOME / "note.txt").write_text("mine")
    assert find(weights, "onnxruntime", steps=2).refused == ()
    with pytest.raises(AvatarError, match="No engines are exported for 'pytorch'; choose one of: onnxruntime, openvino, tensorrt"):
        find(weights, "pytorch", steps=2)
    (weights / engines.WEIGHTS).unlink()
    with pytest.raises(AvatarError, match=r"holds no weights of this engine: it has no readable weights\.json"):
        find(weights, "onnxruntime", steps=2)


def test_the_hash_of_weights_is_the_generators(weights: Path) -> None:
    text = (weights / engines.WEIGHTS).read_text()
    assert engines.origin_of(weights) == hashlib.sha256(text.encode()).hexdigest()
    assert artifact.EXPORTER == EXPORTER
