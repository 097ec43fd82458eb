"""What a clip taught becomes a persona: without PyTorch where there is no network, and again without losing engines of the same weights."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import persona as personas
from engine.backends import engines
from engine.persona import demo_portrait
from engine.types import AvatarError
from exporters.data import storage
from exporters.data.dataset import Clip, Dataset
from exporters.training import keep, whole
from tests.fakes import FakeGenerator

ROOT = Path(__file__).parent.parent
CONSENT, SOURCE = "I am the person in the video.", "avatar train /me"


def collected(folder: Path) -> Dataset:
    """As much of a data set as a persona is made of."""
    folder.mkdir(parents=True)
    storage.write_picture(folder / storage.SCENE, demo_portrait())
    none: Any = np.zeros((30, 16), np.float32)
    clip = Clip("me", none, none, none, none, none, none, none, np.ones(30, np.bool_), [(0, 30)], [])
    return Dataset(folder, (64, 64), 25, np.zeros((64, 64, 3), np.uint8), [], [clip], {"key": "abc"})


# -- without PyTorch ------------------------------------------------------------------------------------------------------

ALONE = """
import sys
sys.modules["torch"] = None  # as where it is not installed
from pathlib import Path
import avatar
from engine.types import AvatarError
from exporters.training import command
from tests.test_keep import collected

home = Path(sys.argv[1])
data = collected(home / "me" / "data")
command.collect = command.open_dataset = lambda *_, **__: data
words = ["train", "--video", "a.mp4", "--out", str(home / "me"), "--consent", "I am the person in the video.", "--stage"]
for stage in ("all", "data"):
    try:
        command.teach([], home / "me", avatar._parser().parse_args([*words, stage]), tell=print)
    except AvatarError as error:
        print("refused:", error)
"""


def test_the_data_stage_and_its_persona_need_no_pytorch(tmp_path: Path) -> None:
    said = subprocess.run([sys.executable, "-c", ALONE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, env=_home(tmp_path), check=False)
    assert said.returncode == 0, said.stderr
    refused, *kept = said.stdout.splitlines()
    assert refused.startswith("refused: Training networks needs PyTorch, which is not installed: make torch. Or leave them out: --stage data ")
    assert kept[0].startswith("Persona 'me' is ready in ")
    assert kept[-1] == "Show it: avatar serve --persona me"
    assert personas.own_weights("me", folder=tmp_path / "home" / "personas") is not None


def _home(folder: Path) -> dict[str, str]:
    return {**os.environ, "AVATAR_HOME": str(folder / "home")}


@pytest.mark.parametrize(
    ("preset", "recipe", "said"),
    [
        ("tiny_unianimate", "teacher", "Render a clip: avatar render --offline --persona 'a b' --drive CLIP.mp4 -o OUT.mp4"),
        ("tiny_vividpose", "teacher", "Render a clip: avatar render --offline --persona 'a b' --drive CLIP.mp4 -o OUT.mp4 --maps smplx=FILE.onnx"),
        ("tiny_vividpose", "matching", "Show it: avatar serve --persona 'a b' --maps smplx=FILE.onnx"),
    ],
)
def test_a_whole_clip_s_teacher_is_not_said_to_be_live(
    preset: str, recipe: str, said: str, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keep, "load", lambda name, weights: FakeGenerator())
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / engines.WEIGHTS).write_text('{"generator": "video"}')
    told: list[str] = []
    made = whole.PRESETS[preset]
    keep.keep_network(data, tmp_path / "weights", preset=made, recipe=recipe, name="a b", source=SOURCE, consent=CONSENT, tell=told.append)
    assert told[-1] == said


# -- engines --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.setenv("AVATAR_HOME", str(tmp_path / "home"))
    return collected(tmp_path / "data")


def kept(data: Dataset, weights: Path, text: str) -> tuple[Path, list[str]]:
    """The persona's engines after a run that left weights of that manifest, and what was said."""
    weights.mkdir(exist_ok=True)
    (weights / engines.WEIGHTS).write_text(text)
    told: list[str] = []
    made = keep.as_persona(FakeGenerator(), data, weights, name="me", source=SOURCE, consent=CONSENT, tell=told.append)
    assert made.folder is not None
    return made.folder / personas.WEIGHTS / engines.HOME, told


def test_engines_stay_with_weights_that_are_the_same_and_go_with_others(data: Dataset, tmp_path: Path) -> None:
    home, told = kept(data, tmp_path / "weights", '{"updates": 1}')
    assert not home.exists()
    for name in ("openvino-a", "onnxruntime-b"):
        (home / name / "part").mkdir(parents=True)
        (home / name / "part" / "step.bin").write_text(name)
    (home / "openvino-c" / ".partial").mkdir(parents=True)
    (home / ".killed").mkdir()
    (tmp_path / "weights" / engines.HOME / "openvino-a").mkdir(parents=True)  # exported beside the run's own weights
    again, told = kept(data, tmp_path / "weights", '{"updates": 1}')
    assert again == home
    assert told == []
    assert (home / "onnxruntime-b" / "part" / "step.bin").read_text() == "onnxruntime-b"
    assert sorted(path.name for path in home.iterdir()) == ["onnxruntime-b", "openvino-a", "openvino-c"]
    assert not (home / "openvino-a" / "part").exists(), "the run's own, which is the newer one"
    (tmp_path / "weights" / engines.HOME / "openvino-a").rmdir()
    _, told = kept(data, tmp_path / "weights", '{"updates": 2}')
    assert list(home.iterdir()) == []
    assert len(told) == 1
    assert told[0].startswith("The 3 engines of this persona's earlier weights went with them")
    assert told[0].endswith("avatar export --persona me --backend NAME")


@pytest.mark.parametrize(
    ("error", "raised"), [(OSError(errno.ENOSPC, "No space left on device"), AvatarError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
@pytest.mark.parametrize("step", ["the earlier one goes aside", "the new one comes"])
def test_an_earlier_persona_stays_whole_where_the_new_one_cannot_be_kept(
    step: str, error: BaseException, raised: type[BaseException], data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, _ = kept(data, tmp_path / "weights", "{}")
    (home / "openvino-a").mkdir(parents=True)
    (home / "openvino-a" / "step.bin").write_text("graph")
    place, rename = tmp_path / "home" / "personas" / "me", Path.rename

    def breaks(path: Path, target: Path) -> Path:
        if path == place if step.startswith("the earlier") else (path.name, target) == ("me", place):
            raise error
        return rename(path, target)

    with monkeypatch.context() as disk:
        disk.setattr(Path, "rename", breaks)
        with pytest.raises(raised, match="is still there as it was" if raised is AvatarError else None):
            kept(data, tmp_path / "weights", "{}")
    assert (home / "openvino-a" / "step.bin").read_text() == "graph"
    assert [path.name for path in place.parent.iterdir()] == ["me"], "nothing else is left"
    kept(data, tmp_path / "weights", '{"updates": 2}')
    assert json.loads((place / personas.WEIGHTS / engines.WEIGHTS).read_text()) == {"updates": 2}
    assert [path.name for path in place.parent.iterdir()] == ["me"]
