"""UniAnimate's whole clips: skeletons with feet and without a face, and a clip from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import avatar
from engine.conditions.skeleton import FOOT_COLOURS, paint_skeleton, with_feet
from engine.generators import load
from engine.media import video_frames
from engine.persona import demo_portrait, make_persona
from engine.types import AvatarError, Signal, still_motion
from engine.whole import render_whole
from tests.conftest import require_for
from tests.test_whole import clip  # noqa: F401

MADE = 6
"""Frames of the clip of 9 pictures, 24 a second, at 15 a second."""


def test_feet_hang_on_their_ankles_in_their_own_colours() -> None:
    joints, body = np.zeros((18, 3), np.float32), np.zeros((33, 3), np.float32)
    joints[13], joints[10] = (60, 60, 1), (30, 60, 1)
    body[31], body[32] = (70, 80, 1), (20, 80, 1)
    both = with_feet(joints, body)
    assert both.shape == (20, 3)
    picture = paint_skeleton((100, 100), both, [], None)
    assert picture[80, 70].tolist() == list(FOOT_COLOURS[0])
    assert picture[80, 20].tolist() == list(FOOT_COLOURS[1])
    assert picture[70, 65].any(), "the limb from the left ankle to its foot"
    assert not paint_skeleton((100, 100), joints, [], None)[75:, :].any(), "without feet as before"


@pytest.fixture(scope="module")
def tiny() -> Any:
    require_for("diffusion")
    return load("video", preset="tiny_unianimate", device="cpu")


@pytest.mark.torch
def test_a_clip_is_rendered_and_gone_on_with(tiny: Any, clip: Path, tmp_path: Path) -> None:  # noqa: F811
    persona = make_persona(tiny, demo_portrait(), name="demo")
    assert persona.identity.portrait.shape == (*tiny.spec.size, 3)
    whole, out = tmp_path / "whole.mp4", tmp_path / "out.mp4"
    assert render_whole(tiny, persona, clip, whole, steps=2) == MADE

    def kill(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_whole(tiny, persona, clip, out, steps=2, progress=kill)
    assert (tmp_path / ".out.mp4.rendering" / "state.safetensors").is_file()
    told: list[int] = []
    assert render_whole(tiny, persona, clip, out, steps=2, progress=lambda done, total: told.append(done)) == MADE
    assert told[0] > 1, "what was done is not done again"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.mp4", "whole.mp4"]
    for mine, theirs in zip(video_frames(out), video_frames(whole), strict=True):
        assert np.array_equal(mine.rgb, theirs.rgb)


@pytest.mark.torch
def test_what_was_rendered_is_there_until_it_is_written(
    tiny: Any,
    clip: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An hour's work is not lost where the disk is full at its end."""
    persona, out, told = make_persona(tiny, demo_portrait(), name="demo"), tmp_path / "out.mp4", list[tuple[int, int]]()

    def full(*_: Any, **__: Any) -> None:
        raise AvatarError("The disk is full.")

    with monkeypatch.context() as patched:
        patched.setattr("engine.whole.render", full)
        with pytest.raises(AvatarError, match="disk is full"):
            render_whole(tiny, persona, clip, out, steps=2)
    assert render_whole(tiny, persona, clip, out, steps=2, progress=lambda *at: told.append(at)) == MADE
    assert len(told) == 1, "the last window alone"
    assert [file.name for file in tmp_path.iterdir()] == ["out.mp4"]


@pytest.mark.torch
def test_the_driver_s_pose_changes_the_clip(tiny: Any, tmp_path: Path) -> None:
    identity = tiny.prepare(demo_portrait())

    def first(degrees: float) -> Any:
        motion = still_motion()
        motion.head[2] = degrees
        signals = [Signal(k / 15, k + 1, motion=motion) for k in range(3)]
        return tiny.at_leisure(identity, signals, kept=tmp_path, steps=1, guidance=1.5, progress=None)(0)

    assert np.array_equal(first(0.0), first(0.0))
    assert not np.array_equal(first(0.0), first(25.0))


@pytest.mark.torch
def test_the_front_door_renders_it(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    require_for("diffusion")
    words = ["--generator", "video", "--preset", "tiny_unianimate", "--offline", "--steps", "2"]
    assert avatar.main(["render", "--drive", str(clip), *words, "-o", str(tmp_path / "out.mp4")]) == 0
    assert f"Wrote {MADE} frames" in capsys.readouterr().out


@pytest.mark.torch
@pytest.mark.parametrize("options", [{"precision": "fp16", "device": "cpu"}, {"preset": "unknown"}])
def test_what_cannot_be_is_one_sentence(options: dict[str, Any]) -> None:
    require_for("diffusion")
    with pytest.raises(AvatarError, match="(?:no precision 'fp16' on cpu|has no preset 'unknown')"):
        load("video", **options)
