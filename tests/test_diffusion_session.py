"""The diffusion generator where people meet it: a session, a persona on disk, the command line. Nothing above it knows what it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from engine.batch import Batch
from engine.config import Background, SessionSettings
from engine.generators import load
from engine.generators.diffusion.presets import PRESETS, TINY
from engine.persona import create, demo_portrait, load_persona, make_persona
from engine.session import Session
from engine.types import AudioChunk, AvatarError, Signal, VideoFrame
from tests.conftest import require_for

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    require_for("diffusion")


def test_camera_and_voice_drive_a_session(tmp_path: Path) -> None:
    """Also with the stream batch, whose frames carry the time of the motion they show."""
    for batched in (False, True):
        generator = load("diffusion", preset="tiny", stream_batch=batched)
        session = Session(Batch(generator, rows=1), make_persona(generator, demo_portrait(), name="me"))
        shown = []
        for k in range(4):
            output = session.push_video(VideoFrame(demo_portrait(), k / 25, k + 1))
            assert output is not None
            shown.append(output.frames[0].id)
        assert generator.spec.delay == int(batched)
        assert shown == ([1, 1, 2, 3] if batched else [1, 2, 3, 4])
        session.configure(drive="voice")
        rng = np.random.default_rng(0)
        outputs = session.push_audio(AudioChunk((0.05 * rng.standard_normal(8000)).astype(np.float32), 16_000, 1.0))
        assert len(outputs) >= 8
        assert all(output.sound_time == output.frames[0].time for output in outputs), "the sound of what is shown"
        assert np.allclose(np.diff([output.sound_time for output in outputs]), 1 / 25), "25 frames a second, none twice"
        assert sum(len(chunk.pcm) for output in outputs[1:] for chunk in output.audio) == (len(outputs) - 1) * 640, "without a gap"
        session.close()


def test_a_change_of_the_drive_gives_up_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the stream batch still holds is shown in the new grid's time; the portrait at rest does not flash up in between."""
    monkeypatch.setitem(PRESETS, "painted", replace(TINY, name="painted", condition="landmarks", size=(96, 64)))
    generator = load("diffusion", preset="painted", steps=3, stream_batch=True, mode="eager")
    assert generator.spec.delay == 2
    session = Session(Batch(generator, rows=1), make_persona(generator, demo_portrait(), name="me"))
    for k in range(5):
        assert session.push_video(VideoFrame(demo_portrait(), k / 25, k + 1)) is not None
    session.configure(drive="voice")
    outputs = session.push_audio(AudioChunk(np.zeros(8000, np.float32), 16_000, 1.0))
    assert [output.frames[0].id for output in outputs[:3]] == [4, 5, 0]
    assert np.allclose(np.diff([output.sound_time for output in outputs]), 1 / 25), "in the time of the sound, without a gap"
    session.configure(drive="camera")
    later = [session.push_video(VideoFrame(demo_portrait(), 2.0 + k / 25, 50 + k)) for k in range(4)]
    assert [output.frames[0].id for output in later if output] == [0, 0, 50, 51]
    assert np.allclose([output.frames[0].time for output in later if output], [1.92, 1.96, 2.0, 2.04])
    session.close()


def test_a_tall_painted_generator_lives_in_the_same_persona_session_and_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As high as (768, 512) is: from the picture to the composite and from the disk back."""
    monkeypatch.setitem(PRESETS, "painted", replace(TINY, name="painted", condition="skeleton", size=(96, 64)))
    generator: Any = load("diffusion", preset="painted", mode="eager")
    picture = tmp_path / "p.png"
    cv2.imwrite(str(picture), demo_portrait()[..., ::-1])
    made = create(generator, picture, name="tall", consent="mine", folder=tmp_path / "personas")
    assert made.identity.portrait.shape == (96, 64, 3)
    across, down = made.scene.fit.rect[2:]
    assert down == pytest.approx(1.5 * across, abs=1)
    with monkeypatch.context() as patch:
        patch.setattr(type(generator), "prepare", lambda *_: pytest.fail("prepared again"))
        kept = load_persona(generator, "tall", folder=tmp_path / "personas")
    assert kept.scene.fit.rect == made.scene.fit.rect
    for background in (Background(), Background(kind="colour")):
        session = Session(Batch(generator, rows=1), kept, settings=SessionSettings(background=background))
        output = session.push_video(VideoFrame(demo_portrait(), 0.0, 1))
        assert output is not None
        assert output.frames[0].rgb.shape == (*kept.scene.size, 3)
        session.close()


def test_a_persona_keeps_the_cached_reference_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "p.png"
    cv2.imwrite(str(picture), demo_portrait()[..., ::-1])
    generator: Any = load("diffusion", preset="tiny", mode="eager")
    made = create(generator, picture, name="kept", consent="mine", folder=tmp_path / "personas")
    calls = []
    monkeypatch.setattr(type(generator), "prepare", lambda *_: calls.append(1))
    again = load_persona(generator, "kept", folder=tmp_path / "personas")
    assert not calls, "the reference network has run once for good"
    assert again.identity.key == made.identity.key
    frames = []
    for persona in (made, again):
        state = generator.allocate(1)
        generator.admit(state, 0, persona.identity)
        frames.append(generator.step(state, [[Signal(time=0.0)]])[0][0].rgb)
    assert np.array_equal(*frames)


def test_a_step_that_fails_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next frames carry their own time, and are those of a session that has just begun."""
    generator: Any = load("diffusion", preset="tiny")
    identity = generator.prepare(demo_portrait())
    state = generator.allocate(1)
    generator.admit(state, 0, identity)
    generator.step(state, [[Signal(time=0.0, id=1)]])

    def broken() -> None:
        raise RuntimeError("no memory")

    works = state.run[0]
    monkeypatch.setitem(state.run, 0, broken)
    with pytest.raises(RuntimeError):
        generator.step(state, [[Signal(time=1.0, id=2)]])
    monkeypatch.setitem(state.run, 0, works)
    frame = generator.step(state, [[Signal(time=2.0, id=3)]])[0][0]
    assert (frame.time, frame.id) == (2.0, 3)
    assert int(state.stream.count[0]) == 1


def test_other_weights_or_precision_are_another_identity() -> None:
    keys = {load("diffusion", preset="tiny", **more).prepare(demo_portrait()).key for more in ({}, {"seed": 1}, {"precision": "bf16"})}
    assert len(keys) == 3


def test_untrained_weights_say_so() -> None:
    assert "untrained" in load("diffusion", preset="tiny").spec.notice


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"preset": "huge"}, "choose one of"),
        ({"preset": "tiny", "steps": 0}, "1 to 1000"),
        ({"preset": "tiny", "precision": "fp8"}, "no precision called"),
        ({"preset": "tiny", "mode": "fast"}, "no mode called"),
        ({"preset": "tiny", "size": (33, 48)}, "multiple"),
        ({"weights": "/nowhere"}, "no weights of this engine"),
        ({"colour": "red"}, "takes no option 'colour'"),
        ({"first_guidance": 1.0}, "takes no option 'first-guidance'"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(AvatarError, match=sentence):
        load("diffusion", **options)
