"""UniAnimate's network, its sampler and its render: what holds whatever the weights are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.persona import demo_portrait
from engine.types import AvatarError
from tests.conftest import found, require

if found("torch") and found("diffusers"):
    import torch

    from engine.generators.video import presets, sampling
    from engine.generators.video.networks import Networks, Portrait, build, load, save
    from engine.generators.video.presets import TINY, UNIANIMATE
    from engine.generators.video.render import Settings, read_half, render
    from engine.generators.video.sampling import Given, first_latents, levels, sample, windows
    from engine.generators.video.unianimate import VideoUNet

pytestmark = pytest.mark.torch
FRAMES = 7


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    require("torch")
    require("diffusers")
    require("transformers")


@pytest.fixture(scope="module")
def networks() -> Networks:
    made = build(TINY, seed=3)
    with torch.no_grad():
        made.empty.tokens.normal_(generator=torch.Generator().manual_seed(1))
    return made


@pytest.fixture(scope="module")
def portrait(networks: Networks) -> Portrait:
    made: Portrait = networks.prepare(demo_portrait())
    return made


@pytest.fixture(scope="module")
def poses() -> Any:
    height, width = TINY.size
    return np.random.default_rng(0).integers(0, 256, (FRAMES, height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def given(networks: Networks, portrait: Portrait, poses: Any) -> Given:
    made: Given = networks.given(portrait, poses[0])
    return made


def clip(count: int = FRAMES, seed: int = 0) -> Any:
    return torch.randn(1, count, TINY.latent, *TINY.latent_size, generator=torch.Generator().manual_seed(seed))


LEVEL = [300]


# -- the network ----------------------------------------------------------------------------------------------------------


def test_the_published_size_has_the_published_layout() -> None:
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in VideoUNet(UNIANIMATE).state_dict().items()}
    assert len(shapes) == 1544
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 1_416_564_300
    assert shapes["input_blocks.0.0.weight"] == (320, 12, 3, 3)
    assert shapes["input_blocks.0.1.proj_in.weight"] == (512, 320, 1)  # 8 heads of 64 over 320 channels
    assert shapes["input_blocks.4.0.temopral_conv.conv4.3.weight"] == (640, 640, 3, 1, 1)
    assert shapes["output_blocks.11.1.transformer_blocks.0.attn2.to_k.weight"] == (320, 1024)
    assert shapes["dwpose_embedding.3.weight"] == (32, 32, 3, 3)
    assert shapes["dwpose_embedding_after.layers.0.1.net.0.0.weight"] == (32, 8)
    assert shapes["randomref_embedding_after2.layers.0.0.fn.to_qkv.weight"] == (72, 12)
    assert shapes["pre_image_condition.2.weight"] == (4096, 1024)
    assert "output_blocks.2.1.conv.weight" in shapes


def test_all_that_the_network_is_told_changes_its_answer(networks: Networks, given: Given, poses: Any) -> None:
    level, x, net = torch.tensor(LEVEL), clip(), networks.denoiser
    seen = net.poses(torch.from_numpy(poses).permute(0, 3, 1, 2)[None] / 255, TINY.latent_size)
    plain = net(x, level, given.guided, first=given.first, poses=seen)
    assert plain.shape == x.shape
    others = {
        "tokens": net(x, level, given.unguided, first=given.first, poses=seen),
        "reference": net(x, level, given.guided, poses=seen),
        "poses": net(x, level, given.guided, first=given.first),
        "level": net(x, level + 400, given.guided, first=given.first, poses=seen),
    }
    for what, other in others.items():
        assert float((other - plain).abs().max()) > 1e-4, what


def test_a_frame_sees_the_others_and_a_row_does_not_see_its_neighbour(networks: Networks, given: Given) -> None:
    net, level, x = networks.denoiser, torch.tensor(LEVEL), clip()
    alone = net(x, level, given.guided, first=given.first)
    moved = x.clone()
    moved[0, -1] += 1.0
    assert float((net(moved, level, given.guided, first=given.first)[0, 0] - alone[0, 0]).abs().max()) > 1e-5
    first = torch.cat([given.first, torch.zeros_like(given.first)])
    two = net(torch.cat([x, moved]), torch.tensor([*LEVEL, 900]), given.guided.expand(2, -1, -1), first=first)
    assert torch.allclose(two[:1], alone, atol=1e-5)


def test_frames_have_no_positions(networks: Networks, given: Given) -> None:
    """The published temporal transformers have none: without the temporal convolutions, order would not matter at all."""
    block = networks.denoiser.input_blocks[0][1]
    from engine.generators.video.blocks import Call

    x = torch.randn(5, TINY.width, 4, 4)
    call = Call(5, torch.zeros(1, TINY.time), given.guided)
    order = torch.tensor([0, 3, 1, 4, 2])
    assert torch.allclose(block(x, call)[order], block(x[order], call), atol=1e-5)


def test_a_size_that_cannot_be_built_is_refused() -> None:
    with pytest.raises(AvatarError, match="multiple of 16"):
        VideoUNet(replace(TINY, size=(32, 40)))
    with pytest.raises(AvatarError, match="choose one of"):
        presets.preset("nonsense")


# -- the sampler ----------------------------------------------------------------------------------------------------------


def test_thirty_steps_are_thirty_one_and_end_at_level_zero() -> None:
    at = levels()
    assert at.t.tolist() == list(range(991, 0, -33))
    assert len(at) == 31
    every = sampling.alphas()
    assert every[-1] == 0
    assert every.dtype == torch.float64
    assert float(at.next_alpha[-1]) == pytest.approx(float(every[0].sqrt()))
    assert float(at.next_sigma[-1]) > 0.02
    assert float(at.next_alpha[0]) == float(at.alpha[1])
    with pytest.raises(AvatarError, match="1 to 1000"):
        levels(0)


def test_a_true_velocity_leads_to_the_clean_picture() -> None:
    clean, noise, at = clip()[0], clip(seed=1)[0], levels(10)
    x = float(at.alpha[0]) * clean + float(at.sigma[0]) * noise
    for step in range(len(at)):
        x = sampling.advance(at, step, x, float(at.alpha[step]) * noise - float(at.sigma[step]) * clean)
    every = sampling.alphas()[0]
    assert torch.allclose(x, every.sqrt().float() * clean + (1 - every).sqrt().float() * noise, atol=1e-4)


def test_windows_cover_a_clip_and_the_last_one_is_its_end() -> None:
    assert windows(32) == [list(range(32))]
    assert windows(3) == [[0, 1, 2]]
    assert [span[0] for span in windows(33)] == [0, 1]
    assert [span[0] for span in windows(70)] == [0, 24, 38]
    for frames in range(33, 140):
        spans = windows(frames)
        assert all(len(span) == 32 for span in spans)
        assert spans[-1][-1] == frames - 1
        assert set().union(*spans) == set(range(frames))
        assert all(later[0] <= sooner[-1] + 1 for sooner, later in zip(spans, spans[1:], strict=False))
    with pytest.raises(AvatarError, match="share fewer"):
        windows(9, size=4, overlap=4)


def test_the_first_latents_hold_the_portrait() -> None:
    latents = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(2))
    for frames, level in ((16, sampling.START_SHORT), (48, sampling.START_LONG)):
        x = first_latents(latents, frames)
        assert x.shape == (frames, 4, 6, 8)
        assert torch.equal(x, first_latents(latents, frames))
        share = float(sampling.alphas()[level].sqrt())
        found = float((x * latents).mean() / (latents**2).mean())
        assert found == pytest.approx(share, abs=0.15)
    short, long = first_latents(latents * 0, 32), first_latents(latents * 0, 33)
    offset = short.mean((2, 3)).std()
    assert 0.1 < float(offset) < 0.4
    assert float(long.std()) > 0.9


def test_guidance_of_one_asks_once_a_window(networks: Networks, given: Given, poses: Any) -> None:
    asked: list[bool] = []
    handle = networks.denoiser.register_forward_pre_hook(lambda module, inputs, named: asked.append("poses" in named), with_kwargs=True)
    try:
        told: list[tuple[int, int]] = []
        pictures = torch.from_numpy(poses)
        one = sample(networks.denoiser, given, pictures, guidance=1.0, steps=2, size=4, overlap=2, progress=lambda *at: told.append(at))
        assert asked == [True] * 6
        assert told[-1] == (6, 6)
        asked.clear()
        two = sample(networks.denoiser, given, pictures, guidance=2.5, steps=2, size=4, overlap=2)
        assert asked == [True, False] * 6
    finally:
        handle.remove()
    assert one.shape == (FRAMES, TINY.latent, *TINY.latent_size)
    assert not torch.allclose(one, two)


def test_windows_are_averaged_before_they_are_guided(networks: Networks, given: Given, poses: Any) -> None:
    """The same, written out for one step."""
    pictures, size, overlap = torch.from_numpy(poses), 4, 2
    start = first_latents(given.latents, FRAMES, size=size)
    got = sample(networks.denoiser, given, pictures, guidance=3.0, steps=1, size=size, overlap=overlap, start=start)
    sums, seen = [torch.zeros_like(start), torch.zeros_like(start)], torch.zeros(FRAMES, 1, 1, 1)
    at = levels(1)
    for span in ([0, 1, 2, 3], [2, 3, 4, 5], [3, 4, 5, 6]):
        hint = networks.denoiser.poses(pictures[span].permute(0, 3, 1, 2)[None] / 255, TINY.latent_size)
        sums[0][span] += networks.denoiser(start[span][None], at.t[:1], given.guided, first=given.first, poses=hint)[0]
        sums[1][span] += networks.denoiser(start[span][None], at.t[:1], given.unguided)[0]
        seen[span] += 1
    guided, unguided = (each / seen for each in sums)
    assert torch.allclose(got, sampling.advance(at, 0, start, unguided + 3.0 * (guided - unguided)), atol=1e-5)


# -- a render -------------------------------------------------------------------------------------------------------------


def test_a_killed_render_goes_on_and_ends_the_same(networks: Networks, portrait: Portrait, poses: Any, tmp_path: Path) -> None:
    settings, state = Settings(steps=3, size=4, overlap=2), tmp_path / "half.safetensors"
    whole = render(networks, portrait, poses[0], poses, settings=settings)
    assert whole.shape == (FRAMES, *TINY.size, 3)
    assert whole.dtype == np.uint8

    def killed(done: int, total: int) -> None:
        if done == 5:  # in the middle of the second step
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render(networks, portrait, poses[0], poses, settings=settings, state=state, progress=killed)
    assert state.exists()
    told: list[int] = []
    again = render(networks, portrait, poses[0], poses, settings=settings, state=state, progress=lambda done, total: told.append(done))
    assert told == [6, 7, 8, 9, 10, 11, 12]
    assert np.array_equal(again, whole)
    assert state.exists(), "until whoever asked has written the frames"


def test_a_state_of_another_render_or_a_broken_one_begins_anew(networks: Networks, portrait: Portrait, poses: Any, tmp_path: Path) -> None:
    state = tmp_path / "half.safetensors"

    def first(clip: Any, **settings: Any) -> int:
        """Which call of the network comes first; the render is ended after it."""
        told: list[int] = []

        def killed(done: int, total: int) -> None:
            told.append(done)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            render(networks, portrait, poses[0], clip, settings=Settings(steps=2, **settings), state=state, progress=killed)
        return told[0]

    assert [first(poses), first(poses)] == [1, 2], "the same goes on"
    assert first(poses[:-1]) == 1
    assert first(poses) == 1
    assert first(poses, guidance=1.5) == 1
    assert first(poses, guidance=1.5) == 2
    state.write_bytes(state.read_bytes()[:100])
    assert first(poses, guidance=1.5) == 1
    assert read_half(tmp_path / "none", key="") is None


def test_numbers_that_are_none_end_a_render_at_once(networks: Networks, portrait: Portrait, poses: Any, tmp_path: Path) -> None:
    calls = list[None]()

    def broken(*_: Any) -> Any:
        calls.append(None)
        return torch.full((1, 4, TINY.latent, *TINY.latent_size), torch.inf)

    handle = networks.denoiser.register_forward_hook(broken)
    try:
        with pytest.raises(AvatarError, match="answered with numbers that are none; render in fp32"):
            render(networks, portrait, poses[0], poses, settings=Settings(steps=3, size=4, overlap=2), state=tmp_path / "half.safetensors")
    finally:
        handle.remove()
    assert len(calls) == 2, "guided and unguided, of one window"
    assert not list(tmp_path.iterdir()), "nothing to go on from"


def test_pictures_that_are_none_are_refused(networks: Networks, portrait: Portrait, poses: Any) -> None:
    with pytest.raises(AvatarError, match="no frames"):
        render(networks, portrait, poses[0], poses[:0])
    with pytest.raises(AvatarError, match="give it as RGB"):
        render(networks, portrait, poses[0][..., 0], poses)
    with pytest.raises(AvatarError, match="no frames"):
        sample(networks.denoiser, networks.given(portrait, poses[0]), torch.from_numpy(poses[:0]))


def test_skeletons_reach_the_network_with_red_and_blue_exchanged(networks: Networks, portrait: Portrait, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def spy(network: Any, given: Given, poses: Any, **more: Any) -> Any:
        seen.append(poses)
        return first_latents(given.latents, len(poses))

    monkeypatch.setattr("engine.generators.video.render.sample", spy)
    red = np.zeros((2, 20, 30, 3), np.uint8)
    red[..., 0] = 200
    render(networks, portrait, red[0], red)
    assert seen[0].shape == (2, *TINY.size, 3)
    assert seen[0][..., 2].min() == 200
    assert seen[0][..., :2].max() == 0


def test_the_portrait_is_drawn_with_a_seed(networks: Networks, portrait: Portrait) -> None:
    again, other = networks.prepare(demo_portrait()), networks.prepare(demo_portrait(), seed=5)
    assert portrait.latents.shape == (TINY.latent, *TINY.latent_size)
    assert portrait.image.shape == (TINY.context,)
    assert torch.equal(again.latents, portrait.latents)
    assert not torch.equal(other.latents, portrait.latents)


# -- on disk --------------------------------------------------------------------------------------------------------------


def test_weights_come_back_and_what_was_changed_is_refused(networks: Networks, portrait: Portrait, tmp_path: Path) -> None:
    save(networks, tmp_path, origin={"system": "test"})
    again = load(tmp_path)
    assert torch.equal(again.prepare(demo_portrait()).image, portrait.image)
    path = tmp_path / "denoiser.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(AvatarError, match="not the file that its"):
        load(tmp_path)
    path.unlink()
    with pytest.raises(AvatarError, match="missing, damaged"):
        load(tmp_path)
    with pytest.raises(AvatarError, match="import them first"):
        load(tmp_path / "nowhere")
