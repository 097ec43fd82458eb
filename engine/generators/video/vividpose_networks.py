"""All of VividPose's networks in one place, what they make of a portrait, and their weights on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.generators.video import weights
from engine.generators.video.pictures import CLIP_DEVIATION, CLIP_MEAN, CLIP_SIZE, SCALE, image_encoder, resized, shown, unit
from engine.generators.video.sampling import SEED
from engine.generators.video.vividpose import AUGMENTED, FACE_DIM, Denoiser, ReferenceNet
from engine.generators.video.vividpose_presets import PRESETS, VividPose
from engine.generators.video.vividpose_sampling import Given, given
from engine.generators.video.weights import UNTRAINED, Plan
from engine.recogniser import GIVE, Recogniser, aligned
from engine.types import AvatarError, FloatArray, UInt8Array

DECODED = 8
"""Frames that are decoded together: the decoder carries what it sees from frame to frame, and takes memory for each."""
LEAST_BLUR, BLUR_REACH, LEAST_TAPS = 0.001, 4.0, 3
"""Of the blur before CLIP's picture: px of a standard deviation at least, how many of them its kernel is wide, and taps at least."""


@dataclass(frozen=True, slots=True)
class Portrait:
    """What is computed once for a portrait."""

    picture: UInt8Array  # [H, W, 3], of the network's size
    latents: Tensor  # [C, h, w], scaled, for the reference network
    image: Tensor  # [C, h, w], not scaled and of a slightly noisy picture, as Stable Video Diffusion has them beside every frame
    token: Tensor  # [D] CLIP's embedding, not normalised
    face: Tensor | None  # [512] of the recogniser; None where there is none


class Networks(nn.Module):
    """Denoiser, reference network, Stable Video Diffusion's autoencoder with a temporal decoder, and CLIP's image encoder (ViT-H/14)."""

    def __init__(self, made: VividPose) -> None:
        super().__init__()
        self.made = made
        self.denoiser, self.reference = Denoiser(made), ReferenceNet(made)
        self.autoencoder, self.image = autoencoder(made), image_encoder(made.context, narrow=made.name.startswith("tiny_"))
        self.origin = UNTRAINED  # sha256 of the weights' manifest, once there are any
        self.taught: Plan | None = None  # how they run live, where they were taught to
        self.frames = made.frames  # of a window, as they were taught
        self.posed = False  # whether the weights were taught poses, or are Stable Video Diffusion's alone
        self.recogniser: Path | None = None  # an ONNX file

    def placed(self, device: torch.device, dtype: torch.dtype) -> Networks:
        """Moved. The encoder stays in full precision: in half it overflows, as its published configuration says (`force_upcast`)."""
        self.to(device, dtype)
        self.autoencoder.encoder.float()
        self.autoencoder.quant_conv.float()
        return self

    @torch.no_grad()
    def prepare(self, portrait: UInt8Array, face: FloatArray | None = None, *, seed: int = SEED) -> Portrait:
        """Portrait uint8 [H, W, 3] of any size, and its face's points [478, 2] px -> what a render needs of it.

        Squashed to the network's size. The noise on the picture is seeded. Raises AvatarError where the recogniser does not run.
        """
        picture = resized(portrait, self.made.size)
        weight = next(self.autoencoder.encoder.parameters())
        clear = unit(picture)[None]
        noisy = clear + AUGMENTED * torch.randn(clear.shape, generator=torch.Generator().manual_seed(seed))
        clean, image = (self.autoencoder.encode(each.to(weight)).latent_dist.mode()[0] for each in (clear, noisy))
        eye = next(self.image.parameters())
        token: Tensor = self.image(seen_by_clip(portrait)[None].to(eye)).image_embeds[0]
        vector = None
        if self.recogniser is not None and face is not None:
            vector = torch.from_numpy(Recogniser(self.recogniser)(aligned(portrait, face)[None]))[0]
        return Portrait(picture, clean * SCALE, image, token, vector)

    def given(self, portrait: Portrait, *, augmented: float = AUGMENTED) -> Given:
        """What every call of the denoiser knows of a portrait, whose image is as noisy as `augmented`; with gradients to what learns."""
        weight = next(self.denoiser.parameters())
        face = None if portrait.face is None else portrait.face.to(weight)
        latents, image, token = (each.to(weight) for each in (portrait.latents, portrait.image, portrait.token))
        found: Given = given(self.denoiser, self.reference, latents=latents, image=image, token=token, face=face, augmented=augmented)
        return found

    @torch.no_grad()
    def decode(self, latents: Tensor) -> UInt8Array:
        """Clean latents [F, C, h, w] -> frames uint8 [F, H, W, 3]."""
        return np.concatenate([shown(self.seen(some)) for some in latents.split(DECODED)])

    def seen(self, latents: Tensor) -> Tensor:
        """The same as pictures [F, 3, H, W], about -1..1."""
        weight = next(self.autoencoder.decoder.parameters())
        picture: Tensor = self.autoencoder.decode(latents.to(weight) / SCALE, num_frames=len(latents)).sample
        return picture

    def parts(self) -> dict[str, nn.Module]:
        """The networks by the name of their file."""
        return dict(self.named_children())


