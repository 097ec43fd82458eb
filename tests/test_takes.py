"""Recordings on a server's disk: whole files with a consent beside them or nothing, and every refusal in one sentence."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from engine.media import probe
from engine.types import AvatarError, Signal, UInt8Array, VideoFrame, still_motion
from exporters.data.storage import find_videos
from streaming import takes as taking
from streaming.film import inspect
from streaming.guide import KEYS
from streaming.observer import Observer
from streaming.settings import MIB, Limits, ServerSettings
from streaming.takes import Takes, fit_name
from streaming.takes_api import TAKES
from tests.caller import SETTINGS, House, ask, house, live, until
from tests.fakes import FakeFace

STATEMENT = "I am the person in the picture."
BEGIN = {"name": "me", "consent": STATEMENT, "type": "video/webm", "width": 320, "sound": True}
FPS = 25


class Person(FakeFace):
    """A face in the middle of every picture."""

    def __call__(self, frame: VideoFrame) -> Signal:
        """See FaceDriver."""
        face = np.random.default_rng(1).uniform(0.4, 0.6, (478, 3)).astype(np.float32)
        return Signal(frame.time, frame.id, face=face, motion=still_motion(), confidence={"face": 1.0, "mouth": 1.0})


class Nobody:
    """A tracker of other faces that sees none."""

    def detect(self, rgb: UInt8Array) -> list[Any]:
        """See FaceTracker."""
        return []

    def close(self) -> None:
        """See FaceTracker."""


@pytest.fixture(autouse=True)
def _fake_crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taking, "Observer", partial(Observer, crowd=Nobody))


def recorded(seconds: float = 3.0, *, picture: bool = True) -> bytes:
    """What a browser's recorder makes: a WebM that does not say how long it is, with pictures at uneven times and Opus."""
    out = io.BytesIO()
    out.seekable = lambda: False  # type: ignore[method-assign]
    with av.open(out, "w", format="webm", options={"live": "1"}) as container:
        sound = container.add_stream("libopus", rate=48_000, layout="mono")
        if picture:
            video = container.add_stream("libvpx", rate=FPS, width=64, height=48, pix_fmt="yuv420p", options={"deadline": "realtime"})
            for index in range(round(seconds * FPS)):
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), index % 200, np.uint8), format="rgb24")
                frame.pts = index + (index % 3 == 1) * (index // 40)
                container.mux(video.encode(frame))
            container.mux(video.encode())
        for index in range(round(seconds * 50)):
            block = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.int16), format="s16", layout="mono")
            block.sample_rate, block.pts = 48_000, 960 * index
            container.mux(sound.encode(block))
        container.mux(sound.encode())
    return out.getvalue()


@pytest.fixture(scope="module")
def film() -> bytes:
    return recorded()


@pytest.fixture
def takes(tmp_path: Path) -> Iterator[Takes]:
    made = Takes(tmp_path / "recordings", Limits(), face=Person)
    yield made
    made.close()


