"""Media files in and out: bad ones in one sentence, good ones with their times and their sound."""

from __future__ import annotations

import resource
import shutil
import struct
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from engine.media import AI_NOTICE, Writer, audio_samples, first_picture_time, probe, video_frames
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


# -- one clock for picture and sound ---------------------------------------------------------------------------------------


def write_offset_clip(path: Path, *, picture_at: float, sound: list[tuple[float, FloatArray]], layout: str = "mono") -> Path:
    """A clip whose picture (ten frames) begins at `picture_at` s and whose pieces of sound stand at their own times."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=30)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.time_base = Fraction(1, 90_000)
        audio = container.add_stream("libopus" if path.suffix == ".mkv" else "aac", rate=RATE)
        audio.codec_context.layout = layout
        for k in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * k, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round((picture_at + k / 30) * 90_000), Fraction(1, 90_000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for start, samples in sound:
            piece = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
            piece.sample_rate, piece.pts, piece.time_base = RATE, round(start * RATE), Fraction(1, RATE)
            container.mux(audio.encode(piece))
        container.mux(audio.encode(None))
    return path


def beginnings(samples: FloatArray, rate: int) -> list[float]:
    """s at which sound begins after at least 50 ms of silence."""
    loud = np.abs(samples) > 0.1
    starts = [k for k in np.flatnonzero(loud) if not loud[max(0, k - rate // 20) : k].any()]
    return [k / rate for k in starts]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize(("picture_at", "sound_at"), [(0.0, 0.4), (0.4, 0.0), (1.0, 1.25)])
def test_sound_that_begins_elsewhere_keeps_its_place_beside_the_picture(tmp_path: Path, suffix: str, picture_at: float, sound_at: float) -> None:
    silence = np.zeros(RATE // 2, np.float32)
    path = write_offset_clip(tmp_path / f"clip{suffix}", picture_at=picture_at, sound=[(sound_at, np.concatenate([silence, tone(0.5)]))])
    origin = first_picture_time(path)
    heard = audio_samples(path, rate=16_000, origin=origin)
    assert beginnings(heard, 16_000) == pytest.approx([sound_at + 0.5 - picture_at], abs=0.01)
    assert next(video_frames(path)).time == 0.0


def test_a_gap_in_the_sound_stays_a_gap(tmp_path: Path) -> None:
    # 48 000 samples are whole Opus packets, so that none holds sound of both sides of the gap.
    path = write_offset_clip(tmp_path / "clip.mkv", picture_at=0.0, sound=[(0.0, tone(1.0)), (2.5, tone(1.0))])
    heard = audio_samples(path, rate=16_000, origin=0.0)
    assert beginnings(heard, 16_000) == pytest.approx([0.0, 2.5], abs=0.02)
    assert len(heard) / 16_000 == pytest.approx(3.5, abs=0.05)


def test_sound_without_a_gap_is_not_cut_into_pieces(tmp_path: Path) -> None:
    path = write_offset_clip(tmp_path / "clip.mkv", picture_at=0.0, sound=[(0.0, tone(2.0))])
    heard = audio_samples(path, rate=16_000)
    spectrum = np.abs(np.fft.rfft(heard[1600:30_400] * np.hanning(28_800)))
    near = int(np.argmax(spectrum))
    assert near * 16_000 / 28_800 == pytest.approx(440, abs=1)
    assert spectrum[: near - 20].max() < spectrum[near] / 300, "seams would click"


def test_a_phone_held_upright_is_seen_upright(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    picture = np.zeros((96, 128, 3), np.uint8)
    picture[:48, :64] = 250  # bright where the left is up
    with Writer(path) as writer:
        for k in range(3):
            writer.write_frame(VideoFrame(picture, k / 30))
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 36  # version and flags, then 36 bytes before the matrix (ISO 14496-12, 8.3.2)
    assert struct.unpack_from(">i", data, at) == (0x10000,)
    struct.pack_into(">9i", data, at, 0, 0x10000, 0, -0x10000, 0, 0, 96 << 16, 0, 0x40000000)  # a quarter turn clockwise
    path.write_bytes(data)
    seen = next(video_frames(path)).rgb
    assert seen.shape == (128, 96, 3)
    assert seen[20, 72].mean() > 200, "the bright corner went from the left to the right"
    assert seen[20, 24].mean() < 50


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt, cover.disposition = 64, 64, "yuvj420p", av.stream.Disposition.attached_pic
        audio = container.add_stream("aac", rate=RATE)
        audio.codec_context.layout = "mono"
        container.mux(cover.encode(av.VideoFrame(64, 64, "yuvj420p")))
        piece = av.AudioFrame.from_ndarray(tone(0.5)[None], format="fltp", layout="mono")
        piece.sample_rate = RATE
        container.mux([*audio.encode(piece), *audio.encode(None)])
    assert (probe(path).has_video, probe(path).has_audio) == (False, True)


# -- where nothing can be written ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "no name"),
        ("folder.mp4", "is a folder"),
        ("/proc/o.mp4", "cannot be written"),
        ("/dev/null", "no ordinary file"),
        ("o.avi", "only .mp4"),
        ("o.mkv", "only .mp4"),
        ("o.gif", "only .mp4"),
        ("x" * 300 + ".mp4", "cannot be written"),
    ],
)
def test_a_place_where_nothing_can_be_written_is_told_at_once(tmp_path: Path, name: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(AvatarError, match=sentence):
        Writer(name)
    assert [file.name for file in tmp_path.iterdir()] == ["folder.mp4"]


@pytest.mark.parametrize(("name", "kind"), [("OUT.WEBM", "matroska,webm"), ("out.MP4", "mov,mp4"), ("out.mov", "mov,mp4"), ("out", "mov,mp4")])
def test_the_suffix_says_what_is_written(tmp_path: Path, name: str, kind: str) -> None:
    path = write_clip(tmp_path / name, times=[0.0, 0.1], sound=0.2)
    with av.open(str(path)) as container:
        assert container.format.name.startswith(kind)


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file grows beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize("size", [100, 30_000])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, suffix: str, size: int) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    with pytest.raises(AvatarError, match="cannot be written"), disk_of(size), Writer(tmp_path / f"clip{suffix}", audio_rate=RATE) as writer:
        for k in range(10):
            writer.write_frame(VideoFrame(np.roll(noise, 7 * k), k / 30))
        writer.write_audio(AudioChunk(tone(0.3), RATE, 0.0))
    assert list(tmp_path.iterdir()) == []


# -- what is not opened ----------------------------------------------------------------------------------------------------


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", times=[0.0, 0.1])
    playlist = tmp_path / "list.mp4"
    playlist.write_text(f"ffconcat version 1.0\nfile {clip.name}\n")
    with pytest.raises(AvatarError, match="not a media file"):
        probe(playlist)
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{clip.name}\n#EXT-X-ENDLIST\n")
    with pytest.raises(AvatarError, match="not a media file"):
        probe(playlist)


def test_a_name_with_a_colon_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(write_clip(tmp_path / "clip.mp4", times=[0.0, 0.1]), "http:clip.mp4")
    assert probe("http:clip.mp4").has_video
    write_clip(Path("http:out.mp4"), times=[0.0, 0.1])


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".avif", ".bmp", ".gif"])
def test_a_still_picture_drives_nothing(tmp_path: Path, suffix: str) -> None:
    from PIL import Image

    path = tmp_path / f"still{suffix}"
    Image.new("RGB", (80, 80), (200, 30, 30)).save(path)
    with pytest.raises(AvatarError, match="still picture"):
        probe(path)


def test_a_folder_drives_nothing(tmp_path: Path) -> None:
    with pytest.raises(AvatarError, match="is a folder"):
        probe(tmp_path)
