"""Importing published weights: every key and shape of the published files finds its place in ours, and what does not fit is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import avatar
from engine.generators import load
from engine.generators.diffusion.presets import ANIMATE_ANYONE
from engine.persona import demo_portrait
from engine.types import AvatarError, Signal
from streaming.options import generator_options
from tests.checkpoints import (  # noqa: F401
    OLD_NAMES,
    SMALL,
    TAESD,
    WRITTEN,
    _installed,
    _once,
    _small,
    changed,
    clip,
    given_imported,
    given_out,
    given_published,
    given_tiny_vae,
    guider,
    motion,
    run,
    size,
    taesd,
    tensors,
    unet,
    vae,
)
from tests.conftest import found

if found("torch") and found("diffusers"):
    import torch
    from safetensors.torch import load_file, save_file

    from engine.generators.diffusion import autoencoder, networks
    from exporters import files
    from exporters.published import keys


pytestmark = pytest.mark.torch


# -- what fits ------------------------------------------------------------------------------------------------------------


def test_every_key_of_the_full_size_files_is_one_of_ours() -> None:
    """Without a byte of weights: the published lists, written out above, against our networks on the meta device."""
    channels = ANIMATE_ANYONE.unet.channels
    lists = {
        "denoising_unet": (unet(channels, 768), 686, 859_520_964),
        "reference_unet": (unet(channels, 768, tail=False), 682, 859_520_964 - 2 * 320 - 4 * 320 * 9 - 4),
        "motion_module": (motion(channels), 588, 454_417_600),
        "pose_guider": (guider(320), 16, 1_086_480),
        "diffusion_pytorch_model": (vae((128, 256, 512, 512)), 248, 83_653_863),
        "model": (clip(1024, 24, 14, 768), 393, 303_966_208 + 257),
    }
    ours = {part: {key: tuple(value.shape) for key, value in module.state_dict().items()} for part, module in meta().parts().items()}
    filled: dict[str, set[str]] = {part: set() for part in ours}
    for table in keys.ANIMATE_ANYONE:
        shapes, count, values = lists[table.stems[0]]
        assert (len(shapes), size(shapes)) == (count, values)
        dropped = {key for key in shapes if any(key.endswith(drop.suffix) for drop in table.drops)}
        assert len(dropped) == {"motion_module": 42, "model": 1}.get(table.stems[0], 0)
        pairs = {table.prefix + table.ours(key): shape for key, shape in shapes.items() if key not in dropped}
        assert len(pairs) == len(shapes) - len(dropped), "two published keys never become one of ours"
        assert pairs == {key: shape for key, shape in ours[table.part].items() if table.fills(key)}
        assert filled[table.part].isdisjoint(pairs)
        filled[table.part] |= set(pairs)
    assert filled == {part: set(shapes) for part, shapes in ours.items()}


def meta() -> Any:
    made = networks.empty(ANIMATE_ANYONE)
    assert all(parameter.is_meta for parameter in made.parameters())
    return made


def test_imported_weights_load_and_make_a_frame(published: Path, out: Path) -> None:
    told: list[str] = []
    run(published, out, tell=told.append)
    loaded = networks.load(out)
    denoising, moving = (torch.load(published / name, weights_only=True) for name in ("denoising_unet.pth", "motion_module.pth"))
    mine = loaded.denoiser.state_dict()
    assert all(torch.equal(mine[key], value) for key, value in denoising.items())
    assert all(torch.equal(mine[key], value) for key, value in moving.items() if not key.endswith(".pe"))
    assert any("42 left out" in line for line in told)
    assert not any(x.is_meta for x in (*loaded.parameters(), *loaded.buffers()))
    generator: Any = load("diffusion", weights=out)
    assert generator.trained
    assert "made for 30 steps with guidance 3.5" in generator.spec.notice
    state = generator.allocate(1)
    generator.admit(state, 0, generator.prepare(demo_portrait()))
    frames = [generator.step(state, [[Signal(time=t / 25)]])[0][0] for t in range(2)]
    assert all(frame.rgb.shape == (64, 64, 3) for frame in frames)
    assert len(np.unique(frames[-1].rgb)) > 10


def test_loading_gives_what_building_and_copying_gives(imported: Path) -> None:
    """Empty networks that are filled compute as those that were initialised first, buffers included."""
    loaded, built = networks.load(imported), networks.build(SMALL)
    for name, module in built.parts().items():
        module.load_state_dict(load_file(imported / f"{name}.safetensors"))
    picture = torch.rand(1, 3, 64, 64)
    for mine, theirs in zip(loaded.remember(picture).reference, built.remember(picture).reference, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_an_old_autoencoder_and_a_new_one_are_the_same(imported: Path, published: Path, out: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "vae"
    shutil.copytree(published / "sd-vae-ft-mse", elsewhere)
    old = torch.load(elsewhere / "diffusion_pytorch_model.bin", weights_only=True)
    assert any(".proj_attn." in key for key in old)
    new = {key: value for key, value in old.items() if ".attentions." not in key}
    for now, before in OLD_NAMES.items():
        new |= {key.replace(f".{before}.", f".{now}."): value for key, value in old.items() if f".{before}." in key}
    new |= {key: value for key, value in old.items() if ".group_norm." in key}
    save_file(new, elsewhere / "diffusion_pytorch_model.safetensors")
    (elsewhere / "diffusion_pytorch_model.bin").write_text("the other one is preferred")
    run(published, out, vae=elsewhere)
    one, other = (load_file(place / "autoencoder.safetensors") for place in (imported, out))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".ckpt", ".bin", "old"])
def test_every_ending_is_read(suffix: str, nested: bool, published: Path) -> None:
    path = published / "pose_guider.pth"
    held = torch.load(path, weights_only=True)
    given = {f"module.{key}": value for key, value in held.items()} if nested else held
    again = path.with_suffix(".pth" if suffix == "old" else suffix)
    path.unlink()
    if suffix == ".safetensors":
        save_file(given, again)
    else:
        wrapped = {"state_dict": given, "step": 7} if nested else given
        torch.save(wrapped, again, _use_new_zipfile_serialization=suffix != "old")
    place = files.find([published], ("pose_guider",))
    assert place == again
    read = files.read(place)
    assert read.keys() == held.keys()
    assert all(torch.equal(read[key], value) for key, value in held.items())


def test_the_manifest_names_what_was_read(published: Path, out: Path) -> None:
    run(published, out)
    assert {path.stat().st_mode for path in out.iterdir()} == {(out / "weights.json").stat().st_mode}
    manifest = json.loads((out / "weights.json").read_text())
    assert manifest["preset"] == SMALL.name
    assert manifest["origin"] == {
        "system": "Moore-AnimateAnyone",
        "precision": "fp32",
        "made_for": "30 steps with guidance 3.5",
        "steps": "30",
        **{name: files.sha256(published / name) for name in ("denoising_unet.pth", "reference_unet.pth", "motion_module.pth", "pose_guider.pth")},
        **{name: files.sha256(published / name) for name in ("sd-vae-ft-mse/diffusion_pytorch_model.bin", "image_encoder/pytorch_model.bin")},
    }
    assert manifest["sha256"] == {part.removesuffix(".safetensors"): files.sha256(out / part) for part in WRITTEN - {"weights.json"}}


def test_half_precision_halves_and_is_read_as_it_is(published: Path, out: Path, tmp_path: Path) -> None:
    run(published, out, precision="fp16")
    changed(published / "pose_guider.pth", lambda held: {key: value.half() for key, value in held.items()})
    run(published, tmp_path / "whole")
    assert {parameter.dtype for parameter in networks.load(tmp_path / "whole").parameters()} == {torch.float32}
    assert (out / "denoiser.safetensors").stat().st_size < 0.6 * (tmp_path / "whole" / "denoiser.safetensors").stat().st_size
    assert {parameter.dtype for parameter in networks.load(out).parameters()} == {torch.float16}
    with pytest.raises(AvatarError, match="fp32, fp16"):
        run(published, tmp_path / "no", precision="int4")


def test_the_command_imports_and_says_how_to_serve(published: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published.rename(published.with_name("pretrained_weights"))  # the folder above is given
    assert avatar.main(["import", "animate-anyone", str(published.parent), "-o", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "denoising_unet.pth: 686 tensors -> denoiser" in shown
    assert f"avatar serve --generator diffusion --weights {out}\n" in shown


def test_the_command_imports_a_tiny_decoder(published: Path, tiny_vae: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert avatar.main(["import", "animate-anyone", str(published), "--tiny-vae", str(tiny_vae), "-o", str(out)]) == 0
    assert f"avatar serve --generator diffusion --weights {out} --decoder tiny\n" in capsys.readouterr().out
    words = ["render", "--generator", "diffusion", "--weights", str(out), "--decoder", "tiny"]
    args = avatar._parser().parse_args([*words, "--drive", "a.wav", "-o", "b.mp4"])
    generator: Any = load("diffusion", **generator_options(args))
    assert isinstance(generator.recipe.networks.autoencoder, autoencoder.TinyDecoded)


@pytest.mark.parametrize(("steps", "sentence"), [(2, "; in 2 the picture is soft"), (29, "; in 29 "), (30, "no guidance"), (40, "no guidance")])
def test_what_the_weights_were_made_for_is_told_where_it_is_missing(steps: int, sentence: str, imported: Path) -> None:
    notice = load("diffusion", weights=imported, steps=steps).spec.notice
    assert notice.startswith("These weights were made for 30 steps with guidance 3.5; ")
    assert sentence in notice
    as_published = "leaves 0.9 s after its motion at the earliest, since 24 frames are made at once, and takes 60 evaluations of the network; "
    assert f"{as_published}here it waits for none and takes {steps}." in notice


# -- a tiny decoder -------------------------------------------------------------------------------------------------------


def test_every_key_of_the_tiny_autoencoder_is_one_of_ours() -> None:
    with torch.device("meta"):
        ours = {key: tuple(value.shape) for key, value in autoencoder.Tiny().state_dict().items()}
    assert (len(taesd()), size(taesd())) == (134, 2_445_063)
    assert {f"{keys.TINY.prefix}{keys.TINY.ours(key)}": shape for key, shape in taesd().items()} == ours


@pytest.mark.parametrize("variant", ["", ".fp16"], ids=["whole", "half"])
def test_a_tiny_decoder_beside_the_weights_decodes_as_diffusers_does(variant: str, published: Path, tiny_vae: Path, out: Path) -> None:
    """Its latents are the scaled ones; what is made of the portrait stays what the weights' own encoder makes."""
    from diffusers import AutoencoderTiny

    plain = tiny_vae / "diffusion_pytorch_model.safetensors"
    held = {key: value.to(torch.float16 if variant else torch.float32) for key, value in load_file(plain).items()}
    plain.unlink()
    save_file(held, plain.with_stem(f"diffusion_pytorch_model{variant}"))
    theirs = AutoencoderTiny().eval()
    theirs.load_state_dict({key: value.float() for key, value in held.items()})
    run(published, out, tiny_vae=tiny_vae)
    own, tiny = networks.load(out), networks.load(out, decoder="tiny")
    whole = autoencoder.Tiny()
    whole.load_state_dict(load_file(out / "tiny.safetensors"))
    picture, latents = torch.rand(1, 3, 64, 64) * 2 - 1, torch.randn(2, 4, 8, 8)
    with torch.inference_mode():
        want = theirs.decode(latents).sample
        assert torch.equal(tiny.autoencoder.decode(latents / tiny.preset.gain), want)
        assert torch.equal(whole.decode(latents), want)
        assert torch.equal(whole.encode(picture), theirs.encode(picture).latents)
    for mine, before in zip(tiny.remember(picture).reference, own.remember(picture).reference, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, before, strict=True))
    names = [name for name, _ in tiny.autoencoder.named_parameters()]
    assert not any(name.startswith(("kl.model.decoder", "tiny.model.encoder")) for name in names), "what nobody needs takes no room"