def record(takes: Takes, data: bytes, *, name: str = "me", parts: int = 3) -> dict[str, Any]:
    """A whole take."""
    take = takes.start(name, STATEMENT, kind="video/webm", width=640, sound=True)
    for number in range(parts):
        takes.append(take, number, data[number * len(data) // parts : (number + 1) * len(data) // parts])
    return takes.finish(take, pieces=parts, size=len(data))


def left(takes: Takes) -> list[str]:
    """Everything on the disk."""
    return sorted(path.name for path in takes.folder.rglob("*") if path.is_file())


# -- files ----------------------------------------------------------------------------------------------------------------


def test_a_file_of_another_kind_than_it_says_is_refused(takes: Takes, film: bytes) -> None:
    with pytest.raises(AvatarError, match="cannot be read"):
        record(takes, b"ffconcat version 1.0\nfile me-1.webm\n" + film)
    assert left(takes) == [".me-1.part"], "not kept"


def test_a_take_becomes_a_whole_file_with_its_length_and_its_consent(takes: Takes, film: bytes, tmp_path: Path) -> None:
    (tmp_path / "raw.webm").write_bytes(film)
    assert not inspect(tmp_path / "raw.webm").timed
    saved = record(takes, film)
    assert left(takes) == ["me-1.json", "me-1.webm"]
    video = Path(saved["path"])
    assert find_videos([takes.folder / "me"]) == [video]
    clip = probe(video)
    assert (clip.has_video, clip.has_audio) == (True, True)
    assert clip.duration == pytest.approx(3.0, abs=0.1)
    assert inspect(video).timed
    beside = json.loads((takes.folder / "me" / "me-1.json").read_text())
    assert beside["consent"]["statement"] == STATEMENT
    assert (beside["video"], beside["size"], beside["sound"], beside["pictures"]) == ("me-1.webm", [64, 48], True, 3 * FPS)
    assert (takes.folder / "me").stat().st_mode & 0o077 == 0, "nobody else's business"


def test_nothing_is_overwritten(takes: Takes, film: bytes) -> None:
    first = Path(record(takes, film)["path"])
    before = first.read_bytes()
    open_one = takes.start("me", STATEMENT, kind="video/mp4", width=640, sound=True)
    record(takes, film)
    assert left(takes) == [".me-2.part", "me-1.json", "me-1.webm", "me-3.json", "me-3.webm"]
    assert first.read_bytes() == before
    takes.discard(open_one)
    assert ".me-2.part" not in left(takes)


def test_what_was_shown_before_is_remembered(takes: Takes, film: bytes) -> None:
    beside = Path(record(takes, film)["path"]).with_suffix(".json")
    told = json.loads(beside.read_text())
    beside.write_text(json.dumps({**told, "shows": ["rest", "left"], "seconds_of_use": 40.0}))
    (beside.parent / "me-9.json").write_text("{")
    take = takes.start("me", STATEMENT, kind="video/webm", width=640, sound=True)
    assert set(KEYS) - set(take.guide.missing()) == {"rest", "left"}
    assert take.guide.have["minute"] == 40.0
    beside.write_text(json.dumps({**told, "shows": list(KEYS)}))
    assert set(takes.start("me", STATEMENT, kind="video/webm", width=640, sound=True).guide.missing()) == set(KEYS), "whole: it begins anew"


def test_a_clip_s_manifest_says_what_that_clip_shows(takes: Takes, film: bytes) -> None:
    """Clips that are taken away again take what they showed with them."""

    def clip(showing: str, seconds: float) -> Path:
        take = takes.start("me", STATEMENT, kind="video/webm", width=640, sound=True)
        take.guide.have[showing] += 9.0
        take.guide.have["minute"] += seconds
        takes.append(take, 0, film)
        return Path(takes.finish(take, pieces=1, size=len(film))["path"]).with_suffix(".json")

    clips = [json.loads(clip(*shown).read_text()) for shown in (("left", 25.0), ("jaw", 40.0))]
    assert [(told["shows"], told["seconds_of_use"]) for told in clips] == [(["left"], 25.0), (["jaw"], 40.0)]
    known = taking.Recorded(takes.folder / "me")
    assert known.done == {"left", "jaw", "minute"}, "a minute of both together"
    assert (known.clips, known.seconds) == (2, 65.0)


@pytest.mark.parametrize(
    ("text", "name"),
    [("me", "me"), (" Zoë  B. ", "Zoë-B"), ("../../etc/passwd", "etc-passwd"), ("a\0b\n", "a-b"), ("-rf x", "rf-x"), ("𠀀" * 70, "𠀀" * 50)],
)
def test_names_are_made_fit(text: str, name: str) -> None:
    assert fit_name(text) == name


@pytest.mark.parametrize("text", ["", "  ", "../..", "\u202e"])
def test_names_that_cannot_be(text: str) -> None:
    with pytest.raises(AvatarError, match="name"):
        fit_name(text)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"not a video" * 999, "cannot be read"),
        (recorded(1.0), "only 1"),
        (recorded(picture=False), "no picture"),
    ],
)
def test_what_is_no_recording_is_not_kept(takes: Takes, data: bytes, sentence: str) -> None:
    with pytest.raises(AvatarError, match=sentence):
        record(takes, data)
    assert left(takes) == [".me-1.part"]
    takes.close()
    assert left(takes) == []
    assert not (takes.folder / "me").exists()


