"""A clip of VividPose from beginning to end: portrait, skeletons, renderings of SMPL-X, frames; a render that was killed goes on where it was."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from engine.generators.video.pictures import resized
from engine.generators.video.render import check_finite, key_of, read_half, write_half
from engine.generators.video.sampling import SEED, Half, Progress
from engine.generators.video.vividpose_networks import Networks, Portrait
from engine.generators.video.vividpose_sampling import GUIDANCE, OVERLAP, STEPS, first_latents, sample
from engine.types import AvatarError, UInt8Array


@dataclass(frozen=True, slots=True)
class Settings:
    """Of a render; the defaults are Stable Video Diffusion's, but for the windows, which it has none of."""

    guidance: float = GUIDANCE  # of the last frame
    first_guidance: float | None = None  # of the first; None: see `vividpose_sampling.scales`
    steps: int = STEPS
    size: int | None = None  # frames of a window; None: what the weights were trained on
    overlap: int = OVERLAP
    seed: int = SEED


DEFAULT = Settings()


def render(
    networks: Networks,
    portrait: Portrait,
    skeletons: UInt8Array,
    maps: UInt8Array,
    *,
    settings: Settings = DEFAULT,
    state: Path | None = None,
    progress: Progress | None = None,
) -> UInt8Array:
    """Skeletons of every frame [F, H, W, 3] in the DWPose convention and renderings of SMPL-X of the same shape, uint8 RGB of any size ->
    frames uint8 [F, H', W', 3].

    `state`: a file to keep what is done in, after every window; asked again for the same, the render goes on from it, for anything else it
    begins anew; it stays, as in `render.render`. Raises AvatarError for pictures that do not fit, or where the file cannot be written.
    """
    if skeletons.ndim != 4 or not len(skeletons):
        raise AvatarError("There is nothing to render: the clip has no frames.")
    size = networks.made.size
    drawn, dense = (np.stack([resized(each, size) for each in clip]) for clip in (skeletons, maps))
    key = _key(networks, portrait, drawn, dense, settings)
    half = None if state is None else read_half(state, key=key)

    def keep(now: Half) -> None:
        check_finite(now.said)
        if state is not None:
            write_half(now, state, key=key)

    latents = sample(
        networks.denoiser,
        networks.given(portrait),
        torch.from_numpy(drawn),
        torch.from_numpy(dense),
        guidance=settings.guidance,
        first_guidance=settings.first_guidance,
        steps=settings.steps,
        size=settings.size,
        overlap=settings.overlap,
        start=first_latents((len(drawn), *portrait.latents.shape), seed=settings.seed),
        half=half,
        keep=keep,
        progress=progress,
    )
    check_finite(latents)
    frames: UInt8Array = networks.decode(latents)
    return frames


def _key(networks: Networks, portrait: Portrait, drawn: UInt8Array, dense: UInt8Array, settings: Settings) -> str:
    told = {"weights": networks.origin, "size": networks.made.name, "dtype": str(next(networks.denoiser.parameters()).dtype)}
    known = [each for each in (portrait.latents, portrait.image, portrait.token, portrait.face) if each is not None]
    return key_of(json.dumps(told) + json.dumps(asdict(settings)), [*(each.float().cpu().numpy() for each in known), drawn, dense])


__all__ = ["DEFAULT", "Settings", "render"]
