"""A camera that is faster than the generator, from a file and from a browser: evenly thinned, and every frame that is left out is counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from engine.config import SessionSettings
from engine.offline import render
from engine.types import GeneratorSpec, VideoFrame
from streaming.live import Live
from streaming.rtc import ReceivedVideo
from streaming.settings import Limits
from tests.caller import SETTINGS, live
from tests.fakes import SIDE, FakeFace, FakeGenerator, fake_persona, fake_studio

FPS = 25


def made_for(fps: int, *, chunk: int = 1) -> FakeGenerator:
    """A generator for so many frames a second."""
    return FakeGenerator(GeneratorSpec("fake", (SIDE, SIDE), fps=fps, chunk=chunk))


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize(("camera", "count"), [(30, 50), (24, 60), (60, 25)])
def test_a_clip_is_rendered_at_no_more_than_the_generators_rate(
    camera: int, count: int, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grey = np.full((32, 32, 3), 128, np.uint8)
    pictures = [VideoFrame(grey, k / camera, k + 1) for k in range(60)]
    monkeypatch.setattr("engine.offline.probe", lambda _: SimpleNamespace(frames=60, fps=float(camera), has_audio=False, has_video=True))
    monkeypatch.setattr("engine.offline.video_frames", lambda _: iter(pictures))
    monkeypatch.setattr("engine.drivers.face.FaceDriver", FakeFace)
    written: list[VideoFrame] = []
    monkeypatch.setattr("engine.media.Writer.write_frame", lambda _, frame: written.append(frame))
    monkeypatch.setattr("engine.media.Writer.close", lambda writer: writer.abort())
    told: list[tuple[int, int]] = []
    generator = made_for(FPS, chunk=chunk)
    frames = render(
        generator,
        fake_persona(generator, "red"),
        tmp_path / "clip.mp4",
        tmp_path / "out.mp4",
        settings=SessionSettings(track_body=False),
        progress=lambda *counts: told.append(counts),
    )
    assert frames == len(written) == pytest.approx(count, abs=1)
    assert told[-1][0] == frames
    times = np.array([frame.time for frame in written])
    assert (np.diff(times) > 0).all()
    assert np.diff(times).max() < 2 / min(FPS, camera)
    shown = [frame for frame in written if frame.time < pictures[-1].time]  # a last chunk is filled with the last picture
    assert all(frame.time == pictures[frame.id - 1].time for frame in shown)


@pytest.mark.parametrize(
    ("made", "limit", "camera", "echo", "expected"),
    [(25, 60.0, 30, False, 25), (30, 60.0, 60, False, 30), (25, 20.0, 30, False, 20), (25, 60.0, 24, False, 24), (25, 60.0, 30, True, 30)],
)
def test_a_live_camera_is_thinned_before_it_is_tracked(made: int, limit: float, camera: int, echo: bool, expected: int) -> None:
    settings = replace(SETTINGS, limits=Limits(camera_fps=limit), allow_echo=True)
    picture = av.VideoFrame.from_ndarray(np.zeros((8, 8, 3), np.uint8), format="rgb24")

    def arrives(opened: Live, seconds: int) -> None:
        for k in range(seconds * camera):
            opened.camera(ReceivedVideo(picture, 50 + k / camera, 0, 50 + k / camera))

    async def story() -> None:
        studio = fake_studio(settings, generator=made_for(made))
        studio.start()
        await studio.ready()
        opened = await studio.open(await studio.persona(None), echo=echo)
        tracked: list[ReceivedVideo] = []
        opened.tracking.bring = tracked.append  # type: ignore[method-assign,assignment]
        arrives(opened, 10)
        left_out = opened.stats.drops["camera_fps"]
        assert 10 * camera - left_out == pytest.approx(10 * expected, abs=1)
        assert len(tracked) == (0 if echo else 10 * camera - left_out)
        opened.session.window.thinned = 3
        assert opened.snapshot()["drops"].get("camera_fps", 0) == left_out + 3, "what the window leaves out is counted with it"
        await studio.end(opened)
        await studio.close()

    live(story)
