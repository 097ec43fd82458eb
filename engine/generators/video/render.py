"""A clip of UniAnimate from beginning to end: portrait, skeletons, frames; a render that was killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.generators.video.networks import Networks, Portrait
from engine.generators.video.pictures import resized
from engine.generators.video.sampling import GUIDANCE, OVERLAP, SEED, SIZE, STEPS, Half, Progress, first_latents, sample
from engine.types import AvatarError, UInt8Array


@dataclass(frozen=True, slots=True)
class Settings:
    """Of a render; the defaults are the published ones."""

    guidance: float = GUIDANCE
    steps: int = STEPS  # asked for; 31 are taken
    size: int = SIZE  # frames of a window
    overlap: int = OVERLAP
    seed: int = SEED


DEFAULT = Settings()


def render(
    networks: Networks,
    portrait: Portrait,
    reference: UInt8Array,
    poses: UInt8Array,
    *,
    settings: Settings = DEFAULT,
    state: Path | None = None,
    progress: Progress | None = None,
) -> UInt8Array:
    """Skeletons of the portrait [H, W, 3] and of every frame [F, H, W, 3], uint8 RGB of any size -> frames uint8 [F, H', W', 3].

    The skeletons are of the OpenPose colours, painted on black, body with feet and hands but no face, aligned to the portrait. Red and blue
    change places here, as they did in the pictures that the published weights were given. `state`: a file to keep what is done in, after
    every call of the network; asked again for the same, the render goes on from it, for anything else it begins anew. It stays: whoever
    gave it removes it once the frames are written. Raises AvatarError for pictures that do not fit, or where the file cannot be written.
    """
    if poses.ndim != 4 or not len(poses):
        raise AvatarError("There is nothing to render: the clip has no frames.")
    size = networks.made.size
    pose, clip = (as_read(each) for each in (resized(reference, size), np.stack([resized(each, size) for each in poses])))
    key = _key(networks, portrait, pose, clip, settings)
    half = None if state is None else read_half(state, key=key)

    def keep(now: Half) -> None:
        check_finite(now.said)
        if state is not None:
            write_half(now, state, key=key)

    latents = sample(
        networks.denoiser,
        networks.given(portrait, pose),
        torch.from_numpy(clip),
        guidance=settings.guidance,
        steps=settings.steps,
        size=settings.size,
        overlap=settings.overlap,
        start=first_latents(portrait.latents, len(clip), seed=settings.seed, size=settings.size),
        half=half,
        keep=keep,
        progress=progress,
    )
    check_finite(latents)
    frames: UInt8Array = networks.decode(latents)
    return frames


def check_finite(found: Tensor) -> None:
    """Raise AvatarError for numbers that are none: after a call of the network, not after an hour of them."""
    if not bool(found.isfinite().all()):
        raise AvatarError("The network answered with numbers that are none; render in fp32, or check its weights.")


def as_read(pictures: UInt8Array) -> UInt8Array:
    """Skeletons [.., 3] RGB as UniAnimate reads them: red and blue change places, as in the pictures that the published weights were given."""
    return np.ascontiguousarray(pictures[..., ::-1])


def _key(networks: Networks, portrait: Portrait, pose: UInt8Array, clip: UInt8Array, settings: Settings) -> str:
    told = {"weights": networks.origin, "size": networks.made.name, "dtype": str(next(networks.denoiser.parameters()).dtype)}
    held = (portrait.latents.float().cpu().numpy(), portrait.image.float().cpu().numpy(), pose, clip)
    return key_of(json.dumps(told) + json.dumps(asdict(settings)), held)


def key_of(told: str, arrays: Iterable[npt.NDArray[Any]]) -> str:
    """Of everything that a result depends on."""
    made = hashlib.sha256(told.encode())
    for each in arrays:
        made.update(str(each.shape).encode() + np.ascontiguousarray(each).tobytes())
    return made.hexdigest()


def write_half(half: Half, path: Path, *, key: str) -> None:
    """Whole or not at all: a kill while writing leaves the one before."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"x": half.x.cpu().contiguous(), "said": half.said.cpu().contiguous()}
        save_file(tensors, partial, metadata={"key": key, "step": str(half.step), "window": str(half.window)})
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise AvatarError(f"{path} cannot be written ({str(error).splitlines()[0]}); check the folder and the room on the disk.") from error


def read_half(path: Path, *, key: str) -> Half | None:
    """What `write_half` kept of the same render, if it was begun; another's, or a damaged one, stays until it is written over."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
            half = Half(int(told["step"]), int(told["window"]), file.get_tensor("x"), file.get_tensor("said"))
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    return half if told.get("key") == key else None


__all__ = ["DEFAULT", "Settings", "as_read", "check_finite", "key_of", "read_half", "render", "write_half"]
