"""The diffusion generator at the edge of its device, with doubles for the device: both ends, all rows at once, warming up, too little
memory, numbers that are none, graphs. What only a GPU can show is in tests marked gpu."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from engine.backends import pytorch
from engine.batch import Batch, warm_up
from engine.config import SessionSettings
from engine.generators import load
from engine.generators.diffusion.presets import PRESETS, TINY, Preset
from engine.persona import demo_portrait, make_persona
from engine.session import Session
from engine.types import AvatarError, Identity, Signal, still_motion
from streaming.settings import ServerSettings
from streaming.studio import Studio
from streaming.worker import Stepper
from tests.conftest import found, require_for
from tests.fakes import FakeBody, FakeFace
from tests.test_worker import FakeSeat

if found("torch") and found("diffusers"):
    import torch

    from engine.generators.diffusion import stream as streams
    from engine.generators.diffusion.memory import exhausted
    from engine.generators.diffusion.staging import Staging

pytestmark = pytest.mark.torch
LEAST = replace(
    TINY,
    name="least",
    size=(16, 24),
    unet=replace(TINY.unet, channels=(16,), attention=(False,), motion=(False,)),
    window=4,
)
"""Attention, past and all in the middle alone."""
PATIENCE = 120.0
"""s that another thread is waited for."""


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    require_for("diffusion")


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A generator of LEAST, or of another preset, none of whose layers is zero; one call after another, nothing traced."""

    def made(preset: Preset = LEAST, **options: Any) -> Any:
        monkeypatch.setitem(PRESETS, preset.name, preset)
        generator: Any = load("diffusion", preset=preset.name, **{"mode": "eager"} | options)
        torch.manual_seed(0)
        for layer in (generator.recipe.networks.denoiser.conv_out, generator.recipe.networks.guider.conv_out):
            torch.nn.init.normal_(layer.weight, std=0.1)
        return generator

    return made


@pytest.fixture(scope="module")
def others() -> Any:
    """Another portrait than the demo one."""
    return np.ascontiguousarray(demo_portrait()[:, ::-1])


def at(k: int, *, nod: float = 0.0) -> list[Signal]:
    """The chunk of frame k."""
    motion = still_motion()
    motion.head[1] = nod
    return [Signal(time=k / 25, id=k + 1, motion=motion)]


def seated(generator: Any, *identities: Identity) -> Any:
    """A State with a row for each."""
    state = generator.allocate(len(identities))
    for row, identity in enumerate(identities):
        generator.admit(state, row, identity)
    return state


def pictures(generator: Any, state: Any, *asked: tuple[int, ...], count: int = 3) -> list[list[Any]]:
    """Frames of every row, stepping these rows in turn."""
    seen: list[list[Any]] = [[] for _ in state.rows]
    for k in range(count):
        for rows in asked:
            for row, made in enumerate(generator.step(state, [at(k, nod=5.0 * row) if row in rows else None for row in range(len(state.rows))])):
                seen[row] += [frame.rgb for frame in made or []]
    return seen


# -- both ends, and all rows at once --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batched", [False, True], ids=["in-turn", "stream-batch"])
def test_all_rows_in_one_call_equal_each_alone(batched: bool, make: Callable[..., Any], others: Any) -> None:
    """The accelerator's way, with one row of three at rest, against the CPU's."""
    generator = make(stream_batch=batched)
    mine, theirs = generator.prepare(demo_portrait()), generator.prepare(others)
    alone = seated(generator, mine, theirs, mine)
    want = pictures(generator, alone, (0, 2))
    generator.spec = replace(generator.spec, together=True)
    together = seated(generator, mine, theirs, mine)
    got = pictures(generator, together, (0, 2))
    assert list(alone.run) == [0, 2]
    assert list(together.run) == [None]
    assert want[1] == got[1] == []
    for row in (0, 2):
        assert len(got[row]) == 3
        assert max(int(np.abs(a.astype(int) - b).max()) for a, b in zip(got[row], want[row], strict=True)) <= 1
    assert not np.array_equal(got[0][-1], got[2][-1]), "each has its own motion"
    assert together.stream.count.tolist() == [3, 0, 3]
    pictures(generator, together, (1,), count=1)
    assert list(together.run) == [None, 1], "one session alone pays for one"


