"""Stable Video Diffusion's weights as where VividPose begins: its denoiser's UNet and, without the temporal parts, its reference network's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.types import AvatarError
from exporters.files import find, read, read_config
from exporters.import_checkpoint import Source, match, report
from exporters.keys import Table, same

try:
    from engine.generators.video.vividpose import VIVIDPOSE, Denoiser, ReferenceNet, VividPose
except ImportError as error:
    raise AvatarError(f"Importing weights needs PyTorch and diffusers ({error}); pip install 'avatar-engine[torch]'.") from error

SYSTEM = "Stable Video Diffusion"
UNET = Table(("diffusion_pytorch_model", "diffusion_pytorch_model.fp16"), "unet", same, folder="unet", system=SYSTEM)
TEMPORAL = (".temporal_res_block.", ".time_mixer.", ".temporal_transformer_blocks.", ".time_pos_embed.")
"""In the keys of what sees more than one frame."""
TAIL = ("conv_norm_out.", "conv_out.")
"""What keys begin with behind the last attention."""


def begin_from_svd(folder: Path, *, made: VividPose = VIVIDPOSE, tell: Callable[[str], None] = lambda line: None) -> tuple[Denoiser, ReferenceNet]:
    """The published folder (or its `unet`) -> both networks, float32; guiders and face are as new. Raises AvatarError for what does not fit."""
    root = folder / UNET.folder if (folder / UNET.folder).is_dir() else folder
    path = find([root], UNET.stems)
    if path is None:
        raise AvatarError(f"{root} has no file {' or '.join(UNET.stems)} (.safetensors or .bin); give {SYSTEM}'s folder.")
    denoiser, reference = Denoiser(made), ReferenceNet(made)
    _check(root, denoiser.unet.config)
    held = read(path)
    found = match(UNET, held, {key: tuple(value.shape) for key, value in denoiser.unet.state_dict().items()})
    report(Source(UNET, path, f"unet/{path.name}"), found, held, tell)
    held = {ours: held[theirs].float() for ours, theirs in found.pairs.items()}
    denoiser.unet.load_state_dict(held)
    spatial = {key: value for key, value in held.items() if not key.startswith(TAIL) and not any(word in key for word in TEMPORAL)}
    reference.unet.load_state_dict(spatial)
    tell(f"{len(held) - len(spatial)} of them are left out of the reference network, which sees one frame and makes none")
    return denoiser.eval(), reference.eval()


def _check(root: Path, ours: Any) -> None:
    """Raise AvatarError where the published config.json says other than ours: shapes do not tell heads."""
    config = read_config(root)
    for name in ("num_attention_heads", "block_out_channels", "layers_per_block", "addition_time_embed_dim", "cross_attention_dim"):
        want = list(ours[name]) if isinstance(ours[name], tuple) else ours[name]
        if config.get(name, want) != want:
            raise AvatarError(f"{root}/config.json has {name} {config[name]}, {SYSTEM} {want}; give the published unet.")


__all__ = ["begin_from_svd"]
