"""The diffusion generator: streaming equals the whole clip, caches equal recomputing, rows are alone, and what cannot be is said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine.backends import backend, pytorch
from engine.generators.diffusion.budget import budget
from engine.generators.diffusion.presets import ANIMATE_ANYONE, COMPACT, TINY, Noise, Preset, Sampling, check, preset
from engine.types import AvatarError
from tests.conftest import found, require
from tests.networks import error, seeded

if found("torch") and found("diffusers"):
    import torch

    from engine.generators.diffusion import stream as streams
    from engine.generators.diffusion.attention import Sources
    from engine.generators.diffusion.graphs import denoiser_spec
    from engine.generators.diffusion.networks import Cache, Networks, build
    from engine.generators.diffusion.offline import sample, windows
    from engine.generators.diffusion.plain import PlainBlock, PlainDown, PlainUp
    from engine.generators.diffusion.sampler import advance, alphas, clean_and_noise, levels, noised
    from engine.generators.diffusion.temporal import Window, places, whole

pytestmark = pytest.mark.torch
SAME = 1e-5
"""Relative error, fp32."""
FRAMES = 24
PLAIN = replace(TINY, name="plain", unet=replace(TINY.unet, plain=True, attention=(False, False), motion=(False, False)))
"""With the trunk that `compact` has."""
TRUNKS = pytest.mark.parametrize("made", [TINY, PLAIN], ids=["tiny", "plain"])


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    require("torch")
    require("diffusers")


def recipe(networks: Networks, *, batched: bool = False) -> streams.Recipe:
    made = networks.preset
    return streams.Recipe(networks, levels(made.noise, made.steps), batched, torch.float32, torch.device("cpu"))


def clip(made: Preset, seed: int = 1) -> tuple[Any, Any, Any]:
    """(portrait -1..1, conditions [F, H, W, 3], speech [F, 16, 80])"""
    torch.manual_seed(seed)
    condition = torch.randint(0, 256, (FRAMES, *made.size, made.channels), dtype=torch.uint8)
    return torch.rand(1, 3, *made.size) * 2 - 1, condition, 2 * torch.randn(FRAMES, 16, 80) - 4


class Latents:
    """The latents that every step decodes, [rows, c, C, h, w]."""

    def __init__(self, networks: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[Any] = []
        made, decode = networks.preset, networks.autoencoder.decode

        def spy(latents: Any) -> Any:
            self.seen.append((latents * made.scale).unflatten(0, (-1, made.chunk)).clone())
            return decode(latents)

        monkeypatch.setattr(networks.autoencoder, "decode", spy)


def run(made: streams.Recipe, stream: streams.Stream, row: int, condition: Any, speech: Any, latents: Latents, *, others: bool = False) -> Any:
    """A clip through one row -> its latents [F, C, h, w]."""
    chunk = made.preset.chunk
    first = len(latents.seen)
    for start in range(0, len(condition), chunk):
        stream.active[:] = others
        stream.active[row] = True
        stream.condition[row] = condition[start : start + chunk]
        stream.speech[row] = speech[start : start + chunk]
        streams.step(made, stream)
    return torch.cat([seen[row] for seen in latents.seen[first:]])


EVERY = [(TINY, chunk, steps, batched) for chunk in (1, 2, 3) for steps in (1, 2, 4) for batched in ((False, True) if steps > 1 else (False,))]
SOME = [(PLAIN, 1, 1, False), (PLAIN, 1, 2, True), (PLAIN, 2, 2, False), (PLAIN, 3, 2, True)]


@pytest.mark.parametrize(
    ("trunk", "chunk", "steps", "batched"), [pytest.param(*one, id="-".join(map(str, (one[0].name, *one[1:])))) for one in EVERY + SOME]
)
def test_streaming_equals_the_whole_clip(trunk: Preset, chunk: int, steps: int, batched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made = replace(trunk, chunk=chunk, steps=steps)
    networks = seeded(made)
    portrait, condition, speech = clip(made)
    cache, how = networks.remember(portrait), recipe(networks, batched=batched)
    want = streams.whole_clip(how, cache, condition, speech)
    stream = streams.open_stream(how, 3, cache)
    streams.seat(stream, 1, cache)
    got = run(how, stream, 1, condition, speech, Latents(networks, monkeypatch))
    delay = (steps - 1) * chunk if how.batched else 0
    assert error(got[delay:], want[: FRAMES - delay]) < SAME


@TRUNKS
@pytest.mark.parametrize("sinks", [0, 2])
def test_the_window_is_what_is_seen_and_no_more(sinks: int, made: Preset) -> None:
    """A frame that has left the window changes nothing any more; a pinned one still does; a later one never does."""
    made = replace(made, window=5, sinks=sinks, steps=1, unet=replace(made.unet, motion=(False, False), motion_middle=True))
    networks = seeded(made)
    portrait, condition, speech = clip(made)
    cache, how = networks.remember(portrait), recipe(networks)
    plain = streams.whole_clip(how, cache, condition, speech)
    for changed in (0, 9):
        other = condition.clone()
        other[changed] = 255 - other[changed]
        moved = streams.whole_clip(how, cache, other, speech)
        differs = [t for t in range(FRAMES) if error(moved[t], plain[t]) > 1e-6]
        # Two temporal attentions in a row see twice as far.
        reach = 2 * (made.recent - 1)
        if changed < sinks:
            assert differs == list(range(FRAMES)), "a pinned frame is seen for ever"
        else:
            assert differs == list(range(changed, changed + reach + 1)) or (sinks and differs[0] == changed), "and the others as long as the window"


@TRUNKS
def test_later_input_never_changes_earlier_output(made: Preset, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = seeded(made)
    portrait, condition, speech = clip(made)
    cache, how = networks.remember(portrait), recipe(networks)
    latents = Latents(networks, monkeypatch)
    outputs = []
    for cut in (FRAMES, FRAMES // 2):
        stream = streams.open_stream(how, 1, cache)
        streams.seat(stream, 0, cache)
        other = torch.cat([condition[:cut], 255 - condition[cut:]])
        outputs.append(run(how, stream, 0, other, speech, latents))
    assert torch.equal(outputs[0][: FRAMES // 2], outputs[1][: FRAMES // 2])
    assert not torch.equal(outputs[0][FRAMES // 2], outputs[1][FRAMES // 2])


@TRUNKS
def test_the_cached_reference_equals_recomputing_it(made: Preset, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = seeded(made)
    portrait, condition, speech = clip(made)
    cache, how = networks.remember(portrait), recipe(networks)
    latents = Latents(networks, monkeypatch)
    kept, anew = streams.open_stream(how, 1, cache), streams.open_stream(how, 1, cache)
    streams.seat(kept, 0, cache)
    for t in range(6):
        streams.seat(anew, 0, networks.remember(portrait))
        pair = [run(how, stream, 0, condition[t : t + 1], speech[t : t + 1], latents) for stream in (kept, anew)]
        assert torch.equal(*pair)
    stranger = networks.remember(-portrait)
    streams.seat(anew, 0, stranger)
    pair = [run(how, stream, 0, condition[:1], speech[:1], latents) for stream in (kept, anew)]
    assert error(*pair) > 1e-3, "another portrait is another picture"


@pytest.mark.parametrize(("made", "batched"), [(TINY, False), (TINY, True), (PLAIN, True)], ids=["in-turn", "stream-batch", "plain"])
def test_rows_join_and_leave_while_others_stream(made: Preset, batched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows: one from the start, one that joins late, one that pauses; each equals itself alone."""
    networks = seeded(made)
    portrait, condition, speech = clip(made)
    cache, stranger, how = networks.remember(portrait), networks.remember(-portrait), recipe(networks, batched=batched)
    latents = Latents(networks, monkeypatch)
    together = streams.open_stream(how, 3, cache)
    for row, who in enumerate((cache, stranger, cache)):
        streams.seat(together, row, who)
    starts, when = (0, 5, 0), [list(range(12)), list(range(5, 12)), [0, 1, 2, 7, 8, 9, 10]]
    got: list[list[Any]] = [[], [], []]
    for t in range(12):
        if t == 5:
            streams.forget(together, 1)
        for row in range(3):
            together.active[row] = t in when[row]
            together.condition[row] = condition[t - starts[row]]
            together.speech[row] = speech[t - starts[row]]
        streams.step(how, together)
        for row in range(3):
            if t in when[row]:
                got[row].append(latents.seen[-1][row])
    for row, who in enumerate((cache, stranger, cache)):
        alone = streams.open_stream(how, 1, cache)
        streams.seat(alone, 0, who)
        index = [t - starts[row] for t in when[row]]
        want = run(how, alone, 0, condition[index], speech[index], latents)
        assert error(torch.cat(got[row]), want) < SAME


