"""An export is whole or not there, and nothing is loaded that is not what its manifest says."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.backends import artifact
from engine.backends.artifact import MANIFEST, SCHEMA, Artifact, Manifest, canonical, digest, read, verified
from engine.types import AvatarError, GraphSpec
from exporters.graphs import manifest as publisher
from exporters.graphs.manifest import PARTIAL, facts, file_hashes, provenance, publishing

SPEC = GraphSpec("toy", {"x": ((1, 2), "float32"), "state": ((3,), "float32")}, ("y", "next"), lambda: None)


def known(**other: Any) -> dict[str, Any]:
    """Facts of the toy, some of them others."""
    given: dict[str, Any] = {
        "weights": {"unet": "a" * 64},
        "onnx": "b" * 64,
        "config": {"steps": 2},
        "precision": {"kind": "fp32"},
        "opset": 20,
        "adapters": [{"sha256": "c" * 64, "scale": 0.5}],
        "target": {
            "flavour": "tensorrt",
            "library": "11.4.0.106",
            "builder": {"level": 3, "workspace": 1},
            "profiles": {},
            "plugins": [],
            "gpu": {"name": "NVIDIA H200", "sm": "9.0", "processors": 132, "cuda": 13},
        },
    }
    return facts(SPEC, **{**given, **other})


def toy(files: dict[str, str], **other: Any) -> Artifact:
    return Artifact("toy", files, dict(SPEC.inputs), SPEC.outputs, "fp32", known(**other), {"onnx": {"rel_l2": 1e-6}})


def write(out: Path, contents: dict[str, bytes], **other: Any) -> Manifest:
    """Publish one graph a file."""
    with publishing(out) as publication:
        artifacts = {}
        for name, content in contents.items():
            path = publication.folder / name
            path.write_bytes(content)
            artifacts[path.stem] = toy(file_hashes([path]), **other)
        return publication.commit(Manifest("tensorrt", "fp32", "", artifacts, {"preset": "toy"}, provenance()))


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# -- publishing -----------------------------------------------------------------------------------------------------------


def test_what_was_published_is_read_and_verified(tmp_path: Path) -> None:
    made = write(tmp_path / "out", {"step.plan": b"engine", "remember.plan": b"other"})
    found = read(tmp_path / "out")
    assert found == made
    path = verified(tmp_path / "out", found, found.artifact("step"))
    assert path.read_bytes() == b"engine"
    assert found.artifact("toy").graph == "toy"
    assert names(tmp_path / "out") == {MANIFEST, made.folder, f"{made.folder}/step.plan", f"{made.folder}/remember.plan"}
    assert {"time", "versions", "machine"} <= set(found.made)
    with pytest.raises(AvatarError, match="has no graph 'lips', only remember, step; export it again"):
        found.artifact("lips")


def test_a_new_export_replaces_the_old_one(tmp_path: Path) -> None:
    old = write(tmp_path, {"step.plan": b"old"})
    new = write(tmp_path, {"step.plan": b"new"}, onnx="d" * 64)
    assert old.folder != new.folder
    assert names(tmp_path) == {MANIFEST, new.folder, f"{new.folder}/step.plan"}
    again = write(tmp_path, {"step.plan": b"newer"}, onnx="d" * 64)  # the same key: built anew all the same
    assert verified(tmp_path, read(tmp_path), again.artifact("step")).read_bytes() == b"newer"


def test_an_export_that_fails_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "out", {"step.plan": b"old"})
    before = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in names(tmp_path / "out")}
    with pytest.raises(ZeroDivisionError), publishing(tmp_path / "out") as publication:
        (publication.folder / "step.plan").write_bytes(b"half")
        1 / 0  # noqa: B018
    assert names(tmp_path / "out") == set(before)
    assert verified(tmp_path / "out", read(tmp_path / "out"), read(tmp_path / "out").artifact("step")).read_bytes() == b"old"
    with pytest.raises(ZeroDivisionError), publishing(tmp_path / "fresh"):
        1 / 0  # noqa: B018
    assert not (tmp_path / "fresh").exists()


def test_what_a_kill_left_goes_with_the_next_export(tmp_path: Path) -> None:
    (tmp_path / PARTIAL).mkdir()
    (tmp_path / PARTIAL / "step.plan").write_bytes(b"half")
    (tmp_path / "0123456789ab").mkdir()  # renamed, but its manifest was not written any more
    made = write(tmp_path, {"step.plan": b"whole"})
    assert names(tmp_path) == {MANIFEST, made.folder, f"{made.folder}/step.plan"}


HALF_WAY = """
import sys, time
from pathlib import Path
from exporters.graphs.manifest import publishing

