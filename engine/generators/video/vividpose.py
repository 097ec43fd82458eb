"""VividPose: Stable Video Diffusion with a reference network, skeleton and body maps, and a face's features (Wang et al. 2024, arXiv 2405.18156).

No code and no weights of it are published, so this is built from the paper's description: end to end on Stable Video Diffusion, an appearance
controller that adds the face's identity to what a reference network sees, and a pose controller that reads dense renderings of SMPL-X beside
sparse skeletons. The video UNet is diffusers' own, module by module, so Stable Video Diffusion's weights load as they are, and with reference,
face and poses left out the network answers as diffusers' does.

What the description leaves open, and what was chosen here:
- The reference network is the UNet of Stable Video Diffusion without its temporal parts and without what follows its last attention. It runs
  once, at the least noise there is, with the time ids of the clip: on the reference's latents in place of the noisy ones, beside the image's
  as every frame has them.
- Its bank joins every spatial self-attention as more keys and values, projected by the denoiser; the temporal attentions do not read it.
- Skeletons and SMPL-X maps have a guider each, of the layout of ControlNet's; both are summed after the first convolution. Their last layers
  begin as zeros.
- The face is ArcFace's unit vector of 512 numbers, made four tokens by two layers and a norm; they are read by decoupled cross-attention as in
  IP-Adapter (arXiv 2308.06721): the queries of the attention to CLIP's token, keys and values of their own, whose values begin as zeros; in the
  spatial blocks alone.
- Without guidance there is neither token, image, reference nor face; poses stay. As in Stable Video Diffusion the guidance grows evenly from a
  clip's first frame to its last; over the whole clip, not over every window, so that windows do not flicker.
- Long clips: windows as in `sampling.windows`, averaged before they are guided.
- The time ids are Stable Video Diffusion's defaults, whatever the rate that a clip is shown at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.generators.video.presets import PATCH
from engine.generators.video.vividpose_presets import VividPose
from engine.types import AvatarError

FACE_DIM = 512
"""Numbers of ArcFace's vector."""
IDS = 3
"""Numbers beside the noise level: frames a second less one, the motion bucket, how noisy the image is."""
FPS, MOTION, AUGMENTED = 7, 127, 0.02
"""Stable Video Diffusion's defaults for these."""
LEAST_NOISE = 0.002
"""Sigma that the reference is read at."""


@dataclass(frozen=True, slots=True)
class Read:
    """What the denoiser's spatial attentions read beside a frame; empty for the unguided half."""

    bank: Sequence[Tensor] = ()  # a spatial block: [B, L, C]
    face: Tensor | None = None  # [B, T, D] tokens


@dataclass(slots=True)
class _Call:
    """One walk through a UNet."""

    frames: int
    time: Tensor  # [B · F, T]
    context: Tensor  # [B, K, D]
    still: Tensor | None  # [B, F] zeros, which tell diffusers' blocks of clips; None: the temporal parts are not there
    read: Read
    written: list[Tensor]  # what every spatial self-attention read, in the order of the data
    faces: Sequence[FaceKeys]
    seen: int = 0  # spatial blocks so far


def svd_unet(made: VividPose) -> Any:
    """diffusers' UNet of Stable Video Diffusion. Raises AvatarError for a size that it cannot have."""
    from diffusers import UNetSpatioTemporalConditionModel

    depth = PATCH << (len(made.channels) - 1)
    if any(side <= 0 or side % depth for side in made.size):
        raise AvatarError(f"The size '{made.name}' of VividPose cannot be built: its size must be a multiple of {depth}.")
    attending = len(made.channels) - 1
    return UNetSpatioTemporalConditionModel(
        block_out_channels=made.channels,
        down_block_types=("CrossAttnDownBlockSpatioTemporal",) * attending + ("DownBlockSpatioTemporal",),
        up_block_types=("UpBlockSpatioTemporal",) + ("CrossAttnUpBlockSpatioTemporal",) * attending,
        layers_per_block=made.blocks,
        num_attention_heads=made.heads,
        cross_attention_dim=made.context,
        addition_time_embed_dim=made.time_ids,
        projection_class_embeddings_input_dim=IDS * made.time_ids,
        num_frames=made.frames,
    )


def transformers_of(unet: Any) -> list[Any]:
    """A UNet's spatio-temporal transformers in the order of the data."""
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    return [each for block in blocks for each in getattr(block, "attentions", [])]


def read_shapes(made: VividPose) -> list[tuple[int, int]]:
    """[L, C] of what every spatial self-attention reads, in the order of the data: what `ReferenceNet` leaves of a portrait."""
    height, width = made.latent_size
    level = [(height * width >> 2 * i, channels) for i, channels in enumerate(made.channels)]
    attending = level[:-1]
    down = [shape for shape in attending for _ in range(made.blocks)]
    up = [shape for shape in reversed(attending) for _ in range(made.blocks + 1)]
    return [*down, level[-1], *up]


