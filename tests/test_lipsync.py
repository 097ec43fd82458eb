"""The lips generator: a face that speaks where somebody speaks, whoever's face it is."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from engine import serving
from engine.batch import Batch
from engine.drivers.portrait import find_face
from engine.drivers.speech import SpeechDriver
from engine.generators import load
from engine.persona import demo_portrait, make_persona
from engine.session import Session
from engine.types import AudioChunk, AvatarError, FloatArray, Identity, Signal, UInt8Array, VideoFrame, still_motion
from tests.conftest import require, require_for
from tests.voices import vowel

require_for("lipsync")

from engine.generators.lipsync import face, loop  # noqa: E402
from engine.generators.lipsync.bases import mouth_region, mute  # noqa: E402
from engine.generators.lipsync.generator import Lipsync  # noqa: E402

RATE = 16_000
TINY = "wav2lip_tiny"


@cache
def tiny(model: str = TINY) -> tuple[Lipsync, Identity]:
    generator = Lipsync(model)
    return generator, generator.prepare(demo_portrait())


@cache
def speech() -> FloatArray:
    """0.4 s of nothing, 0.6 s of a voice, 0.8 s of nothing."""
    return np.concatenate([np.zeros(6400, np.float32), vowel("a", pitch=120, seconds=0.6), np.zeros(12_800, np.float32)])


@cache
def signals(sound: str = "speech") -> tuple[Signal, ...]:
    """Of a session that hears it, 25 a second."""
    driver, pcm, given, made = SpeechDriver(), speech() if sound == "speech" else np.zeros_like(speech()), 0, []
    for k in range(44):
        while given < min(len(pcm), (k / 25 + 0.14) * RATE):
            driver.hear(AudioChunk(pcm[given : given + 320], RATE, given / RATE))
            given += 320
        made.append(Signal(k / 25, id=k + 1, motion=still_motion(), pcm=driver.at(k / 25).pcm))
    return tuple(made)


def shown(generator: Any, identity: Identity, given: tuple[Signal, ...]) -> list[VideoFrame]:
    """One row's frames."""
    state = generator.allocate(1)
    generator.admit(state, 0, identity)
    return [generator.step(state, [[signal]])[0][0] for signal in given]


def difference(one: UInt8Array, other: UInt8Array) -> float:
    return float(np.abs(one.astype(int) - other).max())


@pytest.mark.parametrize("model", [TINY, "musetalk_tiny"])
def test_the_lips_move_with_the_voice_and_nothing_else_moves(model: str) -> None:
    generator, identity = tiny(model)
    portrait, where = identity.features.pictures[0], identity.features.places[0].box
    frames = shown(generator, identity, signals())
    for frame in frames:
        outside = frame.rgb.copy()
        outside[where[1] : where[3], where[0] : where[2]] = portrait[where[1] : where[3], where[0] : where[2]]
        assert np.array_equal(outside, portrait)
        speaking = difference(frame.rgb, portrait) > 8
        if frame.time < 0.3 or frame.time > 1.6:
            assert not speaking, frame.time
        if 0.5 < frame.time < 0.95:
            assert speaking, frame.time
    assert frames[-1].time == pytest.approx(signals()[-1].time - generator.spec.delay / 25)
    assert frames[-1].id == signals()[-1].id - generator.spec.delay


def test_silence_costs_no_network() -> None:
    generator, identity = tiny()
    state = generator.allocate(1)
    generator.admit(state, 0, identity)
    state.lips.runners = {}
    for signal in signals("silence"):
        frames = generator.step(state, [[signal]])[0]
        assert frames is not None
        assert np.array_equal(frames[0].rgb, identity.portrait)


