"""Importing Hallo and EchoMimic: every key and shape of the published files finds its place, and what does not fit is said."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import avatar
from engine.generators import load
from engine.generators.diffusion.presets import HALLO, PRESETS, Ears
from engine.persona import demo_portrait
from engine.types import AvatarError, Signal
from tests import recognisers
from tests.checkpoints import SMALL_VAE, Shapes, attend, dense, forward, motion, norm, size, tensors, unet, vae
from tests.conftest import found, require

if found("torch") and found("diffusers") and found("transformers"):
    import torch

    from engine.generators.diffusion import autoencoder, networks
    from exporters.published import import_audio, import_checkpoint
    from exporters.published.import_audio import VARIANTS, import_echomimic, import_hallo

pytestmark = pytest.mark.torch
CHANNELS = (32, 32, 64, 64)
PUBLISHED = (320, 640, 1280, 1280)
EARS = Ears("wav2vec", width=16, layers=1, heads=2, convolutions=8, hidden=8, tokens=32)
SMALL_HALLO = replace(
    HALLO, name="small_hallo", size=(64, 64), unet=replace(HALLO.unet, channels=CHANNELS, image_dim=16, speech_dim=16), window=4, ears=EARS
)
WAV2VEC = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": [8] * 7,
    "num_conv_pos_embedding_groups": 16,
    "feat_extract_norm": "group",
    "do_stable_layer_norm": False,
}


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    require("torch")
    require("diffusers")
    require("transformers")
    require("onnx")


# -- the published layouts, written out -----------------------------------------------------------------------------------


def locator(planes: int, channels: tuple[int, ...], width: int) -> Shapes:
    made = dense("conv_in", planes, channels[0], side=3) | dense("conv_out", channels[-1], width, side=3)
    for i, (above, below) in enumerate(zip(channels, channels[1:], strict=False)):
        made |= dense(f"blocks.{2 * i}", above, above, side=3) | dense(f"blocks.{2 * i + 1}", above, below, side=3)
    return made


def audio(channels: tuple[int, ...], source: int) -> Shapes:
    """A transformer after every attention, inside as wide as what comes into its block."""
    a, b, c, d = channels
    places = [
        (f"down_blocks.{i}", j, inner, width)
        for i, (width, pair) in enumerate([(a, (a, a)), (b, (a, b)), (c, (b, c))])
        for j, inner in enumerate(pair)
    ]
    places += [("mid_block", 0, d, d)]
    places += [(f"up_blocks.{i}", j, inner, width) for i, width, inner in ((1, c, b), (2, b, a), (3, a, a)) for j in range(3)]
    made: Shapes = {}
    for place, j, inner, width in places:
        key = f"{place}.audio_modules.{j}"
        block = f"{key}.transformer_blocks.0"
        made |= norm(f"{key}.norm", width) | dense(f"{key}.proj_in", width, inner, side=1) | dense(f"{key}.proj_out", inner, width, side=1)
        made |= attend(f"{block}.attn1", inner, inner) | forward(f"{block}.ff", inner)
        for k, branch in enumerate(("full", "face", "lip")):
            made |= (
                attend(f"{block}.attn2_{k}", inner, source)
                | norm(f"{block}.norm{k + 1}", inner)
                | dense(f"{block}.zero_conv_{branch}", inner, inner, side=1)
            )
    return made


def listener(width: int, layers: int, positions: int) -> Shapes:
    """OpenAI's Whisper, with some of its decoder."""
    made: Shapes = {"encoder.positional_embedding": (positions, width), "decoder.token_embedding.weight": (9, width)}
    made |= {
        "encoder.conv1.weight": (width, 80, 3),
        "encoder.conv1.bias": (width,),
        "encoder.conv2.weight": (width, width, 3),
        "encoder.conv2.bias": (width,),
    }
    for i in range(layers):
        key = f"encoder.blocks.{i}"
        made |= (
            norm(f"{key}.attn_ln", width)
            | norm(f"{key}.mlp_ln", width)
            | dense(f"{key}.mlp.0", width, 4 * width)
            | dense(f"{key}.mlp.2", 4 * width, width)
        )
        for name in ("query", "key", "value", "out"):
            made |= dense(f"{key}.attn.{name}", width, width, bias=name != "key")
    return made | norm("encoder.ln_post", width)


