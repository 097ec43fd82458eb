"""Offline rendering and the command line, as a user types them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import avatar
from engine.config import SessionSettings
from engine.generators import load
from engine.media import AI_NOTICE, Writer, audio_samples, probe, video_frames
from engine.offline import render
from engine.persona import Persona, demo_portrait, make_persona
from engine.types import AudioChunk, AvatarError, Drive, Generator, VideoFrame
from tests.conftest import require_for
from tests.test_media import RATE, beginnings, disk_of, tone, write_clip, write_offset_clip, write_wav


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in portrait, swaying: a driver that is made here."""
    import cv2

    path = tmp_path_factory.mktemp("drive") / "sway.mp4"
    face = cv2.resize(demo_portrait(), (320, 320))
    with Writer(path, audio_rate=RATE) as writer:
        for k in range(24):
            turn = cv2.getRotationMatrix2D((160, 160), 12 * np.sin(k / 4), 1.0)
            writer.write_frame(VideoFrame(cv2.warpAffine(face, turn, (320, 320), borderMode=cv2.BORDER_REPLICATE), k / 24))
        writer.write_audio(AudioChunk(tone(1.0), RATE, 0.0))
    return path


@pytest.fixture(scope="module")
def puppet() -> tuple[Generator, Persona]:
    generator = load("puppet")
    return generator, make_persona(generator, demo_portrait(), name="demo")


