"""Files of identity systems with random weights for the bases of `tests.tiny_bases`, as they are published: keys, nesting, names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests import identity_weights as small
from tests.identity_weights import Shapes, seeded
from tests.tiny_bases import SEEN, WIDTH

POOLED = 20
"""Of the image encoder's embedding."""
VECTOR = 16
"""Of the recogniser's (tests.recognisers.LENGTH)."""
CHANNELS = (32, 32, 64, 64, 64, 64, 64, 64, 32, 32, 32, 32, 64, 64)
"""Of the attentions, in the order of `unet.attn_processors`: two down blocks, four in the up blocks, the middle."""
RANK = 3


def attentions(*, names: tuple[str, str] = ("to_k_ip", "to_v_ip"), lora: bool = False) -> Shapes:
    """Keys by place: the person's projections in every second attention, a LoRA in all."""
    made: dict[str, tuple[int, ...]] = {}
    for i, channels in enumerate(CHANNELS):
        cross = i % 2 == 1
        if cross:
            made |= {f"{i}.{name}.weight": (channels, WIDTH) for name in names}
        if lora:
            inputs = {"q": channels, "k": WIDTH if cross else channels, "v": WIDTH if cross else channels, "out": channels}
            for part, width in inputs.items():
                made |= {f"{i}.to_{part}_lora.down.weight": (RANK, width), f"{i}.to_{part}_lora.up.weight": (channels, RANK)}
    return made


PROJECTORS: dict[str, Shapes] = {
    "plain": small.plain(features=POOLED, out=WIDTH),
    "plus": small.resampler(features=SEEN, width=48, out=WIDTH),
    "full-face": small.full_face(features=SEEN, out=WIDTH),
    "faceid": small.faceid(features=VECTOR, out=WIDTH),
    "faceid-plus": small.faceid_plus(features=VECTOR, seen=SEEN, out=WIDTH),
    "portrait": small.faceid(features=VECTOR, out=WIDTH, tokens=16),
}


def tensors(shapes: Shapes, seed: int = 0) -> dict[str, Any]:
    """`seeded`, for PyTorch."""
    import torch

    return {name: torch.from_numpy(array) for name, array in seeded(shapes, seed).items()}


def adapter(path: Path, kind: str) -> Path:
    """An IP-Adapter or a FaceID of a kind of PROJECTORS; nested in a .bin, flat in a .safetensors."""
    import torch
    from safetensors.torch import save_file

    halves = {"image_proj": tensors(PROJECTORS[kind]), "ip_adapter": tensors(attentions(lora=kind.startswith("faceid")), 1)}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({f"{half}.{key}": value for half, held in halves.items() for key, value in held.items()}, path)
    else:
        torch.save(halves, path)
    return path


def instantid(folder: Path, base: Path) -> Path:
    """InstantID's folder for an SDXL: a ControlNet whose last layers are not zero, and ip-adapter.bin."""
    import torch
    from diffusers import ControlNetModel, UNet2DConditionModel

    network = ControlNetModel.from_unet(UNet2DConditionModel.from_pretrained(base / "unet"), conditioning_embedding_out_channels=(4, 8, 8, 8))
    torch.manual_seed(5)
    for layer in (*network.controlnet_down_blocks, network.controlnet_mid_block):
        torch.nn.init.normal_(layer.weight, std=0.3)
    network.save_pretrained(folder / "ControlNetModel")
    shapes = small.resampler(features=VECTOR, width=48, out=WIDTH)
    torch.save({"image_proj": tensors(shapes), "ip_adapter": tensors(attentions(), 1)}, folder / "ip-adapter.bin")
    return folder


CLIP_WIDTH = 64
"""Of PhotoMaker's own image encoder: one head."""


def photomaker_qformer(*, vector: int, seen: int, width: int) -> Shapes:
    """PhotoMaker v2's."""
    made = small.linear("token_proj.0", vector, 4 * vector) | small.linear("token_proj.2", 4 * vector, 2 * width) | small.norm("token_norm", width)
    made |= small.linear("perceiver_resampler.proj_in", seen, width) | small.linear("perceiver_resampler.proj_out", width, width)
    made |= small.norm("perceiver_resampler.norm_out", width)
    return made | small.perceiver("perceiver_resampler.", width=width, inner=128, depth=4)