def test_the_declared_delay_is_all_that_a_frame_waits_for() -> None:
    """What is heard after a frame was due changes nothing in it, and the last sound before that does."""
    generator, identity = tiny()
    given, k = signals(), 24
    pcm = given[k].pcm
    assert pcm is not None
    heard, pictures = {}, {}
    # 240 ms of sound follow a frame of 4 frames ago, and the model looks at 212.5: the last 20 ms may not matter.
    for name, turned in (("same", 0), ("end", 320), ("before", 1280)):
        state = generator.allocate(1)
        generator.admit(state, 0, identity)
        for signal in given[:k]:
            generator.step(state, [[signal]])
        changed = np.concatenate([pcm[: len(pcm) - turned], -pcm[len(pcm) - turned :]])
        frames = generator.step(state, [[replace(given[k], pcm=changed)]])[0]
        seat = state.rows[0]
        assert frames is not None
        assert seat is not None
        assert frames[0].time == pytest.approx((k - 4) / 25)
        heard[name], pictures[name] = state.lips.hear(seat.sound, frames[0].time), frames[0].rgb
    assert np.array_equal(heard["same"], heard["end"])
    assert np.array_equal(pictures["same"], pictures["end"])
    assert np.abs(heard["same"] - heard["before"]).max() > 0.01


@pytest.mark.parametrize("model", [TINY, "musetalk_tiny"])
def test_speaking_rows_do_not_depend_on_their_neighbours(model: str) -> None:
    generator, identity = tiny(model)
    alone = shown(generator, identity, signals()[:24])
    state = generator.allocate(3)
    for row in (0, 2):
        generator.admit(state, row, identity)
    for k, signal in enumerate(signals()[:24]):
        neighbour = replace(signals()[(k + 7) % 24], time=signal.time)
        together = generator.step(state, [[neighbour] if k % 2 else None, None, [signal]])[2]
        assert together is not None
        assert np.array_equal(together[0].rgb, alone[k].rgb)


def test_a_freed_row_holds_nothing() -> None:
    generator, _ = tiny()
    identity = generator.prepare(np.ascontiguousarray(demo_portrait()[:, ::-1]))
    held = weakref.ref(identity.features.pictures[0])
    batch = Batch(generator, rows=2)
    row = batch.admit(identity)
    for signal in signals()[:16]:
        batch.step({row: [signal]})
    batch.release(row)
    del identity
    gc.collect()
    assert held() is None
    assert batch.state.rows == [None, None]


def test_a_session_speaks_with_sound_and_picture_together() -> None:
    generator, _ = tiny()
    persona = make_persona(generator, demo_portrait(), name="demo")
    session = Session(Batch(generator, rows=1), persona)
    session.configure(drive="voice")
    outputs = session.push_audio(AudioChunk(speech(), RATE, 0.0))
    session.close()
    spoken = [output for output in outputs if difference(output.frames[0].rgb, outputs[0].frames[0].rgb) > 8]
    assert len(outputs) > 25
    assert spoken
    for output in spoken:
        sound = np.concatenate([chunk.pcm for chunk in output.audio])
        assert output.audio[0].time == pytest.approx(output.frames[0].time, abs=1e-3)
        assert len(sound) == pytest.approx(RATE / 25, abs=2)
        assert 0.25 < output.frames[0].time < 1.6


@pytest.mark.parametrize("options", [{}, {"over": "puppet"}])
def test_what_was_prepared_can_be_kept(options: dict[str, Any], tmp_path: Path) -> None:
    generator = Lipsync("musetalk_tiny", **options)
    identity = generator.prepare(demo_portrait())
    np.savez(tmp_path / "kept.npz", **generator.pack(identity))
    with np.load(tmp_path / "kept.npz", allow_pickle=False) as arrays:
        kept = {name: arrays[name] for name in arrays.files}
    again = generator.unpack(identity.portrait, kept)
    assert again.key == identity.key
    for one, two in zip(shown(generator, identity, signals()[:24]), shown(generator, again, signals()[:24]), strict=True):
        assert np.array_equal(one.rgb, two.rgb)
    with pytest.raises(AvatarError, match="prepare the portrait again"):
        tiny()[0].unpack(identity.portrait, kept)


# -- other faces ------------------------------------------------------------------------------------------------------------


