"""What presets of one network definition differ in: every switch by itself, at leisure against what it says, and live against the whole clip."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.generators.diffusion.budget import budget
from engine.generators.diffusion.presets import CHAMP, MAGIC_ANIMATE, MUSE_POSE, PRESETS, TINY, Noise, Preset, Sampling, check
from engine.types import AvatarError, Signal
from tests.conftest import found, require
from tests.networks import error, seeded

if found("torch") and found("diffusers"):
    import torch
    from torch.nn import functional

    from engine.backends import backend
    from engine.generators.diffusion import graphs
    from engine.generators.diffusion import stream as streams
    from engine.generators.diffusion.attention import Sources
    from engine.generators.diffusion.conditions import Ease, painter
    from engine.generators.diffusion.networks import Networks
    from engine.generators.diffusion.offline import first_noise, padded, sample, windows
    from engine.generators.diffusion.resnet import joined
    from engine.generators.diffusion.sampler import levels
    from engine.generators.diffusion.temporal import Window, places, whole
    from engine.generators.diffusion.unet import reading_blocks, spatial_blocks

pytestmark = pytest.mark.torch
SAME = 1e-5
"""Relative error, fp32."""
FRAMES = 10
SILENT = replace(TINY, unet=replace(TINY.unet, speech_dim=0))
JOINED = replace(SILENT, name="joined", unet=replace(SILENT.unet, joined_norms=True))
EACH = replace(SILENT, name="each", reference_each=True, unet=replace(SILENT.unet, bank="mid_up", reference_cut=True))
SUMMED = replace(SILENT, name="summed", condition="maps", guider_each=True, guider_attends=True)
STEERED = replace(SILENT, name="steered", condition="densepose", controlnet=True, image_encoder="text")
MAGIC = replace(
    STEERED,
    name="magic",
    reference_each=True,
    unet=replace(EACH.unet, joined_norms=True, motion_middle=False),
    noise=Noise(prediction="epsilon", zero_snr=False, spacing="leading"),
    sampling=Sampling(guidance=7.5, window=6, overlap=2, tokens_unguided=True, padding="multiple", noise_frames=6),
)
"""All switches that MagicAnimate has."""
FACED = replace(SILENT, name="faced", condition="dots", guider_each=True, sampling=Sampling(guidance=3.5, window=6, overlap=2, zeros_unguided=True))
"""All switches that Moore-AnimateAnyone's face reenactment has."""
EVERY = [JOINED, EACH, SUMMED, STEERED, MAGIC, FACED]
NAMES = [made.name for made in EVERY]


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    require("torch")
    require("diffusers")


def recipe(networks: Networks, steps: int = 2, *, batched: bool = False) -> streams.Recipe:
    return streams.Recipe(networks, levels(networks.preset.noise, steps), batched, torch.float32, torch.device("cpu"))


def clip(made: Preset, seed: int = 1) -> tuple[Any, Any]:
    """(portrait -1..1, conditions [F, H, W, K])"""
    torch.manual_seed(seed)
    condition = torch.randint(0, 256, (FRAMES, *made.size, made.channels), dtype=torch.uint8)
    return torch.rand(1, 3, *made.size) * 2 - 1, condition


# -- presets --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [*PRESETS.values(), *EVERY], ids=lambda made: made.name)
def test_every_preset_can_be_built(made: Preset) -> None:
    check(made)