def test_pieces_come_in_order_and_the_newest_may_come_twice(takes: Takes, film: bytes) -> None:
    take = takes.start("me", STATEMENT, kind="video/webm", width=640, sound=True)
    takes.append(take, 0, film[:1000])
    takes.append(take, 0, film[:1000])
    for number, data in ((0, b"another"), (2, b"x"), (1, b"")):
        with pytest.raises(AvatarError, match="lost on the way"):
            takes.append(take, number, data)
    takes.append(take, 1, film[1000:])
    for pieces, size in ((3, len(film)), (2, len(film) + 1)):
        with pytest.raises(AvatarError, match="not arrived"):
            takes.finish(take, pieces=pieces, size=size)
    saved = takes.finish(take, pieces=2, size=len(film))
    assert takes.finish(take, pieces=2, size=len(film)) == saved, "asked again, since the answer was lost"
    with pytest.raises(AvatarError, match="over"):
        takes.append(take, 2, b"x")
    takes.discard(take)
    assert left(takes) == ["me-1.json", "me-1.webm"]


def test_it_is_bounded(tmp_path: Path, film: bytes) -> None:
    small = Takes(tmp_path / "small", Limits(take_bytes=1000), face=Person)
    with pytest.raises(AvatarError, match="larger than"):
        record(small, film)
    short = Takes(tmp_path / "short", Limits(take_seconds=2.5 - taking.LATE_SECONDS), face=Person)
    take = short.start("me", STATEMENT, kind="video/webm", width=640, sound=True)
    short.append(take, 0, film)
    with pytest.raises(AvatarError, match="longer than"):
        short.finish(take, pieces=1, size=len(film))
    take.began -= 60.0
    with pytest.raises(AvatarError, match="longer than"):
        short.append(take, 1, b"x")
    for takes in (small, short):
        takes.close()
        assert left(takes) == []


def test_a_whole_mp4_in_fragments_is_taken_too(takes: Takes) -> None:
    """What Safari records."""
    out = io.BytesIO()
    out.seekable = lambda: False  # type: ignore[method-assign]
    with av.open(out, "w", format="mp4", options={"movflags": "frag_keyframe+empty_moov+default_base_moof"}) as container:
        video = container.add_stream("libx264", rate=FPS, width=64, height=48, pix_fmt="yuv420p", options={"g": "10"})
        for index in range(3 * FPS):
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), index, np.uint8), format="rgb24")))
        container.mux(video.encode())
    data = out.getvalue()
    take = takes.start("me", STATEMENT, kind="video/mp4", width=640, sound=False)
    takes.append(take, 0, data)
    saved = takes.finish(take, pieces=1, size=len(data))
    assert (saved["video"], saved["pictures"], saved["sound"]) == ("me-1.mp4", 3 * FPS, False)
    assert probe(Path(saved["path"])).duration == pytest.approx(3.0, abs=0.1)


# -- a disk that is full, a server that dies ----------------------------------------------------------------------------------


def test_a_disk_without_room_takes_no_recording(takes: Takes, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=900 * MIB))
    with pytest.raises(AvatarError, match="disk is full"):
        takes.start("me", STATEMENT, kind="video/webm", width=640, sound=True)
    assert left(takes) == []