def test_over_the_puppet_the_head_is_the_camera_s_and_the_mouth_the_voice_s() -> None:
    generator = Lipsync(TINY, over="puppet")
    assert generator.spec.delay == 6  # 212.5 ms at 25 a second: no sound is ahead of the camera
    identity = generator.prepare(demo_portrait())
    turned = replace(still_motion(), head=np.array([12, 0, 0, 0, 0, 0], np.float32), mouth=np.array([0.3, 0, 0, 0], np.float32))
    frames = shown(generator, identity, tuple(replace(signal, motion=turned) for signal in signals()))
    puppet = load("puppet")
    state = puppet.allocate(1)
    puppet.admit(state, 0, identity.features.base)
    shut = replace(turned, mouth=np.zeros(4, np.float32))
    still = puppet.step(state, [[Signal(0.0, motion=shut)]])[0]
    assert still is not None
    silent, speaking = frames[8], frames[26]
    assert np.array_equal(silent.rgb, still[0].rgb)
    assert silent.alpha is not None
    assert difference(speaking.rgb, still[0].rgb) > 8
    centre = face.need(puppet.points(state, 0), speaking.rgb.shape, kind="wav2lip").box  # type: ignore[attr-defined]
    changed = np.argwhere(np.abs(speaking.rgb.astype(int) - still[0].rgb).max(2) > 4)
    assert changed[:, 0].min() >= centre[1] + (centre[3] - centre[1]) // 2
    assert changed[:, 0].max() < centre[3]
    assert (changed[:, 1].min() >= centre[0]) & (changed[:, 1].max() < centre[2])


