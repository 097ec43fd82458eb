"""Importing IP-Adapter-FaceID's published file: it becomes part of a system's weights, and what does not fit is said."""

from __future__ import annotations

import argparse
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from engine.generators.diffusion.presets import ANIMATE_ANYONE, MUSE_POSE, PRESETS, with_face
from engine.types import AvatarError
from exporters.options import add_import
from tests import recognisers
from tests.conftest import found, require
from tests.identity_weights import faceid, norm, seeded
from tests.networks import error
from tests.recognisers import given_recogniser  # noqa: F401

if found("torch") and found("diffusers") and found("transformers"):
    import torch
    from safetensors.torch import save_file

    from engine.generators.diffusion import networks as weights_of
    from exporters.published import import_checkpoint, import_command
    from exporters.published.import_checkpoint import match
    from exporters.published.import_faceid import FaceId, adding, attentions, read_faceid, tables_of

pytestmark = pytest.mark.torch
SAME = 1e-5
"""Relative error, fp32."""


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    for part in ("torch", "diffusers", "transformers"):
        require(part)


def published(channels: tuple[int, ...], source: int, *, rank: int = 2, lora: bool = True, dim: int = 512, tokens: int = 4) -> dict[str, Any]:
    """IP-Adapter-FaceID's file for a UNet of Stable Diffusion 1.5's layout: (width, places) down, up, and in the middle."""
    widths = [w for w in channels[:3] for _ in range(2)] + [w for w in channels[2::-1] for _ in range(3)] + [channels[-1]]
    shapes: dict[str, tuple[int, ...]] = {}
    for place, width in enumerate(widths):
        for i, cross in ((2 * place, width), (2 * place + 1, source)):
            for part in "q", "k", "v", "out":
                inner = cross if part in "kv" else width
                if lora:
                    shapes |= {f"{i}.to_{part}_lora.down.weight": (rank, inner), f"{i}.to_{part}_lora.up.weight": (width, rank)}
        shapes |= {f"{2 * place + 1}.to_{part}_ip.weight": (width, source) for part in "kv"}
    half = {key: torch.from_numpy(value) for key, value in seeded(shapes, 3).items()}
    return {
        "image_proj": {key: torch.from_numpy(value) for key, value in seeded(faceid(features=dim, out=source, tokens=tokens), 4).items()},
        "ip_adapter": half,
    }


