"""Importing published weights: what does not fit is said, and nothing stays half written."""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import avatar
from engine.types import AvatarError
from tests.checkpoints import SMALL, WRITTEN, _installed, _once, _small, changed, given_imported, given_out, given_published, motion, run, tensors  # noqa: F401
from tests.conftest import found

if found("torch") and found("diffusers"):
    import torch
    from safetensors.torch import save_file

    from engine.generators.diffusion import networks
    from exporters.published import import_checkpoint


pytestmark = pytest.mark.torch


# -- what does not --------------------------------------------------------------------------------------------------------


def drop_two(held: dict[str, Any]) -> None:
    del held["conv_in.weight"], held["conv_in.bias"]


def add_one(held: dict[str, Any]) -> None:
    held["conv_in.extra"] = torch.zeros(1)


def reshape(held: dict[str, Any]) -> None:
    held["conv_in.weight"] = held["conv_in.weight"][:, :1].clone()


def whole_numbers(held: dict[str, Any]) -> None:
    held["conv_in.weight"] = held["conv_in.weight"].long()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (drop_two, "2 missing .first 'conv_in.weight'"),
        (add_one, "1 unexpected .first 'conv_in.extra'"),
        (reshape, r"'conv_in.weight', \[\d+, 1, 3, 3\] float32 instead of \[\d+, \d, 3, 3\]"),
        (whole_numbers, "int64"),
    ],
)
@pytest.mark.parametrize("file", ["denoising_unet.pth", "reference_unet.pth", "pose_guider.pth"])
def test_what_does_not_fit_is_told(file: str, change: Callable[[dict[str, Any]], None], complaint: str, published: Path, out: Path) -> None:
    changed(published / file, change)
    told: list[str] = []
    with pytest.raises(AvatarError, match=f"{file} is not Moore-AnimateAnyone's .*{complaint}.*; give the published file"):
        run(published, out, tell=told.append)
    assert "conv_in" in told[-1]
    assert not out.exists()


def test_a_motion_module_of_another_system_is_refused(published: Path, out: Path) -> None:
    path = published / "motion_module.pth"
    changed(path, lambda held: {key: value for key, value in held.items() if "mid_block" not in key})
    with pytest.raises(AvatarError, match="26 missing"):
        run(published, out)
    path.unlink()
    torch.save(tensors(motion(SMALL.unet.channels, 128)), path)
    with pytest.raises(AvatarError, match=r"42 of another kind .*pos_encoder.pe', which is not the sinusoids of 32 positions"):
        run(published, out)


def test_two_names_for_one_tensor_are_one_too_many(published: Path, out: Path) -> None:
    def twice(held: dict[str, Any]) -> None:
        held["encoder.mid_block.attentions.0.to_q.bias"] = held["encoder.mid_block.attentions.0.query.bias"].clone()

    changed(published / "sd-vae-ft-mse" / "diffusion_pytorch_model.bin", twice)
    with pytest.raises(AvatarError, match="1 unexpected .first 'encoder.mid_block.attentions.0.to_q.bias'"):
        run(published, out)


class Object:
    """Whose loading would leave a mark."""

    mark = "/nonexistent"

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.mark,))


@pytest.mark.parametrize("kind", ["new", "old", "pickle", "safetensors"])
def test_nothing_that_a_file_holds_is_run(kind: str, published: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Object, "mark", str(published / "ran"))
    path = published / "pose_guider.pth"
    path.unlink()
    if kind in ("new", "old"):
        torch.save({"conv_in.weight": Object()}, path, _use_new_zipfile_serialization=kind == "new")
    else:
        path.with_suffix(".safetensors" if kind == "safetensors" else ".pth").write_bytes(pickle.dumps({"conv_in.weight": Object()}))
    with pytest.raises(AvatarError, match="damaged" if kind == "safetensors" else "could run code"):
        run(published, out)
    assert not (published / "ran").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", "old"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file_is_told(suffix: str, share: float, published: Path, out: Path) -> None:
    path = published / "pose_guider.pth"
    held = torch.load(path, weights_only=True)
    path.unlink()
    path = path.with_suffix(".pth" if suffix == "old" else suffix)
    if suffix == ".safetensors":
        save_file(held, path)
    else:
        torch.save(held, path, _use_new_zipfile_serialization=suffix == ".pth")
    path.write_bytes(path.read_bytes()[: round(share * path.stat().st_size)])
    with pytest.raises(AvatarError, match=r"pose_guider\S* \([\d,]+ bytes\) is damaged, not complete or no checkpoint; download it again"):
        run(published, out)


@pytest.mark.parametrize("held", [[1, 2], {}, {"epoch": 3}, {"optimizer": {"a": 1}}], ids=["list", "empty", "number", "optimizer"])
def test_a_file_without_tensors_is_told(held: Any, published: Path, out: Path) -> None:
    (published / "pose_guider.pth").unlink()
    torch.save(held, published / "pose_guider.pth")
    with pytest.raises(AvatarError, match="does not hold tensors by name"):
        run(published, out)