def photomaker(path: Path, base: Path, *, version: int) -> Path:
    """PhotoMaker's file for an SDXL, its LoRA in the names of its time."""
    import torch
    from diffusers import UNet2DConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(6)
    config = CLIPVisionConfig(
        hidden_size=CLIP_WIDTH,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=1,
        image_size=28,
        patch_size=7,
        projection_dim=WIDTH // 2,
    )
    encoder = dict(CLIPVisionModelWithProjection(config).state_dict())
    encoder |= tensors(small.linear("visual_projection_2", CLIP_WIDTH, WIDTH // 2, bias=False))
    encoder |= {f"fuse_module.{key}": value for key, value in tensors(small.fuse(WIDTH)).items()}
    if version == 2:
        shapes = photomaker_qformer(vector=VECTOR, seen=CLIP_WIDTH, width=WIDTH)
        encoder |= {f"qformer_perceiver.{key}": value for key, value in tensors(shapes).items()}
    lora: dict[str, tuple[int, ...]] = {}
    for i, name in enumerate(UNet2DConditionModel.from_pretrained(base / "unet").attn_processors):
        lora |= {f"unet.{name}.to_q_lora.down.weight": (RANK, CHANNELS[i]), f"unet.{name}.to_q_lora.up.weight": (CHANNELS[i], RANK)}
    torch.save({"id_encoder": encoder, "lora_weights": tensors(lora, 3)}, path)
    return path


def arc2face(folder: Path, base: Path) -> Path:
    """Arc2Face's folder for an SD 1.5: its UNet, its text encoder, its recogniser."""
    import shutil

    from tests.recognisers import onnx_file
    from tests.tiny_bases import text_encoder

    shutil.copytree(base / "unet", folder / "arc2face")
    text_encoder(WIDTH).save_pretrained(folder / "encoder")
    onnx_file(folder / "arcface.onnx", 4)
    return folder


def consistentid(path: Path, *, nested: str = "image_proj") -> Path:
    """ConsistentID's file, of which `nested` is the projector's name; beside it a face parsing that is none."""
    import torch
    from safetensors.torch import save_file

    facial = tensors(small.facial(features=SEEN, width=64, out=WIDTH))
    parts = {"FacialEncoder": facial, nested: tensors(PROJECTORS["faceid-plus"]), "adapter_modules": tensors(attentions(lora=True), 1)}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({f"{part}.{key}": value for part, held in parts.items() for key, value in held.items()}, path)
    else:
        torch.save(parts, path)
    (path.parent / "face_parsing.pth").write_bytes(b"")
    return path


STAGES = ((6, 2), (8, 1), (10, 1), (12, 2))
"""Channels and blocks of the small CurricularFace's stages."""


def curricular() -> dict[str, Any]:
    """A small CurricularFace's weights; what is divided by is positive."""
    held = tensors(small.curricular(*STAGES, vector=VECTOR))
    return {name: value.abs() + 0.5 if name.endswith("running_var") else value for name, value in held.items()}


def uniportrait(folder: Path) -> Path:
    """UniPortrait's folder for an SD 1.5: 4 tokens a person, and a router."""
    import torch

    form = sum(width for width, _ in STAGES[:-1]) + SEEN
    adapter = attentions(names=("to_k_faceid", "to_v_faceid"), lora=True)
    router: dict[str, tuple[int, ...]] = {key: shape for key, shape in adapter.items() if "_lora." in key}
    for i, channels in enumerate(CHANNELS):
        if i % 2 == 1:
            router |= {f"{i}.{key}": shape for key, shape in small.router(channels, cross=WIDTH, queries=4).items()}
    folder.mkdir(parents=True, exist_ok=True)
    project = tensors(small.uniportrait(who=STAGES[-1][0], form=form, out=WIDTH))
    torch.save({"faceid_proj": project, "faceid_adapter": tensors(adapter, 1)}, folder / "uniportrait-faceid_sd15.bin")
    torch.save({"faceid_adapter": tensors(router, 2)}, folder / "uniportrait-router_sd15.bin")
    torch.save(curricular(), folder / "glint360k_curricular_face_r101_backbone.bin")
    return folder