@pytest.mark.parametrize("together", [False, True])
def test_buffers_on_the_host_change_nothing(together: bool, make: Callable[..., Any], others: Any) -> None:
    """As on a device, where both ends have buffers of their own; who is not asked keeps what was there."""
    generator = make()
    generator.spec = replace(generator.spec, together=together)
    mine, theirs = generator.prepare(demo_portrait()), generator.prepare(others)
    plain, apart = seated(generator, mine, theirs), seated(generator, mine, theirs)
    assert plain.ends.condition is plain.stream.condition, "a CPU copies nothing"
    apart.ends = Staging.apart(apart.stream, pinned=False)
    for asked in ((0,), (0, 1), (1,)):
        want, got = pictures(generator, plain, asked, count=2), pictures(generator, apart, asked, count=2)
        for row in (0, 1):
            assert len(got[row]) == (2 if row in asked else 0)
            assert all(np.array_equal(a, b) for a, b in zip(got[row], want[row], strict=True))
    assert plain.stream.count.tolist() == apart.stream.count.tolist() == [4, 4]
    before = apart.stream.condition[0].clone()
    apart.ends.put(0, np.full_like(before.numpy(), 9), np.zeros((1, 16, 80), np.float32))
    apart.ends.send([1])
    assert torch.equal(apart.stream.condition[0], before)
    assert apart.stream.active.tolist() == [False, True]


def test_speech_crosses_in_the_precision_of_the_stream(make: Callable[..., Any]) -> None:
    """A copy that has to convert would be waited for."""
    generator = make(precision="bf16")
    state = seated(generator, generator.prepare(demo_portrait()))
    assert Staging.apart(state.stream, pinned=False).speech.dtype == state.stream.speech.dtype == torch.bfloat16


# -- warming up -----------------------------------------------------------------------------------------------------------