with publishing(Path(sys.argv[1])) as publication:
    (publication.folder / "step.plan").write_bytes(b"half")
    print("half way", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("before", [False, True], ids=["nothing there", "an export there"])
def test_killed_half_way_it_leaves_what_was_there(tmp_path: Path, before: bool) -> None:
    """kill -9: no finally runs; the lock goes with the process."""
    out = tmp_path / "out"
    if before:
        write(out, {"step.plan": b"old"})
    child = subprocess.Popen([sys.executable, "-c", HALF_WAY, str(out)], stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent)
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == b"half way\n"
        with pytest.raises(AvatarError, match="Another export is writing"):
            write(out, {"step.plan": b"other"})
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    assert (out / PARTIAL / "step.plan").read_bytes() == b"half"
    if before:
        assert verified(out, read(out), read(out).artifact("step")).read_bytes() == b"old"
    else:
        with pytest.raises(AvatarError, match="holds no exported graphs"):
            read(out)
    made = write(out, {"step.plan": b"new"}, onnx="d" * 64)
    assert names(out) == {MANIFEST, made.folder, f"{made.folder}/step.plan"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_and_leaves_the_old_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    write(tmp_path, {"step.plan": b"old"})

    def full(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AvatarError, match=r"The disk of .* is full, so nothing was exported"):
        write(tmp_path, {"step.plan": b"new"}, onnx="d" * 64)
    monkeypatch.undo()
    assert verified(tmp_path, read(tmp_path), read(tmp_path).artifact("step")).read_bytes() == b"old"


def test_a_file_that_may_not_grow_is_said(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(AvatarError, match=r"cannot be written \(File too large\)"):
            write(tmp_path / "out", {"step.plan": bytes(5000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "out").exists()


def test_two_exports_do_not_write_one_folder(tmp_path: Path) -> None:
    with publishing(tmp_path), pytest.raises(AvatarError, match="Another export is writing"), publishing(tmp_path):
        pass
    write(tmp_path, {"step.plan": b"after"})


@pytest.mark.parametrize("content", ["{}", '{"kind": "dataset", "seal": "x"}', "no json"])
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST).write_text(content)  # a data set has one too
    (tmp_path / "clip.mp4").write_bytes(b"frames")
    with pytest.raises(AvatarError, match=r"holds something else than exported graphs \('clip.mp4'\)"), publishing(tmp_path):
        pass
    assert names(tmp_path) == {MANIFEST, "clip.mp4"}
    assert (tmp_path / MANIFEST).read_text() == content
    with pytest.raises(AvatarError, match=r"cannot be written to .*; choose another folder"), publishing(tmp_path / "clip.mp4"):
        pass


def test_an_artifact_with_the_same_key_is_kept_if_it_is_whole(tmp_path: Path) -> None:
    old = write(tmp_path, {"step.plan": b"slow to build"})
    key = old.artifact("step").key
    with publishing(tmp_path) as publication:
        assert publication.reuse("0" * 64) is None
        kept = publication.reuse(key)
        assert kept == old.artifact("step")
        assert (publication.folder / "step.plan").read_bytes() == b"slow to build"
        assert kept is not None
        made = publication.commit(replace(old, artifacts={"step": kept}))
    assert verified(tmp_path, made, made.artifact("step")).read_bytes() == b"slow to build"
    (tmp_path / made.folder / "step.plan").write_bytes(b"edited")
    with publishing(tmp_path) as publication:
        assert publication.reuse(key) is None


# -- reading --------------------------------------------------------------------------------------------------------------


def edited(change: Callable[[dict[str, Any]], Any], *, sealed: bool = False) -> Callable[[Path], Any]:
    """A manifest with something changed; `sealed`: by someone who seals it again."""

    def spoil(folder: Path) -> None:
        told = json.loads((folder / MANIFEST).read_text())
        change(told)
        if sealed:
            told.pop("seal")
            told["seal"] = digest(told)
        (folder / MANIFEST).write_text(json.dumps(told))

    return spoil


def _a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


SPOILED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), "holds no exported graphs: it has no manifest.json"),
    "truncated": (lambda folder: (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes()[:-40]), "is damaged; export it again"),
    "empty": (lambda folder: (folder / MANIFEST).write_text(""), "is damaged"),
    "not an object": (lambda folder: (folder / MANIFEST).write_text("[1]"), "is damaged"),
    "binary": (lambda folder: (folder / MANIFEST).write_bytes(b"\xff\xfe\x00"), "is damaged"),
    "a folder": (lambda folder: _a_folder(folder / MANIFEST), "cannot be read"),
    "another version": (edited(lambda told: told.update(schema=SCHEMA + 1), sealed=True), f"schema {SCHEMA + 1}, this one reads {SCHEMA}"),
    "precision edited": (edited(lambda told: told.update(precision="fp16")), "was changed after it was written"),
    "error edited": (edited(lambda told: told["artifacts"]["step"]["measured"].clear()), "was changed after it was written"),
    "no seal": (edited(lambda told: told.pop("seal")), "was changed after it was written"),
    "a field gone": (edited(lambda told: told["artifacts"]["step"].pop("facts"), sealed=True), "lacks what a manifest needs"),
    "artifacts a list": (edited(lambda told: told.update(artifacts=[]), sealed=True), "lacks what a manifest needs"),
}


@pytest.mark.parametrize("how", sorted(SPOILED))
def test_a_manifest_that_is_not_as_it_was_written_is_refused(tmp_path: Path, how: str) -> None:
    write(tmp_path, {"step.plan": b"engine"})
    spoil, sentence = SPOILED[how]
    spoil(tmp_path)
    with pytest.raises(AvatarError, match=sentence) as told:
        read(tmp_path)
    assert "\n" not in str(told.value)


def _swap(folder: Path) -> None:
    a, b = sorted(folder.glob("*.plan"))
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda home: (home / "step.plan").unlink(), r"step.plan is missing; export it again"),
    "edited": (lambda home: (home / "step.plan").write_bytes(b"engine!"), "is not the file that was exported"),
    "truncated": (lambda home: (home / "step.plan").write_bytes(b"engi"), "is not the file that was exported"),
    "swapped": (_swap, "is not the file that was exported"),
    "a folder": (lambda home: _a_folder(home / "step.plan"), "cannot be read"),
}


