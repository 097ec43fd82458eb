"""Media files in and out: bad ones in one sentence, good ones with their times and their sound."""

from __future__ import annotations

import wave
from pathlib import Path

import av
import numpy as np
import pytest

from engine.media import AI_NOTICE, Writer, audio_samples, probe, video_frames
from engine.types import AudioChunk, AvatarError, FloatArray, VideoFrame

RATE = 48_000


def tone(seconds: float, rate: int = RATE, hertz: float = 440.0) -> FloatArray:
    return np.asarray(0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate), np.float32)


def write_wav(path: Path, samples: FloatArray, *, rate: int, channels: int = 1) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.repeat(samples[:, None], channels, 1) * 32767).astype("<i2").tobytes())
    return path


def write_clip(path: Path, *, times: list[float], size: tuple[int, int] = (96, 128), sound: float = 0.0) -> Path:
    with Writer(path, audio_rate=RATE if sound else None) as writer:
        for k, time in enumerate(times):
            writer.write_frame(VideoFrame(np.full((*size, 3), 10 * k % 250, np.uint8), time))
        if sound:
            writer.write_audio(AudioChunk(tone(sound), RATE, 0.0))
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_a_clip_comes_back_with_its_irregular_times_and_its_sound(tmp_path: Path, suffix: str) -> None:
    times = [0.0, 0.033, 0.1, 0.15, 0.4, 0.433]
    path = write_clip(tmp_path / f"clip{suffix}", times=times, sound=0.5)
    clip = probe(path)
    assert (clip.has_video, clip.has_audio) == (True, True)
    frames = list(video_frames(path))
    assert [frame.time for frame in frames] == pytest.approx(times, abs=0.002)
    assert frames[0].rgb.shape == (96, 128, 3)
    heard = audio_samples(path, rate=16_000)
    assert len(heard) / 16_000 == pytest.approx(0.5, abs=0.08)
    spectrum = np.abs(np.fft.rfft(heard[2000:6000]))
    assert np.argmax(spectrum) * 16_000 / 4000 == pytest.approx(440, abs=8)


def test_every_file_says_that_it_is_generated(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", times=[0.0, 0.1])
    with av.open(str(path)) as container:
        assert container.metadata["comment"] == AI_NOTICE


def test_an_odd_size_is_made_even(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", times=[0.0, 0.1], size=(97, 131))
    assert next(video_frames(path)).rgb.shape == (96, 130, 3)


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with pytest.raises(RuntimeError, match="boom"), Writer(path) as writer:
        writer.write_frame(VideoFrame(np.zeros((64, 64, 3), np.uint8), 0.0))
        raise RuntimeError("boom")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AvatarError, match="gave no frame"), Writer(tmp_path / "clip.mp4"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_eight_kilohertz_stereo_is_heard(tmp_path: Path) -> None:
    heard = audio_samples(write_wav(tmp_path / "a.wav", tone(1.0, 8000), rate=8000, channels=2), rate=16_000)
    assert len(heard) == pytest.approx(16_000, abs=200)
    assert np.abs(heard).max() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"", "is empty"), (b"just some text, no media at all", "not a media file"), (b"\x00" * 5000, "not a media file")],
)
def test_what_is_no_media_file_is_said_in_a_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "bad.mp4"
    path.write_bytes(content)
    with pytest.raises(AvatarError, match=sentence):
        probe(path)


def test_a_missing_file_and_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(AvatarError, match="no file"):
        probe(tmp_path / "absent.mp4")
    with pytest.raises(AvatarError, match="does not exist"):
        Writer(tmp_path / "absent" / "out.mp4")


def test_sound_of_a_silent_clip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AvatarError, match="no sound"):
        audio_samples(write_clip(tmp_path / "clip.mp4", times=[0.0, 0.1]), rate=16_000)


def test_a_truncated_clip_gives_what_it_has(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.webm", times=[k / 30 for k in range(60)])
    cut = tmp_path / "cut.webm"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert 1 <= len(list(video_frames(cut))) <= 60
