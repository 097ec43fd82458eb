"""Importing MagicAnimate, MusePose, Champ and Moore-AnimateAnyone's reenactment: every published key and shape finds its place, in every form,
and what does not fit is said."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import avatar
from engine.generators import load
from engine.generators.diffusion.presets import (
    ANIMATE_ANYONE,
    ANIMATE_ANYONE_FACE,
    ANIMATE_ANYONE_V1,
    CHAMP,
    MAGIC_ANIMATE,
    MUSE_POSE,
    PRESETS,
    Preset,
)
from engine.persona import demo_portrait
from engine.types import AvatarError, Signal
from tests.checkpoints import SMALL_CLIP, SMALL_VAE, Shapes, attend, changed, clip, dense, forward, guider, motion, norm, size, unet, vae
from tests.conftest import found, require

if found("torch") and found("diffusers"):
    import torch
    from safetensors.torch import load_file, save_file

    from engine.generators.diffusion import autoencoder, networks, tokens
    from exporters.published import import_checkpoint, import_magicanimate, keys, keys_body
    from exporters.published.import_checkpoint import import_layout
    from tests.checkpoints import tensors

pytestmark = pytest.mark.torch
WIDTHS = (8, 16, 16, 16)
GROUPS = 8


def small(made: Preset, **changes: Any) -> Preset:
    """The published layout, narrow."""
    return replace(made, size=(64, 64), unet=replace(made.unet, channels=WIDTHS, groups=GROUPS, image_dim=16), window=4, **changes)


SMALL = {made.name: small(made) for made in (ANIMATE_ANYONE, ANIMATE_ANYONE_FACE, ANIMATE_ANYONE_V1, CHAMP, MAGIC_ANIMATE, MUSE_POSE)}
FULL = MAGIC_ANIMATE.unet.channels
SMALL_TEXT = {
    "vocab_size": 100,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
    "projection_dim": 16,
    "hidden_act": "quick_gelu",
    "eos_token_id": 2,
    "model_type": "clip_text_model",
}
CONTROL_CONFIG = {"attention_head_dim": 8, "controlnet_conditioning_channel_order": "rgb", "norm_num_groups": GROUPS}


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    require("torch")
    require("diffusers")
    require("transformers")


# -- the published layouts, written out -----------------------------------------------------------------------------------


def motion_v1(channels: tuple[int, ...]) -> Shapes:
    """AnimateDiff's first version: none in the middle, and 24 positions."""
    return {key: shape for key, shape in motion(channels, 24).items() if not key.startswith("mid_block")}


def appearance(channels: tuple[int, ...], source: int) -> Shapes:
    """A reference network that ends where its last block has been read."""
    last = "up_blocks.3.attentions.2."
    kept = {f"{last}{name}" for name in ("norm", "proj_in", "transformer_blocks.0.norm1")}
    made = unet(channels, source, tail=False)
    return {key: shape for key, shape in made.items() if not key.startswith(last) or key.rpartition(".")[0] in kept}


def controlnet(channels: tuple[int, ...], source: int) -> Shapes:
    """diffusers' ControlNet of Stable Diffusion 1.5."""
    made = {key: shape for key, shape in unet(channels, source, tail=False).items() if not key.startswith("up_blocks")}
    made |= {f"controlnet_cond_embedding.{key}": shape for key, shape in guider(channels[0]).items()}
    skips = [channels[0]]
    for i, width in enumerate(channels):
        skips += [width] * (3 if i < len(channels) - 1 else 2)
    for i, width in enumerate(skips):
        made |= dense(f"controlnet_down_blocks.{i}", width, width, side=1)
    return made | dense("controlnet_mid_block", channels[-1], channels[-1], side=1)