@pytest.mark.parametrize("how", sorted(FILES))
def test_a_file_that_is_not_the_exported_one_is_refused(tmp_path: Path, how: str) -> None:
    made = write(tmp_path, {"step.plan": b"engine", "remember.plan": b"other"})
    spoil, sentence = FILES[how]
    spoil(tmp_path / made.folder)
    with pytest.raises(AvatarError, match=sentence):
        verified(tmp_path, read(tmp_path), read(tmp_path).artifact("step"))


@pytest.mark.parametrize(("folder", "file"), [("", "../secret"), ("", "/etc/passwd"), ("..", "secret"), ("a/b", "x"), ("", "")])
def test_a_manifest_names_no_file_elsewhere(tmp_path: Path, folder: str, file: str) -> None:
    (tmp_path / "secret").write_bytes(b"mine")
    made = write(tmp_path / "out", {"step.plan": b"engine"})
    evil = replace(made, folder=folder or made.folder, artifacts={"step": toy({file: digest("")})})
    with pytest.raises(AvatarError, match="names a file outside of its folder"):
        verified(tmp_path / "out", evil, evil.artifact("step"))


# -- keys -----------------------------------------------------------------------------------------------------------------

GPU = {"name": "NVIDIA H200", "sm": "9.0", "processors": 132, "cuda": 13}
OTHERS: dict[str, dict[str, Any]] = {
    "weights": {"weights": {"unet": "d" * 64}},
    "a LoRA": {"adapters": [{"sha256": "e" * 64, "scale": 0.5}]},
    "its scale": {"adapters": [{"sha256": "c" * 64, "scale": 0.6}]},
    "the graph": {"onnx": "d" * 64},
    "steps": {"config": {"steps": 4}},
    "precision": {"precision": {"kind": "fp16"}},
    "calibration": {"precision": {"kind": "fp32", "calibration": "1"}},
    "opset": {"opset": 23},
    **{
        f"target {name}": {"target": {**known()["target"], name: value}}
        for name, value in {
            "flavour": "tensorrt_rtx",
            "library": "11.3.0.1",
            "builder": {"level": 5, "workspace": 1},
            "profiles": {"x": [[1, 2], [2, 2], [4, 2]]},
            "plugins": ["f" * 64],
        }.items()
    },
    **{
        f"gpu {name}": {"target": {**known()["target"], "gpu": {**GPU, name: value}}}
        for name, value in {"name": "NVIDIA H100", "sm": "8.9", "processors": 114, "cuda": 12}.items()
    },
}


@pytest.mark.parametrize("what", sorted(OTHERS))
def test_whatever_an_artifact_depends_on_changes_its_key(what: str) -> None:
    assert toy({}, **OTHERS[what]).key != toy({}).key


def test_a_key_is_of_facts_and_not_of_bytes_or_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    assert toy({"a": "1"}).key == toy({"b": "2"}).key  # builds differ in their bytes
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    before = toy({}).key
    monkeypatch.setattr(publisher, "versions", lambda packages: {"torch": "9.9"})
    assert toy({}).key != before
    with pytest.raises(ValueError, match="not JSON compliant|Out of range"):
        canonical(float("nan"))


def test_an_artifact_of_another_graph_is_not_run() -> None:
    made = toy({})
    made.fits(SPEC)
    for other, sentence in (
        (replace(SPEC, name="lips"), "hold the graph 'toy', not 'lips'"),
        (replace(SPEC, outputs=("next", "y")), "hold the graph 'toy'"),
        (replace(SPEC, inputs={**SPEC.inputs, "x": ((2, 2), "float32")}), r"has input 'x' float32\[1, 2\] where float32\[2, 2\] is asked for"),
        (replace(SPEC, inputs={**SPEC.inputs, "x": ((1, 2), "float16")}), "where float16"),
        (replace(SPEC, inputs={"x": SPEC.inputs["x"]}), "has input 'state' float32"),
        (replace(SPEC, inputs=dict(reversed(list(SPEC.inputs.items())))), "in another order"),
    ):
        with pytest.raises(AvatarError, match=sentence):
            made.fits(other)


def test_weights_that_an_export_was_not_made_of_are_noticed() -> None:
    made = toy({}, weights={"weights.json": "a" * 64})
    made.of("a" * 64)
    with pytest.raises(AvatarError, match="was exported from other weights"):
        made.of("b" * 64)
    assert artifact.SCHEMA == SCHEMA