class Guider(nn.Module):
    """A picture of the pose becomes channels of the first level (layout of ControlNet's conditioning, Zhang et al. 2023)."""

    def __init__(self, widths: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        pairs = [(a, c, s) for below, above in zip(widths, widths[1:], strict=False) for a, c, s in ((below, below, 1), (below, above, 2))]
        self.blocks = nn.ModuleList([nn.Conv2d(a, c, 3, padding=1, stride=s) for a, c, s in pairs])
        self.conv_out = nn.Conv2d(widths[-1], width, 3, padding=1)
        for parameter in self.conv_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, picture: Tensor) -> Tensor:
        """[N, 3, H, W] 0..1 -> [N, C, H / 8, W / 8]"""
        x = functional.silu(self.conv_in(picture))
        for block in self.blocks:
            x = functional.silu(block(x))
        made: Tensor = self.conv_out(x)
        return made


class FaceTokens(nn.Module):
    """ArcFace's vector as tokens."""

    def __init__(self, made: VividPose) -> None:
        super().__init__()
        self.tokens = made.face_tokens
        self.proj = nn.Sequential(nn.Linear(FACE_DIM, 2 * FACE_DIM), nn.GELU(), nn.Linear(2 * FACE_DIM, made.context * made.face_tokens))
        self.norm = nn.LayerNorm(made.context)

    def forward(self, vector: Tensor) -> Tensor:
        """[B, 512] of any length -> [B, T, D]"""
        made: Tensor = self.norm(self.proj(functional.normalize(vector, dim=-1)).unflatten(-1, (self.tokens, -1)))
        return made


class FaceKeys(nn.Module):
    """Keys and values of a face's tokens for one spatial block."""

    def __init__(self, context: int, width: int) -> None:
        super().__init__()
        self.to_k_ip, self.to_v_ip = nn.Linear(context, width, bias=False), nn.Linear(context, width, bias=False)
        nn.init.zeros_(self.to_v_ip.weight)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, D] -> [B, T, C] each"""
        return self.to_k_ip(tokens), self.to_v_ip(tokens)


class ReferenceNet(nn.Module):
    """The spatial half of Stable Video Diffusion's UNet, up to its last attention."""

    def __init__(self, made: VividPose) -> None:
        super().__init__()
        self.unet = unet = svd_unet(made)
        for transformer in transformers_of(unet):
            for name in ("temporal_transformer_blocks", "time_pos_embed", "time_proj", "time_mixer"):
                delattr(transformer, name)
        for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
            for resnet in block.resnets:
                del resnet.temporal_res_block, resnet.time_mixer
        del unet.conv_norm_out, unet.conv_out

    def forward(self, latents: Tensor, image: Tensor, context: Tensor, ids: Tensor) -> list[Tensor]:
        """The reference's latents, scaled, and the image's as every frame has them [B, 4, h, w], CLIP's token [B, 1, D], ids [B, 3] -> what
        every spatial self-attention read, [B, L, C]."""
        level = torch.full((len(latents),), 0.25 * torch.tensor(LEAST_NOISE).log().item(), device=latents.device)
        call = _Call(1, _time(self.unet, level, ids, latents.dtype), context, None, Read(), [], ())
        _walk(self.unet, torch.cat([latents, image], 1), None, call)
        return call.written


class Denoiser(nn.Module):
    """Stable Video Diffusion's UNet with what tells it of reference, face and pose. A pure function of what it is given."""

    def __init__(self, made: VividPose) -> None:
        super().__init__()
        self.made, self.unet = made, svd_unet(made)
        widths = [block.norm1.weight.shape[0] for each in transformers_of(self.unet) for block in each.transformer_blocks]
        self.face, self.face_keys = FaceTokens(made), nn.ModuleList([FaceKeys(made.context, width) for width in widths])
        self.skeleton, self.dense = Guider(made.guider, made.channels[0]), Guider(made.guider, made.channels[0])

    def poses(self, skeletons: Tensor, maps: Tensor) -> Tensor:
        """Skeletons and renderings of SMPL-X, [B, F, 3, H, W] 0..1 each -> channels [B, F, C, h, w]; the same at every noise level."""
        both: Tensor = self.skeleton(skeletons.flatten(0, 1)) + self.dense(maps.flatten(0, 1))
        return both.unflatten(0, skeletons.shape[:2])

    def forward(self, x: Tensor, level: Tensor, context: Tensor, ids: Tensor, *, poses: Tensor | None = None, read: Read | None = None) -> Tensor:
        """Scaled noisy latents and the image's [B, F, 8, h, w], level [B] (a quarter of the logarithm of sigma), CLIP's token [B, 1, D],
        ids [B, 3] -> the predicted velocity [B, F, 4, h, w]. `poses` of `poses`, `read`: of the reference and the face; None for none."""
        rows, frames = x.shape[:2]
        time = _time(self.unet, level, ids, x.dtype).repeat_interleave(frames, 0)
        call = _Call(frames, time, context, x.new_zeros(rows, frames), read or Read(), [], tuple(self.face_keys))
        clip = _walk(self.unet, x.flatten(0, 1), None if poses is None else poses.flatten(0, 1), call)
        made: Tensor = self.unet.conv_out(self.unet.conv_act(self.unet.conv_norm_out(clip)))
        return made.unflatten(0, (rows, frames))


