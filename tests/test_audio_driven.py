"""Faces that speech moves (the layouts of EchoMimic and Hallo): live equals the whole clip, clips at leisure, what is heard and where."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine.generators.diffusion.presets import HALLO, PRESETS, TINY, Ears, Preset, Sampling, check
from engine.persona import demo_portrait
from engine.types import AvatarError, Signal
from tests.conftest import found, require
from tests.networks import error, seeded

if found("torch") and found("diffusers") and found("transformers"):
    import torch

    from engine.conditions.landmarks import paint_features
    from engine.conditions.regions import box, branches, regions
    from engine.drivers import wav2vec, whisper
    from engine.generators.diffusion import listening, offline
    from engine.generators.diffusion import stream as streams
    from engine.generators.diffusion.audio_attention import AudioBlock, at_level
    from engine.generators.diffusion.networks import Cache, Face, Networks
    from engine.generators.diffusion.offline import sample, windows
    from engine.generators.diffusion.sampler import levels

pytestmark = pytest.mark.torch
SAME = 1e-5
"""Relative error, fp32."""
FRAMES = 14
ECHO = replace(
    TINY,
    name="tiny_echo",
    unet=replace(TINY.unet, image_dim=0, speech_dim=8, speech_in="second", speech_gain=3.0),
    condition="mask",
    planes=1,
    image_encoder="none",
    ears=Ears("whisper", width=8, layers=1, heads=2, positions=120, tokens=20),
    window=5,
    sinks=0,
    sampling=Sampling(window=6, overlap=2, shift=2, guidance=2.5, hint_unguided=False, speech_unguided=False),
)
HALLO_TINY = replace(
    TINY,
    name="tiny_hallo",
    unet=replace(TINY.unet, speech_dim=12, speech_in="branches", motion=(True, False), branch_gains=(1.0, 0.7, 1.3)),
    condition="mask",
    image_encoder="face",
    ears=Ears("wav2vec", width=8, layers=2, heads=2, convolutions=8, hidden=6, tokens=3),
    window=5,
    sampling=replace(HALLO.sampling, window=4),
)
BOTH = pytest.mark.parametrize("made", [ECHO, HALLO_TINY], ids=["echomimic", "hallo"])


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    require("torch")
    require("diffusers")
    require("transformers")


def recipe(networks: Networks, *, batched: bool = False, steps: int = 2) -> streams.Recipe:
    return streams.Recipe(networks, levels(networks.preset.noise, steps), batched, torch.float32, torch.device("cpu"))


def clip(made: Preset, frames: int = FRAMES) -> tuple[Any, Any, Any, Any]:
    """(portrait -1..1, its face, conditions [F, H, W, K], what is heard [F, ..])"""
    torch.manual_seed(1)
    condition = torch.randint(0, 256, (frames, *made.size, made.channels), dtype=torch.uint8)
    cells = sum(h * w for h, w in made.level_sizes)
    face = Face(torch.randn(1, 512), torch.rand(1, 3, cells))
    return torch.rand(1, 3, *made.size) * 2 - 1, face, condition, torch.randn(frames, *made.ears.heard)


# -- live -----------------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(("chunk", "batched"), [(1, False), (1, True), (2, True)])
def test_streaming_equals_the_whole_clip(made: Preset, chunk: int, batched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made = replace(made, chunk=chunk)
    networks = seeded(made)
    portrait, face, condition, speech = clip(made)
    cache, how = networks.remember(portrait, face=face), recipe(networks, batched=batched)
    want = streams.whole_clip(how, cache, condition, speech)
    stream = streams.open_stream(how, 2, cache)
    streams.seat(stream, 1, cache)
    seen: list[Any] = []
    decode = networks.autoencoder.decode

    def spy(latents: Any) -> Any:
        seen.append((latents * made.scale).unflatten(0, (-1, chunk))[1].clone())
        return decode(latents)

    monkeypatch.setattr(networks.autoencoder, "decode", spy)
    stream.active[1] = True
    for start in range(0, FRAMES, chunk):
        stream.condition[1], stream.speech[1] = condition[start : start + chunk], speech[start : start + chunk]
        streams.step(how, stream)
    delay = chunk if batched else 0
    assert error(torch.cat(seen)[delay:], want[: FRAMES - delay]) < SAME
    if cache.regions is not None:
        moved = streams.whole_clip(how, replace(cache, regions=1 - cache.regions), condition, speech)
        assert error(moved, want) > 1e-3, "the masks say where speech counts"
    streams.vacate(stream, 1)
    assert not stream.regions.any()
    assert not stream.speech.any()


@BOTH
def test_speech_reaches_the_picture_and_the_reference_never_hears(made: Preset) -> None:
    networks = seeded(made)
    portrait, face, condition, speech = clip(made)
    cache, how = networks.remember(portrait, face=face), recipe(networks)
    assert error(streams.whole_clip(how, cache, condition, -speech), streams.whole_clip(how, cache, condition, speech)) > 1e-3
    keys = networks.reference.state_dict()
    assert not any("speech" in key or "audio" in key for key in keys)
    assert any(".attn2." in key for key in keys) is (made.image_encoder == "face")
    blind = [key for key in networks.denoiser.state_dict() if key.startswith(("down_blocks.1.motion", "up_blocks.0.motion"))]
    assert bool(blind) is made.unet.motion[1]


def test_a_branch_counts_where_its_mask_says() -> None:
    block = AudioBlock(16, HALLO_TINY.unet)
    x, speech, other = torch.randn(2, 6, 16), torch.randn(2, 3, 12), torch.randn(2, 3, 12)
    masks = torch.zeros(2, 3, 6)
    with torch.no_grad():
        assert torch.equal(block(x, speech, masks), block(x, other, masks)), "no mask, no word"
        for branch in range(3):
            masks = torch.zeros(2, 3, 6)
            masks[:, branch, 2] = 1
            moved = (block(x, speech, masks) - block(x, other, masks)).abs().amax((0, 2))
            assert moved[2] > 1e-4
            assert moved[[0, 1, 3, 4, 5]].max() < 1e-6


def test_masks_of_a_level_are_found_whatever_the_sides() -> None:
    sizes = [(8, 12), (4, 6), (2, 3)]
    flat = torch.cat([torch.full((1, 3, h * w), float(i)) for i, (h, w) in enumerate(sizes)], 2)
    for i, size in enumerate(sizes):
        assert at_level(flat, size, i).tolist() == [[[float(i)] * (size[0] * size[1])] * 3]


# -- at leisure -----------------------------------------------------------------------------------------------------------


def test_windows_move_on_with_every_step() -> None:
    how = Sampling(window=12, overlap=3, shift=2)
    first = [list(range(12)), [*range(9, 20), 0], [18, 19, *range(10)]]
    assert windows(20, how) == first
    assert windows(20, how, 4) == [[(k + 8) % 20 for k in window] for window in first]
    assert windows(5, how, 1) == [[2, 3, 4, 0, 1]], "a single window turns, too"


@BOTH
def test_the_unguided_half_knows_neither_speech_nor_place(made: Preset) -> None:
    networks = seeded(made)
    portrait, face, condition, speech = clip(made, 4)
    cache, how = networks.remember(portrait, face=face), recipe(networks)
    still = replace(made.sampling, guidance=0.0, carried=0)
    alone = sample(how, cache, condition, speech, sampling=still)
    assert torch.equal(sample(how, cache, 255 - condition, -speech, sampling=still), alone)
    told = replace(still, hint_unguided=True, speech_unguided=True)
    assert error(sample(how, cache, condition, speech, sampling=told), alone) > 1e-3
    assert error(sample(how, cache, condition, speech, sampling=replace(still, guidance=1.0)), alone) > 1e-3


def test_clips_are_chained_by_their_last_frames() -> None:
    networks = seeded(HALLO_TINY)
    portrait, face, condition, speech = clip(HALLO_TINY, 8)
    cache, how = networks.remember(portrait, face=face), recipe(networks)
    noise = torch.randn(8, HALLO_TINY.unet.in_channels, *HALLO_TINY.latent_size)
    done: list[tuple[int, int]] = []
    whole = sample(how, cache, condition, speech, noise=noise, progress=lambda *at: done.append(at))
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert error(sample(how, cache, condition[:4], speech[:4], noise=noise[:4]), whole[:4]) < SAME, "a clip knows nothing of later ones"
    other = noise.clone()
    other[3] = -other[3]
    moved = sample(how, cache, condition, speech, noise=other)
    assert error(moved[4:], whole[4:]) > 1e-4, "and reads the last frames of the one before"
    loose = sample(how, cache, condition, speech, noise=noise, sampling=replace(HALLO_TINY.sampling, dealt=False))
    assert error(loose, whole) > 1e-4
    with pytest.raises(AvatarError, match="carried frames need a spatial attention"):
        check(replace(HALLO_TINY, unet=replace(HALLO_TINY.unet, motion=(True, True), attention=(True, False))))


def test_both_halves_take_turns_where_tokens_are_dealt_out() -> None:
    networks = seeded(HALLO_TINY)
    portrait, face, condition, speech = clip(HALLO_TINY, 4)
    cache = networks.remember(portrait, face=face)
    own, nobody = cache.tokens, networks.nobody()
    assert own is not None
    halves = [offline._Half([], [], condition, None, None, own), offline._Half([], [], condition, None, None, nobody)]
    mine, other = offline._tokens(halves, 2, dealt=True)
    assert mine is not None
    assert other is not None
    assert torch.equal(mine, torch.cat([nobody, own]))
    assert torch.equal(other, torch.cat([own, nobody]))
    pair = [(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))]
    assert offline._Half(pair, [], condition, None, None).part(0, 4, ()).reads.tolist() == [0, 1, 0, 1]  # type: ignore[union-attr]
    assert offline._Half(pair, [], condition, None, None).part(0, 3, ()).reads.tolist() == [1, 0, 1]  # type: ignore[union-attr]


# -- what is heard --------------------------------------------------------------------------------------------------------


def sound(seconds: float) -> Any:
    at = np.arange(round(seconds * 16_000)) / 16_000
    return (0.3 * np.sin(2 * np.pi * 220 * at) * (np.sin(2 * np.pi * 2 * at) > 0)).astype(np.float32)


def test_whisper_steps_of_a_frame_stop_at_the_ends() -> None:
    states = torch.arange(20.0)[:, None, None].expand(20, 2, 1)
    heard = whisper.frame_states(states, fps=24)
    steps = heard.unflatten(1, (10, 2))[..., 0, 0]
    assert steps[0].tolist() == [0, 0, 0, 0, 0, 1, 2, 3, 4, 5]
    assert steps[5].tolist() == list(range(6, 16)), "frame 5 of 24 a second begins in step 10"
    assert steps[-1].tolist() == [18, *[19] * 9]
    assert len(heard) == 12, "the first frame whose step lies beyond the end is still made, and the one after it is not"


def test_states_are_raw_and_a_long_sound_goes_in_pieces() -> None:
    networks = seeded(ECHO)
    encoder = networks.listener
    assert isinstance(encoder, whisper.Encoder)
    pcm = sound(3.0)  # 150 steps, in pieces of 120
    with torch.no_grad():
        states = whisper.clip_states(encoder, pcm)
        level = torch.from_numpy(whisper.log_mel_alone(pcm))
        assert states.shape == (150, 2, 8)
        first = encoder.states(level[None, :, :240])
        last = encoder.states(torch.nn.functional.pad(level[None, :, 240:], (0, 180)))
    assert error(states[:120], torch.stack(first, 2)[0]) < SAME
    assert error(states[120:], torch.stack(last, 2)[0, :30]) < SAME


def test_wav2vec_has_a_row_for_every_frame_and_reads_its_neighbours() -> None:
    networks = seeded(HALLO_TINY)
    encoder = networks.listener
    assert isinstance(encoder, wav2vec.Encoder)
    with torch.no_grad():
        layers = wav2vec.clip_layers(encoder, sound(0.5), fps=25)
        assert layers.shape == (13, 2, 8)
        assert wav2vec.clip_layers(encoder, sound(0.5), fps=25, clip=16).shape == (16, 2, 8)
        assert error(wav2vec.clip_layers(encoder, 0.1 * sound(0.5) + 0.3, fps=25), layers) < 1e-3, "neither loudness nor offset counts"
        model = encoder.model
        pcm = torch.from_numpy((sound(0.5) - sound(0.5).mean()) / np.sqrt(sound(0.5).var() + 1e-7))
        read = model.feature_extractor(pcm[None])
        read = torch.nn.functional.interpolate(read, size=13, align_corners=True, mode="linear")
        x, _ = model.feature_projection(read.transpose(1, 2))
        assert error(layers[:, -1], model.encoder(x).last_hidden_state[0]) < SAME
    rows = wav2vec.frame_layers(torch.arange(5.0)[:, None, None].expand(5, 2, 1)).unflatten(1, (5, 2))[..., 0, 0]
    assert rows.tolist() == [[0, 0, 0, 1, 2], [0, 0, 1, 2, 3], [0, 1, 2, 3, 4], [1, 2, 3, 4, 4], [2, 3, 4, 4, 4]]


@pytest.mark.parametrize("fps", [24, 25, 30])
def test_a_span_of_wav2vec_has_as_many_frames_as_it_says(fps: int) -> None:
    networks = seeded(HALLO_TINY)
    encoder = networks.listener
    assert isinstance(encoder, wav2vec.Encoder)
    for time in (0.0, 1 / 3, 7.77):
        first, last = wav2vec.span(time, fps=fps)
        with torch.no_grad():
            assert len(wav2vec.clip_layers(encoder, np.zeros(last - first, np.float32), fps=fps)) == wav2vec.LEFT + wav2vec.RIGHT


def signals(pcm: Any, frames: int, fps: int) -> list[Signal]:
    """Of a sound that is heard from time 0 on, each with the 160 ms that end 80 ms after it."""
    padded = np.concatenate([np.zeros(2560, np.float32), pcm, np.zeros(16_000, np.float32)])
    ends = [round((k / fps + 0.08) * 16_000) + 2560 for k in range(frames)]
    return [Signal(time=k / fps, pcm=padded[end - 2560 : end]) for k, end in enumerate(ends)]


@BOTH
@pytest.mark.parametrize("chunk", [1, 2])
def test_a_frame_waits_for_its_sound_and_hears_it_wholly(made: Preset, chunk: int) -> None:
    """Live features are those of a file that holds what the rule says, and are late by what is declared."""
    made = replace(made, chunk=chunk)
    networks = seeded(made)
    assert networks.listener is not None
    listen, ear, pcm = listening.Listening(networks.listener, made), listening.Ear(), sound(1.2)
    assert listen.delay == {("tiny_echo", 1): 2, ("tiny_echo", 2): 2, ("tiny_hallo", 1): 1, ("tiny_hallo", 2): 2}[made.name, chunk]
    given = signals(pcm, 20, made.fps)
    for start in range(0, 20, chunk):
        chunked = listen.later(ear, given[start : start + chunk])
        heard = listen.heard(ear, chunked)
        assert [signal.time for signal in chunked] == pytest.approx([(start + k - listen.delay) / made.fps for k in range(chunk)])
    assert heard.shape == (chunk, *made.ears.heard)
    time = chunked[-1].time
    padded = np.concatenate([np.zeros(64_000, np.float32), pcm])
    with torch.no_grad():
        if isinstance(networks.listener, whisper.Encoder):
            first, last = whisper.span(time)
            states = whisper.clip_states(networks.listener, padded[64_000 + first : 64_000 + last])
            want = states[whisper.LEFT - 4 : whisper.LEFT + 6].flatten(0, 1)
        else:
            first, last = wav2vec.span(time, fps=made.fps)
            layers = wav2vec.clip_layers(networks.listener, padded[64_000 + first : 64_000 + last], fps=made.fps)
            want = wav2vec.frame_layers(layers)[wav2vec.LEFT]
    assert error(torch.from_numpy(heard[-1]), want) < SAME


@BOTH
def test_at_leisure_half_precision_hears_too(made: Preset) -> None:
    """NumPy has no bf16."""
    from types import SimpleNamespace

    from engine.generators.diffusion import leisure

    networks = seeded(made)
    given = signals(sound(0.5), 10, made.fps)
    want = leisure._heard(SimpleNamespace(recipe=recipe(networks)), given)  # type: ignore[arg-type]
    half = leisure._heard(SimpleNamespace(recipe=recipe(networks.bfloat16())), given)  # type: ignore[arg-type]
    assert half.dtype == want.dtype == np.float32
    assert error(torch.from_numpy(half), torch.from_numpy(want)) < 0.05


# -- where ----------------------------------------------------------------------------------------------------------------


def test_boxes_are_larger_than_what_they_are_around_and_stay_inside() -> None:
    points = np.array([[40.2, 30.4], [60.4, 50.4]], np.float32)
    rows, columns = np.nonzero(box(points, (100, 120), 2.0))
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (20, 60, 30, 70)
    rows, columns = np.nonzero(box(points - [38, 28], (100, 120), 2.0))
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (0, 40, 0, 40), "moved in, not cut"


def test_masks_of_a_portrait_are_whole_and_soft() -> None:
    from engine.drivers.portrait import find_face

    portrait = demo_portrait()
    size = (portrait.shape[0], portrait.shape[1])
    face = find_face(portrait).points
    around, inner, lips = branches(face, size)
    assert (around.min(), lips.min(), lips.max()) == (0, 0, 255)
    centre = (face[[13, 14], ::-1].mean(0) / size * 64).astype(int)
    assert lips[tuple(centre)] > 200 > inner[tuple(centre)], "the lips are theirs, not the face's"
    assert int(around[0, 0]) > 200
    flat = regions(face, size, [(8, 12), (4, 6)])
    assert flat.shape == (3, 8 * 12 + 4 * 6)
    assert 0.0 <= flat.min() < flat.max() <= 1.0
    assert abs(flat[2, :96].mean() - lips.mean() / 255) < 0.02, "smaller, not otherwise"


def test_features_are_painted_in_the_published_colours() -> None:
    from engine.drivers.portrait import find_face

    portrait = demo_portrait()
    face = find_face(portrait).points * (512 / portrait.shape[0])
    picture = paint_features((512, 512), face)
    colours = {tuple(int(x) for x in colour) for colour in np.unique(picture.reshape(-1, 3), axis=0)}
    assert colours == {(0, 0, 0), (10, 200, 180), (180, 200, 10), (10, 220, 180), (180, 220, 10), (10, 200, 250), (250, 200, 10), (200, 200, 200)}
    x, y = np.round(face[468]).astype(int)
    assert picture[y - 2, x - 2].tolist() == [10, 200, 250], "the pupil on the picture's left is the person's right one"
    x, y = np.round(face[33]).astype(int)
    assert picture[y, x].tolist() == [10, 200, 180]


# -- the generator --------------------------------------------------------------------------------------------------------


@BOTH
def test_a_portrait_speaks(made: Preset, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.generators import load

    monkeypatch.setitem(PRESETS, made.name, made)
    generator: Any = load("diffusion", preset=made.name)
    assert generator.spec.needs == ("pcm",)
    assert generator.spec.delay == generator._listening.delay > 0
    identity = generator.prepare(demo_portrait())
    kept: Cache = generator.unpack(identity.portrait, generator.pack(identity)).features.cache
    for name in ("regions", "latents", "tokens"):
        mine, theirs = getattr(identity.features.cache, name), getattr(kept, name)
        assert (mine is None) == (theirs is None) == (made is ECHO)
        assert mine is None or torch.equal(mine, theirs)
    state = generator.allocate(1)
    generator.admit(state, 0, identity)
    frames = [generator.step(state, [[signal]])[0][0] for signal in signals(sound(0.3), 6, made.fps)]
    assert [frame.time for frame in frames] == pytest.approx([(k - generator.spec.delay) / made.fps for k in range(6)])
    assert all(frame.rgb.shape == (*made.size, 3) for frame in frames)
    assert state.ears
    generator.evict(state, 0)
    assert not state.ears


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"unet": replace(ECHO.unet, image_dim=4), "image_encoder": "pooled"}, "either speech or the identity"),
        ({"planes": 3, "condition": "features", "ears": replace(ECHO.ears, tokens=21)}, "ten steps"),
        ({"ears": replace(ECHO.ears, width=6)}, "as wide"),
        ({"condition": "features"}, "three channels"),
    ],
)
def test_a_preset_that_contradicts_itself_is_refused(changes: dict[str, Any], complaint: str) -> None:
    check(ECHO)
    check(HALLO_TINY)
    with pytest.raises(AvatarError, match=complaint):
        check(replace(ECHO, **changes))


# -- exported ---------------------------------------------------------------------------------------------------------------


def test_the_live_step_is_traced_and_computes_what_pytorch_does(tmp_path: Any) -> None:
    """What is heard and the masks of its branches are inputs of the graph."""
    for part in ("onnx", "onnxscript", "onnxruntime"):
        require(part)
    from engine.generators.diffusion.graphs import graphs
    from exporters.graphs.to_onnx import to_onnx

    unet = replace(HALLO_TINY.unet, channels=(16,), attention=(False,), motion=(False,))
    made = replace(HALLO_TINY, size=(16, 32), unet=unet, window=4)
    networks = seeded(made)
    networks.denoiser.freeze(made.window)
    specs = graphs(recipe(networks, steps=1))
    assert specs["step"].inputs["speech"][0] == (1, *made.ears.heard)
    assert specs["step"].inputs["regions"][0] == (1, 3, made.cells)
    assert specs["remember"].inputs["vector"][0] == (1, 512)
    found = to_onnx(specs["step"], tmp_path / "step.onnx")  # raises where ONNX Runtime computes something else
    assert found.path.is_file()


@BOTH
def test_the_graph_hears_what_the_step_hears(made: Preset) -> None:
    from engine.generators.diffusion import compiled, graphs
    from engine.generators.diffusion.compiled import Calendar

    networks = seeded(made)
    portrait, face, condition, speech = clip(made, 6)
    networks.denoiser.freeze(made.window)
    how = recipe(networks)
    cache = how.remember(portrait, face)
    from engine.backends import backend

    runner = backend("pytorch").load(graphs.step_spec(networks, len(how.levels)))
    streamed = []
    for graph in (False, True):
        stream = streams.open_stream(how, 1, cache)
        streams.seat(stream, 0, cache)
        stream.active[0] = True
        run = compiled.Compiled(how, runner, Calendar.of(made)).prepared(stream.row(0)) if graph else lambda stream=stream: streams.step(how, stream)
        pictures = []
        for k in range(6):
            stream.condition[0, 0], stream.speech[0, 0] = condition[k], speech[k]
            run()
            pictures.append(stream.out[0, 0].clone())
        streamed.append(torch.stack(pictures).int())
    assert (streamed[0] - streamed[1]).abs().max() <= 1
    assert streamed[0].float().std() > 5