def wav2vec(width: int, layers: int, convolutions: int, groups: int = 16, kernel: int = 128) -> Shapes:
    """As transformers wrote it when it was published, with its output for text."""
    root = "wav2vec2"
    made: Shapes = {f"{root}.masked_spec_embed": (width,)} | dense("lm_head", width, 32)
    for i, side in enumerate((10, 3, 3, 3, 3, 2, 2)):
        made[f"{root}.feature_extractor.conv_layers.{i}.conv.weight"] = (convolutions, 1 if i == 0 else convolutions, side)
    made |= norm(f"{root}.feature_extractor.conv_layers.0.layer_norm", convolutions)
    made |= norm(f"{root}.feature_projection.layer_norm", convolutions) | dense(f"{root}.feature_projection.projection", convolutions, width)
    conv = f"{root}.encoder.pos_conv_embed.conv"
    made |= {f"{conv}.bias": (width,), f"{conv}.weight_g": (1, 1, kernel), f"{conv}.weight_v": (width, width // groups, kernel)}
    made |= norm(f"{root}.encoder.layer_norm", width)
    for i in range(layers):
        key = f"{root}.encoder.layers.{i}"
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            made |= dense(f"{key}.attention.{name}", width, width)
        made |= norm(f"{key}.layer_norm", width) | norm(f"{key}.final_layer_norm", width)
        made |= dense(f"{key}.feed_forward.intermediate_dense", width, 4 * width) | dense(f"{key}.feed_forward.output_dense", 4 * width, width)
    return made


def net(channels: tuple[int, ...], source: int, ears: Ears) -> Shapes:
    """Hallo's one file."""
    denoiser = unet(channels, source) | motion(channels) | audio(channels, source)
    rows, columns = ears.heard
    speech = dense("proj1", rows * columns, ears.hidden) | dense("proj2", ears.hidden, ears.hidden) | norm("norm", source)
    parts = {
        "reference_unet": unet(channels, source, tail=False),
        "denoising_unet": denoiser,
        "face_locator": locator(3, (16, 32, 64, 128), channels[0]),
        "imageproj": dense("proj", 512, 4 * source) | norm("norm", source),
        "audioproj": speech | dense("proj3", ears.hidden, ears.tokens * source),
    }
    return {f"{part}.{key}": shape for part, shapes in parts.items() for key, shape in shapes.items()}


# -- small files of the published kind ------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "full_size" in request.node.name:
        return
    from diffusers import AutoencoderKL

    levels_of = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    monkeypatch.setattr(networks, "autoencoder", lambda made: autoencoder.KL(AutoencoderKL(**SMALL_VAE, **levels_of)))
    monkeypatch.setattr(import_checkpoint, "empty", small_empty)
    for made in (SMALL_HALLO, *(small_echo(variant) for variant in ("base", "acc", "pose"))):
        monkeypatch.setitem(PRESETS, made.name, made)


@cache
def small_empty(made: Any) -> Any:
    """The importer only looks at their shapes, so the tests share them."""
    return networks.empty(made)


def small_echo(variant: str) -> Any:
    made = VARIANTS[variant]
    ears = Ears("whisper", width=16, layers=1, heads=2, positions=120, tokens=20)
    return replace(made, name=f"small_{made.name}", size=(64, 64), unet=replace(made.unet, channels=CHANNELS, speech_dim=16), window=4, ears=ears)


def put(path: Path, shapes: Shapes, seed: int, wrap: str = "") -> None:
    held: Any = tensors(shapes, seed)
    save({wrap: held, "dims": {"n_mels": 80}} if wrap else held, path)


def save(held: Any, path: Path) -> None:
    """As a file of its own: other tests have links to what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    torch.save(held, path)


@pytest.fixture(scope="module")
def _echomimic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("echomimic")
    for suffix in ("", "_pose"):
        put(folder / f"face_locator{suffix}.pth", locator(3 if suffix else 1, (16, 32, 96, 256), CHANNELS[0]), 4)
    put(folder / "denoising_unet.pth", unet(CHANNELS, 16), 1)
    put(folder / "motion_module.pth", motion(CHANNELS), 2)
    put(folder / "reference_unet.pth", unet(CHANNELS, 24, tail=False), 3)
    put(folder / "audio_processor" / "whisper_tiny.pt", listener(16, 1, 120), 5, "model_state_dict")
    autoencoder_of(folder)
    return folder


@pytest.fixture
def echomimic(_echomimic: Path, tmp_path: Path) -> Path:
    """Its folder, with two variants; the published reference network may have second attentions that nothing reads."""
    folder = tmp_path / "given" / "pretrained_weights"
    shutil.copytree(_echomimic, folder, copy_function=os.link)
    for part in ("denoising_unet", "motion_module", "reference_unet"):
        os.link(folder / f"{part}.pth", folder / f"{part}_pose.pth")
    return folder


def autoencoder_of(folder: Path) -> None:
    put(folder / "sd-vae-ft-mse" / "diffusion_pytorch_model.bin", vae((32, 32, 32, 32)), 6)
    (folder / "sd-vae-ft-mse" / "config.json").write_text(json.dumps(SMALL_VAE))


@pytest.fixture(scope="module")
def _hallo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hallo")
    put(folder / "hallo" / "net.pth", net(CHANNELS, 16, EARS), 1)
    ears = folder / "wav2vec" / "wav2vec2-base-960h"
    put(ears / "pytorch_model.bin", wav2vec(16, 1, 8), 2)
    (ears / "config.json").write_text(json.dumps(WAV2VEC))
    autoencoder_of(folder)
    return folder


@pytest.fixture
def hallo(_hallo: Path, tmp_path: Path, _small: None) -> Path:
    """Its folder, with a small recogniser in the place of the published one."""
    import onnx

    folder = tmp_path / "given" / "pretrained_models"
    shutil.copytree(_hallo, folder, copy_function=os.link)
    (folder / "face_analysis" / "models").mkdir(parents=True)
    onnx.save(recognisers.model(length=512), str(folder / "face_analysis" / "models" / "glintr100.onnx"))
    return folder


# -- what fits ------------------------------------------------------------------------------------------------------------


def test_every_key_of_the_full_size_files_is_one_of_ours() -> None:
    """Without a byte of weights: the published lists, written out above, against our networks on the meta device."""
    assert len(audio(PUBLISHED, 768)) == 672
    assert size(audio(PUBLISHED, 768)) == pytest.approx(212.8e6, rel=1e-3)
    made = {part: {key: tuple(x.shape) for key, x in module.state_dict().items()} for part, module in networks.empty(HALLO).parts().items()}
    parts = {"reference_unet": "reference", "denoising_unet": "denoiser", "face_locator": "guider", "imageproj": "image", "audioproj": "speech"}
    shapes = net(PUBLISHED, 768, HALLO.ears)
    assert len(shapes) == 682 + 1946 + 16 + 4 + 8
    got: dict[str, Shapes] = {part: {} for part in parts.values()}
    for key, shape in shapes.items():
        within, _, rest = key.partition(".")
        if not rest.endswith(".pe") and not (within == "denoising_unet" and import_audio._blind(rest)):
            got[parts[within]][rest] = shape
    assert all(got[part] == made[part] for part in got)
    assert len(made["denoiser"]) == 686 + 672 + 588 - 42 - 130
    heard = {f"model.{import_audio.wav2vec_key(k)}": s for k, s in wav2vec(768, 12, 512).items() if not k.startswith(("lm_head", "wav2vec2.masked"))}
    assert heard == made["listener"]
    for variant, planes in (("base", 1), ("pose", 3)):
        echo = {part: {key: tuple(x.shape) for key, x in m.state_dict().items()} for part, m in networks.empty(VARIANTS[variant]).parts().items()}
        assert echo["denoiser"] == unet(PUBLISHED, 384) | {k: s for k, s in motion(PUBLISHED).items() if not k.endswith(".pe")}
        assert echo["reference"] == {k: s for k, s in unet(PUBLISHED, 768, tail=False).items() if not import_audio._second(k)}
        assert echo["guider"] == locator(planes, (16, 32, 96, 256), 320)
        tiny = {f"model.{import_audio.whisper_key(k)}": s for k, s in listener(384, 4, 1500).items() if k.startswith("encoder.")}
        assert echo["listener"] == tiny


@pytest.mark.parametrize("variant", ["base", "pose"])
def test_imported_echomimic_loads_and_speaks(variant: str, echomimic: Path, tmp_path: Path) -> None:
    told: list[str] = []
    made, out = small_echo(variant), tmp_path / "out"
    import_echomimic(echomimic.parent, out, variant=variant, made=made, tell=told.append)
    assert any("112 left out, second attentions that the published code never calls" in line for line in told)
    assert any("1 left out, Whisper's decoder" in line for line in told)
    loaded = networks.load(out)
    held = torch.load(echomimic / "audio_processor" / "whisper_tiny.pt", weights_only=True)["model_state_dict"]
    assert torch.equal(loaded.listener.state_dict()["model.layers.0.fc1.weight"], held["encoder.blocks.0.mlp.0.weight"])  # type: ignore[union-attr]
    generator: Any = load("diffusion", weights=out, mode="eager")
    assert "made for 30 steps with guidance 2.5" in generator.spec.notice
    state = generator.allocate(1)
    generator.admit(state, 0, generator.prepare(demo_portrait()))
    assert generator.step(state, [[Signal(time=0.0)]])[0][0].rgb.shape == (64, 64, 3)


def test_imported_hallo_loads_reads_the_face_and_speaks(hallo: Path, tmp_path: Path) -> None:
    told: list[str] = []
    out = tmp_path / "out"
    import_hallo(hallo.parent, out, made=SMALL_HALLO, tell=told.append)
    assert any("140 left out, motion modules of the levels without attention" in line for line in told)
    assert any("3 left out, its output for text" in line for line in told)
    assert (out / "recogniser.onnx").read_bytes() == (hallo / "face_analysis" / "models" / "glintr100.onnx").read_bytes()
    generator: Any = load("diffusion", weights=out, mode="eager")
    assert "made for 40 steps with guidance 3.5" in generator.spec.notice
    identity = generator.prepare(demo_portrait())
    tokens = identity.features.cache.tokens
    assert not torch.equal(tokens, generator.recipe.networks.nobody()), "the recogniser was asked"
    state = generator.allocate(1)
    generator.admit(state, 0, identity)
    assert generator.step(state, [[Signal(time=0.0)]])[0][0].rgb.shape == (64, 64, 3)
    (out / "recogniser.onnx").write_bytes(b"another")
    with pytest.raises(AvatarError, match="is not the file that its weights.json names"):
        networks.load(out)


def test_the_commands_import_and_say_how_to_serve(
    hallo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(import_audio, "import_hallo", lambda *args, **more: import_hallo(*args, **more, made=SMALL_HALLO))
    assert avatar.main(["import", "hallo", str(hallo), "-o", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "net.pth denoising_unet: 1772 tensors -> denoiser" in shown
    assert f"avatar serve --generator diffusion --weights {tmp_path / 'out'}\n" in shown


# -- what does not fit ----------------------------------------------------------------------------------------------------


def test_files_of_another_kind_are_refused_in_one_sentence(echomimic: Path, tmp_path: Path) -> None:
    made, out = small_echo("base"), tmp_path / "out"

    def refused(match: str, variant: str = "base") -> None:
        with pytest.raises(AvatarError, match=match):
            import_echomimic(echomimic, out, variant=variant, made=small_echo(variant) if variant in VARIANTS else made)
        assert not out.exists()

    refused("no variant 'fast'", "fast")
    refused("no file denoising_unet_acc", "acc")
    path = echomimic / "face_locator.pth"
    held, other = (torch.load(each, weights_only=True) for each in (path, echomimic / "face_locator_pose.pth"))
    save(other, path)
    refused("face_locator.pth is not EchoMimic's face_locator: of its tensors, 1 of another kind")
    save(held, path)
    path = echomimic / "motion_module.pth"
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[: len(whole) // 2])
    refused("damaged, not complete or no checkpoint")
    path.write_bytes(whole)
    put(echomimic / "audio_processor" / "whisper_tiny.pt", listener(16, 1, 120), 5)
    refused("holds no network called 'model_state_dict'")


def test_hallo_wants_its_own_net_and_a_recogniser(hallo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def refused(match: str, **more: Any) -> None:
        with pytest.raises(AvatarError, match=match):
            import_hallo(hallo, out, made=SMALL_HALLO, **more)
        assert not out.exists()

    path = hallo / "hallo" / "net.pth"
    held = torch.load(path, weights_only=True)
    save(held | {"unet.conv_in.weight": torch.zeros(1)}, path)
    refused("1 are of no network of Hallo's \\(first 'unet.conv_in.weight'\\)")
    save({key: value for key, value in held.items() if "audio_modules" not in key}, path)
    refused("672 missing \\(first 'down_blocks.0.audio_modules.0.norm.weight'\\)")
    save(held, path)
    config = hallo / "wav2vec" / "wav2vec2-base-960h" / "config.json"
    config.unlink()
    config.write_text(json.dumps(WAV2VEC | {"do_stable_layer_norm": True}))
    refused("has do_stable_layer_norm True, this system False")
    config.write_text(json.dumps(WAV2VEC))
    (hallo / "face_analysis" / "models" / "glintr100.onnx").unlink()
    refused("name the file with --recogniser")
    refused("cannot be read", recogniser=tmp_path / "nothing.onnx")