@TRUNKS
def test_forgetting_equals_fresh(made: Preset, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = seeded(made)
    portrait, condition, speech = clip(made)
    cache, how = networks.remember(portrait), recipe(networks, batched=True)
    latents = Latents(networks, monkeypatch)
    used, fresh = streams.open_stream(how, 1, cache), streams.open_stream(how, 1, cache)
    for stream in (used, fresh):
        streams.seat(stream, 0, cache)
    run(how, used, 0, condition, speech, latents)
    used.rings[0][0].fill_(torch.nan)
    streams.forget(used, 0)
    assert torch.equal(*(run(how, stream, 0, condition[:8], speech[:8], latents) for stream in (used, fresh)))


def test_nothing_grows_with_the_length_of_a_stream() -> None:
    networks = seeded(TINY)
    portrait, condition, speech = clip(TINY)
    cache, how = networks.remember(portrait), recipe(networks)
    stream = streams.open_stream(how, 1, cache)
    streams.seat(stream, 0, cache)
    stream.active[:] = True
    before = stream.bytes, [ring.data_ptr() for pair in stream.rings for ring in pair]
    for t in range(60):
        stream.condition[0], stream.speech[0] = condition[t % FRAMES], speech[t % FRAMES]
        streams.step(how, stream)
    assert (stream.bytes, [ring.data_ptr() for pair in stream.rings for ring in pair]) == before
    assert int(stream.count[0]) == 60


@pytest.mark.parametrize(("made", "batched"), [(TINY, False), (TINY, True), (PLAIN, True)], ids=["in-turn", "stream-batch", "plain"])
def test_a_traced_step_is_the_step_for_every_row(made: Preset, batched: bool) -> None:
    """One trace, made on copies, serves rows it was not made from; pictures are the same but for rounding."""
    networks = seeded(made)
    portrait, condition, speech = clip(made)
    how = recipe(networks, batched=batched)
    cache, stranger = networks.remember(portrait), networks.remember(-portrait)
    plain, traced = streams.open_stream(how, 2, cache), streams.open_stream(how, 2, cache)
    for stream in (plain, traced):
        for row, who in enumerate((cache, stranger)):
            streams.seat(stream, row, who)
        stream.active[:] = True
    first = traced.row(0)
    script = pytorch.scripted(streams.Step(how, first).eval(), first.tensors())
    assert int(traced.count.sum()) == 0, "tracing leaves no trace"
    for t in range(10):
        for stream in (plain, traced):
            stream.condition[:], stream.speech[:] = condition[t], speech[t]
        streams.step(how, plain)
        for row in (1, 0):
            pytorch.prepared(script, traced.row(row).tensors(), mode="script")()
        assert int((plain.out.int() - traced.out.int()).abs().max()) <= 1
    assert traced.count.tolist() == [10, 10]
    assert error(traced.rings[1][0], plain.rings[1][0]) < SAME
    assert traced.finite.tolist() == [True, True]
    traced.row(1).rings[0][0].fill_(torch.nan)
    for row in (0, 1):
        pytorch.prepared(script, traced.row(row).tensors(), mode="script")()
    assert traced.finite.tolist() == [True, False], "also a traced step tells when numbers are none"


# -- noise levels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0", "flow"])
def test_every_prediction_says_the_same_of_the_same_picture(prediction: Any) -> None:
    noise = Noise(prediction=prediction, zero_snr=prediction != "epsilon")
    at = levels(noise, 4)
    torch.manual_seed(0)
    clean, random = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    for step in range(1, 4):
        alpha, sigma = at.alpha[step], at.sigma[step]
        answer = {"epsilon": random, "v": alpha * random - sigma * clean, "x0": clean, "flow": random - clean}[prediction]
        x = noised(at, step, clean, random)
        got_clean, got_noise = clean_and_noise(at, step, x, answer)
        torch.testing.assert_close(got_clean, clean, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(got_noise, random, rtol=1e-3, atol=1e-3)
        later = advance(at, step, x, answer, random)
        expected = clean if step == 3 else noised(at, step + 1, clean, random)
        if prediction == "flow" or step == 3:
            torch.testing.assert_close(later, expected, rtol=1e-3, atol=1e-3)


def test_the_noisiest_level_of_zero_snr_holds_no_signal() -> None:
    assert float(alphas(Noise(zero_snr=True))[-1]) == 0.0
    assert float(alphas(Noise(zero_snr=False))[-1]) > 0.001
    assert float(alphas(Noise(zero_snr=True))[0]) == pytest.approx(1 - 0.00085, abs=1e-6)


@pytest.mark.parametrize("betas", ["linear", "scaled_linear"])
@pytest.mark.parametrize(("spacing", "steps"), [("trailing", 1), *((spacing, n) for spacing in ("trailing", "leading") for n in (4, 20, 30))])
def test_sampling_is_diffusers_ddim(betas: Any, spacing: Any, steps: int) -> None:
    from diffusers import DDIMScheduler

    noise = Noise(prediction="v", betas=betas, zero_snr=True, spacing=spacing)
    theirs = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule=betas,
        clip_sample=False,
        steps_offset=1,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing=spacing,
    )
    theirs.set_timesteps(steps)
    at = levels(noise, steps)
    assert at.t.long().tolist() == theirs.timesteps.tolist()
    torch.manual_seed(0)
    mine = other = torch.randn(1, 4, 8, 8)
    for step, t in enumerate(theirs.timesteps):
        answer = torch.randn(1, 4, 8, 8)
        mine = advance(at, step, mine, answer, mine)
        other = theirs.step(answer, t, other).prev_sample
        assert error(mine, other) < SAME


def test_a_combination_without_meaning_is_refused() -> None:
    with pytest.raises(AvatarError, match="only noise"):
        levels(Noise(prediction="epsilon", zero_snr=True), 1)
    with pytest.raises(AvatarError, match="denoising steps"):
        levels(Noise(), 0)
    with pytest.raises(AvatarError, match="use trailing spacing, or more steps"):
        levels(Noise(spacing="leading"), 1)


def test_a_consistency_step_returns_to_the_streams_own_noise() -> None:
    at = levels(Noise(prediction="x0", stepper="lcm"), 2)
    torch.manual_seed(0)
    x, answer, noise = (torch.randn(1, 3, 4, 4) for _ in range(3))
    torch.testing.assert_close(advance(at, 0, x, answer, noise), at.next_alpha[0] * answer + at.next_sigma[0] * noise, rtol=1e-3, atol=1e-3)


# -- the window's rule ----------------------------------------------------------------------------------------------------


def test_positions_while_the_ring_fills_and_after() -> None:
    made = replace(TINY, window=4, sinks=1)
    fresh = places(torch.tensor([0]), 1, made)
    assert fresh.hidden[0, 0].tolist() == [True, True, True, True, False], "the first frame sees itself alone"
    late = places(torch.tensor([7]), 1, made)  # pinned 0; ring of two: 6 in slot 0, 5 in slot 1; trash; itself
    assert late.key[0, 0].tolist()[:3] == [0, 2, 1]
    assert late.hidden[0, 0].tolist() == [False, False, False, True, False]
    assert int(late.query[0, 0]) == 3 == int(late.key[0, 0, -1])


def test_two_rows_of_different_age_have_their_own_places() -> None:
    made = replace(TINY, window=6, sinks=1)
    both = places(torch.tensor([2, 40]), 2, made)
    for row, count in enumerate((2, 40)):
        alone = places(torch.tensor([count]), 2, made)
        assert torch.equal(both.key[row], alone.key[0])
        assert torch.equal(both.hidden[row], alone.hidden[0])


def test_a_whole_clip_may_see_itself_as_the_published_models_do() -> None:
    networks = seeded(TINY)
    portrait, condition, _ = clip(TINY)
    cache = networks.remember(portrait)
    hint = networks.guider(condition[:6].permute(0, 3, 1, 2) / 255)
    window = Window(whole(6, 1, torch.device("cpu")), 6, 6, None, {})
    x = torch.randn(6, TINY.unet.in_channels, *TINY.latent_size)
    with torch.inference_mode():
        made = networks.denoiser(x, torch.full((6,), 500.0), hint, Sources(6, cache.reference, cache.identity), window)
    assert made.shape == x.shape
    assert len(window.new) == networks.denoiser.temporal_attentions


@pytest.mark.parametrize("made", [TINY, COMPACT], ids=["tiny", "compact"])
def test_the_denoiser_is_a_graph_of_arrays(made: Preset) -> None:
    """As a backend runs it, it equals the call inside the stream."""
    networks = seeded(made)
    spec = denoiser_spec(networks, rows=2)
    inputs = spec.examples(seed=4)
    at = places(torch.tensor([3, 40]), 1, made)
    inputs |= {"position": at.key.numpy(), "visible": ~at.hidden.numpy()}
    got = backend("pytorch").load(spec)(inputs)
    assert set(got) == set(spec.outputs)

    def pairs(kind: str) -> list[Any]:
        count = sum(name.startswith(f"{kind}.") for name in inputs) // 2
        return [tuple(torch.from_numpy(inputs[f"{kind}.{i}.{part}"]) for part in "kv") for i in range(count)]

    window = Window(at, made.window, 1, pairs("ring"), {})
    sources = Sources(1, pairs("reference"), pairs("identity"), speech=torch.from_numpy(inputs["speech"]))
    with torch.inference_mode():
        want = networks.denoiser(*(torch.from_numpy(inputs[name]) for name in ("x", "level", "hint")), sources, window)
    assert error(torch.from_numpy(got["answer"]), want) < SAME
    assert error(torch.from_numpy(got["new.1.v"]), window.new[1][1]) < SAME


# -- presets --------------------------------------------------------------------------------------------------------------


def test_tiny_is_tiny_and_rings_are_as_declared() -> None:
    networks = seeded(TINY)
    assert sum(p.numel() for p in networks.parameters()) < 1_000_000
    for made in (TINY, COMPACT):
        how = recipe(build(made))
        cache = how.networks.remember(torch.zeros(1, 3, *made.size))
        stream = streams.open_stream(how, 1, cache)
        spent = [sum(x.numel() * 4 for pair in kept for x in pair) for kept in (stream.rings, stream.reference)]
        need = budget(made, precision="fp32")
        assert [need.window, need.reference] == spent, "what is said to be needed is what is taken"


def test_the_published_size_needs_what_the_arithmetic_says() -> None:
    """At 512 px: 96 MB a frame and level in half precision, and 46 MB for the portrait."""
    need = budget(ANIMATE_ANYONE, steps=2, precision="fp16")
    assert need.window / (2 * 16) == pytest.approx(96e6, rel=0.05)
    assert need.reference == 2 * 2 * 11_550_720


def test_untrained_compact_is_the_puppet_itself() -> None:
    """What it adds to the condition begins at nothing."""
    networks = build(COMPACT)
    how = recipe(networks)
    cache = networks.remember(torch.zeros(1, 3, 256, 256))
    stream = streams.open_stream(how, 1, cache)
    streams.seat(stream, 0, cache)
    stream.active[:] = True
    stream.condition.random_(0, 256)
    streams.step(how, stream)
    assert torch.equal(stream.out, stream.condition[..., :3])


def test_a_plain_block_begins_as_the_identity_and_learns_from_the_noise_level_too() -> None:
    block, x, level = PlainBlock(8, 12), torch.randn(2, 8, 6, 6), torch.randn(2, 12)
    assert torch.equal(block(x, level), x)
    torch.nn.init.normal_(block.conv2.weight)
    assert not torch.allclose(block(x, level), block(x, -level))


def test_a_plain_trunk_sees_a_part_as_it_sees_the_whole() -> None:
    """What lies more than its reach away from the edge: nothing is normalised over the picture."""
    torch.manual_seed(0)
    blocks: list[PlainDown | PlainUp] = [PlainDown(8, 16, 12), PlainUp(16, 8, 12)]
    for one in blocks:
        torch.nn.init.normal_(one.block.conv2.weight, std=0.1)
    level, sources = torch.randn(1, 12), Sources()

    def seen(x: torch.Tensor) -> torch.Tensor:
        skips: list[torch.Tensor] = []
        for one in blocks:
            x = one(x, level, sources, None, skips)
        assert not skips
        return x

    picture = torch.randn(1, 8, 32, 32)
    whole, part = seen(picture), seen(picture[..., 8:, 8:])
    assert torch.allclose(whole[..., 20:, 20:], part[..., 12:, 12:], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"size": (32, 50)}, "multiple"),
        ({"sinks": 6}, "pinned"),
        ({"chunk": 9}, "chunk"),
        ({"guider": (8,)}, "guider"),
        ({"residual": True, "condition": "skeleton"}, "residual"),
        ({"image_encoder": "none"}, "encoder"),
        ({"unet": replace(TINY.unet, plain=True)}, "plain trunk attends in the middle"),
    ],
)
def test_a_preset_that_contradicts_itself_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(AvatarError, match=complaint):
        check(replace(TINY, **changes))


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(AvatarError, match="choose one of: animate_anyone, .*, tiny"):
        preset("huge")


