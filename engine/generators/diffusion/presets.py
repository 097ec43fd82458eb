"""The sizes of the generator that have names: one frozen dataclass each, differing in data alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.generators.diffusion.layout import (
    MAPS,
    TEXT_TOKENS,
    Decoder,
    Ears,
    Noise,
    Preset,
    Sampling,
    UNet,
    check,
    pixels,
    resized,
)
from engine.types import AvatarError

TINY = Preset(
    name="tiny",
    size=(32, 48),
    latent="pixel",
    patch=4,
    unet=UNet(
        in_channels=pixels(4),
        channels=(16, 32),
        attention=(True, True),
        motion=(True, True),
        layers=1,
        heads=2,
        groups=8,
        image_dim=12,
        speech_dim=10,
    ),
    guider=(8, 16, 16),
    condition="puppet",
    image_encoder="pooled",
    window=6,
    sinks=1,
)
"""For tests: everything the others have, in under a million parameters, higher than wide nowhere."""

COMPACT = Preset(
    name="compact",
    size=(256, 256),
    latent="pixel",
    patch=4,
    unet=UNet(
        in_channels=pixels(4),
        channels=(24, 32, 64, 96),
        attention=(False, False, False, False),
        motion=(False, False, False, False),
        layers=1,
        heads=4,
        groups=8,
        speech_dim=64,
        plain=True,
    ),
    guider=(24,),
    fold=4,
    condition="puppet",
    guide=True,
    noise=Noise(prediction="x0", betas="scaled_linear"),
    residual=True,
    scale=4.0,
)
"""Made for a CPU: no autoencoder, attention at the lowest level only, and what it generates is what the puppet's frame lacks."""

ANIMATE_ANYONE = Preset(
    name="animate_anyone",
    size=(512, 512),
    latent="kl",
    patch=8,
    unet=UNet(
        in_channels=4,
        channels=(320, 640, 1280, 1280),
        attention=(True, True, True, False),
        motion=(True, True, True, True),
        image_dim=768,
    ),
    guider=(16, 32, 96, 256),
    condition="skeleton",
    image_encoder="clip",
    scale=0.18215,
)
"""The layout of the published Moore-AnimateAnyone weights (Hu et al. 2023, arXiv 2311.17117)."""

ANIMATE_ANYONE_V1 = replace(
    ANIMATE_ANYONE,
    name="animate_anyone_v1",
    unet=replace(ANIMATE_ANYONE.unet, motion_middle=False, positions=24, joined_norms=True),
    noise=Noise(prediction="epsilon", zero_snr=False, spacing="leading"),
)
"""Moore-AnimateAnyone's first configuration. Its norms see all frames of a window: at leisure as published, live each frame by itself."""

ANIMATE_ANYONE_FACE = replace(
    ANIMATE_ANYONE,
    name="animate_anyone_face",
    condition="dots",
    guider_each=True,
    sampling=Sampling(steps=20, zeros_unguided=True),
)
"""Moore-AnimateAnyone's face reenactment (`lmks2vid`): a guider for how the head is held and one for the mouth. Its script drops what is left of a
clip after every 24th frame and renders 320 frames at a time; here no frame is dropped and a clip is one."""

MUSE_POSE = replace(
    ANIMATE_ANYONE,
    name="muse_pose",
    size=(768, 768),
    unet=replace(ANIMATE_ANYONE.unet, positions=128),
    alignment="musepose",
    face=False,
    noise=Noise(betas="scaled_linear"),
    sampling=Sampling(steps=20, window=48, closed=False, padding="windows"),
    fps=12,
)
"""MusePose (github.com/TMElyralab/MusePose): every second frame of a clip, and a skeleton without a face."""

CHAMP = replace(ANIMATE_ANYONE, name="champ", condition="maps", guider_each=True, guider_attends=True, sampling=Sampling(steps=20))
"""Champ (Zhu et al. 2024, arXiv 2403.14781): driven by pictures of a body model's depth, normals and parts, and of a skeleton."""

MAGIC_ANIMATE = replace(
    ANIMATE_ANYONE_V1,
    name="magic_animate",
    unet=replace(ANIMATE_ANYONE_V1.unet, bank="mid_up", reference_cut=True),
    condition="densepose",
    image_encoder="text",
    reference_each=True,
    controlnet=True,
    sampling=Sampling(steps=25, guidance=7.5, window=16, tokens_unguided=True, padding="multiple", noise_frames=16),
)
"""MagicAnimate (Xu et al. 2023, arXiv 2311.16498): driven by DensePose; the portrait is read at every step. Its norms see all frames of a window:
at leisure as published, live each frame by itself."""

