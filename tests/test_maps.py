"""Condition pictures beside a drive: in step by time, in the generator's shape, from clips or a network, and sentences where they cannot be."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import avatar
from engine.batch import Batch
from engine.config import SessionSettings
from engine.drivers.maps import FaceAndMaps, Maps, Network, Recorded
from engine.drivers.replay import save
from engine.driving import live_maps, open_maps
from engine.offline import render
from engine.session import Session
from engine.types import AudioChunk, AvatarError, GeneratorSpec, Signal, UInt8Array, VideoFrame, still_motion
from streaming.settings import ServerSettings
from streaming.studio import Studio
from tests.clips import film, person
from tests.fakes import FakeBody, FakeFace, FakeGenerator, fake_persona
from tests.test_media import RATE, tone, write_wav

SIZE = (64, 96)
"""(H, W) of the generator's frames."""


def shade(value: int, time: float = 0.0, size: tuple[int, int] = SIZE) -> VideoFrame:
    return VideoFrame(np.full((*size, 3), value, np.uint8), time)


def clip(count: int, fps: float, size: tuple[int, int] = SIZE) -> Iterator[VideoFrame]:
    """Picture k has shade k."""
    return (shade(k, k / fps, size) for k in range(count))


def write_network(path: Path, *, gives: int = 1, size: tuple[int | str, int | str] = ("h", "w"), takes: int = 3) -> Path:
    """The colours' mean, upside down; `gives` channels."""
    weights = numpy_helper.from_array(np.full((gives, takes, 1, 1), 1 / takes, np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["picture", "w"], ["grey"]),
        helper.make_node("Slice", ["grey", "from", "to", "axis", "step"], ["depth"]),
    ]
    steps = [
        numpy_helper.from_array(np.array([value], np.int64), name) for name, value in (("from", -1), ("to", -(2**31)), ("axis", 2), ("step", -1))
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, n, *size]) for name, n in (("picture", takes), ("depth", gives))]
    graph = helper.make_graph(nodes, "depth", [ports[0]], [ports[1]], [weights, *steps])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


@dataclass
class Reading(FakeGenerator):
    """Keeps the condition pictures it is given."""

    spec: GeneratorSpec = field(default_factory=lambda: GeneratorSpec("reading", SIZE, fps=50, needs=("motion", "maps")))
    read: list[dict[str, UInt8Array]] = field(default_factory=list)

    def step(self, state: Any, signals: Any) -> Any:
        """See Generator."""
        self.read += [dict(signal.maps or {}) for chunk in signals if chunk is not None for signal in chunk]
        return super().step(state, signals)


@pytest.mark.parametrize(("fps", "drive_fps"), [(25, 25), (10, 25), (30, 12.5), (24, 30)])
def test_a_clip_is_in_step_by_time_whatever_the_rates(fps: float, drive_fps: float) -> None:
    source = Recorded("depth.mp4", clip(round(2 * fps), fps), size=SIZE)
    for k in range(round(2 * drive_fps) - 1):
        shown = int(source(shade(0, k / drive_fps))[0, 0, 0])
        assert shown == int(k / drive_fps * fps + 1e-6), k


def test_it_comes_in_the_generators_size_and_only_in_its_shape() -> None:
    twice = Recorded("depth.mp4", clip(3, 25, (128, 192)), size=SIZE)
    assert twice(shade(0)).shape == (*SIZE, 3)
    with pytest.raises(AvatarError, match=r"'depth.mp4' is 64 x 64 and the generator's frames are 96 x 64; crop the clip to that shape\."):
        Recorded("depth.mp4", clip(3, 25, (64, 64)), size=SIZE)
    with pytest.raises(AvatarError, match="No picture in 'depth.mp4'"):
        Recorded("depth.mp4", iter(()), size=SIZE)


def test_a_clip_that_ends_early_says_so() -> None:
    source = Recorded("depth.mp4", clip(25, 25), size=SIZE)
    assert source(shade(0, 1.1))[0, 0, 0] == 24, "its last picture is held a little"
    with pytest.raises(AvatarError, match=r"'depth.mp4' ends after 1\.0 s and the drive goes on"):
        source(shade(0, 1.5))


@pytest.mark.parametrize("gives", [1, 3])
@pytest.mark.parametrize("size", [("h", "w"), (32, 48)])
def test_a_network_makes_them_of_the_driving_picture(gives: int, size: tuple[Any, Any], tmp_path: Path) -> None:
    network = Network(write_network(tmp_path / "depth.onnx", gives=gives, size=size), size=SIZE, threads=1)
    picture = np.zeros((100, 300, 3), np.uint8)  # wider than the frames: its sides are cut
    picture[:50] = 200
    picture[:, :60] = picture[:, -60:] = 255
    made = network(VideoFrame(picture, 0.0))
    assert made.shape == (*SIZE, 3)
    assert made.dtype == np.uint8
    np.testing.assert_array_equal(made[:28], 0)
    assert np.abs(made[36:].astype(int) - 200).max() <= 1