def test_a_page_instead_of_a_file_is_told(published: Path, out: Path) -> None:
    (published / "pose_guider.pth").unlink()
    (published / "pose_guider.pth").write_text("<!DOCTYPE html><title>Not found</title>")
    with pytest.raises(AvatarError, match="is a web page and no weights; download the file itself"):
        run(published, out)


def test_what_stands_in_for_a_file_is_told(published: Path, out: Path) -> None:
    """What git and browsers leave, and what people rename."""
    file = published / "pose_guider.pth"
    real = file.read_bytes()
    file.unlink()
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4351337\n")
    with pytest.raises(AvatarError, match=r"only says where the weights lie \(Git LFS\)"):
        run(published, out)
    file.unlink()
    (published / "pose_guider (1).pth").write_bytes(real)
    with pytest.raises(AvatarError, match=r"though there is a 'pose_guider \(1\)\.pth', which may be it under another name"):
        run(published, out)
    (published / "pose_guider-00001-of-00002.safetensors").touch()
    with pytest.raises(AvatarError, match=r"has pose_guider in pieces \(pose_guider-00001-of-00002\.safetensors, \.\.\.\)"):
        run(published, out)


def test_a_file_where_its_folder_is_wanted_is_told(published: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = next((published / "sd-vae-ft-mse").glob("diffusion_pytorch_model.*"))
    assert avatar.main(["import", "animate-anyone", str(published), "-o", str(out), "--vae", str(file)]) == 2
    assert f"{file} is a file; give the folder that it lies in with --vae." in capsys.readouterr().err


def test_a_wrong_folder_is_told(published: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert avatar.main(["import", "animate-anyone", str(published / "nowhere"), "-o", str(out)]) == 2
    assert avatar.main(["import", "animate-anyone", str(published / "image_encoder"), "-o", str(out)]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert "is no folder; give the one that Moore-AnimateAnyone's files were downloaded to" in told[0]
    assert "has no file pose_guider (.safetensors, .pth, .pt, .ckpt or .bin); download it" in told[1]


@pytest.mark.parametrize(("folder", "option"), [("sd-vae-ft-mse", "--vae"), ("image_encoder", "--image-encoder")])
def test_an_encoder_that_is_not_there_is_told(folder: str, option: str, published: Path, out: Path) -> None:
    (published / folder / "config.json").unlink()
    with pytest.raises(AvatarError, match=f"{folder} has no readable config.json"):
        run(published, out)
    shutil.rmtree(published / folder)
    with pytest.raises(AvatarError, match=option):
        run(published, out)


def test_what_shapes_do_not_tell_is_read_from_the_config(published: Path, out: Path) -> None:
    for folder, name, value in (("sd-vae-ft-mse", "norm_num_groups", 16), ("image_encoder", "hidden_act", "gelu")):
        path = published / folder / "config.json"
        before = path.read_text()
        path.unlink()
        path.write_text(json.dumps(json.loads(before) | {name: value}))
        with pytest.raises(AvatarError, match=f"{folder}/config.json has {name} {value}, this system"):
            run(published, out)
        path.write_text(before)


# -- nothing half written -------------------------------------------------------------------------------------------------


def test_a_folder_with_something_in_it_is_left_alone(published: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    for place in (tmp_path / "mine", tmp_path / "mine" / "letter"):
        with pytest.raises(AvatarError, match="exists already"):
            run(published, place)
    assert (tmp_path / "mine" / "letter").read_text() == "dear"


def test_a_full_disk_is_told(published: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("I/O error: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(import_checkpoint, "save_file", full)
        with pytest.raises(AvatarError, match="No space left"):
            run(published, out)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: os.terminal_size((0, 0)) and type("Usage", (), {"free": 1000})())
    with pytest.raises(AvatarError, match="has room for 0.0"):
        run(published, out)


def test_a_kill_leaves_nothing(published: Path, out: Path) -> None:
    def killed(line: str) -> None:
        if line.endswith("written"):
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit):
        run(published, out, tell=killed)
    assert signal.getsignal(signal.SIGTERM) is before
    assert list(out.parent.iterdir()) == []


def test_what_a_harder_kill_left_goes_with_the_next_attempt(published: Path, out: Path) -> None:
    left = out.with_name(".weights.partial")
    left.mkdir(parents=True)
    (left / "half.safetensors").write_text("half")
    held = os.open(left, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(AvatarError, match="Something else is writing"):
        run(published, out)
    os.close(held)
    run(published, out)
    networks.load(out)


def test_a_folder_that_was_tampered_with_does_not_load(imported: Path, tmp_path: Path) -> None:
    for name in WRITTEN:
        shutil.copytree(imported, tmp_path / name)
        (tmp_path / name / name).write_bytes((imported / name).read_bytes()[:-9])
        with pytest.raises(AvatarError, match="import"):
            networks.load(tmp_path / name)
