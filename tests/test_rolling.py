"""The rolling window of the video systems: what holds whatever the weights are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.persona import demo_portrait
from engine.types import AvatarError
from tests.conftest import found, require

if found("torch") and found("diffusers"):
    import torch

    from engine.generators.video import networks, rolling, sampling, vividpose_networks, vividpose_sampling
    from engine.generators.video.presets import TINY
    from engine.generators.video.rolling import UniAnimateSteps, VividPoseSteps, moved_on, roll, turned
    from engine.generators.video.vividpose_presets import TINY as TINY_VIVIDPOSE

pytestmark = pytest.mark.torch
WINDOW, PAST = 4, 3
SHAPE = (4, 4, 6)


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    require("torch")
    require("diffusers")
    require("transformers")


def pictures(seed: int = 0) -> Any:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (WINDOW, *TINY.size, 3), dtype=np.uint8))


@torch.no_grad()
def unianimate(steps: UniAnimateSteps) -> tuple[Any, Any, Any]:
    """(what a window's call is, what the published sampler makes of a start, the portrait's latents)"""
    made = networks.build(TINY, seed=3)
    portrait = made.prepare(demo_portrait())
    given = made.given(portrait, pictures(1)[0].numpy())
    shown = pictures().permute(0, 3, 1, 2)[None].float() / 255
    poses = made.denoiser.poses(shown, TINY.latent_size)
    call = rolling.unianimate_call(made.denoiser, steps, tokens=given.guided, first=given.first, poses=poses)

    def published(start: Any, count: int) -> Any:
        return sampling.sample(made.denoiser, given, pictures(), guidance=1.0, steps=count, size=WINDOW, overlap=0, start=start)

    return call, published, portrait.latents


@torch.no_grad()
def vividpose(steps: VividPoseSteps) -> tuple[Any, Any, Any]:
    """The same of VividPose."""
    made = vividpose_networks.build(TINY_VIVIDPOSE, seed=3)
    portrait = made.prepare(demo_portrait())
    given = made.given(portrait)
    drawn, dense = (each.permute(0, 3, 1, 2)[None].float() / 255 for each in (pictures(), pictures(1)))
    more: dict[str, Any] = {"context": given.context, "image": given.image, "ids": given.ids, "read": given.read}
    call = rolling.vividpose_call(made.denoiser, steps, poses=made.denoiser.poses(drawn, dense), **more)

    def published(start: Any, count: int) -> Any:
        how: dict[str, Any] = {"guidance": 1.0, "first_guidance": 1.0, "steps": count, "size": WINDOW, "overlap": 0}
        return vividpose_sampling.sample(made.denoiser, given, pictures(), pictures(1), start=start, **how)

    return call, published, portrait.latents


@torch.no_grad()
def test_without_a_past_a_window_of_unianimate_is_the_published_sampler_s() -> None:
    steps = UniAnimateSteps.of(sampling.levels(3))
    call, published, portrait = unianimate(steps)
    start = sampling.first_latents(portrait, WINDOW, size=WINDOW)
    none = start.new_zeros(1, 0, *SHAPE)
    assert torch.equal(roll(steps, call, past=none, noise=none, begun=start[None])[0], published(start, 3))


@torch.no_grad()
def test_without_a_past_a_window_of_vividpose_is_the_published_sampler_s() -> None:
    steps = VividPoseSteps.of(vividpose_sampling.sigmas(3))
    call, published, _ = vividpose(steps)
    start = vividpose_sampling.first_latents((WINDOW, *SHAPE))
    none = start.new_zeros(1, 0, *SHAPE)
    assert torch.equal(roll(steps, call, past=none, noise=none, begun=start[None])[0], published(start, 3))


def test_new_frames_begin_as_the_published_ones() -> None:
    portrait = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))
    one, other = UniAnimateSteps.few(4), VividPoseSteps.few(4)
    assert torch.equal(one.begun(portrait, one.drawn((WINDOW, *SHAPE))), sampling.first_latents(portrait, WINDOW, size=WINDOW))
    assert torch.equal(other.begun(portrait, other.drawn((WINDOW, *SHAPE))), vividpose_sampling.first_latents((WINDOW, *SHAPE)))


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("kind", ["unianimate", "vividpose"])
def test_few_steps_lead_from_the_beginning_to_a_clean_picture(kind: str, count: int) -> None:
    """A network that knows the truth is led to it, by any number of steps; and each of its answers says so."""
    steps: Any = (UniAnimateSteps if kind == "unianimate" else VividPoseSteps).few(count)
    assert len(steps) == count
    truth, noise = torch.randn(2, 1, WINDOW, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    asked = list[int]()

    def answer(step: int, x: Any) -> Any:
        """What a perfect network says: the velocity that leads to the truth."""
        asked.append(step)
        if kind == "unianimate":
            alpha, sigma = steps.rows[step][:2]
            return (alpha * x - truth) / sigma
        sigma = steps.sigmas[step]
        return (x / (sigma**2 + 1) - truth) * (sigma**2 + 1) ** 0.5 / sigma

    none = truth[:, :0]
    for exit in (None, *range(count)):
        asked.clear()
        made = roll(steps, answer, past=none, noise=none, begun=steps.noised(0, truth, noise), exit=exit)
        assert torch.allclose(made, truth, atol=1e-9)
        assert asked == list(range(count if exit is None else exit + 1))


def test_the_past_is_shown_at_every_level_and_stays_as_it_is() -> None:
    steps = UniAnimateSteps.few(3)
    past, noise = torch.randn(2, 1, PAST, *SHAPE, generator=torch.Generator().manual_seed(2))
    shown = []

    def call(step: int, x: Any) -> Any:
        shown.append(x)
        return torch.zeros_like(x)

    roll(steps, call, past=past, noise=noise, begun=past[:, :1])
    for step, x in enumerate(shown):
        alpha, sigma = steps.rows[step][:2]
        assert torch.equal(x[:, :PAST], alpha * past + sigma * noise)
        assert x.shape[1] == PAST + 1


def test_gradients_reach_the_past_and_the_network_through_every_step() -> None:
    steps = UniAnimateSteps.few(3)
    call, _, _ = unianimate(steps)
    past = torch.randn(1, PAST, *SHAPE, generator=torch.Generator().manual_seed(2)).requires_grad_()
    begun = torch.randn(1, 1, *SHAPE, generator=torch.Generator().manual_seed(3)).requires_grad_()
    for exit in (None, 0, 1):
        made = roll(steps, call, past=past, noise=torch.ones_like(past), begun=begun, exit=exit)
        for each in torch.autograd.grad(made.square().sum(), (past, begun)):
            assert each.isfinite().all()
            assert each.abs().sum() > 0


def test_a_window_s_noises_go_round_and_its_past_moves_on() -> None:
    noise = torch.arange(5.0)[None]
    assert turned(noise, 2).tolist() == [[2.0, 3.0, 4.0, 0.0, 1.0]]
    assert moved_on(noise[:, :3], torch.tensor([[7.0, 8.0]])).tolist() == [[2.0, 7.0, 8.0]]
    assert moved_on(noise[:, :1], torch.tensor([[7.0, 8.0]])).tolist() == [[8.0]], "a past shorter than what is new"
    assert moved_on(noise[:, :0], torch.tensor([[7.0, 8.0]])).tolist() == [[]]


@pytest.mark.parametrize("steps", [0, 950])
def test_steps_that_cannot_be_are_one_sentence(steps: int) -> None:
    with pytest.raises(AvatarError, match=r"takes 1 to 949 denoising steps, not \d+; give another --steps"):
        UniAnimateSteps.few(steps)