class Prepared:
    """Counts how often each way of a State was stepped; stands for what captures after some steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: dict[Any, int] = {}
        really = pytorch.prepared

        def prepared(module: Any, tensors: Any, **options: Any) -> Callable[[], None]:
            run = really(module, tensors, **options)

            def call() -> None:
                self.calls[call] = self.calls.get(call, 0) + 1
                run()

            return call

        monkeypatch.setattr(pytorch, "prepared", prepared)


def untouched(batch: Batch) -> None:
    """Nothing of anybody is there."""
    state: Any = batch.state
    assert state.rows == [None] * batch.rows
    assert batch._free == list(reversed(range(batch.rows)))
    assert not state.proven
    assert not any(state.shown)
    for name in ("count", "condition", "speech", "out", "x", "hints", "spoken", "bases"):
        assert not getattr(state.stream, name).any(), name
    for pair in (*state.stream.reference, *state.stream.identity, *state.stream.rings):
        assert not any(bool(x.any()) for x in pair)


def test_warming_up_takes_every_way_and_leaves_no_trace(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ways, generator = Prepared(monkeypatch), make()
    generator.spec = replace(generator.spec, together=True, warm_up=pytorch.WARM_UPS + 1)
    batch = Batch(generator, rows=2)
    warm_up(batch, generator.prepare(demo_portrait()), together=True)
    state: Any = batch.state
    assert list(state.run) == [None, 0, 1]
    assert [ways.calls[run] for run in state.run.values()] == [pytorch.WARM_UPS + 1] * 3
    untouched(batch)


def test_rows_are_free_again_when_warming_up_fails(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    generator = make()
    batch = Batch(generator, rows=2)
    monkeypatch.setattr(generator, "_run", broken(torch.OutOfMemoryError("CUDA out of memory.")))
    with pytest.raises(AvatarError, match="not enough to make a frame"):
        warm_up(batch, generator.prepare(demo_portrait()), together=False)
    untouched(batch)


def test_a_servers_first_session_steps_what_was_warmed_up(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """On the thread, in the State and in the rows that sessions get."""
    ways, generator = Prepared(monkeypatch), make()
    generator.spec = replace(generator.spec, together=True, warm_up=pytorch.WARM_UPS + 1)
    settings = ServerSettings(max_sessions=2, trackers=1)

    async def story() -> None:
        studio = Studio(
            settings, generator=lambda: generator, face=FakeFace, body=FakeBody, persona=lambda g, name: make_persona(g, demo_portrait(), name=name)
        )
        studio.start()
        try:
            await studio.ready()
            [stepper] = studio._steppers
            batch: Any = stepper._batch
            runs = dict(batch.state.run)
            assert list(runs) == [None, 0, 1]
            assert min(ways.calls[run] for run in runs.values()) >= pytorch.WARM_UPS + 1
            untouched(batch)
            live = await studio.open(await studio.persona(None))
            stepped = await asyncio.wrap_future(stepper.call(lambda batch: batch.step({live.session.row: at(0)})))
            assert stepped[live.session.row][0].id == 1
            assert dict(batch.state.run) == runs, "nothing was left to prepare"
            assert stepper._batch is batch
        finally:
            await studio.close()

    asyncio.run(story())


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for another thread, on however busy a machine."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


# -- too little memory ----------------------------------------------------------------------------------------------------


def broken(error: Exception) -> Callable[..., Any]:
    """Raises whatever it is asked."""

    def call(*_: Any, **__: Any) -> Any:
        raise error

    return call


def test_what_counts_as_too_little_memory() -> None:
    def chained() -> BaseException:
        try:
            try:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            finally:
                raise RuntimeError("the capture was not finished")
        except RuntimeError as error:
            return error

    assert exhausted(chained()), "the end of a capture hides what ended it"
    assert exhausted(torch.cuda.OutOfMemoryError("CUDA out of memory."))
    assert exhausted(RuntimeError("CUDA error: out of memory"))
    assert exhausted(MemoryError())
    assert not exhausted(RuntimeError("shapes do not fit"))
    assert not exhausted(None)


def test_too_little_memory_is_told_and_the_rows_stay_usable(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    generator = make()
    identity = generator.prepare(demo_portrait())
    short = broken(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    with monkeypatch.context() as patch:
        patch.setattr(generator.recipe.networks, "remember", short)
        with pytest.raises(AvatarError, match=r"^The memory of this machine is not enough to prepare a portrait; use fewer sessions") as caught:
            generator.prepare(demo_portrait())
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None, "nothing holds what the attempt had allocated"
    batch = Batch(generator, rows=2)
    with monkeypatch.context() as patch:
        patch.setattr(streams, "open_stream", short)
        with pytest.raises(AvatarError, match=r"to hold 2 sessions at once; use fewer sessions \(--max-sessions\) or a smaller size\.$"):
            batch.admit(identity)
    assert [batch.admit(identity), batch.admit(identity)] == [0, 1]
    batch.step({0: at(0), 1: at(0)})
    state: Any = batch.state
    with monkeypatch.context() as patch:
        patch.setitem(state.run, 1, short)
        with pytest.raises(AvatarError, match="to make a frame; "):
            batch.step({1: at(1)})
        assert batch.step({0: at(1)})[0][0].id == 2, "the others go on"
    assert state.stream.count.tolist() == [2, 0]
    assert batch.step({1: at(7)})[1][0].id == 8
    batch.release(1)
    assert batch.admit(identity) == 1


def test_a_gpu_in_full_precision_may_be_asked_for_less(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    generator = make()
    generator.device = torch.device("cuda")
    with pytest.raises(AvatarError, match=r"memory of this GPU .*, a smaller size or --precision fp16\.$"):
        generator._within_memory("make a frame", broken(torch.OutOfMemoryError("CUDA out of memory.")))
    monkeypatch.setattr(torch.nn.Module, "to", broken(torch.OutOfMemoryError("CUDA out of memory.")))
    with pytest.raises(AvatarError, match="not enough to hold the weights; use a smaller preset or --device cpu"):
        make()


def test_a_session_without_memory_ends_with_the_sentence_and_the_others_go_on(make: Callable[..., Any]) -> None:
    generator = make()
    persona = make_persona(generator, demo_portrait(), name="me")
    stepper = Stepper(generator, rows=2)

    def seat(batch: Batch) -> FakeSeat:
        return FakeSeat(Session(batch, persona, settings=SessionSettings(drive="voice"), face=FakeFace(), body=FakeBody()))

    good, ill = (stepper.call(seat).result(30.0) for _ in range(2))

    def short(batch: Any) -> None:
        batch.state.run[ill.session.row] = broken(torch.OutOfMemoryError("CUDA out of memory."))

    stepper.call(short).result(30.0)
    for each in (good, ill):
        stepper.seat(each).result(30.0)
    eventually(lambda: bool(ill.errors))
    assert str(ill.errors[0]).startswith("The memory of this machine is not enough to make a frame; use fewer sessions")
    before = len(good.outputs)
    eventually(lambda: len(good.outputs) > before + 1)
    assert not good.errors
    stepper.stop()


# -- numbers that are none ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batched", [False, True], ids=["in-turn", "stream-batch"])
def test_a_poisoned_past_is_given_up_once(batched: bool, make: Callable[..., Any], others: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The frame shows the condition, in its own time; the next one is a beginning; nobody else notices."""
    generator = make(stream_batch=batched)
    mine, theirs = generator.prepare(demo_portrait()), generator.prepare(others)
    state, calm, fresh = seated(generator, mine, theirs), seated(generator, mine, theirs), seated(generator, mine)
    for k in range(4):
        for each in (state, calm):
            generator.step(each, [at(k), at(k)])
    row = state.stream.row(0)
    last = (0, -1) if batched else (-1, 0)  # level whose call makes the picture
    row.rings[0][0][*last, 0, 0, 0, 0] = torch.nan  # one number of a key of the pinned frame
    with caplog.at_level(logging.WARNING):
        made, other = generator.step(state, [at(4), at(4)])
        _, want = generator.step(calm, [at(4), at(4)])
        condition = generator._base.step(seated(generator._base, mine.features.base), [at(4)])[0][0]
    assert made[0].id == (4 if batched else 5)
    assert made[0].time == pytest.approx((made[0].id - 1) / 25)
    assert np.array_equal(made[0].rgb, condition.rgb), "the puppet at rest"
    assert np.array_equal(other[0].rgb, want[0].rgb)
    assert (state.lost, state.proven) == (1, {1})
    assert int(state.stream.count[0]) == 0
    for k in range(5, 8):
        again, begun = generator.step(state, [at(k), None])[0], generator.step(fresh, [at(k)])[0]
        assert np.array_equal(again[0].rgb, begun[0].rgb)
    row.rings[0][0].fill_(torch.nan)
    with caplog.at_level(logging.WARNING):
        generator.step(state, [at(8), None])
    assert state.lost == 2
    assert sum("not finite" in record.message for record in caplog.records) == 1, "told once, counted"