def test_a_clip_drives_the_built_in_portrait_and_keeps_its_sound(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.mp4"
    assert avatar.main(["render", "--drive", str(clip), "-o", str(out)]) == 0
    assert "24 frames" in capsys.readouterr().out
    made = list(video_frames(out))
    assert len(made) == 24
    moved = [np.abs(frame.rgb.astype(int) - made[0].rgb).mean() for frame in made]
    assert max(moved) > 2.0, "the portrait follows the head"
    assert len(audio_samples(out, rate=16_000)) == pytest.approx(16_000, rel=0.1)


def test_a_sound_file_drives_the_lips(tmp_path: Path) -> None:
    sound = tone(1.0, hertz=180.0) * (np.arange(RATE) % 12_000 < 7_000)
    out = tmp_path / "out.mp4"
    assert avatar.main(["render", "--drive", str(write_wav(tmp_path / "a.wav", sound, rate=RATE)), "-o", str(out), "--badge"]) == 0
    assert probe(out).duration == pytest.approx(1.0, abs=0.1)
    frames = list(video_frames(out))
    assert 28 <= len(frames) <= 31
    import av

    with av.open(str(out)) as container:
        assert container.metadata["comment"] == AI_NOTICE


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--drive", "absent.mp4"], "no file"),
        (["--drive", "{silent}"], "silent"),
        (["--drive", "{clip}", "--portrait", "{text}"], "picture"),
        (["--drive", "{clip}", "--background", "#12"], "rrggbb"),
        (["--drive", "{clip}", "--persona", "nobody"], "nobody"),
        (["--drive", "{mute}", "--drive-mode", "voice"], "silent"),
        (["--drive", "{portrait}"], "still picture"),
        (["--drive", "{text}.npz"], "no recording"),
        (["--drive", "{clip}", "--record-signals", "{text}"], ".npz"),
        (["--drive", "{clip}", "--drive-mode", "voice", "--record-signals", "x.npz"], "no signals"),
        (["--drive", "{mute}"], "No face"),
    ],
)
def test_a_mistake_is_one_sentence_and_no_file(
    arguments: list[str], sentence: str, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVATAR_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text.png"
    text.write_text("this is not a picture")
    files = {
        "{clip}": clip,
        "{text}": text,
        "{portrait}": Path(avatar.__file__).parent / "engine" / "assets" / "portrait.jpg",
        "{silent}": write_wav(tmp_path / "silent.wav", np.zeros(RATE, np.float32), rate=RATE),
        "{mute}": write_clip(tmp_path / "mute.mp4", times=[k / 30 for k in range(9)]),
    }
    out = tmp_path / "out.mp4"
    assert avatar.main(["render", *(str(files.get(a, a)) for a in arguments), "-o", str(out)]) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said
    assert len(said.splitlines()) == 1
    assert not out.exists()
    assert {file.name for file in tmp_path.iterdir()} <= {"text.png", "silent.wav", "mute.mp4"}


@pytest.mark.parametrize(
    ("out", "sentence"), [("", "no name"), ("folder", "is a folder"), ("/proc/o.mp4", "cannot be written"), ("o.avi", "only .mp4")]
)
def test_a_bad_output_is_told_before_the_drive_is_read(
    out: str, sentence: str, clip: Path, puppet: tuple[Generator, Persona], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(AvatarError, match=sentence):
        render(*puppet, tmp_path / "absent.mp4", out)


def test_a_disk_that_fills_up_is_one_sentence(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with disk_of(20_000):
        assert avatar.main(["render", "--drive", str(clip), "-o", str(tmp_path / "out.mp4"), "--no-body"]) == 2
    said = capsys.readouterr().err.strip()
    assert "cannot be written" in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_what_is_read_is_never_written_over(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drive = tmp_path / "drive.mp4"
    drive.write_bytes(clip.read_bytes())
    portrait = tmp_path / "me.mp4"  # a picture, whatever its name says
    portrait.write_bytes((Path(avatar.__file__).parent / "engine" / "assets" / "portrait.jpg").read_bytes())
    link = tmp_path / "link.mp4"
    link.symlink_to(drive)
    before = {file: file.read_bytes() for file in (drive, portrait)}
    for out in (drive, portrait, link, tmp_path / "." / "drive.mp4"):
        assert avatar.main(["render", "--drive", str(drive), "--portrait", str(portrait), "-o", str(out)]) == 2
        assert "would destroy" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in before} == before


@pytest.mark.parametrize(("picture_at", "sound_at"), [(0.0, 0.3), (0.3, 0.0)])
def test_the_sound_keeps_its_place_beside_the_picture(
    picture_at: float, sound_at: float, puppet: tuple[Generator, Persona], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.offline._judge", lambda *_, **__: None)  # the clip shows no face
    words = np.concatenate([np.zeros(RATE // 2, np.float32), tone(0.5)])
    drive = write_offset_clip(tmp_path / "drive.mp4", picture_at=picture_at, sound=[(sound_at, words)])
    out = tmp_path / "out.mp4"
    render(*puppet, drive, out, settings=SessionSettings(track_body=False))
    assert beginnings(audio_samples(out, rate=RATE, origin=0.0), RATE) == pytest.approx([sound_at + 0.5 - picture_at], abs=0.012)


def test_the_writer_gets_sound_and_picture_in_turn(puppet: tuple[Generator, Persona], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reached = [0.0, 0.0]
    lead: list[float] = []
    monkeypatch.setattr(Writer, "write_frame", lambda _, frame: lead.append(frame.time - reached[1]))

    def hear(_: Writer, chunk: AudioChunk) -> None:
        reached[1] = chunk.time + chunk.duration

    monkeypatch.setattr(Writer, "write_audio", hear)
    monkeypatch.setattr(Writer, "close", Writer.abort)
    sound = tone(1.0, hertz=180.0)
    render(*puppet, write_wav(tmp_path / "a.wav", sound, rate=RATE), tmp_path / "out.mp4", settings=SessionSettings(drive="voice"))
    assert len(lead) >= 28
    assert max(np.abs(lead)) < 0.001


def rendered(generator: Generator, persona: Persona, clip: Path, monkeypatch: pytest.MonkeyPatch, drive: Drive = "camera") -> list[VideoFrame]:
    """The frames that would be written."""
    frames: list[VideoFrame] = []
    with monkeypatch.context() as patch:
        patch.setattr(Writer, "write_frame", lambda _, frame: frames.append(frame))
        patch.setattr(Writer, "write_audio", lambda *_: None)
        patch.setattr(Writer, "close", Writer.abort)
        count = render(generator, persona, clip, clip.with_suffix(".out.mp4"), settings=SessionSettings(track_body=False, drive=drive))
    assert count == len(frames)
    return frames


@pytest.mark.torch
@pytest.mark.parametrize("drive", ["camera", "voice"])
def test_a_delayed_generator_gives_every_frame_at_its_own_time(drive: Drive, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream batch in three steps makes the same pictures as the steps one by one, two frames later: none may be lost at the end."""
    require_for("diffusion")
    import torch

    from engine.generators.diffusion.presets import PRESETS, TINY

    # Over the puppet's own frame, which is another one at every instant: what comes of a long window alone changes little.
    monkeypatch.setitem(PRESETS, "tiny", replace(TINY, residual=True))
    plain, late = (load("diffusion", preset="tiny", steps=3, stream_batch=batched, mode="eager") for batched in (False, True))
    for generator in (plain, late):  # weights that see the motion
        networks = cast(Any, generator).recipe.networks
        for layer in (networks.guider.conv_out, networks.denoiser.conv_out):
            torch.nn.init.normal_(layer.weight, std=0.2, generator=torch.Generator().manual_seed(1))
    assert (plain.spec.delay, late.spec.delay) == (0, 2)
    persona = make_persona(plain, demo_portrait(), name="demo")
    expected, frames = (rendered(generator, persona, clip, monkeypatch, drive) for generator in (plain, late))
    assert len(expected) == len(frames) == (24 if drive == "camera" else 25)
    steps = [int(np.abs(a.rgb.astype(int) - b.rgb).max()) for a, b in zip(expected, expected[1:], strict=False)]
    assert np.median(steps) > 4, "they are told apart by what they show"
    for one, other in zip(expected, frames, strict=True):
        assert one.time == pytest.approx(other.time, abs=1e-9)
        assert one.id == other.id
        assert np.abs(one.rgb.astype(int) - other.rgb).max() <= 2


@pytest.mark.torch
def test_a_chunk_that_does_not_fill_loses_no_picture(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_for("diffusion")
    from engine.generators.diffusion.presets import PRESETS, TINY

    monkeypatch.setitem(PRESETS, "tiny", replace(TINY, chunk=5, window=8))
    generator = load("diffusion", preset="tiny", steps=2, stream_batch=True, mode="eager")
    assert generator.spec.delay == generator.spec.chunk == 5
    frames = rendered(generator, make_persona(generator, demo_portrait(), name="demo"), clip, monkeypatch)
    assert [frame.time for frame in frames] == pytest.approx([k / 24 for k in range(24)], abs=1e-3)
    assert [frame.id for frame in frames] == sorted({frame.id for frame in frames}), "each picture once"


def test_an_empty_sound_track_is_no_sound_for_a_camera(clip: Path, puppet: tuple[Generator, Persona], tmp_path: Path) -> None:
    import av

    drive = tmp_path / "empty.mkv"
    with av.open(str(clip)) as source, av.open(str(drive), "w") as container:
        video = container.add_stream_from_template(source.streams.video[0])
        container.add_stream("libopus", rate=RATE).codec_context.layout = "mono"
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = video
                container.mux(packet)
    assert probe(drive).has_audio
    settings = SessionSettings(track_body=False)
    assert render(*puppet, drive, tmp_path / "out.mp4", settings=settings) == 24
    assert not probe(tmp_path / "out.mp4").has_audio
    with pytest.raises(AvatarError, match="without any sound"):
        render(*puppet, drive, tmp_path / "voice.mp4", settings=SessionSettings(drive="voice"))


def test_a_clip_with_few_faces_says_so_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import cv2

    drive = tmp_path / "short_visit.mp4"
    face = cv2.resize(demo_portrait(), (320, 320))
    with Writer(drive) as writer:
        for k in range(20):
            writer.write_frame(VideoFrame(face if k < 5 else np.full_like(face, 90), k / 20))
    assert avatar.main(["render", "--drive", str(drive), "-o", str(tmp_path / "out.mp4"), "--no-body"]) == 0
    assert "only 25%" in capsys.readouterr().err


def test_recorded_signals_drive_as_the_clip_did(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    signals, first, again = tmp_path / "s.npz", tmp_path / "first.mp4", tmp_path / "again.mp4"
    assert avatar.main(["render", "--drive", str(clip), "-o", str(first), "--no-body", "--record-signals", str(signals)]) == 0
    assert avatar.main(["render", "--drive", str(signals), "-o", str(again)]) == 0
    assert "24 frames" in capsys.readouterr().out
    assert not probe(again).has_audio
    for one, other in zip(video_frames(first), video_frames(again), strict=True):
        assert one.time == pytest.approx(other.time, abs=0.001)
        assert np.abs(one.rgb.astype(int) - other.rgb).mean() < 1.0
    assert avatar.main(["render", "--drive", str(signals), "-o", str(again), "--drive-mode", "voice"]) == 2
    assert "no voice" in capsys.readouterr().err


def test_a_failed_rendering_leaves_no_signals(puppet: tuple[Generator, Persona], tmp_path: Path) -> None:
    drive = write_clip(tmp_path / "grey.mp4", times=[k / 30 for k in range(5)])
    with pytest.raises(AvatarError, match="No face"):
        render(*puppet, drive, tmp_path / "out.mp4", record=tmp_path / "s.npz", settings=SessionSettings(track_body=False))
    assert [file.name for file in tmp_path.iterdir()] == ["grey.mp4"]


def test_personas_are_created_listed_shown_and_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVATAR_HOME", str(tmp_path))
    portrait = Path(avatar.__file__).parent / "engine" / "assets" / "portrait.jpg"
    assert avatar.main(["persona", "create", "eileen", "--portrait", str(portrait), "--consent", "public domain, NASA"]) == 0
    assert avatar.main(["persona", "list"]) == 0
    assert "eileen" in capsys.readouterr().out
    assert avatar.main(["persona", "show", "eileen"]) == 0
    assert "public domain, NASA" in json.dumps(json.loads(capsys.readouterr().out), ensure_ascii=False)
    assert avatar.main(["persona", "remove", "eileen"]) == 0
    assert avatar.main(["persona", "show", "eileen"]) == 2
