"""The live chunk as one graph: it equals `stream.Step`, on every backend, while rings fill and wrap and rows begin anew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.backends import artifact, backend
from engine.generators import load
from engine.generators.diffusion.presets import PRESETS, TINY, Preset
from engine.persona import demo_portrait
from engine.types import AvatarError
from tests.conftest import found, require, require_for
from tests.test_contract import signals

if found("torch") and found("diffusers"):
    import torch

    from engine.generators.diffusion import compiled, graphs
    from engine.generators.diffusion import stream as streams
    from engine.generators.diffusion.autoencoder import to_pixels, to_unit
    from engine.generators.diffusion.networks import save
    from engine.generators.diffusion.temporal import places, put_at
    from tests.networks import error, seeded
    from tests.test_diffusion import clip, recipe

pytestmark = pytest.mark.torch
SAME = 1e-5
"""Relative error, fp32."""
FRAMES = 24
SMALL = replace(TINY, size=(16, 24), unet=replace(TINY.unet, attention=(False, False), motion=(False, False)))
"""As TINY, with attention in the middle only: a third as much to convert."""


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    require_for("diffusion")


class Unrounded:
    """A runner of the graph before its pictures are rounded, which it keeps, and rounds itself."""

    def __init__(self, networks: Any, steps: int, name: str = "pytorch", **options: Any) -> None:
        self.seen: list[Any] = []
        self._runner = backend(name).load(graphs.step_spec(networks, steps, rounded=False), **options)

    def __call__(self, inputs: Any) -> dict[str, Any]:
        made = self._runner(inputs)
        self.seen.append(torch.from_numpy(made["picture"].copy()))
        return {**made, "picture": to_pixels(torch.from_numpy(made["picture"])).numpy()}


def _compared(made: Preset, name: str = "pytorch") -> Iterator[tuple[float, Any, Any]]:
    """Two rows that stream by turns, one of which begins anew half way and then gets another portrait: for every frame of either,
    (error of the picture before rounding, the row of `stream.Step`, the row of the graph)."""
    networks: Any = seeded(made)
    how = recipe(networks)
    portrait, condition, speech = clip(made)
    cache, stranger = networks.remember(portrait), networks.remember(-portrait)
    want, got = (streams.open_stream(how, 2, cache) for _ in range(2))
    runner = Unrounded(networks, made.steps, name)
    graph = compiled.Compiled(how, runner, compiled.Calendar.of(made))
    run = [graph.prepared(got.row(row)) for row in range(2)]
    pictures: list[Any] = []
    decode = networks.autoencoder.decode

    def spied(latents: Any) -> Any:
        picture = decode(latents)
        pictures.append(picture)
        return picture

    networks.autoencoder.decode = spied
    for stream in (want, got):
        for row in range(2):
            streams.seat(stream, row, cache)
    for t in range(FRAMES):
        for stream in (want, got):
            if t == 15:
                streams.forget(stream, 1)
            if t == 20:
                streams.vacate(stream, 1)
                streams.seat(stream, 1, stranger)
        for row in range(2) if t % 3 else [1]:
            start = t % (FRAMES - made.chunk)
            chunk = slice(start, start + made.chunk)
            for stream in (want, got):
                for each in range(2):
                    stream.active[each] = each == row
                stream.condition[row], stream.speech[row] = condition[chunk], speech[chunk]
            streams.step(how, want.row(row))
            plain = pictures[-1] + (to_unit(want.condition[row]) if made.residual else 0.0)
            for each in (row, 1 - row):
                run[each]()  # the other one has nothing to do and must be left alone
            yield error(runner.seen[-1], plain), want.row(row), got.row(row)


def _holds(made: Preset, name: str = "pytorch") -> None:
    frames = list(_compared(made, name))
    assert len(frames) > 1.5 * FRAMES
    assert max(each for each, _, _ in frames) < SAME
    for _, want, got in frames:
        assert int(want.count) == int(got.count)
        assert bool(got.finite[0])
        assert int((want.out.int() - got.out.int()).abs().max()) <= 1
        for pair, other in zip(want.rings, got.rings, strict=True):
            assert error(other[0], pair[0]) < SAME
            assert error(other[1], pair[1]) < SAME


@pytest.mark.parametrize(("steps", "window", "sinks", "chunk"), [(1, 5, 0, 1), (2, 6, 2, 1), (4, 6, 1, 2)])
def test_the_graph_is_the_step(steps: int, window: int, sinks: int, chunk: int) -> None:
    _holds(replace(SMALL, steps=steps, window=window, sinks=sinks, chunk=chunk))


@pytest.mark.parametrize("steps", [1, 2])
def test_tensors_that_stay_on_their_device_make_the_same(steps: int) -> None:
    """As TensorRT gets them; here the device is the CPU, and PyTorch the runner."""
    made = replace(SMALL, steps=steps, window=6, sinks=1, chunk=2)
    networks = seeded(made)
    how = recipe(networks)
    portrait, condition, speech = clip(made)
    cache = networks.remember(portrait)
    want, got = (streams.open_stream(how, 2, cache) for _ in range(2))
    runner = backend("pytorch").load(graphs.step_spec(networks, steps))
    graph = compiled.Compiled(how, runner, compiled.Calendar.of(made))
    rows = [(graph.prepared(want.row(row)), replace(graph, on_device=True).prepared(got.row(row))) for row in range(2)]
    for stream in (want, got):
        for row in range(2):
            streams.seat(stream, row, cache)
    for t in range(0, FRAMES - 2, 2):
        for stream in (want, got):
            stream.active[0], stream.active[1] = True, t % 3 == 0
            stream.condition[:], stream.speech[:] = condition[t : t + 2], speech[t : t + 2]
        for pair in rows:
            for run in pair:
                run()
        for one, other in zip(want.tensors(), got.tensors(), strict=True):
            assert torch.equal(one, other)
    assert want.count.tolist() == [FRAMES - 2, 2 * len(range(0, FRAMES - 2, 6))]
    got.rings[0][1].fill_(torch.inf)
    rows[0][1]()
    assert not bool(got.finite[0])


def test_a_residual_is_the_conditions_own() -> None:
    _holds(replace(SMALL, steps=1, residual=True, unet=replace(SMALL.unet, image_dim=0), image_encoder="none", scale=4.0))


def test_the_graph_is_the_step_on_openvino() -> None:
    require("openvino")
    _holds(replace(SMALL, steps=2, window=6, sinks=1), "openvino")


@pytest.mark.parametrize(("window", "sinks", "chunk"), [(4, 0, 1), (6, 2, 1), (9, 3, 2), (5, 3, 1)])
def test_the_calendar_is_the_rule(window: int, sinks: int, chunk: int) -> None:
    made = replace(TINY, window=window, sinks=sinks, chunk=chunk)
    calendar = compiled.Calendar.of(made)
    active = torch.ones(1, dtype=torch.bool)
    for count in range(5 * window):
        today, now = calendar.row(count), torch.tensor([count])
        at = places(now, chunk, made).placed(window, torch.float32)
        np.testing.assert_array_equal(calendar.where[today], at.where[0])
        np.testing.assert_array_equal(calendar.bias[today], at.bias[0])
        slots = put_at(now, chunk, active, made)[:, 0].tolist()
        assert set(calendar.put[today]) == {(frame, slot) for each in slots for frame, slot in enumerate(each)}


def test_numbers_that_are_none_are_told() -> None:
    made = replace(SMALL, steps=1)
    networks = seeded(made)
    how = recipe(networks)
    stream = streams.open_stream(how, 1, networks.remember(torch.zeros(1, 3, *made.size)))
    graph = compiled.Compiled(how, backend("pytorch").load(graphs.step_spec(networks, 1)), compiled.Calendar.of(made))
    stream.active[:] = True
    graph.prepared(stream.row(0))()
    assert bool(stream.finite[0])
    stream.rings[0][1].fill_(torch.inf)
    graph.prepared(stream.row(0))()
    assert not bool(stream.finite[0])


def test_the_portraits_graph_is_what_is_remembered() -> None:
    networks = seeded(TINY)
    spec = graphs.graphs(recipe(networks))["remember"]
    inputs = spec.examples(seed=2)
    got = backend("pytorch").load(spec)(inputs)
    cache = networks.remember(torch.from_numpy(inputs["portrait"]).permute(0, 3, 1, 2) / 127.5 - 1)
    assert error(torch.from_numpy(got["reference.1.v"]), cache.reference[1][1]) < SAME
    assert error(torch.from_numpy(got["identity.0.k"]), cache.identity[0][0]) < SAME
    assert len(got) == 2 * (len(cache.reference) + len(cache.identity))


def test_a_session_on_openvino_is_one_on_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sessions at once, whose rows must not mix."""
    require("openvino")
    monkeypatch.setitem(PRESETS, "tiny", SMALL)
    weights, rng = tmp_path / "weights", np.random.default_rng(0)
    save(seeded(SMALL), weights, origin={})
    plain, other = (load("diffusion", weights=weights, steps=1, backend=name) for name in ("pytorch", "openvino"))
    identities = [plain.prepare(demo_portrait()), plain.prepare(demo_portrait()[:, ::-1].copy())]
    assert other.prepare(demo_portrait()).key == identities[0].key, "a portrait that is ready for one is ready for the other"
    states = [generator.allocate(2) for generator in (plain, other)]
    for generator, state in zip((plain, other), states, strict=True):
        for row, identity in enumerate(identities):
            generator.admit(state, row, identity)
    shown = []
    for step in range(9):
        said = [replace(*signals(1, seed, step), speech=rng.normal(-4, 4, (16, 80)).astype(np.float32)) for seed in (0, 5)]
        asked: list[Any] = [[said[0]], None if step % 2 else [said[1]]]
        want, got = (generator.step(state, asked) for generator, state in zip((plain, other), states, strict=True))
        for one, two in zip(want, got, strict=True):
            assert (one is None) == (two is None)
            if one is not None and two is not None:
                assert (one[0].time, one[0].id) == (two[0].time, two[0].id)
                assert int(np.abs(one[0].rgb.astype(int) - two[0].rgb).max()) <= 1
                shown.append(two[0].rgb)
    assert np.abs(np.diff(np.stack(shown).astype(int), axis=0)).reshape(len(shown) - 1, -1).max(1).min() > 3, "and every picture is another one"
    other.evict(states[1], 0)
    assert not states[1].stream.rings[0][0][:, 0].any(), "nothing of whoever sat there stays"