def guidance(width: int, *, spare: bool) -> Shapes:
    """Champ's encoder of one map, with one more attention that its first files have."""

    def attention(key: str, c: int) -> Shapes:
        block = f"{key}.transformer_blocks.0"
        made = norm(f"{key}.norm", c) | dense(f"{key}.proj_in", c, c, side=1) | dense(f"{key}.proj_out", c, c, side=1)
        return made | norm(f"{block}.norm1", c) | norm(f"{block}.norm3", c) | attend(f"{block}.attn1", c, c) | forward(f"{block}.ff", c)

    made = guider(width)
    for i, c in enumerate((16, 32, 32, 96, 96, 256)):
        made |= attention(f"attentions.{i}", c)
    return made | (attention("guidance_attention", 256) if spare else {})


def clip_text(width: int, layers: int, vocabulary: int) -> Shapes:
    """CLIP's text tower as transformers wrote it when the file was published."""
    root = "text_model"
    made: Shapes = {
        f"{root}.embeddings.position_ids": (1, 77),
        f"{root}.embeddings.token_embedding.weight": (vocabulary, width),
        f"{root}.embeddings.position_embedding.weight": (77, width),
    }
    for i in range(layers):
        key = f"{root}.encoder.layers.{i}"
        for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
            made |= dense(f"{key}.self_attn.{projection}", width, width)
        made |= norm(f"{key}.layer_norm1", width) | norm(f"{key}.layer_norm2", width)
        made |= dense(f"{key}.mlp.fc1", width, 2 * width) | dense(f"{key}.mlp.fc2", 2 * width, width)
    return made | norm(f"{root}.final_layer_norm", width)


# -- small files of the published kinds -----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The small presets are known, and their encoders are small ones of the same make."""
    if "full_size" in request.node.name:
        return
    from diffusers import AutoencoderKL
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    levels_of = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    for name, made in SMALL.items():
        monkeypatch.setitem(PRESETS, name, made)
    monkeypatch.setattr(networks, "autoencoder", lambda made: autoencoder.KL(AutoencoderKL(**SMALL_VAE, **levels_of)))
    small_clip = partial(CLIPVisionConfig, **SMALL_CLIP, intermediate_size=128)
    real = tokens.image_encoder
    monkeypatch.setattr(
        networks,
        "image_encoder",
        lambda made: real(made) if made.image_encoder == "text" else tokens.ClipImage(CLIPVisionModelWithProjection(small_clip())),
    )
    monkeypatch.setattr(import_checkpoint, "empty", small_empty)


@cache
def small_empty(made: Any) -> Any:
    """The importer only looks at their shapes, so the tests share them."""
    return networks.empty(made)