def _time(unet: Any, level: Tensor, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """[B], [B, 3] -> [B, T]"""
    told: Tensor = unet.time_embedding(unet.time_proj(level).to(dtype))
    beside: Tensor = unet.add_embedding(unet.add_time_proj(ids.flatten()).unflatten(0, ids.shape).flatten(1).to(dtype))
    return told + beside


def _walk(unet: Any, x: Tensor, poses: Tensor | None, call: _Call) -> Tensor:
    """From the first convolution to the last block."""
    x = unet.conv_in(x)
    x = x if poses is None else x + poses
    skips = [x]
    for block in unet.down_blocks:
        for resnet, attend in _layers(block):
            x = attend(_resnet(resnet, x, call), call)
            skips.append(x)
        for smaller in block.downsamplers or ():
            x = smaller(x)
            skips.append(x)
    first, *rest = unet.mid_block.resnets
    x = _resnet(first, x, call)
    for transformer, resnet in zip(unet.mid_block.attentions, rest, strict=True):
        x = _resnet(resnet, _transformer(transformer, x, call), call)
    for block in unet.up_blocks:
        for resnet, attend in _layers(block):
            x = attend(_resnet(resnet, torch.cat([x, skips.pop()], 1), call), call)
        for larger in block.upsamplers or ():
            x = larger(x)
    return x


def _layers(block: Any) -> list[tuple[Any, Callable[[Tensor, _Call], Tensor]]]:
    """A level's resnets, each with what attends behind it."""

    def attend(transformer: Any) -> Callable[[Tensor, _Call], Tensor]:
        return lambda x, call: _transformer(transformer, x, call)

    attentions = getattr(block, "attentions", None)
    if attentions is None:
        return [(resnet, lambda x, call: x) for resnet in block.resnets]
    return [(resnet, attend(transformer)) for resnet, transformer in zip(block.resnets, attentions, strict=True)]


def _resnet(module: Any, x: Tensor, call: _Call) -> Tensor:
    made: Tensor = module.spatial_res_block(x, call.time) if call.still is None else module(x, call.time, image_only_indicator=call.still)
    return made


def _transformer(module: Any, x: Tensor, call: _Call) -> Tensor:
    """As diffusers' TransformerSpatioTemporalModel, with what `Read` adds. [B · F, C, h, w] -> the same."""
    tokens = module.proj_in(module.norm(x).flatten(2).transpose(1, 2))
    for k, block in enumerate(module.transformer_blocks):
        tokens = _spatial(block, tokens, call)
        if call.still is not None:
            rows, cells = len(call.context), tokens.shape[1]
            at = module.time_proj(torch.arange(call.frames, device=x.device).repeat(rows)).to(x.dtype)
            context = call.context.repeat_interleave(cells, 0)
            moved = tokens + module.time_pos_embed(at)[:, None]
            moved = module.temporal_transformer_blocks[k](moved, num_frames=call.frames, encoder_hidden_states=context)
            tokens = module.time_mixer(x_spatial=tokens, x_temporal=moved, image_only_indicator=call.still)
    made: Tensor = x + module.proj_out(tokens).transpose(1, 2).unflatten(2, x.shape[2:])
    return made


def _spatial(block: Any, x: Tensor, call: _Call) -> Tensor:
    """As diffusers' BasicTransformerBlock, with the bank among the keys and the face beside CLIP's token. [B · F, L, C] -> the same."""
    seen = block.norm1(x)
    call.written.append(seen)
    index, call.seen = call.seen, call.seen + 1
    more = [call.read.bank[index].repeat_interleave(call.frames, 0)] if call.read.bank else []
    x = x + block.attn1(seen, encoder_hidden_states=torch.cat([seen, *more], 1))
    context = call.context.repeat_interleave(call.frames, 0)
    asked = block.norm2(x)
    if call.read.face is None:
        x = x + block.attn2(asked, encoder_hidden_states=context)
    else:
        keys = call.faces[index](call.read.face.repeat_interleave(call.frames, 0))
        x = x + _decoupled(block.attn2, asked, context, keys)
    made: Tensor = x + block.ff(block.norm3(x))
    return made


def _decoupled(attention: Any, asked: Tensor, context: Tensor, face: tuple[Tensor, Tensor]) -> Tensor:
    """The same queries of two sources, added before the last projection."""

    def heads(tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (attention.heads, -1)).transpose(1, 2)

    query = heads(attention.to_q(asked))
    sources = [(attention.to_k(context), attention.to_v(context)), face]
    answers = [functional.scaled_dot_product_attention(query, heads(keys), heads(values)) for keys, values in sources]
    made: Tensor = attention.to_out[0]((answers[0] + answers[1]).transpose(1, 2).flatten(2))
    return made


__all__ = [
    "AUGMENTED",
    "FPS",
    "IDS",
    "MOTION",
    "Denoiser",
    "FaceKeys",
    "FaceTokens",
    "Guider",
    "Read",
    "ReferenceNet",
    "read_shapes",
    "svd_unet",
    "transformers_of",
]
