"""The diffusion generator where people meet it: a session, a persona on disk, the command line. Nothing above it knows what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.batch import Batch
from engine.generators import load
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


def test_a_persona_keeps_the_cached_reference_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "p.png"
    import cv2

    cv2.imwrite(str(picture), demo_portrait()[..., ::-1])
    generator: Any = load("diffusion", preset="tiny")
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
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(AvatarError, match=sentence):
        load("diffusion", **options)