def put(path: Path, shapes: Shapes, seed: int, config: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write a checkpoint of seeded weights, and its config.json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    held = tensors(shapes, seed)
    if path.suffix == ".safetensors":
        save_file(held, path)
    else:
        torch.save(held, path)
    if config is not None:
        (path.parent / "config.json").write_text(json.dumps(config))
    return held


@pytest.fixture(scope="module")
def _once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every system's files as their instructions have it: one folder, with what they share beside them."""
    root = tmp_path_factory.mktemp("published")
    put(root / "sd-vae-ft-mse" / "diffusion_pytorch_model.bin", vae((32, 32, 32, 32)), 5, SMALL_VAE)
    put(root / "image_encoder" / "pytorch_model.bin", clip(32, 2, 56, 16), 6, SMALL_CLIP | {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5})
    for system, positions in (("MusePose", 40), ("champ", 32)):
        put(root / system / "denoising_unet.pth", unet(WIDTHS, 16), 1)
        put(root / system / "reference_unet.pth", unet(WIDTHS, 16, tail=False), 2)
        put(root / system / "motion_module.pth", motion(WIDTHS, positions), 3)
    put(root / "MusePose" / "pose_guider.pth", guider(WIDTHS[0]), 4)
    for i, name in enumerate(("depth", "normal", "semantic_map", "dwpose")):
        put(root / "champ" / f"guidance_encoder_{name}.pth", guidance(WIDTHS[0], spare=i == 0), 10 + i)
    face = root / "reenact"
    put(face / "denoising_unet.pth", unet(WIDTHS, 16) | motion(WIDTHS), 1)
    put(face / "reference_unet.pth", unet(WIDTHS, 16), 2)
    for i in (1, 2):
        put(face / f"pose_guider{i}.pth", guider(WIDTHS[0]), 20 + i)
    magic = root / "MagicAnimate"
    put(magic / "appearance_encoder" / "diffusion_pytorch_model.safetensors", appearance(WIDTHS, 16), 2, {})
    put(magic / "densepose_controlnet" / "diffusion_pytorch_model.safetensors", controlnet(WIDTHS, 16), 4, CONTROL_CONFIG)
    put(magic / "temporal_attention" / "temporal_attention.ckpt", unet(WIDTHS, 16) | motion_v1(WIDTHS), 1)
    put(root / "stable-diffusion-v1-5" / "text_encoder" / "pytorch_model.bin", clip_text(16, 2, 100), 7, SMALL_TEXT)
    put(root / "stable-diffusion-v1-5" / "unet" / "diffusion_pytorch_model.bin", unet(WIDTHS, 16), 8, {})
    return root


@pytest.fixture
def published(_once: Path, tmp_path: Path) -> Path:
    shutil.copytree(_once, tmp_path / "pretrained_models", copy_function=os.link)
    return tmp_path / "pretrained_models"


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """Where to; whatever happens, there is a whole folder or none, and nothing beside it."""
    place = tmp_path / "made" / "weights"
    yield place
    if place.parent.exists():
        assert set(place.parent.iterdir()) <= {place}


def musepose(source: Path, place: Path, **options: Any) -> None:
    import_layout("musepose", source, place, **options)


def champ(source: Path, place: Path, **options: Any) -> None:
    import_layout("champ", source, place, **options)


def reenact(source: Path, place: Path, **options: Any) -> None:
    import_layout("animate-anyone --reenact", source, place, **options)


def magicanimate(source: Path, place: Path, **options: Any) -> None:
    import_magicanimate.import_magicanimate(source, place, made=SMALL["magic_animate"], **options)


TEMPORAL = Path("MagicAnimate", "temporal_attention", "temporal_attention.ckpt")


# -- what fits ------------------------------------------------------------------------------------------------------------


def test_every_key_of_the_full_size_files_is_one_of_ours() -> None:
    """Without a byte of weights: the published lists, written out above, against our networks on the meta device."""
    plain, moving = unet(FULL, 768), motion_v1(FULL)
    assert (len(moving), size(moving)) == (560, 417_982_400)
    assert (len(appearance(FULL, 768)), len(controlnet(FULL, 768)), size(controlnet(FULL, 768))) == (662, 340, 361_279_120)
    assert (len(guidance(320, spare=False)), size(guidance(320, spare=False))) == (130, 2_648_880)
    assert len(guidance(320, spare=True)) == 149
    assert size(motion(FULL, 128)) == 458_042_560
    shared = {"sd-vae-ft-mse": vae((128, 256, 512, 512)), "image_encoder": clip(1024, 24, 14, 768)}
    named = {"denoising_unet": plain, "reference_unet": unet(FULL, 768, tail=False), "pose_guider": guider(320)}
    spare = {f"guidance_encoder_{name}": guidance(320, spare=True) for name in ("depth", "normal", "semantic_map", "dwpose")}
    magic = {"appearance_encoder": appearance(FULL, 768), "densepose_controlnet": controlnet(FULL, 768), "unet": plain}
    for made, tables, lists in (
        (MUSE_POSE, keys_body.MUSE_POSE_TABLES, named | {"motion_module": motion(FULL, 128)}),
        (CHAMP, keys_body.CHAMP_TABLES, named | {"motion_module": motion(FULL)} | spare),
        (
            ANIMATE_ANYONE_FACE,
            keys_body.REENACT_TABLES,
            {"denoising_unet": plain | motion(FULL), "reference_unet": plain, "pose_guider1": guider(320), "pose_guider2": guider(320)},
        ),
        (MAGIC_ANIMATE, keys_body.magic_animate(plain | moving), magic | {"temporal_attention": plain | moving}),
        (MAGIC_ANIMATE, keys_body.magic_animate(moving), magic | {"temporal_attention": moving}),
        (ANIMATE_ANYONE_V1, keys.ANIMATE_ANYONE, named | {"motion_module": moving}),
    ):
        ours = {
            part: {key: tuple(value.shape) for key, value in module.state_dict().items()} for part, module in networks.empty(made).parts().items()
        }
        filled: dict[str, set[str]] = {part: set() for part in ours}
        for table in tables:
            shapes = {key: shape for key, shape in (lists | shared)[table.folder or table.stems[0]].items() if table.takes(key)}
            kept = {key: shape for key, shape in shapes.items() if not any(drop.takes(key) for drop in table.drops)}
            pairs = {table.prefix + table.ours(key): shape for key, shape in kept.items()}
            assert len(pairs) == len(kept), "two published keys never become one of ours"
            assert pairs == {key: shape for key, shape in ours[table.part].items() if table.fills(key)}, table
            assert filled[table.part].isdisjoint(pairs)
            filled[table.part] |= set(pairs)
        if made.image_encoder == "text":
            filled["image"] = {"embedding"}
        assert filled == {part: set(shapes) for part, shapes in ours.items()}


@pytest.mark.parametrize(
    ("run", "folder", "parts"),
    [
        (musepose, "MusePose", {"autoencoder", "denoiser", "guider", "image", "reference"}),
        (champ, "champ", {"autoencoder", "denoiser", "guider", "image", "reference"}),
        (reenact, "reenact", {"autoencoder", "denoiser", "guider", "image", "reference"}),
        (magicanimate, "MagicAnimate", {"autoencoder", "controlnet", "denoiser", "guider", "image", "reference"}),
    ],
    ids=["musepose", "champ", "reenact", "magicanimate"],
)
def test_imported_weights_load_and_make_a_frame(run: Any, folder: str, parts: set[str], published: Path, out: Path) -> None:
    told: list[str] = []
    run(published / folder, out, tell=told.append)
    assert {path.stem for path in out.glob("*.safetensors")} == parts
    generator: Any = load("diffusion", weights=out, mode="eager")
    made = generator.recipe.preset
    assert generator.trained
    assert made.sampling.told in generator.spec.notice
    assert ("normalised by itself" in generator.spec.notice) == made.unet.joined_norms
    state = generator.allocate(1)
    generator.admit(state, 0, generator.prepare(demo_portrait()))
    maps = {name: np.full((64, 64, 3), 90, np.uint8) for name in made.maps}
    frame = generator.step(state, [[Signal(0.0, maps=maps)]])[0][0]
    assert frame.rgb.shape == (64, 64, 3)
    assert len(np.unique(frame.rgb)) > 10
    assert not any(x.is_meta for x in (*generator.recipe.networks.parameters(), *generator.recipe.networks.buffers()))


def test_what_nobody_uses_is_left_out_and_told(published: Path, out: Path) -> None:
    told: list[str] = []
    champ(published, out, tell=told.append)
    lines = "\n".join(told)
    assert "guidance_encoder_depth.pth: 35 tensors -> guider" in lines
    assert lines.count("19 left out, which the published network does not use either: attentions.0.") == 4
    assert lines.count("guidance_attention.") == 3, "the first has one more, of which three names are told"
    held = torch.load(published / "champ" / "guidance_encoder_semantic_map.pth", weights_only=True)
    mine = load_file(out / "guider.safetensors")
    assert torch.equal(mine["encoders.semantic.attentions.5.proj_in.weight"], held["attentions.5.proj_in.weight"])


def test_positions_of_any_number_are_left_out_where_the_system_does_so(published: Path, out: Path) -> None:
    told: list[str] = []
    musepose(published, out, tell=told.append)
    assert any("42 left out, sinusoids" in line for line in told)
    assert any("of 40 positions, MusePose's networks have 128: make sure that the files are MusePose's" in line for line in told)
    changed(published / "MusePose" / "motion_module.pth", lambda held: {key: value + key.endswith(".pe") for key, value in held.items()})
    with pytest.raises(AvatarError, match="42 of another kind"):
        musepose(published, out.with_name("again"))


def test_the_first_configuration_is_imported_by_name(published: Path, out: Path) -> None:
    (published / "MusePose" / "motion_module.pth").unlink()
    put(published / "MusePose" / "motion_module.pth", motion_v1(WIDTHS), 3)
    for name in ("sd-vae-ft-mse", "image_encoder"):
        (published / name).rename(published / "MusePose" / name)
    assert avatar.main(["import", "animate-anyone", "--v1", str(published / "MusePose"), "-o", str(out)]) == 0
    assert networks.load(out).preset.unet.joined_norms


def test_an_option_that_is_missing_or_too_much_is_named(published: Path, out: Path) -> None:
    root = published / "MusePose"
    for name in ("sd-vae-ft-mse", "image_encoder"):
        (published / name).rename(root / name)
    for shapes, given, sentence in (
        (motion_v1(WIDTHS), "", "motion_module.pth is of another configuration of Moore-AnimateAnyone; give --v1."),
        (motion(WIDTHS, 32), " --v1", "motion_module.pth is of another configuration of Moore-AnimateAnyone; leave --v1 out."),
    ):
        (root / "motion_module.pth").unlink()
        put(root / "motion_module.pth", shapes, 3)
        with pytest.raises(AvatarError, match=sentence):
            import_layout(f"animate-anyone{given}", root, out)
    changed(root / "motion_module.pth", lambda held: {key: value for key, value in held.items() if "up_blocks" not in key})
    for given in ("", " --v1"):
        with pytest.raises(AvatarError, match="motion_module: of its tensors, .* missing .*; give the published file"):
            import_layout(f"animate-anyone{given}", root, out)


def test_the_face_reenactment_is_imported_by_name(published: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert avatar.main(["import", "animate-anyone", "--reenact", str(published), "-o", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "pose_guider2.pth: 16 tensors -> guider" in shown
    assert f"avatar serve --generator diffusion --weights {out}\n" in shown
    held = torch.load(published / "reenact" / "pose_guider2.pth", weights_only=True)
    assert torch.equal(load_file(out / "guider.safetensors")["encoders.mouth.conv_in.weight"], held["conv_in.weight"])
    with pytest.raises(SystemExit):
        avatar.main(["import", "animate-anyone", "--reenact", "--v1", str(published), "-o", str(out)])


# -- MagicAnimate's denoiser, in every form -------------------------------------------------------------------------------


def _nested(held: dict[str, Any]) -> dict[str, Any]:
    return {"state_dict": held, "global_step": 7}


FORMS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "plain": lambda held: held,
    "nested": _nested,
    "with a number": lambda held: held | {"global_step": 7},
    "module": lambda held: _nested({f"module.{key}": value for key, value in held.items()}),
    "half module": lambda held: {(f"module.{key}" if i % 2 else key): value for i, (key, value) in enumerate(held.items())},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_denoiser_is_read(form: str, tmp_path: Path) -> None:
    held = tensors({"conv_in.weight": (2, 2), "mid_block.motion_modules.0.x": (3,)})
    torch.save(FORMS[form](held), tmp_path / "temporal_attention.ckpt")
    read = keys_body.read_temporal(tmp_path / "temporal_attention.ckpt")
    assert read.keys() == held.keys()
    assert all(torch.equal(read[key], value) for key, value in held.items())


@pytest.mark.parametrize("alone", [False, True], ids=["whole", "motion-alone"])
def test_the_denoiser_is_whole_or_completed_by_stable_diffusions(alone: bool, published: Path, out: Path) -> None:
    path = published / TEMPORAL
    held = torch.load(path, weights_only=True)
    kept = {key: value for key, value in held.items() if not alone or ".motion_modules." in key}
    changed(path, lambda _: FORMS["module"](kept))
    magicanimate(published, out)
    mine = load_file(out / "denoiser.safetensors")
    plain = torch.load(published / "stable-diffusion-v1-5" / "unet" / "diffusion_pytorch_model.bin", weights_only=True)
    assert torch.equal(mine["conv_in.weight"], (plain if alone else held)["conv_in.weight"])
    assert all(torch.equal(mine[key], held[key]) for key in mine if ".motion_modules." in key)


def test_a_denoiser_saved_from_within_more_gives_its_motion_modules(published: Path, out: Path) -> None:
    """As its own loader: what else such a file holds is not taken."""
    changed(published / TEMPORAL, lambda held: {f"unet.{key}": value for key, value in held.items()})
    magicanimate(published, out)
    plain = torch.load(published / "stable-diffusion-v1-5" / "unet" / "diffusion_pytorch_model.bin", weights_only=True)
    assert torch.equal(load_file(out / "denoiser.safetensors")["conv_in.weight"], plain["conv_in.weight"])


def test_the_tokens_are_those_of_an_empty_text(published: Path, out: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    magicanimate(published, out)
    held = torch.load(published / "stable-diffusion-v1-5" / "text_encoder" / "pytorch_model.bin", weights_only=True)
    model = CLIPTextModel(CLIPTextConfig(**SMALL_TEXT | {"bos_token_id": 98, "eos_token_id": 99})).eval()
    names = {key.removeprefix("text_model."): key for key in held}
    model.load_state_dict({key: held[names[key.removeprefix("text_model.")]] for key in model.state_dict()})
    want = model(torch.tensor([[98] + [99] * 76])).last_hidden_state[0]
    assert torch.allclose(load_file(out / "image.safetensors")["embedding"], want, atol=1e-6)
    origin = json.loads((out / "weights.json").read_text())["origin"]
    assert origin["system"] == "MagicAnimate"
    assert {"text_encoder/pytorch_model.bin", "temporal_attention/temporal_attention.ckpt"} <= set(origin)


def test_the_text_encoder_is_not_needed_to_serve(published: Path, out: Path) -> None:
    magicanimate(published, out)
    shutil.rmtree(published)
    assert networks.load(out).preset.image_encoder == "text"


# -- what does not fit ----------------------------------------------------------------------------------------------------


def _without(path: str) -> Callable[[Path], None]:
    return lambda root: (root / path).unlink()


def _swap(one: str, other: str) -> Callable[[Path], None]:
    def swap(root: Path) -> None:
        (root / one).unlink()
        shutil.copy(root / other, root / one)

    return swap


def _cut(path: str) -> Callable[[Path], None]:
    def cut(root: Path) -> None:
        held = (root / path).read_bytes()
        (root / path).unlink()
        (root / path).write_bytes(held[: len(held) // 2])

    return cut


def _edit(path: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda root: changed(root / path, change)


def _config(path: str, **values: Any) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        (root / path).unlink()
        (root / path).write_text(json.dumps(values))

    return write


def _few(held: dict[str, Any]) -> None:
    held.pop("conv_in.weight")
    held["time_embedding.extra"] = torch.zeros(1)


def _motion_alone(root: Path) -> None:
    changed(root / TEMPORAL, lambda held: {key: value for key, value in held.items() if ".motion_modules." in key})
    shutil.rmtree(root / "stable-diffusion-v1-5" / "unet")


@pytest.mark.parametrize(
    ("run", "break_it", "complaint"),
    [
        (musepose, _without("MusePose/motion_module.pth"), "has no file motion_module"),
        (musepose, _cut("MusePose/denoising_unet.pth"), "is damaged, not complete or no checkpoint"),
        (musepose, _swap("MusePose/reference_unet.pth", "MusePose/denoising_unet.pth"), "is not MusePose's reference_unet: .* 4 unexpected"),
        (champ, _without("champ/guidance_encoder_normal.pth"), "has no file guidance_encoder_normal"),
        (champ, _swap("champ/guidance_encoder_normal.pth", "MusePose/pose_guider.pth"), "is not Champ's guidance_encoder_normal: .* 19 missing"),
        (champ, _swap("champ/motion_module.pth", "MusePose/motion_module.pth"), "of another kind .*sinusoids of 32 positions"),
        (reenact, _without("reenact/pose_guider2.pth"), "has no file pose_guider2"),
        (reenact, _cut("reenact/pose_guider1.pth"), "is damaged, not complete or no checkpoint"),
        (reenact, _swap("reenact/denoising_unet.pth", "MusePose/denoising_unet.pth"), "is not Moore-.* reenactment's denoising_unet: .* 546 missing"),
        (reenact, _swap("reenact/reference_unet.pth", "MusePose/reference_unet.pth"), "reference_unet: .* 4 missing .first 'conv_norm_out.weight'"),
        (reenact, _swap("reenact/pose_guider2.pth", "champ/guidance_encoder_normal.pth"), "pose_guider2: .* 114 unexpected"),
        (magicanimate, _edit(str(TEMPORAL), _few), "is not MagicAnimate's temporal_attention: .* 1 missing .* 1 unexpected"),
        (magicanimate, _swap(str(TEMPORAL), "MusePose/motion_module.pth"), "is not MagicAnimate's temporal_attention: .* 26 unexpected"),
        (magicanimate, _cut("MagicAnimate/appearance_encoder/diffusion_pytorch_model.safetensors"), "is damaged"),
        (magicanimate, _without("MagicAnimate/densepose_controlnet/diffusion_pytorch_model.safetensors"), "has no file diffusion_pytorch_model"),
        (magicanimate, _config("MagicAnimate/densepose_controlnet/config.json", attention_head_dim=4), "attention_head_dim 4, this system 8"),
        (magicanimate, _config("MagicAnimate/densepose_controlnet/config.json", controlnet_conditioning_channel_order="bgr"), "this system rgb"),
        (magicanimate, _without("stable-diffusion-v1-5/text_encoder/pytorch_model.bin"), "name its folder with --text-encoder"),
        (magicanimate, _config("stable-diffusion-v1-5/text_encoder/config.json", hidden_size=32), "is no text encoder of Stable Diffusion 1.5"),
        (magicanimate, _config("stable-diffusion-v1-5/text_encoder/config.json", **SMALL_TEXT | {"num_hidden_layers": 3}), "is no text encoder"),
        (magicanimate, _motion_alone, "or name its folder with --unet"),
    ],
)
def test_wrong_files_are_refused_in_a_sentence(run: Any, break_it: Callable[[Path], Any], complaint: str, published: Path, out: Path) -> None:
    break_it(published)
    with pytest.raises(AvatarError, match=complaint) as caught:
        run(published, out)
    assert "\n" not in str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize(("system", "name"), [("musepose", "muse_pose"), ("champ", "champ"), ("magicanimate", "magic_animate")])
def test_the_commands_import_and_say_how_to_use_it(
    system: str, name: str, published: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if system == "magicanimate":
        monkeypatch.setattr(import_magicanimate, "import_magicanimate", partial(import_magicanimate.import_magicanimate, made=SMALL[name]))
    assert avatar.main(["import", system, str(published), "-o", str(out), "--precision", "fp16"]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    if system == "musepose":
        assert said.endswith(f"avatar serve --generator diffusion --weights {out}")
    else:  # no camera has condition pictures
        asked = avatar._parser().parse_args(shlex.split(said.partition("avatar ")[2]))
        assert asked.run is avatar.render
        assert asked.weights == str(out)
        assert tuple(entry.partition("=")[0] for entry in asked.maps) == SMALL[name].maps
    assert json.loads((out / "weights.json").read_text())["preset"] == name