def exported(spec: Any, folder: Path, *, weights: str, steps: int = 1) -> Path:
    """A folder as an export leaves it, with the graph that OpenVINO makes of a network."""
    from engine.backends import ov

    files = [folder / "graph" / f"step.{end}" for end in ("xml", "bin")]
    files[0].parent.mkdir(parents=True)
    ov.library().save_model(ov._built(spec), files[0], compress_to_fp16=False)
    hashes = {file.name: artifact.sha256(file) for file in files}
    made = artifact.Artifact(spec.name, hashes, dict(spec.inputs), spec.outputs, "fp32", {})
    source = {"weights": {"weights.json": weights}, "decoder": "own", "steps": steps}
    (folder / artifact.MANIFEST).write_text(artifact.Manifest("openvino", "fp32", "graph", {"step": made}, source, {}).text())
    return folder


def test_exported_graphs_run_where_they_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require("openvino")
    monkeypatch.setitem(PRESETS, "tiny", SMALL)
    weights, others, networks = tmp_path / "weights", tmp_path / "others", seeded(SMALL)
    save(networks, weights, origin={})
    save(networks, others, origin={"made": "elsewhere"})
    plain: Any = load("diffusion", weights=weights, steps=1)
    folder = exported(graphs.step_spec(plain.recipe.networks, 1), tmp_path / "graphs", weights=plain.recipe.networks.origin)
    tested: Any = load("diffusion", weights=weights, steps=1, backend="openvino", graphs=folder)
    assert (tested.backend, tested.precision) == ("openvino", "fp32")
    shown = []
    for generator in (plain, tested):
        state = generator.allocate(1)
        generator.admit(state, 0, generator.prepare(demo_portrait()))
        shown.append(generator.step(state, [signals(1, 0, 3)])[0][0].rgb.astype(int))
    assert np.abs(np.diff(shown, axis=0)).max() <= 1
    for options, sentence in (
        ({"weights": others}, "from other weights"),
        ({"steps": 2}, "'tiny 1-step', not 'tiny 2-step'"),
        ({"precision": "bf16"}, "are in fp32, not in bf16"),
        ({"backend": "onnxruntime"}, "for openvino, not for onnxruntime"),
    ):
        asked: dict[str, Any] = {"weights": weights, "steps": 1, "backend": "openvino", "graphs": folder, **options}
        with pytest.raises(AvatarError, match=sentence):
            load("diffusion", **asked)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"backend": "abacus"}, "no backend called 'abacus'"),
        ({"backend": "openvino", "mode": "script"}, "leave --mode out"),
        ({"backend": "openvino", "device": "cuda"}, "runs on the CPU"),
        ({"backend": "openvino", "steps": 2, "stream_batch": True}, "leave --stream-batch out"),
        ({"backend": "openvino", "precision": "fp16"}, "no precision called 'fp16'"),
        ({"backend": "openvino", "precision": "int8"}, "quantised"),
        ({"backend": "openvino", "graphs": "/nowhere"}, "no exported graphs"),
        ({"backend": "onnxruntime"}, "--graphs"),
        ({"graphs": "/nowhere"}, "give --backend"),
        ({"backend": "tensorrt"}, "cannot run here: .*(GPU|TensorRT)|give the folder with --graphs"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(options: dict[str, Any], sentence: str) -> None:
    require("openvino")
    with pytest.raises(AvatarError, match=sentence):
        load("diffusion", preset="tiny", **options)
