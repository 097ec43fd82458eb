"""VividPose from portrait to frames: told nothing it is diffusers' pipeline; a clip from the command line, gone on with; what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import avatar
from engine.generators import load
from engine.media import Writer, audio_samples, probe, video_frames
from engine.persona import demo_portrait, make_persona
from engine.recogniser import Recogniser, aligned
from engine.types import AudioChunk, AvatarError, Signal, VideoFrame, still_motion
from engine.whole import render_whole
from tests.conftest import found, require, require_for
from tests.recognisers import onnx_file
from tests.test_whole import clip  # noqa: F401

if found("torch") and found("diffusers"):
    import torch

    from engine.generators.video import sampling as unianimate
    from engine.generators.video import vividpose_networks as networks_of
    from engine.generators.video import vividpose_sampling as sampling
    from engine.generators.video.generator import FPS
    from engine.generators.video.vividpose import Read
    from engine.generators.video.vividpose_clips import DENSE, DRAWN
    from engine.generators.video.vividpose_networks import Networks, Portrait, build, seen_by_clip
    from engine.generators.video.vividpose_presets import TINY
    from engine.generators.video.vividpose_render import Settings, render
    from tests.test_vividpose import SVD, seeded

pytestmark = pytest.mark.torch
FRAMES = 7


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    require("torch")
    require("diffusers")
    require("transformers")


@pytest.fixture(scope="module")
def networks() -> Networks:
    made: Networks = seeded(build(TINY, seed=3), 3)
    return made


@pytest.fixture(scope="module")
def portrait(networks: Networks) -> Portrait:
    made: Portrait = networks.prepare(demo_portrait())
    return made


def pictures(seed: int = 0, frames: int = FRAMES) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (frames, *TINY.size, 3), dtype=np.uint8)


# -- against diffusers ----------------------------------------------------------------------------------------------------


def test_told_nothing_a_clip_is_the_one_of_stable_video_diffusions_pipeline(networks: Networks) -> None:
    """Picture, noise on it, CLIP's token, levels, guidance from frame to frame, latents and frames; nothing but the bank, face and poses left out."""
    from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline
    from PIL import Image
    from transformers import CLIPImageProcessor

    picture, noise = pictures()[0], torch.randn(1, TINY.frames, 4, *TINY.latent_size, generator=torch.Generator().manual_seed(1))
    parts = {"vae": networks.autoencoder, "image_encoder": networks.image, "unet": networks.denoiser.unet}
    theirs = StableVideoDiffusionPipeline(**parts, scheduler=EulerDiscreteScheduler(**SVD), feature_extractor=CLIPImageProcessor())
    theirs.set_progress_bar_config(disable=True)
    how: dict[str, Any] = {"height": TINY.size[0], "width": TINY.size[1], "num_frames": TINY.frames, "num_inference_steps": 4, "latents": noise}
    want = {}
    for kind in ("latent", "pt"):
        generator = torch.Generator().manual_seed(unianimate.SEED)
        want[kind] = theirs(Image.fromarray(picture), **how, generator=generator, output_type=kind).frames[0]

    plain = replace(networks.given(networks.prepare(picture)), read=Read())
    still = torch.zeros(TINY.frames, *TINY.size, 3, dtype=torch.uint8)
    start = noise[0] * (sampling.SIGMA_FIRST**2 + 1) ** 0.5
    silent = seeded(build(TINY, seed=3), 3).denoiser
    for guider in (silent.skeleton, silent.dense):
        for value in guider.conv_out.parameters():
            value.zero_()
    latents = sampling.sample(silent, plain, still, still, steps=4, overlap=2, start=start)
    assert float((latents - want["latent"]).abs().max() / want["latent"].abs().max()) < 1e-4
    frames = torch.from_numpy(networks.decode(latents)).permute(0, 3, 1, 2) / 255
    assert float((frames - want["pt"]).abs().max()) < 0.6 / 255, "no more than rounding to bytes"


@pytest.mark.parametrize("size", [(700, 300), (224, 230), (90, 60)])
def test_clip_sees_the_portrait_as_there(size: tuple[int, int]) -> None:
    from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing
    from transformers import CLIPImageProcessor

    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    unit = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    small = (_resize_with_antialiasing(unit * 2 - 1, (224, 224)) + 1) / 2
    plain: dict[str, Any] = {"do_center_crop": False, "do_resize": False, "do_rescale": False, "return_tensors": "pt"}
    want = CLIPImageProcessor()(images=small, do_normalize=True, **plain).pixel_values[0]
    got = seen_by_clip(picture)
    assert float((got - want).abs().max() / want.abs().max()) < 1e-4