@pytest.mark.parametrize(
    ("made", "changes", "complaint"),
    [
        (SUMMED, {"condition": "skeleton"}, "need a condition of several"),
        (SUMMED, {"guider_each": False}, "several pictures only"),
        (STEERED, {"image_encoder": "pooled"}, "tokens of a text"),
        (EACH, {"sampling": Sampling(zeros_unguided=True)}, "read once"),
        (MUSE_POSE, {"unet": replace(MUSE_POSE.unet, positions=32)}, "longer than its motion modules"),
    ],
)
def test_switches_that_contradict_each_other_are_refused(made: Preset, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(AvatarError, match=complaint):
        check(replace(made, **changes))


def test_what_a_session_keeps_follows_the_switches() -> None:
    # 512 x 512: keys and values of 10 blocks, 7.0 million cells each, at every one of the live steps.
    one, two = (budget(MAGIC_ANIMATE, steps=steps).reference for steps in (1, 2))
    assert one == 2 * 2 * (64 * 1280 + 3 * (256 * 1280 + 1024 * 640 + 4096 * 320))
    assert two == 2 * one
    assert budget(CHAMP, steps=1).reference == budget(CHAMP, steps=2).reference == 2 * 2 * 11_550_720


# -- live -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batched", [False, True], ids=["in-turn", "stream-batch"])
@pytest.mark.parametrize("made", EVERY, ids=NAMES)
def test_streaming_equals_the_whole_clip(made: Preset, batched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = seeded(made)
    portrait, condition = clip(made)
    how, seen = recipe(networks, batched=batched), []
    cache = how.remember(portrait)
    decode = networks.autoencoder.decode

    def spy(latents: Any) -> Any:
        seen.append((latents * made.scale)[1].clone())
        return decode(latents)

    monkeypatch.setattr(networks.autoencoder, "decode", spy)
    want = streams.whole_clip(how, cache, condition, None)
    stream = streams.open_stream(how, 2, how.remember(-portrait))
    streams.seat(stream, 1, cache)
    for frame in condition:
        stream.active[1] = True
        stream.condition[1] = frame
        streams.step(how, stream)
    delay = int(batched)
    assert error(torch.stack(seen)[delay:], want[: FRAMES - delay]) < SAME


@pytest.mark.parametrize("made", EVERY, ids=NAMES)
def test_the_live_graph_is_the_step(made: Preset) -> None:
    """Its flat signature has a name for everything that the switches bring."""
    networks = seeded(made)
    portrait, condition = clip(made)
    how = recipe(networks)
    specs = graphs.graphs(how)
    uint8 = ((portrait + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    remembered = backend("pytorch").load(specs["remember"])({"portrait": uint8.numpy()})
    cache = how.remember(uint8.permute(0, 3, 1, 2).float() / 127.5 - 1)
    kept = [*cache.reference, *cache.identity]
    assert [array.shape for array in remembered.values()] == [tuple(x.shape) for pair in kept for x in pair]
    assert max(error(torch.from_numpy(a), x) for a, x in zip(remembered.values(), [x for pair in kept for x in pair], strict=True)) < SAME
    inputs = {name: np.zeros(shape, kind) for name, (shape, kind) in specs["step"].inputs.items()}
    assert set(inputs) - set(remembered) == {name for name in inputs if not name.startswith(("reference", "identity"))}
    inputs |= {name: array for name, array in remembered.items() if name in inputs}
    stream = streams.open_stream(how, 1, cache)
    streams.seat(stream, 0, cache)
    stream.active[:], stream.condition[0] = True, condition[0]
    at = places(stream.count, made.chunk, made).placed(made.window, torch.float32)
    inputs |= {"condition": condition[:1].numpy(), "noise": stream.noise.numpy(), "where": at.where.numpy(), "bias": at.bias.numpy()}
    made_by_graph = backend("pytorch").load(specs["step"])(inputs)
    streams.step(how, stream)
    assert np.abs(made_by_graph["picture"][0].astype(int) - stream.out[0, 0].numpy().astype(int)).max() <= 1
    assert stream.out.float().std() > 5


def test_only_the_middle_and_the_way_up_read_the_reference() -> None:
    networks = seeded(EACH)
    assert [block.reads for block in spatial_blocks(networks.denoiser)] == [-2, -1, 0, 1, 2, 3, 4]
    cache = recipe(networks, 3).remember(clip(EACH)[0])
    assert len(cache.reference) == 3 * 5
    assert len(reading_blocks(networks.reference)) == 5
    assert not any(key.startswith("up_blocks.1.attentions.1.") and ("attn" in key or "proj_out" in key) for key in networks.reference.state_dict())


def test_the_reference_is_read_at_the_level_of_each_step() -> None:
    networks = seeded(EACH)
    portrait, condition = clip(EACH)
    how = recipe(networks, 2)
    first, second = how.of_step(Sources(1, how.remember(portrait).reference), 0), how.of_step(Sources(1, how.remember(portrait).reference), 1)
    for sources, t in ((first, how.levels.t[0]), (second, how.levels.t[1])):
        latents = networks.autoencoder.encode(portrait)
        assert networks.image is not None
        bank = networks.reference(latents, networks._read(networks.reference, networks.image(portrait)), t)
        for (k, v), read, block in zip(sources.reference, bank, reading_blocks(networks.denoiser), strict=True):
            assert torch.equal(k, block.attn1.to_k(read))
            assert torch.equal(v, block.attn1.to_v(read))
    assert error(first.reference[0][0], second.reference[0][0]) > 1e-3, "and levels differ"
    with pytest.raises(AvatarError, match="anew at every step"):
        networks.remember(portrait)
    assert len(condition) == FRAMES


def test_the_summed_guiders_see_one_map_each() -> None:
    networks = seeded(SUMMED)
    condition = clip(SUMMED)[1][:2].permute(0, 3, 1, 2) / 255
    parts = [encoder(condition[:, 3 * i : 3 * i + 3]) for i, encoder in enumerate(networks.guider.encoders.values())]
    assert error(networks.guider(condition), sum(parts)) < SAME
    assert all(error(a, b) > 0.1 for i, a in enumerate(parts) for b in parts[:i])


def test_a_controlnet_adds_to_every_skip_and_to_the_middle() -> None:
    networks = seeded(STEERED)
    _, condition = clip(STEERED)
    hint = networks.guider(condition[:2].permute(0, 3, 1, 2) / 255)
    x, t = torch.randn(2, STEERED.unet.in_channels, *STEERED.latent_size), torch.full((2,), 500.0)
    more = networks.residuals(x, t, hint)
    assert len(more) == 1 + 2 + 1 + 1  # first convolution, two levels of one resnet, one downsampler, middle

    def said(residuals: list[Any]) -> Any:
        return networks.denoiser(x, t, None, Sources(2, residuals=residuals), Window(whole(2, 1, x.device), 2, 2, None, {}))

    assert torch.equal(networks.denoise(x, t, hint, Sources(2), Window(whole(2, 1, x.device), 2, 2, None, {})), said(more))
    for i in range(len(more)):
        assert error(said([*more[:i], torch.zeros_like(more[i]), *more[i + 1 :]]), said(more)) > 1e-4, f"residual {i} is of no consequence"


# -- at leisure -----------------------------------------------------------------------------------------------------------


def test_joined_norms_see_all_frames_of_a_window() -> None:
    norm = torch.nn.GroupNorm(4, 8).requires_grad_(False)
    x = torch.randn(6, 8, 3, 5) * torch.arange(1, 7).view(6, 1, 1, 1)
    got = joined(norm, x, 3)
    for b in range(2):
        clip_ = x[3 * b : 3 * b + 3].transpose(0, 1)[None]  # [1, C, F, h, w], as the published code has it
        assert error(got[3 * b : 3 * b + 3], functional.group_norm(clip_, 4, norm.weight, norm.bias)[0].transpose(0, 1)) < SAME
    assert torch.equal(joined(norm, x, 1), norm(x))
    networks, others = seeded(JOINED), seeded(SILENT)
    others.load_state_dict(networks.state_dict())
    portrait, condition = clip(JOINED)
    at_leisure, live = [], []
    for each in (networks, others):
        how = recipe(each)
        at_leisure.append(sample(how, how.remember(portrait), condition[:5], sampling=Sampling(window=5, overlap=1)))
        live.append(streams.whole_clip(how, how.remember(portrait), condition[:5], None))
    assert error(*at_leisure) > 1e-3
    assert torch.equal(*live), "live, a frame is normalised by itself"


@pytest.mark.parametrize(
    ("how", "frames", "longer"),
    [
        # (L - S) mod (S - O) = 0 afterwards, as MusePose's script pads; a multiple of the window, as MagicAnimate's does.
        *((MUSE_POSE.sampling, frames, longer) for frames, longer in ((48, 48), (49, 92), (92, 92), (93, 136), (20, 48), (4, 4))),
        *((MAGIC_ANIMATE.sampling, frames, longer) for frames, longer in ((16, 16), (17, 32), (3, 16))),
        (CHAMP.sampling, 33, 33),
    ],
)
def test_clips_are_lengthened_as_published(how: Sampling, frames: int, longer: int) -> None:
    assert padded(frames, how) == longer
    if how.padding == "windows" and longer > how.window:
        found_ = windows(longer, how)
        assert found_[-1][-1] == longer - 1
        assert found_[-1] == sorted(found_[-1]), "no window goes on at the start"


def test_a_lengthened_clip_is_cut_back_and_noise_repeats() -> None:
    networks = seeded(MAGIC)
    portrait, condition = clip(MAGIC)
    how = recipe(networks)
    cache = how.remember(portrait)
    noise = first_noise(how, 12, MAGIC.sampling)
    assert torch.equal(noise[:6], noise[6:])
    assert not torch.equal(noise[0], noise[1])
    got = sample(how, cache, condition)
    longer = torch.cat([condition, condition[-1:], condition[-1:]])
    assert torch.equal(got, sample(how, cache, longer, noise=noise)[:FRAMES])
    assert len(got) == FRAMES


def test_the_unguided_half_knows_the_text_but_not_the_portrait() -> None:
    networks = seeded(MAGIC)
    portrait, condition = clip(MAGIC)
    how = recipe(networks)

    def at(picture: Any, guidance: float, *, tokens: bool = True) -> Any:
        return sample(how, how.remember(picture), condition, sampling=replace(MAGIC.sampling, guidance=guidance, tokens_unguided=tokens))

    assert torch.equal(at(portrait, 0.0), at(-portrait, 0.0))
    assert error(at(portrait, 0.0), at(portrait, 0.0, tokens=False)) > 1e-3
    assert error(at(portrait, 1.0), at(-portrait, 1.0)) > 1e-4


def test_the_unguided_half_reads_a_picture_of_nothing_where_it_was_trained_so() -> None:
    networks = seeded(FACED)
    portrait, condition = clip(FACED)
    how = recipe(networks)

    def at(picture: Any, guidance: float, *, zeros: bool = True) -> Any:
        return sample(how, how.remember(picture), condition, sampling=replace(FACED.sampling, guidance=guidance, zeros_unguided=zeros))

    assert torch.equal(at(portrait, 0.0), at(-portrait, 0.0)), "all of the unguided half, none of the portrait"
    assert error(at(portrait, 0.0), at(portrait, 0.0, zeros=False)) > 1e-3
    # A portrait whose latents are zero, with tokens that are zero, says what the unguided half is told.
    h, w = FACED.latent_size
    nobody = torch.zeros(1, 1, FACED.unet.image_dim)
    nothing = networks.cached(networks.reread(torch.zeros(1, FACED.unet.in_channels, h, w), nobody), nobody)
    assert error(sample(how, nothing, condition, sampling=replace(FACED.sampling, guidance=1.0)), at(portrait, 0.0)) < SAME


def test_two_guiders_are_summed_each_over_its_own_picture() -> None:
    networks = seeded(FACED)
    pictures = torch.rand(2, 6, *FACED.size)
    upper, mouth = (networks.guider.encoders[name](part) for name, part in zip(("upper", "mouth"), pictures.split(3, 1), strict=True))
    assert error(networks.guider(pictures), upper + mouth) < SAME


@pytest.mark.parametrize("steps", [3, 25])
def test_a_portrait_read_at_every_step_is_read_at_the_steps_of_a_clip_at_leisure(steps: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Live ones are others, and fewer."""
    from engine.generators import load

    monkeypatch.setitem(PRESETS, MAGIC.name, MAGIC)
    generator: Any = load("diffusion", preset="magic", mode="eager", device="cpu")
    torch.manual_seed(0)
    for parameter in generator.recipe.networks.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    identity = generator.prepare(np.arange(32 * 48 * 3, dtype=np.uint8).reshape(32, 48, 3))
    maps = [np.full((32, 48, 3), 30 * k, np.uint8) for k in range(4)]
    signals = [Signal(k / 25, maps={"densepose": picture}) for k, picture in enumerate(maps)]
    got = generator.at_leisure(identity, signals, kept=tmp_path, steps=steps, guidance=1.0).latents
    how = recipe(generator.recipe.networks, steps)
    portrait = torch.from_numpy(identity.portrait)[None].permute(0, 3, 1, 2) / 127.5 - 1
    want = sample(how, how.remember(portrait), torch.from_numpy(np.stack(maps)), sampling=replace(MAGIC.sampling, steps=steps, guidance=1.0))
    assert error(got, want) < SAME
    blind = sample(how, how.remember(-portrait), torch.from_numpy(np.stack(maps)), sampling=replace(MAGIC.sampling, steps=steps, guidance=1.0))
    assert error(blind, want) > 1e-4


def test_a_guider_never_holds_more_than_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = seeded(SUMMED)
    portrait, condition = clip(SUMMED)
    counts, forward = [], networks.guider.forward

    def spy(pictures: Any) -> Any:
        counts.append(len(pictures))
        return forward(pictures)

    monkeypatch.setattr(networks.guider, "forward", spy)
    how = recipe(networks)
    sample(how, how.remember(portrait), condition, sampling=Sampling(window=4, overlap=1, guidance=1.0))
    assert counts == [4, 4, 2]


# -- conditions -----------------------------------------------------------------------------------------------------------


def test_maps_become_channels_in_their_order() -> None:
    paint = painter(SUMMED)
    maps = {name: np.full((*SUMMED.size, 3), 10 * i, np.uint8) for i, name in enumerate(("dwpose", "depth", "semantic", "normal", "more"))}
    picture = paint(Signal(0.0, maps=maps), None, Ease())
    assert picture.shape == (*SUMMED.size, 12)
    assert picture[3, 5, ::3].tolist() == [10, 30, 20, 0], "depth, normal, semantic, dwpose"
    maps["depth"] = np.zeros((8, 8, 3), np.uint8)
    assert paint(Signal(0.0, maps=maps), None, Ease())[0, 0, 0] == 0, "and are squeezed to the preset's size"
    for wrong, complaint in (
        ({}, "there is no depth and no normal and no semantic and no dwpose"),
        ({**maps, "depth": maps["depth"][..., 0]}, "depth map is uint8"),
    ):
        with pytest.raises(AvatarError, match=complaint):
            paint(Signal(0.0, maps=wrong), None, Ease())
    with pytest.raises(AvatarError, match="no densepose"):
        painter(STEERED)(Signal(0.0), None, Ease())


def test_a_live_session_is_driven_by_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A portrait without a face will do: nothing is brought to where it is."""
    from engine.generators import load

    monkeypatch.setitem(PRESETS, MAGIC.name, MAGIC)
    generator: Any = load("diffusion", preset="magic", mode="eager")
    assert generator.spec.needs == ("maps",)
    identity = generator.prepare(np.zeros((60, 40, 3), np.uint8))
    state = generator.allocate(1)
    generator.admit(state, 0, generator.unpack(identity.portrait, generator.pack(identity)))
    signal = Signal(0.0, maps={"densepose": np.full((64, 96, 3), 200, np.uint8)})
    assert generator.step(state, [[signal]])[0][0].rgb.shape == (*MAGIC.size, 3)
    more: Any = load("diffusion", preset="magic", steps=3, mode="eager")
    with pytest.raises(AvatarError, match="other weights"):
        more.unpack(identity.portrait, generator.pack(identity))