def test_places_are_those_of_the_published_order() -> None:
    """Of diffusers' own UNet of Stable Diffusion 1.5, which the published loader counts."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
    assert [f"{place}.processor" for place in attentions(ANIMATE_ANYONE.unet)] == list(unet.attn_processors)


def test_the_full_size_file_fits_the_full_size_denoiser() -> None:
    made = with_face(ANIMATE_ANYONE)
    parts = weights_of.empty(made).parts()
    held = {f"{half}.{key}": value for half, tensors in published(made.unet.channels, 768, rank=1).items() for key, value in tensors.items()}
    assert sum("_ip." in key for key in held) == 32
    assert sum("_lora." in key for key in held) == 256
    for table in tables_of(attentions(made.unet)):
        found_ = match(table, held, {key: tuple(value.shape) for key, value in parts[table.part].state_dict().items()})
        assert [*found_.missing, *found_.unexpected, *found_.unfit] == []
        assert len(found_.pairs) == (6 if table.part == "face" else 32)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MusePose's files, small, and FaceID's for them."""
    from tests.checkpoints import SMALL_CLIP, SMALL_VAE, guider, motion, unet, vae
    from tests.checkpoints import clip as clip_vision
    from tests.test_import_body import WIDTHS, put

    root = tmp_path_factory.mktemp("published")
    put(root / "sd-vae-ft-mse" / "diffusion_pytorch_model.bin", vae((32, 32, 32, 32)), 5, SMALL_VAE)
    put(
        root / "image_encoder" / "pytorch_model.bin", clip_vision(32, 2, 56, 16), 6, SMALL_CLIP | {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    )
    put(root / "denoising_unet.pth", unet(WIDTHS, 16), 1)
    put(root / "reference_unet.pth", unet(WIDTHS, 16, tail=False), 2)
    put(root / "motion_module.pth", motion(WIDTHS, 40), 3)
    put(root / "pose_guider.pth", guider(WIDTHS[0]), 4)
    torch.save(published(WIDTHS, 16), root / "ip-adapter-faceid_sd15.bin")
    return root


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The preset, with encoders that are small ones of the same make."""
    from diffusers import AutoencoderKL
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    from engine.generators.diffusion import autoencoder, tokens
    from tests.checkpoints import SMALL_CLIP, SMALL_VAE
    from tests.test_import_body import small as narrow

    made = narrow(MUSE_POSE)
    levels_of = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    monkeypatch.setitem(PRESETS, made.name, made)
    monkeypatch.setattr(weights_of, "autoencoder", lambda _: autoencoder.KL(AutoencoderKL(**SMALL_VAE, **levels_of)))
    config = {**SMALL_CLIP, "intermediate_size": 128}
    monkeypatch.setattr(import_checkpoint, "empty", cache(weights_of.empty))
    monkeypatch.setattr(weights_of, "image_encoder", lambda _: tokens.ClipImage(CLIPVisionModelWithProjection(CLIPVisionConfig(**config))))
    return made


def bring_in(files: Path, out: Path, asked: Any, told: list[str] | None = None) -> Any:
    tell = (lambda line: None) if told is None else told.append
    import_checkpoint.import_layout("musepose", files, out, also=adding(asked, tell), tell=tell)
    return weights_of.load(out)


def test_an_imported_file_is_in_the_denoiser(files: Path, small: Any, recogniser: Path, tmp_path: Path) -> None:
    """Every tensor in its place, with and without the LoRA; the reference network and everything else as without."""
    told: list[str] = []
    path = files / "ip-adapter-faceid_sd15.bin"
    made = bring_in(files, tmp_path / "plain", FaceId(path, recogniser=recogniser), told)
    assert any("32 tensors -> denoiser" in line for line in told)
    assert any("6 tensors -> face" in line for line in told)
    assert any("256 tensors of its LoRA left out; --faceid-lora adds it" in line for line in told)
    manifest = json.loads((tmp_path / "plain" / "weights.json").read_text())
    assert manifest["preset"] == "muse_pose+faceid"
    assert manifest["origin"]["faceid"] == made.projector == hashlib.sha256(path.read_bytes()).hexdigest()
    held = read_faceid(path)
    get = made.denoiser.get_parameter
    for number, place in ((1, "down_blocks.0.attentions.0"), (13, "up_blocks.1.attentions.0"), (31, "mid_block.attentions.0")):
        assert torch.equal(get(f"{place}.transformer_blocks.0.attn2.to_v_ip.weight"), held[f"ip_adapter.{number}.to_v_ip.weight"])
    flat = {key: value.clone() for key, value in held.items()}
    save_file(flat, tmp_path / "it.safetensors")
    lora = bring_in(files, tmp_path / "lora", FaceId(tmp_path / "it.safetensors", lora=True), told)
    assert any("No --recogniser: only personas" in line for line in told)
    key = "up_blocks.2.attentions.1.transformer_blocks.0.attn1.to_out.0.weight"
    up, down = (held[f"ip_adapter.{2 * (6 + 4)}.to_out_lora.{side}.weight"] for side in ("up", "down"))
    assert error(lora.denoiser.get_parameter(key), get(key) + up @ down) < SAME
    before, after = made.state_dict(), lora.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert len(changed) == 128
    assert all(name.startswith("denoiser.") and (".attn1." in name or ".attn2." in name) and "_ip." not in name for name in changed)


def test_files_that_do_not_fit_are_told(files: Path, small: Any, tmp_path: Path) -> None:
    from tests.test_import_body import WIDTHS

    def refused(match_: str, change: Any = None, *, asked: dict[str, Any] | None = None, **how: Any) -> None:
        told: list[str] = []
        held = published(WIDTHS, 16, **how)
        if change is not None:
            change(held)
        torch.save(held, tmp_path / "ip-adapter-faceid_sd15.bin")
        with pytest.raises(AvatarError, match=match_):
            bring_in(files, tmp_path / "out", FaceId(tmp_path / "ip-adapter-faceid_sd15.bin", **(asked or {})), told)
        assert not (tmp_path / "out").exists()

    refused(
        r"1 missing \(first 'up_blocks\.1\.attentions\.0\.transformer_blocks\.0\.attn2\.to_k_ip\.weight'\)",
        lambda held: held["ip_adapter"].pop("13.to_k_ip.weight"),
    )
    refused(
        r"1 unexpected \(first 'ip_adapter\.33\.to_k_ip\.weight'\)", lambda held: held["ip_adapter"].update({"33.to_k_ip.weight": torch.zeros(8, 16)})
    )
    refused(r"of another kind \(first 'image_proj\.proj\.2\.", tokens=16, lora=False)
    refused("of another kind", dim=256)
    refused("has a LoRA for 1 layers that are not there", lambda held: held["ip_adapter"].update({"32.to_q_lora.up.weight": torch.zeros(8, 2)}))
    refused("has no LoRA for all attentions", lora=False, asked={"lora": True})
    refused("does not fit 'down_blocks", lambda held: held["ip_adapter"].update({"0.to_q_lora.up.weight": torch.zeros(9, 2)}), asked={"lora": True})
    refused(
        "is a FaceID-Plus",
        lambda held: held["image_proj"].update({key: torch.zeros(shape) for key, shape in norm("perceiver_resampler.norm_out", 16).items()}),
    )
    refused("holds no network called 'image_proj'", lambda held: held.pop("image_proj"))
    short = recognisers.onnx_file(tmp_path / "short.onnx")
    refused("gives 16 numbers for a face", asked={"recogniser": short})
    with pytest.raises(AvatarError, match="cannot be read"):
        bring_in(files, tmp_path / "out", FaceId(tmp_path / "nothing.bin"))
    assert bring_in(files, tmp_path / "bare", FaceId(_stripped(tmp_path))).face is not None, "who has no use for the LoRA may have left it out"


def _stripped(folder: Path) -> Path:
    from tests.test_import_body import WIDTHS

    torch.save(published(WIDTHS, 16, lora=False), folder / "bare.bin")
    return folder / "bare.bin"


def test_the_command_takes_what_belongs_to_the_file_with_it_alone(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_import(parser)
    for system in ("animate-anyone", "musepose", "champ", "magicanimate"):
        asked = parser.parse_args([system, "DIR", "-o", str(tmp_path / "out"), "--faceid-lora"])
        with pytest.raises(AvatarError, match="belong to --faceid FILE"):
            import_command.run(asked, tell=lambda line: None)
        asked = parser.parse_args([system, str(tmp_path), "-o", str(tmp_path / "out"), "--faceid", str(tmp_path / "nothing.bin")])
        with pytest.raises(AvatarError, match="text_encoder has no file" if system == "magicanimate" else r"nothing\.bin cannot be read"):
            import_command.run(asked, tell=lambda line: None)