ECHOMIMIC = replace(
    ANIMATE_ANYONE,
    name="echomimic",
    unet=replace(ANIMATE_ANYONE.unet, image_dim=0, speech_dim=384, speech_in="second", speech_gain=3.0),
    condition="mask",
    planes=1,
    image_encoder="none",
    ears=Ears("whisper", width=384, layers=4, heads=6, positions=1500, tokens=50),
    window=12,
    fps=24,
    sampling=Sampling(steps=30, guidance=2.5, window=12, overlap=3, shift=2, hint_unguided=False, speech_unguided=False, clipped=1.5),
)
"""The layout of EchoMimic (Chen et al. 2024, arXiv 2407.08136): speech instead of an identity's tokens, a mask of the face instead of a pose."""
ECHOMIMIC_ACC = replace(ECHOMIMIC, name="echomimic_acc", sampling=replace(ECHOMIMIC.sampling, steps=6, guidance=1.0))
"""Its distilled weights: few steps without guidance."""
ECHOMIMIC_POSE = replace(ECHOMIMIC, name="echomimic_pose", condition="features", planes=3, sampling=replace(ECHOMIMIC.sampling, shift=3, clipped=0.0))
"""Its weights that are told eyes, brows and nose of every frame."""
ECHOMIMIC_POSE_ACC = replace(ECHOMIMIC_POSE, name="echomimic_pose_acc", sampling=replace(ECHOMIMIC_POSE.sampling, steps=6, guidance=1.0))
HALLO = replace(
    ANIMATE_ANYONE,
    name="hallo",
    unet=replace(ANIMATE_ANYONE.unet, motion=(True, True, True, False), speech_dim=768, speech_in="branches"),
    guider=(16, 32, 64, 128),
    condition="mask",
    image_encoder="face",
    ears=Ears("wav2vec", width=768, layers=12, heads=12, convolutions=512, hidden=512, tokens=32),
    sampling=Sampling(
        steps=40, guidance=3.5, window=16, overlap=0, hint_unguided=False, speech_unguided=False, carried=2, dealt=True, padding="multiple"
    ),
)
"""The layout of Hallo (Xu et al. 2024, arXiv 2406.08801): a recogniser's vector as the identity's tokens, speech in branches.

At leisure its clips of 16 frames read the last two of the clip before; live, the causal window is what carries a clip on instead.
"""

AUDIO = (ECHOMIMIC, ECHOMIMIC_ACC, ECHOMIMIC_POSE, ECHOMIMIC_POSE_ACC, HALLO)
PUBLISHED = (ANIMATE_ANYONE, ANIMATE_ANYONE_V1, ANIMATE_ANYONE_FACE, MAGIC_ANIMATE, MUSE_POSE, CHAMP)
PRESETS = {preset.name: preset for preset in (TINY, COMPACT, *PUBLISHED, *AUDIO)}


GENERATOR = "diffusion"
"""Whose weights they are; manifests that name no generator are of it."""
FACEID = "+faceid"
"""Ends the name of a preset whose denoiser reads a face's tokens too: `animate_anyone+faceid`."""


def preset(name: str) -> Preset:
    """A preset by name. Raises AvatarError for an unknown one."""
    plain = plain_name(name)
    if plain not in PRESETS:
        raise AvatarError(f"There is no preset called '{plain}'; choose one of: {', '.join(sorted(PRESETS))}.")
    return PRESETS[plain] if name == plain else with_face(PRESETS[plain])


def with_face(made: Preset) -> Preset:
    """The preset whose denoiser reads, beside what it reads of an identity, four tokens of a recogniser's vector by projections of their own
    (IP-Adapter-FaceID; Ye et al. 2023, arXiv 2308.06721, section 3.2). Raises AvatarError where there is nothing that they could stand beside."""
    other = replace(made, name=made.name + FACEID, unet=replace(made.unet, face_dim=made.unet.image_dim))
    if not _takes_face(made):
        able = ", ".join(sorted(name for name, one in PRESETS.items() if _takes_face(one)))
        raise AvatarError(f"The preset '{made.name}' has no tokens of an identity that a face's could stand beside; choose one of: {able}.")
    check(other)
    return other


def plain_name(name: str) -> str:
    """The name of the same preset without a face's tokens."""
    return name.removesuffix(FACEID)


def _takes_face(made: Preset) -> bool:
    return made.unet.image_dim > 0 and not made.recognises


def preset_in(manifest: Mapping[str, Any], weights: Path) -> Preset:
    """That of the networks in a folder of weights, by its manifest. A few-step student takes the steps that it was trained for, by default.

    A teacher's steps (`made_for` says what it wants) are too many to live by. Raises AvatarError where there is no network, or another generator's.
    """
    name = manifest.get("preset")
    if name is None:
        raise AvatarError(f"{weights} holds what a clip taught the puppet and no network; use --generator puppet, or train without --stage.")
    if manifest.get("generator", GENERATOR) != GENERATOR:
        raise AvatarError(f"The weights in {weights} ('{name}') are another generator's; choose that one with --generator, or other weights.")
    made, origin = preset(str(name)), manifest.get("origin")
    told = origin.get("steps", "0") if isinstance(origin, dict) and not origin.get("made_for") else "0"
    return replace(made, steps=int(told)) if str(told).isdecimal() and int(told) else made


__all__ = [
    "ANIMATE_ANYONE",
    "ANIMATE_ANYONE_FACE",
    "ANIMATE_ANYONE_V1",
    "AUDIO",
    "CHAMP",
    "COMPACT",
    "ECHOMIMIC",
    "FACEID",
    "HALLO",
    "MAGIC_ANIMATE",
    "MAPS",
    "MUSE_POSE",
    "PRESETS",
    "TEXT_TOKENS",
    "TINY",
    "Decoder",
    "Ears",
    "Noise",
    "Preset",
    "Sampling",
    "UNet",
    "check",
    "plain_name",
    "preset",
    "preset_in",
    "resized",
    "with_face",
]