def test_the_camera_s_drive_hears_the_voice_too() -> None:
    """The head from the camera and the lips from the voice is what lips over another generator are for: no drive has to be chosen for it."""
    generator = Lipsync(TINY, over="puppet")
    persona = make_persona(generator, demo_portrait(), name="demo")
    heard: dict[bool, list[bool]] = {}
    for spoken in (False, True):
        session = Session(Batch(generator, rows=1), persona, face=_Still())
        assert session.settings.drive == "camera"
        frames = []
        for k in range(30):
            if spoken:
                session.hear(AudioChunk(speech()[k * RATE // 25 : (k + 1) * RATE // 25], RATE, k / 25))
            output = session.push_video(VideoFrame(np.zeros((64, 64, 3), np.uint8), k / 25, k + 1))
            frames += [] if output is None else output.frames
        session.close()
        heard[spoken] = [difference(frame.rgb, frames[0].rgb) > 8 for frame in frames]
    assert not any(heard[False])
    assert any(heard[True])


class _Still:
    """Somebody who holds their face still before the camera."""

    neutral_state = "set"

    def __call__(self, frame: VideoFrame) -> Signal:
        return Signal(frame.time, frame.id, motion=replace(still_motion(), confidence=np.ones(3, np.float32)))

    def set_neutral(self) -> None:
        """It is."""

    def reset(self) -> None:
        """Nothing is remembered."""

    def close(self) -> None:
        """Nothing is held."""


def test_a_face_that_its_generator_does_not_point_out_is_found_in_its_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mute:
        """The puppet without its points."""

        def __init__(self) -> None:
            puppet: Any = load("puppet")
            for name in ("spec", "prepare", "allocate", "admit", "reset", "evict", "step"):
                setattr(self, name, getattr(puppet, name))

    monkeypatch.setattr("engine.generators.lipsync.generator.load_generator", lambda name: Mute())
    generator = Lipsync(TINY, over="puppet")
    identity = generator.prepare(demo_portrait())
    frames = shown(generator, identity, signals()[:27])
    assert difference(frames[-1].rgb, frames[8].rgb) > 8


def test_muted_signals_keep_a_smile_and_lose_the_mouth() -> None:
    region = mouth_region(find_face(demo_portrait()).points)
    assert region[152] == 1  # the chin
    assert region[10] == 0  # the forehead
    expression = np.ones((478, 3), np.float32)
    motion = replace(still_motion(), mouth=np.array([0.2, 0.1, 0.3, 0.5], np.float32), expression=expression, expressed=np.ones(2, np.float32))
    muted = mute(Signal(0.0, motion=motion), region).motion
    assert muted is not None
    assert muted.mouth.tolist() == [0, 0, 0, 0.5]
    assert muted.expression is not None
    assert muted.expression[152].max() == 0
    assert muted.expression[10].min() == 1
    spoken = mute(Signal(0.0, motion=replace(motion, expressed=np.zeros(2, np.float32))), region).motion
    assert spoken is not None
    assert spoken.mouth.max() == 0


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1.6 s of the portrait in a wider picture, swaying, 25 a second."""
    require("av")
    from engine.media import Writer

    path = tmp_path_factory.mktemp("loop") / "idle.mp4"
    portrait = cv2.resize(demo_portrait(), (400, 400), interpolation=cv2.INTER_AREA)
    with Writer(path, audio_rate=None) as writer:
        for k in range(40):
            x = 100 + round(14 * np.sin(2 * np.pi * k / 40))
            picture = np.full((420, 640, 3), 90, np.uint8)
            picture[10:410, x : x + 400] = portrait
            picture[10:60, x : x + 60] = 40 + 4 * k  # no picture is another's twin
            writer.write_frame(VideoFrame(picture, k / 25))
    return path


def test_a_loop_is_framed_as_its_portrait_and_plays_forth_and_back(clip: Path) -> None:
    generator = Lipsync(TINY, loop=clip)
    identity = generator.prepare(demo_portrait())
    pictures = identity.features.pictures
    assert 24 <= len(pictures) <= 40
    assert pictures[0].shape == (512, 512, 3)
    middle = min(pictures, key=lambda each: float(np.abs(each.astype(int) - identity.portrait).mean()))
    assert np.abs(middle.astype(int) - identity.portrait).mean() < 12
    silent = [replace(signal, time=k / 25) for k, signal in enumerate(signals("silence") * 3)]
    frames = shown(generator, identity, tuple(silent))[generator.spec.delay :]
    index = [next(i for i, each in enumerate(pictures) if np.array_equal(each, frame.rgb)) for frame in frames]
    assert index[0] == 0
    assert max(index) == len(pictures) - 1
    assert np.abs(np.diff(index)).max() <= 1
    assert index[-1] < max(index)  # it has turned


def test_a_loop_of_somebody_else_is_refused(clip: Path) -> None:
    generator = Lipsync(TINY, loop=clip)
    leaning = cv2.warpAffine(demo_portrait(), cv2.getRotationMatrix2D((384, 384), 22, 1.0), (768, 768), borderMode=cv2.BORDER_REPLICATE)
    with pytest.raises(AvatarError, match="loop does not show"):
        generator.prepare(np.asarray(leaning, np.uint8))


def test_a_loop_turns_without_a_jolt() -> None:
    for length in (25.0, 90.0, 7.0):
        places = np.array([loop.where(k / 4, length) for k in range(round(8 * (length + loop.EASE)))])
        speed = np.diff(places) * 4
        assert np.abs(speed).max() <= 1.001
        assert np.abs(np.diff(speed)).max() * 4 <= 1.01 / min(loop.EASE, length)
        assert places.max() == pytest.approx(length, abs=0.01)
        assert places.min() == 0
        assert {loop.position(k, round(length) + 1) for k in range(round(2 * length + 30))} == set(range(round(length) + 1))


def test_a_loop_turns_where_the_head_is_stillest() -> None:
    speed = np.full(49, 3.0)
    speed[4], speed[42] = 0.1, 0.2
    points = np.concatenate([[0.0], np.cumsum(speed)])[:, None, None] * np.ones((1, 478, 2))
    assert loop.turns(points.astype(np.float32)) == (4, 43)


# -- where the face is ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["wav2lip", "musetalk"])
def test_boxes_lie_as_the_published_ones_and_masks_end_inside_of_them(kind: Any) -> None:
    points = find_face(demo_portrait()).points
    x0, y0, x1, y1 = face.bounds(points, kind=kind)
    chin, bridge, lip = points[152], points[168], points[13]
    assert y1 > chin[1]
    assert x0 < points[234, 0] + 2
    assert x1 > points[454, 0] - 2
    middle = (y0 + y1) / 2
    assert bridge[1] < middle < lip[1]
    if kind == "musetalk":
        nose = points[168, 1] + 2 / 3 * (points[4, 1] - points[168, 1])
        assert y0 == pytest.approx(nose - (chin[1] - nose), abs=3)
    where = face.need(points, demo_portrait().shape, kind=kind)
    left, top, right, bottom = where.box
    assert where.mask.shape == (bottom - top, right - left)
    assert max(where.mask[0].max(), where.mask[-1].max(), where.mask[:, 0].max(), where.mask[:, -1].max()) == 0
    assert where.mask[: (bottom - top) // 2].max() < 0.5
    assert where.mask[round(lip[1]) - top, round(lip[0]) - left] > 0.95
    white = np.full((96, 96, 3), 255, np.float32)
    out = face.paste(demo_portrait(), where, white, 1.0)
    assert out[round(lip[1]), round(lip[0])].min() > 240
    assert np.array_equal(face.paste(demo_portrait(), where, white, 0.0), demo_portrait())
    away = points + np.array([3000, 0], np.float32)
    assert face.place(away, demo_portrait().shape, kind=kind) is None


# -- what is told -----------------------------------------------------------------------------------------------------------


def test_untrained_lips_say_so() -> None:
    assert "untrained" in tiny()[0].spec.notice


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": "lips"}, "no lips model called 'lips'"),
        ({"over": "lipsync"}, "Lips cannot be put over lips"),
        ({"model": TINY, "over": "puppet=somewhere"}, "puppet' takes no option 'weights'"),
        ({"over": "nobody"}, "no generator called 'nobody'"),
        ({"model": TINY, "over": "puppet", "loop": "a.mp4"}, "leave --loop or --over out"),
        ({"backend": "abacus"}, "no backend called 'abacus'"),
        ({"backend": "openvino", "device": "cuda"}, "The backend openvino runs on the CPU"),
        ({"model": TINY, "precision": "int8"}, "no precision called 'int8'"),
        ({"weights": "nowhere"}, "holds no weights of lips"),
        ({"weights": "pyproject.toml"}, "is a file"),
    ],
)
def test_what_cannot_be_is_one_sentence(options: dict[str, Any], says: str) -> None:
    with pytest.raises(AvatarError, match=says):
        Lipsync(**options)


def test_a_loop_that_is_no_video_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(AvatarError, match="cannot be read as a video"):
        Lipsync(TINY, loop=tmp_path / "a.mp4").prepare(demo_portrait())
    with pytest.raises(AvatarError, match="cannot be read"):
        Lipsync(TINY, loop=tmp_path / "b.mp4").prepare(demo_portrait())


def test_openvino_paints_what_pytorch_does() -> None:
    require("openvino")
    generator, identity = tiny()
    other = Lipsync(TINY, backend="openvino")
    frames = shown(generator, identity, signals()[:24]), shown(other, other.prepare(demo_portrait()), signals()[:24])
    assert difference(frames[0][-1].rgb, identity.portrait) > 8
    for one, two in zip(*frames, strict=True):
        assert difference(one.rgb, two.rgb) <= 1


def test_without_a_gpu_wav2lip_is_served_by_openvino_and_nothing_else_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    require("openvino")
    monkeypatch.setattr(serving, "_cuda", lambda: False)
    chosen = serving.choose("lipsync", {})
    assert (chosen.generator, chosen.options) == ("lipsync", {"backend": "openvino"})
    assert chosen.told
    (tmp_path / "weights.json").write_text('{"model": "wav2lip"}')
    assert serving.choose("lipsync", {"weights": tmp_path}).options["backend"] == "openvino"
    (tmp_path / "weights.json").write_text('{"model": "musetalk"}')
    for options in ({"weights": tmp_path}, {"weights": tmp_path / "nowhere"}, {"model": "musetalk"}, {"device": "cpu"}, {"backend": "pytorch"}):
        assert serving.choose("lipsync", options).options == options
    monkeypatch.setattr(serving, "_cuda", lambda: True)
    assert serving.choose("lipsync", {}).options == {}