def test_a_piece_that_found_no_room_may_be_sent_again(takes: Takes, film: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    take = takes.start("me", STATEMENT, kind="video/webm", width=640, sound=True)
    takes.append(take, 0, film[:1000])
    whole = take.part

    class Full:
        """Half of it is written, then the disk is full."""

        closed = False

        def write(self, data: bytes) -> None:
            whole.write(data[: len(data) // 2])
            whole.flush()
            raise OSError(errno.ENOSPC, "No space left on device")

        def __getattr__(self, name: str) -> Any:
            return getattr(whole, name)

    with monkeypatch.context() as patch:
        patch.setattr(take, "part", Full())
        with pytest.raises(AvatarError, match="disk is full"):
            takes.append(take, 1, film[1000:])
    assert take.path.stat().st_size == 1000, "as if it had not come"
    takes.append(take, 1, film[1000:])
    assert takes.finish(take, pieces=2, size=len(film))["pictures"] == 3 * FPS


@pytest.mark.parametrize("step", ["timed", "_write"])
def test_a_file_that_found_no_room_is_not_there_and_may_be_kept_later(takes: Takes, film: bytes, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    take = takes.start("me", STATEMENT, kind="video/webm", width=640, sound=True)
    takes.append(take, 0, film)
    with monkeypatch.context() as patch:
        patch.setattr(taking, step, full)
        with pytest.raises(AvatarError, match="disk is full"):
            takes.finish(take, pieces=1, size=len(film))
    assert left(takes) == [".me-1.part"]
    takes.finish(take, pieces=1, size=len(film))
    assert left(takes) == ["me-1.json", "me-1.webm"]


def test_no_video_is_there_before_its_consent(takes: Takes, film: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    take = takes.start("me", STATEMENT, kind="video/webm", width=640, sound=True)
    takes.append(take, 0, film)
    moved = Path.replace
    order: list[str] = []

    def replaced(self: Path, target: Path) -> Path:
        order.append(Path(target).name)
        return moved(self, target)

    monkeypatch.setattr(Path, "replace", replaced)
    takes.finish(take, pieces=1, size=len(film))
    assert order == ["me-1.json", "me-1.webm"]


def test_half_files_of_a_dead_server_go_and_those_of_a_living_one_stay(takes: Takes) -> None:
    folder = takes.folder / "me"
    folder.mkdir(parents=True)
    dead, alive, new = (folder / f".me-{number}.part" for number in (1, 2, 3))
    for path in (dead, alive, new):
        path.write_bytes(b"half")
    for path in (dead, alive):
        os.utime(path, (1.0, 1.0))
    with alive.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        take = takes.start("me", STATEMENT, kind="video/webm", width=640, sound=True)
    assert left(takes) == [".me-1.part", ".me-2.part", ".me-3.part"]
    assert take.path == dead, "its number is free again"
    assert dead.read_bytes() == b""


# -- the routes -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path: Path) -> ServerSettings:
    return replace(SETTINGS, persona_dir=tmp_path / "personas", limits=Limits(takes=1, piece_bytes=200_000))


def jpeg(level: int = 120) -> bytes:
    """A plain picture."""
    return bytes(cv2.imencode(".jpg", np.full((120, 160, 3), level, np.uint8))[1])


async def begin(home: House, **changed: Any) -> tuple[int, Any]:
    """Ask for a recording."""
    status, _, body = await ask(home, "POST", "/studio/takes", json={**BEGIN, **changed})
    return status, body


def test_a_recording_over_http(settings: ServerSettings, film: bytes, tmp_path: Path) -> None:
    async def story() -> None:
        async with house(settings) as home:
            home.studio._make_face = Person
            status, _, page = await ask(home, "GET", "/studio")
            assert status == 200
            assert "Record a minute" in page
            status, _, tasks = await ask(home, "GET", "/studio/tasks")
            assert [task["key"] for task in tasks] == list(KEYS)
            status, made = await begin(home, name="Zoë B.", consent=" It's me. ")
            assert (status, made["name"], made["missing"]) == (200, "Zoë-B", list(KEYS))
            at = f"/studio/takes/{made['id']}"
            for _ in range(3):
                status, _, told = await ask(home, "POST", f"{at}/picture?loud=0.1", data=jpeg())
                assert status == 200
            assert {task["key"]: task for task in told["tasks"]}["rest"]["now"] == 1.0
            for number in range(2):
                half = film[number * len(film) // 2 : (number + 1) * len(film) // 2]
                status, _, told = await ask(home, "POST", f"{at}/piece?number={number}", data=half)
                assert (status, told["pieces"]) == (200, number + 1)
            status, _, saved = await ask(home, "POST", f"{at}/finish", json={"pieces": 2, "bytes": len(film)})
            assert status == 200
            folder = tmp_path / "recordings" / "Zoë-B"
            assert saved["path"] == str(folder / "Zoë-B-1.webm")
            assert shlex.split(saved["command"]) == ["avatar", "train", "--video", str(folder), "--out", "Zoë-B", "--consent", "It's me."]
            assert saved["missing"] == list(KEYS)
            assert left(home.app[TAKES]) == ["Zoë-B-1.json", "Zoë-B-1.webm"]
            status, _ = await begin(home)
            assert status == 200, "one that is kept holds no place"

    live(story)


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"name": ""}, "name"),
        ({"name": "../.."}, "name"),
        ({"name": 7}, "name"),
        ({"consent": ""}, "consent"),
        ({"consent": " \n"}, "consent"),
        ({"type": "video/avi"}, "video/webm"),
        ({"type": None}, "video/webm"),
        ({"width": 20}, "pixels wide"),
        ({"width": "wide"}, "whole number"),
        ({"width": True}, "whole number"),
        ({"width": 1e9}, "whole number"),
    ],
)
def test_a_recording_that_cannot_begin(changed: dict[str, Any], word: str, settings: ServerSettings) -> None:
    async def story() -> None:
        async with house(settings) as home:
            status, body = await begin(home, **changed)
            assert status == 400
            assert word in body["error"]
            assert len(home.app[TAKES]) == 0
            assert left(home.app[TAKES]) == []

    live(story)


def test_whatever_is_sent_wrongly_is_refused_in_words(settings: ServerSettings) -> None:
    async def story() -> None:
        async with house(settings) as home:
            home.studio._make_face = Person
            _, made = await begin(home)
            at = f"/studio/takes/{made['id']}"
            for path, options, status in (
                (f"{at}/picture?loud=0.1", {"data": b"no picture"}, 400),
                (f"{at}/picture?loud=0.1", {"data": b""}, 400),
                (f"{at}/picture?loud=nan", {"data": jpeg()}, 400),
                (f"{at}/picture?loud=loud", {"data": jpeg()}, 400),
                (f"{at}/picture?loud=0.1", {"data": b"x" * 300_000}, 413),
                (f"{at}/piece", {"data": b"x"}, 400),
                (f"{at}/piece?number=-1", {"data": b"x"}, 400),
                (f"{at}/piece?number=7", {"data": b"x"}, 400),
                (f"{at}/piece?number=0", {"data": b""}, 400),
                (f"{at}/piece?number=0", {"data": b"x" * 200_001}, 413),
                (f"{at}/finish", {"data": b"x"}, 400),
                (f"{at}/finish", {"json": {"pieces": "all", "bytes": 0}}, 400),
                (f"{at}/finish", {"json": {"pieces": 1, "bytes": 10}}, 400),
                ("/studio/takes/nothing/picture?loud=0", {"data": jpeg()}, 404),
                ("/studio/takes/nothing/piece?number=0", {"data": b"x"}, 404),
                ("/studio/takes/nothing/finish", {"json": {"pieces": 1, "bytes": 1}}, 404),
                ("/studio/takes", {"data": b"["}, 400),
            ):
                answered, _, body = await ask(home, "POST", path, **options)
                assert (answered, path) == (status, path)
                assert body["error"].endswith((".", "'me'."))
            status, body = await begin(home)
            assert (status, "being recorded" in body["error"]) == (503, True)
            for _ in range(2):
                status, _, _ = await ask(home, "DELETE", at)
                assert status == 204
            assert (await begin(home))[0] == 200

    live(story)


def test_a_tab_that_was_closed_leaves_nothing(settings: ServerSettings, tmp_path: Path, film: bytes) -> None:
    settings = replace(settings, limits=replace(settings.limits, take_idle_seconds=0.2))

    async def story() -> None:
        async with house(settings) as home:
            _, made = await begin(home)
            at = f"/studio/takes/{made['id']}"
            assert (await ask(home, "POST", f"{at}/piece?number=0", data=film[:5000]))[0] == 200
            await until(lambda: not len(home.app[TAKES]))
            status, _, body = await ask(home, "POST", f"{at}/piece?number=1", data=film[5000:])
            assert (status, "record it again" in body["error"]) == (404, True)
            assert (await begin(home))[0] == 200
        assert not [path for path in (tmp_path / "recordings").rglob("*") if path.is_file()], "nor does a server that ends"

    live(story)


def test_a_stranger_records_nothing(settings: ServerSettings) -> None:
    async def story() -> None:
        async with house(replace(settings, token="open sesame")) as home:
            assert (await begin(home))[0] == 401
            for path in ("/studio", "/studio/tasks"):
                assert (await ask(home, "GET", path))[0] == 200

    live(story)