def test_features_are_kept_in_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.generators import load
    from engine.persona import demo_portrait

    for precision in ("fp32", "bf16"):
        generator: Any = load("diffusion", preset="tiny", precision=precision)
        identity = generator.prepare(demo_portrait())
        again = generator.unpack(identity.portrait, generator.pack(identity))
        assert again.key == identity.key
        kept: Cache = again.features.cache
        for mine, theirs in zip(identity.features.cache.reference, kept.reference, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
        assert np.array_equal(again.features.base.portrait, identity.features.base.portrait)
    with pytest.raises(AvatarError, match="other weights"):
        load("diffusion", preset="tiny", seed=1).unpack(identity.portrait, generator.pack(identity))  # type: ignore[attr-defined]


# -- at leisure -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("frames", "size", "overlap"), [(5, 24, 4), (24, 24, 4), (25, 24, 4), (60, 24, 4), (13, 6, 2)])
def test_windows_cover_every_frame(frames: int, size: int, overlap: int) -> None:
    found = windows(frames, Sampling(window=size, overlap=overlap))
    assert {number for window in found for number in window} == set(range(frames))
    assert all(len(window) == min(size, frames) == len(set(window)) for window in found)


def test_open_windows_end_before_the_clip_begins_again() -> None:
    # Published: starts 0, 44 of 92 frames, windows of 48 that share 4 (MusePose pads its clips so that they come out even).
    assert [(window[0], window[-1]) for window in windows(92, Sampling(window=48, overlap=4, closed=False))] == [(0, 47), (44, 91)]
    assert [window[0] for window in windows(92, Sampling(window=48, overlap=4))] == [0, 44, 88], "closed: the last goes on at the start"


def test_one_window_without_guidance_is_plain_sampling() -> None:
    made = replace(TINY, steps=5)
    networks = seeded(made)
    portrait, condition, speech = clip(made)
    cache, how = networks.remember(portrait), recipe(networks)
    noise = torch.randn(8, made.unet.in_channels, *made.latent_size)
    got = sample(how, cache, condition[:8], speech[:8], sampling=Sampling(guidance=1.0), noise=noise)
    x, hint = noise, networks.guider(condition[:8].permute(0, 3, 1, 2) / 255)
    assert networks.speech is not None
    sources = Sources(8, cache.reference, cache.identity, speech=networks.speech(speech[:8]))
    with torch.no_grad():
        for s in range(5):
            window = Window(whole(8, 1, torch.device("cpu")), 8, 8, None, {})
            x = advance(how.levels, s, x, networks.denoiser(x, how.levels.t[s].expand(8), hint, sources, window), noise)
    assert error(got, x) < SAME


def test_guidance_is_away_from_what_knows_no_portrait() -> None:
    networks = seeded(TINY)
    portrait, condition, speech = clip(TINY)
    how = recipe(networks)
    mine, theirs = networks.remember(portrait), networks.remember(-portrait)
    steps: list[int] = []

    def at(cache: Cache, guidance: float) -> Any:
        sampling = Sampling(guidance=guidance, window=6, overlap=2)
        return sample(how, cache, condition[:9], speech[:9], sampling=sampling, progress=lambda done, _: steps.append(done))

    assert torch.equal(at(mine, 0.0), at(theirs, 0.0)), "all of the unguided half, none of the portrait"
    assert steps == [1, 2, 3, 4, 5, 6] * 2, "three windows a step"
    assert error(at(mine, 1.0), at(theirs, 1.0)) > 1e-3
    assert error(at(mine, 3.5), at(mine, 1.0)) > 1e-3


def test_distilled_guidance_is_told_to_the_network() -> None:
    made = replace(TINY, unet=replace(TINY.unet, guidance_dim=16), guidance=2.5)
    networks = seeded(made)
    portrait, condition, speech = clip(made)
    cache, how = networks.remember(portrait), recipe(networks)
    told = streams.whole_clip(how, cache, condition[:4], speech[:4])
    networks.denoiser.guidance = 1.5
    assert error(streams.whole_clip(how, cache, condition[:4], speech[:4]), told) > 1e-4
    with pytest.raises(AvatarError, match="told"):
        check(replace(TINY, guidance=2.0))


@pytest.mark.parametrize(("made", "batched"), [(TINY, False), (TINY, True), (PLAIN, True)], ids=["in-turn", "stream-batch", "plain"])
def test_half_precision_is_near_the_whole(made: Preset, batched: bool) -> None:
    portrait, condition, speech = clip(made)
    pictures = []
    for kind in (torch.float32, torch.bfloat16):
        networks = seeded(made).to(kind)
        how = streams.Recipe(networks, levels(made.noise, 2), batched, kind, torch.device("cpu"))
        stream = streams.open_stream(how, 1, networks.remember(portrait.to(kind)))
        streams.seat(stream, 0, networks.remember(portrait.to(kind)))
        stream.active[:] = True
        for t in range(4):
            stream.condition[0], stream.speech[0] = condition[t], speech[t]
            streams.step(how, stream)
        pictures.append(stream.out.float())
    assert error(pictures[1], pictures[0]) < 0.05