def test_frames_of_both_decoders_come_from_the_same_latents(published: Path, tiny_vae: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(published, out, tiny_vae=tiny_vae)
    seen: list[Any] = []

    def spy(decode: Callable[[Any], Any], gain: float, latents: Any) -> Any:
        seen.append(latents * gain)
        return decode(latents)

    for decoder in ("kl", "tiny"):
        generator: Any = load("diffusion", weights=out, decoder=decoder, mode="eager")
        recipe = generator.recipe
        own = recipe.networks.autoencoder
        monkeypatch.setattr(own, "decode", partial(spy, own.decode, recipe.preset.gain))
        state = generator.allocate(1)
        identity = generator.prepare(demo_portrait())
        generator.admit(state, 0, generator.unpack(identity.portrait, generator.pack(identity)))
        assert generator.step(state, [[Signal(time=0.0)]])[0][0].rgb.shape == (64, 64, 3)
    torch.testing.assert_close(*seen)
    assert SMALL.scale == 0.18215


def test_the_manifest_names_the_tiny_decoder(published: Path, tiny_vae: Path, out: Path, tmp_path: Path) -> None:
    told: list[str] = []
    run(published, out, tiny_vae=tiny_vae, tell=told.append)
    manifest = json.loads((out / "weights.json").read_text())
    assert manifest["origin"]["taesd/diffusion_pytorch_model.safetensors"] == files.sha256(tiny_vae / "diffusion_pytorch_model.safetensors")
    assert manifest["sha256"]["tiny"] == files.sha256(out / "tiny.safetensors")
    assert "taesd/diffusion_pytorch_model.safetensors: 134 tensors -> tiny, 2.4 million values" in told
    (tmp_path / "b").mkdir()
    shutil.copytree(published / "sd-vae-ft-mse", tmp_path / "a" / "vae")
    tiny_vae.rename(tmp_path / "b" / "vae")
    (tmp_path / "b" / "vae" / "diffusion_pytorch_model.safetensors").rename(tmp_path / "b" / "vae" / "diffusion_pytorch_model.bin")
    torch.save(tensors(taesd()), tmp_path / "b" / "vae" / "diffusion_pytorch_model.bin")
    run(published, tmp_path / "again", vae=tmp_path / "a" / "vae", tiny_vae=tmp_path / "b" / "vae")
    origin = json.loads((tmp_path / "again" / "weights.json").read_text())["origin"]
    assert {"vae/diffusion_pytorch_model.bin", "tiny: vae/diffusion_pytorch_model.bin"} <= origin.keys(), "two folders of one name"


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("scaling_factor", 0.13025, "has scaling_factor 0.13025, this system 1.0"),
        ("act_fn", "silu", "has act_fn silu"),
        ("latent_channels", 16, "has latent_channels 16, this system 4; give the published taesd"),
        ("num_decoder_blocks", [2, 2, 2, 1], "has num_decoder_blocks"),
    ],
)
def test_another_tiny_autoencoder_is_refused(field: str, value: Any, complaint: str, published: Path, tiny_vae: Path, out: Path) -> None:
    (tiny_vae / "config.json").write_text(json.dumps(TAESD | {field: value}))
    with pytest.raises(AvatarError, match=complaint):
        run(published, out, tiny_vae=tiny_vae)


