"""The video systems live: a stream is what a plain loop makes; rows, resets, bounds, refusals, and the graph that backends run."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import avatar
from engine.backends import engines
from engine.conditions.ease import Ease
from engine.generators import load
from engine.media import video_frames
from engine.persona import demo_portrait
from engine.types import AvatarError, Identity, Signal, still_motion
from tests.conftest import found, require
from tests.test_whole import clip  # noqa: F401

if found("torch") and found("diffusers"):
    import torch

    from engine.generators.video import networks, presets, vividpose, vividpose_networks, vividpose_presets
    from engine.generators.video.clips import How
    from engine.generators.video.live import Stream
    from engine.generators.video.rolling import roll
    from engine.generators.video.weights import Plan, read_manifest
    from tests.test_vividpose import seeded

pytestmark = pytest.mark.torch
FPS = 15
WINDOW, PAST = 5, 3
NEW = WINDOW - PAST
PRESETS = ("tiny_unianimate", "tiny_vividpose")


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    require("torch")
    require("diffusers")
    require("transformers")


@pytest.fixture(scope="module", params=PRESETS)
def made(request: pytest.FixtureRequest) -> tuple[Any, Identity]:
    generator = cast(Any, load("video", preset=request.param, device="cpu", mode="eager", steps=2, window=WINDOW, overlap=PAST))
    if request.param == "tiny_vividpose":
        seeded(generator.system.networks.denoiser, 5)  # whose pose and face are silent otherwise
    return generator, generator.prepare(demo_portrait())


def chunk(number: int, *, seed: int = 0, still: bool = False) -> list[Signal]:
    """Signals of a driver who sways, with what stands for renderings of its body."""
    out = []
    for k in range(number * NEW, (number + 1) * NEW):
        motion, map_ = still_motion(), np.full((48, 64, 3), 60, np.uint8)
        if not still:
            motion = replace(motion, head=np.array([8 * np.sin(k / 2 + seed), 0, 12 * np.sin(k / 3 + seed), 0, 0, 0], np.float32))
            map_[(8 + 3 * k + 5 * seed) % 40 :, 10:30] = 200
        out.append(Signal(k / FPS, k + 1, motion=motion, maps={"smplx": map_}))
    return out


def frames(generator: Any, state: Any, row: int, signals: list[Signal]) -> Any:
    """[N, H, W, 3] of one row alone."""
    asked: list[Any] = [None] * len(state.seated)
    asked[row] = signals
    return np.stack([frame.rgb for frame in generator.step(state, asked)[row]])


def streamed(generator: Any, identity: Identity, count: int, **how: Any) -> list[Any]:
    state = generator.allocate(1)
    generator.admit(state, 0, identity)
    return [frames(generator, state, 0, chunk(k, **how)) for k in range(count)]


# -- what a stream is -----------------------------------------------------------------------------------------------------


@torch.no_grad() if found("torch") else (lambda test: test)
def test_chunk_by_chunk_it_is_what_a_plain_loop_over_the_whole_clip_makes(made: tuple[Any, Identity]) -> None:
    """The loop knows all frames from the beginning, each with its own noise by its number, and cuts windows out of them."""
    generator, identity = made
    system, count = generator.system, 4
    live = streamed(generator, identity, count)
    signals, ease = [signal for k in range(count) for signal in chunk(k)], Ease()
    anchor, known = identity.features.anchor, identity.features.known
    driven = [system.rest(signals[0], anchor)] * PAST + [system.condition(signal, anchor, ease) for signal in signals]
    noise = generator.noise()
    own = torch.stack([noise[k % WINDOW] for k in range(len(driven))])
    clean = [known.still] * PAST
    steps = system.steps(2)
    for k in range(count):
        start = k * NEW
        window = range(start, start + WINDOW)
        call = system.call(steps, torch.from_numpy(np.stack([driven[i] for i in window]))[None], known.given)
        begun = steps.begun(known.still, own[start + PAST : start + WINDOW])[None]
        past = torch.stack(clean[start : start + PAST])[None]
        new = roll(steps, call, past=past, noise=own[start : start + PAST][None], begun=begun)[0]
        clean += list(new)
        np.testing.assert_array_equal(live[k], system.networks.decode(new))


def test_the_driver_the_past_and_the_portrait_are_seen(made: tuple[Any, Identity]) -> None:
    generator, identity = made
    plain, other = streamed(generator, identity, 2), streamed(generator, identity, 2, seed=3)
    assert not np.array_equal(plain[0], other[0]), "another driver"
    state = generator.allocate(1)
    generator.admit(state, 0, identity)
    frames(generator, state, 0, chunk(0, seed=3))
    assert not np.array_equal(frames(generator, state, 0, chunk(1)), plain[1]), "another past"
    turned = generator.prepare(np.ascontiguousarray(demo_portrait()[:, ::-1]))
    assert not np.array_equal(streamed(generator, turned, 1)[0], plain[0]), "another portrait"


def test_rows_that_come_go_and_wait_leave_the_others_as_they_are(made: tuple[Any, Identity]) -> None:
    generator, identity = made
    alone = streamed(generator, identity, 3)
    state = generator.allocate(3)
    generator.admit(state, 1, identity)
    generator.admit(state, 0, identity)
    for k in range(3):
        asked: list[Any] = [chunk(k, seed=7) if k != 1 else None, chunk(k), None]
        if k == 1:
            generator.admit(state, 2, identity)
        if k == 2:
            generator.evict(state, 0)
            asked[0], asked[2] = None, chunk(0, seed=2)
        out = generator.step(state, asked)
        np.testing.assert_array_equal(np.stack([frame.rgb for frame in out[1]]), alone[k])
        assert [(frame.time, frame.id) for frame in out[1]] == [(signal.time, signal.id) for signal in chunk(k)]
    assert not any(bool(tensor.any()) for tensor in tensors(state.stream.row(0))), "nothing of who left stays"


def tensors(stream: Stream) -> list[Any]:
    return [stream.pictures, stream.past, stream.noise, stream.still, *stream.given.values()]


def test_a_reset_forgets_and_memory_is_where_it_was(made: tuple[Any, Identity]) -> None:
    generator, identity = made
    fresh = streamed(generator, identity, 2)
    state = generator.allocate(1)
    generator.admit(state, 0, identity)
    frames(generator, state, 0, chunk(0, seed=4))
    places = [(tensor.data_ptr(), tensor.shape) for tensor in tensors(state.stream)]
    for _ in range(2):
        frames(generator, state, 0, chunk(1, seed=4))
    generator.reset(state, 0)
    for k in range(2):
        np.testing.assert_array_equal(frames(generator, state, 0, chunk(k)), fresh[k])
    assert [(tensor.data_ptr(), tensor.shape) for tensor in tensors(state.stream)] == places
    assert list(state.rows) == [0]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_still_drive_stays_bounded(preset: str) -> None:
    generator = cast(Any, load("video", preset=preset, device="cpu", mode="eager", steps=1, window=3, overlap=3 - NEW))
    identity = generator.prepare(demo_portrait())
    state = generator.allocate(1)
    generator.admit(state, 0, identity)
    sizes = []
    for k in range(50):
        frames(generator, state, 0, chunk(k, still=True))
        sizes.append(float(state.stream.past.abs().max()))
    assert np.isfinite(sizes).all()
    assert max(sizes[25:]) <= 1.5 * max(sizes[:25]), "no growth"


# -- what is declared -----------------------------------------------------------------------------------------------------


def test_the_plan_is_what_was_asked_taught_or_the_rule() -> None:
    taught = Plan(2, 8, 6)
    assert How().plan(None, 32) == Plan(4, 16, 12)
    assert How().plan(None, 14) == Plan(4, 14, 11)
    assert How().plan(None, 4) == Plan(4, 4, 3)
    assert How().plan(taught, 32) == taught
    assert How(steps=1, window=20).plan(taught, 32) == Plan(1, 20, 15)
    assert How(overlap=10).plan(taught, 32) == Plan(2, 12, 10)
    assert How(overlap=20).plan(None, 32) == Plan(4, 24, 20)
    assert How(window=4, overlap=0).plan(None, 32) == Plan(4, 4, 0)
    assert taught.new == 2


def weights(folder: Path, origin: dict[str, str]) -> Path:
    networks.save(networks.build(presets.TINY, seed=3), folder, origin=origin)
    return folder


PUBLISHED = {"system": "UniAnimate", "made_for": "31 steps with guidance 2.5", "steps": "31"}
TAUGHT = {"made_by": "avatar train", "steps": "1", "window": "3", "overlap": "1"}


def test_published_weights_say_what_they_would_take_and_taught_ones_run_as_they_were_taught(tmp_path: Path) -> None:
    published = load("video", weights=weights(tmp_path / "published", PUBLISHED), device="cpu")
    assert published.spec.chunk == 4
    for told in (
        "made for 31 steps with guidance, and nobody has taught them to run live: in 4 steps",
        "a picture leaves 2.1 s after its motion at the earliest, since 32 frames are made at once",
        "they take 62 evaluations of the network",
        "here 4 frames are made at once (0.27 s), beside 12 of the past, in 4 steps.",
        "`avatar render --offline` does it as published",
    ):
        assert told in published.spec.notice
    taught = cast(Any, load("video", weights=weights(tmp_path / "taught", TAUGHT), device="cpu"))
    assert (taught.plan, taught.spec.chunk, taught.spec.notice) == (Plan(1, 3, 1), 2, "")
    with pytest.raises(AvatarError, match="were taught to run live, in 1 steps a frame; leave --offline out"):
        taught.at_leisure(taught.prepare(demo_portrait()), [Signal(0.0)], kept=tmp_path, steps=None, guidance=None)
    assert read_manifest(weights(tmp_path / "teacher", TAUGHT | {"made_for": "31 steps"})).taught is None
    for wrong in ({"window": "1"}, {"steps": "0"}, {"overlap": "x"}):
        with pytest.raises(AvatarError, match=r"does not say how they run live \(steps, window, overlap\); train them again"):
            load("video", weights=weights(tmp_path / "wrong", TAUGHT | wrong), device="cpu")


@pytest.mark.parametrize("system", ["unianimate", "vividpose"])
def test_a_teacher_renders_windows_as_long_as_it_was_taught(system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = TAUGHT | {"made_for": "31 steps", "window": "6"}
    if system == "unianimate":
        weights(tmp_path / "w", teacher)
    else:
        vividpose_networks.save(vividpose_networks.build(vividpose_presets.TINY, seed=3), tmp_path / "w", origin=teacher)
    made = cast(Any, load("video", weights=tmp_path / "w", device="cpu"))
    settings = list[Any]()

    def rendered(*given: Any, **told: Any) -> Any:
        settings.append(told["settings"])
        return np.zeros((1, 1))

    assert (made.system.published.window, made.plan.window) == (6, 6)
    assert "since 6 frames are made at once" in made.notice or "since 6 frames are made at once" in made.spec.notice
    monkeypatch.setattr(f"engine.generators.video.{system}_clips.render", rendered)
    maps = {"smplx": np.zeros((*made.spec.size, 3), np.uint8)}
    identity = made.prepare(demo_portrait())
    for window in (None, 4):
        other = cast(Any, load("video", weights=tmp_path / "w", device="cpu", window=window))
        other.at_leisure(identity, [Signal(0.0, maps=maps, motion=still_motion())], kept=tmp_path, steps=1, guidance=None)
    assert [(one.size, one.overlap) for one in settings] == [(6, 3), (4, 2)]
    (tmp_path / "w" / "weights.json").write_text((tmp_path / "w" / "weights.json").read_text().replace('"window": "6"', '"window": "none"'))
    with pytest.raises(AvatarError, match="names windows of 'none' frames, which is no number; train them again"):
        load("video", weights=tmp_path / "w", device="cpu")


def test_asked_for_nothing_it_is_the_size_that_costs_nothing() -> None:
    assert load("video", device="cpu").spec.size == presets.TINY.size


def test_vividpose_tells_of_itself_too(tmp_path: Path) -> None:
    made = vividpose_networks.build(vividpose_presets.TINY, seed=3)
    vividpose_networks.save(made, tmp_path / "w", origin={"system": "VividPose", "steps": "25"})
    generator = cast(Any, load("video", weights=tmp_path / "w", device="cpu", mode="eager"))
    assert "know no pose" in generator.notice
    told = "made for 25 steps with guidance, and nobody has taught them to run live: in 4 steps without guidance the picture is soft. As published "
    assert told + "a picture leaves 0.2 s after its motion at the earliest, since 4 frames" in generator.spec.notice
    assert "they take 50 evaluations of the network; here 1 frames are made at once (0.07 s), beside 3 of the past" in generator.spec.notice


def test_what_a_portrait_leaves_has_the_declared_shapes(made: tuple[Any, Identity]) -> None:
    generator, identity = made
    shapes = {name: tuple(tensor.shape) for name, tensor in identity.features.known.given.items()}
    assert shapes == generator.system.known_shapes()
    for size in vividpose_presets.PRESETS.values():
        assert len(vividpose.read_shapes(size)) == len(size.channels[:-1]) * (2 * size.blocks + 1) + 1


# -- what goes wrong ------------------------------------------------------------------------------------------------------


def test_numbers_that_are_none_are_given_up_and_not_shown(made: tuple[Any, Identity], caplog: pytest.LogCaptureFixture) -> None:
    generator, identity = made
    fresh = streamed(generator, identity, 1)
    state = generator.allocate(1)
    generator.admit(state, 0, identity)
    frames(generator, state, 0, chunk(0))
    state.stream.past.fill_(float("nan"))
    with caplog.at_level(logging.WARNING):
        shown = frames(generator, state, 0, chunk(1))
    assert state.lost == 1
    np.testing.assert_array_equal(shown, np.stack([identity.portrait] * NEW))
    np.testing.assert_array_equal(frames(generator, state, 0, chunk(0)), fresh[0], "it has begun anew")
    state.stream.given["tokens" if "tokens" in state.stream.given else "context"].fill_(float("nan"))
    generator.reset(state, 0)
    with pytest.raises(AvatarError, match="These weights make no picture in fp32: even at a new beginning their numbers are not finite"):
        frames(generator, state, 0, chunk(1))


def test_a_body_that_nobody_renders_is_asked_for() -> None:
    generator = cast(Any, load("video", preset="tiny_vividpose", device="cpu", mode="eager", steps=1))
    state = generator.allocate(1)
    generator.admit(state, 0, generator.prepare(demo_portrait()))
    for _ in range(2):
        with pytest.raises(AvatarError, match="there is no smplx; give each with --maps NAME=FILE"):
            generator.step(state, [[Signal(0.0, motion=still_motion())]])
    assert generator.step(state, [chunk(0)[:1]])[0] is not None


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no backend of that name": ({"backend": "nothing"}, "has no backend called 'nothing'"),
    "no graphs": ({"backend": "onnxruntime"}, "ONNX Runtime runs exported graphs; export them"),
    "no step": ({"steps": 0}, "takes 1 to 949 denoising steps, not 0"),
    "a mode that needs a GPU": ({"mode": "cudagraph"}, "CUDA graphs need a CUDA GPU"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_one_sentence(name: str) -> None:
    options, message = REFUSED[name]
    with pytest.raises(AvatarError, match=message):
        load("video", preset="tiny_unianimate", **{"device": "cpu"} | options)


# -- from the command line ------------------------------------------------------------------------------------------------


def test_the_front_door_renders_it_live(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    out = tmp_path / "out.mp4"
    words = ["render", "--drive", str(clip), "--generator", "video", "--steps", "1", "--window", "3", "--overlap", "2", "-o", str(out)]
    assert avatar.main([*words, "--first-guidance", "2"]) == 2
    assert "A live stream has no guidance; give --offline beside --first-guidance, or leave it out." in capsys.readouterr().err
    assert avatar.main(words) == 0
    assert "These weights are untrained" in capsys.readouterr().err
    assert len(list(video_frames(out))) > 3


def test_an_export_is_found_compared_and_served(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("onnxruntime", "onnx", "onnxscript"):
        require(part)
    monkeypatch.setattr("exporters.graphs.export_command.WINDOWS", 8)
    folder = weights(tmp_path / "w", TAUGHT)
    assert avatar.main(["export", "--weights", str(folder), "--backend", "onnxruntime"]) == 0
    said = capsys.readouterr().out
    assert "tiny_unianimate, 1-step, windows of 3 with 1 past" in said
    (engine,) = (folder / engines.HOME).iterdir()
    assert f"Serve it: avatar serve --generator video --weights {folder} --steps 1 --backend onnxruntime --graphs {engine}" in said
    run = cast(Any, load("video", weights=folder, backend="onnxruntime", graphs=engine))
    plain = cast(Any, load("video", weights=folder, device="cpu", mode="eager"))
    identity = plain.prepare(demo_portrait())
    mine, theirs = streamed(run, identity, 4), streamed(plain, identity, 4)
    assert max(np.abs(a.astype(int) - b.astype(int)).max() for a, b in zip(mine, theirs, strict=True)) <= 1
    with pytest.raises(AvatarError, match="has input 'pictures' .* where .* is asked for"):
        load("video", weights=folder, backend="onnxruntime", graphs=engine, window=4)
    with pytest.raises(AvatarError, match="exported from other weights"):
        load("video", weights=weights(tmp_path / "other", PUBLISHED), backend="onnxruntime", graphs=engine)
