"""Stable Video Diffusion's files, as diffusers lays them out, and VividPose's own, as this engine writes them: every key is ours already."""

from __future__ import annotations

from exporters.published import keys
from exporters.published.keys import Drop, Table, same

SVD, SYSTEM = "Stable Video Diffusion", "VividPose"
FOLDERS = ("", "stable-video-diffusion-img2vid", "stable-video-diffusion-img2vid-xt", "stable-video-diffusion-img2vid-xt-1-1")
"""Where its folders lie in whatever somebody takes for the published one; the first is that itself."""
SINGLE = "svd*.safetensors"
"""The same networks in one file with other names, which lies beside the folders."""
LONG = 25
"""Frames that the larger of its weights were trained on; the smaller ones on 14. Nothing else tells them apart."""
WITHIN = "unet."
"""What its keys begin with in the denoiser and in the reference network."""
UNET = Table(
    ("diffusion_pytorch_model", "diffusion_pytorch_model.fp16"),
    "denoiser",
    same,
    lambda key: key.startswith(WITHIN),
    prefix=WITHIN,
    folder="unet",
    config=(
        *("num_attention_heads", "block_out_channels", "layers_per_block", "addition_time_embed_dim", "cross_attention_dim"),
        *("in_channels", "out_channels", "down_block_types", "up_block_types", "transformer_layers_per_block"),
    ),
    system=SVD,
)
AUTOENCODER = Table(
    UNET.stems,
    "autoencoder",
    same,
    folder="vae",
    config=("block_out_channels", "down_block_types", "in_channels", "out_channels", "latent_channels", "layers_per_block", "scaling_factor"),
    system=SVD,
    option="--vae",
)
IMAGE = Table(
    ("model", "model.fp16", "pytorch_model"),
    "image",
    same,
    drops=(Drop(".position_ids", "count", "0, 1, 2 and so on, which is made again"),),
    folder="image_encoder",
    config=keys.IMAGE.config,
    system=SVD,
    option="--image-encoder",
)
DENOISER = Table(("denoiser",), "denoiser", same, system=SYSTEM, option="--trained")
REFERENCE = Table(("reference",), "reference", same, system=SYSTEM, option="--trained")

__all__ = ["AUTOENCODER", "DENOISER", "FOLDERS", "IMAGE", "LONG", "REFERENCE", "SINGLE", "SVD", "SYSTEM", "UNET", "WITHIN"]