# -- guidance and windows -------------------------------------------------------------------------------------------------


def test_guidance_grows_evenly_over_the_clip_and_one_is_none(networks: Networks, portrait: Portrait) -> None:
    assert sampling.scales(5, first=None, last=3.0).flatten().tolist() == [1.0, 1.5, 2.0, 2.5, 3.0]
    assert sampling.scales(3, first=None, last=0.5).flatten().tolist() == [0.5, 0.5, 0.5]
    assert sampling.scales(2, first=2.0, last=2.0).flatten().tolist() == [2.0, 2.0]
    calls: list[bool] = []
    handle = networks.denoiser.register_forward_pre_hook(lambda module, args, named: calls.append(named["read"] is None), with_kwargs=True)
    try:
        clip = [torch.from_numpy(pictures(seed)) for seed in (0, 1)]
        given = networks.given(portrait)
        sampling.sample(networks.denoiser, given, *clip, guidance=1.0, steps=1, size=5, overlap=2)
        assert calls == [False] * 2, "two windows, guided alone"
        calls.clear()
        sampling.sample(networks.denoiser, given, *clip, guidance=1.0, first_guidance=2.0, steps=1, size=5, overlap=2)
        assert calls == [False, True] * 2
    finally:
        handle.remove()


# -- a render -------------------------------------------------------------------------------------------------------------


