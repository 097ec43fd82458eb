"""A whole clip at leisure: the same frames as live, made with the clip in view, and gone on with after a kill."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import avatar
from engine.generators import load
from engine.media import Writer, video_frames
from engine.persona import Persona, demo_portrait, make_persona
from engine.types import AvatarError, Generator, Signal, UInt8Array, VideoFrame
from engine.whole import render_whole
from tests.conftest import require_for

FRAMES = 9


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in portrait, swaying."""
    import cv2

    path = tmp_path_factory.mktemp("drive") / "sway.mp4"
    face = cv2.resize(demo_portrait(), (256, 256))
    with Writer(path) as writer:
        for k in range(FRAMES):
            turn = cv2.getRotationMatrix2D((128, 128), 12 * np.sin(k / 2), 1.0)
            writer.write_frame(VideoFrame(np.asarray(cv2.warpAffine(face, turn, (256, 256), borderMode=cv2.BORDER_REPLICATE), np.uint8), k / 24))
    return path


@pytest.fixture(scope="module")
def tiny() -> tuple[Generator, Persona]:
    require_for("diffusion")
    import torch

    generator: Any = load("diffusion", preset="tiny", steps=2, device="cpu", mode="eager")
    with torch.random.fork_rng(devices=[]):  # untrained networks end in zeros, which hide what is before them
        torch.manual_seed(0)
        for last in (generator.recipe.networks.denoiser.conv_out, generator.recipe.networks.guider.conv_out):
            torch.nn.init.normal_(last.weight, std=0.1)
    return generator, make_persona(generator, demo_portrait(), name="demo")