def test_other_networks_are_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(AvatarError, match="There is no file"):
        Network(tmp_path / "absent.onnx", size=SIZE)
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(AvatarError, match="cannot load"):
        Network(tmp_path / "text.onnx", size=SIZE)
    with pytest.raises(AvatarError, match=r"takes \[1, 4, 'h', 'w'\] of tensor\(float\), and a picture is \[1, 3"):
        Network(write_network(tmp_path / "four.onnx", takes=4), size=SIZE)
    with pytest.raises(AvatarError, match=r"gives \[1, 2, 64, 96\], and a condition picture"):
        Network(write_network(tmp_path / "two.onnx", gives=2), size=SIZE)


def test_they_reach_the_generator_with_their_frame(tmp_path: Path) -> None:
    """A drive of 25 frames a second beside a clip of 10: shade by shade, and the network's beside it."""
    film(tmp_path / "drive.mp4", person(count=20), sound=False)
    film(tmp_path / "depth.mp4", [shade(20 * k, k / 10) for k in range(10)], sound=False)
    write_network(tmp_path / "normal.onnx", gives=3)
    chosen = [f"depth={tmp_path / 'depth.mp4'}", f"normal={tmp_path / 'normal.onnx'}"]
    generator = Reading()
    maps = open_maps(chosen, size=SIZE, drive=tmp_path / "drive.mp4")
    assert render(generator, fake_persona(generator, "red"), tmp_path / "drive.mp4", tmp_path / "out.mp4", maps=maps) == 20
    depth = [float(read["depth"].mean()) for read in generator.read[:20]]
    np.testing.assert_allclose(depth, [20 * int(k / 25 * 10 + 1e-6) for k in range(20)], atol=6)
    assert all(read["normal"].shape == (*SIZE, 3) for read in generator.read)
    assert open_maps([], size=SIZE, drive="none.mp4") is None


def test_a_clip_without_a_face_drives_who_follows_none(tmp_path: Path) -> None:
    """Somebody seen from behind has a DensePose."""
    film(tmp_path / "back.mp4", [shade(90, k / 25) for k in range(5)], sound=False)
    network = write_network(tmp_path / "n.onnx", gives=3)
    generator, told = Reading(), list[str]()

    def run() -> int:
        maps = open_maps([f"densepose={network}"], size=SIZE, drive=tmp_path / "back.mp4")
        persona = fake_persona(generator, "red")
        return render(generator, persona, tmp_path / "back.mp4", tmp_path / "out.mp4", maps=maps, notice=told.append)

    with pytest.raises(AvatarError, match="No face was found"):
        run()
    generator.spec = replace(generator.spec, needs=("maps",))
    assert run() == 5
    assert told == []


def test_choices_that_cannot_be_are_told_before_anything_is_made(tmp_path: Path) -> None:
    film(tmp_path / "drive.mp4", person(count=25), sound=False)
    film(tmp_path / "short.mp4", [shade(k, k / 25) for k in range(10)], sound=False)
    write_network(tmp_path / "n.onnx")
    write_wav(tmp_path / "a.wav", tone(0.5), rate=RATE)
    save(tmp_path / "me.npz", [Signal(0.0, motion=still_motion())])
    drive = tmp_path / "drive.mp4"
    for entry, sentence in (
        ("depth", "write --maps NAME=FILE"),
        ("colour=x.mp4", "densepose, depth, dwpose, normal, semantic, smplx"),
        (f"depth={tmp_path / 'absent.mp4'}", "no file"),
        (f"depth={tmp_path / 'a.wav'}", "has no video"),
        (f"depth={tmp_path / 'short.mp4'}", r"'short.mp4' is 0\.4 s long and the drive 1\.0 s; record it over all of the drive"),
    ):
        with pytest.raises(AvatarError, match=sentence):
            open_maps([entry], size=SIZE, drive=drive)
    with pytest.raises(AvatarError, match="each name once"):
        open_maps([f"depth={tmp_path / 'n.onnx'}"] * 2, size=SIZE, drive=drive)
    with pytest.raises(AvatarError, match="Recorded signals have no pictures"):
        open_maps([f"depth={tmp_path / 'n.onnx'}"], size=SIZE, drive=tmp_path / "me.npz")
    generator = Reading()
    with pytest.raises(AvatarError, match="played beside a driving picture"):
        render(
            generator, fake_persona(generator, "red"), tmp_path / "a.wav", tmp_path / "o.mp4", settings=SessionSettings(drive="voice"), maps=Maps({})
        )


def test_the_command_says_where_nothing_reads_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drive = film(tmp_path / "drive.mp4", person(count=5), sound=False)
    network = write_network(tmp_path / "n.onnx")
    assert avatar.main(["render", "--drive", str(drive), "-o", str(tmp_path / "o.mp4"), "--maps", f"depth={network}"]) == 0
    assert "reads no condition pictures, so --maps changes nothing" in capsys.readouterr().err