def test_a_killed_render_goes_on_and_another_begins_anew(networks: Networks, portrait: Portrait, tmp_path: Path) -> None:
    settings, state = Settings(steps=2, overlap=1), tmp_path / "half.safetensors"
    drawn, dense = pictures(0), pictures(1)
    whole = render(networks, portrait, drawn, dense, settings=settings)
    assert whole.shape == (FRAMES, *TINY.size, 3)

    def killed(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render(networks, portrait, drawn, dense, settings=settings, state=state, progress=killed)
    begun = state.read_bytes()
    told: list[tuple[int, int]] = []

    def ended(*at: int) -> None:
        told.append((at[0], at[1]))
        raise KeyboardInterrupt

    for other, maps in ((portrait, drawn), (replace(portrait, face=torch.ones(512)), dense)):
        with pytest.raises(KeyboardInterrupt):
            render(networks, other, drawn, maps, settings=settings, state=state, progress=ended)
        assert told.pop() == (1, 4)
    state.write_bytes(begun)
    again = render(networks, portrait, drawn, dense, settings=settings, state=state, progress=lambda *at: told.append(at))
    assert told == [(4, 4)]
    assert np.array_equal(again, whole)
    assert state.exists(), "until whoever asked has written the frames"
    with pytest.raises(AvatarError, match="no frames"):
        render(networks, portrait, drawn[:0], dense[:0])


def test_numbers_that_are_none_end_a_render_at_once(networks: Networks, portrait: Portrait, tmp_path: Path) -> None:
    calls = list[None]()

    def broken(*_: Any) -> Any:
        calls.append(None)
        return torch.full((1, TINY.frames, 4, *TINY.latent_size), torch.inf)

    handle = networks.denoiser.register_forward_hook(broken)
    try:
        with pytest.raises(AvatarError, match="answered with numbers that are none; render in fp32"):
            render(networks, portrait, pictures(0), pictures(1), settings=Settings(steps=3, overlap=1), state=tmp_path / "half.safetensors")
    finally:
        handle.remove()
    assert len(calls) == 2, "guided and unguided, of one window"
    assert not list(tmp_path.iterdir()), "nothing to go on from"


def test_skeletons_maps_and_portrait_are_seen(networks: Networks, portrait: Portrait) -> None:
    settings = Settings(steps=1, overlap=1)
    plain = render(networks, portrait, pictures(0), pictures(1), settings=settings)
    other = networks.prepare(np.ascontiguousarray(demo_portrait()[::-1]))
    for changed in (
        render(networks, portrait, pictures(2), pictures(1), settings=settings),
        render(networks, portrait, pictures(0), pictures(2), settings=settings),
        render(networks, other, pictures(0), pictures(1), settings=settings),
        render(networks, replace(portrait, face=torch.ones(512)), pictures(0), pictures(1), settings=settings),
    ):
        assert not np.array_equal(changed, plain)


# -- on disk --------------------------------------------------------------------------------------------------------------


def test_weights_come_back_and_what_was_changed_is_refused(networks: Networks, tmp_path: Path) -> None:
    networks_of.save(networks, tmp_path / "plain", origin={})
    again = networks_of.load(tmp_path / "plain")
    assert (again.recogniser, again.posed) == (None, False)
    assert torch.equal(again.prepare(demo_portrait()).token, networks.prepare(demo_portrait()).token)
    with pytest.raises(AvatarError, match="and VividPose reads 512"):
        networks_of.check_recogniser(onnx_file(tmp_path / "other.onnx"))
    file = tmp_path / "plain" / "reference.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(AvatarError, match="not the file that its"):
        networks_of.load(tmp_path / "plain")
    with pytest.raises(AvatarError, match="no size of VividPose"):
        networks_of.preset("nonsense")


# -- the generator --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> Any:
    require_for("diffusion")
    made: Any = load("video", preset="tiny_vividpose", device="cpu")
    seeded(made.system.networks.denoiser, 5)
    return made


def signals(degrees: float, **maps: Any) -> list[Signal]:
    motion = still_motion()
    motion.head[2] = degrees
    return [Signal(k / FPS, k + 1, motion=motion, maps=maps) for k in range(3)]


def test_the_driver_s_pose_the_map_and_a_drawn_skeleton_change_the_clip(tiny: Any, tmp_path: Path) -> None:
    identity = tiny.prepare(demo_portrait())

    def last(degrees: float, **maps: Any) -> Any:
        return tiny.at_leisure(identity, signals(degrees, **maps), kept=tmp_path, steps=1, guidance=1.5)(2)

    dark, bright = (np.full((64, 96, 3), value, np.uint8) for value in (20, 220))
    plain = last(0.0, smplx=dark)
    assert np.array_equal(plain, last(0.0, smplx=dark))
    assert not np.array_equal(plain, last(25.0, smplx=dark))
    assert not np.array_equal(plain, last(0.0, smplx=bright))
    drawn = last(0.0, smplx=dark, dwpose=bright)
    assert not np.array_equal(plain, drawn)
    assert np.array_equal(drawn, last(25.0, smplx=dark, dwpose=bright)), "the drawn skeleton stands in place of the tracker's"
    with pytest.raises(AvatarError, match=f"there is no {DENSE}; give each with --maps NAME=FILE"):
        last(0.0, **{DRAWN: bright})


def test_the_face_reaches_the_network_by_the_user_s_recogniser(tmp_path: Path) -> None:
    require_for("diffusion")
    require("onnxruntime")
    generator: Any = load("video", preset="tiny_vividpose", device="cpu")
    assert generator.prepare(demo_portrait()).features.made.face is None
    generator.system.networks.recogniser = path = onnx_file(tmp_path / "faces.onnx", length=512)
    features = generator.prepare(demo_portrait()).features
    height, width = demo_portrait().shape[:2]
    face = features.anchor.face[:, :2] * np.array((width, height), np.float32)
    want = Recogniser(path)(aligned(demo_portrait(), face)[None])[0]
    assert np.allclose(features.made.face.numpy(), want, rtol=1e-4)
    assert generator.system.networks.given(features.made).read.face.shape == (1, TINY.face_tokens, TINY.context)


@pytest.fixture(scope="module")
def bodies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of maps beside the drive, at another rate and size."""
    path = tmp_path_factory.mktemp("maps") / "smplx.mp4"
    with Writer(path) as writer:
        for k in range(8):
            picture = np.zeros((64, 96, 3), np.uint8)
            picture[20:60, 30 + 3 * k : 50 + 3 * k] = (90, 160, 200)
            writer.write_frame(VideoFrame(picture, k / 15))
    return path


def test_the_front_door_renders_it_and_goes_on(
    clip: Path,  # noqa: F811
    bodies: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    require_for("diffusion")
    out = tmp_path / "out.mp4"
    words = ["render", "--drive", str(clip), "--generator", "video", "--preset", "tiny_vividpose", "--offline", "--steps", "2", "-o", str(out)]
    more = ["--window", "3", "--overlap", "1", "--first-guidance", "2", "--guidance", "2"]
    with monkeypatch.context() as patch:
        patch.setattr("engine.whole.run_through", lambda *_, **__: pytest.fail("the drive was read before"))
        assert avatar.main([*words, *more]) == 2
    assert "there is no smplx; give each with --maps NAME=FILE" in capsys.readouterr().err
    assert avatar.main([*words, *more, "--maps", f"smplx={bodies}"]) == 0
    said = capsys.readouterr()
    assert "Wrote 6 frames" in said.out
    assert "Nobody has published VividPose's" in said.err
    assert len(list(video_frames(out))) == 6
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.mp4"]


def test_a_rendering_that_was_ended_goes_on(tiny: Any, clip: Path, bodies: Path, tmp_path: Path) -> None:  # noqa: F811
    from engine.driving import open_maps

    persona = make_persona(tiny, demo_portrait(), name="demo")
    assert persona.identity.portrait.shape == (*TINY.size, 3)
    drive, out, whole = tmp_path / "drive.mp4", tmp_path / "out.mp4", tmp_path / "whole.mp4"
    with Writer(drive, audio_rate=16000) as writer:  # the same clip with a sound
        for frame in video_frames(clip):
            writer.write_frame(frame)
        writer.write_audio(AudioChunk(np.sin(np.arange(6000) / 8).astype(np.float32) / 2, 16000, 0.0))

    def make(path: Path, progress: Any = None) -> int:
        maps = open_maps([f"smplx={bodies}"], size=tiny.spec.size, drive=drive)
        return render_whole(tiny, persona, drive, path, steps=2, maps=maps, progress=progress)

    def kill(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    assert make(whole) == 6
    with pytest.raises(KeyboardInterrupt):
        make(out, kill)
    told: list[tuple[int, int]] = []
    assert make(out, lambda *at: told.append(at)) == 6
    assert told[0] == (3, 4), "what was done is not done again"
    for mine, theirs in zip(video_frames(out), video_frames(whole), strict=True):
        assert np.array_equal(mine.rgb, theirs.rgb)
    assert probe(out).has_audio
    assert float(np.abs(audio_samples(out, rate=16000)).max()) > 0.2
    assert not list(tmp_path.glob(".*"))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no such preset": ({"preset": "unknown"}, "has no preset 'unknown'"),
    "half precision on a CPU": ({"precision": "fp16"}, "no precision 'fp16' on cpu"),
    "no window": ({"window": 0}, "A window has at least 1 frame, not 0"),
    "a window that shares all": ({"window": 3, "overlap": 3}, "Windows of 3 frames cannot share 3; give another --window or --overlap"),
    "a negative overlap": ({"overlap": -1}, "cannot share -1"),
    "no guidance": ({"first_guidance": float("nan")}, "Guidance is a scale of 0 or more, not nan"),
    "UniAnimate's guidance": ({"preset": "tiny_unianimate", "first_guidance": 2.0}, "the same guidance for all frames"),
    "no weights": ({"weights": "/nowhere"}, "holds no weights of a video generator"),
}


def test_weights_of_another_generator_are_called_so(tmp_path: Path) -> None:
    require_for("diffusion")
    whole = {"generator": "video", "preset": "vividpose", "sha256": {}, "origin": {}}
    for name, told in (("video", {**whole, "generator": "diffusion", "preset": "tiny"}), ("diffusion", whole)):
        (tmp_path / "weights.json").write_text(json.dumps(told))
        with pytest.raises(AvatarError, match=rf"\('{told['preset']}'\) are another generator's; choose that one with --generator"):
            load(name, weights=tmp_path)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_one_sentence(name: str) -> None:
    require_for("diffusion")
    options, message = REFUSED[name]
    with pytest.raises(AvatarError, match=message) as refused:
        load("video", **{"preset": None if "weights" in options else "tiny_vividpose", "device": "cpu"} | options)
    assert "\n" not in str(refused.value)


def test_its_live_step_is_exported(networks: Networks, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporters.graphs.export_command.WINDOWS", 8)
    networks_of.save(networks, tmp_path / "w", origin={"steps": "1", "window": "2", "overlap": "1"})
    assert avatar.main(["export", "--weights", str(tmp_path / "w"), "--backend", "onnxruntime"]) == 0
    assert "tiny_vividpose, 1-step, windows of 2 with 1 past" in capsys.readouterr().out


def test_weights_and_preset_of_two_systems_are_refused(networks: Networks, tmp_path: Path) -> None:
    networks_of.save(networks, tmp_path, origin={})
    made = load("video", weights=tmp_path, device="cpu")
    assert made.spec.size == TINY.size
    assert "know no pose" in made.spec.notice
    with pytest.raises(AvatarError, match="are not for the preset 'tiny_unianimate'; leave --preset out"):
        load("video", weights=tmp_path, preset="tiny_unianimate", device="cpu")