@pytest.mark.torch
def test_a_clip_is_asked_for_as_live_and_shown_frame_by_frame(tiny: tuple[Generator, Persona], clip: Path, tmp_path: Path) -> None:
    generator, persona = tiny
    asked: list[Sequence[Signal]] = []
    told: list[tuple[int, int]] = []

    class Counting:
        spec = generator.spec
        notice = ""

        def check_leisure(self, **how: Any) -> None:
            assert how == {"steps": None, "guidance": None}

        def at_leisure(self, identity: Any, signals: Sequence[Signal], **how: Any) -> Any:
            asked.append(signals)
            assert how["kept"] == tmp_path / ".out.mp4.rendering"
            return lambda number: np.full((*generator.spec.size, 3), 20 * number, np.uint8)

    done = render_whole(Counting(), persona, clip, tmp_path / "out.mp4", progress=lambda *steps: told.append(steps))  # type: ignore[arg-type]
    assert done == FRAMES == len(asked[0])
    shown = [float(frame.rgb[frame.rgb.shape[0] // 2, frame.rgb.shape[1] // 2].mean()) for frame in video_frames(tmp_path / "out.mp4")]
    assert np.abs(np.array(shown) - 20 * np.arange(FRAMES)).max() < 4
    turns = [signal.motion.head[2] for signal in asked[0] if signal.motion is not None]
    assert len(turns) == FRAMES
    assert np.ptp(turns) > 3, "degrees: the signals are those of the clip"


@pytest.mark.torch
def test_a_killed_rendering_goes_on_and_ends_as_if_it_had_not(tiny: tuple[Generator, Persona], clip: Path, tmp_path: Path) -> None:
    generator, persona = tiny
    whole = tmp_path / "whole.mp4"
    assert render_whole(generator, persona, clip, whole, steps=3, guidance=2.0) == FRAMES
    assert not (tmp_path / ".whole.mp4.rendering").exists()

    class Killed(Exception):
        pass

    def kill(done: int, total: int) -> None:
        if done == 2:
            raise Killed

    out, told = tmp_path / "out.mp4", []
    with pytest.raises(Killed):
        render_whole(generator, persona, clip, out, steps=3, guidance=2.0, progress=kill)
    assert not out.exists()
    kept = tmp_path / ".out.mp4.rendering"
    assert (kept / "done.safetensors").is_file()
    assert render_whole(generator, persona, clip, out, steps=3, guidance=2.0, progress=lambda done, total: told.append((done, total))) == FRAMES
    assert told == [(2, 3), (3, 3)], "the first step is not made again"
    assert not kept.exists()
    for mine, theirs in zip(video_frames(out), video_frames(whole), strict=True):
        assert np.array_equal(mine.rgb, theirs.rgb)


@pytest.mark.torch
def test_what_another_rendering_left_is_not_gone_on_from(tiny: tuple[Generator, Persona], clip: Path, tmp_path: Path) -> None:
    generator, persona = tiny
    out = tmp_path / "out.mp4"

    def kill(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_whole(generator, persona, clip, out, steps=3, guidance=2.0, progress=kill)
    told: list[int] = []
    render_whole(generator, persona, clip, out, steps=3, guidance=1.5, progress=lambda done, total: told.append(done))
    assert told == [1, 2, 3], "another guidance is another rendering"
    with pytest.raises(KeyboardInterrupt):
        render_whole(generator, persona, clip, out, steps=3, guidance=2.0, progress=kill)
    (tmp_path / ".out.mp4.rendering" / "done.safetensors").write_bytes(b"half a file")
    told.clear()
    render_whole(generator, persona, clip, out, steps=3, guidance=2.0, progress=lambda done, total: told.append(done))
    assert told == [1, 2, 3]


@pytest.mark.torch
def test_numbers_that_are_none_end_a_rendering(tiny: tuple[Generator, Persona], clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first step, not in a black clip after an hour."""
    networks = tiny[0].recipe.networks  # type: ignore[attr-defined]
    denoise, calls = networks.denoise, []

    def broken(*args: Any) -> Any:
        calls.append(1)
        return denoise(*args) * float("inf")

    monkeypatch.setattr(networks, "denoise", broken)
    with pytest.raises(AvatarError, match="no picture of this clip in fp32"):
        render_whole(*tiny, clip, tmp_path / "out.mp4", steps=3, guidance=1.0)
    assert len(calls) == 1
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.torch
def test_no_steps_are_not_those_of_the_weights(tiny: tuple[Generator, Persona], clip: Path, tmp_path: Path) -> None:
    for steps in (0, -1):
        with pytest.raises(AvatarError, match=f"at least 1 denoising step, not {steps}"):
            render_whole(*tiny, clip, tmp_path / "out.mp4", steps=steps)
    for generator in (tiny[0], load("video", preset="tiny_unianimate", device="cpu")):
        with pytest.raises(AvatarError, match="takes 1 to 1000 denoising steps, not 1001"):
            render_whole(generator, tiny[1], tmp_path / "not looked for.mp4", tmp_path / "out.mp4", steps=1001)


@pytest.mark.torch
def test_every_frame_sees_those_after_it(tiny: tuple[Generator, Persona], tmp_path: Path) -> None:
    generator, persona = tiny
    motions = [Signal(k / 25, k + 1, motion=_turned(2.0 * k)) for k in range(6)]
    other = [*motions[:-1], Signal(5 / 25, 6, motion=_turned(-20.0))]

    def first(signals: Sequence[Signal]) -> UInt8Array:
        made = generator.at_leisure(persona.identity, signals, kept=tmp_path, steps=2, guidance=None)  # type: ignore[attr-defined]
        picture: UInt8Array = made(0)
        return picture

    assert np.array_equal(first(motions), first(motions))
    assert not np.array_equal(first(motions), first(other)), "live, the first frame knows nothing of the last"


def _turned(degrees: float) -> Any:
    from engine.types import still_motion

    motion = still_motion()
    motion.head[0] = degrees
    return motion


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--offline"], "frame by frame only; leave --offline out"),
        (["--guidance", "2"], "give --offline beside --guidance"),
        (["--offline", "--generator", "diffusion", "--preset", "tiny", "--backend", "openvino"], "rendered by PyTorch; leave --backend out"),
        (["--offline", "--generator", "diffusion", "--preset", "tiny", "--guidance", "nan"], "a scale of 0 or more, not nan"),
        (["--offline", "--generator", "diffusion", "--preset", "tiny", "--guidance", "-2"], "a scale of 0 or more, not -2"),
    ],
)
def test_a_mistake_is_one_sentence(words: list[str], sentence: str, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if "diffusion" in words:
        require_for("diffusion")
    assert avatar.main(["render", "--drive", str(clip), *words, "-o", str(tmp_path / "out.mp4")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert sentence in said[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.torch
def test_the_front_door_renders_at_leisure(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require_for("diffusion")
    words = ["--generator", "diffusion", "--preset", "tiny", "--offline", "--steps", "2", "--guidance", "1.5"]
    assert avatar.main(["render", "--drive", str(clip), *words, "-o", str(tmp_path / "out.mp4")]) == 0
    said = capsys.readouterr()
    assert f"Wrote {FRAMES} frames" in said.out
    assert "These weights are untrained" in said.err
    assert [file.name for file in tmp_path.iterdir()] == ["out.mp4"]


@pytest.mark.torch
def test_what_cannot_be_rendered_leaves_nothing(tiny: tuple[Generator, Persona], clip: Path, tmp_path: Path) -> None:
    class Refusing:
        spec = tiny[0].spec
        notice = ""

        def check_leisure(self, **how: Any) -> None:
            """Nothing is known before the drive is read."""

        def at_leisure(self, identity: Any, signals: Sequence[Signal], *, kept: Path, **how: Any) -> Any:
            kept.mkdir()
            raise AvatarError("This drive is none.")

    with pytest.raises(AvatarError, match="This drive is none"):
        render_whole(Refusing(), tiny[1], clip, tmp_path / "out.mp4")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.torch
def test_a_file_that_cannot_be_written_is_told_before_the_work(tiny: tuple[Generator, Persona], clip: Path, tmp_path: Path) -> None:
    with pytest.raises(AvatarError, match="does not exist; make it first"):
        render_whole(*tiny, clip, tmp_path / "nowhere" / "out.mp4", progress=lambda *_: pytest.fail("worked"))
