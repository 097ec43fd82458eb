"""Every generator of the registry keeps the same contract, and so does whatever drives a face; a new generator is tested by its line there."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import generators
from engine.batch import Batch, BatchFull
from engine.drivers.face import FaceDriver
from engine.drivers.replay import ReplayDriver, save
from engine.persona import demo_portrait
from engine.types import AvatarError, FaceSource, Generator, Identity, Signal, VideoFrame, still_motion
from tests.conftest import require_for

ROWS = 3
SESSIONS = 50
SMALLEST: dict[str, dict[str, Any]] = {
    "diffusion": {"preset": "tiny"},
    "lipsync": {"model": "wav2lip_tiny"},
    "reenact": {"preset": "tiny"},
    "video": {"preset": "tiny_unianimate", "steps": 1, "window": 5, "overlap": 3},
}


@pytest.fixture(scope="module", params=sorted(generators.NAMES))
def made(request: pytest.FixtureRequest) -> tuple[Generator, Identity]:
    require_for(request.param)
    # Of a family the smallest: the contract is the same for all sizes.
    generator = generators.load(request.param, **SMALLEST.get(request.param, {}))
    return generator, generator.prepare(demo_portrait())


def signals(spec_chunk: int, seed: int, step: int) -> list[Signal]:
    """Smooth random motion: the same for the same seed."""
    out = []
    for k in range(spec_chunk):
        time = (step * spec_chunk + k) / 30
        phase = np.sin(time * 3 + seed + np.arange(6))
        motion = replace(
            still_motion(),
            head=(phase * np.array([10, 5, 8, 0.05, 0.05, 0.02])).astype(np.float32),
            mouth=np.array([0.2 + 0.15 * phase[0], 0.05 * phase[1], 0.2, 0.2 * phase[2]], np.float32),
            confidence=np.ones(3, np.float32),
        )
        out.append(Signal(time=time, id=step * spec_chunk + k + 1, motion=motion))
    return out


def test_frames_have_the_declared_shape_time_and_id(made: tuple[Generator, Identity]) -> None:
    generator, identity = made
    spec = generator.spec
    assert identity.portrait.shape == (*spec.size, 3)
    state = generator.allocate(ROWS)
    generator.admit(state, 1, identity)
    for step in range(spec.delay + 2):
        asked = signals(spec.chunk, 0, step)
        frames = generator.step(state, [None, asked, None])
        assert frames[0] is None
        assert frames[2] is None
        made_frames = frames[1]
        assert made_frames is not None
        assert len(made_frames) == spec.chunk
        for frame, signal in zip(made_frames, asked, strict=True):
            assert frame.rgb.shape == (*spec.size, 3)
            assert frame.rgb.dtype == np.uint8
            if spec.delay == 0:
                assert (frame.time, frame.id) == (signal.time, signal.id)


def test_a_row_does_not_depend_on_its_neighbours(made: tuple[Generator, Identity]) -> None:
    generator, identity = made
    chunk = generator.spec.chunk
    alone, together = generator.allocate(1), generator.allocate(ROWS)
    generator.admit(alone, 0, identity)
    for row in range(ROWS):
        generator.admit(together, row, identity)
    for step in range(4):
        single = generator.step(alone, [signals(chunk, 5, step)])[0]
        batch = generator.step(together, [signals(chunk, 1, step), signals(chunk, 5, step), None if step % 2 else signals(chunk, 2, step)])[1]
        assert single is not None
        assert batch is not None
        np.testing.assert_array_equal(single[0].rgb, batch[0].rgb)


def test_reset_equals_fresh(made: tuple[Generator, Identity]) -> None:
    generator, identity = made
    chunk = generator.spec.chunk
    used, fresh = generator.allocate(2), generator.allocate(2)
    generator.admit(used, 0, identity)
    generator.admit(fresh, 0, identity)
    for step in range(5):
        generator.step(used, [signals(chunk, 9, step), None])
    generator.reset(used, 0)
    for step in range(2):
        a = generator.step(used, [signals(chunk, 4, step), None])[0]
        b = generator.step(fresh, [signals(chunk, 4, step), None])[0]
        assert a is not None
        assert b is not None
        np.testing.assert_array_equal(a[0].rgb, b[0].rgb)


def test_a_released_row_is_nobody_s_and_given_away_once(made: tuple[Generator, Identity]) -> None:
    generator, identity = made
    asked = signals(generator.spec.chunk, 3, 0)
    batch = Batch(generator, rows=2)
    row = batch.admit(identity)
    batch.step({row: asked})
    batch.release(row)
    batch.release(row)
    with pytest.raises(AvatarError, match="no portrait is seated"):
        batch.step({row: asked})
    assert sorted([batch.admit(identity), batch.admit(identity)]) == [0, 1]
    with pytest.raises(BatchFull):
        batch.admit(identity)


def test_a_signal_without_motion_shows_the_portrait_at_rest(made: tuple[Generator, Identity]) -> None:
    generator, identity = made
    spec = generator.spec
    state = generator.allocate(1)
    generator.admit(state, 0, identity)
    bare = generator.step(state, [[Signal(time=0.0)] * spec.chunk])[0]
    generator.reset(state, 0)  # a frame may depend on those before it
    still = generator.step(state, [[Signal(time=0.0, motion=still_motion())] * spec.chunk])[0]
    assert bare is not None
    assert still is not None
    np.testing.assert_array_equal(bare[-1].rgb, still[-1].rgb)


def test_the_same_portrait_has_the_same_key_and_another_another(made: tuple[Generator, Identity]) -> None:
    generator, identity = made
    assert generator.prepare(demo_portrait()).key == identity.key
    assert generator.prepare(np.ascontiguousarray(demo_portrait()[:, ::-1])).key != identity.key


def test_a_picture_without_a_face_is_refused_in_a_sentence(made: tuple[Generator, Identity]) -> None:
    generator, _ = made
    with pytest.raises(AvatarError, match="face"):
        generator.prepare(np.full((256, 320, 3), 127, np.uint8))


def test_a_full_batch_refuses_and_a_released_row_serves_again(made: tuple[Generator, Identity]) -> None:
    generator, identity = made
    batch = Batch(generator, rows=2)
    first, _ = batch.admit(identity), batch.admit(identity)
    with pytest.raises(BatchFull, match="All 2 places"):
        batch.admit(identity)
    batch.release(first)
    assert batch.admit(identity) == first


def test_many_sessions_leave_nothing_behind(made: tuple[Generator, Identity]) -> None:
    """Each seen, heard and shown once in the same batch. Counted: bytes of Python and NumPy, and PyTorch's tensors that are alive."""
    generator, identity = made
    batch = Batch(generator, rows=2)
    spoken = [replace(signal, pcm=np.full(2560, 0.1, np.float32)) for signal in signals(generator.spec.chunk, 1, 0)]

    def session() -> None:
        row = batch.admit(identity)
        batch.step({row: spoken})
        batch.release(row)

    def held() -> tuple[int, int]:
        gc.collect()
        return tracemalloc.get_traced_memory()[0], sum(type(thing).__name__ == "Tensor" for thing in gc.get_objects())

    tracemalloc.start()
    try:
        for _ in range(10):
            session()
        before = held()
        for _ in range(SESSIONS):
            session()
        after = held()
    finally:
        tracemalloc.stop()
    assert after[1] <= before[1]
    assert after[0] - before[0] < SESSIONS * 500, "bytes: less than any array that a session could leave"


@pytest.fixture(params=["camera", "recording"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FaceSource]:
    driver = FaceDriver()
    if request.param == "recording":
        save(tmp_path / "signals.npz", [driver(VideoFrame(demo_portrait(), k / 30, k + 1)) for k in range(3)])
        driver.close()
        yield ReplayDriver(tmp_path / "signals.npz")
        return
    yield driver
    driver.close()


def test_whatever_drives_a_face_keeps_the_same_contract(source: FaceSource) -> None:
    assert source.neutral_state in ("searching", "set")
    for k in range(5):
        signal = source(VideoFrame(demo_portrait(), 7.0 + k / 30, 100 + k))
        assert (signal.time, signal.id) == (7.0 + k / 30, 100 + k)
        assert signal.motion is not None
        assert signal.motion.confidence[0] > 0.5
        assert np.isfinite(signal.motion.head).all()
        if k == 1:
            source.set_neutral()
        if k == 3:
            source.reset()