@pytest.mark.parametrize(("precision", "advice"), [("fp32", "import or train them again"), ("bf16", "use --precision fp32")])
def test_weights_that_make_no_picture_end_the_session(precision: str, advice: str, make: Callable[..., Any]) -> None:
    generator = make(precision=precision)
    state = seated(generator, *[generator.prepare(demo_portrait())] * 2)
    generator.step(state, [at(0), at(0)])
    weight = generator.recipe.networks.denoiser.conv_out.weight
    good = weight.clone()
    weight[0, 0, 0, 0] = torch.inf
    assert generator.step(state, [at(1), None])[0][0].id == 2, "once may be chance"
    with pytest.raises(AvatarError, match=rf"These weights make no picture in {precision}: .*; {advice}\.$"):
        generator.step(state, [at(2), None])
    weight.copy_(good)
    assert [frames[0].id for frames in generator.step(state, [at(3), at(3)])] == [4, 4]
    assert state.lost == 2


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_decoder_that_bounds_what_it_gets_hides_nothing(bad: float, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    generator = make()
    state = seated(generator, generator.prepare(demo_portrait()))
    coder, stream = generator.recipe.networks.autoencoder, state.stream
    stream.active[:] = True
    decode = coder.decode
    monkeypatch.setattr(coder, "decode", lambda latents: torch.nan_to_num(decode(latents)).tanh())
    streams.step(generator.recipe, stream)
    assert stream.finite.tolist() == [True]
    generator.recipe.networks.denoiser.conv_out.bias[0] = bad
    streams.step(generator.recipe, stream)
    assert stream.finite.tolist() == [False]


# -- graphs and compiling -------------------------------------------------------------------------------------------------


@dataclass
class Cuda:
    """What of `torch.cuda` a capture uses: it runs where CUDA would record, and tells in what order things came."""

    told: list[Any] = field(default_factory=list)
    recording: bool = False

    @contextmanager
    def device(self, on: Any) -> Iterator[None]:
        """See torch.cuda."""
        yield

    stream = device

    @contextmanager
    def graph(self, graph: Any, *, pool: Any, capture_error_mode: str) -> Iterator[None]:
        """See torch.cuda."""
        self.told.append(("capture", pool, capture_error_mode))
        self.recording = True
        try:
            yield
        finally:
            self.recording = False

    def Stream(self) -> Any:
        """See torch.cuda."""
        return self

    current_stream = Stream

    def wait_stream(self, other: Any) -> None:
        """See torch.cuda.Stream."""

    def CUDAGraph(self) -> Any:
        """See torch.cuda."""
        return self

    def replay(self) -> None:
        """See torch.cuda.CUDAGraph."""
        self.told.append("replay")


def test_a_step_is_captured_after_its_warm_up_and_only_replayed_then(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, fails = Cuda(), [False, True]  # from the end: the first capture fails
    monkeypatch.setattr(torch, "cuda", cuda)

    def module(x: Any) -> None:
        if cuda.recording and fails.pop():
            raise RuntimeError("no memory")
        cuda.told.append("recorded" if cuda.recording else "ran")

    run = pytorch.prepared(module, [torch.zeros(1)], mode="cudagraph", pool=(0, 7))
    for _ in range(pytorch.WARM_UPS):
        run()
    with pytest.raises(RuntimeError, match="no memory"):
        run()
    run()
    run()
    capture = ("capture", (0, 7), "thread_local")
    assert cuda.told == [*["ran"] * pytorch.WARM_UPS, capture, capture, "recorded", "replay", "replay"]


def test_all_graphs_of_a_state_share_their_memory(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    generator, pools = make(), []
    generator.mode, generator.spec = "cudagraph", replace(generator.spec, together=True)
    handles = iter(range(5))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))
    really = pytorch.prepared

    def prepared(module: Any, tensors: Any, *, mode: str, pool: Any) -> Callable[[], None]:
        pools.append(pool)
        return really(module, tensors, mode="eager")

    monkeypatch.setattr(pytorch, "prepared", prepared)
    identity = generator.prepare(demo_portrait())
    for _ in range(2):
        pictures(generator, seated(generator, identity, identity), (0, 1), (0,), (1,), count=1)
    assert pools == [0, 0, 0, 1, 1, 1]


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # the compiler's own import
def test_the_denoiser_compiles_whole_and_once_for_all_rows(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What mode compile hands to the compiler: no break in the graph, no second compilation. The code it would make is left out here:
    minutes on two cores; AVATAR_COMPILE=1 makes it."""
    compilations: list[Any] = []

    def backend(graph: Any, example: Any) -> Any:
        compilations.append(graph)
        return graph.forward

    really = torch.compile
    options = {} if os.environ.get("AVATAR_COMPILE") else {"backend": backend, "fullgraph": True}
    monkeypatch.setattr(torch, "compile", lambda module, **more: really(module, **more, **options))
    plain, generator = make(), make(mode="compile")
    assert generator.backend == "pytorch compile"
    frames = [pictures(each, seated(each, *[each.prepare(demo_portrait())] * 2), (0,), (1,)) for each in (plain, generator)]
    for a, b in zip(*frames, strict=True):
        assert max(int(np.abs(x.astype(int) - y).max()) for x, y in zip(a, b, strict=True)) <= 1
    assert len(compilations) == (0 if os.environ.get("AVATAR_COMPILE") else 1)
