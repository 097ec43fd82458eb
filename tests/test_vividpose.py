"""VividPose: with nothing told it is diffusers' Stable Video Diffusion; everything it can be told changes what it answers."""

from __future__ import annotations

from typing import Any

import pytest

from engine.types import AvatarError
from tests.conftest import found, require

if found("torch") and found("diffusers"):
    import torch
    from diffusers import EulerDiscreteScheduler
    from torch.nn import functional

    from engine.generators.video import vividpose_sampling as sampling
    from engine.generators.video.sampling import Half
    from engine.generators.video.vividpose import Denoiser, Read, ReferenceNet, svd_unet
    from engine.generators.video.vividpose_presets import TINY, VIVIDPOSE, VividPose

pytestmark = pytest.mark.torch
FRAMES = 5
SVD = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}
"""scheduler_config.json of stable-video-diffusion-img2vid."""


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    require("torch")
    require("diffusers")


def seeded(module: Any, seed: int) -> Any:
    """No layer is zero, so everything is seen in the answer."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in module.named_parameters():
            scale = value[0].numel() ** -0.5 if value.ndim > 1 else 0.1
            value.copy_(torch.randn(value.shape, generator=generator) * scale + (value.ndim == 1 and key.endswith("weight")))
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    made: Denoiser = seeded(Denoiser(TINY), 1)
    return made


@pytest.fixture(scope="module")
def reference() -> ReferenceNet:
    made: ReferenceNet = seeded(ReferenceNet(TINY), 2)
    return made


def some(*shape: int, seed: int = 0) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def told(rows: int = 1) -> tuple[Any, Any, Any, Any]:
    """x, level, context, ids"""
    return some(rows, FRAMES, 8, *TINY.latent_size), torch.linspace(-1.0, 1.0, rows), some(rows, 1, TINY.context, seed=1), some(rows, 3, seed=2).abs()


@pytest.fixture(scope="module")
def about(denoiser: Denoiser, reference: ReferenceNet) -> sampling.Given:
    latents = some(4, *TINY.latent_size, seed=3)
    made: sampling.Given = sampling.given(
        denoiser, reference, latents=latents * 0.18, image=latents, token=some(TINY.context, seed=4), face=some(512, seed=5)
    )
    return made


# -- against diffusers ----------------------------------------------------------------------------------------------------


def test_told_nothing_it_answers_as_stable_video_diffusion(denoiser: Denoiser) -> None:
    x, level, context, ids = told(rows=2)
    want = denoiser.unet(x, level, encoder_hidden_states=context, added_time_ids=ids).sample
    got = denoiser(x, level, context, ids)
    assert float((got - want).abs().max() / want.abs().max()) < 1e-4
    assert got.shape == (2, FRAMES, 4, *TINY.latent_size)


def test_the_published_size_is_the_published_one() -> None:
    with torch.device("meta"):
        unet, spatial = svd_unet(VIVIDPOSE), ReferenceNet(VIVIDPOSE)
    assert sum(value.numel() for value in unet.parameters()) == 1_524_623_082
    theirs = {key: tuple(value.shape) for key, value in unet.state_dict().items()}
    ours = {key.removeprefix("unet."): tuple(value.shape) for key, value in spatial.state_dict().items()}
    assert set(ours.items()) < set(theirs.items())
    assert not any("temporal" in key or "time_mixer" in key for key in ours)


@pytest.mark.parametrize("steps", [25, 4])
def test_the_sampler_is_the_euler_scheduler(steps: int, monkeypatch: pytest.MonkeyPatch, denoiser: Denoiser, about: sampling.Given) -> None:
    """The whole trajectory, for a network that answers something simple."""
    monkeypatch.setattr(Denoiser, "forward", lambda self, x, level, *args, **named: torch.tanh(x[:, :, :4] * 3 + level) * 0.7)
    monkeypatch.setattr(sampling, "_poses", lambda *args: None)
    scheduler = EulerDiscreteScheduler(**SVD)
    scheduler.set_timesteps(steps)
    ours, want = [], []
    advance = sampling.advance

    def spy(*args: Any, **named: Any) -> Any:
        ours.append(advance(*args, **named))
        return ours[-1]

    monkeypatch.setattr(sampling, "advance", spy)
    pictures = torch.zeros(3, *TINY.size, 3, dtype=torch.uint8)
    start = some(3, 4, *TINY.latent_size) * float(scheduler.init_noise_sigma)
    sampling.sample(denoiser, about, pictures, pictures, guidance=1.0, steps=steps, overlap=2, start=start)
    x = start
    for t in scheduler.timesteps:
        x = scheduler.step(torch.tanh(scheduler.scale_model_input(x, t) * 3 + t) * 0.7, t, x).prev_sample
        want.append(x)
    assert len(ours) == len(want) == steps
    assert max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, want, strict=True)) < 1e-4
    assert float(sampling.first_latents((1, 4, 64, 64)).std()) == pytest.approx(float(scheduler.init_noise_sigma), rel=0.02)


# -- what it is told ------------------------------------------------------------------------------------------------------


def test_reference_face_and_poses_change_the_answer(denoiser: Denoiser, about: sampling.Given) -> None:
    x, level, context, ids = told()
    plain, bank, face = denoiser(x, level, context, ids), about.read.bank, about.read.face
    pictures = some(2, 1, FRAMES, 3, *TINY.size).sigmoid()
    poses = denoiser.poses(*pictures)
    others = [
        denoiser(x, level, context, ids, read=Read(bank)),
        denoiser(x, level, context, ids, read=Read((), face)),
        denoiser(x, level, context, ids, read=Read(bank, face)),
        denoiser(x, level, context, ids, poses=poses),
        denoiser(x, level, context, ids, poses=denoiser.poses(pictures[0], 1 - pictures[1])),
        denoiser(x, level, context * 0, ids),
        denoiser(x, level, context, ids + 5),
    ]
    answers = [plain, *others]
    for i, one in enumerate(answers):
        for j, other in enumerate(answers[:i]):
            assert float((one - other).abs().max()) > 1e-5, (i, j)


def test_a_bank_is_read_as_more_keys_and_values(denoiser: Denoiser) -> None:
    """One block against the formula, written out."""
    from engine.generators.video.vividpose import _Call, _spatial, transformers_of

    block, heads = transformers_of(denoiser.unet)[0].transformer_blocks[0], TINY.heads[0]
    x, context, bank = some(FRAMES, 6, TINY.channels[0]), some(1, 1, TINY.context, seed=1), some(1, 4, TINY.channels[0], seed=2)
    face = some(1, 4, TINY.context, seed=3)
    got = _spatial(block, x, _Call(FRAMES, x, context, None, Read([bank], face), [], tuple(denoiser.face_keys)))

    def attend(attention: Any, asked: Any, *sources: Any) -> Any:
        made = 0
        for keys, values in sources:
            q, k, v = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (attention.to_q(asked), keys, values))
            made = made + functional.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1) @ v
        return attention.to_out[0](made.transpose(1, 2).flatten(2))  # type: ignore[attr-defined]

    seen = block.norm1(x)
    both = torch.cat([seen, bank.expand(FRAMES, -1, -1)], 1)
    want = x + attend(block.attn1, seen, (block.attn1.to_k(both), block.attn1.to_v(both)))
    sources = (block.attn2.to_k(context), block.attn2.to_v(context)), denoiser.face_keys[0](face)
    want = want + attend(block.attn2, block.norm2(want), *[tuple(x.expand(FRAMES, -1, -1) for x in each) for each in sources])
    assert torch.allclose(got, want + block.ff(block.norm3(want)), atol=1e-4)


def test_new_parts_begin_without_a_voice() -> None:
    fresh = Denoiser(TINY).eval().requires_grad_(False)
    x, level, context, ids = told()
    poses = fresh.poses(*some(2, 1, FRAMES, 3, *TINY.size))
    silent = fresh(x, level, context, ids, poses=poses, read=Read((), fresh.face(some(1, 512))))
    assert torch.allclose(silent, fresh(x, level, context, ids), atol=1e-5)


def test_the_reference_is_read_once_for_every_block(denoiser: Denoiser, reference: ReferenceNet, about: sampling.Given) -> None:
    assert [tuple(each.shape) for each in about.read.bank] == [(1, 24, 32), (1, 6, 64), (1, 24, 32), (1, 24, 32)]
    assert len(about.read.bank) == len(denoiser.face_keys)
    assert about.read.face is not None
    assert about.read.face.shape == (1, TINY.face_tokens, TINY.context)
    faces = [denoiser.face(some(1, 512) * scale) for scale in (1.0, 20.0)]
    assert torch.allclose(*faces, atol=1e-5)  # a direction, not a length


def test_a_size_that_cannot_be_built_is_refused() -> None:
    with pytest.raises(AvatarError, match="multiple of 16"):
        svd_unet(VividPose("odd", (32, 40), channels=(32, 64), heads=(2, 4)))


# -- a clip ---------------------------------------------------------------------------------------------------------------


def test_a_clip_is_sampled_goes_on_and_counts(denoiser: Denoiser, about: sampling.Given) -> None:
    pictures = torch.randint(0, 256, (2, FRAMES, *TINY.size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    kept: list[Half] = []
    counted: list[tuple[int, int]] = []

    def keep(half: Half) -> None:
        kept.append(Half(half.step, half.window, half.x.clone(), half.said.clone()))

    whole = sampling.sample(denoiser, about, *pictures, steps=2, overlap=2, keep=keep, progress=lambda *at: counted.append(at))
    assert whole.shape == (FRAMES, 4, *TINY.latent_size)
    assert counted == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert len(kept) == 3
    for half in kept:
        assert torch.equal(sampling.sample(denoiser, about, *pictures, steps=2, overlap=2, half=half), whole)
    unguided = sampling.sample(denoiser, about, *pictures, steps=2, overlap=2, guidance=1.0)
    assert not torch.allclose(unguided, whole)
    with pytest.raises(AvatarError, match="as many SMPL-X maps"):
        sampling.sample(denoiser, about, pictures[0], pictures[1, :2])
    with pytest.raises(AvatarError, match="at least 1"):
        sampling.sample(denoiser, about, *pictures, steps=0)