def seen_by_clip(portrait: UInt8Array) -> Tensor:
    """[H, W, 3] -> [3, 224, 224] as Stable Video Diffusion shows it to CLIP: blurred by how much it shrinks, then read at the corners' spacing."""
    x = unit(portrait)[None]
    for axis in (2, 3):
        sigma = max((x.shape[axis] / CLIP_SIZE - 1.0) / 2.0, LEAST_BLUR)
        taps = int(max(BLUR_REACH * sigma, LEAST_TAPS)) // 2 * 2 + 1
        weights_of = torch.exp(-(torch.arange(-(taps // 2), taps // 2 + 1).float() ** 2) / (2 * sigma**2))
        kernel = (weights_of / weights_of.sum()).view((1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1)).expand(3, -1, -1, -1)
        half = taps // 2
        x = functional.conv2d(functional.pad(x, (0, 0, half, half) if axis == 2 else (half, half, 0, 0), mode="reflect"), kernel, groups=3)
    x = functional.interpolate(x, size=(CLIP_SIZE, CLIP_SIZE), mode="bicubic", align_corners=True)[0]
    mean, deviation = (torch.tensor(each).view(3, 1, 1) for each in (CLIP_MEAN, CLIP_DEVIATION))
    return ((x + 1.0) / 2.0 - mean) / deviation


def autoencoder(made: VividPose) -> Any:
    """Stable Video Diffusion's."""
    from diffusers import AutoencoderKLTemporalDecoder

    return AutoencoderKLTemporalDecoder(
        block_out_channels=made.decoder,
        down_block_types=("DownEncoderBlock2D",) * len(made.decoder),
        layers_per_block=made.decoder_blocks,
        latent_channels=made.latent,
    )


def preset(name: str) -> VividPose:
    """A size by name. Raises AvatarError for an unknown one."""
    if name not in PRESETS:
        raise AvatarError(f"There is no size of VividPose called '{name}'; choose one of: {', '.join(sorted(PRESETS))}.")
    return PRESETS[name]


def empty(made: VividPose) -> Networks:
    """Networks whose parameters have shapes but no values."""
    with torch.device("meta"):
        return Networks(made)


def build(made: VividPose, *, seed: int = 0) -> Networks:
    """Networks with seeded random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = Networks(made)
    networks.eval().requires_grad_(False)
    return networks


TAUGHT = "taught"
"""In the manifest's origin: what the network was taught beside Stable Video Diffusion; "poses", or "nothing"."""


def save(networks: Networks, folder: Path, *, origin: dict[str, str]) -> None:
    """One .safetensors a network, the recogniser, and the manifest last."""
    told = origin | {TAUGHT: "poses" if networks.posed else "nothing"}
    weights.save(networks.parts(), folder, preset=networks.made.name, origin=told, recogniser=networks.recogniser)


def load(folder: Path, *, made: VividPose | None = None) -> Networks:
    """The networks of a folder that `save` or the importer wrote. `made`: another size of the same weights. Raises AvatarError for others."""
    manifest = weights.read_manifest(folder)
    networks = empty(made or preset(manifest.preset))
    weights.fill(networks.parts(), folder, manifest)
    weights.count_patches(networks.image)
    networks.recogniser = weights.recogniser_in(folder, manifest)
    networks.posed = manifest.origin.get(TAUGHT) == "poses"
    networks.origin, networks.taught, networks.frames = manifest.own, manifest.taught, manifest.window or networks.frames
    networks.eval().requires_grad_(False)
    return networks


def check_recogniser(path: Path) -> None:
    """Raise AvatarError for a file that is no recogniser, or one of another length than the network reads."""
    if (length := Recogniser(path).length) != FACE_DIM:
        raise AvatarError(f"{path} gives {length} numbers for a face, and VividPose reads {FACE_DIM}; {GIVE}.")


__all__ = [
    "TAUGHT",
    "Networks",
    "Portrait",
    "autoencoder",
    "build",
    "check_recogniser",
    "empty",
    "load",
    "preset",
    "save",
    "seen_by_clip",
]