def test_a_tiny_autoencoder_that_is_not_whole_is_told(published: Path, tiny_vae: Path, out: Path) -> None:
    path = tiny_vae / "diffusion_pytorch_model.safetensors"
    held = load_file(path)
    held["decoder.layers.18.extra"] = held.pop("decoder.layers.18.bias")
    save_file(held, path)
    with pytest.raises(AvatarError, match=r"is not TAESD's taesd: .*1 missing .first 'decoder.layers.18.bias'.*1 unexpected"):
        run(published, out, tiny_vae=tiny_vae)
    path.unlink()
    with pytest.raises(AvatarError, match="download it or name its folder with --tiny-vae"):
        run(published, out, tiny_vae=tiny_vae)


def test_a_decoder_that_is_not_there_is_told(imported: Path) -> None:
    with pytest.raises(AvatarError, match="no tiny decoder.*: avatar import animate-anyone DIR --tiny-vae TAESD_DIR -o OUT"):
        networks.load(imported, decoder="tiny")
    networks.load(imported, decoder="kl")
    with pytest.raises(AvatarError, match="works on pixels and has no decoder to choose; leave --decoder out"):
        load("diffusion", preset="compact", decoder="tiny")
    with pytest.raises(AvatarError, match="no decoder called 'big'; choose one of: kl, tiny"):
        load("diffusion", preset="compact", decoder="big")