def live(generator: Reading, **more: Any) -> Studio:
    """A server's studio over it."""
    return Studio(ServerSettings(workers=1, **more), generator=lambda: generator, face=FakeFace, body=FakeBody, persona=fake_persona)


async def opened(studio: Studio) -> None:
    """Its loading, to the end."""
    studio.start()
    try:
        await studio.ready()
    finally:
        await studio.close()


def test_a_camera_brings_them_by_networks(tmp_path: Path) -> None:
    network = write_network(tmp_path / "n.onnx", gives=3)
    generator = Reading()
    studio = live(generator, maps=(f"densepose={network}", f"depth={network}"))
    asyncio.run(opened(studio))
    assert generator.read, "the rehearsal showed a camera's picture"
    assert all(set(read) == {"densepose", "depth"} for read in generator.read)
    one, other = studio.make_face(), studio.make_face()
    first, second = one(shade(50)), other(shade(200))
    assert float(first.maps["depth"].mean()) == pytest.approx(50, abs=1)
    assert float(second.maps["depth"].mean()) == pytest.approx(200, abs=1)


def test_a_voice_holds_the_last_ones(tmp_path: Path) -> None:
    maps = live_maps([f"depth={write_network(tmp_path / 'n.onnx')}"], Reading().spec)
    assert maps is not None
    generator = Reading()
    settings = SessionSettings(drive="voice")
    silence = np.zeros(RATE // 2, np.float32)
    session = Session(
        Batch(generator, rows=1), fake_persona(generator, "red"), settings=settings, face=FaceAndMaps(FakeFace(), maps), body=FakeBody()
    )
    with contextlib.closing(session):
        assert session.push_audio(AudioChunk(silence, RATE, 0.0)) == []
        session.track(shade(90, 0.5))
        assert session.push_audio(AudioChunk(silence, RATE, 0.5))
    assert generator.read
    assert all(float(read["depth"].mean()) == pytest.approx(90, abs=1) for read in generator.read)


def test_a_live_session_without_them_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = Reading()
    two.spec = replace(two.spec, maps=("depth", "smplx"))
    with pytest.raises(AvatarError, match="for each with --maps depth=FILE.onnx --maps smplx=FILE.onnx, or use `avatar render`"):
        asyncio.run(opened(live(two)))
    film(tmp_path / "depth.mp4", [shade(9)], sound=False)
    for entry, sentence in (
        (f"depth={tmp_path / 'depth.mp4'}", "is no network, and a camera has no clip beside it"),
        ("depth", "names no condition"),
    ):
        assert avatar.main(["serve", "--port", "1", "--maps", entry]) == 2
        assert sentence in capsys.readouterr().err
    with pytest.raises(AvatarError, match="There is no file"):
        asyncio.run(opened(live(Reading(), maps=("depth=nowhere.onnx",))))


@pytest.mark.parametrize(
    ("needs", "names", "given", "sentence"),
    [
        (("motion",), (), ("depth",), "The generator 'reading' reads no condition pictures with these weights; leave --maps out."),
        (("maps",), ("depth", "normal"), ("densepose", "depth"), r"are driven by condition pictures \(depth, normal\), and there is no normal; give"),
        (("maps",), ("depth",), (), r"are driven by condition pictures \(depth\); give a network for each with --maps depth=FILE.onnx"),
        (("maps",), ("depth",), ("depth", "normal"), "are driven by depth and read no normal; leave that --maps out."),
    ],
)
def test_maps_that_are_not_those_of_the_weights_are_told_before_the_server_starts(
    needs: tuple[str, ...], names: tuple[str, ...], given: tuple[str, ...], sentence: str
) -> None:
    """Before any file is opened, too: none of these exists."""
    generator = Reading()
    generator.spec = replace(generator.spec, needs=needs, maps=names)
    with pytest.raises(AvatarError, match=sentence) as caught:
        asyncio.run(opened(live(generator, maps=tuple(f"{name}=nowhere.onnx" for name in given))))
    assert "\n" not in str(caught.value)
    assert not generator.read


def test_maps_that_a_generator_may_read_are_let_through(tmp_path: Path) -> None:
    generator = Reading()
    generator.spec = replace(generator.spec, maps=("smplx",), more_maps=("dwpose",))
    network = write_network(tmp_path / "n.onnx")
    asyncio.run(opened(live(generator, maps=(f"smplx={network}", f"dwpose={network}"))))
    assert set(generator.read[0]) == {"smplx", "dwpose"}


def test_closing_lets_go_of_the_files() -> None:
    closed: list[bool] = []

    def frames() -> Iterator[VideoFrame]:
        try:
            for k in range(9):
                yield replace(shade(k), time=float(k))
        finally:
            closed.append(True)

    Maps({"depth": Recorded("depth.mp4", frames(), size=SIZE)}).close()
    assert closed == [True]
