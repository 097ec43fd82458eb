"""Offline rendering and the command line, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import avatar
from engine.media import AI_NOTICE, audio_samples, probe, video_frames
from engine.persona import demo_portrait
from tests.test_media import RATE, tone, write_clip, write_wav


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in portrait, swaying: a driver that is made here."""
    import cv2

    from engine.media import Writer
    from engine.types import AudioChunk, VideoFrame

    path = tmp_path_factory.mktemp("drive") / "sway.mp4"
    face = cv2.resize(demo_portrait(), (320, 320))
    with Writer(path, audio_rate=RATE) as writer:
        for k in range(24):
            turn = cv2.getRotationMatrix2D((160, 160), 12 * np.sin(k / 4), 1.0)
            writer.write_frame(VideoFrame(cv2.warpAffine(face, turn, (320, 320), borderMode=cv2.BORDER_REPLICATE), k / 24))
        writer.write_audio(AudioChunk(tone(1.0), RATE, 0.0))
    return path


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
    ],
)
def test_a_mistake_is_one_sentence_and_no_file(
    arguments: list[str], sentence: str, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVATAR_HOME", str(tmp_path / "home"))
    text = tmp_path / "text.png"
    text.write_text("this is not a picture")
    files = {
        "{clip}": clip,
        "{text}": text,
        "{silent}": write_wav(tmp_path / "silent.wav", np.zeros(RATE, np.float32), rate=RATE),
        "{mute}": write_clip(tmp_path / "mute.mp4", times=[k / 30 for k in range(9)]),
    }
    out = tmp_path / "out.mp4"
    assert avatar.main(["render", *(str(files.get(a, a)) for a in arguments), "-o", str(out)]) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said
    assert len(said.splitlines()) == 1
    assert not out.exists()


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


def test_the_doctor_finds_nothing_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert avatar.main(["doctor"]) == 0
    report = capsys.readouterr().out
    assert "MISSING" not in report
    assert "generator puppet" in report
